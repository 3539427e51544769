"""The demo: simulated EDF files -> clip store -> tiny model -> embeddings -> probes and retrieval on held-out subjects.

Every step is the command a user would run, called with the same configuration object; nothing here knows a figure.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.command import say

if TYPE_CHECKING:
    from sleepfm_fast.train import Config

__all__ = ["FOLDER", "demo"]

FOLDER = Path("sleepfm_demo")


def recipe(config: Config) -> Config:
    """How the demo trains; the other fields keep the command's defaults."""
    return dataclasses.replace(
        config,
        store=FOLDER / "store",
        run=FOLDER / "run",
        preset="tiny",
        epochs=10,
        batch_size=128,
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
    from sleepfm_fast import embed, preprocess, probe, retrieve, simulate
    from sleepfm_fast.train import train

    started = time.monotonic()
    results: dict[str, Any] = {"demo": str(FOLDER)}

    def step(name: str, command: str) -> None:
        say(f"\n[{time.monotonic() - started:5.1f} s] {name}: {command}")

    recordings, store, embeddings = FOLDER / "edf", FOLDER / "store", FOLDER / "embeddings"
    step("simulate", f"python -m sleepfm_fast.simulate {recordings} --subjects 24 --hours 2 --seed {config.seed}")
    results["simulate"] = simulate.main(simulate.Config(recordings, subjects=24, hours=2, seed=config.seed))
    step("preprocess", f"python -m sleepfm_fast.preprocess {recordings} {store}")
    results["preprocess"] = preprocess.main(preprocess.Config((recordings, store)))
    training = recipe(config)
    step("train", f"python -m sleepfm_fast.train {store} {training.run} --preset tiny ...")
    results["train"] = train(training)
    step("embed", f"python -m sleepfm_fast.embed {training.run} {store} {embeddings}")
    results["embed"] = embed.main(embed.Config(FOLDER / "run", store, embeddings, device=config.device, overwrite=True))
    for task in ("stage", "sdb"):
        step("probe", f"python -m sleepfm_fast.probe {embeddings} --task {task}")
        results[task] = probe.main(probe.Config(embeddings, task=task))
    step("retrieve", f"python -m sleepfm_fast.retrieve {embeddings}")
    results["retrieve"] = retrieve.main(retrieve.Config(embeddings))
    results["elapsed_s"] = round(time.monotonic() - started, 1)
    return results
