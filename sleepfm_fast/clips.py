"""Reading a clip store, whose layout ``clip_layout`` describes: labels and samples, memory-mapped."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sleepfm_fast.channels import Montage
from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.plurals import counted
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.storage.columns import file_digest, read_columns
from sleepfm_fast.storage.open_files import (
    Descriptor,
    Opened,
    RecentFiles,
    Way,
    fits_in_memory,
    map_file,
    open_limit,
    opened_files,
    opened_maps,
)
from sleepfm_fast.store.clip_entries import ChannelColumns, RecordingEntry, Window
from sleepfm_fast.store.clip_layout import INDEX_SCHEMA, INDEX_TEXTS, ClipStoreError, read_store_file
from sleepfm_fast.store.index_check import index_problem
from sleepfm_fast.system import is_remote, read_whole_soon

__all__ = ["ChannelColumns", "ClipStore", "ClipStoreError", "RecordingEntry", "Window"]

Array = npt.NDArray[Any]


class ClipStore:
    """A clip store, open for reading.

    Every column is memory-mapped, except on a network file system. Recordings are opened on first use and at most
    ``max_mapped`` at a time. An open store may be used from several threads, and pickled (it opens itself again in the
    other process).

    Parameters
    ----------
    path : path-like
        The folder that preprocess wrote.
    verify : bool
        Compare the SHA-256 of every recording and column with what was written (reads the whole store).
    max_mapped : int
        How many recordings stay open at a time, the least recently used closed first; each takes one file descriptor.
        By default half of what ``ulimit -n`` allows, which all stores of a process share.
    read : {"auto", "mmap", "pread"}
        How batches are read: copied out of memory maps, or with pread(2). ``auto``: maps where the recordings fit in
        half of the machine's memory and can all be open, so that each is mapped and read from the disk once. Not on a
        network file system: where a file there cannot be read, or another machine has replaced it, a map is a signal
        (SIGBUS) that ends the process without a word, and pread an error. The index is not mapped there either.

    Attributes
    ----------
    montage : Montage
    slots : tuple of Slot
        The montage's slots, flat, in the order of the modalities.
    recordings : list of RecordingEntry
    subjects : list of str
    participants : dict of str to dict
        Each subject's ``{"age": float or None, "sex": str or None}``; the age is that of its first recording with one.
    units : list of str
    recording, clip, segment : int32 [n_clips]
        Recording, index of the clip and of its segment within the recording.
    onset_s : float64 [n_clips]
        From the start of the recording.
    stage : int8 [n_clips]
        0..4 for W, N1, N2, N3, R; -1 for none.
    sdb : int8 [n_clips]
        1 a respiratory event, 0 none, -1 unknown.
    recording_subject : int32 [n_recordings]
        Position in ``subjects``.
    channels : ChannelColumns
    segment_onset_s : float64 [n_segments]
    run_offset, run_n_samples : int64 [n_segments, n_slots]
        Byte offset in the ``.bin`` and number of samples of each run.

    Raises
    ------
    ClipStoreError
        When the store is missing, unfinished, of another version or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        verify: bool = False,
        max_mapped: int | None = None,
        read: Literal["auto", "mmap", "pread"] = "auto",
    ) -> None:
        if read not in ("auto", "mmap", "pread"):
            raise ValueError(f"read is {read!r}; choose one of: auto, mmap, pread")
        self.path = as_path(path)
        columns, texts = self._open_index(verify=verify)
        remote = is_remote(self.path)
        if remote:
            columns = {name: np.array(column) for name, column in columns.items()}
        self.montage = Montage.from_dict(self.store["montage"])
        self.slots = self.montage.slots
        if (problem := index_problem(columns, texts, len(self.slots))) is not None:
            raise ClipStoreError(
                f"{self.path / self.store['index'] / problem[0]} is damaged: {problem[1]}. {self.index_remedy}"
            )
        self.subjects: list[str] = [s["subject"] for s in texts["subjects"]]
        self.participants: dict[str, dict[str, Any]] = {
            s["subject"]: {"age": s["age"], "sex": s["sex"]} for s in texts["subjects"]
        }
        self.units: list[str] = texts["units"]
        self.recording = columns["recording"]
        self.clip = columns["clip"]
        self.segment = columns["segment"]
        self.onset_s = columns["onset_s"]
        self.stage = columns["stage"]
        self.sdb = columns["sdb"]
        self.recording_subject = columns["recording_subject"]
        self.first_segment = columns["recording_first_segment"]
        first_clip = columns["recording_first_clip"]
        shape = (-1, len(self.slots))
        self.channels = ChannelColumns(
            *(
                columns[f"channel_{name}"].reshape(shape)
                for name in ("present", "fs_num", "fs_den", "gain", "offset", "itemsize", "unit", "n_samples")
            )
        )
        self.segment_onset_s = columns["segment_onset_num"] / columns["segment_onset_den"]
        self.run_offset = columns["run_offset"].reshape(shape)
        self.run_n_samples = columns["run_n_samples"].reshape(shape)
        self.recordings = [
            RecordingEntry(
                id=r["id"],
                subject=self.subjects[self.recording_subject[i]],
                source=r["source"],
                start=r["start"],
                first_clip=int(first_clip[i]),
                n_clips=int(first_clip[i + 1] - first_clip[i]),
                first_segment=int(self.first_segment[i]),
                n_segments=int(self.first_segment[i + 1] - self.first_segment[i]),
                n_bytes=r["n_bytes"],
                sha256=r["sha256"],
                # An index of an earlier version has the subjects' ages only.
                age=r["age"] if "age" in r else self.participants[self.subjects[self.recording_subject[i]]]["age"],
            )
            for i, r in enumerate(texts["recordings"])
        ]
        limit = open_limit() if max_mapped is None else max_mapped
        self.fits = fits_in_memory(sum(entry.n_bytes for entry in self.recordings))
        """Whether the recordings fit in memory, so that what was read once stays in the system's cache."""
        # Reopening a file costs pread(2) a sixth of what it costs a map, all of whose pages must be faulted in again.
        auto: Way = "mmap" if self.fits and len(self.recordings) <= limit and not remote else "pread"
        self.read: Way = auto if read == "auto" else read
        self._mapped: RecentFiles[Array] = RecentFiles(limit)
        self._files: RecentFiles[Descriptor] = RecentFiles(limit)
        self.at_once = max(1, limit // 2)
        """Recordings of a batch that are held open together; the last ones still are while the next ones are opened."""
        """Prepared :class:`~sleepfm_fast.store.feed.Feed` objects; each keeps its bank alive, so ids stay unique."""
        self.check(digests=verify)

    def remake(self, source: str) -> str:
        """Return the shell command that makes recordings of the store again from ``source``."""
        store, origin = shlex.quote(str(self.path)), self.store["configuration"].get("from")
        if origin is None:
            return f"`python -m sleepfm_fast.preprocess {source} {store}`"
        return f"`python -m sleepfm_fast.convert {source} {store} --from {origin}`"

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the path, not the maps, to another process."""
        return reopen, (self.path, self._mapped.limit, self.read)

    def __len__(self) -> int:
        """Count the clips."""
        return len(self.recording)

    def __repr__(self) -> str:
        """Say what is in it."""
        return (
            f"ClipStore({str(self.path)!r}: {counted(len(self), 'clip')}, "
            f"{counted(len(self.recordings), 'recording')}, {counted(len(self.subjects), 'subject')}, montage "
            f"{self.montage.name})"
        )

    def subject(self, clip: int) -> str:
        """Return the subject of clip number ``clip`` of the store."""
        return self.subjects[int(self.recording_subject[self.recording[clip]])]

    def slots_of(self, modality: str) -> list[int]:
        """Return a modality's slot numbers, counted through all modalities, in the montage's order."""
        n = 0
        for candidate in self.montage.modalities:
            if candidate.name == modality:
                return list(range(n, n + len(candidate.slots)))
            n += len(candidate.slots)
        names = ", ".join(m.name for m in self.montage.modalities)
        raise ValueError(f"the montage '{self.montage.name}' has no modality '{modality}'; it has: {names}.")

    def modality_present(self) -> npt.NDArray[np.bool_]:
        """Whether a recording has any channel of a modality: bool [n_recordings, n_modalities], montage order."""
        return np.stack(
            [self.channels.present[:, self.slots_of(m.name)].any(axis=1) for m in self.montage.modalities], axis=1
        )

    def record(self, recording: int) -> dict[str, Any]:
        """Return everything the store knows about a recording: sources, digests, labels used, issues."""
        value: dict[str, Any] = from_json(self._file(recording, ".json").read_text(encoding="utf-8"))
        return value

    def fs_hz(self, recording: int, slot: int) -> Fraction | None:
        """Return the native sampling rate in hertz; None where the slot is missing."""
        if not self.channels.present[recording, slot]:
            return None
        return Fraction(int(self.channels.fs_num[recording, slot]), int(self.channels.fs_den[recording, slot]))

    def samples(self, recording: int) -> Array:
        """Map the ``.bin`` of a recording: read-only uint8 [n_bytes].

        Raises
        ------
        ClipStoreError
            When the file is missing or has another size than was written.
        """
        return self._mapped.get(recording, self._map)

    def open_recordings(self, recordings: Sequence[int]) -> Opened:
        """Open recordings for reading, as maps or descriptors by ``read``; they stay open while the result lives.

        Raises
        ------
        ClipStoreError
            When a file is missing or has another size than was written.
        """
        if self.read == "mmap":
            return opened_maps([self._mapped.get(r, self._map) for r in recordings])
        return opened_files([self._files.get(r, self._descriptor) for r in recordings])

    def read_soon(self, recording: int) -> None:
        """Ask the system to read all of a recording, most of whose clips are needed soon; does not wait for the end."""
        read_whole_soon(self._file(recording, ".bin"))

    def _map(self, recording: int) -> Array:
        try:
            mapped = map_file(self._file(recording, ".bin"))
        except (OSError, ValueError) as error:
            raise self.unread(recording, error) from None
        self._check_size(recording, len(mapped))
        return mapped

    def _descriptor(self, recording: int) -> Descriptor:
        try:
            file = Descriptor(self._file(recording, ".bin"))
            n_bytes = os.fstat(file.number).st_size
        except OSError as error:
            raise self.unread(recording, error) from None
        self._check_size(recording, n_bytes)
        return file

    def _check_size(self, recording: int, n_bytes: int) -> None:
        if n_bytes != self.recordings[recording].n_bytes:
            raise self.damaged(
                recording, f"it has {counted(n_bytes, 'byte')}, {self.recordings[recording].n_bytes} were written"
            )

    def run(self, recording: int, slot: int, segment: int) -> Array:
        """Return all samples of a slot in a segment, a read-only int16 or int32 view; empty if the slot is missing."""
        row = int(self.first_segment[recording]) + segment
        if not 0 <= segment < self.first_segment[recording + 1] - self.first_segment[recording]:
            raise ValueError(f"recording {self.recordings[recording].id} has no segment {segment}.")
        itemsize = int(self.channels.itemsize[recording, slot])
        if itemsize == 0:
            return np.empty(0, np.int16)
        start = int(self.run_offset[row, slot])
        stop = start + itemsize * int(self.run_n_samples[row, slot])
        return self.samples(recording)[start:stop].view(np.int16 if itemsize == 2 else np.int32)

    def window(self, recording: int, slot: int, clip: int, n_before: int, n_after: int, *, up: int = 1) -> Window:
        """Return the native samples of a clip, with neighbours from the same segment.

        Parameters
        ----------
        recording, slot, clip : int
            Recording, flat slot number, index of the clip within the recording.
        n_before, n_after : int
            Samples wanted before the clip's first sample (the one at or before its start), and after its last one; at
            the ends of the segment fewer are returned.
        up : int
            L of the resampling ratio L/M; the clip's start is rounded to a multiple of 1/L sample.

        Returns
        -------
        Window
        """
        entry = self.recordings[recording]
        if not 0 <= clip < entry.n_clips:
            raise ValueError(f"recording {entry.id} has no clip {clip}; it has {entry.n_clips}.")
        row = entry.first_clip + clip
        segment = int(self.segment[row])
        run = self.run(recording, slot, segment)
        fs = self.fs_hz(recording, slot)
        if fs is None:
            return Window(run, 0, 0, 0, 0)
        onset_s = float(self.onset_s[row] - self.segment_onset_s[entry.first_segment + segment])
        first, phase = divmod(round(onset_s * float(fs * up)), up)
        last = -((-phase * fs.denominator - EPOCH_S * up * fs.numerator) // (up * fs.denominator))
        start = max(0, first - n_before)
        stop = min(len(run), first + last + n_after)
        return Window(run[start:stop], start, first, phase, len(run))

    def _open_index(self, *, verify: bool) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read ``store.json`` and open the index that it names.

        A preprocess that ends meanwhile deletes that index; then the one that it put in its place is opened.
        """
        while True:
            self.store = read_store_file(self.path)
            again = self.remake("FILES-OR-FOLDER")
            if self.store["index"] is None:
                raise ClipStoreError(
                    f"{self.path} is unfinished: its making was stopped before its first end, or could not ingest any "
                    f"recording. Run {again} again; it keeps what is finished."
                )
            self.digest: str = self.store["index"].removeprefix("index-")
            self.index_remedy = (
                f"Delete the folder {self.path / self.store['index']} and run {again} again: it is made anew from the "
                "recordings of the store."
            )
            try:
                return read_columns(
                    self.path / self.store["index"],
                    INDEX_SCHEMA,
                    INDEX_TEXTS,
                    remedy=self.index_remedy,
                    verify=verify,
                )
            except SleepfmError:
                if read_store_file(self.path)["index"] == self.store["index"]:
                    raise

    def check(self, *, digests: bool = False) -> None:
        """Compare the size (and, with ``digests``, the SHA-256) of every recording's file with what was written."""
        try:
            with os.scandir(self.path / "recordings") as entries:
                sizes = {e.name: e.stat().st_size for e in entries if e.name.endswith(".bin")}
        except OSError:
            sizes = {}
        for i, entry in enumerate(self.recordings):
            size = sizes.get(f"{entry.id}.bin")
            if size is None:
                raise self.damaged(i, "it is missing")
            if size != entry.n_bytes:
                raise self.damaged(i, f"it has {counted(size, 'byte')}, {entry.n_bytes} were written")
            if digests and file_digest(self._file(i, ".bin")) != entry.sha256:
                raise self.damaged(i, "its SHA-256 is not the one that was written")

    def _file(self, recording: int, suffix: str) -> Path:
        return self.path / "recordings" / f"{self.recordings[recording].id}{suffix}"

    def unread(self, recording: int, error: OSError | ValueError | None = None) -> ClipStoreError:
        """Make the error of a file that could not be opened or read; only one that is missing is to be made again.

        Compiled reads give no ``error``: then the file is read once more, to see what the system says.
        """
        if error is None:
            file = self._file(recording, ".bin")
            try:
                digest = file_digest(file)
                self._check_size(recording, file.stat().st_size)
            except OSError as refusal:
                return self.unread(recording, refusal)
            except ClipStoreError as shorter:
                return shorter
            if digest != self.recordings[recording].sha256:
                return self.damaged(recording, "its SHA-256 is not the one that was written")
            # Over a network, such as when its server was away or another machine put an equal file in its place.
            return ClipStoreError(
                f"{file} could not be read for a moment, and is whole now. Give the same command again; train and "
                "supervise continue with --resume."
            )
        if is_refusal(error):
            return ClipStoreError(unreadable(self._file(recording, ".bin"), error))
        return self.damaged(recording, str(error))

    def damaged(self, recording: int, what: str) -> ClipStoreError:
        """Make the error that says what is wrong with the file of a recording, and what to do."""
        entry = self.recordings[recording]
        file = self._file(recording, ".bin")
        again = self.remake(shlex.quote(str(entry.source)))
        return ClipStoreError(
            f"{file} is damaged: {what}. Delete {file} and {file.with_suffix('.json').name} beside it, then run "
            f"{again} with the same options as before: it makes what is missing and "
            "redoes nothing else."
        )


def reopen(path: Path, max_mapped: int, read: Way) -> ClipStore:
    """Open a store again in another process."""
    return ClipStore(path, max_mapped=max_mapped, read=read)
