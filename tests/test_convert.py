"""Clips and nights that other SleepFM code prepared: what they hold comes back within half a step, labels or none."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from called import last_json
from nights import state

from sleepfm_fast import convert
from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.cohorts.import_seed import CHANNELS
from sleepfm_fast.cohorts.quantise import quantise

FS_HZ, N = 256, 7680
REPOSITORY = Path(__file__).resolve().parents[1]


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def run(capsys, *arguments: object) -> tuple[int, dict, str]:
    capsys.readouterr()
    status = convert.cli([*map(str, arguments), "--workers", "1"])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return status, json.loads(lines[-1]) if lines else {}, captured.err


def seed_folder(path: Path, nights: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Write ``X/<record>/<record>_<number>.npy`` and the pickles; returns float64 [clip, 13, 7680] by record."""
    written = {}
    (path / "Y").mkdir(parents=True)
    for k, (name, numbers) in enumerate(nights.items()):
        rng = np.random.default_rng(k)
        clips = rng.normal(0, 300, (len(numbers), 13, N))
        clips[:, 3] = np.rint(clips[:, 3])  # whole numbers
        clips[:, 11] = 4000 + 100 * rng.random((len(numbers), 1))  # saturation: steps far from zero
        clips[0, 5, 10] = 3e5  # an artefact 1,000 times as large as the rest
        (path / "X" / name).mkdir(parents=True)
        for number, clip in zip(numbers, clips, strict=True):
            np.save(path / "X" / name / f"{name}_{number}.npy", clip)
        (path / "Y" / f"{name}.pickle").write_bytes(pickle.dumps({f"{name}_0.npy": Trap(path / "unpickled")}))
        written[name] = clips
    return written


def all_samples(store: ClipStore, recording: int, slot: int) -> np.ndarray:
    """Physical values of a slot, all segments."""
    entry = store.recordings[recording]
    run = np.concatenate([store.run(recording, slot, s) for s in range(entry.n_segments)])
    return store.channels.gain[recording, slot] * run.astype(np.float64) + store.channels.offset[recording, slot]


def test_seed_clips_come_back_within_half_a_step(tmp_path: Path, capsys) -> None:
    written = seed_folder(tmp_path / "seed", {"tr03-0005": (0, 1, 2, 5), "tr03-0029": (3, 11)})
    status, result, err = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert status == 0, err
    assert (result["nights"], result["clips"], result["stages"]["none"]) == (2, 6, 6)
    assert not (tmp_path / "unpickled").exists()
    assert "is a pickle, which can run any code and is not opened" in err
    store = ClipStore(tmp_path / "store", verify=True)
    assert store.onset_s.tolist() == [0, 30, 60, 150, 90, 330]
    assert store.sdb.tolist() == [-1] * 6
    assert [entry.n_segments for entry in store.recordings] == [4, 2]
    assert store.subjects == ["tr03-0005", "tr03-0029"]
    assert len(store.slots) == 13
    for recording, clips in enumerate(written.values()):
        facts = store.record(recording)["channels"]
        for slot in range(13):
            channel = CHANNELS.index(facts[slot]["labels"][0])
            wanted = clips[:, channel].ravel()
            step = store.channels.gain[recording, slot]
            assert store.fs_hz(recording, slot) == FS_HZ
            error = np.abs(all_samples(store, recording, slot) - wanted).max()
            assert error <= 0.5 * step * (1 + 1e-6) + 1e-12 * np.abs(wanted).max()
            assert step <= 300 / 200 or channel == 11
            if channel == 3:
                assert error == 0
                assert step == 1
            assert store.channels.itemsize[recording, slot] == (4 if channel == 5 else 2)
    # 60 of 61 kB a clip and channel are gone, but for the channel with the artefact
    assert store.recordings[0].n_bytes == 4 * N * (12 * 2 + 4)


