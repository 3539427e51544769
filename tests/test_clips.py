"""The clip store: what was recorded comes back, integer for integer; damage is named."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyedflib
import pytest
from edf_files import Channel, annotation_channel, starts, write_edf
from nights import Lead, preprocess, write_night

from sleepfm_fast import system
from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution import threads
from sleepfm_fast.scoring.labels import ClipGrid
from sleepfm_fast.storage import open_files
from sleepfm_fast.store import clip_writer
from sleepfm_fast.store.clip_layout import read_store_file, sdb_counts, stage_counts
from sleepfm_fast.store.clip_writer import read_record
from sleepfm_fast.store.feed import Buffer, Feed
from sleepfm_fast.store.native_runs import native_run
from sleepfm_fast.store.window_kernels import read_windows


class FakeBank:
    """Rates in lowest terms and a context that differs from filter to filter."""

    def __init__(self) -> None:
        self.designs: list[tuple[str, Fraction]] = []

    def index(self, kind: str, fs_hz: Fraction) -> int:
        if (kind, fs_hz) not in self.designs:
            self.designs.append((kind, fs_hz))
        return self.designs.index((kind, fs_hz))

    def up(self, f: int) -> int:
        return (256 / self.designs[f][1]).numerator

    def context(self, f: int) -> int:
        return 40 + 7 * f


def make(tmp_path: Path, capsys, *options: str, **nights: dict) -> ClipStore:
    folder = tmp_path / "nights"
    folder.mkdir()
    for name, night in nights.items():
        write_night(folder / f"{name}.{'bdf' if night.get('bdf') else 'edf'}", **night)
    status, _ = preprocess(capsys, folder, tmp_path / "store", *options)
    assert status == 0
    return ClipStore(tmp_path / "store", verify=True)


def slot_of(store: ClipStore, name: str) -> int:
    return [slot.name for slot in store.slots].index(name)


@pytest.mark.parametrize("bdf", [False, True])
def test_samples_are_those_that_pyedflib_reads(tmp_path: Path, capsys, bdf: bool) -> None:
    store = make(tmp_path, capsys, night={"bdf": bdf})
    reader = pyedflib.EdfReader(store.recordings[0].source)
    used = set()
    for slot in range(len(store.slots)):
        facts = store.record(0)["channels"][slot]
        assert facts["present"]
        signal = reader.getSignalLabels().index(facts["labels"][0])
        used.add(signal)
        run = store.run(0, slot, 0)
        assert run.dtype == (np.int32 if bdf else np.int16)
        assert store.run_offset[0, slot] % 64 == 0
        np.testing.assert_array_equal(run, reader.readSignal(signal, digital=True))
        scale = 1000.0 if reader.getPhysicalDimension(signal) == "mV" else 1.0
        physical = store.channels.gain[0, slot] * run + store.channels.offset[0, slot]
        np.testing.assert_allclose(physical, scale * reader.readSignal(signal), rtol=1e-9, atol=1e-9)
        assert store.fs_hz(0, slot) == Fraction(reader.getSampleFrequency(signal))
    reader.close()
    assert used == set(range(6))
    assert store.units[store.channels.unit[0, slot_of(store, "ECG")]] == "uV"
    assert store.stage.tolist() == [0, 1, 2, 4]
    assert store.sdb.tolist() == [-1] * 4
    assert store.onset_s.tolist() == [0, 30, 60, 90]
    assert [m.name for m in store.montage.modalities] == ["respiratory", "brain", "ecg"]
    assert store.modality_present().tolist() == [[True] * 3]


def test_a_channel_of_each_night_is_in_its_own_unit_and_scale(tmp_path: Path, capsys) -> None:
    first = (Lead("C3-M2"), Lead("SpO2", 1, "%", 100.0))
    second = (Lead("C3-M2", 200, "mV", 2.0), Lead("SpO2", 1, "", 1.0), Lead("Chest", 25, "", 1.0))
    leads = (first, second)
    store = make(tmp_path, capsys, **{name: {"leads": of} for name, of in zip("ab", leads, strict=True)})
    for recording in range(2):
        reader = pyedflib.EdfReader(store.recordings[recording].source)
        for name, signal, scale in (("C3-M2", 0, (1, 1e3)[recording]), ("SpO2", 1, 1)):
            run = native_run(store, recording, slot_of(store, name), 0)
            assert run is not None
            assert run.fs_hz == reader.getSampleFrequency(signal)
            assert run.unit == ("uV" if signal == 0 else ("%", "")[recording])
            np.testing.assert_allclose(run.physical(), scale * reader.readSignal(signal), rtol=1e-9, atol=1e-9)
        reader.close()
        assert (native_run(store, recording, slot_of(store, "Chest"), 0) is None) is (recording == 0)


def test_only_the_slots_of_the_montage_are_stored(tmp_path: Path, capsys) -> None:
    leads = (Lead("C3-M2"), Lead("ECG"), Lead("Position", 10, "", 10))
    store = make(tmp_path, capsys, "--montage", "aasm", night={"leads": leads})
    filled = [c["labels"] for c in store.record(0)["channels"] if c["present"]]
    assert filled == [["C3-M2"], ["ECG"]]
    # 120 s of two channels at 100 Hz, each run rounded up to 64 bytes
    assert store.recordings[0].n_bytes == 2 * 64 * -(-120 * 100 * 2 // 64)
    missing = slot_of(store, "SpO2")
    assert store.window(0, missing, 0, 10, 10).samples.size == 0
    assert store.fs_hz(0, missing) is None
    assert store.modality_present().tolist() == [[False, True, True]]


def test_window_has_neighbours_and_stops_at_the_ends(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    slot = slot_of(store, "C3-M2")
    run = store.run(0, slot, 0)
    first = store.window(0, slot, 0, 50, 70)
    assert (first.start, first.first, first.phase, first.n_segment) == (0, 0, 0, 12000)
    np.testing.assert_array_equal(first.samples, run[: 3000 + 70])
    middle = store.window(0, slot, 2, 50, 70)
    assert (middle.start, middle.first) == (6000 - 50, 6000)
    np.testing.assert_array_equal(middle.samples, run[5950 : 9000 + 70])
    last = store.window(0, slot, 3, 50, 70)
    np.testing.assert_array_equal(last.samples, run[8950:])
    assert not last.samples.flags.writeable
    with pytest.raises(ValueError, match="has no clip 4"):
        store.window(0, slot, 4, 0, 0)


def test_phase_of_a_clip_between_samples(tmp_path: Path, capsys) -> None:
    # The scoring starts at 0.25 s: sample 6.25 of 25 Hz, a quarter of a sample past sample 6.
    store = make(tmp_path, capsys, night={"first_stage_s": 0.25, "seconds": 150})
    slot = slot_of(store, "Thermal Flow")
    assert store.fs_hz(0, slot) == 25
    window = store.window(0, slot, 0, 3, 5, up=256)
    assert (window.start, window.first, window.phase) == (3, 6, 64)
    assert len(window.samples) == 3 + 751 + 5
    # 0.25 s of a 1-Hz trend, to the nearest of L = 256; without upsampling to the nearest sample
    trend = slot_of(store, "SpO2")
    assert store.window(0, trend, 0, 0, 0, up=256)[1:4] == (0, 0, 64)
    assert store.window(0, trend, 0, 0, 0)[1:4] == (0, 0, 0)


def test_rounding_carries_a_full_phase_to_the_next_sample(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={"first_stage_s": 0.9999, "seconds": 150})
    trend = slot_of(store, "SpO2")
    assert store.window(0, trend, 0, 0, 0, up=256)[1:4] == (1, 1, 0)
    bank = FakeBank()
    table = Feed(store, [trend], bank).gather([0]).table
    assert table[0, 0, 3:5].tolist() == [1, 0]


def gap_night(path: Path) -> tuple[np.ndarray, list[int]]:
    """70 s, a gap of 50 s, 45 s: clips at 0, 30 and 120 s."""
    onsets = [*range(70), *range(120, 165)]
    values = np.arange(len(onsets) * 100).reshape(-1, 100) - 5000
    scored = {
        0: b"".join(f"+{t}\x1530\x14Sleep stage {s}\x14\0".encode() for t, s in ((0, "W"), (30, "2"), (120, "R")))
    }
    channels = [Channel("C3-M2", values), annotation_channel(starts([str(t) for t in onsets], scored), 80)]
    write_edf(path, channels, reserved="EDF+D")
    return values.ravel(), onsets


def test_gaps_are_never_bridged(tmp_path: Path, capsys) -> None:
    values, _ = gap_night(tmp_path / "gap.edf")
    status, result = preprocess(capsys, tmp_path / "gap.edf", tmp_path / "store")
    assert (status, result["clips"]) == (0, 3)
    store = ClipStore(tmp_path / "store", verify=True)
    assert store.onset_s.tolist() == [0, 30, 120]
    assert store.segment.tolist() == [0, 0, 1]
    assert store.stage.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(store.run(0, 0, 0), values[:7000])
    np.testing.assert_array_equal(store.run(0, 0, 1), values[7000:])
    after_gap = store.window(0, 0, 2, 100, 100)
    np.testing.assert_array_equal(after_gap.samples, values[7000 : 7000 + 3000 + 100])
    before_gap = store.window(0, 0, 1, 100, 5000)
    np.testing.assert_array_equal(before_gap.samples, values[2900:7000])
    batch = Feed(store, [0], FakeBank()).gather([2, 1])
    np.testing.assert_array_equal(batch.raw, np.concatenate([values[7000:10040], values[2960:6040]]))


def test_equal_gains_subtract_exactly(tmp_path: Path, capsys) -> None:
    leads = (Lead("C3", 100), Lead("M2", 100), Lead("ECG"))
    store = make(tmp_path, capsys, "--montage", "aasm", night={"leads": leads})
    slot = slot_of(store, "C3-M2")
    c3, m2, _ = write_night(tmp_path / "same.edf", leads=leads)
    run = store.run(0, slot, 0)
    assert run.dtype == np.int32
    np.testing.assert_array_equal(run, c3 - m2)
    assert store.channels.gain[0, slot] == pytest.approx(1000 / 65535)
    assert store.channels.offset[0, slot] == 0
    assert "exact difference" in store.record(0)["channels"][slot]["note"]


@pytest.mark.parametrize("bdf", [False, True])
@pytest.mark.parametrize(("unit", "microvolts"), [("uV", 1.0), ("mV", 1e3)])
@pytest.mark.parametrize("ratio", [3.7, 400.0])
def test_other_gains_are_requantised_within_half_a_step(
    tmp_path: Path, capsys, ratio: float, bdf: bool, unit: str, microvolts: float
) -> None:
    top = 50.0 / microvolts
    leads = (Lead("C3", unit=unit, physical=top), Lead("M2", unit=unit, physical=round(top * ratio, 3)), Lead("ECG"))
    store = make(tmp_path, capsys, "--montage", "aasm", night={"leads": leads, "bdf": bdf})
    slot = slot_of(store, "C3-M2")
    reader = pyedflib.EdfReader(store.recordings[0].source)
    wanted = microvolts * (reader.readSignal(0) - reader.readSignal(1))
    reader.close()
    assert store.units[store.channels.unit[0, slot]] == "uV"
    step = store.channels.gain[0, slot]
    error = step * store.run(0, slot, 0) + store.channels.offset[0, slot] - wanted
    # The offset of a difference is the difference of the offsets; half a step is what rounding may cost.
    assert np.max(np.abs(error)) <= 0.5001 * step
    finer_gain = 100 / (2**24 - 1 if bdf else 2**16 - 1)
    assert step <= finer_gain * (1 if ratio < 100 or not bdf else 4)
    if not bdf:
        assert step == pytest.approx(finer_gain / (256 if ratio < 100 else 128))
    assert "requantised" in store.record(0)["channels"][slot]["note"]


def expected_batch(store: ClipStore, clips: list[int], slots: list[int], bank: FakeBank) -> list[list[np.ndarray]]:
    return [
        [
            store.window(
                int(store.recording[i]), s, int(store.clip[i]),
                bank.context(f := bank.index(store.slots[s].kind, fs)), bank.context(f), up=bank.up(f),
            ).samples
            if (fs := store.fs_hz(int(store.recording[i]), s)) is not None
            else np.empty(0)
            for s in slots
        ]
        for i in clips
    ]  # fmt: skip


def mixed_store(tmp_path: Path, capsys) -> ClipStore:
    return make(
        tmp_path, capsys, "--montage", "aasm",
        a={"first_stage_s": 0.37, "seconds": 200, "seed": 1},
        b={"leads": (Lead("C3", 128), Lead("M2", 128), Lead("Airflow", 32, "", 10.0)), "seed": 2},
        c={"leads": (Lead("C3-M2", 250), Lead("ECG", 500)), "seed": 3, "seconds": 95, "stages": "123"},
    )  # fmt: skip


def test_gathered_windows_are_the_recordings_own(tmp_path: Path, capsys) -> None:
    store = mixed_store(tmp_path, capsys)
    bank = FakeBank()
    slots = list(range(len(store.slots)))
    clips = [*np.random.default_rng(0).permutation(len(store)).tolist(), 0, 0]
    batch = Feed(store, slots, bank).gather(clips)
    expected = expected_batch(store, clips, slots, bank)
    assert batch.raw.dtype == np.int32  # b's derived channel
    assert batch.table.shape == (len(clips), len(slots), 6)
    assert batch.calibration.dtype == np.float32
    for b, clip in enumerate(clips):
        recording = int(store.recording[clip])
        for c, slot in enumerate(slots):
            offset, length, start, first, phase, f = batch.table[b, c].tolist()
            fs = store.fs_hz(recording, slot)
            if fs is None:
                assert [offset, length, start, first, phase, f] == [0] * 6
                assert batch.calibration[b, c].tolist() == [0, 0, 0, 1]
                continue
            np.testing.assert_array_equal(batch.raw[offset : offset + length], expected[b][c])
            up = bank.up(f)
            onset = Fraction(float(store.onset_s[clip])) * fs
            assert abs(first + Fraction(phase, up) - onset) <= Fraction(1, 2 * up) + Fraction(1, 10**6)
            assert 0 <= phase < up
            assert start == max(0, first - bank.context(f))
            assert bank.designs[f] == (store.slots[slot].kind, fs)
            np.testing.assert_allclose(
                batch.calibration[b, c],
                [store.channels.gain[recording, slot], store.channels.offset[recording, slot], 0, 1],
                rtol=1e-7,
            )


def test_rates_that_share_a_numerator_have_their_own_filters(tmp_path: Path, capsys) -> None:
    for name, record_s in (("a", 1), ("b", 3), ("c", 7)):
        values = np.random.default_rng(record_s).integers(-99, 99, (-(-126 // record_s), 100))
        write_edf(tmp_path / f"{name}.edf", [Channel("C3-M2", values)], record_s=record_s)
    nights = [tmp_path / f"{name}.edf" for name in "abc"]
    assert preprocess(capsys, *nights, tmp_path / "store")[0] == 0
    store, bank = ClipStore(tmp_path / "store"), FakeBank()
    slot = slot_of(store, "C3-M2")
    assert [store.fs_hz(recording, slot) for recording in range(3)] == [100, Fraction(100, 3), Fraction(100, 7)]
    clips = list(range(len(store)))
    batch = Feed(store, [slot], bank).gather(clips)
    expected = expected_batch(store, clips, [slot], bank)
    for clip, row, window in zip(clips, batch.table[:, 0].tolist(), expected, strict=True):
        np.testing.assert_array_equal(batch.raw[row[0] : row[0] + row[1]], window[0])
        assert bank.designs[row[5]][1] == store.fs_hz(int(store.recording[clip]), slot)


def test_a_clip_does_not_depend_on_its_batch(tmp_path: Path, capsys) -> None:
    store = mixed_store(tmp_path, capsys)
    feed = Feed(store, store.slots_of("brain"), FakeBank())
    together = feed.gather(np.arange(len(store)))
    for i in range(len(store)):
        alone = feed.gather([i])
        for c in range(len(feed.slots)):
            o, n = together.table[i, c, :2]
            p, m = alone.table[0, c, :2]
            np.testing.assert_array_equal(together.raw[o : o + n], alone.raw[p : p + m])
        np.testing.assert_array_equal(together.table[i, :, 2:], alone.table[0, :, 2:])
    only_int16 = feed.gather(np.flatnonzero(store.recording == 0))
    assert only_int16.raw.dtype == np.int16


def test_few_mapped_recordings_serve_many(tmp_path: Path, capsys) -> None:
    store = mixed_store(tmp_path, capsys)
    clips = np.arange(len(store))
    wanted = Feed(store, [0, 1, 2], FakeBank()).gather(clips)
    frugal = ClipStore(store.path, max_mapped=1, read="mmap")
    got = Feed(frugal, [0, 1, 2], FakeBank()).gather(clips)
    np.testing.assert_array_equal(got.raw, wanted.raw)
    assert len(frugal._mapped) == 1


@pytest.mark.parametrize("n_threads", [1, 4])
def test_pread_and_maps_give_the_same_bytes(tmp_path: Path, capsys, monkeypatch, n_threads: int) -> None:
    monkeypatch.setattr(threads, "thread_limit", lambda: n_threads)
    monkeypatch.setattr(threads, "THREAD_BYTES", 1)
    path = mixed_store(tmp_path, capsys).path
    bank, clips = FakeBank(), np.random.default_rng(1).permutation(np.tile(np.arange(13), 3))
    stores = [ClipStore(path, read="mmap"), ClipStore(path, read="pread"), ClipStore(path, read="pread", max_mapped=1)]
    assert ClipStore(path).read == "mmap"  # it fits in memory
    slots = range(len(stores[0].slots))
    for chosen in (slots, [0], stores[0].slots_of("ecg"), []):
        feeds = [Feed(store, chosen, bank) for store in stores]
        wanted = feeds[0].gather(clips)
        assert wanted.raw.size or not chosen
        for feed in feeds:
            feed.announce(clips[:20])
            for _ in range(2):
                for got, expected in zip(feed.gather(clips), wanted, strict=True):
                    assert got.dtype == expected.dtype
                    np.testing.assert_array_equal(got, expected)
    assert [len(store._files) for store in stores] == [0, 3, 1]
    copy = pickle.loads(pickle.dumps(stores[2]))
    assert (copy.read, copy._files.limit) == ("pread", 1)
    with pytest.raises(ValueError, match="choose one of: auto, mmap, pread"):
        ClipStore(path, read="direct")


def test_a_store_closes_its_files_when_it_goes(tmp_path: Path, capsys) -> None:
    path = make(tmp_path, capsys, night={}).path

    def held() -> int:
        return sum(str(path) in str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink())

    gc.collect()
    before = held()
    gc.disable()
    try:
        for read in ("mmap", "pread"):
            store = ClipStore(path, read=read)
            feed = Feed(store, [0, 1], FakeBank())
            batch = feed.gather([0, 3])
            assert held() > before
            del store, feed
            assert held() == before, read
            assert batch.raw.size
    finally:
        gc.enable()


def test_auto_maps_what_fits_in_half_of_the_memory_and_can_all_be_open(tmp_path: Path, capsys, monkeypatch) -> None:
    path = mixed_store(tmp_path, capsys).path
    n_bytes = sum(entry.n_bytes for entry in ClipStore(path).recordings)
    for share, limit, fits, read in ((2, 3, True, "mmap"), (2, 2, True, "pread"), (1.9, 3, False, "pread")):
        sizes = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": share * n_bytes}
        with monkeypatch.context() as patch:
            patch.setattr(open_files.os, "sysconf", sizes.__getitem__)
            store = ClipStore(path, max_mapped=limit)
        assert (store.fits, store.read) == (fits, read)


def test_clips_are_announced_once_where_they_stay_in_memory_and_else_every_time(tmp_path: Path, capsys) -> None:
    path = mixed_store(tmp_path, capsys).path
    for read in ("mmap", "pread"):
        for fits in (True, False):
            store = ClipStore(path, read=read)
            store.fits = fits
            feed = Feed(store, range(len(store.slots)), FakeBank())
            feed.announce([1, 2])
            assert np.flatnonzero(feed._announced).tolist() == [1, 2]
            feed.gather([2, 3])
            assert np.flatnonzero(feed._announced).tolist() == ([1, 2, 3] if fits else [1])


def test_half_of_the_allowed_files_are_used(monkeypatch) -> None:
    for soft, expected in ((1024, 512), (1, 1), (10**9, 16384), (system.resource.RLIM_INFINITY, 16384)):
        monkeypatch.setattr(system.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert open_files.open_limit() == expected


def test_a_buffer_is_used_again_and_grows(tmp_path: Path, capsys) -> None:
    store = mixed_store(tmp_path, capsys)
    feed, buffer = Feed(store, range(len(store.slots)), FakeBank()), Buffer()
    for clips in ([3], [0, 1], list(range(len(store))), [5], []):
        fresh, reused = feed.gather(clips), feed.gather(clips, buffer)
        for a, b in zip(fresh, reused, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    first = feed.gather([3], buffer).raw
    assert np.shares_memory(first, feed.gather([0], buffer).raw)
    assert not np.shares_memory(feed.gather([3]).raw, feed.gather([3]).raw)


def test_clips_are_counted_from_the_end_and_checked(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    feed = Feed(store, [0], FakeBank())
    np.testing.assert_array_equal(feed.gather([-1]).raw, feed.gather([3]).raw)
    for wrong in ([4], [-5], [0, 99]):
        with pytest.raises(IndexError, match=f"clip {wrong[-1]} is out of the store's 4 clips"):
            feed.gather(wrong)


def test_an_index_that_leads_out_of_its_file_is_named(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    store.run_n_samples = store.run_n_samples + 10**9
    with pytest.raises(ClipStoreError, match=r"index of .* is damaged: it places clip 3 outside .* Delete"):
        Feed(store, [len(store.slots) - 1], Everything()).gather([3, 0])


def test_a_segment_without_samples_of_a_channel_gives_none(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    store.run_n_samples = 0 * store.run_n_samples
    batch = Feed(store, [0, 1], FakeBank()).gather([3, 0])
    assert batch.raw.size == 0
    assert not batch.table[:, :, :2].any()


def test_an_index_that_leads_before_its_file_is_named(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    store.run_offset = store.run_offset - 10**7
    with pytest.raises(ClipStoreError, match=r"index of .* is damaged: it places clip 3 outside"):
        Feed(store, [0], FakeBank()).gather([3, 0])


def test_a_file_that_ends_within_a_window_or_cannot_be_read_is_told(tmp_path: Path) -> None:
    values = np.arange(10, dtype=np.int16)
    values.tofile(tmp_path / "x.bin")
    raw, source = np.zeros(24, np.int16), np.array([0, 0])
    table, places = np.zeros((2, 1, 6), np.int64), np.zeros((2, 1, 2), np.int64)
    table[:, 0, 0], places[:, 0, 1] = (0, 8), 2  # the second window goes behind the first
    with (tmp_path / "x.bin").open("rb") as file:
        for lengths, numbers, expected in (
            ((8, 4), [file.fileno()], -1),
            ((8, 11), [file.fileno()], 1),
            ((8, 4), [-1], 0),
        ):
            table[:, 0, 1], places[:, 0, 0] = lengths, (4, 0)
            files = np.array(numbers, np.int64)
            assert read_windows(table, places, source, files, raw.ctypes.data, 2, 0, 2) == expected
            if expected == -1:
                np.testing.assert_array_equal(raw[:12], [*values[2:], *values[:4]])


class Everything(FakeBank):
    """Asks for all samples around."""

    def context(self, f: int) -> int:
        return 10**8


def test_a_file_that_shrinks_under_pread_is_named(tmp_path: Path, capsys) -> None:
    store = ClipStore(make(tmp_path, capsys, night={}).path, read="pread")
    feed = Feed(store, range(len(store.slots)), FakeBank())
    feed.gather([0])
    file = store.path / "recordings" / "night.bin"
    with file.open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(ClipStoreError, match=r"night\.bin is damaged: it has 1000 bytes, \d+ were written"):
        feed.gather([3])


def test_few_open_recordings_serve_several_threads(tmp_path: Path, capsys) -> None:
    path = mixed_store(tmp_path, capsys).path
    wanted = Feed(ClipStore(path), [0, 1, 2], FakeBank()).gather(np.arange(13))
    for read in ("mmap", "pread"):
        feed = Feed(ClipStore(path, read=read, max_mapped=1), [0, 1, 2], FakeBank())
        with ThreadPoolExecutor(4) as pool:
            for got in pool.map(lambda _, feed=feed: feed.gather(np.arange(13)), range(40)):
                np.testing.assert_array_equal(got.raw, wanted.raw)


@pytest.mark.parametrize("read", ["mmap", "pread"])
def test_a_batch_of_more_recordings_than_may_be_open_is_read(tmp_path: Path, capsys, monkeypatch, read: str) -> None:
    """As a batch of 1,024 clips of as many nights, where a process may have 1,024 files open."""
    path, clips = mixed_store(tmp_path, capsys).path, np.random.default_rng(0).permutation(np.tile(np.arange(13), 2))
    wanted = Feed(ClipStore(path), [0, 1, 2], FakeBank()).gather(clips)
    store = ClipStore(path, read=read, max_mapped=1)
    feed, held, made = Feed(store, [0, 1, 2], FakeBank()), [], []
    for name in ("_map", "_descriptor"):
        make_one = getattr(store, name)

        def counted(recording: int, make_one=make_one):
            one = make_one(recording)
            made.append(weakref.ref(one))
            held.append(sum(ref() is not None for ref in made))
            return one

        monkeypatch.setattr(store, name, counted)
    feed.announce(clips)
    for got, expected in zip(feed.gather(clips), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert len(np.unique(store.recording)) == 3
    assert len(held) == 6  # each is opened once to be announced and once to be read
    assert max(held) == 2  # one is opened before another is closed


def test_empty_batch_and_wrong_slots(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    batch = Feed(store, [0, 1], FakeBank()).gather([])
    assert batch.raw.size == 0
    assert batch.table.shape == (0, 2, 6)
    for wrong in ([len(store.slots)], [0, -1], [[0, 1]]):
        with pytest.raises(ValueError, match="slots must be numbers"):
            Feed(store, wrong, FakeBank())
    with pytest.raises(ValueError, match="it has: respiratory, brain, ecg"):
        store.slots_of("emg")


def test_a_store_goes_to_another_process(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.run(0, 0, 0), store.run(0, 0, 0))
    assert copy.subject(0) == "night"


def test_columns_are_memory_mapped(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    for column in (store.recording, store.clip, store.onset_s, store.stage, store.sdb):
        assert isinstance(column, np.memmap)


@pytest.mark.parametrize(
    ("kind", "remote"), [("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False), ("fuseblk", False)]
)
def test_a_network_file_system_is_not_mapped(tmp_path: Path, capsys, monkeypatch, kind: str, remote: bool) -> None:
    """Where a file there cannot be read, a map would end the process by a signal."""
    path = make(tmp_path, capsys, night={}).path
    here, system_files = path.stat().st_dev, tmp_path / "proc"
    (system_files / "self").mkdir(parents=True)
    (system_files / "self" / "mountinfo").write_text(
        f"25 1 {os.major(here)}:{os.minor(here) + 1} / / rw,relatime shared:1 - tmpfs /dev/vda rw\n"
        f"26 1 {os.major(here)}:{os.minor(here)} /a\\040b /data rw,relatime shared:7 master:2 - {kind} server:/a rw\n"
    )
    monkeypatch.setattr(system, "PROC", system_files)
    store = ClipStore(path)
    assert store.read == ("pread" if remote else "mmap")
    assert isinstance(store.stage, np.memmap) is not remote
    assert system.is_remote(path) is remote
    assert not system.is_remote(tmp_path / "elsewhere")
    monkeypatch.setattr(system, "PROC", tmp_path)
    assert not system.is_remote(path), "a system without /proc cannot tell"
    np.testing.assert_array_equal(store.stage, ClipStore(path).stage)


@pytest.mark.parametrize("what", ["missing", "truncated"])
def test_a_damaged_recording_is_named(tmp_path: Path, capsys, what: str) -> None:
    store = make(tmp_path, capsys, night={})
    file = store.path / "recordings" / "night.bin"
    if what == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ClipStoreError, match=r"night\.bin is damaged: it .*run.*preprocess .*night\.edf"):
        ClipStore(store.path)


def test_verify_finds_a_flipped_bit(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    file = store.path / "recordings" / "night.bin"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    ClipStore(store.path)
    with pytest.raises(ClipStoreError, match=r"night\.bin is damaged: its SHA-256"):
        ClipStore(store.path, verify=True)


def test_the_remedy_for_a_damaged_recording_works(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={}, other={"seed": 5})
    wanted = (store.path / "recordings" / "night.bin").read_bytes()
    (store.path / "recordings" / "night.bin").write_bytes(wanted[:-64])
    status, result = preprocess(capsys, store.recordings[0].source, store.path)
    assert (status, result["added"], result["nights"]) == (0, 1, 2)
    assert (store.path / "recordings" / "night.bin").read_bytes() == wanted
    ClipStore(store.path, verify=True)


def test_a_damaged_index_is_named_and_made_again(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    index = next(store.path.glob("index-*"))
    stage = index / "stage.npy"
    good = stage.read_bytes()
    stage.write_bytes(good[:-1] + b"\x03")
    ClipStore(store.path)
    with pytest.raises(Exception, match=r"stage\.npy is damaged: its SHA-256.*Delete the folder"):
        ClipStore(store.path, verify=True)
    stage.unlink()
    with pytest.raises(Exception, match=r"stage\.npy is damaged"):
        ClipStore(store.path)
    status, _ = preprocess(capsys, store.recordings[0].source, store.path)
    assert status == 0
    assert stage.read_bytes() == good


def test_an_index_that_is_replaced_while_a_store_is_opened(tmp_path: Path, capsys, monkeypatch) -> None:
    """A preprocess that ends between the look into store.json and the opening deletes the index that is named there."""
    path, looks = make(tmp_path, capsys, night={}).path, []

    def read_and_replace(folder: Path) -> dict:
        found = read_store_file(folder)
        looks.append(found["index"])
        if len(looks) == 1:
            write_night(tmp_path / "nights" / "second.edf", seed=1)
            assert preprocess(capsys, tmp_path / "nights", path)[0] == 0
        return found

    monkeypatch.setattr("sleepfm_fast.clips.read_store_file", read_and_replace)
    assert [recording.id for recording in ClipStore(path).recordings] == ["night", "second"]
    assert not (path / looks[0]).exists()
    shutil.rmtree(path / looks[-1])
    with pytest.raises(SleepfmError, match=r"columns\.json is damaged: .*No such file"):
        ClipStore(path)


def test_objects_in_a_column_are_refused(tmp_path: Path, capsys) -> None:
    store = make(tmp_path, capsys, night={})
    index = next(store.path.glob("index-*"))
    np.save(index / "stage.npy", np.array([{"a": 1}] * 4, dtype=object), allow_pickle=True)
    catalogue = json.loads((index / "columns.json").read_text())
    catalogue["stage.npy"]["n_bytes"] = (index / "stage.npy").stat().st_size
    (index / "columns.json").write_text(json.dumps(catalogue))
    with pytest.raises(Exception, match=r"stage\.npy is damaged"):
        ClipStore(store.path)


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClipStoreError, match="does not exist"):
        ClipStore(tmp_path / "nowhere")
    with pytest.raises(ClipStoreError, match=r"has no store\.json"):
        ClipStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "sleepfm_fast clip store", "version": 99}')
    with pytest.raises(ClipStoreError, match="version 99; this sleepfm_fast reads version 1"):
        ClipStore(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(ClipStoreError, match="is damaged"):
        ClipStore(tmp_path)
    for content in ('{"format": "other"}', "[1]"):
        (tmp_path / "store.json").write_text(content)
        with pytest.raises(ClipStoreError, match="does not describe"):
            ClipStore(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"format": "sleepfm_fast run"}')
    with pytest.raises(ClipStoreError, match="is a run folder; a clip store was expected"):
        ClipStore(tmp_path / "run")


def written(folder: Path, value: int, **facts: object) -> Path:
    """Write a night of one channel and two clips, all samples ``value``."""
    source = {"path": "n.edf", "size": 1, "mtime_ns": 1, "sha256": "0"}
    whole = {
        "subject": "S", "configuration_digest": "0", "age": 40.0, "sex": "F", "start": None, "issues": [],
        "source": source, "scoring": {"path": None}, **facts,
    }  # fmt: skip
    channel = {"slot": "C3-M2", "kind": "eeg", "present": True, "unit": "uV", "fs_hz": [10, 1], "gain": 1.0,
               "offset": 0.0, "dtype": "<i2"}  # fmt: skip
    grid = ClipGrid(np.array([0.0, 30.0]), np.array([2, 3], np.int8), np.array([-1, -1], np.int8), ())
    minute = [(Fraction(0), Fraction(60))]
    clip_writer.write_night(folder, "n", minute, [[[np.full(600, value, np.int16)]]], [channel], grid, [0, 0], whole)
    return folder / "n.json"


def test_a_description_never_stands_beside_the_samples_of_another(tmp_path: Path, monkeypatch) -> None:
    file = written(tmp_path, 1)
    assert read_record(file)["clips"]["stage"] == [2, 3]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(clip_writer, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path, 2)
    assert np.fromfile(tmp_path / "n.bin", np.int16)[0] == 2
    assert read_record(file) is None
    assert read_record(written(tmp_path, 2)) is not None


def test_a_night_that_no_reader_would_take_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SleepfmError, match=r"n: a number read from its files cannot be kept"):
        written(tmp_path, 1, age=float("nan"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "x"}, {"id": "m"}, {"n_bytes": 1199}, {"subject": 3}])
def test_a_description_of_something_else_is_none(tmp_path: Path, change: dict) -> None:
    file = written(tmp_path, 1)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert read_record(file) is None


def test_clips_are_counted_by_stage_and_by_event():
    assert stage_counts([-1, 0, 0, 1, 2, 2, 2, 3, 4, 4]) == {"W": 2, "N1": 1, "N2": 3, "N3": 1, "R": 2, "none": 1}
    assert stage_counts([]) == {"W": 0, "N1": 0, "N2": 0, "N3": 0, "R": 0, "none": 0}
    assert sdb_counts([1, 0, 0, -1, -1, -1]) == {"event": 1, "none": 2, "unknown": 3}
    assert sdb_counts([]) == {"event": 0, "none": 0, "unknown": 0}
