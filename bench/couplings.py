"""Take couplings out of the simulator and see which results go with them; docs/simulator.md shows the outcome.

Each arm simulates the same sleepers (same seed) with some couplings switched off, preprocesses, trains the tiny preset
for a short while, embeds, and probes and retrieves on the same held-out subjects. ``python bench/couplings.py WORK``
runs the arms that WORK lacks and writes ``bench/results/simulator-couplings.json``; ``--doc`` redraws the tables of
docs/simulator.md from that file. The package that Python imports must be that of this clone (``pip install -e .``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import machine
import report

from sleepfm_fast.simulator.sleeper import Couplings

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "simulator-couplings.json"
BEGIN, END = "<!-- couplings:begin -->", "<!-- couplings:end -->"
DOC = HERE.parent / "docs" / "simulator.md"

SUBJECTS, HOURS = 120, 0.25
COHORT_SEED = 11
TRAINING = {
    "preset": "tiny",
    "epochs": 6,
    "batch_size": 64,
    "optimiser": "adamw",
    "schedule": "cosine",
    "lr": 2e-3,
    "weight_decay": 0.01,
    "log_temperature": 2.0,
    "patience": 0,
    "validation_share": 0.05,
    "test_share": 0.3,
    "threads": 1,
}
TASKS = {"embeddings": ("stage", "sdb"), "features": ("age", "sex")}
TRAIT_COLUMNS = {
    f"{task}, {m}": f"{task} {m}" for task in TASKS["features"] for m in ("all", "respiratory", "brain", "ecg")
}
SEEN = ("all", "respiratory", "brain", "ecg")
SEEDS = (0, 1, 2)  # of the trainings that compare the two losses

COMPLETE = "everything on"
ALL = tuple(f.name for f in fields(Couplings))
RSA = "respiratory_sinus_arrhythmia"
DIRECT = (RSA, "ecg_derived_respiration", "pulse_oximeter", "cardioballistic")
HEART_FROM_ELSEWHERE = ("stage_heart_rate", "event_heart_rate", "arousal_heart_rate", "movement", "traits")


@dataclass(frozen=True)
class Arm:
    """A cohort: the couplings that are off, what that is meant to show, and what the probe reads.

    Age and sex, facts of few sleepers, are asked of hand-made features, which name heart rate, breathing and EEG power.
    """

    off: tuple[str, ...]
    shows: str
    reads: str = "embeddings"


ARMS = {
    "everything on": Arm((), "what the couplings together make possible"),
    "everything off": Arm(ALL, "what is left without any of them"),
    "heart on its own": Arm(
        (*DIRECT, *HEART_FROM_ELSEWHERE), "the ECG knows nothing of breath, stage, event or sleeper; QRS stays in EEG"
    ),
    "everything on, hand-made features": Arm((), "what age and sex leave in the signals", "features"),
    "no traits, hand-made features": Arm(("traits",), "age and sex reach no signal", "features"),
    "no stage in heart and breath": Arm(("stage_heart_rate", "stage_breathing"), "the two named routes of the stage"),
    "no stage in heart, breath, snoring, movement": Arm(
        ("stage_heart_rate", "stage_breathing", "stage_snoring", "movement"),
        "all routes of the stage to ECG and respiration but that events come in sleep",
    ),
    "no event in heart and arousals": Arm(
        ("event_arousal", "event_heart_rate", "arousal_heart_rate"), "the named routes from events to brain and heart"
    ),
    "no heart-breath couplings": Arm(DIRECT, "the four direct ones; what stage, events and movement share stays"),
    "no sinus arrhythmia": Arm((RSA,), "the other ties between heart and breath stay"),
    "sinus arrhythmia as the only tie of the heart": Arm(
        (*(c for c in DIRECT if c != RSA), *HEART_FROM_ELSEWHERE),
        "heart on its own, but for sinus arrhythmia: what this one coupling makes possible",
    ),
}


def figure(interval: dict[str, Any], chance: float) -> dict[str, Any]:
    """Keep a value, its interval over subjects and what guessing gives."""
    return {"value": interval["value"], "low": interval["low"], "high": interval["high"], "chance": chance}


def probed(embeddings: Path, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Probe on the held-out subjects: figures by task and modality."""
    from sleepfm_fast import probe

    found: dict[str, Any] = {}
    for task, modality in itertools.product(tasks, SEEN):
        result = probe.main(probe.Config(embeddings=embeddings, task=task, modality=modality))
        found[f"{task} {modality}"] = figure(result["macro"]["auroc"], 0.5)
        found["test_subjects"], found["test_clips"] = result["test"]["n_subjects"], result["test"]["n_clips"]
    return found


