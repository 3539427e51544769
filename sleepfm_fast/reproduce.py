"""``python -m sleepfm_fast.reproduce [STORE] OUT``: the paper's tables and figures, from a store or a simulated cohort.

Everything is done by the commands that a user would run; this one plans them, goes on where it was killed, and lays the
figures out. OUT holds ``runs/NAME/`` (run folders with ``embeddings/`` and ``results/``), ``reproduction.json`` (plan,
states, every cell and the folder it is read from) and ``tables.md``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sleepfm_fast.cli import command
from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError, UsageError
from sleepfm_fast.plurals import counted
from sleepfm_fast.system import processors

if TYPE_CHECKING:
    from sleepfm_fast.reproduction.cohorts import Sides
    from sleepfm_fast.reproduction.facts import Facts
    from sleepfm_fast.reproduction.paper_tables import PaperTable
    from sleepfm_fast.reproduction.plan import Layout, Planner, Step
    from sleepfm_fast.reproduction.presets import Preset
    from sleepfm_fast.reproduction.steps import Outcome

__all__ = ["Config", "cli", "main"]

RECORD, TABLES = "reproduction.json", "tables.md"
FORMAT, VERSION = "sleepfm_fast reproduction", 1
AGAIN = (
    "To have all figures by the same definitions, remove the folders {results} and repeat the command: the results are "
    "made again, and no network is trained again."
)


@dataclasses.dataclass(frozen=True)
class Config(TakesPaths):
    """Train, evaluate and tabulate what the paper's tables and figures show, beside the paper's own figures.

    Without a STORE, a cohort is simulated. The plan and its cost are printed before anything starts. After a kill or a
    failure, repeat the command to continue. A step that fails stops only the steps that need it; the exit status is
    then 1.
    """

    paths: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[STORE] OUT", help_behavior_hint="(required)")
    ]
    """Clip store written by preprocess (a cohort is simulated without one), and the folder to write."""
    tables: str = "2-8"
    """Tables of the paper, such as 2-8 or 6,7 or none. 2 age, 3 sex, 4 and 5 retrieval, 6 stages, 7 sleep-disordered
    breathing, 8 external validation, 11-18 single modalities, 19-28 (together) 6 and 7 by age group and sex, 29 and 30
    supervised single modalities."""
    figures: str = "2,3"
    """Figures of the paper: 2 few-shot curves, 3 modalities used in pretraining; or none."""
    preset: Literal["smoke", "study"] = "smoke"
    """smoke: tiny encoders, minutes on two cores; study: SleepFM's encoders, overnight."""
    external: Path | None = None
    """Second clip store for Table 8. If the first cohort is simulated, so is this one, with another montage."""
    sizes: tuple[int, ...] | None = None
    """Numbers of pretraining subjects for the table of performance against pretraining size; by default the preset's.
    Give the option without a number for no such table."""
    epochs: int | None = None
    """Epochs of every training; by default the preset's."""
    report: bool = True
    """Show all runs on one page, OUT/report.html, at the end."""
    plan: bool = False
    """Print the plan and its cost, and stop."""
    seed: int = 0
    """Seed of simulation, training, draws and resamples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train and embed."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of all networks in training and embedding, as in train and embed. bfloat16 is for GPUs and for
    processors with bfloat16 instructions (docs/training.md)."""
    threads: int = 0
    """CPU threads used in training; 0 for all cores."""

    def places(self) -> list[Place]:
        """What its positionals take."""
        *stores, out = self.paths or (None,)
        return [
            *(reads("STORE", store, Kind.STORE) for store in stores),
            writes("OUT", out, Kind.REPRODUCTION),
        ]


