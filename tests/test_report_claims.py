"""What a report claims: on whom a figure was measured, what chance is, and what was done to the numbers drawn."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report_runs import classify, embed, few_shot, full_run, retrieve, start
from synthetic_embeddings import columns_of, unit, write_folder
from test_report import figures_of, make

from sleepfm_fast import compare, probe, report, reproduce
from sleepfm_fast import retrieve as other
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation.calibration import correct_for_prior
from sleepfm_fast.evaluation.changed_store import weights_note
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.reporting.retrieval import chance_curve
from sleepfm_fast.reporting.retrieval_examples import place
from sleepfm_fast.reporting.sources import open_runs
from sleepfm_fast.results import read_result
from sleepfm_fast.store.simulated_store import is_simulated

AUROC = "Sleep staging: AUROC, mean of stages"


def lead_of(text):
    """The sentence under the first section's title."""
    return text[text.index('id="headline"') :].partition("Bars are 95")[0]


def change(result, **values):
    file = result / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def external_run(folder, *, own=True):
    """A run that was tested on a second store in all three ways."""
    start(folder)
    if own:
        classify(folder / "results" / "stage", embed(folder / "embeddings", store="store"), "stage", seed=1)
    else:
        embed(folder / "embeddings", store="store")
    other = embed(folder / "other_nights", store="hospital", names=[f"h{i}" for i in range(6)])
    for task in ("stage", "sdb"):
        classify(folder / "results" / f"a-{task}", other, task, seed=2)
    classify(folder / "results" / "b-stage", other, "stage", seed=3, command="classify")
    change(folder / "results" / "b-stage", store="hospital", trained_on="store", embeddings=None, train=None)
    return folder


def test_another_store_never_speaks_for_the_run(tmp_path):
    folder = external_run(tmp_path / "run")
    _, _, numbers, _ = make(folder)
    figures = figures_of(numbers)
    (card,) = [f for (_, _, t), f in figures.items() if t == AUROC]
    assert card["files"] == [str(folder / "results" / "stage" / "result.json")]
    nights = {t: f for (s, _, t), f in figures.items() if s.startswith("Nights")}
    assert nights
    for title, night in nights.items():
        assert not title.startswith("h")
        # The own run has no result for breathing, whatever was measured elsewhere.
        assert night["data"]["respiratory_events"] == {}
    assert not any(t.startswith("Sleep-disordered") for (s, _, t) in figures if s.startswith("Headline"))


def test_without_an_own_result_there_is_no_card(tmp_path):
    _, _, numbers, _ = make(external_run(tmp_path / "run", own=False))
    figures = figures_of(numbers)
    assert not any(s.startswith(("Headline", "Nights")) for (s, _, _) in figures)


def test_external_tests_stand_in_their_section_by_name(tmp_path):
    _, _, numbers, _ = make(external_run(tmp_path / "run"))
    figures = figures_of(numbers)
    groups = [g for (s, g, t) in figures if s == "Sleep staging" and t == "Confusion matrix"]
    assert len(groups) == 3
    external = [g for g in groups if "external: tested on hospital" in g]
    assert len(external) == 2
    assert sum("End-to-end network" in g for g in external) == 1
    (together,) = [f for (s, _, t), f in figures.items() if s == "Sleep staging" and t.startswith("All classifiers")]
    assert "do not compare with the others" in together["caption"]


