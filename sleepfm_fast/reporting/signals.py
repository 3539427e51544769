"""Thirty seconds of recorded signals as small strips, straight from the clip store: no filter, physical units."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sleepfm_fast.reporting.markup import element, escape
from sleepfm_fast.scoring.stages import EPOCH_S

if TYPE_CHECKING:
    from sleepfm_fast.clips import ClipStore

__all__ = ["Strip", "strip_markup", "strips_of"]

COLUMNS = 420  # of a strip: each shows the range of the samples in it
HEIGHT = 200
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Strip:
    """One channel of one clip: ``values`` in ``unit`` at ``fs_hz``."""

    name: str
    unit: str
    fs_hz: float
    values: Floats


def strips_of(store: ClipStore, clip: int, modality: str, most: int) -> list[Strip]:
    """At most ``most`` channels of a modality that the recording has, spread over its list, as recorded."""
    recording = int(store.recording[clip])
    slots = [s for s in store.slots_of(modality) if store.channels.present[recording, s]]
    if len(slots) > most:
        slots = [slots[round(i)] for i in np.linspace(0, len(slots) - 1, most)]
    strips = []
    for slot in slots:
        fs = store.fs_hz(recording, slot)
        assert fs is not None
        window = store.window(recording, slot, int(store.clip[clip]), 0, 0)
        gain, offset = (float(c[recording, slot]) for c in (store.channels.gain, store.channels.offset))
        first = window.first - window.start
        values = np.asarray(window.samples[max(first, 0) :], np.float64) * gain + offset
        unit = store.units[int(store.channels.unit[recording, slot])].replace("uV", "µV")
        strips.append(Strip(store.slots[slot].name, unit, float(fs), values))
    return strips


def envelope(strip: Strip) -> str:
    """A path through the samples; where they are denser than the columns, through lowest and highest of each."""
    v = strip.values[: max(round(EPOCH_S * strip.fs_hz), 1)]
    if not v.size:
        return ""
    low, high = float(v.min()), float(v.max())
    span = high - low or 1.0
    y = np.rint((high - v) / span * (HEIGHT - 8) + 4).astype(int)
    if high == low:
        y[:] = HEIGHT // 2
    if len(v) <= 2 * COLUMNS:
        x = np.rint(np.arange(len(v)) / (EPOCH_S * strip.fs_hz) * 2 * COLUMNS).astype(int)
        points = list(zip(x.tolist(), y.tolist(), strict=True))
    else:
        bounds = np.linspace(0, len(y), COLUMNS + 1).astype(int)[:-1]
        tops, bottoms = np.minimum.reduceat(y, bounds).tolist(), np.maximum.reduceat(y, bounds).tolist()
        points = []
        for i, pair in enumerate(zip(tops, bottoms, strict=True)):
            # Alternating directions: the line from one column to the next stays short.
            first, second = pair if i % 2 else pair[::-1]
            points += [(2 * i, first), (2 * i + 1, second)]
    path = f"M{points[0][0]} {points[0][1]}"
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        path += f"l{bx - ax} {by - ay}" if by - ay >= 0 else f"l{bx - ax}{by - ay}"
    return path


def rounded(value: float) -> str:
    """Three significant digits, without an exponent where there are few others."""
    return f"{float(f'{value:.3g}'):.7g}"


def strip_markup(strip: Strip) -> str:
    """Name, range and drawing of one channel."""
    v = strip.values
    limits = f"{rounded(v.min())} to {rounded(v.max())} {strip.unit}" if v.size else "no samples"
    words = f"{strip.name}: {EPOCH_S:g} seconds, {limits}"
    svg = element(
        "svg",
        element("title", escape(words)),
        element("path", d=envelope(strip), class_="line signal") if v.size else "",
        viewBox=f"0 0 {2 * COLUMNS} {HEIGHT}",
        preserveAspectRatio="none",
        class_="strip data",
        role="img",
    )
    name = element("div", escape(strip.name), element("span", escape(limits)), class_="strip-name")
    return name + svg
