"""The maximum of three samples: torch's values and gradients to the bit, ties and NaN included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sleepfm_fast import ops, reference
from sleepfm_fast.model.mbconv_blocks import pool

# Less than a vector of 4, 8 and 16 lanes with its edges, exactly one, the last overlapping the one before, a clip.
LENGTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 18, 19, 20, 21, 33, 120, 960]


def rows(n, kind="distinct"):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(3, 5, n, generator=generator)
    if kind == "ties":
        x = torch.randint(0, 3, x.shape, generator=generator).float()
    elif kind == "constant":
        x = torch.zeros_like(x)
    elif kind == "infinite":
        x = torch.where(x > 0.5, torch.inf, torch.where(x < 0, -torch.inf, x))
    elif kind == "NaN":
        x = torch.where(x > 0.7, torch.nan, x)
    return x


def both(function, x):
    """Maximum and gradient for one upstream gradient."""
    x = x.detach().requires_grad_()
    y = function(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y.detach(), torch.autograd.grad(y, x, upstream)[0]


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "infinite", "NaN"])
@pytest.mark.parametrize("n", LENGTHS)
def test_same_bits_as_torch(n, kind):
    x = rows(n, kind)
    for a, b in zip(both(ops.max_pool, x), both(reference.max_pool, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        torch.testing.assert_close(ops.max_pool(x), reference.max_pool(x), rtol=0, atol=0, equal_nan=True)


def test_nan_of_upstream_stays_where_it_belongs():
    x = torch.tensor([[0.0, 5.0, 1.0, 1.0, 1.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).requires_grad_()
    upstream = torch.zeros_like(x)
    upstream[0, 1] = torch.nan
    (gradient,) = torch.autograd.grad(ops.max_pool(x), x, upstream)
    assert gradient.isnan().nonzero().tolist() == [[0, 1]]


def test_no_rows_and_other_ranks():
    assert ops.max_pool(torch.empty(0, 3, 7)).shape == (0, 3, 7)
    empty = torch.empty(0, 3, 7, requires_grad=True)
    assert torch.autograd.grad(ops.max_pool(empty).sum(), empty)[0].shape == (0, 3, 7)
    x = rows(20)
    assert torch.equal(ops.max_pool(x[0, 0]), reference.max_pool(x)[0, 0])


def test_strided_arguments():
    x = rows(40).transpose(0, 1)
    assert not x.is_contiguous()
    for a, b in zip(both(ops.max_pool, x), both(ops.max_pool, x.contiguous()), strict=True):
        assert torch.equal(a, b)
    leaf = rows(40).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.max_pool(leaf), leaf, torch.ones(()).expand(3, 5, 40))
    assert torch.equal(gradient, torch.autograd.grad(reference.max_pool(leaf).sum(), leaf)[0])


def test_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            results.append(both(ops.max_pool, rows(101)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layer", [nn.MaxPool1d(3, 1, 1), nn.MaxPool1d(5, 1, 2), nn.MaxPool1d(3, 2, 1)], ids=str)
def test_the_layer_gives_what_it_gives(layer):
    seen = []
    for _ in range(2):
        for a, b in zip(both(lambda x: pool(layer, x), rows(40)), both(layer, rows(40)), strict=True):
            assert torch.equal(a, b)
        layer.register_forward_hook(lambda *_: seen.append(1))
    assert len(seen) == 2  # with a hook, both go through the layer


def test_refusals():
    with pytest.raises(ValueError, match="at least one sample"):
        ops.max_pool(torch.empty(3, 0))
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        ops.max_pool(torch.zeros(3, dtype=torch.float64))
    x = rows(20).requires_grad_()
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(ops.max_pool(x).sum(), x, create_graph=True)


def test_opcheck():
    x = rows(21)
    torch.library.opcheck(torch.ops.sleepfm_fast.max_pool_forward.default, (x,))
    torch.library.opcheck(torch.ops.sleepfm_fast.max_pool_backward.default, (x, x))
