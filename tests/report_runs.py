"""Run folders with everything a report shows, written by the functions that commands use, without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from synthetic_embeddings import MODALITIES, columns_of, unit, write_folder

from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation.classification import HeldOut, conclude, log_odds
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.results import write_result

DIM = 12


def embed(path: Path, *, n_subjects=6, clips_each=40, seed=0, names=None, **description):
    """Embeddings whose vectors depend on stage and event; the last two subjects are held out."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n_subjects), clips_each)
    split = np.zeros(n_subjects, np.int8)
    split[-2:] = 2
    if n_subjects > 3:
        split[-3] = 1
    stage = np.repeat(rng.integers(0, 5, -(-len(subject) // 4)), 4)[: len(subject)]
    sdb = (rng.random(len(subject)) < 0.2).astype(int)
    centres = rng.standard_normal((5, 3, DIM)) + 0.2 * rng.standard_normal((1, 3, DIM))
    x = unit(centres[stage] + 0.8 * rng.standard_normal((len(subject), 3, DIM)) + 0.5 * sdb[:, None, None])
    if names is not None:
        description |= {"subjects": tuple(names), "recordings": tuple(f"{n}_night" for n in names)}
    columns = columns_of(subject, split[subject], stage=stage, sdb=sdb)
    return Embeddings(write_folder(path, x, columns, **description))


def classify(
    path: Path, embeddings: Embeddings, task: str, *, trained=None, seed=1, command="probe", prior=None, **record
):
    """A result as a classifier writes it, right in most clips."""
    rng = np.random.default_rng(seed)
    clips = embeddings.clips_of("test")
    from sleepfm_fast.evaluation.tasks import labels_of

    labels = labels_of(embeddings, task, clips)
    clips, labels = clips[labels >= 0], labels[labels >= 0]
    trained = np.arange(len(TASKS[task].names), dtype=np.int8) if trained is None else np.asarray(trained, np.int8)
    logits = rng.standard_normal((len(clips), len(trained))) + 2.0 * (labels[:, None] == trained)
    counts = {"n_clips": len(clips), "n_subjects": len(np.unique(embeddings.subject[clips]))}
    said = {"command": command, "task": task, "modalities": list(MODALITIES), "embeddings": str(embeddings.path)}
    said |= {"train": counts, "test": counts, "seconds": 1.5, "overlap_note": "", **record}
    conclude(
        said, HeldOut.of(embeddings, clips, labels), log_odds(logits), trained, bootstraps=20, seed=0, path=path,
        prior=prior,
    )  # fmt: skip


def retrieve(path: Path, embeddings: Embeddings, **changes):
    """A retrieval result with examples."""
    from sleepfm_fast import retrieve as command

    command.main(command.Config(embeddings.path, path, bootstraps=20, examples=1))
    if changes:
        file = path / "result.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def few_shot(path: Path, task="stage"):
    """A few-shot result of three replicates."""
    rng = np.random.default_rng(5)
    curve = [
        {"subjects": n, "replicate": r, "n_clips": 40 * n, "macro": dict.fromkeys(("auroc", "auprc", "f1"), value)}
        for n in (1, 2, 4)
        for r in range(3)
        for value in [float(0.6 + 0.05 * n + 0.02 * rng.standard_normal())]
    ]
    write_result(path, {"command": "few_shot", "task": task, "modalities": list(MODALITIES), "curve": curve}, {})


def start(path: Path, *, store="store", **options):
    """A run folder with its configuration and its metrics."""
    path.mkdir(parents=True, exist_ok=True)
    config = {"store": store, "run": str(path), "preset": "tiny", "mode": "leave_one_out", "epochs": 3, **options}
    record = {
        "format": "sleepfm_fast run", "version": 1, "config": config, "split": {"salt": "x", "validation": 0.1},
        "montage": {"name": "auto", "modalities": []}, "subjects": {}, "ranks": 1,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(record))
    rows = []
    for step in range(1, 31):
        row = {"kind": "step", "epoch": step // 10, "step": step, "loss": 4 / step, "lr": 1e-3, "temperature": 7.0}
        rows.append({**row, "clips_per_s": 100.0 + step})
        if step % 10 == 0:
            losses = {"training_loss": 4 / step, "validation_loss": 5 / step, "validation_top1": step / 100}
            rows.append({"kind": "epoch", "epoch": step // 10 - 1, "step": step, **losses})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def full_run(path: Path, **embedding) -> Path:
    """Everything at once."""
    start(path)
    embeddings = embed(path / "embeddings", **embedding)
    for task in TASKS:
        classify(path / "results" / task, embeddings, task)
    retrieve(path / "results" / "retrieve", embeddings)
    few_shot(path / "results" / "few_shot-stage")
    return path
