"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sleepfm_fast.training.settings import Settings

__all__ = ["learning_rate"]


def learning_rate(config: Settings, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate of one step.

    ``step``: divided by 10 every ``step_epochs`` epochs. ``cosine``: a linear warm-up over the first twentieth of the
    steps, then half a cosine down to 0.

    Parameters
    ----------
    config : Settings
        ``lr``, ``schedule`` and ``step_epochs`` are used.
    step : int
        Steps already taken.
    steps_per_epoch, total_steps : int
        Number of steps of an epoch and of the whole training.
    """
    if config.schedule == "step":
        return config.lr * 0.1 ** (step // steps_per_epoch // config.step_epochs)
    warm_up = max(total_steps // 20, 1)
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    return 0.5 * config.lr * (1 + math.cos(math.pi * (step - warm_up) / max(total_steps - warm_up, 1)))
