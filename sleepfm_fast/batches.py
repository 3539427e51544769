"""Clips of a store as the encoders' input: integers -> filter_resample -> one tensor for each modality."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast import __version__
from sleepfm_fast.channels import Montage, channel_of
from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.prefetch import prefetch
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops import filter_resample
from sleepfm_fast.ops.cuda_kernels import has_kernels
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.storage.row_numbers import row_numbers
from sleepfm_fast.store.feed import Batch as Windows
from sleepfm_fast.store.feed import Buffer, Feed, WholeRecordings
from sleepfm_fast.store.kept_scales import read_scales, write_scales
from sleepfm_fast.store.scales import Scales, measure_scales, nominal_scales
from sleepfm_fast.store.side_stream import PinnedBuffer, SideStream, upload

__all__ = ["Batch", "ClipInput", "InputConfig"]

FS_HZ = 256
N_OUT = 30 * FS_HZ
AHEAD = 2  # batches that are announced to the system before they are read

MADE_BY = {
    "store": "a ClipStore: ClipStore(FOLDER)",
    "montage": "a Montage: the store's own, store.montage, or a run's, Montage.from_dict(config['montage'])",
    "config": "an InputConfig, such as InputConfig(filters='aasm') or a run's, InputConfig(**config['input'])",
}
"""Where the arguments of a ClipInput come from."""

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How recorded integers become the encoders' input."""

    filters: Literal["aasm", "seed", "clinical", "none"] = "aasm"
    """Filter preset: aasm (bands of the AASM manual), seed (resampling only), clinical, none."""
    notch_hz: Literal[0, 50, 60] = 0
    """Mains frequency to remove, 0 for none."""
    normalise: Literal["recording", "clip", "none"] = "recording"
    """Scale each channel by its recording's typical amplitude, z-score every clip, or leave physical units."""

    def __post_init__(self) -> None:
        """Refuse a value that is none of the choices."""
        for name, kind in get_type_hints(type(self)).items():
            if (value := getattr(self, name)) not in get_args(kind):
                choices = ", ".join(repr(choice) for choice in get_args(kind))
                raise ValueError(f"{name} is {value!r}; choose one of: {choices}.")


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of clips.

    Attributes
    ----------
    x : dict of str to float tensor [B, C, 7680]
        The input of each modality.
    present : dict of str to bool tensor [B, C]
        Which channels the recording has; where False, ``x`` is zero and carries no meaning. These tensors stay on the
        CPU, so that the model can choose each encoder's clips without waiting for the device.
    """

    x: dict[str, torch.Tensor]
    present: dict[str, torch.Tensor]

    def not_finite(self) -> list[str]:
        """Return the modalities that have a sample that is not finite in a present channel; waits for the device."""
        return [
            name
            for name, x in self.x.items()
            if not bool(torch.where(self.present[name].to(x.device)[..., None], x, 0.0).isfinite().all())
        ]

    def to(self, device: torch.device) -> Batch:
        """Copy ``x`` to a device, without waiting for it; ``present`` stays where it is."""
        return Batch({k: v.to(device, non_blocking=True) for k, v in self.x.items()}, self.present)


def places_of(wanted: list[tuple[str, str]], held: list[tuple[str, str]]) -> list[int]:
    """Find the slots of one montage in another: by modality and name, else by the channel that the names stand for.

    Parameters
    ----------
    wanted, held : list of (str, str)
        Modality and name of each slot. Montages may name the same channel differently, ``Chest`` and ``CHEST``.

    Returns
    -------
    list of int
        Position in ``held`` of each wanted slot, -1 where it is missing; no position occurs twice.
    """
    by_name = {key: i for i, key in enumerate(held)}
    places = [by_name.get(key, -1) for key in wanted]
    free: dict[tuple[str, str], int] = {}
    for i, (modality, name) in enumerate(held):
        if i not in places:
            free.setdefault((modality, channel_of(name)[0]), i)
    for j, (modality, name) in enumerate(wanted):
        if places[j] < 0:
            places[j] = free.pop((modality, channel_of(name)[0]), -1)
    return places


class ClipInput:
    """Turns clip numbers of a store into batches for a model with a given montage.

    Parameters
    ----------
    store : ClipStore
        The store that holds the integers.
    montage : Montage
        The model's montage. Its slots are found in the store by modality and name, or by the channel that the name
        stands for; a slot that the store lacks becomes a channel that is not present.
    config : InputConfig
        Filter preset and normalisation.
    device : torch.device or str
        The device of the batches. Filtering runs there too if it is a CUDA device that this build has kernels for, else
        on the CPU.

    Notes
    -----
    With ``normalise="recording"`` call :meth:`measure` first, for the recordings whose clips will be asked for: clips
    of others are refused. It may be used from several threads, and pickled with what it has measured (the store opens
    itself again in the other process).
    """

    def __init__(self, store: ClipStore, montage: Montage, config: InputConfig, device: torch.device | str) -> None:
        for name, given in (("store", store), ("montage", montage), ("config", config)):
            # Not by class: a notebook's %autoreload makes new ones of the same name.
            if isinstance(given, str | os.PathLike | Mapping):
                raise TypeError(f"{name} is {given!r}; expected {MADE_BY[name]}.")
        self._made_of = store, montage, config, device
        self.store = store
        self.config = config
        self.device = device = torch.device(device)
        self.filter_device = device if has_kernels(device) else torch.device("cpu")
        self.side = SideStream(device) if device.type == "cuda" else None
        self.bank = FilterBank(config.filters, fs_out_hz=FS_HZ, notch_hz=config.notch_hz or None)
        held = [(m.name, s.name) for m in store.montage.modalities for s in m.slots]
        self.modalities = tuple(m.name for m in montage.modalities if m.slots)
        wanted = [(m.name, s.name) for m in montage.modalities for s in m.slots]
        columns = np.array(places_of(wanted, held), np.int64)
        self.renamed_slots = tuple(
            f"{held[c][1]} as {s}" for (_, s), c in zip(wanted, columns, strict=True) if c >= 0 and held[c][1] != s
        )
        """Channels that have another name in the store's montage than in the model's, such as ``CHEST as Chest``."""
        self.missing_slots = tuple(f"{m} {s}" for (m, s), c in zip(wanted, columns, strict=True) if c < 0)
        filled = np.asarray(store.channels.present).sum(axis=0)
        self.n_filled = {f"{m} {s}": int(filled[c]) for (m, s), c in zip(wanted, columns, strict=True) if c >= 0}
        """For each of the model's channels that the store's montage has, the number of recordings that have it."""
        if (columns < 0).all():
            raise SleepfmError(
                f"the store {store.path} has none of the model's channels ({', '.join(self.missing_slots)}); its "
                f"montage is '{store.montage.name}'. Preprocess the recordings with the model's montage "
                "(--like RUN; for the authors' file, --montage cinc2018)."
            )
        self.slots = columns[columns >= 0]
        self.feed = Feed(store, [int(s) for s in self.slots], self.bank)
        self._memory = threading.local()
        self.places = np.flatnonzero(columns >= 0)
        self.n_columns = len(columns)
        bounds = np.cumsum([0, *(len(m.slots) for m in montage.modalities if m.slots)])
        self.spans = {
            name: slice(int(a), int(b)) for name, a, b in zip(self.modalities, bounds[:-1], bounds[1:], strict=True)
        }
        self.scales = Scales.identity(len(store.recordings), len(self.slots))
        if config.normalise != "none":
            nominal_scales(self.feed, self.scales)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send to another process what it was made of, and what it has measured."""
        return _remade, (*self._made_of, self.scales)

    def lacking(self, trained_on: str | None, model: str = "model") -> list[str]:
        """Return sentences on which of the model's channels the store lacks, and which fewer than half its nights have.

        A store that was made for the model (``preprocess --like``) has all of the model's slots, but they may be empty.
        Nothing is said of the store that the model was trained on, whose digest is ``trained_on``: what that one lacks,
        the model does without anyway.
        """
        if trained_on == self.store.digest:
            return []
        n = len(self.store.recordings)
        empty = [name for name, found in self.n_filled.items() if not found]
        scarce = [f"{name} in {found}" for name, found in self.n_filled.items() if 0 < 2 * found < n]
        said = []
        if absent := [*self.missing_slots, *empty]:
            them = agreeing(len(absent), "it", "them")
            aliased = json.dumps({"*": {"LABEL": {"alias": (absent[0]).partition(" ")[2]}}})
            said.append(
                f"the store lacks {', '.join(absent)}; the {model} works without {them}. If its nights have {them} "
                f"under other names, give these to preprocess, with --like and --overrides: {aliased}"
            )
        if scarce:
            said.append(
                f"the store has {', '.join(scarce)} of its {counted(n, 'night')} only; in the others the {model} works "
                f"without {agreeing(len(scarce), 'it', 'them')}"
            )
        return said

    def measure(
        self, recordings: npt.NDArray[np.int64], progress: Callable[[Iterable[int]], Iterable[int]]
    ) -> tuple[str, ...]:
        """Measure the scale of every channel of the given recordings (``normalise="recording"`` only).

        What has been measured, or read by :meth:`read_amplitudes`, is not measured again.

        Parameters
        ----------
        recordings : int array [n]
            Their numbers in the store; or bool, one for each recording of the store.
        progress : callable
            Is given the numbers and yields them one by one, such as ``tqdm``; ``iter`` shows nothing.

        Returns
        -------
        tuple of str
            A sentence for each channel that is flat throughout some recordings and is treated as missing there.
        """
        recordings = row_numbers(recordings, len(self.store.recordings), "recordings")
        if self.config.normalise != "recording":
            return ()
        if len(unknown := recordings[~self.scales.measured[recordings]]):
            measure_scales(self.feed, self.bank, unknown, self.scales, N_OUT, progress)
        return self.flat_channels(recordings)

    def amplitudes_of(self) -> dict[str, Any]:
        """Return what decides the amplitudes: the store's digest, its channels, the filters and the version."""
        slots = [f"{slot} {self.store.slots[slot].name}" for slot in self.slots]  # modalities may share a name
        filters = {"filters": self.config.filters, "notch_hz": self.config.notch_hz}
        return {"version": __version__, "store": self.store.digest, "slots": slots, **filters}

    def write_amplitudes(self, path: str | Path) -> None:
        """Write what :meth:`measure` found to a file, which takes its name when it is complete."""
        write_scales(as_path(path), self.scales, self.amplitudes_of())

    def read_amplitudes(self, path: str | Path) -> tuple[str, ...]:
        """Take over the amplitudes that :meth:`write_amplitudes` wrote for this store, montage and filters.

        Of anything else, or from another version, nothing is taken.

        Returns
        -------
        tuple of str
            A sentence if there is a file that cannot be read.
        """
        if self.config.normalise != "recording":
            return ()
        wrong = read_scales(as_path(path), self.scales, self.amplitudes_of())
        return () if wrong is None else (f"{wrong.rstrip('.')}. The amplitudes are measured again.",)

    def flat_channels(self, recordings: npt.NDArray[np.int64]) -> tuple[str, ...]:
        """Return a sentence for each channel that :meth:`measure` found flat in some of the recordings."""
        flat = (self.scales.scale[recordings] == 0) & self.feed.present[recordings]
        return tuple(
            f"{self.store.slots[slot].name} is flat throughout {n} of {counted(len(recordings), 'recording')} "
            f"(first: {self.store.recordings[recordings[flat[:, column].argmax()]].id}) and is treated as missing there"
            for column, slot in enumerate(self.slots)
            if (n := int(flat[:, column].sum()))
        )

    def read(self, clips: npt.NDArray[np.int64], out: Buffer | None = None) -> Windows:
        """Read the recorded integers of clips into ``out`` or fresh memory; only this touches the disk."""
        clips = row_numbers(clips, len(self.store), "clips")
        windows = self.feed.gather(clips, out)
        recordings = np.asarray(self.store.recording[clips], np.int64)
        if self.config.normalise == "recording" and not self.scales.measured[recordings].all():
            unmeasured = np.unique(recordings[~self.scales.measured[recordings]])
            raise SleepfmError(
                f"normalise is 'recording', and the amplitudes of {counted(len(unmeasured), 'recording')} of these "
                f"clips have not been measured (the first: {self.store.recordings[unmeasured[0]].id}). Call "
                "measure(np.unique(store.recording[clips]), iter) of this ClipInput first."
            )
        self.scales.apply(windows.calibration, windows.table, recordings)
        return windows

    def filter(self, windows: Windows, raw: torch.Tensor | None = None) -> Batch:
        """Filter, resample and scale what :meth:`read` gave, on the current stream; ``raw``: its integers, pinned."""
        table = windows.table
        x = filter_resample(
            upload(torch.from_numpy(windows.raw) if raw is None else raw, self.filter_device),
            upload(torch.from_numpy(table), self.filter_device),
            upload(torch.from_numpy(windows.calibration), self.filter_device),
            self.bank,
            N_OUT,
            normalise="zscore" if self.config.normalise == "clip" else "none",
        )
        x = upload(x, self.device) if self.filter_device != self.device else x
        present = torch.from_numpy(table[:, :, 1] > 0)
        if len(self.places) < self.n_columns:
            places = torch.from_numpy(self.places)
            x = x.new_zeros(len(x), self.n_columns, N_OUT).index_copy_(1, upload(places, x.device), x)
            present = present.new_zeros(len(x), self.n_columns).index_copy_(1, places, present)
        return Batch(
            {name: x[:, span] for name, span in self.spans.items()},
            {name: present[:, span] for name, span in self.spans.items()},
        )

    def __call__(self, clips: npt.NDArray[np.int64]) -> Batch:
        """Read and filter some clips; on the CPU the integers pass through a buffer that each thread reuses."""
        if self.filter_device.type == "cuda":
            pinned = PinnedBuffer()
            windows = self.read(clips, pinned)
            return self.filter(windows, pinned.tensor.view(torch.int16 if windows.raw.itemsize == 2 else torch.int32))
        buffer: Buffer | None = getattr(self._memory, "buffer", None)
        if buffer is None:
            buffer = self._memory.buffer = Buffer()
        return self.filter(self.read(clips, buffer))

    def batches(
        self, items: Iterable[Item], clips_of: Callable[[Item], npt.NDArray[np.int64]], *, in_play: int = 0
    ) -> Iterator[Any]:
        """Yield (item, Batch) in order, reading and filtering ahead in a thread.

        ``in_play``: the clips come from so many recordings at a time, each of which is then read as a whole when its
        first clip is announced; 0: they may come from any.

        On CUDA the thread works on a stream of its own, concurrently with the caller's work, and each batch is handed
        over to the stream that is current where the caller asks for it.

        Clips are announced to the system two batches before they are read, so that the disk is kept busy meanwhile.

        On two idle cores, filtering between the steps instead of in a thread was faster by about a quarter (single
        measurements, tiny encoder: 627 clips/s against 500). But with other work on the machine all threads then stall
        at every barrier (51 clips/s against 221).
        """

        def announced() -> Iterator[tuple[Item, npt.NDArray[np.int64]]]:
            waiting: deque[tuple[Item, npt.NDArray[np.int64]]] = deque()
            whole = WholeRecordings(self.store, in_play) if in_play else None
            for item in items:
                clips = clips_of(item)
                if whole:
                    whole.announce(clips)
                self.feed.announce(clips)
                waiting.append((item, clips))
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
            yield from waiting

        side = self.side

        def prepare(pair: tuple[Item, npt.NDArray[np.int64]]) -> tuple[Batch, torch.cuda.Event | None]:
            if side is None:
                return self(pair[1]), None
            with side.work():
                return self(pair[1]), side.mark()

        stream = prefetch(announced(), prepare)
        try:
            for (item, _), (batch, made) in stream:
                if side is not None and made is not None:
                    side.receive(made, [*batch.x.values(), *batch.present.values()])
                yield item, batch
        finally:
            stream.close()


def _remade(store: ClipStore, montage: Montage, config: InputConfig, device: torch.device, scales: Scales) -> ClipInput:
    """Make a ClipInput again in another process."""
    made = ClipInput(store, montage, config, device)
    made.scales = scales
    return made
