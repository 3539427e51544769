"""What is doubtful about the channels of a night, from its header and a few minutes of its samples.

Every threshold is a constant with its reason. A finding is a suspicion with its figure: nothing is changed by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import Assignment, channel_of
from sleepfm_fast.doctor.measures import POTENTIALS, ChannelMeasures, NightMeasures
from sleepfm_fast.edf import Signal
from sleepfm_fast.formats.units import MICROVOLTS_OF_UNIT, microvolts, unit_of

__all__ = ["SEVERITIES", "Channel", "Finding", "channel_findings"]

SEVERITIES = ("error", "warning", "note")
"""``error``: the night cannot be ingested. ``warning``: what is stored may not be what is meant. ``note``: to know."""

PLAUSIBLE_UV = {"eeg": (0.7, 500.0), "eog": (0.7, 690.0), "emg": (0.15, 140.0), "ecg": (40.0, 20_000.0)}
"""Amplitudes of potentials [uV]: medians over a night lie near 20 (EEG), 25 (EOG), 5 (EMG) and 1,000 (ECG, peak to
peak). The bounds are about a factor of 30 away, half of the way to the next unit, and less than 1,000 apart: of uV, mV
and V one fits at most."""
SLOWEST_WAVEFORM_HZ = 20.0
"""A potential sampled more slowly is an envelope or a trend (Sleep-EDF keeps its EMG so, at 1 Hz)."""
FLAT_SHARE = 0.25
"""A quarter of the windows: three of twelve, two hours of eight, are no accident."""
CLIPPED_SHARE = 0.001
"""One sample in a thousand: an amplifier that is overdriven by movements alone stays below it."""
MAINS_SHARE = 0.5
"""More than half of the power: filters for training leave nothing of such a channel but what is left of the hum."""
BEAT_MATCH, BEAT_CONTRAST = 0.9, 6.0
"""Heartbeats: from beat to beat one shape, standing out sixfold. ECGs measured 0.97-1.00 and 9-14, EEG and EOG with a
visible ECG artefact 0.81-0.90 and 2.6-3.7, noise 0.58-0.76 and 1.3-2.0."""
NO_BEAT_MATCH, NO_BEAT_CONTRAST = 0.8, 3.0
"""Below either an ECG shows none: between the noise and the artefacts above."""
SAME_RATE = 0.05
"""Rates of one heart in two channels: each misses or adds a beat in twenty at most."""
DOWNWARD_SHARE = 0.2
"""At most one R peak in five points up. Leads such as aVR do so by nature: it is a suspicion."""
ANTIPHASE = -0.5, 0.8
"""Median correlation of the belts, and share of windows below 0. Paradoxical breathing turns single windows, in severe
obstruction most of them."""
TREND_RANGE = {"SpO2": (40.0, 100.5), "Pulse Rate": (20.0, 250.0)}
"""Oximeters do not report less saturation [%]; a sensor that is off reads 0."""
OFF_SHARE = 0.25
"""As FLAT_SHARE, of windows whose median lies outside the range."""


@dataclass(frozen=True)
class Finding:
    """One thing that is doubtful.

    Attributes
    ----------
    severity : {"error", "warning", "note"}
    code : str
        What it is; docs/cohorts.md lists all.
    paths : tuple of str
        The recording, or the recordings that it is about.
    channel : str
        Label, or empty where it is not about a channel.
    text : str
        What was found, with its figure.
    action : str
        What to do about it.
    figures : dict of str to number
        The numbers in the text.
    """

    severity: str
    code: str
    paths: tuple[str, ...]
    channel: str
    text: str
    action: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Channel:
    """A signal to judge: its kind, and whether the montage uses it."""

    signal: Signal
    kind: str | None
    used: bool


def channels_of(signals: Sequence[Signal], assignments: Sequence[Assignment]) -> list[Channel]:
    """Signals with the kinds of the slots they fill, others with the kinds their labels tell."""
    used = {part.index: a.slot.kind for a in assignments for part in (a.signal, a.minus) if part is not None}
    return [Channel(s, used.get(s.index, channel_of(s.label)[1]), s.index in used) for s in signals]


def belts_of(channels: Sequence[Channel]) -> tuple[int, int] | None:
    """Indices of the first chest and the first abdominal belt."""
    found: dict[str, int] = {}
    for channel in channels:
        found.setdefault(channel_of(channel.signal.label)[0], channel.signal.index)
    return (found["Chest"], found["Abdomen"]) if "Chest" in found and "Abdomen" in found else None


def override(path: Path, channel: str, **keys: Any) -> str:
    """Entry of a file of corrections, as the user would write it."""
    return f"--overrides {json.dumps({path.name: {channel: keys}}, ensure_ascii=False)}"


def channel_findings(
    path: Path, channels: Sequence[Channel], measures: NightMeasures, trusted: frozenset[int] = frozenset()
) -> list[Finding]:
    """Judge every channel of a known kind.

    Parameters
    ----------
    path : Path
    channels : sequence of Channel
    measures : NightMeasures
        Of the same recording.
    trusted : frozenset of int
        Signals whose unit the user has stated.
    """
    found: list[Finding] = []
    for channel in channels:
        if channel.kind is None:
            continue
        measured = measures.channels.get(channel.signal.index)
        if measured is None:
            continue
        heart = heart_of(channels, measures, measured)
        for code, text, action, figures in judged(path, channel, measured, measures.n_windows, trusted, heart):
            found.append(
                Finding(
                    "warning" if channel.used and action else "note",  # where there is nothing to do it is one
                    code,
                    (str(path),),
                    channel.signal.label.strip(),
                    text,
                    action,
                    figures,
                )
            )
    found += duplicates(path, channels, measures)
    found += antiphase(path, channels, measures)
    return found


Judgement = tuple[str, str, str, dict[str, Any]]


def shows_heartbeats(m: ChannelMeasures) -> bool:
    """Whether a channel shows them as an ECG does."""
    return m.match >= BEAT_MATCH and m.contrast >= BEAT_CONTRAST


def heart_of(channels: Sequence[Channel], measures: NightMeasures, m: ChannelMeasures) -> str:
    """Label of an ECG that shows the heartbeats of another channel too, where every ECG of the night shows some."""
    ecgs = [c for c in channels if c.kind == "ecg" and c.signal.index in measures.channels]
    measured = [measures.channels[c.signal.index] for c in ecgs]
    if not all(map(shows_heartbeats, measured)):  # perhaps two plugs were exchanged
        return ""
    same = (abs(ecg.rate - m.rate) <= SAME_RATE * ecg.rate for ecg in measured)
    return next((c.signal.label.strip() for c, is_same in zip(ecgs, same, strict=True) if is_same), "")


def judged(
    path: Path, channel: Channel, m: ChannelMeasures, n_windows: int, trusted: frozenset[int], heart: str
) -> Iterator[Judgement]:
    """Everything that is doubtful about one channel; ``heart`` is an ECG that shows the same heartbeats, if any."""
    signal, kind = channel.signal, channel.kind
    leave_out = f"leave it out if it holds nothing else: {override(path, signal.label.strip(), exclude=True)}"
    dead = m.flat + m.railed
    limits = TREND_RANGE.get(channel_of(signal.label.strip())[0]) if kind == "step" else None
    one_value = m.flat == n_windows and len(set(m.levels)) == 1
    # Saturation may stand at 100 %, the limit; whether a known trend is off its values tell.
    if m.railed >= FLAT_SHARE * n_windows and limits is None:
        figures = {"railed": m.railed, "windows": n_windows}
        yield "railed", f"is at its digital limit in {m.railed} of {n_windows} windows", leave_out, figures
    if m.flat >= FLAT_SHARE * n_windows and (kind != "step" or one_value):
        figures = {"flat": m.flat, "windows": n_windows}
        yield "flat", f"holds one value in {m.flat} of {n_windows} windows", leave_out, figures
    if m.unplugged >= FLAT_SHARE * n_windows:
        text = f"is silent but for noise in {m.unplugged} of {n_windows} windows: unplugged, as a cannula under CPAP?"
        action = "nothing to do if it is only part of the night: the hours before give its amplitude"
        yield "unplugged", text, action, {"unplugged": m.unplugged, "windows": n_windows}
    if kind == "step":
        if limits is not None and not one_value:
            yield from trends(path, channel, m, limits)
        return
    if dead == n_windows:
        return
    if m.clipped >= CLIPPED_SHARE and kind in (*POTENTIALS, "respiration"):
        text = f"{100 * m.clipped:.2g} % of the samples are cut off at the signal's own extremes"
        yield "clipped", text, "its peaks are missing here; next time record a larger range", {"share": m.clipped}
    if kind not in POTENTIALS:
        return
    if float(signal.fs_hz) < SLOWEST_WAVEFORM_HZ:
        text = f"is a potential sampled at {float(signal.fs_hz):g} Hz: an envelope or a trend, no waveform"
        yield "slow", text, leave_out, {"fs_hz": float(signal.fs_hz)}
        return
    yield from units(path, channel, m, trusted)
    if m.mains >= MAINS_SHARE:
        text = f"{100 * m.mains:.0f} % of its power lies at {m.mains_hz:.0f} Hz"
        yield "mains", text, leave_out, {"share": m.mains, "hz": m.mains_hz}
    yield from beats(path, channel, m, heart)


def trends(path: Path, channel: Channel, m: ChannelMeasures, limits: tuple[float, float]) -> Iterator[Judgement]:
    """Compare saturation or pulse rate with its range."""
    label = channel.signal.label.strip()
    low, high = limits
    n_off = sum(not low <= level <= high for level in m.levels)
    if n_off < OFF_SHARE * len(m.levels):
        return
    figures = {"median": m.level, "low": m.low, "high": m.high, "off": n_off, "windows": len(m.levels)}
    if low <= m.level <= high:
        text = f"lies outside {low:g} to {high:g} in {n_off} of {len(m.levels)} windows: was the sensor off?"
        yield "level", text, "nothing to do if it is only part of the night, but keep it in mind", figures
        return
    text = f"has a median of {m.level:.3g} {channel.signal.unit}".rstrip() + f", expected {low:g} to {high:g}"
    if limits == TREND_RANGE["SpO2"] and 100 * m.level >= low and 100 * m.high <= high:
        action = override(path, label, unit="%", scale=100)
        yield "level", f"{text}: it is a fraction", f"turn it into %: {action}", figures
    else:
        action = f"if the sensor was off, leave it out: {override(path, label, exclude=True)}"
        yield "level", text, action, figures


def units(path: Path, channel: Channel, m: ChannelMeasures, trusted: frozenset[int]) -> Iterator[Judgement]:
    """Compare the amplitude with the header's unit."""
    signal, kind = channel.signal, channel.kind
    if kind is None or not math.isfinite(m.amplitude) or m.amplitude <= 0:
        return
    low, high = PLAUSIBLE_UV[kind]
    label, unit = signal.label.strip(), signal.unit.strip()
    stated = microvolts(unit) if signal.calibrated else None
    fitting = [name for name, factor in MICROVOLTS_OF_UNIT.items() if low <= m.amplitude * factor <= high]
    what = "peak to peak" if kind == "ecg" else "standard deviation"
    figures = {"amplitude": m.amplitude, "unit": unit, "fits": fitting[0] if fitting else None}
    by_header, _, _ = unit_of(signal, kind, trusted=signal.index in trusted)
    converted = by_header == "uV"
    if stated is not None and low <= m.amplitude * stated <= high:
        if not converted:
            text = f"the header's range contradicts its unit {unit}, but the amplitude of {m.amplitude:.3g} fits it"
            yield "unit", text, f"if so, state it: {override(path, label, unit=unit)}", figures
        return
    given = f"the header says {unit}" if stated is not None else f"the header's unit is '{unit}'" if unit else "no unit"
    if not signal.calibrated:
        given = "not calibrated"
    if fitting:
        text = f"{given}; its amplitude of {m.amplitude:.3g} ({what}) fits {fitting[0]}"
        yield "unit", text, f"if so, state it: {override(path, label, unit=fitting[0])}", figures
    else:
        text = f"{given}; its amplitude of {m.amplitude:.3g} ({what}) fits {kind.upper()} in none of uV, mV, V"
        action = f"look at it; state unit and scale, or leave it out: {override(path, label, exclude=True)}"
        yield "unit", text, action, figures


