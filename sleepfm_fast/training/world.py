"""The processes that train together, which ``torchrun`` starts: this one's rank, and communication among them."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sleepfm_fast.cli.command import plain
from sleepfm_fast.distributed import gather_equal, gather_rows
from sleepfm_fast.errors import SleepfmError, refused_by_system
from sleepfm_fast.storage.claims import Claim, claim_to_write, holder_of
from sleepfm_fast.system import processors

__all__ = ["World", "choose_device", "claimed_run", "joined", "threads_restored"]

TIMEOUT = timedelta(minutes=30)  # long enough for rank 0 to write a large checkpoint to a slow disk
LOST = ("gloo/transport", "NCCL")
"""Of messages of lost connections, which torch raises as plain errors: gloo's source file, or the library's name."""


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; with ``local_rank``, this process's own GPU.

    Raises
    ------
    SleepfmError
        If CUDA was asked for and there is none, or if there are fewer GPUs than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SleepfmError(
            "--device cuda was given, but torch sees no CUDA device here. Use --device cpu, or install a CUDA build of "
            "torch and check nvidia-smi."
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        raise SleepfmError(
            f"process {local_rank + 1} of this machine has no GPU of its own: torch sees {torch.cuda.device_count()}. "
            "Start as many processes as there are GPUs (torchrun --nproc-per-node), or use --device cpu."
        )
    return torch.device("cuda", local_rank)


@dataclasses.dataclass(frozen=True)
class World:
    """Rank of this process and number of processes; with one process nothing is communicated."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Number of processes on this machine."""
    held: list[Claim] = dataclasses.field(default_factory=list, compare=False)
    """Rank 0's claim on the run folder, while it has one."""

    @property
    def main(self) -> bool:
        """Whether this process is rank 0, the one that writes files and shows progress."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return this process's device; if it is a GPU, make it torch's current one."""
        device = choose_device(name, self.local_rank if self.size > 1 else None)
        if device.index is not None:
            torch.cuda.set_device(device)
        return device

    def share_threads(self, threads: int) -> None:
        """Set the number of CPU threads; for 0, the processes of a machine share its cores equally."""
        if not threads and self.local_size > 1:
            threads = max(processors() // self.local_size, 1)
        if threads:
            torch.set_num_threads(threads)

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """Return every rank's ``[n, ...]``; n may differ between ranks."""
        if self.size == 1:
            return [rows]
        n = torch.tensor([len(rows)], dtype=torch.int64, device=rows.device)
        counts = gather_equal(n, self.size, None).flatten().tolist()
        return list(gather_rows(rows, counts, None).split(counts))

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, which must be JSON."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.tolist())) for part in self.gather_rows(text)]

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Run ``action`` on rank 0 only; every rank gets its JSON result, or its :class:`SleepfmError`."""
        if self.size == 1:
            return action()
        answer: dict[str, Any] = {}
        if self.main:
            try:
                answer = {"result": action()}
            except SleepfmError as error:
                answer = {"error": str(error)}
            except OSError as error:
                answer = {"error": f"{refused_by_system(error)}."}
        answer = self.gather(answer)[0]
        if "error" in answer:
            raise SleepfmError(answer["error"])
        return answer["result"]

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Raise on every rank if the facts, by name, of one of them are not those of rank 0.

        Without that, ranks with other clips or options might exchange as many numbers, and train on nonsense.
        """
        first, *others = self.gather({"machine": socket.gethostname(), "facts": plain(dict(facts))})
        for rank, other in enumerate(others, 1):
            a, b = first["facts"], other["facts"]
            names = sorted(name for name in {**a, **b} if a.get(name) != b.get(name))
            if names:
                differences = ", ".join(f"{name} {b.get(name)} instead of {a.get(name)}" for name in names)
                raise SleepfmError(
                    f"process {rank} (on {other['machine']}) does not train what process 0 (on {first['machine']}) "
                    f"does: it has {differences}. Give all processes the same options, the same version of "
                    "sleepfm_fast, and one STORE that all share, or whole copies of it, to which no preprocess adds "
                    "nights meanwhile."
                )

    def refuse_taken_over(self) -> None:
        """Raise, on rank 0, if another process took the run folder over while this one was suspended or cut off."""
        for claim in self.held:
            if claim.is_lost():
                raise SleepfmError(
                    f"{claim.path}, the claim of this process on the run, was removed or taken over (by "
                    f"{holder_of(claim.path) or 'nobody that still runs'}), as while this process was suspended or cut "
                    "off. It writes nothing more. What was finished is kept; the same command with --resume continues "
                    "from there."
                )

    def total(self, count: int, group: dist.ProcessGroup | None = None) -> int:
        """Return the sum of all ranks' counts."""
        if self.size == 1:
            return count
        counts = torch.tensor([count], dtype=torch.int64)
        return int(gather_equal(counts, self.size, group).sum())

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have on rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def mean_in_place(self, tensors: list[Tensor]) -> None:
        """Replace floating-point tensors by their mean over ranks, others by their maximum, bit by bit the same."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.detach().double().flatten() for t in tensors])
        every = gather_equal(flat, self.size, None)
        mean, largest = every.mean(0), every.amax(0)
        sizes = [t.numel() for t in tensors]
        for tensor, a, b in zip(tensors, mean.split(sizes), largest.split(sizes), strict=True):
            tensor.copy_((a if tensor.is_floating_point() else b).view_as(tensor))


@contextmanager
def claimed_run(path: Path, world: World) -> Iterator[None]:
    """Claim a run folder for these processes while they train into it.

    Raises
    ------
    SleepfmError
        On every rank, if other processes are writing to the folder or it cannot be written.
    """
    world.on_main(lambda: world.held.append(claim_to_write(path)))
    try:
        yield
    finally:
        while world.held:
            world.held.pop().release()


@contextmanager
def threads_restored() -> Iterator[None]:
    """Give a program that calls a command its own number of threads back, whatever ``--threads`` was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that ``torchrun`` started (gloo on the CPU, NCCL between GPUs); without it, stay alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        with threads_restored():
            yield World()
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    world = World(rank, size, local_rank, local_size)
    backend = "gloo" if world.device(device).type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        yield world
    except RuntimeError as error:
        text = str(error).partition("\n")[0].partition(". This is typically")[0]
        if not isinstance(error, dist.DistError) and not any(mark in text for mark in LOST):
            raise
        raise SleepfmError(
            f"the connection to another process of this training was lost: that process has failed or was killed, or "
            f"its machine cannot be reached. Its own output says why ({type(error).__name__} here: {text}). What was "
            "finished is kept; the same command with --resume continues from there."
        ) from error
    # Not after an exception: the other ranks may never get here, and torchrun ends them.
    dist.destroy_process_group()