def evaluate(embeddings: Path, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Probe and retrieve on the held-out subjects: figures by task and modality, and by direction."""
    from sleepfm_fast import retrieve

    found = probed(embeddings, tasks)
    result = retrieve.main(retrieve.Config(embeddings=embeddings))
    for d in result["directions"]:
        name = f"{d['query']} -> {d['candidates']}"
        found[f"{name} recall@10"] = figure(d["recall@10"], d["recall@10"]["chance"])
        # 0 the own clip always first, 0.5 chance: it notices what recall@10 is too coarse for.
        n = d["n_clips"]
        scaled = {k: None if d["mean_rank"][k] is None else (d["mean_rank"][k] - 1) / (n - 1) for k in BOUNDS}
        found[f"{name} mean rank"] = figure(scaled, 0.5)
    return found


BOUNDS = ("value", "low", "high")


def train_and_evaluate(store: Path, run: Path, tasks: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Train the tiny preset on a store and evaluate its embeddings."""
    from sleepfm_fast import embed, train

    shutil.rmtree(run, ignore_errors=True)
    trained = train.main(train.Config(store, run, **TRAINING, **options))
    embeddings = run / "embeddings"
    embed.main(embed.Config(run, store, embeddings))
    return {"training_clips": trained["training_clips"], "steps": trained["steps"], **evaluate(embeddings, tasks)}


def measure_and_evaluate(store: Path, folder: Path, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Probe hand-made features, on the split of the trainings."""
    from sleepfm_fast import features

    shares = {name: TRAINING[name] for name in ("validation_share", "test_share")}
    features.main(features.Config(store, folder, workers=1, backend="threading", overwrite=True, **shares))
    return probed(folder, tasks)


def cohort(arm: Arm, folder: Path) -> Path:
    """Simulate and preprocess the sleepers of an arm; what is finished is kept."""
    from sleepfm_fast import preprocess, simulate

    recordings, store = folder / "edf", folder / "store"
    couplings = Couplings(**dict.fromkeys(arm.off, 0.0))
    simulate.main(simulate.Config(recordings, SUBJECTS, HOURS, COHORT_SEED, workers=1, couplings=couplings))
    # Splits go by subjects' names. The stored results are from when sleepers of every seed were called sim-0000, ...
    people = folder / "participants.csv"
    table = (recordings / "participants.csv").read_text(encoding="utf-8")
    people.write_text(table.replace(f",sim-{COHORT_SEED}-", ",sim-"), encoding="utf-8")
    preprocess.main(preprocess.Config((recordings, store), participants=people, workers=1, backend="threading"))
    return store


def folder_name(arm: str) -> str:
    """Folder of an arm."""
    return arm.replace(" ", "_")


def settings_of(arm: Arm, **options: Any) -> dict[str, Any]:
    """All that an outcome depends on but the sources."""
    cohort = {"subjects": SUBJECTS, "hours": HOURS, "seed": COHORT_SEED}
    everything = {"cohort": cohort, "training": TRAINING, "off": arm.off, "reads": arm.reads, "options": options}
    plain: dict[str, Any] = json.loads(json.dumps(everything))
    return plain


def stored_outcome(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Read an outcome; None where there is none of these settings."""
    if not path.exists():
        return None
    outcome: dict[str, Any] = json.loads(path.read_text())
    return outcome if outcome.pop("settings", None) == settings else None


def kept(path: Path, settings: dict[str, Any], make: Any) -> dict[str, Any]:
    """Read an outcome of these settings, or make and write it; one of others is replaced."""
    outcome = stored_outcome(path, settings)
    if outcome is None:
        started = time.monotonic()
        outcome = {**make(), "seconds": round(time.monotonic() - started, 1)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"settings": settings, **outcome}, indent=1))
        temporary.replace(path)
    return outcome


