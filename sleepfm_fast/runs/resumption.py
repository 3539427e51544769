"""Whether a command goes on with a run that stands in its folder, and what has changed since the run began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.runs.checkpoints import damaged, read_state
from sleepfm_fast.runs.run_config import damaged_entry

if TYPE_CHECKING:
    from sleepfm_fast.rundir import RunDirectory

__all__ = ["goes_on", "reconcile"]

# Options that may differ between a run's start and its resumption, and those of which the change is recorded.
FREE = ("resume", "device", "threads", "compile", "fused_blocks", "store", "run", "checkpoint_steps", "skip_limit")
RECORDED = ("epochs", "max_steps")


def has_ended_as_asked(run: RunDirectory, command: str, now: Mapping[str, Any]) -> bool:
    """Whether the same command has trained this run to its end: there is nothing to do, with ``--resume`` or without.

    Parameters
    ----------
    run : RunDirectory
    command : str
        ``train`` or ``supervise``.
    now : mapping
        As of :func:`reconcile`.
    """
    try:
        saved = run.config()
        state = read_state(run.last_path) if run.last_path.is_file() else {}
    except SleepfmError:  # none, or a damaged one, which is refused in place of a new one
        return False
    options, kept = now["config"], saved.get("config")
    # What --init-from names may have become another file.
    if saved.get("command", "train") != command or not isinstance(kept, dict) or options.get("init_from") is not None:
        return False
    then = {**now["defaults"], **kept}
    same = all(k in FREE or (k in then and then[k] == value) for k, value in options.items())
    if not same or (saved.get("store_digest"), saved.get("ranks", 1)) != (now["store_digest"], now["ranks"]):
        return False
    step, epoch = (found if type(found := state.get(name)) is int else 0 for name in ("step", "epoch"))
    return bool(state.get("stopped_early")) or epoch >= options["epochs"] or 0 < options["max_steps"] <= step


def goes_on(run: RunDirectory, command: str, now: Mapping[str, Any]) -> bool:
    """Whether a command without ``--resume`` resumes a run, as there is nothing to do; else what stands is refused."""
    if has_ended_as_asked(run, command, now):
        return True
    run.refuse_if_present()
    return False


def reconcile(run: RunDirectory, now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make a run's folder ready to be resumed: compare, record what changed, forget metrics after the checkpoint.

    Parameters
    ----------
    run : RunDirectory
        The run.
    now : mapping
        ``config`` (the options as JSON), ``store_digest`` and ``ranks`` (number of processes) of the resumption, and
        ``defaults`` of the options: a run that was begun before there was an option has its default.

    Returns
    -------
    list of dict
        ``step``, ``option``, ``was`` and ``is`` of each change, as appended to ``changes`` in ``config.json``.

    Raises
    ------
    SleepfmError
        When an option that defines the run differs or is not known, or the store differs.
    """
    saved = run.config()
    for entry in ("config", "store_digest"):
        if not isinstance(saved.get(entry), type(now[entry])):
            raise damaged_entry(run.config_path, entry, saved.get(entry))
    then, options = {**now["defaults"], **saved["config"]}, now["config"]
    if unknown := [k for k in saved["config"] if k not in now["defaults"] and k not in options]:
        listed = ", ".join(f"--{k.replace('_', '-')} {saved['config'][k]}" for k in unknown)
        raise SleepfmError(
            f"the run in {run.path} was begun by another version of sleepfm_fast, with {listed}, which this version "
            "does not have. Resume it with the version that began it."
        )
    differing = [k for k in options if k not in FREE and options[k] != then.get(k, options[k])]
    refused = [k for k in differing if k not in RECORDED]
    if refused:
        listed = ", ".join(f"--{k.replace('_', '-')} was {then[k]}, is {options[k]}" for k in refused)
        raise SleepfmError(
            f"the run in {run.path} was started with other options: {listed}. Resume with the same options; only "
            "--epochs, --max-steps and the number of processes may change."
        )
    if saved["store_digest"] != now["store_digest"]:
        raise SleepfmError(
            f"the store has changed since the run in {run.path} began, so it cannot be resumed exactly. Train into "
            "another folder."
        )
    state = read_state(run.last_path) if run.last_path.exists() else {}
    n_bytes, step = state.get("metrics_bytes", 0), state.get("step", 0)
    for name, value in (("metrics_bytes", n_bytes), ("step", step)):
        if type(value) is not int or value < 0:
            raise damaged(run.last_path, ValueError(f"the entry {name} is {value!r}"))
    run.truncate_metrics(n_bytes)
    changes = [
        {"step": step, "option": f"--{k.replace('_', '-')}", "was": then[k], "is": options[k]} for k in differing
    ]
    ranks = saved.get("ranks", 1)
    if ranks != now["ranks"]:
        changes.append({"step": step, "option": "the number of processes", "was": ranks, "is": now["ranks"]})
    if changes:
        config = {**saved["config"], **{k: options[k] for k in differing}}
        recorded = [*saved.get("changes", []), *changes]
        run.write_config({**saved, "config": config, "ranks": now["ranks"], "changes": recorded})
    return changes
