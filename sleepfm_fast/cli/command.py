"""The manners that every command shares: parse, say what was resolved, run, end with one JSON line, exit status."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from sleepfm_fast.cli.help_texts import join_lines
from sleepfm_fast.cli.interruption import SENTENCE, Stopped, leave_to_python, stops_raised
from sleepfm_fast.cli.json_text import is_encodable, to_text
from sleepfm_fast.cli.misplaced import refuse_misplaced
from sleepfm_fast.cli.option_effects import given_options, refuse_without_effect
from sleepfm_fast.cli.standard_streams import occupy
from sleepfm_fast.errors import SleepfmError, UsageError, is_own_source, refused_by_system

__all__ = ["finish", "printable", "run", "say", "to_json"]

Config = TypeVar("Config")

COMMANDING = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys (it moves, colours, erases, retitles), that end a line, or that turn text round."""


def printable(line: str) -> str:
    r"""A line as a terminal may get it: names of files, labels and scorings can hold what one obeys, shown as ``\x1b``.

    A line break within it is shown too: it would begin a line that the program seems to have said.
    """
    return COMMANDING.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def say(sentence: str) -> None:
    """Print one line of progress or notice on standard error; where that is closed or full, the work goes on."""
    # A name that is no UTF-8 has surrogates, which the system's standard error escapes, but not every stand-in for it.
    text = printable(sentence).encode("utf-8", "backslashreplace").decode("utf-8")
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """Reduce dataclasses, paths and NumPy scalars to what JSON knows; a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    elif hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def plain_defaults(config: Any) -> dict[str, Any]:
    """Return what the options of a configuration are where nobody gave them; those without a default are left out."""
    fields = dataclasses.fields(config)
    return {f.name: plain(f.default) for f in fields if f.default is not dataclasses.MISSING}


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Serialise configuration or results to strict JSON (no NaN), which UTF-8 can always hold."""
    return to_text(plain(value), indent=indent)


def json_line(value: Any) -> str:
    """Serialise to one line of JSON for a terminal, in which JSON itself escapes only some of what a terminal obeys."""
    return COMMANDING.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(value))


def show(result: dict[str, Any]) -> bool:
    """Print the result as one line of JSON on standard output; False where that cannot be written."""
    line = json_line(result)
    if not is_encodable(line, getattr(sys.stdout, "encoding", None) or "utf-8"):
        line = json.dumps(plain(result), allow_nan=False)
    try:
        print(line, flush=True)
    except BrokenPipeError:  # as of `| head`: the reader has what it wanted
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        say(f"error: standard output: {error.strerror or error}. The result was: {line}")
        return False
    return True


