"""The report: every section from files, what is missing named, nothing loaded, nothing injected."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from called import called
from report_runs import classify, embed, few_shot, full_run, retrieve, start

from sleepfm_fast import report
from sleepfm_fast.evaluation.tasks import TASKS

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements, texts and ids of a page; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


run = partial(called, report.cli)


def make(folder, *, projection="pca", **changes):
    """Write a report; returns the page, its parsed form and the numbers."""
    out = folder / "report.html"
    runs = changes.pop("runs", (folder,))
    result = report.main(report.Config(tuple(runs), out=out, projection=projection, overwrite=True, **changes))
    text = out.read_text(encoding="utf-8")
    return text, Page(text), json.loads(out.with_suffix(".json").read_text(encoding="utf-8")), result


def figures_of(numbers):
    return {(s["section"], f["group"], f["title"]): f for s in numbers["sections"] for f in s["figures"]}


def missing_of(numbers):
    return [(m["what"], m["command"]) for s in numbers["sections"] for m in s["missing"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("reported") / "run")


@pytest.fixture(scope="module")
def made(folder):
    return make(folder)


def test_every_section_is_there(made):
    _, page, numbers, _ = made
    titles = [s["section"] for s in numbers["sections"]]
    assert titles == [
        "Headline figures", "Recordings", "Training", "Nights of held-out subjects", "Embeddings in two dimensions",
        "Sleep staging", "Sleep-disordered breathing", "Age group", "Sex", "Few labelled subjects",
        "Retrieval between modalities", "Throughput", "Configuration, and how to reproduce this",
        "Files behind the figures",
    ]  # fmt: skip
    assert [t for t in titles if t in "".join(page.text)] == titles


def test_numbers_are_those_of_the_results(made, folder):
    text, _, numbers, _ = made
    stage = json.loads((folder / "results" / "stage" / "result.json").read_text())
    figures = figures_of(numbers)
    (card,) = [f for (_, _, title), f in figures.items() if title == "Sleep staging: AUROC, mean of stages"]
    assert card["data"]["run"]["figure"] == stage["macro"]["auroc"]
    assert f"{stage['macro']['auroc']['value']:.3f}" in text
    (confusion,) = [f for (s, _, t), f in figures.items() if s == "Sleep staging" and t == "Confusion matrix"]
    assert confusion["data"]["counts"] == stage["confusion"]["counts"]
    assert np.sum(confusion["data"]["row_share"], 1) == pytest.approx(np.ones(5), abs=1e-4)
    (roc,) = [f for (s, _, t), f in figures.items() if s == "Sleep staging" and t == "ROC curves"]
    for name, entry in roc["data"].items():
        assert entry["area"] == stage["classes"][name]["auroc"]["value"]
        x, y = (np.array(entry[f"{which} positive rate"]) for which in ("false", "true"))
        assert ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() == pytest.approx(entry["area"], abs=5e-3)
    (loss,) = [f for (s, _, t), f in figures.items() if s == "Training" and t.startswith("Loss")]
    assert loss["data"]["validation_loss"] == pytest.approx([0.5, 0.25, 5 / 30])


def test_every_figure_names_files_that_exist(made, folder):
    _, _, numbers, _ = made
    for (section, _, title), figure in figures_of(numbers).items():
        if section not in ("Files behind the figures",) and title != "This report":
            assert figure["files"], title
        for file in figure["files"]:
            assert report.Path(file).is_file(), (title, file)


def test_the_page_loads_nothing(made):
    text, page, _, _ = made
    assert not page.all("script")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"):
                assert value.startswith("#") or value == "data:,", (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_the_page_can_be_heard_and_walked_through(made):
    _, page, _, _ = made
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for reference in attributes.get("aria-labelledby", "").split():
            assert reference in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 2 for before, after in itertools.pairwise(levels))
    assert all("scope" in a for a in page.all("th"))
    drawings = [i for i, (tag, a) in enumerate(page.elements) if tag == "svg" and a.get("role") == "img"]
    assert len(drawings) > 20
    for i in drawings:
        assert page.elements[i + 1][0] == "title"
    assert all(a.get("aria-hidden") == "true" for _, a in page.elements if a.get("class") == "key")
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for _, a in page.elements if a.get("class") == "scroll")


def test_the_same_files_make_the_same_page(made, folder):
    text, _, _, _ = made
    assert make(folder)[0] == text
    assert make(folder, seed=1, projection_clips=20)[0] != text


def test_names_are_text_and_nothing_else(tmp_path, capsys):
    evil = [
        "a&b;'c'",
        "x" * 300,
        "]]></svg><svg onload=alert(1)>",
        "\u202egnp.exe\u0001",
        '"><img src=x onerror=alert(1)>',
        "<script>alert(1)</script>",
    ]
    folder = tmp_path / "<b>&\"'run"
    full_run(folder, names=evil)
    start(folder, store="<i>store</i>", split_salt="<script>")
    text, page, numbers, _ = make(folder, title="<u>title</u>", recordings=9)
    assert not page.all("script")
    for tag in ("img", "b", "i", "u"):
        elements = page.all(tag)
        assert all("onerror" not in e for e in elements)
        assert tag in ("i", "b") or not elements
    assert "\u202e" not in text
    assert "\x01" not in text
    shown = "".join(page.text)
    assert all(name in shown for name in evil[-2:])
    assert "<u>title</u>" in shown
    names = {t for (s, _, t) in figures_of(numbers) if s.startswith("Nights")}
    assert names == {f"{name}_night" for name in evil[-2:]}


def test_stages_are_told_apart_in_greyscale():
    style = (report.Path(report.__file__).parent / "reporting" / "page.css").read_text()
    colours = re.findall(r"--stage-(\w+): #(\w\w)(\w\w)(\w\w);", style)
    assert len(colours) == 15, "light, dark and print"
    for palette in (colours[:5], colours[5:10], colours[10:]):
        lightness = sorted(np.dot([int(v, 16) for v in rgb], (0.299, 0.587, 0.114)) for _, *rgb in palette)
        assert np.diff(lightness).min() > 30, palette


def test_the_own_store_comes_before_other_stores(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    classify(folder / "results" / "stage", embed(folder / "embeddings", store="store"), "stage")
    other = embed(folder / "elsewhere", store="hospital", names=[f"h{i}" for i in range(6)])
    classify(folder / "results" / "external-stage", other, "stage", seed=2)
    _, _, numbers, _ = make(folder)
    groups = [g for (s, g, t) in figures_of(numbers) if s == "Sleep staging" and t == "Confusion matrix"]
    assert ["external" in g.partition(" (")[0] for g in groups] == [False, True]


def test_an_untrained_run_says_what_to_do(tmp_path):
    start(tmp_path / "run", store="my nights")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    _, _, numbers, result = make(tmp_path / "run")
    commands = "\n".join(command for _, command in missing_of(numbers))
    for name in ("preprocess", "train", "embed", "probe", "few_shot", "retrieve"):
        assert f"python -m sleepfm_fast.{name} " in commands
    assert "'my nights'" in commands
    assert "--task sdb" in commands
    assert len(result["missing"]) == len(missing_of(numbers))


def test_a_folder_with_results_alone(tmp_path):
    embeddings = embed(tmp_path / "features")
    classify(tmp_path / "hand-made" / "results" / "stage", embeddings, "stage")
    _, page, numbers, _ = make(tmp_path / "hand-made")
    assert ("Sleep staging", "Probe, all modalities", "ROC curves") in figures_of(numbers)
    assert "None of the folders was trained" in "".join(page.text)
    # The embeddings are found through the result that was made from them.
    assert any(s.startswith("Embeddings") for (s, _, _) in figures_of(numbers))


def test_one_held_out_subject_and_absent_classes(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings", n_subjects=2, clips_each=30)
    classify(folder / "results" / "stage", embeddings, "stage", trained=[0, 2])
    classify(folder / "results" / "sdb", embeddings, "sdb")
    _, _, numbers, _ = make(folder)
    figures = figures_of(numbers)
    (roc,) = [f for (s, _, t), f in figures.items() if s == "Sleep staging" and t == "ROC curves"]
    assert set(roc["data"]) == {"W", "N2"}
    assert "N1, N3, R" in roc["caption"]
    nights = [f for (s, _, _), f in figures.items() if s.startswith("Nights")]
    assert nights[0]["data"]["stages"]["run"]["classes"] == ["W", "N2"]
    assert set(nights[0]["data"]["stages"]["run"]["predicted"]) <= {"W", "N2"}


def test_a_task_of_one_class_has_no_curves_but_a_sentence(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings", sexes=("M",) * 6)
    classify(folder / "results" / "sex", embeddings, "sex")
    _, _, numbers, _ = make(folder)
    assert any("no class has both positive and negative test clips" in what for what, _ in missing_of(numbers))
    assert ("Sex", "Probe, all modalities", "Confusion matrix") in figures_of(numbers)


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path, capsys):
    folder = full_run(tmp_path / "run")
    (folder / "results" / "age" / "result.json").write_text("{")
    (folder / "results" / "sdb" / "probability.npy").write_bytes(b"nonsense")
    (folder / "results" / "sex" / "score.npy").unlink()
    record = folder / "results" / "few_shot-stage" / "result.json"
    record.write_text(record.read_text().replace('"subjects"', '"persons"'))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('not json\n{"kind": "step", "step": null, "loss": "x"}\n{"kind": "step", "ste')
    _, _, numbers, _ = make(folder)
    said = " ".join(what for what, _ in missing_of(numbers)) + " ".join(numbers["notices"])
    for name in ("age/result.json", "sdb/probability.npy", "sex/score.npy", "few-shot", "metrics.jsonl"):
        assert name in said, name
    assert "is not JSON" in said
    assert said.count("is not JSON") == 1, "a last line that is being written is no problem"
    assert ("Sleep staging", "Probe, all modalities", "ROC curves") in figures_of(numbers)
    assert any(s.startswith("Retrieval") for (s, _, _) in figures_of(numbers))


def test_a_record_of_another_shape_is_a_sentence(tmp_path):
    folder = full_run(tmp_path / "run")
    for task, change in (("stage", {"confusion": {"counts": 3}}), ("sdb", {"classes": [1]}), ("age", {"strata": 7})):
        file = folder / "results" / task / "result.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    file = folder / "results" / "retrieve" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "directions": [{"query": "x"}]}))
    _, _, numbers, _ = make(folder)
    said = " ".join(what for what, _ in missing_of(numbers))
    assert said.count("is not as probe writes it") >= 2
    assert "retrieve cannot be drawn" in said


def test_losses_that_are_not_finite_lift_the_pen(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "step" and 5 <= row["step"] <= 8:
            row["loss"] = None
    rows.append({"kind": "skipped", "step": 31, "reason": "x"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text, _, numbers, _ = make(folder)
    (loss,) = [f for (s, _, t), f in figures_of(numbers).items() if t.startswith("Loss")]
    assert loss["data"]["loss"][4:8] == [None] * 4
    assert loss["data"]["skipped_steps"] == 1
    thin = re.search(r'<path d="([^"]+)" class="line s7 thin">', text)
    assert thin is not None
    assert thin[1].count("M") == 2


def test_runs_side_by_side(tmp_path):
    one, two = full_run(tmp_path / "a" / "run"), tmp_path / "b" / "run"
    start(two, mode="pairwise")
    embeddings = embed(two / "embeddings", seed=4)
    classify(two / "results" / "stage", embeddings, "stage", seed=9)
    retrieve(two / "results" / "retrieve", embeddings, scope="night")
    deep = tmp_path / "supervised"
    start(deep, task="stage", train_subjects=3)
    classify(deep / "results" / "stage", embeddings, "stage", seed=3, command="supervise")
    _, _, numbers, _ = make(one, runs=(one, two, deep))
    figures = figures_of(numbers)
    (card,) = [f for (_, _, title), f in figures.items() if title == "Sleep staging: AUROC, mean of stages"]
    assert len(card["data"]) == 3
    assert [name.rpartition("/")[2] for name in card["data"]] == ["run", "run", "supervised"]
    groups = [g for (s, g, t) in figures if s == "Sleep staging" and t == "Confusion matrix"]
    assert len(groups) == 3
    assert any("end-to-end network" in g for g in groups)
    (differing,) = [f for (_, _, t), f in figures.items() if t == "What differs"]
    (mode,) = [row for row in differing["data"] if row["option"] == "config.mode"]
    assert list(mode.values())[1:] == ["leave_one_out", "pairwise", "leave_one_out"]
    shots = [f for (s, _, t), f in figures.items() if s == "Few labelled subjects" and t.endswith("macro AUROC")]
    assert any("end-to-end" in name for name in shots[0]["data"])
    assert any("within the query's own night" in g for (s, g, _) in figures if s.startswith("Retrieval"))
    night = next(f for (s, _, _), f in figures.items() if s.startswith("Nights"))
    assert len(night["data"]["stages"]) == 3
    # A supervised network is not asked for embeddings or retrieval.
    assert not any("supervised" in what and "embeddings" in what for what, _ in missing_of(numbers))


def test_a_recording_of_one_clip_and_a_gap(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings", n_subjects=3, clips_each=4)
    onset = np.load(folder / "embeddings" / "onset_s.npy")
    onset[-2:] += 3600.0
    np.save(folder / "embeddings" / "onset_s.npy", onset)
    embeddings = type(embeddings)(folder / "embeddings")
    classify(folder / "results" / "stage", embeddings, "stage")
    for name in ("clip", "label", "subject", "recording", "onset_s", "score", "probability"):
        file = folder / "results" / "stage" / f"{name}.npy"
        np.save(file, np.load(file)[3:])
    record = folder / "results" / "stage" / "result.json"
    value = json.loads(record.read_text())
    value["arrays"] = {k: [v[0], v[1] - 3, *v[2:]] for k, v in value["arrays"].items()}
    record.write_text(json.dumps(value))
    text, _, numbers, _ = make(folder, recordings=5)
    nights = [f for (s, _, _), f in figures_of(numbers).items() if s.startswith("Nights")]
    assert sorted(len(f["data"]["stages"]["run"]["truth"]) for f in nights) == [1, 4]
    truth = re.findall(r'<path d="([^"]+)" class="line truth">', text)
    assert max(path.count("M") for path in truth) == 2, "a gap of an hour lifts the pen"


def test_a_night_of_ten_hours_stays_small(tmp_path):
    folder = full_run(tmp_path / "run", n_subjects=4, clips_each=1200)
    text, _, _, _ = make(folder, recordings=3)
    assert len(text.encode()) < 5 * 2**20


def test_a_report_given_again_is_finished_where_it_would_be_the_same(tmp_path, capsys):
    folder, figures = tmp_path / "run", tmp_path / "figures"
    start(folder)
    embeddings = embed(folder / "embeddings")
    for task in ("stage", "sdb"):
        classify(folder / "results" / task, embeddings, task)
    given = (folder, "--figures", figures)
    status, first, _ = run(capsys, *given)
    assert status == 0
    page, numbers = folder / "report.html", folder / "report.json"
    files = (page, numbers, *sorted(figures.iterdir()))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    def unchanged():
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files} == before

    status, again, err = run(capsys, *given)
    assert status == 0
    assert f"{page} is already finished: this same command wrote it. To make it again, add --overwrite." in err
    assert not any(line.startswith("wrote") for line in err.splitlines())
    first.pop("elapsed_s"), again.pop("elapsed_s")
    assert again == first
    assert unchanged()

    # With other options it is refused before anything is read.
    (folder / "results" / "sdb").rename(tmp_path / "sdb")
    refusal = f"{page} exists and is not overwritten: the existing one differs in "
    status, _, err = run(capsys, *given, "--recordings", 1)
    assert (status, f"{refusal}recordings (3 there, 1 now). Give another --out, or add --overwrite." in err) == (
        1,
        True,
    )
    assert "embeddings" not in err

    # With other results the sections are named.
    status, _, err = run(capsys, *given)
    assert status == 1
    assert f"{refusal}'Headline figures', 'Nights of held-out subjects', 'Sleep-disordered breathing'," in err
    assert "'Sleep staging'" not in err
    assert unchanged()
    (tmp_path / "sdb").rename(folder / "results" / "sdb")
    assert run(capsys, *given)[0] == 0

    # A kill leaves the numbers, which are written first; the rest follows.
    files[-1].unlink()
    page.unlink()
    status, _, err = run(capsys, *given)
    assert (status, f"wrote {page}" in err) == (0, True)
    assert {file: data for file, (data, _) in before.items()} == {file: file.read_bytes() for file in files}

    # A figure that was changed by hand is not lost.
    files[-1].write_bytes(files[-1].read_bytes() + b"<!-- mine -->")
    status, _, err = run(capsys, *given)
    assert (status, f"{refusal}{files[-1]}. Give" in err) == (1, True)
    assert run(capsys, *given, "--overwrite")[0] == 0
    assert {file: data for file, (data, _) in before.items()} == {file: file.read_bytes() for file in files}


@pytest.mark.parametrize("content", ["", "[]", '{"format": "sleepfm_fast report", "version": 1, "sections": []}'])
def test_a_report_that_does_not_say_what_it_was_made_of_is_refused(tmp_path, capsys, content):
    """Of versions before this, or a file of the user."""
    start(tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    page.write_text("mine")
    for numbers in (None, content):
        if numbers is not None:
            page.with_suffix(".json").write_text(numbers)
        status, _, err = run(capsys, tmp_path / "run")
        assert status == 1
        assert f"{page} exists and is not overwritten. Give another --out, or add --overwrite." in err
        assert page.read_text() == "mine"
    assert run(capsys, tmp_path / "run", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no run folder"),
        (["run", "run"], "named twice"),
        (["run", "--out", "page.txt"], "ends in .html"),
        (["run", "--out", "no/such/page.html"], "does not exist"),
        (["run", "--recordings", "-1"], "--recordings is -1"),
        (["run", "--projection-clips", "2"], "--projection-clips is 2"),
        (["empty"], "is not a run folder"),
    ],
)
def test_refusals_are_sentences(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    start(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert words in err


def test_no_run_is_wrong_usage(capsys):
    assert report.cli([]) == 2 or "no run was named" in capsys.readouterr().err


def test_the_commands_reproduce(made, folder):
    _, _, numbers, _ = made
    (commands,) = [f["data"] for (_, _, t), f in figures_of(numbers).items() if t == "Commands"]
    assert commands[0] == f"python -m sleepfm_fast.train store {folder} --preset tiny --epochs 3"
    probes = [c for c in commands if ".probe " in c]
    assert len(probes) == len(TASKS)
    assert f"python -m sleepfm_fast.retrieve {folder}/embeddings {folder}/results/retrieve" in " ".join(commands)
    assert any("few_shot" in c and "--subjects 1 2 4" in c for c in commands)


def test_a_moved_run_finds_its_embeddings_beside_it(tmp_path):
    folder = full_run(tmp_path / "old" / "run")
    shutil.move(folder, tmp_path / "new")
    _, _, numbers, _ = make(tmp_path / "new")
    assert any(s.startswith("Embeddings") for (s, _, _) in figures_of(numbers))


def test_few_shot_whiskers_span_the_replicates(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    few_shot(folder / "results" / "few_shot-stage")
    _, _, numbers, _ = make(folder)
    (figure,) = [f for (s, _, t), f in figures_of(numbers).items() if t == "Sleep staging: macro AUROC"]
    (curve,) = figure["data"].values()
    assert curve["subjects"] == [1, 2, 4]
    assert [len(r) for r in curve["replicates"]] == [3, 3, 3]
    assert curve["mean"] == pytest.approx([np.mean(r) for r in curve["replicates"]])


def test_classifiers_of_a_task_stand_in_one_table_with_their_differences(tmp_path):
    from sleepfm_fast import compare

    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings")
    for seed, name in enumerate(("stage", "stage-brain", "stage-ecg")):
        modalities = list(embeddings.modalities) if name == "stage" else [name.partition("-")[2]]
        classify(folder / "results" / name, embeddings, "stage", seed=seed, modalities=modalities)
    first, second = (folder / "results" / name for name in ("stage", "stage-brain"))
    compare.main(compare.Config(first, second, folder / "results" / "difference", bootstraps=20))
    _, page, numbers, _ = make(folder)
    figures = figures_of(numbers)
    (together,) = [f for (_, _, t), f in figures.items() if t == "All classifiers of this task"]
    assert [row["classifier"] for row in together["data"]] == ["Probe, all modalities", "Probe, brain", "Probe, ecg"]
    (differences,) = [f for (_, _, t), f in figures.items() if t == "Differences"]
    record = json.loads((folder / "results" / "difference" / "result.json").read_text())
    assert differences["data"][0]["macro"] == record["macro"]
    assert f"{record['macro']['auroc']['difference']:+.3f}" in "".join(page.text)
    # The headline is of the classifier that sees most.
    (card,) = [f for (_, _, t), f in figures.items() if t == "Sleep staging: AUROC, mean of stages"]
    assert card["files"] == [str(first / "result.json")]


def test_many_runs_stay_readable(tmp_path):
    runs = []
    for i in range(6):
        runs.append(tmp_path / f"run{i}")
        start(runs[-1])
        embeddings = embed(runs[-1] / "embeddings", seed=i, clips_each=20)
        classify(runs[-1] / "results" / "stage", embeddings, "stage", seed=i)
        retrieve(runs[-1] / "results" / "retrieve", embeddings)
    text, page, numbers, _ = make(runs[0], runs=runs)
    figures = figures_of(numbers)
    assert len([1 for (_, _, t) in figures if t == "Clips by modality"]) == 4
    night = next(f for (s, _, _), f in figures.items() if s.startswith("Nights"))
    assert len(night["data"]["stages"]) == 4
    assert len([1 for (s, _, t) in figures if s == "Sleep staging" and t == "Confusion matrix"]) == 6
    assert len(text.encode()) < 5 * 2**20
    assert "The first 4 runs" in "".join(page.text)


def test_hand_made_features_have_a_plane_too(cohort_store, tmp_path):
    from sleepfm_fast import features

    features.main(features.Config(cohort_store, tmp_path / "run" / "embeddings"))
    _, _, numbers, _ = make(tmp_path / "run", examples=0)
    figures = figures_of(numbers)
    titles = {t for (s, _, t) in figures if s.startswith("Embeddings")}
    assert titles == {"Clips by sleep stage", "Clips by subject"}
    (people,) = [f for (_, _, t), f in figures.items() if t == "Subjects and recordings"]
    assert people["data"]["all"]["subjects"] == 8
    assert people["data"]["all"]["hours"] == pytest.approx(8 * 0.35, abs=0.01)
    (channels,) = [f for (_, _, t), f in figures.items() if t == "Channels"]
    assert {c["slot"]: c["rates_hz"] for c in channels["data"]}["SpO2"] == {"1": 8}
    assert "simulated" in " ".join(numbers["notices"])


def test_a_second_store_does_not_speak_for_the_run(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings")
    for seed, name in enumerate(("external-stage", "stage")):
        classify(folder / "results" / name, embeddings, "stage", seed=seed)
    _, _, numbers, _ = make(folder)
    (card,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "Sleep staging: AUROC, mean of stages"]
    assert card["files"] == [str(folder / "results" / "stage" / "result.json")]


def test_headings_leave_no_level_out(tmp_path):
    """Figures below a section without groups were two levels below it."""
    folder = full_run(tmp_path / "run")
    page, *_ = make(folder)
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", page)]
    assert levels[0] == 1
    assert {2, 3, 4} <= set(levels)
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
