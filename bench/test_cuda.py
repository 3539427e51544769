"""The kernels on a GPU: contrastive loss at N = 32 to 131,072 and filter_resample, with predictions beside.

Without a GPU ``--quick`` runs the same code on the CPU at small sizes, so that it works on the day there is one.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import cuda_events
import cuda_loss_rivals as rivals
import filter_rivals
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)

from sleepfm_fast import ops

CUDA = torch.cuda.is_available()
pytestmark = [
    # triton's and torch.compile's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SIZES = (32, 512, 4096, 16384, 32768, 131072)
# Seconds of forward and backward that were predicted for an H200 from its rates, before any GPU was at hand.
PREDICTED_S = {32: 50e-6, 512: 80e-6, 4096: 0.6e-3, 32768: 30e-3, 131072: 0.5}
LONGEST_S = 4.0  # an arm whose call takes longer is read once, and left out at the next size
LAST_SEEN: dict[str, tuple[int, float]] = {}


def affordable(arm: str, n: int, bytes_needed: float) -> bool:
    """Whether a call is likely to fit into time (growing with N squared) and memory."""
    if arm in LAST_SEEN:
        before, seconds = LAST_SEEN[arm]
        if seconds * (n / before) ** 2 > LONGEST_S:
            return False
    if CUDA:
        torch.cuda.empty_cache()  # what earlier sizes left is free too
    return not CUDA or bytes_needed < 0.8 * torch.cuda.mem_get_info()[0]


def tf32(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with float32 products on tensor cores, those of the backward pass too."""

    def run():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return call()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


FULL_BYTES = 44.0  # a similarity: measured peak of the definition in PyTorch, float32


def affordable_losses(n: int, candidates: dict[str, tuple[rivals.Loss, float]]) -> dict[str, rivals.Loss]:
    """Arms that fit, of candidates with the bytes that each needs."""
    return {arm: loss for arm, (loss, needed) in candidates.items() if affordable(arm, n, needed)}


def plain_losses(n: int, quick: bool) -> dict[str, rivals.Loss]:
    """Ours, and the definition in PyTorch."""
    full = FULL_BYTES * n * n + 24.0 * n * rivals.M * rivals.D
    return affordable_losses(
        n,
        {
            "ours, high": (rivals.high, 0.0),
            "ours, highest": (rivals.highest, 0.0),
            "PyTorch, float32": (rivals.eager, full),
            "PyTorch, tf32": (rivals.eager, full),
        },
    )


def rival_losses(n: int, quick: bool) -> dict[str, rivals.Loss]:
    """Ours, the definition compiled, and the libraries."""
    full = FULL_BYTES * n * n + 24.0 * n * rivals.M * rivals.D
    candidates: dict[str, tuple[rivals.Loss, float]] = {"ours, highest": (rivals.highest, 0.0)}
    if CUDA and not quick and n <= 32768:
        candidates["torch.compile, tf32"] = (torch.compile(rivals.eager, dynamic=False), full)
    candidates |= {name: (loss, 0.0) for name, loss in rivals.libraries().items()}
    return affordable_losses(n, candidates)


def agree(results):
    """Compare with the first arm that computes in float32: losses to 1 %, gradients by direction and length."""
    exact = next(arm for arm in ("PyTorch, float32", "ours, highest") if arm in results)
    value, d_x, d_tau = results[exact]
    for arm, (loss, gradient, slope) in results.items():
        torch.testing.assert_close(loss, value, rtol=1e-2, atol=1e-3, msg=arm)
        error = float((gradient - d_x).norm() / d_x.norm())
        assert error < (1e-3 if arm in ("ours, highest", "PyTorch, float32") else 3e-2), f"{arm}: {error:.2g}"
        if slope is not None and d_tau is not None:
            torch.testing.assert_close(slope, d_tau, rtol=5e-2, atol=5e-3, msg=arm)


def compare_losses(versus, quick, n, choose, words):
    if not CUDA and not quick:
        pytest.skip("no CUDA device")
    if quick and n > (4096 if CUDA else 32):
        pytest.skip("not in quick mode")
    x, tau = rivals.inputs(n, cuda_events.device())
    arms, failed, peaks = {}, {}, {}
    for arm, loss in choose(n, quick).items():
        call = partial(rivals.step, loss, x, tau)
        call = tf32(call) if arm.endswith("tf32") else call
        try:
            LAST_SEEN[arm] = (n, cuda_events.warmed_up(call) if CUDA else 0.0)
            if "ours, highest" in arms:
                agree({"ours, highest": arms["ours, highest"](), arm: call()})
            peaks[arm] = cuda_events.peak_mib(call)
        except Exception as error:  # a rival that fails is a finding; ours must not
            if arm.startswith("ours"):
                raise
            failed[arm] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        arms[arm] = call
    longest = max(LAST_SEEN[arm][1] for arm in arms)
    return versus(
        f"CUDA: contrastive loss{words}, forward + backward, N = {n}, D = {rivals.D}, M = {rivals.M}",
        arms,
        agree=agree,
        rounds=2 if longest > 0.5 else 6,
        measure=cuda_events.measure,
        more={"peak_device_mib": peaks, "failed": failed, "predicted_s": PREDICTED_S.get(n), "device": str(x.device)},
    )


@pytest.mark.parametrize("n", SIZES)
def test_contrastive_loss_cuda(versus, quick, n):
    result = compare_losses(versus, quick, n, plain_losses, "")
    if CUDA and n == 32:
        result.require("PyTorch, float32", at_least=2.0)