def beats(path: Path, channel: Channel, m: ChannelMeasures, heart: str) -> Iterator[Judgement]:
    """Heartbeats where there should be none, none where there should be, and upside down."""
    label, kind = channel.signal.label.strip(), channel.kind
    figures = {"rate": m.rate, "match": m.match, "contrast": m.contrast, "upward": m.upward}
    if kind != "ecg":
        if shows_heartbeats(m):
            text = f"is labelled {str(kind).upper()}, but shows heartbeats ({m.rate:.0f}/min, similar to {m.match:.2f})"
            action = f"if it is an ECG: {override(path, label, alias='ECG')}; otherwise keep the artefact in mind"
            if heart:
                text, action = f"{text}, as {heart} does: an artefact of the heart", ""
            yield "wrong_kind", text, action, figures
        return
    if not (m.match >= NO_BEAT_MATCH and m.contrast >= NO_BEAT_CONTRAST):
        if float(channel.signal.fs_hz) >= 64:
            text = "is labelled ECG, but shows no heartbeats of a single shape: other signal, noise or ectopic beats?"
            yield "wrong_kind", text, f"look at it, or leave it out: {override(path, label, exclude=True)}", figures
    elif m.upward <= DOWNWARD_SHARE:
        text = f"{100 * (1 - m.upward):.0f} % of the R peaks point down: perhaps its polarity is swapped"
        yield "polarity", text, f"if so: {override(path, label, invert=True)}", figures


