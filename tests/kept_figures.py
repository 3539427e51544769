"""What commands compute of inputs that are formulas, to be compared with what they computed before.

``python tests/kept_figures.py`` writes kept_figures.json again. It refuses figures that changed while the number of
their definitions did not (CONTRIBUTING.md, "Change a definition").
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from known_nights import ECG, EEG, FLOW, write_known_night
from nights import Lead
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import compare, features, few_shot, preprocess, probe, retrieve
from sleepfm_fast.annotations import clip_labels, read_scoring
from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation.classification import HeldOut, conclude, log_odds
from sleepfm_fast.filters import KINDS, PRESETS, FilterBank
from sleepfm_fast.results import read_result
from sleepfm_fast.scoring.labels import LABEL_RULES
from sleepfm_fast.storage.definitions import definitions_of
from sleepfm_fast.store.kept_scales import VERSION as AMPLITUDES

FILE = Path(__file__).with_suffix(".json")
Figures = dict[str, Any]

START = datetime(2020, 3, 1, 22, 0, 0)
SCORINGS = {
    "a.csv": "onset,duration,stage\n"
    + "".join(f"{17 + 30 * i},30,{s}\n" for i, s in enumerate(("W", "N1", "N2", "S4", "MT", "R", "?", "W")))
    + "47,14,Obstructive apnea\n150,4,Hypopnea\n171,400,Central Apnea\n",
    "changes.csv": "onset;stage\n0;Wach\n300;N1\n390,5;N2\n900;REM\n1200;Wach\n",
    "clock.txt": "Time\tEvent\tDuration\n22:00:10\tSleep stage 1\t30\n22:00:40\tSleep stage 2\t30\n"
    "22:00:50\tHypopnea\t11,5\n22:01:10\tSleep stage R\t30\n22:01:40\tMovement\t30\n",
    "epochs.txt": "".join(f"{code}\n" for code in "0000122233344221555500001222233312255500"),
    "ucddb002_respevt.txt": "Time      Type      PB/CS  Duration  Desaturation     Snore Arousal  B/T\n"
    "22:00:10  HYP-C                13      91.4     3.1   -     +\n22:04:50  APNEA-O              25      88\n",
}


class Group(NamedTuple):
    """Figures that one number of definitions stands for."""

    number: int
    compute: Callable[[Path], Figures]
    remedy: str
    tolerance: float = 1e-4
    """Of a figure, relative or absolute: solvers and transforms of another version of a library may differ by less."""


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Uniform in -1..1, by a hash of the place: NumPy's generators may give other numbers in another version."""
    x = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64((seed + 1) << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # SplitMix64's finaliser
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x >> np.uint64(11)).astype(np.float64) / 2**52 - 1).reshape(shape)


def labels(folder: Path) -> Figures:
    """Stages and events of scorings of several kinds."""
    found = {}
    for name, text in SCORINGS.items():
        (folder / name).write_text(text, encoding="utf-8")
        scoring = read_scoring(folder / name, start=START, length_s=1200)
        grid = clip_labels(scoring, 1200)
        found[name] = {key: getattr(grid, key).tolist() for key in ("onsets_s", "stage", "sdb")}
    return found


def night(seed: int) -> list[tuple[Lead, np.ndarray]]:
    """Ten minutes whose rhythms drift: every kind of channel that features are made of."""
    seconds = 600
    t = np.arange(seconds * 100) / 100
    eeg = (20 + 10 * np.sin(2 * np.pi * t / 200)) * np.sin(2 * np.pi * (10 + seed) * t)
    eeg += 40 * np.sin(2 * np.pi * t / 90) ** 2 * np.sin(2 * np.pi * 1.5 * t) + 5 * noise(t.size, seed=seed)
    beats, beat = [], 0.5
    while beat < seconds - 1:
        beats.append(beat)
        beat += 0.85 + 0.05 * np.sin(2 * np.pi * 0.25 * beat) + 0.03 * np.sin(2 * np.pi * 0.08 * beat + seed)
    ecg = 0.01 * noise(t.size, seed=seed + 10)
    for beat in beats:
        ecg += np.exp(-0.5 * ((t - beat) / 0.012) ** 2) + 0.3 * np.exp(-0.5 * ((t - beat - 0.28) / 0.045) ** 2)
    slow = np.arange(seconds * 25) / 25
    effort = 20 * np.sin(2 * np.pi * (0.25 * slow + 0.3 * np.sin(2 * np.pi * slow / 120)))
    flow = effort * (1 - 0.8 * ((slow % 150) > 120)) + noise(slow.size, seed=seed + 20)
    spo2 = 96 - 6 * (((np.arange(seconds) + seed) % 150) > 135)
    others = (Lead("Thorax", 25, "", 100.0), effort), (Lead("Abdomen", 25, "", 100.0), -0.7 * np.roll(effort, 5))
    return [(EEG, eeg), (ECG, ecg), (FLOW, flow), *others, (Lead("SpO2", 1, "%", 127.0), spo2.astype(float))]


