"""Write a folder of embeddings or features batch by batch: ``.NAME.partial`` is filled in order and renamed at the end.

A writer that is given a key, everything that its numbers depend on, records in the partial folder's ``progress.json``
how many clips are on the disk; a later writer with the same key continues from there. The finished
``embeddings.json`` holds the key as ``made_of``, by which the same command recognises the folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import plain, say, to_json
from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.embedding_format import (
    COLUMNS,
    FEATURES_VERSION,
    FORMAT,
    VERSION,
    Description,
    range_problem,
)
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.runs.splits import SPLITS
from sleepfm_fast.storage.array_file import ArrayFile
from sleepfm_fast.storage.atomic import remove_leftovers, synchronise, write_json
from sleepfm_fast.storage.claims import claim_to_write
from sleepfm_fast.storage.standing import FolderKind, difference, refuse_standing, say_finished
from sleepfm_fast.system import synchronise_descriptor

__all__ = ["EmbeddingWriter", "is_finished"]

KIND = FolderKind("an embeddings folder", "embeddings.json", "the labels, people or split of its clips")
PROGRESS = "progress.json"
CHECKPOINT_S = 10.0
"""Seconds of work that a kill loses at most. Not less, as a checkpoint waits for the disk."""


def _plain_array(values: Any) -> npt.NDArray[Any]:
    """Return NumPy values of an array or of a tensor of any float type on any device."""
    if hasattr(values, "detach"):
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values)


def is_finished(path: Path, key: Mapping[str, Any], columns: Mapping[str, Any], description: Description) -> bool:
    """Return whether the folder at ``path`` is finished and is what a writer would write again.

    Also removes what a kill left in or beside it, between the folder's renaming and the end of :meth:`finish`.

    Parameters
    ----------
    path : Path
    key : mapping
        As for :class:`EmbeddingWriter`.
    columns : mapping of str to array [n_clips]
    description : Description

    Raises
    ------
    SleepfmError
        When another process is writing it.
    """
    if not (path / "embeddings.json").is_file():
        return False
    claim = claim_to_write(path)
    try:
        found = Embeddings(path)
        stands = (
            {name: found.made_of.get(name) for name in (*key, "shape")}
            == {**plain(dict(key)), "shape": [*found.mask.shape, found.dim]}
            and unnamed(found.description) == unnamed(description)
            and all(np.array_equal(getattr(found, name), np.asarray(columns[name]), equal_nan=True) for name in COLUMNS)
        )
    except SleepfmError:  # damaged, or of another version; the writer refuses it with a message
        return False
    else:
        if stands:
            say_finished(path)
            path = path.resolve()
            (path / PROGRESS).unlink(missing_ok=True)
            shutil.rmtree(replaced_name(path), ignore_errors=True)
        return stands
    finally:
        claim.release()


def unnamed(description: Description) -> Description:
    """Return a description without options and folders' names, which the key covers by their content."""
    return replace(description, presets={}, run="", store="")


def replaced_name(path: Path) -> Path:
    """Return the name under which the folder ``path`` is kept while it is replaced."""
    return path.with_name(f".{path.name}.replaced")


