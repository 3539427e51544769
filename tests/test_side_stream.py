"""Batches that a thread makes on a CUDA stream of its own: what is ordered before what, and what is kept how long."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.ops import cuda_kernels
from sleepfm_fast.ops.cuda_kernels import architectures_serve, has_kernels
from sleepfm_fast.store.side_stream import SideStream, upload

CPU = torch.device("cpu")


class Recorder:
    """torch.cuda as far as SideStream uses it; writes down what is called, in which thread."""

    def __init__(self) -> None:
        self.said: list[tuple[str, ...]] = []
        self.consumer = threading.current_thread()

    def say(self, *words: str) -> None:
        self.said.append(("consumer" if threading.current_thread() is self.consumer else "thread", *words))

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        recorder = self

        class Stream:
            def __init__(self, device: torch.device | None = None, name: str = "side") -> None:
                self.device, self.name = device, name

            def wait_event(self, event: Event) -> None:
                recorder.say(f"{self.name} waits", f"event on {event.stream}")

        class Event:
            stream = ""

            def record(self, stream: Stream) -> None:
                self.stream = stream.name
                recorder.say("record", stream.name)

        @contextmanager
        def stream(which: Stream):
            recorder.say("enter", which.name)
            yield
            recorder.say("leave", which.name)

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: recorder.say("set device", str(device)))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))


class OnDevice:
    """A tensor on a device."""

    is_cuda = True

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def record_stream(self, stream) -> None:
        self.recorder.say(f"{self.name} is kept for", stream.name)


def test_what_is_received_waits_for_what_made_it_and_is_kept_for_who_uses_it(monkeypatch):
    recorder = Recorder()
    recorder.patch(monkeypatch)
    side = SideStream(torch.device("cuda", 1))
    with side.work():
        recorder.say("launch")
        event = side.mark()
    side.receive(event, [OnDevice(recorder, "x"), torch.zeros(1), OnDevice(recorder, "present")])  # type: ignore[list-item]
    assert [words for _, *words in recorder.said] == [
        ["set device", "cuda:1"],  # before the stream: leaving it must not make another device current
        ["enter", "side"],
        ["launch"],
        ["record", "side"],
        ["leave", "side"],
        ["main waits", "event on side"],
        ["x is kept for", "main"],
        ["present is kept for", "main"],
    ]


def test_every_batch_is_made_on_the_side_and_received_where_it_is_asked_for(cohort_store, monkeypatch):
    store = ClipStore(cohort_store)
    clip_input = ClipInput(store, store.montage, InputConfig(), CPU)
    clip_input.measure(np.arange(len(store.recordings)), iter)
    recorder = Recorder()
    recorder.patch(monkeypatch)
    clip_input.side = SideStream(torch.device("cuda", 0))
    made = clip_input.filter
    monkeypatch.setattr(clip_input, "filter", lambda *arguments: (recorder.say("filter"), made(*arguments))[1])
    receive = clip_input.side.receive

    def received(event, tensors):
        tensors = list(tensors)
        recorder.say("receive", str(len(tensors)))
        receive(event, tensors)

    monkeypatch.setattr(clip_input.side, "receive", received)
    for _, _batch in clip_input.batches(range(4), lambda i: np.arange(i, i + 2)):
        recorder.say("use")
    one_batch = [["set device", "cuda:0"], ["enter", "side"], ["filter"], ["record", "side"], ["leave", "side"]]
    assert [words for who, *words in recorder.said if who == "thread"] == 4 * one_batch
    n_tensors = str(2 * len(clip_input.modalities))
    in_turn = [["receive", n_tensors], ["main waits", "event on side"], ["use"]]
    assert [words for who, *words in recorder.said if who == "consumer"] == 4 * in_turn


def test_copies_to_the_cpu_are_no_copies():
    x = torch.arange(3)
    assert upload(x, CPU).data_ptr() == x.data_ptr()


def test_copies_to_a_device_go_through_pinned_memory_and_wait_for_nothing():
    class Source:
        said: list[object]

        def __init__(self, pinned: bool) -> None:
            self.pinned, self.said = pinned, []

        def is_pinned(self) -> bool:
            return self.pinned

        def pin_memory(self) -> Source:
            self.said.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> Source:
            self.said += [device.type, non_blocking]
            return self

    for pinned in (False, True):
        source = Source(pinned)
        upload(source, torch.device("cuda"))  # type: ignore[arg-type]
        assert source.said == ([] if pinned else ["pinned"]) + ["cuda", True]


@pytest.mark.parametrize(
    ("architectures", "capability", "serves"),
    [
        (["80", "86", "89", "90a"], (9, 0), True),
        (["80", "86", "89", "90a"], (8, 0), True),
        (["80", "86", "89", "90a"], (10, 0), True),  # from the PTX of 8.9
        (["80", "86", "89", "90"], (12, 1), True),  # from that of 9.0
        (["80"], (8, 6), True),
        (["86"], (8, 0), False),
        (["90a"], (9, 0), True),
        (["90a"], (10, 0), False),
        (["90a"], (8, 0), False),
        (["86-real"], (8, 9), True),
        (["86-real"], (9, 0), False),
        (["86-virtual"], (9, 0), True),
        (["120f"], (12, 0), True),
        (["120f"], (12, 1), True),
        (["100f"], (12, 0), False),
        (["103f"], (10, 0), False),
        (["native"], (9, 0), False),
        ([""], (9, 0), False),
    ],
)
def test_which_devices_a_build_serves(architectures, capability, serves):
    assert architectures_serve(architectures, capability) == serves


def test_the_default_architectures_serve_every_gpu_from_8_0_on():
    lines = (Path(__file__).resolve().parents[1] / "CMakeLists.txt").read_text()
    found = re.search(r"set\(SLEEPFM_DEFAULT_ARCHITECTURES ([0-9a-z ]+)\)", lines)
    assert found is not None
    for capability in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)):
        assert architectures_serve(found[1].split(), capability), capability
    assert not architectures_serve(found[1].split(), (7, 5))


def test_a_build_without_code_for_the_device_is_noticed(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(cuda_kernels, "_device_has_kernels", cuda_kernels._device_has_kernels.__wrapped__)  # not kept
    monkeypatch.setattr(cuda_kernels, "ARCHITECTURES", ("80", "90a"))
    for capability, expected in (((9, 0), True), ((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, known=capability: known)
        assert has_kernels(device) == expected
    monkeypatch.setattr(cuda_kernels, "ARCHITECTURES", ())
    assert not has_kernels(device)


def test_no_kernels_run_on_a_cpu():
    assert not has_kernels(CPU)


# ---- on a device -----------------------------------------------------------------------------------------------------


@pytest.fixture
def both(cohort_store):
    """The same clips' input on the CPU and on the device."""
    store = ClipStore(cohort_store)
    inputs = [ClipInput(store, store.montage, InputConfig(), device) for device in (CPU, torch.device("cuda"))]
    for clip_input in inputs:
        clip_input.measure(np.arange(len(store.recordings)), lambda items: items)
    return inputs


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name].cpu() - theirs[name]).abs().max()) for name in theirs)


