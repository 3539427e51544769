"""One process of tests/test_distributed.py: computes every case with its share of the samples and saves the results.

Three processes start; cases of two ranks run in a subgroup of the first two.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from contrastive_cases import embeddings, random_mask
from safetensors.torch import save_file
from torch import func
from torch.autograd import forward_ad

from sleepfm_fast import distributed
from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import EncoderConfig, SleepModel
from sleepfm_fast.model.batch_norm import SynchronisedBatchNorm, synchronise_batch_norm
from sleepfm_fast.training.objective import Objective, backward, wrap

M, D, FEATURES = 3, 16, 6


class Case(NamedTuple):
    """Arguments that all ranks share; ``counts[r]`` samples on rank r."""

    counts: tuple[int, ...]
    mode: str = "leave_one_out"
    directions: str = "both"
    masked: bool = False
    dtype: str = "float64"
    given: bool = True
    gradient: str = "mean"

    @property
    def name(self) -> str:
        """As a part of a file's name and of a test's."""
        shards = "+".join(str(n) for n in self.counts)
        flags = [word for word, on in (("masked", self.masked), ("exchanged", not self.given)) if on]
        return "-".join([shards, self.mode, self.directions, self.dtype, self.gradient, *flags])


SHARDS = ((6, 6), (9, 0), (1, 8), (4, 4, 4), (5, 0, 1), (0, 3, 8), (0, 0, 0), (1, 0, 0))
CASES = (
    *(Case(c, mode, masked=masked) for c in SHARDS for mode in ("leave_one_out", "pairwise") for masked in (0, 1)),
    *(Case(c, directions="row", masked=True) for c in ((6, 6), (5, 0, 1))),
    *(Case(c, mode, masked=True, dtype=dtype) for c in ((33, 30), (40, 0, 23)) for mode in ("leave_one_out", "pairwise")
      for dtype in ("float32", "bfloat16")),
    *(Case(c, masked=masked, given=False) for c in ((1, 8), (0, 3, 8)) for masked in (0, 1)),
    *(Case(c, gradient="sum") for c in ((1, 8), (5, 0, 1))),
)  # fmt: skip
LOG_TEMPERATURE = 2.3


def problem(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The embeddings, temperature and mask of all ranks together; NaN where the mask is False."""
    dtype = getattr(torch, case.dtype)
    N = sum(case.counts)
    x = embeddings("aligned", M, N, D).to(dtype)
    mask = random_mask(M, N) if case.masked else None
    if mask is not None:
        x = torch.where(mask[..., None], x, torch.nan)
    tau_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return x, torch.tensor(LOG_TEMPERATURE, dtype=tau_dtype), mask


class Network(torch.nn.Module):
    """A small encoder with the loss inside, as DistributedDataParallel wants it."""

    def __init__(self, loss, group=None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 10), torch.nn.Tanh(), torch.nn.Linear(10, M * D)
        ).double()
        self.log_temperature = torch.nn.Parameter(torch.tensor(LOG_TEMPERATURE).double())
        self.loss = loss

    def forward(self, features: torch.Tensor, **options) -> torch.Tensor:
        x = self.layers(features).view(-1, M, D).transpose(0, 1)
        return self.loss(x, self.log_temperature, **options)[0]


def features(n: int) -> torch.Tensor:
    """Input of :class:`Network` for all ranks together."""
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(2)).double()


def share(case: Case, rank: int) -> slice:
    """Which of all samples are this rank's."""
    begin = sum(case.counts[:rank])
    return slice(begin, begin + case.counts[rank])