def run_arm(arm: Arm, folder: Path, **options: Any) -> dict[str, Any]:
    """Carry one arm out."""
    store = cohort(arm, folder if arm.off else folder.with_name(folder_name(COMPLETE)))
    if arm.reads == "features":
        return measure_and_evaluate(store, folder / "features", TASKS["features"])
    return train_and_evaluate(store, folder / "run", TASKS["embeddings"], **options)


def run_arms(work: Path, names: list[str]) -> dict[str, Any]:
    """Run the arms that are missing; returns the document of those there are."""
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        folder = work / folder_name(name)
        folder.mkdir(exist_ok=True)
        arm = ARMS[name]
        make = partial(run_arm, arm, folder)
        kept(folder / "outcome.json", settings_of(arm), make)
        if name != COMPLETE:  # the cohort with everything on serves the comparison of the losses too
            shutil.rmtree(folder / "edf", ignore_errors=True)
            shutil.rmtree(folder / "store", ignore_errors=True)
    arms = {}
    for name, arm in ARMS.items():
        file = work / folder_name(name) / "outcome.json"
        outcome = stored_outcome(file, settings_of(arm))
        if outcome is None and file.exists():
            raise SystemExit(f"error: {file} was made with other settings; name its arm in --arms too, or remove it.")
        if outcome is not None:
            arms[name] = {
                "off": [c.replace("_", "-") for c in arm.off],
                "shows": arm.shows,
                "reads": arm.reads,
                **outcome,
            }
    return arms


