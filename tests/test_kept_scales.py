"""Amplitudes that a run keeps: later commands give the bits of measured ones, and take nothing else."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sleepfm_fast import __version__, batches, classify, embed, supervise, train
from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.store import kept_scales
from sleepfm_fast.store.scales import Scales

SHORT = ["--preset", "tiny", "--batch-size", "8", "--max-steps", "1"]
STAGING = ["--task", "stage", "--preset", "tiny", "--batch-size", "8", "--epochs", "1"]


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    run = tmp_path_factory.mktemp("kept") / "run"
    assert train.cli([str(planted), str(run), *SHORT]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def measured(monkeypatch):
    """The numbers of the recordings that are measured."""
    numbers = []
    real = batches.measure_scales

    def watched(feed, bank, recordings, *others):
        numbers.extend(int(r) for r in recordings)
        real(feed, bank, recordings, *others)

    monkeypatch.setattr(batches, "measure_scales", watched)
    return numbers


def used(run):
    """The recordings whose amplitudes a run has kept: those of training and validation."""
    numbers = np.flatnonzero(load_file(run / "amplitudes.safetensors")["measured"])
    assert 0 < len(numbers) < 12
    return numbers.tolist()


def embedded(run, store, out):
    assert embed.cli([str(run), str(store), str(out)]) == 0
    found = Embeddings(out)
    return found.copy(np.arange(len(found)), found.modalities)


def test_embed_takes_the_amplitudes_of_its_run_and_gives_the_bits_of_measured_ones(run, planted, tmp_path, measured):
    kept = embedded(run, planted, tmp_path / "kept")
    assert sorted(measured + used(run)) == list(range(12))
    measured.clear()
    (run / "amplitudes.safetensors").unlink()
    again = embedded(run, planted, tmp_path / "again")
    assert sorted(measured) == list(range(12))
    np.testing.assert_array_equal(kept, again)


def test_a_resumed_run_measures_nothing(run, planted, measured):
    assert train.cli([str(planted), str(run), *SHORT[:-1], "2", "--resume"]) == 0
    assert measured == []


def test_a_run_that_kept_none_keeps_them_when_it_is_resumed(run, planted, trained, measured):
    (run / "amplitudes.safetensors").unlink()
    assert train.cli([str(planted), str(run), *SHORT[:-1], "2", "--resume"]) == 0
    assert sorted(measured) == used(trained)
    assert (run / "amplitudes.safetensors").read_bytes() == (trained / "amplitudes.safetensors").read_bytes()


def test_what_supervise_measured_classify_takes(planted, tmp_path, measured):
    run = tmp_path / "run"
    assert supervise.cli([str(planted), str(run), *STAGING]) == 0
    measured.clear()
    assert classify.cli([str(run), str(planted), "--predictions", str(tmp_path / "nights")]) == 0
    assert measured == []
    assert supervise.cli([str(planted), str(run), *STAGING]) == 0  # ended as asked
    assert measured == []


def test_nothing_is_kept_where_nothing_is_measured(planted, tmp_path):
    assert train.cli([str(planted), str(tmp_path / "run"), *SHORT, "--normalise", "clip"]) == 0
    assert not (tmp_path / "run" / "amplitudes.safetensors").exists()


@pytest.mark.parametrize("other", ["store", "filters", "notch", "channels", "version"])
def test_amplitudes_of_something_else_are_not_taken(trained, planted, monkeypatch, other):
    store = ClipStore(planted)
    if other == "store":
        store.digest = store.digest[::-1]
    config = {"filters": {"filters": "clinical"}, "notch": {"notch_hz": 50}}.get(other, {})
    montage = store.montage
    if other == "channels":
        montage = type(montage)(montage.name, montage.modalities[:2])
    if other == "version":
        monkeypatch.setattr(batches, "__version__", __version__ + ".1")
    clip_input = ClipInput(store, montage, InputConfig(**config), "cpu")
    assert clip_input.read_amplitudes(trained / "amplitudes.safetensors") == ()
    assert not clip_input.scales.measured.any()


def test_only_recordings_that_are_not_measured_are_taken_over(tmp_path):
    kept = Scales(*(np.full((3, 2), value, np.float32) for value in (1, 2)), np.array([True, False, True]))
    kept_scales.write_scales(tmp_path / "kept", kept, {"a": 1})
    here = Scales(*(np.full((3, 2), value, np.float32) for value in (3, 4)), np.array([True, False, False]))
    assert kept_scales.read_scales(tmp_path / "kept", here, {"a": 1}) is None
    assert here.measured.tolist() == [True, False, True]
    assert here.centre.tolist() == [[3, 3], [3, 3], [1, 1]]
    assert here.scale.tolist() == [[4, 4], [4, 4], [2, 2]]
    assert here.centre.flags.writeable


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def not_safetensors(path):
    path.write_bytes(b"amplitudes")


def rewritten(change):
    def write(path):
        tensors = load_file(path)
        raw = path.read_bytes()
        about = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        change(tensors)
        save_file(tensors, path, metadata=about)

    return write


def with_nan(tensors):
    tensors["scale"][1, 1] = np.nan


def of_doubles(tensors):
    tensors["centre"] = tensors["centre"].astype(np.float64)


def of_fewer(tensors):
    tensors["measured"] = tensors["measured"][1:].copy()


def lacking(tensors):
    del tensors["scale"]


DAMAGES = {
    "cut": cut,
    "no safetensors": not_safetensors,
    **{change.__name__: rewritten(change) for change in (with_nan, of_doubles, of_fewer, lacking)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_file_nothing_is_taken(run, planted, damage):
    path = run / "amplitudes.safetensors"
    DAMAGES[damage](path)
    store = ClipStore(planted)
    clip_input = ClipInput(store, store.montage, InputConfig(), "cpu")
    (said,) = clip_input.read_amplitudes(path)
    assert said.startswith(f"{path} is damaged (")
    assert said.endswith("). The amplitudes are measured again.")
    assert not clip_input.scales.measured.any()


def test_a_damaged_file_stops_neither_embedding_nor_training_which_replaces_it(
    run, planted, trained, measured, capsys, tmp_path
):
    path = run / "amplitudes.safetensors"
    cut(path)
    said = f"notice: {path} is damaged"
    embedded(run, planted, tmp_path / "out")
    assert said in capsys.readouterr().err
    assert sorted(measured) == list(range(12))
    assert train.cli([str(planted), str(run), *SHORT[:-1], "2", "--resume"]) == 0
    assert said in capsys.readouterr().err
    assert path.read_bytes() == (trained / "amplitudes.safetensors").read_bytes()


def test_a_folder_in_its_place_stops_no_embedding(run, planted, tmp_path, capsys):
    (run / "amplitudes.safetensors").unlink()
    (run / "amplitudes.safetensors").mkdir()
    embedded(run, planted, tmp_path / "out")
    assert f"notice: {run / 'amplitudes.safetensors'}" in capsys.readouterr().err
