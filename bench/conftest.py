"""``pytest bench/`` measures; ``--quick`` runs each arm once for its result only; ``--store NAME`` keeps the figures.

A benchmark takes the ``versus`` fixture: rivals in turns (interleave.py), our times also to pytest-benchmark, whose
``--benchmark-autosave`` and ``--benchmark-compare-fail`` then watch them from commit to commit.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import memory
import numpy as np
import pytest
from interleave import Comparison, interleave
from numpy.typing import NDArray
from store import write

if TYPE_CHECKING:
    from sleepfm_fast.batches import ClipInput

HERE = Path(__file__).resolve().parent
ROUNDS = 10
# glibc's mallopt: M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, in bytes.
KEEP_FREED_PAGES = {-1: 2**31 - 1, -2: 256 << 20, -3: 1 << 30}
RESULTS = pytest.StashKey[list[dict[str, Any]]]()
MALLOC = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--quick", action="store_true", help="run every arm once; equality is still asserted, time is not")
    group.addoption("--store", metavar="NAME", help="write bench/results/NAME.json (not with --quick)")
    group.addoption("--results", default=str(HERE / "results"), help="folder of --store")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    name = config.getoption("store")
    if name and config.getoption("quick"):
        raise pytest.UsageError("--store keeps measurements and --quick takes none; give one of them.")
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise pytest.UsageError(f"--store {name}: letters, digits, '.', '_' and '-' make a file's name.")
    # The project's addopts disable pytest-benchmark for the tests; here it is what is asked for. Its plugin reads the
    # option in a pytest_configure that runs after this one.
    only_bench = all(p == HERE or HERE in p.parents for p in (Path(a.split("::")[0]).resolve() for a in config.args))
    if only_bench and not config.getoption("quick"):
        config.option.benchmark_disable = False
    if not config.getoption("quick"):
        config.stash[MALLOC] = keep_freed_pages()


def keep_freed_pages() -> str:
    """Have malloc keep what is freed, where it is glibc's; the words of it that a stored run shows.

    By default it gives the pages of a large array back to the system, and whoever allocates the next one waits for
    zeroed pages: half of the time of some rivals, while ours have a pool. Who measures for speed changes that by the
    environment (MALLOC_TRIM_THRESHOLD_, or another malloc), so rivals are measured with it.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if all(mallopt(parameter, n_bytes) for parameter, n_bytes in KEEP_FREED_PAGES.items()):
            return "keeps freed pages"
    return "as it is"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    # Of two runs that it compares it says whether the machines differ; the load and the commit do.
    machine_info.update(
        {key: value for key, value in machine.record().items() if key not in ("load_average", "commit")}
    )


this_machine = functools.cache(machine.record)


def keep(config: pytest.Config, passed: bool) -> None:
    """Write what was measured so far where ``--store`` says; a run that is killed keeps the rest."""
    name = config.getoption("store")
    results = config.stash[RESULTS]
    if not name or not results:
        return
    described = {**this_machine(), "malloc": config.stash[MALLOC]}
    document = {"name": name, "machine": described, "processes": "one", "results": results, "passed": passed}
    write(document, Path(config.getoption("results")) / f"{name}.json")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    keep(session.config, exitstatus == 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    if config.getoption("quick"):
        terminalreporter.write_line(f"quick: {len(results)} comparisons agree; nothing was timed")
        return
    terminalreporter.section("rivals in turns: medians, per-round ratios [10 %, 90 %], peak memory")
    for result in results:
        medians = ", ".join(f"{arm} {1e3 * t:.4g} ms" for arm, t in result["medians_s"].items())
        ratios = ", ".join(
            f"{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}] x {rival}" for rival, r in result["ratios"].items()
        )
        peaks = ", ".join(f"{arm} {mib:.0f} MiB" for arm, mib in result.get("peak_rss_mib", {}).items())
        terminalreporter.write_line("; ".join(part for part in (f"{result['name']}: {medians}", ratios, peaks) if part))


@pytest.fixture(scope="session")
def clip_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a clip store of two simulated recordings of half an hour, once a session."""
    from sleepfm_fast import preprocess, simulate

    folder = tmp_path_factory.mktemp("cohort")
    simulate.main(simulate.Config(folder / "edf", subjects=2, hours=0.5, workers=1))
    preprocess.main(preprocess.Config((folder / "edf", folder / "store"), workers=1, backend="threading"))
    return folder / "store"


@pytest.fixture
def source(clip_store: Path) -> ClipInput:
    """Clips of that store as the encoders' input, on the CPU, scaled by recording."""
    import torch

    from sleepfm_fast.batches import ClipInput, InputConfig
    from sleepfm_fast.clips import ClipStore

    store = ClipStore(clip_store)
    source = ClipInput(store, store.montage, InputConfig(), torch.device("cpu"))
    source.measure(np.arange(len(store.recordings)), lambda recordings: recordings)
    return source


@pytest.fixture
def some_clips(source: ClipInput) -> Callable[[int], NDArray[np.int64]]:
    """Return a function from a number to as many clips of ``source``, scattered, the same at every call."""
    return lambda n: np.random.default_rng(0).permutation(len(source.store))[:n]


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether this run only checks that the benchmarks work."""
    return bool(request.config.getoption("quick"))


class Replay:
    """A clock that shows measured seconds again: pytest-benchmark gets the rounds that the rivals took turns with."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def into(self, benchmark: Any, comparison: Comparison) -> None:
        """Hand over the first arm's rounds; medians and ratios of all arms go beside them."""
        rounds = iter(next(iter(comparison.seconds.values())))

        def one() -> None:
            self.now += next(rounds)

        benchmark.extra_info.update(comparison=comparison.name, medians_s=comparison.medians, ratios=comparison.ratios)
        benchmark.pedantic(one, rounds=len(next(iter(comparison.seconds.values()))))


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replay:
    """Become the timer of this test's ``benchmark`` fixture, which is made after it."""
    clock = Replay()
    request.node.add_marker(pytest.mark.benchmark(timer=clock))
    return clock


@pytest.fixture
def versus(request: pytest.FixtureRequest, quick: bool, replay: Replay, benchmark: Any) -> Callable[..., Comparison]:
    """Compare arms: ``versus(name, {"ours": f, "rival": g}, agree=check, peak={"ours": (setup, body)})``.

    ``peak`` adds each arm's peak memory (MiB above its set-up), measured in its own process; see memory.py. ``measure``
    times an arm in place of the clock, ``more`` is stored beside the times.
    """

    def compare(
        name: str,
        arms: Mapping[str, Callable[[], Any]],
        *,
        agree: Callable[[dict[str, Any]], object],
        rounds: int = ROUNDS,
        peak: Mapping[str, tuple[str, str]] | None = None,
        measure: Callable[[Callable[[], Any]], float] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> Comparison:
        comparison = interleave(name, arms, rounds=rounds, agree=agree, quick=quick, measure=measure)
        replay.into(benchmark, comparison)
        record = {**comparison.record(), "test": request.node.nodeid, **(more or {})}
        if peak:
            record["peak_rss_mib"] = {arm: memory.peak_rss_mib(*source) for arm, source in peak.items()}
        request.config.stash[RESULTS].append(record)
        keep(request.config, passed=False)
        return comparison

    return compare
