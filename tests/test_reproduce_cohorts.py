"""A reproduction goes on with the cohorts that it was begun with, or says what changed; it never mixes two splits."""

import json
import shutil

import numpy as np
import pytest
from nights import preprocess, write_cohort, write_night
from synthetic_embeddings import columns_of, write_folder
from test_reproduce import RATES, planner

from sleepfm_fast import reproduce
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.reproduction import paper_tables
from sleepfm_fast.reproduction import plan as reproduce_plan
from sleepfm_fast.reproduction import steps as reproduce_steps
from sleepfm_fast.reproduction.cohorts import Sides, agreed_sides, kept_sides, present_sides
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.runs.splits import assign_subjects

TABLE8 = paper_tables.make_table(8)


def embedded(folder, sides, store):
    """What embed leaves of a cohort, a clip a subject."""
    names = tuple(sides)
    x = np.ones((len(names), 3, 4), np.float32) / 2
    columns = columns_of(np.arange(len(names)), list(sides.values()))
    nothing = (None,) * len(names)
    recordings = tuple(f"{n}_night" for n in names)
    write_folder(
        folder, x, columns, subjects=names, recordings=recordings, ages=nothing, sexes=nothing, store=str(store)
    )


def begun(layout, plan, first, external):
    """An OUT of an earlier version: a run, and its embeddings of the second cohort."""
    run = layout.runs / "leave_one_out"
    RunDirectory(run).create({"config": {}, "subjects": first})
    embedded(run / "external_embeddings", external, layout.store(external=True))
    return reproduce_plan.make_plan(plan, [TABLE8])


def sides(plan, name):
    return present_sides(plan)[name][1].subjects


def test_differences_are_said_by_kind():
    before = Sides({"a": 0, "b": 2, "c": 1}, 30)
    assert before.differences(Sides({"a": 0, "b": 2, "c": 1}, 30)) == ""
    assert before.differences(Sides({"a": 0, "b": 2, "c": 1})) == ""
    assert before.differences(Sides({"a": 0, "b": 0, "d": 1, "e": 1}, 40)) == (
        "1 subject is gone (c), 2 subjects are new (d, ...), 1 subject is on another side of the split (b), it has "
        "40 clips, not 30"
    )


def test_a_second_cohort_whose_names_changed_is_refused_where_anything_stands(tmp_path):
    plan = planner(tmp_path)
    layout = plan.layout
    first = dict(sides(plan, "store"))
    # As an earlier version named them: like the first cohort's, and on its sides.
    n = len(sides(plan, "external"))
    names = [f"sim-{i:04d}" for i in range(n)]
    codes, _ = assign_subjects(names, plan.preset.split, first)
    former = dict(zip(names, codes.tolist(), strict=True))
    steps = begun(layout, plan, first, former)
    with pytest.raises(
        SleepfmError, match=rf"{n} subjects are gone \(sim-0000, \.\.\.\), {n} subjects are new"
    ) as said:
        agreed_sides(layout, {}, steps, present_sides(plan))
    for words in ("external_cohort", "tested on other subjects", "name another OUT", "external_embeddings"):
        assert words in str(said.value)
    # The cohort's own folder says what its names are: it is gone on with.
    recordings = layout.recordings(external=True)
    recordings.mkdir(parents=True)
    (recordings / "simulation.json").write_text(json.dumps({"subjects": n, "prefix": "sim-"}))
    assert agreed_sides(layout, {}, steps, present_sides(plan))["external"].subjects == former
    # Without what was made of it, the cohort of today's names is as good as any.
    shutil.rmtree(recordings)
    shutil.rmtree(layout.runs / "leave_one_out" / "external_embeddings")
    assert next(iter(agreed_sides(layout, {}, steps, present_sides(plan))["external"].subjects)) == "sim-1-0000"


