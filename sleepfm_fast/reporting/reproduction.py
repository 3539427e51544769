"""Sections: how fast it went, exactly what was run, and with which commands it is run again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sleepfm_fast.cli.command import to_json
from sleepfm_fast.cli.option_ranges import option
from sleepfm_fast.cohorts.store_inputs import INPUTS
from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting.following import typed
from sleepfm_fast.reporting.markup import element, escape
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section, table
from sleepfm_fast.reporting.sources import EMBEDDINGS, MISSHAPEN, Run, describe
from sleepfm_fast.reporting.training_curves import column, compared, of_kind
from sleepfm_fast.reporting.wording import count, number_of, value_of
from sleepfm_fast.results import Result
from sleepfm_fast.scoring.texts import stated
from sleepfm_fast.storage.columns import file_digest

__all__ = ["commands_of", "configuration_section", "files_section", "throughput_section"]

POSITIONALS = ("store", "run", "embeddings", "result")
DIGEST_UP_TO = 64 * 2**20  # bytes of a file whose digest is taken
# Of a result's record, what is no option though an option has its name, or is resolved from it.
NOT_OPTIONS = ("embeddings", "result", "examples", "solver", "k", "overwrite", "subjects", "modality")


def throughput_section(runs: Sequence[Run]) -> Section:
    """Clips a second of training, and the seconds of everything that says how long it took."""
    section = Section("throughput", "Throughput")
    group = Group()
    rows, data = [], []
    for run in runs:
        speed = column(of_kind(run, "step"), "clips_per_s")
        speed = speed[np.isfinite(speed)]
        if speed.size:
            ranks = run.config.get("ranks", 1)
            rows.append(
                [
                    f"{run.name}: training",
                    f"{count(float(np.median(speed)))} clips/s",
                    counted(ranks, "process", "processes"),
                ]
            )
            data.append({"run": run.name, "what": "training", "clips_per_s": float(np.median(speed)), "ranks": ranks})
        for result in run.results:
            seconds = value_of(result.record.get("seconds"))
            if seconds is not None:
                test = result.record.get("test")
                n = test.get("n_clips") if isinstance(test, dict) else result.record.get("n_clips")
                size = number_of(n, "clip") if isinstance(n, int) else ""
                rows.append([f"{run.name}: {result.command} {result.path.name}", f"{seconds:.1f} s", size])
                data.append({"run": run.name, "what": result.path.name, "seconds": seconds, "clips": n})
    if not rows:
        group.items.append(Missing("No file says how long anything took; metrics.jsonl and results do."))
    else:
        speed_figure = compared(runs, "step", "clips_per_s")
        if speed_figure is not None:
            speed_figure.title = "Training speed"
            speed_figure.caption = (
                "Clips a second of all processes together, over ten steps, reading and filtering included, validations "
                "and checkpoints not. Drops are other work on the machine, or clips read from the disk."
            )
            group.items.append(speed_figure)
        files = [run.metrics_path for run in runs if run.metrics] + [
            r.record_file for run in runs for r in run.results if value_of(r.record.get("seconds")) is not None
        ]
        group.items.append(
            Figure(
                "How long it took", table(["what", "speed or time", "of"], rows, "Throughput", numeric=False),
                "Training: median over the logged steps, reading and filtering included. A probe: reading, fitting and "
                "scoring, without the resamples.", files, data, wide=True,
            )
        )  # fmt: skip
    section.groups.append(group)
    return section


def options_text(options: dict[str, Any], defaults: dict[str, Any], leave_out: Iterable[str]) -> str:
    """Options that differ from their defaults, as typed."""
    words = []
    for name, value in options.items():
        if name in leave_out or name not in defaults or value == defaults[name] or value is None:
            continue
        flag = option(name)
        if isinstance(value, bool):
            words.append(flag if value else option(f"no_{name}"))
        elif isinstance(value, list):
            words.append(f"{flag} {' '.join(shlex.quote(str(v)) for v in value)}")
        else:
            words.append(f"{flag} {shlex.quote(str(value))}")
    return " ".join(words)


def defaults_of(module: str) -> dict[str, Any]:
    """Defaults of a command's options, as JSON has them; empty where there is no such command."""
    import importlib

    from sleepfm_fast.cli.command import plain

    try:
        config = importlib.import_module(f"sleepfm_fast.{module}").Config
    except (ImportError, AttributeError):
        return {}
    return {
        f.name: plain(f.default)
        for f in dataclasses.fields(config)
        if f.default is not dataclasses.MISSING and not callable(f.default)
    }


