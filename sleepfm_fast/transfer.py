"""``python -m sleepfm_fast.transfer TRAINING TESTING EMBEDDINGS``: two laboratories' embeddings as one folder.

A probe of that folder is fitted on the first laboratory and tested on the second: the external validation of a probe.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import run, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.reporting.following import after_transfer

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Description, Embeddings
    from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter

    Clips = npt.NDArray[np.int64]

__all__ = ["Config", "cli", "main"]

BLOCK = 4096  # clips in memory at a time
SIDES = ("training", "testing")


@dataclass(frozen=True)
class Config(TakesPaths):
    """Join one embeddings folder's training and validation clips with another's test clips, for probe and few_shot.

    Both must be embedded by one run, each from its own store. The other laboratory's training subjects are left out
    unless --subjects all includes them. Hand-made features are joined in the same way. After a kill or an interruption,
    the same command continues where it stopped. If the same command has already finished EMBEDDINGS, it says so and
    exits with status 0.
    """

    training: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRAINING")]
    """Embeddings that provide the training and validation clips."""
    testing: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TESTING")]
    """Embeddings of another store, by the same run, that provide the test clips."""
    embeddings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Folder to write."""
    subjects: Literal["test", "all"] = "test"
    """Subjects of TESTING. test: test subjects by the split it was embedded with; all: everybody, which is right for a
    store that nothing was ever trained on. Subjects that the run was trained on, and those with the name of somebody in
    TRAINING, are counted in a notice and in the record."""
    overwrite: bool = False
    """Replace an existing EMBEDDINGS folder once the new one is complete."""

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("TRAINING", self.training, Kind.EMBEDDINGS, Kind.FEATURES),
            reads("TESTING", self.testing, Kind.EMBEDDINGS, Kind.FEATURES),
            writes("EMBEDDINGS", self.embeddings, Kind.EMBEDDINGS, Kind.FEATURES),
        ]


def main(config: Config) -> dict[str, Any]:
    """Join; subjects and recordings are named after their side, so that equal names in two stores stay two subjects.

    Raises
    ------
    SleepfmError
        When a side has no clips to give, both are of one store, or their embeddings cannot stand in one matrix.
    """
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.changed_store import say_changed_store
    from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter, is_finished
    from sleepfm_fast.evaluation.subject_splits import encoder_splits
    from sleepfm_fast.evaluation.tasks import TASKS, labels_of
    from sleepfm_fast.storage.definitions import ENTRY, FIRST
    from sleepfm_fast.storage.standing import digest_of_file, key_of

    sides = first, second = Embeddings(config.training), Embeddings(config.testing)
    for side in sides:
        say_changed_store(side)
    _refuse_unlike(first, second)
    tested = np.arange(len(second)) if config.subjects == "all" else second.clips_of("test")
    rows = (first.clips_of("train", "validation"), tested)
    for split, clips, side in zip(("training", "test"), rows, sides, strict=True):
        if not clips.size:
            more = " --subjects all takes everybody." if split == "test" else ""
            raise SleepfmError(f"{side.path} has no {split} clips to give; its split rule left that side empty.{more}")
    if not any((labels_of(second, task, tested) >= 0).any() for task in TASKS):
        say(
            f"notice: no clip of {config.testing} that is taken has a stage, an event, an age or a sex: there is "
            f"nothing to test on. To classify them, fit a probe on {config.training} and apply it with predict."
        )
    trained_names, tested_names = (
        [side.description.subjects[s] for s in np.unique(np.asarray(side.subject)[clips])]
        for side, clips in zip(sides, rows, strict=True)
    )
    note = _shared_note(set(trained_names), encoder_splits(second.description.presets), tested_names)
    if note:
        say(f"notice: {note}")
    columns = _joined_columns(sides, rows)
    description = _joined_description(config, first, second, note)
    n_clips = sum(map(len, rows))
    inputs: dict[str, Any] = {
        name: digest_of_file(side.path / "embeddings.json") for name, side in zip(SIDES, sides, strict=True)
    }
    if first.definitions not in (None, FIRST):
        inputs[ENTRY] = first.definitions
    key = key_of("transfer", config, inputs)
    if config.overwrite or not is_finished(config.embeddings, key, columns, description):
        with EmbeddingWriter(
            config.embeddings,
            n_clips,
            first.modalities,
            first.dim,
            features=first.features or None,
            overwrite=config.overwrite,
            key=key,
        ) as writer:
            _copy(sides, rows, writer)
            writer.finish(columns, description)
    return {
        "embeddings": config.embeddings,
        "training_clips": int((columns["split"] == 0).sum()),
        "validation_clips": int((columns["split"] == 1).sum()),
        "test_clips": len(tested),
        "test_subjects": len(tested_names),
        "overlap": bool(note),
        "overlap_note": note,
    }


