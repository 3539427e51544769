"""Records to samples: every integer in its place, at any rate, width, segment, context and number of threads."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from edf_files import Channel, annotation_channel, starts, write_edf

from sleepfm_fast.edf import EdfError, Segment, read_recording
from sleepfm_fast.epochs import EpochReader, locate_epochs, read_digital, read_epochs, read_physical
from sleepfm_fast.execution import threads as block_threads


@pytest.fixture(params=[1, 4], ids=["1 thread", "4 threads"])
def threads(request, monkeypatch):
    """Run with so many threads, however little there is to do."""
    monkeypatch.setattr(block_threads, "thread_limit", lambda: request.param)
    monkeypatch.setattr(block_threads, "THREAD_BYTES", 1)
    return request.param


def write_random(path, widths, n_records, *, bdf, record_s=1, onsets=None):
    limit = 1 << (23 if bdf else 15)
    rng = np.random.default_rng(7)
    values = [rng.integers(-limit, limit, (n_records, w)) for w in widths]
    values[0][0, :2] = -limit, limit - 1
    channels = [Channel(f"S{k}", v) for k, v in enumerate(values)]
    family = "BDF" if bdf else "EDF"
    reserved = ""
    if onsets is not None:
        channels.insert(1, annotation_channel(starts(onsets), 9, f"{family} Annotations"))
        reserved = f"{family}+D"
    write_edf(path, channels, bdf=bdf, record_s=record_s, reserved=reserved)
    return read_recording(path, strict=True), values


# ---- whole segments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bdf", [False, True], ids=["EDF", "BDF"])
@pytest.mark.parametrize("widths", [(2,), (200, 200, 200), (512, 3, 64, 1, 25)])
@pytest.mark.parametrize("n_records", [1, 2, 3, 37])
def test_segment_of_mixed_rates(tmp_path, threads, bdf, widths, n_records):
    recording, values = write_random(tmp_path / "a", widths, n_records, bdf=bdf)
    arrays = read_digital(recording, recording.signals, recording.segments[0])
    assert all(a.dtype == (np.int32 if bdf else np.int16) for a in arrays)
    for array, value in zip(arrays, values, strict=True):
        np.testing.assert_array_equal(array, value.ravel())
    assert arrays[0][:2].tolist() == ([-8388608, 8388607] if bdf else [-32768, 32767])


@pytest.mark.parametrize("bdf", [False, True], ids=["EDF", "BDF"])
def test_segments_and_a_choice_of_signals(tmp_path, threads, bdf):
    onsets = ["0", "1", "2", "10", "11", "50"]
    recording, values = write_random(tmp_path / "a", (7, 30, 11), 6, bdf=bdf, onsets=onsets)
    chosen = [recording.signals[k] for k in (2, 0, 2)]
    for segment, part in zip(recording.segments, (slice(0, 3), slice(3, 5), slice(5, 6)), strict=True):
        arrays = read_digital(recording, chosen, segment)
        for array, k in zip(arrays, (2, 0, 2), strict=True):
            np.testing.assert_array_equal(array, values[k][part].ravel())
    inner = read_digital(recording, chosen, Segment(1, 4, Fraction(0)))
    np.testing.assert_array_equal(inner[1], values[0][1:5].ravel())
    assert read_digital(recording, [], recording.segments[0]) == []
    assert [a.size for a in read_digital(recording, chosen, Segment(6, 0, Fraction(0)))] == [0, 0, 0]


def test_given_arrays_are_written_in_place(tmp_path, threads):
    recording, values = write_random(tmp_path / "a", (5, 9), 20, bdf=False)
    store = np.full(400, 77, np.int16)
    out = [store[10:110], store[150:330]]
    assert read_digital(recording, recording.signals, recording.segments[0], out) is out
    np.testing.assert_array_equal(store[10:110], values[0].ravel())
    np.testing.assert_array_equal(store[150:330], values[1].ravel())
    assert (store[:10] == 77).all()
    assert (store[110:150] == 77).all()
    assert (store[330:] == 77).all()


def test_what_does_not_fit_is_refused(tmp_path):
    recording, _ = write_random(tmp_path / "a", (5, 9), 20, bdf=False)
    signals, segment = recording.signals, recording.segments[0]
    good = [np.empty(100, np.int16), np.empty(180, np.int16)]
    frozen = np.empty(100, np.int16)
    frozen.flags.writeable = False
    for bad in (np.empty(99, np.int16), np.empty(100, np.int32), np.empty(200, np.int16)[::2], frozen):
        with pytest.raises(ValueError, match="expected writable, contiguous int16"):
            read_digital(recording, signals, segment, [bad, good[1]])
    with pytest.raises(ValueError, match="1 output array was given for 2 signals"):
        read_digital(recording, signals, segment, good[:1])
    for outside in (Segment(0, 21, Fraction(0)), Segment(-1, 2, Fraction(0)), Segment(20, 1, Fraction(0))):
        with pytest.raises(ValueError, match="lies outside the 20 records"):
            read_digital(recording, signals, outside)
    stranger = dataclasses.replace(signals[0], offset_bytes=10**9)
    for read in (lambda: read_digital(recording, [stranger], segment), lambda: read_epochs(recording, [stranger], [0])):
        with pytest.raises(ValueError, match="does not belong"):
            read()


# ---- epochs --------------------------------------------------------------------------------------------------------


def reference(values, first, n_samples, n_context):
    """Take samples from ``first - n_context`` on, the edges repeated."""
    at = np.arange(first - n_context, first + n_samples + n_context)
    return values[np.clip(at, 0, values.size - 1)]


@pytest.mark.parametrize("bdf", [False, True], ids=["EDF", "BDF"])
@pytest.mark.parametrize("context_s", [0.0, 0.37, 5.5, 1000.0])
@pytest.mark.parametrize("record_s", ["0.25", "1", "7", "30"])
def test_epochs_with_context(tmp_path, threads, bdf, context_s, record_s):
    rate_hz = 24
    width = int(rate_hz * float(record_s))
    n_records = ceil(60 / float(record_s))
    recording, values = write_random(tmp_path / "a", (width, 4, width), n_records, bdf=bdf, record_s=record_s)
    signals = [recording.signals[2], recording.signals[0]]
    last = recording.duration_s - 10
    onsets = np.array([last, 0.0, 10.0, 3.3, 41.0])
    clips = read_epochs(recording, signals, onsets, epoch_s=10, context_s=context_s)
    n_context = ceil(context_s * rate_hz)
    assert clips.shape == (5, 2, 10 * rate_hz + 2 * n_context)
    assert clips.dtype == (np.int32 if bdf else np.int16)
    for clip, onset in zip(clips, onsets, strict=True):
        for channel, k in zip(clip, (2, 0), strict=True):
            np.testing.assert_array_equal(
                channel, reference(values[k].ravel(), floor(onset * rate_hz), 10 * rate_hz, n_context)
            )
    out = np.zeros_like(clips)
    assert read_epochs(recording, signals, onsets, epoch_s=10, context_s=context_s, out=out) is out
    np.testing.assert_array_equal(out, clips)


def test_context_stops_at_a_gap(tmp_path, threads):
    onsets = [str(k) for k in (0, 1, 2, 3, 10, 11, 12, 100, 101)]
    recording, values = write_random(tmp_path / "a", (8, 2), 9, bdf=False, onsets=onsets)
    clips = read_epochs(recording, recording.signals[:1], [1.0, 10.0, 11.0, 100.0], epoch_s=2, context_s=4)
    parts = [values[0][a:b].ravel() for a, b in ((0, 4), (4, 7), (4, 7), (7, 9))]
    for clip, part, first in zip(clips, parts, (8, 0, 8, 0), strict=True):
        np.testing.assert_array_equal(clip[0], reference(part, first, 16, 32))
    for onset in (-1.0, 2.5, 3.0, 9.0, 11.5, 60.0, 100.5, 200.0, np.nan):
        with pytest.raises(EdfError, match="1 of 2 epochs of 2 s does not lie wholly inside one segment"):
            read_epochs(recording, recording.signals[:1], [1.0, onset], epoch_s=2)


def test_fractional_rates_start_at_the_sample_before(tmp_path):
    recording, values = write_random(tmp_path / "a", (999, 10), 40, bdf=False, record_s="9.997558")
    signal = recording.signals[0]
    fs_hz = Fraction(999) / Fraction("9.997558")
    assert signal.fs_hz == fs_hz
    onsets = np.arange(0, 360, 30.0)
    where = locate_epochs(recording, fs_hz, onsets)
    exact = [Fraction(30 * k) * fs_hz for k in range(12)]
    assert where.first.tolist() == [floor(e) for e in exact]
    np.testing.assert_allclose(where.phase, [float(e - floor(e)) for e in exact], atol=1e-9)
    clips = read_epochs(recording, [signal], onsets, context_s=1.0)
    n_samples, n_context = ceil(30 * fs_hz), ceil(fs_hz)
    assert clips.shape == (12, 1, n_samples + 2 * n_context)
    for clip, e in zip(clips, exact, strict=True):
        np.testing.assert_array_equal(clip[0], reference(values[0].ravel(), floor(e), n_samples, n_context))


def test_an_onset_within_rounding_of_a_sample_is_that_sample(tmp_path):
    recording, values = write_random(tmp_path / "a", (100,), 60, bdf=False)
    onsets = np.arange(100) / 100  # 0.29 * 100 is 28.999999999999996
    where = locate_epochs(recording, Fraction(100), onsets, 30.0)
    assert where.first.tolist() == list(range(100))
    assert where.phase.max() < 1e-9
    flat = values[0].ravel()
    expected = [flat[first : first + 3000] for first in range(100)]
    np.testing.assert_array_equal(read_epochs(recording, recording.signals, onsets)[:, 0], expected)
    where = locate_epochs(recording, Fraction(100), [0.295], 30.0)
    assert (where.first[0], round(where.phase[0], 9)) == (29, 0.5)
    assert locate_epochs(recording, Fraction(100), [30.0]).first[0] == 3000  # the last epoch that fits
    with pytest.raises(EdfError, match="does not lie wholly inside"):
        locate_epochs(recording, Fraction(100), [30.01])


def test_a_long_recording_keeps_its_place(tmp_path):
    recording, values = write_random(tmp_path / "a", (512,), 3000, bdf=False, record_s="9.7")
    fs_hz = Fraction(512) / Fraction("9.7")
    onsets = np.arange(0, 29070, 30.0)
    clips = read_epochs(recording, recording.signals, onsets)
    flat = values[0].ravel()
    for k in (0, 1, 500, 968):
        first = floor(Fraction(30 * k) * fs_hz)
        np.testing.assert_array_equal(clips[k, 0], flat[first : first + clips.shape[2]])


def test_misuse_of_epochs_is_refused(tmp_path):
    recording, _ = write_random(tmp_path / "a", (10, 20), 60, bdf=False)
    one = recording.signals[:1]
    with pytest.raises(ValueError, match="one rate, given were: 'S0' 10 Hz, 'S1' 20 Hz"):
        read_epochs(recording, recording.signals, [0.0])
    with pytest.raises(ValueError, match="one rate, given were: none"):
        read_epochs(recording, [], [0.0])
    for epoch_s, context_s in ((0.0, 0.0), (-1.0, 0.0), (1.0, -1.0), (np.nan, 0.0), (np.inf, 0.0)):
        with pytest.raises(ValueError, match="must be above 0"):
            read_epochs(recording, one, [0.0], epoch_s=epoch_s, context_s=context_s)
    with pytest.raises(ValueError, match="expected writable, contiguous int16"):
        read_epochs(recording, one, [0.0], out=np.empty((1, 1, 299), np.int16))
    assert read_epochs(recording, one, []).shape == (0, 1, 300)


# ---- epochs of mixed rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bdf", [False, True], ids=["EDF", "BDF"])
@pytest.mark.parametrize("context_s", [0.0, 0.37, 5.5, 1000.0])
@pytest.mark.parametrize("record_s", ["1", "7", "9.97"])
def test_epochs_of_mixed_rates(tmp_path, threads, bdf, context_s, record_s):
    widths, n_records = (211, 3, 24, 1), ceil(60 / float(record_s))
    recording, values = write_random(tmp_path / "a", widths, n_records, bdf=bdf, record_s=record_s)
    order = (3, 0, 2, 0)
    signals = [recording.signals[k] for k in order]
    reader = EpochReader(recording, signals, epoch_s=10, context_s=context_s)
    onsets = np.array([float(recording.duration_s) - 10, 0.0, 10.0, 3.3, 41.0])
    rows = reader.read_many(onsets)
    assert rows.dtype == (np.int32 if bdf else np.int16)
    assert rows.shape == (5, reader.offsets[-1])
    for i, onset in enumerate(onsets):
        np.testing.assert_array_equal(reader.read(onset), rows[i])
        for k, signal, part, n in zip(order, signals, reader.split(rows[i]), reader.n_samples, strict=True):
            where = locate_epochs(recording, signal.fs_hz, [onset], 10)
            n_context = ceil(context_s * signal.fs_hz - 1e-3)
            n_epoch = ceil(10 * signal.fs_hz - 1e-3)
            assert part.size == n == n_epoch + 2 * n_context
            expected = reference(values[k].ravel(), int(where.first[0]), n_epoch, n_context)
            np.testing.assert_array_equal(part, expected)


def test_a_reader_writes_in_place_and_stops_at_gaps(tmp_path, threads):
    onsets = [str(k) for k in (0, 1, 2, 3, 10, 11, 12, 100, 101)]
    recording, values = write_random(tmp_path / "a", (8, 2), 9, bdf=False, onsets=onsets)
    reader = EpochReader(recording, recording.signals, epoch_s=2, context_s=4)
    assert reader.offsets == (0, 80, 100)
    around = np.full(120, 77, np.int16)
    out = around[10:110]
    assert reader.read(11.0, out) is out
    assert (around[:10] == 77).all()
    assert (around[110:] == 77).all()
    for part, k, fs_hz in zip(reader.split(out), (0, 1), (8, 2), strict=True):
        np.testing.assert_array_equal(part, reference(values[k][4:7].ravel(), fs_hz, 2 * fs_hz, 4 * fs_hz))
    before = out.copy()
    # A thousandth of a sample of the fastest signal is the rounding of an onset, more is outside.
    np.testing.assert_array_equal(reader.read_many([1.0001, 2.0001, 9.9999]), reader.read_many([1.0, 2.0, 10.0]))
    for onset in (-1.0, -0.0009, 2.0009, 2.5, 9.0, 11.5, 60.0, 100.5, np.nan, np.inf):
        with pytest.raises(EdfError, match="1 of 1 epoch of 2 s does not lie wholly inside one segment"):
            reader.read(onset, out)
    with pytest.raises(
        EdfError, match=r"2 of 3 epochs .* the first starts at 2\.5 s, the segments are: 0-4 s, 10-13 s"
    ):
        reader.read_many([0.0, 2.5, 60.0])
    np.testing.assert_array_equal(out, before)
    for bad in (np.empty(99, np.int16), np.empty(100, np.int32), np.empty(200, np.int16)[::2]):
        with pytest.raises(ValueError, match="expected writable, contiguous int16"):
            reader.read(0.0, bad)
    with pytest.raises(ValueError, match="expected writable, contiguous int16"):
        reader.read_many([0.0], np.empty(100, np.int16))
    assert reader.read_many([]).shape == (0, 100)
    assert EpochReader(recording, [], epoch_s=2).read(0.0).size == 0


def test_an_epoch_of_a_millisecond_is_read(tmp_path):
    recording, values = write_random(tmp_path / "a", (100,), 3, bdf=False)
    for epoch_s, n in ((0.01, 1), (1e-9, 0)):
        reader = EpochReader(recording, recording.signals, epoch_s=epoch_s)
        assert reader.n_samples == (n,)
        np.testing.assert_array_equal(reader.read(3.0 - epoch_s), values[0].ravel()[299 : 299 + n])


@pytest.mark.parametrize("bdf", [False, True], ids=["EDF", "BDF"])
def test_physical_values(tmp_path, threads, bdf):
    limit = 1 << (23 if bdf else 15)
    rng = np.random.default_rng(3)
    limits = {"physical_min": "-3276.8", "physical_max": "3300.1"}
    channels = [
        Channel("C3", rng.integers(-limit, limit, (40, 9)), limits),
        Channel("SpO2", rng.integers(-limit, limit, (40, 1)), {"physical_min": 0, "physical_max": 102.4}),
    ]
    recording = read_recording(write_edf(tmp_path / "a", channels, bdf=bdf))
    segment = recording.segments[0]
    digital = read_digital(recording, recording.signals, segment)
    values = read_physical(recording, recording.signals, segment)
    for signal, integers, found in zip(recording.signals, digital, values, strict=True):
        scaled = signal.gain * integers.astype(np.float64)
        assert found.dtype == np.float32
        bound = 3 * 2.0**-24 * (np.abs(scaled) + abs(signal.offset))
        assert (np.abs(found - (scaled + signal.offset)) <= bound).all()
    out = [np.zeros_like(v) for v in values]
    assert read_physical(recording, recording.signals, segment, out) is out
    for array, expected in zip(out, values, strict=True):
        np.testing.assert_array_equal(array, expected)
    with pytest.raises(ValueError, match="expected writable, contiguous float32"):
        read_physical(recording, recording.signals, segment, digital)
    inner = Segment(11, 20, Fraction(11))
    for array, expected in zip(read_physical(recording, recording.signals[::-1], inner), values[::-1], strict=True):
        np.testing.assert_array_equal(array, expected.reshape(40, -1)[11:31].ravel())
    assert read_physical(recording, [], segment) == []


def test_recordings_are_read_from_many_threads_at_once(tmp_path):
    recording, values = write_random(tmp_path / "a", (256, 32), 2000, bdf=True)
    expected = [v.ravel() for v in values]

    def read(_):
        arrays = read_digital(recording, recording.signals, recording.segments[0])
        return all(np.array_equal(a, e) for a, e in zip(arrays, expected, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(32)))
