"""The optimiser of a run: the fused form takes the steps of torch's plain one, and goes on from any checkpoint."""

import dataclasses

import pytest
import torch

from sleepfm_fast.rundir import pack_optimiser, unpack_optimiser
from sleepfm_fast.train import Config
from sleepfm_fast.training.optimiser import build_optimiser, parameter_groups
from sleepfm_fast.training.settings import resolve


def settings(**options):
    return resolve(Config(**{"lr": 0.05, "weight_decay": 0.02, **options}))


def plain(model, config):
    """Torch's own, operation by operation."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, foreach=False)
    return torch.optim.AdamW(groups, lr=config.lr, foreach=False)


def model():
    torch.manual_seed(0)
    return torch.nn.ModuleDict({name: torch.nn.Linear(4, 2) for name in ("brain", "ecg")}).double()


def step(model, optimiser, names, k):
    """One step in which only the modalities ``names`` are there."""
    generator = torch.Generator().manual_seed(k)
    optimiser.zero_grad(set_to_none=True)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    sum(model[name](x).square().mean() for name in names).backward()
    optimiser.step()


STEPS = [("brain",), ("brain", "ecg"), ("ecg",), ("brain", "ecg")]


@pytest.mark.parametrize(
    "options",
    [{"optimiser": "sgd"}, {"optimiser": "sgd", "momentum": 0.0}, {"optimiser": "adamw"}],
    ids=["sgd", "sgd without momentum", "adamw"],
)
def test_steps_are_those_of_the_plain_optimiser_where_a_modality_is_missing_at_first(options):
    ours, theirs, config = model(), model(), settings(**options)
    optimisers = build_optimiser(ours, config), plain(theirs, config)
    assert all(group["fused"] for group in optimisers[0].param_groups)
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    for k, names in enumerate(STEPS):
        for which, optimiser in zip((ours, theirs), optimisers, strict=True):
            step(which, optimiser, names, k)
        if k == 0:  # without a gradient nothing moves, nor decays
            assert torch.equal(ours["ecg"].weight, start["ecg.weight"])
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert not torch.equal(a, start[name])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_of_the_plain_optimiser_is_continued(name):
    """Also one in which a modality had no gradient yet: its parameters have no moments there."""
    ours, theirs, config = model(), model(), settings(optimiser=name)
    before = plain(theirs, config)
    step(theirs, before, STEPS[0], 0)
    ours.load_state_dict(theirs.state_dict())
    optimiser = build_optimiser(ours, config)
    tensors, state = pack_optimiser(before)
    assert not any(group["fused"] for group in state["groups"])
    unpack_optimiser(optimiser, {name: moment.clone() for name, moment in tensors.items()}, state)
    assert all(group["fused"] for group in optimiser.param_groups), "how a step is computed is no part of the state"
    for k, names in enumerate(STEPS[1:], start=1):
        step(ours, optimiser, names, k)
        step(theirs, before, names, k)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_parameters_of_half_precision_are_refused():
    with pytest.raises(TypeError, match=r"torch\.bfloat16; small updates would be lost"):
        build_optimiser(model().to(torch.bfloat16), dataclasses.replace(settings(), optimiser="adamw"))
