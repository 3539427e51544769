"""Embedding with the MBConv blocks as one CUDA kernel each: the network around them, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings

import pytest
import torch
from emulated_mbconv import emulate, unpack
from test_inference import CONFIGS, batch_of, trained, with_gaps
from torch import Tensor, nn

from sleepfm_fast import embed, reference, train
from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.inference import embedder, fold_batch_norms
from sleepfm_fast.model import fused_blocks
from sleepfm_fast.model.compilation import compile_encoders
from sleepfm_fast.model.fused_blocks import ChannelsFirst, FusedBlock, PoolChannelsLast, check_fused_blocks, fuse_blocks
from sleepfm_fast.ops.mbconv_evaluate import PackedMBConv


def emulated(x: Tensor, block: PackedMBConv) -> Tensor:
    """The kernel, run on the host."""
    return emulate(x.contiguous(), block)


def in_torch(x: Tensor, block: PackedMBConv) -> Tensor:
    """The twin with the packed weights."""
    y = reference.mbconv_evaluate(x.double(), *unpack(block), stride=block.stride, residual=block.residual)
    return y.to(x.dtype)


def fused(model: SleepModel) -> SleepModel:
    return fuse_blocks(fold_batch_norms(model), torch.bfloat16)


def embed_with(model: SleepModel, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return model({name: x.bfloat16() for name, x in batch.x.items()}, batch.present)[0].float()


def error_of(embeddings: Tensor, truth: Tensor) -> float:
    return float((embeddings - truth).norm() / truth.norm())


def published(n_channels: int) -> SleepModel:
    """The published network with running statistics that fit its activations."""
    model = SleepModel({"respiratory": n_channels}, dataclasses.replace(PRESETS["seed"], dropout=0.0))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()({"respiratory": torch.randn(2, n_channels, 1920)})
    return model.eval()


def test_the_published_network_embeds_as_well_as_torch_does_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel of the network in turn, a quarter of a clip."""
    monkeypatch.setattr(fused_blocks, "mbconv_evaluate", emulated)
    model = published(7)
    batch = Batch({"respiratory": torch.randn(1, 7, 1920)}, {"respiratory": torch.ones(1, 7, dtype=torch.bool)})
    with torch.inference_mode():
        truth = embedder(model, "float32")(batch)[0]
        theirs = embedder(model, "bfloat16", folded=True)(batch)[0]
    ours = fused(model)
    layers = ours.encoders["respiratory"].layers
    assert sum(isinstance(layer, FusedBlock) for layer in layers) == 14
    (last,) = (layer for layer in layers if isinstance(layer, ChannelsFirst))
    assert len(last.layers) == 3
    assert 1e-4 < error_of(embed_with(ours, batch), truth) < error_of(theirs, truth)


