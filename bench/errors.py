"""Errors of the loss and of the filter against float64, with each instruction set that this processor has.

``python bench/errors.py NAME`` writes bench/results/NAME.json; ``python bench/report.py`` draws the tables of
docs/kernels/contrastive-loss.md and docs/kernels/filter-resample.md from it. Results do not depend on threads or runs,
so nothing is repeated. It takes a minute or two.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import torch
from store import write
from torch import Tensor

import sleepfm_fast
from sleepfm_fast import ops, reference
from sleepfm_fast.filters import FilterBank

HERE = Path(__file__).resolve().parent
M, N, D = 3, 2048, 512
SCALES = (1.0, 14.3, 100.0)  # exp(log_temperature); CLIP's initial one is 14.3, its largest 100
ROWS = ("random rows", "modalities 0.1 apart")
PYTORCH = "PyTorch, float32"  # the twin at the kernels' precision: what rounding alone makes of its operations
FILTER_SETS = ("avx2", "avx512")  # amx filters as avx512, bit for bit
LOSS_SETS = (*FILTER_SETS, "amx")
FS_OUT_HZ, CLIP_S, N_OUT = 256, 30, 7680
AMPLITUDE = 2000  # of white noise, in digital steps: 12 bits
DRIFT_HZ, DRIFT = 0.03, 30_000  # a slow wave that nearly fills 16 bits


class Filter(NamedTuple):
    """A filter of the table: preset, kind of channel, its rate, and the mains frequency that it removes."""

    preset: str
    kind: str
    fs_hz: int
    notch_hz: int | None = None


FILTERS = (
    Filter("aasm", "eeg", 100),
    Filter("aasm", "eeg", 200),
    Filter("aasm", "eeg", 512),
    Filter("aasm", "eeg", 2048),
    Filter("aasm", "emg", 200),
    Filter("aasm", "emg", 512, 50),
    Filter("aasm", "ecg", 256),
    Filter("aasm", "respiration", 32),
    Filter("none", "eeg", 200),
    Filter("seed", "eeg", 200),
    Filter("clinical", "eeg", 512),
)


def embeddings(rows: str) -> Tensor:
    """Return [M, N, D] float32 of no unit length: random, or of one vector a sample with a tenth of noise on it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(M, N, D, generator=generator)
    if rows == ROWS[1]:
        x = torch.randn(N, D, generator=generator) + 0.1 * x
    return x * (0.5 + torch.rand(M, N, 1, generator=generator))


