"""Who sleeps, and when: couplings, random streams, the subject's traits and the hypnogram of the night."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

__all__ = ["Couplings", "Random", "Subject", "band_noise", "draw_hypnogram"]

NIGHT_EPOCHS = 960
W, N1, N2, N3, R = range(5)

Array = NDArray[np.float32]


def float32(x: Any) -> Array:
    """Convert an array to single precision, without a copy where it is."""
    return np.asarray(x, dtype=np.float32)


@dataclass(frozen=True)
class Couplings:
    """Strength of each dependence between processes or sensors, from 1 (as in the model) to 0 (switched off)."""

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
    stage_snoring: float = 1.0
    """Snoring is silent in W, faint in N1 and loudest in N2 and N3."""
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
        power /= 1 + np.minimum(low_hz / f, 100) ** (2 * order)
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
            sinus_arrhythmia_bpm=float(np.clip(3.4 * np.exp(-0.16 * decades + 0.3 * rng.standard_normal()), 1.0, 8)),
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


def draw_hypnogram(rng: np.random.Generator, n_epochs: int, subject: Subject) -> tuple[int, NDArray[np.int8]]:
    """Draw the stages of a recording and where in the night it starts.

    A recording shorter than the night of 8 h is a stretch of it: of 20 drawn, one with the most stages and at least
    40 % asleep.

    Parameters
    ----------
    rng : Generator
        Random stream.
    n_epochs : int
        Length of the recording.
    subject : Subject
        Slow waves lengthen N3, respiratory events break up sleep.

    Returns
    -------
    first_epoch : int
        Epochs between lights off and the start of the recording.
    stages : ndarray
        int8 [n_epochs], 0..4 for W, N1, N2, N3, R.
    """
    night = _night(rng, max(n_epochs, NIGHT_EPOCHS), subject)
    if n_epochs >= NIGHT_EPOCHS:
        return 0, night[:n_epochs]
    draws = rng.integers(0, NIGHT_EPOCHS - n_epochs, 20)

    def merit(first: int) -> int:
        part = night[first : first + n_epochs]
        return len(np.unique(part)) if (part != W).mean() >= 0.4 else 0

    first = int(max(draws, key=lambda f: merit(int(f))))
    return first, night[first : first + n_epochs]
