"""What no op may take: no tensors, sparse ones, tensors of two devices, blocks without channels. Each is a sentence."""

from __future__ import annotations

import pytest
import torch
from test_unsupported import OPS, calls

from sleepfm_fast import _C
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops import batch_norm, contrastive_loss, encoder_evaluate, filter_resample, max_pool, mbconv, stem
from sleepfm_fast.ops.arguments import refuse_unlike
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


# ---- the compiled functions themselves -------------------------------------------------------------------------------

# Python refuses all this before, or cannot ask for it; without these checks a mistake there would be a crash. Addresses
# are 0: nothing may be read before the refusal.
PLAIN, ADDED = (False, 0.0, 0), (True, 0.0, 0)


def compiled_mbconv(dims=(1, 2, 3, 2, 4, 1), n_threads=1, workspace=0, residual=PLAIN, function="forward"):
    others = {"forward": (0,) * 6, "evaluate": (0,) * 6, "backward": (0,) * 8 + ((0,) * 8,)}[function]
    getattr(_C, f"mbconv_{function}")(dims, False, n_threads, workspace, (0,) * 10, residual, 1e-5, *others)


def compiled_encoder(dims=(1, 2, 3, 8), n_threads=1, workspace=0, stride=1, after=0, n_addresses=26):
    layout = [(4, 3, stride, True, False, 1e-5, 1e-5)]
    addresses = [0] * (n_addresses - 4) + [after] * 4
    _C.encoder_evaluate(dims, False, n_threads, workspace, 1e-5, layout, addresses)


def compiled_stem(dims=(1, 2, 3, 8), n_threads=1, workspace=0):
    _C.stem_forward(dims, n_threads, workspace, 1e-5, *(0,) * 8)
    _C.stem_backward(dims, n_threads, workspace, 1e-5, *(0,) * 8)


def compiled_batch_norm(dims=(2, 3, 8), n_threads=1, workspace=0, function="forward"):
    n_addresses = {"forward": 5, "backward": 7}[function]
    getattr(_C, f"batch_norm_{function}")(dims, n_threads, workspace, 1e-5, *(0,) * n_addresses)


def compiled_loss(shape=(3, 4, 5), n_threads=1, workspace=0, samples=(0, 4), kept=0):
    given = (0, 0, shape, (1, 1), 0, 0, (0, 0), False, True, n_threads, workspace)
    _C.contrastive_forward(*given, *(0,) * 6, samples, kept)


def compiled_joint(shape=(3, 4, 5), gradient_x=0, slope=0):
    given = (0, 0, shape, (1, 1), 0, 0, (0, 0), False, True, 1)
    _C.contrastive_joint(*given, (0,) * 6, 1.0, gradient_x, slope)


def compiled_ranks(n_dim=4, n_threads=1, workspace=0):
    _C.pair_ranks((0,) * 11, (0,) * 11, (0, 0, n_dim), (0, 0), True, n_threads, workspace)


