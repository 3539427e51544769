"""The CUDA kernel of filter_resample, its own source run on the host by tests/cuda_on_cpu, against float64."""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pytest
import torch
from emulated_cuda import ADVERSARIAL, KernelError, Kernels, Run, compile_kernels, unnoticed
from filter_batch import snr_db

from sleepfm_fast import _C, reference
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops.filter_resample import NORMALISATIONS
from sleepfm_fast.ops.registry import DTYPE_CODES

LEAST_FLOATS = 10240
# Dynamic shared memory that a block of compute capability 8.6 may have beside the kernel's own.
SHARED_LIMIT_BYTES = 93 * 1024
PLAN_FIELDS = ("shape", "period", "advance", "row_floats", "groups", "repeats", "taps", "chunk", "tile", "slice")
PLAN_FIELDS += ("sample_floats", "low_floats", "padded", "resident", "kept_floats")
AHEAD = Run()


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels("filter_resample.cpp")


class Kernel:
    """Calls the kernel on a batch: a ragged set of windows in one clip."""

    def __init__(self, kernels: Kernels, bank: FilterBank, dtype: type = np.int16) -> None:
        self.kernels, self.bank, self.dtype = kernels, bank, dtype
        self.raw: list[np.ndarray] = [np.full(9, np.iinfo(dtype).max, dtype)]
        self.rows: list[list[int]] = []
        self.calibration: list[tuple[float, ...]] = []
        self.barriers = 0

    def add(self, x: np.ndarray, f: int, start: int = 0, first: int = 0, phase: int = 0, gain: float = 0.25) -> None:
        self.rows.append([sum(len(r) for r in self.raw), len(x), start, first, phase, f])
        self.calibration.append((gain, 3.0, 1.0, 2.0))
        self.raw += [x.astype(self.dtype), np.full(3, np.iinfo(self.dtype).min, self.dtype)]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        calibration = torch.tensor(self.calibration).reshape(1, -1, 4)
        return torch.from_numpy(np.concatenate(self.raw)), torch.tensor([self.rows]), calibration

    def run(
        self,
        n_out: int,
        run: Run = AHEAD,
        *,
        dtype: torch.dtype = torch.float32,
        normalise: str = "none",
        shared_limit_bytes: int = SHARED_LIMIT_BYTES,
        workspace_floats: int = 0,
        threads: int = 0,
    ) -> torch.Tensor:
        raw, table, calibration = self.tensors()
        filters, taps = self.bank.tensors()
        out = torch.full((1, len(self.rows), n_out), -7.0, dtype=dtype)
        with self.kernels.call(run) as (memory, call):
            counts = call(
                "filter_resample",
                *(memory.read("raw", raw, alignment=raw.element_size()), raw.numel(), raw.element_size()),
                *(memory.read("table", table), memory.read("calibration", calibration), 1, len(self.rows)),
                *(memory.read("filters", filters), len(filters), memory.read("taps", taps), taps.numel()),
                *(memory.write("out", out, alignment=out.element_size()), DTYPE_CODES[dtype], n_out),
                *(NORMALISATIONS.index(normalise), shared_limit_bytes, workspace_floats, threads),
            )
        self.barriers = counts.barriers
        return out

    def truth(self, n_out: int, normalise: str = "none") -> torch.Tensor:
        return reference.filter_resample(*self.tensors(), self.bank, n_out, dtype=torch.float64, normalise=normalise)

    def plan(
        self, f: int, n_out: int, workspace_floats: int, *, statistics: bool, threads: int = 256
    ) -> dict[str, int]:
        fields = (ctypes.c_int32 * len(PLAN_FIELDS))()
        row = self.bank.tensors()[0][f].contiguous()
        with self.kernels.call() as (memory, call):
            call(
                "filter_resample_plan",
                memory.read("filter", row),
                n_out,
                workspace_floats,
                int(statistics),
                threads,
                fields,
            )
        return dict(zip(PLAN_FIELDS, fields, strict=True))


