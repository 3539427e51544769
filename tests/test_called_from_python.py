"""Commands that a program calls, such as a notebook: they leave its session as they found it."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
import torch

from sleepfm_fast import classify, reproduce, supervise, train
from sleepfm_fast.errors import SleepfmError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def session():
    return {
        "threads": torch.get_num_threads(),
        "signals": [signal.getsignal(number) for number in STOPPING],
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "cwd": Path.cwd(),
    }


@pytest.fixture
def before():
    torch.set_num_threads(3)  # set back by the fixture of all tests
    return session()


def test_train_supervise_and_classify_give_the_threads_back(cohort_store, tmp_path, before):
    train.main(train.Config(cohort_store, tmp_path / "RUN", preset="tiny", max_steps=1, threads=1))
    assert session() == before
    cnn = tmp_path / "CNN"
    supervise.main(
        supervise.Config(cohort_store, cnn, task="stage", preset="tiny", max_steps=1, threads=1, bootstraps=5)
    )
    assert session() == before
    classify.main(classify.Config(cnn, cohort_store, table=tmp_path / "stages.csv", subjects="all", threads=1))
    assert session() == before


def test_a_refusal_gives_them_back_too(cohort_store, tmp_path, before):
    with pytest.raises(SleepfmError):
        train.main(train.Config(cohort_store, tmp_path / "RUN", preset="tiny", train_subjects=999, threads=1))
    assert session() == before


def test_a_plan_gives_them_back(tmp_path, before):
    reproduce.main(reproduce.Config(tmp_path / "OUT", plan=True, threads=1))
    assert session() == before


def test_cli_returns_the_exit_status(cohort_store, tmp_path, before, capsys):
    assert train.cli(["--help"]) == 0
    assert train.cli([str(cohort_store), str(tmp_path / "RUN"), "--preset", "large"]) == 2
    assert train.cli([str(tmp_path / "nothing"), str(tmp_path / "RUN")]) == 1
    assert session() == before
    capsys.readouterr()