def claim(layout: Layout, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds something else, or a reproduction of other things."""
    file = layout.out / RECORD
    if not layout.out.exists():
        return
    if not layout.out.is_dir() or (any(layout.out.iterdir()) and not file.is_file()):
        raise SleepfmError(f"{layout.out} exists and is not a reproduction; name a new folder.")
    if not file.is_file():
        return

    def damaged(what: object) -> SleepfmError:
        return SleepfmError(
            f"{file} is damaged ({what}). It alone says with which settings the results beside it were made: restore "
            "it from a copy, or name another folder."
        )

    try:
        saved = from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(error) from error
    if not isinstance(saved, dict):
        raise damaged("it is not the record of a reproduction")
    if saved.get("format") != FORMAT or saved.get("version") != VERSION:
        raise SleepfmError(f"{file} says '{saved.get('format')} {saved.get('version')}'; name a new folder.")
    if not isinstance(saved.get("settings"), dict):
        raise damaged("it does not hold the settings")
    before = {"precision": "float32", **saved["settings"]}  # records before there was a choice have no precision
    differing = [f"{k} was {before.get(k)}, is {v}" for k, v in settings.items() if before.get(k) != v]
    if differing:
        raise SleepfmError(
            f"{layout.out} holds a reproduction of other settings: {'; '.join(differing)}. Continue with the same ones "
            "(--tables, --figures and --sizes may differ), or name another folder."
        )


def print_plan(steps: Sequence[Step], states: dict[str, str], rates: dict[str, float]) -> None:
    """Show what will be done, for what, and what it costs."""
    from sleepfm_fast.reproduction.cost import clock_text, seconds, total_seconds

    width = max(len(step.name) for step in steps)
    everything = {table for step in steps for table in step.serves}
    say("")
    say(f"{'step':<{width}}  {'command':<11}{'state':<10}{'time':>7}{'disk':>9}  for")
    for step in steps:
        state = states[step.name]
        cost = "-" if state == "finished" else clock_text(seconds(step.work, rates))
        say(
            f"{step.name:<{width}}  {step.command:<11}{state:<10}{cost:>7}{step.disk_bytes / 1e6:>6.0f} MB  "
            f"{'everything' if set(step.serves) == everything else ', '.join(step.serves)}"
        )
    todo = [step for step in steps if states[step.name] != "finished"]
    say(
        f"\n{len(todo)} of {counted(len(steps), 'step')} to do: about {clock_text(total_seconds(todo, rates))} and "
        f"{sum(step.disk_bytes for step in todo) / 1e9:.1f} GB. The networks were timed here on noise: training "
        f"{rates['training clips, 3 modalities']:.0f}, embedding {rates['embedded clips']:.0f}, supervised training "
        f"{rates['supervised clips']:.0f} clips/s; the other steps are estimated from rates of one core (half or twice "
        "as long is possible)."
    )


def machine() -> dict[str, Any]:
    """What the reproduction ran on."""
    import platform

    import torch

    import sleepfm_fast

    build = sleepfm_fast.build_info()
    return {
        "sleepfm_fast": sleepfm_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_cores": processors(),
        "instruction_set": build["cpu_instruction_set_in_use"],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def prepared(config: Config) -> tuple[Planner, list[PaperTable], dict[str, float], Facts]:
    """Look at the stores, choose the tables and time the networks."""
    from sleepfm_fast.reproduction import cost as reproduce_cost
    from sleepfm_fast.reproduction import plan as reproduce_plan
    from sleepfm_fast.reproduction.choice import chosen_preset, chosen_tables
    from sleepfm_fast.reproduction.facts import simulated_facts, store_facts
    from sleepfm_fast.simulator.card import name_prefix

    store, out = (config.paths[0], config.paths[1]) if len(config.paths) == 2 else (None, config.paths[0])
    if store is None and config.external is not None:
        raise SleepfmError("--external was given without a STORE; a simulated cohort brings its own second one.")
    preset = chosen_preset(config)
    split = preset.split
    layout = reproduce_plan.Layout(out)

    def to_simulate(n_subjects: int, *, external: bool) -> Facts:
        seed = reproduce_plan.cohort_seed(config.seed, external=external)
        return simulated_facts(n_subjects, preset.hours, split, name_prefix(layout.recordings(external=external), seed))

    facts = store_facts(store, split) if store is not None else to_simulate(preset.subjects, external=False)
    external: Facts | None = None
    if config.external is not None:
        external = store_facts(config.external, split)
    elif store is None:
        external = to_simulate(preset.external_subjects, external=True)
    tables = chosen_tables(config, preset, facts, external)
    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    rates = reproduce_cost.measure(
        preset.encoder, facts.channels, preset.training["batch_size"], config.device, config.precision
    )
    dim, parameters = reproduce_cost.network_sizes(preset.encoder, facts.channels)
    planner = reproduce_plan.Planner(
        layout,
        preset,
        facts,
        external,
        store=store,
        external_store=config.external,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        threads=config.threads,
        dim=dim,
        parameters=parameters,
    )
    return planner, tables, rates, facts


def settings_of(config: Config, preset: Preset) -> dict[str, Any]:
    """What defines a reproduction; a folder holds one."""
    store = str(config.paths[0].resolve()) if len(config.paths) == 2 else None
    return {
        "store": store,
        "external": None if config.external is None else str(config.external.resolve()),
        "preset": config.preset,
        "epochs": preset.training["epochs"],
        "precision": config.precision,
        "seed": config.seed,
    }


def main(config: Config) -> dict[str, Any]:
    """Plan, carry out, tabulate; returns the results that end the command."""
    from sleepfm_fast.training.world import threads_restored

    with threads_restored():
        return reproduced(config)


def reproduced(config: Config) -> dict[str, Any]:
    """Do what :func:`main` says."""
    from sleepfm_fast.reproduction import cohorts as reproduce_cohorts
    from sleepfm_fast.reproduction import plan as reproduce_plan
    from sleepfm_fast.reproduction import steps as reproduce_steps
    from sleepfm_fast.reproduction import tables as reproduce_tables
    from sleepfm_fast.reproduction.choice import chosen_preset
    from sleepfm_fast.storage.claims import claim_to_write

    if len(config.paths) not in (1, 2):
        raise UsageError(
            f"{counted(len(config.paths), 'path was', 'paths were')} given; expected [STORE] OUT. See "
            "`python -m sleepfm_fast.reproduce --help`."
        )
    started = time.monotonic()
    layout = reproduce_plan.Layout(config.paths[-1])
    settings = settings_of(config, chosen_preset(config))
    claim(layout, settings)
    planner, tables, rates, facts = prepared(config)
    steps = reproduce_plan.make_plan(planner, tables)
    present = reproduce_cohorts.present_sides(planner)
    cohorts = reproduce_cohorts.agreed_sides(layout, earlier(layout), steps, present)
    states = {step.name: reproduce_steps.state_of(step) for step in steps}
    encoder = planner.preset.encoder
    about = (
        reproduce_tables.size_line(config.preset, planner.preset, facts, config.precision),
        reproduce_tables.warning(simulated=facts.simulated, encoder=encoder),
    )
    for sentence in about:
        say(sentence)
    print_plan(steps, states, rates)
    todo = [step.name for step in steps if states[step.name] != "finished"]
    if config.plan:
        return {"out": layout.out, "steps": len(steps), "to_do": todo, "tables": [table.name for table in tables]}
    held = claim_to_write(layout.out)
    try:
        layout.out.mkdir(parents=True, exist_ok=True)
        return carried_out(config, planner, tables, steps, rates, about, started, cohorts)
    finally:
        held.release()


def carried_out(
    config: Config,
    planner: Planner,
    tables: Sequence[PaperTable],
    steps: Sequence[Step],
    rates: dict[str, float],
    about: tuple[str, str],
    started: float,
    cohorts: dict[str, Sides],
) -> dict[str, Any]:
    """Carry the plan out and lay the figures out; returns the results that end the command."""
    from sleepfm_fast.reproduction import steps as reproduce_steps
    from sleepfm_fast.reproduction import tables as reproduce_tables
    from sleepfm_fast.results import definitions_note
    from sleepfm_fast.storage.atomic import replace_file, write_json

    layout, facts, encoder = planner.layout, planner.facts, planner.preset.encoder
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings_of(config, planner.preset),
        "machine": machine(),
        "cohort": {
            "simulated": facts.simulated,
            "subjects": facts.subjects,
            "clips": facts.clips,
            "hours": facts.hours,
        },
        "cohorts": cohorts,
        "encoder": encoder,
        "warning": about[1],
        "rates": rates,
        "steps": {},
        "tables": [],
    }
    record["steps"] = dict(earlier(layout).get("steps", {}))

    def note(step: Step, outcome: Outcome) -> None:
        entry = {"command": step.command, "state": outcome.state, "seconds": outcome.seconds, "error": outcome.error}
        before = record["steps"].get(step.name, {})
        if outcome.state == "found" and before.get("state") == "done":
            entry = before  # it was this reproduction that made it
        record["steps"][step.name] = {**entry, "serves": step.serves}
        write_json(layout.out / RECORD, command.plain(record))

    write_json(layout.out / RECORD, command.plain(record))
    outcomes = reproduce_steps.carry_out(steps, note)
    cells = {table.name: reproduce_tables.collect(table, layout) for table in tables}
    every_cell = [cell for of_table in cells.values() for cell in of_table]
    again = AGAIN.format(results=layout.runs / "*" / "results")
    other = definitions_note(reproduce_tables.results_in(every_cell, layout), again)
    if other:
        say(f"notice: {other}")
    record["tables"] = [{"name": t.name, "title": t.title, "note": t.note, "cells": cells[t.name]} for t in tables]
    record["seconds"] = round(time.monotonic() - started, 1)
    write_json(layout.out / RECORD, command.plain(record))
    lines = ["# Reproduction", "", about[0], "", about[1], "", *([f"Notice: {other}", ""] if other else [])]
    lines += ["In brackets: 95 % intervals over test subjects, unless a note says otherwise.", ""]
    for table in tables:
        lines += reproduce_tables.draw(table, cells[table.name], simulated=facts.simulated, encoder=encoder)
    with replace_file(layout.out / TABLES) as file:
        file.write("\n".join(lines).encode())
    for line in ["", *lines]:
        say(line)
    broken = {name: outcome.error for name, outcome in outcomes.items() if outcome.state in ("failed", "blocked")}
    for name, error in broken.items():
        say(f"error: {name}: {error}")
    page = write_report(layout, broken) if config.report else None
    return {
        "out": layout.out,
        "tables": layout.out / TABLES,
        "report": page,
        "steps": {s: sum(o.state == s for o in outcomes.values()) for s in ("found", "done", "failed", "blocked")},
        "broken": broken,
        "seconds": round(time.monotonic() - started, 1),
        "exit_status": 1 if broken else 0,
    }


def earlier(layout: Layout) -> dict[str, Any]:
    """What an earlier call has noted."""
    file = layout.out / RECORD
    return dict(from_json(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def write_report(layout: Layout, broken: dict[str, str]) -> Path | None:
    """Show all runs on one page; a report that cannot be made is one more broken step."""
    if importlib.util.find_spec("sleepfm_fast.report") is None:
        return None
    report = importlib.import_module("sleepfm_fast.report")
    page = layout.out / "report.html"
    folders = sorted(p for p in layout.runs.iterdir() if p.is_dir()) if layout.runs.is_dir() else []
    # Draws of few subjects are points of curves; the runs themselves are what a reader compares.
    runs = tuple(p for p in folders if "-replicate-" not in p.name and (p / "results").is_dir())
    if not runs:
        return None
    try:
        report.main(report.Config(runs, out=page, overwrite=True))
    except SleepfmError as error:
        say(f"error: report: {error}")
        broken["report"] = str(error)
        return None
    return page


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return command.run(
        Config, main, argv, interrupted="what was finished is kept, and the same command continues from there"
    )


if __name__ == "__main__":
    sys.exit(cli())
