import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.rundir import RunDirectory, pack_optimiser, read_checkpoint, unpack_optimiser, write_checkpoint
from sleepfm_fast.runs.resumption import goes_on, reconcile


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))


def step(model, optimiser, n=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        optimiser.zero_grad()
        model(torch.randn(5, 4, generator=generator)).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_optimiser_survives_a_checkpoint_bit_for_bit(tmp_path, build):
    model = small_model()
    optimiser = build(model.parameters())
    step(model, optimiser)
    tensors, state = pack_optimiser(optimiser)
    write_checkpoint(tmp_path / "c.safetensors", {**tensors, **model.state_dict()}, {"optimiser": state})
    step(model, optimiser, 2)

    loaded, loaded_state = read_checkpoint(tmp_path / "c.safetensors")
    other = small_model()
    other.load_state_dict({k: v for k, v in loaded.items() if not k.startswith("optimiser/")})
    other_optimiser = build(other.parameters())
    unpack_optimiser(other_optimiser, loaded, loaded_state["optimiser"])
    step(other, other_optimiser, 2)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_is_never_overwritten(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create({"seed": 1})
    assert run.config()["seed"] == 1
    with pytest.raises(SleepfmError, match="--resume"):
        RunDirectory(tmp_path / "run").create({})


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("x")
    with pytest.raises(SleepfmError, match="exists already"):
        RunDirectory(tmp_path).create({})


def test_damage_is_named(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(SleepfmError, match="holds no run"):
        run.config()
    run.create({})
    with pytest.raises(SleepfmError, match="no checkpoint"):
        read_checkpoint(run.last_path)
    run.last_path.write_bytes(b"\0" * 100)
    with pytest.raises(SleepfmError, match="damaged"):
        read_checkpoint(run.last_path)
    run.config_path.write_text("{")
    with pytest.raises(SleepfmError, match="damaged"):
        run.config()
    run.config_path.write_text(json.dumps({"format": "sleepfm_fast run", "version": 99}))
    with pytest.raises(SleepfmError, match="version 99"):
        run.config()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to write to")
def test_a_full_disk_is_named_with_the_metrics(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=re.escape(f"{os.strerror(errno.ENOSPC)}: '{run.metrics_path}'")):
        run.append_metrics({"step": 1})


def test_metrics_go_back_to_the_checkpoint(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create({})
    size = run.append_metrics({"step": 1, "loss": float("nan")})
    run.append_metrics({"step": 2})
    run.truncate_metrics(size)
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == [{"step": 1, "loss": None}]
    with pytest.raises(SleepfmError, match="changed by hand"):
        run.truncate_metrics(10_000)


CONFIG = {
    "config": {"lr": 0.1},
    "model": {
        "modalities": {"brain": 3},
        "encoder": {
            "dim": 8,
            "channels": [1, 2],
            "kernels": [3, 3],
            "strides": [2, 2],
            "design": "strided",
            "dropout": 0,
        },
    },
    "montage": {"name": "x", "modalities": []},
    "input": {"filters": "aasm", "notch_hz": 0, "normalise": "clip"},
    "split": {"salt": "s", "validation": 0.1, "test": 0},
    "subjects": {"a": 0, "b": 2},
    "store_digest": "x",
}


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("montage", None, "the entry 'montage' is missing"),
        ("model", None, "the entry 'model' is missing"),
        ("model.modalities", {"brain": "3"}, "the entry 'model.modalities' is"),
        ("model.encoder", None, "the entry 'model.encoder' is missing"),
        ("model.encoder.dim", "a", "the entry 'model.encoder.dim' is 'a', which it cannot be"),
        ("model.encoder.channels", [1, None], "the entry 'model.encoder.channels' is"),
        ("input.extra", 1, "has the entry 'input.extra', which this version does not know; it knows filters, notch_hz"),
        ("split.test", "x", "the entry 'split.test' is 'x'"),
        ("subjects", 5, "the entry 'subjects' is '5'"),
        ("subjects.a", 3, "the entry 'subjects.a' is '3'"),
        ("config", [], "the entry 'config' is"),
    ],
)
def test_a_configuration_changed_by_hand_is_refused_by_name(tmp_path, path, value, sentence):
    from sleepfm_fast.pretrained import read_pretrained

    config = json.loads(json.dumps(CONFIG))
    place = config
    *folders, name = path.split(".")
    for folder in folders:
        place = place[folder]
    if value is None:
        del place[name]
    else:
        place[name] = value
    RunDirectory(tmp_path / "run").create(config)
    with pytest.raises(SleepfmError) as caught:
        read_pretrained(tmp_path / "run")
    assert sentence in str(caught.value)
    assert str(tmp_path / "run" / "config.json") in str(caught.value)


def test_a_configuration_that_was_not_changed_is_taken(tmp_path):
    from sleepfm_fast.pretrained import read_pretrained

    RunDirectory(tmp_path / "run").create(CONFIG)
    with pytest.raises(SleepfmError, match="there is no checkpoint"):
        read_pretrained(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "[]", "3", '{"format": ', b"\xff\xfe"])
def test_a_configuration_that_is_no_object_is_damaged(tmp_path, content):
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    run.config_path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SleepfmError, match=r"config.json is damaged: .* Restore it, or train again"):
        run.config()