def test_clips_touch_only_where_that_is_said(tmp_path: Path, capsys) -> None:
    written = seed_folder(tmp_path / "seed", {"a": (4, 5, 6, 9)})["a"]
    for options, n_segments in (((), 4), (("--joined",), 2)):
        folder = tmp_path / f"store{n_segments}"
        assert run(capsys, tmp_path / "seed", folder, "--from", "seed", *options)[0] == 0
        store = ClipStore(folder, verify=True)
        assert store.recordings[0].n_segments == n_segments
        slot = next(s for s in range(13) if store.record(0)["channels"][s]["labels"] == ["C4-M1"])
        window = store.window(0, slot, 1, 500, 500)
        assert len(window.samples) == (N + 1000 if options else N)
        inside = window.first - window.start
        np.testing.assert_array_equal(window.samples[inside : inside + N], written[1, 3])
        batch = ClipInput(store, store.montage, InputConfig("seed", 0, "none"), torch.device("cpu"))(np.arange(4))
        x = torch.cat(list(batch.x.values()), dim=1)[:, slot].numpy()
        np.testing.assert_allclose(x[:, 400:-400], written[:, 3, 400:-400], atol=0.1 * 300)


def test_stages_come_from_csv(tmp_path: Path, capsys) -> None:
    seed_folder(tmp_path / "seed", {"a": (0, 1, 2, 3, 4, 5), "b": (0,)})
    (tmp_path / "seed" / "Y" / "a.csv").write_text(
        "clip,stage\na_0.npy,wake\na_1,nonrem1\n2,nonrem3\n3,rem\n4,undefined\n"
    )
    arguments = (tmp_path / "seed", tmp_path / "store", "--from", "seed")
    status, _, err = run(capsys, *arguments)
    assert status == 0
    assert "1 of 6 clips has no row in a.csv" in err
    assert ClipStore(tmp_path / "store").stage.tolist() == [0, 1, 3, 4, -1, -1, -1]
    before = state(tmp_path / "store")
    assert run(capsys, *arguments)[1]["kept"] == 2
    assert state(tmp_path / "store") == before
    (tmp_path / "seed" / "Y" / "b.csv").write_text("clip,stage\n0,R\n")
    assert run(capsys, *arguments)[1]["added"] == 1
    assert ClipStore(tmp_path / "store").stage.tolist() == [0, 1, 3, 4, -1, -1, 4]
    after = state(tmp_path / "store")
    assert {name for name in after if after[name] != before[name]} == {"b.bin", "b.json"}
    for text, sentence in (("clip,stage\nx,W\n", "line 2: clip 'x'"), ("a,b\n1,2\n", "expected: clip, stage")):
        (tmp_path / "seed" / "Y" / "b.csv").write_text(text)
        status, _, err = run(capsys, *arguments)
        assert status == 1
        assert sentence in err


def test_bad_clips_are_left_out_and_bad_nights_do_not_stop_the_others(tmp_path: Path, capsys) -> None:
    seed_folder(tmp_path / "seed", {"a": (0, 1, 2, 3), "b": (0, 1)})
    folder = tmp_path / "seed" / "X"
    np.save(folder / "a" / "a_1.npy", np.zeros((5, N)))
    np.save(folder / "a" / "a_2.npy", np.array([Trap(tmp_path / "unpickled")], object), allow_pickle=True)
    for number in (0, 1):
        content = (folder / "b" / f"b_{number}.npy").read_bytes()
        (folder / "b" / f"b_{number}.npy").write_bytes(content[:-8])
    status, result, err = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert (status, result["nights"], result["clips"]) == (1, 1, 2)
    assert not (tmp_path / "unpickled").exists()
    assert "a_1.npy is left out: it holds float64[5, 7680], expected [13, 7680]" in err
    assert "a_2.npy is left out" in err
    assert result["failed"][0]["reason"].startswith(f"{folder / 'b'}: no clip can be used; b_0.npy is left out")
    assert (tmp_path / "store" / "failures" / "b.json").exists()
    assert ClipStore(tmp_path / "store").onset_s.tolist() == [0, 90]