@pytest.mark.parametrize("preset", ["seed", "short"])
def test_small_networks_with_gaps(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that the kernel does not take between those that it takes; modalities and channels that are missing."""
    monkeypatch.setattr(fused_blocks, "mbconv_evaluate", emulated)
    model = trained(preset)
    batch = with_gaps(batch_of(3))
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        truth = embedder(model, "float32")(batch)[0]
        theirs = embedder(model, "bfloat16", folded=True)(batch)[0]
    ours = fused(model)
    kinds = [type(layer) for layer in ours.encoders["ecg"].layers]
    assert FusedBlock in kinds
    assert ChannelsFirst in kinds
    assert error_of(embed_with(ours, batch), truth) < 1.25 * error_of(theirs, truth)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_was_not_finite_is_not_embedded_as_if_it_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_blocks, "mbconv_evaluate", emulated)
    batch = batch_of(2)
    batch.x["ecg"][1, 0, 700] = torch.nan
    embeddings = embed_with(fused(trained("short")), batch)
    assert bool(embeddings[:, 0].isfinite().all())
    assert bool(embeddings[1, 1].isnan().all())


def test_blocks_with_hooks_stay_layers_of_torch() -> None:
    model = fold_batch_norms(trained("short"))
    seen: list[tuple[int, ...]] = []
    block = model.encoders["ecg"].stage2.stack[0]
    block.register_forward_hook(lambda _, __, y: seen.append(tuple(y.shape)))
    layers = fuse_blocks(model, torch.bfloat16).encoders["ecg"].layers
    assert isinstance(layers[0], ChannelsFirst)
    layers[0](torch.zeros(2, 48, 8, dtype=torch.bfloat16))
    assert len(seen) == 1


@pytest.mark.parametrize("n_samples", [1, 2, 9])
def test_pooling_keeps_channels_last(n_samples: int) -> None:
    """A copy before and after would cost as much as the pooling."""
    x = torch.randn(3, n_samples, 8, dtype=torch.bfloat16)
    layer = nn.MaxPool1d(3, stride=1, padding=1)
    y = PoolChannelsLast(layer)(x)
    assert torch.equal(y, layer(x.transpose(1, 2)).transpose(1, 2))
    assert y.is_contiguous()


def test_batch_norms_are_not_forgotten() -> None:
    with pytest.raises(ValueError, match="fold them first"):
        fuse_blocks(trained("short"), torch.bfloat16)


def test_compiled_embeds_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler sees the network around the blocks; the kernel itself is an op like any other to it."""
    monkeypatch.setattr(fused_blocks, "mbconv_evaluate", in_torch)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    model = fused(trained("short"))
    batch = with_gaps(batch_of(4))
    plain = embed_with(model, batch)
    compile_encoders(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(embed_with(model, batch), plain, rtol=0.02, atol=0.02)


def test_refusals_are_sentences() -> None:
    with pytest.raises(SleepfmError, match=r"for the published network .* this model is 'strided'"):
        embedder(trained("tiny"), "bfloat16", fused_blocks=True)
    with pytest.raises(
        SleepfmError, match=r"--fused-blocks runs on CUDA, this is cpu \(where blocks are fused anyway\)"
    ):
        embedder(trained("short"), "bfloat16", fused_blocks=True)


def test_float32_and_builds_without_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        config = CONFIGS["seed"]
        log_temperature = type("Parameter", (), {"device": torch.device("cuda", 0)})

    with pytest.raises(SleepfmError, match=r"--precision is float32\. Add --precision bfloat16"):
        check_fused_blocks(OnCuda(), "float32")  # type: ignore[arg-type]
    monkeypatch.setattr(fused_blocks, "has_kernels", lambda device: False)
    with pytest.raises(SleepfmError, match=r"no CUDA kernels for this GPU\. Install the CUDA toolkit"):
        check_fused_blocks(OnCuda(), "bfloat16")  # type: ignore[arg-type]


def test_the_command_refuses(planted, tmp_path, capsys) -> None:
    options = ["--preset", "tiny", "--batch-size", "8", "--threads", "1", "--max-steps", "1", "--device", "cpu"]
    assert train.cli([str(planted), str(tmp_path / "run"), *options]) == 0
    words = ["--precision", "bfloat16", "--fused-blocks", "--device", "cpu"]
    assert embed.cli([str(tmp_path / "run"), str(planted), str(tmp_path / "embeddings"), *words]) == 1
    assert "--fused-blocks is for the published network" in capsys.readouterr().err
    assert not (tmp_path / "embeddings").exists()


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_embeds_on_cuda_as_well_as_torch_does(compiled: bool) -> None:
    model = published(7)
    batch = Batch({"respiratory": torch.randn(9, 7, 7680)}, {"respiratory": torch.ones(9, 7, dtype=torch.bool)})
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.compile's own
        truth = embedder(model, "float32")(batch)[0]
        model, there = model.cuda(), batch.to(torch.device("cuda"))
        theirs = embedder(model, "bfloat16")(there)[0]
        ours, mask = embedder(model, "bfloat16", fused_blocks=True, compiled=compiled)(there)
    assert bool(mask.all())
    assert error_of(ours.cpu(), truth) < 1.1 * error_of(theirs.cpu(), truth)
