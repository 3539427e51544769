"""Section: the recordings behind the figures: who, how long, which channels at which rate, which labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.markup import element
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section, table
from sleepfm_fast.reporting.plot import legend
from sleepfm_fast.reporting.sources import Run
from sleepfm_fast.reporting.wording import count, hours, number_of, share
from sleepfm_fast.runs.splits import SPLITS
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.store.clip_layout import sdb_counts, stage_counts
from sleepfm_fast.store.simulated_store import is_simulated

if TYPE_CHECKING:
    from sleepfm_fast.clips import ClipStore

__all__ = ["cohort_section"]

MOST_ROWS = 300  # recordings that are listed


def index_file(store: ClipStore, column: str) -> Path:
    """The file of a column of the store's index."""
    return store.path / f"index-{store.digest}" / f"{column}.npy"


def splits_of(run: Run) -> dict[str, str]:
    """Subject -> its split, as the embeddings say (of what store they are), else the run's configuration."""
    embeddings = run.embeddings
    if embeddings is not None:
        codes = np.full(len(embeddings.description.subjects), -1)
        codes[np.asarray(embeddings.subject)] = np.asarray(embeddings.split)
        pairs = zip(embeddings.description.subjects, codes.tolist(), strict=True)
    else:
        subjects = run.config.get("subjects")
        pairs = (
            zip(subjects, subjects.values(), strict=True) if isinstance(subjects, dict) else zip((), (), strict=True)
        )
    return {str(name): SPLITS[code] for name, code in pairs if code in range(len(SPLITS))}


def people_figure(run: Run, store: ClipStore) -> Figure:
    """Subjects, recordings, hours and labels, by split."""
    split = splits_of(run)
    of_recording = np.array([split.get(r.subject, "not split") for r in store.recordings])
    names = [n for n in (*SPLITS, "not split") if (of_recording == n).any()]
    parts = [("all", np.ones(len(store.recordings), bool)), *((n, of_recording == n) for n in names)]
    rows: list[list[str]] = []
    data: dict[str, Any] = {}
    for name, chosen in parts:
        clips = chosen[store.recording]
        subjects = sorted({r.subject for r, c in zip(store.recordings, chosen, strict=True) if c})
        ages = [a for s in subjects if (a := store.participants[s]["age"]) is not None]
        sexes = Counter(store.participants[s]["sex"] or "unknown" for s in subjects)
        stages, sdb = stage_counts(np.asarray(store.stage)[clips]), sdb_counts(np.asarray(store.sdb)[clips])
        data[name] = {
            "recordings": int(chosen.sum()), "subjects": len(subjects), "hours": int(clips.sum()) * EPOCH_S / 3600,
            "ages": ages, "sexes": dict(sexes), "stages": stages, "respiratory_events": sdb,
        }  # fmt: skip
        age = f"{np.median(ages):.0f} ({min(ages):.0f}-{max(ages):.0f})" if ages else "-"
        sex = ", ".join(f"{n} {s}" for s, n in sorted(sexes.items()))
        scored = sdb["event"] + sdb["none"]
        rows.append(
            [name, count(len(subjects)), count(chosen.sum()), hours(data[name]["hours"]), count(clips.sum()), age, sex,
             f"{count(sdb['event'])} ({share(sdb['event'], scored)})" if scored else "not scored"]
        )  # fmt: skip
    head = ["split", "subjects", "recordings", "in clips", "clips", "age (range)", "sex", "clips with an event"]
    files = [store.path / "store.json", index_file(store, "recording"), index_file(store, "sdb"), run.config_path]
    return Figure(
        "Subjects and recordings", table(head, rows, "Subjects and recordings by split"),
        "Subjects, not recordings, are split, so that nobody is trained on and tested on. Age in years, median and "
        "range.",
        [f for f in files if f.exists()], data, wide=True,
    )  # fmt: skip


def stages_figure(run: Run, store: ClipStore) -> Figure:
    """Shares of the stages as a bar, and in words."""
    counts = stage_counts(np.asarray(store.stage))
    total = sum(counts.values())
    looks = {**{n: n.lower() for n in counts}, "none": "unknown"}
    parts = [
        element("i", class_=looks[n], style=f"width:{100 * c / total:.3f}%", title=f"{n} {c}")
        for n, c in counts.items()
        if c
    ]
    words = ", ".join(f"{n} {share(c, total)}" for n, c in counts.items() if c)
    entries = [
        (looks[n], f"{'not scored' if n == 'none' else n}: {count(c)} ({share(c, total)})")
        for n, c in counts.items()
        if c
    ]
    return Figure(
        "Sleep stages", element("div", *parts, class_="bar", role="img", aria_label=f"Shares of the stages: {words}"),
        f"{number_of(total, 'clip')} of 30 s.", [index_file(store, "stage")], counts, key=legend(entries, "area"),
    )  # fmt: skip