def test_what_cannot_be_converted_is_a_sentence(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    seed_folder(tmp_path / "seed", {"a": (0,)})
    for arguments, sentence in (
        (("nowhere", "store", "--from", "seed"), "there is no such file or folder"),
        (("empty", "store", "--from", "seed"), "holds no folders of clips"),
        (("empty", "store", "--from", "clinical"), "holds no files ending in .hdf5 or .h5"),
        (("seed", "other", "--from", "seed"), "with other things in it, not a clip store"),
        (("seed", "store", "--from", "clinical", "--fs-hz", "0.0"), "is not a sampling rate"),
        (("seed", "store", "--from", "seed", "--labels", "nowhere"), "--labels nowhere"),
        (("other/file", "store", "--from", "seed"), "is a file; give the folder that holds X and Y"),
    ):
        source, store, *options = arguments
        status, _, err = run(capsys, tmp_path / source, tmp_path / store, *options)
        assert status == 1, err
        assert sentence in err
    assert run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")[0] == 0
    status, _, err = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed", "--joined")
    assert status == 1
    assert "was made from other recordings or with other options" in err
    (tmp_path / "store" / "recordings" / "a.bin").unlink()
    with pytest.raises(ClipStoreError, match=r"sleepfm_fast\.convert .*X/a .*store --from seed"):
        ClipStore(tmp_path / "store")


def test_a_night_that_fails_in_any_way_stops_no_others(tmp_path: Path, capsys, monkeypatch) -> None:
    """The disk that is full or fails, and what nobody has thought of."""
    seed_folder(tmp_path / "seed", {"a": (0, 1), "b": (0, 1), "c": (0,)})
    look = convert.look
    errors = {
        "a": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "store" / "a.bin")),
        "b": RuntimeError("of a kind of its own"),
    }

    def failing(path, config):
        if path.name in errors:
            raise errors[path.name]
        return look(path, config)

    monkeypatch.setattr(convert, "look", failing)
    status, result, err = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed", "--montage", "paper")
    assert (status, result["nights"]) == (1, 1), err
    assert [failed["reason"] for failed in result["failed"]] == [
        f"{tmp_path / 'seed' / 'X' / 'a'} could not be converted "
        f"({tmp_path / 'store' / 'a.bin'}: {os.strerror(errno.ENOSPC)}).",
        f"{tmp_path / 'seed' / 'X' / 'b'} could not be converted: RuntimeError: of a kind of its own.",
    ]
    errors.clear()
    status, result, _ = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert (status, result["nights"], result["added"]) == (0, 3, 2)


# ---- HDF5 of the clinical code -------------------------------------------------------------------------------------


def clinical_file(path: Path, seconds: float = 100.0, fs_hz: int = 128) -> dict[str, np.ndarray]:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    n = int(seconds * fs_hz)
    channels = {name: rng.normal(0, 1, n).astype(np.float16) for name in ("C3-M2", "ECG", "SaO2", "Thor")}
    channels["C4-M1"] = np.full(n, np.nan, np.float16)  # every later channel must keep its own name
    channels["ECG"][:5] = np.nan
    with h5py.File(path, "w") as file:
        for name, values in channels.items():
            file.create_dataset(name, data=values, chunks=(min(n, 300 * fs_hz),), compression="gzip")
        file.create_dataset("E1-M2", data=np.zeros(7, np.float16))
        file.create_group("more")
    return channels


@pytest.mark.parametrize("fs_hz", [128, 256])
def test_clinical_nights_come_back_within_half_a_step(tmp_path: Path, capsys, fs_hz: int) -> None:
    (tmp_path / "h5").mkdir()
    channels = clinical_file(tmp_path / "h5" / "n.hdf5", fs_hz=fs_hz)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "n.csv").write_text("Start,Stop,StageName,StageNumber\n0,30,Wake,0\n30,60,Stage 2,2\n")
    options = ("--from", "clinical", "--labels", tmp_path / "labels", "--fs-hz", fs_hz)
    status, _, err = run(capsys, tmp_path / "h5", tmp_path / "store", *options)
    assert status == 0, err
    assert "C4-M1: none of its samples is finite; it counts as missing" in err
    assert f"ECG: 5 of {100 * fs_hz} samples are not finite" in err
    assert "E1-M2 is left out: it has 7 samples" in err
    store = ClipStore(tmp_path / "store", verify=True)
    assert store.stage.tolist() == [0, 2, -1]
    found = set()
    for slot in range(len(store.slots)):
        facts = store.record(0)["channels"][slot]
        if not facts["present"]:
            continue
        (name,) = facts["labels"]
        found.add(name)
        wanted = channels[name].astype(np.float64)
        assert store.fs_hz(0, slot) == fs_hz
        step = store.channels.gain[0, slot]
        assert step < 2e-4  # a float16 near 1 is 10e-4 from the next
        known = np.isfinite(wanted)
        assert np.abs(all_samples(store, 0, slot) - wanted)[known].max() <= 0.5 * step * (1 + 1e-6)
    assert found == {"C3-M2", "ECG", "SaO2", "Thor"}


