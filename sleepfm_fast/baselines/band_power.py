"""Features of EEG, EOG and EMG clips: powers of the classical bands and what follows from them.

Spectra are Welch's: Hann windows that overlap by half, mean removed from each, density averaged over the clip
(``scipy.signal.welch``). Windows of 4 s (resolution 0.25 Hz) for EEG and EOG, of 1 s for EMG. The power of a band is
the integral of the density over [low, high). A flat clip, or one with a sample missing, has no features (NaN). Powers
are logarithms to base 10, as their spread between clips is a factor and not a sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.signal

__all__ = [
    "EEG_BANDS_HZ", "EEG_NAMES", "EMG_NAMES", "EOG_NAMES", "eeg_features", "emg_features", "eog_correlation",
    "eog_features", "spectrogram",
]  # fmt: skip

Array = npt.NDArray[np.float64]

EEG_BANDS_HZ = {
    "delta": (0.5, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 12.0),
    "sigma": (12.0, 16.0),
    "beta": (16.0, 30.0),
}
EEG_NAMES = (
    *(f"{band}_log10_uv2" for band in EEG_BANDS_HZ),
    *(f"{band}_share" for band in EEG_BANDS_HZ),
    "delta_to_beta_log10",
    "theta_to_alpha_log10",
    "slowing_log10",
    "edge50_hz",
    "edge95_hz",
    "delta_burst_log10",
    "sigma_burst_log10",
)
"""``slowing``: (delta + theta) / (alpha + beta). ``edge95``: below it lie 95 % of the power of 0.5 to 30 Hz. ``burst``:
largest over median power of the clip's 4-s windows."""
EOG_BANDS_HZ = {"0.25-1hz": (0.25, 1.0), "1-4hz": (1.0, 4.0), "4-16hz": (4.0, 16.0)}
EOG_NAMES = (
    *(f"{band}_log10_uv2" for band in EOG_BANDS_HZ),
    "rms_log10_uv",
    "peak_to_peak_log10_uv",
    "steepest_log10_uv_per_s",
)
"""``steepest``: largest change within 100 ms."""
EMG_BAND_HZ = (10.0, 100.0)
MAINS_HZ = ((48.0, 52.0), (58.0, 62.0))
EMG_NAMES = ("rms_log10_uv", "tone_log10_uv", "burst_log10")
"""Of 10 to 100 Hz without the mains (48 to 52 and 58 to 62 Hz). ``tone``: median rms of the 1-s windows; ``burst``:
largest over median."""

SMALLEST_UV2 = 1e-6  # a billionth of an EEG's power; no amplifier is as quiet
SACCADE_S = 0.1
LOWEST_RATE_HZ = 8.0  # of EEG and EOG: below, not even delta is there


def spectrogram(x: Array, fs_hz: float, window_s: float) -> tuple[Array, Array]:
    """Frequencies [F] and densities [n, F, W] of the windows of clips ``x`` [n, samples]; their mean is Welch's."""
    n_window = min(round(window_s * fs_hz), x.shape[1])
    f, _, density = scipy.signal.spectrogram(
        x, fs_hz, window="hann", nperseg=n_window, noverlap=n_window // 2, detrend="constant"
    )
    return f, density


def band(f: Array, density: Array, low_hz: float, high_hz: float, fs_hz: float) -> Array:
    """Integrate ``density`` [n, F, ...] over a band; NaN where the rate cannot show all of it."""
    if high_hz > fs_hz / 2:
        return np.full((density.shape[0], *density.shape[2:]), np.nan)
    inside = (f >= low_hz) & (f < high_hz)
    power: Array = density[:, inside].sum(axis=1) * (f[1] - f[0])
    return power


def log10(power: Array) -> Array:
    """Logarithm that a silent band does not take to minus infinity."""
    return np.log10(np.maximum(power, SMALLEST_UV2))


def usable(x: Array) -> npt.NDArray[np.bool_]:
    """Which clips [n, samples] have every sample and are not flat."""
    with np.errstate(invalid="ignore"):
        spread = x.max(axis=1) - x.min(axis=1)
    return np.asarray(np.isfinite(x).all(axis=1) & (spread > 0), np.bool_)


