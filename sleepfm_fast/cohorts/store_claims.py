"""Who writes a clip store: one run, or the jobs of an array at the same time.

What all runs share is written under the claim ``running/lock``. A run's own claim, ``running/<run>.claim``, tells the
others that it is at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.command import say
from sleepfm_fast.cohorts.night import STARTED
from sleepfm_fast.cohorts.shards import Shard
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.atomic import is_leftover, remove_leftovers
from sleepfm_fast.storage.claims import Claim, Claimed, holder_of, is_live, waited, watch

__all__ = ["claimed_run", "other_claims", "prepare_folder", "store_lock", "sweep"]


def prepare_folder(store: Path) -> None:
    """Make the store's folders; refuse a folder that is something else."""
    if store.is_dir() and not (store / "store.json").exists() and any(not ours(p) for p in store.iterdir()):
        raise SleepfmError(
            f"{store} is a folder with other things in it, not a clip store. The last path is where the store is "
            "written; name a new or empty folder."
        )
    try:
        for folder in (store, store / "recordings", store / "failures"):
            folder.mkdir(parents=True, exist_ok=True)
        (store / STARTED).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SleepfmError(f"the store {store} cannot be written: {error.strerror or error}.") from None


def ours(path: Path) -> bool:
    names = (".lock", "recordings", "failures", "running", "manifest", "manifest.csv", "nights.csv")
    return path.name in names or is_leftover(path)


def store_lock(store: Path) -> Any:
    """Hold the store's shared files for a moment."""
    return waited(store / "running" / "lock", say, f"the lock of {store}")


def other_claims(store: Path, own: Path | None = None) -> list[Path]:
    """Claims of the runs that have begun to write the store, ended or not."""
    return sorted(path for path in (store / "running").glob("*.claim") if path != own)


@contextmanager
def claimed_run(store: Path, run: str, shard: Shard | None = None) -> Iterator[Claim]:
    """Tell that this run is at work; refuse where one is that it cannot join."""
    path = store / "running" / f"{run}.claim"
    for other in other_claims(store):
        if other == path or not may_join(other, shard):
            watch(other, store)
    with store_lock(store):
        # The last of other runs may have removed the folder since it was made.
        (store / STARTED).mkdir(parents=True, exist_ok=True)
        at_work = [other for other in other_claims(store, path) if is_live(other)]
        for other in at_work:
            if not may_join(other, shard):
                raise SleepfmError(
                    f"another run ({holder_of(other) or 'which cannot be named'}, {other.stem}) is writing to {store}. "
                    "Wait for it, or choose another store; only the shards of one array (--shard i/n with the same n) "
                    "can write together."
                )
        try:
            claim = Claim(path)
        except Claimed as busy:
            raise SleepfmError(
                f"another run ({busy.holder or 'which cannot be named'}, {path.stem}) is writing to {store}. "
                "Wait for it, or choose another store."
            ) from None
        if not at_work:
            for void in other_claims(store, path):
                void.unlink(missing_ok=True)
            sweep(store)
    try:
        yield claim
    finally:
        claim.release()


def may_join(other: Path, shard: Shard | None) -> bool:
    """Whether a run of this share may be at work together with that of the claim ``other``."""
    return shard is not None and other.stem.endswith(f"-of-{shard.count}")


def sweep(store: Path) -> None:
    """Delete what killed writers left; only while no other run is at work."""
    for folder in (store, store / "recordings", store / "failures", store / "running"):
        remove_leftovers(folder)