def test_labels_that_are_missing_or_cannot_be_read_are_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "h5").mkdir()
    (tmp_path / "labels").mkdir()
    clinical_file(tmp_path / "h5" / "words.hdf5")
    for name in ("accent", "list", "none"):
        shutil.copyfile(tmp_path / "h5" / "words.hdf5", tmp_path / "h5" / f"{name}.hdf5")
    (tmp_path / "labels" / "words.csv").write_text("Start,Stop,StageName\n0,30,Wake\n30,a minute,Stage 2\n")
    # What another program wrote in another encoding.
    (tmp_path / "labels" / "accent.csv").write_bytes("Start,Stop,StageName\n0,30,Éveil\n30,60,N2\n".encode("latin-1"))
    (tmp_path / "labels" / "list.csv").write_bytes("Durée [s];Stade\n30;Éveil\n30;N2\n30;R\n".encode("latin-1"))
    options = ("--from", "clinical", "--montage", "aasm", "--labels", tmp_path / "labels")
    status, result, err = run(capsys, tmp_path / "h5", tmp_path / "store", *options)
    assert (status, result["nights"]) == (1, 3), err
    (failed,) = result["failed"]
    assert failed["reason"].startswith(f"{tmp_path / 'labels' / 'words.csv'}, line 3: Start '30' and Stop 'a minute'")
    assert f"no labels: {tmp_path / 'labels' / 'none.csv'} does not exist" in err
    for name in ("accent", "list"):
        assert f"{tmp_path / 'labels' / name}.csv is not UTF-8; it was read as Latin-1" in err
    store = ClipStore(tmp_path / "store")
    stages = {entry.id: store.stage[entry.first_clip :][: entry.n_clips].tolist() for entry in store.recordings}
    assert stages == {"accent": [0, 2, -1], "list": [0, 2, 4], "none": [-1, -1, -1]}


def test_nights_without_a_clip_or_a_channel_fail_by_name(tmp_path: Path, capsys) -> None:
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "h5"
    folder.mkdir()
    clinical_file(folder / "good.hdf5")
    clinical_file(folder / "short.hdf5", seconds=29.0)
    with h5py.File(folder / "empty.hdf5", "w") as file:
        file.create_group("more")
    with h5py.File(folder / "strange.hdf5", "w") as file:
        file["Kanal 7"] = np.ones(12800, np.float16)
        file[b"\xff"] = np.ones(12800, np.float16)
    status, result, err = run(capsys, folder, tmp_path / "store", "--from", "clinical", "--montage", "aasm")
    assert (status, result["nights"]) == (1, 1), err
    reasons = {Path(failed["path"]).stem: failed["reason"] for failed in result["failed"]}
    assert reasons.keys() == {"empty", "short", "strange"}
    assert "holds no channels" in reasons["empty"]
    assert "no whole clip of 30 s fits" in reasons["short"]
    assert "none of its channels (Kanal 7) fills a slot of the montage 'aasm'" in reasons["strange"]


def test_nights_are_described_in_a_table(tmp_path: Path, capsys) -> None:
    clinical_file(tmp_path / "n.hdf5")
    scored = "onset,duration,description\n0,30,N2\n30,30,N2\n60,30,W\n35,15,Hypopnea\n"
    (tmp_path / "n.csv").write_text(scored)
    seed_folder(tmp_path / "seed", {"a": (0, 1)})
    (tmp_path / "seed" / "Y" / "a.csv").write_text("clip,stage\n0,N2\n1,R\n")
    (tmp_path / "people.csv").write_text("recording,subject,age,sex\na,a,61,F\nn,p,50,M\n")
    rows = {}
    for source, kind in ((tmp_path / "n.hdf5", "clinical"), (tmp_path / "seed", "seed")):
        labels = ("--labels", tmp_path) if kind == "clinical" else ()
        store = tmp_path / f"from-{kind}"
        arguments = (source, store, "--from", kind, "--participants", tmp_path / "people.csv", *labels)
        status, result, err = run(capsys, *arguments)
        other = {"clinical": "a", "seed": "n"}[kind]
        assert (status, result["participants_unknown"]) == (0, [other])
        assert f"the participants table names 1 recording that was not given: {other}" in err
        with (store / "nights.csv").open(newline="") as file:
            (rows[kind],) = csv.DictReader(file)
    chosen = ("subject", "age", "sex", "scored_clips", "total_sleep_time_min", "sleep_efficiency_percent")
    assert [rows["clinical"][name] for name in chosen] == ["p", "50", "M", "3", "1", "66.6667"]
    assert [rows["seed"][name] for name in chosen] == ["a", "61", "F", "2", "1", "100"]
    assert [rows[kind]["apnea_hypopnea_index"] for kind in ("clinical", "seed")] == ["60", ""]