class EmbeddingWriter:
    """Write an embeddings folder batch by batch, in clip order, with memory for one batch.

    Parameters
    ----------
    path : path
        The folder to make; it must not exist or be empty.
    n_clips : int
        Number of clips that will be appended.
    modalities : sequence of str
        Names along axis 1, in the order respiratory, brain, ecg.
    dim : int
        Length of an embedding; for features, the number of names of the modality that has most.
    features : mapping of str to sequence of str, optional
        Names of every modality's features. The folder then holds features, which are not normalised.
    overwrite : bool
        Accept a finished embeddings folder at ``path``, which stays until :meth:`finish` replaces it. Any other folder
        is refused nevertheless.
    key : mapping, optional
        Everything that the vectors depend on, as JSON. Clips that an unfinished writer with the same key left are then
        kept, and this one's are if it does not finish; without a key nothing is kept.

    Attributes
    ----------
    n_written : int
        Clips written so far, including those of an earlier writer.

    Raises
    ------
    SleepfmError
        When the folder exists, another process is writing it, or the disk fails.

    Examples
    --------
    >>> with EmbeddingWriter(path, n_clips, modalities, dim) as writer:  # doctest: +SKIP
    ...     for x, mask in batches:
    ...         writer.append(x, mask)
    ...     writer.finish(columns, description)
    """

    def __init__(
        self,
        path: str | Path,
        n_clips: int,
        modalities: Sequence[str],
        dim: int,
        *,
        features: Mapping[str, Sequence[str]] | None = None,
        overwrite: bool = False,
        key: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path).resolve()
        self.modalities = tuple(modalities)
        self.n_clips, self.dim = int(n_clips), int(dim)
        self.n_written = 0
        if self.n_clips < 1 or self.dim < 1 or not self.modalities:
            raise ValueError(
                f"an embeddings folder needs at least one clip, modality and dimension; got {n_clips} clips, "
                f"modalities {self.modalities}, dim {dim}"
            )
        self.features = None if features is None else {m: tuple(features[m]) for m in self.modalities}
        if self.features is not None:
            widths = [len(names) for names in self.features.values()]
            if max(widths) != self.dim or min(widths) < 1:
                raise ValueError(f"the modalities have {widths} features; the largest must be dim = {self.dim}")
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        shape = (self.n_clips, len(self.modalities))
        self.key = None if key is None else {**plain(dict(key)), "shape": [*shape, self.dim]}
        self._claim = claim_to_write(self.path)
        self._open = True
        self._files: dict[str, ArrayFile] = {}
        try:
            refuse_standing(self.path, KIND, overwrite=overwrite, made_of=self.key)
            kept = self._kept()
            for name, dtype, of in (("embeddings", "float32", (*shape, self.dim)), ("mask", "bool", shape)):
                self._files[name] = ArrayFile(self.partial / f"{name}.npy", dtype, of, kept.get("clips", 0))
            if kept and {name: file.digest() for name, file in self._files.items()} != kept["digests"]:
                raise SleepfmError(
                    f"{self.partial} is damaged: it does not hold what was written. Remove it and start again."
                )
        except OSError as error:
            self._release()
            raise SleepfmError(f"{self.partial} cannot be written: {error.strerror or error}.") from error
        except BaseException:
            self._release()
            raise
        self.n_written = kept.get("clips", 0)
        self._saved_s = time.monotonic()
        if self.n_written:
            say(
                f"continuing: {self.n_written} of {counted(self.n_clips, 'clip')} "
                f"{agreeing(self.n_written, 'was', 'were')} finished before."
            )

    def _kept(self) -> dict[str, Any]:
        """Return the progress of an unfinished writer with the same key; otherwise empty the partial folder.

        Progress has ``clips``, their number, and the ``digests`` of the arrays up to there.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.partial)  # of a checkpoint that a kill cut off
        try:
            found = read_object(self.partial / PROGRESS)
            if self.key is not None and found["key"] == self.key:
                return found
            n, differ = found["clips"], difference(found["key"], self.key or {}) or "what is not said"
            say(
                f"notice: {counted(n, 'clip')} that an unfinished run left in {self.partial} "
                f"{agreeing(n, 'was', 'were')} made with other inputs and {agreeing(n, 'differs', 'differ')} in "
                f"{differ}; starting from the beginning."
            )
        except (KeyError, TypeError, AttributeError):
            pass  # no writer got as far as a checkpoint
        for leftover in self.partial.iterdir():
            leftover.unlink()
        return {}

    def _checkpoint(self) -> None:
        """Wait until what was appended is on the disk, and then record it in ``progress.json``."""
        for file in self._files.values():
            file.synchronise()
        digests = {name: file.digest() for name, file in self._files.items()}
        write_json(self.partial / PROGRESS, {"key": self.key, "clips": self.n_written, "digests": digests})
        self._saved_s = time.monotonic()

    def append(self, embeddings: Any, mask: Any = None) -> None:
        """Append the next clips. Embeddings are normalised to unit length, in float64; features are kept as they are.

        Parameters
        ----------
        embeddings : array or tensor [B, M, D] of any float type
            Of any length; values where ``mask`` is false are ignored and stored as NaN. Features may be NaN.
        mask : array or tensor of bool [B, M], optional
            True where the clip has the modality; all by default.

        Raises
        ------
        ValueError
            For a wrong shape or more clips than announced.
        SleepfmError
            For a present embedding that is zero, infinite or NaN, a feature that is infinite, or an error of the disk.
        """
        x = _plain_array(embeddings).astype(np.float64)
        n = x.shape[0] if x.ndim else 0
        expected = (n, len(self.modalities), self.dim)
        if x.shape != expected:
            raise ValueError(f"append got embeddings of shape {x.shape}; expected [B, {expected[1]}, {expected[2]}]")
        present = np.ones(expected[:2], bool) if mask is None else _plain_array(mask).astype(bool)
        if present.shape != expected[:2]:
            raise ValueError(f"append got a mask of shape {present.shape}; expected {expected[:2]}")
        if self.n_written + n > self.n_clips:
            raise ValueError(f"append got clip {self.n_written + n} of {self.n_clips} announced")
        x[~present] = np.nan
        x = self._unit(x, present) if self.features is None else self._measured(x, self.features)
        try:
            self._files["embeddings"].write(x.astype(np.float32))
            self._files["mask"].write(present)
            self.n_written += n
            if self.key is not None and time.monotonic() - self._saved_s > CHECKPOINT_S:
                self._checkpoint()
        except OSError as error:
            raise self._disk_error(error) from error

    def _unit(self, x: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Divide embeddings by their lengths; refuse a present one whose length is 0 or not finite."""
        norm = np.sqrt(np.einsum("bmd,bmd->bm", x, x))
        bad = present & ~((norm > 0) & np.isfinite(norm))
        if bad.any():
            clip, modality = np.argwhere(bad)[0]
            raise SleepfmError(
                f"the {self.modalities[modality]} embedding of clip {self.n_written + clip} has length "
                f"{norm[clip, modality]:g} and cannot be normalised. The model's weights or this clip's input are not "
                "finite; look at the run's metrics.jsonl, or embed from an earlier checkpoint."
            )
        unit: npt.NDArray[np.float64] = x / norm[:, :, None]
        return unit

    def _measured(self, x: npt.NDArray[np.float64], features: Mapping[str, Sequence[str]]) -> npt.NDArray[np.float64]:
        """Set the places beyond each modality's features to NaN; refuse a feature beyond the range of float32."""
        for modality, names in enumerate(features.values()):
            x[:, modality, len(names) :] = np.nan
        bad = np.abs(x) > np.finfo(np.float32).max
        if bad.any():
            clip, modality, column = np.argwhere(bad)[0]
            raise SleepfmError(
                f"the feature '{features[self.modalities[modality]][column]}' of clip {self.n_written + clip} is "
                f"{x[clip, modality, column]:g}, which is no measurement. Look at the channel with `preprocess "
                "--inspect`, and report it where the channel is sound."
            )
        return x

    def finish(self, columns: Mapping[str, Any], description: Description) -> Path:
        """Write the columns and ``embeddings.json``, and give the folder its final name.

        Parameters
        ----------
        columns : mapping of str to array [n_clips]
            Exactly the names in :data:`COLUMNS`; splits are indices into :data:`SPLITS`.
        description : Description
            Names and provenance.

        Returns
        -------
        Path
            The finished folder.

        Raises
        ------
        ValueError
            For missing clips or columns, indices out of range, or a subject in two splits without ``overlap``.
        """
        if self.n_written != self.n_clips:
            raise ValueError(
                f"{counted(self.n_written, 'clip was', 'clips were')} appended; {counted(self.n_clips, 'was', 'were')} "
                "announced"
            )
        arrays = _checked_columns(columns, self.n_clips, description)
        try:
            if self.key is not None:
                self._checkpoint()
            digests = {f"{name}.npy": file.close() for name, file in self._files.items()}
            for name, values in arrays.items():
                file = ArrayFile(self.partial / f"{name}.npy", COLUMNS[name], (self.n_clips,))
                file.write(values)
                digests[f"{name}.npy"] = file.close()
            record = {
                "format": FORMAT,
                "version": VERSION if self.features is None else FEATURES_VERSION,
                "n_clips": self.n_clips,
                "modalities": self.modalities,
                "dim": self.dim,
                "kind": "embedding" if self.features is None else "feature",
                "features": self.features or {},
                **asdict(description),
                "made_of": self.key or {},
                "blake2b_128": digests,
            }
            with (self.partial / "embeddings.json").open("w", encoding="utf-8") as out:
                out.write(to_json(record, indent=1) + "\n")
                out.flush()
                synchronise_descriptor(out.fileno())
            synchronise(self.partial)
            old = replaced_name(self.path)
            if (self.path / "embeddings.json").is_file():  # allowed by overwrite
                shutil.rmtree(old, ignore_errors=True)
                self.path.rename(old)
            self.partial.rename(self.path)
            # After the rename, since a writer that follows a kill before the rename must still find the progress.
            (self.path / PROGRESS).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise self._disk_error(error) from error
        self._release()
        return self.path

    def _disk_error(self, error: OSError) -> SleepfmError:
        kept = (self.partial / PROGRESS).exists()
        then = " What is on the disk is kept: the same command continues from there." if kept else ""
        return SleepfmError(
            f"writing {self.partial} failed: {error.strerror or error}. Free space or give another folder.{then}"
        )

    def _release(self) -> None:
        if self._open:
            self._open = False
            for file in self._files.values():
                file.abandon()
            self._claim.release()

    def __enter__(self) -> EmbeddingWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unless the folder is finished, keep what was written if there is a key, and delete it otherwise."""
        if not self._open:
            return
        if self.key is not None and self.n_written:
            with suppress(OSError, ValueError):  # a full disk, or files that are closed: the last checkpoint counts
                self._checkpoint()
        if not (self.partial / PROGRESS).exists():
            shutil.rmtree(self.partial, ignore_errors=True)
        self._release()
        if kind is None:
            raise ValueError(f"the writer of {self.path} was closed before finish(); its embeddings cannot be read")


def _checked_columns(columns: Mapping[str, Any], n_clips: int, description: Description) -> dict[str, npt.NDArray[Any]]:
    if set(columns) != set(COLUMNS):
        raise ValueError(f"columns are {sorted(columns)}; expected {sorted(COLUMNS)}")
    n_subjects = len(description.subjects)
    if len(description.ages) != n_subjects or len(description.sexes) != n_subjects:
        raise ValueError(
            f"{counted(n_subjects, 'subject has', 'subjects have')} {counted(len(description.ages), 'age')} and "
            f"{counted(len(description.sexes), 'sex', 'sexes')}; "
            "expected one of each a subject (None where unknown)"
        )
    if len(description.recording_ages) not in (0, len(description.recordings)):
        raise ValueError(
            f"{counted(len(description.recordings), 'recording has', 'recordings have')} "
            f"{counted(len(description.recording_ages), 'age')}; expected one each, or none at all"
        )
    arrays = {}
    for name, dtype in COLUMNS.items():
        values = np.asarray(columns[name])
        if values.shape != (n_clips,):
            raise ValueError(f"column {name} has shape {values.shape}; expected ({n_clips},)")
        problem = range_problem(name, values, n_subjects, len(description.recordings))
        if problem:
            raise ValueError(problem)
        arrays[name] = values.astype(dtype)
    if not description.overlap:
        pairs = np.unique(arrays["subject"].astype(np.int64) * len(SPLITS) + arrays["split"]) // len(SPLITS)
        shared = pairs[1:][pairs[1:] == pairs[:-1]]
        if shared.size:
            raise ValueError(
                f"subject {description.subjects[int(shared[0])]} is in more than one split, but overlap is False"
            )
    return arrays
