"""From a file on disk to the encoders' input, checked against pyedflib and SciPy, which share no code with it."""

import copy
import gc
import pickle
import sys
import threading
import time

import numpy as np
import pyedflib
import pytest
import torch
from edf_files import Channel, write_edf
from scipy.signal import resample_poly

from sleepfm_fast import preprocess
from sleepfm_fast.batches import FS_HZ, N_OUT, ClipInput, InputConfig, places_of
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.prefetch import prefetch
from sleepfm_fast.montage.montages import MONTAGES
from sleepfm_fast.montage.slots import Modality, Montage
from sleepfm_fast.store.scales import NOMINAL
from sleepfm_fast.system import read_whole_soon
from sleepfm_fast.training.sampler import ClipSampler

CPU = torch.device("cpu")


def identity(items):
    return items


@pytest.fixture(scope="module")
def real(data_folder, tmp_path_factory):
    store = tmp_path_factory.mktemp("real") / "store"
    labels = data_folder / "osas2002-stages.csv"
    assert preprocess.cli([str(data_folder / "osas2002.edf"), str(store), "--labels", str(labels)]) == 0
    return ClipStore(store)


def test_a_real_night_equals_pyedflib_and_scipy(real, data_folder):
    batch = ClipInput(real, real.montage, InputConfig("none", 0, "none"), CPU)(np.arange(40))
    used = real.record(0)["channels"]
    with pyedflib.EdfReader(str(data_folder / "osas2002.edf")) as reader:
        labels = reader.getSignalLabels()
        signals = {label: reader.readSignal(i) for i, label in enumerate(labels)}
    ours = torch.cat([batch.x[name] for name in batch.x], dim=1).numpy()
    assert ours.shape == (40, len(real.slots), N_OUT)
    assert all(present.all() for present in batch.present.values())
    compared = 0
    for number, slot in enumerate(real.slots):
        if slot.kind == "step":
            continue
        label = used[number]["labels"][0]
        truth = resample_poly(signals[label], 64, 25)[: 40 * N_OUT]
        whole = ours[:, number].reshape(-1)
        # Away from the ends, two anti-alias filters of different steepness differ only near 50 Hz.
        a, b = whole[1000:-1000] - whole.mean(), truth[1000:-1000] - truth.mean()
        assert np.corrcoef(a, b)[0, 1] > 0.99, label
        shifted = max(np.corrcoef(a[5:-5], np.roll(b, s)[5:-5])[0, 1] for s in (-2, -1, 1, 2))
        assert np.corrcoef(a[5:-5], b[5:-5])[0, 1] > shifted, f"{label} is off in time"
        compared += 1
    assert compared >= 14


def test_saturation_is_interpolated_and_never_overshoots(real, data_folder):
    number = next(i for i, s in enumerate(real.slots) if s.kind == "step")
    batch = ClipInput(real, real.montage, InputConfig("aasm", 0, "none"), CPU)(np.arange(40))
    ours = torch.cat(list(batch.x.values()), dim=1)[:, number].numpy().astype(np.float64).reshape(-1)
    with pyedflib.EdfReader(str(data_folder / "osas2002.edf")) as reader:
        signal = reader.readSignal(reader.getSignalLabels().index("SaO2"))
    truth = np.interp(np.arange(40 * N_OUT) / FS_HZ, np.arange(len(signal)) / 100, signal)
    np.testing.assert_allclose(ours, truth, atol=1e-3)
    assert ours.min() >= signal.min() - 1e-4
    assert ours.max() <= signal.max() + 1e-4


def test_a_clip_does_not_depend_on_its_batch_mates(real):
    clip_input = ClipInput(real, real.montage, InputConfig(), CPU)
    clip_input.measure(np.array([0]), identity)
    together = clip_input(np.arange(40))
    alone = clip_input(np.array([17]))
    for name in together.x:
        assert torch.equal(together.x[name][17:18], alone.x[name])


