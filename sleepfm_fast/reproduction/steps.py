"""Carrying out a plan: which steps are finished, which go on from where they were killed, and what went wrong."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.command import describe_bug, say
from sleepfm_fast.errors import SleepfmError, refused_by_system
from sleepfm_fast.plurals import counted
from sleepfm_fast.reproduction.plan import Step

__all__ = ["Outcome", "carry_out", "is_finished", "state_of"]

PARTIAL = (".{}.partial", "{}.partial.jsonl")


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes
    ----------
    state : {"found", "done", "failed", "blocked"}
        Finished before this call; finished by it; broken; not tried, because a step that it needs is broken.
    seconds : float
        It took in this call.
    error : str
        A sentence, for a step that failed or was blocked.
    """

    state: str
    seconds: float = 0.0
    error: str = ""


def is_finished(step: Step) -> bool:
    """Whether what a step makes is there and whole."""
    if step.command == "simulate":
        # A store that was made of them does without the recordings.
        return (step.makes / "participants.csv").is_file() or is_store(step.makes.parent / "store")
    if step.command == "preprocess":
        return is_store(step.makes)
    if step.command == "train":
        return is_trained(step)
    if step.command == "supervise":
        return (step.makes / "results" / str(step.options["task"]) / "result.json").is_file()
    # Folders of embeddings and results appear under their names when they are whole.
    return (step.makes / "embeddings.json").is_file() or (step.makes / "result.json").is_file()


def is_store(path: Path) -> bool:
    """Whether preprocess has come to its end; killed in between, it goes on from there."""
    from sleepfm_fast.store.clip_layout import read_store_file

    try:
        return bool(read_store_file(path)["index"])
    except SleepfmError:
        return False


def is_trained(step: Step) -> bool:
    """Whether a training has come to its last epoch or stopped early."""
    from sleepfm_fast.rundir import RunDirectory, read_state

    run = RunDirectory(step.makes)
    if not (run.exists() and run.best_path.is_file() and run.last_path.is_file()):
        return False
    try:
        state = read_state(run.last_path)
    except SleepfmError:
        return False
    return bool(state.get("stopped_early")) or state.get("epoch", 0) >= step.options["epochs"]


def state_of(step: Step) -> str:
    """Describe, for the plan, how far a step is: ``finished``, ``begun`` or ``to do``."""
    if is_finished(step):
        return "finished"
    begun = step.command in ("train", "supervise") and (step.makes / "last.safetensors").is_file()
    begun |= step.command in ("simulate", "preprocess") and step.makes.exists()
    # What embed, features, retrieve and few_shot keep until their folder is whole.
    begun |= any(step.makes.with_name(name.format(step.makes.name)).exists() for name in PARTIAL)
    return "begun" if begun else "to do"


def call(step: Step) -> dict[str, Any]:
    """Call the command of a step with its options.

    Raises
    ------
    SleepfmError
        What the command refuses; also where this version has no such command or option.
    """
    if importlib.util.find_spec(f"sleepfm_fast.{step.command}") is None:
        raise SleepfmError(f"this version of sleepfm_fast has no command {step.command}.")
    module = importlib.import_module(f"sleepfm_fast.{step.command}")
    known = {f.name for f in dataclasses.fields(module.Config)}
    unknown = sorted(set(step.options) - known)
    if unknown:
        raise SleepfmError(f"the command {step.command} of this version has no option {', '.join(unknown)}.")
    result: dict[str, Any] = module.main(module.Config(**step.options))
    if result.get("exit_status"):
        raise SleepfmError(str(result.get("error", f"{step.command} ended with status {result['exit_status']}")))
    if result.get("failed"):
        raise SleepfmError(f"{step.command} could not ingest {counted(len(result['failed']), 'recording')}; see above.")
    return result


def attempt(step: Step) -> Outcome:
    """Carry out one step; whatever goes wrong becomes a sentence."""
    started = time.monotonic()
    try:
        call(step)
        error = "" if is_finished(step) else f"{step.command} ended, but {step.makes} is not whole."
    except SleepfmError as problem:
        error = str(problem)
    except OSError as problem:
        error = f"{refused_by_system(problem)}."
    except Exception as problem:
        error = describe_bug(problem, f"sleepfm_fast.{step.command}")
    return Outcome("failed" if error else "done", round(time.monotonic() - started, 2), error)


def carry_out(steps: Iterable[Step], note: Callable[[Step, Outcome], None]) -> dict[str, Outcome]:
    """Carry out what is missing, in order; a broken step stops only what needs it.

    Parameters
    ----------
    steps : iterable of Step
        Each after what it needs.
    note : callable
        Told of every step once it is over.

    Returns
    -------
    dict of str to Outcome
        By the names of the steps.
    """
    steps = tuple(steps)
    outcomes: dict[str, Outcome] = {}
    for number, step in enumerate(steps, 1):
        if is_finished(step):
            outcome = Outcome("found")
        else:
            broken = [name for name in step.needs if outcomes[name].state in ("failed", "blocked")]
            if broken:
                outcome = Outcome("blocked", error=f"it needs {broken[0]}, which is missing.")
            else:
                say("")
                say(f"[{number} of {len(steps)}] {step.command} -> {step.name}")
                outcome = attempt(step)
        if outcome.state == "failed":
            say(f"error: {step.name}: {outcome.error}")
        outcomes[step.name] = outcome
        note(step, outcome)
    return outcomes
