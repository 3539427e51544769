"""``--compat``: a few steps against the authors' loop restated in plain PyTorch; contradictions are refused by name."""

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
import torch

from sleepfm_fast import train
from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.reference.contrastive_loss import contrastive_loss
from sleepfm_fast.reference.encoder import PublishedEncoder
from sleepfm_fast.reference.seed_training import SeedTraining
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.training.contrastive import Trainer
from sleepfm_fast.training.neighbours import clips_of
from sleepfm_fast.training.objective import Objective, backward
from sleepfm_fast.training.optimiser import build_optimiser
from sleepfm_fast.training.settings import COMPAT, Settings, resolve

CHANNELS = {"respiratory": 3, "brain": 5, "ecg": 1}
N = 6


@pytest.fixture
def trainer(cohort_store, tmp_path):
    """Make a trainer with the given options, of the tiny preset without dropout."""

    def make(name="run", **options):
        config = train.Config(
            cohort_store, tmp_path / name, preset="tiny", dropout=0.0, threads=1, device="cpu", **options
        )
        return Trainer.prepare(resolve(config))

    return make


@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
def test_compat_seed_takes_the_steps_of_the_authors_loop(trainer, mode):
    ours = trainer(compat="seed", mode=mode, max_steps=45)
    theirs = SeedTraining(
        {name: copied(ours.model.encoders[name], ours, name) for name in ours.model.modalities}, mode=mode
    )
    batches = list(ours.sampler.batch_sizes)
    per_epoch = ours.sampler.batches_per_epoch
    assert batches[0] == 32
    assert 1 < batches[1] < 32, "the last, shorter batch is kept"
    assert per_epoch * 5 < 45, "the learning rate falls once"
    order = iter(list(islice(ours.sampler, 45)))
    losses, rates, temperatures = [], [], []
    for row in ours.steps():
        _, position, clips = next(order)
        rate = theirs.optimiser.param_groups[0]["lr"]
        temperatures.append((row["temperature"], float(theirs.temperature.detach().exp())))
        step = theirs.step({name: x.double() for name, x in ours.input(clips).x.items()})
        losses.append((row["loss"], step.loss))
        rates.append((row["lr"], rate))
        if position + 1 == per_epoch:
            theirs.end_epoch()
    assert len(losses) == 45
    np.testing.assert_allclose(*np.array(rates).T, rtol=1e-9)
    np.testing.assert_allclose(*np.array(losses).T, rtol=2e-4)  # float32 after 45 steps; the first agree to 1e-6
    np.testing.assert_allclose(*np.array(losses)[:3].T, rtol=2e-6)
    np.testing.assert_allclose(*np.array(temperatures).T, rtol=1e-5)
    assert temperatures[-1][0] > 1


def copied(encoder, trainer, name):
    """Another module with the same weights."""
    twin = SleepModel({name: encoder.n_channels}, trainer.model.config).encoders[name]
    twin.load_state_dict(encoder.state_dict())
    return twin


def published(mode, **options):
    """The published model and its twin, a batch, and our settings."""
    torch.manual_seed(0)
    # Without dropout, of which the fused blocks draw other numbers.
    model = SleepModel(CHANNELS, dataclasses.replace(PRESETS["seed"], dropout=0.0)).train()
    twins = {name: PublishedEncoder(n, dropout=0.0) for name, n in CHANNELS.items()}
    for name, twin in twins.items():
        twin.load_state_dict(model.encoders[name].state_dict())
    x = {name: torch.randn(N, n, 7680) for name, n in CHANNELS.items()}
    return model, SeedTraining(twins, mode=mode), x, resolve(train.Config(compat="seed", mode=mode, **options))


@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
def test_a_step_of_the_published_network_is_the_same(mode):
    model, theirs, x, settings = published(mode)
    start = flat(model.encoders)
    objective = Objective(model, settings.mode, settings.directions, settings.loss_scale)
    optimiser = build_optimiser(model, settings)
    present = {name: torch.ones(N, n, dtype=torch.bool) for name, n in CHANNELS.items()}
    torch.manual_seed(1)
    outcome = backward(objective, objective, Batch(x, present))
    optimiser.step()
    torch.manual_seed(1)
    step = theirs.step(x)
    assert float(outcome.loss) == pytest.approx(step.loss, rel=1e-4)
    assert outcome.statistics.correct.flatten().tolist() == step.hits
    np.testing.assert_allclose(N * outcome.statistics.losses.flatten().numpy(), step.sums, rtol=1e-3)
    ours, twins = flat(model.encoders), flat(torch.nn.ModuleDict(theirs.encoders))
    assert float((ours - twins).norm() / (twins - start).norm()) < 0.01
    clamped = max(float(model.log_temperature.detach()), 0.0)  # as train does after every step
    assert clamped == pytest.approx(float(theirs.temperature.detach()), rel=1e-3, abs=1e-9)


def flat(encoders):
    """All parameters and running statistics as one vector."""
    return torch.cat([value.double().flatten() for _, value in sorted(encoders.state_dict().items())])


def test_the_restated_network_has_the_published_tensors():
    ours = SleepModel({"ecg": 2}, PRESETS["seed"]).encoders["ecg"]
    theirs = PublishedEncoder(2)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in theirs.state_dict().items()} == shapes
    assert len(shapes) == 318


