"""What embeds: batch norms folded, weights in bfloat16, encoders compiled; against the model as it was trained."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import os
import tempfile
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleepfm_fast import embed, train
from sleepfm_fast.batches import Batch
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.inference import embedder, fold_batch_norms
from sleepfm_fast.model import compilation
from sleepfm_fast.model.compilation import compile_encoders, explained
from sleepfm_fast.model.mbconv_blocks import MBConvBlock

CHANNELS = {"respiratory": 3, "ecg": 1}
N = 1536  # samples: long enough for the networks' halvings


@pytest.fixture(autouse=True)
def _quiet_compiler():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own use of torch.jit
        yield


DEEP = dataclasses.replace(
    PRESETS["seed"], channels=(8, 8, 8, 12, 16, 16, 24, 24, 32), depth=(1, 2, 2, 1, 1, 1, 1), dropout=0.0
)
CONFIGS = {
    "seed": DEEP,
    "tiny": dataclasses.replace(PRESETS["tiny"], dropout=0.0),
    # A stem, a residual block, two that halve, a pool: what a compiler takes minutes for otherwise.
    "short": dataclasses.replace(DEEP, channels=(8, 8, 12, 16), depth=(2, 1)),
    # What is compiled is counted by function, not by block: for the limit, one stage is enough.
    "one stage": dataclasses.replace(DEEP, channels=(8, 8, 16), depth=(2,)),
}


def trained(preset: str) -> SleepModel:
    """A model whose running statistics, weights and shifts are no defaults."""
    torch.manual_seed(0)
    model = SleepModel(CHANNELS, CONFIGS[preset])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    with torch.no_grad():
        model.train()(batch_of(6).x)
    return model.eval()


def layer_by_layer(model: SleepModel) -> SleepModel:
    """A copy that torch runs one layer after the other: a layer with a hook is not part of a fused block."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


def batch_of(n_clips: int) -> Batch:
    x = {name: torch.randn(n_clips, n, N) for name, n in CHANNELS.items()}
    present = {name: torch.ones(n_clips, n, dtype=torch.bool) for name, n in CHANNELS.items()}
    return Batch(x, present)


def with_gaps(batch: Batch) -> Batch:
    """A clip without ECG, and one without its second respiratory channel, both NaN where nothing was recorded."""
    batch.present["ecg"][1] = False
    batch.x["ecg"][1] = torch.nan
    batch.present["respiratory"][2, 1] = False
    batch.x["respiratory"][2, 1] = torch.nan
    return batch


@pytest.mark.parametrize("preset", ["seed", "tiny"])
def test_folding_changes_nothing_but_rounding(preset):
    model = trained(preset)
    batch = with_gaps(batch_of(4))
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        truth, mask = copy.deepcopy(model).double()({k: v.double() for k, v in batch.x.items()}, batch.present)
        layers = layer_by_layer(model)(batch.x, batch.present)[0]
        ours, our_mask = embedder(model, "float32", folded=True)(batch)
    assert torch.equal(our_mask, mask)
    assert not mask[1, 1]
    assert ours.dtype == torch.float32
    assert bool((ours[~mask] == 0).all())
    scale = truth.abs().max()
    error, theirs = ((value.double() - truth).abs().max() / scale for value in (ours, layers))
    assert error <= theirs + 2e-6
    assert theirs < 1e-4
    folded = fold_batch_norms(model)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm1d)]
    for name, value in model.state_dict().items():  # the model itself goes on training
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("preset", ["seed", "tiny"])
def test_bfloat16_is_as_good_folded_as_under_autocast(preset):
    model = trained(preset)
    batch = with_gaps(batch_of(8))
    with torch.inference_mode():
        exact = embedder(model, "float32")(batch)[0]
        for module in model.modules():
            if isinstance(module, MBConvBlock):
                module.fuse = False  # by torch's layers both times, as on CUDA
        autocast, folded = (embedder(model, "bfloat16", folded=f)(batch)[0] for f in (False, True))
    errors = [float((e - exact).norm() / exact.norm()) for e in (autocast, folded)]
    assert folded.dtype == torch.float32
    assert errors[1] <= 1.25 * errors[0]
    assert 1e-4 < errors[1] < 0.2


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that traces and differentiates as always and leaves the C++ out, which would take minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()


def test_compiled_embeds_alike(traced):
    model = trained("short")
    plain, compiled = (embedder(model, "float32", folded=True, compiled=c) for c in (False, True))
    with torch.inference_mode():
        for batch in (batch_of(4), with_gaps(batch_of(5))):  # another size, and a modality with fewer clips
            theirs, mask = plain(batch)
            ours, our_mask = compiled(batch)
            assert torch.equal(mask, our_mask)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fuse", [True, False])