def test_results_of_the_own_store_are_not_external(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    for name in ("embeddings", "elsewhere"):
        classify(folder / "results" / f"stage-{name}", embed(folder / name, store="store"), "stage")
    (run,) = open_runs([folder])
    assert [run.external_store(r) for r in run.results] == ["", ""]
    # The folder was deleted: nothing says that it was of another store.
    (folder / "elsewhere" / "embeddings.json").unlink()
    assert [run.external_store(r) for r in run.results] == ["", ""]


@pytest.mark.parametrize("scope", ["cohort", "night", "other-subjects"])
def test_chance_counts_the_candidates_of_each_query(tmp_path, scope):
    from sleepfm_fast import retrieve as command

    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings", clips_each=30)
    result = folder / "results" / "retrieve"
    command.main(command.Config(embeddings.path, result, scope=scope, bootstraps=20, examples=1))
    text, _, numbers, _ = make(folder)
    assert "scope:" not in text
    (figure,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "Recall at every k"]
    counts = np.concatenate([np.load(f) for f in sorted(result.glob("n_candidates_*.npy"))])
    k = np.array(figure["data"]["k"])
    assert figure["data"]["chance"] == pytest.approx([(np.minimum(n, counts) / counts).mean() for n in k], abs=1e-6)
    # With the number of queries (60) for the number of candidates, that of a night (30) would be half of what it is.
    record = json.loads((result / "result.json").read_text())
    place = int(np.flatnonzero(k == 10)[0])
    assert figure["data"]["chance"][place] == pytest.approx(record["mean"]["recall@10"]["chance"], abs=1e-6)


def test_chance_of_unequal_queries():
    found = chance_curve(np.array([2.0, 4.0]), np.array([1, 2, 3, 4]))
    assert found == pytest.approx([3 / 8, 3 / 4, 7 / 8, 1])


def test_retrieval_among_training_clips_is_no_headline(tmp_path):
    folder = full_run(tmp_path / "run")
    assert any(t.startswith("Retrieval between") for (s, _, t) in figures_of(make(folder)[2]) if s.startswith("Head"))
    change(folder / "results" / "retrieve", split="train")
    text, _, numbers, _ = make(folder)
    assert not any(t.startswith("Retrieval between") for (s, _, t) in figures_of(numbers) if s.startswith("Head"))
    assert "No retrieval on the run&#x27;s own test clips: run (clips: train)" in text.replace("&#39;", "&#x27;")


def test_a_mean_of_fewer_classes_says_so_and_has_their_chance(tmp_path, capsys):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings")
    stage = np.load(embeddings.path / "stage.npy")
    stage[stage == 4] = 2  # no clip of R
    np.save(embeddings.path / "stage.npy", stage)
    classify(folder / "results" / "stage", Embeddings(embeddings.path), "stage")
    (macro,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("macro")]
    assert macro.endswith("AUROC, AUPRC over 4 of 5 classes")
    classes = json.loads((folder / "results" / "stage" / "result.json").read_text())["classes"]
    have = [c["prevalence"] for c in classes.values() if c["auprc"]["value"] is not None]
    assert len(have) == 4
    _, _, numbers, _ = make(folder)
    figures = figures_of(numbers)
    (card,) = [f["data"]["run"] for (_, _, t), f in figures.items() if t == "Sleep staging: AUPRC, mean of stages"]
    # Guessing gets the mean of the prevalences of the classes that the mean is over: 1 / 4, not 1 / 5.
    assert card["chance"] == pytest.approx(np.mean(have)) == pytest.approx(0.25)
    assert card["note"].endswith("mean of the 4 of 5 classes that have it")
    (table,) = [f for (_, _, t), f in figures.items() if t == "Figures of each class"]
    assert "AUROC, AUPRC, F1: mean over 4 of 5 classes." in table["caption"]


def test_a_clip_found_is_of_one_of_its_subjects_nights():
    nights = [SimpleNamespace(id=name) for name in ("anna-visit1", "anna-visit2", "bert")]
    store = SimpleNamespace(
        subject=["anna", "anna", "bert"].__getitem__, recordings=nights, recording=np.arange(3), onset_s=[30.0] * 3,
        stage=[4, -1, 2], sdb=[0, 0, 1],
    )  # fmt: skip
    assert [place(store, clip) for clip in range(3)] == [
        "anna (anna-visit1) at 0:00:30, R",
        "anna (anna-visit2) at 0:00:30, not scored",
        "bert at 0:00:30, N2, respiratory event",
    ]


def test_the_headline_counts_candidates_that_are_fewer_than_k(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    retrieve(folder / "results" / "retrieve", embed(folder / "embeddings", clips_each=3))
    text, _, numbers, _ = make(folder)
    (card,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "Retrieval between modalities"]
    assert "is among the 10 nearest of 6; a random order gets 100.0" in card["caption"]
    assert card["data"]["run"]["note"].endswith("mean of 6 directions, 2 test subjects")
    # Retrieval has intervals too: its notice stands under the headline and in its own section.
    assert text.count("With 2 subjects the intervals are too narrow") == 2


def test_differences_of_retrievals_stand_in_their_section(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    results = folder / "results"
    for name, seed in (("one", 1), ("other", 2)):
        retrieve(results / name, embed(tmp_path / name, seed=seed))
    compare.main(compare.Config(results / "one", results / "other", results / "difference", bootstraps=20))
    _, _, numbers, _ = make(folder)
    (figure,) = [f for (s, _, t), f in figures_of(numbers).items() if (s[:9], t) == ("Retrieval", "Differences")]
    mean = json.loads((results / "difference" / "result.json").read_text())["mean"]
    assert figure["data"][0]["mean"] == mean
    assert figure["files"] == [str(results / "difference" / "result.json")]
    text, *_ = make(folder)
    assert f"{mean['recall@10']['difference']:+.3f} [{mean['recall@10']['low']:+.3f}, " in text
    assert f"{mean['median_rank']['difference']:+.1f} [{mean['median_rank']['low']:+.1f}, " in text


UNSEEN = "neither the encoder nor the classifier was trained on"


def test_the_lead_claims_unseen_subjects_only_where_that_is_known(tmp_path):
    folder = full_run(tmp_path / "run")
    assert UNSEEN in lead_of(make(folder)[0])
    config = json.loads((folder / "config.json").read_text())
    for changes, words in (
        ({"overlap": True}, "memorisation"),
        ({"config": {**config["config"], "imported_from": "best.pt"}}, "imported from best.pt"),
        ({"initialised_from": {"path": "first"}}, "started from those of first"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        lead = lead_of(make(folder)[0])
        assert UNSEEN not in lead
        assert words in lead
    (folder / "config.json").write_text(json.dumps(config))
    change(folder / "results" / "stage", overlap=True, overlap_note="the same people")
    assert UNSEEN not in lead_of(make(folder)[0])


def test_an_imported_encoder_is_known_from_its_embeddings(tmp_path):
    start(tmp_path / "authors", imported_from="best.pt")
    embeddings = embed(tmp_path / "emb", run=str(tmp_path / "authors"))
    classify(tmp_path / "run" / "results" / "stage", embeddings, "stage")
    assert "imported from best.pt" in lead_of(make(tmp_path / "run")[0])


def test_networks_and_probes_count_absent_classes_alike(tmp_path):
    folder, deep = tmp_path / "run", tmp_path / "supervised-stage"
    start(folder)
    few_shot(folder / "results" / "few_shot-stage")
    embeddings = embed(tmp_path / "embeddings")
    trained = [0, 2]
    start(deep, task="stage", train_subjects=2)
    classify(deep / "results" / "stage", embeddings, "stage", trained=trained, command="supervise")
    _, _, numbers, _ = make(folder, runs=(folder, deep))
    (figure,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "Sleep staging: macro AUROC"]
    (drawn,) = figure["data"]["end-to-end network"]["mean"]
    record = json.loads((deep / "results" / "stage" / "result.json").read_text())
    values = [(entry["auroc"] or {}).get("value") for entry in record["classes"].values()]
    assert drawn == pytest.approx(np.mean([0.5 if v is None else v for v in values]))
    assert drawn < record["macro"]["auroc"]["value"]
    assert "probes and networks alike" in figure["caption"]


def test_draws_beside_a_run_are_points_and_not_runs(tmp_path):
    layout = type("Layout", (), {"out": tmp_path, "runs": tmp_path / "runs"})
    embeddings = embed(tmp_path / "embeddings")
    full_run(layout.runs / "leave_one_out")
    for n, r in ((1, 0), (1, 1), (2, 0)):
        folder = layout.runs / f"supervised-stage-subjects-{n}-replicate-{r}"
        start(folder, task="stage", train_subjects=n, replicate=r)
        classify(folder / "results" / "stage", embeddings, "stage", seed=10 * n + r, command="supervise")
    strange = layout.runs / "supervised-stage-subjects-4-replicate-0"
    start(strange, store="another", task="stage", train_subjects=4)
    classify(strange / "results" / "stage", embeddings, "stage", command="supervise")
    assert reproduce.write_report(layout, {}) == tmp_path / "report.html"
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert [r["name"] for r in numbers["runs"]] == ["leave_one_out"]
    (figure,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "Sleep staging: macro AUROC"]
    network = figure["data"]["end-to-end network"]
    assert network["subjects"] == [1, 2], "that of another store is not this run's"
    assert [len(r) for r in network["replicates"]] == [2, 1]


def test_nights_show_probabilities_corrected_for_balanced_weights(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings")
    prior, rare = np.array([0.1, 0.05, 0.6, 0.1, 0.15]), np.array([0.9, 0.1])
    classify(folder / "results" / "stage", embeddings, "stage", prior=prior)
    classify(folder / "results" / "sdb", embeddings, "sdb", prior=rare)
    _, _, numbers, _ = make(folder, recordings=9)
    result = folder / "results" / "stage"
    names = json.loads((result / "result.json").read_text())["recordings"]
    recording, onset = np.load(result / "recording.npy"), np.load(result / "onset_s.npy")
    nights = {t: f for (s, _, t), f in figures_of(numbers).items() if s.startswith("Nights")}
    assert len(nights) == 2
    for title, night in nights.items():
        rows = np.flatnonzero(recording == names.index(title))
        rows = rows[np.argsort(onset[rows])]
        for kind, task, frequencies in (("stages", "stage", prior), ("respiratory_events", "sdb", rare)):
            drawn = night["data"][kind]["run"]
            fitted = np.load(folder / "results" / task / "probability.npy")
            assert np.abs(np.array(drawn["probability"]) - correct_for_prior(fitted[rows], frequencies)).max() < 1e-3
            # The predicted class is the one that confusion matrix and accuracy count.
            assert drawn["predicted"] == [drawn["classes"][k] for k in fitted[rows].argmax(1)]
        assert "corrected to the class frequencies" in night["caption"]


def test_nights_without_a_prior_are_as_fitted(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    classify(folder / "results" / "stage", embed(folder / "embeddings"), "stage")
    _, _, numbers, _ = make(folder)
    night = next(f for (s, _, _), f in figures_of(numbers).items() if s.startswith("Nights"))
    assert night["data"]["stages"]["run"]["corrected_for_prior"] is False
    assert "corrected" not in night["caption"]


@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_losses_share_an_axis_since_both_scales_log_means(tmp_path, scale):
    folder = tmp_path / "run"
    start(folder, loss_scale=scale)
    text, _, _, _ = make(folder)
    assert len(re.findall("<title[^>]*>Loss of run", text)) == 1


def test_one_subject_is_not_called_held_out(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings", n_subjects=1, overlap=True)
    classify(folder / "results" / "stage", embeddings, "stage", overlap=True, overlap_note="one subject")
    text, _, numbers, _ = make(folder)
    assert "eld-out" not in re.sub("<[^>]*>", "", text.partition("Files behind")[0])
    assert any(s == "Nights of test subjects" for (s, _, _) in figures_of(numbers))
    assert "of 1 subject, who is no other" in text
    assert "One test subject, so no intervals." in text
    assert "of 1 others" not in text
    embeddings = embed(tmp_path / "more" / "embeddings", n_subjects=5, overlap=True)
    for name, n, whom in (("one", 1, "of 1 other subject"), ("two", 2, "of 2 other subjects")):
        start(tmp_path / name)
        counts = {"n_clips": 40 * n, "n_subjects": n}
        classify(tmp_path / name / "results" / "stage", embeddings, "stage", test=counts)
        assert f"tested on {40 * n} clips {whom}" in make(tmp_path / name)[0]
    start(tmp_path / "both")
    classify(tmp_path / "both" / "results" / "stage", embeddings, "stage", overlap=True)
    assert "of 2 subjects, not all of them others" in make(tmp_path / "both")[0]


def test_classes_of_few_subjects_and_results_without_intervals_are_said(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    sexes = ("M", "F") * 3 + ("M",) * 9 + ("F",) * 3
    subject = np.repeat(np.arange(18), 10)
    columns = columns_of(subject, np.where(subject > 5, 2, 0))  # twelve are tested, three of them women
    vectors = unit(np.random.default_rng(0).standard_normal((180, 3, 6)))
    embeddings = Embeddings(write_folder(folder / "embeddings", vectors, columns, sexes=sexes))
    classify(folder / "results" / "sex", embeddings, "sex")
    probe.main(probe.Config(embeddings.path, "sex", folder / "results" / "without", bootstraps=0))
    other.main(other.Config(embeddings.path, folder / "results" / "retrieve", bootstraps=0))
    text, _, numbers, _ = make(folder)
    (found,) = [f["caption"] for (_, _, t), f in figures_of(numbers).items() if t == "Figures of each direction"]
    assert "No intervals: it was made with --bootstraps 0. Chance is" in found
    (counts, *_) = [f["caption"] for (_, _, t), f in figures_of(numbers).items() if t == "Confusion matrix"]
    assert "Rows are the subjects' classes" in counts
    captions = [f["caption"] for (_, _, t), f in figures_of(numbers).items() if t.startswith("Figures of each class")]
    assert (
        "Only 3 subjects have clips of F: intervals of this class, and of means over it, contain the true value"
        in captions[0]
    )
    assert any("No intervals: it was made with --bootstraps 0." in c and "Brackets" not in c for c in captions)
    assert "Of the rarest class only 3 subjects have clips" in text.partition("Recordings</h2>")[0]
    (together,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "All classifiers of this task"]
    assert "Of the rarest class only 3 subjects have clips" in together["caption"]


def test_a_task_without_labels_is_not_suggested(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embed(folder / "embeddings")
    np.save(folder / "embeddings" / "sdb.npy", np.full(240, -1, np.int8))
    _, _, numbers, _ = make(folder)
    missing = [m for s in numbers["sections"] for m in s["missing"] if "sleep-disordered" in m["what"]]
    assert [bool(m["command"]) for m in missing] == [False]
    assert "has a label" in missing[0]["what"]
    assert "--labels" in missing[0]["what"]


def test_few_test_subjects_are_said_to_make_narrow_intervals(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    classify(folder / "results" / "stage", embed(folder / "embeddings"), "stage")
    for n, said in ((3, True), (20, False)):
        file = folder / "results" / "stage" / "result.json"
        test = json.loads(file.read_text())["test"]
        change(folder / "results" / "stage", test={**test, "n_subjects": n})
        text, _, _, _ = make(folder)
        assert text.count(f"With {n} subjects the intervals are too narrow") == (2 if said else 0)
        # Each stratum is of one of the two subjects, and has no interval. Sleep figures count the arrays' subjects.
        assert ("too narrow" in text.replace("With 2 subjects the intervals are too narrow", "")) == said


def test_few_subjects_are_said_beside_differences_and_strata(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings", ages=(40.0,) * 6, sexes=("F",) * 6)
    for name, seed in (("stage", 1), ("other", 2)):
        classify(folder / "results" / name, embeddings, "stage", seed=seed)
    results = folder / "results"
    compare.main(compare.Config(results / "stage", results / "other", results / "difference", bootstraps=20))
    _, _, numbers, _ = make(folder)
    captions = {t: f["caption"] for (s, _, t), f in figures_of(numbers).items() if s == "Sleep staging"}
    for title in ("Differences", "All classifiers of this task", "By group of subjects"):
        assert "With 2 subjects the intervals are too narrow" in captions[title]


def test_one_modality_is_not_asked_for_retrieval(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    asked = []
    for modalities in (("respiratory", "brain"), ("brain",)):
        path = folder / "embeddings"
        x = unit(np.random.default_rng(0).standard_normal((240, len(modalities), 12)))
        shutil.rmtree(path, ignore_errors=True)
        write_folder(
            path, x, columns_of(np.repeat(np.arange(6), 40), np.repeat([0, 0, 0, 1, 2, 2], 40)), modalities=modalities
        )
        _, _, numbers, result = make(folder)
        asked.append([m["command"] for s in numbers["sections"] for m in s["missing"] if "retrieval" in m["what"]])
        assert all(command in " ".join(result["missing"]) for command in asked[-1])
    assert [len(commands) for commands in asked] == [1, 0]


@pytest.mark.parametrize(
    ("card", "name", "simulated"),
    [(True, "night", True), (False, "sim-0001", True), (False, "night", False)],
)
def test_a_simulated_cohort_is_told_without_its_files(tmp_path, card, name, simulated):
    (tmp_path / "edf").mkdir()
    if card:
        (tmp_path / "edf" / "simulation.json").write_text("{}")
    recordings = [SimpleNamespace(source=str(tmp_path / "edf" / f"{name}.edf"), id=name)]
    assert is_simulated(SimpleNamespace(recordings=recordings)) is simulated
    assert is_simulated(SimpleNamespace(recordings=[])) is False


def test_weights_and_results_of_then_are_said(tmp_path, capsys, monkeypatch):
    """As of embeddings that were made while their run was still trained, and of results before they were made again."""
    monkeypatch.chdir(tmp_path)
    run, file = Path("run"), Path("run/best.safetensors")
    start(run)
    file.write_bytes(b"first")
    weights = {"file": str(file), "sha256": hashlib.sha256(b"first").hexdigest()}
    embed(run / "embeddings", presets={"weights": weights})
    retrieve(run / "results" / "retrieval", Embeddings(run / "embeddings"))
    assert report.cli(["run", "--out", "first.html"]) == 0
    assert "notice: The " not in capsys.readouterr().err
    file.write_bytes(b"second")
    of_weights = (
        "checkpoint run/best.safetensors is no longer the one that run/embeddings was made with: the training went on "
        "after that, or was repeated. The figures here are those of the earlier weights; make the folder again with "
        "--overwrite to use the present ones."
    )
    retrieve(run / "results" / "again", Embeddings(run / "embeddings"))
    assert f"notice: the {of_weights}" in capsys.readouterr().err
    assert read_result(run / "results" / "again").record["store_note"] == f"the {of_weights}"
    assert report.cli(["run", "--out", "second.html"]) == 0
    assert capsys.readouterr().err.count(f"notice: The {of_weights}") == 1
    assert of_weights in Path("second.html").read_text()
    shutil.rmtree(run / "embeddings")
    weights["sha256"] = hashlib.sha256(b"second").hexdigest()
    embed(run / "embeddings", presets={"weights": weights})
    shutil.rmtree(run / "results" / "again")
    assert report.cli(["run", "--out", "third.html"]) == 0
    said = capsys.readouterr().err
    assert "notice: The checkpoint" not in said
    assert "notice: The result run/results/retrieval was made from what run/embeddings held before" in said
    file.unlink()
    assert weights_note(Embeddings(run / "embeddings")) == "", "nothing can be said of a checkpoint that is elsewhere"


def test_sleep_figures_are_those_of_the_test_nights(tmp_path):
    folder, title = tmp_path / "run", "Sleep figures of nights, predicted and scored"
    start(folder)
    embeddings = embed(folder / "embeddings")
    classify(folder / "results" / "stage", embeddings, "stage")
    classify(folder / "results" / "sdb", embeddings, "sdb")
    page, _, numbers, _ = make(folder)
    found = {section: f for (section, _, t), f in figures_of(numbers).items() if t == title}
    assert list(found) == ["Sleep staging"]
    (row,) = [row for row in found["Sleep staging"]["data"] if row["figure"] == "total_sleep_time_min"]
    result = read_result(folder / "results" / "stage")
    label, recording = np.array(result.array("label")), np.array(result.array("recording"))
    predicted = np.array(result.record["trained_classes"])[np.array(result.array("probability")).argmax(1)]
    slept = [[(x[recording == r] > 0).sum() / 2 for r in np.unique(recording)] for x in (label, predicted)]
    difference = np.subtract(slept[1], slept[0])
    assert (row["nights"], row["subjects"], row["scored_mean"]) == (2, 2, np.mean(slept[0]))
    assert row["bias"] == pytest.approx(difference.mean(), abs=1e-12)
    assert row["upper_limit"] == pytest.approx(difference.mean() + 1.96 * difference.std(ddof=1), abs=1e-9)
    assert "total sleep time (min)" in page
    (folder / "results" / "stage" / "onset_s.npy").unlink()
    _, _, numbers, _ = make(folder)
    titles = {t for (section, _, t) in figures_of(numbers) if section == "Sleep staging"}
    assert title not in titles
    assert "Figures of each class" in titles


def test_sleep_figures_are_not_those_of_people_whom_the_classifier_knows(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embeddings = embed(folder / "embeddings")
    classify(folder / "results" / "stage", embeddings, "stage")
    note = "2 of the 2 subjects classified are subjects that run has seen"
    classify(folder / "results" / "all", embeddings, "stage", command="classify", overlap=True, overlap_note=note)
    text, _, numbers, _ = make(folder)
    groups = [g for (_, g, t) in figures_of(numbers) if t == "Sleep figures of nights, predicted and scored"]
    assert groups == ["Probe, all modalities"]
    assert f"{note}." not in text.partition('id="task-stage"')[0]
    assert note in text.partition('id="task-stage"')[2]


def test_a_result_that_is_no_headline_does_not_accuse_it(tmp_path):
    """Such as one of everybody, which stands in its own section with its note."""
    folder = full_run(tmp_path / "run")
    embeddings = Embeddings(folder / "embeddings")
    classify(folder / "results" / "everybody", embeddings, "stage", overlap=True, overlap_note="the same people")
    for task in TASKS:
        change(folder / "results" / task, overlap=False)
    assert UNSEEN in lead_of(make(folder)[0])
    change(folder / "results" / "sex", overlap=True)
    assert "memorisation" in lead_of(make(folder)[0])
    change(folder / "results" / "sex", overlap=False)
    change(folder / "results" / "retrieve", overlap=True)
    assert "memorisation" in lead_of(make(folder)[0])


def test_results_of_two_commands_have_two_titles(tmp_path):
    folder = tmp_path / "deep"
    start(folder, task="stage")
    embeddings = embed(tmp_path / "embeddings", store="store")
    classify(folder / "results" / "stage", embeddings, "stage", command="supervise")
    classify(folder / "results" / "again", embeddings, "stage", command="classify", store="store", trained_on="store")
    _, _, numbers, _ = make(folder)
    groups = {g for (_, g, t) in figures_of(numbers) if t == "Figures of each class"}
    assert groups == {f"End-to-end network, all modalities (results/{name})" for name in ("stage", "again")}


def test_a_full_ranking_speaks_before_a_draw(tmp_path):
    folder = full_run(tmp_path / "run")
    shutil.rmtree(folder / "results" / "retrieve")
    arguments = [str(folder / "embeddings"), "--bootstraps", "20"]
    for name, more in (("draw", ("--candidates", "20")), ("retrieval", ()), ("zz", ())):
        assert other.cli([*arguments[:1], str(folder / "results" / name), *arguments[1:], *more]) == 0
    _, _, numbers, _ = make(folder)
    (card,) = [
        f for (s, _, t), f in figures_of(numbers).items() if s == "Headline figures" and t.startswith("Retrieval")
    ]
    assert card["files"] == [str(folder / "results" / "retrieval" / "result.json")]


def test_a_joined_folder_is_named_by_the_store_that_was_tested(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    embed(folder / "embeddings", store="store")
    joined = embed(tmp_path / "joined", store="store (training), store2 (test)")
    classify(folder / "results" / "external-stage", joined, "stage")
    _, _, numbers, _ = make(folder)
    groups = {g for (_, g, t) in figures_of(numbers) if t == "Figures of each class"}
    assert groups == {"Probe, all modalities, external: tested on store2"}
