"""The plan of a reproduction, its cost, what is skipped and resumed, refusals, tables, and one small run of it all."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import reproduce
from sleepfm_fast.errors import SleepfmError, UsageError
from sleepfm_fast.reproduction import cost as reproduce_cost
from sleepfm_fast.reproduction import paper_tables
from sleepfm_fast.reproduction import plan as reproduce_plan
from sleepfm_fast.reproduction import steps as reproduce_steps
from sleepfm_fast.reproduction import tables as reproduce_tables
from sleepfm_fast.reproduction.choice import chosen_preset, chosen_tables, parse_numbers
from sleepfm_fast.reproduction.experiments import Evaluation, Run, Source
from sleepfm_fast.reproduction.facts import simulated_facts
from sleepfm_fast.reproduction.presets import PRESETS
from sleepfm_fast.reproduction.stratified_tables import stratified_tables
from sleepfm_fast.results import write_result
from sleepfm_fast.rundir import RunDirectory, write_checkpoint

SMOKE = PRESETS["smoke"]
RATES = {
    **reproduce_cost.RATES,
    **{f"training clips, {n} modalities": 1200.0 / n for n in (1, 2, 3)},
    "supervised clips": 800.0,
    "embedded clips": 1000.0,
}


def planner(out=Path("/nowhere"), store=None, external_store=None, preset=SMOKE, precision="float32"):
    facts = simulated_facts(preset.subjects, preset.hours, preset.split, "sim-")
    external = simulated_facts(preset.external_subjects, preset.hours, preset.split, "sim-1-")
    return reproduce_plan.Planner(
        reproduce_plan.Layout(out),
        preset,
        facts,
        external,
        store=store,
        external_store=external_store,
        seed=0,
        device="cpu",
        precision=precision,
        threads=1,
        dim=128,
        parameters={"encoder": 1e5, "supervised": 2e5},
    )


def all_tables(preset=SMOKE, n_training=40):
    return [
        *(paper_tables.make_table(n) for n in paper_tables.TABLES),
        *stratified_tables(),
        paper_tables.few_shot_figure(preset.few_shot_subjects, preset.few_shot_replicates, n_training),
        paper_tables.pretraining_figure(),
        paper_tables.size_table(preset.sizes, n_training),
    ]


# ---- what is asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2-8", (2, 3, 4, 5, 6, 7, 8)), ("7, 2-3,3", (7, 2, 3)), ("8-12", (8, 11, 12)), ("none", ()), ("29", (29,))],
)
def test_numbers_and_ranges(text, expected):
    assert parse_numbers(text, paper_tables.TABLES, "--tables") == expected


@pytest.mark.parametrize("text", ["", "x", "1", "2-", "-3", "2--3", "9", "9-10", "2,,3", "2.5", "all", "8-2", "²"])
def test_what_is_no_table_is_refused_with_the_choices(text):
    with pytest.raises(SleepfmError, match=r"--tables .*(choose from|Choose from|backwards)"):
        parse_numbers(text, paper_tables.TABLES, "--tables")


def test_wrong_usage_is_told_from_failure(tmp_path, capsys):
    assert reproduce.cli(["a", "b", "c"]) == 2
    assert "3 paths were given; expected [STORE] OUT" in capsys.readouterr().err
    with pytest.raises(UsageError, match="0 paths were given"):
        reproduce.main(reproduce.Config(()))
    for options, words in (
        (["--tables", "none", "--figures", "none", "--sizes"], "nothing to reproduce"),
        (["--tables", "1"], "there is no 1 to reproduce"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--sizes", "0"], "--sizes is 0"),
        (["--external", "x"], "without a STORE"),
    ):
        assert reproduce.cli([str(tmp_path / "out"), "--plan", *options]) == 1
        assert words in capsys.readouterr().err, options
    assert reproduce.cli([str(tmp_path / "store"), str(tmp_path / "out"), "--plan"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- the paper -----------------------------------------------------------------------------------------------------


def test_the_papers_class_figures_average_to_its_macro_figures():
    for figures in paper_tables.CLASSES.values():
        for rows in figures.values():
            if len(rows) == 1:
                continue
            classes = [values for row, values in rows.items() if row != "macro"]
            np.testing.assert_allclose(np.mean(classes, axis=0), rows["macro"], atol=0.0011)


def test_tables_of_one_task_agree_where_the_paper_prints_a_figure_twice():
    # Figure 2 ends, and Figure 3 begins, with figures of Tables 6, 7, 11 and 12; the abstract's are of age and sex.
    for task, (figure, curves) in paper_tables.FEW_SHOT.items():
        macro = dict(zip(("leave-one-out", "pairwise"), paper_tables.CLASSES[task][figure]["macro"], strict=False))
        for method, value in macro.items():
            assert curves[method][-1] == value, (task, method)
    brain, respiratory = (paper_tables.PAPER_ORDER.index(m) for m in ("brain", "respiratory"))
    everything = paper_tables.PRETRAINED_ON[()]
    for i, figure in enumerate(("AUROC", "AUPRC")):
        assert everything[i] == pytest.approx(paper_tables.SINGLE[11][2][figure][brain], abs=0.0021)
        assert everything[2 + i] == pytest.approx(paper_tables.SINGLE[12][2][figure][respiratory], abs=0.0011)


def test_every_cell_has_a_place_of_its_own_and_a_plausible_paper_figure():
    for table in all_tables():
        places = [(c.row, c.method, c.figure) for c in table.cells]
        assert len(set(places)) == len(places), table.name
        for cell in table.cells:
            assert cell.paper is None or 0 < cell.paper <= 1 or cell.figure == "median rank"


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_every_step_comes_once_and_after_what_it_needs():
    plan = planner()
    tables = all_tables()
    steps = reproduce_plan.make_plan(plan, tables)
    seen: set[str] = set()
    for step in steps:
        assert set(step.needs) <= seen, step.name
        assert step.name not in seen
        seen.add(step.name)
        assert step.serves
        assert reproduce_cost.seconds(step.work, RATES) > 0
    # Every figure of every table is made by some step.
    for table in tables:
        for cell in table.cells:
            for source in cell.sources:
                makers = [
                    s
                    for s in steps
                    if s.makes in (plan.layout.result(source), plan.layout.run(source.run)) and s.serves
                ]
                assert any(table.name in s.serves for s in makers), (table.name, cell)


def test_only_what_a_table_needs_is_planned():
    steps = reproduce_plan.make_plan(planner(), [paper_tables.make_table(4)])
    assert [step.command for step in steps] == ["simulate", "preprocess", "train", "embed", "retrieve"]
    assert steps[0].serves == ("Table 4",)
    with_store = reproduce_plan.make_plan(planner(store=Path("/data/store")), [paper_tables.make_table(4)])
    assert [step.command for step in with_store] == ["train", "embed", "retrieve"]
    assert with_store[0].options["store"] == Path("/data/store")


def test_the_external_store_is_embedded_by_the_run_of_the_first():
    steps = reproduce_plan.make_plan(planner(store=Path("/a"), external_store=Path("/b")), [paper_tables.make_table(8)])
    by_name = {step.name: step for step in steps}
    external = by_name["runs/leave_one_out/external_embeddings"]
    assert external.options["store"] == Path("/b")
    assert external.options["run"] == Path("/nowhere/runs/leave_one_out")
    joined = by_name["runs/leave_one_out/transfer_embeddings"]
    assert joined.needs == ("runs/leave_one_out/embeddings", external.name)
    assert by_name["runs/leave_one_out/results/external-stage"].options["embeddings"] == joined.makes


def test_few_subjects_are_asked_only_where_there_are_so_many():
    figure = paper_tables.few_shot_figure((1, 4, 100), 2, 10)
    assert {cell.row for cell in figure.cells} == {"1", "4", "all 10"}
    assert {cell.row for cell in paper_tables.size_table((4, 50), 10).cells} == {"4", "10"}


def test_options_are_fields_of_the_commands():
    for step in reproduce_plan.make_plan(planner(), all_tables()):
        module = importlib.import_module(f"sleepfm_fast.{step.command}")
        unknown = set(step.options) - {f.name for f in dataclasses.fields(module.Config)}
        assert not unknown, (step.name, unknown)


def test_cost_is_work_at_the_measured_rate():
    steps = reproduce_plan.make_plan(planner(), [paper_tables.make_table(4)])
    train = next(step for step in steps if step.command == "train")
    facts = planner().facts
    clips = SMOKE.training["epochs"] * (facts.clips["train"] + facts.clips["validation"] / 3)
    assert reproduce_cost.seconds(train.work, RATES) == pytest.approx(2 + clips / 400)
    half = reproduce_cost.seconds(train.work, {**RATES, "training clips, 3 modalities": 200.0})
    assert half == pytest.approx(2 + clips / 200)
    embedded = next(step for step in steps if step.command == "embed")
    assert embedded.disk_bytes == facts.n_clips * 3 * 128 * 4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_networks_are_timed_and_all_work_has_a_rate(precision):
    rates = reproduce_cost.measure("tiny", {"respiratory": 2, "brain": 1}, 4, "cpu", precision)
    assert all(rate > 0 for rate in rates.values())
    dim, parameters = reproduce_cost.network_sizes("tiny", {"respiratory": 2, "brain": 1})
    assert dim == 128
    assert parameters["supervised"] > parameters["encoder"] > 1000
    assert {step.work.speed for step in reproduce_plan.make_plan(planner(), all_tables())} <= set(rates)


@pytest.mark.parametrize(("s", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h")])
def test_durations_in_words(s, text):
    assert reproduce_cost.clock_text(s) == text


# ---- carrying it out -----------------------------------------------------------------------------------------------


def carried_out(broken=(), finished=()):
    steps = reproduce_plan.make_plan(planner(), [paper_tables.make_table(4), paper_tables.make_table(5)])
    tried, noted = [], []

    def attempt(step):
        tried.append(step.name)
        return (
            reproduce_steps.Outcome("failed", 1.0, "it broke.")
            if step.name in broken
            else reproduce_steps.Outcome("done")
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_steps, "attempt", attempt)
        patch.setattr(reproduce_steps, "is_finished", lambda step: step.name in finished)
        outcomes = reproduce_steps.carry_out(steps, lambda step, outcome: noted.append((step.name, outcome.state)))
    assert noted == [(name, outcome.state) for name, outcome in outcomes.items()]
    return tried, {name: outcome.state for name, outcome in outcomes.items()}


def test_finished_steps_are_found_and_not_done_again():
    tried, states = carried_out(finished=("cohort/edf", "cohort/store", "runs/leave_one_out"))
    assert "runs/leave_one_out" not in tried
    assert states["runs/leave_one_out"] == "found"
    assert states["runs/leave_one_out/results/retrieve"] == "done"


def test_a_broken_step_stops_only_what_needs_it():
    _, states = carried_out(broken=("runs/leave_one_out/embeddings",))
    assert states["runs/leave_one_out"] == "done"
    assert states["runs/leave_one_out/embeddings"] == "failed"
    assert states["runs/leave_one_out/results/retrieve"] == "blocked"
    assert states["runs/pairwise/results/retrieve"] == "done"


def test_what_was_made_before_the_break_still_counts():
    # The result stands although the embeddings it was made from do not any more.
    _, states = carried_out(
        broken=("runs/leave_one_out/embeddings",), finished=("runs/leave_one_out/results/retrieve",)
    )
    assert states["runs/leave_one_out/results/retrieve"] == "found"


def test_an_error_becomes_a_sentence(tmp_path, monkeypatch):
    plan = reproduce_plan.make_plan(planner(tmp_path), [paper_tables.make_table(4)])
    retrieve = plan[-1]
    outcome = reproduce_steps.attempt(retrieve)
    assert outcome.state == "failed"
    assert "no embeddings folder" in outcome.error
    unknown = dataclasses.replace(retrieve, options={**retrieve.options, "colour": "red"})
    assert "no option colour" in reproduce_steps.attempt(unknown).error
    missing = dataclasses.replace(retrieve, command="divine")
    assert "no command divine" in reproduce_steps.attempt(missing).error


def write_run(folder, epoch, *, stopped=False):
    run = RunDirectory(folder)
    run.create({})
    state = {"epoch": epoch, "stopped_early": stopped}
    write_checkpoint(run.last_path, {}, state)
    write_checkpoint(run.best_path, {}, state)


def test_a_training_is_finished_at_its_last_epoch_or_when_it_stopped_early(tmp_path):
    step = reproduce_plan.make_plan(planner(tmp_path), [paper_tables.make_table(4)])[2]
    assert reproduce_steps.state_of(step) == "to do"
    write_run(step.makes, SMOKE.training["epochs"] - 1)
    assert reproduce_steps.state_of(step) == "begun"
    assert step.options["resume"]
    for path in step.makes.iterdir():
        path.unlink()
    write_run(step.makes, SMOKE.training["epochs"])
    assert reproduce_steps.state_of(step) == "finished"
    for path in step.makes.iterdir():
        path.unlink()
    write_run(step.makes, 1, stopped=True)
    assert reproduce_steps.state_of(step) == "finished"
    (step.makes / "last.safetensors").write_bytes(b"damaged")
    assert reproduce_steps.state_of(step) == "begun"


def test_what_a_killed_command_keeps_beside_its_folder_has_begun(tmp_path, monkeypatch):
    from sleepfm_fast.evaluation import scopes

    rng = np.random.default_rng(0)
    vectors = write_folder(tmp_path / "emb", rng.standard_normal((9, 3, 4)), columns_of(np.arange(9), np.full(9, 2)))
    ranks_in_scope, result = scopes.ranks_in_scope, tmp_path / "results" / "retrieval"
    step = reproduce_plan.make_plan(planner(tmp_path), [paper_tables.make_table(4)])[4]
    step = dataclasses.replace(step, makes=result, options={"embeddings": vectors, "result": result})

    def interrupted(embeddings, clips, pair, *rest):
        if pair == ("respiratory", "ecg"):
            raise KeyboardInterrupt
        return ranks_in_scope(embeddings, clips, pair, *rest)

    assert (step.command, reproduce_steps.state_of(step)) == ("retrieve", "to do")
    monkeypatch.setattr(scopes, "ranks_in_scope", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce_steps.call(step)
    assert reproduce_steps.state_of(step) == "begun"
    monkeypatch.setattr(scopes, "ranks_in_scope", ranks_in_scope)
    reproduce_steps.call(step)
    assert reproduce_steps.state_of(step) == "finished"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_network_computes_in_the_precision_asked_for(precision):
    steps = reproduce_plan.make_plan(planner(precision=precision), all_tables())
    computing = [step for step in steps if step.command in ("train", "supervise", "embed")]
    assert {step.command for step in computing} == {"train", "supervise", "embed"}
    assert {step.options["precision"] for step in computing} == {precision}
    assert not any("precision" in step.options for step in steps if step not in computing)


def test_a_folder_holds_one_reproduction(tmp_path):
    layout = reproduce_plan.Layout(tmp_path / "out")
    reproduce.claim(layout, {"seed": 0})  # a new folder
    layout.out.mkdir()
    reproduce.claim(layout, {"seed": 0})  # an empty one
    record = layout.out / "reproduction.json"
    record.write_text(json.dumps({"format": reproduce.FORMAT, "version": 1, "settings": {"seed": 0}}))
    reproduce.claim(layout, {"seed": 0})
    with pytest.raises(SleepfmError, match="other settings: seed was 0, is 1"):
        reproduce.claim(layout, {"seed": 1})
    reproduce.claim(layout, {"seed": 0, "precision": "float32"})  # what all were before there was a choice
    with pytest.raises(SleepfmError, match="precision was float32, is bfloat16"):
        reproduce.claim(layout, {"seed": 0, "precision": "bfloat16"})
    # Not to be deleted: what is finished could have any settings then, and is not taken up again.
    whole = {"format": reproduce.FORMAT, "version": 1}
    for content in ("{", "[]", "null", json.dumps(whole), json.dumps({**whole, "settings": []})):
        record.write_text(content)
        with pytest.raises(SleepfmError, match=r"reproduction\.json is damaged .* restore it from a copy, or name"):
            reproduce.claim(layout, {"seed": 0})
    record.unlink()
    (layout.out / "thesis.tex").touch()
    with pytest.raises(SleepfmError, match="is not a reproduction"):
        reproduce.claim(layout, {"seed": 0})


def test_one_process_at_a_time_works_on_a_folder(tmp_path, monkeypatch):
    plan = planner(tmp_path / "out")
    monkeypatch.setattr(reproduce, "prepared", lambda config: (plan, [paper_tables.make_table(4)], RATES, plan.facts))
    config, refusals = reproduce.Config((tmp_path / "out",)), []

    def meanwhile(steps, note):
        with pytest.raises(SleepfmError, match=r"process \d+ on .* is writing .*out") as refused:
            reproduce.main(config)
        refusals.append(refused)
        return {}

    monkeypatch.setattr(reproduce_steps, "carry_out", meanwhile)
    for _ in range(2):  # what is released can be taken again
        reproduce.main(config)
    assert len(refusals) == 2
    assert reproduce.main(dataclasses.replace(config, plan=True))["steps"] == len(plan.steps)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


# ---- tables --------------------------------------------------------------------------------------------------------


def interval(value, width=0.02):
    return {"value": value, "low": value - width, "high": value + width}


def stage_record(value, n_classes=5):
    one = {name: interval(value) for name in ("auroc", "auprc", "f1")}
    classes = {name: {**one, "prevalence": 0.2} for name in paper_tables.STAGES}
    return {"command": "probe", "classes": classes, "macro": {**one, "n_classes": n_classes}}


def test_our_figures_stand_beside_the_papers(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    table = paper_tables.make_table(6)
    write_result(layout.result(Source(Run("contrastive"), Evaluation("probe"))), stage_record(0.8), {})
    write_result(layout.result(Source(Run("contrastive", "pairwise"), Evaluation("probe"))), stage_record(0.7, 4), {})
    cells = reproduce_tables.collect(table, layout)
    by_place = {(c["row"], c["method"], c["figure"]): c for c in cells}
    ours = by_place["macro", "leave-one-out", "AUROC"]
    assert (ours["value"], ours["paper"], ours["from"]) == (0.8, 0.906, ["runs/leave_one_out/results/stage"])
    # A mean over four classes is not set beside one over five.
    other = by_place["macro", "pairwise", "AUROC"]
    assert other["value"] == 0.7
    assert other["paper"] is None
    assert "4 classes" in other["note"]
    assert by_place["N2", "pairwise", "AUROC"]["paper"] == 0.861
    assert by_place["macro", "supervised CNN", "AUROC"]["value"] is None
    patients = reproduce_tables.draw(table, cells, simulated=False)
    row = next(line for line in patients if line.startswith("| macro"))
    assert row.startswith("| macro | 0.800 [0.780, 0.820] | 0.906 | 0.700 [0.680, 0.720] |  | - | 0.842 | - |")
    simulated = "\n".join(reproduce_tables.draw(table, cells, simulated=True))
    assert "<sub>0.906</sub>" in simulated
    assert "patients, for orientation" in simulated
    assert "patients" not in "\n".join(patients)
    assert "Not computed: supervised CNN, hand-made features." in simulated
    # Every row of a Markdown table has as many cells as its head.
    for block in simulated.split("\n\n"):
        counts = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(counts) <= 1, block


def test_strata_are_read_from_the_results_of_all_subjects(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    stages, breathing = stratified_tables()
    record = stage_record(0.8)
    strata = {
        "age": {"18-35": stage_record(0.9), "50+": stage_record(0.7, 4), "unknown": stage_record(0.1)},
        "sex": {"F": stage_record(0.6)},
    }
    write_result(layout.result(Source(Run("contrastive"), Evaluation("probe"))), {**record, "strata": strata}, {})
    write_result(layout.result(Source(Run("features"), Evaluation("probe"))), record, {})  # as earlier versions wrote
    cells = {(c["row"], c["method"], c["figure"]): c for c in reproduce_tables.collect(stages, layout)}
    young = cells["age 18-35", "leave-one-out", "AUROC"]
    assert (young["value"], young["low"], young["paper"]) == (0.9, 0.88, 0.911)
    assert young["from"] == ["runs/leave_one_out/results/stage"]
    assert cells["age 18-35", "leave-one-out", "AUPRC"]["paper"] is None
    assert (cells["female", "leave-one-out", "AUROC"]["value"], cells["female", "leave-one-out", "AUROC"]["paper"]) == (
        0.6,
        0.910,
    )
    # Of four classes, another quantity than the paper's.
    old = cells["age 50+", "leave-one-out", "AUROC"]
    assert (old["value"], old["paper"]) == (0.7, None)
    assert "4 classes" in old["note"]
    for row in ("age 0-18", "age 35-50", "male"):
        assert cells[row, "leave-one-out", "AUROC"]["note"] == "no test subjects are known to be of it"
    assert cells["female", "hand-made features", "AUROC"]["note"] == "not in the result"
    assert cells["female", "supervised CNN", "AUROC"]["note"] == "not computed"
    drawn = "\n".join(reproduce_tables.draw(stages, cells.values(), simulated=False))
    assert "## Tables 19-28, sleep stages: by age group and sex" in drawn
    assert "| age 18-35 | 0.900 [0.880, 0.920] | 0.911 |" in drawn
    assert "Not computed: pairwise, supervised CNN." in drawn
    assert "Not in the result: hand-made features." in drawn
    everywhere = [{**c, "note": "absent"} if c["row"] == "male" else {**c, "note": ""} for c in cells.values()]
    everywhere[0] |= {"note": "absent"}
    assert reproduce_tables.remarks(everywhere) == [("absent", "male, leave-one-out age 0-18 AUROC")]
    assert {c.sources[0].evaluation.task for c in breathing.cells} == {"sdb"}
    assert {c.path[:3] for c in breathing.cells} == {c.path[:3] for c in stages.cells}


@pytest.mark.parametrize("numbers", ["19", "22,28", "19-28"])
def test_any_number_of_a_stratified_table_gives_both(numbers):
    facts = simulated_facts(SMOKE.subjects, SMOKE.hours, SMOKE.split, "sim-")
    config = reproduce.Config((Path("out"),), tables=numbers, figures="none", sizes=())
    tables = chosen_tables(config, chosen_preset(config), facts, None)
    assert [t.name.split(", ")[1] for t in tables] == ["sleep stages", "sleep-disordered breathing"]


@pytest.mark.parametrize(
    ("table", "figure", "value", "text"),
    [
        (paper_tables.make_table(2), "AUROC", 0.740, "0.740"),
        (paper_tables.make_table(8), "F1", 0.700, "0.700"),
        (paper_tables.make_table(4), "median rank", 400.0, "400"),
        (paper_tables.make_table(5), "recall@10", 0.60, "0.60"),
        (paper_tables.few_shot_figure((8,), 1, 9), "sleep-disordered breathing, AUPRC", 0.10, "0.10"),
        (paper_tables.pretraining_figure(), "AUPRC", 0.082, "0.082"),
    ],
)
def test_the_papers_figures_have_the_digits_it_prints(table, figure, value, text):
    cell = {"row": "row", "method": "m", "figure": figure, "value": 0.5, "low": None, "high": None, "note": ""}
    lines = reproduce_tables.draw(table, [{**cell, "n_test": None, "paper": value}], simulated=False)
    assert next(line for line in lines if line.startswith("| row")).split(" | ")[-1] == f"{text} |"
    assert any(c.paper == value and c.figure == figure for c in table.cells)


def test_retrieval_reads_the_direction_and_chance(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    directions = [
        {
            "query": q,
            "candidates": c,
            "recall@10": {**interval(0.3), "times_chance": 40.0},
            "median_rank": {"value": 9.0},
        }
        for q, c in paper_tables.RETRIEVAL
    ]
    write_result(
        layout.result(Source(Run("contrastive"), Evaluation("retrieve"))),
        {"command": "retrieve", "directions": directions[:-1], "mean": {}},
        {},
    )
    cells = reproduce_tables.collect(paper_tables.make_table(4), layout)
    first = [c for c in cells if c["row"] == "brain -> ecg"]
    assert [(c["value"], c["paper"]) for c in first] == [(9.0, 7.0), (0.3, 0.58), (40.0, None)]
    assert all(c["value"] is None and c["note"] for c in cells if c["row"] == "respiratory -> ecg")


def test_a_damaged_result_is_told_from_one_that_is_not_there(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    folder = layout.result(Source(Run("contrastive"), Evaluation("retrieve")))
    table = paper_tables.make_table(4)
    write_result(folder, {"command": "retrieve", "directions": [], "mean": {}}, {})
    (folder / "result.json").write_text("{")
    cells = reproduce_tables.collect(table, layout)
    assert {c["note"] for c in cells} == {"damaged: remove the result's folder and run again"}
    (folder / "result.json").unlink()
    assert {c["note"] for c in reproduce_tables.collect(table, layout)} == {"not computed"}


def test_few_shot_curves_are_means_over_draws(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    curve = [
        {
            "subjects": k,
            "replicate": r,
            "n_clips": 10,
            "macro_absent_at_chance": {"auroc": 0.5 + 0.1 * k + 0.02 * r, "auprc": 0.2, "f1": 0.1},
        }
        for k in (1, 4)
        for r in (0, 1)
    ]
    source = Source(Run("contrastive"), Evaluation("few_shot"))
    write_result(layout.result(source), {"command": "few_shot", "curve": curve}, {})
    for r, value in enumerate((0.6, 0.7)):
        run = Run("supervised", subjects=4, replicate=r)
        write_result(layout.result(Source(run, Evaluation("supervised"))), stage_record(value), {})
    cells = reproduce_tables.collect(paper_tables.few_shot_figure((1, 4), 2, 9), layout)
    stage = {(c["row"], c["method"]): c for c in cells if c["figure"] == "sleep stages, AUROC"}
    assert stage["4", "leave-one-out"]["value"] == pytest.approx(0.91)
    assert stage["4", "leave-one-out"]["low"] == pytest.approx(0.9)
    assert stage["4", "supervised CNN"]["value"] == pytest.approx(0.65)
    assert stage["4", "supervised CNN"]["high"] == pytest.approx(0.7)
    assert stage["4", "supervised CNN"]["paper"] == 0.515


def test_a_simulated_cohort_comes_with_its_sentence():
    assert "cannot be compared with figures of patients" in reproduce_tables.warning(simulated=True)
    assert "cannot be compared" not in reproduce_tables.warning(simulated=False)


def single_record(task, n_classes, n_clips=300, n_subjects=25):
    one = {name: interval(0.7) for name in ("auroc", "auprc", "f1")}
    sides = {"train": {"n_subjects": n_subjects}, "test": {"n_clips": n_clips}}
    return {"command": "probe", "task": task, "macro": {**one, "n_classes": n_classes}, "classes": {}, **sides}


@pytest.mark.parametrize(("number", "task", "n_all"), [(15, "age", 4), (11, "stage", 5)])
def test_a_mean_over_other_classes_is_noted_in_tables_by_modality_too(tmp_path, number, task, n_all):
    layout = reproduce_plan.Layout(tmp_path)
    for modality, n in (("ecg", n_all), ("brain", n_all - 1)):
        source = Source(Run("contrastive"), Evaluation("probe", task, modality))
        write_result(layout.result(source), single_record(task, n), {})
    table = paper_tables.make_table(number)
    cells = {(c["row"], c["figure"]): c for c in reproduce_tables.collect(table, layout)}
    printed = {(c.row, c.figure): c.paper for c in table.cells}
    assert cells["ecg", "AUROC"]["paper"] == printed["ecg", "AUROC"]
    assert cells["ecg", "AUROC"]["note"] == ""
    other = cells["brain", "AUROC"]
    assert (other["value"], other["paper"]) == (0.7, None)
    assert other["note"] == f"ours is the mean of {n_all - 1} classes, the paper's of {n_all}"


def test_figure_3_and_the_few_shot_curve_are_guarded_too(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    source = Source(Run("contrastive"), Evaluation("probe", "stage", "brain"))
    write_result(layout.result(source), single_record("stage", 4), {})
    cells = reproduce_tables.collect(paper_tables.pretraining_figure(), layout)
    ours = next(c for c in cells if c["row"] == "all three" and c["figure"] == "AUROC" and c["value"] is not None)
    assert ours["paper"] is None
    assert "4 classes, the paper's of 5" in ours["note"]
    curve = [{"subjects": 1, "replicate": 0, "macro_absent_at_chance": {"auroc": 0.6, "auprc": 0.2}}]
    test = {"n_clips": 9, "class_counts": {"W": 3, "N1": 2, "N2": 2, "N3": 0, "R": 2}}
    source = Source(Run("contrastive"), Evaluation("few_shot"))
    record = {"command": "few_shot", "task": "stage", "curve": curve, "test": test, "n_subjects_to_draw_from": 5}
    write_result(layout.result(source), record, {})
    cells = reproduce_tables.collect(paper_tables.few_shot_figure((1,), 1, 9), layout)
    ours = next(c for c in cells if (c["row"], c["method"]) == ("1", "leave-one-out"))
    assert (ours["value"], ours["paper"]) == (0.6, None)


def test_more_subjects_than_are_labelled_are_said_so(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    curve = [{"subjects": 6, "replicate": 0, "macro_absent_at_chance": {"auroc": 0.6, "auprc": 0.2}}]
    record = {"command": "few_shot", "task": "stage", "curve": curve, "n_subjects_to_draw_from": 6}
    write_result(layout.result(Source(Run("contrastive"), Evaluation("few_shot"))), record, {})
    network = Source(Run("supervised", subjects=8), Evaluation("supervised"))
    write_result(layout.result(network), {**stage_record(0.7), "train": {"n_subjects": 6}}, {})
    cells = reproduce_tables.collect(paper_tables.few_shot_figure((8,), 1, 9), layout)
    for method in ("leave-one-out", "supervised CNN"):
        cell = next(c for c in cells if (c["row"], c["method"]) == ("8", method))
        assert cell["value"] is None
        assert cell["note"] == "fewer than 8 labelled training subjects: there are 6"


def test_other_test_clips_are_noted(tmp_path):
    layout = reproduce_plan.Layout(tmp_path)
    table = paper_tables.make_table(7)
    probe = Source(Run("contrastive"), Evaluation("probe", "sdb"))
    network = Source(Run("supervised", task="sdb"), Evaluation("supervised", "sdb"))
    write_result(layout.result(probe), single_record("sdb", 1, 300), {})
    write_result(layout.result(network), single_record("sdb", 1, 300), {})
    cells = reproduce_tables.collect(table, layout)
    assert "different clips" not in "\n".join(reproduce_tables.draw(table, cells, simulated=False))
    write_result(layout.result(network), single_record("sdb", 1, 345), {}, overwrite=True)
    cells = reproduce_tables.collect(table, layout)
    assert {c["method"]: c["n_test"] for c in cells}["supervised CNN"] == 345
    drawn = "\n".join(reproduce_tables.draw(table, cells, simulated=False))
    assert "what each reads: leave-one-out 300, supervised CNN 345 clips." in drawn


def test_the_size_stands_above_the_tables_and_a_tiny_encoder_is_not_the_papers():
    facts = planner().facts
    line = reproduce_tables.size_line("smoke", SMOKE, facts)
    assert "\n" not in line
    assert line.startswith("Preset smoke: encoder tiny, 5 epochs, 25 training and 11 test subjects")
    assert "5 epochs in bfloat16, 25" in reproduce_tables.size_line("smoke", SMOKE, facts, "bfloat16")
    cell = {"row": "macro", "method": "pairwise", "figure": "AUROC", "value": 0.7, "low": None, "high": None}
    cells = [{**cell, "paper": 0.902, "note": ""}]
    table = paper_tables.make_table(7)
    tiny = "\n".join(reproduce_tables.draw(table, cells, simulated=False, encoder="tiny"))
    assert "paper (another encoder, for orientation)" in tiny
    assert "<sub>0.902</sub>" in tiny
    assert "orientation" not in "\n".join(reproduce_tables.draw(table, cells, simulated=False, encoder="seed"))
    assert "orientation" in reproduce_tables.warning(simulated=False, encoder="tiny")
    assert "orientation" not in reproduce_tables.warning(simulated=False, encoder="seed")


# ---- all of it -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_store_to_tables_and_again(cohort_store, tmp_path, capsys):
    out = tmp_path / "out"
    command = [str(cohort_store), str(out), "--tables", "4,11,13", "--figures", "none", "--sizes", "--epochs", "1"]
    command += ["--threads", "1", "--no-report"]
    assert reproduce.cli([*command, "--plan"]) == 0
    planned = last_json(capsys.readouterr().out)
    assert not out.exists()
    assert reproduce.cli(command) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    done = last_json(captured.out)
    assert done["steps"] == {"found": 0, "done": planned["steps"], "failed": 0, "blocked": 0}
    text = (out / "tables.md").read_text()
    assert "cannot be compared with figures of patients" in text
    assert "<sub>0.891</sub>" in text
    assert text.splitlines()[2].startswith("Preset smoke: encoder tiny, 1 epoch, ")
    record = json.loads((out / "reproduction.json").read_text())
    cells = [cell for table in record["tables"] for cell in table["cells"]]
    for cell in cells:
        assert all((out / folder / "result.json").is_file() for folder in cell["from"])
    assert all(cell["value"] is not None for cell in cells)
    # A result that was lost is made again, and nothing else.
    for file in (out / "runs" / "leave_one_out" / "results" / "stage-ecg").iterdir():
        file.unlink()
    assert reproduce.cli(command) == 0
    again = last_json(capsys.readouterr().out)
    assert again["steps"] == {"found": planned["steps"] - 1, "done": 1, "failed": 0, "blocked": 0}
    repeated = json.loads((out / "reproduction.json").read_text())
    assert [t["cells"] for t in repeated["tables"]] == [t["cells"] for t in record["tables"]]
    # A result that another version computed by other definitions stays, and is said.
    assert "definitions" not in text
    file = out / "runs" / "leave_one_out" / "results" / "stage-ecg" / "result.json"
    old = {name: value for name, value in json.loads(file.read_text()).items() if name != "definitions"}
    file.write_text(json.dumps(old))
    assert reproduce.cli(command) == 0
    assert f"notice: 1 result ({file.parent}) was computed by the definitions of another" in capsys.readouterr().err
    assert f"remove the folders {out / 'runs' / '*' / 'results'} and repeat" in (out / "tables.md").read_text()
    assert reproduce.cli([*command, "--seed", "1"]) == 1
    assert "seed was 0, is 1" in capsys.readouterr().err
