"""The evaluation at the size of the paper, once, to the end: 90,000 candidates, a probe on 1.2 million clips.

``python bench/paper_size.py FOLDER OUT.json`` writes a folder of synthetic embeddings (8 GB) where there is none, runs
the commands on it, each in its own process, and keeps what they printed with their time and memory. A single reading;
what compares is in test_evaluation.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np

MODALITIES = ("respiratory", "brain", "ecg")
# Thapa et al. (2024), Table 1: training and test participants and clips, and the retrieval of their Tables 4 and 5.
TRAIN_SUBJECTS, TRAIN_CLIPS = 1_265, 1_190_392
TEST_SUBJECTS, TEST_CLIPS, CANDIDATES = 1_401, 1_314_267, 90_000
BATCH = 4096


def write(folder: Path, n_train: int, n_test: int, dim: int) -> None:
    """Write clips whose three vectors share a part, and lean towards their stage's axis."""
    from tqdm import tqdm

    from sleepfm_fast.embeddings import Description
    from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter

    rng = np.random.default_rng(0)
    n = n_train + n_test
    train_subjects, test_subjects = (
        max(1, s * k // t) for s, k, t in ((TRAIN_SUBJECTS, n_train, TRAIN_CLIPS), (TEST_SUBJECTS, n_test, CANDIDATES))
    )
    subject = np.concatenate(
        [np.arange(n_train) * train_subjects // n_train, train_subjects + np.arange(n_test) * test_subjects // n_test]
    )
    stage = rng.choice(5, n, p=(0.21, 0.07, 0.51, 0.09, 0.12))
    _, first = np.unique(subject, return_index=True)
    clip = np.arange(n) - first[subject]
    with EmbeddingWriter(folder, n, MODALITIES, dim) as writer:
        for start in tqdm(range(0, n, BATCH), desc="embeddings", unit="batch"):
            rows = stage[start : start + BATCH]
            x = rng.standard_normal((len(rows), 1, dim), np.float32) + rng.standard_normal(
                (len(rows), 3, dim), np.float32
            )
            x[np.arange(len(rows)), :, rows] += 2.0
            writer.append(x)
        names = tuple(f"s{i:04d}" for i in range(train_subjects + test_subjects))
        columns = {
            "recording": subject,
            "clip": clip,
            "onset_s": clip * 30.0,
            "stage": stage,
            "sdb": np.full(n, -1),
            "subject": subject,
            "split": np.where(np.arange(n) < n_train, 0, 2),
        }
        nobody = (None,) * len(names)
        writer.finish(columns, Description(names, names, nobody, nobody, "synthetic", "synthetic", "first and rest"))


def watched(arguments: list[str]) -> dict[str, Any]:
    """Run a command to the end: its JSON, seconds, and peak memory, without and with pages of mapped files."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)
    peak = {"RssAnon": 0, "VmRSS": 0}

    def watch() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = status.read_text(encoding="utf-8").splitlines()
            except OSError:
                return
            for name in peak:
                peak[name] = max([peak[name], *(int(x.split()[1]) for x in lines if x.startswith(f"{name}:"))])
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"error: {' '.join(arguments)} failed with status {process.returncode}.")
    return {
        "command": " ".join(["python -m", *arguments]),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_anonymous_mib": round(peak["RssAnon"] / 1024),
        "peak_resident_mib": round(peak["VmRSS"] / 1024),
        "result": json.loads(out.splitlines()[-1]),
    }


def sizes(folder: Path) -> dict[str, int]:
    """Read what a folder of embeddings holds; it may be an older one of other sizes than are asked for."""
    from sleepfm_fast.embeddings import Embeddings

    embeddings = Embeddings(folder)
    clips = {f"{split}_clips": int(embeddings.clips_of(split).size) for split in ("train", "test")}
    return {**clips, "dim": embeddings.dim}


def bootstraps() -> dict[str, Any]:
    """Time 1,000 resamples of the paper's test subjects for five classes."""
    from sleepfm_fast.evaluation.figures import evaluate
    from sleepfm_fast.evaluation.tasks import TASKS

    rng = np.random.default_rng(0)
    labels = rng.choice(5, TEST_CLIPS, p=(0.21, 0.07, 0.51, 0.09, 0.12)).astype(np.int8)
    score = rng.standard_normal((TEST_CLIPS, 5), np.float32)
    score[np.arange(TEST_CLIPS), labels] += 1.5
    subject = (np.arange(TEST_CLIPS) * TEST_SUBJECTS // TEST_CLIPS).astype(np.int32)
    trained = np.arange(5, dtype=np.int8)
    evaluate(score[:1000], trained, labels[:1000], subject[:1000], TASKS["stage"], 10, 0, progress=False)
    started = time.perf_counter()
    evaluate(score, trained, labels, subject, TASKS["stage"], 1000, 0)
    seconds = round(time.perf_counter() - started, 1)
    return {"what": f"{TEST_CLIPS} clips of {TEST_SUBJECTS} subjects, 5 classes, 1000 resamples", "seconds": seconds}


def main() -> None:
    """Write what is missing, measure, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train-clips", type=int, default=TRAIN_CLIPS, help="of a folder that is yet to be written")
    parser.add_argument("--test-clips", type=int, default=CANDIDATES)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--only", choices=("retrieve", "probe", "bootstraps"))
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        write(arguments.folder, arguments.train_clips, arguments.test_clips, arguments.dim)
    document = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    held = sizes(arguments.folder)
    steps = {
        "bootstraps": bootstraps,
        "retrieve": lambda: watched(["sleepfm_fast.retrieve", str(arguments.folder)]),
        "probe": lambda: watched(
            ["sleepfm_fast.probe", str(arguments.folder), "--task", "stage", "--solver", "blocks"]
        ),
    }
    for name, step in steps.items():
        if arguments.only in (None, name):
            about = {} if name == "bootstraps" else {"sizes": held}
            document[name] = {**about, **step(), "machine": machine.record()}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
