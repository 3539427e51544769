"""How far a run has come, as stored in its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["Progress", "whole_number"]


@dataclasses.dataclass
class Progress:
    """Counters and best results of a run; the sampler keeps its own place in the epoch."""

    step: int = 0
    """Batches drawn so far."""
    best_epoch: int = -1
    """Epoch of the lowest validation loss, from 0; -1 before the first validation."""
    best_loss: float = math.inf
    """Lowest validation loss."""
    loss_sum: float = 0.0
    """Sum of the losses of the steps since the last validation."""
    loss_terms: int = 0
    """Number of losses in ``loss_sum``."""
    skipped: int = 0
    """Steps that were skipped because loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """Steps skipped since the last one that was taken."""
    stopped_early: bool = False
    """Whether the validation loss has stopped falling."""

    def to_state(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        state = dataclasses.asdict(self)
        return {**state, "best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """Restore from :meth:`to_state`; fields that an older checkpoint lacks get their defaults."""
        values = {field.name: state[field.name] for field in dataclasses.fields(cls) if field.name in state}
        if values.get("best_loss") is None:
            values.pop("best_loss", None)
        for name, value in values.items():
            kind = type(getattr(cls, name))
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"the entry {name} is {value!r}")
        return cls(**{"loss_terms": state.get("position", 0), **values})


def whole_number(state: Mapping[str, Any], name: str) -> int:
    """Return an entry that must be a whole number of -1 or more.

    Raises
    ------
    KeyError, ValueError
        If it is missing or anything else.
    """
    value = state[name]
    if type(value) is not int or not -1 <= value < 1 << 62:
        raise ValueError(f"the entry {name} is {value!r}")
    return value
