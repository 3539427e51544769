"""A classifier's predictions as files that other software reads: tables, EDF+ annotations, the figures of each night.

::

    PREDICTIONS/
      predictions.json     what made them, columns, counts; written last
      predictions.csv      a row a clip: subject, recording, onset_s, duration_s, predicted, p_CLASS of each, scored
      nights.csv           a row a night: figures and agreement with the scorer (``predicted_nights``)
      agreement.csv        of sleep stages, where nights are scored: the figures' bias (``sleep_agreement``)
      hypnograms/          of sleep stages, a night each: NAME-Hypnogram.edf (EDF+) and NAME-hypnogram.csv
      breathing/           of breathing, a night each: NAME-Breathing.edf (EDF+) and NAME-breathing.csv
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import plain, say, to_json
from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.evaluation.predicted_nights import night_columns, night_row
from sleepfm_fast.evaluation.sleep_agreement import AGREEMENT_COLUMNS, say_agreement, sleep_agreement
from sleepfm_fast.formats.edf_header import MONTHS
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.storage.atomic import replace_folder, synchronise_below
from sleepfm_fast.storage.csv_table import csv_table
from sleepfm_fast.storage.standing import FolderKind, claimed_folder

__all__ = ["Predicted", "claimed_predictions", "edf_annotations", "stage_spans", "starts_of", "write_predictions"]

FILE = "predictions.json"
KIND = FolderKind("a folder of predictions", FILE)
HEAD = ("format", "version", "made_of")
ROWS = 4096
"""Rows of ``predictions.csv`` that are in memory at a time."""
RECORD_BYTES = 60_000
"""Size up to which a data record is filled: EDF allows 61,440 bytes."""


@dataclass(frozen=True)
class Predicted:
    """Clips and a classifier's predictions for them.

    Attributes
    ----------
    names : tuple of str
        Class of each column of ``probability``.
    probability : float64 [n, k]
        A row is NaN where the clip has no prediction.
    recording, subject : int [n]
        Indices into ``recordings`` and ``subjects``.
    onset_s : float64 [n]
        Start of the clip from the recording's start.
    scored : int8 [n]
        The scorer's class as an index into ``all_names``, -1 where there is none.
    all_names : tuple of str
        Every class of the task, including those that the classifier was not trained on.
    split : sequence of str, optional
        For each clip the classifier's split that its subject was in (train, validation or test), empty where the
        classifier does not know the subject.
    missing : mapping of str to sequence of str, optional
        For each recording the channels of the classifier's inputs that it lacks, where that is known.
    """

    names: tuple[str, ...]
    probability: npt.NDArray[np.float64]
    recording: npt.NDArray[Any]
    subject: npt.NDArray[Any]
    onset_s: npt.NDArray[np.float64]
    scored: npt.NDArray[Any]
    all_names: tuple[str, ...]
    recordings: Sequence[str]
    subjects: Sequence[str]
    split: Sequence[str] | None = None
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """True for the clips that have a prediction: bool [n]."""
        known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(self.probability).all(axis=1))
        return known

    @property
    def unpredicted(self) -> list[str]:
        """The recordings of which no clip has a prediction."""
        predicted = np.zeros(len(self.recordings), np.bool_)
        predicted[np.asarray(self.recording)[self.known]] = True
        return [self.recordings[i] for i in np.unique(self.recording).tolist() if not predicted[i]]

    @property
    def words(self) -> list[str]:
        """The name of every clip's most probable class, empty where it has no prediction."""
        known = self.known
        best = np.where(known[:, None], self.probability, 0.0).argmax(axis=1)
        return [self.names[k] if there else "" for k, there in zip(best.tolist(), known.tolist(), strict=True)]


def starts_of(store: Path, recordings: Iterable[str]) -> dict[str, datetime]:
    """Return when recordings of a store started; those whose records are unreadable or do not tell are left out."""
    found: dict[str, datetime] = {}
    for name in recordings:
        record = read_object(store / "recordings" / f"{name}.json")
        with suppress(ValueError, TypeError):
            found[name] = datetime.fromisoformat(record.get("start", ""))
    return found


@contextmanager
def claimed_predictions(
    path: Path | None, *, overwrite: bool, made_of: Mapping[str, Any]
) -> Iterator[dict[str, Any] | None]:
    """Claim a folder for this process by :func:`sleepfm_fast.storage.standing.claimed_folder`.

    Yields what :func:`write_predictions` returned for the folder that stands there, if it was made of ``made_of``; else
    None.
    """
    with claimed_folder(path, KIND, overwrite=overwrite, made_of=made_of) as record:
        yield None if record is None else {name: value for name, value in record.items() if name not in HEAD}


