"""The demo: simulated EDF files -> clip store -> tiny model -> embeddings -> probes, retrieval and a report.

Every step is the command a user would run, called with the same configuration object; nothing here knows a figure.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sleepfm_fast.cli.command import say
from sleepfm_fast.plurals import counted

if TYPE_CHECKING:
    from sleepfm_fast.train import Config

__all__ = ["FOLDER", "demo"]

FOLDER = Path("sleepfm_demo")
SUBJECTS, HOURS = 40, 1.0
TASKS: tuple[Literal["stage", "sdb"], ...] = ("stage", "sdb")


def recipe(config: Config) -> Config:
    """How the demo trains; the other fields keep the command's defaults."""
    return dataclasses.replace(
        config,
        store=FOLDER / "store",
        run=FOLDER / "run",
        preset="tiny",
        epochs=8,
        batch_size=64,
        optimiser="adamw",
        schedule="cosine",
        lr=2e-3,
        weight_decay=0.01,
        log_temperature=2.0,
        patience=0,
        resume=True,
    )


def demo(config: Config) -> dict[str, Any]:
    """Run the demo in ``sleepfm_demo/``; a second run goes on where the first stopped."""
    from sleepfm_fast import embed, preprocess, probe, report, retrieve, simulate
    from sleepfm_fast.reporting.following import options_of
    from sleepfm_fast.train import train

    started = time.monotonic()
    recordings, store, run = (FOLDER / name for name in ("edf", "store", "run"))
    embeddings, found = run / "embeddings", run / "results"
    cohort = simulate.Config(recordings, subjects=SUBJECTS, hours=HOURS, seed=config.seed)

    def step(words: str) -> None:
        say("")
        say(f"[{time.monotonic() - started:.0f} s] python -m sleepfm_fast.{words}")

    results: dict[str, Any] = {}
    step(f"simulate {recordings} --subjects {SUBJECTS} --hours {HOURS} --seed {config.seed}")
    results["simulate"] = simulate.main(cohort)
    step(f"preprocess {recordings} {store}")
    results["preprocess"] = preprocess.main(preprocess.Config((recordings, store)))
    training = recipe(config)
    step(f"train {store} {run} {options_of(training, 'store', 'run', 'resume')}")
    results["train"] = train(training)
    step(f"embed {run} {store} {embeddings}")
    results["embed"] = embed.main(embed.Config(run, store, embeddings, device=config.device, overwrite=True))
    for task in TASKS:
        step(f"probe {embeddings} {found / task} --task {task}")
        results[task] = probe.main(probe.Config(embeddings, task=task, result=found / task, overwrite=True))
    step(f"retrieve {embeddings} {found / 'retrieve'}")
    results["retrieve"] = retrieve.main(retrieve.Config(embeddings, found / "retrieve", overwrite=True))
    step(f"report {run}")
    results["report"] = report.main(report.Config((run,), overwrite=True))

    recall = results["retrieve"]["mean"]["recall@10"]
    figures = {
        "stage_macro_auroc": results["stage"]["macro"]["auroc"]["value"],
        "sdb_auroc": results["sdb"]["macro"]["auroc"]["value"],
        "recall_at_10": recall["value"],
        "recall_at_10_times_chance": recall["times_chance"],
    }
    elapsed_s = round(time.monotonic() - started, 1)
    say(
        f"\non {counted(results['stage']['test']['n_subjects'], 'held-out subject')}, in {elapsed_s:.0f} s:\n  sleep "
        f"staging                macro AUROC {figures['stage_macro_auroc']:.3f}\n  sleep-disordered breathing   AUROC "
        f"{figures['sdb_auroc']:.3f}\n  retrieval                    recall@10 {figures['recall_at_10']:.3f}, "
        f"{figures['recall_at_10_times_chance']:.0f} times chance\nThe subjects are simulated: the figures show that "
        "the pipeline works; they say nothing about patients.\nAll figures, nights and signals on one page: "
        f"{run / 'report.html'}"
    )
    return {"demo": str(FOLDER), **figures, "elapsed_s": elapsed_s, "steps": results}