def test_nights_with_labels_by_other_rules_are_converted_again(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "h5").mkdir()
    clinical_file(tmp_path / "h5" / "n.hdf5")
    (tmp_path / "h5" / "n.csv").write_text("Start,Stop,StageName\n0,30,Wake\n30,60,Stage 2\n")
    (tmp_path / "seed" / "X" / "a").mkdir(parents=True)
    np.save(tmp_path / "seed" / "X" / "a" / "a_0.npy", np.random.default_rng(0).normal(0, 300, (13, 7680)))
    clinical = (tmp_path / "h5", tmp_path / "clinical", "--from", "clinical", "--labels", tmp_path / "h5")
    seed = (tmp_path / "seed", tmp_path / "from-seed", "--from", "seed")
    with monkeypatch.context() as earlier:
        earlier.setattr("sleepfm_fast.scoring.labels.LABEL_RULES", 1)
        for arguments in (clinical, seed):
            assert run(capsys, *arguments, "--workers", "1")[1]["added"] == 1
    for arguments, again in ((clinical, (1, 0)), (clinical, (0, 1)), (seed, (0, 1))):  # of seed, every clip has its own
        status, result, err = run(capsys, *arguments, "--workers", "1")
        assert status == 0, err
        assert (result["added"], result["kept"]) == again


def test_a_file_that_is_no_hdf5_is_named(tmp_path: Path, capsys) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "n.hdf5").write_bytes(b"nothing" * 100)
    status, _, err = run(capsys, tmp_path / "n.hdf5", tmp_path / "store", "--from", "clinical", "--montage", "aasm")
    assert status == 1
    assert "cannot be read as HDF5" in err


def test_without_h5py_the_extra_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "n.hdf5").touch()
    status, _, err = run(capsys, tmp_path / "n.hdf5", tmp_path / "store", "--from", "clinical")
    assert status == 1
    assert "pip install 'sleepfm_fast[clinical]'" in err


# ---- quantisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-3.7, 12.1, 1001),
        np.array([1e300, -1e300, 0.0]),
        np.array([1.5]),
        np.array([5e-324, 0.0]),
        np.arange(-32768, 32768, dtype=float),
        np.arange(-32769, 32768, dtype=float),
        np.concatenate([np.random.default_rng(0).normal(0, 1, 5000), [1e6]]),
        np.full(9, 1e-7),
        np.full(9, -1.7e308),
        np.array([0.3, np.nextafter(0.3, 1)]),
        np.zeros(0),
    ],
    ids=lambda v: f"{v.size} values to {abs(v).max(initial=0):g}",
)
def test_half_a_step(values: np.ndarray) -> None:
    q = quantise(values, "x")
    assert q is not None
    back = q.gain * q.integers.astype(np.float64) + q.offset
    # The rounding of float64 comes on top, and two numbers that it cannot tell apart are one.
    bound = 0.5 * q.gain * (1 + 1e-9) + 4e-16 * np.abs(values)
    assert (np.abs(back - values) <= bound).all()
    if values.size and np.array_equal(values, np.rint(values)) and abs(values + 0.5).max() < 32768:
        assert (q.gain, q.offset) == (1, 0)


def test_spikes_take_32_bits_and_lost_samples_are_counted() -> None:
    rng = np.random.default_rng(0)
    quiet = rng.normal(0, 1, 10000)
    assert quantise(quiet, "x").integers.dtype == np.int16
    quiet[77] = 1e4
    spiked = quantise(quiet, "x")
    assert spiked.integers.dtype == np.int32
    assert spiked.gain < 1 / 256
    often = quiet.copy()
    often[::100] = 1e6  # an amplifier that saturates again and again moves a mean far from the signal
    assert quantise(often, "x").gain < 1 / 256
    quiet[5:9] = (np.nan, np.inf, -np.inf, np.nan)
    assert quantise(quiet, "x").issues == (
        "x: 4 of 10000 samples are not finite; the middle of the range stands for them",
    )
    assert quantise(np.array([np.nan, np.inf]), "x") is None


