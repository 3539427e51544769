"""Which nights of a cohort one job of an array takes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sleepfm_fast.errors import SleepfmError, UsageError

__all__ = ["Shard", "parse_shard"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count``."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every ``count``-th item: sizes differ by one at most, and a folder of long nights is spread over all."""
        return list(items[self.number - 1 :: self.count])


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """Read ``i/n``, or ``slurm`` for the place of this task in its job array.

    Raises
    ------
    SleepfmError
        When the text is neither, i is not one of 1..n, or the job is no array without gaps.
    """
    if text == "slurm":
        return slurm_shard(environment)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"--shard is '{text}'; expected i/n with i from 1 to n and n up to 999,999,999, such as 3/12, or 'slurm' "
            "inside a job array."
        )
    return Shard(int(match[1]), int(match[2]))


def slurm_shard(environment: Mapping[str, str]) -> Shard:
    names = ["SLURM_ARRAY_TASK_" + name for name in ("ID", "COUNT", "MIN", "MAX")]
    values = [environment.get(name, "") for name in names]
    if not all(value.isdigit() for value in values):
        missing = ", ".join(n for n, v in zip(names, values, strict=True) if not v.isdigit())
        raise SleepfmError(
            f"--shard slurm reads the place in a job array from the environment, but {missing} is not set. Submit with "
            "sbatch --array=1-N, or give --shard i/n."
        )
    task, count, low, high = map(int, values)
    step = (high - low) // (count - 1) if count > 1 else 1
    if low + step * (count - 1) != high or (task - low) % step or not low <= task <= high:
        raise SleepfmError(
            f"--shard slurm needs a job array without gaps, but this one has {count} tasks from {low} to {high}. "
            "To repeat some tasks of an array, give their shares: --shard $SLURM_ARRAY_TASK_ID/N with the N of the "
            "first submission."
        )
    return Shard((task - low) // step + 1, count)