def evaluate(case: Case, rank: int, group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """Loss, gradients and statistics of one case on one rank."""
    x, tau, mask = problem(case)
    mine = share(case, rank)
    x = x[:, mine].clone().requires_grad_()
    tau = tau.clone().requires_grad_()
    options = {
        "mode": case.mode,
        "directions": case.directions,
        "mask": None if mask is None else mask[:, mine],
        "counts": case.counts if case.given else None,
    }
    loss, statistics = distributed.contrastive_loss(x, tau, group=group, gradient=case.gradient, **options)
    loss.backward()
    results = {"loss": loss.detach(), "d_x": x.grad, "d_tau": tau.grad, **statistics._asdict()}
    if case.dtype == "float64" and case.gradient == "mean":
        network = Network(distributed.contrastive_loss)
        wrapped = torch.nn.parallel.DistributedDataParallel(network, process_group=group)
        wrapped(features(sum(case.counts))[mine], group=group, **options).backward()
        results |= {f"network/{name}": p.grad for name, p in network.named_parameters()}
    return results


NORMALISED = (4, 0, 3)  # samples of each rank for the batch norm below


def normalised_input(rank: int | None = None) -> torch.Tensor:
    """Input of the batch norm ``[n, 5, 6]``, of one rank or of all; far from zero mean."""
    x = 100 + torch.randn(sum(NORMALISED), 5, 6, generator=torch.Generator().manual_seed(3)).double()
    return x if rank is None else x.split(NORMALISED)[rank]


def normalise(layer: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two steps of a batch norm with affine parameters and gradients."""
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 5))
    x = x.clone().requires_grad_()
    for _ in range(2):
        y = layer(x)
    (y * torch.linspace(-1, 1, 6).double() * x.detach()).sum().backward()
    results = {"y": y.detach(), "d_x": x.grad, "d_weight": layer.weight.grad, "d_bias": layer.bias.grad}
    return {**results, **layer.state_dict()}


ENCODED = (5, 3, 4)  # clips of each rank; the second rank has none of the second modality
CONFIGS = {
    "efficientnet": EncoderConfig(channels=(4, 4, 6, 8, 16), depth=(1, 2, 1), expansion=2, dim=8, dropout=0.0),
    "strided": EncoderConfig(
        design="strided", channels=(4, 6), kernels=(8, 5), strides=(4, 4), segments=3, dim=8, dropout=0.0
    ),
}


def clips(rank: int | None = None) -> Batch:
    """Clips of two modalities, one of them missing in the second rank's share."""
    generator = torch.Generator().manual_seed(4)
    n = sum(ENCODED)
    x = {name: torch.randn(n, c, 384, generator=generator).double() for name, c in (("a", 3), ("b", 2))}
    present = {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in x.items()}
    present["b"][ENCODED[0] : ENCODED[0] + ENCODED[1]] = False
    mine = slice(None) if rank is None else slice(sum(ENCODED[:rank]), sum(ENCODED[: rank + 1]))
    return Batch({k: v[mine] for k, v in x.items()}, {k: v[mine] for k, v in present.items()})


def objective(design: str) -> Objective:
    """Two encoders of a small design, in float64 and in training mode."""
    torch.manual_seed(6)
    return Objective(SleepModel({"a": 3, "b": 2}, CONFIGS[design]).double().train(), "leave_one_out", "both")


def encode(design: str, n_parts: int, rank: int, group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """Gradients and running statistics of a step with synchronised batch norm under DistributedDataParallel."""
    whole = objective(design)
    assert synchronise_batch_norm(whole.model, group) > 0
    whole.model.count_everywhere = lambda n: int(distributed.gather_equal(torch.tensor([n]), 3, group).sum())
    outcome = backward(whole, wrap(whole, unused=True), clips(rank), counts=ENCODED, n_parts=n_parts)
    results = {"loss": outcome.loss, **whole.model.state_dict()}
    return results | {f"gradient/{name}": p.grad for name, p in whole.model.named_parameters() if p.grad is not None}


def refused(group: dist.ProcessGroup, rank: int) -> list[str]:
    """The sentences for arguments that do not fit between ranks."""
    sentences = []
    x, tau = torch.zeros(M, 2, D), torch.tensor(0.0)
    for arguments in (
        {"x": x.double() if rank else x},
        {"x": torch.zeros(M, 2, D + rank)},
        {"mask": torch.ones(M, 2, dtype=torch.bool) if rank else None},
        {"mode": "pairwise" if rank else "leave_one_out"},
        {"counts": (2, 2)},
        {"counts": (1, 1, 1)},
    ):
        try:
            distributed.contrastive_loss(**{"x": x, "log_temperature": tau, "group": group, **arguments})
        except ValueError as error:
            sentences.append(str(error))
    return sentences


def undifferentiable(group: dist.ProcessGroup) -> dict[str, str]:
    """The sentences for what the loss has no derivatives for, and the gradient where one of it could be asked for."""
    x, tau = torch.randn(M, 2, D, generator=torch.Generator().manual_seed(8)), torch.tensor(1.0)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return distributed.contrastive_loss(x, tau, group=group)[0]

    def second(x: torch.Tensor) -> object:
        plain, recorded = (
            torch.autograd.grad(loss(leaf), leaf, create_graph=graph)[0]
            for leaf, graph in ((x.clone().requires_grad_(), False), (x.requires_grad_(), True))
        )
        assert torch.equal(plain, recorded)
        return torch.autograd.grad(recorded.sum(), x)

    def forward_mode(x: torch.Tensor) -> object:
        with forward_ad.dual_level():
            return loss(forward_ad.make_dual(x, x))

    attempts = {
        "second": second,
        "hessian": lambda x: torch.autograd.functional.hessian(loss, x),
        "forward_ad": forward_mode,
        "grad": func.grad(loss),
        "vmap": lambda x: func.vmap(loss)(x[None]),
        "jvp": lambda x: func.jvp(loss, (x,), (x,)),
    }
    sentences = {}
    for name, attempt in attempts.items():
        try:
            attempt(x.clone())
        except NotImplementedError as error:
            sentences[name] = str(error)
    return sentences


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3, timeout=timedelta(seconds=300)
    )
    groups = {2: dist.new_group([0, 1]), 3: dist.group.WORLD}
    for number, case in enumerate(CASES):
        size = len(case.counts)
        if rank < size:
            results = evaluate(case, rank, groups[size])
            save_file({k: v.contiguous() for k, v in results.items()}, folder / f"{number}-{rank}.safetensors")
    save_file(normalise(SynchronisedBatchNorm(5).double(), normalised_input(rank)), folder / f"norm-{rank}.safetensors")
    group = dist.new_group()
    for design in CONFIGS:
        save_file(encode(design, 1, rank, group), folder / f"{design}-{rank}.safetensors")
    (folder / f"refused-{rank}").write_text("\n".join(refused(dist.group.WORLD, rank)))
    (folder / f"undifferentiable-{rank}").write_text(json.dumps(undifferentiable(dist.group.WORLD)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