def test_a_plan_that_does_not_read_the_second_cohort_keeps_what_was_kept(tmp_path):
    plan = planner(tmp_path)
    first = dict(sides(plan, "store"))
    begun(plan.layout, plan, first, {"old": 0, "older": 2})
    other = planner(tmp_path)
    steps = reproduce_plan.make_plan(other, [paper_tables.make_table(6)])
    kept = {"cohorts": {"store": {"subjects": first, "clips": None}, "external": {"subjects": {"old": 0}, "clips": 3}}}
    agreed = agreed_sides(other.layout, kept, steps, present_sides(other))
    assert agreed["external"] == Sides({"old": 0}, 3)
    assert agreed["store"].subjects == first


def test_what_an_earlier_version_wrote_is_read_from_runs_and_embeddings(tmp_path):
    plan = planner(tmp_path)
    begun(plan.layout, plan, {"a": 0, "b": 2}, {"x": 2, "y": 0})
    found = kept_sides(plan.layout, {"steps": {}})
    assert found["store"] == Sides({"a": 0, "b": 2})
    assert found["external"] == Sides({"x": 2, "y": 0}, 2)
    assert kept_sides(reproduce_plan.Layout(tmp_path / "nowhere"), {}) == {}


def test_recordings_whose_store_stands_are_not_simulated_again(tmp_path, capsys):
    plan = planner(tmp_path)
    steps = {step.name: step for step in reproduce_plan.make_plan(plan, [TABLE8])}
    simulate = steps["external_cohort/edf"]
    assert not reproduce_steps.is_finished(simulate)
    write_cohort(tmp_path / "nights")
    assert preprocess(capsys, tmp_path / "nights", plan.layout.store(external=True))[0] == 0
    assert reproduce_steps.is_finished(simulate)
    assert not reproduce_steps.is_finished(steps["cohort/edf"])


@pytest.fixture
def stores(tmp_path, capsys):
    """A store of six subjects and one of two, to be given."""
    (tmp_path / "nights").mkdir()
    for i in range(6):
        write_night(tmp_path / "nights" / f"p{i}.edf", seed=i)
    write_cohort(tmp_path / "others")
    for name in ("nights", "others"):
        assert preprocess(capsys, tmp_path / name, tmp_path / f"{name}-store")[0] == 0
    return tmp_path / "nights-store", tmp_path / "others-store"


def test_a_store_that_has_grown_is_refused_by_the_command_and_said(stores, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def prepared(config):
        plan = planner(out, *stores)
        return plan, [TABLE8], RATES, plan.facts

    monkeypatch.setattr(reproduce, "prepared", prepared)
    monkeypatch.setattr(reproduce_steps, "carry_out", lambda steps, note: {})
    command = [str(stores[0]), str(out), "--external", str(stores[1]), "--no-report"]
    assert reproduce.cli(command) == 0
    kept = json.loads((out / "reproduction.json").read_text())["cohorts"]
    assert kept["store"]["clips"] == len(ClipStore(stores[0]))
    assert set(kept["store"]["subjects"]) == {f"p{i}" for i in range(6)}
    assert set(kept["external"]["subjects"]) == set(ClipStore(stores[1]).subjects)
    # With nothing made yet a store may change; it is the one that counts from then on.
    write_night(tmp_path / "nights" / "p6.edf", seed=6)
    assert preprocess(capsys, tmp_path / "nights", stores[0])[0] == 0
    assert reproduce.cli(command) == 0
    assert "p6" in json.loads((out / "reproduction.json").read_text())["cohorts"]["store"]["subjects"]
    # Once a run stands it may not.
    RunDirectory(out / "runs" / "leave_one_out").create({"config": {}, "subjects": kept["store"]["subjects"]})
    assert reproduce.cli(command) == 0
    before = (out / "reproduction.json").read_bytes()
    write_night(tmp_path / "nights" / "p7.edf", seed=7)
    assert preprocess(capsys, tmp_path / "nights", stores[0])[0] == 0
    for more in ([], ["--plan"]):
        assert reproduce.cli([*command, *more]) == 1
        said = capsys.readouterr().err
        assert "1 subject is new (p7)" in said
        assert "give the store as it was; for this one, name another OUT, or delete" in said
        assert str(out / "runs" / "leave_one_out") in said
    assert (out / "reproduction.json").read_bytes() == before
