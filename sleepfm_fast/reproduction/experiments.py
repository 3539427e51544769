"""What can be trained and evaluated for the paper's tables: names of run folders and of the results inside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Evaluation", "Run", "Source"]

Modality = Literal["all", "respiratory", "brain", "ecg"]
Task = Literal["stage", "sdb", "age", "sex"]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes
    ----------
    kind : {"contrastive", "supervised", "features"}
        Pretrained by contrasting modalities; the end-to-end network; hand-made features, which need no training.
    mode : {"leave_one_out", "pairwise"}
        Loss of a contrastive run.
    modalities : tuple of str
        Pretrained on these only; all of them when empty. One alone is contrasted with its neighbouring clips.
    task, modality
        What a supervised run learns, and from what.
    subjects : int
        Training subjects drawn; 0 for all.
    replicate : int
        Which draw.
    """

    kind: Literal["contrastive", "supervised", "features"]
    mode: Literal["leave_one_out", "pairwise"] = "leave_one_out"
    modalities: tuple[str, ...] = ()
    task: Task = "stage"
    modality: Modality = "all"
    subjects: int = 0
    replicate: int = 0

    @property
    def name(self) -> str:
        """Folder name below ``OUT/runs``."""
        if self.kind == "features":
            return "features"
        if self.kind == "supervised":
            parts = ["supervised", self.task, *([] if self.modality == "all" else [self.modality])]
        else:
            parts = [self.mode, *self.modalities]
        if self.subjects:
            parts.append(f"{self.subjects}-subjects")
            parts.append(f"replicate-{self.replicate}")
        return "-".join(parts)


@dataclass(frozen=True)
class Evaluation:
    """One result folder of a run.

    Attributes
    ----------
    kind : str
        ``probe``; ``retrieve``; ``few_shot``; ``supervised`` (the run's own test); ``external``: the probe fitted on
        the store's training subjects and tested on another store's test subjects; ``external_own``: fitted there, too.
    task, modality
        Asked of a probe; of which embeddings.
    """

    kind: Literal["probe", "retrieve", "few_shot", "supervised", "external", "external_own"]
    task: Task = "stage"
    modality: Modality = "all"

    @property
    def name(self) -> str:
        """Folder name below ``RUN/results``."""
        if self.kind == "retrieve":
            return "retrieve"
        what = self.task if self.modality == "all" else f"{self.task}-{self.modality}"
        prefix = {"few_shot": "few_shot-", "external": "external-", "external_own": "external_own-"}
        return prefix.get(self.kind, "") + what


@dataclass(frozen=True)
class Source:
    """Where a figure is read: the result of an evaluation of a run."""

    run: Run
    evaluation: Evaluation