def test_an_empty_clip_costs_itself_and_not_its_night(tmp_path, capsys):
    seed_folder(tmp_path / "seed", {"tr03-0005": (0, 2, 4), "tr03-0029": (1, 7)})
    next((tmp_path / "seed" / "X").rglob("tr03-0005_2.npy")).write_bytes(b"")
    assert convert.cli([str(tmp_path / "seed"), str(tmp_path / "store"), "--from", "seed", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["clips"] == 4
    assert "tr03-0005_2.npy" in captured.err


def test_a_cohort_of_which_nothing_can_be_read_says_why(tmp_path, capsys):
    pytest.importorskip("h5py")
    (tmp_path / "night.h5").write_text("no HDF5")
    assert convert.cli([str(tmp_path / "night.h5"), str(tmp_path / "store"), "--from", "clinical"]) == 1
    assert "night.h5" in capsys.readouterr().err.splitlines()[-1]


def npy(header: str, n_bytes: int) -> bytes:
    """A file with a header of one's own."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(n_bytes)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04",
        npy("(" * 200, 0),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (13, -7680)}", 800_000),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (True, 7680)}", 800_000),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}", 8),
    ],
)
def test_a_damaged_clip_costs_itself_and_not_its_night(tmp_path, capsys, content):
    seed_folder(tmp_path / "seed", {"a": (0, 1, 2)})
    (tmp_path / "seed" / "X" / "a" / "a_1.npy").write_bytes(content)
    status, result, err = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert (status, result["clips"]) == (0, 2), err
    assert "a_1.npy is left out" in err


def test_clips_with_numbers_without_end_are_no_clips(tmp_path, capsys):
    seed_folder(tmp_path / "seed", {"a": (0, 1)})
    folder = tmp_path / "seed" / "X" / "a"
    (folder / "a_1.npy").rename(folder / f"a_{'9' * 20}.npy")
    (tmp_path / "seed" / "Y" / "a.csv").write_text(f"clip,stage\n0,W\n{'9' * 5000},N2\n")
    status, result, _ = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert status == 1
    assert result["failed"][0]["reason"].startswith(str(tmp_path / "seed" / "Y" / "a.csv"))
    (tmp_path / "seed" / "Y" / "a.csv").unlink()
    assert run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")[1]["clips"] == 1


def test_what_hdf5_promises_and_does_not_hold_is_left_out(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    clinical_file(tmp_path / "n.hdf5")
    with h5py.File(tmp_path / "n.hdf5", "a") as file:
        file.create_dataset("E2-M1", shape=(10**12,), dtype="f2", chunks=(1000,))
        file["Flow"] = h5py.SoftLink("/nowhere")
        file["Snore"] = h5py.SoftLink("/Snore")
        file["Type"] = np.dtype("f8")
    options = ("--from", "clinical", "--montage", "aasm")
    status, result, err = run(capsys, tmp_path / "n.hdf5", tmp_path / "store", *options)
    assert (status, result["clips"]) == (0, 3), err
    assert "E2-M1 is left out: none of its 1000000000000 samples was ever written" in err
    assert "Flow is left out" in err
    assert "Snore is left out" in err
    status, _, err = run(capsys, tmp_path / "n.hdf5", tmp_path / "slow", *options, "--fs-hz", "0.00001")
    assert status == 1
    assert f"{tmp_path / 'n.hdf5'}: its header says that the samples last" in err


def test_what_lies_in_another_file_is_not_read(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    clinical_file(tmp_path / "other.hdf5")
    (tmp_path / "private").write_bytes(b"secret!!" * 3200)
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "n.hdf5", "w") as file:
        file["C3-M2"] = np.arange(12800, dtype=np.float16)
        file["ECG"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/ECG")
        file.create_dataset("SaO2", shape=(12800,), dtype="f2", external=[(str(tmp_path / "private"), 0, 25600)])
        layout = h5py.VirtualLayout((12800,), "f2")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "Thor", shape=(12800,))
        file.create_virtual_dataset("Thor", layout)
        # A link within the file to a link out of it, and to a data set of a file that is linked as a whole.
        inner = file.create_group("inner")
        inner["one"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/ECG")
        inner["all"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/")
        file["C4-M1"] = h5py.SoftLink("/inner/one")
        file["Abdomen"] = h5py.SoftLink("/inner/all/Thor")
        file["F3-M2"] = h5py.SoftLink("/C3-M2")
    options = ("--from", "clinical", "--montage", "aasm")
    status, _, err = run(capsys, tmp_path / "in", tmp_path / "store", *options)
    assert status == 0, err
    for name in ("ECG", "SaO2", "Thor", "C4-M1", "Abdomen"):
        assert f"{name} is left out: its samples lie in another file" in err
    store = ClipStore(tmp_path / "store")
    present = store.channels.present[0]
    assert {slot.name for slot, there in zip(store.slots, present, strict=True) if there} == {"C3-M2", "F3-M2"}


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    seed_folder(tmp_path / "seed", {"a": (0, 1)})
    os.mkfifo(tmp_path / "seed" / "X" / "a" / "a_2.npy")
    status, result, err = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert (status, result["clips"]) == (0, 2), err
    assert "a_2.npy is left out: it is no regular file" in err
    (tmp_path / "h5").mkdir()
    clinical_file(tmp_path / "h5" / "n.hdf5")
    os.mkfifo(tmp_path / "h5" / "pipe.hdf5")
    status, result, err = run(capsys, tmp_path / "h5", tmp_path / "second", "--from", "clinical")
    assert (status, result["nights"]) == (1, 1), err
    assert f"{tmp_path / 'h5' / 'pipe.hdf5'}: this is no regular file, expected an HDF5 file." in err


def test_damaged_hdf5_files_stop_no_others(tmp_path, capsys):
    pytest.importorskip("h5py")
    folder = tmp_path / "h5"
    folder.mkdir()
    clinical_file(folder / "a.hdf5")
    good = (folder / "a.hdf5").read_bytes()
    for name, mark in (("b", b"TREE"), ("c", b"SNOD"), ("d", b"HEAP")):
        (folder / f"{name}.hdf5").write_bytes(good.replace(mark, b"\0\0\0\0"))
    (folder / "e.hdf5").write_bytes(good[:-300])
    status, result, err = run(capsys, folder, tmp_path / "store", "--from", "clinical")
    assert (status, result["nights"]) == (1, 1), err
    assert [Path(failed["path"]).stem for failed in result["failed"]] == ["b", "c", "d", "e"]
    for failed in result["failed"]:
        assert failed["reason"].startswith(f"{failed['path']} cannot be read as HDF5")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_night_that_ends_its_worker_twice_has_failed_and_the_others_have_not(tmp_path, capsys, workers):
    """As one does whose mapped file shrinks while it is read, or whose file crashes a library."""
    seed_folder(tmp_path / "seed", {"a": (0, 1), "b": (0, 1), "c": (0, 1)})
    script = f"""
import os, signal, sys
from sleepfm_fast import convert
convert.itself = convert.convert_night  # which a copy of this process has, and a new one has not
def attempt(path, *rest):
    import sleepfm_fast.convert as convert
    def converted(*arguments):
        os.kill(os.getpid(), signal.SIGBUS)
    original = convert.converted
    convert.converted = converted if path.name == "b" else original
    try:
        return getattr(convert, "itself", convert.convert_night)(path, *rest)
    finally:
        convert.converted = original
convert.convert_night = attempt
given = [{str(tmp_path / "seed")!r}, {str(tmp_path / "store")!r}, "--from", "seed", "--workers", "{workers}"]
sys.exit(convert.cli(given))
"""
    for again in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1, done.stderr
        result = last_json(done.stdout)
        assert (result["nights"], result["added"]) == (2, 0 if again else 2)
        assert [Path(entry["path"]).name for entry in result["failed"]] == ["b"]
        assert "it ended its worker process, the second time" in result["failed"][0]["reason"]
        # Known to be deadly, it is tried alone at once.
        assert ("a worker process died" in done.stderr) is not again
    assert [entry.id for entry in ClipStore(tmp_path / "store", verify=True).recordings] == ["a", "c"]
    status, result, _ = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert (status, result["nights"], result["added"]) == (0, 3, 1)


def test_nights_that_are_not_listed_are_counted(tmp_path, capsys):
    nights = {f"n{k:02d}": (0,) for k in range(12)}
    seed_folder(tmp_path / "seed", nights)
    for name in nights:
        (tmp_path / "seed" / "X" / name / f"{name}_0.npy").write_bytes(b"")
    status, result, err = run(capsys, tmp_path / "seed", tmp_path / "store", "--from", "seed")
    assert (status, len(result["failed"])) == (1, 12)
    assert err.count("failed: ") == 10
    assert f"and 2 more failed; the reasons are in {tmp_path / 'store' / 'failures'}" in err
