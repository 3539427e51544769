"""Write a simulated cohort: one EDF+ file a subject, hypnogram and events inside, and a table of participants."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import joblib
import numpy as np
import pyedflib
import tyro
from numpy.typing import NDArray

from sleepfm_fast.cli import command
from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, writes
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.edf import read_recording
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.parallel import dispatched, pool
from sleepfm_fast.reporting.following import after_nights
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.simulator.card import CARD, PREFIX, name_prefix, prefix_of, read_card
from sleepfm_fast.simulator.physiology import Physiology
from sleepfm_fast.simulator.polysomnograph import Channel, Polysomnograph
from sleepfm_fast.simulator.sleeper import Couplings, Random
from sleepfm_fast.storage.atomic import TEMPORARY_SUFFIX, remove_leftovers, replace_file, synchronise
from sleepfm_fast.storage.claims import claim_to_write
from sleepfm_fast.system import processors

__all__ = ["Config", "cli", "main", "write_recording"]

STAGE_TEXTS = ("Sleep stage W", "Sleep stage N1", "Sleep stage N2", "Sleep stage N3", "Sleep stage R")
DIGITAL = (-32768, 32767)


@dataclass(frozen=True)
class Config(TakesPaths):
    """Write a simulated cohort of sleepers: EDF+ files with hypnogram and respiratory events, and participants.csv.

    The modalities share one hidden physiology (sleep stage, breathing, heart, arousals); docs/simulator.md describes
    it. The same options give the same bytes. After an interruption, the same command continues where it stopped.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write; must be new, empty, or left unfinished by a command with the same options."""
    subjects: int = 20
    """Number of subjects; each has one recording."""
    hours: float = 1.0
    """Length of every recording [h], in steps of 30 s. Below 8 h it is an excerpt from anywhere in the night."""
    seed: int = 0
    """Chooses the sleepers; another seed gives other sleepers with other names (seed 0: sim-0000, ...; seed 7:
    sim-7-0000, ...)."""
    workers: int = 0
    """Recordings simulated at a time; 0 for one per processor core."""
    couplings: Couplings = field(default_factory=Couplings)
    """Strength of every dependence in the simulator, from 1 (as in the model) to 0 (switched off)."""

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [writes("OUT", self.out, Kind.COHORT)]


def main(config: Config) -> dict[str, Any]:
    """Write the cohort, or what is missing of it.

    Parameters
    ----------
    config : Config
        What to write and where.

    Returns
    -------
    dict
        ``out``, ``recordings``, ``written`` (by this call), ``hours`` and ``respiratory_events`` of the cohort,
        ``stage_fractions`` and ``seconds``.

    Raises
    ------
    SleepfmError
        When an option makes no sense, or the folder holds something else.
    """
    started = time.perf_counter()
    n_epochs = _epochs(config)
    claim = claim_to_write(config.out)
    try:
        return _written(config, n_epochs, started)
    finally:
        claim.release()


def _written(config: Config, n_epochs: int, started: float) -> dict[str, Any]:
    """Write what is missing and describe the cohort."""
    prefix = _take(config)
    names = [f"{prefix}{i:04d}" for i in range(config.subjects)]
    todo = [i for i, name in enumerate(names) if not (config.out / f"{name}.edf").exists()]
    if not todo:
        command.say(f"{config.out} is already finished: this same command wrote it.")
    workers = min(config.workers or processors(), max(len(todo), 1))
    jobs = (
        joblib.delayed(write_recording)(config.out / f"{names[i]}.edf", config.seed, i, n_epochs, config.couplings)
        for i in todo
    )
    # NumPy and SciPy let go of the interpreter lock most of the time: a few threads do as well as processes, which
    # take seconds to start.
    prefer = "threads" if workers <= 4 else "processes"
    done = dispatched(pool(workers, prefer=prefer, return_as="generator"), jobs)
    for _ in progress_bar(done, total=len(todo), desc="simulate", unit="recording", disable=not todo):
        pass
    # A sleeper's traits, stages and events come from their own random streams: cheap to draw again for the table.
    bodies = [Physiology(Random(config.seed, i), n_epochs, config.couplings) for i in range(config.subjects)]
    rows = [
        f"{name},{name},{body.subject.age:g},{body.subject.sex}\n" for name, body in zip(names, bodies, strict=True)
    ]
    _write_text(config.out / "participants.csv", "recording,subject,age,sex\n" + "".join(rows))
    stages = np.bincount(np.concatenate([body.stages for body in bodies]), minlength=len(STAGE_TEXTS))
    return {
        "out": config.out,
        "recordings": config.subjects,
        "written": len(todo),
        "hours": config.subjects * n_epochs * EPOCH_S / 3600,
        "respiratory_events": sum(len(body.events) for body in bodies),
        "stage_fractions": {text.split()[-1]: n / stages.sum() for text, n in zip(STAGE_TEXTS, stages, strict=True)},
        "seconds": round(time.perf_counter() - started, 2),
    }


def write_recording(path: Path, seed: int, subject: int, n_epochs: int, couplings: Couplings) -> None:
    """Simulate one subject and write the EDF+ file under its name once it is whole.

    Parameters
    ----------
    path : Path
        File to write.
    seed, subject : int
        Choose the subject; no other subject's number matters.
    n_epochs : int
        Length in 30-s epochs.
    couplings : Couplings
        What depends on what.
    """
    body = Physiology(Random(seed, subject), n_epochs, couplings)
    channels = list(Polysomnograph(body).channels())
    duration_s = n_epochs * EPOCH_S
    records = np.concatenate([_digital(channel).reshape(duration_s, channel.fs_hz) for channel in channels], axis=1)
    annotations = sorted(_annotations(body))
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    writer = pyedflib.EdfWriter(str(temporary), len(channels), file_type=pyedflib.FILETYPE_EDFPLUS)
    try:
        writer.setSignalHeaders([_signal_header(channel) for channel in channels])
        writer.setStartdatetime(_start(seed, subject, body.first_epoch))
        writer.setPatientCode(path.stem)
        writer.setSex(1 if body.subject.sex == "M" else 0)
        writer.setPatientAdditional(f"age_{body.subject.age:g}")
        writer.setEquipment("sleepfm_fast_simulator")
        for row in records:
            writer.blockWriteDigitalShortSamples(row)
        for onset_s, length_s, text in annotations:
            writer.writeAnnotation(onset_s, length_s, text)
    finally:
        writer.close()
    # The writer says nothing of a full disk.
    if not _is_whole(temporary, records, len(annotations)):
        temporary.unlink(missing_ok=True)
        raise SleepfmError(
            f"{path} could not be written whole; the disk is full or failing. Free space; the same command continues."
        )
    temporary.replace(path)


def _is_whole(file: Path, records: NDArray[np.int16], n_annotations: int) -> bool:
    """Whether the file holds all records and annotations, on the disk."""
    try:
        synchronise(file)
        found = read_recording(file)
        width = found.record_bytes // 2
        written = np.fromfile(file, "<i2", found.n_records * width, offset=found.header_bytes).reshape(-1, width)
    except (OSError, ValueError, SleepfmError):
        return False
    same = np.array_equal(written[:, : records.shape[1]], records)
    return same and len(found.annotations) == n_annotations


def _epochs(config: Config) -> int:
    n_epochs = round(config.hours * 3600 / EPOCH_S) if math.isfinite(config.hours) else 0
    if config.subjects < 1:
        raise SleepfmError(f"--subjects is {config.subjects}; give at least 1.")
    if not 4 <= n_epochs <= 24 * 120 or abs(n_epochs * EPOCH_S - config.hours * 3600) > 0.5:
        raise SleepfmError(
            f"--hours is {config.hours:g}; give 0.0334 (2 min) to 24 hours that are a multiple of 30 s, such as 1 or 8."
        )
    if config.seed < 0 or config.workers < 0:
        raise SleepfmError(f"--seed is {config.seed} and --workers is {config.workers}; neither can be negative.")
    for name, strength in dataclasses.asdict(config.couplings).items():
        if not 0 <= strength <= 1:
            raise SleepfmError(f"--couplings.{name.replace('_', '-')} is {strength:g}; give 0 (off) to 1.")
    return n_epochs


def _take(config: Config) -> str:
    """Take the folder for these options, or refuse it; returns what names in it begin with."""
    own, prefix = prefix_of(config.seed), name_prefix(config.out, config.seed)
    options = dataclasses.asdict(dataclasses.replace(config, out=Path(), workers=0))
    options = {name: value for name, value in options.items() if name not in ("out", "workers")}
    card = config.out / CARD
    if config.out.exists() and not config.out.is_dir():
        raise SleepfmError(f"{config.out} is a file; give the name of a new or empty folder.")
    if card.exists():
        found = read_card(config.out)
        if found is None or {**found, "prefix": prefix} != {**options, "prefix": prefix} or prefix not in (own, PREFIX):
            raise SleepfmError(
                f"{config.out} holds a cohort with other options ({command.to_json(found)}); give another folder, "
                "the same options, or remove it."
            )
        remove_leftovers(config.out)
        if prefix != own:
            command.say(
                f"notice: {config.out} was begun by an earlier version and continues with its names, {prefix}0000, "
                "..., which other cohorts of that version have too."
            )
        return prefix
    if config.out.exists() and any(config.out.iterdir()):
        raise SleepfmError(f"{config.out} is not empty and not a simulated cohort; give a new or empty folder.")
    config.out.mkdir(parents=True, exist_ok=True)
    _write_text(card, command.to_json({**options, "prefix": prefix}, indent=1) + "\n")
    return prefix


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())


def _start(seed: int, subject: int, first_epoch: int) -> datetime:
    rng = Random(seed, subject)("start")
    evening = datetime(2000 + int(rng.integers(0, 40)), 1, 1, 22) + timedelta(days=int(rng.integers(0, 365)))
    return evening + timedelta(seconds=int(rng.integers(0, 3600)) + first_epoch * EPOCH_S)


def _signal_header(channel: Channel) -> dict[str, Any]:
    return {
        "label": channel.label,
        "dimension": channel.unit,
        "sample_frequency": channel.fs_hz,
        "physical_min": channel.low,
        "physical_max": channel.high,
        "digital_min": DIGITAL[0],
        "digital_max": DIGITAL[1],
        "transducer": channel.transducer,
        "prefilter": "",
    }


def _digital(channel: Channel) -> NDArray[np.int16]:
    steps = (DIGITAL[1] - DIGITAL[0]) / (channel.high - channel.low)
    digital = np.rint((channel.samples.astype(np.float64) - channel.low) * steps + DIGITAL[0])
    return np.asarray(np.clip(digital, *DIGITAL), dtype=np.int16)


def _annotations(body: Physiology) -> list[tuple[float, float, str]]:
    bounds = np.flatnonzero(np.diff(body.stages, prepend=-1, append=-1))
    stages = [
        (float(a * EPOCH_S), float((b - a) * EPOCH_S), STAGE_TEXTS[body.stages[a]])
        for a, b in itertools.pairwise(bounds)
    ]
    arousals = [(arousal.onset_s, arousal.duration_s, "EEG arousal") for arousal in body.arousals]
    events = [(event.onset_s, event.duration_s, event.name) for event in body.events]
    return stages + events + arousals


def cli(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return command.run(
        Config,
        main,
        argv,
        interrupted="what was finished is kept; the same command continues from there",
        following=after_nights,
    )


if __name__ == "__main__":
    sys.exit(cli())
