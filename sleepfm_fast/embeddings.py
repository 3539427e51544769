"""The embeddings folder: vectors of every clip with the labels and subjects that probes and retrieval need.

::

    EMBEDDINGS/
      embeddings.json   kind, names, provenance, digests; written last
      embeddings.npy    float32 [clip, modality, dim]; NaN where the modality is missing
      mask.npy          bool    [clip, modality], true where present
      recording.npy clip.npy subject.npy (int32), onset_s.npy (float64), stage.npy sdb.npy split.npy (int8)

A folder of this name is finished: :mod:`sleepfm_fast.evaluation.embedding_writer` renames it when everything is
written.

There are two kinds. ``embedding``: vectors that a model made, of unit length and of the same width for every modality.
``feature``: what ``python -m sleepfm_fast.features`` measured, numbers with units in their names. A modality then has
as many numbers as names, ``dim`` is the largest of these widths, and places beyond a modality's own width are NaN. A
feature that could not be measured in a clip is NaN too; a classifier fills and scales features by its training clips
(:mod:`sleepfm_fast.evaluation.imputation`).
"""

from __future__ import annotations

import hashlib
import mmap
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.cli.path_kinds import places_of
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.evaluation.embedding_format import (
    COLUMNS,
    KINDS,
    Description,
    people_problem,
    range_problem,
    read_record,
)
from sleepfm_fast.evaluation.embedding_record import wrong_entry
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.runs.splits import SPLITS
from sleepfm_fast.storage.array_file import map_array
from sleepfm_fast.storage.definitions import recorded_definitions
from sleepfm_fast.storage.row_numbers import row_numbers

__all__ = ["COLUMNS", "SPLITS", "Description", "Embeddings", "ModalityRows"]

# Bound of |x . x - 1|. A vector normalised in float64 and rounded to float32 has a norm within 2^-24 of 1; vectors that
# were stored as bfloat16 in between meet this bound as well.
UNIT_NORM_TOLERANCE = 1e-3
RELEASE_BYTES = 2**28  # bytes read from the mapped vectors after which their pages are handed back


class ModalityRows:
    """The embeddings of chosen clips in one modality, as a matrix [N, D] that stays on disk.

    It takes the place of an array wherever blocks are enough: a slice reads its rows only, as float32 [n, D].
    """

    def __init__(self, embeddings: Embeddings, clips: npt.NDArray[np.int64], modality: str) -> None:
        if embeddings.kind != "embedding":
            raise SleepfmError(
                f"{embeddings.path} holds hand-made features, whose modalities share no space in which clips could be "
                "compared. Give a folder that `python -m sleepfm_fast.embed RUN STORE EMBEDDINGS` made."
            )
        self.embeddings, self.clips, self.modality = embeddings, clips, modality
        self.shape = (len(clips), embeddings.dim)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        """Read a slice of rows."""
        return self.embeddings.read(self.clips[rows], (self.modality,))[:, 0]


