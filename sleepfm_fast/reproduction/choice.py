"""What a reproduction is asked for: numbers of tables and figures, the preset and what the options change in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sleepfm_fast.cli.command import say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.reproduction import paper_tables
from sleepfm_fast.reproduction.facts import Facts
from sleepfm_fast.reproduction.omissions import answerable
from sleepfm_fast.reproduction.paper_tables import PaperTable
from sleepfm_fast.reproduction.presets import PRESETS, Preset
from sleepfm_fast.reproduction.stratified_tables import STRATIFIED, stratified_tables

if TYPE_CHECKING:
    from sleepfm_fast.reproduce import Config

__all__ = ["chosen_preset", "chosen_tables", "parse_numbers"]


def parse_numbers(text: str, known: Sequence[int], option: str) -> tuple[int, ...]:
    """Read numbers and ranges such as ``2-4,8``.

    Parameters
    ----------
    text : str
        ``none`` for no numbers.
    known : sequence of int
        What may be asked for.
    option : str
        For messages.

    Returns
    -------
    tuple of int
        In the order given, each once.

    Raises
    ------
    SleepfmError
        For anything else; the sentence lists the choices.
    """
    if text.strip().lower() == "none":
        return ()
    numbers: list[int] = []
    choices = ", ".join(map(str, known))
    for part in text.split(","):
        first, dash, last = (p.strip() for p in part.strip().partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SleepfmError(
                f"{option} {text}: '{part.strip()}' is not a number or a range such as 2-8. Choose from {choices}, or "
                "give none."
            )
        low, high = int(first), int(last) if dash else int(first)
        if low > high:
            raise SleepfmError(f"{option} {text}: the range {low}-{high} runs backwards; give {high}-{low}.")
        # A range takes what there is between its ends: 2-30 passes over 9 and 10.
        chosen = [n for n in known if low <= n <= high]
        if not chosen or (not dash and low not in known):
            raise SleepfmError(f"{option} {text}: there is no {part.strip()} to reproduce; choose from {choices}.")
        numbers += chosen
    return tuple(dict.fromkeys(numbers))


def chosen_preset(config: Config) -> Preset:
    """The preset with what the options change."""
    preset = PRESETS[config.preset]
    if config.epochs is not None:
        if config.epochs < 1:
            raise SleepfmError(f"--epochs is {config.epochs}; give 1 or more.")
        epochs = {"epochs": config.epochs}
        preset = dataclasses.replace(
            preset, training={**preset.training, **epochs}, supervised={**preset.supervised, **epochs}
        )
    if config.sizes is not None:
        if any(n < 1 for n in config.sizes):
            raise SleepfmError(f"--sizes is {' '.join(map(str, config.sizes))}; give numbers of subjects from 1 on.")
        preset = dataclasses.replace(preset, sizes=tuple(sorted(set(config.sizes))))
    return preset


def chosen_tables(config: Config, preset: Preset, facts: Facts, external: Facts | None) -> list[PaperTable]:
    """Tables and figures to make, in the order asked for, without what the stores cannot answer."""
    known = sorted((*paper_tables.TABLES, *STRATIFIED))
    numbers = parse_numbers(config.tables, known, "--tables")
    figures = parse_numbers(config.figures, paper_tables.FIGURES, "--figures")
    if config.external is not None and 8 not in numbers:
        raise SleepfmError(f"--external {config.external} serves Table 8, which --tables {config.tables} leaves out.")
    if 8 in numbers and external is None:
        say("notice: Table 8 needs a second store, --external STORE2; it is left out.")
        numbers = tuple(n for n in numbers if n != 8)
    n_training = facts.subjects["train"]
    tables = [paper_tables.make_table(n) for n in numbers if n not in STRATIFIED]
    if any(n in STRATIFIED for n in numbers):
        tables += stratified_tables()
    if 2 in figures:
        tables.append(paper_tables.few_shot_figure(preset.few_shot_subjects, preset.few_shot_replicates, n_training))
    if 3 in figures:
        tables.append(paper_tables.pretraining_figure())
    if preset.sizes:
        tables.append(paper_tables.size_table(preset.sizes, n_training))
    if not tables:
        raise SleepfmError("--tables, --figures and --sizes leave nothing to reproduce.")
    tables, notices = answerable(tables, facts, external)
    for notice in notices:
        say(notice)
    if not tables:
        raise SleepfmError(
            "the store has nothing that these tables and figures ask for; the notices say what it lacks."
        )
    return tables
