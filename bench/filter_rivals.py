"""Band-pass 0.3-35 Hz, resampling 200 -> 256 Hz and a z-score of each clip, as one would write it with each library.

Every function takes integers ``[channel, sample]`` of one gain and gives float32, ``[channel, sample at 256 Hz]`` or
``[clip, channel, sample]``. Results go where the arm's last ones went: no arm pays for fresh memory.
``..._resampled`` do nothing but change the rate.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.fft
import scipy.signal
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)

from sleepfm_fast import ops
from sleepfm_fast.filters import FilterBank, FilterDesign
from sleepfm_fast.reference.filter_resample import filter_window

FS_HZ, FS_OUT_HZ, UP, DOWN = 200, 256, 32, 25
BAND_HZ = (0.3, 35.0)
CLIP_S, N_OUT = 30, 7680
GAIN = 0.1
BANK = FilterBank("aasm", FS_OUT_HZ)
FILTER = BANK.index("eeg", FS_HZ)
RESAMPLER = FilterBank("none", FS_OUT_HZ)
KEPT: dict[tuple, np.ndarray] = {}


def kept(arm: str, *shape: int) -> np.ndarray:
    """Return the arm's output array, the same one at every call."""
    if (arm, shape) not in KEPT:
        KEPT[arm, shape] = np.empty(shape, np.float32)
    return KEPT[arm, shape]


def recording(n_channels: int, seconds: int) -> np.ndarray:
    """Noise between 2 and 15 Hz, where every rival's band is flat: int16 ``[channel, sample]``.

    A block of 10 min is repeated; it is periodic, so that its seams are no steps.
    """
    rng = np.random.default_rng(0)
    n = 600 * FS_HZ
    frequency_hz = np.fft.rfftfreq(n, 1 / FS_HZ)
    spectrum = rng.standard_normal((n_channels, frequency_hz.size, 2)).view(complex)[..., 0]
    spectrum[:, (frequency_hz < 2) | (frequency_hz > 15)] = 0
    block = np.fft.irfft(spectrum, n)
    block = np.rint(block * (3000 / block.std())).astype(np.int16)
    return np.tile(block, math.ceil(seconds / 600))[:, : seconds * FS_HZ]


def n_out(x: np.ndarray) -> int:
    return x.shape[1] * UP // DOWN


def ours(x: np.ndarray) -> torch.Tensor:
    """One call for all clips ``[clip, channel, 7680]``, cut out of the recording with the context they need."""
    n_channels, n_samples = x.shape
    first = np.arange(0, n_samples, CLIP_S * FS_HZ)
    context = BANK.context(FILTER)
    start = np.maximum(first - context, 0)
    stop = np.minimum(first + CLIP_S * FS_HZ + context, n_samples)
    table = np.zeros((len(first), n_channels, 6), np.int64)
    table[:, :, 0] = start[:, None] + n_samples * np.arange(n_channels)
    table[:, :, 1] = (stop - start)[:, None]
    table[:, :, 2] = start[:, None]
    table[:, :, 3] = first[:, None]
    table[:, :, 5] = FILTER
    calibration = torch.tensor([GAIN, 0.0, 0.0, 1.0]).expand(len(first), n_channels, 4).contiguous()
    out = torch.from_numpy(kept("ours", len(first), n_channels, N_OUT))
    raw = torch.from_numpy(x.reshape(-1))
    return ops.filter_resample(raw, torch.from_numpy(table), calibration, BANK, N_OUT, normalise="zscore", out=out)


def ours_resampled(x: np.ndarray) -> np.ndarray:
    n_channels, n_samples = x.shape
    table = torch.zeros(1, n_channels, 6, dtype=torch.int64)
    table[0, :, 0] = n_samples * torch.arange(n_channels)
    table[0, :, 1] = n_samples
    table[0, :, 5] = RESAMPLER.index("eeg", FS_HZ)
    calibration = torch.tensor([GAIN, 0.0, 0.0, 1.0]).expand(1, n_channels, 4).contiguous()
    out = torch.from_numpy(kept("ours resampled", 1, n_channels, n_out(x)))
    return ops.filter_resample(torch.from_numpy(x.reshape(-1)), table, calibration, RESAMPLER, n_out(x), out=out)[0]


def channel_by_channel(x: np.ndarray, one, *, scaled: bool = True) -> np.ndarray:
    """Channels in as many threads as ours has; the libraries let go of Python's lock."""
    out = kept("rivals", len(x), n_out(x))

    def run(c: int) -> None:
        y = one(GAIN * x[c])
        if scaled:
            clips = y.reshape(-1, N_OUT)
            y = ((clips - clips.mean(axis=1, keepdims=True)) / clips.std(axis=1, keepdims=True)).reshape(-1)
        out[c] = y

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(run, range(len(x))))
    return out


