"""Starting from trained encoders, and embedding with a checkpoint itself: what is taken over, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from called import last_json
from safetensors.torch import save_file

from sleepfm_fast import embed, import_checkpoint, train
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.pretrained import initialise, load_model, read_pretrained
from sleepfm_fast.rundir import RunDirectory, read_checkpoint
from sleepfm_fast.runs.origin import seen_by
from sleepfm_fast.training.selection import chosen_montage
from sleepfm_fast.training.settings import resolve

TINY = ["--preset", "tiny", "--batch-size", "16", "--max-steps", "2", "--threads", "1", "--validation-block", "64"]
SEED_STATES = {"respiratory": "respiratory_state_dict", "brain": "sleep_stages_state_dict", "ecg": "ekg_state_dict"}


@pytest.fixture(scope="module")
def source(cohort_store, tmp_path_factory):
    """A run of the three modalities."""
    run = tmp_path_factory.mktemp("source") / "run"
    assert train.cli([str(cohort_store), str(run), *TINY, "--lr", "0.1", "--log-temperature", "2"]) == 0
    return run


@pytest.fixture
def defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_programs_default_type_and_device_change_no_loaded_weight(source, dtype, defaults):
    """In bfloat16 the weights would be rounded; in float64 the model would not take the store's clips."""
    expected, config, _ = load_model(str(source), "cpu")
    torch.set_default_dtype(dtype)
    torch.set_default_device("meta")
    found, again, _ = load_model(source, torch.device("cpu"))
    assert again == config
    for name, tensor in expected.state_dict().items():
        assert found.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(found.state_dict()[name], tensor)


@pytest.fixture(scope="module")
def cinc_store(cohort, tmp_path_factory):
    """Three nights of the cohort with the montage of the authors' demo: their network takes a second for 20 clips."""
    from sleepfm_fast import preprocess

    nights, store = (tmp_path_factory.mktemp("cinc") / name for name in ("nights", "store"))
    nights.mkdir()
    for night in sorted(cohort.glob("*.edf"))[:3]:
        for file in cohort.glob(f"{night.stem}*"):
            shutil.copy(file, nights)
    assert preprocess.cli([str(nights), str(store), "--montage", "cinc2018"]) == 0
    return store


@pytest.fixture(scope="module")
def best_pt(tmp_path_factory):
    """A file as the authors' code writes it, with random weights."""
    torch.manual_seed(0)
    model = SleepModel({"respiratory": 3, "brain": 5, "ecg": 1}, PRESETS["seed"])
    content = {"epoch": 7, "temperature": 1.25, "best_loss": 2.5}
    for modality, name in SEED_STATES.items():
        content[name] = {f"module.{k}": v for k, v in model.encoders[modality].state_dict().items()}
    path = tmp_path_factory.mktemp("authors") / "best.pt"
    torch.save(content, path)
    return path


def model_of(run, name="last"):
    tensors, _ = read_checkpoint(run / f"{name}.safetensors")
    return {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}


@pytest.mark.parametrize("kind", ["run", "checkpoint", "weights"])
def test_encoders_and_temperature_are_taken_over(source, cohort_store, tmp_path, capsys, kind):
    path = {"run": source, "checkpoint": source / "best.safetensors", "weights": tmp_path / "w.safetensors"}[kind]
    theirs = model_of(source, "best")
    save_file(theirs, tmp_path / "w.safetensors")
    # With a learning rate of nothing, and batch norm's statistics aside, what is trained is what was taken over.
    run = tmp_path / "run"
    assert train.cli([str(cohort_store), str(run), *TINY, "--lr", "1e-30", "--init-from", str(path)]) == 0
    err = capsys.readouterr().err
    assert "respiratory, brain, ecg start from" in err
    assert "the trained one" in err
    assert ("does not say which channels" in err) == (kind == "weights")
    ours = model_of(run)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(ours[name], value), name
    origin = RunDirectory(run).config()["initialised_from"]
    assert origin["modalities"] == ["respiratory", "brain", "ecg"]
    assert origin["path"] == str(path)
    assert len(origin["sha256"]) == 64
    assert origin["log_temperature"] == pytest.approx(float(theirs["log_temperature"]))