def test_compiled_trains_alike(traced, fuse):
    """Two steps' gradients and running statistics, with the fused blocks of the CPU and operation by operation."""
    model = trained("short").train()
    for module in model.modules():
        if hasattr(module, "fuse"):
            module.fuse = fuse
    compiled = copy.deepcopy(model)
    compile_encoders(compiled)
    for n_clips in (4, 6):
        batch = with_gaps(batch_of(n_clips))
        weight = torch.randn(2, n_clips, model.config.dim)
        for network in (model, compiled):
            embeddings, _ = network(batch.x, batch.present)
            (embeddings * weight).sum().backward()
    assert list(compiled.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    scale = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for (name, ours), plain in zip(compiled.named_parameters(), model.parameters(), strict=True):
        if plain.grad is None:
            assert ours.grad is None, name
        else:
            torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_every_encoder_stays_compiled(traced):
    """Three encoders, training and evaluation, full and smaller batches: beyond a limit torch compiles no more."""
    channels = {"respiratory": 5, "brain": 3, "ecg": 1}
    model = SleepModel(channels, CONFIGS["one stage"])
    compile_encoders(model)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for n_clips in (4, 6, 3):
            x = {name: torch.randn(n_clips, n, N) for name, n in channels.items()}
            model.train()(x)[0].sum().backward()
            with torch.no_grad():
                model.eval()(x)


@pytest.mark.parametrize("named", [True, False], ids=["named by torch", "by default"])
def test_code_that_others_can_have_put_into_a_folder_of_all_users_is_not_run(tmp_path, monkeypatch, named):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    folder = compilation.default_folder()
    if named:  # by torch itself, once it has been imported
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    folder.mkdir(mode=0o755)
    compilation.refuse_others_code()
    folder.chmod(0o777)
    with pytest.raises(SleepfmError, match=f"code that it finds in {folder}, where other users of this machine can"):
        compile_encoders(trained("short"))
    folder.chmod(0o755)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(SleepfmError, match="Set TORCHINDUCTOR_CACHE_DIR to a folder of your own"):
        compile_encoders(trained("short"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    compilation.refuse_others_code()


@pytest.mark.slow
def test_compiled_to_machine_code():
    model = trained("short")
    del model.encoders["respiratory"]
    model.modalities.pop("respiratory")
    torch.compiler.reset()
    plain, compiled = (embedder(model, "float32", folded=True, compiled=c) for c in (False, True))
    batch = batch_of(3)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(batch)[0], plain(batch)[0], rtol=1e-4, atol=1e-5)


def test_commands_compile(traced, planted, tmp_path, capsys):
    """``--compile`` in train and embed; a run may be resumed without it."""
    options = [str(planted), str(tmp_path / "run"), "--preset", "tiny", "--batch-size", "8", "--threads", "1"]
    assert train.cli([*options, "--max-steps", "3", "--compile"]) == 0
    assert train.cli([*options, "--max-steps", "5", "--resume"]) == 0
    for name, words in (("plain", []), ("compiled", ["--compile"])):
        assert embed.cli([str(tmp_path / "run"), str(planted), str(tmp_path / name), *words]) == 0
    plain, compiled = (Embeddings(tmp_path / name) for name in ("plain", "compiled"))
    assert np.array_equal(plain.mask, compiled.mask)
    np.testing.assert_allclose(plain.vectors, compiled.vectors, rtol=0, atol=1e-5)
    capsys.readouterr()


def test_a_compiler_that_fails_is_a_sentence():
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(x: torch.Tensor) -> torch.Tensor:
        # From torch 2.7 on a third argument is asked for, the frame.
        frame = [None] * (len(inspect.signature(BackendCompilerFailed).parameters) - 2)
        raise BackendCompilerFailed(broken, RuntimeError("no compiler"), *frame)

    with pytest.raises(SleepfmError, match=r"no compiler.*leave --compile out"):
        explained(broken)(torch.zeros(1))


class CopiesFromTheCpu(TorchDispatchMode):
    """Counts tensors that go from the CPU to another device; none may while a CUDA graph is captured."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_device = func is torch.ops.aten._to_copy.default and (kwargs.get("device") or args[0].device).type != "cpu"
        self.n += to_device and args[0].device.type == "cpu"
        return func(*args, **kwargs)


def test_nothing_goes_to_the_device_with_clips_that_have_everything():
    model, batch = trained("tiny").to("meta"), batch_of(4)
    there = {name: x.to("meta") for name, x in batch.x.items()}
    with torch.no_grad(), CopiesFromTheCpu() as copies:
        embeddings, mask = model(there, batch.present)
        assert copies.n == 0
        batch.present["ecg"][1] = False
        model(there, batch.present)
        assert copies.n > 0
    assert embeddings.device.type == mask.device.type == "meta"


@pytest.mark.cuda
def test_embedding_is_captured_in_a_graph():
    model, batch = trained("tiny").cuda(), batch_of(4).to(torch.device("cuda"))
    embed_batch = embedder(model, "float32")
    with torch.inference_mode():
        expected, _ = embed_batch(batch)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            embed_batch(batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured, mask = embed_batch(batch)
        graph.replay()
    assert bool(mask.all())
    torch.testing.assert_close(captured, expected, rtol=1e-4, atol=1e-5)


# From 2.9 on torch would have the setting written otherwise.
@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")
@pytest.mark.cuda
@pytest.mark.parametrize("preset", ["seed", "tiny"])
def test_embeds_on_cuda_as_on_the_cpu(preset, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = trained(preset)
    batch = with_gaps(batch_of(8))
    with torch.inference_mode():
        truth, mask = embedder(model, "float32")(batch)
        on_cuda = copy.deepcopy(model).cuda()
        ours, our_mask = embedder(on_cuda, "float32")(batch.to(torch.device("cuda")))
        half, _ = embedder(on_cuda, "bfloat16")(batch.to(torch.device("cuda")))
    assert torch.equal(our_mask.cpu(), mask)
    torch.testing.assert_close(ours.cpu(), truth, rtol=1e-3, atol=1e-4)
    assert float((half.cpu() - truth).norm() / truth.norm()) < 0.2
