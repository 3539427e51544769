"""The documents' Python for readers of results runs on a small simulated run, with the libraries that it names."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from test_documents import PAGES, blocks

from sleepfm_fast import embed, predict, probe, report, train
from sleepfm_fast.scoring.stages import STAGES

SNIPPETS = [(page.name, text) for page in PAGES for text in blocks(page.read_text(), "python")]


def snippet(page: str, word: str) -> str:
    """The one Python block of a page that has a word in it."""
    (text,) = [text for name, text in SNIPPETS if name == page and word in text]
    return text


@pytest.fixture(scope="module")
def folder(cohort_store, tmp_path_factory):
    """RUN with a probe of stages and a report, and PREDICTIONS, named as the documents name them."""
    folder = tmp_path_factory.mktemp("read")
    run, embeddings, stage = folder / "RUN", folder / "RUN" / "embeddings", folder / "RUN" / "results" / "stage"
    train.main(train.Config(cohort_store, run, preset="tiny", max_steps=2, threads=1))
    embed.main(embed.Config(run, cohort_store, embeddings))
    probe.main(probe.Config(embeddings, "stage", stage, bootstraps=20))
    predict.main(predict.Config(stage, embeddings, folder / "PREDICTIONS"))
    report.main(report.Config((run,), projection="pca", recordings=1))
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def has_what_it_imports(text):
    """Whether the libraries of a block that the tests do not ask for are installed; plots go nowhere."""
    others = [name for name in ("pandas", "matplotlib", "mne") if re.search(rf"^import {name}\b", text, re.MULTILINE)]
    if "matplotlib" in others and importlib.util.find_spec("matplotlib"):
        importlib.import_module("matplotlib").use("Agg")
    return all(importlib.util.find_spec(name) for name in others)


def said_by(text: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(text, {})
    return out.getvalue()


def test_agreement_by_subject(here, recwarn):
    pandas = pytest.importorskip("pandas")
    said = said_by(snippet("evaluation.md", "pandas"))
    clips = pandas.read_csv("PREDICTIONS/predictions.csv", dtype=str, keep_default_na=False)
    subjects = set(clips.subject[clips.scored != ""])
    lines = dict(line.rsplit(maxsplit=1) for line in said.splitlines()[1:-1])
    assert set(lines) == subjects
    assert all(-1 <= float(value) <= 1 for value in lines.values())
    assert not [w for w in recwarn if "pandas" in str(w.filename) or issubclass(w.category, DeprecationWarning)]


def test_curves_from_the_numbers_of_a_report(here, monkeypatch):
    drawn = []
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:  # then what the snippet draws is taken down
        plt = types.ModuleType("matplotlib.pyplot")
        plt.legend, plt.savefig = (lambda: None), (lambda path: Path(path).write_text("-"))
        monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", plt)
        sys.modules["matplotlib"].pyplot = plt
        plt.plot = lambda *a, **k: None
    plot = plt.plot
    monkeypatch.setattr(plt, "plot", lambda x, y, **k: (drawn.append((x, y, k["label"])), plot(x, y, **k)))
    said = said_by(snippet("report.md", "matplotlib"))
    assert Path("roc.pdf").stat().st_size > 0
    assert {label.split()[0] for *_, label in drawn} <= set(STAGES)
    assert len(drawn) > 1
    for x, y, _ in drawn:
        assert len(x) == len(y) > 1
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert "'value'" in said
    assert "'n_resamples'" in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's own
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load's of its own memory (2.11)
def test_the_classes_behind_the_commands(here, cohort_store):
    """Every block of the page in order, in one program; what it finds is compared with what the commands wrote."""
    if not Path("STORE").exists():
        Path("STORE").symlink_to(cohort_store)
    names: dict[str, object] = {}
    pages = [text for page, text in SNIPPETS if page == "python.md" and has_what_it_imports(text)]
    n = next(i for i, text in enumerate(pages) if "optimiser" in text)
    assert len(pages[:n]) >= 8
    assert len(pages[n:]) == 2
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for text in pages[:n]:
            exec(text, names)
        embeddings, asleep, unit = names["embeddings"], names["asleep"], names["unit"]
        written = np.asarray(embeddings.vectors)[asleep].transpose(1, 0, 2)
        np.testing.assert_allclose(unit.numpy(), written, atol=1e-5)
        assert names["mask"].all()
        assert len(names["ahi"]) == len(names["mean"]) == len(embeddings.description.recordings)
        assert np.isfinite(names["mean"]).all()
        before = {name: value.clone() for name, value in names["model"].state_dict().items()}
        for text in pages[n:]:
            exec(text, names)
    assert "respiratory" in out.getvalue()
    assert "'n_resamples'" in out.getvalue()
    assert set(names["split"]) == {"train", "validation", "test"}
    if "raw" in names:
        assert [text.rpartition(" ")[2] for text in names["raw"].annotations.description] == [
            STAGES[code] for code in names["store"].stage[: names["night"].n_clips]
        ]
    if "plt" in names:
        assert len(names["probability"]) == len(names["rows"]) == len(names["predicted"])
        scored, predicted = names["top"].get_lines()
        assert [text.get_text() for text in names["top"].get_yticklabels()] == list(STAGES)
        assert (scored.get_ydata() == names["height"][names["result"].array("label")[names["rows"]]]).all()
        assert (predicted.get_ydata() == names["height"][names["predicted"]]).all()
        names["plt"].close("all")
    assert np.abs(names["millivolts"]).max() > 0.1
    model = names["model"]
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    program = torch.export.load("brain.pt2").module()
    model.eval()
    for n in (1, len(names["example"])):
        clips = names["example"][:n]
        with torch.no_grad():
            np.testing.assert_allclose(program(clips), model.encoders["brain"](clips), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # MNE's own
def test_other_formats_by_way_of_mne(tmp_path, monkeypatch, capsys):
    mne = pytest.importorskip("mne")
    from sleepfm_fast import preprocess
    from sleepfm_fast.clips import ClipStore

    monkeypatch.chdir(tmp_path)
    Path("NIGHTS").mkdir()
    rng = np.random.default_rng(0)
    volts = np.array([40e-6, 400e-6])[:, None] * rng.standard_normal((2, 6000))
    raw = mne.io.RawArray(volts, mne.create_info(["C3-M2", "ECG"], 100.0, ["eeg", "ecg"]), verbose="error")
    raw.set_annotations(mne.Annotations([0, 30], [30, 30], ["Sleep stage W", "Sleep stage N2"]))
    raw.save("NIGHTS/night_raw.fif", verbose="error")
    text = snippet("cohorts.md", "mne")
    assert "*.vhdr" in text
    said_by(text.replace("*.vhdr", "*.fif"))
    assert preprocess.cli(["NIGHTS", "STORE", "--backend", "threading"]) == 0
    store = ClipStore(Path("STORE"))
    assert store.stage.tolist() == [0, 2]
    kept = [channel for channel in store.record(0)["channels"] if channel["present"]]
    assert [channel["labels"][0] for channel in kept] == ["C3-M2", "ECG"]
    for slot, (channel, given) in enumerate(zip(kept, volts, strict=True)):
        found = store.run(0, slot, 0) * channel["gain"] + channel["offset"]
        step = np.ptp(given * 1e6) / 65_535
        np.testing.assert_allclose(found, given * 1e6, rtol=0, atol=step)


def test_the_names_that_the_snippets_in_r_use_are_there(here):
    """R is not run; what it looks up must exist."""
    numbers = json.loads(Path("RUN/report.json").read_text())
    (section,) = [s for s in numbers["sections"] if s["section"] == "Sleep staging"]
    curves = next(f for f in section["figures"] if f["title"] == "ROC curves")["data"]
    assert {"false positive rate", "true positive rate"} <= set(curves["W"])
    header = Path("PREDICTIONS/predictions.csv").read_text().splitlines()[0].split(",")
    assert {"subject", "predicted", "scored"} <= set(header)
    page = Path(__file__).resolve().parents[1] / "docs"
    (text,) = blocks((page / "report.md").read_text(), "r")
    assert all(word in text for word in ('"Sleep staging"', '"ROC curves"', "curves$W$`false positive rate`"))
    (text,) = blocks((page / "evaluation.md").read_text(), "r")
    assert all(f"clips${name}" in text for name in ("subject", "predicted", "scored"))
