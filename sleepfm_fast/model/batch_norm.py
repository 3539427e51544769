"""Batch normalisation over the samples of all processes, on every device and backend.

torch's own ``SyncBatchNorm`` runs on GPUs only. Every rank gathers all ranks' sums and adds them in the order of ranks,
so that all have the same statistics to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from sleepfm_fast.distributed import gather_equal

__all__ = ["SynchronisedBatchNorm", "synchronise_batch_norm"]


class SynchronisedBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d`` (and 2d, 3d) whose training statistics are those of all ranks' samples together.

    All ranks of the group call forward and backward together; a rank may have no samples at all. The affine parameters
    get this rank's part of their gradient, as all other parameters do.
    """

    group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input [batch, channels, ...], got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        if not self.training or not (dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        self._check_input_dim(input)
        out, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, self.group)  # type: ignore[no-untyped-call]
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                unbiased = variance * (count / (count - 1).clamp_min(1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
        return out  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        C = x.shape[1]
        dims = [0, *range(2, x.dim())]
        n = x.numel() // C
        moments = x.new_zeros(2 * C + 1, dtype=torch.float64)
        if n:
            variance, mean = torch.var_mean(x.to(at_least_float32(x)), dim=dims, correction=0)
            moments[0] = n
            moments[1 : C + 1] = mean
            moments[C + 1 :] = variance * n
        every = gather_equal(moments, dist.get_world_size(group), group)
        # Ranks' counts, means and sums of squares about the means, combined as Chan, Golub and LeVeque do.
        number, means, squares = every[:, :1], every[:, 1 : C + 1], every[:, C + 1 :]
        count = number.sum()
        mean = (number * means).sum(0) / count
        variance = (squares + number * (means - mean) ** 2).sum(0) / count
        kept = at_least_float32(x)
        mean, variance = mean.to(kept), variance.to(kept)
        out = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if n else torch.empty_like(x)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.group = group
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        gradient = d_out.to(mean.dtype)
        unit = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        along = (gradient * unit).sum(dims)
        straight = gradient.sum(dims)
        C = len(mean)
        every = gather_equal(torch.cat([straight, along]).double(), dist.get_world_size(ctx.group), ctx.group)
        both = (every.sum(0) / count).to(mean.dtype)
        d_x = gradient - both[:C].view(shape) - unit * both[C:].view(shape)
        scale = inverse if weight is None else inverse * weight.to(mean.dtype)
        d_x = (d_x * scale.view(shape)).to(x.dtype)
        d_weight = None if weight is None else along.to(weight.dtype)
        d_bias = straight.to(mean.dtype) if ctx.has_bias else None
        return d_x, d_weight, d_bias, None, None


def at_least_float32(x: Tensor) -> torch.dtype:
    """Return the type in which statistics of x are kept."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def synchronise_batch_norm(module: nn.Module, group: dist.ProcessGroup | None = None) -> int:
    """Replace every batch norm below ``module`` by one over all ranks; parameters, buffers and names stay the same.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    group : ProcessGroup, optional
        The ranks. Best a group of its own, so that its collectives cannot be mixed up with those of gradients.

    Returns
    -------
    int
        How many batch norms were replaced.
    """
    n = 0
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
            new = SynchronisedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            new._parameters = child._parameters
            new._buffers = child._buffers
            new.train(child.training)
            new.group = group
            setattr(module, name, new)
            n += 1
        else:
            n += synchronise_batch_norm(child, group)
    return n
