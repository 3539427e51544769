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

# ---- contrastive_loss ------------------------------------------------------------------------------------------------
