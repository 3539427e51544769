"""What a run of preprocess did: for people on standard error, for programs as the command's JSON line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import Montage
from sleepfm_fast.cli.command import say
from sleepfm_fast.cohorts.ingest import Outcome
from sleepfm_fast.cohorts.night_scoring import NONE_INSTEAD, OWN_INSTEAD
from sleepfm_fast.cohorts.participant_tables import ParticipantTables
from sleepfm_fast.cohorts.shards import Shard
from sleepfm_fast.cohorts.silent_nights import REMEDY, sentence
from sleepfm_fast.formats.edf_header import INCOMPLETE
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.scoring.files import NOT_USED, SEEMS_TO_LIE
from sleepfm_fast.scoring.labels import OVERLONG
from sleepfm_fast.scoring.texts import asks_meaning
from sleepfm_fast.store.clip_layout import sdb_counts, stage_counts

__all__ = ["percentages", "say_failed", "say_issues", "say_unknown", "summarise"]

NIGHTS_SHOWN = 10
ISSUES_SHOWN = 5
NIGHTS_IN_JSON = 200


def percentages(counts: dict[str, int]) -> str:
    """``W 10 (25.0 %), N1 ...`` with the classes that do not occur left out."""
    total = sum(counts.values())
    return ", ".join(f"{name} {n} ({100 * n / total:.1f} %)" for name, n in counts.items() if n) or "none"


def channels_with_counts(montage: Montage, filled: Sequence[int], n_nights: int) -> list[str]:
    """Names of the montage's channels; of those that some nights lack, with how many have them."""
    return [
        slot.name if n == n_nights else f"{slot.name} ({n} of {counted(n_nights, 'night')})"
        for slot, n in zip(montage.slots, filled, strict=True)
    ]


def say_issues(store: Path, problems: Mapping[str, Sequence[str]]) -> None:
    """Say what is doubtful of the nights, the first of each."""
    for name, issues in list(problems.items())[:NIGHTS_SHOWN]:
        say(f"{name}:")
        for issue in issues[:ISSUES_SHOWN]:
            say(f"  {issue}")
        if len(issues) > ISSUES_SHOWN:
            say(f"  and {len(issues) - ISSUES_SHOWN} more in {store / 'recordings' / name}.json")
    if len(problems) > NIGHTS_SHOWN:
        say(
            f"remarks on {counted(len(problems) - NIGHTS_SHOWN, 'more night is', 'more nights are')} in "
            f"{store / 'recordings'}/*.json, under issues"
        )


def say_remarks(store: Path, problems: Mapping[str, Sequence[str]]) -> None:
    """Say what is doubtful of the nights, then what only a person can settle."""
    say_issues(store, problems)
    asking = [
        next(issue for issue in issues if asks_meaning(issue))
        for issues in problems.values()
        if any(map(asks_meaning, issues))
    ]
    if asking:
        say(
            f"notice: the {agreeing(len(asking), 'scoring')} of {counted(len(asking), 'night holds', 'nights hold')} "
            f"texts whose meaning is not known, as here: {asking[0]}"
        )
    overlong = [issue for issues in problems.values() for issue in issues if OVERLONG in issue]
    if overlong:
        say(
            f"notice: the {agreeing(len(overlong), 'scoring')} of "
            f"{counted(len(overlong), 'night holds', 'nights hold')} respiratory events of impossible length, as here: "
            f"{overlong[0]}"
        )
    if unread := without_their_scoring(problems):
        name, n = unread[0], len(unread)
        n_own = sum(any(issue.startswith(OWN_INSTEAD) for issue in problems[name]) for name in unread)
        reason = next(issue for issue in problems[name] if NOT_USED in issue)
        say(
            f"notice: {counted(n, 'night lacks', 'nights lack')} the stages of a file that is named like "
            f"{agreeing(n, 'its', 'their')} scoring and cannot be read, as here: {name}: {reason.rstrip('.')}. "
            f"{counted(n_own, 'of them has', 'of them have')} the "
            f"stages of {agreeing(n_own, 'its', 'their')} own annotations instead. Repair such a file, or move it away "
            "if it is no scoring, and add --overwrite"
        )
    incomplete = incomplete_nights(problems)
    if incomplete:
        say(
            f"notice: the {agreeing(len(incomplete), 'file')} of {counted(len(incomplete), 'night')} "
            f"{agreeing(len(incomplete), 'is', 'are')} shorter than the header says, {INCOMPLETE}: "
            f"{first_of(incomplete, NIGHTS_SHOWN)}. What is there is used; copy the whole file again and add "
            "--overwrite"
        )