def _refuse_unlike(first: Embeddings, second: Embeddings) -> None:
    """Raise where the vectors of two folders cannot stand in one matrix, or both are of one store."""
    if (first.kind, first.features) != (second.kind, second.features):
        raise SleepfmError(
            f"{first.path} holds {_content(first)}, {second.path} {_content(second)}; a probe needs the same of both."
            + (
                " Measure the second cohort from a store with the channels of the first: `python -m "
                "sleepfm_fast.preprocess FILES-OR-FOLDER STORE2 --like "
                f"{shlex.quote(str(first.store_path))}`, then features."
                if first.kind == second.kind == "feature"
                else ""
            )
        )
    if first.definitions != second.definitions:
        raise SleepfmError(
            f"the features of {first.path} were measured by definitions {first.definitions}, those of {second.path} by "
            f"definitions {second.definitions}: numbers of one name are not the same quantity. Measure both stores "
            "with one version of `python -m sleepfm_fast.features` (--overwrite)."
        )
    if (first.modalities, first.dim) != (second.modalities, second.dim):
        raise SleepfmError(
            f"{first.path} holds {', '.join(first.modalities)} of length {first.dim}, {second.path} "
            f"{', '.join(second.modalities)} of length {second.dim}; embed both stores with the same run."
        )
    made_by = [e.weights or e.description.run for e in (first, second)]
    if made_by[0] != made_by[1]:
        again = first.description.run == second.description.run
        raise SleepfmError(
            f"{first.path} was embedded by {first.description.run}, {second.path} by "
            f"{second.description.run}{', whose weights have changed in between' if again else ''}; embed both stores "
            "with the same run."
        )
    if first.store_path.resolve() == second.store_path.resolve():
        raise SleepfmError(
            f"both folders are of the store {first.description.store}; external validation is between two stores."
        )


def _joined_columns(sides: tuple[Embeddings, Embeddings], rows: tuple[Clips, Clips]) -> dict[str, Any]:
    """Columns of the chosen clips of both sides, one below the other."""
    from sleepfm_fast.embeddings import COLUMNS

    columns: dict[str, Any] = {
        name: np.concatenate([np.asarray(getattr(e, name))[clips] for e, clips in zip(sides, rows, strict=True)])
        for name in COLUMNS
    }
    n, about = len(rows[0]), sides[0].description
    # A store with one subject serves all splits; here its side decides.
    columns["split"][n:] = 2
    if about.overlap:
        columns["split"][:n] = 0
    columns["subject"][n:] += len(about.subjects)
    columns["recording"][n:] += len(about.recordings)
    return columns


