"""The simulated sensors: from the hidden physiology to the channels of a polysomnogram, in their units and rates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from sleepfm_fast.simulator.physiology import FS_HIDDEN_HZ, Physiology, breath_volume
from sleepfm_fast.simulator.sleeper import Array, band_noise, float32

__all__ = ["Channel", "Polysomnograph"]

FS_EXG_HZ = 128
FS_ECG_HZ = 256
FS_RESPIRATION_HZ = 32


class Channel(NamedTuple):
    """One recorded signal; ``low`` and ``high`` are the physical limits of the digital range."""

    label: str
    unit: str
    fs_hz: int
    low: float
    high: float
    transducer: str
    samples: Array


# Where the sources are strongest: share of each source in each derivation, and the QRS seen there [uV per mV].
#             delta theta alpha spindle  QRS
SCALP = {
    "F4-M1": (1.15, 1.00, 0.45, 0.85, 6.0),
    "C4-M1": (0.95, 1.10, 0.70, 1.15, 5.0),
    "O2-M1": (0.70, 0.80, 1.50, 0.45, 4.5),
}
#                blink rapid slow  EEG of F4  QRS
EYES = {
    "E1-M2": (1.0, 1.0, 1.0, 0.55, -5.0),
    "E2-M2": (0.8, -0.95, -0.9, 0.60, -5.5),
}


class Polysomnograph:
    """Record one sleeper.

    Parameters
    ----------
    physiology : Physiology
        The sleeper's hidden state.
    """

    def __init__(self, physiology: Physiology) -> None:
        self.body = physiology
        self.random = physiology.random
        self.couplings = physiology.couplings

    def channels(self) -> Iterator[Channel]:
        """Yield every channel, in the order they are recorded."""
        for i, label in enumerate(SCALP):
            yield Channel(label, "uV", FS_EXG_HZ, -800, 800, "AgCl electrode", self.eeg(i))
        for i, label in enumerate(EYES):
            yield Channel(label, "uV", FS_EXG_HZ, -1000, 1000, "AgCl electrode", self.eog(i))
        yield Channel("Chin EMG", "uV", FS_EXG_HZ, -500, 500, "AgCl electrode", self.chin_emg())
        yield Channel("ECG", "mV", FS_ECG_HZ, -8, 8, "AgCl electrode", self.ecg())
        rate = FS_RESPIRATION_HZ
        yield Channel("Flow", "uV", rate, -500, 500, "oronasal thermocouple", self.thermocouple())
        yield Channel("Nasal Pressure", "cmH2O", rate, -6, 6, "nasal cannula", self.nasal_pressure())
        yield Channel("Thor", "uV", rate, -1500, 1500, "inductance belt", self.belt(0))
        yield Channel("Abdo", "uV", rate, -1500, 1500, "inductance belt", self.belt(1))
        yield Channel("Snore", "uV", FS_EXG_HZ, -300, 300, "microphone", self.microphone())
        yield Channel("SpO2", "%", 1, 0, 100, "finger oximeter", self.saturation())
        yield Channel("Pulse", "bpm", 1, 0, 250, "finger oximeter", self.pulse())

    def n_samples(self, fs_hz: int) -> int:
        """Count the samples of a channel of this rate."""
        return self.body.duration_s * fs_hz

    def at(self, fs_hz: int, hidden: Array) -> Array:
        """Interpolate a hidden process (16 Hz) linearly to a channel's rate."""
        step = fs_hz // FS_HIDDEN_HZ
        weight = (np.arange(step, dtype=np.float32) / np.float32(step))[None, :]
        hidden = float32(hidden)
        return float32(hidden[:-1, None] + (hidden[1:] - hidden[:-1])[:, None] * weight).reshape(-1)

    def noise(self, process: str, low_hz: float, high_hz: float, fs_hz: int = FS_EXG_HZ, order: int = 4) -> Array:
        """Draw unit noise of a named process at a channel's rate."""
        return band_noise(self.random(process), self.n_samples(fs_hz), fs_hz, low_hz, high_hz, order)

    def pink(self, process: str) -> Array:
        """Draw unit noise whose power falls as 1/f above 1 Hz, as that of background EEG."""
        n = self.n_samples(FS_EXG_HZ)
        white = self.random(process).standard_normal(n, dtype=np.float32)
        spectrum = fft.rfft(white)
        f = np.arange(spectrum.size) * (FS_EXG_HZ / n)
        spectrum *= float32(1 / np.sqrt(1 + f))
        spectrum[0] = 0
        x = float32(fft.irfft(spectrum, n))
        return float32(x / x.std())

    def motion_artefact(self, process: str, fs_hz: int, low_hz: float = 0.3, high_hz: float = 4.0) -> Array:
        """Waveform of body movements in one sensor, about 1 while they last."""
        strength = self.couplings.movement * self.body.movement
        return self.at(fs_hz, strength) * self.noise(f"{process} movement", low_hz, high_hz, fs_hz)

    # ----------------------------------------------------------------------------------------------- brain and eyes

    @cached_property
    def sources(self) -> tuple[Array, Array, Array, Array, Array]:
        """Delta, theta, alpha and spindle activity shared by the scalp [uV], and the gain of fast activity."""
        body, subject, swa = self.body, self.body.subject, self.body.subject.slow_wave_gain
        rng = self.random("EEG gains")

        def amplitude_uv(name: str, *stages: float) -> Array:
            # Sleep deepens and lightens within a stage, and over some 20 s from one stage to the next.
            own = [v * np.exp(0.12 * rng.standard_normal()) for v in stages]
            waxing = np.exp(0.28 * body.slow_noise(f"{name} waxing", 0.0, 0.04))
            return float32(body.by_stage(tuple(own), self.couplings.stage_eeg, transition_s=20) * waxing)

        #                              W    N1    N2    N3             R
        delta_uv = amplitude_uv("delta", 6.0, 9.0, 16.0, 14 + 28 * swa, 9.0) * (1 - 0.6 * body.arousal)
        theta_uv = amplitude_uv("theta", 5.5, 9.5, 7.5, 6.0, 9.0)
        alpha_uv = amplitude_uv("alpha", 12.0, 4.5, 2.5, 1.8, 3.2) * subject.alpha_gain
        alpha_uv = alpha_uv + 9 * subject.alpha_gain * body.arousal
        fast = amplitude_uv("fast", 1.4, 1.0, 0.75, 0.6, 1.0) + 1.2 * body.arousal
        band = FS_EXG_HZ
        delta = self.at(band, delta_uv) * self.noise("delta", 0.5, 2.0) + self.k_complexes
        theta = self.at(band, theta_uv) * self.noise("theta", 4.0, 7.0)
        alpha = self.at(band, alpha_uv) * self.noise("alpha", subject.alpha_hz - 0.9, subject.alpha_hz + 0.9, order=8)
        return delta, theta, alpha, self.spindles, self.at(band, fast)

    def _times(self, process: str, per_minute: tuple[float, ...]) -> NDArray[np.float64]:
        """Draw onsets of a graphoelement at stage-dependent rates [1/min]; mean rate when stages have no say."""
        rng = self.random(process)
        most = max(per_minute)
        times = np.sort(rng.uniform(0, self.body.duration_s - 2, rng.poisson(most / 60 * self.body.duration_s)))
        rates = np.asarray(per_minute)
        rates = rates.mean() + self.couplings.stage_eeg * (rates - rates.mean())
        kept: NDArray[np.float64] = times[
            rng.random(times.size) * most < rates[self.body.stages[(times / 30).astype(int)]]
        ]
        return kept

    @cached_property
    def spindles(self) -> Array:
        """Sleep spindles [uV]: bursts of 0.5 to 1.3 s, mostly in N2."""
        subject = self.body.subject
        density = 5.0 * subject.spindles_gain
        onsets = self._times("spindles", (0, 0.2, density, 0.35 * density, 0.1))
        rng = self.random("spindle shape")
        x = np.zeros(self.n_samples(FS_EXG_HZ), dtype=np.float32)
        for onset in onsets:
            n = int(rng.uniform(0.5, 1.3) * FS_EXG_HZ)
            a = int(onset * FS_EXG_HZ)
            t = np.arange(n, dtype=np.float32) / FS_EXG_HZ
            f_hz = subject.spindle_hz + 0.3 * rng.standard_normal()
            burst = np.sin(2 * np.pi * (f_hz * t + rng.random())) * np.sin(np.pi * t * FS_EXG_HZ / n) ** 2
            x[a : a + n] += (rng.uniform(20, 42) * burst)[: x.size - a]
        return x

    @cached_property
    def k_complexes(self) -> Array:
        """K-complexes [uV]: a sharp negative wave, then a slow positive one, about 1 s; N2."""
        onsets = self._times("K-complexes", (0, 0.05, 1.6, 0.5, 0))
        rng = self.random("K-complex shape")
        t = np.arange(int(1.4 * FS_EXG_HZ), dtype=np.float32) / FS_EXG_HZ
        shape = -np.exp(-(((t - 0.3) / 0.11) ** 2)) + 0.65 * np.exp(-(((t - 0.7) / 0.2) ** 2))
        x = np.zeros(self.n_samples(FS_EXG_HZ), dtype=np.float32)
        for onset in onsets:
            a = int(onset * FS_EXG_HZ)
            x[a : a + t.size] += (rng.uniform(70, 140) * self.body.subject.slow_wave_gain**0.5 * shape)[: x.size - a]
        return x

    def brain_activity(self, i: int) -> Array:
        """Sum up what the cortex contributes to scalp derivation ``i`` [uV]."""
        label, (delta_w, theta_w, alpha_w, spindle_w, _) = list(SCALP.items())[i]
        delta, theta, alpha, spindles, fast = self.sources
        x = delta_w * delta + theta_w * theta + alpha_w * alpha + spindle_w * spindles
        x += 5 * self.pink(f"{label} background") + 3.2 * fast * self.noise(f"{label} beta", 17, 32)
        return float32(x)

    @cached_property
    def _frontal(self) -> Array:
        return self.brain_activity(0)

    def common_artefacts(self, qrs_uv: float, process: str) -> Array:
        """QRS complexes, sway with the breath and body movements in an electrode against a mastoid [uV]."""
        c = self.couplings
        rng = self.random(f"{process} artefacts")
        qrs_uv *= rng.uniform(0.7, 1.4)
        sway_uv = rng.uniform(4, 9) * (1 if rng.random() < 0.5 else -1)
        x = c.cardiac_artefact * qrs_uv * self.qrs[:: FS_ECG_HZ // FS_EXG_HZ]
        x = x + self.at(FS_EXG_HZ, c.respiratory_artefact * sway_uv * self.body.lung_volume)
        return x + 60 * self.motion_artefact(process, FS_EXG_HZ)

    def eeg(self, i: int) -> Array:
        """Scalp derivation ``i`` [uV]."""
        label = list(SCALP)[i]
        cortex = self._frontal if i == 0 else self.brain_activity(i)
        gain = self.random(f"{label} gain").uniform(0.85, 1.15)
        return gain * (cortex + self.common_artefacts(SCALP[label][4], label))

    @cached_property
    def eye_movements(self) -> tuple[Array, Array, Array]:
        """Blinks, rapid and slow eye movements [uV], positive at the left eye for the first two."""
        body, c = self.body, self.couplings
        n = self.n_samples(FS_EXG_HZ)
        t = np.arange(int(1.5 * FS_EXG_HZ), dtype=np.float32) / FS_EXG_HZ
        stage = self.at(FS_EXG_HZ, body.by_stage((1, 0, 0, 0, 0), c.stage_eye_movements))
        rng = self.random("blinks")
        impulses = np.zeros(n, dtype=np.float32)
        at = rng.integers(0, n, rng.poisson(14 / 60 * body.duration_s))
        impulses[at] = rng.uniform(60, 150, at.size) * stage[at]
        blinks = signal.fftconvolve(impulses, np.exp(-(((t - 0.15) / 0.06) ** 2)).astype(np.float32))[:n]
        # Saccades come in bursts; AC-coupled, a shift of gaze decays within half a second.
        rng = self.random("rapid eye movements")
        burst = self.at(FS_EXG_HZ, np.clip(body.slow_noise("eye bursts", 0.02, 0.3), 0, 1))
        stage = self.at(FS_EXG_HZ, body.by_stage((0.45, 0.05, 0.02, 0.0, 1.0), c.stage_eye_movements))
        impulses = np.zeros(n, dtype=np.float32)
        at = rng.integers(0, n, rng.poisson(1.2 * body.duration_s))
        impulses[at] = rng.choice((-1, 1), at.size) * rng.uniform(50, 160, at.size) * (burst * stage)[at]
        rapid = signal.fftconvolve(impulses, ((1 - np.exp(-t / 0.02)) * np.exp(-t / 0.35)).astype(np.float32))[:n]
        rolling = body.by_stage((8.0, 38.0, 3.0, 0.0, 3.0), c.stage_eye_movements)
        slow = self.at(FS_EXG_HZ, rolling * body.slow_noise("slow eye movements", 0.15, 0.6))
        return blinks.astype(np.float32), rapid.astype(np.float32), slow

    def eog(self, i: int) -> Array:
        """Eye derivation ``i`` [uV]."""
        label, (blink, rapid, slow, frontal, qrs_uv) = list(EYES.items())[i]
        blinks, saccades, rolling = self.eye_movements
        x = blink * blinks + rapid * saccades + slow * rolling + frontal * self._frontal
        x += 3 * self.pink(f"{label} background") + self.common_artefacts(qrs_uv, label)
        return float32(x)

    def chin_emg(self) -> Array:
        """Chin EMG [uV]: tone, twitches in R, breathing in, snoring, the heart."""
        body, c = self.body, self.couplings
        tone_uv = body.by_stage((18.0, 9.0, 6.0, 4.5, 1.6), c.stage_muscle_tone)
        tone_uv = tone_uv * np.exp(0.15 * body.slow_noise("tone", 0.0, 0.02))
        # The genioglossus opens the airway with every breath in, and more against an obstruction.
        inhaling = np.maximum(np.sin(2 * np.pi * body.breath_phase), 0).astype(np.float32) * body.effort
        tone_uv = tone_uv * (1 + c.respiratory_artefact * (0.5 + 0.8 * body.obstruction) * inhaling)
        tone_uv = tone_uv + 16 * body.arousal + 40 * c.movement * body.movement
        in_rem = body.by_stage((0, 0, 0, 0, 1), c.stage_muscle_tone)
        twitches = np.maximum(body.slow_noise("twitches", 0.2, 2.0) - 1.8, 0) * 14
        tone_uv = tone_uv + in_rem * twitches
        x = self.at(FS_EXG_HZ, tone_uv) * self.noise("muscle", 18, 60)
        x += 0.25 * c.respiratory_artefact * self.snoring
        rng = self.random("Chin EMG artefacts")
        x += c.cardiac_artefact * rng.uniform(6, 14) * self.qrs[:: FS_ECG_HZ // FS_EXG_HZ]
        return x

    # ------------------------------------------------------------------------------------------------------- heart

    @cached_property
    def _beat_grid(self) -> tuple[Array, Array, Array]:
        """For every ECG sample: seconds since the last R peak, until the next one, and the RR interval."""
        beats = self.body.beats_s
        first, last = beats[0], beats[-1]
        edges = np.concatenate(([first - 0.9], beats, [last + 0.9]))
        n = self.n_samples(FS_ECG_HZ)
        at = np.clip(np.ceil(edges * FS_ECG_HZ).astype(int), 0, n)
        at[0], at[-1] = 0, n
        counts = np.diff(at)
        t = np.arange(n) / FS_ECG_HZ
        since = (t - np.repeat(edges[:-1], counts)).astype(np.float32)
        rr = np.repeat(np.diff(edges), counts).astype(np.float32)
        return since, rr - since, rr

    @cached_property
    def qrs(self) -> Array:
        """QRS complexes [mV], R near 1."""
        since, until, _ = self._beat_grid
        width = np.float32(0.011)
        x = np.exp(-0.5 * (np.minimum(since, until) / width) ** 2)
        x -= 0.14 * np.exp(-0.5 * ((until - 0.030) / width) ** 2)
        x -= 0.22 * np.exp(-0.5 * ((since - 0.030) / (1.2 * width)) ** 2)
        return x

    def ecg(self) -> Array:
        """Lead II [mV]: P, QRS and T waves; lung volume changes amplitude and baseline."""
        body, c = self.body, self.couplings
        since, until, rr = self._beat_grid
        rng = self.random("ECG")
        female = c.traits * (body.subject.sex == "F")
        r_mv = rng.uniform(0.9, 1.4) * (1 - 0.15 * female)
        x = r_mv * self.qrs
        x += rng.uniform(0.08, 0.15) * np.exp(-0.5 * ((until - 0.16) / 0.022) ** 2)
        qt = rng.uniform(0.29, 0.31) * np.sqrt(rr)
        x += rng.uniform(0.2, 0.35) * np.exp(-0.5 * ((since - qt) / 0.045) ** 2)
        modulation, sway_mv = rng.uniform(0.06, 0.12), rng.uniform(0.03, 0.08)
        volume = c.ecg_derived_respiration * body.lung_volume
        x *= self.at(FS_ECG_HZ, 1 - modulation * volume)
        x += self.at(FS_ECG_HZ, sway_mv * volume + 0.04 * body.slow_noise("ECG drift", 0.0, 0.1))
        x += 0.012 * self.noise("ECG noise", 1, 100, FS_ECG_HZ)
        x += self.at(FS_ECG_HZ, 0.05 * c.movement * body.movement) * self.noise("ECG muscle", 20, 100, FS_ECG_HZ)
        return x + 0.35 * self.motion_artefact("ECG", FS_ECG_HZ)

    # -------------------------------------------------------------------------------------------------- respiration

    @cached_property
    def beat_shake(self) -> Array:
        """Ballistic pulse of every heart beat on the respiration grid, about 1."""
        n = self.n_samples(FS_RESPIRATION_HZ)
        impulses = np.zeros(n, dtype=np.float32)
        at = (self.body.beats_s * FS_RESPIRATION_HZ).astype(int)
        np.add.at(impulses, at[(at >= 0) & (at < n)], 1)
        t = np.arange(FS_RESPIRATION_HZ) / FS_RESPIRATION_HZ
        kernel = np.sin(2 * np.pi * 3.0 * t) * np.exp(-t / 0.15)
        shaken: Array = signal.fftconvolve(impulses, kernel.astype(np.float32))[:n].astype(np.float32)
        return self.couplings.cardioballistic * shaken

    @cached_property
    def air_flow(self) -> Array:
        """Flow through the nose, positive in; 1 at the height of a usual breath."""
        body = self.body
        p = (body.breath_phase % 1.0).astype(np.float32)
        wave = np.where(p < 0.4, np.sin(np.pi / 0.4 * p), -0.67 * np.sin(np.pi / 0.6 * (p - 0.4)))
        return float32(wave * body.effort * body.airway)

    def respiration(self, label: str, hidden: Any, gain: float, shake: float, noise: float, move: float) -> Array:
        """Sensor of breathing: scaled, with heart beats, noise and body movements."""
        rate = FS_RESPIRATION_HZ
        gain *= self.random(f"{label} gain").uniform(0.75, 1.3)
        x = self.at(rate, hidden) + shake * self.beat_shake + noise * self.noise(f"{label} noise", 0.02, 8, rate)
        return float32(gain * (x + move * self.motion_artefact(label, rate, 0.1, 1.5)))

    def thermocouple(self) -> Array:
        """Oronasal thermal flow [uV]: a slow sensor, time constant 0.35 s."""
        a = float(np.exp(-1 / (0.35 * FS_HIDDEN_HZ)))
        smooth = signal.lfilter([1 - a], [1, -a], self.air_flow).astype(np.float32)
        return self.respiration("Flow", smooth, 110, 0.02, 0.04, 0.6)

    def nasal_pressure(self) -> Array:
        """Pressure at the nose [cmH2O]: goes with the flow to the power 1.7; snoring rides on it."""
        flow = self.air_flow
        pressure = np.sign(flow) * np.abs(flow) ** 1.7
        x = self.respiration("Nasal Pressure", pressure, 0.8, 0.03, 0.03, 0.5)
        return x + 0.004 * self.snoring[:: FS_EXG_HZ // FS_RESPIRATION_HZ]

    def belt(self, i: int) -> Array:
        """Chest (0) or abdomen (1) [uV]; out of phase while the airway is closed."""
        body = self.body
        delay = (0.06, 0.0)[i] + (0.0, 0.38)[i] * body.obstruction
        phase = body.breath_phase - delay
        drift = 0.25 * body.slow_noise(f"belt {i} drift", 0.0, 0.02)
        return self.respiration(
            ("Thor", "Abdo")[i], breath_volume(phase) * body.effort + drift, 220, (0.06, 0.035)[i], 0.03, 1.2
        )

    @cached_property
    def snoring(self) -> Array:
        """Sound of breathing [uV], louder before and after obstructions and with flow through a narrow airway."""
        body = self.body
        rng = self.random("snoring")
        habit = rng.uniform(0.1, 1.0)
        asleep = body.by_stage((0.0, 0.4, 1.0, 1.0, 0.5), self.couplings.stage_snoring)
        ends = [e.onset_s + e.duration_s for e in body.events if e.name != "Central apnea"]
        louder = 1 + body.response(ends, [3.0] * len(ends), 0.7, 5) + 2 * body.obstruction
        inhaling = np.maximum(self.air_flow, 0)
        loudness = 6 * habit * asleep * louder * np.minimum(inhaling, 1.5) + 4 * self.couplings.movement * body.movement
        return self.at(FS_EXG_HZ, loudness) * self.noise("snore sound", 20, 60)

    def microphone(self) -> Array:
        """Snore sensor [uV]."""
        return 2 * self.snoring + 2.0 * self.noise("room", 2, 60)

    # ---------------------------------------------------------------------------------------------------- oximeter

    def saturation(self) -> Array:
        """Oxygen saturation [%] once a second, in whole percent."""
        return np.round(self.body.saturation_percent[:-1:FS_HIDDEN_HZ])

    def pulse(self) -> Array:
        """Pulse rate [bpm] once a second: mean of the last 4 s, in whole beats a minute."""
        body, strength = self.body, self.couplings.pulse_oximeter
        own = self.random("pulse").normal(65, 8) + 2.5 * body.slow_noise("pulse without the heart", 0.004, 0.05)
        seen = strength * body.heart_rate_bpm + (1 - strength) * own
        window = 4 * FS_HIDDEN_HZ
        mean = signal.lfilter(np.ones(window) / window, [1], np.concatenate((np.full(window, seen[0]), seen)))[window:]
        return float32(np.round(mean[:-1:FS_HIDDEN_HZ]))