def silence(stream: TextIO) -> None:
    """Forget what a stream did not take, which the interpreter would complain of at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def finish(status: int) -> int:
    """Write what the streams still hold, and return the exit status.

    From Python 3.14 on they hold more, and longer; what they cannot write would end the process with 120.
    """
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        say(f"error: standard output: {error.strerror or error}.")
        status = status or 1
    try:
        print(end="", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)
    return status


def run(
    config_type: type[Config],
    main: Callable[[Config], dict[str, Any]],
    argv: Sequence[str] | None = None,
    *,
    interrupted: str = "nothing was kept; the same command starts from the beginning",
    rank: int = 0,
    following: Callable[[Config, dict[str, Any]], str | None] | None = None,
) -> int:
    """Parse ``argv`` into ``config_type``, run ``main`` and print its result as the last line of standard output.

    Parameters
    ----------
    config_type : type
        A frozen dataclass; its docstring is the help text. Its ``EFFECTS`` and ``places()``, where it has them, say
        which options count when (:mod:`sleepfm_fast.cli.option_effects`) and which kinds of paths its positionals take
        (:mod:`sleepfm_fast.cli.misplaced`).
    main : callable
        Takes the configuration, returns a dict of results. A key ``"exit_status"`` is taken out and returned.
    argv : sequence of str, optional
        Arguments without the program's name; the process's own by default.
    interrupted : str
        What to tell the user after Ctrl-C: what was kept, and how to go on.
    rank : int
        Number of this process among several that run the command together; those above 0 say only what went wrong.
    following : callable, optional
        From :mod:`sleepfm_fast.reporting.following`: of the configuration and the result, the command to go on with.

    Returns
    -------
    int
        0 done, 1 failed (a :class:`SleepfmError`, what the system refused, or an error of the program was reported),
        2 wrong usage (the parser found it, or a :class:`UsageError`), 130 interrupted, 128 and the number of another
        signal that stopped it.
    """
    return finish(attempt(config_type, main, argv, interrupted, rank, following))


def attempt(
    config_type: type[Config],
    main: Callable[[Config], dict[str, Any]],
    argv: Sequence[str] | None,
    interrupted: str,
    rank: int,
    following: Callable[[Config, dict[str, Any]], str | None] | None,
) -> int:
    """Do what :func:`run` promises; the streams may still hold some of what was said."""
    occupy()
    leave_to_python()
    module = sys.modules.get(main.__module__)
    spec = getattr(module, "__spec__", None)
    name = spec.name if spec is not None else main.__module__
    given = sys.argv[1:] if argv is None else list(argv)
    config = parsed(config_type, name, given)
    if isinstance(config, int):
        return config
    # joblib's, of work that was given up: the command says why in a sentence of its own.
    warnings.filterwarnings("ignore", message=r"\d+ tasks which were still being processed")
    who = f"process {rank}: " if rank else ""
    if rank == 0:
        say(f"{name}: {json_line(config)}")
    try:
        refuse_without_effect(config, given_options(given))
    except SleepfmError as error:
        say(f"{who}error: {error}")
        return 2
    try:
        if (places := getattr(config, "places", None)) is not None:
            refuse_misplaced(name, places())
        with stops_raised():
            result = main(config)
    except SleepfmError as error:
        say(f"{who}error: {error}")
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        say(f"{who}error: {refused_by_system(error)}.")
        return 1
    except Stopped as stop:
        if rank == 0:
            say(f"{stop}; {interrupted}")
        return 128 + stop.number
    except KeyboardInterrupt:
        if rank == 0:
            say(f"interrupted; {interrupted}")
        return 130
    except Exception as error:
        described = describe_shortage(error, config) or describe_installation(error) or describe_bug(error, name)
        say(f"{who}error: {described}")
        return 1
    if rank == 0 and following is not None:
        with suppress(Exception):  # a hint fails no work that is done
            if (line := following(config, result)) is not None:
                say(f"next: {line}")
    status = int(result.pop("exit_status", 0))
    if rank == 0 and not show(result):
        return status or 1
    return status


def parsed(config_type: type[Config], name: str, given: list[str]) -> Config | int:
    """The configuration; where there is none to go on with, as after ``--help``, the exit status."""
    asks_help = not {"-h", "--help"}.isdisjoint(given)
    try:
        import tyro

        if asks_help:
            join_lines(config_type)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="tyro")
            return tyro.cli(config_type, prog=f"python -m {name}", args=given, use_underscores=False)
    except SystemExit as stop:
        return 0 if stop.code in (0, None) else 2
    except BrokenPipeError:  # of the help
        silence(sys.stdout)
        return 0
    except OSError as error:
        say(f"error: the help could not be written: {error.strerror or error}.")
        return 1 if asks_help else 2
    except KeyboardInterrupt:
        say(SENTENCE)
        return 130


def describe_shortage(error: Exception, config: Any) -> str:
    """Sentence about memory that the system or the GPU did not give; empty for any other error.

    It names those options of the command that take memory.
    """
    text = str(error).partition("\n")[0]
    # torch's errors, which cannot be imported here: of the GPU by type, of the processor by text.
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the GPU does not have enough memory ({text}) Lower --batch-size (train: --micro-batch, which keeps the "
            "negatives), or stop other programs that use the GPU."
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        options = [f"--{n.replace('_', '-')}" for n in ("batch_size", "workers") if hasattr(config, n)]
        lower = f"Lower {' or '.join(options)}, or stop" if options else "Stop"
        said = f" ({text})" if text else ""
        return (
            f"there is not enough memory{said}. {lower} other programs that use it, or raise this process's limit "
            "(`ulimit -v`, that of a batch job or container)."
        )
    return ""


def describe_installation(error: Exception) -> str:
    """Sentence about another package that is not there or does not load; empty for any other error."""
    if not isinstance(error, ImportError):
        return ""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if error.name.partition(".")[0] == "sleepfm_fast" if error.name else is_own_source(files[-1]):
        return ""
    text = str(error).partition("\n")[0].rstrip(".")
    return (
        f"a package that sleepfm_fast needs cannot be imported: {text}. `python -m pip check` says whether one is "
        "missing or of a version that does not fit; `pip install .` in the folder of the sources installs them."
    )


def describe_bug(error: Exception, command: str) -> str:
    """Sentence about an error nobody foresaw: the file in hand, the place, and where the traceback was written."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [(frame, line) for frame, line in frames if is_own_source(frame.f_code.co_filename)]
    place = f" ({Path(own[-1][0].f_code.co_filename).name}, line {own[-1][1]})" if own else ""
    # The innermost function of ours that was given a file names what was being read.
    held = [v for frame, _ in reversed(own) for v in frame.f_locals.values()]
    paths = [p for v in held for p in (v, getattr(v, "__dict__", {}).get("path")) if isinstance(p, Path)]
    file = next((path for path in paths if path.is_file()), None) or next(iter(paths), None)
    text = "".join(traceback.format_exception(error))
    where = "it could not be written to a file"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="sleepfm_fast-", suffix=".traceback", delete=False, encoding="utf-8"
        ) as report:
            report.write(f"{command} {sys.argv[1:]}\nin {os.getcwd()}\n{text}")  # noqa: PTH109 - as the user sees it
        where = f"the traceback is in {report.name}"
    except OSError:
        for line in text.splitlines():
            say(line)
    return (
        f"{command} failed because of a bug in sleepfm_fast{f' while it worked on {file}' if file else ''}: "
        f"{type(error).__name__}: {error}{place}. Please report it; {where}."
    )