def test_a_temperature_that_was_asked_for_wins_and_unused_encoders_are_said(source, cohort_store, tmp_path, capsys):
    arguments = ["--init-from", str(source), "--modalities", "ecg", "brain", "--log-temperature", "0.5"]
    run = tmp_path / "run"
    assert train.cli([str(cohort_store), str(run), *TINY, "--lr", "1e-30", *arguments]) == 0
    err = capsys.readouterr().err
    assert "as asked for" in err
    assert "the encoders of respiratory in" in err
    ours, theirs = model_of(run), model_of(source, "best")
    assert float(ours["log_temperature"]) == 0.5
    assert {n.split(".")[1] for n in ours if n.startswith("encoders.")} == {"brain", "ecg"}
    assert torch.equal(ours["encoders.ecg.fc.weight"], theirs["encoders.ecg.fc.weight"])


def test_a_resumed_run_goes_on_from_its_own_checkpoint_or_the_same_file(source, cohort_store, tmp_path, capsys):
    copy = tmp_path / "copy.safetensors"
    shutil.copy(source / "best.safetensors", copy)
    run, options = tmp_path / "run", [*TINY, "--init-from", str(copy)]
    assert train.cli([str(cohort_store), str(run), *options]) == 0
    whole = model_of(run)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):  # killed before the first checkpoint
        (run / name).unlink()
    assert train.cli([str(cohort_store), str(run), *options, "--resume"]) == 0
    assert all(torch.equal(value, whole[name]) for name, value in model_of(run).items())
    shutil.copy(source / "last.safetensors", copy)
    assert train.cli([str(cohort_store), str(run), *options, "--resume"]) == 0  # it is not read any more
    (run / "last.safetensors").unlink()
    (run / "metrics.jsonl").unlink()
    capsys.readouterr()
    assert train.cli([str(cohort_store), str(run), *options, "--resume"]) == 1
    assert "is not the file that" in capsys.readouterr().err


def config_of(run):
    return RunDirectory(run).config()


def test_whom_the_first_training_has_seen_is_never_tested(source, cohort_store, tmp_path, capsys):
    first = config_of(source)["subjects"]
    rules = (["--split-salt", "b"], ["--test-share", "0.6"])
    for number, rule in enumerate(rules):
        alone, run, third = (tmp_path / f"{kind}{number}" for kind in ("alone", "run", "third"))
        assert train.cli([str(cohort_store), str(alone), *TINY, *rule]) == 0
        moved = {s for s, code in config_of(alone)["subjects"].items() if code == 2 and first[s] != 2}
        assert moved, "by the rule itself, subjects that were trained on would be tested"
        capsys.readouterr()
        assert train.cli([str(cohort_store), str(run), *TINY, *rule, "--init-from", str(source)]) == 0
        captured = capsys.readouterr()
        assert "keep the split of the training that --init-from names" in captured.err
        assert "are not known" not in captured.err
        assert "keep the split" in last_json(captured.out)["notices"][-1]
        second = config_of(run)
        assert second["subjects"] == first
        assert second["initialised_from"]["subjects"] == first
        assert second["initialised_from"]["subjects_known"] is True
        assert embed.cli([str(run), str(cohort_store), str(tmp_path / f"embeddings{number}")]) == 0
        record = json.loads((tmp_path / f"embeddings{number}" / "embeddings.json").read_text())
        assert record["presets"]["subjects_known"] is True
        columns = [np.load(tmp_path / f"embeddings{number}" / f"{name}.npy") for name in ("subject", "split")]
        tested = {record["subjects"][s] for s, split in zip(*columns, strict=True) if split == 2}
        assert tested == {s for s, code in first.items() if code == 2}
        # From that one in turn, and resumed before and after its first checkpoint.
        options = [*TINY, "--split-salt", "c", "--init-from", str(run)]
        assert train.cli([str(cohort_store), str(third), *options]) == 0
        assert config_of(third)["subjects"] == first
        whole = model_of(third)
        for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
            (third / name).unlink()
        for _ in range(2):
            assert train.cli([str(cohort_store), str(third), *options, "--resume"]) == 0
            assert all(torch.equal(value, whole[name]) for name, value in model_of(third).items())