def mixed(kernels: Kernels, dtype: type = np.int16) -> Kernel:
    """Rates of every shape of tile, odd and even distances, a rate without one, a missing channel."""
    kernel = Kernel(kernels, FilterBank("aasm", 256), dtype)
    rng = np.random.default_rng(1)
    for kind, rate in (
        ("eeg", "200"),
        ("ecg", "256"),
        ("respiration", "25"),
        ("step", "1"),
        ("emg", "512"),
        ("eeg", "204.85"),
        ("eog", "50"),
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


def assert_close(got: torch.Tensor, truth: torch.Tensor) -> None:
    for c in range(truth.shape[1]):
        if truth[0, c].any():
            assert snr_db(got[0, c], truth[0, c]) > 100.0, c
        else:
            assert torch.equal(got[0, c], torch.zeros_like(got[0, c])), c


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("run", ADVERSARIAL, ids=lambda run: f"{run.schedule}-{run.side}")
def test_agrees_with_float64(kernels: Kernels, run: Run, normalise: str) -> None:
    kernel = mixed(kernels)
    n_out = 2301
    assert_close(kernel.run(n_out, run, normalise=normalise), kernel.truth(n_out, normalise))


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_agrees_with_float64_on_int32(kernels: Kernels, normalise: str) -> None:
    kernel = mixed(kernels, np.int32)
    assert_close(kernel.run(2301, normalise=normalise), kernel.truth(2301, normalise))


@pytest.mark.parametrize("preset", ["seed", "clinical", "none"])
@pytest.mark.parametrize("rate", ["1", "32", "64", "100", "128", "250", "256", "500", "1000", "2048"])
def test_rates_of_the_other_presets(kernels: Kernels, preset: str, rate: str) -> None:
    kernel = Kernel(kernels, FilterBank(preset, 256))
    rng = np.random.default_rng(2)
    f = kernel.bank.index("eeg", Fraction(rate))
    kernel.add(rng.integers(-3000, 3000, int(9 * Fraction(rate)) + 2), f, first=int(Fraction(rate)))
    assert_close(kernel.run(1100), kernel.truth(1100))


@pytest.mark.parametrize("n_out", [1, 2, 31, 33, 127, 128, 129, 1023, 1025, 8191, 8192, 8193])
def test_tile_boundaries(kernels: Kernels, n_out: int) -> None:
    """Around a warp's outputs, a row of repeats, a tile and a slice."""
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    rng = np.random.default_rng(6)
    for kind, rate in (("eeg", 200), ("ecg", 256)):
        f = kernel.bank.index(kind, rate)
        kernel.add(rng.integers(-3000, 3000, 36 * rate), f, first=rate, phase=kernel.bank.up(f) - 1)
    for normalise in ("none", "robust"):
        if normalise == "none" or n_out > 100:  # one output has no spread
            assert_close(kernel.run(n_out, normalise=normalise), kernel.truth(n_out, normalise))


@pytest.mark.parametrize("workspace_floats", [4400, 6000, LEAST_FLOATS])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_small_tiles_and_filtering_again_change_nothing_but_rounding(
    kernels: Kernels, workspace_floats: int, normalise: str
) -> None:
    """Tiles and chunks of taps of any size; statistics of outputs that do not fit are taken by filtering again."""
    n_out = 4002  # the quartiles lie between two outputs, which may be of different tiles
    kernel = mixed(kernels)
    plans = [kernel.plan(row[5], n_out, workspace_floats, statistics=True) for row in kernel.rows if row[1] > 0]
    assert any(plan["chunk"] < plan["taps"] for plan in plans) or workspace_floats > 6000
    assert any(plan["resident"] == 0 for plan in plans) or workspace_floats > 4400
    got = kernel.run(n_out, normalise=normalise, workspace_floats=workspace_floats)
    assert_close(got, kernel.truth(n_out, normalise))


@pytest.mark.parametrize("normalise", ["none", "zscore"])
def test_outputs_that_take_more_room_than_their_samples(kernels: Kernels, normalise: str) -> None:
    """Ten outputs a sample: a tile whose samples fit may have outputs that do not, and they take the samples' place."""
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    kernel.add(np.random.default_rng(9).integers(-3000, 3000, 900), kernel.bank.index("respiration", 25), first=50)
    for workspace_floats in (4400, 6000):
        got = kernel.run(8000, normalise=normalise, workspace_floats=workspace_floats)
        assert_close(got, kernel.truth(8000, normalise))


@pytest.mark.parametrize(("n_out", "workspace_floats"), [(1000, 2000), (2000, 2840)])
def test_the_decimator_reads_device_memory_where_its_samples_do_not_fit(
    kernels: Kernels, n_out: int, workspace_floats: int
) -> None:
    """Kept outputs leave less shared memory beside the decimated samples than one of these takes."""
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    f = kernel.bank.index("eeg", 1000)
    plan = kernel.plan(f, n_out, workspace_floats, statistics=True)
    assert workspace_floats - plan["low_floats"] - plan["kept_floats"] < 2 * kernel.bank.tensors()[0][f, 11] + 1 + 200
    kernel.add(np.random.default_rng(6).integers(-3000, 3000, 12000), f, first=2000)
    got = kernel.run(n_out, normalise="zscore", workspace_floats=workspace_floats)
    assert_close(got, kernel.truth(n_out, "zscore"))


@pytest.mark.parametrize("n_out", [300, 2000])
@pytest.mark.parametrize(
    ("kind", "rate"), [("eeg", 200), ("eeg", 1000), ("ecg", 256), ("respiration", 25), ("eog", 50)]
)
def test_the_least_workspaces_are_enough(kernels: Kernels, kind: str, rate: int, n_out: int) -> None:
    """The least with which there are tiles at all, and the least that keeps the outputs of all tiles."""
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    f = kernel.bank.index(kind, rate)
    kernel.add(np.random.default_rng(10).integers(-3000, 3000, 11 * rate), f, first=rate)
    for field, normalise in (("tile", "none"), ("kept_floats", "zscore")):
        least = 1 + bisect_left(
            range(1, 12000), 1, key=lambda floats: kernel.plan(f, n_out, floats, statistics=normalise != "none")[field]
        )
        for floats in range(least, least + 4):
            got = kernel.run(n_out, normalise=normalise, workspace_floats=floats)
            assert_close(got, kernel.truth(n_out, normalise))


def test_slices_end_where_a_tile_does(kernels: Kernels) -> None:
    """Periods of 25 outputs do not divide the outputs that a low branch is computed for at once."""
    kernel = Kernel(kernels, FilterBank("aasm", 100))
    f = kernel.bank.index("eeg", 256)
    plan = kernel.plan(f, 9000, SHARED_LIMIT_BYTES // 4, statistics=True)
    assert (plan["period"], plan["kept_floats"] > 0, plan["slice"] < 9000) == (25, True, True)
    kernel.add(np.random.default_rng(11).integers(-3000, 3000, 92 * 256), f, first=256)
    assert_close(kernel.run(9000, normalise="zscore"), kernel.truth(9000, "zscore"))


@pytest.mark.parametrize("threads", [32, 64, 256])
def test_any_number_of_warps(kernels: Kernels, threads: int) -> None:
    kernel = mixed(kernels)
    for normalise in ("zscore", "robust"):
        assert_close(kernel.run(1000, normalise=normalise, threads=threads), kernel.truth(1000, normalise))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_out", [1, 3, 4, 1000, 1001])
def test_half_precision_and_ragged_rows(kernels: Kernels, dtype: torch.dtype, n_out: int) -> None:
    kernel = mixed(kernels)
    assert torch.equal(kernel.run(n_out, dtype=dtype), kernel.run(n_out).to(dtype))


@pytest.mark.parametrize("normalise", ["zscore", "robust"])
def test_a_gain_that_is_no_number_gives_none(kernels: Kernels, normalise: str) -> None:
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    rng = np.random.default_rng(8)
    for gain in (np.nan, -1.0):
        raw = rng.integers(-3000, 3000, 6 * 200)
        kernel.add(raw, kernel.bank.index("eeg", 200), first=200, gain=gain)
    got = kernel.run(500, normalise=normalise)
    assert bool(got[0, 0].isnan().all())
    assert bool(got[0, 1].isfinite().all())


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_negative_gain_turns_the_signal_over(kernels: Kernels, normalise: str) -> None:
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    raw = np.random.default_rng(8).integers(-3000, 3000, 6 * 200)
    kernel.add(raw, kernel.bank.index("eeg", 200), first=200, gain=-0.25)
    assert_close(kernel.run(500, normalise=normalise), kernel.truth(500, normalise))


@pytest.mark.parametrize("normalise", ["zscore", "robust"])
def test_same_bits_whatever_the_order_of_the_threads(kernels: Kernels, normalise: str) -> None:
    kernel = mixed(kernels)
    runs = [kernel.run(1777, run, normalise=normalise) for run in ADVERSARIAL]
    for again in runs[1:]:
        assert torch.equal(runs[0], again)


@pytest.mark.parametrize("shift", range(9))
def test_windows_at_any_address(kernels: Kernels, shift: int) -> None:
    """Vector loads begin where the address allows, and read nothing outside of the window."""
    for dtype in (np.int16, np.int32):
        kernel = Kernel(kernels, FilterBank("none", 256), dtype)
        kernel.raw = [np.zeros(shift, dtype)]
        x = np.random.default_rng(7).integers(-3000, 3000, 50 + shift)
        kernel.add(x, kernel.bank.index("eeg", 200), first=20)
        kernel.raw = kernel.raw[:-1]  # the window ends where raw ends
        for side in ("start", "end"):
            assert_close(kernel.run(64, Run(side=side)), kernel.truth(64))


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_missing_barriers_are_noticed(kernels: Kernels, normalise: str) -> None:
    """Leaving out barriers one by one changes the result in at least one schedule, or ends in a fault."""
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    rng = np.random.default_rng(3)
    kernel.add(rng.integers(-3000, 3000, 4000), kernel.bank.index("eeg", 200), first=900)

    def run(planted: Run) -> bytes:
        return kernel.run(1200, planted, normalise=normalise, threads=64).numpy().tobytes()

    run(Run())
    n_barriers = kernel.barriers
    missed = unnoticed(n_barriers, "barrier", run)
    # Not noticeable: the largest and the least sample only decide what is flat; a barrier next to another one; the
    # last ones, after which nothing is written to shared memory again.
    assert n_barriers - len(missed) >= n_barriers // 3, (n_barriers, missed)


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
def test_impossible_rows_give_nan_and_read_nothing(kernels: Kernels, column: int, value: int) -> None:
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    x = np.random.default_rng(4).integers(-100, 100, 500)
    f = kernel.bank.index("eeg", 200)
    kernel.add(x, f)
    kernel.add(x, f)
    kernel.rows[0][column] = value
    got = kernel.run(64)
    assert torch.isnan(got[0, 0]).all()
    assert torch.isfinite(got[0, 1]).all()


@pytest.mark.parametrize("member", [3, 10, 12], ids=["main", "decimator", "low"])
def test_taps_that_are_not_aligned_give_nan_and_are_not_read(
    kernels: Kernels, member: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are loaded by 16 bytes: of filters that no FilterBank made, a device would end the process's use of it."""
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    x = np.random.default_rng(4).integers(-100, 100, 4000)
    for rate in (256, 200):  # the first filter's tables begin at 0
        kernel.add(x, kernel.bank.index("eeg", rate), first=1000)
    filters, taps = kernel.bank.tensors()
    filters = filters.clone()
    filters[kernel.bank.index("eeg", 200), member] -= 2
    monkeypatch.setattr(kernel.bank, "tensors", lambda: (filters, taps))
    got = kernel.run(600)
    assert torch.isfinite(got[0, 0]).all()
    assert torch.isnan(got[0, 1]).all()


@pytest.mark.parametrize("normalise", ["zscore", "robust"])
def test_flat_and_constant_channels_give_zeros(kernels: Kernels, normalise: str) -> None:
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    kernel.add(np.full(3000, 1234), kernel.bank.index("eeg", 200), first=500)
    kernel.add(np.arange(3000) // 1500, kernel.bank.index("step", 1), first=1)  # never normalised
    got, truth = kernel.run(600, normalise=normalise), kernel.truth(600, normalise)
    assert torch.equal(got[0, 0], torch.zeros(600))
    assert torch.allclose(got[0, 1].double(), truth[0, 1], atol=1e-6)


@pytest.mark.parametrize("sign", [-1, 1])
def test_what_counts_as_flat_follows_from_the_largest_deviation_of_either_sign(kernels: Kernels, sign: int) -> None:
    kernel = Kernel(kernels, FilterBank("none", 256), np.int32)
    for spike in (10_000_000, 100_000_000):  # a millionth of it, 10 and 100, lies on either side of the deviation
        x = np.random.default_rng(11).integers(-50, 50, 2000)
        x[1000] = sign * spike
        kernel.add(x, kernel.bank.index("eeg", 256))
    y = kernel.run(2000, normalise="robust")
    assert_close(y, kernel.truth(2000, "robust"))
    assert y[0, 0].any()
    assert not y[0, 1].any()


def test_quartiles_of_many_equal_values(kernels: Kernels) -> None:
    """Ties, negative numbers and a neighbour that is far away: an identity filter shows the statistics as they are."""
    kernel = Kernel(kernels, FilterBank("none", 256))
    f = kernel.bank.index("eeg", 256)
    rng = np.random.default_rng(8)
    for values in ([-5, -5, 7, 7], [0, 0, 0, 1, 9], [-30000, -2, -1, 0, 3]):
        kernel.add(np.resize(values, 1200), f)
        kernel.add(rng.choice(values, 1200), f)
    for n_out in (601, 602, 603, 604):
        got, truth = kernel.run(n_out, normalise="robust"), kernel.truth(n_out, "robust")
        for c in range(truth.shape[1]):
            assert (got[0, c] - truth[0, c]).abs().max() <= 1e-6 * truth[0, c].abs().max()


def test_longest_filter_fits_into_the_least_workspace(kernels: Kernels) -> None:
    kernel = Kernel(kernels, FilterBank("aasm", 256, 50))
    f = kernel.bank.index("emg", 3800)
    assert kernel.bank.describe(f)["taps_per_output"] > 5800
    kernel.add(np.random.default_rng(5).integers(-3000, 3000, 8000), f, first=3000)
    got = kernel.run(100, workspace_floats=LEAST_FLOATS)
    assert snr_db(got, kernel.truth(100)) > 100.0


def test_usual_clips_stay_in_shared_memory_and_use_every_lane(kernels: Kernels) -> None:
    """30 s at the usual rates, with the workspace that each architecture gives: one tile, nearly all lanes busy."""
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    for opt_in_kib, must_keep in ((227, True), (163, True), (99, False)):
        limit = opt_in_kib * 1024 - 6 * 1024 - 1024
        floats = _C.filter_resample_launch(32, 13, 7680, True, limit)["workspace_floats"]
        for kind, rate in (("eeg", 100), ("eeg", 128), ("eeg", 200), ("eeg", 256), ("ecg", 256), ("respiration", 25),
                           ("respiration", 32), ("emg", 200), ("step", 1)):  # fmt: skip
            plan = kernel.plan(kernel.bank.index(kind, rate), 7680, floats, statistics=True)
            assert (plan["resident"], plan["kept_floats"], plan["tile"] >= 7680) == (1, 0, True), (kind, rate, plan)
        for kind, rate in (("eeg", 500), ("eeg", 512), ("ecg", 1000)):
            plan = kernel.plan(kernel.bank.index(kind, rate), 7680, floats, statistics=True)
            assert plan["resident"] == 1 or not must_keep, (opt_in_kib, kind, rate, plan)


def test_workspaces_too_small_for_a_filter_give_nan(kernels: Kernels) -> None:
    kernel = Kernel(kernels, FilterBank("aasm", 256))
    kernel.add(np.zeros(5000), kernel.bank.index("emg", 2048))
    assert torch.isnan(kernel.run(64, workspace_floats=2000)).all()


def test_an_output_written_behind_the_buffer_would_be_caught(kernels: Kernels) -> None:
    """The fence around the buffers is where it should be: one output less than the kernel believes."""
    kernel = Kernel(kernels, FilterBank("none", 256))
    kernel.add(np.zeros(64), kernel.bank.index("eeg", 256))
    raw, table, calibration = kernel.tensors()
    filters, taps = kernel.bank.tensors()
    with kernels.call() as (memory, call), pytest.raises(KernelError, match=r"out of bounds: write .* buffer 'out'"):
        call("filter_resample", memory.read("raw", raw), raw.numel(), 2, memory.read("table", table),
             memory.read("calibration", calibration), 1, 1, memory.read("filters", filters), len(filters),
             memory.read("taps", taps), taps.numel(), memory.write("out", torch.zeros(63), alignment=4), 0, 64, 0,
             SHARED_LIMIT_BYTES, 0, 0)  # fmt: skip
