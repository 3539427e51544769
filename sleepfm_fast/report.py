"""``python -m sleepfm_fast.report RUN...``: one self-contained HTML page about runs, and its numbers as JSON.

The page is drawn from what the run folders hold (see :mod:`sleepfm_fast.reporting`); nothing is computed anew but the
plane of the embeddings. Every figure names its files; what is missing is named with the command that makes it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import plain, run, say, to_json
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads
from sleepfm_fast.cli.option_ranges import option
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted

if TYPE_CHECKING:
    from sleepfm_fast.reporting.page import Section
    from sleepfm_fast.reporting.sources import Run

__all__ = ["Config", "cli", "main"]

FORMAT = "sleepfm_fast report"
VERSION = 1
AGAIN = "Repeat their commands with --overwrite (supervise with --resume) to have all figures by the same definitions."


@dataclass(frozen=True)
class Config(TakesPaths):
    """Write one HTML page that needs no network and no script: figures, curves, nights, embeddings, retrieval, sources.

    Several runs are shown side by side. A JSON file beside the page holds every number shown and the files it came
    from. If the same report exists already, the command says so and exits with status 0; a different one is refused,
    and the message says what differs.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")
    ]
    """Run folders with their results in RUN/results, such as leave-one-out, pairwise and the supervised baseline."""
    out: Path | None = None
    """Page to write, ending in .html; by default report.html in the first RUN."""
    figures: Path | None = None
    """Folder for every plot of the page as a separate SVG file, for papers and slides."""
    title: str = ""
    """Heading of the page; by default made from the runs' names."""
    recordings: int = 3
    """Nights to draw, from the best predicted to the worst; 0 for none."""
    examples: int = 6
    """Retrieval examples to draw, taken from every direction in turn; 0 for none."""
    projection: Literal["tsne", "pca"] = "tsne"
    """How embeddings are reduced to two dimensions: t-SNE, or PCA, which is faster and linear."""
    projection_clips: int = 400
    """Held-out clips to project, drawn at random."""
    seed: int = 0
    """Seed of that draw and of t-SNE."""
    overwrite: bool = False
    """Replace an existing report at --out, and the figures it left in --figures."""

    def places(self) -> list[Place]:
        """What its positionals take."""
        kinds = (Kind.RUN, Kind.SUPERVISED, Kind.EMBEDDINGS, Kind.FEATURES)
        return [reads("RUN", run, *kinds) for run in self.runs]


def check(config: Config) -> tuple[Path, Path]:
    """Refuse what cannot work; returns the page's path and the JSON's."""
    if not config.runs:
        raise SleepfmError("no run was named; give one or more folders that train wrote.")
    for name, lowest in (("recordings", 0), ("examples", 0), ("projection_clips", 10), ("seed", 0)):
        if getattr(config, name) < lowest:
            raise SleepfmError(f"{option(name)} is {getattr(config, name)}; expected {lowest} or more.")
    page = config.out if config.out is not None else config.runs[0] / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise SleepfmError(f"--out is {page}; expected a file that ends in .html.")
    if page.is_dir():
        raise SleepfmError(f"{page} is a folder; give a file that ends in .html.")
    numbers = page.with_suffix(".json")
    if config.out is not None and not page.parent.is_dir():
        raise SleepfmError(f"the folder {page.parent} does not exist; make it, or give another --out.")
    return page, numbers


def sections_of(runs: Sequence[Run], config: Config) -> list[Section]:
    """Make every section, in the order of the page."""
    from sleepfm_fast.evaluation.tasks import TASKS
    from sleepfm_fast.reporting.classification import task_section
    from sleepfm_fast.reporting.cohort import cohort_section
    from sleepfm_fast.reporting.few_shot import few_shot_section
    from sleepfm_fast.reporting.following import options_of, typed
    from sleepfm_fast.reporting.headline import headline_section
    from sleepfm_fast.reporting.hypnogram import hypnogram_section
    from sleepfm_fast.reporting.projection import projection_section
    from sleepfm_fast.reporting.reproduction import configuration_section, files_section, throughput_section
    from sleepfm_fast.reporting.retrieval import retrieval_section
    from sleepfm_fast.reporting.training_curves import training_section

    command = typed("report", *config.runs, options=options_of(config, "overwrite"))
    makers: list[tuple[str, Callable[[], Section]]] = [
        ("headline figures", lambda: headline_section(runs)),
        ("recordings", lambda: cohort_section(runs)),
        ("training", lambda: training_section(runs)),
        *([("nights", lambda: hypnogram_section(runs, config.recordings))] if config.recordings else []),
        (
            "embeddings",
            lambda: projection_section(runs, config.projection_clips, config.projection, config.seed),
        ),
        *((f"task {task}", lambda task=task: task_section(runs, task)) for task in TASKS),
        ("few-shot", lambda: few_shot_section(runs)),
        ("retrieval", lambda: retrieval_section(runs, config.examples)),
        ("throughput", lambda: throughput_section(runs)),
        ("configuration", lambda: configuration_section(runs, command)),
    ]
    sections = []
    with progress_bar(makers, desc="report", unit="section") as bar:
        for name, make in bar:
            bar.set_postfix_str(name)
            section = make()
            if any(group.items for group in section.groups):
                sections.append(section)
    return [*sections, files_section(sections)]


