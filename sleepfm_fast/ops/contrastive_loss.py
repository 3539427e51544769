"""Contrastive loss over modalities: normalisation, similarity softmax and backward as one compiled op.

The N x N similarity matrices are computed tile by tile. Where they exceed a fixed budget they are not stored, and
memory grows linearly with N. Derivation and figures: ``docs/kernels/contrastive-loss.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepfm_fast.ops import contrastive_cpu, contrastive_cuda, contrastive_joint, contrastive_small
from sleepfm_fast.ops.contrastive_arguments import Precision, checked_backward, checked_forward, validate
from sleepfm_fast.ops.contrastive_results import allocate_forward
from sleepfm_fast.ops.dispatch import is_batched, is_plain
from sleepfm_fast.ops.registry import LIBRARY
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_gradients, refuse_transforms
from sleepfm_fast.reference.contrastive_loss import ContrastiveStatistics, Directions, Mode, problems

__all__ = ["ContrastiveStatistics", "Directions", "Mode", "contrastive_loss", "problems"]


def contrastive_loss(
    x: Tensor,
    log_temperature: Tensor,
    mode: Mode = "leave_one_out",
    *,
    mask: Tensor | None = None,
    directions: Directions = "both",
    precision: Precision = "highest",
) -> tuple[Tensor, ContrastiveStatistics]:
    """Similarity softmax between modalities (Thapa et al. 2024, SleepFM, equations 1 and 2), fused.

    With unit rows ``e_i = x_i / max(|x_i|, 1e-12)`` and ``s = exp(log_temperature)``, each problem has the logits
    ``S_rc = s <a_r, b_c>``. Leave-one-out, problem i: ``a = e_i`` and ``b`` the mean of the other modalities' unit
    rows, not normalised again, with gradient through both sides. Pairwise, problem (i < j): ``a = e_i, b = e_j``. The
    loss is the cross-entropy of finding row r among the columns, and with ``directions="both"`` column c among the
    rows, averaged over all valid samples, directions and problems together.

    Parameters
    ----------
    x : Tensor
        ``[M, N, D]`` embeddings, not normalised; M modalities (2 to 8), N samples, D dimensions. float16, bfloat16 and
        float32 are computed in float32, float64 in float64. Any strides.
    log_temperature : Tensor
        0-d, floating point, on x's device; the logits' scale is its exponential (CLIP's ``logit_scale``).
    mode : {"leave_one_out", "pairwise"}
        Which problems.
    mask : Tensor, optional
        ``[M, N]`` bool, True where the sample has the modality; all True by default. A sample takes part in a problem
        where all that the problem compares is there (leave-one-out: the modality and at least one other; the mean is
        over the others present). Elsewhere it is neither row nor column, whatever x holds there is not read, and
        the gradient there is exactly 0.
    directions : {"both", "row"}
        ``"both"`` is the published code's symmetric loss, ``"row"`` the paper's equation. Statistics cover both.
    precision : {"highest", "high"}
        Of the products on CUDA, named as in :func:`torch.set_float32_matmul_precision`: ``"high"`` multiplies float16
        factors once (a gradient's relative error is 1e-5 to 6e-4), ``"highest"`` splits them (below float32's in
        PyTorch). The CPU computes in x's precision either way.

    Returns
    -------
    loss : Tensor
        0-d, float32 (float64 for float64 x); 0 with zero gradients when no sample is valid, or N is 0.
    statistics : ContrastiveStatistics
        Per problem and direction; see there. They stay on the device and nothing waits for them.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, dtype, device, shape or value.
    NotImplementedError
        When the gradient itself is to be differentiated, on forward-mode derivatives, and inside the transforms of
        torch.func (vmap, grad, jvp, ...).

    Notes
    -----
    The same arguments give the same bits: on the CPU for every number of threads, on CUDA on devices of one kind. Which
    CUDA kernels run is chosen by :func:`sleepfm_fast.ops.contrastive_regime.regime`; all take memory that grows with N.
    """
    validate(x, log_temperature, mode, mask, directions, precision)
    refuse_transforms("contrastive_loss", x, log_temperature)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    log_temperature = log_temperature.to(dtype)
    if not torch.is_grad_enabled() or not (x.requires_grad or log_temperature.requires_grad):
        loss, *others = _forward(x, log_temperature, mask, mode, directions, precision)
        return loss, ContrastiveStatistics(*others[:4])
    if contrastive_joint.is_joint(x.shape, mode) and contrastive_cpu.is_direct(x, log_temperature, mask):
        statistics: list[Tensor] = []
        loss = _JointLoss.apply(x, log_temperature, mask, mode, directions, statistics)  # type: ignore[no-untyped-call]
        return loss, ContrastiveStatistics(*statistics)
    results = _Loss.apply(x, log_temperature, mask, mode, directions, precision)  # type: ignore[no-untyped-call]
    loss, losses, correct, ranks, n_valid = results
    return loss, ContrastiveStatistics(losses, correct, ranks, n_valid)


def _keeps_gradients(x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, precision: str) -> bool:
    """Whether forward computes the gradients too: for small batches on CUDA, where the op can be called directly."""
    if x.device.type != "cuda":
        return False
    return is_plain(x, log_temperature, mask) and contrastive_cuda.chosen_regime(x, mode, precision) == "small"


def _forward(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of all samples, keeping nothing for a backward: loss, losses, correct, ranks, n_valid, state."""
    direct = contrastive_cpu.is_direct(x, log_temperature, mask)
    op = contrastive_cpu.forward if direct else torch.ops.sleepfm_fast.contrastive_loss_forward
    return op(x, log_temperature, mask, mode, directions, precision, 0, x.shape[1])  # type: ignore[no-any-return]


class _JointLoss(torch.autograd.Function):
    """The loss of a small batch on the CPU, with gradients made in forward and handed over by the first backward.

    A second backward (``retain_graph=True``) computes them again, since the first one's results belong to the caller.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_temperature: Tensor,
        mask: Tensor | None,
        mode: str,
        directions: str,
        statistics: list[Tensor],  # filled here; as four more results they would cost 10 us in autograd
    ) -> Tensor:
        loss, others, ctx.gradients = contrastive_joint.loss_and_gradients(
            x, log_temperature, mask, mode, directions, wants_x=ctx.needs_input_grad[0]
        )
        statistics.extend(others)
        # Saved even where the gradients exist already, so that autograd refuses a backward after an in-place change.
        ctx.save_for_backward(x, log_temperature, mask)
        ctx.options = mode, directions
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient_loss: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if gradient_loss is None:
            return None, None, None, None, None, None
        x, log_temperature, mask = ctx.saved_tensors
        mode, directions = ctx.options
        arguments = x, log_temperature, mask, mode, directions
        direct = contrastive_cpu.is_direct(gradient_loss, x, log_temperature, mask) and not is_batched(gradient_loss)
        if torch.is_grad_enabled() or not direct:
            return *_from_the_state(gradient_loss, *arguments), None, None, None, None
        (gradient_x, slope), ctx.gradients = ctx.gradients or (None, None), None
        upstream = gradient_loss.item()
        if slope is None or not contrastive_joint.can_be_scaled(x.dtype, upstream):
            gradient_x, slope = contrastive_joint.gradients(*arguments, upstream)
        elif upstream != 1.0:
            slope *= upstream
            if gradient_x is not None:
                gradient_x *= upstream
        return gradient_x, slope, None, None, None, None


def _from_the_state(
    gradient_loss: Tensor, x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, Tensor]:
    """Gradients by the registered ops, where backward is traced or batched, or is to be differentiated (refused)."""
    options = mode, directions, "highest", 0, x.shape[1]
    with torch.no_grad():
        *_, n_valid, state = torch.ops.sleepfm_fast.contrastive_loss_forward(x, log_temperature, mask, *options)
    arguments = (gradient_loss, x, log_temperature, mask, n_valid, state, *options)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
        return _Gradient.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
    return torch.ops.sleepfm_fast.contrastive_loss_backward(*arguments)  # type: ignore[no-any-return]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str, precision: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        kept = None
        if x.device.type == "cpu":
            direct = contrastive_cpu.is_direct(x, log_temperature, mask)
            op = contrastive_cpu.forward_keeping if direct else torch.ops.sleepfm_fast.contrastive_loss_forward_keeping
            loss, losses, correct, ranks, n_valid, state, kept = op(x, log_temperature, mask, mode, directions)
        elif _keeps_gradients(x, log_temperature, mask, mode, precision):
            loss, losses, correct, ranks, n_valid, state, kept = contrastive_small.forward_keeping(
                x, log_temperature, mask, mode, directions
            )
        else:
            loss, losses, correct, ranks, n_valid, state = _forward(
                x, log_temperature, mask, mode, directions, precision
            )
        ctx.save_for_backward(x, log_temperature, mask, n_valid, state, kept)
        ctx.mode = mode
        ctx.directions = directions
        ctx.precision = precision
        ctx.mark_non_differentiable(losses, correct, ranks, n_valid)
        ctx.set_materialize_grads(False)
        return loss, losses, correct, ranks, n_valid

    @staticmethod
    def backward(
        ctx: Any, gradient_loss: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if gradient_loss is None:
            return None, None, None, None, None, None
        x, log_temperature, mask, n_valid, state, kept = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            options = (ctx.mode, ctx.directions, ctx.precision, 0, x.shape[1])
            gradient_x, gradient_log_temperature = _Gradient.apply(  # type: ignore[no-untyped-call]
                gradient_loss, x, log_temperature, mask, n_valid, state, *options
            )
        elif kept is not None and not is_batched(gradient_loss):
            op: Any = torch.ops.sleepfm_fast.contrastive_loss_backward_kept
            if x.device.type == "cuda":
                op = contrastive_small.backward_kept
            elif contrastive_cpu.is_direct(gradient_loss, x, log_temperature, mask, n_valid, state, kept):
                op = contrastive_cpu.backward_kept
            gradient_x, gradient_log_temperature = op(
                gradient_loss, x, log_temperature, mask, n_valid, state, kept, ctx.mode, ctx.directions
            )
        else:
            options = (ctx.mode, ctx.directions, ctx.precision, 0, x.shape[1])
            gradient_x, gradient_log_temperature = torch.ops.sleepfm_fast.contrastive_loss_backward(
                gradient_loss, x, log_temperature, mask, n_valid, state, *options
            )
        return gradient_x, gradient_log_temperature, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient as a differentiable function whose own backward refuses."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        gradient_x, gradient_log_temperature = torch.ops.sleepfm_fast.contrastive_loss_backward(*arguments)
        return gradient_x, gradient_log_temperature

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise no_second_derivative("contrastive_loss")


# ---- registration ----------------------------------------------------------------------------------------------------
# Results are for samples [begin, end), as rows and as columns, each against all N. loss, losses, correct and
# gradient_log_temperature are the range's share of those of all samples (with the same denominators), to be added up
# over ranges. For the other samples ranks are -1, state and gradient_x zero. backward needs the state of all N samples.

LIBRARY.define(  # type: ignore[no-untyped-call]
    "contrastive_loss_forward(Tensor x, Tensor log_temperature, Tensor? mask, str mode, str directions, "
    "str precision, SymInt begin, SymInt end) -> "
    "(Tensor loss, Tensor losses, Tensor correct, Tensor ranks, Tensor n_valid, Tensor state)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(  # type: ignore[no-untyped-call]
    "contrastive_loss_backward(Tensor gradient_loss, Tensor x, Tensor log_temperature, Tensor? mask, Tensor n_valid, "
    "Tensor state, str mode, str directions, str precision, SymInt begin, SymInt end) -> "
    "(Tensor gradient_x, Tensor gradient_log_temperature)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("sleepfm_fast::contrastive_loss_forward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_forward(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return allocate_forward(x, mode)


@torch.library.register_fake("sleepfm_fast::contrastive_loss_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_backward(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(log_temperature)


for _device, _module in (("CPU", contrastive_cpu), ("CUDA", contrastive_cuda)):
    LIBRARY.impl("contrastive_loss_forward", checked_forward(_module.forward), _device)  # type: ignore[no-untyped-call]
    LIBRARY.impl("contrastive_loss_backward", checked_backward(_module.backward), _device)  # type: ignore[no-untyped-call]
refuse_gradients("contrastive_loss_forward", "sleepfm_fast.ops.contrastive_loss")
refuse_gradients("contrastive_loss_backward", "sleepfm_fast.reference.contrastive_loss, whose gradient has one")
refuse_gradients("contrastive_loss_forward_keeping", "sleepfm_fast.ops.contrastive_loss")
refuse_gradients("contrastive_loss_backward_kept", "sleepfm_fast.reference.contrastive_loss, whose gradient has one")
