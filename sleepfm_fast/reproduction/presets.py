"""The sizes in which the paper's experiments can be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sleepfm_fast.runs.splits import Split

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A size of reproduction.

    Attributes
    ----------
    subjects, hours : int, float
        Simulated cohort where no store is given; hours of each recording.
    external_subjects : int
        Simulated cohort with another montage, for Table 8.
    encoder : str
        Preset of the encoders.
    training, supervised : dict
        Options of ``train`` and ``supervise`` that differ from their defaults.
    few_shot_subjects, few_shot_replicates
        Figure 2.
    sizes : tuple of int
        Pretraining subjects of the table of sizes.
    bootstraps : int
        Resamples of subjects for the intervals.
    """

    subjects: int
    hours: float
    external_subjects: int
    encoder: str
    training: Mapping[str, Any]
    supervised: Mapping[str, Any]
    few_shot_subjects: tuple[int, ...]
    few_shot_replicates: int
    sizes: tuple[int, ...]
    bootstraps: int
    split: Split = field(default_factory=Split)


# What the demo trains with: on a few thousand clips SGD at the paper's rate has hardly begun after 20 epochs.
RECIPE: dict[str, Any] = {
    "optimiser": "adamw",
    "schedule": "cosine",
    "lr": 2e-3,
    "weight_decay": 0.01,
    "patience": 0,
}
PRESETS = {
    "smoke": Preset(
        subjects=40,
        hours=0.25,
        external_subjects=16,
        encoder="tiny",
        training={**RECIPE, "epochs": 5, "batch_size": 64, "log_temperature": 2.0},
        supervised={**RECIPE, "epochs": 5, "batch_size": 64},
        few_shot_subjects=(1, 8),
        few_shot_replicates=2,
        sizes=(8,),
        bootstraps=500,
        split=Split(test=0.3),
    ),
    "study": Preset(
        subjects=120,
        hours=1.0,
        external_subjects=40,
        encoder="seed",
        training={**RECIPE, "epochs": 3, "batch_size": 32, "log_temperature": 2.0},
        supervised={**RECIPE, "epochs": 3, "batch_size": 32},
        few_shot_subjects=(1, 2, 4, 8, 16, 32, 64),
        few_shot_replicates=3,
        sizes=(10, 20, 40),
        bootstraps=1000,
    ),
}
