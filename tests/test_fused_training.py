"""Training with the MBConv blocks as kernels of our own on CUDA: the network around them, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from emulated_mbconv_train import emulate_training
from test_inference import CHANNELS, CONFIGS, N, batch_of, with_gaps
from torch import Tensor, nn

from sleepfm_fast import reference, train
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.model import fused_blocks, fused_training
from sleepfm_fast.model.fused_training import check_fused_training, fuse_training
from sleepfm_fast.model.mbconv_blocks import MBConvBlock, OfBatch, track, track_all

# Channels that the kernels take, a residual block and two that halve, a pool behind the second stage.
SHORT = dataclasses.replace(CONFIGS["short"], channels=(8, 8, 16, 32), depth=(2, 1))
# The second stage's channels are no multiple of 8: torch's layers between ours.
MIXED = dataclasses.replace(CONFIGS["short"], channels=(8, 8, 12, 16), depth=(2, 2))


def new(config: object) -> SleepModel:
    torch.manual_seed(0)
    model = SleepModel(CHANNELS, config)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model.train()


def in_torch(x: Tensor, *weights: Tensor, stride: int, eps: float) -> tuple[Tensor, Tensor]:
    """The twin, rounded where the op rounds."""
    y, statistics = reference.mbconv_train(
        x.double(), *(w.double() for w in weights), stride=stride, eps=eps, rounded=True
    )
    return y.to(x.dtype), statistics


def gradients(model: SleepModel, bfloat16: bool, n_clips: int = 5) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Embeddings, mask and gradients of a weighted sum of them."""
    torch.manual_seed(1)
    batch = with_gaps(batch_of(n_clips))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        embeddings, mask = model(batch.x, batch.present)
    weight = torch.randn(embeddings.shape)
    (embeddings.float() * weight).sum().backward()
    return embeddings.detach(), mask, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def by_layers(model: SleepModel) -> SleepModel:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, MBConvBlock):
            module.fuse = False
    return model