def channels_figure(store: ClipStore) -> Figure:
    """Every slot of the montage: kind, rates, units, in how many recordings."""
    rows, data = [], []
    c = store.channels
    n = len(store.recordings)
    slot = 0
    for modality in store.montage.modalities:
        for described in modality.slots:
            present = np.asarray(c.present[:, slot])
            having = np.flatnonzero(present)
            fractions = zip(c.fs_num[having, slot].tolist(), c.fs_den[having, slot].tolist(), strict=True)
            rates = Counter(f"{num / den:g}" for num, den in fractions)
            units = Counter(store.units[u] or "none" for u in c.unit[having, slot].tolist())
            missing = n - len(having)
            entry: dict[str, Any] = {
                "modality": modality.name, "slot": described.name, "kind": described.kind, "recordings": len(having),
                "missing": missing, "rates_hz": dict(rates), "units": dict(units),
            }  # fmt: skip
            data.append(entry)
            rows.append(
                [described.name, modality.name, described.kind, listed(rates), listed(units),
                 f"{count(len(having))} of {count(n)}",
                 f"{count(missing)} ({share(missing, n)})" if missing else "-"]
            )  # fmt: skip
            slot += 1
    head = ["channel", "modality", "kind", "rate (Hz)", "unit", "recordings", "missing"]
    return Figure(
        "Channels", table(head, rows, "Channels of the montage", numeric=False),
        f"Montage '{store.montage.name}'. A missing channel is masked; its recording is kept. Where rates or units "
        "differ, how many recordings have each stands in parentheses.",
        [store.path / "store.json", index_file(store, "channel_present"), index_file(store, "channel_fs_num")], data,
        wide=True,
    )  # fmt: skip


def listed(counts: Counter[str]) -> str:
    """Values, the most frequent first, with counts where they differ."""
    if len(counts) <= 1:
        return "".join(counts) or "-"
    return ", ".join(f"{v} ({n})" for v, n in counts.most_common(4)) + (", ..." if len(counts) > 4 else "")


def recordings_figure(run: Run, store: ClipStore) -> Figure:
    """One row a recording."""
    split = splits_of(run)
    absent = (~np.asarray(store.channels.present)).sum(1)
    rows = [
        [r.id, r.subject, split.get(r.subject, "-"), r.start or "-", hours(r.n_clips * EPOCH_S / 3600), count(m)]
        for r, m in zip(store.recordings[:MOST_ROWS], absent[:MOST_ROWS].tolist(), strict=True)
    ]
    rest = len(store.recordings) - len(rows)
    more = f" {rest} more are in the store." if rest else ""
    head = ["recording", "subject", "split", "start", "in clips", "missing channels"]
    return Figure(
        f"Recordings ({len(store.recordings)})", table(head, rows, "Recordings", numeric=False),
        f"Their sources and whatever was found wrong with them: recordings/ID.json in the store.{more}",
        [store.path / "store.json"], [dict(zip(head, row, strict=True)) for row in rows], wide=True, folded=True,
    )  # fmt: skip


def cohort_section(runs: Sequence[Run]) -> Section:
    """Describe every distinct store."""
    section = Section("cohort", "Recordings")
    seen: set[Path] = set()
    unfound = []
    for run in runs:
        store = run.store
        if store is None:
            unfound.append(run)
            continue
        if store.path.resolve() in seen:
            continue
        seen.add(store.path.resolve())
        title = f"Store {store.path}"
        simulated = "Simulated recordings: figures say that the pipeline works, nothing about patients."
        items: list[Figure | Missing] = [
            people_figure(run, store), stages_figure(run, store), channels_figure(store), recordings_figure(run, store)
        ]  # fmt: skip
        section.groups.append(Group(title, simulated if is_simulated(store) else "", items))
    for run in unfound:
        if run.config or run.embeddings is not None:
            section.groups.append(
                Group(
                    items=[
                        Missing(
                            f"The clip store {run.store_named} of {run.name} was not found from here, so its "
                            "recordings are not described. Start the report where that path leads to it, or make it:",
                            suggestions.preprocess(run),
                        )
                    ]
                )
            )
    if not section.groups:
        section.groups.append(Group(items=[Missing("No run names a clip store.")]))
    return section