@pytest.mark.parametrize("n", SIZES)
def test_contrastive_loss_rivals_cuda(versus, quick, n):
    """Apart from ours and PyTorch, whose times are worth most: these compile for minutes where they are slow to."""
    compare_losses(versus, quick, n, rival_losses, " and rivals")


def test_graph_replay_cuda(versus, quick):
    """A training step captured once: what is left is the kernels' own time."""
    if not CUDA:
        pytest.skip("no CUDA device")
    x, tau = rivals.inputs(32, cuda_events.device())
    call = partial(rivals.step, rivals.highest, x, tau)

    def same(results):
        for a, b in zip(results["ours, captured"], results["ours"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)

    versus(
        "CUDA: contrastive loss, forward + backward, N = 32, graph replay",
        {"ours, captured": cuda_events.captured(call), "ours": call},
        agree=same,
        rounds=6,
        measure=cuda_events.measure,
    )


# ---- filter_resample ------------------------------------------------------------------------------------------------

# Instructions, 18,200 cycles of one of an H200's 132 multiprocessors a channel (docs/kernels/filter-resample.md), are
# what bounds it; 60 % of that reached.
PREDICTED_CLIPS_PER_S = 0.6 * 132 * 1.755e9 / (9 * 18_200)


def windows(n_clips: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Clips of nine channels at 200 Hz with their context on both sides."""
    bank, f = filter_rivals.BANK, filter_rivals.FILTER
    context = bank.context(f)
    length = filter_rivals.CLIP_S * filter_rivals.FS_HZ + 2 * context
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(-3000, 3000, (n_clips * 9 * length,), generator=generator, dtype=torch.int16)
    table = torch.zeros(n_clips, 9, 6, dtype=torch.int64)
    table[:, :, 0] = torch.arange(n_clips * 9).view(n_clips, 9) * length
    table[:, :, 1] = length
    table[:, :, 3] = context
    table[:, :, 5] = f
    calibration = torch.tensor([filter_rivals.GAIN, 0.0, 0.0, 1.0]).expand(n_clips, 9, 4).contiguous()
    return tuple(t.to(device) for t in (raw, table, calibration))


def torchaudio_resample(raw: torch.Tensor, shape: tuple[int, ...], context: int) -> torch.Tensor:
    """Resampling only, 200 to 256 Hz: no band limits."""
    from torchaudio.functional import resample

    return resample(raw.view(*shape).float() * filter_rivals.GAIN, 200, 256)


def julius_bandpass(raw: torch.Tensor, shape: tuple[int, ...], context: int) -> torch.Tensor:
    """Windowed-sinc band-pass and resampling, float32."""
    import julius

    low, high = (f / filter_rivals.FS_HZ for f in filter_rivals.BAND_HZ)
    filtered = julius.bandpass_filter(raw.view(*shape).float() * filter_rivals.GAIN, low, high)
    return julius.resample_frac(filtered, 25, 32)


def conv1d(raw: torch.Tensor, shape: tuple[int, ...], context: int) -> torch.Tensor:
    """One long strided convolution with as many taps as the filter has."""
    taps = filter_rivals.kernel(filter_rivals.BANK.design(filter_rivals.FILTER).main_table[0]).to(raw.device)
    x = raw.view(-1, 1, shape[-1]).float() * filter_rivals.GAIN
    return F.conv1d(x, taps, stride=filter_rivals.DOWN)


def test_filter_resample_cuda(versus, quick):
    if not CUDA and not quick:
        pytest.skip("no CUDA device")
    n_clips = 2 if quick else 1024
    bank = filter_rivals.BANK
    context = bank.context(filter_rivals.FILTER)
    raw, table, calibration = windows(n_clips, cuda_events.device())
    shape = (n_clips, 9, raw.numel() // (9 * n_clips))
    truth = ops.filter_resample(raw[: 9 * shape[-1]].cpu(), table[:1].cpu(), calibration[:1].cpu(), bank, 7680)
    arms = {"ours": partial(ops.filter_resample, raw, table, calibration, bank, 7680)}
    peaks, failed = {"ours": cuda_events.peak_mib(arms["ours"])}, {}
    for name, module, function in (
        ("PyTorch conv1d, polyphase part only", "torch", conv1d),
        ("torchaudio, resampling only", "torchaudio", torchaudio_resample),
        ("julius", "julius", julius_bandpass),
    ):
        if not importlib.util.find_spec(module):
            continue
        call = partial(function, raw, shape, context)
        try:
            peaks[name] = cuda_events.peak_mib(call)
            assert bool(call().isfinite().all()), "its result is not finite"
        except Exception as error:  # a finding about the rival
            failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        arms[name] = call

    def same(results):
        np.testing.assert_allclose(results["ours"][:1].cpu().numpy(), truth.numpy(), rtol=0, atol=1e-2)
        for arm, values in results.items():
            assert bool(values.isfinite().all()), arm

    result = versus(
        f"CUDA: filter 0.3-35 Hz and resample 200 to 256 Hz, {n_clips} clips of 9 channels",
        arms,
        agree=same,
        rounds=6,
        measure=cuda_events.measure,
        more={
            "predicted_s": n_clips / PREDICTED_CLIPS_PER_S,
            "peak_device_mib": peaks,
            "failed": failed,
            "device": str(raw.device),
        },
    )
    print(f"{n_clips / statistics.median(result.seconds['ours']):.3g} clips/s, predicted {PREDICTED_CLIPS_PER_S:.3g}")
