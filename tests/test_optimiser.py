"""The optimiser of a run: the fused form takes the steps of torch's plain one, and goes on from any checkpoint."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_pulls_kernels_and_matrices_and_nothing_else(name):
    layers = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 5), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    layers.log_temperature = torch.nn.Parameter(torch.tensor(1.5))
    optimiser = build_optimiser(layers, settings(optimiser=name))
    start = {key: value.detach().clone() for key, value in layers.named_parameters()}
    for p in layers.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for key, p in layers.named_parameters():
        rest = 1 - 0.05 * 0.02 if key in ("0.weight", "2.weight") else 1.0
        torch.testing.assert_close(p.detach(), rest * start[key], rtol=1e-6, atol=0)


def test_parameters_of_half_precision_are_refused():
    with pytest.raises(TypeError, match=r"torch\.bfloat16; small updates would be lost"):
        build_optimiser(model().to(torch.bfloat16), dataclasses.replace(settings(), optimiser="adamw"))


PLACES = """
import getpass, os, pathlib, sys, tempfile
case, folder = sys.argv[1:]
os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
if case == "nobody":
    def getuser():
        raise KeyError("getpwuid(): uid not found: 12345")
    getpass.getuser = getuser
if case == "no folder":
    tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
if case == "full":  # of inodes
    own = tempfile.gettempdir()
    make = os.mkdir
    def mkdir(path, *rest, **options):
        if os.fspath(path).startswith(own + os.sep):
            raise OSError(28, "No space left on device", os.fspath(path))
        make(path, *rest, **options)
    os.mkdir = mkdir
import torch
from sleepfm_fast.train import Config
from sleepfm_fast.training.optimiser import build_optimiser
from sleepfm_fast.training.settings import resolve
build_optimiser(torch.nn.Linear(2, 3), resolve(Config(pathlib.Path("s"), pathlib.Path("r"))))
print(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
"""


@pytest.mark.parametrize("case", ["nobody", "no folder", "full", "usual"])
def test_an_optimiser_where_the_user_has_no_name_or_temporary_files_no_place(case, tmp_path):
    """Torch makes a folder for compiled code, named by the user, before its first optimiser."""
    done = subprocess.run(
        [sys.executable, "-c", PLACES, case, tmp_path],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    named = [path.name for path in tmp_path.iterdir()]
    if case == "nobody":
        assert named == [f"torchinductor_{os.getuid()}"]
    elif case == "usual":
        assert len(named) == 1
    else:
        assert not named
