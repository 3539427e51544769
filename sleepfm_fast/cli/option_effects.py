"""Options that another option decides about: one that was given and would change nothing is refused, in one place.

A command's ``Config`` lists in ``EFFECTS`` when an option counts. Left at its default an option may be idle; given, it
must count. An option whose wish is met because nothing depends on it (a seed where nothing is drawn) is no such case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from sleepfm_fast.cli.option_ranges import option
from sleepfm_fast.errors import SleepfmError

__all__ = ["TRAINING_EFFECTS", "Effect", "given_options", "only_with", "only_without", "refuse_without_effect"]


@dataclasses.dataclass(frozen=True)
class Effect:
    """When an option counts.

    Attributes
    ----------
    option : str
        Name of its field.
    decider : str
        Field of the option that decides.
    values : tuple
        The decider's values with which the option counts; none listed: any but None, False, 0 and empty.
    without : bool
        The other way round: the option counts where the decider is left out.
    spelling : str
        The decider as the user writes it, where that is not its field's name.
    """

    option: str
    decider: str
    values: tuple[Any, ...] = ()
    without: bool = False
    spelling: str = ""

    def holds(self, config: Any) -> bool:
        """Whether the option counts in a configuration."""
        value = getattr(config, self.decider)
        if self.values:
            return value is None or value in self.values  # None is decided later, for a value that counts
        return bool(value) != self.without

    def sentence(self, config: Any) -> str:
        """Why it would change nothing, and what would make it count."""
        given = written(self.option, getattr(config, self.option))
        decider = self.spelling or option(self.decider)
        if self.without:
            return (
                f"{given} has no effect with {written(self.decider, getattr(config, self.decider), decider)}. "
                "Leave one of the two out."
            )
        if not self.values:
            return f"{given} has no effect without {decider}. Leave it out, or give {decider} too."
        wanted = " or ".join(f"{decider} {value}" for value in self.values)
        return (
            f"{given} has no effect with {decider} {getattr(config, self.decider)}; it applies only with {wanted}. "
            f"Leave it out, or choose {wanted}."
        )


def only_with(option: str, decider: str, *values: Any, spelling: str = "") -> Effect:
    """An option that counts where another has one of some values, or is given at all."""
    return Effect(option, decider, values, spelling=spelling)


def only_without(option: str, decider: str) -> Effect:
    """An option that counts where another is left out."""
    return Effect(option, decider, without=True)


TRAINING_EFFECTS = (
    only_with("momentum", "optimiser", "sgd"),
    only_with("step_epochs", "schedule", "step"),
    only_with("replicate", "train_subjects"),
)
"""Of the commands that train a network."""


def written(name: str, value: Any, spelled: str = "") -> str:
    """An option with its value, as a user types it."""
    spelled = spelled or option(name)
    if isinstance(value, bool):
        return spelled if value else f"--no-{spelled.removeprefix('--')}"
    if isinstance(value, tuple):
        return " ".join([spelled, *map(str, value)])
    return f"{spelled} {value}"


def given_options(argv: Sequence[str]) -> set[str]:
    """Names of the fields whose options stand in a command line, whatever their values."""
    names = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    return names | {name.removeprefix("no_") for name in names}


def refuse_without_effect(config: Any, given: Collection[str] = ()) -> None:
    """Refuse an option that was given and would change nothing.

    Parameters
    ----------
    config : dataclass
        Its ``EFFECTS``, if it has any, are looked at.
    given : collection of str
        Fields that the user wrote; besides them, those whose value is not their default.

    Raises
    ------
    SleepfmError
        Naming the option that decides.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    effects: tuple[Effect, ...] = getattr(config, "EFFECTS", ())
    for effect in effects:
        is_given = effect.option in given or getattr(config, effect.option) != defaults[effect.option]
        if is_given and not effect.holds(config):
            raise SleepfmError(effect.sentence(config))