def butterworth() -> np.ndarray:
    return scipy.signal.butter(4, BAND_HZ, "bandpass", fs=FS_HZ, output="sos")


def scipy_sosfiltfilt(x: np.ndarray) -> np.ndarray:
    sos = butterworth()
    return channel_by_channel(
        x, lambda channel: scipy.signal.resample_poly(scipy.signal.sosfiltfilt(sos, channel), UP, DOWN)
    )


def scipy_upfirdn(x: np.ndarray) -> np.ndarray:
    """The definition of ours, float64: the same taps over the whole channel."""
    design = BANK.design(FILTER)
    return channel_by_channel(x, lambda channel: filter_window(channel, design, 0, 0, 0, n_out(x)))


def scipy_resampled(x: np.ndarray) -> np.ndarray:
    return channel_by_channel(x, lambda channel: scipy.signal.resample_poly(channel, UP, DOWN), scaled=False)


def scipy_upfirdn_resampled(x: np.ndarray) -> np.ndarray:
    design = RESAMPLER.design(RESAMPLER.index("eeg", FS_HZ))
    return channel_by_channel(x, lambda channel: filter_window(channel, design, 0, 0, 0, n_out(x)), scaled=False)


def soxr_hq(x: np.ndarray) -> np.ndarray:
    import soxr

    sos = butterworth()

    def one(channel: np.ndarray) -> np.ndarray:
        filtered = scipy.signal.sosfiltfilt(sos, channel).astype(np.float32)
        return soxr.resample(filtered, FS_HZ, FS_OUT_HZ, quality="HQ")

    return channel_by_channel(x, one)


def soxr_hq_resampled(x: np.ndarray) -> np.ndarray:
    import soxr

    return channel_by_channel(
        x, lambda channel: soxr.resample(channel.astype(np.float32), FS_HZ, FS_OUT_HZ, quality="HQ"), scaled=False
    )


def mne_fir(x: np.ndarray) -> np.ndarray:
    import mne

    def one(channel: np.ndarray) -> np.ndarray:
        filtered = mne.filter.filter_data(channel, FS_HZ, *BAND_HZ, verbose="error")
        return mne.filter.resample(filtered, UP, DOWN, method="polyphase", verbose="error")

    return channel_by_channel(x, one)


def torch_conv1d_resampled(x: np.ndarray) -> torch.Tensor:
    """As torchaudio resamples: one convolution of stride 25 with 32 outputs, float32."""
    design = RESAMPLER.design(RESAMPLER.index("eeg", FS_HZ))
    with torch.inference_mode():
        left, width = design.main_table[1], design.main_table[0].shape[1]
        samples = F.pad(torch.from_numpy(x).float().mul_(GAIN)[:, None], (left, width + DOWN), mode="replicate")
        return resample(samples, left, design, n_out(x))


def torch_conv1d(x: np.ndarray) -> torch.Tensor:
    """The same taps as strided convolutions, float32, all channels in one batch."""
    design = BANK.design(FILTER)
    with torch.inference_mode():
        samples = torch.from_numpy(x).float().mul_(GAIN)[:, None]
        y = resample(*without_low_branch(samples, design), design, n_out(x)).reshape(len(x), -1, N_OUT)
        deviation, mean = torch.std_mean(y, dim=2, correction=0, keepdim=True)
        return y.sub_(mean).div_(deviation).reshape(len(x), -1)


