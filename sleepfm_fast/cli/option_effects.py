"""Refusal of options that the user gave but that would have no effect, because of another option.

The ``EFFECTS`` of a command's ``Config`` list when an option has an effect. At its default an option may be without
effect, but one that is given must have one. A seed where nothing is drawn is no such case: what it asks for is
fulfilled.
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
    """The condition under which an option has an effect.

    Attributes
    ----------
    option : str
        Name of the option's field.
    decider : str
        Name of the field of the option that decides.
    values : tuple
        The decider's values with which the option has an effect; if empty, all but None, False, 0 and empty ones.
    without : bool
        The opposite: the option has an effect where the decider is left out.
    spelling : str
        The decider as the user types it, where that is not derived from its field's name.
    """

    option: str
    decider: str
    values: tuple[Any, ...] = ()
    without: bool = False
    spelling: str = ""

    def holds(self, config: Any) -> bool:
        """Whether the option has an effect in a configuration."""
        value = getattr(config, self.decider)
        if self.values:
            return value is None or value in self.values  # None is decided later, for a value that counts
        return bool(value) != self.without

    def sentence(self, config: Any) -> str:
        """Return the message of the refusal: why the option has no effect, and what would give it one."""
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
            f"{given} has no effect with {decider} {getattr(config, self.decider)}; it counts with {wanted}. Leave it "
            f"out, or choose {wanted}."
        )


def only_with(option: str, decider: str, *values: Any, spelling: str = "") -> Effect:
    """Return the effect of an option that needs another one to have one of ``values`` or, without them, to be given."""
    return Effect(option, decider, values, spelling=spelling)


def only_without(option: str, decider: str) -> Effect:
    """Return the effect of an option that needs another one to be left out."""
    return Effect(option, decider, without=True)


TRAINING_EFFECTS = (
    only_with("momentum", "optimiser", "sgd"),
    only_with("step_epochs", "schedule", "step"),
    only_with("replicate", "train_subjects"),
)
"""Effects that all commands that train a network share."""


def written(name: str, value: Any, spelled: str = "") -> str:
    """Return an option with its value, as a user types it."""
    spelled = spelled or option(name)
    if isinstance(value, bool):
        return spelled if value else f"--no-{spelled.removeprefix('--')}"
    if isinstance(value, tuple):
        return " ".join([spelled, *map(str, value)])
    return f"{spelled} {value}"


def given_options(argv: Sequence[str]) -> set[str]:
    """Return the names of the fields whose options occur in a command line, whatever their values."""
    names = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    return names | {name.removeprefix("no_") for name in names}


def refuse_without_effect(config: Any, given: Collection[str] = ()) -> None:
    """Refuse an option that was given and would change nothing.

    Parameters
    ----------
    config : dataclass
        The options; its class may have ``EFFECTS``.
    given : collection of str
        Fields that the user gave. Fields whose value is not the default count as given too.

    Raises
    ------
    SleepfmError
        Its message names the option that decides.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    effects: tuple[Effect, ...] = getattr(config, "EFFECTS", ())
    for effect in effects:
        is_given = effect.option in given or getattr(config, effect.option) != defaults[effect.option]
        if is_given and not effect.holds(config):
            raise SleepfmError(effect.sentence(config))