def run_losses(work: Path, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Train both losses with several seeds on the cohort that has every coupling."""
    folder = work / folder_name(COMPLETE)
    found = []
    for seed in seeds:
        for mode in ("leave_one_out", "pairwise"):
            file = folder / f"{mode}-{seed}.json"
            arm, options = ARMS[COMPLETE], {"mode": mode, "seed": seed}
            outcome = kept(file, settings_of(arm, **options), partial(run_arm, arm, folder, **options))
            found.append({"mode": mode, "seed": seed, **outcome})
    return found


def verdict(f: dict[str, Any]) -> str:
    """Where the interval lies: ``chance``, ``above`` (better than guessing) or ``below``."""
    if f["low"] is None or f["low"] <= f["chance"] <= f["high"]:
        return "chance"
    return "above" if f["low"] > f["chance"] else "below"


def cell(f: dict[str, Any], digits: int = 2) -> str:
    """Write a figure with its interval, bold where the interval holds what guessing gives."""
    text = f"{f['value']:.{digits}f} ({f['low']:.{digits}f}-{f['high']:.{digits}f})"
    return f"**{text}**" if verdict(f) == "chance" else text


def rows_of(arms: dict[str, Any], columns: dict[str, str], first: str) -> list[str]:
    """Markdown table: an arm a row; ``columns`` are heads and the figures under them."""
    lines = [f"| {first} | {' | '.join(columns)} |", f"|{' --- |' * (1 + len(columns))}"]
    for name, arm in arms.items():
        values = [cell(arm[key], 3 if "recall" in key else 2) for key in columns.values()]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return lines


def loss_rows(losses: list[dict[str, Any]]) -> list[str]:
    """Markdown table of the two losses, a seed a row."""
    directions = [f"{a} -> {b}" for a, b in itertools.permutations(("respiratory", "brain", "ecg"), 2)]
    lines = [
        "| loss | seed | staging, all | staging, ECG | SDB, all | mean recall@10 of six directions |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in sorted(losses, key=lambda r: (r["mode"], r["seed"])):
        recall = sum(run[f"{d} recall@10"]["value"] for d in directions) / len(directions)
        figures = " | ".join(cell(run[key]) for key in ("stage all", "stage ecg", "sdb all"))
        lines.append(f"| {run['mode'].replace('_', '-')} | {run['seed']} | {figures} | {recall:.3f} |")
    return lines


def tables(document: dict[str, Any]) -> str:
    """Draw what docs/simulator.md shows of a stored experiment."""
    arms = document["arms"]
    embedded = {name: arm for name, arm in arms.items() if arm["reads"] == "embeddings"}
    measured = {name: arm for name, arm in arms.items() if arm["reads"] == "features"}
    one = next(iter(embedded.values()))
    short = {"respiratory": "respiration", "brain": "brain", "ecg": "ECG"}
    lines = ["| arm | couplings switched off |", "| --- | --- |"]
    for name, arm in arms.items():
        n_off, n_all = len(arm["off"]), len(document["couplings"])
        off = ", ".join(f"`{c}`" for c in arm["off"]) or "none"
        if n_off > n_all - 3:
            on = [c for c in document["couplings"] if c not in arm["off"]]
            off = f"all but `{on[0]}`" if on else f"all {n_all}"
        lines.append(f"| {name} | {off} |")
    n_subjects, hours = document["cohort"]["subjects"], document["cohort"]["hours"]
    lines += [
        "",
        f"Macro AUROC, {one['test_subjects']} test subjects, {one['test_clips']} clips ({n_subjects} sleepers of "
        f"{60 * hours:g} min):",
        "",
    ]
    heads = {f"{task}, {short[m]}": f"{key} {m}" for task, key in (("staging", "stage"), ("SDB", "sdb")) for m in short}
    lines += rows_of(embedded, heads, "arm")
    pairs = (("ecg", "respiratory"), ("brain", "ecg"), ("respiratory", "brain"))
    recall = {f"{short[a]} -> {short[b]}": f"{a} -> {b} recall@10" for a, b in pairs}
    lines += ["", f"Recall@10 among those clips (chance {one['ecg -> brain recall@10']['chance']:.3f}):", ""]
    lines += rows_of(embedded, recall, "arm")
    lines += ["", "Macro AUROC of age group and sex from hand-made features:", ""]
    lines += rows_of(measured, TRAIT_COLUMNS, "arm")
    if document["losses"]:
        lines += ["", "Leave-one-out against pairwise, everything on:", "", *loss_rows(document["losses"])]
    lines.append("")
    m = document["machine"]
    lines.append(
        f"`bench/results/{document['name']}.json`, made by `bench/couplings.py` at commit {m['commit']} "
        f"({m['cpu_model']}, torch {m['torch']}); it holds all six directions and the ranks. "
        f"{document['note']}".rstrip()
    )
    return "\n".join(lines)


def redrawn(page: str, document: dict[str, Any]) -> str:
    """Return a page with the tables between its marks."""
    return report.rewritten(page, tables(document), BEGIN, END)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, or draw the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?", help="folder for cohorts, runs and outcomes")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), help="arms to run")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="seeds of the two losses")
    parser.add_argument(
        "--note", default="", help="what a reader of the stored file should know, such as other commits"
    )
    parser.add_argument("--doc", action="store_true", help="redraw the tables of docs/simulator.md and stop")
    arguments = parser.parse_args(argv)
    if arguments.doc:
        DOC.write_text(redrawn(DOC.read_text(encoding="utf-8"), json.loads(RESULT.read_text())), encoding="utf-8")
        return 0
    if arguments.work is None:
        parser.error("WORK, the folder for cohorts, runs and outcomes, is missing")
    arms = run_arms(arguments.work, arguments.arms)
    losses = run_losses(arguments.work, tuple(arguments.seeds)) if arguments.seeds else []
    document = {
        "kind": "experiment",
        "name": "simulator-couplings",
        "machine": machine.record(),
        "cohort": {"subjects": SUBJECTS, "hours": HOURS, "seed": COHORT_SEED},
        "couplings": [c.replace("_", "-") for c in ALL],
        "training": TRAINING,
        "note": arguments.note,
        "arms": arms,
        "losses": losses,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
