"""Checkpoints in the authors' layout: read without running them, checked tensor by tensor, turned into run folders."""

from __future__ import annotations

import math
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from called import called, last_json

from sleepfm_fast import embed, import_checkpoint
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.model.seed_checkpoint import read_seed_checkpoint, write_run
from sleepfm_fast.rundir import RunDirectory, read_checkpoint

STATES = {"respiratory": "respiratory_state_dict", "brain": "sleep_stages_state_dict", "ecg": "ekg_state_dict"}


@pytest.fixture(autouse=True)
def _emptied(tmp_path: Path) -> Iterator[None]:
    """Each test writes the published network, 41 MB, at least once: together 2 GB, which pytest would keep."""
    yield
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()


@pytest.fixture(scope="module")
def model() -> SleepModel:
    torch.manual_seed(0)
    model = SleepModel({"respiratory": 3, "brain": 5, "ecg": 1}, PRESETS["seed"], log_temperature=1.25)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model.eval()


def content_of(model: SleepModel, prefix: str = "module.") -> dict:
    """As the authors' pretraining script saves it, optimiser included."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    content = {
        "epoch": 7,
        "temperature": 1.25,
        "optim_dict": optimiser.state_dict(),
        "scheduler_dict": {"step_size": 5, "gamma": 0.1},
        "best_loss": 2.5,
        "loss": 2.6,
    }
    for modality, name in STATES.items():
        content[name] = {prefix + key: value for key, value in model.encoders[modality].state_dict().items()}
    return content


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_the_model_comes_back(model, tmp_path, prefix):
    found = read_seed_checkpoint(write(tmp_path / "best.pt", content_of(model, prefix)))
    assert (found.montage, found.epoch, found.best_loss) == ("cinc2018", 7, 2.5)
    assert list(found.model.modalities) == ["respiratory", "brain", "ecg"]
    assert not found.model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_command_writes_a_run_that_embed_reads(model, tmp_path, cohort_store, capsys):
    path = write(tmp_path / "best.pt", content_of(model))
    run = tmp_path / "run"
    assert import_checkpoint.cli([str(path), str(run)]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["montage"] == "cinc2018"
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    assert sorted(p.name for p in run.iterdir()) == ["best.safetensors", "config.json"]
    assert embed.cli([str(run), str(cohort_store), str(tmp_path / "emb")]) == 0
    assert last_json(capsys.readouterr().out)["dim"] == 512


def test_an_import_given_again_is_finished_and_another_is_refused(model, tmp_path, capsys):
    path, run = write(tmp_path / "best.pt", content_of(model)), tmp_path / "run"

    def call(checkpoint, folder=run):
        return called(import_checkpoint.cli, capsys, checkpoint, folder)

    status, first, err = call(path)
    assert (status, "is already finished" in err) == (0, False)
    whole = {file: file.read_bytes() for file in run.iterdir()}
    (run / "results").mkdir()  # what embed and probe leave there does not matter
    moved = tmp_path / "elsewhere" / "authors.pt"
    moved.parent.mkdir()
    path.rename(moved)
    status, record, err = call(moved)
    assert (status, record) == (0, first)
    assert f"{run} is already finished: this same command wrote it." in err
    # A kill between the two files.
    (run / "best.safetensors").unlink()
    status, _, err = call(moved)
    assert (status, "is already finished" in err) == (0, False)
    assert (run / "config.json").read_bytes() == whole[run / "config.json"]
    whole = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert "is already finished" in call(moved)[2]

    content = content_of(model)
    content["temperature"] = content["temperature"] + 1
    status, _, err = call(write(tmp_path / "other.pt", content))
    assert (status, f"{run} holds a run of other weights than {tmp_path / 'other.pt'} and is not" in err) == (1, True)
    status, _, err = call(write(tmp_path / "later.pt", content_of(model) | {"epoch": 9}))
    assert (status, f"{run} holds another run and is not overwritten. Name a new folder." in err) == (1, True)
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == whole
    (run / "best.safetensors").write_bytes(whole[run / "best.safetensors"][:-9])
    status, _, err = call(moved)
    assert (status, "best.safetensors is damaged" in err) == (1, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("a")
    assert call(moved, tmp_path / "mine")[0] == 1
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["a.txt"]


def test_the_run_has_the_authors_input_and_the_montage_of_the_channels(tmp_path):
    torch.manual_seed(0)
    paper = SleepModel({"respiratory": 7, "brain": 10, "ecg": 2}, PRESETS["seed"], log_temperature=0.5)
    content = content_of(paper) | {"epoch": torch.tensor([3]), "best_loss": None}
    content["ekg_state_dict"] = {name: value.double() for name, value in content["ekg_state_dict"].items()}
    found = read_seed_checkpoint(write(tmp_path / "best.pt", content))
    assert (found.montage, found.epoch) == ("paper", 3)
    for name, tensor in paper.state_dict().items():
        assert found.model.state_dict()[name].dtype == tensor.dtype
    description = found.description()
    assert description["input"] == {"filters": "seed", "notch_hz": 0, "normalise": "none"}
    assert description["montage"]["name"] == "paper"
    assert [len(modality["slots"]) for modality in description["montage"]["modalities"]] == [7, 10, 2]
    assert description["config"] == {"imported_from": str(tmp_path / "best.pt"), "epoch": 3}
    run = RunDirectory(tmp_path / "run")
    assert write_run(found, run)
    tensors, state = read_checkpoint(run.best_path)
    assert state == {"epoch": 3, "best_loss": None}
    assert torch.equal(tensors["model/encoders.brain.fc.bias"], paper.state_dict()["encoders.brain.fc.bias"])


def test_weights_that_are_not_a_number_are_the_same_again_and_another_loss_is_another_run(model, tmp_path):
    content = content_of(model)
    content["ekg_state_dict"]["module.fc.bias"] = torch.full((512,), math.nan)
    found = read_seed_checkpoint(write(tmp_path / "best.pt", content))
    run = RunDirectory(tmp_path / "run")
    assert [write_run(found, run), write_run(found, run)] == [True, False]
    for other in (
        read_seed_checkpoint(write(tmp_path / "best.pt", content | {"best_loss": 2.25})),
        read_seed_checkpoint(write(tmp_path / "best.pt", content_of(model))),
    ):
        with pytest.raises(SleepfmError, match="holds a run of other weights than"):
            write_run(other, run)


def test_a_run_that_was_not_imported_is_another_run(model, tmp_path):
    found = read_seed_checkpoint(write(tmp_path / "best.pt", content_of(model)))
    description = found.description()
    for number, config in enumerate(({"epoch": 7}, {"epoch": 7, "imported_from": ""}, [], {"imported_from": "x"})):
        run = RunDirectory(tmp_path / str(number))
        run.create({**description, "config": config})
        with pytest.raises(SleepfmError, match="holds another run and is not overwritten"):
            write_run(found, run)
        assert not run.best_path.exists()


def renamed(content: dict, old: str, new: str) -> dict:
    return {new if name == old else name: value for name, value in content.items()}


def test_the_other_names_of_two_encoders_are_understood(model, tmp_path):
    content = renamed(content_of(model), "respiratory_state_dict", "resp_state_dict")
    content = renamed(content, "sleep_stages_state_dict", "sleep_state_dict")
    found = read_seed_checkpoint(write(tmp_path / "best.pt", content))
    assert found.montage == "cinc2018"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_an_encoder_under_two_names_is_refused(model, tmp_path):
    content = content_of(model)
    content["sleep_state_dict"] = content["sleep_stages_state_dict"]
    with pytest.raises(SleepfmError, match=r"best\.pt has both sleep_stages_state_dict and sleep_state_dict, which"):
        read_seed_checkpoint(write(tmp_path / "best.pt", content))


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_pickle_that_runs_code_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = content_of(model) | {"extra": Harmful()}
    with pytest.raises(SleepfmError, match="can run any code"):
        read_seed_checkpoint(write(tmp_path / "best.pt", content))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(SleepfmError, match=r"plain\.pt"):
        read_seed_checkpoint(tmp_path / "plain.pt")
    assert not (tmp_path / "harm").exists()


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1 << 18)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "best.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert torch.load(tmp_path / "best.pt", weights_only=True)["x"].shape == (1 << 18,), "torch unpacks it"
    with pytest.raises(SleepfmError, match=r"best\.pt was not loaded: it has \d+ bytes and would unpack to 10\d{5},"):
        read_seed_checkpoint(tmp_path / "best.pt")
    with pytest.raises(SleepfmError, match=r"plain\.pt lacks"):
        read_seed_checkpoint(tmp_path / "plain.pt")


def without(content, state, name):
    content[state] = {k: v for k, v in content[state].items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("temperature"), "lacks temperature"),
        (lambda c: c.pop("ekg_state_dict"), "lacks ekg_state_dict; it has epoch"),
        (lambda c: c.pop("respiratory_state_dict"), "lacks respiratory_state_dict or resp_state_dict; it has epoch"),
        (
            lambda c: c.update(sleep_state_dict=[1]) or c.pop("sleep_stages_state_dict"),
            "sleep_state_dict is not a mapping",
        ),
        (lambda c: c.update(ekg_state_dict=[1]), "ekg_state_dict is not a mapping"),
        (lambda c: without(c, "ekg_state_dict", "module.fc.bias"), r"lacks fc\.bias"),
        (lambda c: without(c, "ekg_state_dict", "module.stage1.weight"), r"no tensor stage1\.weight"),
        (lambda c: c["ekg_state_dict"].update(head=torch.ones(1)), "it has unknown head"),
        (
            lambda c: c["sleep_stages_state_dict"].update({"module.fc.bias": torch.ones(3)}),
            r"sleep_stages_state_dict has fc\.bias of shape \[3\]; the published network has \[512\]",
        ),
        (
            lambda c: c["ekg_state_dict"].update({"module.stage1.weight": torch.ones(32, 2, 3)}),
            "3/5/2 respiratory/brain/ecg channels",
        ),
        (lambda c: c.update(temperature=float("nan")), "temperature is nan"),
        (lambda c: c.update(temperature=torch.ones(0)), r"temperature is tensor\(\[\]\)"),
        (lambda c: c.update(temperature="warm"), "temperature is warm"),
        (
            lambda c: c["ekg_state_dict"].update({"module.fc.bias": torch.ones(512).to_sparse()}),
            r"ekg_state_dict has fc\.bias as a sparse",
        ),
        (
            lambda c: c["ekg_state_dict"].update({"module.fc.bias": torch.ones(512, dtype=torch.complex64)}),
            r"ekg_state_dict has fc\.bias as a sparse, quantised, complex",
        ),
        (
            lambda c: c["ekg_state_dict"].update({"module.fc.bias": torch.ones(512, device="meta")}),
            r"ekg_state_dict has fc\.bias as a sparse, quantised, complex or empty",
        ),
        (
            lambda c: c["ekg_state_dict"].update({"module.stage1.weight": torch.ones(32, 65, 3)}),
            r"no tensor stage1\.weight",
        ),
        (lambda c: c["ekg_state_dict"].update({"module.stage1.weight": torch.ones(32)}), r"no tensor stage1\.weight"),
        (
            lambda c: c["ekg_state_dict"].update({"module.stage1.weight": torch.ones(1).expand(32, 10**9, 3)}),
            r"no tensor stage1\.weight",
        ),
    ],
)
def test_what_differs_is_named(model, tmp_path, change, message):
    content = content_of(model)
    change(content)
    with pytest.raises(SleepfmError, match=message):
        read_seed_checkpoint(write(tmp_path / "best.pt", content))


@pytest.mark.parametrize("value", [None, "x", float("inf"), [], torch.ones(2)])
def test_an_epoch_and_a_loss_that_say_nothing_are_unknown(model, tmp_path, value):
    content = {**content_of(model), "epoch": value, "best_loss": None}
    found = read_seed_checkpoint(write(tmp_path / "best.pt", content))
    assert found.epoch == -1
    assert math.isnan(found.best_loss)


def test_a_file_of_the_older_kind_cut_anywhere(tmp_path):
    path = tmp_path / "best.pt"
    torch.save({"temperature": 1.0, "w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(SleepfmError, match=r"best\.pt"):
            read_seed_checkpoint(path)


def nowhere(content: bytes) -> bytes:
    """Let the archive's list of files lie at 2^64 - 1, where torch's seek says "Invalid argument" and no name."""
    at = content.rfind(b"PK\x06\x06") + 48
    return content[:at] + b"\xff" * 8 + content[at + 8 :]


@pytest.mark.parametrize("damage", [nowhere, lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a checkpoint"])
def test_damaged_files(model, tmp_path, damage):
    path = write(tmp_path / "best.pt", content_of(model))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SleepfmError, match=r"best\.pt"):
        read_seed_checkpoint(path)
    with pytest.raises(SleepfmError, match="there is no file"):
        read_seed_checkpoint(tmp_path / "absent.pt")
