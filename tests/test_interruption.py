"""Which signals a command answers, from when to when, and that the answers of others are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sleepfm_fast.cli import interruption
from sleepfm_fast.cli.interruption import STOPS, Stopped, leave_to_python, say_while_importing, stops_raised


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """The system's answers during a test, the test program's afterwards."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGINT)}
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def answers() -> list[object]:
    return [signal.getsignal(number) for number in STOPS]


def mine(*_: object) -> None:
    raise AssertionError


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stop_is_raised_in_the_block_and_the_second_ends_the_process(number):
    def stop():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            assert signal.getsignal(number) is signal.SIG_DFL

    with pytest.raises(Stopped, match=f"stopped by {number.name}") as caught, stops_raised():
        stop()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.number == number
    assert answers() == [signal.SIG_DFL] * len(STOPS)


def test_answers_of_others_stay():
    for own in (signal.SIG_IGN, mine):
        signal.signal(signal.SIGHUP, own)
        with stops_raised():
            answered = [number for number in STOPS if signal.getsignal(number) is interruption._raise_stop]
            assert answered == [number for number in STOPS if number != signal.SIGHUP]
            assert signal.getsignal(signal.SIGHUP) is own
        assert answers() == [own if number == signal.SIGHUP else signal.SIG_DFL for number in STOPS]


@pytest.mark.parametrize(
    ("name", "value", "answered"),
    [("WORLD_SIZE", "1", True), ("WORLD_SIZE", "2", False), ("TORCHELASTIC_RUN_ID", "none", False)],
)
def test_ranks_of_a_training_are_ended_at_once(monkeypatch, name, value, answered):
    monkeypatch.setenv(name, value)
    with stops_raised():
        assert (answers() != [signal.SIG_DFL] * len(STOPS)) is answered


def test_another_thread_changes_nothing():
    seen = []

    def work():
        with stops_raised():
            seen.extend(answers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL] * len(STOPS)


@pytest.mark.parametrize(
    ("command", "before", "changed"),
    [
        (True, signal.default_int_handler, True),
        (False, signal.default_int_handler, False),
        (True, signal.SIG_IGN, False),
        (True, mine, False),
    ],
)
def test_ctrl_c_while_importing_is_a_commands_own(monkeypatch, command, before, changed):
    monkeypatch.setattr(interruption, "is_a_command", lambda: command)
    signal.signal(signal.SIGINT, before)
    say_while_importing()
    assert signal.getsignal(signal.SIGINT) is (interruption._end if changed else before)
    leave_to_python()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_importing_is_a_sentence():
    script = "import os, signal; from sleepfm_fast.cli import interruption as i; signal.signal(signal.SIGINT, i._end)"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; os.kill(os.getpid(), signal.SIGINT); signal.pause()"],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted before anything was done\n")
