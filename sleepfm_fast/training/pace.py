"""The speed of a training: clips of its last steps divided by the seconds that they took."""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]

STEPS = 10


class Pace:
    """Clips per second over the last ten steps: the sum of their clips divided by the sum of their seconds.

    (The mean of each step's clips per second would be larger, the more the more unequal the steps' times are.)
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=STEPS)

    def add(self, n_clips: int, seconds: float) -> None:
        """Add a step."""
        self._steps.append((n_clips, seconds))

    @property
    def clips_per_s(self) -> float | None:
        """The speed, to one decimal; None before the first step."""
        seconds = sum(s for _, s in self._steps)
        return round(sum(n for n, _ in self._steps) / seconds, 1) if seconds > 0 else None