def duplicates(path: Path, channels: Sequence[Channel], measures: NightMeasures) -> Iterator[Finding]:
    """Channels of one night that hold the same samples, or have one label."""
    groups: dict[str, list[Channel]] = {}
    labels: dict[str, list[Channel]] = {}
    for channel in channels:
        m = measures.channels.get(channel.signal.index)
        if m is not None and m.flat + m.railed < measures.n_windows:
            groups.setdefault(f"{m.digest} {channel.signal.fs_hz}", []).append(channel)
        labels.setdefault(channel.signal.label.strip().casefold(), []).append(channel)
    for same in groups.values():
        if len(same) > 1:
            names = [c.signal.label.strip() for c in same]
            severity = "warning" if sum(c.used for c in same) > 1 else "note"
            text = f"holds the same samples as {', '.join(names[1:])}"
            action = f"leave one out: {override(path, '#' + str(same[1].signal.index), exclude=True)}"
            yield Finding(severity, "duplicate_channel", (str(path),), names[0], text, action, {"channels": names})
    for same in labels.values():
        if len(same) > 1 and same[0].kind is not None:
            numbers = ", ".join(f"#{c.signal.index}" for c in same)
            text = f"{len(same)} channels have this label ({numbers})"
            action = f"tell them apart: {override(path, '#' + str(same[-1].signal.index), alias='...')}"
            yield Finding("note", "duplicate_label", (str(path),), same[0].signal.label.strip(), text, action)


def antiphase(path: Path, channels: Sequence[Channel], measures: NightMeasures) -> Iterator[Finding]:
    """Belts that breathe against each other."""
    pair = belts_of(channels)
    if measures.belts is None or pair is None:
        return
    correlation, negative = measures.belts
    if correlation <= ANTIPHASE[0] and negative >= ANTIPHASE[1]:
        labels = {c.signal.index: c.signal.label.strip() for c in channels}
        text = (
            f"moves against {labels[pair[1]]} (correlation {correlation:.2f}, in {100 * negative:.0f} % of the "
            "windows): perhaps one of the two belts is swapped"
        )
        yield Finding(
            "warning", "belts", (str(path),), labels[pair[0]], text,
            f"if so, for one of them: {override(path, labels[pair[0]], invert=True)}",
            {"correlation": correlation, "negative": negative},
        )  # fmt: skip