def _joined_description(config: Config, first: Embeddings, second: Embeddings, note: str) -> Description:
    """Describe both sides together; ``note`` says that somebody seems to be on both."""
    from sleepfm_fast.embeddings import Description
    from sleepfm_fast.evaluation.subject_splits import PREFIXES

    a, b = first.description, second.description
    return Description(
        subjects=(*(f"{PREFIXES[0]}/{s}" for s in a.subjects), *(f"{PREFIXES[1]}/{s}" for s in b.subjects)),
        recordings=(*(f"{PREFIXES[0]}/{r}" for r in a.recordings), *(f"{PREFIXES[1]}/{r}" for r in b.recordings)),
        ages=(*a.ages, *b.ages),
        sexes=(*a.sexes, *b.sexes),
        recording_ages=(*_recording_ages(first), *_recording_ages(second)),
        run=a.run,
        store=f"{a.store} (training), {b.store} (test)",
        split_rule=f"training and validation: {a.split_rule}; test: "
        f"{'all subjects' if config.subjects == 'all' else 'the test subjects'} of {b.store}",
        presets={
            **a.presets,
            **({"subjects_seen": _seen_by_encoder(a, b)} if "weights" in a.presets else {}),
            "joined": {
                "training": str(config.training.resolve()),
                "testing": str(config.testing.resolve()),
                "subjects": config.subjects,
            },
        },
        overlap=bool(note),
        overlap_note=note,
    )


def _copy(sides: tuple[Embeddings, Embeddings], rows: tuple[Clips, Clips], writer: EmbeddingWriter) -> None:
    """Copy the chosen clips' vectors, from the first on that a stopped run has not written."""
    done = writer.n_written
    with progress_bar(total=sum(map(len, rows)), initial=done, desc="transfer", unit="clip") as bar:
        for side, clips in zip(sides, rows, strict=True):
            for start in range(min(done, len(clips)), len(clips), BLOCK):
                chosen = clips[start : start + BLOCK]
                writer.append(side.vectors[chosen], side.mask[chosen])
                bar.update(len(chosen))
            done = max(done - len(clips), 0)


def _shared_note(trained: set[str], encoder: Mapping[str, str], tested: Sequence[str]) -> str:
    """Say how many of those who are tested have been seen; empty where nobody has.

    ``trained`` are the names of the training side, ``encoder`` those of TESTING that the encoder has seen.
    """
    note = ""
    if of_encoder := [name for name in tested if name in encoder]:
        note = (
            f"{len(of_encoder)} of the {counted(len(tested), 'subject')} tested "
            f"{agreeing(len(of_encoder), 'is one', 'are some')} that the encoder was trained or validated on "
            f"({first_of(of_encoder, 3)}): their clips describe memorisation, not generalisation."
        )
    if seen := [name for name in tested if name in trained and name not in encoder]:
        note += (" " if note else "") + (
            f"{len(seen)} of the {counted(len(tested), 'subject')} tested "
            f"{agreeing(len(seen), 'has the name', 'have the names')} of training or validation subjects "
            f"({first_of(seen, 3)}). If "
            "they are the same people, their clips describe memorisation, not generalisation."
        )
    return note


def _seen_by_encoder(first: Description, second: Description) -> dict[str, str]:
    """Subjects of the joined folder that the encoder has seen, and in which split."""
    from sleepfm_fast.evaluation.subject_splits import PREFIXES, encoder_splits

    return {
        f"{side}/{name}": split
        for side, about in zip(PREFIXES, (first, second), strict=True)
        for name, split in encoder_splits(about.presets).items()
    }


def _recording_ages(embeddings: Embeddings) -> tuple[float | None, ...]:
    """Age at every recording; of a folder that does not keep it, that of the recording's subject."""
    about = embeddings.description
    if about.recording_ages:
        return about.recording_ages
    ages: list[float | None] = [None] * len(about.recordings)
    recordings, first_row = np.unique(np.asarray(embeddings.recording), return_index=True)
    for recording, subject in zip(recordings, np.asarray(embeddings.subject)[first_row], strict=True):
        ages[recording] = about.ages[subject]
    return tuple(ages)


def _content(embeddings: Embeddings) -> str:
    if embeddings.kind != "feature":
        return "embeddings"
    return "features (" + ", ".join(f"{len(names)} {m}" for m, names in embeddings.features.items()) + ")"


def cli(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    kept = "clips that were joined are kept beside EMBEDDINGS; the same command continues from there"
    return run(Config, main, argv, interrupted=kept, following=after_transfer)


if __name__ == "__main__":
    sys.exit(cli())
