"""The command from a night of known signals to a folder that probe reads, with channels missing, flat and cut short."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from known_nights import ECG, EEG, FLOW, write_known_night
from nights import Lead
from test_breathing import breaths
from test_convert import seed_folder
from test_heart_rate import ecg_of, rhythm

from sleepfm_fast import convert, features, few_shot, preprocess, probe, retrieve, train
from sleepfm_fast.baselines.breathing import against_median
from sleepfm_fast.baselines.recording_features import METERS, feature_names, measure_recording, together
from sleepfm_fast.channels import MONTAGES
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.runs.splits import Split, assign_subjects
from sleepfm_fast.storage.definitions import DEFINITIONS
from sleepfm_fast.store.native_runs import NativeRun

SPO2 = Lead("SpO2", 1, "%", 127.0)
THORAX = Lead("Thorax", 25, "", 100.0)
ABDOMEN = Lead("Abdomen", 25, "", 100.0)
MINUTES = 5


def known_signals(per_min=15.0):
    t = np.arange(60 * MINUTES * 100) / 100
    spo2 = np.full(60 * MINUTES, 96.0)
    spo2[100:110] = 88.0  # clip 3
    breath = breaths(MINUTES, 25, per_min, amplitude=20)
    return [
        (EEG, 30 * np.sin(2 * np.pi * 10 * t)),
        (ECG, ecg_of(rhythm(60 * MINUTES), 60 * MINUTES, 100)),
        (FLOW, breath),
        (THORAX, breath),
        (ABDOMEN, -breath),
        (SPO2, spo2),
    ]


def store_of(folder, nights, **options):
    folder.mkdir()
    for name, signals in nights.items():
        write_known_night(folder / f"{name}.edf", signals, stages=["W", "2"] * MINUTES, **options)
    store = folder.parent / f"{folder.name}-store"
    assert preprocess.cli([str(folder), str(store), "--workers", "1", "--montage", "aasm"]) == 0
    return store


def call(capsys, *arguments):
    status = features.cli([str(a) for a in (*arguments, "--backend", "threading")])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return last_json(captured.out), captured.err


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Six nights: two whole, one without ECG, one with a flat EEG, one whose flow dies, one in an unknown unit."""
    folder = tmp_path_factory.mktemp("known")
    nights = {f"whole{i}": known_signals(15.0 + i) for i in range(2)}
    nights["no-ecg"] = [(lead, x) for lead, x in known_signals() if lead is not ECG]
    nights["flat-eeg"] = [(lead, 0 * x if lead is EEG else x) for lead, x in known_signals()]
    nights["flow-dies"] = [
        (lead, np.where(np.arange(x.size) < x.size // 5, x, 0) if lead is FLOW else x) for lead, x in known_signals()
    ]
    nights["unitless"] = [(Lead("C3-M2", 100, "xyz", 500.0) if lead is EEG else lead, x) for lead, x in known_signals()]
    return store_of(folder / "edf", nights)


@pytest.fixture(scope="module")
def folder(known, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features"
    assert features.cli([str(known), str(path), "--backend", "threading", "--workers", "1"]) == 0
    return path


def of_night(folder, night):
    e = Embeddings(folder)
    rows = np.flatnonzero(
        np.asarray(e.recording) == next(i for i, r in enumerate(e.description.recordings) if night in r)
    )
    values = e.read(rows)
    return {
        name: values[:, m, k] for m, modality in enumerate(e.modalities) for k, name in enumerate(e.features[modality])
    }, np.asarray(e.mask)[rows]


def test_known_signals_give_known_numbers_in_the_units_of_the_names(folder):
    for i in range(2):
        found, mask = of_night(folder, f"whole{i}")
        assert mask.all()
        np.testing.assert_allclose(found["C3-M2 alpha_log10_uv2"], np.log10(450), atol=0.01)
        np.testing.assert_allclose(found["C3-M2 alpha_share"], 1, atol=0.01)
        np.testing.assert_allclose(found["ECG heart_rate_per_min"], 60 / 0.9, atol=0.8)
        np.testing.assert_allclose(found["ECG hf_120s_log10_ms2"], np.log10(800), atol=0.2)
        np.testing.assert_allclose(found["ECG qrs_peak_to_peak_mv"], 1, atol=0.2)
        np.testing.assert_allclose(found["Thermal Flow rate_per_min"], 15 + i, atol=0.25)
        np.testing.assert_allclose(found["Chest rate_per_min"], 15 + i, atol=0.25)
        np.testing.assert_allclose(found["Chest with Abdomen correlation"], -1, atol=0.02)
        expected = np.where(np.arange(10) == 3, 8, 0)
        np.testing.assert_allclose(found["SpO2 fall_percent"], expected, atol=0.01)
        assert np.isnan(found["SpO2 below_120s_before_percent"][0])
        np.testing.assert_allclose(found["SpO2 below_120s_before_percent"][1:], expected[1:], atol=0.01)


def test_the_first_and_the_last_clip_of_a_recording_have_what_the_others_have(folder):
    found, _ = of_night(folder, "whole0")
    for name, values in found.items():
        if name != "SpO2 below_120s_before_percent":
            assert np.isnan(values).all() or not np.isnan(values).any(), name


def test_a_missing_channel_is_empty_and_a_missing_modality_masked(folder):
    found, mask = of_night(folder, "no-ecg")
    e = Embeddings(folder)
    assert mask[:, e.modalities.index("ecg")].tolist() == [False] * 10
    assert mask[:, e.modalities.index("brain")].all()
    assert np.isnan(found["ECG heart_rate_per_min"]).all()
    whole, _ = of_night(folder, "whole0")
    assert np.isnan(whole["F4-M1 delta_log10_uv2"]).all(), "the montage has it, the night has not"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files as Linux does")
def test_the_store_is_closed_when_the_command_has_ended(known, tmp_path, capsys):
    """In a program that goes on, the files of all its nights would stay open."""
    call(capsys, known, tmp_path / "out")
    gc.collect()
    held = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert not [name for name in held if name.startswith(str(known / "recordings"))]


def test_channels_that_no_night_has_are_named(known, tmp_path, capsys):
    """A probe of another cohort fills their features, which then look as if they had been measured."""
    assert features.cli([str(known), str(tmp_path / "f"), "--backend", "threading"]) == 0
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "no night of the store has" in line)
    assert "F4-M1" in said
    assert "C3-M2" not in said.split(":")[1]
    assert "are empty, and a probe that was fitted on another cohort fills them with its medians" in said


def test_a_channel_that_is_flat_throughout_is_missing(folder):
    found, mask = of_night(folder, "flat-eeg")
    assert not mask[:, Embeddings(folder).modalities.index("brain")].any()
    assert np.isnan(found["C3-M2 alpha_share"]).all()


def test_a_sensor_that_dies_early_has_amplitudes_until_then_and_spares_the_rest(folder):
    found, mask = of_night(folder, "flow-dies")
    assert mask.all()
    for name in ("rate_per_min", "amplitude_log2_ratio"):
        assert np.isfinite(found[f"Thermal Flow {name}"][:2]).all(), "it was on"
        assert np.isnan(found[f"Thermal Flow {name}"][4:]).all(), "it was off"
    np.testing.assert_allclose(found["Thermal Flow amplitude_log2_ratio"][0], 0, atol=0.2)
    np.testing.assert_allclose(found["Chest rate_per_min"], 15, atol=0.25)


def test_channels_that_give_nothing_for_most_of_a_night_are_named(known, tmp_path, capsys):
    result, said = call(capsys, known, tmp_path / "features")
    assert result["nights_mostly_empty"] == {"C3-M2": 1, "Thermal Flow": 1}
    assert "notice: in 2 nights, 2 channels give no features in more than half of the clips" in said
    assert "flat-eeg C3-M2 (100 %)" in said
    assert "flow-dies Thermal Flow (70 %)" in said
    assert "no-ecg" not in said, "what a night has not cannot have been off"


def test_a_sensor_unplugged_for_most_of_the_night_is_not_compared_with_its_noise(tmp_path):
    """A split night goes on under CPAP, with the cannula on the table."""
    noise = np.random.default_rng(0).integers(-2, 3, 25 * 60 * MINUTES) * FLOW.physical / 32767
    signals = [
        (lead, np.where(np.arange(x.size) < 0.4 * x.size, x, noise) if lead is FLOW else x)
        for lead, x in known_signals()
    ]
    store = ClipStore(store_of(tmp_path / "split", {"night": signals}))
    names, values = feature_names(store.montage)["respiratory"], measure_recording(store, 0)["respiratory"]
    flow = values[:, names.index("Thermal Flow amplitude_log2_ratio")]
    np.testing.assert_allclose(flow[:4], 0, atol=0.2)
    assert np.isnan(flow[5:]).all()
    np.testing.assert_allclose(values[1:-1, names.index("Chest amplitude_log2_ratio")], 0, atol=0.1)


def test_an_unknown_unit_leaves_only_what_needs_none(folder):
    found, _ = of_night(folder, "unitless")
    assert np.isnan(found["C3-M2 alpha_log10_uv2"]).all()
    np.testing.assert_allclose(found["C3-M2 alpha_share"], 1, atol=0.01)


def test_columns_and_splits_are_those_of_embed(known, folder):
    e, store = Embeddings(folder), ClipStore(known)
    e.verify()
    assert e.kind == "feature"
    assert e.features == feature_names(store.montage)
    for name in ("recording", "clip", "onset_s", "stage", "sdb"):
        np.testing.assert_array_equal(getattr(e, name), getattr(store, name))
    codes, _ = assign_subjects(store.subjects, Split())
    np.testing.assert_array_equal(e.split, codes[store.recording_subject[store.recording]])
    assert e.description.split_rule == Split().rule()


def of_same_bytes(folder, other):
    for file in folder.iterdir():
        if file.name != "embeddings.json":
            assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_workers_change_no_byte(known, folder, tmp_path, capsys):
    call(capsys, known, tmp_path / "f", "--workers", "3")
    of_same_bytes(folder, tmp_path / "f")


def test_worker_processes_of_the_command_as_users_start_it(known, folder, tmp_path):
    """Then the command's module is the program's, and its functions go to the workers by value."""
    done = subprocess.run(
        [sys.executable, "-m", "sleepfm_fast.features", known, tmp_path / "f", "--workers", "2"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    of_same_bytes(folder, tmp_path / "f")


def test_a_store_that_has_grown_is_opened_again(tmp_path, capsys):
    # In one process, as a notebook or reproduce would.
    for n, name in enumerate(("a", "b"), start=1):
        (tmp_path / "edf").mkdir(exist_ok=True)
        write_known_night(tmp_path / "edf" / f"{name}.edf", known_signals(), stages=["W", "2"] * MINUTES)
        assert preprocess.cli([str(tmp_path / "edf"), str(tmp_path / "store"), "--workers", "1"]) == 0
        capsys.readouterr()
        result, _ = call(capsys, tmp_path / "store", tmp_path / "f", "--overwrite")
        assert result["clips"] == 10 * n


def test_a_folder_is_not_overwritten_unasked(known, tmp_path, capsys):
    call(capsys, known, tmp_path / "f")
    assert features.cli([str(known), str(tmp_path / "f"), "--backend", "threading", "--test-share", "0.5"]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err
    result, _ = call(capsys, known, tmp_path / "f", "--overwrite")
    assert result["clips"] == 60
    assert result["widths"]["ecg"] == 9


def test_finished_features_are_not_measured_again(known, tmp_path, capsys, monkeypatch):
    first, _ = call(capsys, known, tmp_path / "f")
    (tmp_path / "f" / "progress.json").touch()  # a kill between the folder's name and the end of the command
    monkeypatch.setattr(features, "in_order", None)
    again, err = call(capsys, known, tmp_path / "f")
    assert f"{tmp_path / 'f'} is already finished: this same command wrote it" in err
    assert {**again, "elapsed_s": 0} == {**first, "elapsed_s": 0}
    assert not (tmp_path / "f" / "progress.json").exists()


def test_features_by_earlier_definitions_are_not_taken_for_these(known, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setitem(DEFINITIONS, "features", 1)
        call(capsys, known, tmp_path / "f")
    assert features.cli([str(known), str(tmp_path / "f"), "--backend", "threading"]) == 1
    assert "definitions" in capsys.readouterr().err.splitlines()[-1]


def test_names_say_channel_quantity_and_unit_once():
    for montage in MONTAGES.values():
        for names in feature_names(montage).values():
            assert len(set(names)) == len(names)
            assert all(name.isascii() for name in names)
    names = feature_names(MONTAGES["cinc2018"])
    assert "SaO2 fall_percent" in names["respiratory"]
    assert "CHEST with ABD correlation" in names["respiratory"]
    assert "Pulse Rate mean_per_min" in feature_names(MONTAGES["paper"])["respiratory"]


def test_the_page_lists_every_quantity():
    page = (Path(__file__).resolve().parents[1] / "docs" / "baselines.md").read_text()
    listed = {
        word.strip("`") for line in page.splitlines() if line.startswith("|") for word in line.split("|")[2].split()
    }
    assert {name for meter in METERS.values() for name in meter.names} <= listed


def test_a_real_recording_has_nearly_every_feature(data_folder, tmp_path):
    store = tmp_path / "store"
    labels = data_folder / "osas2002-stages.csv"
    assert preprocess.cli([str(data_folder / "osas2002.edf"), str(store), "--labels", str(labels)]) == 0
    opened = ClipStore(store)
    for values in measure_recording(opened, 0).values():
        assert values.shape[0] == len(opened)
        assert np.isfinite(values).any(axis=0).mean() > 0.8
        assert not np.isinf(values).any()


def test_clips_that_stand_alone_have_what_thirty_seconds_tell(tmp_path, capsys):
    # As the original code prepares them: 256 Hz, no neighbours, amplifier counts without a unit.
    seed_folder(tmp_path / "seed", {"tr03-0005": (0, 2, 4), "tr03-0029": (1, 7)})
    assert convert.cli([str(tmp_path / "seed"), str(tmp_path / "store"), "--from", "seed", "--workers", "1"]) == 0
    capsys.readouterr()
    result, _ = call(capsys, tmp_path / "store", tmp_path / "f")
    assert result["clips"] == 5
    e = Embeddings(tmp_path / "f")
    values = dict(zip(e.features["brain"], e.read(np.arange(5), ("brain",))[:, 0].T, strict=False))
    assert np.isfinite(values["C3-M2 delta_share"]).all()
    assert np.isnan(values["C3-M2 delta_log10_uv2"]).all()
    ecg = dict(zip(e.features["ecg"], e.read(np.arange(5), ("ecg",))[:, 0].T, strict=False))
    assert np.isnan(ecg["ECG lf_120s_log10_ms2"]).all()


@pytest.mark.parametrize("fs_hz", [0.05, 0.5, 1, 3.3, 8, 16.6, 41, 99.7, 512])
def test_no_signal_at_any_rate_stops_a_cohort(fs_hz):
    rng = np.random.default_rng(0)
    for duration_s in (30, 95):
        n = int(duration_s * fs_hz)
        signals = {
            "nothing": np.zeros(n),
            "constant": np.full(n, 77),
            "noise over the whole range": rng.integers(-32768, 32768, n),
            "one impulse": np.where(np.arange(n) == n // 2, 32767, 0),
            "railed": np.where(rng.random(n) < 0.5, 32767, -32768),
            "plausible saturation": rng.integers(800, 1000, n),
            "silent from the middle on": np.where(np.arange(n) < n // 2, rng.integers(-100, 100, n), 0),
        }
        onset_s = 30.0 * np.arange(duration_s // 30)
        for name, x in signals.items():
            run = NativeRun(x.astype(np.int16), 0.1, 0.0, fs_hz, "uV")
            for kind, meter in METERS.items():
                found = meter.measure(run, onset_s)
                if meter.compared >= 0:
                    found = against_median(found, meter.compared)
                assert found.shape == (len(onset_s), len(meter.names)), (name, kind)
                assert not np.isinf(found).any(), (name, kind)
            for kind in ("eog", "respiration"):
                assert together(kind, run, run, onset_s).shape == onset_s.shape


@pytest.fixture(scope="module")
def simulated(cohort_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("simulated") / "features"
    assert features.cli([str(cohort_store), str(path), "--backend", "threading", "--workers", "1"]) == 0
    return path


def test_a_probe_reads_stages_out_of_them(simulated, tmp_path, capsys):
    assert probe.cli([str(simulated), str(tmp_path / "result"), "--task", "stage", "--bootstraps", "0"]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["fit"]["standardise"]
    assert result["macro"]["auroc"]["value"] > 0.95
    assert probe.cli([str(simulated), "--task", "sdb", "--modality", "respiratory", "--bootstraps", "0"]) == 0
    assert last_json(capsys.readouterr().out)["macro"]["auroc"]["value"] > 0.9


def test_few_shot_reads_them_too(simulated, tmp_path, capsys):
    arguments = ["--task", "stage", "--subjects", "1", "3", "--replicates", "1"]
    assert few_shot.cli([str(simulated), str(tmp_path / "curve"), *arguments]) == 0
    curve = last_json(capsys.readouterr().out)["curve"]
    assert [point["subjects"] for point in curve][:2] == [1, 3]
    assert curve[1]["macro"]["auroc"] > 0.8


def test_retrieval_of_features_is_refused_in_a_sentence(simulated, capsys):
    assert retrieve.cli([str(simulated)]) == 1
    assert "share no space" in capsys.readouterr().err


def test_the_split_of_a_run(cohort_store, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--preset", "tiny", "--max-steps", "1", "--split-salt", "another", "--test-share", "0.4"]
    assert train.cli([str(cohort_store), str(run), *options]) == 0
    capsys.readouterr()
    call(capsys, cohort_store, tmp_path / "f", "--split-like", run)
    e, store = Embeddings(tmp_path / "f"), ClipStore(cohort_store)
    codes, _ = assign_subjects(store.subjects, Split("another", 0.1, 0.4))
    np.testing.assert_array_equal(e.split, codes[store.recording_subject[store.recording]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--test-share", "0.9", "--validation-share", "0.1"], "leave no subjects"),
        (["--test-share", "nan"], "leave no subjects"),
        (["--workers", "-1"], "--workers -1 is negative"),
        (["--split-like", "nowhere"], "holds no run"),
    ],
)
def test_impossible_options_are_refused(known, tmp_path, capsys, arguments, sentence):
    assert features.cli([str(known), str(tmp_path / "f"), *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_a_stopped_command_goes_on_to_the_same_bytes(known, folder, tmp_path, capsys, monkeypatch):
    from sleepfm_fast.baselines import recording_features

    measure, calls = recording_features.measure_recording, []

    def stop_after_four(store, recording):
        calls.append(recording)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return measure(store, recording)

    monkeypatch.setattr(recording_features, "measure_recording", stop_after_four)
    arguments = [str(known), str(tmp_path / "f"), "--backend", "threading", "--workers", "1"]
    assert features.cli(arguments) == 130
    assert "the same command continues from there" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
    monkeypatch.undo()
    monkeypatch.setattr(recording_features, "measure_recording", lambda s, r: calls.append(r) or measure(s, r))
    result, err = call(capsys, known, tmp_path / "f", "--workers", "1")
    assert "continuing: 40 of 60 clips were finished before" in err
    assert calls == [0, 1, 2, 3, 4, 4, 5]
    assert result["empty_percent"]["ecg"] > 10, "holes of all recordings count, whenever they were measured"
    for file in folder.iterdir():
        ours = (tmp_path / "f" / file.name).read_bytes()
        assert ours == file.read_bytes() or file.name == "embeddings.json", file.name
    Embeddings(tmp_path / "f").verify()