def write_predictions(
    path: Path,
    record: Mapping[str, Any],
    found: Predicted,
    starts: Mapping[str, datetime],
    *,
    task: str,
    made_of: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the folder, all or nothing, and return its record.

    Parameters
    ----------
    path : Path
    record : mapping
        What made the predictions; counts are added to it.
    found : Predicted
    starts : mapping of str to datetime
        Start of recordings. A night without one gets no EDF+ annotations, since their clock would be wrong.
    task : str
        For sleep stages and for breathing, annotations of each night are written too.
    made_of : mapping
        What the predictions depend on (:func:`sleepfm_fast.storage.standing.key_of`).
    """
    words, nights = found.words, []
    with replace_folder(path) as folder:
        with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
            _write_predictions(file, found, words)
        kind = ANNOTATED.get(task)
        if kind is not None:
            (folder / kind.folder).mkdir()
        n_nights = len(np.unique(found.recording))
        stems = file_stems(found.recordings[i] for i in np.unique(found.recording).tolist())
        for rows in progress_bar(_nights(found), total=n_nights, desc="write", unit="night"):
            name, onsets = found.recordings[found.recording[rows[0]]], found.onset_s[rows].tolist()
            classes = [words[i] for i in rows.tolist()]
            nights.append(night_row(found, task, rows.tolist(), classes))
            if kind is None:
                continue
            spans = kind.spans(onsets, classes)
            stem = stems[name]
            text = kind.table(onsets, classes) if kind.table is not None else table_of(spans)
            _write(folder / kind.folder / f"{stem}-{kind.ending.lower()}.csv", text.encode())
            if name in starts:
                _write(folder / kind.folder / f"{stem}-{kind.ending}.edf", edf_annotations(starts[name], spans))
        _write(folder / "nights.csv", csv_table(night_columns(task, found.names), nights).encode())
        compared = sleep_agreement(nights) if task == "stage" else []
        if compared:
            _write(folder / "agreement.csv", csv_table(AGREEMENT_COLUMNS, compared).encode())
        unstarted = sorted({found.recordings[i] for i in np.unique(found.recording).tolist()} - set(starts))
        if kind is not None and unstarted:
            say(
                f"notice: when {counted(len(unstarted), 'recording')} started is not known (such as {unstarted[0]}); "
                f"{agreeing(len(unstarted), 'it has', 'they have')} a CSV and no EDF+ annotations."
            )
        unpredicted = found.unpredicted
        if unpredicted:
            say(
                f"notice: {counted(len(unpredicted), 'recording')} ({first_of(unpredicted, 3)}) "
                f"{agreeing(len(unpredicted), 'has', 'have')} no prediction: no clip of "
                f"{agreeing(len(unpredicted), 'it', 'them')} has all that the classifier needs."
            )
        full = {
            **record,
            "classes": found.names,
            "clips": len(words),
            "clips_without_prediction": int((~found.known).sum()),
            "recordings": n_nights,
            "recordings_without_prediction": unpredicted,
            "missing_channels": {name: list(lacks) for name, lacks in found.missing.items() if lacks},
            "predicted": {name: words.count(name) for name in found.names},
        }
        head = {"format": "sleepfm_fast predictions", "version": 1, "made_of": made_of}
        _write(folder / FILE, (to_json({**head, **plain(full)}, indent=1) + "\n").encode())
        synchronise_below(folder)
    say_agreement(compared)
    say(f"wrote {path}")
    result: dict[str, Any] = plain(full)
    return result


def file_stems(recordings: Iterable[str]) -> dict[str, str]:
    """Return a name without a slash, which joined stores have (training/night1), for the files of each recording.

    Where two would share one (``a/b`` and ``a-b``), the name without a slash keeps it, and the others are numbered.
    """
    stems: dict[str, str] = {}
    taken = set(names := sorted(recordings))
    for name in names:
        stem = wanted = name.replace("/", "-")
        number = 1
        while stem != name and stem in taken:
            number += 1
            stem = f"{wanted}-{number}"
        taken.add(stem)
        stems[name] = stem
    return stems


def _nights(found: Predicted) -> Iterator[npt.NDArray[np.int64]]:
    """Yield every night's clips in the order of time: sorted once, not looked for among all clips night by night."""
    order = np.lexsort((found.onset_s, found.recording))
    yield from np.split(order, np.flatnonzero(np.diff(found.recording[order])) + 1)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def _write_predictions(file: TextIO, found: Predicted, words: Sequence[str]) -> None:
    """Write the rows of all clips, some thousands at a time: as lists, those of a large cohort take gigabytes."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["subject", "recording", "onset_s", "duration_s", "predicted", *(f"p_{name}" for name in found.names), "scored"]
    )
    for begin in range(0, len(words), ROWS):
        part = slice(begin, begin + ROWS)
        columns = (found.subject, found.recording, found.onset_s, found.scored, found.probability)
        of_part = zip(words[part], *(column[part].tolist() for column in columns), strict=True)
        for word, subject, recording, onset_s, scored, p in of_part:
            writer.writerow(
                [
                    found.subjects[subject],
                    found.recordings[recording],
                    f"{onset_s:.10g}",
                    EPOCH_S,
                    word,
                    *(f"{value:.5f}" if math.isfinite(value) else "" for value in p),
                    found.all_names[scored] if scored >= 0 else "",
                ]
            )


Spans = list[tuple[float, float, str]]


def stage_spans(onsets_s: Sequence[float], stages: Sequence[str]) -> Spans:
    """Return onset, length and EDF+ text (``Sleep stage W``) of a night's stages, runs of equal epochs merged."""
    return joined((onset_s, f"Sleep stage {stage or '?'}") for onset_s, stage in zip(onsets_s, stages, strict=True))


def event_spans(onsets_s: Sequence[float], classes: Sequence[str]) -> Spans:
    """Return the stretches of epochs with a respiratory event; where in them the event begins is not known."""
    found = zip(onsets_s, classes, strict=True)
    return joined((onset_s, "Epochs with respiratory event") for onset_s, name in found if name == "event")


def joined(epochs: Iterable[tuple[float, str]]) -> Spans:
    """Return epochs as onset, length and text, with adjacent epochs of the same text merged."""
    spans: Spans = []
    for onset_s, text in epochs:
        last = spans[-1] if spans else None
        if last is not None and last[2] == text and abs(last[0] + last[1] - onset_s) < 1e-6:
            spans[-1] = (last[0], last[1] + EPOCH_S, text)
        else:
            spans.append((onset_s, float(EPOCH_S), text))
    return spans


def stage_table(onsets_s: Sequence[float], stages: Sequence[str]) -> str:
    """Return a night's stages as CSV, one row per epoch."""
    rows = (f"{o:.10g},{EPOCH_S},{s or '?'}\n" for o, s in zip(onsets_s, stages, strict=True))
    return "onset,duration,stage\n" + "".join(rows)


def table_of(spans: Spans) -> str:
    """Return annotations as CSV."""
    return "onset,duration,description\n" + "".join(f"{o:.10g},{d:.10g},{text}\n" for o, d, text in spans)


@dataclass(frozen=True)
class Annotated:
    """How a task's predictions are written as annotations: folder, end of the files' names, content."""

    folder: str
    ending: str
    spans: Callable[[Sequence[float], Sequence[str]], Spans]
    table: Callable[[Sequence[float], Sequence[str]], str] | None = None


ANNOTATED = {
    "stage": Annotated("hypnograms", "Hypnogram", stage_spans, stage_table),
    "sdb": Annotated("breathing", "Breathing", event_spans),
}


def edf_annotations(start: datetime, spans: Spans) -> bytes:
    """Return an EDF+ file that holds only annotations: onset and length in seconds, and text.

    An EDF header has whole seconds: the file starts at the one at or before the recording's start, and the fraction is
    added to the onsets.
    """
    start = start.replace(tzinfo=None)
    begin = start.replace(microsecond=0)
    shift_s = (start - begin) / timedelta(seconds=1)
    texts = [
        f"+{onset_s + shift_s:.10g}\x15{length_s:.10g}\x14{text}\x14\0".encode() for onset_s, length_s, text in spans
    ]
    records: list[bytes] = [b"+0\x14\x14\0"]
    for text in texts:
        if len(records[-1]) + len(text) > RECORD_BYTES:
            records.append(b"+0\x14\x14\0")
        records[-1] += text
    size = -(-max(map(len, records)) // 2) * 2
    day = f"{begin.day:02}-{MONTHS[begin.month - 1]}-{begin.year}"
    fields = (
        *(("0", 8), ("X X X X", 80), (f"Startdate {day} X sleepfm_fast X", 80)),
        *((begin.strftime("%d.%m.%y"), 8), (begin.strftime("%H.%M.%S"), 8), ("512", 8), ("EDF+C", 44)),
        *((str(len(records)), 8), ("0", 8), ("1", 4), ("EDF Annotations", 16), ("", 80), ("", 8)),
        *(("-1", 8), ("1", 8), ("-32768", 8), ("32767", 8), ("", 80), (str(size // 2), 8), ("", 32)),
    )
    header = "".join(text.ljust(width) for text, width in fields).encode("ascii")
    return header + b"".join(record.ljust(size, b"\0") for record in records)
