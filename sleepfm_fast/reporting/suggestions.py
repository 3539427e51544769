"""The commands that make what a run lacks, ready to be pasted into a shell."""

from __future__ import annotations

from sleepfm_fast.reporting.following import typed
from sleepfm_fast.reporting.sources import Run
from sleepfm_fast.results import Result

__all__ = ["compare", "embed", "few_shot", "preprocess", "probe", "retrieve", "train"]


def preprocess(run: Run) -> str:
    """Make the clip store."""
    return typed("preprocess", "NIGHTS", run.store_named)


def train(run: Run) -> str:
    """Start or go on with the training."""
    return typed("train", run.store_named, run.path, options="--resume")


def embed(run: Run, options: str = "") -> str:
    """Make the embeddings."""
    return typed("embed", run.path, run.store_named, run.embeddings_named, options=options)


def probe(run: Run, task: str) -> str:
    """Make the result of a task."""
    return typed("probe", run.embeddings_named, run.path / "results" / task, options=f"--task {task}")


def few_shot(run: Run, task: str) -> str:
    """Make the few-shot curve of a task."""
    result = run.path / "results" / f"few_shot-{task}"
    return typed("few_shot", run.embeddings_named, result, options=f"--task {task} --subjects 1 2 4 8 --replicates 3")


def compare(run: Run, task: str, first: Result, second: Result) -> str:
    """Measure the difference of two results."""
    return typed("compare", first.path, second.path, run.path / "results" / f"difference-{task}")


def retrieve(run: Run) -> str:
    """Make the retrieval result."""
    return typed("retrieve", run.embeddings_named, run.path / "results" / "retrieve")