def norm(tensors: dict[str, Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors.values()) ** 0.5


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return norm({name: a[name] - b[name] for name in b}) / norm(b)


@pytest.mark.parametrize("config", [SHORT, MIXED], ids=["short", "mixed"])
def test_trains_as_well_as_torch_does(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings, gradients and running statistics against float32, and what torch makes of them under autocast."""
    monkeypatch.setattr(fused_training, "mbconv_train", in_torch)
    model = new(config)
    exact, theirs, ours = by_layers(model), by_layers(model), copy.deepcopy(model)
    fuse_training(ours)
    truth, mask, right = gradients(exact, False)
    of_torch, _, their_gradients = gradients(theirs, True)
    embeddings, our_mask, our_gradients = gradients(ours, True)
    assert torch.equal(our_mask, mask)
    assert not bool(mask.all())
    assert list(ours.state_dict()) == list(model.state_dict())
    error, of_theirs = (float((e[mask] - truth[mask]).norm() / truth[mask].norm()) for e in (embeddings, of_torch))
    assert error < 1.2 * of_theirs + 0.01
    assert our_gradients.keys() == right.keys()
    assert distance(our_gradients, right) < 1.2 * distance(their_gradients, right) + 0.02
    for name, value in exact.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0.05, atol=0.03, msg=name)
        if "num_batches" in name:
            assert torch.equal(ours.state_dict()[name], value), name


def test_the_kernels_train_as_the_twin_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new(SHORT)
    twin, ours = copy.deepcopy(model), copy.deepcopy(model)
    for network in (twin, ours):
        fuse_training(network)
    with monkeypatch.context() as patch:
        patch.setattr(fused_training, "mbconv_train", in_torch)
        expected, _, right = gradients(twin, True, 3)
    emulated = emulate_training(monkeypatch)
    embeddings, _, got = gradients(ours, True, 3)
    assert set(emulated.counts) == {"expansion_sums", "depthwise", "activate", "gradient_sums", "depthwise_backward"}
    assert float((embeddings - expected).norm() / expected.norm()) < 0.01
    assert distance(got, right) < 0.03


def test_every_covered_block_goes_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def noted(x: Tensor, *weights: Tensor, stride: int, eps: float) -> tuple[Tensor, Tensor]:
        calls.append((x.shape[2], len(weights[8]), stride))
        return in_torch(x, *weights, stride=stride, eps=eps)

    monkeypatch.setattr(fused_training, "mbconv_train", noted)
    model = SleepModel({"ecg": 1}, dataclasses.replace(PRESETS["seed"], dropout=0.0)).train()
    fuse_training(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model({"ecg": torch.randn(2, 1, 1024)})
    channels, depth = PRESETS["seed"].channels, PRESETS["seed"].depth
    assert len(calls) == sum(depth)
    last = [call for call in calls if call[2] == 2]
    assert last == [(a, b, 2) for a, b in itertools.pairwise(channels[:-1])]


def test_evaluation_and_hooks_see_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(fused_training, "mbconv_train", refused)
    model = new(SHORT)
    ours = copy.deepcopy(model)
    fuse_training(ours)
    x = {name: torch.randn(3, n, N) for name, n in CHANNELS.items()}
    with torch.no_grad():
        assert torch.equal(ours.eval()(x)[0], model.eval()(x)[0])
    seen: list[torch.Size] = []
    for module in ours.modules():
        if isinstance(module, MBConvBlock):
            module.conv2.register_forward_hook(lambda _module, _inputs, y: seen.append(y.shape))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours.train()(x)
    assert len(seen) == len(CHANNELS) * sum(SHORT.depth)


def test_a_hooked_or_another_pool_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_training, "mbconv_train", in_torch)
    model = new(SHORT)
    fuse_training(model)
    x = {name: torch.randn(3, n, N) for name, n in CHANNELS.items()}
    seen: list[torch.Size] = []
    for encoder in model.encoders.values():
        encoder.pool.register_forward_hook(lambda _module, _inputs, y: seen.append(y.shape))  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        assert len(seen) == len(CHANNELS)
        for encoder in model.encoders.values():
            encoder.pool = nn.AvgPool1d(3, stride=1, padding=1)
        embeddings, _ = model(x)
    assert bool(embeddings.isfinite().all())


class Wrapped(nn.Module):
    """As checkpointing and adapters put around a layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return 2 * y


@pytest.mark.parametrize("what", ["stage", "block", "norm", "group norm"])
def test_what_stands_in_a_layers_place_is_called(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_training, "mbconv_train", in_torch)
    model = new(SHORT)
    for encoder in model.encoders.values():
        stage = encoder.stage2
        if what == "stage":
            encoder.stage2 = Wrapped(stage)
        elif what == "block":
            stage.stack[0] = Wrapped(stage.stack[0])
        else:
            stage.bn = Wrapped(stage.bn) if what == "norm" else nn.GroupNorm(4, stage.bn.num_features)
    ours = copy.deepcopy(model)
    fuse_training(ours)
    expected, _, right = gradients(by_layers(model), True)
    embeddings, _, got = gradients(ours, True)
    assert float((embeddings - expected).norm() / expected.norm()) < 0.1
    assert distance(got, right) < 0.15


def test_a_hook_sees_channels_before_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_training, "mbconv_train", in_torch)
    seen: list[torch.Size] = []
    model = new(SHORT)
    for encoder in model.encoders.values():
        encoder.stage2.bn.register_forward_hook(  # type: ignore[union-attr]
            lambda _module, inputs, y: seen.extend((inputs[0].shape, y.shape))
        )
    gradients(by_layers(model), True)
    expected, seen[:] = list(seen), []
    fuse_training(model)
    gradients(model, True)
    assert seen == expected


def test_dropout_is_the_blocks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_training, "mbconv_train", in_torch)
    model = new(dataclasses.replace(SHORT, dropout=1.0))  # all of a residual block's projection is dropped
    fuse_training(model)
    block = model.encoders["ecg"].stage2.stack[0]  # type: ignore[union-attr]
    x = torch.randn(2, 40, 8).bfloat16()
    assert torch.equal(fused_training.fused(block, x, []), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("momenta", [(0.1, 0.1, 0.1), (0.1, 0.3, 0.1), (0.1, None, None), (None, None, None), ()])
@pytest.mark.parametrize("counted", [True, False])
def test_running_statistics_of_all_blocks_follow_as_those_of_each(
    momenta: tuple[float | None, ...], counted: bool
) -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(8 * (k + 1), momentum=momentum) for k, momentum in enumerate(momenta)]
    for own in norms:
        if not counted:
            own.num_batches_tracked = None
    alone = copy.deepcopy(norms)
    for n_values in (50, 2):
        seen = [OfBatch(own, torch.rand(2, own.num_features, dtype=torch.float64), n_values) for own in norms]
        for own, of in zip(alone, seen, strict=True):
            track(own, of.statistics.clone(), of.n_values)
        track_all(seen)
    for own, other in zip(norms, alone, strict=True):
        assert own.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(own.state_dict()[name], value) for name, value in other.state_dict().items())
        assert own.momentum is None or bool((own.running_mean != 0).all())


