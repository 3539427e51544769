"""Write a folder of embeddings or features batch by batch: ``.NAME.partial`` is filled in order, renamed when whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sleepfm_fast.command import to_json
from sleepfm_fast.embeddings import COLUMNS, FORMAT, SPLITS, VERSION, Description, range_problem
from sleepfm_fast.errors import SleepfmError

__all__ = ["EmbeddingWriter"]


def _plain_array(values: Any) -> npt.NDArray[Any]:
    """Return NumPy values of an array or of a tensor of any float type on any device."""
    if hasattr(values, "detach"):
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values)


class _ArrayFile:
    """One ``.npy`` file written front to back, so that a full disk is an error and not a signal."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.digest = hashlib.blake2b(digest_size=16)
        self.file: BinaryIO = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, block: npt.NDArray[Any]) -> None:
        if not block.size:
            return
        data = np.ascontiguousarray(block, dtype=self.dtype).data.cast("B")
        self.digest.update(data)
        self.file.write(data)

    def close(self) -> str:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return self.digest.hexdigest()


class EmbeddingWriter:
    """Write an embeddings folder batch by batch, in clip order, with memory for one batch.

    Parameters
    ----------
    path : path
        The folder to make; it must not exist (an empty folder is taken).
    n_clips : int
        Clips that will be appended.
    modalities : sequence of str
        Names along axis 1, in the order respiratory, brain, ecg.
    dim : int
        Length of one embedding; of features, the largest number of names.
    features : mapping of str to sequence of str, optional
        Names of every modality's features: the folder then holds features, which are not normalised.
    overwrite : bool
        Let a finished embeddings folder stand at ``path``: it is replaced by :meth:`finish`, not before. Any other
        folder is refused all the same.

    Raises
    ------
    SleepfmError
        When the folder exists, another process is writing it, or the disk refuses.

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
    ) -> None:
        self.path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
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
        free = not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))
        if not free and not (overwrite and (self.path / "embeddings.json").is_file()):
            if overwrite:
                raise SleepfmError(f"{self.path} is not an embeddings folder and is not overwritten. Give another.")
            raise SleepfmError(f"{self.path} exists and is not overwritten. Give another folder, or remove this one.")
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.partial, os.O_RDONLY)
        except OSError as error:
            raise SleepfmError(f"the folder {self.partial} cannot be made: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise SleepfmError(
                f"another process is writing {self.path} (it holds {self.partial}). Wait, or give another folder."
            ) from error
        for leftover in self.partial.iterdir():  # of a writer that was killed
            leftover.unlink()
        shape = (self.n_clips, len(self.modalities))
        self._vectors = _ArrayFile(self.partial / "embeddings.npy", "float32", (*shape, self.dim))
        self._mask = _ArrayFile(self.partial / "mask.npy", "bool", shape)
        self._open = True

    def append(self, embeddings: Any, mask: Any = None) -> None:
        """Add the next clips: embeddings are normalised here to unit length in float64, features stay as they are.

        Parameters
        ----------
        embeddings : array or tensor [B, M, D] of any float type
            Not necessarily normalised; what stands where ``mask`` is false is ignored. Features may be NaN.
        mask : array or tensor of bool [B, M], optional
            Modalities present; all by default.

        Raises
        ------
        ValueError
            For a wrong shape or more clips than announced.
        SleepfmError
            For a present embedding that is zero, infinite or NaN, a feature that is infinite, or a disk that refuses.
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
            self._vectors.write(x.astype(np.float32))
            self._mask.write(present)
        except OSError as error:
            raise self._disk_error(error) from error
        self.n_written += n

    def _unit(self, x: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Divide present embeddings by their lengths."""
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
        """Empty the places beyond each modality's features; a feature is a finite float32 or NaN."""
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
        """Write the columns and ``embeddings.json`` and give the folder its name.

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
            raise ValueError(f"{self.n_written} clips were appended; {self.n_clips} were announced")
        arrays = _checked_columns(columns, self.n_clips, description)
        try:
            digests = {"embeddings.npy": self._vectors.close(), "mask.npy": self._mask.close()}
            for name, values in arrays.items():
                file = _ArrayFile(self.partial / f"{name}.npy", COLUMNS[name], (self.n_clips,))
                file.write(values)
                digests[f"{name}.npy"] = file.close()
            record = {
                "format": FORMAT,
                "version": VERSION,
                "n_clips": self.n_clips,
                "modalities": self.modalities,
                "dim": self.dim,
                "kind": "embedding" if self.features is None else "feature",
                "features": self.features or {},
                **asdict(description),
                "blake2b_128": digests,
            }
            with (self.partial / "embeddings.json").open("w", encoding="utf-8") as out:
                out.write(to_json(record, indent=1) + "\n")
                out.flush()
                os.fsync(out.fileno())
            os.fsync(self._lock)
            old = self.path.with_name(f".{self.path.name}.replaced")
            if (self.path / "embeddings.json").is_file():  # allowed by overwrite
                shutil.rmtree(old, ignore_errors=True)
                self.path.rename(old)
            self.partial.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise self._disk_error(error) from error
        self._release()
        return self.path

    def _disk_error(self, error: OSError) -> SleepfmError:
        return SleepfmError(
            f"writing {self.partial} failed: {error.strerror or error}. Free space or give another folder."
        )

    def _release(self) -> None:
        if self._open:
            self._open = False
            self._vectors.file.close()
            self._mask.file.close()
            os.close(self._lock)

    def __enter__(self) -> EmbeddingWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written unless :meth:`finish` gave it its name."""
        if not self._open:
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        self._release()
        if kind is None:
            raise ValueError(f"the writer of {self.path} was closed before finish(); nothing was kept")


def _checked_columns(columns: Mapping[str, Any], n_clips: int, description: Description) -> dict[str, npt.NDArray[Any]]:
    if set(columns) != set(COLUMNS):
        raise ValueError(f"columns are {sorted(columns)}; expected {sorted(COLUMNS)}")
    n_subjects = len(description.subjects)
    if len(description.ages) != n_subjects or len(description.sexes) != n_subjects:
        raise ValueError(
            f"{n_subjects} subjects have {len(description.ages)} ages and {len(description.sexes)} sexes; "
            "expected one of each a subject (None where unknown)"
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