def loss(function: Callable[..., Any], rows: str, scale: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return value, gradient of x and ranks, leave-one-out."""
    x, tau = embeddings(rows).to(dtype).requires_grad_(), torch.tensor(math.log(scale)).to(dtype)
    value, statistics = function(x, tau, mode="leave_one_out")
    value.backward()
    return {"loss": value.detach(), "gradient": x.grad, "ranks": statistics.ranks}


def loss_errors(got: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors, of the gradient also against each row's largest element; ranks that differ."""
    error, gradient = got["gradient"].double() - truth["gradient"], truth["gradient"]
    return {
        "gradient_rms": float(error.norm() / gradient.norm()),
        "gradient_largest": float((error.abs() / gradient.abs().amax(-1, keepdim=True)).max()),
        "loss": float((got["loss"].double() - truth["loss"]).abs() / truth["loss"]),
        "ranks_moved": int((got["ranks"] != truth["ranks"]).sum()),
    }


def filtered(operation: Callable[..., Tensor], which: Filter, x: np.ndarray, **options: Any) -> Tensor:
    """Return two clips out of the middle of a recording, with the context that they need."""
    bank = FilterBank(which.preset, FS_OUT_HZ, which.notch_hz)
    f, clip = bank.index(which.kind, which.fs_hz), CLIP_S * which.fs_hz
    table = torch.zeros(2, 1, 6, dtype=torch.int64)
    for row, first in zip(table[:, 0], (clip, 2 * clip), strict=True):
        start, stop = max(first - bank.context(f), 0), min(first + clip + bank.context(f), len(x))
        row[0], row[1], row[2], row[3], row[5] = start, stop - start, start, first, f
    calibration = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(2, 1, 4).contiguous()
    return operation(torch.from_numpy(x), table, calibration, bank, N_OUT, normalise="none", **options)


def recordings(fs_hz: int) -> dict[str, np.ndarray]:
    """Return two minutes of white noise and of a drift, int16."""
    n = 4 * CLIP_S * fs_hz
    noise = np.random.default_rng(0).integers(-AMPLITUDE, AMPLITUDE, n).astype(np.int16)
    drift = np.rint(DRIFT * np.sin(2 * np.pi * DRIFT_HZ * np.arange(n) / fs_hz)).astype(np.int16)
    return {"noise": noise, "drift": drift}


def decibels(size: float, error: float) -> float:
    """How far an error lies below a size; both are sums of squares."""
    return 10 * math.log10(size / error)


def filter_errors(got: dict[str, Tensor], truth: dict[str, Tensor], fs_hz: int) -> dict[str, float]:
    """Errors below the filtered noise, and below the drift as it went in: a high-pass leaves little of it."""
    error = {name: float((got[name].double() - truth[name]).square().mean()) for name in truth}
    drift = float(np.square(recordings(fs_hz)["drift"], dtype=np.float64).mean())
    noise = float(truth["noise"].square().mean())
    return {"noise_db": decibels(noise, error["noise"]), "drift_db": decibels(drift, error["drift"])}


def ours() -> dict[str, list[dict[str, Tensor]]]:
    """Return what this process's instruction set gives for all cases."""
    return {
        "loss": [loss(ops.contrastive_loss, rows, s, torch.float32) for rows in ROWS for s in SCALES],
        "filter": [
            {name: filtered(ops.filter_resample, which, x) for name, x in recordings(which.fs_hz).items()}
            for which in FILTERS
        ],
    }


def ours_with(instruction_set: str) -> dict[str, list[dict[str, Tensor]]]:
    """Return the same of a process that is told its instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.pt"
        command = [sys.executable, __file__, "--results-of-this-set", str(path)]
        subprocess.run(command, env={**os.environ, "SLEEPFM_CPU": instruction_set}, check=True)
        return dict(torch.load(path, weights_only=True))


def measured(sets: list[str]) -> dict[str, Any]:
    """Compute the truth of every case once, and compare all instruction sets with it."""
    got = {name: ours_with(name) for name in sets}
    losses = []
    for i, (rows, scale) in enumerate((rows, s) for rows in ROWS for s in SCALES):
        truth = loss(reference.contrastive_loss, rows, scale, torch.float64)
        twin = loss(reference.contrastive_loss, rows, scale, torch.float32)
        errors = {name: loss_errors(got[name]["loss"][i], truth) for name in sets}
        losses.append({"rows": rows, "scale": scale, "errors": errors | {PYTORCH: loss_errors(twin, truth)}})
    filters = []
    for i, which in enumerate(FILTERS):
        truth = {
            name: filtered(reference.filter_resample, which, x, dtype=torch.float64)
            for name, x in recordings(which.fs_hz).items()
        }
        errors = {
            name: filter_errors(got[name]["filter"][i], truth, which.fs_hz) for name in sets if name in FILTER_SETS
        }
        filters.append({**which._asdict(), "errors": errors})
    return {
        "loss": {"M": M, "N": N, "D": D, "cases": losses},
        "filter": {"amplitude": AMPLITUDE, "drift_hz": DRIFT_HZ, "drift": DRIFT, "cases": filters},
    }


def main(argv: list[str] | None = None) -> int:
    """Measure with every instruction set of this processor and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", help="of the file in --results")
    what.add_argument("--results-of-this-set", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args(argv)
    if arguments.results_of_this_set:
        torch.save(ours(), arguments.results_of_this_set)
        return 0
    sets = [name for name in LOSS_SETS if name in sleepfm_fast.build_info()["cpu_instruction_sets"]]
    document = {"kind": "errors", "name": arguments.name, "machine": machine.record(), **measured(sets)}
    write(document, arguments.results / f"{arguments.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
