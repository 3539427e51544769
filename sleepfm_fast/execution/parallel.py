"""Work spread over recordings, with progress: in processes (loky) or threads by joblib, or on a dask or ray cluster.

The work is a module-level function, and its arguments are paths and small values, never arrays: every worker reads its
files itself.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sleepfm_fast.cli.bars import LOG_EVERY_S, progress_bar
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.forked import CAN_FORK, in_copy
from sleepfm_fast.plurals import agreeing, clock, counted
from sleepfm_fast.system import processors

__all__ = ["Backend", "Engine", "Progress", "WorkersLost", "dispatched", "in_parallel", "open_engine", "pool"]

Backend = Literal["loky", "threading", "dask", "ray"]
Result = TypeVar("Result")

CONNECT_S = 10.0
"""How long a dask scheduler may take to answer."""
RAY_CHUNK = 8
"""Tasks per worker in one call: ray's joblib backend returns results only when the whole call is done."""

FOR_ALL = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a closing terminal and a batch system send to all processes of a job at once."""


class WorkersLost(Exception):  # noqa: N818 - it is dealt with, never shown
    """A worker process died, and the results of the call that were not yielded yet may be lost."""


@dataclass(frozen=True)
class Engine:
    """Where work runs: a backend, the number of workers (0: one per core that this process may use), a dask client."""

    backend: Backend
    workers: int = 0
    client: Any = None

    def width(self, n_tasks: int) -> int:
        """Return how many workers a call of ``n_tasks`` uses."""
        return max(1, min(self.workers or processors(), n_tasks))

    @property
    def spares_this_process(self) -> bool:
        """Whether even a single worker runs outside this process: with loky, where this process can be forked."""
        return self.backend == "loky" and CAN_FORK

    @property
    def deaths(self) -> tuple[type[BaseException], ...]:
        """The exceptions that mean that a worker process died."""
        if self.backend == "ray":
            from ray.exceptions import RayError

            return (BrokenExecutor, RayError)
        return (BrokenExecutor,)


def missing(package: str, extra: str) -> SleepfmError:
    return SleepfmError(
        f"--backend {extra} needs the package {package}, which is not installed. Install it with "
        f"`pip install 'sleepfm_fast[{extra}]'`, or choose --backend loky."
    )


@contextmanager
def open_engine(
    backend: Backend, workers: int, dask_scheduler: str | None = None, *, folder: Path = Path("/")
) -> Iterator[Engine]:
    """Start, or connect to, what the backend needs, and close it at the end of the block.

    Parameters
    ----------
    backend : {"loky", "threading", "dask", "ray"}
    workers : int
        0 for one per core that this process may use. Has no effect on a cluster that is already running.
    dask_scheduler : str, optional
        Address such as ``tcp://node1:8786``; without it a cluster is started on this machine.
    folder : Path
        A folder that every dask worker must see.

    Raises
    ------
    SleepfmError
        When the package is not installed, or the scheduler does not answer.
    """
    with ExitStack() as stack:
        client = None
        if backend == "dask":
            client = open_dask(stack, workers, dask_scheduler)
            check_workers(client, folder)
        elif backend == "ray":
            open_ray(stack, workers)
        yield Engine(backend, workers, client)


def open_dask(stack: ExitStack, workers: int, scheduler: str | None) -> Any:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise missing("distributed", "dask") from None
    connect: Any = Client  # untyped, as is LocalCluster
    start: Any = LocalCluster
    if scheduler is not None:
        try:
            return stack.enter_context(connect(scheduler, timeout=CONNECT_S, set_as_default=False))
        except (OSError, ValueError) as error:
            raise SleepfmError(
                f"--dask-scheduler {scheduler} does not answer ({type(error).__name__}: {error}). Expected an address "
                "such as tcp://node1:8786, as `dask scheduler` prints it."
            ) from None
    n_workers = workers or processors()
    cluster = stack.enter_context(
        start(n_workers=n_workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    )
    return stack.enter_context(connect(cluster, set_as_default=False))


def open_ray(stack: ExitStack, workers: int) -> None:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise missing("ray", "ray") from None
    if not ray.is_initialized():
        # Where RAY_ADDRESS names a cluster, ray.init() connects to it by itself, and refuses num_cpus.
        local: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers or None}
        try:
            ray.init(include_dashboard=False, log_to_driver=False, **local)
        except Exception as error:
            raise SleepfmError(
                f"ray could not be started or reached ({type(error).__name__}: {error}). For a cluster that runs, set "
                "RAY_ADDRESS; on one machine --backend loky does the same work."
            ) from None
        stack.callback(ray.shutdown)
    register: Any = register_ray  # untyped
    register()


class Progress:
    """Shows items done of ``total``, their rate and the time left: a bar on a terminal, else a line now and then.

    Both go to standard error. ``what`` is the items' plural, which ends in s.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.done = self.failed = 0
        self.began_s = self.said_s = time.monotonic()
        self.bar = None
        if total and sys.stderr.isatty():
            self.bar = progress_bar(total=total, desc=what, unit=what[:-1], smoothing=0.1)

    def step(self, *, failed: bool = False) -> None:
        """Count one item."""
        self.done += 1
        self.failed += failed
        if self.bar is not None:
            if failed:
                self.bar.set_postfix_str(f"{self.failed} failed", refresh=False)
            self.bar.update()
        elif time.monotonic() - self.said_s >= LOG_EVERY_S or self.done == self.total:
            self.said_s = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Return a line that says how far the work is."""
        seconds = max(time.monotonic() - self.began_s, 1e-9)
        rate = self.done / seconds
        failed = f", {self.failed} failed" if self.failed else ""
        left = f"{clock((self.total - self.done) / rate)} left" if self.done < self.total else f"in {clock(seconds)}"
        speed = counted(rate, f"{self.what[:-1]}/s", f"{self.what}/s", spec=".3g")
        return f"{self.what}: {self.done} of {self.total}{failed}, {speed}, {left}"

    def close(self) -> None:
        """Close the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()