@pytest.mark.parametrize("entry", ["config", "store_digest"])
def test_a_run_without_its_options_is_not_resumed(tmp_path, entry):
    run = RunDirectory(tmp_path / "run")
    run.create({name: value for name, value in CONFIG.items() if name != entry})
    with pytest.raises(SleepfmError, match=f"the entry '{entry}' is missing"):
        reconcile(run, {"config": {"lr": 0.1}, "defaults": {}, "store_digest": "x", "ranks": 1})


def test_a_run_from_before_there_was_an_option_has_its_default(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create({**CONFIG, "config": {"lr": 0.1, "epochs": 3}, "store_digest": "x", "ranks": 1})
    options = {"lr": 0.1, "epochs": 3, "shuffle_recordings": 0, "max_steps": 0}
    now = {"config": options, "defaults": {"lr": 0.5, "shuffle_recordings": 0, "max_steps": 0}}
    now |= {"store_digest": "x", "ranks": 1}
    assert reconcile(run, now) == []
    with pytest.raises(SleepfmError, match=r"other options: --shuffle-recordings was 0, is 8\."):
        reconcile(run, {**now, "config": {**options, "shuffle_recordings": 8}})
    assert reconcile(run, {**now, "config": {**options, "max_steps": 5}}) == [
        {"step": 0, "option": "--max-steps", "was": 0, "is": 5}
    ]
    assert run.config()["config"] == {"lr": 0.1, "epochs": 3, "max_steps": 5}
    # A finished run is finished for the same command of a later version too.
    write_checkpoint(run.last_path, {}, {"step": 9, "epoch": 3})
    again = {**now, "config": {**options, "max_steps": 5}}
    assert goes_on(run, "train", again)
    with pytest.raises(SleepfmError, match="exists already"):
        goes_on(run, "train", {**again, "config": {**again["config"], "shuffle_recordings": 8}})


def test_equal_checkpoints_are_equal_files(tmp_path):
    """Digests of the file name the weights."""
    tensors = {"z\u00fc": torch.arange(5), "a": torch.ones(3, 2, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    state = {"step": 3, "names": ["J\u00fcrgen", "caf\udce9", 'a "quote"']}
    for i in range(12):
        write_checkpoint(tmp_path / f"{i}.safetensors", tensors, state)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    read, found = read_checkpoint(tmp_path / "0.safetensors")
    assert found == state
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    n = int.from_bytes((tmp_path / "0.safetensors").read_bytes()[:8], "little")
    assert n % 8 == 0


def test_a_run_is_not_resumed_on_another_store_or_without_its_metrics(tmp_path):
    """What stands stays as it is: it may be resumed where the store, or the file, is put back."""
    run = RunDirectory(tmp_path / "run")
    now = {"config": {"seed": 0, "epochs": 5}, "store_digest": "a", "ranks": 1, "defaults": {}}
    run.create({"config": {"seed": 0, "epochs": 3}, "store_digest": "a", "ranks": 1})
    n_bytes = run.append_metrics({"step": 1})
    run.append_metrics({"step": 2})
    write_checkpoint(run.last_path, {}, {"step": 1, "metrics_bytes": n_bytes})
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(SleepfmError, match=r"the store has changed since the run in .*run began"):
        reconcile(run, {**now, "store_digest": "b"})
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    run.metrics_path.unlink()
    with pytest.raises(SleepfmError, match=r"metrics\.jsonl is missing; restore it"):
        reconcile(run, now)
    assert run.config()["config"]["epochs"] == 3
    run.metrics_path.write_bytes(before["metrics.jsonl"])
    (change,) = reconcile(run, now)
    assert (change["option"], change["step"]) == ("--epochs", 1)
    assert run.metrics_path.stat().st_size == n_bytes


def test_what_another_program_wrote_is_named(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(SleepfmError, match=r"other\.safetensors holds no sleepfm_fast state; it was not written by"):
        read_checkpoint(tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "list.safetensors", {"state": "[1]"})
    with pytest.raises(SleepfmError, match=r"list\.safetensors is damaged \(its state is no object\)"):
        read_checkpoint(tmp_path / "list.safetensors")
