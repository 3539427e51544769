"""The plan of a reproduction: which commands, in which order, for which tables, and what each has to get through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sleepfm_fast.reproduction.experiments import Run, Source
from sleepfm_fast.reproduction.facts import Facts
from sleepfm_fast.reproduction.paper_tables import PAPER_CANDIDATES, PaperTable
from sleepfm_fast.reproduction.presets import Preset

__all__ = ["Layout", "Planner", "Step", "Work", "cohort_seed", "make_plan"]

COHORT_SEED, EXTERNAL_SEED = 0, 1


def cohort_seed(seed: int, *, external: bool) -> int:
    """Seed of a simulated cohort."""
    return seed + (EXTERNAL_SEED if external else COHORT_SEED)


@dataclass(frozen=True)
class Layout:
    """Where things are below OUT."""

    out: Path

    def recordings(self, *, external: bool) -> Path:
        """Folder of a simulated cohort."""
        return self.out / ("external_cohort" if external else "cohort") / "edf"

    def store(self, *, external: bool) -> Path:
        """Store of a simulated cohort."""
        return self.recordings(external=external).parent / "store"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.out / "runs"

    def run(self, run: Run) -> Path:
        """Folder of a run."""
        return self.runs / run.name

    def embeddings(self, run: Run) -> Path:
        """Embeddings of the store, or the folder of features that stands in for them."""
        return self.run(run) / "embeddings"

    def result(self, source: Source) -> Path:
        """Folder of a result."""
        return self.run(source.run) / "results" / source.evaluation.name


@dataclass(frozen=True)
class Work:
    """What a step gets through: ``amount`` of what ``speed`` counts a second, after ``start_s`` seconds."""

    speed: str
    amount: float
    start_s: float = 0.0


@dataclass(frozen=True)
class Step:
    """One call of a command.

    Attributes
    ----------
    name : str
        Its folder below OUT; unique.
    command : str
        The module.
    options : dict
        Fields of the command's ``Config`` that are not its defaults.
    makes : Path
        What exists when it is done.
    needs : tuple of str
        Names of the steps that must be done before.
    serves : tuple of str
        Tables and figures that show it.
    work : Work
    disk_bytes : float
    """

    name: str
    command: str
    options: Mapping[str, Any]
    makes: Path
    needs: tuple[str, ...]
    serves: tuple[str, ...]
    work: Work
    disk_bytes: float


class Planner:
    """Collects steps, each once, after what it needs."""

    def __init__(
        self,
        layout: Layout,
        preset: Preset,
        facts: Facts,
        external: Facts | None,
        *,
        store: Path | None,
        external_store: Path | None,
        seed: int,
        device: str,
        precision: str,
        threads: int,
        dim: int,
        parameters: Mapping[str, float],
    ) -> None:
        self.layout, self.preset, self.facts, self.external = layout, preset, facts, external
        self.given, self.given_external = store, external_store
        self.seed, self.device, self.precision, self.threads = seed, device, precision, threads
        self.dim, self.parameters = dim, parameters
        self.steps: dict[str, Step] = {}
        self.serves: dict[str, list[str]] = {}

    def add(
        self,
        table: str,
        makes: Path,
        command: str,
        options: dict[str, Any],
        work: Work,
        needs: Iterable[str] = (),
        disk_bytes: float = 0,
    ) -> str:
        """Take a step into the plan; returns its name."""
        name = str(makes.relative_to(self.layout.out))
        # What a step needs serves the same table.
        for needed in (name, *needs):
            served = self.serves.setdefault(needed, [])
            if table not in served:
                served.append(table)
        if name not in self.steps:
            self.steps[name] = Step(name, command, options, makes, tuple(needs), (), work, disk_bytes)
        return name

    # ---- cohorts -------------------------------------------------------------------------------------------------

    def cohort(self, table: str, *, external: bool = False) -> tuple[Path, tuple[str, ...]]:
        """Plan the store, which is simulated unless given."""
        given = self.given_external if external else self.given
        if given is not None:
            return given, ()
        facts = self.external if external else self.facts
        assert facts is not None
        recordings = self.layout.recordings(external=external)
        store = self.layout.store(external=external)
        n = self.preset.external_subjects if external else self.preset.subjects
        seed = cohort_seed(self.seed, external=external)
        # An hour of 14 channels: 3.7 MB of EDF and as much in the store.
        size = 9.3e6 * facts.hours
        simulated = self.add(
            table,
            recordings,
            "simulate",
            {"out": recordings, "subjects": n, "hours": self.preset.hours, "seed": seed},
            Work("simulated hours", facts.hours),
            disk_bytes=size,
        )
        montage = {"montage": "cinc2018"} if external else {}
        made = self.add(
            table,
            store,
            "preprocess",
            {"paths": (recordings, store), **montage},
            Work("preprocessed hours", facts.hours, 1.0),
            (simulated,),
            size,
        )
        return store, (made,)

    def modalities(self, run: Run) -> tuple[str, ...]:
        """What a contrastive run pretrains: those it names, or all that the store has."""
        return run.modalities or tuple(self.facts.channels)

    # ---- runs ----------------------------------------------------------------------------------------------------

    def training_share(self, run: Run) -> float:
        """Share of the training subjects that a run sees."""
        n = self.facts.subjects["train"]
        return min(run.subjects / n, 1.0) if run.subjects and n else 1.0

    def split_options(self) -> dict[str, Any]:
        """Options of the commands that split subjects."""
        split = self.preset.split
        return {"validation_share": split.validation, "test_share": split.test, "split_salt": split.salt}

    def train(self, table: str, run: Run) -> str:
        """Plan a training."""
        store, needs = self.cohort(table)
        folder = self.layout.run(run)
        supervised = run.kind == "supervised"
        recipe = self.preset.supervised if supervised else self.preset.training
        options: dict[str, Any] = {
            "store": store,
            "run": folder,
            "preset": self.preset.encoder,
            **recipe,
            **self.split_options(),
            "seed": self.seed,
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "resume": True,
        }
        if run.subjects:
            options |= {"train_subjects": run.subjects, "replicate": run.replicate}
        seen = int(self.facts.clips["train"] * self.training_share(run))
        # An evaluation costs a third of a training step: no backward pass.
        clips = recipe["epochs"] * (seen + self.facts.clips["validation"] / 3)
        if supervised:
            options |= {"task": run.task, "modality": run.modality}
            speed, copies = "supervised clips", self.parameters["supervised"]
        else:
            modalities = self.modalities(run)
            options["mode"] = run.mode
            if run.modalities:
                options["modalities"] = run.modalities
            speed = f"training clips, {len(modalities)} modalities"
            copies = self.parameters["encoder"] * len(modalities)
        # best: the weights; last: the weights and two moments.
        return self.add(
            table,
            folder,
            "supervise" if supervised else "train",
            options,
            Work(speed, clips, 2.0),
            needs,
            4 * copies * 4,
        )

    def embed_options(self, run: Run, store: Path, makes: Path) -> dict[str, Any]:
        """Options of an embed command."""
        where = {"device": self.device, "precision": self.precision}
        return {"run": self.layout.run(run), "store": store, "embeddings": makes, **where}

    def embed(self, table: str, run: Run) -> str:
        """Plan the embeddings of the store, or its features."""
        store, needs = self.cohort(table)
        makes = self.layout.embeddings(run)
        n = self.facts.n_clips
        if run.kind == "features":
            options = {"store": store, "features": makes, **self.split_options()}
            return self.add(table, makes, "features", options, Work("clips of features", n, 2.0), needs, n * 1000)
        trained = self.train(table, run)
        modalities = len(self.modalities(run))
        options = self.embed_options(run, store, makes)
        work = Work("embedded clips", n * modalities / len(self.facts.channels), 1.0)
        return self.add(table, makes, "embed", options, work, (trained,), n * modalities * self.dim * 4)

    def embed_external(self, table: str, run: Run) -> tuple[str, Path]:
        """Plan the embeddings of the external store."""
        assert self.external is not None
        store, needs = self.cohort(table, external=True)
        trained = self.train(table, run)
        makes = self.layout.run(run) / "external_embeddings"
        n = self.external.n_clips
        options = self.embed_options(run, store, makes)
        name = self.add(
            table,
            makes,
            "embed",
            options,
            Work("embedded clips", n, 1.0),
            (trained, *needs),
            n * len(self.modalities(run)) * self.dim * 4,
        )
        return name, makes

    # ---- results -------------------------------------------------------------------------------------------------

    def result(self, table: str, source: Source) -> str:
        """Plan a result and what it needs."""
        run, evaluation = source.run, source.evaluation
        makes = self.layout.result(source)
        if evaluation.kind == "supervised":
            return self.train(table, run)
        n_train, n_test = self.facts.clips["train"], self.facts.clips["test"]
        width = self.dim * (len(self.modalities(run)) if evaluation.modality == "all" else 1)
        classes = {"stage": 5, "age": 4}.get(evaluation.task, 1)
        fit = n_train * width * classes
        embeddings = self.layout.embeddings(run)
        common = {"bootstraps": self.preset.bootstraps, "seed": self.seed}
        if evaluation.kind == "retrieve":
            n = min(n_test, PAPER_CANDIDATES)
            pairs = math.comb(len(self.modalities(run)), 2)
            options: dict[str, Any] = {"embeddings": embeddings, "result": makes, **common}
            if n_test > PAPER_CANDIDATES:  # as the paper draws them: uniform over event types and participants
                options |= {"candidates": PAPER_CANDIDATES, "sample": "balanced"}
            work = Work("compared numbers", pairs * n * n * self.dim, 2.0)
            return self.add(table, makes, "retrieve", options, work, (self.embed(table, run),), n * 72)
        if evaluation.kind == "few_shot":
            numbers = tuple(k for k in self.preset.few_shot_subjects if k <= self.facts.subjects["train"])
            share = sum(numbers) / max(self.facts.subjects["train"], 1) * self.preset.few_shot_replicates
            options = {"embeddings": embeddings, "result": makes, "task": evaluation.task, "subjects": numbers}
            # All subjects are the probe's own result.
            options |= {"replicates": self.preset.few_shot_replicates, "all_subjects": False}
            return self.add(
                table, makes, "few_shot", options, Work("fitted numbers", fit * share, 2.0), (self.embed(table, run),)
            )
        options = {"embeddings": embeddings, "result": makes, "task": evaluation.task, "modality": evaluation.modality}
        options |= common
        work = Work("fitted numbers", fit, 1.0)
        if evaluation.kind == "probe":
            return self.add(table, makes, "probe", options, work, (self.embed(table, run),), n_test * 80)
        if run.kind == "supervised":
            return self.classify_external(table, run, makes)
        embedded, folder = self.embed_external(table, run)
        if evaluation.kind == "external_own":
            assert self.external is not None
            own = Work("fitted numbers", self.external.clips["train"] * width * classes, 1.0)
            return self.add(table, makes, "probe", {**options, "embeddings": folder}, own, (embedded,), n_test * 80)
        both = self.layout.run(run) / "transfer_embeddings"
        join = {"training": embeddings, "testing": folder, "embeddings": both}
        joined = self.add(
            table,
            both,
            "transfer",
            join,
            Work("embedded clips", n_train / 100),
            (self.embed(table, run), embedded),
            n_train * len(self.modalities(run)) * self.dim * 4,
        )
        return self.add(table, makes, "probe", {**options, "embeddings": both}, work, (joined,), n_test * 80)

    def classify_external(self, table: str, run: Run, makes: Path) -> str:
        """Plan the test of a supervised network on the external store."""
        assert self.external is not None
        store, needs = self.cohort(table, external=True)
        trained = self.train(table, run)
        options: dict[str, Any] = {"run": self.layout.run(run), "store": store, "result": makes}
        options |= {"bootstraps": self.preset.bootstraps, "seed": self.seed}
        options |= {"device": self.device, "threads": self.threads}
        n = self.external.clips["test"]
        # Without a backward pass: a third of a training step.
        return self.add(
            table, makes, "classify", options, Work("supervised clips", n / 3, 1.0), (trained, *needs), n * 80
        )

    def finished(self) -> tuple[Step, ...]:
        """All steps in an order in which each comes after what it needs."""
        # `needs` name steps that were added before; what a step serves, its needs serve too.
        for name in reversed(list(self.steps)):
            for needed in self.steps[name].needs:
                for table in self.serves[name]:
                    if table not in self.serves[needed]:
                        self.serves[needed].append(table)
        return tuple(replace(step, serves=tuple(self.serves[step.name])) for step in self.steps.values())


def make_plan(planner: Planner, tables: Iterable[PaperTable]) -> tuple[Step, ...]:
    """Plan all that the tables show.

    Parameters
    ----------
    planner : Planner
        An empty one.
    tables : iterable of PaperTable
        In the order in which their steps run.

    Returns
    -------
    tuple of Step
        Each after what it needs.
    """
    for table in tables:
        sources = dict.fromkeys(source for cell in table.cells for source in cell.sources)
        for source in sources:
            planner.result(table.name, source)
    return planner.finished()
