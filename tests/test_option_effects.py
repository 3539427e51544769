"""Options that another option makes void: given they are refused, left at their default they are not."""

import dataclasses
import importlib
import re

import pytest

from sleepfm_fast import train
from sleepfm_fast.__main__ import COMMANDS
from sleepfm_fast.cli.option_effects import given_options, refuse_without_effect
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.training.settings import resolve

# For every effect that a command states: what makes its option void, what makes it count, and the option's two values
# (its default, which must be refused as well when it is written, and another).
ADAMW, COSINE = ["--optimiser", "adamw"], ["--schedule", "cosine"]
TRAINING = {
    "momentum": (ADAMW, ["--optimiser", "sgd"], ["0.9"], ["0.5"]),
    "step_epochs": (COSINE, ["--schedule", "step"], ["5"], ["3"]),
    "replicate": ([], ["--train-subjects", "4"], ["0"], ["1"]),
}
SHARES = {
    "validation_share": (["--split-like", "run"], [], ["0.1"], ["0.3"]),
    "test_share": (["--split-like", "run"], [], ["0.2"], ["0.3"]),
    "split_salt": (["--split-like", "run"], [], ["sleepfm_fast"], ["another"]),
}
OVERWRITE = {"overwrite": ([], ["result"], None, [])}
CASES = {
    "train": (["store", "run"], TRAINING),
    "supervise": (["store", "run", "--task", "stage"], TRAINING),
    "probe": (
        ["embeddings", "--task", "stage"],
        {
            "c": (["--choose-c"], [], ["1"], ["10"]),
            "c_grid": ([], ["--choose-c"], ["0.001", "0.01", "0.1", "1", "10", "100", "1000"], ["1", "10"]),
            **OVERWRITE,
        },
    ),
    "few_shot": (
        ["embeddings", "result", "--task", "stage"],
        {"replicates": (["--subjects"], ["--subjects", "1"], ["3"], ["2"])},
    ),
    "retrieve": (
        ["embeddings"],
        {
            "sample": ([], ["--candidates", "9"], ["uniform"], ["balanced"]),
            "examples": ([], ["result"], ["4"], ["2"]),
            **OVERWRITE,
        },
    ),
    "compare": (["first", "second"], OVERWRITE),
    "classify": (["run", "store", "--table", "t.csv"], {"bootstraps": ([], ["result"], ["1000"], ["10"])}),
    "preprocess": (
        ["recordings", "store"],
        {
            "montage": (["--like", "run"], [], None, ["aasm"]),
            "dask_scheduler": ([], ["--backend", "dask"], None, ["tcp://node:1"]),
            "workers": (["--backend", "dask", "--dask-scheduler", "tcp://node:1"], [], ["0"], ["2"]),
            "json": ([], ["--inspect"], None, ["report.json"]),
            "overwrite": (["--inspect"], [], None, []),
            "shard": (["--inspect"], [], None, ["1/2"]),
        },
    ),
    "convert": (
        ["source", "store"],
        {
            "fs_hz": (["--from", "seed"], ["--from", "clinical"], ["128"], ["256"]),
            "joined": (["--from", "clinical"], ["--from", "seed"], None, []),
        },
    ),
    "features": (["store", "features"], SHARES),
}
EVERY = [(name, option) for name, (_, effects) in CASES.items() for option in effects]


def parsed(name, argv):
    import tyro

    return tyro.cli(importlib.import_module(f"sleepfm_fast.{name}").Config, args=argv, use_underscores=False)


def test_every_stated_effect_has_a_case_and_names_fields():
    for name in COMMANDS:
        config = importlib.import_module(f"sleepfm_fast.{name}").Config
        stated = {effect.option for effect in getattr(config, "EFFECTS", ())}
        assert stated == set(CASES.get(name, ((), {}))[1]), name
        fields = {field.name for field in dataclasses.fields(config)}
        assert all({effect.option, effect.decider} <= fields for effect in getattr(config, "EFFECTS", ()))


@pytest.mark.parametrize(("name", "option"), EVERY)
def test_given_and_void_is_wrong_usage_before_any_work(name, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    positionals, effects = CASES[name]
    void, _, default, other = effects[option]
    flag = f"--{option.replace('_', '-')}"
    command = importlib.import_module(f"sleepfm_fast.{name}")
    for value in (default, other):
        if value is None:
            continue
        assert command.cli([*positionals, *void, flag, *value]) == 2
        captured = capsys.readouterr()
        sentence = captured.err.strip().splitlines()[-1]
        assert sentence.startswith(f"error: {flag}")
        assert re.search(r"has no effect (with|without) (--[a-z-]+|RESULT)", sentence), sentence
        assert "eave" in sentence, "it says what to do"
        assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "option"), EVERY)
def test_given_and_counting_or_not_given_passes(name, option):
    positionals, effects = CASES[name]
    void, counting, default, other = effects[option]
    flag = f"--{option.replace('_', '-')}"
    for value in (default, other):
        argv = [*positionals, *counting, *([] if value is None else [flag, *value])]
        refuse_without_effect(parsed(name, argv), given_options(argv))
    refuse_without_effect(parsed(name, [*positionals, *void]), given_options([*positionals, *void]))


@pytest.mark.parametrize("argv", [["--momentum=0.9"], ["--momentum", "0.9"]])
def test_both_ways_of_writing_a_value_are_seen(argv):
    given = given_options(["store", "run", "--optimiser", "adamw", *argv])
    assert {"optimiser", "momentum"} <= given
    with pytest.raises(SleepfmError, match="--optimiser adamw"):
        refuse_without_effect(train.Config(optimiser="adamw"), given)


def test_the_settings_of_a_run_know_what_was_left_open():
    assert resolve(train.Config(optimiser="adamw", schedule="cosine")).momentum == 0.9
    with pytest.raises(SleepfmError, match=r"--momentum 0\.5 has no effect with --optimiser adamw"):
        resolve(train.Config(optimiser="adamw", momentum=0.5))
    with pytest.raises(SleepfmError, match=r"--step-epochs 2 has no effect with --schedule cosine; .*--schedule step"):
        resolve(train.Config(schedule="cosine", step_epochs=2))
    for compat in ("seed", "paper"):
        assert resolve(train.Config(compat=compat, momentum=0.9)).optimiser == "sgd"