def store_of(folder: Path) -> Path:
    """Three nights of formulas as a clip store."""
    (edf := folder / "edf").mkdir()
    for seed in range(3):
        write_known_night(edf / f"night{seed}.edf", night(seed), stages=["W", "2"] * 10)
    given = [edf, folder / "store", "--workers", "1", "--montage", "aasm"]
    assert preprocess.cli([str(part) for part in given]) == 0
    return folder / "store"


def amplitudes(folder: Path) -> Figures:
    """Centre and scale of every channel, by the filters of every preset."""
    store, found = ClipStore(store_of(folder)), {}
    for preset in PRESETS:
        clip_input = ClipInput(store, store.montage, InputConfig(filters=preset), "cpu")
        clip_input.measure(np.arange(3), iter)
        found[preset] = {key: getattr(clip_input.scales, key).tolist() for key in ("centre", "scale")}
    return found


def measured(folder: Path) -> Figures:
    """Every feature of three clips of each night."""
    given = [store_of(folder), folder / "features", "--backend", "threading", "--workers", "1"]
    assert features.cli([str(part) for part in given]) == 0
    e = Embeddings(folder / "features")
    rows = np.flatnonzero(np.isin(np.asarray(e.clip), (0, 7, 19)))
    values = e.read(rows)
    return {
        f"{modality} {name}": values[:, m, k].tolist()
        for m, modality in enumerate(e.modalities)
        for k, name in enumerate(e.features[modality])
    }


TONES_HZ = (0.0, 0.05, 0.2, 0.5, 5.0, 12.0, 40.0, 80.0)


def filters(folder: Path) -> Figures:
    """The gain of every filter of every preset at eight frequencies."""
    found = {}
    for preset in PRESETS:
        bank = FilterBank(preset, 256)
        for kind in KINDS:
            for fs_hz in (25, 128, 200, 512):
                found[f"{preset} {kind} {fs_hz}"] = bank.design(bank.index(kind, fs_hz)).gain(TONES_HZ).tolist()
    return found


def vectors_of(folder: Path) -> Path:
    """Embeddings of sixteen subjects that tell the stage, the events, the age and the sex, each with noise."""
    split = np.array([0] * 9 + [1] * 2 + [2] * 5, np.int8)
    subject = np.repeat(np.arange(16), 40)
    chance = noise(subject.size, 2, seed=1)
    stage, sdb = np.floor((chance[:, 0] + 1) * 2.5).astype(int), (chance[:, 1] > 0.5).astype(int)
    x = noise(subject.size, 3, 10, seed=2)
    x[np.arange(subject.size), :, stage] += 0.4
    x[:, :, 5] += 0.5 * sdb[:, None]
    x[:, :, 6] += (0.1 * subject)[:, None]
    x[:, :, 7] += 0.5 * (subject % 2)[:, None]
    x += 0.5 * noise(subject.size, 1, 10, seed=3)  # what the modalities of a clip have in common
    people = {"ages": tuple(30.0 + 3 * i for i in range(16)), "sexes": tuple("FM"[i % 2] for i in range(16))}
    columns = columns_of(subject, split[subject], stage=stage, sdb=sdb)
    return write_folder(folder / "embeddings", x, columns, **people)


def result(command: Any, folder: Path, *arguments: object) -> Figures:
    """The figures of a command's result."""
    out = folder / f"{command.__name__.rpartition('.')[2]}-{len(list(folder.iterdir()))}"
    assert command.cli([str(a) for a in (*arguments, out)]) == 0
    record = read_result(out).record
    return {name: record[name] for name in sorted(record) if name in FIGURES}


FIGURES = ("classes", "macro", "accuracy", "cohen_kappa", "confusion", "prior", "calibration", "nights", "directions")
FIGURES += ("mean", "summary")
TASKS = ("stage", "sdb", "age", "sex")


def probed(folder: Path) -> Figures:
    """The probe of every task."""
    e = vectors_of(folder)
    return {task: result(probe, folder, "--task", task, "--bootstraps", 20, e) for task in TASKS}


def drawn(folder: Path) -> Figures:
    """The curve over numbers of subjects."""
    options = ("--task", "stage", "--subjects", 1, 4, "--replicates", 2)
    return result(few_shot, folder, *options, vectors_of(folder))


