"""The hidden physiology of one simulated sleeper: stages, breathing and its disorders, arousals, heart, oxygen.

Everything here lives on a 16-Hz grid and is what no sensor shows directly; :mod:`sleepfm_fast.polysomnograph` turns
it into channels. Every process draws from its own random stream, so that switching one coupling off leaves all other
processes as they were, to the bit. ``docs/simulator.md`` lists the couplings, their sizes and where they come from.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

__all__ = ["FS_HIDDEN_HZ", "Couplings", "Physiology", "Random", "RespiratoryEvent", "Subject", "band_noise"]

FS_HIDDEN_HZ = 16
EPOCH_S = 30
W, N1, N2, N3, R = range(5)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Couplings:
    """Strength of each dependence between processes or sensors: 1 as in the model, 0 switched off."""

    stage_eeg: float = 1.0
    """EEG spectrum, spindles, K-complexes and slow waves follow the stage."""
    stage_eye_movements: float = 1.0
    """Rapid eye movements in R, slow ones in N1, blinks in W."""
    stage_muscle_tone: float = 1.0
    """Chin tone falls from W to N3 and is lowest in R."""
    stage_heart_rate: float = 1.0
    """Level and variability of the heart rate follow the stage."""
    stage_breathing: float = 1.0
    """Rate and regularity of breathing follow the stage."""
    respiratory_sinus_arrhythmia: float = 1.0
    """The heart rate rises with every breath in."""
    ecg_derived_respiration: float = 1.0
    """Lung volume changes the amplitude and the baseline of the ECG."""
    pulse_oximeter: float = 1.0
    """The oximeter's pulse rate follows the heart."""
    cardiac_artefact: float = 1.0
    """The QRS complex shows in EEG, EOG and chin EMG."""
    cardioballistic: float = 1.0
    """Every heart beat shakes the belts and the air column."""
    respiratory_artefact: float = 1.0
    """Breathing sways EEG and EOG; snoring and breathing in show in the chin EMG."""
    desaturation: float = 1.0
    """Oxygen saturation falls after a respiratory event."""
    event_arousal: float = 1.0
    """Respiratory events end in arousals."""
    event_heart_rate: float = 1.0
    """The heart slows during a respiratory event and speeds up after it."""
    arousal_heart_rate: float = 1.0
    """The heart speeds up in an arousal."""
    movement: float = 1.0
    """Body movements show in all sensors at once."""
    traits: float = 1.0
    """Age and sex change slow waves, spindles, heart rate, its variability and the number of events."""


class Random:
    """Independent random streams of one subject, one for each named process."""

    def __init__(self, seed: int, subject: int) -> None:
        self.key = (seed, subject)

    def __call__(self, process: str) -> np.random.Generator:
        """Return the stream of a process, from its start."""
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence((*self.key, zlib.crc32(process.encode())))))