def test_subjects_of_another_store_stay_settled(source, cohort_store, tmp_path):
    # As if the first training had been on others: whoever embeds them with the second run finds them seen.
    other = tmp_path / "other"
    shutil.copytree(source, other)
    config = json.loads((other / "config.json").read_text())
    config |= {"subjects": {"x": 0, "y": 1, "z": 2}, "recordings": []}
    (other / "config.json").write_text(json.dumps(config))
    run = tmp_path / "run"
    assert train.cli([str(cohort_store), str(run), *TINY, "--init-from", str(other)]) == 0
    assert config_of(run)["subjects"] == config["subjects"] | config_of(source)["subjects"]
    for code in (1, 2):
        config["subjects"] = dict.fromkeys(config_of(source)["subjects"], code)
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(SleepfmError, match=r"leaves 0 clips .* keep its split"):
            train.main(train.Config(cohort_store, tmp_path / "none", preset="tiny", init_from=other))


def test_weights_that_do_not_say_whom_they_have_seen_are_noticed(source, cohort_store, tmp_path, capsys):
    bare = tmp_path / "w.safetensors"
    save_file(model_of(source, "best"), bare)
    second, third = tmp_path / "second", tmp_path / "third"
    for path, run in ((bare, second), (second, third)):
        options = [str(cohort_store), str(run), *TINY, "--init-from", str(path)]
        assert train.cli(options) == 0
        captured = capsys.readouterr()
        assert f"{path}: The subjects it was trained on are not known" in captured.err
        assert "are not known" in last_json(captured.out)["notices"][-1]
        assert config_of(run)["initialised_from"]["subjects_known"] is False
        assert train.cli([*options, "--resume"]) == 0
        assert "are not known" in capsys.readouterr().err
    assert embed.cli([str(third), str(cohort_store), str(tmp_path / "embeddings")]) == 0
    assert "are not known" in capsys.readouterr().err
    # A run that was started from others before their subjects were recorded does not say either.
    config = config_of(second)
    del config["initialised_from"]["subjects"], config["initialised_from"]["subjects_known"]
    assert not seen_by(config).complete
    assert seen_by(config_of(source)).complete


def refusal(path, store_path, **options):
    from sleepfm_fast.clips import ClipStore

    settings = resolve(train.Config(**{"preset": "tiny", "init_from": path, **options}))
    montage = chosen_montage(ClipStore(store_path), settings.modalities)
    model = SleepModel({m.name: len(m.slots) for m in montage.modalities if m.slots}, PRESETS[settings.preset])
    with pytest.raises(SleepfmError) as refused:
        initialise(model, read_pretrained(path), montage, settings)
    return str(refused.value)


def test_what_does_not_fit_is_refused_by_name(source, best_pt, cohort_store, cinc_store, tmp_path):
    assert (
        "holds another network (--preset seed was asked for): it lacks encoders.respiratory.stage1.weight"
        in refusal(source, cohort_store, preset="seed")
    )
    sentence = refusal(source, cinc_store)
    assert "its respiratory encoder was trained on" in sentence
    assert "(montage cinc2018). Make a store with its channels: " in sentence
    assert f"`python -m sleepfm_fast.preprocess FILES-OR-FOLDER STORE --like {source}`" in sentence
    assert "holds another network (--preset tiny was asked for): it lacks" in refusal(best_pt, cinc_store)
    weights = {k: v for k, v in model_of(source, "best").items() if not k.startswith("encoders.ecg")}
    save_file(weights, tmp_path / "two.safetensors")
    assert "has encoders for respiratory, brain, none for ecg" in refusal(tmp_path / "two.safetensors", cohort_store)
    weights = model_of(source, "best")
    weights["encoders.brain.fc.bias"] = torch.zeros(7)
    save_file(weights, tmp_path / "odd.safetensors")
    assert "encoders.brain.fc.bias has the shape [7] there, [128] in the model" in refusal(
        tmp_path / "odd.safetensors", cohort_store
    )
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "holds no tensors named encoders" in refusal(tmp_path / "other.safetensors", cohort_store)
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10")
    assert "is damaged" in refusal(tmp_path / "damaged.safetensors", cohort_store)
    assert "holds no run" in refusal(tmp_path, cohort_store)
    assert "there is no file" in refusal(tmp_path / "absent.pt", cohort_store)


