"""What no op may take: no tensors, sparse ones, tensors of two devices, blocks without channels. Each is a sentence."""

from __future__ import annotations

import pytest
import torch

from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops import batch_norm, encoder_evaluate, filter_resample, max_pool, mbconv, stem
from sleepfm_fast.ops.encoder_evaluate import Block, Norm, Stem


def block(n_in=4, width=8, n_out=4):
    shapes = [(width, n_in), *[(width,)] * 3, (width, 3), *[(width,)] * 3, (n_out, width), (n_out,)]
    return [torch.ones(shape) for shape in shapes]


def norm(n):
    return Norm(*torch.ones(4, n).unbind())


def of_max_pool(change):
    max_pool(change(torch.ones(2, 4)))


def of_batch_norm(change):
    batch_norm(torch.ones(2, 3, 8), torch.ones(3), change(torch.ones(3)))


def of_stem(change):
    stem(torch.ones(2, 1, 8), torch.ones(3, 1, 3), change(torch.ones(3)), torch.ones(3), torch.ones(3))


def of_mbconv(change):
    weights = block()
    mbconv(torch.ones(2, 4, 8), *weights[:4], change(weights[4]), *weights[5:])


def of_running(change):
    mbconv(torch.ones(2, 4, 8), *block(), running=(torch.ones(8), torch.ones(8), torch.ones(8), change(torch.ones(8))))


def of_norm(change):
    after = Norm(torch.ones(4), torch.ones(4), torch.ones(4), change(torch.ones(4)))
    of_encoder(Block(tuple(block()), torch.ones(4, 8).unbind(), after=after))


def of_block(change):
    weights = block()
    of_encoder(Block((*weights[:9], change(weights[9])), torch.ones(4, 8).unbind()))


def of_encoder(last):
    encoder_evaluate(torch.ones(2, 1, 8), Stem(torch.ones(4, 1, 3), torch.ones(4), norm(4)), [last])


def of_calibration(change):
    table = torch.zeros(1, 1, 6, dtype=torch.int64)
    filter_resample(torch.zeros(4, dtype=torch.int16), table, change(torch.zeros(1, 1, 4)), FilterBank("aasm", 256), 8)


CALLS = [of_max_pool, of_batch_norm, of_stem, of_mbconv, of_running, of_norm, of_block, of_calibration]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.tolist(), "is a list; .* takes a tensor there"),
        (lambda _: None, "is a NoneType; .* takes a tensor there"),
        (lambda t: t.to_sparse(), r"layout torch.sparse_coo; .* takes dense tensors: .*\.to_dense\(\)"),
    ],
)
def test_what_is_no_dense_tensor_is_named(call, change, said):
    with pytest.raises(TypeError, match=said):
        call(change)


@pytest.mark.parametrize("call", [call for call in CALLS if call is not of_max_pool])
def test_tensors_of_two_devices_are_named(call):
    """Those on "meta" passed for what was to be traced: the result was none, or backward raised torch's own error."""
    with pytest.raises(ValueError, match=r"on meta.*move (both|them) to one device|is on cpu, .* on meta"):
        call(lambda t: t.to("meta"))


@pytest.mark.parametrize("sizes", [(0, 8, 4), (4, 0, 4), (4, 8, 0)])
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_block_without_channels_is_refused(sizes, evaluated):
    """The size of its workspace was a division by zero, which ended the process."""
    n_in, width, n_out = sizes
    running = torch.ones(4, width).unbind() if evaluated else None
    with pytest.raises(ValueError, match=f"{n_in} channels in, {width} inside, {n_out} out; at least one of each"):
        mbconv(torch.ones(2, n_in, 8), *block(*sizes), running=running)
    ops, x, weights = torch.ops.sleepfm_fast, torch.ones(2, n_in, 8), block(*sizes)
    registered = (
        (ops.mbconv_evaluate, (x, weights, running, 1, 1e-5, False, False))
        if evaluated
        else (ops.mbconv_forward, (x, weights, torch.tensor(0), 1, 1e-5, False, 0.0, False, True))
    )
    with pytest.raises(ValueError, match="at least one of each"):
        registered[0](*registered[1])
