"""The measures of numerical agreement: no further from the truth than PyTorch is, plus a stated term.

By element, and by the 2-norm of a whole tensor, where errors of either sign average: an error that all elements share
is seen there long before the allowance of one element is used up.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_close", "assert_norm_close"]


def assert_close(
    ours: Tensor, same_precision: Tensor, truth: Tensor, term: Tensor | float, what: str = "result"
) -> float:
    """Assert ``|ours - truth| <= |same_precision - truth| + term`` for every element.

    Parameters
    ----------
    ours, same_precision, truth : Tensor
        What is tested, what PyTorch gives in the same precision, and the float64 truth; one shape.
    term : Tensor or float
        The allowance beyond PyTorch's own error, absolute, elementwise; every test states its own.
    what : str
        Named in the message.

    Returns
    -------
    float
        The largest error as a share of what was allowed.
    """
    assert truth.dtype == torch.float64, f"{what}: the truth must be float64, it is {truth.dtype}"
    shapes = [tuple(tensor.shape) for tensor in (ours, same_precision, truth)]
    assert len(set(shapes)) == 1, f"{what}: shapes differ: ours, torch, truth {shapes}"
    if truth.numel() == 0:
        return 0.0
    a, b, t = ours.detach().double(), same_precision.detach().double(), truth.detach()
    error = (a - t).abs()
    torch_error = (b - t).abs()
    allowed = torch_error + term
    # A NaN anywhere fails unless all three have it; the comparisons are written so that NaN counts as too far.
    fine = (error <= allowed) | (a.isnan() & b.isnan() & t.isnan())
    if not bool(fine.all()):
        excess = torch.where(fine, -torch.inf, (error - allowed).nan_to_num(torch.inf))
        flat = int(excess.argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), truth.shape))
        raise AssertionError(
            f"{what}: {int((~fine).sum())} of {truth.numel()} elements are too far from the truth; the worst at "
            f"{index}: ours {a.flatten()[flat]:.17g}, torch {b.flatten()[flat]:.17g}, truth {t.flatten()[flat]:.17g}, "
            f"error {error.flatten()[flat]:.3g}, allowed {allowed.flatten()[flat]:.3g} "
            f"(of which torch's own error {torch_error.flatten()[flat]:.3g})"
        )
    share = torch.where(error.isnan() | (error == 0), 0.0, error / allowed.clamp_min(1e-300))
    return float(share.max())


def assert_norm_close(
    ours: Tensor, same_precision: Tensor, truth: Tensor, term: Tensor | float, what: str = "result"
) -> float:
    """Assert ``|ours - truth| <= 2 |same_precision - truth| + term`` in the 2-norm.

    Twice, because another order of additions is as good as PyTorch's, and on few numbers chance decides which is nearer
    to the truth. Arguments and result are as those of :func:`assert_close`; ``term`` is a number.
    """
    assert truth.dtype == torch.float64, f"{what}: the truth must be float64, it is {truth.dtype}"
    assert ours.shape == same_precision.shape == truth.shape, f"{what}: shapes differ"
    error, torch_error = (float((t.detach().double() - truth.detach()).norm()) for t in (ours, same_precision))
    allowed = 2 * torch_error + float(term)
    size = float(truth.norm())
    assert error <= allowed, (
        f"{what}: the error's norm {error:.3g} is more than the allowed {allowed:.3g} (twice torch's error: "
        f"{2 * torch_error:.3g}); the truth's norm is {size:.3g}"
    )
    return error / allowed if allowed > 0 else 0.0
