"""What a plan costs: how fast the networks run on this machine, timed for a few steps, and rates of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sleepfm_fast.model.precision import Precision
    from sleepfm_fast.reproduction.plan import Step, Work

__all__ = ["RATES", "clock_text", "measure", "network_sizes", "seconds"]

AT_LEAST_S = 0.5
# Amounts a second on one core of a 2.6-GHz Zen 4: readings to plan with, right to a factor of two or so.
RATES = {
    "simulated hours": 0.8,
    "preprocessed hours": 2.0,
    "clips of features": 150.0,
    "fitted numbers": 2e6,
    "compared numbers": 2e10,
}


def network_sizes(encoder: str, channels: Mapping[str, int]) -> tuple[int, dict[str, float]]:
    """Length of an embedding; parameters of one encoder and of the supervised network."""
    from sleepfm_fast.encoder import PRESETS, build_encoder

    config = PRESETS[encoder]

    def count(n_channels: int) -> float:
        return float(sum(p.numel() for p in build_encoder(n_channels, config).parameters()))

    return config.dim, {"encoder": count(max(channels.values())), "supervised": count(sum(channels.values()))}


def time_calls(call: Callable[[], Any]) -> float:
    """Seconds of a call: the mean of at least two in ``AT_LEAST_S``, after one that warms up."""
    call()
    started, n = time.perf_counter(), 0
    while n < 2 or time.perf_counter() - started < AT_LEAST_S:
        call()
        n += 1
    return (time.perf_counter() - started) / n


def measure(
    encoder: str, channels: Mapping[str, int], batch_size: int, device_name: str, precision: Precision = "float32"
) -> dict[str, float]:
    """Time a few steps of the networks on noise; reading and filtering clips is faster than all of them on a CPU.

    Parameters
    ----------
    encoder : str
        Preset of the encoders.
    channels : dict of str to int
        Channels of each modality.
    batch_size : int
        Clips of a training step.
    device_name : {"auto", "cpu", "cuda"}
        Where the training will run.
    precision : {"float32", "bfloat16"}
        Arithmetic of the networks.

    Returns
    -------
    dict of str to float
        Amount a second of everything that :class:`~sleepfm_fast.reproduction.plan.Work` counts.
    """
    import torch

    from sleepfm_fast.batches import Batch
    from sleepfm_fast.encoder import PRESETS, SleepModel, build_encoder
    from sleepfm_fast.model.precision import arithmetic
    from sleepfm_fast.training.objective import Objective, backward
    from sleepfm_fast.training.world import choose_device

    if len(channels) == 1:
        batch_size += batch_size % 2
    device = choose_device(device_name)
    config = PRESETS[encoder]
    generator = torch.Generator().manual_seed(0)
    x = {m: torch.randn(batch_size, n, 7680, generator=generator).to(device) for m, n in channels.items()}
    present = {m: torch.ones(batch_size, n, dtype=torch.bool) for m, n in channels.items()}

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    # One modality alone is trained on pairs of neighbouring clips, and pairs are what is counted.
    contrasted = batch_size // 2 if len(channels) == 1 else batch_size
    with torch.random.fork_rng(devices=[]):
        model = SleepModel(dict(channels), config, 0.0).to(device)
        whole = build_encoder(sum(channels.values()), config).to(device)
    objective = Objective(model, "leave_one_out", "both", precision=precision)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        backward(objective, objective, Batch(x, present), counts=[contrasted])
        wait()

    together = torch.cat(list(x.values()), dim=1)

    def supervise() -> None:
        whole.zero_grad(set_to_none=True)
        with arithmetic(precision, device):
            loss = whole(together).sum()
        loss.backward()
        wait()

    def embed() -> None:
        with torch.inference_mode(), arithmetic(precision, device):
            model(x, present)
        wait()

    one = batch_size / time_calls(train)
    rates = dict(RATES)
    for n in (1, 2, 3):
        rates[f"training clips, {n} modalities"] = one * len(channels) / n
    rates["supervised clips"] = batch_size / time_calls(supervise)
    model.eval()
    rates["embedded clips"] = batch_size / time_calls(embed)
    return rates


def seconds(work: Work, rates: Mapping[str, float]) -> float:
    """How long a step will take."""
    return work.start_s + work.amount / rates[work.speed]


def total_seconds(steps: Iterable[Step], rates: Mapping[str, float]) -> float:
    """How long steps will take, one after the other."""
    return sum(seconds(step.work, rates) for step in steps)


def clock_text(duration_s: float) -> str:
    """Write a duration as people say it."""
    if duration_s < 90:
        return f"{duration_s:.0f} s"
    if duration_s < 5400:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3600:.1f} h"