def test_the_authors_checkpoint_starts_a_training(best_pt, cinc_store, tmp_path, capsys):
    arguments = ["--init-from", str(best_pt), "--max-steps", "1", "--batch-size", "2", "--validation-block", "8"]
    arguments += ["--modalities", "ecg", "brain", "--lr", "1e-30", "--test-share", "0.7"]
    run = tmp_path / "run"
    assert train.cli([str(cinc_store), str(run), *arguments]) == 0
    err = capsys.readouterr().err
    assert "start from the authors' checkpoint" in err
    assert "a test subject may be one of them" in err
    assert "was trained with --filters seed (now aasm), --normalise none (now recording)" in err
    theirs = read_pretrained(best_pt).tensors
    ours = model_of(run)
    assert torch.equal(ours["encoders.ecg.stage9.weight"], theirs["encoders.ecg.stage9.weight"])
    assert float(ours["log_temperature"]) == 1.25


def test_embedding_with_the_authors_file_equals_importing_it_first(best_pt, cinc_store, tmp_path, capsys):
    assert embed.cli([str(best_pt), str(cinc_store), str(tmp_path / "direct")]) == 0
    captured = capsys.readouterr()
    assert "the recorder's integers without gain" in captured.err
    assert "a test subject may be one of them" in captured.err
    weights = last_json(captured.out)["weights"]
    assert weights["file"] == str(best_pt)
    assert import_checkpoint.cli([str(best_pt), str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert embed.cli([str(tmp_path / "run"), str(cinc_store), str(tmp_path / "imported")]) == 0
    assert "a test subject may be one of them" in capsys.readouterr().err
    a, b = (np.load(tmp_path / name / "embeddings.npy") for name in ("direct", "imported"))
    np.testing.assert_array_equal(a, b)
    record = json.loads((tmp_path / "direct" / "embeddings.json").read_text())
    assert record["run"] == str(best_pt)
    assert record["presets"]["weights"] == weights
    assert record["presets"]["train"]["imported_from"] == str(best_pt)


def test_embedding_with_one_checkpoint_of_a_run(source, cohort_store, tmp_path, capsys):
    for name in ("last", "best"):
        assert embed.cli([str(source / f"{name}.safetensors"), str(cohort_store), str(tmp_path / name)]) == 0
    shutil.copy(source / "best.safetensors", tmp_path / "alone.safetensors")
    capsys.readouterr()
    assert embed.cli([str(tmp_path / "alone.safetensors"), str(cohort_store), str(tmp_path / "x")]) == 1
    assert "has no config.json beside it" in capsys.readouterr().err


def test_the_two_files_that_are_given_away_are_enough(source, cohort_store, tmp_path, capsys):
    """docs/training.md: network and configuration in one folder, by whatever name it goes to somebody."""
    given = tmp_path / "given"
    given.mkdir()
    for name in ("best.safetensors", "config.json"):
        shutil.copy(source / name, given)
    vectors = []
    for run in (source, given):
        assert embed.cli([str(run), str(cohort_store), str(tmp_path / f"of-{run.name}")]) == 0
        vectors.append(np.load(tmp_path / f"of-{run.name}" / "embeddings.npy"))
    np.testing.assert_array_equal(*vectors)
    assert train.cli([str(cohort_store), str(tmp_path / "next"), *TINY, "--init-from", str(given)]) == 0
    capsys.readouterr()
    assert train.cli([str(cohort_store), str(given), *TINY, "--resume"]) == 1
    assert "error" in capsys.readouterr().err
    assert {path.name for path in given.iterdir()} == {"best.safetensors", "config.json"}
