"""Ranks of finished pairs of modalities, kept beside an unfinished result so that a killed run can be continued."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sleepfm_fast.evaluation.scopes import Ranked
from sleepfm_fast.storage.array_file import map_array
from sleepfm_fast.storage.atomic import replace_file

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["KeptRanks", "remove_kept"]

Pair = tuple[str, str]


def partial_folder(result: Path) -> Path:
    """Return the folder that keeps the ranks of a result until it is finished."""
    result = result.resolve()
    return result.with_name(f".{result.name}.partial")


def remove_kept(result: Path) -> None:
    """Delete the ranks kept beside a result, which is finished."""
    shutil.rmtree(partial_folder(result), ignore_errors=True)


class KeptRanks:
    """The ranks of finished pairs: one file per pair in the hidden folder ``.RESULT.partial/``.

    A file holds the fields of :class:`Ranked` as int64 [4, n]. Its name contains a digest of everything that the ranks
    depend on, so that those of other embeddings, other clips or another scope are never used.

    Parameters
    ----------
    result : Path, optional
        The result folder; without it nothing is kept.
    embeddings : Embeddings
    chosen : dict of (str, str) to int64 [n]
        The clips of every pair.
    scope : str
    """

    def __init__(
        self, result: Path | None, embeddings: Embeddings, chosen: dict[Pair, npt.NDArray[np.int64]], scope: str
    ) -> None:
        self.folder = None if result is None else partial_folder(result)
        self._names = {}
        for pair, clips in chosen.items():
            digest = hashlib.blake2b(json.dumps([embeddings.digests, pair, scope]).encode(), digest_size=16)
            digest.update(np.ascontiguousarray(clips, "<i8").data)
            self._names[pair] = f"{'_'.join(pair)}-{digest.hexdigest()}.npy"
        if self.folder is not None and self.folder.is_dir():
            for file in self.folder.iterdir():
                if file.name not in self._names.values():  # from other options, or left by a killed writer
                    file.unlink()

    def get(self, pair: Pair) -> Ranked | None:
        """Return the ranks of a pair if an earlier run finished it; else None."""
        if self.folder is None:
            return None
        try:
            fields = np.array(map_array(self.folder / self._names[pair]))
        except (OSError, ValueError, EOFError):
            return None
        return Ranked(*fields) if fields.dtype == np.int64 and fields.ndim == 2 and len(fields) == 4 else None

    def keep(self, pair: Pair, ranked: Ranked) -> None:
        """Write the ranks of a pair; they are on the disk when this returns."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        fields = np.stack([ranked.clips, ranked.forward, ranked.backward, ranked.n_candidates])
        with replace_file(self.folder / self._names[pair]) as file:
            np.save(file, fields, allow_pickle=False)

    def remove(self) -> None:
        """Delete the kept ranks, once the result is finished."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