def commands_of(run: Run) -> list[str]:
    """The commands that make this run and its results again, in order.

    Paths are those that the files name. Options that are at their default are left out.
    """
    try:
        commands = store_commands(run)
    except MISSHAPEN as error:
        commands = []
        run.problems.append(f"the command that made the store cannot be told ({error!r}).")
    supervised = "task" in run.options
    if run.options:
        module = "supervise" if supervised else "train"
        options = options_text(run.options, defaults_of(module), {*POSITIONALS, "resume", "device", "threads"})
        if supervised and "--task" not in options:
            options = f"--task {run.options['task']} {options}".rstrip()
        commands.append(typed(module, run.store_named, run.path, options=options))
    made: set[Path] = set()
    if run.embeddings is not None and not supervised:
        commands += folder_commands(run, str(run.embeddings.path), made)
    # Differences are of results that must be there first.
    for result in sorted(run.results, key=lambda r: r.command == "compare"):
        try:
            if isinstance(named := result.record.get("embeddings"), str) and result.command != "compare":
                commands += folder_commands(run, named, made)
            commands += evaluation_command(run, result)
        except MISSHAPEN as error:
            run.problems.append(f"the command of {result.path} cannot be told ({error!r}).")
    return commands


def store_commands(run: Run) -> list[str]:
    """The commands that make the run's store again: one for all the nights that came with the same options."""
    store = run.store
    if store is None or not store.recordings:
        return []
    made = store.store["configuration"]
    imported = made.get("from")
    montage = ["--montage", str(made["montage"])] if made.get("montage", "auto") != "auto" else []
    words = ["--events-scored"] if made.get("events_scored") is True else []
    words += ["--meanings", *stated(made["meanings"])] if made.get("meanings") else []
    words += ["--scorer", str(made["scorer"])] if made.get("scorer") else []
    # A store of an earlier version names the files only.
    folders = list(dict.fromkeys(str(Path(r.source).parent) for r in store.recordings))
    inputs = made.get(INPUTS, [{"paths": folders}] if imported is None else [])
    commands = []
    for given in inputs:
        own = [*([] if "like" in given else montage), *words]
        for name, value in given.items():
            if name != "paths":
                flag = option(name)
                own += [flag] if value is True else [flag, str(value)]
        command, origin = ("preprocess", []) if imported is None else ("convert", ["--from", str(imported)])
        options = shlex.join([*origin, *own])
        commands.append(typed(command, *given["paths"], run.store_named, options=options))
    return commands


def folder_commands(run: Run, named: str, made: set[Path]) -> list[str]:
    """The commands that make a folder of embeddings or features that the run's files name, and those that it is of.

    Those in ``made`` have theirs already, and this folder is added to it. A folder that is gone has none.
    """
    found = next(((place, about) for place in run.places(named) if (about := describe(place)) is not None), None)
    if found is None or (place := found[0].resolve()) in made:
        return []
    made.add(place)
    about = found[1]
    presets, store = about["presets"], str(about["store"])
    if joined := presets.get("joined"):
        sides = [str(joined[side]) for side in ("training", "testing")]
        options = options_text({"subjects": joined["subjects"]}, defaults_of("transfer"), ())
        commands = [command for side in sides for command in folder_commands(run, side, made)]
        return [*commands, typed("transfer", *sides, named, options=options)]
    if store.endswith(" (test)") and " (training), " in store:  # joined by an earlier version, which named no folders
        options = "--subjects all" if "test: all subjects" in str(about["split_rule"]) else ""
        commands = folder_commands(run, str(run.path / EMBEDDINGS), made)
        return [*commands, typed("transfer", run.path / EMBEDDINGS, "TESTING", named, options=options)]
    if "features" in presets:
        options = options_text(presets["features"], defaults_of("features"), {"workers", "backend", "overwrite"})
        return [typed("features", store, named, options=options)]
    if not run.options:  # what the report is of is the folder, and no run that could be embedded with
        return []
    options = options_text({"precision": presets.get("precision")}, defaults_of("embed"), ())
    own = place == (run.path / EMBEDDINGS).resolve() or run.same_place(str(about["run"]), str(run.path))
    return [typed("embed", run.path if own else str(about["run"]), store, named, options=options)]


