"""The encoders: the published architecture tensor by tensor, absent channels and modalities, reproducibility."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from sleepfm_fast.encoder import PRESETS, EfficientNet1d, EncoderConfig, SleepModel, build_encoder
from sleepfm_fast.model.mbconv_blocks import MBConvBlock

# From the table of the published network: stage, input channels, output channels, names of its blocks.
STAGES = [
    ("stage2", 32, 16, ("s2",)),
    ("stage3", 16, 24, ("s0", "s3")),
    ("stage4", 24, 40, ("s0", "s3")),
    ("stage5", 40, 80, ("s0", "s1", "s4")),
    ("stage6", 80, 112, ("s0", "s1", "s4")),
    ("stage7", 112, 192, ("s0", "s1", "s4")),
    ("stage8", 192, 320, ("s0", "s1", "s4")),
]
N_PARAMETERS = {10: 3_470_904, 2: 3_470_136, 7: 3_470_616, 5: 3_470_424, 1: 3_470_040, 3: 3_470_232}
LAYOUT = Path(os.environ.get("SLEEPFM_RESEARCH", "../shared/research")) / "seed-checkpoint-layout.txt"


def published_shapes(n_channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def batch_norm(name: str, n: int) -> None:
        for field in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{field}"] = (n,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def weights(name: str, shape: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    weights("stage1", (32, n_channels, 3))
    batch_norm("b0", 32)
    for stage, n_in, n_out, blocks in STAGES:
        for block in blocks:
            prefix = f"{stage}.stack.{block}"
            weights(f"{prefix}.conv1", (6 * n_in, n_in, 1))
            weights(f"{prefix}.conv2", (6 * n_in, 1, 3))
            weights(f"{prefix}.conv3", (n_out if block == blocks[-1] else n_in, 6 * n_in, 1))
            batch_norm(f"{prefix}.b0", 6 * n_in)
            batch_norm(f"{prefix}.b1", 6 * n_in)
        batch_norm(f"{stage}.bn", n_out)
    weights("stage9", (1280, 320, 1))
    weights("fc", (512, 1280))
    return shapes


def restated(state: dict[str, torch.Tensor], x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Run the published network in evaluation, written out over its state dict."""

    def conv(x, name, **options):
        return functional.conv1d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"][:, None], state[f"{name}.running_var"][:, None]
        return (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]

    x = norm(conv(x, "stage1", stride=2, padding=1), "b0")
    lengths.append(x.shape[2])
    for stage, n_in, _, blocks in STAGES:
        for block in blocks:
            last = block == blocks[-1]
            prefix = f"{stage}.stack.{block}"
            y = norm(conv(x, f"{prefix}.conv1"), f"{prefix}.b0").clamp(0, 6)
            y = conv(y, f"{prefix}.conv2", stride=2 if last else 1, padding=1, groups=6 * n_in)
            y = conv(norm(y, f"{prefix}.b1").clamp(0, 6), f"{prefix}.conv3")
            x = y if last else x + y
        x = norm(x, f"{stage}.bn")
        lengths.append(x.shape[2])
        if stage in ("stage3", "stage6"):
            padded = functional.pad(x, (1, 1), value=float("-inf"))
            x = torch.stack([padded[:, :, i : i + x.shape[2]] for i in range(3)]).amax(0)
    x = conv(x, "stage9").mean(2).clamp(min=0)
    return x @ state["fc.weight"].T + state["fc.bias"]


def unlike_initialisation(encoder: torch.nn.Module) -> None:
    """Give running statistics and affine terms that a swapped or forgotten layer would show."""
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.randn_like(tensor) * 0.3 + (1 if ".b" in name or name.startswith("b0") else 0))


@pytest.mark.parametrize("n_channels", sorted(N_PARAMETERS))
def test_seed_has_the_published_tensors(n_channels):
    encoder = build_encoder(n_channels, PRESETS["seed"])
    assert isinstance(encoder, EfficientNet1d)
    found = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert found == published_shapes(n_channels)
    assert len(found) == 318
    assert sum(p.numel() for p in encoder.parameters()) == N_PARAMETERS[n_channels]


