"""Tables and XML of a scoring, damaged at random: they are read, or refused by name, and nothing else."""

from __future__ import annotations

import re
from datetime import datetime

import numpy as np
import pytest

from sleepfm_fast.annotations import read_scoring
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.scoring.labels import clip_labels
from sleepfm_fast.scoring.lights import lights_of
from sleepfm_fast.scoring.respiratory_counts import respiratory_counts

START, SECONDS = datetime(2020, 1, 1, 22), 1200
STAGES = ["Wake", "N1", "N2", "N2", "N3", "REM"]
EPOCHS = [(30 * i, STAGES[i % 6]) for i in range(40)]
CLOCK = [f"22:{s // 60:02d}:{s % 60:02d}" for s, _ in EPOCHS]
EVENTS = [(400, 20, "Hypopnea"), (500, 15, "Obstructive apnea")]
XML = "".join(
    f"<ScoredEvent><EventType>{kind}|{kind}</EventType><EventConcept>{text}|{code}</EventConcept>"
    f"<Start>{s}</Start><Duration>{long}</Duration></ScoredEvent>\n"
    for kind, text, code, s, long in [
        *(("Stages", "Stage 2 sleep", 2, s, 30) for s, _ in EPOCHS),
        *(("Respiratory", text, text, s, long) for s, long, text in EVENTS),
    ]
)
WHOLE = {
    "a.csv": "onset,duration,stage\n" + "".join(f"{s},30,{stage}\n" for s, stage in EPOCHS) + "400,20,Hypopnea\n",
    "b.csv": "Epoch;Stage\n" + "".join(f"{i + 1};{stage}\n" for i, (_, stage) in enumerate(EPOCHS)),
    "c.tsv": "Time\tDuration\tEvent\n"
    + "".join(f"{at}\t00:00:30\t{stage}\n" for at, (_, stage) in zip(CLOCK, EPOCHS, strict=True)),
    "d.csv": "Epoch,Clock,Stage\n"
    + "".join(f"{i + 1},{at},{s[1]}\n" for i, (at, s) in enumerate(zip(CLOCK, EPOCHS, strict=True))),
    "e.txt": "\n".join("W1223R"[i % 6] for i in range(40)),
    "f.txt": "Signal ID: SchlafProfil\\profil\nStart Time: 01.01.2020 22:00:00\nUnit: \nSignal Type: Discret\n"
    "Events list: N3,N2,N1,REM,Wach\nRate: 30 s\n\n"
    + "".join(f"{at},000; {s[1]}\n" for at, s in zip(CLOCK, EPOCHS, strict=True)),
    "g.txt": "RemLogic Event Export\nPatient:\tX\nRecording Date:\t01/01/2020\n\n"
    "Sleep Stage\tPosition\tTime [hh:mm:ss]\tEvent\tDuration[s]\tLocation\n"
    + "".join(f"S{i % 4}\tSupine\t{at}\tSLEEP-S{i % 4}\t30\tROC-LOC\n" for i, at in enumerate(CLOCK)),
    "h.xml": '<?xml version="1.0" encoding="UTF-8"?><PSGAnnotation><SoftwareVersion>Compumedics</SoftwareVersion>'
    f"<EpochLength>30</EpochLength><ScoredEvents>\n{XML}</ScoredEvents></PSGAnnotation>",
}
BITS = [
    *("nan", "inf", "-inf", "1e308", "1e-320", "-1", "-0", "9" * 20, "0x10", "1_000", "1 000", "1.000,5", "½", "٣", ""),
    *("24:00:00", "25:61:61", "00:00:00,5", "12:00:00 AM", "01/02/2020 23:00:00", "2020-13-45T99:00", "30s", "30000"),
    *('"', "'", ";", "\t", ",", "\0", "\r", "\n\n", "\u2028", "\ufeff", "\x1a", "#", "?", "=1+1", "N2", "Wake"),
    *("<", "&#0;", "&amp;", "<!DOCTYPE a [<!ENTITY b 'c'>]>", "</ScoredEvent>", "<ScoredEvent/>", "Obstructive apnea"),
]
SEPARATORS = [",", ";", "\t", ":", " "]
ENCODINGS = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"]


def damaged(text: str, rng: np.random.Generator) -> str:
    for _ in range(int(rng.integers(1, 5))):
        lines, at, kind = text.split("\n"), int(rng.integers(0, len(text) + 1)), int(rng.integers(0, 8))
        bit, i, j = str(rng.choice(BITS)), *map(int, rng.integers(0, len(lines), 2))
        if kind == 0:
            text = text[:at] + bit + text[at:]
        elif kind == 1:
            words = [word.span() for word in re.finditer(r"[^\s,;<>\"]+", text)] or [(0, 0)]
            begin, end = words[int(rng.integers(0, len(words)))]
            text = text[:begin] + bit + text[end:]
        elif kind == 2:
            text = text[:at] + text[at + int(rng.integers(1, 60)) :]
        elif kind == 3:
            text = text[:at]
        elif kind == 4:
            lines[i], lines[j] = lines[j], lines[i]
            text = "\n".join(lines)
        elif kind == 5:
            text = "\n".join([*lines[:i], *[lines[i]] * int(rng.integers(1, 4)), *lines[i:]])
        elif kind == 6:
            text = text.replace(str(rng.choice(SEPARATORS)), str(rng.choice(SEPARATORS)))
        else:  # one column of all rows
            separator, column = max(",;\t", key=text.count), int(rng.integers(0, 5))
            cells = [line.split(separator) for line in lines]
            text = "\n".join(
                separator.join(bit if place == column else cell for place, cell in enumerate(row)) for row in cells
            )
    return text


@pytest.mark.parametrize("name", WHOLE)
def test_any_text_is_read_or_refused(name, tmp_path):
    rng = np.random.default_rng(list(WHOLE).index(name))
    path = tmp_path / name
    path.write_text(WHOLE[name], encoding="utf-8")
    whole = read_scoring(path, start=START, length_s=SECONDS)
    assert (clip_labels(whole, SECONDS).stage[:40] >= 0).all()
    n_read, refused = 0, []
    for _ in range(250):
        path.write_bytes(damaged(WHOLE[name], rng).encode(str(rng.choice(ENCODINGS)), errors="replace"))
        start = START if rng.random() < 0.8 else None
        length_s = float(rng.choice([0.0, 600.0, SECONDS, 28800.0])) if rng.random() < 0.8 else None
        try:
            scoring = read_scoring(path, start=start, length_s=length_s)
            grid = clip_labels(scoring, length_s or SECONDS)
            counts = respiratory_counts(scoring, grid)
        except SleepfmError as error:
            refused.append(str(error))
            continue
        n_read += 1
        assert set(grid.stage.tolist()) <= set(range(-1, 5))
        assert all(np.isfinite(onset_s) for onset_s in (*grid.onsets_s, *lights_of(scoring).values()))
        assert counts is None or min(counts.values()) >= 0
    assert n_read > 5, "lists without times are read only where they fill the recording"
    assert len(refused) > 25
    assert all(sentence.startswith(str(path)) for sentence in refused)
