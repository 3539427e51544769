"""``filter_resample``: from integers as recorded to filtered, resampled and normalised clips, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sleepfm_fast import _C
from sleepfm_fast.filters import FILTER_COLUMNS
from sleepfm_fast.ops.arguments import refuse_no_tensors
from sleepfm_fast.ops.registry import DTYPE_CODES, LIBRARY
from sleepfm_fast.ops.unsupported import refuse_gradients

if TYPE_CHECKING:
    from sleepfm_fast.filters import FilterBank

__all__ = ["NORMALISATIONS", "filter_resample"]

NORMALISATIONS = ("none", "zscore", "robust")  # in the order of `Normalise` in csrc/params.h
OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

LIBRARY.define(
    "filter_resample(Tensor raw, Tensor table, Tensor calibration, Tensor filters, Tensor taps, SymInt n_out, "
    "ScalarType dtype, str normalise) -> Tensor"
)
LIBRARY.define(
    "filter_resample_out(Tensor raw, Tensor table, Tensor calibration, Tensor filters, Tensor taps, str normalise, "
    "Tensor(a!) out) -> ()"
)


def filter_resample(
    raw: torch.Tensor,
    table: torch.Tensor,
    calibration: torch.Tensor,
    bank: FilterBank,
    n_out: int,
    *,
    dtype: torch.dtype = torch.float32,
    normalise: str = "none",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Filter, resample and normalise a ragged batch of channel windows.

    Parameters
    ----------
    raw : Tensor, int16 or int32, shape (n,)
        The samples of all windows, as recorded, one window after the other.
    table : Tensor, int64, shape (B, C, 6)
        Per clip and channel: ``offset`` of the window in ``raw``; its ``length`` in samples (0: the channel is
        missing, the output is exactly 0); ``start``, the index in its segment of the window's first sample; ``first``,
        the index in its segment of the sample at or before the clip's start; ``phase``, 0 to ``bank.up(f) - 1``: the
        clip starts at ``first + phase / up`` samples; ``filter``, from ``bank.index``.
    calibration : Tensor, float32, shape (B, C, 4)
        ``gain``, ``offset`` (physical value = gain * raw + offset), ``center``, ``scale``
        (output = (filtered - center) * scale).
    bank
        The filters.
    n_out
        Samples per clip at the output rate.
    dtype
        ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``; all arithmetic is single precision or better.
    normalise
        What replaces center and scale, per clip and channel, after filtering. ``"zscore"``: mean 0 and (population)
        standard deviation 1. ``"robust"``: median 0 and interquartile range 1.349 (that of a standard normal
        distribution), quantiles as ``numpy.quantile`` has them; artefacts that fill less than a quarter of the clip do
        not change the scale. In both a flat channel gives 0 (``"robust"``: also one that is flat for more than half of
        the clip), and channels of kind ``step`` keep center and scale. ``"none"``: center and scale everywhere.
    out
        Where the result goes: shape (B, C, n_out), contiguous, of ``dtype``, on the device of ``raw``. The first touch
        of fresh memory can take longer than the filter; a tensor that is used again does without.

    Returns
    -------
    Tensor, shape (B, C, n_out)
        Output ``n`` of a clip lies at native sample ``first + (phase + n * down) / up`` of its segment. Beyond a
        window's ends its edge sample repeats: a window with ``bank.context(f)`` samples on either side, or one that
        reaches its segment's ends, gives what the whole recording gives.

    Notes
    -----
    Runs over clips and channels with ``torch.get_num_threads()`` threads; the result does not depend on their number,
    nor a clip's on the rest of its batch. In a forked worker set one thread (data loader workers have one), as for
    every OpenMP program.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, shape, device or range. On a CUDA device the rows of ``table`` are not read
        back to be checked: an impossible row gives NaN there.
    """
    named = [("raw", raw), ("table", table), ("calibration", calibration)]
    refuse_no_tensors("filter_resample", named if out is None else [*named, ("out", out)])
    _check_n_out(n_out)
    filters, taps = bank.tensors(raw.device)
    if out is None:
        result: torch.Tensor = torch.ops.sleepfm_fast.filter_resample(
            raw, table, calibration, filters, taps, n_out, dtype, normalise
        )
        return result
    if out.dtype != dtype or out.dim() != 3 or out.shape[2] != n_out:
        raise TypeError(
            f"filter_resample: out is {out.dtype} of shape {tuple(out.shape)}; expected {dtype} [B, C, {n_out}]."
        )
    torch.ops.sleepfm_fast.filter_resample_out(raw, table, calibration, filters, taps, normalise, out)
    return out


def _check_n_out(n_out: int) -> None:
    if isinstance(n_out, bool) or not isinstance(n_out, int | np.integer | torch.SymInt):
        raise TypeError(f"filter_resample: n_out is {n_out!r}; expected an integer, the samples of a clip.")


