"""Nouns that agree with their number: the helper, and what the commands say of one night."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from known_nights import ECG, EEG, FLOW, staged_night
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import compare, few_shot, plurals, preprocess, probe
from sleepfm_fast.execution import parallel
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.reporting.wording import NARROW, number_of

SOURCES = Path(plurals.__file__).parent


def test_a_noun_and_a_verb_agree_with_their_number():
    assert [counted(n, "night") for n in (0, 1, 2)] == ["0 nights", "1 night", "2 nights"]
    assert [counted(n, "row has", "rows have") for n in (0, 1, 2)] == ["0 rows have", "1 row has", "2 rows have"]
    assert counted(1.0, "minute", spec="g") == "1 minute"
    assert counted(1200, "clip", spec=",") == "1,200 clips"
    assert [counted(n, "night/s", "nights/s", spec=".3g") for n in (0.9951, 1.0049, 1.005001, 2.1)] == [
        "0.995 nights/s", "1 night/s", "1.01 nights/s", "2.1 nights/s"
    ]  # fmt: skip
    assert [agreeing(n, "is", "are") for n in (1, 3)] == ["is", "are"]
    assert number_of(1, "clip") == "1 clip"
    assert number_of(12345, "clip") == f"12{NARROW}345 clips"
    assert number_of(None, "clip") == "- clips"


@pytest.mark.parametrize(("seconds", "speed"), [(2.001, "1 file/s"), (4, "0.5 files/s"), (2000, "0.001 files/s")])
def test_progress_tells_one_a_second_in_the_singular(monkeypatch, seconds, speed):
    now = [100.0]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: now[0])
    progress = parallel.Progress("files", 4)
    now[0] += seconds
    progress.done = 2
    assert f"files: 2 of 4, {speed}, " in progress.line()


@pytest.fixture
def one_night(tmp_path):
    folder = tmp_path / "edf"
    folder.mkdir()
    staged_night(folder / "p00.edf", ["W"], seed=0, leads=[EEG, ECG, FLOW])
    return folder


# In "2.1 files/s", which a run may say of itself, the 1 is no number.
ONE_OF_MANY = re.compile(
    r"(?<![\w.,])1 (?:[a-z-]+ )?(?:night|clip|file|subject|recording|channel|epoch|annotation|event)s\b"
)


@pytest.mark.parametrize("inspect", [False, True])
def test_one_night_of_one_clip_is_told_in_the_singular(one_night, tmp_path, capsys, inspect):
    where = ["--inspect", str(one_night)] if inspect else [str(one_night), str(tmp_path / "store")]
    assert preprocess.cli([*where, "--workers", "1"]) == 0
    said = "".join(capsys.readouterr())
    assert (
        "1 file, 1 can be ingested" if inspect else "1 night of 1 subject, 1 clip, 0.01 hours (1 night added"
    ) in said
    assert ONE_OF_MANY.findall(said) == []


COUNTS = re.compile(r"^(?:len\([\w.]+\)|n_\w+|\w*totals\[.*\]|only|lacking|skipped|available|partly)$")
NOUNS = re.compile(
    r"^ (?:[a-z-]+ )?(?:nights|clips|files|subjects|recordings|steps|epochs|figures|runs|rows|annotations)\b"
)
# Said of several only, or of none.
SEVERAL = {
    "cohort_findings.py": {"len(subjects)", "len(paths)"},
    "embedding_writer.py": {"n_clips"},
    "ingest.py": {"n_recordings"},
    "inspection_text.py": {"len(finding.paths)"},
    "interval_notice.py": {"n_subjects"},
    "participants.py": {"len(rows)"},
    "report.py": {"len(runs)"},
    "hypnogram.py": {"len(first)"},
    "files.py": {"len(files)"},
}


def test_one_clip_that_is_left_out_is_told_in_the_singular(tmp_path, capsys):
    subject = np.repeat([0, 1, 2], 20)
    x = np.random.default_rng(0).standard_normal((60, 3, 6))
    mask = np.ones((60, 3), bool)
    mask[45, 0] = False
    columns = columns_of(subject, np.array([0, 0, 2])[subject], stage=np.arange(60) % 5)
    folder = write_folder(tmp_path / "emb", x, columns, mask=mask)
    results = [tmp_path / name for name in ("all", "brain")]
    assert probe.cli([str(folder), str(results[0]), "--task", "stage"]) == 0
    said = capsys.readouterr().err
    assert "notice: 1 of 20 labelled test clips lacks one of respiratory, brain, ecg and is left out; " in said
    assert probe.cli([str(folder), str(results[1]), "--task", "stage", "--modality", "brain"]) == 0
    assert compare.cli([*map(str, results)]) == 0
    said = capsys.readouterr().err
    assert f"notice: 1 test clip is only in {results[1]} and is left out." in said
    assert few_shot.cli([str(folder), str(tmp_path / "curve"), "--task", "stage", "--subjects", "8"]) == 0
    assert "there are 2 subjects to draw from; 8 stands for all of them" in capsys.readouterr().err


def test_no_sentence_writes_a_count_before_a_fixed_plural():
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, after in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                    count = ast.unparse(value.value)
                    if COUNTS.match(count) and NOUNS.match(after.value) and count not in SEVERAL.get(path.name, ()):
                        found.append(f"{path.name}:{node.lineno}: {{{count}}}{after.value[:30]}")
    assert found == []
