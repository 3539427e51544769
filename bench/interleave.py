"""Time rivals in turns, so that what disturbs the machine disturbs all of them, and compare round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WARM_BELOW_S = 1.0


def quantile(values: list[float], q: float) -> float:
    """Interpolate linearly between order statistics; ``values`` is not empty."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Comparison:
    """Seconds of every arm in every round; the first arm is the one that is compared with the others."""

    name: str
    seconds: dict[str, list[float]]
    quick: bool

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds of each arm."""
        return {arm: statistics.median(values) for arm, values in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, dict[str, float]]:
        """How many times longer each rival takes than the first arm: median and 10-90 % band of per-round ratios."""
        first, *rivals = self.seconds
        result = {}
        for rival in rivals:
            each = [t / base for t, base in zip(self.seconds[rival], self.seconds[first], strict=True)]
            result[rival] = {
                "median": statistics.median(each),
                "low": quantile(each, 0.1),
                "high": quantile(each, 0.9),
            }
        return result

    def require(self, rival: str, at_least: float) -> None:
        """Fail when the first arm is not ``at_least`` times faster than ``rival``; a quick run does not judge time.

        The fastest rounds are compared: what else runs on the machine can only slow an arm down.
        """
        first = next(iter(self.seconds))
        found = min(self.seconds[rival]) / min(self.seconds[first])
        if not self.quick and found < at_least:
            raise AssertionError(f"{self.name}: {first} is {found:.2f} times as fast as {rival}, expected {at_least}")

    def record(self) -> dict[str, Any]:
        """Return what a stored result holds."""
        return {"name": self.name, "seconds": self.seconds, "medians_s": self.medians, "ratios": self.ratios}


def interleave(
    name: str,
    arms: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    agree: Callable[[dict[str, Any]], object],
    quick: bool,
    clock: Callable[[], float] = time.perf_counter,
    measure: Callable[[Callable[[], Any]], float] | None = None,
) -> Comparison:
    """Run every arm once, check that the results agree, then time rounds in alternating order (AB BA AB ...).

    A call of less than ``WARM_BELOW_S`` is made twice in its turn, and the second is timed. The arms before it may have
    taken seconds, in which threads went to sleep and caches were filled with other things: that can take as long as the
    call, while programs call such functions batch by batch and night by night. Of a longer call it is a small part.

    Before a turn, objects that refer to each other and that nothing else refers to are freed. An arm may leave
    hundreds of megabytes in such cycles (MNE does); the collector would free them in whichever arm comes next.

    Parameters
    ----------
    name : str
        What is measured; a line of the report.
    arms : mapping of str to callable
        Ours first, then the rivals. The untimed first call is the warm-up.
    rounds : int
        Even and positive, so that every order occurs equally often.
    agree : callable
        Takes the results by arm and asserts that they are equal (within what the benchmark states). It runs in quick
        mode too: a fast wrong answer is not a measurement.
    quick : bool
        The checked call is the only one, and its time stands for the arm's.
    clock : callable
        Seconds; read before and after a call.
    measure : callable, optional
        Takes an arm and returns the seconds of one call, in place of the clock: how a device's own events time it.

    Returns
    -------
    Comparison
    """
    if rounds < 2 or rounds % 2:
        raise ValueError(f"rounds is {rounds}; expected an even number, so that every order occurs equally often")
    if len(arms) < 1:
        raise ValueError("there is no arm to time")
    results, first_seconds = {}, {}
    for arm, call in arms.items():
        start = clock()
        results[arm] = call()
        first_seconds[arm] = clock() - start
    agree(results)
    del results
    if quick:
        return Comparison(name, {arm: [t] for arm, t in first_seconds.items()}, quick)

    def by_clock(call: Callable[[], Any]) -> float:
        start = clock()
        call()
        return clock() - start

    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for round_ in range(rounds):
        order = list(arms) if round_ % 2 == 0 else list(reversed(arms))
        for arm in order:
            gc.collect()
            if measure:
                seconds[arm].append(measure(arms[arm]))
                continue
            # The first call may have compiled.
            if min(first_seconds[arm], *seconds[arm], WARM_BELOW_S) < WARM_BELOW_S:
                arms[arm]()
            seconds[arm].append(by_clock(arms[arm]))
    return Comparison(name, seconds, quick)
