"""Whether heart rate finds the breath it belongs to, without any training; docs/simulator.md shows the outcome.

A question beside ``couplings.py``, whose trained encoders take the easiest way between ECG and respiration: is sinus
arrhythmia in the simulated signals, and is it gone with its coupling? The matcher knows nothing but heart rate. It
finds the beats in the ECG, takes the rate in the band of breathing, and ranks the belt's clips by their largest
correlation with it over lags of up to 1.5 s. ``python bench/sinus_arrhythmia.py`` runs it and writes
``bench/results/simulator-sinus-arrhythmia.json``; ``--doc`` redraws the table of docs/simulator.md from that file.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import couplings
import machine
import numpy as np
import numpy.typing as npt
import report
from scipy import signal
from tqdm import tqdm

from sleepfm_fast.baselines.heart_rate import beats_of_piece, plausible
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.simulator.physiology import Physiology
from sleepfm_fast.simulator.polysomnograph import FS_ECG_HZ, FS_RESPIRATION_HZ, Polysomnograph
from sleepfm_fast.simulator.sleeper import Couplings, Random

RESULT = couplings.HERE / "results" / "simulator-sinus-arrhythmia.json"
DOC = couplings.DOC
BEGIN, END = "<!-- sinus-arrhythmia:begin -->", "<!-- sinus-arrhythmia:end -->"
ARMS = ("everything on", "no sinus arrhythmia", "sinus arrhythmia as the only tie of the heart", "heart on its own")
SUBJECTS, EPOCHS = 42, 30  # as many clips as the trained encoders are tested on
FS_HZ, BAND_HZ, MOST_LAG_S, K = 4, (0.12, 0.6), 1.5, 10
N_RESAMPLES = 1000

Array = npt.NDArray[np.float64]


def breathing_band(x: Array) -> Array:
    """Leave what changes with the breath, of a series at 4 Hz."""
    return np.asarray(signal.sosfiltfilt(signal.butter(3, BAND_HZ, "bandpass", fs=FS_HZ, output="sos"), x))


def heart_and_breath(subject: int, switched: Couplings) -> tuple[Array, Array]:
    """Heart rate from the beats of the ECG, and the chest belt, at 4 Hz in the band of breathing."""
    sensors = Polysomnograph(Physiology(Random(couplings.COHORT_SEED, subject), EPOCHS, switched))
    n = EPOCHS * EPOCH_S * FS_HZ
    at_s = np.arange(n) / FS_HZ
    beats_s = beats_of_piece(sensors.ecg().astype(np.float64), FS_ECG_HZ).time_s
    rr_s = np.diff(beats_s)
    good = plausible(rr_s)
    rate = np.interp(at_s, (beats_s[1:] - rr_s / 2)[good], 60 / rr_s[good])
    belt = sensors.belt(0).astype(np.float64).reshape(n, FS_RESPIRATION_HZ // FS_HZ).mean(axis=1)
    return breathing_band(rate), breathing_band(belt)


def similarity(rate: Array, belt: Array) -> Array:
    """Largest correlation of every clip of the one [n, time] with every clip of the other over the lags: [n, n]."""
    most, n_time = round(MOST_LAG_S * FS_HZ), rate.shape[1]

    def standard(x: Array) -> Array:
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    best = np.full((len(rate), len(belt)), -1.0)
    for lag in range(-most, most + 1):
        a, b = max(lag, 0), max(-lag, 0)
        length = n_time - abs(lag)
        np.maximum(best, standard(rate[:, a : a + length]) @ standard(belt[:, b : b + length]).T, out=best)
    return best


def estimate(per_query: Array, chance: float) -> dict[str, float]:
    """Mean over queries with its 95 % interval over subjects (all have as many clips)."""
    of_subject = per_query.reshape(SUBJECTS, EPOCHS).mean(axis=1)
    draws = np.random.default_rng(0).integers(0, SUBJECTS, (N_RESAMPLES, SUBJECTS))
    low, high = np.percentile(of_subject[draws].mean(axis=1), (2.5, 97.5))
    return {"value": float(of_subject.mean()), "low": float(low), "high": float(high), "chance": chance}


def run_arm(name: str) -> dict[str, Any]:
    """Match the clips of one arm in both directions."""
    off = couplings.ARMS[name].off
    switched = Couplings(**dict.fromkeys(off, 0.0))
    series = [heart_and_breath(i, switched) for i in tqdm(range(SUBJECTS), desc=name, unit="sleeper")]
    rate, belt = (np.concatenate(s).reshape(SUBJECTS * EPOCHS, EPOCH_S * FS_HZ) for s in zip(*series, strict=True))
    alike = similarity(rate, belt)
    n = len(alike)
    found: dict[str, Any] = {"off": [c.replace("_", "-") for c in off]}
    for direction, matrix in (("heart rate -> breath", alike), ("breath -> heart rate", alike.T)):
        # Rank 1 is the best; the own clip stands behind those that are as similar.
        rank = (matrix >= np.diagonal(matrix)[:, None]).sum(axis=1)
        found[f"{direction} recall@{K}"] = estimate((rank <= K).astype(np.float64), K / n)
        found[f"{direction} mean rank"] = estimate((rank - 1) / (n - 1), 0.5)
    return found


def tables(document: dict[str, Any]) -> str:
    """Draw what docs/simulator.md shows."""
    heads = [f"{d} {f}" for d in ("heart rate -> breath", "breath -> heart rate") for f in (f"recall@{K}", "mean rank")]
    lines = [f"| arm | {' | '.join(heads)} |", f"|{' --- |' * (1 + len(heads))}"]
    for name, arm in document["arms"].items():
        lines.append(f"| {name} | {' | '.join(couplings.cell(arm[head], 3) for head in heads)} |")
    m = document["machine"]
    lines += [
        "",
        f"`bench/results/{document['name']}.json`, made by `bench/sinus_arrhythmia.py` at commit {m['commit']}.",
    ]
    return "\n".join(lines)


def redrawn(page: str, document: dict[str, Any]) -> str:
    """Return a page with the table between its marks."""
    return report.rewritten(page, tables(document), BEGIN, END)


def main(argv: list[str] | None = None) -> int:
    """Run the arms, or draw the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doc", action="store_true", help="redraw the table of docs/simulator.md and stop")
    if parser.parse_args(argv).doc:
        DOC.write_text(redrawn(DOC.read_text(encoding="utf-8"), json.loads(RESULT.read_text())), encoding="utf-8")
        return 0
    document = {
        "kind": "experiment",
        "name": RESULT.stem,
        "machine": machine.record(),
        "cohort": {"subjects": SUBJECTS, "hours": EPOCHS * EPOCH_S / 3600, "seed": couplings.COHORT_SEED},
        "arms": {name: run_arm(name) for name in ARMS},
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