def eeg_features(x: Array, fs_hz: float) -> Array:
    """Measure one EEG channel.

    Parameters
    ----------
    x : float64 [n, samples]
        Clips in microvolts.
    fs_hz : float
        Their rate. Bands beyond half of it are NaN.

    Returns
    -------
    float64 [n, len(EEG_NAMES)]
    """
    out = np.full((len(x), len(EEG_NAMES)), np.nan)
    use = usable(x)
    if not use.any() or fs_hz < LOWEST_RATE_HZ:
        return out
    f, density = spectrogram(x[use], fs_hz, 4.0)
    in_windows = {name: band(f, density, *edges, fs_hz) for name, edges in EEG_BANDS_HZ.items()}
    power = {name: windows.mean(axis=1) for name, windows in in_windows.items()}
    absolute = np.column_stack(list(power.values()))
    total = np.maximum(np.nansum(absolute, axis=1), SMALLEST_UV2)
    slow, fast = power["delta"] + power["theta"], power["alpha"] + power["beta"]
    mean = density.mean(axis=2)
    inside = (f >= 0.5) & (f < 30.0)
    cumulated = np.cumsum(mean[:, inside], axis=1)
    edges = [f[inside][(cumulated < share * cumulated[:, -1:]).sum(axis=1)] for share in (0.5, 0.95)]
    bursts = [
        log10(in_windows[name].max(axis=1)) - log10(np.median(in_windows[name], axis=1)) for name in ("delta", "sigma")
    ]
    ratios = [
        log10(a) - log10(b)
        for a, b in ((power["delta"], power["beta"]), (power["theta"], power["alpha"]), (slow, fast))
    ]
    out[use] = np.column_stack([log10(absolute), absolute / total[:, None], *ratios, *edges, *bursts])
    return out


def eog_features(x: Array, fs_hz: float) -> Array:
    """Measure one EOG channel: clips [n, samples] in microvolts -> float64 [n, len(EOG_NAMES)]."""
    out = np.full((len(x), len(EOG_NAMES)), np.nan)
    use = usable(x)
    if not use.any() or fs_hz < LOWEST_RATE_HZ:
        return out
    x = x[use]
    f, density = spectrogram(x, fs_hz, 4.0)
    powers = [log10(band(f, density, *edges, fs_hz).mean(axis=1)) for edges in EOG_BANDS_HZ.values()]
    lag = max(round(SACCADE_S * fs_hz), 1)
    steepest = np.abs(x[:, lag:] - x[:, :-lag]).max(axis=1) * (fs_hz / lag)
    amplitudes = [x.std(axis=1), x.max(axis=1) - x.min(axis=1), steepest]
    out[use] = np.column_stack([*powers, *(log10(a) for a in amplitudes)])
    return out


def eog_correlation(x: Array, y: Array, fs_hz: float) -> Array:
    """Correlation of two EOG channels between 0.5 and 5 Hz, [n]: near -1 for eye movements, above 0 for EEG in both.

    Parameters
    ----------
    x, y : float64 [n, samples]
        Clips of the two channels at the rate ``fs_hz``.
    """
    out = np.full(len(x), np.nan)
    use = usable(x) & usable(y)
    if not use.any() or fs_hz < LOWEST_RATE_HZ:
        return out
    f = np.fft.rfftfreq(x.shape[1], 1 / fs_hz)
    inside = (f >= 0.5) & (f <= 5.0)
    a, b = (np.fft.rfft(z[use] - z[use].mean(axis=1, keepdims=True), axis=1)[:, inside] for z in (x, y))
    product = (a * b.conj()).real.sum(axis=1)
    scale = np.sqrt((np.abs(a) ** 2).sum(axis=1) * (np.abs(b) ** 2).sum(axis=1))
    out[use] = np.divide(product, scale, out=np.zeros(len(a)), where=scale > 0)
    return out


def emg_features(x: Array, fs_hz: float) -> Array:
    """Measure one EMG channel: clips [n, samples] in microvolts -> float64 [n, len(EMG_NAMES)].

    The band ends at half the rate where that is lower than 100 Hz; a rate below 40 Hz leaves no band (NaN).
    """
    out = np.full((len(x), len(EMG_NAMES)), np.nan)
    use = usable(x)
    if not use.any() or fs_hz < 40:
        return out
    f, density = spectrogram(x[use], fs_hz, 1.0)
    density[:, np.any([(f >= low) & (f <= high) for low, high in MAINS_HZ], axis=0)] = 0.0
    # Amplitudes are square roots of powers; a floor of the power is one of the amplitude.
    windows = band(f, density, EMG_BAND_HZ[0], min(EMG_BAND_HZ[1], fs_hz / 2), fs_hz)
    rms, tone, largest = (
        0.5 * log10(p) for p in (windows.mean(axis=1), np.median(windows, axis=1), windows.max(axis=1))
    )
    out[use] = np.column_stack([rms, tone, largest - tone])
    return out