def in_parallel(
    work: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    engine: Engine,
    *,
    own_process: bool = False,
) -> Iterator[Result]:
    """Yield ``work(*a)`` for each ``a`` of ``arguments`` as the results come, in no particular order.

    Parameters
    ----------
    work : callable
        A module-level function. Of the module that was started as the program, it may use only what can be pickled by
        value; functions that a decorator wraps cannot.
    arguments : sequence of tuple
    engine : Engine
    own_process : bool
        Never work in this process, so that it survives the death of a worker. A single worker is then a forked copy of
        this process, where the system has such. (Processes and threads only; a cluster's workers are separate anyway.)

    Raises
    ------
    WorkersLost
        When a worker process died. Results that were not yielded yet may be lost.
    """
    from joblib import delayed

    if not arguments:
        return
    calls = [delayed(work)(*a) for a in arguments]
    try:
        if engine.backend == "dask":
            yield from through_dask(work, arguments, engine.client)
        elif engine.backend == "ray":
            yield from through_ray(calls, engine)
        else:
            backend, width = engine.backend, engine.width(len(calls))
            if own_process and width == 1 and CAN_FORK:
                yield from in_copy(work, arguments)
                return
            if own_process:
                # with one job joblib works in this process, so it gets two
                backend, width = "loky", max(width, 2)
            yield from dispatched(pool(width, backend=backend, return_as="generator_unordered"), calls)
    except engine.deaths as error:
        raise WorkersLost(type(error).__name__) from error


def pool(width: int, **options: Any) -> Any:
    """Make a :class:`joblib.Parallel` that does not share arrays through files, as arguments hold none (see above).

    By default joblib creates a folder for shared arrays in /dev/shm at once, which a killed run leaves there until the
    machine restarts. A folder that it is given instead it uses only when it first writes an array, which is never. So
    the folder need not exist: a node may have no folder for temporary files that can be written, or one with a name
    that joblib's tracker of such folders cannot write down (it is not ASCII, or is long).
    """
    from joblib import Parallel

    return Parallel(n_jobs=width, max_nbytes=None, temp_folder=os.devnull, **options)


def dispatched(parallel: Callable[..., Any], calls: Iterable[Any]) -> Any:
    """Call a :class:`joblib.Parallel` so that signals that all processes are sent stop this one only, which ends them.

    Workers inherit the signals that this process ignores or blocks when they are started. Otherwise each of them would
    end with a traceback on Ctrl-C, and on :data:`FOR_ALL` so would joblib's tracker of what they share. Only the main
    thread can set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return parallel(calls)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_ALL)
    try:
        return parallel(calls)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, before)


def through_dask(work: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], client: Any) -> Iterator[Result]:
    """Work on a dask cluster through dask's own futures, since joblib's dask backend waits for ever for a failed task.

    dask itself repeats a task whose worker died, three times unless its scheduler is configured otherwise; only then
    is it lost.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker, as_completed

    waiting = iter(arguments)
    # Two tasks per worker thread are submitted at a time: the next one is ready when one ends, and the scheduler does
    # not have to hold all the others.
    width = max(4, 2 * sum(client.ncores().values()))
    n_lost = 0
    try:
        first = [client.submit(work, *a, pure=False) for a in itertools.islice(waiting, width)]
        collect: Any = as_completed  # untyped
        futures = collect(first, loop=client.loop)
        for future in futures:
            for a in itertools.islice(waiting, 1):
                futures.add(client.submit(work, *a, pure=False))
            error = future.exception() if future.status == "error" else None
            if isinstance(error, KilledWorker):
                n_lost += 1
            elif error is not None:
                raise error
            else:
                yield future.result()
    except (CancelledError, OSError) as error:
        raise SleepfmError(
            f"the dask scheduler was lost ({type(error).__name__}: {error}). What was finished is kept; the same "
            "command continues from there."
        ) from None
    if n_lost:
        raise WorkersLost(counted(n_lost, "task"))


def probe(folder: str) -> bool:
    """Whether a worker sees a folder; that the worker can import this module is shown by this call succeeding."""
    return Path(folder).is_dir()


def check_workers(client: Any, folder: Path) -> None:
    """Refuse a cluster without workers, or whose workers lack this package or the files."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
        seen = client.run(probe, str(folder))
    except Exception as error:
        raise SleepfmError(
            f"the workers of the dask cluster cannot be used ({type(error).__name__}: {error}). Start them with the "
            "Python environment in which sleepfm_fast is installed, in the same version."
        ) from None
    blind = sorted(worker for worker, sees in seen.items() if not sees)
    if blind:
        raise SleepfmError(
            f"{len(blind)} of {counted(len(seen), 'dask worker')} {agreeing(len(blind), 'does', 'do')} not see the "
            f"folder {folder} (such as {blind[0]}). Recordings and store must lie on a file system that all of them "
            "mount at the same place."
        )


def through_ray(calls: Sequence[Any], engine: Engine) -> Iterable[Any]:
    from joblib import Parallel, parallel_config

    width = engine.workers or -1
    size = RAY_CHUNK * (engine.workers or processors())
    with parallel_config(backend="ray"):
        pool = Parallel(n_jobs=width)
    with pool as parallel:
        for begin in range(0, len(calls), size):
            yield from parallel(calls[begin : begin + size])