def test_published_table_is_the_layout_file():
    if not LAYOUT.is_file():
        pytest.skip(f"{LAYOUT} is not there; SLEEPFM_RESEARCH may name its folder")
    rows = [line.split("\t") for line in LAYOUT.read_text().splitlines() if line.startswith("module.")]
    listed = {
        name.removeprefix("module."): tuple(json.loads(f"[{shape.strip('()').rstrip(',')}]")) for name, shape in rows
    }
    assert listed == published_shapes(7)


def test_seed_computes_the_published_network():
    torch.manual_seed(0)
    encoder = build_encoder(3, PRESETS["seed"]).double().eval()
    unlike_initialisation(encoder)
    x = torch.randn(3, 3, 7680, dtype=torch.float64)
    lengths: list[int] = []
    expected = restated(encoder.state_dict(), x, lengths)
    assert lengths == [3840, 1920, 960, 480, 240, 120, 60, 30]
    assert expected.std() > 1e-3
    with torch.no_grad():
        found = encoder(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_seed_drops_out_in_residual_blocks_and_before_the_last_layer_only():
    encoder = build_encoder(1, PRESETS["seed"])
    for module in encoder.modules():
        if isinstance(module, MBConvBlock):
            module.fuse = False  # the fused op drops by itself: tests/test_mbconv.py
    live = []
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(lambda m, i, o, name=name: live.append(name))
    torch.manual_seed(0)
    encoder(torch.randn(2, 1, 7680))
    residual = [f"{stage}.stack.{b}.drop" for stage, _, _, blocks in STAGES for b in blocks[:-1]]
    assert live == [*residual, "drop"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_all_present_is_the_plain_network_bit_for_bit(preset):
    torch.manual_seed(0)
    encoder = build_encoder(4, PRESETS[preset]).eval()
    x = torch.randn(3, 4, 7680)
    assert torch.equal(encoder(x), encoder(x, torch.ones(3, 4, dtype=torch.bool)))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_absent_channels_are_left_out_and_the_rest_scaled(preset):
    torch.manual_seed(0)
    encoder = build_encoder(4, PRESETS[preset]).double().eval()
    x = torch.randn(2, 4, 7680, dtype=torch.float64)
    present = torch.tensor([[True, False, True, True], [False, True, False, False]])
    spoiled = x.clone()
    spoiled[~present] = float("nan")
    by_hand = x.clone()
    by_hand[~present] = 0
    by_hand[0] *= 4 / 3
    by_hand[1] *= 4
    found = encoder(spoiled, present)
    torch.testing.assert_close(found, encoder(by_hand), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, encoder(x))
    # ... and neither do they reach the gradients
    encoder.train()
    encoder(spoiled, present).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_embedding_does_not_depend_on_batch_mates(preset):
    torch.manual_seed(0)
    model = SleepModel({"respiratory": 3, "ecg": 1}, PRESETS[preset]).eval()
    x = {"respiratory": torch.randn(6, 3, 7680), "ecg": torch.randn(6, 1, 7680)}
    present = {"respiratory": torch.rand(6, 3) < 0.6, "ecg": torch.tensor([[1], [1], [0], [1], [1], [0]]).bool()}
    present["respiratory"][0] = torch.tensor([True, False, True])
    with torch.no_grad():
        together, mask = model(x, present)
        mates = {name: torch.cat((clip[:1], torch.full_like(clip[1:3], 1e6))) for name, clip in x.items()}
        among_others, _ = model(mates, {name: p[:3] for name, p in present.items()})
        for i in range(6):
            alone, its_mask = model(
                {name: clip[i : i + 1] for name, clip in x.items()}, {name: p[i : i + 1] for name, p in present.items()}
            )
            torch.testing.assert_close(alone[:, 0], together[:, i], rtol=1e-5, atol=1e-6)
            assert torch.equal(its_mask[:, 0], mask[:, i])
    torch.testing.assert_close(among_others[:, 0], together[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_missing_modality_never_reaches_the_encoder(preset):
    config = dataclasses.replace(PRESETS[preset], dropout=0.0)
    torch.manual_seed(0)
    model = SleepModel({"brain": 2, "ecg": 1}, config)
    twin = SleepModel({"brain": 2, "ecg": 1}, config)
    twin.load_state_dict(model.state_dict())
    x = {"brain": torch.randn(5, 2, 7680), "ecg": torch.randn(5, 1, 7680)}
    x["ecg"][1] = float("nan")
    present = {"brain": torch.ones(5, 2, dtype=torch.bool), "ecg": torch.tensor([[1], [0], [1], [1], [0]]).bool()}
    embeddings, mask = model(x, present)
    assert mask.tolist() == [[True] * 5, [True, False, True, True, False]]
    assert torch.equal(embeddings[1][~mask[1]], torch.zeros(2, config.dim))
    only, _ = twin.embed_modality("ecg", x["ecg"][mask[1]])
    torch.testing.assert_close(embeddings[1][mask[1]], only, rtol=1e-5, atol=1e-6)
    # batch norm in training saw the three real clips and nothing else
    for name, buffer in model.encoders["ecg"].named_buffers():
        torch.testing.assert_close(buffer, dict(twin.encoders["ecg"].named_buffers())[name], rtol=1e-5, atol=1e-6)
    embeddings.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.encoders.parameters())


def test_modality_of_a_single_clip_is_left_out_in_training_only():
    torch.manual_seed(0)
    model = SleepModel({"brain": 2, "ecg": 1}, PRESETS["tiny"])
    before = {name: buffer.clone() for name, buffer in model.encoders["ecg"].named_buffers()}
    x = {"brain": torch.randn(3, 2, 7680), "ecg": torch.randn(3, 1, 7680)}
    present = {"ecg": torch.tensor([[False], [True], [False]])}
    embeddings, mask = model(x, present)
    assert mask.tolist() == [[True] * 3, [False] * 3]
    assert not embeddings[1].any()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.encoders["ecg"].named_buffers())
    embeddings, mask = model.eval()(x, present)
    assert mask[1].tolist() == [False, True, False]
    assert embeddings[1, 1].any()
    _, mask = model(x, {"ecg": torch.zeros(3, 1, dtype=torch.bool)})
    assert not mask[1].any()


def train_three_steps() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model = SleepModel({"respiratory": 3, "brain": 2, "ecg": 1}, PRESETS["tiny"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        x = {name: torch.randn(16, n, 7680) for name, n in model.modalities.items()}
        embeddings, _ = model(x)
        unit = functional.normalize(embeddings, dim=2)
        loss = functional.cross_entropy(unit[0] @ unit[1].T + unit[1] @ unit[2].T, torch.arange(16))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.state_dict()


def test_tiny_trains_to_the_same_bits():
    first, second = train_three_steps(), train_three_steps()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_model_is_rebuilt_from_its_description():
    model = SleepModel({"respiratory": 3, "brain": 2}, PRESETS["tiny"])
    rebuilt = SleepModel.from_description(json.loads(json.dumps(model.describe())))
    assert rebuilt.config == model.config
    rebuilt.load_state_dict(model.state_dict())
    assert model.log_temperature.item() == 0
    assert SleepModel({"ecg": 1}, PRESETS["tiny"], log_temperature=2).log_temperature.item() == 2
    assert model.n_parameters() == sum(p.numel() for p in model.parameters())


def test_misuse_is_refused():
    model = SleepModel({"brain": 2}, PRESETS["tiny"])
    with pytest.raises(ValueError, match="2 channels"):
        model({"brain": torch.zeros(2, 3, 7680)})
    with pytest.raises(ValueError, match="no clips for brain"):
        model({"ecg": torch.zeros(2, 1, 7680)})
    with pytest.raises(ValueError, match="must be bool"):
        model({"brain": torch.zeros(2, 2, 7680)}, {"brain": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="entries in channels"):
        EncoderConfig(depth=(1,))
