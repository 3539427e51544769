"""Which subjects a reproduction's finished steps stand on, and whether its cohorts still have them on the same sides.

A table whose figures are of two test sets says nothing. So the split of either cohort is kept in ``reproduction.json``,
and a cohort that has changed since is refused as long as something that was made with it would be shown beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.reproduction.plan import Layout, Planner, Step, cohort_seed
from sleepfm_fast.reproduction.steps import is_finished, is_store
from sleepfm_fast.runs.splits import Split, assign_subjects
from sleepfm_fast.simulator.card import name_prefix

__all__ = ["Sides", "agreed_sides", "kept_sides", "present_sides"]


@dataclass(frozen=True)
class Sides:
    """A cohort's subjects by side, as index into :data:`sleepfm_fast.runs.splits.SPLITS`; one alone is on all (0).

    ``clips`` is None where the store is not made yet, or an earlier version did not keep the number.
    """

    subjects: Mapping[str, int]
    clips: int | None = None

    def differences(self, other: Sides) -> str:
        """What is otherwise in ``other``, in words; empty where nothing is."""
        gone, new = sorted(set(self.subjects) - set(other.subjects)), sorted(set(other.subjects) - set(self.subjects))
        moved = [s for s, side in self.subjects.items() if other.subjects.get(s, side) != side]
        parts = [
            f"{counted(len(names), 'subject is', 'subjects are')} {what} ({names[0]}{', ...' if names[1:] else ''})"
            for names, what in ((gone, "gone"), (new, "new"), (moved, "on another side of the split"))
            if names
        ]
        if None not in (self.clips, other.clips) and self.clips != other.clips:
            parts.append(f"it has {other.clips} clips, not {self.clips}")
        return ", ".join(parts)


def present_sides(planner: Planner) -> dict[str, tuple[Path, Sides]]:
    """Store and sides of the cohorts of a plan, ``"store"`` and ``"external"``, whether the store is made already.

    Those who are on a side of the first cohort are on the same one of the second, as for whoever embeds it.
    """
    found: dict[str, tuple[Path, Sides]] = {}
    known: dict[str, int] = {}
    for name, given, n in (
        ("store", planner.given, planner.preset.subjects),
        ("external", planner.given_external, planner.preset.external_subjects),
    ):
        external = name == "external"
        if external and planner.external is None:
            continue
        recordings = planner.layout.recordings(external=external)
        store = planner.layout.store(external=external) if given is None else given
        names: list[str] = []
        if given is None:
            prefix = name_prefix(recordings, cohort_seed(planner.seed, external=external))
            names = [f"{prefix}{i:04d}" for i in range(n)]
        sides = sides_of(store, names, planner.preset.split, known)
        found[name] = store, sides
        known = dict(sides.subjects)
    return found


def sides_of(store: Path, names: Sequence[str], split: Split, known: Mapping[str, int]) -> Sides:
    """Sides of a cohort: of its store or, where that is yet to be made, of the sleepers to be simulated.

    Parameters
    ----------
    store : Path
        Where the store is or will be.
    names : sequence of str
        The sleepers to be simulated; empty for a store that was given.
    split : Split
    known : mapping of str to int
        Subjects whose side is settled.
    """
    from sleepfm_fast.clips import ClipStore

    if names and not is_store(store):
        subjects, clips = list(names), None
    else:
        opened = ClipStore(store)
        subjects, clips = opened.subjects, len(opened)
    codes, _ = assign_subjects(subjects, split, known)
    return Sides(dict(zip(subjects, np.maximum(codes, 0).tolist(), strict=True)), clips)


def kept_sides(layout: Layout, record: Mapping[str, Any]) -> dict[str, Sides]:
    """Sides that finished steps were made with, of ``"store"`` and ``"external"``, as far as they are known.

    Parameters
    ----------
    layout : Layout
    record : mapping
        ``reproduction.json``; where an earlier version has written it, runs and embeddings tell.
    """
    kept = record.get("cohorts")
    if isinstance(kept, dict):
        return {name: Sides(entry["subjects"], entry["clips"]) for name, entry in kept.items()}
    found: dict[str, Sides] = {}
    for run in sorted(layout.runs.iterdir()) if layout.runs.is_dir() else ():
        subjects = read_object(run / "config.json").get("subjects")
        if isinstance(subjects, dict) and subjects:
            found.setdefault("store", Sides(subjects))
        external = run / "external_embeddings"
        if "external" not in found and (external / "embeddings.json").is_file():
            found["external"] = sides_of_embeddings(external)
    return found


def sides_of_embeddings(folder: Path) -> Sides:
    """Sides that an embeddings folder keeps with every clip."""
    from sleepfm_fast.embeddings import Embeddings

    embeddings = Embeddings(folder)
    subjects, first = np.unique(np.asarray(embeddings.subject), return_index=True)
    sides = np.asarray(embeddings.split)[first]
    names = embeddings.description.subjects
    return Sides({names[s]: int(side) for s, side in zip(subjects, sides, strict=True)}, len(embeddings))


def dependents(steps: Sequence[Step], store: Path) -> list[Step]:
    """The steps that read a store, and those that need them."""
    found: dict[str, Step] = {}
    for step in steps:
        if step.options.get("store") == store or any(needed in found for needed in step.needs):
            found[step.name] = step
    return list(found.values())


def made_before(layout: Layout, cohort: str) -> list[Path]:
    """Folders on the disk that were made with a cohort, whether the plan asks for them or not."""
    pattern = "*/external_embeddings/embeddings.json" if cohort == "external" else "*/config.json"
    return sorted(file.parent for file in layout.runs.glob(pattern))


def agreed_sides(
    layout: Layout, record: Mapping[str, Any], steps: Sequence[Step], present: Mapping[str, tuple[Path, Sides]]
) -> dict[str, Sides]:
    """Sides of the cohorts that the plan may go on with, to be kept; of a cohort it does not read, those kept before.

    Raises
    ------
    SleepfmError
        Where something stands that was made with other sides, naming what differs and what to do.
    """
    kept = kept_sides(layout, record)
    agreed = dict(kept)
    for name, (store, sides) in present.items():
        readers = dependents(steps, store)
        if not readers:
            continue
        finished = [step.makes for step in readers if is_finished(step)]
        finished += [path for path in made_before(layout, name) if path not in finished]
        differences = kept[name].differences(sides) if name in kept and finished else ""
        if differences:
            shown = ", ".join(map(str, finished))  # all of them: one left would be of the former cohort
            simulated = store == layout.store(external=name == "external")
            restore = f"restore {store.parent}" if simulated else "give the store as it was"
            raise SleepfmError(
                f"{store} is not the cohort that {counted(len(finished), 'folder')} of {layout.out} "
                f"{agreeing(len(finished), 'was', 'were')} made with: {differences}. What is made now would be tested "
                f"on other subjects than what is there. To continue with the former cohort, {restore}; for this one, "
                f"name another OUT, or delete {shown}."
            )
        agreed[name] = sides
    return agreed
