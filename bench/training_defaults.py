"""Which defaults train best: variants on a simulated cohort, chosen on its validation subjects, held-out figures once.

``python bench/training_defaults.py FOLDER`` writes cohort, store and runs below FOLDER and the outcome into
bench/results/training-defaults.json; stopped, the same command goes on. One option (or optimiser, rate and schedule
together) is decided at a time, the best so far kept. The test subjects are looked at when all is decided.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import machine
import numpy as np

HERE = Path(__file__).resolve().parent
SHARES = {"validation_share": 0.25, "test_share": 0.25}
AUTHORS = {"optimiser": "sgd", "schedule": "step", "lr": 1e-3, "log_temperature": 0.0, "batch_size": 32}
ADAMW = {"optimiser": "adamw", "schedule": "cosine", "lr": 1e-3, "weight_decay": 0.01}
ROUNDS: dict[str, list[dict[str, Any]]] = {
    "optimiser and initial temperature": [
        {},
        {**ADAMW, "log_temperature": 2.0},
        {**ADAMW, "log_temperature": 0.0},
    ],
}


class Experiment:
    """Trains each setting once a seed; what was trained is kept in ``figures.json`` with all that it depends on.

    Parameters
    ----------
    folder : Path
    preset : str
        Encoder.
    epochs, subjects : int
    hours : float
        Of every recording.

    Raises
    ------
    SystemExit
        When the folder holds another cohort.
    """

    def __init__(self, folder: Path, preset: str, epochs: int, subjects: int, hours: float) -> None:
        self.folder, self.preset, self.epochs = folder, preset, epochs
        self.store = folder / "store"
        self.path = folder / "figures.json"
        self.figures: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.about = {"preset": preset, "epochs": epochs, "subjects": subjects, "hours": hours, **SHARES}
        self.make_store(subjects, hours)

    def make_store(self, subjects: int, hours: float) -> None:
        """Simulate and preprocess what is missing; simulate refuses a folder of another cohort."""
        from sleepfm_fast import preprocess, simulate
        from sleepfm_fast.errors import SleepfmError

        edf = self.folder / "edf"
        if self.store.exists() and not edf.exists():
            raise SystemExit(f"error: {self.store} has lost its recordings, {edf}: nobody knows its size. Remove it.")
        try:
            simulate.main(simulate.Config(edf, subjects=subjects, hours=hours, workers=1))
        except SleepfmError as error:
            raise SystemExit(f"error: {error}") from error
        preprocess.main(preprocess.Config((edf, self.store), workers=1, backend="threading"))

    def trained(self, options: dict[str, Any], seed: int) -> dict[str, Any]:
        """Figures of one training on the validation and the test subjects; only those who report look at the latter."""
        key = json.dumps({**self.about, **options, "seed": seed}, sort_keys=True)
        if key not in self.figures:
            from sleepfm_fast import embed, train

            run, embeddings = self.folder / "run", self.folder / "embeddings"
            shutil.rmtree(run, ignore_errors=True)
            config = train.Config(
                *(self.store, run), preset=self.preset, epochs=self.epochs, patience=0, seed=seed, threads=1,
                **SHARES, **options,
            )  # fmt: skip
            outcome = train.main(config)
            embed.main(embed.Config(run, self.store, embeddings, overwrite=True))
            self.figures[key] = {
                "validation_loss": outcome["best_validation_loss"],
                "best_epoch": outcome["best_epoch"],
                "temperature": outcome["temperature"],
                "elapsed_s": outcome["elapsed_s"],
                **{split: figures(embeddings, split) for split in ("validation", "test")},
            }
            self.path.write_text(json.dumps(self.figures, indent=1))
        found: dict[str, Any] = self.figures[key]
        return found


def figures(path: Path, split: str) -> dict[str, float]:
    """Probes fitted on the training subjects and retrieval, on the subjects of one split."""
    from sklearn.linear_model import LogisticRegression

    from sleepfm_fast import retrieve
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation import metrics

    embeddings = Embeddings(path)
    result: dict[str, float] = {}
    for task in ("stage", "sdb"):
        labels = np.asarray(getattr(embeddings, task))
        parts = [clips[labels[clips] >= 0] for clips in (embeddings.clips_of("train"), embeddings.clips_of(split))]
        x = [np.nan_to_num(embeddings.read(clips).reshape(len(clips), -1)) for clips in parts]
        model = LogisticRegression(class_weight="balanced", max_iter=10000).fit(x[0], labels[parts[0]])
        scores = model.decision_function(x[1])
        truth = labels[parts[1]]
        if task == "sdb":
            result["sdb_auroc"] = metrics.auroc(truth == 1, scores)
        else:
            each = [metrics.auroc(truth == c, scores[:, k]) for k, c in enumerate(model.classes_)]
            result["stage_auroc"] = float(np.mean(each))
    found = retrieve.main(retrieve.Config(path, split=split, bootstraps=0))  # type: ignore[arg-type]
    result["recall_at_10"] = found["mean"]["recall@10"]["value"]
    result["score"] = (result["stage_auroc"] + result["sdb_auroc"]) / 2
    return result


def decide(experiment: Experiment) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best options on the validation subjects, one round after the other, and what was seen on the way."""
    best, log = dict(AUTHORS), []
    for name, candidates in ROUNDS.items():
        tried = []
        for candidate in candidates:
            options = {**best, **candidate}
            row = experiment.trained(options, 0)
            tried.append((row["validation"]["score"], options))
            kept = {k: row[k] for k in ("validation", "validation_loss", "best_epoch", "temperature", "elapsed_s")}
            log.append({"round": name, "options": options, **kept})
        best = max(tried, key=lambda pair: pair[0])[1]
    return best, log


def held_out(experiment: Experiment, options: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Figures of several seeds: mean and standard deviation, on validation and test subjects."""
    rows = [experiment.trained(options, seed) for seed in range(seeds)]
    summary: dict[str, Any] = {"options": options}
    for split in ("validation", "test"):
        summary[split] = {
            name: {
                "mean": statistics.mean(row[split][name] for row in rows),
                "sd": statistics.stdev(row[split][name] for row in rows) if seeds > 1 else None,
                "values": [row[split][name] for row in rows],
            }
            for name in rows[0][split]
        }
    return summary


def main() -> None:
    """Run and write the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "training-defaults.json")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(a.folder, a.preset, a.epochs, a.subjects, a.hours)
    best, log = decide(experiment)
    trained = {**AUTHORS, **ADAMW, "log_temperature": 2.0}
    compared = {
        "authors' options": AUTHORS,
        "AdamW, temperature e^2": trained,
        "AdamW, temperature e^2, pairwise": {**trained, "mode": "pairwise"},
    }
    document = {
        "kind": "experiment",
        "name": "training defaults",
        "machine": machine.record(),
        "cohort": {"subjects": a.subjects, "hours": a.hours, "seed": 0, **SHARES},
        "preset": a.preset,
        "epochs": a.epochs,
        "selected_by": "mean of stage macro AUROC and SDB AUROC on the validation subjects",
        "rounds": log,
        "chosen": best,
        "seeds": a.seeds,
        "compared": {name: held_out(experiment, options, a.seeds) for name, options in compared.items()},
    }
    a.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
