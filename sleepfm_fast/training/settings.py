"""The options of a training with every one decided: by the user, by ``--compat``, or by default."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from sleepfm_fast.cli.option_effects import refuse_without_effect
from sleepfm_fast.cli.option_ranges import (
    option,
    refuse_dropout,
    refuse_negative,
    refuse_not_finite,
    refuse_not_positive,
)
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.train import Config

__all__ = ["COMPAT", "Settings", "resolve", "spelled"]


@dataclasses.dataclass(frozen=True)
class Settings(Config):
    """A :class:`sleepfm_fast.train.Config` without open options; the defaults stand here."""

    directions: Literal["both", "row"] = "both"
    loss_scale: Literal["mean", "sum"] = "mean"
    epochs: int = 20
    batch_size: int = 32
    last_batch: Literal["drop", "keep"] = "drop"
    optimiser: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["step", "cosine"] = "step"
    lr: float = 1e-3
    step_epochs: int = 5
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_temperature: float = 100.0  # above, a softmax over unit vectors is an arg max in fp32 (CLIP's bound too)
    patience: int = 5
    filters: Literal["aasm", "seed", "clinical", "none"] = "aasm"
    notch_hz: Literal[0, 50, 60] = 0
    normalise: Literal["recording", "clip", "none"] = "recording"
    validation_block: int = 256

    @property
    def max_log_temperature(self) -> float:
        """Upper bound at which the log temperature is clamped."""
        return math.log(self.max_temperature) if self.max_temperature else math.inf


SEED: dict[str, Any] = {
    "directions": "both",
    "loss_scale": "mean",
    "epochs": 20,
    "batch_size": 32,
    "last_batch": "keep",
    "optimiser": "sgd",
    "schedule": "step",
    "lr": 1e-3,
    "step_epochs": 5,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "log_temperature": 0.0,
    "max_temperature": 0.0,
    "patience": 0,
    "filters": "seed",
    "notch_hz": 0,
    "normalise": "none",
    "validation_block": 32,
}
"""What the authors' code does, with the options of its own pretraining script."""

COMPAT: dict[str, dict[str, Any]] = {
    "none": {},
    "seed": SEED,
    # Equations 1 and 2, table 9 and section 3.4. How patient the early stopping was is not said; our default is taken.
    "paper": {**SEED, "directions": "row", "loss_scale": "sum", "lr": 1e-2, "patience": Settings.patience},
}


def resolve(config: Config) -> Settings:
    """Decide what the user left open, and refuse values that cannot work.

    Raises
    ------
    SleepfmError
        For an option that contradicts ``--compat``, or an impossible value.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    decided = COMPAT[config.compat]
    contradicting = [name for name, value in decided.items() if values[name] is not None and values[name] != value]
    if contradicting:
        listed = ", ".join(f"{option(name)} {decided[name]} ({values[name]} was given)" for name in contradicting)
        raise SleepfmError(
            f"--compat {config.compat} means {listed}. Leave --compat out and name what you want of it, or leave "
            f"{', '.join(option(name) for name in contradicting)} out."
        )
    # Encoders that are taken over bring their temperature with them.
    kept = {"log_temperature"} if config.init_from is not None else set()
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)} | {"log_temperature": 0.0}
    for name, value in values.items():
        if value is None and name not in kept and name not in ("store", "run", "init_from", "dropout"):
            values[name] = decided.get(name, defaults[name])
    settings = Settings(**values)
    check(settings)
    return settings


def spelled(settings: Settings) -> str:
    """Return the options that ``Config`` leaves open, as a user would write them."""
    open_ = [f.name for f in dataclasses.fields(Config) if f.default is None and getattr(settings, f.name) is not None]
    return " ".join(
        f"{option(name)} {getattr(settings, name)}" for name in open_ if name not in ("store", "run", "init_from")
    )


def check(settings: Settings) -> None:
    """Refuse values that cannot work, naming the option."""
    refuse_without_effect(settings)
    refuse_not_finite(settings)
    for name in ("batch_size", "validation_block"):
        if getattr(settings, name) < 2:
            raise SleepfmError(
                f"{option(name)} is {getattr(settings, name)}; expected 2 or more: a clip is contrasted with "
                "the others of its batch."
            )
    if settings.micro_batch == 1 or settings.micro_batch < 0:
        raise SleepfmError(f"--micro-batch is {settings.micro_batch}; expected 2 or more (batch norm needs two), or 0.")
    refuse_dropout(settings.dropout)
    refuse_not_positive(settings, ("epochs", "lr", "step_epochs", "checkpoint_steps"))
    natural = ("patience", "max_steps", "skip_limit", "weight_decay", "momentum", "threads", "seed")
    refuse_negative(settings, (*natural, "train_subjects", "replicate", "shuffle_recordings"))
    check_shares(settings)
    check_temperature(settings)
    check_modalities(settings)


def check_shares(settings: Settings) -> None:
    """Refuse shares of the split that are negative or leave no training subjects."""
    validation, test = settings.validation_share, settings.test_share
    if validation < 0 or test < 0 or validation + test >= 1:
        raise SleepfmError(
            f"--validation-share {validation:g} and --test-share {test:g} leave no subjects for training; expected two "
            "shares of 0 or more that sum to less than 1."
        )


def check_temperature(settings: Settings) -> None:
    """Refuse an upper bound of the temperature below 1, and a start outside the bounds."""
    if settings.max_temperature and settings.max_temperature < 1:
        raise SleepfmError(f"--max-temperature is {settings.max_temperature:g}; expected 1 or more, or 0 for no limit.")
    start, limit = settings.log_temperature, settings.max_log_temperature
    if start is not None and not 0 <= start <= limit:
        upper = f"to log({settings.max_temperature:g}) = {limit:.3f}" if settings.max_temperature else "or more"
        raise SleepfmError(f"--log-temperature is {start:g}; expected 0 {upper}.")


def check_modalities(settings: Settings) -> None:
    """Refuse modalities named twice, and modality dropout where it has no room."""
    names = settings.modalities
    if len(set(names)) < len(names):
        raise SleepfmError(f"--modalities names one twice: {' '.join(names)}.")
    if not 0 <= settings.modality_dropout <= 1:
        raise SleepfmError(f"--modality-dropout is {settings.modality_dropout:g}; expected a number from 0 to 1.")
    if settings.modality_dropout and 0 < len(names) < 3:
        raise SleepfmError(
            f"--modality-dropout leaves every clip two modalities, so it needs three; --modalities names {len(names)}."
        )
