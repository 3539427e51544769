"""A killed retrieve goes on after the last finished pair of modalities, to the same bytes, never with other ranks."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import retrieve
from sleepfm_fast.evaluation import scopes

ROOT = Path(__file__).resolve().parents[1]
RANKS_IN_SCOPE = scopes.ranks_in_scope


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    subject = np.sort(np.arange(300) % 10)
    x = rng.standard_normal((300, 1, 16)) + rng.standard_normal((300, 3, 16))
    return write_folder(tmp_path_factory.mktemp("kept") / "emb", x, columns_of(subject, np.full(300, 2)))


def files_of(result):
    files = {path.name: path.read_bytes() for path in result.iterdir()}
    record = json.loads(files.pop("result.json"))
    assert record.pop("seconds") >= 0
    return files, record


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    result = tmp_path_factory.mktemp("whole") / "retrieval"
    assert retrieve.cli([str(folder), str(result)]) == 0
    assert [path.name for path in result.parent.iterdir()] == ["retrieval"], "nothing is left beside a whole result"
    return files_of(result)


@pytest.fixture
def ranked(monkeypatch):
    """Pairs that were ranked; the command is interrupted before it ranks more of them than ``limit``."""

    class Ranked(list):
        limit = 99

    pairs = Ranked()

    def counted(embeddings, clips, pair, *rest):
        if len(pairs) == pairs.limit:
            raise KeyboardInterrupt
        pairs.append(pair)
        return RANKS_IN_SCOPE(embeddings, clips, pair, *rest)

    monkeypatch.setattr(scopes, "ranks_in_scope", counted)
    return pairs


def interrupt(ranked, after, *arguments):
    ranked.limit = after
    assert retrieve.cli([str(a) for a in arguments]) == 130
    ranked.clear()
    ranked.limit = 99


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bytes(folder, whole, ranked, tmp_path, capsys, after):
    result = tmp_path / "retrieval"
    interrupt(ranked, after, folder, result)
    assert "kept beside RESULT" in capsys.readouterr().err
    assert not result.exists()
    assert retrieve.cli([str(folder), str(result)]) == 0
    assert len(ranked) == 3 - after
    assert (f"continuing: {after} of 3 pairs" in capsys.readouterr().err) == (after > 0)
    assert files_of(result) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["retrieval"]


def test_what_only_shapes_the_figures_may_change(folder, ranked, tmp_path):
    interrupt(ranked, 2, folder, tmp_path / "retrieval")
    assert retrieve.cli([str(folder), str(tmp_path / "retrieval"), "--k", "3", "--bootstraps", "7"]) == 0
    assert len(ranked) == 1


@pytest.mark.parametrize("options", [["--scope", "night"], ["--candidates", "250"]])
def test_ranks_among_other_candidates_are_not_taken(folder, ranked, tmp_path, capsys, options):
    interrupt(ranked, 2, folder, tmp_path / "retrieval")
    capsys.readouterr()
    assert retrieve.cli([str(folder), str(tmp_path / "retrieval"), *options]) == 0
    assert len(ranked) == 3
    assert "continuing" not in capsys.readouterr().err
    plain = tmp_path / "plain"
    assert retrieve.cli([str(folder), str(plain), *options]) == 0
    assert files_of(tmp_path / "retrieval") == files_of(plain)


def test_the_current_folder_may_be_the_result(folder, whole, ranked, tmp_path, monkeypatch):
    (tmp_path / "retrieval").mkdir()
    monkeypatch.chdir(tmp_path / "retrieval")
    interrupt(ranked, 1, folder, ".")
    assert len(list((tmp_path / ".retrieval.partial").iterdir())) == 1
    assert retrieve.cli([str(folder), "."]) == 0
    assert len(ranked) == 2
    assert files_of(tmp_path / "retrieval") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["retrieval"]


def test_ranks_of_other_options_do_not_pile_up(folder, ranked, tmp_path):
    interrupt(ranked, 2, folder, tmp_path / "retrieval")
    assert len(list((tmp_path / ".retrieval.partial").iterdir())) == 2
    interrupt(ranked, 1, folder, tmp_path / "retrieval", "--scope", "night")
    assert len(list((tmp_path / ".retrieval.partial").iterdir())) == 1


def test_ranks_of_other_embeddings_are_not_taken(folder, ranked, tmp_path):
    interrupt(ranked, 2, folder, tmp_path / "retrieval")
    x = np.random.default_rng(1).standard_normal((300, 3, 16))
    other = write_folder(tmp_path / "emb", x, columns_of(np.sort(np.arange(300) % 10), np.full(300, 2)))
    assert retrieve.cli([str(other), str(tmp_path / "retrieval")]) == 0
    assert len(ranked) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "floats", "three rows", "one row"])
def test_a_damaged_file_is_ranked_again(folder, whole, ranked, tmp_path, damage):
    interrupt(ranked, 2, folder, tmp_path / "retrieval")
    first, _ = sorted((tmp_path / ".retrieval.partial").iterdir())
    ranks = np.load(first)
    others = {"floats": ranks.astype(float), "three rows": ranks[:3], "one row": np.arange(4)}
    if damage == "pickle":
        np.save(first, np.array([{}] * 4, object), allow_pickle=True)
    elif damage in others:
        np.save(first, others[damage])
    else:
        first.write_bytes(first.read_bytes()[: 300 if damage == "cut" else 0])
    (tmp_path / ".retrieval.partial" / f"{first.name}.1-2.tmp").write_bytes(b"half")
    assert retrieve.cli([str(folder), str(tmp_path / "retrieval")]) == 0
    assert len(ranked) == 2
    assert files_of(tmp_path / "retrieval") == whole


def test_without_a_result_nothing_is_kept(folder, ranked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interrupt(ranked, 2, folder)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_of_the_command_goes_on(folder, whole, tmp_path, capsys):
    # The embeddings are ranked slowly, so that the kill falls between two pairs.
    slow = (
        "import sys, time; from sleepfm_fast import retrieve; from sleepfm_fast.evaluation import scopes\n"
        "ranks = scopes.ranks_in_scope\n"
        "def slowly(*a): time.sleep(2); return ranks(*a)\n"
        "scopes.ranks_in_scope = slowly; retrieve.cli(sys.argv[1:])"
    )
    result = tmp_path / "retrieval"
    process = subprocess.Popen([sys.executable, "-c", slow, str(folder), str(result)], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((tmp_path / ".retrieval.partial").glob("*.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not result.exists()
    assert retrieve.cli([str(folder), str(result)]) == 0
    assert "continuing: " in capsys.readouterr().err
    assert files_of(result) == whole
    shutil.rmtree(result)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_result_is_not_ranked_again(folder, ranked, tmp_path, capsys):
    result = tmp_path / "retrieval"
    assert retrieve.cli([str(folder), str(result)]) == 0
    first = capsys.readouterr().out
    (tmp_path / ".retrieval.partial").mkdir()  # a kill between the result and the end of the command
    ranked.limit = 0
    assert retrieve.cli([str(folder), str(result)]) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert f"{result} is already finished: this same command wrote it" in again.err
    assert [path.name for path in tmp_path.iterdir()] == ["retrieval"]
    assert retrieve.cli([str(folder), str(result), "--seed", "1"]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err