class Embeddings:
    """A finished embeddings folder; its arrays are memory-mapped and not read when it is opened.

    It may be used from several threads, and pickled (it opens itself again in the other process).

    Attributes
    ----------
    vectors : float32 [n_clips, M, D]
    mask : bool [n_clips, M]
    recording, clip, onset_s, stage, sdb, subject, split : columns [n_clips]
    modalities, dim, n_clips, description
        As written by :class:`~sleepfm_fast.evaluation.embedding_writer.EmbeddingWriter`.
    made_of : dict
        Everything that the numbers depend on, such as the digests of the store and of the weights.
    kind : {"embedding", "feature"}
    features : dict of str to tuple of str
        Names of every modality's features; empty for embeddings.
    widths : dict of str to int
        How many of the ``dim`` numbers each modality has.

    Raises
    ------
    SleepfmError
        When the folder is missing, unfinished, of another format, or damaged; the damaged file is named.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)
        record = read_record(self.path)
        if (entry := wrong_entry(record)) is not None:
            raise self._damage("embeddings.json", f"the entry '{entry}' is missing or of the wrong kind")
        self.modalities: tuple[str, ...] = tuple(record["modalities"])
        self.dim, self.n_clips = int(record["dim"]), int(record["n_clips"])
        self.digests: dict[str, str] = record["blake2b_128"]
        self.made_of: dict[str, Any] = record.get("made_of", {})
        self.kind: str = record.get("kind", "embedding")
        self.features: dict[str, tuple[str, ...]] = {m: tuple(names) for m, names in record.get("features", {}).items()}
        self.widths: dict[str, int] = {
            m: len(self.features.get(m, ())) if self.kind == "feature" else self.dim for m in self.modalities
        }
        self.description = Description(
            subjects=tuple(record["subjects"]),
            recordings=tuple(record["recordings"]),
            ages=tuple(record["ages"]),
            sexes=tuple(record["sexes"]),
            run=record["run"],
            store=record["store"],
            split_rule=record["split_rule"],
            presets=record["presets"],
            overlap=record["overlap"],
            overlap_note=record["overlap_note"],
            recording_ages=tuple(record.get("recording_ages", ())),
        )
        problem = people_problem(self.description)
        if problem:
            raise self._damage("embeddings.json", problem)
        if self.kind not in KINDS or any(not 0 < width <= self.dim for width in self.widths.values()):
            raise self._damage(
                "embeddings.json", f"it says kind '{self.kind}' and widths {self.widths} of {self.dim} numbers"
            )
        self._n_touched = 0  # bytes of the mapped vectors read since their pages were handed back
        shape = (self.n_clips, len(self.modalities))
        self.vectors: npt.NDArray[np.float32] = self._map("embeddings.npy", "float32", (*shape, self.dim))
        self.mask: npt.NDArray[np.bool_] = self._map("mask.npy", "bool", shape)
        columns = {name: self._map(f"{name}.npy", dtype, shape[:1]) for name, dtype in COLUMNS.items()}
        for name, values in columns.items():
            problem = range_problem(name, values, len(self.description.subjects), len(self.description.recordings))
            if problem:
                raise self._damage(f"{name}.npy", problem)
        self.recording: npt.NDArray[np.int32] = columns["recording"]
        self.clip: npt.NDArray[np.int32] = columns["clip"]
        self.onset_s: npt.NDArray[np.float64] = columns["onset_s"]
        self.stage: npt.NDArray[np.int8] = columns["stage"]
        self.sdb: npt.NDArray[np.int8] = columns["sdb"]
        self.subject: npt.NDArray[np.int32] = columns["subject"]
        self.split: npt.NDArray[np.int8] = columns["split"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the path, not the vectors, to another process."""
        return Embeddings, (self.path,)

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.n_clips

    def __repr__(self) -> str:
        """Say what is in it."""
        about = self.description
        widths = ", ".join(f"{m} [{self.widths[m]}]" for m in self.modalities)
        return (
            f"Embeddings({str(self.path)!r}: {counted(self.n_clips, 'clip')}, "
            f"{counted(len(about.recordings), 'recording')}, {counted(len(about.subjects), 'subject')}, {widths})"
        )

    @property
    def overlap_note(self) -> str:
        """The sentence to repeat where training and test clips overlap, else an empty string."""
        if not self.description.overlap:
            return ""
        return self.description.overlap_note or (
            "Training and test clips come from the same subjects: these figures say nothing about new subjects."
        )

    @property
    def store_path(self) -> Path:
        """The clip store that it was made from, looked for from any working folder; as recorded if it is not found."""
        places = places_of(self.description.store, self.path)
        return next((path for path in places if (path / "store.json").is_file()), places[0])

    def clips_of(self, *splits: str) -> npt.NDArray[np.int64]:
        """Return the ascending indices of the clips of the named splits.

        A clip has one split code only. Where the folder says that its splits overlap, a training or test split that has
        no clips of its own therefore means all clips.
        """
        unknown = [s for s in splits if s not in SPLITS]
        if unknown:
            raise ValueError(f"no split '{unknown[0]}'; the splits are {', '.join(SPLITS)}")
        codes = np.asarray(self.split)
        chosen = np.flatnonzero(np.isin(codes, [SPLITS.index(s) for s in splits]))
        if not chosen.size and self.description.overlap and splits != ("validation",):
            return np.arange(self.n_clips)
        return chosen

    def read(self, clips: npt.NDArray[np.int64], modalities: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Copy the vectors of chosen clips, all of which must have the modalities.

        Parameters
        ----------
        clips : int array [n]
            Numbers of the clips; or bool [n_clips], True for each that is wanted.
        modalities : sequence of str, optional
            Returned in the order given; by default all.

        Returns
        -------
        float32 [n, len(modalities), D]
            A modality with fewer features than ``dim`` is padded with NaN, which :meth:`matrix` leaves out.

        Raises
        ------
        SleepfmError
            When a clip lacks one of the modalities, or an embedding is not of unit length: the file is damaged.
        """
        names = self.modalities if modalities is None else modalities
        clips = row_numbers(clips, self.n_clips, "clips")
        x = self.copy(clips, names)
        if self.kind == "feature":
            return x
        off = ~(np.abs(np.einsum("nmd,nmd->nm", x, x) - 1.0) <= UNIT_NORM_TOLERANCE)
        if off.any():
            there = np.asarray(self.mask)[clips][:, self.places(names)]
            if not there.all():
                i, j = np.argwhere(~there)[0]
                n = int((~there.all(axis=1)).sum())
                raise SleepfmError(
                    f"{n} of the {counted(len(clips), 'clip')} asked for {agreeing(n, 'lacks', 'lack')} a modality "
                    f"(the first: clip {clips[i]} of {self.path} has no {names[j]}). Choose clips by .mask, bool "
                    f"[n_clips, modalities] of {', '.join(self.modalities)}, or ask for other modalities."
                )
            i, j = np.argwhere(off)[0]
            raise self._damage("embeddings.npy", f"the {names[j]} vector of clip {clips[i]} is not of unit length")
        return x

    def copy(self, clips: npt.NDArray[np.int64], modalities: Sequence[str]) -> npt.NDArray[np.float32]:
        """Copy vectors as :meth:`read` does, but unchecked, for later passes over vectors that were read before.

        Pages of the mapped file would count as this process's memory as long as the machine has some to spare. They are
        handed back every :data:`RELEASE_BYTES`, which bounds the memory of a pass over any number of clips; the
        system's page cache may keep them.
        """
        columns = self.places(modalities)
        clips = row_numbers(clips, self.n_clips, "clips")
        vectors = np.asarray(self.vectors)
        x = np.empty((len(clips), len(columns), self.dim), np.float32)
        if len(clips) and not (clips.min() >= 0 and clips.max() < self.n_clips):
            raise IndexError(f"clips run from {clips.min()} to {clips.max()}; the folder has {self.n_clips}")
        if columns == list(range(len(self.modalities))):
            np.take(vectors, clips, axis=0, out=x, mode="clip")  # any other mode buffers the output
        else:
            for j, column in enumerate(columns):
                x[:, j] = vectors[clips, column]
        self._n_touched += len(clips) * vectors[:1].nbytes
        if self._n_touched > RELEASE_BYTES:
            self._n_touched = 0
            if isinstance(self.vectors.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                self.vectors.base.madvise(mmap.MADV_DONTNEED)
        return x

    @property
    def definitions(self) -> int | None:
        """Number of the definitions that features were measured by; None of embeddings."""
        return recorded_definitions(self.made_of) if self.kind == "feature" else None

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights that made the embeddings; None where no weights did, as for features."""
        digest: str | None = (self.description.presets.get("weights") or {}).get("sha256")
        return digest

    def width(self, modalities: Sequence[str]) -> int:
        """Return the number of columns of :meth:`matrix`."""
        return sum(self.widths[self.modalities[place]] for place in self.places(modalities))

    def places(self, modalities: Sequence[str]) -> list[int]:
        """Return where the named modalities stand in :attr:`modalities`.

        Raises
        ------
        ValueError
            When a name is none of them, or a single name is given in place of a sequence.
        """
        if isinstance(modalities, str):
            raise ValueError(f"modalities is the text '{modalities}'; expected a sequence of names: ('{modalities}',).")
        unknown = [m for m in modalities if m not in self.modalities]
        if unknown:
            raise ValueError(f"no modality '{unknown[0]}' in {self.path}; it has {', '.join(self.modalities)}.")
        return [self.modalities.index(m) for m in modalities]

    def matrix(self, clips: npt.NDArray[np.int64], modalities: Sequence[str]) -> npt.NDArray[np.float32]:
        """Copy a classifier's input for chosen clips: the modalities' numbers side by side, in the order given.

        Parameters
        ----------
        clips : int array [n]
            As :meth:`read` takes them.
        modalities : sequence of str

        Returns
        -------
        float32 [n, width(modalities)]
            NaN where a feature could not be measured; embeddings have none.
        """
        x = self.read(clips, modalities)
        if self.kind == "embedding":
            return x.reshape(len(x), len(modalities) * self.dim)
        return np.concatenate([x[:, j, : self.widths[m]] for j, m in enumerate(modalities)], axis=1)

    def verify(self) -> None:
        """Read every file and compare it with the digest taken when it was written.

        Raises
        ------
        SleepfmError
            Naming the first file that differs.
        """
        for name, digest in self.digests.items():
            array = map_array(self.path / name)
            found = hashlib.blake2b(digest_size=16)
            for start in range(0, len(array), 4096):
                found.update(np.ascontiguousarray(array[start : start + 4096]).data.cast("B"))
            if found.hexdigest() != digest:
                raise self._damage(name, f"its digest is {found.hexdigest()}, expected {digest}")

    def _damage(self, name: str, what: str) -> SleepfmError:
        path = shlex.quote(str(self.path))
        return SleepfmError(
            f"{self.path / name} is damaged: {what}. Remove the folder and make it again with "
            f"`python -m sleepfm_fast.embed RUN STORE {path}` (or `features STORE {path}`)."
        )

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        try:
            array = map_array(self.path / name)
        except FileNotFoundError as error:
            raise self._damage(name, "the file is missing") from error
        except (OSError, ValueError, EOFError) as error:
            if is_refusal(error):
                raise SleepfmError(unreadable(self.path / name, error)) from error
            raise self._damage(name, f"it cannot be mapped ({error})") from error
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise self._damage(name, f"it holds {array.dtype} {array.shape}, expected {dtype} {shape}")
        return array
