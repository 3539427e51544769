"""How the slots of a montage are filled from a recording's signals, as integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.channels import Assignment
from sleepfm_fast.edf import Signal

__all__ = ["StoredChannel", "blocks", "channel_facts", "fraction_pair", "plan_channels"]

Array = npt.NDArray[Any]

BLOCK = 1 << 20  # samples that are derived at a time, which bounds the temporary memory
DIVISOR = 256  # a derived channel's step is the finer gain over this, so that rounding adds at most 0.2 % of that gain


@dataclass(frozen=True)
class StoredChannel:
    """How a slot is filled: ``signal``, or ``signal - minus``, as integers of ``dtype`` with ``gain`` and ``offset``.

    ``factors`` multiply the two signals' integers before these are subtracted and rounded; None where the integers are
    stored as they are, or subtracted exactly.
    """

    assignment: Assignment
    signal: Signal | None
    minus: Signal | None
    dtype: str
    gain: float
    offset: float
    factors: tuple[float, float] | None
    note: str


def plan_channels(assignments: Sequence[Assignment], sample_bytes: int) -> list[StoredChannel]:
    """Decide integer type, gain and offset of every slot.

    A derived channel A - B is the exact int32 difference where A and B have the same gain. Otherwise it is requantised
    to int32 in steps of the finer gain over 256, which its note says. Where that would overflow, as with 24-bit
    signals, 256 is halved as often as needed; if the gains are so different that even the finer gain itself would
    overflow, the step is the smallest that does not.
    """
    return [plan_channel(a, sample_bytes) for a in assignments]


def plan_channel(assignment: Assignment, sample_bytes: int) -> StoredChannel:
    signal, minus, scale = assignment.signal, assignment.minus, assignment.unit_scale
    if signal is None:
        return StoredChannel(assignment, None, None, "", 0.0, 0.0, None, "")
    gain, offset = signal.gain * scale, signal.offset * scale
    if minus is None:
        return StoredChannel(assignment, signal, None, "<i2" if sample_bytes == 2 else "<i4", gain, offset, None, "")
    gain_minus, offset_minus = minus.gain * scale, minus.offset * scale  # assign() only pairs signals of one unit
    name = f"{signal.label} - {minus.label}"
    if gain == gain_minus:
        return StoredChannel(
            assignment, signal, minus, "<i4", gain, offset - offset_minus, None, f"{name}: exact difference"
        )
    largest = 2.0 ** (8 * sample_bytes - 1)
    divisor = DIVISOR
    while divisor > 1 and (abs(gain) + abs(gain_minus)) * largest * divisor / min(abs(gain), abs(gain_minus)) >= 2**31:
        divisor //= 2
    step = min(abs(gain), abs(gain_minus)) / divisor
    if (abs(gain) + abs(gain_minus)) * largest / step >= 2**31:
        step = (abs(gain) + abs(gain_minus)) * largest / (2**31 - 1)
    return StoredChannel(
        assignment, signal, minus, "<i4", step, offset - offset_minus, (gain / step, gain_minus / step),
        f"{name}: gains differ ({gain:g} and {gain_minus:g} {assignment.unit}), requantised in steps of "
        f"{step:g} {assignment.unit}",
    )  # fmt: skip


def blocks(channel: StoredChannel, digital: dict[int, Array]) -> Iterator[Array]:
    """Yield the integers of a channel that is not missing, contiguous and little-endian, block by block."""
    assert channel.signal is not None
    samples = digital[channel.signal.index]
    for start in range(0, len(samples), BLOCK):
        block = samples[start : start + BLOCK]
        if channel.minus is not None:
            other = digital[channel.minus.index][start : start + BLOCK]
            if channel.factors is None:
                block = block.astype(np.int32) - other.astype(np.int32)
            else:
                block = np.rint(channel.factors[0] * block - channel.factors[1] * other)
        yield np.ascontiguousarray(block, dtype=channel.dtype)


def fraction_pair(value: Fraction) -> list[int]:
    """Return the numerator and the denominator, for JSON."""
    return [value.numerator, value.denominator]


def channel_facts(channel: StoredChannel) -> dict[str, Any]:
    """Return the description of a slot for a recording's ``.json``."""
    slot = channel.assignment.slot
    if channel.signal is None:
        return {"slot": slot.name, "kind": slot.kind, "present": False}
    return {
        "slot": slot.name,
        "kind": slot.kind,
        "present": True,
        "labels": [channel.signal.label] + ([channel.minus.label] if channel.minus is not None else []),
        "unit": channel.assignment.unit,
        "fs_hz": fraction_pair(channel.signal.fs_hz),
        "gain": channel.gain,
        "offset": channel.offset,
        "dtype": channel.dtype,
        "note": channel.note,
    }