def _check(
    raw: torch.Tensor,
    table: torch.Tensor,
    calibration: torch.Tensor,
    filters: torch.Tensor,
    taps: torch.Tensor,
    n_out: int,
    dtype: torch.dtype,
    normalise: str,
) -> None:
    if raw.dtype not in (torch.int16, torch.int32) or raw.dim() != 1:
        raise TypeError(
            f"filter_resample: raw is {raw.dtype} of shape {tuple(raw.shape)}; expected int16 or int32, 1-D."
        )
    if table.dtype != torch.int64 or table.dim() != 3 or table.shape[2] != 6:
        raise TypeError(
            f"filter_resample: table is {table.dtype} of shape {tuple(table.shape)}; expected int64 [B, C, 6]."
        )
    if calibration.dtype != torch.float32 or calibration.dim() != 3 or calibration.shape[2] != 4:
        raise TypeError(
            f"filter_resample: calibration is {calibration.dtype} of shape {tuple(calibration.shape)}; expected "
            "float32 [B, C, 4]: gain, offset, center, scale."
        )
    if calibration.shape[:2] != table.shape[:2]:
        raise ValueError(
            f"filter_resample: table is for {tuple(table.shape[:2])} clips and channels, calibration for "
            f"{tuple(calibration.shape[:2])}."
        )
    if (
        filters.dtype != torch.int64
        or filters.dim() != 2
        or filters.shape[1] != FILTER_COLUMNS
        or taps.dtype != torch.float32
    ):
        raise TypeError(
            "filter_resample: filters and taps are not those of FilterBank.tensors() (int64 [F, 25], float32 [n])."
        )
    if dtype not in OUT_DTYPES:
        raise TypeError(f"filter_resample: dtype is {dtype}; choose torch.float32, torch.bfloat16 or torch.float16.")
    if normalise not in NORMALISATIONS:
        raise ValueError(f"filter_resample: normalise is '{normalise}'; choose one of: {', '.join(NORMALISATIONS)}.")
    if n_out < 0:
        raise ValueError(f"filter_resample: n_out is {n_out}; expected the number of output samples, 0 or more.")
    for name, tensor in (("table", table), ("calibration", calibration), ("filters", filters), ("taps", taps)):
        if tensor.device != raw.device:
            raise ValueError(
                f"filter_resample: raw is on {raw.device}, {name} on {tensor.device}; move them to one device."
            )


def _check_out(raw: torch.Tensor, table: torch.Tensor, out: torch.Tensor) -> None:
    if out.dim() != 3 or out.shape[:2] != table.shape[:2]:
        raise ValueError(
            f"filter_resample: out is of shape {tuple(out.shape)}, table for {tuple(table.shape[:2])} clips and "
            "channels."
        )
    if out.device != raw.device:
        raise ValueError(f"filter_resample: raw is on {raw.device}, out on {out.device}; move them to one device.")
    if not out.is_contiguous():
        raise ValueError(f"filter_resample: out has strides {tuple(out.stride())}; expected a contiguous tensor.")


def _bytes_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and of the one behind its last; equal if it has none."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + ((steps + 1) * tensor.element_size() if tensor.numel() else 0)


def _refuse_shared(out: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
    begin, end = _bytes_of(out)
    for name, tensor in inputs.items():
        first, last = _bytes_of(tensor)
        if first < end and begin < last:
            raise ValueError(f"filter_resample: out shares memory with {name}; expected a tensor of its own.")


def _run_into(
    raw: torch.Tensor,
    table: torch.Tensor,
    calibration: torch.Tensor,
    filters: torch.Tensor,
    taps: torch.Tensor,
    normalise: str,
    out: torch.Tensor,
) -> None:
    _check_out(raw, table, out)
    n_clips, n_channels, n_out = out.shape
    _check(raw, table, calibration, filters, taps, n_out, out.dtype, normalise)
    _refuse_shared(out, {"raw": raw, "table": table, "calibration": calibration, "filters": filters, "taps": taps})
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)  # so that a backward that needs what out held is refused
    raw, table, calibration = raw.contiguous(), table.contiguous(), calibration.contiguous()
    filters, taps = filters.contiguous(), taps.contiguous()
    device, stream = -1, 0
    if raw.is_cuda:
        device, stream = raw.device.index, torch.cuda.current_stream(raw.device).cuda_stream
    _C.filter_resample(
        raw.data_ptr(),
        raw.numel(),
        raw.element_size(),
        table.data_ptr(),
        calibration.data_ptr(),
        n_clips,
        n_channels,
        filters.data_ptr(),
        filters.shape[0],
        taps.data_ptr(),
        taps.numel(),
        out.data_ptr(),
        DTYPE_CODES[out.dtype],
        n_out,
        NORMALISATIONS.index(normalise),
        torch.get_num_threads(),
        device,
        stream,
    )


def _run(
    raw: torch.Tensor,
    table: torch.Tensor,
    calibration: torch.Tensor,
    filters: torch.Tensor,
    taps: torch.Tensor,
    n_out: int,
    dtype: torch.dtype,
    normalise: str,
) -> torch.Tensor:
    out = _fake(raw, table, calibration, filters, taps, n_out, dtype, normalise)
    _run_into(raw, table, calibration, filters, taps, normalise, out)
    return out


def _fake(
    raw: torch.Tensor,
    table: torch.Tensor,
    calibration: torch.Tensor,
    filters: torch.Tensor,
    taps: torch.Tensor,
    n_out: int,
    dtype: torch.dtype,
    normalise: str,
) -> torch.Tensor:
    _check(raw, table, calibration, filters, taps, n_out, dtype, normalise)
    return raw.new_empty((table.shape[0], table.shape[1], n_out), dtype=dtype)


def _fake_into(
    raw: torch.Tensor,
    table: torch.Tensor,
    calibration: torch.Tensor,
    filters: torch.Tensor,
    taps: torch.Tensor,
    normalise: str,
    out: torch.Tensor,
) -> None:
    _check_out(raw, table, out)
    _check(raw, table, calibration, filters, taps, out.shape[2], out.dtype, normalise)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("filter_resample", _run, _device)
    LIBRARY.impl("filter_resample_out", _run_into, _device)
torch.library.register_fake("sleepfm_fast::filter_resample", _fake, lib=LIBRARY)
torch.library.register_fake("sleepfm_fast::filter_resample_out", _fake_into, lib=LIBRARY)
for _op in ("filter_resample", "filter_resample_out"):
    refuse_gradients(_op, "arguments that require none: recordings have no gradient")