def evaluation_command(run: Run, result: Result) -> list[str]:
    """The command that makes a result again, unless a training wrote it."""
    if result.command == "compare":
        paths: list[Any] = [result.record["first"], result.record["second"]]
    elif result.command == "classify":
        paths = [result.record["run"], result.record["store"]]
    elif result.command in ("probe", "retrieve", "few_shot"):
        paths = [result.record.get("embeddings", run.embeddings_named)]
    else:
        return []
    record = result.record
    own = {} if result.command in ("compare", "classify") else {"task": None, "modality": "all"}
    defaults = {**own, **defaults_of(result.command)}
    said = {"bootstraps": record.get("n_bootstraps"), **record, **(record.get("fit") or {})}
    asked = {name: said[name] for name in defaults if name in said and name not in NOT_OPTIONS}
    modalities = list(record.get("modalities") or [])
    if "modality" in own and result.command != "retrieve" and len(modalities) == 1:
        asked["modality"] = modalities[0]
    if result.command == "classify":
        asked["subjects"] = record.get("tested", defaults["subjects"])
    options = options_text(asked, defaults, ())
    if result.command == "few_shot":
        sizes = dict.fromkeys(e["subjects"] for e in record.get("curve") or () if "subjects" in e)
        options += f" --subjects {' '.join(str(n) for n in sizes)}" if sizes else ""
    return [typed(result.command, *paths, result.path, options=options)]


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of nested options."""
    if isinstance(value, dict):
        return [row for k, v in value.items() for row in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, to_json(value) if isinstance(value, list | bool) or value is None else str(value))]


def option_tables(runs: Sequence[Run]) -> list[Figure | Missing]:
    """The options in which runs differ, and all of them."""
    sides = [dict(flat({k: v for k, v in r.config.items() if k not in ("montage", "subjects")})) for r in runs]
    head = ["option", *(r.name for r in runs)]
    rows = [[n, *(side.get(n, "-") for side in sides)] for n in dict.fromkeys(n for side in sides for n in side)]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    files = [r.config_path for r in runs]
    items: list[Figure | Missing] = []
    if len(runs) > 1:
        items.append(
            Figure(
                "What differs", table(head, differing, "Differences", numeric=False),
                "Options of the runs that are not the same.", files,
                [dict(zip(head, row, strict=True)) for row in differing], wide=True,
            )
        )  # fmt: skip
    whole = table(head, rows, "All options", numeric=False)
    data = {r.name: r.config for r in runs}
    return [*items, Figure("All options", whole, "", files, data, wide=True, folded=True)]


def configuration_section(runs: Sequence[Run], command: str) -> Section:
    """Commands, options side by side, and the configuration as it stands in the file."""
    section = Section("configuration", "Configuration, and how to reproduce this")
    for run in runs:
        commands = commands_of(run)
        items: list[Figure | Missing] = []
        if commands:
            files = [run.config_path, *(r.record_file for r in run.results)]
            items.append(
                Figure(
                    "Commands", element("pre", element("code", escape("\n".join(commands)))),
                    "Options at their default are left out; the seeds are in the configuration. On a CPU the same "
                    "commands give the same run, bit for bit, with the same number of threads.",
                    [f for f in files if f.exists()], commands, wide=True,
                )
            )  # fmt: skip
        section.groups.append(Group(run.name if len(runs) > 1 else "", items=items))
    configured = [run for run in runs if run.config]
    if configured:
        section.groups.append(Group(items=option_tables(configured)))
    else:
        section.groups.append(Group(items=[Missing("No folder has a config.json: none was written by train.")]))
    section.groups.append(
        Group(
            items=[Figure("This report", element("pre", element("code", escape(command))), "", [], command, wide=True)]
        )
    )
    return section


def files_section(sections: Sequence[Section]) -> Section:
    """Every file that a figure was drawn from, with size and digest."""
    used: dict[Path, int] = {}
    for section in sections:
        for figure in section.figures():
            for path in dict.fromkeys(figure.sources):
                used[path] = used.get(path, 0) + 1
    rows, data = [], []
    for path in sorted(used):
        try:
            size = path.stat().st_size
            digest = file_digest(path)[:16] if size <= DIGEST_UP_TO else "not taken (large)"
        except OSError as error:
            size, digest = 0, f"cannot be read ({error.strerror})"
        rows.append([str(path), count(size), digest, str(used[path])])
        data.append({"file": str(path), "bytes": size, "sha256": digest, "figures": used[path]})
    body = table(["file", "bytes", "SHA-256, first 16 digits", "figures"], rows, "Files", numeric=False)
    note = (
        "Captions name the files that a figure was drawn from, those in the folder of this page as seen from there. "
        "The JSON beside it holds the numbers of each."
    )
    group = Group(items=[Figure(f"Files ({len(rows)})", body, note, [], data, wide=True, folded=True)])
    return Section("files", "Files behind the figures", "", [group])
