"""What commands print after ``next:``: for every command of the README's chain, and that it works when pasted."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from known_nights import ECG, EEG, FLOW, staged_night

from sleepfm_fast import (
    classify,
    compare,
    convert,
    embed,
    few_shot,
    import_checkpoint,
    predict,
    preprocess,
    probe,
    report,
    retrieve,
    simulate,
    supervise,
    train,
    transfer,
)
from sleepfm_fast import features as features_command
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.reporting import following
from sleepfm_fast.reporting.following import beside, options_of, typed

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(embed, few_shot, preprocess, probe, report, retrieve, supervise, train, predict, transfer, features_command),
    )
}
QUICK = {
    "train": ["--preset", "tiny", "--max-steps", "4", "--batch-size", "16"],
    "supervise": ["--preset", "tiny", "--max-steps", "2", "--batch-size", "16"],
    "probe": ["--bootstraps", "0"],
    "retrieve": ["--bootstraps", "0"],
    "preprocess": ["--workers", "1"],
    "features": ["--workers", "1"],
    "report": [],
    "predict": [],
    "embed": [],
    "transfer": [],
}


def next_of(capsys) -> list[str] | None:
    """Words of the command after ``next:``, as a shell splits them; standard output is one line of JSON."""
    out, err = capsys.readouterr()
    json.loads(out)
    assert out.count("\n") == 1
    lines = [line for line in err.splitlines() if line.startswith("next: ")]
    assert len(lines) <= 1, lines
    return shlex.split(lines[0].removeprefix("next: ")) if lines else None


def hint(capsys) -> list[str]:
    """Words of the command after ``next:`` and its ``python -m``, whatever was printed before."""
    return shlex.split(capsys.readouterr().err.splitlines()[-1].removeprefix("next: "))[2:]


def paste(words: list[str], capsys) -> list[str] | None:
    """Run a printed command with options that make it quick; returns what it prints in turn."""
    assert words[:2] == ["python", "-m"]
    name = words[2].removeprefix("sleepfm_fast.")
    assert COMMANDS[name].cli([*words[3:], *QUICK[name]]) == 0, capsys.readouterr().err
    return next_of(capsys)


def test_from_nights_to_the_report_by_pasting(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nights = tmp_path / "my nights"
    nights.symlink_to(planted.parent / "edf")
    capsys.readouterr()
    assert preprocess.cli(["--inspect", "my nights", "--events-scored", "--workers", "1"]) == 0
    _, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("next: ")]
    assert line == "next: python -m sleepfm_fast.preprocess 'my nights' 'my nights_store' --events-scored"
    seen, words = [], shlex.split(line.removeprefix("next: "))
    while words is not None:
        seen.append(shlex.join(words[2:]).removeprefix("sleepfm_fast."))
        words = paste(words, capsys)
    assert seen == [
        "preprocess 'my nights' 'my nights_store' --events-scored",
        "train 'my nights_store' 'my nights_run'",
        "embed 'my nights_run' 'my nights_store' 'my nights_run/embeddings'",
        "probe 'my nights_run/embeddings' 'my nights_run/results/stage' --task stage",
        "retrieve 'my nights_run/embeddings' 'my nights_run/results/retrieval'",
        "report 'my nights_run'",
    ]
    run = "my nights_run"
    few = ["--task", "stage", "--subjects", "1", "2", "--replicates", "1"]
    assert few_shot.cli([f"{run}/embeddings", f"{run}/results/few_shot", *few]) == 0
    assert next_of(capsys)[3:] == [run, "--overwrite"]
    # The report has been made: what replaces it.
    assert report.cli([run, "--overwrite"]) == 0
    assert next_of(capsys) is None

    # Embeddings elsewhere, of nights that the run's probe can stage.
    assert embed.cli([run, "my nights_store", "second"]) == 0
    words = next_of(capsys)
    assert words[2:] == ["sleepfm_fast.predict", f"{run}/results/stage", "second", "second_predictions"]
    assert paste(words, capsys) is None

    # Without a result in the run, nothing is known of what is wanted.
    assert probe.cli([f"{run}/embeddings", "--task", "stage", "--bootstraps", "0"]) == 0
    assert next_of(capsys) is None
    assert retrieve.cli([f"{run}/embeddings", "elsewhere", "--bootstraps", "0"]) == 0
    assert next_of(capsys) is None


def test_the_baselines(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert features_command.cli([str(planted), "features", *QUICK["features"]]) == 0
    words = next_of(capsys)
    assert words[2:] == ["sleepfm_fast.probe", "features", "stage", "--task", "stage"]
    assert paste(words, capsys) is None
    assert supervise.cli([str(planted), "cnn", "--task", "stage", *QUICK["supervise"]]) == 0
    words = next_of(capsys)
    assert words[2:] == ["sleepfm_fast.report", "cnn"]
    assert paste(words, capsys) is None


def test_a_second_laboratory_by_pasting(cohort_store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.cli([str(cohort_store), "run", *QUICK["train"]]) == 0
    assert embed.cli(["run", str(cohort_store), "run/embeddings"]) == 0
    assert probe.cli(["run/embeddings", "run/results/stage", "--task", "stage", *QUICK["probe"]]) == 0
    assert simulate.cli(["nights", "--subjects", "3", "--hours", "0.1", "--seed", "5"]) == 0
    assert preprocess.cli(["nights", "second", *QUICK["preprocess"]]) == 0
    capsys.readouterr()
    assert embed.cli(["run", "second", "theirs"]) == 0
    seen, words = [], next_of(capsys)
    while words is not None:
        seen.append(shlex.join(words[2:]).removeprefix("sleepfm_fast."))
        words = paste(words, capsys)
    assert seen == [
        "predict run/results/stage theirs theirs_predictions",
        "transfer run/embeddings theirs run/transfer --subjects all",
        "probe run/transfer run/results/external-stage --task stage",
        "report run",
    ]
    # Wherever the embeddings lie: in the run's folder they are not the run's own.
    assert embed.cli(["run", "second", "run/theirs"]) == 0
    assert shlex.join(next_of(capsys)[2:]).startswith("sleepfm_fast.predict run/results/stage run/theirs ")
    # Nights that lack what the probe was fitted on are not proposed to it.
    for name in ("emb", "lacking"):
        shutil.copytree("theirs", name)
    np.save("lacking/mask.npy", np.load("lacking/mask.npy") & [True, False, True])
    config = embed.Config(Path("run"), Path("second"), Path("lacking"))
    assert "predict" in following.after_embeddings(config, {"embeddings": "emb"})
    assert "predict" not in following.after_embeddings(config, {"embeddings": "lacking"})
    # Of a probe of joined folders the test is made.
    assert predict.cli(["run/results/external-stage", "theirs", "again"]) == 0
    assert next_of(capsys) is None
    assert transfer.cli(["run/embeddings", "theirs", "joined", "--subjects", "all"]) == 0
    assert next_of(capsys)[2:] == ["sleepfm_fast.probe", "joined", "joined_stage", "--task", "stage"]


def test_a_second_laboratory_without_labels(cohort_store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.cli([str(cohort_store), "run", *QUICK["train"]]) == 0
    assert embed.cli(["run", str(cohort_store), "run/embeddings"]) == 0
    shutil.copytree("run/embeddings", "theirs")
    for name in ("stage", "sdb"):
        np.save(f"theirs/{name}.npy", np.full_like(np.load(f"theirs/{name}.npy"), -1))
    record = json.loads(Path("theirs/embeddings.json").read_text())
    people = len(record["subjects"])
    unknown = {"ages": [None] * people, "sexes": [None] * people, "recording_ages": []}
    Path("theirs/embeddings.json").write_text(json.dumps({**record, **unknown, "store": "there"}))
    capsys.readouterr()
    assert transfer.cli(["run/embeddings", "theirs", "joined"]) == 0
    # First a probe of the scored nights, then what it says of the others.
    words = next_of(capsys)
    assert shlex.join(words[2:]) == "sleepfm_fast.probe run/embeddings run/results/stage --task stage"
    paste(words, capsys)
    assert transfer.cli(["run/embeddings", "theirs", "again"]) == 0
    err = capsys.readouterr().err
    assert "no clip of theirs that is taken has a stage, an event, an age or a sex" in err
    line = next(line for line in err.splitlines() if line.startswith("next: "))
    assert line.endswith("sleepfm_fast.predict run/results/stage theirs theirs_predictions")
    assert paste(shlex.split(line.removeprefix("next: ")), capsys) is None


def test_a_network_tested_in_a_second_laboratory(planted, cohort_store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert supervise.cli([str(planted), "cnn", "--task", "stage", *QUICK["supervise"]]) == 0
    capsys.readouterr()
    everybody = [str(cohort_store), "--subjects", "all"]
    assert classify.cli(["cnn", *everybody, "--table", "stages.csv"]) == 0
    assert next_of(capsys) is None
    assert classify.cli(["cnn", *everybody, "cnn/results/second", "--bootstraps", "0"]) == 0
    assert next_of(capsys)[2:] == ["sleepfm_fast.report", "cnn"]


def test_folders_with_odd_names_given_in_odd_ways(tmp_path, capsys, monkeypatch):
    """Spaces, letters beyond ASCII, slashes at the end, links, folders that cannot be written, from somewhere else."""
    place = tmp_path / "mein Schlaf ü"
    nights, away = place / "Nächte 1", place / "anderswo"
    away.mkdir(parents=True)
    assert simulate.cli([str(place / "sim"), "--subjects", "4", "--hours", "0.1"]) == 0
    for i, file in enumerate(sorted((place / "sim").glob("*.edf"))):  # two nights of each name
        (nights / "ab"[i // 2]).mkdir(parents=True, exist_ok=True)
        file.rename(nights / "ab"[i // 2] / f"n{i % 2}.edf")
    (place / "link").symlink_to(nights)
    for folder in (nights / "a", nights / "b", nights):
        folder.chmod(0o500)
    monkeypatch.chdir(place)
    capsys.readouterr()
    assert preprocess.cli(["--inspect", "Nächte 1/", *QUICK["preprocess"]]) == 0
    assert hint(capsys) == ["sleepfm_fast.preprocess", "Nächte 1", "Nächte 1_store"]
    assert preprocess.cli(["Nächte 1/", "mein store/", *QUICK["preprocess"]]) == 0
    assert "(4 nights added" in (err := capsys.readouterr().err)
    assert "2 file names occur in several folders" in err
    monkeypatch.chdir(away)
    assert preprocess.cli(["../link", "../mein store", *QUICK["preprocess"]]) == 0
    assert hint(capsys) == ["sleepfm_fast.train", "../mein store", "../mein store_run"]
    assert train.cli(["../mein store/", "../mein run/", *QUICK["train"]]) == 0
    assert hint(capsys) == ["sleepfm_fast.embed", "../mein run", "../mein store", "../mein run/embeddings"]
    assert embed.cli(["../mein run", "../mein store", "../mein run/embeddings"]) == 0
    assert hint(capsys)[1] == "../mein run/embeddings"
    monkeypatch.chdir(tmp_path)  # where the run's names of folders lead nowhere
    assert Embeddings("mein Schlaf ü/mein run/embeddings").store_path.resolve() == place / "mein store"
    for folder in (nights, nights / "a", nights / "b"):
        folder.chmod(0o700)


def test_simulated_nights(tmp_path, capsys):
    nights = tmp_path / "simulated cohort"
    assert simulate.cli([str(nights), "--subjects", "2", "--hours", "0.05"]) == 0
    words = next_of(capsys)
    assert words[2:] == ["sleepfm_fast.preprocess", str(nights), f"{nights}_store"]
    assert paste(words, capsys)[3:] == [f"{nights}_store", str(tmp_path / "simulated cohort_run")]


def test_nothing_to_train_on_has_no_next_command(tmp_path, capsys):
    staged_night(tmp_path / "a.edf", [], seed=0, leads=[EEG, ECG, FLOW])
    assert preprocess.cli([str(tmp_path / "a.edf"), str(tmp_path / "store"), "--workers", "1"]) in (0, 1)
    assert next_of(capsys) is None


def test_clips_without_labels_are_retrieved(tmp_path, capsys):
    folder = tmp_path / "edf"
    folder.mkdir()
    for i in range(6):
        staged_night(folder / f"p{i}.edf", ["?"] * 16, seed=i, leads=[EEG, ECG, FLOW])
    assert preprocess.cli([str(folder), str(tmp_path / "store"), "--workers", "1"]) == 0
    words = next_of(capsys)
    assert words[3:] == [str(tmp_path / "store"), str(tmp_path / "run")]
    words = paste(words, capsys)
    words = paste(words, capsys)
    run = tmp_path / "run"
    assert words[2:] == ["sleepfm_fast.retrieve", str(run / "embeddings"), str(run / "results" / "retrieval")]
    assert paste(words, capsys)[2:] == ["sleepfm_fast.report", str(run)]


def test_a_store_like_a_run_is_embedded_by_that_run(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.cli([str(planted), "run", *QUICK["train"]]) == 0
    (tmp_path / "more nights").symlink_to(planted.parent / "edf")
    capsys.readouterr()
    assert preprocess.cli(["more nights", "more_store", "--like", "run", *QUICK["preprocess"]]) == 0
    words = next_of(capsys)
    assert words[2:] == ["sleepfm_fast.embed", "run", "more_store", "more_embeddings"]
    assert paste(words, capsys) is not None
    assert preprocess.cli(["more nights", "third", "--like", str(planted), *QUICK["preprocess"]]) == 0
    assert next_of(capsys)[2] == "sleepfm_fast.train"  # a store tells of no network


def test_every_command_of_the_chain_is_asked():
    asked = {
        simulate: "after_nights",
        preprocess: "after_preprocess",
        convert: "after_store",
        train: "after_training",
        import_checkpoint: "after_checkpoint",
        embed: "after_embeddings",
        features_command: "after_embeddings",
        probe: "after_probe",
        retrieve: "after_result",
        few_shot: "after_result",
        supervise: "after_supervised",
        compare: "after_result",
        classify: "after_result",
        predict: "after_predictions",
        transfer: "after_transfer",
    }
    for module, name in asked.items():
        assert getattr(module, name) is getattr(following, name)
        assert name in following.__all__


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("nights", "store", "store"),
        ("a/EDF", "store", "a/store"),
        ("store", "run", "run"),
        ("mesa_store", "run", "mesa_run"),
        ("mesa", "store", "mesa_store"),
        ("taken", "store", "taken_store-3"),
    ],
)
def test_names_of_what_will_be_made(tmp_path, monkeypatch, path, kind, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("taken_store", "taken_store-2"):
        (tmp_path / name).mkdir()
    assert str(beside(type(tmp_path)(path), kind)) == expected
    here = beside(type(tmp_path)("."), kind)
    assert here.parent == tmp_path.parent
    assert here.name == f"{tmp_path.name}_{kind}"


def test_words_are_quoted_for_a_shell(tmp_path):
    odd = "it's $HOME; a\nnight"
    assert shlex.split(typed("embed", odd, "-x")) == ["python", "-m", "sleepfm_fast.embed", odd, "./-x"]
    config = preprocess.Config((tmp_path,), meanings=("4=R", "light sleep=N2"), events_scored=True, workers=3)
    assert options_of(config, "paths", "workers") == "--events-scored --meanings 4=R 'light sleep=N2'"


def test_a_hint_that_fails_fails_no_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(following, "typed", lambda *a, **k: 1 / 0)
    assert simulate.cli([str(tmp_path / "n"), "--subjects", "1", "--hours", "0.05"]) == 0
    assert next_of(capsys) is None