def torch_fft(x: np.ndarray) -> torch.Tensor:
    """The same filter as its spectrum, overlap-save in blocks of four clips, float32: one transform there and one back,
    which changes the rate as well.
    """  # noqa: D205
    clips, before = 4, 2000  # samples on either side; the filter reaches 1,663
    block, step = clips * CLIP_S * FS_HZ + 2 * before, clips * CLIP_S * FS_HZ
    n, block_out = n_out(x), block * UP // DOWN
    response = spectrum(block)
    out = torch.from_numpy(kept("torch fft", len(x), n // N_OUT, N_OUT))
    with torch.inference_mode():
        padded = torch.from_numpy(np.pad(x, ((0, 0), (before, before + -x.shape[1] % step)), mode="edge"))
        for channel, filtered in zip(padded.unfold(1, block, step), out, strict=True):
            for some in range(0, len(channel), 16):
                values = torch.fft.rfft(channel[some : some + 16].float()).mul_(response)
                y = torch.fft.irfft(values, n=block_out)[:, before * UP // DOWN :][:, : clips * N_OUT]
                y = y.reshape(-1, N_OUT)
                place = filtered[some * clips : some * clips + len(y)]
                deviation, mean = torch.std_mean(y[: len(place)], dim=1, correction=0, keepdim=True)
                torch.sub(y[: len(place)], mean, out=place).div_(deviation)
    return out.view(len(x), -1)


def scipy_fft(x: np.ndarray, *, banded: bool = True) -> np.ndarray:
    """The same response as a spectrum again, as it is quickest with SciPy: four blocks at a time, which are the lanes
    of its vectors, of 2^12 x 25 samples there and 2^17 back, channels in threads; only the pass band is multiplied.
    """  # noqa: D205
    lanes, clips, before = 4, 16, 3200
    step = clips * CLIP_S * FS_HZ
    block, begin = step + 2 * before, before * UP // DOWN
    response = spectrum(block, banded=banded).numpy()
    n_kept = int(np.flatnonzero(np.abs(response) > 1e-9 * np.abs(response).max())[-1]) + 1
    out = kept(f"scipy fft, {banded}", len(x), n_out(x) // N_OUT, N_OUT)

    def run(c: int) -> None:
        padded = np.pad(x[c], (before, before + -x.shape[1] % step), mode="edge")
        blocks = np.lib.stride_tricks.sliding_window_view(padded, block)[::step]
        spectra = np.zeros((lanes, block * UP // DOWN // 2 + 1), np.complex64)
        for some in range(0, len(blocks), lanes):
            values = scipy.fft.rfft(blocks[some : some + lanes].astype(np.float32))
            np.multiply(values[:, :n_kept], response[:n_kept], out=spectra[: len(values), :n_kept])
            y = scipy.fft.irfft(spectra[: len(values)], n=block * UP // DOWN)
            y = y[:, begin : begin + clips * N_OUT].reshape(-1, N_OUT)
            place = out[c, some * clips : some * clips + len(y)]
            y = y[: len(place)]
            if banded:
                np.subtract(y, y.mean(axis=1, keepdims=True), out=place)
                place *= (N_OUT / np.einsum("ij,ij->i", place, place))[:, None] ** 0.5
            else:
                place[:] = y

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(run, range(len(x))))
    return out.reshape(len(x), -1)


def scipy_fft_resampled(x: np.ndarray) -> np.ndarray:
    return scipy_fft(x, banded=False)


@functools.cache
def spectrum(block: int, *, banded: bool = True) -> torch.Tensor:
    """What the filter does to the frequencies of a block, from its answer to one sample; its phase is zero."""
    impulse = np.zeros(block)
    impulse[block // 2] = GAIN
    design = BANK.design(FILTER) if banded else RESAMPLER.design(RESAMPLER.index("eeg", FS_HZ))
    answer = filter_window(impulse, design, 0, 0, 0, block * UP // DOWN)
    return torch.from_numpy(np.fft.rfft(np.fft.ifftshift(answer)).real[: block // 2 + 1]).float()


def kernel(taps: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.atleast_2d(taps)[:, None]).float()


def without_low_branch(x: torch.Tensor, design: FilterDesign) -> tuple[torch.Tensor, int]:
    """``x - low(x)`` with its edges repeated, and how many samples it begins before the recording."""
    d, n = design.decimation, x.shape[-1]
    table, left = design.interpolator_table
    half_decimator, half_low = (len(design.decimator) - 1) // 2, (len(design.low) - 1) // 2
    margin = math.ceil(design.main_table[0].shape[1] / d) + 1  # decimated samples that the main filter reaches beyond
    n_blocks = math.ceil(n / d) + 2 * margin
    before = margin + left + half_low
    n_decimated = n_blocks + table.shape[1] - 1 + 2 * half_low
    after = (n_decimated - before) * d + half_decimator - n
    wide = F.pad(x, (before * d + half_decimator, max(after, 0)), mode="replicate")
    decimated = F.conv1d(wide, kernel(design.decimator), stride=d)[..., :n_decimated]
    back = F.conv1d(F.conv1d(decimated, kernel(design.low)), kernel(table))
    low = back.transpose(1, 2).reshape(len(x), 1, -1)
    begin = before * d + half_decimator - margin * d
    return wide[..., begin : begin + low.shape[-1]] - low, margin * d


def resample(x: torch.Tensor, n_before: int, design: FilterDesign, n: int) -> torch.Tensor:
    """Polyphase table as one convolution of stride ``down`` whose ``up`` output channels are consecutive samples."""
    table, left = design.main_table
    shift = np.arange(design.up) * design.down // design.up
    weights = np.zeros((design.up, table.shape[1] + shift[-1]))
    for j in range(design.up):
        weights[j, shift[j] : shift[j] + table.shape[1]] = table[j * design.down % design.up]
    y = F.conv1d(x[..., n_before - left :], kernel(weights), stride=design.down)
    return y.transpose(1, 2).reshape(len(x), -1)[:, :n]
