"""Cohorts of thousands of nights: what is done for one night must not grow with their number (operations count)."""

from __future__ import annotations

import fnmatch
import io
import itertools
import json
import os
import pickle
import random
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from nights import write_night

from sleepfm_fast import preprocess
from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import to_json
from sleepfm_fast.cohorts import cohort, ingest, participants
from sleepfm_fast.cohorts.corrections import Corrections, read_corrections
from sleepfm_fast.cohorts.participants import Participant, Participants
from sleepfm_fast.cohorts.participants_file import read_participants
from sleepfm_fast.doctor import inspection
from sleepfm_fast.evaluation import predictions
from sleepfm_fast.evaluation.predictions import Predicted, write_predictions
from sleepfm_fast.scoring.files import find_scoring, find_scorings, namesakes_of
from sleepfm_fast.scoring.folder_owners import FolderOwners

N = 200
LONG_AGO = 1_600_000_000


def counted_calls(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[object]:
    """Arguments of every call of a function from now on."""
    calls: list[object] = []
    original = getattr(module, name)

    def counting(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, counting)
    return calls


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0")
    return path


def test_a_folder_of_many_nights_is_listed_once(tmp_path, monkeypatch):
    nights = [tmp_path / f"n{i:03}.edf" for i in range(N)]
    scorings = [write(night.with_suffix(".csv")) for night in nights]
    os.utime(tmp_path, (LONG_AGO, LONG_AGO))
    calls = counted_calls(monkeypatch, os, "scandir")
    assert [find_scorings(night) for night in nights] == [(scoring,) for scoring in scorings]
    assert len(calls) == 1
    # What was there when the folder was listed may be gone, and what comes is found.
    scorings[0].unlink()
    os.utime(tmp_path, (LONG_AGO, LONG_AGO))
    assert find_scoring(nights[0]) is None
    write(scorings[0])
    assert find_scoring(nights[0]) == scorings[0]
    # A folder that was just changed may change again within the same tick of its clock.
    later = write(tmp_path / "n000.xml")
    assert find_scoring(nights[0]) == later


def test_the_owners_of_scorings_are_those_that_are_most_alike():
    """All pairs compared, as the rule says it."""

    def alike(one: Path, other: Path) -> tuple[int, int]:
        a, b = one.parent.parts[::-1], other.parent.parts[::-1]
        run = len(list(itertools.takewhile(lambda pair: pair[0].casefold() == pair[1].casefold(), zip(a, b))))  # noqa: B905
        return run, len({x.casefold() for x in a} & {x.casefold() for x in b})

    for seed in range(40):
        draw = random.Random(seed)
        words = ["a", "B", "b", "site1", "site2", "edf", *map(str, range(draw.choice([2, 80])))]

        def places(root: str, name: str, n: int, draw: random.Random = draw, words: list[str] = words) -> list[Path]:
            found = {Path(root, *draw.choices(words, k=draw.randint(0, 3)), name) for _ in range(n)}
            return sorted(found)

        recordings = places("/data/nights", "night1.edf", draw.choice([1, 5, 60, 120]))
        scorings = places(draw.choice(["/data/labels", "/data/nights"]), "night1.csv", draw.choice([1, 5, 60]))
        owners = FolderOwners(scorings, recordings)
        best = {f: max(alike(r, f) for r in recordings) for f in scorings}
        for recording in recordings:
            own = [f for f in scorings if alike(recording, f) == best[f]]
            most = max((best[f] for f in own), default=None)
            expected = [f for f in own if best[f] == most]
            found = owners.of(recording)
            assert set(found) <= set(expected)
            assert min(len(found), 2) == min(len(expected), 2)
        for f in scorings:
            assert owners.n_owners(f) == sum(alike(r, f) == best[f] for r in recordings)
        assert Path("/data/elsewhere/night1.edf") not in owners


@pytest.mark.parametrize("deeper", ["", "psg"])
def test_nights_of_one_name_are_not_compared_in_pairs(tmp_path, monkeypatch, deeper):
    nights = [tmp_path / "edf" / f"site{i % 7}" / f"s{i:03}" / deeper / "night1.edf" for i in range(N)]
    scorings = [write(tmp_path / "labels" / f"site{i % 7}" / f"s{i:03}" / "night1.csv") for i in range(N)]
    namesakes = namesakes_of(nights)
    calls = counted_calls(monkeypatch, os.path, "realpath")
    assert [find_scoring(night, tmp_path / "labels", namesakes) for night in nights] == scorings
    assert len(calls) < 20 * N
    assert find_scoring(tmp_path / "edf" / "site1" / "s1000" / "night1.edf", tmp_path / "labels", namesakes) is None
    # They go to a worker with every night.
    assert len(pickle.dumps(namesakes)) < 3 * sum(len(str(night)) for night in nights)
    # Beside the recordings nothing has to be told apart.
    own = [write(night.with_suffix(".csv")) for night in nights]
    calls.clear()
    assert [find_scoring(night, None, namesakes) for night in nights] == own
    assert len(calls) < 20 * N


def test_rows_of_one_file_name_are_looked_up_by_their_folders(monkeypatch):
    rows = [Participant(f"site{i % 7}\\S{i:03}/night1.edf", f"p{i}", None, None) for i in range(N)]
    table = Participants(rows=(*rows, Participant("night1", "anybody", None, None)))
    calls = counted_calls(monkeypatch, participants, "same_text")
    found = [table.of(Path(f"/data/site{i % 7}/s{i:03}/night1.edf")).subject for i in range(N)]
    assert found == [f"p{i}" for i in range(N)]
    assert len(calls) < 50 * N
    assert table.of(Path("/data/site9/s000/night1.edf")).subject == "anybody"


def test_corrections_of_every_night_are_looked_up(tmp_path, monkeypatch):
    content: dict[str, object] = {f"s{i:03}/Night1.edf": {"ECG": {"invert": True}} for i in range(N)}
    content |= {"*": {"EEG": {"alias": "C3-M2"}}, "s001/*.edf": {"ECG": {"unit": "mV"}}, "s[12]0?/*": "exclude"}
    content |= {f"s{i:03}/night2.edf": "exclude" for i in range(N)}
    (tmp_path / "overrides.json").write_text(json.dumps(content))
    corrections = read_corrections(tmp_path / "overrides.json")
    path = Path("/data/s001/night1.edf")
    own = corrections.of(path)
    assert [entry[:2] for entry in own.entries] == [("s001/Night1.edf", "ECG"), ("*", "EEG"), ("s001/*.edf", "ECG")]
    assert own.digest(path) == corrections.digest(path) != ""
    assert (
        corrections.digest(Path("/data/night1.edf"))
        == Corrections(entries=corrections.entries[N : N + 1]).digest(path)
        != ""
    )
    assert [corrections.excludes(Path(f"/d/s{i:03}/night1.edf")) for i in (1, 100, 209, 210)] == [
        False,
        True,
        True,
        False,
    ]
    assert corrections.excludes(Path("/d/s001/night2.edf"))
    assert not corrections.excludes(Path("night2.edf"))
    calls = counted_calls(monkeypatch, fnmatch, "fnmatchcase")
    for i in range(N):
        corrections.digest(Path(f"/data/s{i:03}/night1.edf"))
        corrections.excludes(Path(f"/data/s{i:03}/night1.edf"))
    assert corrections.unused([(Path(f"/data/s{i:03}/night1.edf"), ()) for i in range(N)])[0] == "'s000/night2.edf'"
    assert len(calls) < 20 * N


def test_what_is_said_of_rows_is_said_of_a_few(tmp_path):
    lines = [f"n{i},S{i // 2},{365 * i}.5,{'MF'[i % 2] if i < 100 else f'x{i}'}" for i in range(N)]
    (tmp_path / "p.csv").write_text("\n".join(["recording,subject,age,sex", *lines, *[",,50,M"] * N]))
    issues = read_participants(tmp_path / "p.csv").issues
    assert len(issues) == 24
    assert [issue for issue in issues if " more " in issue] == [
        "p.csv: 194 more ages are left out.",
        "p.csv: 195 more rows are left out.",
        "p.csv: 95 more texts are no sexes.",
        "p.csv: 95 more subjects have two sexes.",
    ]


def test_the_inspection_s_report_is_written_night_by_night(tmp_path, monkeypatch, capsys):
    for i in range(12):
        write_night(tmp_path / f"n{i:02}.edf", stages="W2")
    write(tmp_path / "broken.edf")
    lengths: list[int] = []

    def counting(value: object, *, indent: int | None = None) -> str:
        text = to_json(value, indent=indent)
        lengths.append(len(text))
        return text

    monkeypatch.setattr(inspection, "to_json", counting)
    status = preprocess.cli(["--inspect", str(tmp_path), "--workers", "1", "--json", str(tmp_path / "report.json")])
    text = (tmp_path / "report.json").read_text()
    report = json.loads(text)
    assert (status, len(report["files"]), report["nights"]) == (1, 13, 12)
    assert text == to_json(report, indent=1) + "\n"
    assert 5 * max(lengths) < len(text)
    assert "findings" not in report["files"][0]


def test_predictions_of_many_nights_are_sorted_once_and_written_in_pieces(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    recording = draw.permutation(np.repeat(np.arange(N), 3)).astype(np.int32)
    onset_s = draw.permutation(3 * N) * 30.0
    probability = draw.dirichlet(np.ones(5), 3 * N)
    probability[::7] = np.nan
    stages = ("W", "N1", "N2", "N3", "R")
    names = [f"n{i:03}" for i in range(N)]
    scored = draw.integers(-1, 5, 3 * N).astype(np.int8)
    found = Predicted(
        stages,
        probability,
        recording,
        recording,
        onset_s,
        scored,
        stages,
        names,
        names,
    )
    starts = {name: datetime(2024, 1, 1, 22) for name in names[:2]}
    calls = counted_calls(monkeypatch, np, "flatnonzero")
    write_predictions(tmp_path / "whole", {}, found, starts, task="stage", made_of={})
    assert len(calls) < 5
    monkeypatch.setattr(predictions, "ROWS", 7)
    write_predictions(tmp_path / "pieces", {}, found, starts, task="stage", made_of={})
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    assert len(files) == N + 2 + 4  # predictions, nights and agreement of nights, and what they are made of
    assert all((tmp_path / "whole" / f).read_bytes() == (tmp_path / "pieces" / f).read_bytes() for f in files)
    text = (tmp_path / "whole" / "predictions.csv").read_text().splitlines()
    assert len(text) == 1 + 3 * N
    assert text[1] == f"n{recording[0]:03},n{recording[0]:03},{onset_s[0]:g},30,,,,,,,{stages[found.scored[0]]}"
    for i, name in enumerate(names):
        here = sorted((onset_s[j], found.words[j] or "?") for j in np.flatnonzero(recording == i))
        rows = (tmp_path / "whole" / "hypnograms" / f"{name}-hypnogram.csv").read_text().splitlines()[1:]
        assert rows == [f"{onset:.10g},30,{word}" for onset, word in here]


def test_a_job_does_not_say_that_the_recordings_of_others_were_not_given(tmp_path, capsys):
    (folder := tmp_path / "nights").mkdir()
    for i in range(4):
        write_night(folder / f"n{i}.edf", stages="W2")
    write(folder / "n4.edf")  # broken
    rows = "".join(f"n{i}.edf,S{i},50,F\n" for i in range(6))
    (folder / "participants.csv").write_text(f"recording,subject,age,sex\n{rows}")
    (tmp_path / "overrides.json").write_text('{"n0.edf": "exclude"}')
    for shard in ("1/3", "2/3", "3/3"):
        command = [str(folder), str(tmp_path / "store"), "--workers", "1", "--shard", shard]
        preprocess.cli([*command, "--overrides", str(tmp_path / "overrides.json")])
        captured = capsys.readouterr()
        assert "the participants table names 1 recording that was not given: n5.edf" in captured.err
        assert last_json(captured.out)["participants_unknown"] == ["n5.edf"]


def test_a_store_that_is_read_slowly_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    (tmp_path / "nights").mkdir()
    for i in range(3):
        write_night(tmp_path / "nights" / f"n{i}.edf", stages="W2")
    command = [str(tmp_path / "nights"), str(tmp_path / "store"), "--workers", "1"]
    assert preprocess.cli(command) == preprocess.cli(command) == 0
    assert "nights of the store" not in capsys.readouterr().err, "it takes no time"
    for module in (cohort, ingest):
        monkeypatch.setattr(module, "SLOW_S", 0.0)
    assert preprocess.cli(command) == 0
    said = capsys.readouterr().err
    assert all(
        f"{what}: 100%" in said for what in ("nights of the store", "compared with their files", "nights described")
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_do_not_fill_the_log_of_a_batch_job(monkeypatch, terminal):
    class Log(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stderr", log := Log())
    with progress_bar(range(5), desc="embed", unit="clip", mininterval=0.0) as bar:
        assert list(bar) == list(range(5))
        assert bar.maxinterval == (10 if terminal else 30)  # of the thread that watches over slow steps
    # On a terminal every step moves it; in a log the beginning and the end are written, and what is slow.
    assert log.getvalue().count("embed") >= 6 if terminal else log.getvalue().count("embed") == 2
    assert "5/5" in log.getvalue()
