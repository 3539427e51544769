"""The CUDA kernel's own source compiled for the host, a block being a set of fibers: arithmetic, tiles, barriers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from filter_batch import snr_db

from sleepfm_fast import _C, reference
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops.registry import DTYPE_CODES

ROOT = Path(__file__).resolve().parents[1]
WORKSPACE_FLOATS = 10240
ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here to compile the CUDA kernel for the host")
    path = tmp_path_factory.mktemp("cuda_on_cpu") / "filter_resample.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    source = ROOT / "tests" / "cuda_on_cpu" / "filter_resample.cpp"
    command = [compiler, *flags, f"-I{ROOT / 'csrc'}", f"-I{source.parent}", str(source), "-o", str(path)]
    subprocess.run(command, check=True, timeout=300)
    return ctypes.CDLL(str(path))


class Kernel:
    """Calls the kernel on a batch: a ragged set of windows in one clip."""

    def __init__(self, library: ctypes.CDLL, bank: FilterBank, dtype: type = np.int16) -> None:
        self.library, self.bank, self.dtype = library, bank, dtype
        self.raw: list[np.ndarray] = [np.full(9, np.iinfo(dtype).max, dtype)]
        self.rows: list[list[int]] = []
        self.calibration: list[tuple[float, ...]] = []
        self.barriers = 0

    def add(self, x: np.ndarray, f: int, start: int = 0, first: int = 0, phase: int = 0) -> None:
        self.rows.append([sum(len(r) for r in self.raw), len(x), start, first, phase, f])
        self.calibration.append((0.25, 3.0, 1.0, 2.0))
        self.raw += [x.astype(self.dtype), np.full(3, np.iinfo(self.dtype).min, self.dtype)]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        calibration = torch.tensor(self.calibration).reshape(1, -1, 4)
        return torch.from_numpy(np.concatenate(self.raw)), torch.tensor([self.rows]), calibration

    def run(
        self,
        n_out: int,
        *,
        dtype: torch.dtype = torch.float32,
        normalise: str = "none",
        shared_limit_bytes: int = 99 * 1024,
        workspace_floats: int = WORKSPACE_FLOATS,
        threads: int = 32,
        order: str = "forward",
        skipped_barrier: int = -1,
    ) -> torch.Tensor:
        raw, table, calibration = self.tensors()
        filters, taps = self.bank.tensors()
        out = torch.full((1, len(self.rows), n_out), -7.0, dtype=dtype)
        barriers = ctypes.c_int(0)
        status = self.library.filter_resample_on_cpu(
            *(ctypes.c_void_p(raw.data_ptr()), ctypes.c_int64(raw.numel()), raw.element_size()),
            *(ctypes.c_void_p(table.data_ptr()), ctypes.c_void_p(calibration.data_ptr())),
            *(ctypes.c_int64(1), ctypes.c_int64(len(self.rows))),
            *(ctypes.c_void_p(filters.data_ptr()), ctypes.c_int64(len(filters))),
            *(ctypes.c_void_p(taps.data_ptr()), ctypes.c_int64(taps.numel())),
            *(ctypes.c_void_p(out.data_ptr()), DTYPE_CODES[dtype], ctypes.c_int64(n_out), normalise == "zscore"),
            *(ctypes.c_int64(shared_limit_bytes), ctypes.c_int64(workspace_floats), ctypes.c_int64(threads)),
            *(ORDERS[order], skipped_barrier, ctypes.byref(barriers)),
        )
        assert status == 0, {1: "a barrier that not all threads reach", 2: "a write beyond shared memory"}[status]
        self.barriers = barriers.value
        return out

    def truth(self, n_out: int, normalise: str = "none") -> torch.Tensor:
        return reference.filter_resample(*self.tensors(), self.bank, n_out, dtype=torch.float64, normalise=normalise)


def mixed(library: ctypes.CDLL, dtype: type = np.int16) -> Kernel:
    kernel = Kernel(library, FilterBank("aasm", 256), dtype)
    rng = np.random.default_rng(1)
    for kind, rate in (
        ("eeg", "200"),
        ("ecg", "256"),
        ("respiration", "25"),
        ("step", "1"),
        ("emg", "512"),
        ("eeg", "204.85"),
    ):
        fs_hz = Fraction(rate)
        f = kernel.bank.index(kind, fs_hz)
        phase = int(rng.integers(kernel.bank.up(f)))
        kernel.add(
            rng.integers(-3000, 3000, int(20 * fs_hz) + 2), f, start=100, first=100 + int(2 * fs_hz), phase=phase
        )
    kernel.rows.insert(2, [0, 0, 0, 0, 0, 0])
    kernel.calibration.insert(2, (0.0, 0.0, 0.0, 0.0))
    return kernel


@pytest.mark.parametrize("normalise", ["none", "zscore"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_agrees_with_float64(library: ctypes.CDLL, dtype: type, order: str, normalise: str) -> None:
    kernel = mixed(library, dtype)
    n_out = 2301
    got, truth = kernel.run(n_out, normalise=normalise, order=order), kernel.truth(n_out, normalise)
    for c in range(7):
        if c == 2:
            assert torch.equal(got[0, c], torch.zeros(n_out))
        else:
            assert snr_db(got[0, c], truth[0, c]) > 100.0


@pytest.mark.parametrize("preset", ["seed", "clinical", "none"])
@pytest.mark.parametrize("rate", ["1", "32", "100", "128", "256", "500", "2048"])
def test_rates_of_the_other_presets(library: ctypes.CDLL, preset: str, rate: str) -> None:
    kernel = Kernel(library, FilterBank(preset, 256))
    rng = np.random.default_rng(2)
    f = kernel.bank.index("eeg", Fraction(rate))
    kernel.add(rng.integers(-3000, 3000, int(9 * Fraction(rate)) + 2), f, first=int(Fraction(rate)))
    got, truth = kernel.run(1100), kernel.truth(1100)
    assert snr_db(got, truth) > 100.0


def test_small_tiles_and_filtering_twice_change_nothing_but_rounding(library: ctypes.CDLL) -> None:
    """Tiles of any size; a z-score whose outputs do not fit into shared memory is filtered twice."""
    kernel = mixed(library)
    n_out = 1501
    for normalise in ("none", "zscore"):
        truth = kernel.truth(n_out, normalise)
        for workspace_floats in (1500, 2503, WORKSPACE_FLOATS):
            for shared_limit_bytes in (41 * 1024, 99 * 1024):
                got = kernel.run(
                    n_out, normalise=normalise, workspace_floats=workspace_floats, shared_limit_bytes=shared_limit_bytes
                )
                for c in (0, 1, 3, 4, 5, 6):
                    assert snr_db(got[0, c], truth[0, c]) > 100.0, (normalise, workspace_floats, shared_limit_bytes, c)


@pytest.mark.parametrize("threads", [1, 8, 64, 256])
def test_any_block_size(library: ctypes.CDLL, threads: int) -> None:
    kernel = mixed(library)
    got, truth = kernel.run(1000, normalise="zscore", threads=threads), kernel.truth(1000, "zscore")
    for c in (0, 1, 3, 4, 5, 6):
        assert snr_db(got[0, c], truth[0, c]) > 100.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_out", [1, 3, 4, 1000, 1001])
def test_half_precision_and_ragged_rows(library: ctypes.CDLL, dtype: torch.dtype, n_out: int) -> None:
    kernel = mixed(library)
    assert torch.equal(kernel.run(n_out, dtype=dtype), kernel.run(n_out).to(dtype))


def test_same_bits_whatever_the_order_of_the_threads(library: ctypes.CDLL) -> None:
    kernel = mixed(library)
    runs = [kernel.run(1777, normalise="zscore", order=order) for order in ORDERS]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_missing_barrier_is_noticed(library: ctypes.CDLL) -> None:
    """Leaving out barriers one by one changes the result in at least one order: the runs above do look at barriers."""
    kernel = Kernel(library, FilterBank("aasm", 256))
    rng = np.random.default_rng(3)
    kernel.add(rng.integers(-3000, 3000, 4000), kernel.bank.index("eeg", 200), first=900)
    expected = kernel.run(1200, normalise="zscore", workspace_floats=2000)
    assert kernel.barriers > 20
    noticed = 0
    for skipped in range(kernel.barriers):
        results = [
            kernel.run(1200, normalise="zscore", workspace_floats=2000, order=order, skipped_barrier=skipped)
            for order in ORDERS
        ]
        noticed += any(not torch.equal(result, expected) for result in results)
    # Not noticeable here: the two trees for minimum and maximum, which only decide what is flat, and barriers that
    # another one next to them covers (a tile's last and the next tile's first).
    assert noticed >= kernel.barriers // 2


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, -1),
        (0, 1 << 62),
        (1, -3),
        (1, 1 << 62),
        (2, 1 << 50),
        (3, -1),
        (3, 1 << 40),
        (4, -1),
        (4, 32),
        (5, -1),
        (5, 9),
    ],
)
def test_impossible_rows_give_nan_and_read_nothing(library: ctypes.CDLL, column: int, value: int) -> None:
    kernel = Kernel(library, FilterBank("aasm", 256))
    x = np.random.default_rng(4).integers(-100, 100, 500)
    f = kernel.bank.index("eeg", 200)
    kernel.add(x, f)
    kernel.add(x, f)
    kernel.rows[0][column] = value
    got = kernel.run(64)
    assert torch.isnan(got[0, 0]).all()
    assert torch.isfinite(got[0, 1]).all()


def test_longest_filter_fits_into_the_workspace(library: ctypes.CDLL) -> None:
    kernel = Kernel(library, FilterBank("aasm", 256, 50))
    f = kernel.bank.index("emg", 3800)
    assert kernel.bank.describe(f)["taps_per_output"] > 5800
    kernel.add(np.random.default_rng(5).integers(-3000, 3000, 8000), f, first=3000)
    assert snr_db(kernel.run(100), kernel.truth(100)) > 100.0
    geometry = _C.filter_resample_launch(1, 1, 7680, True, 99 * 1024)
    assert geometry["workspace_floats"] == WORKSPACE_FLOATS