def test_refusals_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        config = CONFIGS["seed"]
        log_temperature = type("Parameter", (), {"device": torch.device("cuda", 0)})

    def check(precision: str = "bfloat16", compiled: bool = False, synchronised: bool = False) -> None:
        check_fused_training(
            OnCuda(),  # type: ignore[arg-type]
            precision,  # type: ignore[arg-type]
            compiled=compiled,
            synchronised=synchronised,
        )

    monkeypatch.setattr(fused_blocks, "has_kernels", lambda device: True)
    check()
    with pytest.raises(SleepfmError, match=r"--precision is float32\. Add --precision bfloat16"):
        check("float32")
    with pytest.raises(SleepfmError, match=r"--compile and --fused-blocks .* give one of them"):
        check(compiled=True)
    with pytest.raises(SleepfmError, match=r"--batch-norm synchronised .* give one of them"):
        check(synchronised=True)


def test_the_command_refuses(planted, tmp_path, capsys) -> None:
    options = ["--batch-size", "8", "--max-steps", "1", "--device", "cpu", "--precision", "bfloat16", "--fused-blocks"]
    assert train.cli([str(planted), str(tmp_path / "tiny"), "--preset", "tiny", *options]) == 1
    assert "--fused-blocks is for the published network" in capsys.readouterr().err
    assert train.cli([str(planted), str(tmp_path / "seed"), *options]) == 1
    assert "--fused-blocks runs on CUDA, this is cpu (where blocks are fused anyway)" in capsys.readouterr().err
    assert not (tmp_path / "seed").exists()


@pytest.mark.cuda
def test_trains_on_cuda_as_well_as_torch_does() -> None:
    torch.manual_seed(0)
    model = SleepModel({"respiratory": 7}, dataclasses.replace(PRESETS["seed"], dropout=0.0)).cuda().train()
    x = torch.randn(16, 7, 7680, device="cuda")
    weight = torch.randn(1, 16, 512, device="cuda")

    def step(network: SleepModel, bfloat16: bool) -> dict[str, Tensor]:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bfloat16):
            embeddings, _ = network({"respiratory": x})
        (embeddings.float() * weight).sum().backward()
        return {name: p.grad.float() for name, p in network.named_parameters() if p.grad is not None}

    right = step(copy.deepcopy(model), False)
    theirs = step(copy.deepcopy(model), True)
    ours = copy.deepcopy(model)
    fuse_training(ours)
    assert distance(step(ours, True), right) < 1.2 * distance(theirs, right)