@pytest.mark.cuda
def test_batches_on_a_device_are_those_of_the_cpu(both):
    on_cpu, on_device = both
    assert on_device.filter_device.type == "cuda"
    clips = np.arange(0, len(on_cpu.store), 7)
    expected, got = on_cpu(clips), on_device(clips)
    for name, x in expected.x.items():
        assert got.x[name].is_cuda
        torch.testing.assert_close(got.x[name].cpu(), x, rtol=0, atol=2e-4 * float(x.abs().max()))
        assert torch.equal(got.present[name].cpu(), expected.present[name])


@pytest.mark.cuda
def test_a_consumer_that_lags_behind_sees_every_batch_whole(both):
    """The consumer's stream sleeps before it reads, while the thread makes the next batches in what memory is free."""
    _, on_device = both
    n = len(on_device.store)
    items = [np.arange(k, k + 8) % n for k in range(0, 160, 8)]
    alone = [on_device(clips).x for clips in items]
    consumer = torch.cuda.Stream()
    copies = []
    with torch.cuda.stream(consumer):
        for _, batch in on_device.batches(items, lambda clips: clips):
            torch.cuda._sleep(5_000_000)
            copies.append({name: x.clone() for name, x in batch.x.items()})
            del batch
    torch.cuda.synchronize()
    for expected, got in zip(alone, copies, strict=True):
        for name, x in expected.items():
            assert torch.equal(x, got[name])


@pytest.mark.cuda
def test_without_kernels_for_the_device_the_cpu_filters(both):
    on_cpu, on_device = both
    on_device.filter_device = CPU
    for clips, batch in on_device.batches([np.arange(5), np.arange(5, 12)], lambda clips: clips):
        assert all(x.is_cuda for x in batch.x.values())
        assert difference(batch.x, on_cpu(clips).x) == 0.0