def compiled_filter(raw_bytes=2, n_out=10, normalise=0):
    _C.filter_resample(0, 0, raw_bytes, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, n_out, normalise, 1, -1, 0)


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (compiled_mbconv, {"dims": (1, 2, 3, 5, 4, 1), "residual": ADDED}, "a residual from 2 to 5 channels"),
        (compiled_mbconv, {"dims": (1, 2, 3, 2, 4, 2), "residual": ADDED}, "2 to 2 channels with stride 2"),
        (compiled_mbconv, {"residual": (True, -0.5, 0)}, "dropout is -0.5; between 0 and 1"),
        (compiled_mbconv, {"residual": (True, 1.5, 0)}, "dropout is 1.5; between 0 and 1"),
        (compiled_mbconv, {"residual": (False, 0.5, 0)}, "dropout is 0.5; .* 0 without a residual"),
        (compiled_mbconv, {"dims": (-1, 2, 3, 2, 4, 1)}, "-1 clips of 4 samples"),
        (compiled_mbconv, {"dims": (1, 2, 3, 2, 0, 1)}, "1 clips of 0 samples; at least one sample"),
        (compiled_mbconv, {"dims": (1, 0, 3, 2, 4, 1)}, "0 channels in, 3 inside, 2 out"),
        (compiled_mbconv, {"dims": (1, 2, 0, 2, 4, 1)}, "2 channels in, 0 inside, 2 out"),
        (compiled_mbconv, {"dims": (1, 2, 3, 0, 4, 1)}, "2 channels in, 3 inside, 0 out"),
        (compiled_mbconv, {"dims": (1, 2, 3, 2, 4, 3)}, "stride is 3; 1 or 2"),
        (compiled_mbconv, {"dims": (1, 2, 3, 2, 4, 3), "function": "evaluate"}, "stride is 3; 1 or 2"),
        (compiled_mbconv, {"dims": (1, 2, 3, 2, 4, 3), "function": "backward"}, "stride is 3; 1 or 2"),
        (compiled_mbconv, {"n_threads": 0}, "mbconv: n_threads is 0; at least one"),
        (compiled_mbconv, {"workspace": 32}, "mbconv: the workspace is not aligned to 64 bytes"),
        (compiled_mbconv, {"dims": (1, 2, 3, 2, 1, 1)}, "more than one value a channel"),
        (compiled_encoder, {"dims": (1, 2, 3, 0)}, "1 clips of 0 samples"),
        (compiled_encoder, {"dims": (-1, 2, 3, 8)}, "-1 clips of 8 samples"),
        (compiled_encoder, {"dims": (1, 0, 3, 8)}, "0 channels in, 3 after the stem"),
        (compiled_encoder, {"n_threads": 0}, "encoder: n_threads is 0; at least one"),
        (compiled_encoder, {"workspace": 32}, "encoder: the workspace is not aligned to 64 bytes"),
        (compiled_encoder, {"stride": 3}, "a residual from 3 to 3 channels with stride 3"),
        (compiled_encoder, {"after": 64}, "block 0 adds its input and has a batch norm after it"),
        (compiled_encoder, {"n_addresses": 25}, "25 addresses for 1 blocks"),
        (compiled_stem, {"dims": (1, 2, 3, 0)}, "1 clips of 0 samples"),
        (compiled_stem, {"dims": (1, 0, 3, 8)}, "0 channels in, 3 out"),
        (compiled_stem, {"dims": (1, 2, 0, 8)}, "2 channels in, 0 out"),
        (compiled_stem, {"n_threads": 0}, "stem: n_threads is 0; at least one"),
        (compiled_stem, {"workspace": 32}, "not aligned to 64 bytes"),
        (compiled_stem, {"dims": (1, 2, 3, 2)}, "more than one value"),
        (compiled_batch_norm, {"dims": (2, 0, 8)}, "2 clips of 0 channels and 8 samples"),
        (compiled_batch_norm, {"dims": (2, 3, 0), "function": "backward"}, "2 clips of 3 channels and 0 samples"),
        (compiled_batch_norm, {"dims": (1, 3, 1)}, "more than one value a channel"),
        (compiled_batch_norm, {"n_threads": 0}, "batch_norm: n_threads is 0; at least one"),
        (compiled_batch_norm, {"workspace": 32}, "batch_norm: the workspace is not aligned to 64 bytes"),
        (_C.max_pool_forward, (1, 0, 1, 0, 0), "1 rows of 0 samples"),
        (_C.max_pool_forward, (1, 4, 0, 0, 0), "max_pool: n_threads is 0; at least one"),
        (_C.max_pool_backward, (-1, 4, 1, 0, 0, 0), "-1 rows of 4 samples"),
        (compiled_loss, {"shape": (1, 4, 5)}, "x has 1 modalities; contrastive_loss takes 2 to 8"),
        (compiled_loss, {"shape": (9, 4, 5)}, "x has 9 modalities; contrastive_loss takes 2 to 8"),
        (compiled_loss, {"shape": (3, 4, 0)}, "x has no dimensions"),
        (compiled_loss, {"shape": (3, 1 << 31, 5)}, "2147483648 samples; ranks are counted in 32 bits"),
        (compiled_loss, {"n_threads": 0}, "n_threads is 0; at least one"),
        (compiled_loss, {"workspace": 32}, "not aligned to 64 bytes"),
        (compiled_loss, {"kept": 32}, "not aligned to 64 bytes"),
        (compiled_loss, {"samples": (-1, 4)}, r"the range \[-1, 4\) is not one of 4 samples"),
        (compiled_loss, {"samples": (3, 2)}, r"the range \[3, 2\) is not one of 4 samples"),
        (compiled_loss, {"samples": (0, 5)}, r"the range \[0, 5\) is not one of 4 samples"),
        (compiled_joint, {"shape": (9, 4, 5)}, "x has 9 modalities"),
        (compiled_joint, {"gradient_x": 64}, "the gradient of x comes with that of log_temperature"),
        (compiled_ranks, {"n_dim": 0}, "the embeddings have no dimensions"),
        (compiled_ranks, {"n_threads": 0}, "n_threads is 0; at least one"),
        (compiled_ranks, {"workspace": 32}, "not aligned to 64 bytes"),
        (_C.measure_rank_rows, (0, (0, 0), (0, (1 << 30) + 1), (0,) * 5, 1), r"ranks take up to 2\^30"),
        (compiled_filter, {"raw_bytes": 3}, "raw has samples of 3 bytes; expected int16 or int32"),
        (compiled_filter, {"n_out": 1 << 31}, r"n_out is 2147483648; at most 2\^31 - 1"),
        (compiled_filter, {"normalise": 3}, "normalise is 3; expected 0, 1 or 2"),
        (_C.mbconv_evaluate_cuda, ((1, 8, 32, 8, 4, 1), 0, False, 0, 0, 0, 0, 0, 0), "neither bfloat16 nor float16"),
        (_C.contrastive_gemm, (0, [1, 2], 0, 0), "2 members are given; the structure has"),
    ],
)
def test_compiled_functions_refuse_before_they_read(function, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(**arguments) if isinstance(arguments, dict) else function(*arguments)


# ---- the registered ops, which can be called without the functions above them ----------------------------------------

ON_CUDA = ("mbconv_evaluate_packed", "mbconv_train_forward", "mbconv_train_backward")
REGISTERED = {op: arguments for op, arguments in calls().items() if op not in ON_CUDA}


def unlike(tensor):
    """The same tensor of another type, with another shape, or with fewer or no elements."""
    yield tensor.to(torch.float16 if tensor.dtype != torch.float16 else torch.float32)
    yield tensor.to(torch.complex64)
    yield tensor.unsqueeze(0).unsqueeze(0)
    yield tensor.new_empty(0, 0, 0, 0)
    if tensor.ndim > 1:
        yield tensor.flatten()


def changed(arguments):
    """Arguments of which one tensor, alone or in a list, is unlike what the op reads."""
    for place, argument in enumerate(arguments):
        tensors = argument if isinstance(argument, list) else [argument]
        for index, tensor in enumerate(tensors):
            if not isinstance(tensor, torch.Tensor):
                continue
            for other in unlike(tensor):
                given = [*tensors[:index], other, *tensors[index + 1 :]] if isinstance(argument, list) else other
                yield (*arguments[:place], given, *arguments[place + 1 :])
        if isinstance(argument, list):
            yield (*arguments[:place], argument[:-1], *arguments[place + 1 :])
            yield (*arguments[:place], [], *arguments[place + 1 :])


@pytest.mark.parametrize("op", REGISTERED)
def test_registered_ops_refuse_tensors_that_they_would_misread(op):
    run, arguments = getattr(OPS, op), REGISTERED[op]
    with torch.no_grad():
        run(*arguments)
        takes = {"max_pool_forward": 2, "filter_resample": 1, "filter_resample_out": 2}.get(
            op, int(op.startswith("contrastive_loss") and not op.endswith("kept"))
        )
        taken = []
        for given in changed(arguments):
            try:
                run(*given)
            except (TypeError, ValueError) as error:
                assert str(error).endswith("."), error  # noqa: PT017
            except RuntimeError as error:
                assert "not implemented" in str(error)  # noqa: PT017
            else:
                taken.append([a.shape if isinstance(a, torch.Tensor) else a for a in given])
        # Embeddings in half precision, rows of any number of dimensions, taps in any shape: what these ops take.
        assert len(taken) == takes, taken


def test_the_packed_block_is_refused_in_other_types():
    x, packed, bias, *sizes = (a.to("meta") if isinstance(a, torch.Tensor) else a for a in calls()[ON_CUDA[0]])
    OPS.mbconv_evaluate_packed(x, packed, bias, *sizes)
    for wrong in ((packed.int(), bias), (packed, bias.half())):
        with pytest.raises(TypeError, match="expected uint8 and float32"):
            OPS.mbconv_evaluate_packed(x, *wrong, *sizes)


@pytest.mark.parametrize(
    "other", [torch.ones(3), torch.ones(1, 2), torch.ones(2).double(), torch.ones(2, device="meta")], ids=str
)
def test_tensors_unlike_what_an_op_reads_are_refused(other):
    expected = ("gamma", torch.ones(2), (2,), torch.float32)
    refuse_unlike("stem", torch.device("cpu"), [expected, expected])
    said = rf"ops\.sleepfm_fast\.stem: beta is {other.dtype} of shape .* on {other.device}; expected torch\.float32"
    with pytest.raises(ValueError, match=said + r" of shape \(2,\) on cpu\."):
        refuse_unlike("stem", torch.device("cpu"), [expected, ("beta", other, (2,), torch.float32)])


def test_registered_losses_refuse_other_words_and_ranges():
    x, tau = torch.randn(3, 9, 8), torch.tensor(0.0)
    for options in (
        ("leave_two_out", "both", "highest", 0, 9),
        ("pairwise", "neither", "highest", 0, 9),
        ("pairwise", "both", "middle", 0, 9),
        ("pairwise", "both", "highest", -1, 9),
        ("pairwise", "both", "highest", 5, 4),
        ("pairwise", "both", "highest", 0, 10),
    ):
        with pytest.raises(ValueError, match=r"choose|expected 0 <= begin <= end <= N"):
            OPS.contrastive_loss_forward(x, tau, None, *options)


def test_a_hook_that_changes_what_forward_kept_is_refused():
    """Memory is read as forward left it: half of it in bfloat16 would be read beyond its end."""
    x = torch.randn(2, 40, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.bfloat16(), lambda tensor: tensor):
        y, _ = mbconv(x, *block(40, 48, 40))
    with pytest.raises(ValueError, match=r"mbconv_backward: x is torch\.bfloat16"):
        y.sum().backward()
    embeddings = torch.randn(3, 300, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor, lambda tensor: tensor[:8] if tensor.dtype == torch.uint8 else tensor
    ):
        loss, _ = contrastive_loss(embeddings, torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"kept is torch\.uint8 of shape"):
        loss.backward()