def test_clips_are_chosen_by_numbers_or_by_a_truth_value_for_each(real):
    clip_input = ClipInput(real, real.montage, InputConfig(), "cpu")
    clip_input.measure(np.ones(len(real.recordings), bool), iter)
    chosen = np.zeros(len(real), bool)
    chosen[[3, 7, 30]] = True
    expected = clip_input(np.array([3, 7, 30]))
    for given in (chosen, list(chosen), [3, 7, 30], (3, 7, 30), torch.tensor([3, 7, 30]), [3, 7, 30 - len(real)]):
        found = clip_input(given)
        assert all(torch.equal(found.x[name], expected.x[name]) for name in expected.x)
    assert clip_input([]).x["brain"].shape[0] == 0
    for wrong in (3, [1.5], [[3, 7]], slice(3)):
        with pytest.raises(TypeError, match=r"clips is .*; expected their numbers"):
            clip_input(wrong)
    with pytest.raises(IndexError, match=r"clips is bool \[5\]"):
        clip_input(chosen[:5])


def test_clips_of_recordings_that_were_not_measured_are_refused(cohort_store):
    """They would be in physical units, and their embeddings mean nothing."""
    store = ClipStore(cohort_store)
    clip_input = ClipInput(store, store.montage, InputConfig(), CPU)
    measured, other = (entry.first_clip for entry in store.recordings[1:3])
    clip_input.measure([1], iter)
    clip_input([measured])
    with pytest.raises(SleepfmError, match=f"1 recording .* have not been measured .*{store.recordings[2].id}"):
        clip_input([measured, other])
    for normalise in ("clip", "none"):
        ClipInput(store, store.montage, InputConfig(normalise=normalise), CPU)([other])


@pytest.mark.parametrize(("name", "value"), [("normalise", "zscore"), ("filters", "asam"), ("notch_hz", 55)])
def test_an_input_of_no_known_kind_is_refused(name, value):
    """A scaling that nobody knows left physical units."""
    with pytest.raises(ValueError, match=f"{name} is {value!r}; choose one of: "):
        InputConfig(**{name: value})


