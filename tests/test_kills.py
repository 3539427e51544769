"""few_shot and retrieve killed at any moment, and again: the repeated command ends with what an unkilled one writes."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
from forked_commands import start
from synthetic_embeddings import columns_of, write_folder

KILLS = 6
OPTIONS = {
    "few_shot": ("--task", "stage", "--subjects", "1", "2", "4", "--replicates", "3"),
    "retrieve": ("--bootstraps", "200"),
}


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(16), 60)
    stage = rng.integers(0, 5, subject.size)
    x = rng.standard_normal((subject.size, 3, 16))
    x[np.arange(subject.size), :, stage] += 1.2
    split = np.array([0] * 8 + [1] * 2 + [2] * 6)
    return write_folder(tmp_path_factory.mktemp("kills") / "emb", x, columns_of(subject, split[subject], stage=stage))


def files_of(result):
    files = {path.name: path.read_bytes() for path in result.iterdir()}
    record = json.loads(files.pop("result.json"))
    assert record.pop("seconds") >= 0
    return files, record


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_killed_at_random_moments(embeddings, tmp_path, command):
    log = tmp_path / "log"

    def begin(result):
        return start(f"sleepfm_fast.{command}", [str(embeddings), str(result), *OPTIONS[command]], log)

    def completed(result):
        process = begin(result)
        process.join(120)
        assert process.exitcode == 0, log.read_text()

    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    completed(tmp_path / "whole" / "warm")  # what is compiled or imported once is not what takes the time below
    began = time.monotonic()
    completed(tmp_path / "whole" / "result")
    takes_s = time.monotonic() - began
    result, moments = tmp_path / "killed" / "result", random.Random(command)
    for _ in range(KILLS):
        process = begin(result)
        process.join(moments.uniform(0.1, 0.9) * takes_s)
        process.kill()
        process.join()
    completed(result)
    assert files_of(result) == files_of(tmp_path / "whole" / "result")
    assert [path.name for path in result.parent.iterdir()] == ["result"]