def notices_of(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before the first figure."""
    from sleepfm_fast.evaluation.changed_store import weights_note
    from sleepfm_fast.results import definitions_note
    from sleepfm_fast.store.simulated_store import is_simulated

    notices = []
    if any(r.store is not None and is_simulated(r.store) for r in runs):
        notices.append(
            "The recordings are simulated: the figures show that the pipeline works; they say nothing about patients."
        )
    notes = [str(result.record.get("overlap_note") or "") for r in runs for result in r.results]
    notes += [str(result.record.get("store_note") or "") for r in runs for result in r.results]
    notes += [r.embeddings.overlap_note for r in runs if r.embeddings is not None]
    notes += [weights_note(r.embeddings) for r in runs if r.embeddings is not None]
    notes += [note for r in runs for note in r.results_of_earlier_embeddings()]
    notes.append(definitions_note((result for r in runs for result in r.results), AGAIN))
    notices += [note[0].upper() + note[1:] for note in notes if note]
    stores = {str(r.store.path.resolve()) for r in runs if r.store is not None}
    if len(stores) > 1:
        notices.append(
            f"The runs use {len(stores)} different clip stores; their figures are comparable only as far as the "
            "stores are."
        )
    salts = {to_json(r.config["split"]) for r in runs if r.config.get("split")}
    if len(salts) > 1:
        notices.append("The runs split their subjects by different rules, so they were not tested on the same people.")
    for r in runs:
        notices += [f"{r.name}: {problem}" for problem in r.problems]
    return list(dict.fromkeys(notices))


def main(config: Config) -> dict[str, Any]:
    """Write page and JSON; returns where they are."""
    from sleepfm_fast import __version__
    from sleepfm_fast.reporting.figure_files import draw_figures, earlier_figures, refuse_folder
    from sleepfm_fast.reporting.page import render, to_record
    from sleepfm_fast.reporting.sources import open_runs
    from sleepfm_fast.reporting.standing import earlier_report, is_as_drawn
    from sleepfm_fast.storage.atomic import replace_file
    from sleepfm_fast.storage.standing import key_of, say_finished

    started = time.monotonic()
    page, numbers = check(config)
    made_of = key_of("report", config, {})
    earlier = None if config.overwrite else earlier_report(page, numbers, made_of)
    if config.figures is not None:
        refuse_folder(config.figures, overwrite=config.overwrite or earlier is not None)
    runs = open_runs(config.runs)
    sections = sections_of(runs, config)
    notices = notices_of(runs)
    names = ", ".join(r.name for r in runs) if len(runs) <= 4 else f"{len(runs)} runs"
    title = config.title or f"Report on {names}"
    drawn = {} if config.figures is None else draw_figures(sections, config.figures)
    left = [] if config.figures is None else [path for path in earlier_figures(config.figures) if path not in drawn]
    html = render(title, subtitle(runs), notices, sections, page.parent)
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "sleepfm_fast": __version__,
        "made_of": made_of,
        "title": title,
        "runs": [{"name": r.name, "path": str(r.path)} for r in runs],
        "notices": notices,
        "sections": to_record(sections),
    }
    text = to_json(record, indent=None) + "\n"
    # The numbers first: they say of what is killed afterwards that it is this report.
    whole = {numbers: text.encode("utf-8"), **drawn, page: html.encode("utf-8")}
    finished = earlier is not None and is_as_drawn(page, earlier, json.loads(text), whole, left)
    if not finished:
        for path in left:
            path.unlink()
        for file, data in whole.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as out:
                out.write(data)
    for notice in notices:
        say(f"notice: {notice}")
    missing = [item for section in record["sections"] for item in section["missing"]]
    if finished:
        say_finished(page)
    else:
        say(f"wrote {page} ({len(html.encode()) / 2**20:.2f} MiB)")
        if config.figures is not None:
            say(f"wrote {counted(len(drawn), 'figure')} to {config.figures}")
    files = {} if config.figures is None else {"figure_files": len(drawn), "figures_folder": config.figures}
    result: dict[str, Any] = plain(
        {
            "report": page,
            "numbers": numbers,
            "bytes": len(html.encode()),
            "figures": sum(len(section["figures"]) for section in record["sections"]),
            **files,
            "missing": [f"{item['what']} {item['command']}".rstrip() for item in missing],
            "elapsed_s": round(time.monotonic() - started, 1),
        }
    )
    return result


def subtitle(runs: Sequence[Run]) -> str:
    """What the runs are, in a line."""
    parts = []
    for r in runs:
        o = r.options
        if "task" in o:
            what = f"end-to-end network for {o['task']}"
        elif "mode" in o:
            what = f"{str(o['mode']).replace('_', '-')} contrast, encoder '{o.get('preset', '-')}'"
        elif r.embeddings is not None and r.embeddings.kind == "feature":
            what = "hand-made features"
        else:
            what = "no training configuration"
        parts.append(f"{r.name}: {what}" if len(runs) > 1 else what)
    text = "; ".join(parts)
    text = text if len(runs) > 1 else text[0].upper() + text[1:]
    return f"{text}. Written by sleepfm_fast; a research tool, not a medical device."


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv)


if __name__ == "__main__":
    sys.exit(cli())
