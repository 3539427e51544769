"""What a store lacks is left out of the plan with one notice each, and what is left is carried out."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from called import last_json
from known_nights import EEG, staged_night

from sleepfm_fast import preprocess, reproduce
from sleepfm_fast.reproduction import cost as reproduce_cost
from sleepfm_fast.reproduction import paper_tables
from sleepfm_fast.reproduction.facts import simulated_facts, store_facts
from sleepfm_fast.reproduction.omissions import answerable
from sleepfm_fast.reproduction.presets import PRESETS

SMOKE = PRESETS["smoke"]
WHOLE = simulated_facts(40, 0.25, SMOKE.split, "sim-")
NUMBERED = {n: paper_tables.make_table(n) for n in paper_tables.TABLES}
PRETRAINING = paper_tables.pretraining_figure()


def with_channels(*modalities):
    return dataclasses.replace(WHOLE, channels=dict.fromkeys(modalities, 2))


def without_tasks(*tasks):
    return dataclasses.replace(WHOLE, tasks=tuple(t for t in WHOLE.tasks if t not in tasks))


@pytest.fixture(scope="module")
def eeg_store(tmp_path_factory):
    """Eight scored nights of one EEG derivation; nobody's age or sex, no respiratory events."""
    folder = tmp_path_factory.mktemp("eeg") / "edf"
    folder.mkdir()
    for i in range(8):
        stages = np.random.default_rng(i).permutation(["W"] * 5 + ["2"] * 5)
        staged_night(folder / f"p{i:02d}.edf", stages, seed=i, leads=[EEG])
    store = folder.parent / "store"
    assert preprocess.cli([str(folder), str(store), "--workers", "1"]) == 0
    return store


def test_a_whole_store_keeps_everything():
    kept, notices = answerable([*NUMBERED.values(), PRETRAINING], WHOLE, WHOLE)
    assert kept == [*NUMBERED.values(), PRETRAINING]
    assert notices == ()


def test_no_participants_table_costs_age_and_sex_and_one_notice_each():
    kept, notices = answerable(NUMBERED.values(), without_tasks("age", "sex"), WHOLE)
    assert {int(t.name.split()[1]) for t in kept} == set(NUMBERED) - {2, 3, 15, 16, 17, 18}
    assert len(notices) == 2
    assert "the subject's age" in notices[0]
    assert "--participants" in notices[0]
    assert notices[0].endswith("Left out: Table 2, Table 15, Table 17.")


def test_no_ecg_costs_its_rows():
    facts = with_channels("respiratory", "brain")
    kept, notices = answerable([NUMBERED[4], NUMBERED[11], NUMBERED[6], PRETRAINING], facts, None)
    rows = {table.name: {cell.row for cell in table.cells} for table in kept}
    assert rows["Table 4"] == {"brain -> respiratory", "respiratory -> brain"}
    assert rows["Table 11"] == {"respiratory", "brain"}
    assert kept[2] == NUMBERED[6]
    assert rows["Figure 3"] == {"respiratory and brain", "brain", "respiratory"}
    assert [n for n in notices if "no ecg channel" in n]
    assert [n for n in notices if "not all three" in n and "Figure 3" in n]
    assert len(notices) == 2


def test_one_modality_leaves_neighbours_networks_and_features():
    facts = with_channels("brain")
    kept, notices = answerable([NUMBERED[4], NUMBERED[6], NUMBERED[29], PRETRAINING], facts, None)
    methods = {table.name: {cell.method for cell in table.cells} for table in kept}
    assert methods["Table 6"] == {"supervised CNN", "hand-made features"}
    assert "Table 4" not in methods
    assert {cell.row for cell in kept[-1].cells} == {"brain"}
    assert [n for n in notices if "takes two, and the store has brain alone" in n]


def test_the_external_store_answers_for_itself():
    table = NUMBERED[8]
    kept, notices = answerable([table], WHOLE, with_channels("brain", "ecg"))
    assert {cell.method for cell in kept[0].cells} == {"supervised CNN of our store"}
    assert "external store has no respiratory channel" in notices[0]
    kept, notices = answerable([table], WHOLE, without_tasks("stage"))
    assert kept == []
    assert "the external store has no two classes of sleep stage" in notices[0]
    # A probe fitted there needs no label here.
    kept, _ = answerable([table], without_tasks("stage"), WHOLE)
    assert {cell.method for cell in kept[0].cells} == {"probe fitted on the external store"}


def test_facts_of_a_store_are_its_modalities_and_labels(eeg_store, planted):
    facts = store_facts(eeg_store, SMOKE.split)
    assert (dict(facts.channels), facts.tasks) == ({"brain": 1}, ("stage",))
    assert set(store_facts(planted, SMOKE.split).channels) == {"respiratory", "brain", "ecg"}


@pytest.mark.parametrize("batch_size", [4, 5])
def test_one_modality_is_timed(batch_size):
    rates = reproduce_cost.measure("tiny", {"brain": 2}, batch_size, "cpu")
    assert all(rate > 0 for rate in rates.values())


def test_a_store_of_one_modality_is_planned_without_what_would_fail(eeg_store, tmp_path, capsys):
    command = [str(eeg_store), str(tmp_path / "out"), "--plan", "--threads", "1"]
    assert reproduce.cli(command) == 0
    captured = capsys.readouterr()
    planned = last_json(captured.out)
    assert planned["tables"] == ["Table 6", "Figure 2", "Figure 3"]
    assert not [step for step in planned["to_do"] if "retrieve" in step or "sdb" in step or "-sex" in step]
    assert captured.err.count("notice: the store has no two classes of scored respiratory events") == 1
    assert reproduce.cli([*command, "--tables", "4", "--figures", "none", "--sizes"]) == 1
    assert "nothing that these tables and figures ask for" in capsys.readouterr().err


@pytest.mark.slow
def test_a_store_of_one_modality_is_reproduced(eeg_store, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--tables", "6", "--figures", "3", "--epochs", "1", "--threads", "1", "--no-report"]
    assert reproduce.cli([str(eeg_store), str(out), *options]) == 0, capsys.readouterr().err
    record = json.loads((out / "reproduction.json").read_text())
    assert {step["state"] for step in record["steps"].values()} == {"done"}
    # Two stages are no average of five.
    noted = [cell for table in record["tables"] for cell in table["cells"] if cell["row"] in ("macro", "brain")]
    assert noted
    assert all(cell["paper"] is None and "mean of 2 classes" in cell["note"] for cell in noted)
