import json

import pytest
import torch

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.rundir import RunDirectory, pack_optimiser, read_checkpoint, unpack_optimiser, write_checkpoint


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


def test_metrics_go_back_to_the_checkpoint(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create({})
    size = run.append_metrics({"step": 1, "loss": float("nan")})
    run.append_metrics({"step": 2})
    run.truncate_metrics(size)
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == [{"step": 1, "loss": None}]
    with pytest.raises(SleepfmError, match="changed by hand"):
        run.truncate_metrics(10_000)
