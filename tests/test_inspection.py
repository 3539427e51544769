"""``preprocess --inspect``: what it says is what would be ingested; it writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nights import DATA, LEADS, Lead, contents, preprocess, write_night

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.doctor import inspection
from sleepfm_fast.doctor.findings import Finding
from sleepfm_fast.doctor.inspection_text import finding_lines
from sleepfm_fast.execution.parallel import WorkersLost
from sleepfm_fast.preprocess import cli


def inspect(capsys, *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    status = cli(["--inspect", *map(str, arguments), "--workers", "1", "--backend", "threading"])
    return status, capsys.readouterr().out


def test_names_and_labels_command_no_terminal(tmp_path: Path, capsys) -> None:
    """A recording from elsewhere is named, and its channels and scoring are labelled, by somebody else."""
    write_night(tmp_path / "a\x1b]0;title\x07\nerror: forged.edf", leads=[*LEADS, Lead("C3\x1b[2J", 128)])
    (tmp_path / "broken\x9b31m.edf").write_bytes(b"0       \x1b[31m")
    _, out = inspect(capsys, tmp_path)
    assert r"a\x1b]0;title\x07\nerror: forged.edf" in out
    assert r"broken\x9b31m.edf" in out
    assert {c for c in out if not c.isprintable()} == {"\n"}
    assert cli([str(tmp_path), str(tmp_path / "store"), "--workers", "1"]) == 1
    err = capsys.readouterr().err
    assert r"broken\x9b31m.edf" in err
    assert {c for c in err if not c.isprintable()} == {"\n"}


def test_what_is_shown_is_what_is_ingested(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "nights"
    folder.mkdir()
    leads = [Lead("C3", 128), Lead("M2", 128), Lead("EKG", 256, "mV", 5.0), Lead("Light", 1, "lx", 10)]
    write_night(folder / "full.edf")
    write_night(folder / "derived.edf", leads=leads, stages="W-2", first_stage_s=12, events=[(50, 20, "Hypopnea")])
    (folder / "participants.csv").write_text("recording,subject,age,sex\nfull,S1,33,F\ngone,S2,,\n")
    before = contents(tmp_path)
    status, result = preprocess(capsys, "--inspect", folder, "--montage", "aasm")
    assert (status, result["report"]) == (0, None)
    assert contents(tmp_path) == before
    report_file = tmp_path / "report.json"
    assert preprocess(capsys, "--inspect", folder, "--montage", "aasm", "--json", report_file)[1]["report"]
    result = json.loads(report_file.read_text())
    preprocess(capsys, folder, tmp_path / "store", "--montage", "aasm")
    store = ClipStore(tmp_path / "store")
    assert result["clips"] == len(store)
    assert result["participants_unknown"] == ["gone"]
    for i, (report, entry) in enumerate(zip(result["files"], store.recordings, strict=True)):
        assert report["path"] == entry.source
        assert report["n_clips"] == entry.n_clips
        for slot, facts in zip(report["slots"], store.record(i)["channels"], strict=True):
            assert slot["slot"] == facts["slot"]
            assert slot["labels"] == facts.get("labels", [])
            if facts["present"]:
                assert slot["fs_hz"] == facts["fs_hz"][0] / facts["fs_hz"][1]
                assert slot["unit"] == facts["unit"]


def line(text: str, start: str) -> str:
    found = [candidate.strip() for candidate in text.splitlines() if candidate.strip().startswith(start)]
    assert len(found) == 1, text
    return " ".join(found[0].split())


def test_the_table_of_a_night(tmp_path: Path, capsys) -> None:
    leads = [Lead("C3", 128), Lead("M2", 128), Lead("EKG", 256, "mV", 5.0), Lead("Light", 1, "lx", 10)]
    write_night(tmp_path / "n.edf", leads=leads, stages="W-2", first_stage_s=12, events=[(50, 20, "Hypopnea")])
    status, text = inspect(capsys, tmp_path / "n.edf", "--montage", "aasm")
    assert status == 0
    night = text.partition("\n\n")[0]
    assert "EDF+C, 0:02:00 h" in night
    assert "subject n" in night
    assert "C3-M2 C3 - M2 128 Hz uV [exact difference]" in line(night, "C3-M2")
    assert "ECG EKG 256 Hz uV (header's unit x 1000)" in line(night, "ecg")
    assert line(night, "SpO2").endswith("missing")
    assert line(night, "no channel of") == "no channel of: respiratory"
    assert line(night, "not used") == "not used: Light (1 Hz, lx)"
    assert line(night, "scoring") == "scoring: annotations inside the file"
    assert line(night, "clips") == "clips: 3, 2 with a stage, 1 without"
    assert "W 1 (33.3 %), N2 1 (33.3 %), none 1 (33.3 %)" in line(night, "stages")
    assert "event" in line(night, "sleep-disordered")


def test_the_summary_of_a_cohort(tmp_path: Path, capsys) -> None:
    write_night(tmp_path / "a.edf")
    write_night(tmp_path / "b.edf", leads=LEADS[:3])
    (tmp_path / "c.edf").write_bytes(b"<html>")
    status, text = inspect(capsys, tmp_path)
    assert status == 1
    assert "cannot be ingested" in text
    summary = text.split("\n\n")[-2]
    assert summary.startswith("3 files, 2 can be ingested; montage auto")
    assert line(summary, "C3-M2") == "C3-M2 2 of 2 100 Hz C3-M2 (2)"
    assert line(summary, "ECG") == "ECG 1 of 2 200 Hz ECG (1)"


def test_nights_without_an_event_are_a_finding(tmp_path: Path, capsys) -> None:
    def found(*arguments: object) -> list[dict]:
        report = tmp_path / "report.json"
        inspect(capsys, tmp_path / "nights", "--json", report, *arguments)
        return [f for f in json.loads(report.read_text())["findings"] if f["code"] == "no_events"]

    folder = tmp_path / "nights"
    folder.mkdir()
    write_night(folder / "a.edf", seed=1)
    write_night(folder / "b.edf", seed=2)
    write_night(folder / "unscored.edf", seed=3, stages="")
    (only_stages,) = found()
    assert (only_stages["severity"], only_stages["figures"]) == ("note", {"nights": 2, "scored": 2})
    write_night(folder / "c.edf", seed=4, events=[(35, 20, "Hypopnea")])
    (some,) = found()
    assert (some["severity"], some["figures"]) == ("warning", {"nights": 2, "scored": 3})
    assert some["paths"] == [str(folder / "a.edf"), str(folder / "b.edf")]
    assert some["text"].startswith("2 of 3 scored nights have no respiratory event; they are taken as not scored")
    assert "--events-scored" in some["action"]
    assert "no respiratory event" in inspect(capsys, folder)[1]
    assert found("--events-scored") == []


def test_events_without_a_duration_are_a_finding_with_their_number(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "nights"
    folder.mkdir()
    write_night(folder / "moments.edf", events=[(40, -1, "Hypo"), (70, -1, "Hypo"), (120, 30, "Leicht")])
    write_night(folder / "remark.edf", events=[(40, 12, "Hypopnea"), (70, -1, "post apnea")])
    assert preprocess(capsys, "--inspect", folder, "--json", tmp_path / "report.json")[0] == 0
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    shown = [f for f in findings if "'Hypo' (" in f["text"] or "'post apnea' (" in f["text"]]
    said = {(f["severity"], f["code"], Path(f["paths"][0]).stem): f["text"] for f in shown}
    assert "'Hypo' (2). Say what they mean, as with --meanings" in said.pop(("warning", "meaning", "moments"))
    assert "'post apnea' (1). They were taken for remarks" in said.pop(("note", "remark", "remark"))
    assert not said
    capsys.readouterr()
    assert cli([str(folder), str(tmp_path / "store"), "--workers", "1", "--backend", "threading"]) == 0
    notice = "the scoring of 1 night holds texts whose meaning is not known, as here: texts that are as long as epochs"
    assert notice in capsys.readouterr().err, "two questions, one night"


def test_a_montage_that_cannot_be_resolved_does_not_hide_the_files(tmp_path: Path, capsys) -> None:
    write_night(tmp_path / "a.edf", leads=[Lead("Gen1")])
    status, text = inspect(capsys, tmp_path)
    assert status == 1
    assert "not used: Gen1 (100 Hz, uV)" in text
    assert "Shown here is the montage 'paper'" in text


@pytest.mark.skipif(not (DATA / "awkward").is_dir(), reason=f"the real recordings are missing: {DATA}")
def test_real_and_awkward_files_are_shown_or_refused_by_a_sentence(tmp_path: Path, capsys) -> None:
    preprocess(capsys, "--inspect", DATA, "--montage", "paper", "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["files"]) >= 18
    for failure in result["failed"]:
        assert "Error:" not in failure["reason"], failure
    real = next(f for f in result["files"] if f["path"].endswith("osas2002.edf"))
    assert real["n_clips"] == 40
    assert "osas2002-stages.csv" in real["scoring"]
    found = {(f["code"], f["channel"]) for f in result["findings"] if f["paths"][0].endswith("osas2002.edf")}
    # Its R peaks point down, in severe obstruction its belts move against each other, its leg EMG holds the ECG.
    assert {("polarity", "ECG"), ("belts", "Resp chest"), ("wrong_kind", "EMG linked legs")} <= found
    assert not {"unit", "flat", "railed", "mains", "clipped", "level"} & {code for code, _ in found}
    # The same five minutes in 16 and in 24 bits; an EMG kept as an envelope at 1 Hz; an EEG without a unit.
    pairs = [sorted(Path(p).name for p in f["paths"]) for f in result["findings"] if f["code"] == "identical"]
    assert ["short_psg.bdf", "short_psg.edf"] in pairs
    by_name = {(Path(f["paths"][0]).name, f["code"]): f for f in result["findings"]}
    assert by_name["short_psg.edf", "slow"]["channel"] == "EMG submental"
    assert by_name["ucddb018_eeg.edf", "unit"]["figures"]["fits"] == "mV"


def test_a_cohort_of_many_electrodes_is_told_that_auto_takes_none(tmp_path: Path, capsys) -> None:
    for i, eeg in enumerate(("C3-M2", "EEG Fpz-Cz", "Pz-Oz")):
        write_night(tmp_path / f"n{i}.edf", leads=[Lead(eeg), Lead("ECG", 200, "mV", 5.0), Lead("Airflow", 25)], seed=i)
    assert cli(["--inspect", str(tmp_path), "--workers", "1", "--backend", "threading"]) == 0
    text, err = capsys.readouterr()
    assert "warning  passed_over" in text
    # What to go on with is what the finding advises, not what it warns of.
    assert next(line for line in err.splitlines() if line.startswith("next: ")).endswith(" --montage aasm")
    assert cli([str(tmp_path), str(tmp_path / "store"), "--workers", "1"]) == 0
    said = capsys.readouterr().err
    assert "EEG (3 of 3). Choose --montage aasm" in said
    assert "respiratory: Thermal Flow; ecg: ECG" in said


def test_a_file_whose_worker_dies_is_looked_at_alone_and_reported_if_it_dies_again(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    """Of four files c ends its worker whenever it is read; d's result is lost with the first of these workers."""
    for name in "abcd":
        write_night(tmp_path / f"{name}.edf", seed=ord(name))
    asked, really = [], inspection.in_parallel

    def results(work, arguments, engine, **how):
        if work is not inspection.inspect_night:
            yield from really(work, arguments, engine, **how)
            return
        names = [arguments_of[0].stem for arguments_of in arguments]
        asked.append((names, how["own_process"]))
        for name, arguments_of in zip(names, arguments, strict=True):
            if name == "c":
                raise WorkersLost("one of them")
            yield work(*arguments_of)

    monkeypatch.setattr(inspection, "in_parallel", results)
    status, text = inspect(capsys, tmp_path, "--json", tmp_path / "report.json")
    assert status == 1
    # A process that has died once may die again: what is left is read outside this one.
    assert asked[1:] == [(["c"], True), (["d"], True)]
    assert asked[0][0] == ["a", "b", "c", "d"]
    nights = {Path(night["path"]).stem: night for night in json.loads((tmp_path / "report.json").read_text())["files"]}
    assert list(nights) == ["a", "b", "c", "d"]
    assert [name for name, night in nights.items() if night["failure"]] == ["c"]
    told = f"{tmp_path / 'c.edf'}: the process that read it died, perhaps because memory ran out."
    assert nights["c"]["failure"] == told
    assert text.count(told) >= 1


def test_nights_without_scoring_are_grouped_by_reason():
    def night(name, action):
        return Finding("warning", "no_scoring", (f"cohort/{name}.edf",), "", "no scoring was found", action)

    findings = [night(f"s{i}", f"name its file like the recording (s{i}.csv)") for i in range(9)]
    findings += [night(f"t{i}", f"the file t{i}.csv was not used: cohort/t{i}.csv is empty") for i in range(9)]
    lines = finding_lines(findings)[1:]
    assert len(lines) == 2
    assert "9 recordings, such as s0.edf" in lines[0]
    assert "t0.csv was not used" in lines[1]
