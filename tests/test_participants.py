"""The participants table: any header, any delimiter; which row is which recording."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from nights import write_night

from sleepfm_fast import preprocess
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.cohorts.participant_tables import ParticipantTables, read_tables
from sleepfm_fast.cohorts.participants import Participant, Participants
from sleepfm_fast.cohorts.participants_file import read_participants
from sleepfm_fast.errors import SleepfmError


def table(tmp_path: Path, content: str | bytes) -> Participants:
    path = tmp_path / "participants.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_participants(path)


@pytest.mark.parametrize(
    "content",
    [
        "recording,subject,age,sex\nn1.edf,S,40.5,F\n",
        "File Name;Subject_ID;AGE (years);Gender\nn1;S;40,5;female\n",
        "\ufeffsex\tage\tparticipant_id\tfile\nw\t40.5\tS\tn1.edf\n",
        "recording,subject,age,sex\nn1.edf,S,40.5,F\n".encode("utf-16"),
        "\nrecording,subject,age,sex,remark\r\n\r\nn1.edf,S,40.5,F,\xe9\r\n".encode("latin-1"),
    ],
)
def test_headers_delimiters_and_encodings(tmp_path: Path, content: str | bytes) -> None:
    person = table(tmp_path, content).of(Path("/data/n1.edf"))
    assert (person.subject, person.age, person.sex) == ("S", 40.5, "F")


def test_a_table_that_does_not_exist_can_be_done_without(tmp_path: Path) -> None:
    with pytest.raises(SleepfmError, match=r"participants\.csv does not exist\..* recording, subject, age, sex, or"):
        read_participants(tmp_path / "participants.csv")


@pytest.mark.parametrize(
    ("name", "path", "found"),
    [
        ("n1", "/d/n1.edf", True),
        ("N1.EDF", "/d/n1.edf", True),
        ("d/n1.edf", "/d/n1.edf", True),
        ("./d\\n1.edf", "/d/n1.edf", True),
        ("/d/n1", "/d/n1.edf", True),
        ("e/n1.edf", "/d/n1.edf", False),
        ("n1.bdf", "/d/n1.edf", False),
        ("n", "/d/n1.edf", False),
        ("n.1", "/d/n.1.edf", True),
        ("n.1", "/d/n.1", True),
    ],
)
def test_a_recording_is_named_by_the_end_of_its_path(tmp_path: Path, name: str, path: str, found: bool) -> None:
    rows = table(tmp_path, f"recording,subject\n{name},S\n")
    assert rows.of(Path(path)).subject == ("S" if found else Path(path).stem)
    assert rows.unknown_recordings([Path(path)]) == ([] if found else [name])


def test_the_longest_name_wins(tmp_path: Path) -> None:
    rows = table(tmp_path, "recording,subject\nn1,anywhere\nb/n1,in b\n")
    assert rows.of(Path("/a/n1.edf")).subject == "anywhere"
    assert rows.of(Path("/b/n1.edf")).subject == "in b"


def test_subjects_alone_name_their_nights(tmp_path: Path) -> None:
    rows = table(tmp_path, "participant_id,age,sex\nsub-1,30,M\nsub-10,60,F\nsub-1_ses-2,31,M\n")
    assert rows.of(Path("sub-1_ses-1_eeg.edf")) == Participant(None, "sub-1", 30.0, "M")
    assert rows.of(Path("sub-10_ses-1_eeg.edf")) == Participant(None, "sub-10", 60.0, "F")
    assert rows.of(Path("sub-1_ses-2_eeg.edf")).age == 31
    assert rows.of(Path("sub-2.edf")) == Participant(None, "sub-2", None, None)


def test_subjects_alone_name_the_nights_of_their_folders(tmp_path: Path) -> None:
    rows = table(tmp_path, "subject;age;sex\ns1;61,5;w\ns2;31;m\nsite;9;m\n")
    assert rows.of(Path("/data/site/s1/night1.edf")) == Participant(None, "s1", 61.5, "F")
    assert rows.of(Path("/data/site/S2/visit/night1.edf")).subject == "s2"
    assert rows.of(Path("/s1/a/b/c/night1.edf")).subject == "night1", "three folders are looked at"
    assert rows.of(Path("/data/s1/s2.edf")).subject == "s2", "the file's own name comes first"


def test_an_nsrrid_also_ends_the_names_of_its_nights(tmp_path: Path) -> None:
    rows = "nsrrid,visitnumber,nsrr_age,nsrr_sex\n200001,1,55,male\naa0002,1,71.5,female\n1,1,40,female\n"
    nights = table(tmp_path, rows)
    one, two = nights.of(Path("edfs/shhs1/shhs1-200001.edf")), nights.of(Path("mros-visit1-aa0002.edf"))
    assert (one.subject, one.age, one.sex) == ("200001", 55, "M")
    assert (two.subject, two.age, two.sex) == ("aa0002", 71.5, "F")
    assert nights.find(Path("shhs1-1200001.edf")) is None, "the whole of what follows a separator"
    # Elsewhere the end of a name tells the night, not the subject.
    other = table(tmp_path, rows.replace("nsrrid", "subject"))
    assert other.find(Path("shhs1-200001.edf")) is None
    assert other.find(Path("200001_1.edf")) == 0
    assert nights.find(Path("200001_1.edf")) == 0, "the beginning comes first"


def test_cells_that_say_nothing_are_empty_and_wrong_ones_reported(tmp_path: Path) -> None:
    rows = table(tmp_path, "recording,age,sex\na,n/a,?\nb,about 90,x\nc,-4,\n,5,M\nd\n")
    assert rows.rows == (
        Participant("a", None, None, None),
        Participant("b", None, None, "x"),
        Participant("c", None, None, None),
        Participant("d", None, None, None),
    )
    assert [("about 90" in i, "-4" in i, "neither" in i) for i in rows.issues] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (False, False, True),
    ]
    assert "the sex 'x' of 1 row is neither male nor female" in rows.issues[-1]


def test_a_folders_table_counts_below_it_only(tmp_path: Path) -> None:
    for site, subject in (("x", "SX"), ("y", "SY")):
        (tmp_path / site).mkdir()
        (tmp_path / site / "participants.csv").write_text(f"recording,subject\nn1,{subject}\n")
    tables = read_tables(None, [tmp_path / "x", tmp_path / "y"])
    assert tables.of(tmp_path / "x" / "n1.edf").subject == "SX"
    assert tables.of(tmp_path / "y" / "sub" / "n1.edf").subject == "SY"
    assert tables.of(tmp_path / "n1.edf").subject == "n1"
    assert tables.unknown_recordings([tmp_path / "x" / "n1.edf"]) == ["n1"]


def test_tables_of_folders_are_found_and_said_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("x/participants.tsv", "recording\tsubject\tsex\nn1\tSX\tx\nn5\tSX\tF\n"),
        ("y/participants.csv", "recording,subject\nn1,SY\n"),
        ("y/participants.tsv", "recording\tsubject\nn1\tOTHER\nn2\tOTHER\n"),
        ("z/participants.csv/content", ""),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    tables = read_tables(None, [Path("x"), Path("y"), Path("z")])
    assert tables.rows == 3
    paths = [tmp_path / name for name in ("x/n1.edf", "y/n1.edf", "y/n5.edf", "z/n1.edf")]
    assert [tables.of(path).subject for path in paths] == ["SX", "SY", "n5", "n1"]
    assert tables.unknown_recordings(iter(paths)) == ["n5"]
    said = tables.notices(iter(paths))
    assert any("the sex 'x' of 1 row" in sentence for sentence in said)
    assert any("that are not in the participants table: 2 (such as n5.edf)" in sentence for sentence in said)
    assert ParticipantTables().notices(iter([Path("/d/n5.edf")])) == []
    named = read_tables(tmp_path / "y" / "participants.csv", [tmp_path / "x"])
    assert [named.of(path).subject for path in paths] == ["SY", "SY", "n5", "SY"]


def test_one_file_name_in_several_folders_is_one_subject_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("s1/psg", "s2/psg", "s3/psg", "s3/other"):
        path = tmp_path / "nights" / f"{name}.edf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_night(path)
    assert preprocess.cli([str(tmp_path / "nights"), str(tmp_path / "store")]) == 0
    assert "1 file name occurs in several folders (such as psg, in 3; no table names them)" in capsys.readouterr().err
    assert sorted(ClipStore(tmp_path / "store").subjects) == ["other", "psg"]
    people = tmp_path / "people.csv"
    people.write_text("recording,subject\ns1/psg.edf,A\ns2/psg.edf,A\ns3/psg.edf,B\n")
    assert preprocess.cli([str(tmp_path / "nights"), str(tmp_path / "store"), "--participants", str(people)]) == 0
    assert sorted(ClipStore(tmp_path / "store").subjects) == ["A", "B", "other"]
    assert "occur in several folders" not in capsys.readouterr().err
    # a row that names them by the file name alone counts for all of them, and that is said
    people.write_text("recording,subject\npsg,A\nother.edf,B\n")
    assert preprocess.cli([str(tmp_path / "nights"), str(tmp_path / "store"), "--participants", str(people)]) == 0
    assert sorted(ClipStore(tmp_path / "store").subjects) == ["A", "B"]
    assert "psg, in 3; the table names them by the file name alone" in capsys.readouterr().err


def test_shared_names_are_those_that_no_row_tells_apart(tmp_path: Path) -> None:
    paths = [Path(f"/d/{name}.edf") for name in ("a/n1", "b/n1", "a/S7", "b/S7", "a/x", "b/y")]

    def shared(content: str) -> list[str]:
        (tmp_path / "p.csv").write_text(content)
        return sorted(read_tables(tmp_path / "p.csv", []).shared_names(paths))

    assert shared("recording,subject\nz,Z\n") == ["S7", "n1"]
    assert shared("recording,subject\nn1,A\nS7,S7\n") == ["S7", "n1"]
    assert shared("recording,subject\na/n1,A\nb/n1,B\n") == ["S7"]
    assert shared("recording,subject\na/n1,A\n") == ["S7"]  # the other one is told apart by having no row
    # a row of a subject, without a recording, is meant for all nights of that subject
    assert shared("participant_id,age\nS7,40\n") == ["n1"]


@pytest.mark.parametrize(
    ("sexes", "expected", "said"),
    [
        ("1 2 2 0", ["M", "F", "F", None], "1 is taken as male and 2 as female (ISO 5218)"),
        ("0 1 1 0", ["0", "1", "1", "0"], "the sex '0' of 2 rows is neither male nor female"),
        ("male F x M", ["M", "F", "x", "M"], "the sex 'x' of 1 row is neither male nor female"),
        ("m f Female n/a", ["M", "F", "F", None], ""),
    ],
)
def test_sexes_that_are_coded_or_not_understood_are_said(tmp_path, sexes, expected, said):
    rows = [f"n{i},s{i},{sex}" for i, sex in enumerate(sexes.split())]
    (tmp_path / "p.csv").write_text("\n".join(["recording,subject,sex", *rows]))
    table = read_participants(tmp_path / "p.csv")
    assert [row.sex for row in table.rows] == expected
    assert said in " ".join(table.issues)
    assert bool(table.issues) == bool(said)


def test_a_subject_of_two_sexes_is_said(tmp_path):
    (tmp_path / "p.csv").write_text("recording,subject,sex\na,A,m\nb,A,f\nc,B,f\nd,B,F\n")
    assert read_participants(tmp_path / "p.csv").issues == (
        "p.csv: the subject A has the sexes F and M in several rows.",
    )


@pytest.mark.parametrize(
    ("names", "twice"),
    [("n1 n1.edf", True), ("n1.EDF N1", True), ("n1.edf n1.bdf", False), ("a/n1.edf n1.edf", False)],
)
def test_a_recording_named_with_and_without_its_suffix_is_named_twice(tmp_path, names, twice):
    (tmp_path / "p.csv").write_text("recording,subject\n" + "\n".join(f"{n},S{i}" for i, n in enumerate(names.split())))
    if twice:
        with pytest.raises(SleepfmError, match="in rows 2 and 3; keep one row each"):
            read_participants(tmp_path / "p.csv")
    else:
        assert len(read_participants(tmp_path / "p.csv").rows) == 2


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["S01_night1", "S01_night2", "S02_night1"], [["S01_night1", "S01_night2"]]),
        (["SC4011E0-PSG", "SC4012E0-PSG", "SC4021E0-PSG"], [["SC4011E0-PSG", "SC4012E0-PSG"]]),
        (["shhs1-200001", "shhs2-200001", "shhs1-200002"], [["shhs1-200001", "shhs2-200001"]]),
        (["sub-1_ses-1_eeg", "sub-1_ses-2_eeg", "sub-2_ses-1_eeg"], [["sub-1_ses-1_eeg", "sub-1_ses-2_eeg"]]),
        (["p7_n1", "p7_n2", "p8_n1"], [["p7_n1", "p7_n2"]]),
        (["S01_diag", "S01_CPAP", "S02_CPAP"], [["S01_diag", "S01_CPAP"]]),
        (["S01", "S01 part 2", "S01-part1b", "S02"], [["S01", "S01 part 2"]]),
        (["x-pre-cpap-07", "x-titration-07", "x-baseline-08"], [["x-pre-cpap-07", "x-titration-07"]]),
        (["CPAP", "diagnostic", "S1_papaya", "S1_diagonal", "S1_parting"], []),
        (["night1", "night2", "n1", "n2", "a1", "a2", "chat-baseline-300001", "chat-baseline-300002"], []),
        (["depart1", "depart2", "a_n1x", "a_n2x"], []),  # words that only hold or begin like one
        (["sim-0000", "sim-0001", "mesa-sleep-0001", "mesa-sleep-0002", "tr03-0005", "tr03-0029"], []),
    ],
)
def test_names_that_look_like_nights_of_one_person_are_said(tmp_path, names, groups):
    paths = [Path("/data") / f"{name}.edf" for name in names]
    found = ParticipantTables().perhaps_one_person(paths)
    assert [[path.stem for path in group] for group in found] == groups
    assert sum("nights of one person" in notice for notice in ParticipantTables().notices(paths)) == bool(groups)
    rows = "".join(f"{name}.edf,S\n" for name in names)
    named = ParticipantTables(((None, table(tmp_path, "recording,subject\n" + rows)),))
    assert named.perhaps_one_person(paths) == []
    # a table of recordings that calls none a subject's tells no more than the names
    rows = "".join(f"{name}.edf,{name.upper()}\n" for name in names)
    repeating = ParticipantTables(((None, table(tmp_path, "recording,subject\n" + rows)),))
    assert repeating.perhaps_one_person(paths) == found
    repeating = ParticipantTables(((None, table(tmp_path, "ID;Name\n" + "".join(f"{n};Ana\n" for n in names))),))
    assert repeating.perhaps_one_person(paths) == found


@pytest.mark.parametrize(
    "word", ["night", "Nacht", "nuit", "noche", "notte", "visit", "session", "ses", "recording", "rec", "n", "v"]
)
@pytest.mark.parametrize("between", ["_", "-", " "])
def test_nights_in_several_languages(word, between):
    paths = [Path(f"/data/S1{between}{word}{k}.edf") for k in (1, 2)]
    assert ParticipantTables().perhaps_one_person(paths) == [paths]


@pytest.mark.parametrize(
    "names",
    [
        *([f"S1_{word}1", f"S1_{word}2"] for word in ["part", "Teil", "partie", "parte", "deel", "half"]),
        *(
            [f"S1_{word}", "S1"]
            for word in [
                "CPAP",
                "APAP",
                "BiPAP",
                "bi-PAP",
                "PAP",
                "autoPAP",
                "diag",
                "diagnostic",
                "titration",
                "split",
            ]
        ),
        *(
            [f"S1-{word}-x", "S1-x"]
            for word in ["baseline", "basal", "pre", "post", "treatment", "therapy", "follow-up", "followup"]
        ),
        ["ST7011J0-PSG", "ST7012JP-PSG"],
        ["SHHS1-200001", "shhs2-200001"],
    ],
    ids=lambda names: names[0],
)
def test_parts_of_a_night_and_nights_under_treatment(names):
    paths = [Path(f"/data/{name}.edf") for name in names]
    assert ParticipantTables().perhaps_one_person(paths) == [paths]


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("Datei;Proband;Alter;Geschlecht", "n1.edf;S1;45,5;weiblich", (45.5, "F")),
        ("recording;subject;Age at PSG;Sex (M/F)", "n1.edf;S1;45;m", (45.0, "M")),
        ("fichier;sujet;âge;sexe", "n1.edf;S1;45;Féminin", (45.0, "F")),
        ("recording;subject;Età;Sesso", "n1.edf;S1;45;maschio", (45.0, "M")),
        ("recording;subject;leeftijd;geslacht", "n1.edf;S1;45;v", (45.0, "F")),
        ("sep=;\r\nrecording;subject;age;sex", "n1.edf;S1;45;w", (45.0, "F")),
    ],
)
def test_columns_and_words_of_other_languages(tmp_path, header, cells, expected):
    found = table(tmp_path, f"\ufeff{header}\r\n{cells}\r\n")
    assert found.of(Path("n1.edf")) == Participant("n1.edf", "S1", *expected)
    assert found.issues == ()


@pytest.mark.parametrize(
    ("cells", "expected", "said"),
    [
        ("H M M", ["M", "F", "F"], "M as female"),
        ("H F F", ["M", "F", "F"], "H is taken as male"),
        ("M F M", ["M", "F", "M"], ""),
        ("1.0 2.0 nan", ["M", "F", None], "1 is taken as male and 2 as female (ISO 5218)"),
        ("0 1 2", [None, "M", "F"], "(ISO 5218), 0 as not known."),
        ("0.0 1.0 1.0", ["0.0", "1.0", "1.0"], "neither male nor female"),
        ("2 2 nan", ["2", "2", None], "the sex '2' of 2 rows is neither male nor female"),  # MrOS: men are 2
        ("1 1 1", ["1", "1", "1"], "neither male nor female"),
    ],
)
def test_letters_and_codes_are_told_by_the_others(tmp_path, cells, expected, said):
    rows = "".join(f"n{i}.edf,S{i},{cell}\n" for i, cell in enumerate(cells.split()))
    found = table(tmp_path, "recording,subject,sex\n" + rows)
    assert [row.sex for row in found.rows] == expected
    assert any(said in issue for issue in found.issues) if said else not found.issues


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("sex (F=1)", "1 2 2", ["F", "M", "M"]),  # Sleep-EDF's SC-subjects.xls
        ("M1/F2", "1 2 2", ["M", "F", "F"]),  # and its ST-subjects.xls
        ("sex (F=1)", "1 0 0", ["F", "M", "M"]),
        ("Gender [0: female, 1: male]", "1 0 nan", ["M", "F", None]),
        ("Sex (M=2)", "2 2 2", ["M", "M", "M"]),
        ("Sex (M/F)", "M F F", ["M", "F", "F"]),
    ],
)
def test_what_a_columns_name_says_of_its_codes_counts(tmp_path, header, cells, expected):
    rows = "".join(f"n{i}.edf,S{i},{cell}\n" for i, cell in enumerate(cells.split()))
    found = table(tmp_path, f'recording,subject,"{header}"\n' + rows)
    assert [row.sex for row in found.rows] == expected
    assert not any("ISO" in issue or "neither" in issue or "no column" in issue for issue in found.issues)


def test_ages_in_months_are_no_years(tmp_path):
    found = table(tmp_path, "recording,subject,age (months),sex\nn1.edf,S1,30,F\n")
    assert found.rows[0].age is None
    assert "no column is recognised as age" in found.issues[0]


@pytest.mark.parametrize(
    ("text", "age", "said"),
    [
        ("90+", 90, "p.csv, row 2: the age '90+' is taken as 90."),
        (">89", 89, "p.csv, row 2: the age '>89' is taken as 89."),
        ("≥ 90", 90, "p.csv, row 2: the age '≥ 90' is taken as 90."),
        ("89 and over", 89, "p.csv, row 2: the age '89 and over' is taken as 89."),
        ("45 years", 45, None),
        ("45,5 y", 45.5, None),
        (".5", 0.5, None),
        ("+4.5e1", 45, None),
        ("<18", None, "the age '<18' is not a number of years"),
        ("131+", None, "the age '131+' is not a number of years"),
        ("6 months", None, "the age '6 months' is not a number of years"),
        ("40-50", None, "the age '40-50' is not a number of years"),
        ("1_0", None, "the age '1_0' is not a number of years"),
        ("years", None, "the age 'years' is not a number of years"),
    ],
)
def test_an_age_may_have_its_unit_or_be_a_bound(tmp_path, text, age, said):
    (tmp_path / "p.csv").write_text(f'recording,subject,age,sex\nn1,a,"{text}",F\n', encoding="utf-8")
    found = read_participants(tmp_path / "p.csv")
    assert found.rows[0].age == age
    assert [said in issue for issue in found.issues] == ([] if said is None else [True])


def test_bounds_of_many_are_counted(tmp_path):
    rows = "".join(f"n{i},s{i},90+,F\n" for i in range(9))
    (tmp_path / "p.csv").write_text(f"recording,subject,age,sex\n{rows}")
    found = read_participants(tmp_path / "p.csv").issues
    assert found == ("p.csv, row 2: the age '90+' is taken as 90.", "p.csv: 8 more ages are bounds.")


def test_a_row_for_every_night_of_one_person(tmp_path):
    found = table(tmp_path, "subject,night,age,sex\nS1,1,33,F\nS1,2,33,F\nS2,1,41,M\n")
    assert [(row.subject, row.age) for row in found.rows] == [("S1", 33), ("S2", 41)]
    assert found.of(Path("S1_night2.edf")).age == 33
    with pytest.raises(SleepfmError, match="names 's1' in rows 2 and 3"):
        table(tmp_path, "subject,night,age,sex\nS1,1,33,F\nS1,2,34,F\n")
    assert table(tmp_path, "subject,night,age\nS1,n1.edf,33\nS1,n2.edf,33\n").of(Path("n2.edf")).subject == "S1"


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(range(256)), b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(500)])
def test_a_spreadsheet_is_refused_by_name(tmp_path, content):
    with pytest.raises(SleepfmError, match=r"is a spreadsheet \(.*save it as CSV"):
        table(tmp_path, content)


@pytest.mark.parametrize("name", ["PID", "subject_code", "Patient Number", "study id", "SID"])
def test_other_names_of_a_subject(tmp_path, name):
    assert table(tmp_path, f"{name},age\nS1,40\n").of(Path("S1_night1.edf")).age == 40


def test_a_column_that_may_be_the_age_is_named(tmp_path):
    found = table(tmp_path, "recording,subject,Lebensjahre,sex\nn1.edf,S1,45,F\n")
    (said,) = found.issues
    assert "no column is recognised as age" in said
    assert "name it age: Lebensjahre" in said
    assert not table(tmp_path, "recording,subject\nn1.edf,S1\n").issues, "nothing was passed over"


def test_one_person_written_in_two_ways_is_said(tmp_path):
    found = table(tmp_path, "recording,subject\na,S01\nb,s01\nc,S1\nd,S 2\ne,S_2\nf,S12\ng,S1-2\n")
    (said,) = found.issues
    assert "S01, s01, S1; S 2, S_2)" in said
    assert len({row.subject for row in found.rows}) == 7, "said, and not changed"


def test_accents_are_one_character_or_two(tmp_path):
    composed, apart = unicodedata.normalize("NFC", "Bésuch"), unicodedata.normalize("NFD", "Bésuch")
    assert composed != apart
    for written, there in ((composed, apart), (apart, composed)):
        by_recording = table(tmp_path, f"recording,subject\n{written}.edf,S1\n")
        assert by_recording.of(Path(f"/n/{there}.edf")).subject == "S1"
        by_subject = table(tmp_path, f"subject,age\n{written},45\n")
        assert by_subject.of(Path(f"/n/{there}_night1.edf")).age == 45


def test_of_a_cohort_s_hundreds_of_columns_those_that_may_be_meant_come_first(tmp_path: Path) -> None:
    table = tmp_path / "shhs1-dataset.csv"
    names = [*(f"pct{i}" for i in range(200)), "age_s1", "average"]
    table.write_text(f"nsrrid,{','.join(names)},gender\n200001,{','.join('5' for _ in names)},2\n")
    (said,) = (issue for issue in read_participants(table).issues if "no column is recognised as age" in issue)
    assert "if one of these is meant, rename it age: age_s1, average, pct0" in said


@pytest.mark.parametrize(
    ("rows", "ages", "people"),
    [
        # What one row leaves empty, another of the same subject says.
        ("a1,A,,F\na2,A,61.5,\n", [61.5, 61.5], {"age": 61.5, "sex": "F"}),
        # Each night at its own age; the subject at that of the first.
        ("a1,A,61.5,F\na2,A,63,F\n", [61.5, 63.0], {"age": 61.5, "sex": "F"}),
        ("a1,A,,\na2,A,,\n", [None, None], {"age": None, "sex": None}),
    ],
)
def test_a_subject_is_what_all_of_its_rows_say(tmp_path, rows, ages, people):
    (tmp_path / "nights").mkdir()
    for seed, name in enumerate(("a1", "a2")):
        write_night(tmp_path / "nights" / f"{name}.edf", seed=seed)
    (tmp_path / "nights" / "participants.csv").write_text(f"recording,subject,age,sex\n{rows}")
    assert preprocess.cli([str(tmp_path / "nights"), str(tmp_path / "store"), "--workers", "1"]) == 0
    store = ClipStore(tmp_path / "store")
    assert [r.age for r in store.recordings] == ages
    assert store.participants == {"A": people}


def test_subjects_that_may_be_one_are_named_in_a_table_of_subjects(tmp_path):
    (issue,) = table(tmp_path, "subject,age,sex\nS01,40,F\ns1,40,F\nS2,50,M\n").issues
    assert "names of subjects differ only in case, separators or leading zeros (S01, s1)" in issue