class ByIndex(torch.utils.data.Dataset):
    """Clips of a ClipInput that another process made."""

    def __init__(self, clip_input):
        self.clip_input = clip_input

    def __len__(self):
        return 8

    def __getitem__(self, clip):
        return self.clip_input([clip]).x["brain"][0]


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_workers_of_a_data_loader_give_the_same_clips(cohort_store, how):
    store = ClipStore(cohort_store)
    clip_input = ClipInput(store, store.montage, InputConfig(), CPU)
    clip_input.measure([0], iter)
    expected = clip_input(np.arange(8)).x["brain"]
    loader = torch.utils.data.DataLoader(
        ByIndex(clip_input), batch_size=4, num_workers=1, multiprocessing_context=how, timeout=300
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def test_a_copy_gives_the_same_clips(cohort_store):
    store = ClipStore(cohort_store)
    clip_input = ClipInput(store, store.montage, InputConfig(), CPU)
    clip_input.measure([0], iter)
    expected = clip_input([0, 5])
    for again in (copy.deepcopy(clip_input), pickle.loads(pickle.dumps(clip_input))):
        found = again([0, 5])
        assert all(torch.equal(found.x[name], expected.x[name]) for name in expected.x)


def test_recording_scale_gives_unit_amplitudes_and_fixed_saturation(real):
    clip_input = ClipInput(real, real.montage, InputConfig(), CPU)
    clip_input.measure(np.array([0]), identity)
    x = torch.cat(list(clip_input(np.arange(40)).x.values()), dim=1)
    for number, slot in enumerate(real.slots):
        if slot.kind == "step":
            continue
        spread = float(x[:, number].double().std(dim=1).median())
        assert spread == pytest.approx(1, rel=0.35), slot.name
    number = next(i for i, s in enumerate(real.slots) if s.kind == "step")
    plain = ClipInput(real, real.montage, InputConfig("aasm", 0, "none"), CPU)(np.arange(40))
    saturation = torch.cat(list(plain.x.values()), dim=1)[:, number]
    torch.testing.assert_close(x[:, number], (saturation - 95) / 5, atol=1e-4, rtol=1e-5)


def test_scales_are_those_of_each_nights_own_channels(tmp_path):
    """Two amplifiers, levels that stay, leads that one night lacks, and channels in another order than the store's."""
    rng = np.random.default_rng(0)
    n_clips = 40
    loudness = rng.lognormal(0.0, 0.5, (2, n_clips))  # of each clip: the median is neither the mean nor that of others

    def channel(night, label, size, level, unit="uV", fs=32):
        values = level + size * np.repeat(loudness[night], 30 * fs) * rng.standard_normal(30 * n_clips * fs)
        values = np.clip(np.rint(values), -32768, 32767).astype(int).reshape(-1, fs)
        return Channel(label, values, {"unit": unit, "physical_min": -32768, "physical_max": 32767})

    first = [channel(0, "C3-M2", 300, 1000), channel(0, "ECG", 900, 0), channel(0, "O1-M2", 5, 9000)]
    second = [channel(1, "C3-M2", 4000, -200), channel(1, "ECG", 90, 5), channel(1, "O2-M1", 0, -32768)]
    first += [channel(0, "Pulse", 4, 72, "bpm", 1), channel(0, "SpO2", 2, 93, "%", 1), channel(0, "Chest", 9, 0, "%")]
    second += [channel(1, "Pulse", 0, 500, "mV", 1), channel(1, "SpO2", 2, 90, "%", 1)]
    second += [channel(1, "F4-M1", 700, 50)]
    second[-1].values[: 18 * 30] = 20000  # off the scale until the electrode was put on
    for name, channels in (("a", first), ("b", second)):
        write_edf(tmp_path / f"{name}.edf", channels)
    nights = [str(tmp_path / "a.edf"), str(tmp_path / "b.edf")]
    assert preprocess.cli([*nights, str(tmp_path / "store"), "--montage", "aasm", "--workers", "1"]) == 0
    store = ClipStore(tmp_path / "store")
    used = {channel.label for channel in first + second} - {"Pulse"} | {"Pulse Rate"}
    montage = Montage(
        "reversed",
        tuple(Modality(m.name, tuple(s for s in m.slots[::-1] if s.name in used)) for m in store.montage.modalities),
    )
    names = [slot.name for m in montage.modalities for slot in m.slots]
    assert set(names) == used
    plain = ClipInput(store, montage, InputConfig("none", 0, "none"), CPU)
    clip_input = ClipInput(store, montage, InputConfig("none", 0, "recording"), CPU)
    notices = clip_input.measure(np.arange(2), identity)
    assert [notice[: notice.index(" (first")] for notice in notices] == ["O2-M1 is flat throughout 1 of 2 recordings"]
    nominal = {"SpO2": (95, 5), "Pulse Rate": (60, 20)}
    fixed = ClipInput(store, montage, InputConfig("none", 0, "clip"), CPU).scales.scale[0]
    assert {name: 1 / scale for name, scale in zip(names, fixed, strict=True) if scale != 1} == {
        name: pytest.approx(width) for name, (_, width) in nominal.items()
    }
    for night, lacking in ((0, {"O2-M1", "F4-M1"}), (1, {"O1-M2", "Chest"})):
        clips = np.flatnonzero(np.asarray(store.recording) == night)
        x, scaled = (torch.cat(list(given(clips).x.values()), dim=1).double() for given in (plain, clip_input))
        present = torch.cat(list(clip_input(clips).present.values()), dim=1).all(0)
        spread = clips[np.linspace(0, n_clips - 1, 32).round().astype(int)] - clips[0]
        for column, name in enumerate(names):
            dead = name in lacking or (night == 1 and name == "O2-M1")
            assert present[column] == (not dead), name
            if dead:
                assert not scaled[:, column].any()
                continue
            deviation, mean = torch.std_mean(x[spread, column], dim=1, correction=0)
            on = deviation > 1.0 if name == "F4-M1" else deviation >= 0.0
            deviation, mean = (np.median(part[on]) for part in (deviation, mean))
            centre, width = nominal.get(name, (mean, deviation))
            if name == "Pulse Rate" and night == 1:  # constant, in no unit that is known
                centre, width = mean, 1.0
            expected = (x[:, column] - float(centre)) / float(width)
            torch.testing.assert_close(
                scaled[:, column], expected, rtol=2e-5, atol=2e-5 * max(1.0, abs(centre / width))
            )


def test_a_pulse_is_mapped_alike_in_every_spelling_of_its_unit():
    assert {unit: place for unit, place in NOMINAL.items() if unit != "%"} == dict.fromkeys(
        ("bpm", "/min", "1/min", "bt/min"), (60.0, 20.0)
    )


def test_a_sensor_that_fell_off_counts_for_the_hours_before_and_a_dead_one_not_at_all(cohort, tmp_path):
    folder = tmp_path / "nights"
    folder.mkdir()
    with pyedflib.EdfReader(str(cohort / "sim-3-0000.edf")) as reader:
        headers = reader.getSignalHeaders()
        labels = [h["label"] for h in headers]
        signals = [reader.readSignal(i, digital=True) for i in range(len(labels))]
    for label, share in (("Nasal Pressure", 0.3), ("F4-M1", 0.0), ("ECG", 0.6)):
        signal = signals[labels.index(label)]
        signal[int(share * len(signal)) :] = 11
    signals[labels.index("C4-M1")][:] = headers[labels.index("C4-M1")]["digital_max"]  # railed
    with pyedflib.EdfWriter(str(folder / "night.edf"), len(headers), pyedflib.FILETYPE_EDFPLUS) as writer:
        writer.setSignalHeaders(headers)
        writer.writeSamples(signals, digital=True)
    assert preprocess.cli([str(folder), str(tmp_path / "store")]) == 0
    store = ClipStore(tmp_path / "store")
    clip_input = ClipInput(store, store.montage, InputConfig(), CPU)
    notices = clip_input.measure(np.array([0]), identity)
    assert sorted(notice.split(" is flat")[0] for notice in notices) == ["C4-M1", "F4-M1"]
    assert all("1 of 1 recording (first: night)" in notice for notice in notices)
    batch = clip_input(np.arange(len(store)))
    x, present = (torch.cat(list(part.values()), dim=1) for part in (batch.x, batch.present))
    at = {slot.name: number for number, slot in enumerate(store.slots)}
    for name, there in (("Nasal Pressure", True), ("ECG", True), ("F4-M1", False), ("C4-M1", False), ("O2-M1", True)):
        assert present[:, at[name]].tolist() == [there] * len(store), name
        assert bool(x[:, at[name]].any()) == there, name
    before = x[: int(0.3 * len(store)), at["Nasal Pressure"]]
    assert float(before.std(dim=1).median()) == pytest.approx(1, rel=0.35)


def test_a_sensor_unplugged_for_cpap_and_an_electrode_that_came_off_count_for_the_hours_before(cohort, tmp_path):
    """The sensor goes on with the amplifier's noise, which a split night has more of; the electrode is far louder."""
    with pyedflib.EdfReader(str(cohort / "sim-3-0000.edf")) as reader:
        headers = reader.getSignalHeaders()
        labels = [h["label"] for h in headers]
        signals = [reader.readSignal(i, digital=True) for i in range(len(labels))]
    signal = signals[labels.index("Nasal Pressure")]
    begin = int(0.3 * len(signal))
    signal[begin:] = 11 + np.random.default_rng(0).integers(-2, 3, len(signal) - begin)
    eeg, rng = signals[labels.index("F4-M1")], np.random.default_rng(1)
    came_off = int(0.7 * len(eeg))
    eeg[:came_off] = rng.integers(-20, 21, came_off)
    eeg[came_off:] = rng.integers(-20_000, 20_001, len(eeg) - came_off)
    pulse = labels.index("Pulse")
    headers[pulse]["dimension"] = "mV"  # an oximeter's analogue output: its own spread is the only measure
    signals[pulse][:] = rng.integers(-2000, 2001, len(signals[pulse]))
    with pyedflib.EdfWriter(str(tmp_path / "night.edf"), len(headers), pyedflib.FILETYPE_EDFPLUS) as writer:
        writer.setSignalHeaders(headers)
        writer.writeSamples(signals, digital=True)
    assert preprocess.cli([str(tmp_path / "night.edf"), str(tmp_path / "store"), "--workers", "1"]) == 0
    store = ClipStore(tmp_path / "store")
    clip_input = ClipInput(store, store.montage, InputConfig(), CPU)
    assert clip_input.measure(np.array([0]), identity) == ()
    batch = clip_input(np.arange(len(store)))
    respiratory = next(m for m in store.montage.modalities if m.name == "respiratory")
    x = batch.x["respiratory"][:, [slot.name for slot in respiratory.slots].index("Nasal Pressure")]
    spread = x.std(dim=1)
    assert float(spread[: int(0.3 * len(store))].median()) == pytest.approx(1, rel=0.35)
    assert float(spread[int(0.3 * len(store)) + 1 :].max()) < 0.02
    brain = next(m for m in store.montage.modalities if m.name == "brain")
    spread = batch.x["brain"][:, [slot.name for slot in brain.slots].index("F4-M1")].std(dim=1)
    assert float(spread[: int(0.7 * len(store))].median()) == pytest.approx(1, rel=0.1)
    assert float(spread[-3:].min()) > 500
    x = batch.x["respiratory"][:, [slot.name for slot in respiratory.slots].index("Pulse Rate")]
    assert (float(x.mean()), float(x.std(dim=1).median())) == (pytest.approx(0, abs=0.1), pytest.approx(1, rel=0.1))


def test_scaling_clip_by_clip_leaves_saturation_its_meaning(real):
    number = next(i for i, s in enumerate(real.slots) if s.kind == "step")
    by_clip, plain = (
        torch.cat(
            list(ClipInput(real, real.montage, InputConfig("aasm", 0, how), CPU)(np.arange(40)).x.values()), dim=1
        )
        for how in ("clip", "none")
    )
    torch.testing.assert_close(by_clip[:, number], (plain[:, number] - 95) / 5, atol=1e-4, rtol=1e-5)
    others = [i for i in range(len(real.slots)) if i != number]
    torch.testing.assert_close(
        by_clip[:, others].double().std(dim=2, correction=0), torch.ones(40, len(others)).double(), atol=1e-3, rtol=0
    )


def test_a_slot_the_store_lacks_is_absent_and_zero(cohort_store):
    store = ClipStore(cohort_store)
    wide = Montage(
        "wide",
        tuple(
            Modality(m.name, (*m.slots, *(s for s in store.slots if m.name == "ecg" and s.name == "Chest")))
            for m in store.montage.modalities
        ),
    )
    clip_input = ClipInput(store, wide, InputConfig(), CPU)
    clip_input.measure(np.array([0]), identity)
    batch = clip_input(np.arange(3))
    assert clip_input.missing_slots == ("ecg Chest",)
    assert batch.present["ecg"].tolist() == [[True, False]] * 3
    assert not batch.x["ecg"][:, 1].any()
    narrow = ClipInput(store, store.montage, InputConfig(), CPU)
    narrow.measure(np.array([0]), identity)
    plain = narrow(np.arange(3))
    assert torch.equal(batch.x["ecg"][:, :1], plain.x["ecg"])
    assert torch.equal(batch.x["brain"], plain.x["brain"])


def test_a_store_without_any_of_the_models_channels_is_refused(cohort_store):
    store = ClipStore(cohort_store)
    other = Montage("other", tuple(Modality(m.name, ()) for m in store.montage.modalities[:2]))
    brain = next(m for m in store.montage.modalities if m.name == "brain")
    foreign = Montage("foreign", (Modality("respiratory", (brain.slots[0],)), *other.modalities[1:]))
    with pytest.raises(SleepfmError, match="none of the model's channels"):
        ClipInput(store, foreign, InputConfig(), CPU)


def test_batches_are_announced_ahead_and_come_in_order(real, monkeypatch):
    clip_input = ClipInput(real, real.montage, InputConfig(), CPU)
    clip_input.measure(np.arange(len(real.recordings)), identity)
    seen = []
    announce, gather = clip_input.feed.announce, clip_input.feed.gather
    monkeypatch.setattr(clip_input.feed, "announce", lambda c: (seen.append(("announced", int(c[0]))), announce(c))[1])
    monkeypatch.setattr(clip_input.feed, "gather", lambda c, out: (seen.append(("read", int(c[0]))), gather(c, out))[1])
    found = list(clip_input.batches(range(8), lambda i: np.arange(5 * i, 5 * i + 5)))
    assert [i for i, _ in found] == list(range(8))
    for i, batch in found:
        alone = clip_input(np.arange(5 * i, 5 * i + 5))
        for name in batch.x:
            assert torch.equal(batch.x[name], alone.x[name])
    for i in range(8):
        ahead = seen[: seen.index(("read", 5 * i))]
        assert [5 * k for k in range(min(i + 3, 8))] == [c for what, c in ahead if what == "announced"]
    stream = clip_input.batches(range(8), lambda i: np.arange(5))
    next(stream)
    stream.close()


def test_recordings_in_play_are_announced_whole_and_once(cohort_store, monkeypatch):
    store = ClipStore(cohort_store)
    clip_input = ClipInput(store, store.montage, InputConfig(), CPU)
    clip_input.measure(np.arange(len(store.recordings)), identity)
    seen, at_once = [], store.read_soon
    monkeypatch.setattr(store, "read_soon", lambda r: (seen.append(("whole", r)), at_once(r))[1])
    gather = clip_input.feed.gather
    monkeypatch.setattr(clip_input.feed, "gather", lambda c, out: (seen.append(("read", c)), gather(c, out))[1])
    recording = np.asarray(store.recording)
    sampler = ClipSampler(np.arange(len(store)), 8, 0, recordings=recording, in_play=3)
    batches = [sampler.order(0)[i : i + 8] for i in range(0, len(store), 8)]
    for clips, batch in clip_input.batches(batches, lambda c: c, in_play=3):
        alone = clip_input(clips)
        assert all(torch.equal(batch.x[name], alone.x[name]) for name in batch.x)
    announced = [r for what, r in seen if what == "whole"]
    # Those of the last turns come again at the end, when others have been in play meanwhile.
    assert len(store.recordings) <= len(announced) <= len(store.recordings) + 3
    assert set(announced) == set(range(len(store.recordings)))
    for place, (what, clips) in enumerate(seen):
        if what == "read":
            assert set(recording[clips]) <= {r for before, r in seen[:place] if before == "whole"}
    seen.clear()
    list(clip_input.batches(batches[:3], lambda c: c))
    assert "whole" not in {what for what, _ in seen}


def test_a_recording_that_is_gone_is_not_the_announcement_s_business(cohort_store, tmp_path):
    read_whole_soon(tmp_path / "nowhere.bin")
    read_whole_soon(tmp_path)
    read_whole_soon(ClipStore(cohort_store).path / "store.json")


def test_prefetch_keeps_the_order_and_hands_errors_over():
    assert [r for _, r in prefetch(range(20), lambda i: i * i)] == [i * i for i in range(20)]

    def fail(i):
        if i == 3:
            raise SleepfmError("the third is broken")
        return i

    with pytest.raises(SleepfmError, match="the third is broken"):
        list(prefetch(range(10), fail))


def test_prefetch_stops_when_the_consumer_does():
    prepared = []

    def prepare(i):
        prepared.append(i)
        return i

    batches = prefetch(iter(int, 1), prepare)
    next(batches)
    batches.close()
    n = len(prepared)
    time.sleep(0.05)
    assert len(prepared) == n
    assert n <= 5


def test_an_abandoned_prefetch_may_be_collected_in_its_own_thread(monkeypatch):
    """In a cycle, as an exception that is kept makes one, it ends wherever the garbage collector happens to run."""
    collected, ended, complaints = threading.Event(), threading.Event(), []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    def prepare(i):
        if i:  # the second is prepared after the generator was abandoned
            assert collected.wait(10)
            gc.collect()
            ended.set()
        return i

    gc.collect()
    gc.disable()
    try:
        cycle = [prefetch(iter(range(10)), prepare)]
        cycle.append(cycle)
        next(cycle[0])
        threads = [t for t in threading.enumerate() if "prefetch" in t.name]
        assert len(threads) == 1
        del cycle
        collected.set()
        assert ended.wait(10)
        threads[0].join(10)
        assert not threads[0].is_alive()
        assert not complaints
    finally:
        gc.enable()


def test_montages_that_name_a_channel_differently_meet():
    wanted = [(m.name, s.name) for m in MONTAGES["aasm"].modalities for s in m.slots]
    held = [(m.name, s.name) for m in MONTAGES["cinc2018"].modalities for s in m.slots]
    places = places_of(wanted, held)
    found = {name: held[p][1] for (_, name), p in zip(wanted, places, strict=True) if p >= 0}
    assert found == {
        "Chest": "CHEST",
        "Abdomen": "ABD",
        "SpO2": "SaO2",
        "C4-M1": "C4-M1",
        "C3-M2": "C3-M2",
        "O2-M1": "O2-M1",
        "O1-M2": "O1-M2",
        "E1": "E1-M2",
        "ECG": "ECG",
    }
    taken = [p for p in places if p >= 0]
    assert len(set(taken)) == len(taken)
    assert places_of(held, held) == list(range(len(held)))
    # An exact name wins over a synonym, another modality is another channel, another reference another signal.
    assert places_of([("respiratory", "Chest")], [("respiratory", "CHEST"), ("respiratory", "Chest")]) == [1]
    assert places_of([("ecg", "Chest")], [("respiratory", "Chest")]) == [-1]
    assert places_of([("brain", "C3-M2")], [("brain", "C3-Cz")]) == [-1]