def retrieved(folder: Path) -> Figures:
    """Retrieval among the clips of the test subjects."""
    return result(retrieve, folder, vectors_of(folder))


def compared(folder: Path) -> Figures:
    """Two classifiers, by formulas, of which one is more often right."""
    embeddings = Embeddings(vectors_of(folder))
    clips, classes = embeddings.clips_of("test"), np.arange(5, dtype=np.int8)
    labels = np.asarray(embeddings.stage)[clips]
    for name, right, seed in (("a", 2.0, 4), ("b", 1.0, 5)):
        odds = log_odds(right * (labels[:, None] == classes) + 2 * noise(clips.size, 5, seed=seed))
        about = {"command": "probe", "task": "stage", "embeddings": str(embeddings.path), "modalities": ["ecg"]}
        held_out = HeldOut.of(embeddings, clips, labels)
        conclude(about, held_out, odds, classes, bootstraps=20, seed=0, path=folder / name)
    return result(compare, folder, "--bootstraps", 20, folder / "a", folder / "b")


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and word of nested figures, and where it stands."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{place}/{name}")
    elif isinstance(value, list):
        for k, part in enumerate(value):
            yield from leaves(part, f"{place}/{k}")
    else:
        yield place, value


def alike(one: Any, two: Any, tolerance: float) -> bool:
    """Whether two figures are the same but for rounding; NaN is NaN."""
    if float in (type(one), type(two)) and {type(one), type(two)} <= {int, float}:
        return bool(np.isclose(one, two, rtol=tolerance, atol=tolerance, equal_nan=True))
    return bool(one == two)


def changes(kept: Figures, now: Figures, tolerance: float) -> list[str]:
    """Where figures differ, and by what; what is new differs from nothing."""
    here = dict(leaves(now))
    pairs = {place: (before, here.get(place, "nothing")) for place, before in leaves(kept)}
    return [f"{place}: {a} before, {b} now" for place, (a, b) in pairs.items() if not alike(a, b, tolerance)]


def additions(kept: Figures, now: Figures) -> list[str]:
    """Where there was no figure before, as of another preset of filters."""
    return sorted(dict(leaves(now)).keys() - dict(leaves(kept)).keys())


def rounded(value: Any) -> Any:
    """Seven digits, which the tolerances do not see."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def computed(name: str, folder: Path) -> dict[str, Any]:
    """What is kept of a group."""
    return {"number": GROUPS[name].number, "figures": rounded(GROUPS[name].compute(folder))}


def kept() -> dict[str, Any]:
    """What was computed before."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


RAISE = "raise {} and say in CHANGELOG.md, under 'To compute again', what to repeat"
NUMBER = RAISE.format("its number in sleepfm_fast/storage/definitions.py")
GROUPS = {
    "labels": Group(LABEL_RULES, labels, RAISE.format("LABEL_RULES in sleepfm_fast/scoring/labels.py")),
    "amplitudes": Group(AMPLITUDES, amplitudes, RAISE.format("VERSION in sleepfm_fast/store/kept_scales.py")),
    "filters": Group(
        1, filters, "give the filters a preset of another name: runs name the preset they were trained on"
    ),
    **{
        command: Group(definitions_of(command), compute, NUMBER)
        for command, compute in {
            "features": measured,
            "probe": probed,
            "few_shot": drawn,
            "retrieve": retrieved,
            "compare": compared,
        }.items()
    },
}


def refusals(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for every group whose figures changed while its number did not."""
    said = []
    for name, group in GROUPS.items():
        if name in before and before[name]["number"] == now[name]["number"]:
            found = changes(before[name]["figures"], now[name]["figures"], group.tolerance)
            if found:
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                said.append(
                    f"{name}: the same inputs give other figures than before ({'; '.join(found[:3])}{more}). If that "
                    f"is meant, {group.remedy}; then run python tests/kept_figures.py."
                )
    return said


def main() -> int:
    """Compute all and keep it, if nothing changed under its number."""
    now = {}
    for name in GROUPS:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            now[name] = computed(name, Path(folder))
    if said := refusals(kept(), now):
        print("\n".join(said), file=sys.stderr)
        return 1
    # What did not change keeps its digits, so that the file shows what did.
    before = kept()
    same = {
        name
        for name, part in now.items()
        if before.get(name, {}).get("number") == part["number"]
        and not additions(before[name]["figures"], part["figures"])
    }
    lines = [f"{json.dumps(name)}: {json.dumps(before[name] if name in same else part)}" for name, part in now.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
