from typing import Any

def build_info() -> dict[str, Any]: ...

# ---- filter_resample -------------------------------------------------------------------------------------------------
def filter_resample(
    raw: int,
    n_raw: int,
    raw_bytes: int,
    table: int,
    calibration: int,
    n_clips: int,
    n_channels: int,
    filters: int,
    n_filters: int,
    taps: int,
    n_taps: int,
    out: int,
    out_dtype: int,
    n_out: int,
    zscore: bool,
    n_threads: int,
    device: int,
    stream: int,
) -> None: ...
def filter_resample_launch(
    n_clips: int, n_channels: int, n_out: int, zscore: bool, shared_limit_bytes: int
) -> dict[str, int]: ...

# ---- contrastive_loss ------------------------------------------------------------------------------------------------
