"""Paths from a notebook: text as well as pathlib's, ``~`` for the home folder, and sentences for what is none."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sleepfm_fast import embed, probe, report, train
from sleepfm_fast.__main__ import COMMANDS
from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.cli.given_paths import TakesPaths, as_path, choices_of, plain_kinds_of
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.pretrained import load_model
from sleepfm_fast.recordings import read_recording
from sleepfm_fast.results import find_results, read_result


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_only_a_home_folder_of_ones_own_is_meant(home, monkeypatch):
    assert as_path("~") == home
    assert as_path("~/RUN") == as_path(Path("~/RUN")) == home / "RUN"
    for other in ("RUN", "a/~/RUN", "./~/RUN", "~RUN", "~$night.edf", "/~/RUN", ""):
        assert str(as_path(other)) == str(Path(other)) or other == "./~/RUN"
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert as_path("~/RUN") == Path("~/RUN")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_makes_paths_of_texts(name, home):
    """A field that is a path in its annotation is one in the configuration, whatever was given."""
    config = importlib.import_module(f"sleepfm_fast.{name}").Config
    assert issubclass(config, TakesPaths)
    fields = [f for f in dataclasses.fields(config) if "Path" in str(f.type)]
    assert fields
    given = {f.name: "~/A" for f in fields}
    needed = {name: choices[0] for name, (choices, several) in choices_of(config).items() if not several}
    made = config(**{**needed, **given})
    for f in fields:
        expected = (home / "A",) if "tuple[Path" in str(f.type) else home / "A"
        assert getattr(made, f.name) == expected
    again = dataclasses.replace(made)
    assert again == made
    with pytest.raises(TypeError, match=rf"{fields[0].name} is 7; expected a path, as text or pathlib.Path"):
        config(**{**needed, **given, fields[0].name: 7})


@dataclasses.dataclass(frozen=True)
class Plain(TakesPaths):
    n: int = 1
    share: float = 0.5
    limit: int | None = None
    overwrite: bool = False
    title: str = ""
    sizes: tuple[int, ...] = ()
    shares: tuple[float, ...] | None = None


def test_numbers_switches_and_texts_are_looked_at():
    made = Plain(np.int64(3), np.float32(0.25), np.int8(4), np.True_, np.str_("a"), [1, np.int64(2)], [1, 0.5])
    assert made == Plain(3, 0.25, 4, True, "a", (1, 2), (1, 0.5))
    kinds = [type(getattr(made, field.name)) for field in dataclasses.fields(made)]
    assert kinds == [int, float, int, bool, str, tuple, tuple]
    assert [type(n) for n in made.sizes] == [int, int]
    assert repr(Plain(share=1)) == repr(dataclasses.replace(Plain(share=1)))
    assert type(Plain(share=1).share) is int  # as given: it is written into configurations
    for given, expected in (
        ({"n": "64"}, "n is '64'; expected an integer."),
        ({"n": 2.0}, "n is 2.0; expected an integer."),
        ({"n": True}, "n is True; expected an integer."),
        ({"n": np.False_}, f"n is {np.False_!r}; expected an integer."),
        ({"n": np.float64(2)}, f"n is {np.float64(2)!r}; expected an integer."),
        ({"n": None}, "n is None; expected an integer."),
        ({"limit": "5"}, "limit is '5'; expected an integer or None."),
        ({"share": "a"}, "share is 'a'; expected a number."),
        ({"share": None}, "share is None; expected a number."),
        ({"overwrite": 1}, "overwrite is 1; expected True or False."),
        ({"overwrite": "no"}, "overwrite is 'no'; expected True or False."),
        ({"title": 3}, "title is 3; expected text."),
        ({"sizes": 5}, "sizes is 5; expected an integer each, in a tuple."),
        ({"sizes": (5, "6")}, "sizes is (5, '6'); expected an integer each, in a tuple."),
        ({"shares": "0.5"}, "shares is '0.5'; expected a number each, in a tuple, or None."),
    ):
        with pytest.raises(TypeError) as refused:
            Plain(**given)
        assert str(refused.value) == expected


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_looks_at_its_numbers(name):
    config = importlib.import_module(f"sleepfm_fast.{name}").Config
    kinds = plain_kinds_of(config)
    numbers = re.compile(r"(Annotated\[)?(int|float|bool)\b")
    expected = {f.name for f in dataclasses.fields(config) if numbers.match(str(f.type))}
    assert expected or name == "import_checkpoint"
    assert expected <= set(kinds)
    needed = {name: choices[0] for name, (choices, several) in choices_of(config).items() if not several}
    needed |= {f.name: "A" for f in dataclasses.fields(config) if "Path" in str(f.type)}
    for option in expected:
        with pytest.raises(
            TypeError, match=rf"^{option} is 'x'; expected (an integer|a number|True or False)( or None)?\.$"
        ):
            config(**{**needed, option: "x"})


def test_commands_called_with_texts(cohort_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(train.Config(str(cohort_store), "RUN", preset="tiny", max_steps=2, threads=1))
    embed.main(embed.Config("RUN", str(cohort_store), "RUN/embeddings"))
    printed = probe.main(probe.Config("RUN/embeddings", "stage", "RUN/results/stage", bootstraps=20))
    assert printed["task"] == "stage"
    report.main(report.Config("RUN", projection="pca", recordings=1))
    assert Path("RUN/report.html").is_file()

    assert read_result("RUN/results/stage").array("label").size
    assert [result.path.name for result in find_results("RUN")] == ["stage"]
    with pytest.raises(SleepfmError, match="holds no result"):
        read_result("RUN/nothing")
    model, config, _ = load_model("RUN", "cpu")
    store = ClipStore(str(cohort_store))
    clip_input = ClipInput(store, store.montage, InputConfig(**config["input"]), "cpu")
    assert clip_input.read_amplitudes("RUN/amplitudes.safetensors") == ()
    batch = clip_input(np.arange(2))  # refused of recordings that were not measured
    with torch.inference_mode():
        assert model(batch.x, batch.present)[0].isfinite().all()

    embeddings = Embeddings("RUN/embeddings")
    said = repr(embeddings)
    assert said.startswith("Embeddings('RUN/embeddings': ")
    assert f"{len(embeddings)} clips, 8 recordings, 8 subjects, respiratory [128], brain [128], ecg [128])" in said


def test_readers_of_the_library_know_the_home_folder(home, cohort, cohort_store):
    (home / "STORE").symlink_to(cohort_store)
    (home / "NIGHTS").symlink_to(cohort)
    assert len(ClipStore("~/STORE")) == len(ClipStore(cohort_store))
    night = next(cohort.glob("*.edf"))
    assert read_recording(f"~/NIGHTS/{night.name}").path == home / "NIGHTS" / night.name
    with pytest.raises(SleepfmError, match=rf"no embeddings folder at {home}/nothing"):
        Embeddings("~/nothing")


def test_a_page_beside_an_equals_sign_goes_home(home, tmp_path, monkeypatch, capsys):
    """Bash leaves ``--out=~/report.html`` as it is: the page was written into a folder named ~."""
    monkeypatch.chdir(tmp_path)
    assert report.cli(["nothing", "--out=~/report.html"]) == 1
    assert f'"out": "{home}/report.html"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"store": "STORE"}, r"store is 'STORE'; expected a ClipStore: ClipStore\(FOLDER\)\."),
        ({"montage": "auto"}, r"montage is 'auto'; expected a Montage: the store's own, store.montage, or "),
        ({"config": {"filters": "aasm"}}, r"config is \{'filters': 'aasm'\}; expected an InputConfig, such as "),
    ],
)
def test_a_clip_input_says_what_it_is_made_of(change, sentence, cohort_store):
    store = ClipStore(cohort_store)
    given = {"store": store, "montage": store.montage, "config": InputConfig(), "device": "cpu"}
    with pytest.raises(TypeError, match=sentence):
        ClipInput(**(given | change))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: probe.Config("E", "stage", "R", fit_on="test"),
            r"fit_on is 'test'; expected one of: 'train', 'train\+",
        ),
        (lambda: probe.Config("E", "stge", "R"), "task is 'stge'; expected one of: 'stage', 'sdb', 'age', 'sex'"),
        (
            lambda: embed.Config("R", "S", "E", precision="float16"),
            "precision is 'float16'; expected one of: 'float32', ",
        ),
        (lambda: train.Config("S", "R", device="mps"), "device is 'mps'; expected one of: 'auto', 'cpu', 'cuda'"),
        (lambda: train.Config("S", "R", notch_hz=49), "notch_hz is 49; expected one of: 0, 50, 60, None"),
        (lambda: report.Config("R", projection="umap"), "projection is 'umap'; expected one of: 'tsne', 'pca'"),
        (
            lambda: train.Config("S", "R", modalities="brain"),
            "modalities is 'brain'; expected some of, in a tuple: 'resp",
        ),
        (lambda: train.Config("S", "R", modalities=["eeg"]), r"modalities is \('eeg',\); expected some of"),
    ],
)
def test_a_choice_that_is_none_is_refused(make, sentence):
    """A probe was fitted on the test clips, embeddings said to be of float16, and PCA drawn in place of UMAP."""
    with pytest.raises(SleepfmError, match=sentence):
        make()


def test_several_choices_may_be_a_list():
    assert train.Config("S", "R", modalities=["brain", "ecg"]).modalities == ("brain", "ecg")
    assert train.Config("S", "R").modalities == ()
