"""The hidden physiology of one simulated sleeper: breathing and its disorders, arousals, heart, oxygen.

Everything here lives on a 16-Hz grid and is what no sensor shows directly; :mod:`sleepfm_fast.simulator.polysomnograph`
turns it into channels. Every process draws from its own random stream, so that switching one coupling off leaves what
does not depend on it as it was, to the bit. ``docs/simulator.md`` lists the couplings and their sizes.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.simulator.sleeper import (
    Array,
    Couplings,
    Random,
    Subject,
    W,
    band_noise,
    draw_hypnogram,
    float32,
)

__all__ = ["FS_HIDDEN_HZ", "Arousal", "Physiology", "RespiratoryEvent", "breath_volume"]

FS_HIDDEN_HZ = 16


class RespiratoryEvent(NamedTuple):
    """One scored event; the name is the one written into the recording."""

    onset_s: float
    duration_s: float
    name: str


class Arousal(NamedTuple):
    """A few seconds of waking, with a surge of the heart rate and perhaps a body movement."""

    onset_s: float
    duration_s: float
    surge_bpm: float
    movement_s: float


def _arousal(rng: np.random.Generator, onset_s: float) -> Arousal:
    duration_s, surge_bpm = rng.uniform(3.5, 10), rng.uniform(5, 12)
    movement_s = rng.uniform(1.5, 6) * (rng.random() < 0.35)
    return Arousal(round(float(onset_s), 1), round(duration_s, 1), surge_bpm, float(movement_s))


#            share, shortest and longest [s], flow that is left, effort that is left
EVENT_KINDS = {
    "Hypopnea": (0.45, 12, 35, (0.25, 0.55), 0.75),
    "Obstructive apnea": (0.35, 11, 38, (0.0, 0.06), 1.0),
    "Central apnea": (0.11, 11, 28, (0.0, 0.04), 0.03),
    "Mixed apnea": (0.09, 14, 40, (0.0, 0.05), 1.0),
}


class Physiology:
    """Hidden processes of one recording.

    Parameters
    ----------
    random : Random
        Streams of the subject.
    n_epochs : int
        Length, in 30-s epochs. A recording shorter than the night is an excerpt from anywhere in it.
    couplings : Couplings
        What depends on what.

    Attributes
    ----------
    subject : Subject
    stages : ndarray
        int8 [n_epochs], 0..4 for W, N1, N2, N3, R.
    first_epoch : int
        Where in the night the recording starts.
    n : int
        Samples of every hidden process: one every 1/16 s, both ends included.
    """

    def __init__(self, random: Random, n_epochs: int, couplings: Couplings) -> None:
        self.random = random
        self.couplings = couplings
        self.subject = Subject.draw(random("subject"), couplings)
        self.duration_s = n_epochs * EPOCH_S
        self.n = self.duration_s * FS_HIDDEN_HZ + 1
        self.t_s = np.arange(self.n) / FS_HIDDEN_HZ
        self.first_epoch, self.stages = draw_hypnogram(random("hypnogram"), n_epochs, self.subject)

    def slow_noise(self, process: str, low_hz: float, high_hz: float) -> Array:
        """Draw unit noise of a named process on the hidden grid."""
        return band_noise(self.random(process), self.n, FS_HIDDEN_HZ, low_hz, high_hz, 2)

    def by_stage(self, values: tuple[float, ...], strength: float = 1.0, transition_s: int = 4) -> Array:
        """Take the value of the current stage (W, N1, N2, N3, R), gliding between stages; strength 0: their mean."""
        table = np.asarray(values, dtype=np.float32)
        table = table.mean() + np.float32(strength) * (table - table.mean())
        steps = np.append(np.repeat(table[self.stages], EPOCH_S * FS_HIDDEN_HZ), table[self.stages[-1]])
        window = signal.windows.hann(transition_s * FS_HIDDEN_HZ + 1).astype(np.float32)
        padded = np.pad(steps, window.size // 2, mode="edge")
        return float32(signal.fftconvolve(padded, window / window.sum(), mode="valid"))

    def boxes(self, spans: list[tuple[float, float]], levels: list[float] | None = None, rise_s: float = 1.0) -> Array:
        """Sum of spans (onset, end; in s), each from 0 to its level, with sigmoid edges of about ``rise_s``."""
        x = np.zeros(self.n, dtype=np.float32)
        for i, (onset_s, end_s) in enumerate(spans):
            a = max(int((onset_s - 3 * rise_s) * FS_HIDDEN_HZ), 0)
            b = min(int((end_s + 3 * rise_s) * FS_HIDDEN_HZ) + 1, self.n)
            t = self.t_s[a:b]
            edge = np.tanh((t - onset_s) * 2 / rise_s) - np.tanh((t - end_s) * 2 / rise_s)
            x[a:b] += (1.0 if levels is None else levels[i]) * 0.5 * edge
        return x

    def response(self, onsets_s: list[float], sizes: list[float], rise_s: float, fall_s: float) -> Array:
        """Sum of responses that start at the onsets, peak at their sizes and die away."""
        x = np.zeros(self.n, dtype=np.float32)
        t = np.arange(int((rise_s + 6 * fall_s) * FS_HIDDEN_HZ)) / FS_HIDDEN_HZ
        kernel = (1 - np.exp(-t / rise_s)) * np.exp(-t / fall_s)
        kernel /= kernel.max()
        for onset_s, size in zip(onsets_s, sizes, strict=True):
            a = max(int(onset_s * FS_HIDDEN_HZ), 0)
            x[a : a + t.size] += size * kernel[: max(self.n - a, 0)]
        return x

    @cached_property
    def events(self) -> tuple[RespiratoryEvent, ...]:
        """Respiratory events in order; at least one."""
        rng = self.random("respiratory events")
        weight = np.array([0, 1.4, 1.0, 0.35, 1.5])[self.stages]
        most_per_s = self.subject.events_per_hour * 1.5 / 3600
        n = rng.poisson(most_per_s * self.duration_s)
        candidates = np.sort(rng.uniform(2, max(self.duration_s - 45, 3), n))
        accepted = candidates[rng.random(n) * 1.5 < weight[(candidates / EPOCH_S).astype(int)]]
        if not accepted.size:
            asleep = np.flatnonzero(self.stages != W)
            accepted = np.array([EPOCH_S * (asleep[asleep.size // 2] if asleep.size else self.stages.size // 2) + 1.0])
        names = list(EVENT_KINDS)
        share = np.array([kind[0] for kind in EVENT_KINDS.values()])
        events: list[RespiratoryEvent] = []
        free_s = 0.0
        for onset_s in accepted:
            name = names[rng.choice(len(names), p=share)]
            _, shortest, longest, _, _ = EVENT_KINDS[name]
            duration_s = shortest + (longest - shortest) * rng.beta(2, 3)
            if onset_s < free_s:
                continue
            duration_s = min(duration_s, self.duration_s - 2 - onset_s)
            events.append(RespiratoryEvent(round(float(onset_s), 1), round(float(duration_s), 1), name))
            free_s = onset_s + duration_s + rng.uniform(10, 18)
        return tuple(events)

    @cached_property
    def arousals(self) -> tuple[Arousal, ...]:
        """Arousals in order: after most respiratory events, and 8 an hour of their own."""
        rng = self.random("arousals after events")
        found = []
        for event in self.events:
            follows = rng.random() < 0.85 and rng.random() < self.couplings.event_arousal
            arousal = _arousal(rng, event.onset_s + event.duration_s + rng.uniform(-0.5, 1.5))
            if follows:
                found.append(arousal)
        rng = self.random("arousals")
        for onset_s in rng.uniform(0, self.duration_s, rng.poisson(8 / 3600 * self.duration_s)):
            arousal = _arousal(rng, onset_s)
            if self.stages[int(onset_s / EPOCH_S)] != W:
                found.append(arousal)
        return tuple(sorted(a for a in found if a.onset_s + a.duration_s < self.duration_s))

    @cached_property
    def arousal(self) -> Array:
        """Arousal, 0 to 1."""
        return np.minimum(self.boxes([(a.onset_s, a.onset_s + a.duration_s) for a in self.arousals], rise_s=0.6), 1)

    @cached_property
    def movement(self) -> Array:
        """Body movement, 0 to 1: with some arousals, often when awake."""
        rng = self.random("movement")
        awake = rng.uniform(0, self.duration_s, (rng.poisson(50 / 3600 * self.duration_s), 2))
        spans = [
            (float(t), t + 1.5 + 4.5 * u / self.duration_s) for t, u in awake if self.stages[int(t / EPOCH_S)] == W
        ]
        spans += [(a.onset_s + 0.5, a.onset_s + 0.5 + a.movement_s) for a in self.arousals if a.movement_s]
        return np.minimum(self.boxes(spans, rise_s=0.5), 1)

    @cached_property
    def breath_phase(self) -> NDArray[np.float64]:
        """Breaths since the start; an integer is the start of a breath in."""
        s = self.couplings.stage_breathing
        level = self.by_stage((1.08, 1.0, 0.97, 1.0, 1.06), s)
        irregularity = self.by_stage((0.11, 0.08, 0.045, 0.025, 0.15), s)
        rate = level * np.exp(irregularity * self.slow_noise("breathing rate", 0.004, 0.12)) + 0.25 * self.arousal
        rate_hz = self.subject.breathing_rate_hz * rate.astype(np.float64)
        phase: NDArray[np.float64] = np.cumsum(rate_hz) / FS_HIDDEN_HZ + self.random("breath phase").random()
        return phase

    @cached_property
    def breath_depth(self) -> Array:
        """Depth of each breath, median 1, held from one breath in to the next."""
        s = self.couplings.stage_breathing
        spread = self.by_stage((0.25, 0.18, 0.09, 0.05, 0.30), s)
        each = self.random("breath depth").standard_normal(int(self.breath_phase[-1]) + 2, dtype=np.float32)
        drift = self.slow_noise("breathing drift", 0.0, 0.02)
        depth = np.exp(spread * (0.6 * each[self.breath_phase.astype(int)] + 0.6 * drift))
        # Breaths after an event make up for it.
        ends = [e.onset_s + e.duration_s for e in self.events]
        sizes = self.random("recovery").uniform(0.4, 1.1, len(ends)).tolist()
        return float32(depth * (1 + self.response(ends, sizes, 0.8, 7)))

    def _event_course(self, column: int) -> tuple[list[tuple[float, float]], list[float]]:
        rng = self.random("event depth")
        spans, levels = [], []
        for event in self.events:
            _, _, _, (low, high), effort = EVENT_KINDS[event.name]
            flow = rng.uniform(low, high)
            span = (event.onset_s, event.onset_s + event.duration_s)
            if column == 1 and event.name == "Mixed apnea":
                span, effort = (event.onset_s, event.onset_s + 0.45 * event.duration_s), 0.03
            spans.append(span)
            levels.append(1 - (flow, effort)[column])
        return spans, levels

    @cached_property
    def airway(self) -> Array:
        """Share of the intended flow that passes: 1, reduced in hypopnoeas, almost 0 in apnoeas."""
        return float32(np.clip(1 - self.boxes(*self._event_course(0), rise_s=1.2), 0, 1))

    @cached_property
    def drive(self) -> Array:
        """Share of the breathing effort that is made: 1, lower in hypopnoeas, almost 0 in central apnoeas."""
        return float32(np.clip(1 - self.boxes(*self._event_course(1), rise_s=1.2), 0, 1))

    @cached_property
    def obstruction(self) -> Array:
        """Effort against a closed or narrow airway, 0 to 1."""
        return float32(np.clip(self.drive - self.airway, 0, 1))

    @cached_property
    def effort(self) -> Array:
        """Amplitude of the breathing movements; rises through an obstruction."""
        crescendo = self.response([e.onset_s for e in self.events], [0.5] * len(self.events), 25, 25)
        return float32(self.breath_depth * self.drive * (1 + self.obstruction * crescendo))

    @cached_property
    def lung_volume(self) -> Array:
        """Movement of the chest around its mean, about -1 to 1: positive at the end of a breath in."""
        return self.effort * breath_volume(self.breath_phase)

    @cached_property
    def saturation_percent(self) -> Array:
        """Oxygen saturation at the finger: falls with the time lost to events, 20 to 30 s later."""
        rng = self.random("desaturation")
        deficit = np.zeros(self.n, dtype=np.float32)
        for event in self.events:
            depth = (1 - np.mean(EVENT_KINDS[event.name][3])) * rng.uniform(0.2, 0.35) * event.duration_s
            a = int(event.onset_s * FS_HIDDEN_HZ)
            t = self.t_s[: max(self.n - a, 0)]
            fall = np.clip(t / event.duration_s, 0, 1)
            deficit[a:] += depth * fall * np.exp(-np.maximum(t - event.duration_s, 0) / 9)
        lag = int(self.subject.oximeter_delay_s * FS_HIDDEN_HZ)
        delayed = np.append(np.zeros(lag, dtype=np.float32), deficit)[: self.n]
        drift = 0.4 * self.slow_noise("saturation drift", 0.0, 0.01)
        seen = self.subject.saturation_percent + drift - self.couplings.desaturation * delayed
        return float32(np.clip(seen, 55, 100))

    @cached_property
    def heart_rate_bpm(self) -> Array:
        """Instantaneous heart rate."""
        c, subject = self.couplings, self.subject
        level = self.by_stage((1.12, 1.01, 0.96, 0.95, 1.03), c.stage_heart_rate)
        spread = self.by_stage((1.4, 1.0, 0.8, 0.5, 1.5), c.stage_heart_rate)
        rate = subject.heart_rate_bpm * level
        rate += spread * (2.0 * self.slow_noise("heart rate, very low", 0.004, 0.04))
        rate += spread * (1.0 * self.slow_noise("heart rate, low", 0.06, 0.12))
        vagal = self.by_stage((0.8, 1.0, 1.15, 1.3, 0.7), c.stage_heart_rate)
        # The rate leads the volume by about a tenth of a breath: it rises while air comes in.
        inhaling = self.effort * breath_volume(self.breath_phase + 0.1)
        rate += c.respiratory_sinus_arrhythmia * subject.sinus_arrhythmia_bpm * vagal * np.clip(inhaling, -1.6, 1.6)
        ends = [e.onset_s + e.duration_s for e in self.events]
        rng = self.random("event heart rate")
        held = self.boxes([(e.onset_s + 4, e.onset_s + e.duration_s) for e in self.events], rise_s=4)
        surge = self.response(ends, [rng.uniform(5, 12) for _ in ends], 2.5, 6)
        rate += c.event_heart_rate * (surge - 5 * held)
        woken = [a.onset_s for a in self.arousals], [a.surge_bpm for a in self.arousals]
        rate += c.arousal_heart_rate * self.response(*woken, 2.0, 6)
        rate += c.movement * 6 * self.movement
        return float32(np.clip(rate, 32, 160))

    @cached_property
    def beats_s(self) -> NDArray[np.float64]:
        """Times of the R peaks: the heart beats whenever the integrated rate passes an integer."""
        rng = self.random("beats")
        phase = np.cumsum(self.heart_rate_bpm.astype(np.float64)) / 60 / FS_HIDDEN_HZ + rng.random()
        integers = np.arange(np.ceil(phase[0]), phase[-1])
        beats: NDArray[np.float64] = np.interp(integers, phase, self.t_s) + 0.004 * rng.standard_normal(integers.size)
        return beats


def breath_volume(phase: NDArray[np.float64]) -> Array:
    """Chest movement over a breath, -1 (before breathing in) to 1; breathing in takes 40 % of the cycle."""
    p = (phase % 1.0).astype(np.float32)
    return float32(np.where(p < 0.4, -np.cos(np.pi / 0.4 * p), np.cos(np.pi / 0.6 * (p - 0.4))))
