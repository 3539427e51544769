"""A run's checkpoint or configuration of which an entry has changed: it is refused by the file's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.pretrained import load_model, trained_config
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.train import cli

OPTIONS = ("--preset", "tiny", "--optimiser", "adamw", "--batch-size", "16", "--max-steps", "3")


@pytest.fixture(scope="module")
def trained(cohort_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert cli([str(cohort_store), str(run), *OPTIONS, "--epochs", "1"]) == 0
    return run


def change(path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Write a checkpoint again with its tensors and its state changed."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        state = json.loads(file.metadata()["state"])
    edit(tensors, state)
    save_file(tensors, str(path), {"format": "pt", "state": json.dumps(state)})


def shorten(tensors: dict[str, Any], prefix: str) -> None:
    name = next(name for name in sorted(tensors) if name.startswith(prefix) and tensors[name].numel() > 1)
    tensors[name] = tensors[name].reshape(-1)[:-1].clone()


@pytest.mark.parametrize(
    "edit",
    [
        lambda t, s: s.pop("optimiser"),
        lambda t, s: s.update(optimiser=[]),
        lambda t, s: s["optimiser"].pop("groups"),
        lambda t, s: s["optimiser"]["groups"].clear(),
        lambda t, s: s.pop("epoch"),
        lambda t, s: s.update(position="3"),
        lambda t, s: s.update(step=None),
        lambda t, s: s.update(step=-4),
        lambda t, s: s.update(loss_terms=None),
        lambda t, s: s.update(stopped_early=3),
        lambda t, s: s.update(metrics_bytes="many"),
        lambda t, s: t.pop("rng/cpu"),
        lambda t, s: shorten(t, "rng/cpu"),
        lambda t, s: shorten(t, "model/"),
        lambda t, s: t.pop(next(name for name in t if name.startswith("model/"))),
    ],
)
def test_a_checkpoint_of_another_kind_is_named(trained, cohort_store, tmp_path, capsys, edit):
    run = shutil.copytree(trained, tmp_path / "run")
    change(run / "last.safetensors", edit)
    assert cli([str(cohort_store), str(run), *OPTIONS[:-1], "5", "--epochs", "2", "--resume"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: the checkpoint {run / 'last.safetensors'} is damaged")
    assert "--resume then begins at the first step" in error


def test_a_folder_in_the_place_of_a_checkpoint_is_named(trained, cohort_store, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "last.safetensors").unlink()
    (run / "last.safetensors").mkdir()
    assert cli([str(cohort_store), str(run), *OPTIONS[:-1], "5", "--epochs", "2", "--resume"]) == 1
    assert f"the checkpoint {run / 'last.safetensors'} is damaged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("entry", "value"), [("initialised_from", -1), ("ranks", "two"), ("changes", {}), ("overlap", None)]
)
def test_entries_of_a_configuration_of_another_kind_are_named(trained, cohort_store, tmp_path, capsys, entry, value):
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, entry: value}))
    assert cli([str(cohort_store), str(run), *OPTIONS[:-1], "5", "--epochs", "2", "--resume"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {run / 'config.json'} is damaged: the entry '{entry}'")


def with_model(trained, run, entry, values):
    """A copy of the run whose configuration describes another network."""
    shutil.copytree(trained, run)
    config = json.loads((run / "config.json").read_text())
    config["model"][entry] |= values
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("modalities", {"brain": -1}),
        ("modalities", {"a.b": 3}),
        ("modalities", {"keys": 3}),
        ("encoder", {"design": "deep"}),
        ("encoder", {"channels": [16, 32, 64]}),
        ("encoder", {"kernels": [24, 7, 5, -3]}),
        ("encoder", {"strides": [8, 4, 4, 0]}),
        ("encoder", {"dim": 0}),
        ("encoder", {"dropout": 1.5}),
    ],
)
def test_a_network_that_cannot_be_is_named(trained, tmp_path, entry, values):
    run = with_model(trained, tmp_path / "run", entry, values)
    with pytest.raises(SleepfmError, match=rf"config\.json is damaged: the entry .model\.{entry}"):
        trained_config(RunDirectory(run))


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("modalities", {"brain": 10**9}),
        ("encoder", {"channels": [10**6] * 4}),
        ("encoder", {"dim": 10**9}),
        ("encoder", {"segments": 10**9}),
    ],
)
def test_a_configuration_takes_no_memory_that_its_weights_do_not(trained, tmp_path, entry, values):
    run = with_model(trained, tmp_path / "run", entry, values)
    with pytest.raises(SleepfmError, match=r"best\.safetensors holds another network: .* in the model"):
        load_model(run, "cpu")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_named(trained, tmp_path, dtype):
    run = shutil.copytree(trained, tmp_path / "run")
    name = "model/encoders.brain.fc.bias"
    change(run / "best.safetensors", lambda t, s: t.update({name: t[name].to(dtype)}))
    with pytest.raises(SleepfmError, match=f"fc.bias has the type {str(dtype)[6:]} there, floating-point numbers"):
        load_model(run, "cpu")


def test_an_unchanged_copy_goes_on(trained, cohort_store, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    change(run / "last.safetensors", lambda t, s: None)
    assert cli([str(cohort_store), str(run), *OPTIONS[:-1], "5", "--epochs", "2", "--resume"]) == 0
