"""What a run of preprocess did: for people on standard error, for programs as the command's JSON line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import Montage
from sleepfm_fast.clip_layout import sdb_counts, stage_counts
from sleepfm_fast.cohort import Plan
from sleepfm_fast.command import say
from sleepfm_fast.night import NightRow
from sleepfm_fast.participants import ParticipantTables

__all__ = ["percentages", "summarise"]

NIGHTS_SHOWN = 10
ISSUES_SHOWN = 5
NIGHTS_IN_JSON = 200


def percentages(counts: dict[str, int]) -> str:
    """``W 10 (25.0 %), N1 ...`` with the classes that do not occur left out."""
    total = sum(counts.values())
    return ", ".join(f"{name} {n} ({100 * n / total:.1f} %)" for name, n in counts.items() if n) or "none"


def summarise(
    store: Path,
    montage: Montage,
    plan: Plan,
    rows: Sequence[NightRow],
    totals: dict[str, Any] | None,
    tables: ParticipantTables,
    given: Sequence[Path],
) -> dict[str, Any]:
    """Say what was done and what was wrong, and return the same as a dict with the exit status.

    The exit status is 1 when the store holds no night, or any night of this run failed, has changed since it was
    ingested, or is damaged; the store is usable nevertheless when it holds a night.
    """
    failed = [{"path": str(row.path), "reason": row.failure} for row in rows if row.failure is not None]
    failed += [
        {"path": name, "reason": f"{what}, and its source was not given. Give it to make it again."}
        for name, what in plan.lost.items()
    ]
    changed = [
        {"path": str(path), "reason": f"{why}; the store keeps what it has. Add --overwrite to make it again."}
        for path, why in plan.changed.items()
    ]
    problems = {row.name: list(row.issues) for row in rows if row.issues}
    unknown = tables.unknown_recordings([*given, *plan.known])
    unnamed = [str(path) for path in given if tables.rows and not tables.names(path)]
    added = [row for row in rows if row.failure is None]
    totals = totals or {
        "recordings": 0, "subjects": 0, "clips": 0, "hours": 0.0, "stages": stage_counts([]), "sdb": sdb_counts([])
    }  # fmt: skip

    for name, issues in list(problems.items())[:NIGHTS_SHOWN]:
        say(f"{name}:")
        for issue in issues[:ISSUES_SHOWN]:
            say(f"  {issue}")
        if len(issues) > ISSUES_SHOWN:
            say(f"  and {len(issues) - ISSUES_SHOWN} more in {store / 'recordings' / name}.json")
    if len(problems) > NIGHTS_SHOWN:
        say(f"remarks on {len(problems) - NIGHTS_SHOWN} more nights are in {store / 'recordings'}/*.json, under issues")
    for entry in changed:
        say(f"changed: {entry['reason']}")
    for entry in failed[:NIGHTS_SHOWN]:
        say(f"failed: {entry['reason']}")
    if len(failed) > NIGHTS_SHOWN:
        say(f"and {len(failed) - NIGHTS_SHOWN} more failed; the reasons are in {store / 'failures'}")
    for issue in tables.issues:
        say(issue)
    if unknown:
        say(f"the participants table names {len(unknown)} recordings that were not given: {', '.join(unknown[:10])}")
    folders: dict[str, set[Path]] = {}
    for path in given:
        if not tables.names(path):
            folders.setdefault(path.stem, set()).add(path.parent)
    shared = [stem for stem, places in folders.items() if len(places) > 1]
    if shared:
        say(
            f"notice: {len(shared)} file names occur in several folders (such as {shared[0]}); the recordings of one "
            "name were taken for nights of one subject. If they are not, name their subjects with --participants."
        )
    if unnamed:
        say(f"{len(unnamed)} recordings are not in the participants table; their subject is their file's name")
    say(
        f"{store}: {totals['recordings']} nights of {totals['subjects']} subjects, {totals['clips']} clips, "
        f"{totals['hours']:.2f} hours ({len(added)} nights added, {len(plan.kept)} unchanged, {len(failed)} failed); "
        f"montage {montage.name}"
    )
    if totals["clips"]:
        say(f"  stages: {percentages(totals['stages'])}")
        say(f"  sleep-disordered breathing: {percentages(totals['sdb'])}")
        if failed or changed:
            say("the store can be used as it is; the same command tries again what failed")
    else:
        say("error: nothing could be ingested; the store holds no night yet")
    return {
        "store": str(store),
        "nights": totals["recordings"],
        "subjects": totals["subjects"],
        "clips": totals["clips"],
        "hours": totals["hours"],
        "stages": totals["stages"],
        "sdb": totals["sdb"],
        "montage": montage.name,
        "added": len(added),
        "kept": len(plan.kept),
        "failed": failed,
        "changed": changed,
        "problems": dict(list(problems.items())[:NIGHTS_IN_JSON]),
        "nights_with_problems": len(problems),
        "annotations_only": [str(path) for path in plan.excluded],
        "participants_unknown": unknown,
        "exit_status": int(bool(failed or changed or not totals["clips"])),
    }
