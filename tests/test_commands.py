"""The commands in the order a user runs them, on a simulated cohort and on a real recording."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from called import last_json

from sleepfm_fast import __version__, embed, preprocess, probe, retrieve, simulate, supervise, train
from sleepfm_fast.__main__ import COMMANDS
from sleepfm_fast.storage.claims import claim_to_write

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--preset", "tiny", "--optimiser", "adamw", "--epochs", "2", "--batch-size", "16"]


def run(command, arguments, capsys):
    """Run a command in this process; returns its last line on standard output as JSON."""
    status = command.cli([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return last_json(captured.out), captured.err


def test_from_store_to_retrieval(cohort_store, tmp_path, capsys):
    trained, _ = run(train, [cohort_store, tmp_path / "run", *TINY], capsys)
    assert trained["steps"] > 0
    embedded, _ = run(embed, [tmp_path / "run", cohort_store, tmp_path / "embeddings"], capsys)
    assert embedded["clips"] == 8 * 42
    assert embedded["modalities"] == ["respiratory", "brain", "ecg"]
    matrix = np.load(tmp_path / "embeddings" / "embeddings.npy")
    mask = np.load(tmp_path / "embeddings" / "mask.npy")
    np.testing.assert_allclose(np.linalg.norm(matrix[mask], axis=1), 1, rtol=1e-5)
    staged, _ = run(probe, [tmp_path / "embeddings", "--task", "stage", "--bootstraps", "50"], capsys)
    assert 0 <= staged["macro"]["auroc"]["value"] <= 1
    found, _ = run(retrieve, [tmp_path / "embeddings"], capsys)
    assert len(found["directions"]) == 6


def test_embeddings_do_not_depend_on_the_batch_size(cohort_store, tmp_path, capsys):
    run(train, [cohort_store, tmp_path / "run", *TINY, "--max-steps", "3"], capsys)
    for size in ("7", "64"):
        run(embed, [tmp_path / "run", cohort_store, tmp_path / size, "--batch-size", size], capsys)
    a, b = (np.load(tmp_path / size / "embeddings.npy") for size in ("7", "64"))
    # The convolution library may add in another order for another batch size: rounding, nothing more.
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_a_stopped_embed_goes_on_to_the_same_bytes(cohort_store, tmp_path, capsys, monkeypatch):
    from sleepfm_fast.encoder import SleepModel

    run(train, [cohort_store, tmp_path / "run", *TINY, "--max-steps", "3"], capsys)
    asked = [str(tmp_path / "run"), str(cohort_store), "--batch-size", "50"]
    run(embed, [*asked, tmp_path / "whole"], capsys)
    forward, calls = SleepModel.forward, []

    def stop_after_three(self, x, present):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return forward(self, x, present)

    monkeypatch.setattr(SleepModel, "forward", stop_after_three)
    assert embed.cli([*asked, str(tmp_path / "stopped")]) == 130
    assert "the same command continues from there" in capsys.readouterr().err
    monkeypatch.undo()
    _, err = run(embed, [*asked, tmp_path / "stopped"], capsys)
    assert "continuing: 150 of 336 clips were finished before" in err
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "stopped" / file.name).read_bytes(), file.name
    assert not list(tmp_path.glob(".*"))
    # Killed when all was written, or simply given once more: there is nothing to do.
    (tmp_path / ".stopped.replaced").mkdir()
    monkeypatch.setattr(SleepModel, "forward", None)
    again, err = run(embed, [*asked, tmp_path / "stopped"], capsys)
    assert f"{tmp_path / 'stopped'} is already finished: this same command wrote it" in err
    assert again["clips"] == 336
    assert not list(tmp_path.glob(".*"))
    monkeypatch.chdir(tmp_path)  # the same folders under other names
    run(embed, ["run", cohort_store, "--batch-size", "50", "stopped/"], capsys)
    for more in (["--batch-size", "51"], ["--precision", "bfloat16"]):
        assert embed.cli([*asked, str(tmp_path / "stopped"), *more]) == 1
        assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("command", [train, supervise])
def test_a_run_that_another_process_writes_is_refused(command, cohort_store, tmp_path, capsys):
    claim = claim_to_write(tmp_path / "run")
    options = ["--task", "stage"] if command is supervise else []
    for more in ([], ["--resume"]):
        assert command.cli([str(cohort_store), str(tmp_path / "run"), "--preset", "tiny", *options, *more]) == 1
        assert f"is writing {tmp_path / 'run'}. Wait for it, or give another folder." in capsys.readouterr().err
    claim.release()
    assert not any(tmp_path.iterdir())


def test_a_run_of_supervise_is_not_resumed_as_one_of_train(cohort_store, tmp_path, capsys):
    options = ["--preset", "tiny", "--max-steps", "1"]
    run(supervise, [cohort_store, tmp_path / "run", "--task", "stage", "--bootstraps", "0", *options], capsys)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert train.cli([str(cohort_store), str(tmp_path / "run"), *options, "--resume"]) == 1
    assert "holds a run of supervise, not of train" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}


@pytest.mark.parametrize("n_subjects", [1, 2])
def test_another_laboratorys_store_of_few_subjects(cohort_store, n_subjects, tmp_path, capsys):
    run(train, [cohort_store, tmp_path / "run", *TINY], capsys)
    run(simulate, [tmp_path / "edf", "--subjects", str(n_subjects), "--hours", "0.1", "--seed", "7"], capsys)
    run(preprocess, [tmp_path / "edf", tmp_path / "store", "--like", tmp_path / "run"], capsys)
    embedded, err = run(embed, [tmp_path / "run", tmp_path / "store", tmp_path / "embeddings"], capsys)
    assert (embedded["overlap"], "memorisation" in err) == (False, False)
    splits = np.load(tmp_path / "embeddings" / "split.npy")
    assert sorted(set(splits.tolist())) == ([2] if n_subjects == 1 else [0, 2])
    if n_subjects == 1:
        assert probe.cli([str(tmp_path / "embeddings"), "--task", "stage"]) == 1
        assert "transfer" in capsys.readouterr().err
        found, _ = run(retrieve, [tmp_path / "embeddings"], capsys)
        assert (found["overlap"], found["n_clips"]) == (False, 12)


def test_a_real_recording_from_edf_to_retrieval(data_folder, tmp_path, capsys):
    store = tmp_path / "store"
    ingested, _ = run(
        preprocess, [data_folder / "osas2002.edf", store, "--labels", data_folder / "osas2002-stages.csv"], capsys
    )
    assert ingested["nights"] == 1
    assert ingested["clips"] == 40
    trained, err = run(train, [store, tmp_path / "run", *TINY], capsys)
    assert trained["overlap"]
    assert "memorisation" in err
    embedded, err = run(embed, [tmp_path / "run", store, tmp_path / "embeddings"], capsys)
    assert embedded["clips"] == 40
    assert embedded["modalities"] == ["respiratory", "brain", "ecg"]
    assert np.load(tmp_path / "embeddings" / "mask.npy").all(), "all three modalities were recorded"
    assert "memorisation" in err
    staged, err = run(probe, [tmp_path / "embeddings", "--task", "stage", "--bootstraps", "20"], capsys)
    assert staged["overlap"]
    assert "memorisation" in err
    found, err = run(retrieve, [tmp_path / "embeddings"], capsys)
    assert found["overlap"]
    assert "memorisation" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick_and_names_every_positional(name):
    code = (
        f"import sys\nfrom sleepfm_fast import {name} as c\nassert c.cli(['--help']) == 0\n"
        "heavy = {'torch', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    usage = result.stdout[: result.stdout.index("\n\n")]
    assert f"sleepfm_fast.{name}" in usage
    # The type of a positional says nothing about what to give.
    assert " PATH" not in usage or name == "preprocess", usage
    assert "{None}" not in usage, usage


def test_the_one_name_for_all_commands():
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "sleepfm_fast", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    listing = call("--help")
    assert listing.returncode == 0
    assert all(name in listing.stdout for name in COMMANDS)
    assert call().returncode == 2
    version = call("--version")
    assert (version.returncode, version.stdout) == (0, f"sleepfm_fast {__version__}\n")
    wrong = call("trian")
    assert wrong.returncode == 2
    assert "no command 'trian'" in wrong.stderr
    assert call("probe").returncode == 2
    assert call("probe", "nowhere", "--task", "stage").returncode == 1


def test_a_missing_run_or_store_is_a_sentence(tmp_path, capsys):
    assert embed.cli([str(tmp_path / "run"), str(tmp_path / "store"), str(tmp_path / "e")]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert train.cli([str(tmp_path / "store"), str(tmp_path / "run")]) == 1
    assert "store" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unforeseen_error_is_a_sentence_with_the_file_and_a_traceback_in_a_file(tmp_path, capsys, monkeypatch):
    from nights import write_night

    import sleepfm_fast.doctor.cohort_findings

    write_night(tmp_path / "a.edf")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def broken(path):
        raise ZeroDivisionError("division by zero")

    write_night(tmp_path / "b.edf")
    monkeypatch.setattr(sleepfm_fast.doctor.cohort_findings, "open_recording", broken)
    assert preprocess.cli(["--inspect", str(tmp_path), "--workers", "1", "--backend", "threading"]) == 1
    captured = capsys.readouterr()
    assert "preprocess failed because of a bug in sleepfm_fast while it worked on" in captured.err
    assert "ZeroDivisionError: division by zero (cohort_findings.py, line" in captured.err
    assert "Traceback" not in captured.err
    (report,) = tmp_path.glob("*.traceback")
    assert str(report) in captured.err
    assert "in broken" in report.read_text()


def test_a_folder_of_the_packages_name_makes_no_source_ours(tmp_path):
    """As in a clone of this name with an environment inside."""
    import sleepfm_fast.storage.columns
    from sleepfm_fast.errors import is_own_source

    assert is_own_source(sleepfm_fast.storage.columns.__file__)
    assert not is_own_source(str(tmp_path / "sleepfm_fast" / ".venv" / "lib" / "site-packages" / "numpy" / "core.py"))
    assert not is_own_source(f"{Path(sleepfm_fast.__file__).parent}_rival/columns.py")
    assert not is_own_source("<frozen runpy>")


def test_the_file_in_hand_is_named(tmp_path, capsys):
    from dataclasses import dataclass

    from sleepfm_fast.cli import command
    from sleepfm_fast.storage.columns import file_digest

    @dataclass(frozen=True)
    class Config:
        """Nothing."""

    file = tmp_path / "x.edf"
    file.touch()

    class Odd(type(file)):
        """A file whose opening fails as nobody foresaw."""

        def open(self, *arguments, **options):
            raise ValueError("odd")

    def main(config):
        file_digest(Odd(file))
        return {}

    assert command.run(Config, main, []) == 1
    err = capsys.readouterr().err
    assert f"while it worked on {file}: ValueError: odd (columns.py, line" in err
    Path(err.partition("traceback is in ")[2].strip().rstrip(".")).unlink()