def test_the_temperature_is_clamped_below_and_under_compat_not_above(trainer):
    for options, bounds in (
        ({"compat": "seed"}, (0.0, None)),
        ({"max_temperature": 5.0, "last_batch": "keep"}, (0.0, np.log(5.0))),
    ):
        one = trainer(f"run-{len(options)}", max_steps=1, **options)
        for start, bound in zip((-3.0, 6.0), bounds, strict=True):
            with torch.no_grad():
                one.model.log_temperature.fill_(start)
            items = next(iter(one.sampler))[2]
            one.model.train()
            _, failure = one.update(one.input(clips_of(items)), items, 1e-30)
            assert not failure
            value = float(one.model.log_temperature.detach())
            assert value == pytest.approx(start if bound is None else bound, abs=1e-3)


def test_compat_paper_adds_up_the_rows(trainer):
    one = trainer(compat="paper", max_steps=1)
    assert one.config.lr == 0.01
    clips = next(iter(one.sampler))[2]
    batch = one.input(clips)
    one.model.train()
    outcome = backward(one.objective, one.wrapped, batch, counts=(len(clips),))
    embeddings, mask = one.model(batch.x, batch.present)
    mean, _ = contrastive_loss(embeddings, one.model.log_temperature, "leave_one_out", mask=mask, directions="row")
    assert float(outcome.loss) == pytest.approx(float(mean.detach()) * 32 * 3, rel=1e-4)


@pytest.mark.parametrize(("mode", "directions"), [("leave_one_out", "row"), ("pairwise", "both")])
def test_losses_are_logged_as_means_whatever_is_differentiated(trainer, mode, directions):
    rows, epochs = {}, {}
    for scale in ("mean", "sum"):
        one = trainer(scale, loss_scale=scale, mode=mode, directions=directions, lr=1e-30, max_steps=3)
        steps = list(one.steps())
        rows[scale], epochs[scale] = [row["loss"] for row in steps], steps[-1]["validated"]
    assert rows["sum"] == pytest.approx(rows["mean"], rel=1e-5)
    for name in ("training_loss", "validation_loss"):
        assert epochs["sum"][name] == pytest.approx(epochs["mean"][name], rel=1e-5), name
    assert epochs["sum"]["training_loss"] == pytest.approx(np.mean(rows["mean"]), rel=1e-5)
    assert 2 < epochs["sum"]["training_loss"] < 5, "32 clips: log 32 = 3.47"


def test_a_sum_without_terms_is_no_failure(trainer):
    one = trainer(compat="paper", max_steps=1)
    clips = next(iter(one.sampler))[2]
    batch = one.input(clips)
    for name in ("brain", "ecg"):
        batch.present[name][:] = False
    one.model.train()
    before, failure = one.update(batch, clips, 1e-30)
    assert before["loss"] == 0.0
    assert not failure


@pytest.mark.parametrize("compat", ["seed", "paper"])
def test_contradictions_are_refused_by_name_and_agreement_is_not(cohort_store, tmp_path, capsys, compat):
    run = tmp_path / "run"
    arguments = [str(cohort_store), str(run), "--compat", compat, "--lr", "0.5", "--normalise", "clip"]
    assert train.cli(arguments) == 1
    err = capsys.readouterr().err
    assert f"--compat {compat} means --lr {COMPAT[compat]['lr']} (0.5 was given), --normalise none (clip" in err
    assert not run.exists()
    agreeing = train.Config(compat=compat, lr=COMPAT[compat]["lr"], filters="seed", optimiser="sgd")
    assert resolve(agreeing) == resolve(train.Config(compat=compat))
    for name, value in COMPAT[compat].items():
        other = {"sgd": "adamw", "step": "cosine", "none": "clip", "keep": "drop", "mean": "sum", "sum": "mean"}
        other |= {"both": "row", "row": "both", "seed": "aasm"}
        wrong = other[value] if isinstance(value, str) else value + 50
        with pytest.raises(SleepfmError, match=f"--compat {compat} means --{name.replace('_', '-')} "):
            resolve(train.Config(compat=compat, **{name: wrong}))


def test_what_was_resolved_is_printed_and_kept(cohort_store, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [str(cohort_store), str(run), "--compat", "seed", "--preset", "tiny", "--max-steps", "1"]
    assert train.cli(arguments) == 0
    err = capsys.readouterr().err
    assert "resolved: " in err
    assert "--lr 0.001" in err
    assert "--filters seed" in err
    saved = RunDirectory(run).config()
    assert saved["config"]["compat"] == "seed"
    for name, value in COMPAT["seed"].items():
        assert saved["config"][name] == value, name
    assert saved["input"] == {"filters": "seed", "notch_hz": 0, "normalise": "none"}
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["training_loss"] < 3.6  # the mean of 32 clips starts at log 32 = 3.47
    assert train.cli([*arguments, "--resume"]) == 0


def test_nothing_stays_open():
    for compat in COMPAT:
        settings = resolve(train.Config(compat=compat))
        left = {f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) is None}
        assert left == {"store", "run", "init_from", "dropout"}
        assert isinstance(settings, Settings)
