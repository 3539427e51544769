"""How fast a training is: clips of its last steps by the seconds that they took."""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]

STEPS = 10


class Pace:
    """Clips a second over the last ten steps: all their clips by all their seconds.

    A mean of each step's own clips a second would be larger, the more so the more the steps differ in time.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=STEPS)

    def add(self, n_clips: int, seconds: float) -> None:
        """Count a step."""
        self._steps.append((n_clips, seconds))

    @property
    def clips_per_s(self) -> float | None:
        """To one decimal; None before the first step."""
        seconds = sum(s for _, s in self._steps)
        return round(sum(n for n, _ in self._steps) / seconds, 1) if seconds > 0 else None