def band_noise(rng: np.random.Generator, n: int, fs_hz: float, low_hz: float, high_hz: float, order: int = 4) -> Array:
    """Gaussian noise of unit variance with Butterworth-shaped band edges (``low_hz`` = 0: low-pass), [n]."""
    m = fft.next_fast_len(n, real=True)
    f = np.maximum(np.arange(m // 2 + 1, dtype=np.float32) * np.float32(fs_hz / m), np.float32(fs_hz / m / 2))
    power = 1 / (1 + (f / high_hz) ** (2 * order))
    if low_hz:
        power /= 1 + np.minimum(low_hz / f, 1e4) ** (2 * order)
    power[0] = 0
    spectrum = rng.standard_normal(2 * f.size, dtype=np.float32).view(np.complex64) * np.sqrt(power)
    x: Array = fft.irfft(spectrum, m)[:n]
    return x / np.float32(np.sqrt(2 * power.sum()) * 1.4142135 / m)


@dataclass(frozen=True)
class Subject:
    """Who sleeps: what stays the same through the night."""

    age: float
    sex: str
    heart_rate_bpm: float
    sinus_arrhythmia_bpm: float
    breathing_rate_hz: float
    events_per_hour: float
    saturation_percent: float
    oximeter_delay_s: float
    slow_wave_gain: float
    spindle_hz: float
    spindles_gain: float
    alpha_hz: float
    alpha_gain: float

    @classmethod
    def draw(cls, rng: np.random.Generator, couplings: Couplings) -> Subject:
        """Draw a subject of a sleep clinic: 18 to 85 years, more events in older and in male subjects."""
        age = float(np.round(rng.uniform(18, 85)))
        sex = "F" if rng.random() < 0.45 else "M"
        effect = couplings.traits
        decades = effect * (age - 45) / 10
        female = effect * (sex == "F")
        return cls(
            age=age,
            sex=sex,
            heart_rate_bpm=float(np.clip(rng.normal(63 + 4 * female, 8), 45, 90)),
            sinus_arrhythmia_bpm=float(np.clip(4.5 * np.exp(-0.16 * decades + 0.3 * rng.standard_normal()), 1.2, 9)),
            breathing_rate_hz=float(np.clip(rng.normal(14.5 + 0.7 * female, 1.8), 10, 20) / 60),
            events_per_hour=float(
                np.clip(np.exp(np.log(20) + 0.12 * decades - 0.5 * female + 0.55 * rng.standard_normal()), 4, 60)
            ),
            saturation_percent=float(np.clip(rng.normal(96.2 - 0.25 * decades, 0.7), 93, 98.5)),
            oximeter_delay_s=float(rng.uniform(20, 30)),
            slow_wave_gain=float(np.exp(-0.14 * decades + 0.15 * rng.standard_normal())),
            spindle_hz=float(rng.normal(13.1 + 0.3 * female, 0.5)),
            spindles_gain=float(np.exp(-0.08 * decades + 0.2 * rng.standard_normal())),
            alpha_hz=float(np.clip(rng.normal(9.9 - 0.12 * decades, 0.6), 8.2, 11.6)),
            alpha_gain=float(np.exp(0.3 * rng.standard_normal())),
        )


class RespiratoryEvent(NamedTuple):
    """One scored event; the name is the one written into the recording."""

    onset_s: float
    duration_s: float
    name: str


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
        self.first_epoch, self.stages = _excerpt(random("hypnogram"), n_epochs, self.subject)

    def slow_noise(self, process: str, low_hz: float, high_hz: float) -> Array:
        """Draw unit noise of a named process on the hidden grid."""
        return band_noise(self.random(process), self.n, FS_HIDDEN_HZ, low_hz, high_hz, 2)

    def by_stage(self, values: tuple[float, float, float, float, float], strength: float = 1.0) -> Array:
        """Value of the current stage (W, N1, N2, N3, R) with 3-s transitions; strength 0 gives their mean."""
        table = np.asarray(values, dtype=np.float32)
        table = table.mean() + np.float32(strength) * (table - table.mean())
        steps = np.append(np.repeat(table[self.stages], EPOCH_S * FS_HIDDEN_HZ), table[self.stages[-1]])
        window = signal.windows.hann(3 * FS_HIDDEN_HZ + 1).astype(np.float32)
        padded = np.pad(steps, window.size // 2, mode="edge")
        smooth: Array = signal.fftconvolve(padded, window / window.sum(), mode="valid").astype(np.float32)
        return smooth

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
    def arousals(self) -> tuple[tuple[float, float], ...]:
        """Arousals (onset, duration; in s): after most respiratory events, and 8 an hour of their own."""
        rng = self.random("arousals")
        found = []
        for event in self.events:
            follows, onset_s, duration_s = rng.random() < 0.85, rng.uniform(-0.5, 1.5), rng.uniform(4, 10)
            if follows and rng.random() < self.couplings.event_arousal:
                found.append((event.onset_s + event.duration_s + onset_s, duration_s))
        own = np.sort(rng.uniform(0, self.duration_s, rng.poisson(8 / 3600 * self.duration_s)))
        found += [(float(t), rng.uniform(3, 9)) for t in own if self.stages[int(t / EPOCH_S)] != W]
        return tuple((round(a, 1), round(d, 1)) for a, d in sorted(found) if a + d < self.duration_s)

    @cached_property
    def arousal(self) -> Array:
        """Arousal, 0 to 1."""
        return np.minimum(self.boxes([(a, a + d) for a, d in self.arousals], rise_s=0.6), 1)

    @cached_property
    def movement(self) -> Array:
        """Body movement, 0 to 1: with some arousals, often when awake."""
        rng = self.random("movement")
        onsets = [a + 0.5 for a, _ in self.arousals if rng.random() < 0.35]
        awake = rng.uniform(0, self.duration_s, rng.poisson(50 / 3600 * self.duration_s))
        onsets += [float(t) for t in awake if self.stages[int(t / EPOCH_S)] == W]
        return np.minimum(self.boxes([(t, t + rng.uniform(1.5, 6)) for t in onsets], rise_s=0.5), 1)

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
        recovered: Array = (depth * (1 + self.response(ends, sizes, 0.8, 7))).astype(np.float32)
        return recovered

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
        return np.clip(1 - self.boxes(*self._event_course(0), rise_s=1.2), 0, 1)

    @cached_property
    def drive(self) -> Array:
        """Share of the breathing effort that is made: 1, lower in hypopnoeas, almost 0 in central apnoeas."""
        return np.clip(1 - self.boxes(*self._event_course(1), rise_s=1.2), 0, 1)

    @cached_property
    def obstruction(self) -> Array:
        """Effort against a closed or narrow airway, 0 to 1."""
        return np.clip(self.drive - self.airway, 0, 1)

    @cached_property
    def effort(self) -> Array:
        """Amplitude of the breathing movements; rises through an obstruction."""
        crescendo = self.response([e.onset_s for e in self.events], [0.5] * len(self.events), 25, 25)
        grown: Array = self.breath_depth * self.drive * (1 + self.obstruction * crescendo)
        return grown

    @cached_property
    def lung_volume(self) -> Array:
        """Movement of the chest around its mean, about -1 to 1: positive at the end of a breath in."""
        return self.effort * _volume(self.breath_phase)

    @cached_property
    def saturation_percent(self) -> Array:
        """Oxygen saturation at the finger: falls with the time lost to events, 20 to 30 s later."""
        rng = self.random("desaturation")
        deficit = np.zeros(self.n, dtype=np.float32)
        for event in self.events:
            depth = (1 - np.mean(EVENT_KINDS[event.name][3])) * rng.uniform(0.14, 0.3) * event.duration_s
            a = int(event.onset_s * FS_HIDDEN_HZ)
            t = self.t_s[: max(self.n - a, 0)]
            fall = np.clip(t / event.duration_s, 0, 1)
            deficit[a:] += depth * fall * np.exp(-np.maximum(t - event.duration_s, 0) / 9)
        lag = int(self.subject.oximeter_delay_s * FS_HIDDEN_HZ)
        delayed = np.append(np.zeros(lag, dtype=np.float32), deficit)[: self.n]
        drift = 0.4 * self.slow_noise("saturation drift", 0.0, 0.01)
        seen: Array = self.subject.saturation_percent + drift - self.couplings.desaturation * delayed
        return np.clip(seen, 55, 100)

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
        inhaling = self.effort * _volume(self.breath_phase + 0.1)
        rate += c.respiratory_sinus_arrhythmia * subject.sinus_arrhythmia_bpm * vagal * np.clip(inhaling, -1.6, 1.6)
        ends = [e.onset_s + e.duration_s for e in self.events]
        rng = self.random("event heart rate")
        held = self.boxes([(e.onset_s + 4, e.onset_s + e.duration_s) for e in self.events], rise_s=4)
        surge = self.response(ends, [rng.uniform(5, 12) for _ in ends], 2.5, 6)
        rate += c.event_heart_rate * (surge - 5 * held)
        onsets = [a for a, _ in self.arousals]
        rng = self.random("arousal heart rate")
        rate += c.arousal_heart_rate * self.response(onsets, [rng.uniform(5, 12) for _ in onsets], 2.0, 6)
        rate += c.movement * 6 * self.movement
        return np.clip(rate, 32, 160)

    @cached_property
    def beats_s(self) -> NDArray[np.float64]:
        """Times of the R peaks: the heart beats whenever the integrated rate passes an integer."""
        rng = self.random("beats")
        phase = np.cumsum(self.heart_rate_bpm.astype(np.float64)) / 60 / FS_HIDDEN_HZ + rng.random()
        integers = np.arange(np.ceil(phase[0]), phase[-1])
        beats: NDArray[np.float64] = np.interp(integers, phase, self.t_s) + 0.004 * rng.standard_normal(integers.size)
        return beats


def _volume(phase: NDArray[np.float64]) -> Array:
    # Breathing in takes 40 % of the cycle.
    p = (phase % 1.0).astype(np.float32)
    inhaling = p < 0.4
    return np.where(inhaling, -np.cos(np.pi / 0.4 * p), np.cos(np.pi / 0.6 * (p - 0.4))).astype(np.float32)


def _night(rng: np.random.Generator, n_epochs: int, subject: Subject) -> NDArray[np.int8]:
    """Ultradian cycles of some 90 min: slow waves early in the night, REM late; short interruptions."""
    sequence: list[int] = []

    def add(stage: int, minutes: float) -> None:
        sequence.extend([stage] * round(2 * minutes))

    add(W, rng.uniform(4, 18))
    cycle = 0
    while len(sequence) < n_epochs:
        late = min(cycle, 4)
        add(N1, rng.uniform(1.5, 5))
        add(N2, rng.uniform(8, 18))
        add(N3, (32, 24, 15, 8, 4)[late] * rng.uniform(0.7, 1.3) * min(max(subject.slow_wave_gain, 0.4), 1.4))
        add(N2, rng.uniform(8, 18))
        add(N1, rng.uniform(0, 2))
        add(R, (6, 11, 16, 20, 24)[late] * rng.uniform(0.7, 1.3))
        add(W, rng.uniform(1, 14))
        cycle += 1
    stages = np.array(sequence, dtype=np.int8)
    breaks = 0.02 + 0.0012 * subject.events_per_hour
    for i in np.flatnonzero((rng.random(stages.size) < breaks) & (stages != W)):
        to = (W, N1)[int(rng.random() < 0.6)] if stages[i] != N3 else N2
        stages[i : i + rng.integers(1, 4)] = to
    return stages


def _excerpt(rng: np.random.Generator, n_epochs: int, subject: Subject) -> tuple[int, NDArray[np.int8]]:
    """Choose a stretch of the night: of 20 drawn, one with the most stages and at least 40 % asleep."""
    night = _night(rng, max(n_epochs, 960), subject)
    if n_epochs >= 960:
        return 0, night[:n_epochs]
    draws = rng.integers(0, 960 - n_epochs, 20)

    def merit(first: int) -> int:
        part = night[first : first + n_epochs]
        return len(np.unique(part)) if (part != W).mean() >= 0.4 else 0

    first = int(max(draws, key=lambda f: merit(int(f))))
    return first, night[first : first + n_epochs]
