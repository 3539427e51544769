"""The gradient of one step: encoders and loss in one module, for a whole batch at once or part by part."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sleepfm_fast import distributed
from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import SleepModel
from sleepfm_fast.model.precision import Precision, arithmetic
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics, Directions, Mode
from sleepfm_fast.training.kept_buffers import KeptBuffers
from sleepfm_fast.training.world import World

__all__ = ["Objective", "Outcome", "as_pairs", "backward", "not_finite", "wrap"]

Scale = Literal["mean", "sum"]


@dataclass(frozen=True)
class Outcome:
    """What a step computed besides gradients; everything is on the device.

    Attributes
    ----------
    loss : Tensor
        The loss that was differentiated, over the batch of all ranks; 0-d.
    statistics : ContrastiveStatistics
        The batch's; see :func:`sleepfm_fast.distributed.contrastive_loss`.
    embeddings : Tensor
        Embeddings of this rank's clips, ``[M, n, dim]``, detached.
    """

    loss: Tensor
    statistics: ContrastiveStatistics
    embeddings: Tensor


class Objective(nn.Module):
    """Encoders, temperature and loss as one module, so that DistributedDataParallel sees all that a step uses.

    A model of one modality is contrasted with itself: its clips are the first clips of all pairs, then the second ones,
    and the loss treats these as two modalities.

    Parameters
    ----------
    model : SleepModel
    mode, directions
        As in :func:`sleepfm_fast.ops.contrastive_loss`.
    scale : {"mean", "sum"}
        The loss as the op returns it, or times the number of its terms.
    precision : {"float32", "bfloat16"}
        Precision of the encoders.
    """

    def __init__(
        self,
        model: SleepModel,
        mode: Mode,
        directions: Directions,
        scale: Scale = "mean",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.model = model
        self.mode: Mode = mode
        self.directions: Directions = directions
        self.scale: Scale = scale
        self.precision: Precision = precision

    def embed(self, x: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return embeddings ``[M, n, dim]`` and mask, computed in the wanted precision."""
        with arithmetic(self.precision, self.model.log_temperature.device):
            embeddings, mask = self.model(x, present)
        return embeddings, mask

    def contrast(
        self, embeddings: Tensor, log_temperature: Tensor, mask: Tensor, counts: Sequence[int] | None
    ) -> tuple[Tensor, ContrastiveStatistics]:
        """Return the loss, and statistics, of the embeddings of all ranks."""
        embeddings, mask = as_pairs(embeddings, mask)
        loss, statistics = distributed.contrastive_loss(
            embeddings, log_temperature, self.mode, mask=mask, directions=self.directions, counts=counts
        )
        if self.scale == "sum":
            loss = loss * self.n_terms(statistics)
        return loss, statistics

    def n_terms(self, statistics: ContrastiveStatistics) -> Tensor:
        """Number of terms in the mean, 0-d: valid clips, over all modalities (or pairs of them) and directions."""
        return (2 if self.directions == "both" else 1) * statistics.n_valid.sum()

    def mean(self, outcome: Outcome) -> Tensor:
        """Return a step's loss as the mean over its terms, 0-d, whatever scale was differentiated."""
        if self.scale == "mean":
            return outcome.loss
        return outcome.loss / self.n_terms(outcome.statistics).clamp(min=1)

    def forward(
        self,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        counts: Sequence[int] | None = None,
        gradient: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Return loss, statistics and embeddings; with ``gradient``, a number whose gradient is these clips' part.

        Parameters
        ----------
        x, present : mapping
            As :class:`SleepModel` takes them.
        counts : sequence of int, optional
            Number of clips of every rank.
        gradient : (Tensor, Tensor), optional
            The loss's gradient with respect to these clips' embeddings, ``[M, n, dim]``, and with respect to the log
            temperature (in one part of a step; 0 in the others). The number returned is their inner product with
            embeddings and log temperature.
        """
        embeddings, mask = self.embed(x, present)
        if gradient is not None:
            d_embeddings, d_log_temperature = gradient
            return (embeddings * d_embeddings).sum() + self.model.log_temperature * d_log_temperature
        loss, statistics = self.contrast(embeddings, self.model.log_temperature, mask, counts)
        return loss, statistics, embeddings.detach()


def as_pairs(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """View one modality's ``[1, 2n, dim]`` (first clips of pairs, then second ones) as two modalities of n clips."""
    if embeddings.shape[0] > 1:
        return embeddings, mask
    return embeddings.reshape(2, -1, embeddings.shape[2]), mask.reshape(2, -1)


def backward(
    objective: Objective,
    wrapped: nn.Module,
    batch: Batch,
    *,
    counts: Sequence[int] | None = None,
    n_parts: int = 1,
) -> Outcome:
    """Add the gradient of the loss of a batch to the parameters' ``grad``.

    Parameters
    ----------
    objective : Objective
        The module itself.
    wrapped : nn.Module
        The same module, possibly inside DistributedDataParallel.
    batch : Batch
        This rank's clips.
    counts : sequence of int, optional
        Number of clips (pairs of clips) of every rank; see :func:`sleepfm_fast.distributed.contrastive_loss`.
    n_parts : int
        Number of parts in which the clips are embedded, the same on every rank. Activations of one part exist at a
        time.

    Notes
    -----
    In parts, every clip still has all others of the batch as negatives (Gao et al. 2021, GradCache): all parts are
    embedded without keeping activations, the loss and its gradient by the embeddings are computed, and each part is
    embedded again and the gradient propagated. The second embedding draws the same random numbers as the first, so that
    dropout agrees. Batch norm in training takes the statistics of a part instead of the batch, and updates its running
    ones once for each part; with batch norm in evaluation the gradient is that of the whole batch at once.
    """
    if n_parts == 1:
        loss, statistics, embeddings = wrapped(batch.x, batch.present, counts)
        loss.backward()
        return Outcome(loss.detach(), statistics, embeddings)
    model = objective.model
    parts = split(batch, n_parts)
    device = model.log_temperature.device
    random = random_state(device)
    buffers = KeptBuffers(model.buffers())
    with torch.no_grad():
        pairs = [objective.embed(part.x, part.present) for part in parts]
    embeddings = torch.cat([e for e, _ in pairs], dim=1).requires_grad_()
    mask = torch.cat([m for _, m in pairs], dim=1)
    log_temperature = model.log_temperature.detach().clone().requires_grad_()
    loss, statistics = objective.contrast(embeddings, log_temperature, mask, counts)
    d_embeddings, d_log_temperature = torch.autograd.grad(loss, (embeddings, log_temperature))
    buffers.restore()
    set_random_state(device, random)
    sizes = [part.shape[1] for part, _ in pairs]
    for number, (part, d_part) in enumerate(zip(parts, d_embeddings.split(sizes, dim=1), strict=True)):
        last = number == n_parts - 1
        d_tau = d_log_temperature if last else torch.zeros_like(d_log_temperature)
        with silence(wrapped) if not last else contextlib.nullcontext():
            wrapped(part.x, part.present, None, (d_part, d_tau)).backward()
    return Outcome(loss.detach(), statistics, embeddings.detach())


def silence(wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep gradients on this rank; the next backward pass outside exchanges what has been added up."""
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        quiet: contextlib.AbstractContextManager[None] = wrapped.no_sync()
        return quiet
    return contextlib.nullcontext()


def split(batch: Batch, n_parts: int) -> list[Batch]:
    """Cut a batch into parts of nearly equal size, in order."""
    columns = {
        kind: {name: torch.tensor_split(values, n_parts) for name, values in getattr(batch, kind).items()}
        for kind in ("x", "present")
    }
    return [
        Batch(*({name: values[k] for name, values in columns[kind].items()} for kind in ("x", "present")))
        for k in range(n_parts)
    ]


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the states of the generators that dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Restore the generators to what :func:`random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def wrap(module: nn.Module, *, unused: bool) -> nn.Module:
    """Wrap what a step differentiates in DistributedDataParallel, if there are several ranks.

    Parameters
    ----------
    module : nn.Module
        The module, already on its device.
    unused : bool
        Whether an encoder may have no clips in some batch on some rank.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return module
    device = next(module.parameters()).device
    # The option has another name from torch 2.13 on.
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # Off: running statistics are united where they are used, for validation and checkpoints.
    options: dict[str, Any] = {broadcast: False}
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=unused,
        **options,
    )


def not_finite(batch: Batch, outcome: Outcome, modalities: Sequence[str], world: World) -> str:
    """Name the modalities with inputs, or else with embeddings, that are not finite on some rank; empty if none."""
    finite = outcome.embeddings.isfinite().flatten(1).all(1).tolist()
    embeddings = [name for name, fine in zip(modalities, finite, strict=True) if not fine]
    every = world.gather([batch.not_finite(), embeddings])
    for kind, place in (("the input of", 0), ("the embeddings of", 1)):
        if names := sorted({name for rank in every for name in rank[place]}):
            return f"{kind} {', '.join(names)}"
    return ""