def without_their_scoring(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Nights that have files named like their scoring, none of which can be read."""
    said = (OWN_INSTEAD, NONE_INSTEAD)
    return [name for name, issues in problems.items() if any(issue.startswith(said) for issue in issues)]


def incomplete_nights(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Nights whose file is shorter than its header says."""
    return [name for name, issues in problems.items() if any(INCOMPLETE in issue for issue in issues)]


def say_undone(store: Path, changed: Sequence[Mapping[str, str]], failed: Sequence[Mapping[str, str]]) -> None:
    """Say which nights were not made, and why."""
    for entry in changed[:NIGHTS_SHOWN]:
        say(f"changed: {entry['reason']}")
    if len(changed) > NIGHTS_SHOWN:
        say(
            f"and {counted(len(changed) - NIGHTS_SHOWN, 'more has', 'more have')} changed; --overwrite processes all "
            "of them again"
        )
    say_failed(store, failed)


def say_failed(store: Path, failed: Sequence[Mapping[str, str]]) -> None:
    """Say which nights failed, and why."""
    for entry in failed[:NIGHTS_SHOWN]:
        say(f"failed: {entry['reason']}")
    if len(failed) > NIGHTS_SHOWN:
        say(f"and {len(failed) - NIGHTS_SHOWN} more failed; the reasons are in {store / 'failures'}")


def say_unmatched(outcome: Outcome, tables: ParticipantTables, unknown: Sequence[str]) -> None:
    """Say where the participants table and the corrections do not fit the recordings."""
    for notice in tables.notices(outcome.given):
        say(notice)
    say_unknown(unknown)
    if outcome.plan.left_out:
        say(f"{counted(len(outcome.plan.left_out), 'recording was', 'recordings were')} left out, as --overrides says")
    if outcome.unused_corrections:
        say(
            "notice: --overrides names recordings or channels that no file has: "
            f"{first_of(outcome.unused_corrections, 10)}"
        )


def say_unknown(unknown: Sequence[str]) -> None:
    """Say which recordings the participants table names that were not given."""
    if unknown:
        recordings = counted(len(unknown), "recording that was", "recordings that were")
        say(f"the participants table names {recordings} not given: {', '.join(unknown[:10])}")


def say_totals(store: Path, outcome: Outcome, totals: Mapping[str, Any], shard: Shard | None, n_failed: int) -> None:
    """Say what this run has added, and what the store holds or still lacks."""
    n_added = sum(row.failure is None for row in outcome.rows)
    share = f"{counted(n_added, 'night')} added, {len(outcome.plan.kept)} unchanged, {n_failed} failed"
    if outcome.others:
        say(
            f"{store}: shard {shard}: {share}; the last of the "
            f"{counted(len(outcome.others), 'other shard that is', 'other shards that are')} still at work "
            f"({', '.join(outcome.others[:5])}) writes the index. If all of them are killed, repeat any shard's "
            "command, or the same one without --shard, to write it."
        )
    else:
        say(
            f"{store}: {counted(totals['recordings'], 'night')} of {counted(totals['subjects'], 'subject')}, "
            f"{counted(totals['clips'], 'clip')}, {totals['hours']:.2f} hours ({share}); montage {outcome.montage.name}"
        )
    if outcome.absent:
        n = len(outcome.absent)
        say(
            f"notice: the store lacks {counted(n, 'recording')} that other tasks of the array were to ingest (such as "
            f"{outcome.absent[0].name}): these have not run yet, were ended, or the "
            f"{agreeing(n, 'recording', 'recordings')} failed (manifest.csv says which). Run them again, or once "
            "without --shard, before the store is used"
        )


def say_contents(outcome: Outcome, totals: Mapping[str, Any], like: Path | None) -> None:
    """Say what the store's clips have: channels, stages, respiratory events; and what they lack."""
    montage = outcome.montage
    shown = iter(channels_with_counts(montage, outcome.filled, totals["recordings"]))
    say("  " + "; ".join(f"{m.name}: {', '.join(next(shown) for _ in m.slots)}" for m in montage.modalities))
    say(f"  stages: {percentages(totals['stages'])}")
    say(f"  sleep-disordered breathing: {percentages(totals['sdb'])}")
    empty = [slot.name for slot, n in zip(montage.slots, outcome.filled, strict=True) if not n]
    if empty and like is not None:
        say(empty_slots(empty, outcome.unused))
    if outcome.twins:
        say(outcome.twins)
    if outcome.apart:
        say(f"notice: {outcome.apart}")
    if outcome.n_silent:
        say(f"notice: {sentence(outcome.n_silent, outcome.n_scored)}: {REMEDY}")
    if not outcome.n_scored:
        seems = next((i for row in outcome.rows for i in row.issues if SEEMS_TO_LIE in i), "")
        say(
            "notice: no night has a sleep stage. Training needs none; for probes, name the file or folder of the "
            f"scoring with --labels (and add --overwrite to process the existing nights again){seems and f': {seems}'}"
        )


def empty_slots(empty: Sequence[str], unused: Mapping[str, Sequence[str]]) -> str:
    """Sentence on slots of --like that no night fills, with the labels that may be meant."""
    named = [f"{name} (not used: {first_of(unused[name], 5)})" if unused.get(name) else name for name in empty]
    meant = next((name for name in empty if unused.get(name)), empty[0])
    label = next(iter(unused.get(meant, ())), "LABEL")
    them = agreeing(len(empty), "it", "them")
    return (
        f"notice: no night has {', '.join(named)}, which --like asks for: the network works without {them}. If the "
        f"recordings have {them} under other names (--inspect lists what is not used), name them: --overrides FILE "
        f"with, if {label} is {meant}, {json.dumps({'*': {label: {'alias': meant}}}, ensure_ascii=False)}, and "
        "--overwrite"
    )


def summarise(
    store: Path, outcome: Outcome, tables: ParticipantTables, shard: Shard | None, like: Path | None
) -> dict[str, Any]:
    """Say what was done and what was wrong, and return the same as a dict with the exit status.

    The exit status is 1 when the store holds no night, or any night of this run failed, has changed since it was
    ingested, or is damaged; the store is usable nevertheless when it holds a night. A shard that leaves the index to
    others answers for its own nights only.
    """
    plan, rows, given = outcome.plan, outcome.rows, outcome.given
    failed = [{"path": str(row.path), "reason": row.failure} for row in rows if row.failure is not None]
    failed += [
        {"path": name, "reason": f"{what}, and its source was not given. Give it to process the night again."}
        for name, what in plan.lost.items()
    ]
    changed = [
        {"path": str(path), "reason": f"{why}; the store keeps what it has. Add --overwrite to process it again."}
        for path, why in plan.changed.items()
    ]
    problems = {row.name: list(row.issues) for row in rows if row.issues}
    # Recordings of the array's other jobs were given too, and so were those that --overrides leaves out.
    unknown = tables.unknown_recordings([*given, *plan.known, *plan.names, *plan.left_out])
    totals = outcome.totals or {
        "recordings": 0, "subjects": 0, "clips": 0, "hours": 0.0, "stages": stage_counts([]), "sdb": sdb_counts([])
    }  # fmt: skip

    say_remarks(store, problems)
    say_undone(store, changed, failed)
    say_unmatched(outcome, tables, unknown)
    say_totals(store, outcome, totals, shard, len(failed))
    if totals["clips"]:
        say_contents(outcome, totals, like)
        if failed:
            say("the store can be used as it is; the same command tries again what failed")
    elif not outcome.others and (shard is None or given):
        say("error: nothing could be ingested; the store holds no night yet")
    return {
        "store": str(store),
        "nights": totals["recordings"],
        "subjects": totals["subjects"],
        "clips": totals["clips"],
        "hours": totals["hours"],
        "stages": totals["stages"],
        "sdb": totals["sdb"],
        "nights_scored": outcome.n_scored,
        "nights_without_events": outcome.n_silent,
        "montage": outcome.montage.name,
        "nights_by_channel": {slot.name: n for slot, n in zip(outcome.montage.slots, outcome.filled, strict=False)},
        "shard": None if shard is None else str(shard),
        "index": f"left to {counted(len(outcome.others), 'other shard')} at work" if outcome.others else "written",
        "manifest": str(store / "manifest.csv"),
        "added": sum(row.failure is None for row in rows),
        "kept": len(plan.kept),
        "failed": failed,
        "absent": len(outcome.absent),
        "changed": changed,
        "problems": dict(list(problems.items())[:NIGHTS_IN_JSON]),
        "incomplete": incomplete_nights(problems),
        "scoring_not_read": without_their_scoring(problems),
        "nights_with_problems": len(problems),
        "annotations_only": [str(path) for path in plan.excluded],
        "left_out": [str(path) for path in plan.left_out],
        "participants_unknown": unknown,
        "exit_status": int(bool(failed or changed or not (totals["clips"] or outcome.others))),
    }
