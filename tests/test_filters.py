"""Filter designs: what they keep, what they remove, what they cost, what they refuse."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.filtering import fir
from sleepfm_fast.filters import KINDS, PRESETS, FilterBank, FilterDesign

RATES_HZ = [Fraction(r) for r in ("1", "8", "10", "25", "32", "64", "100", "125", "128", "200", "204.85", "250", "256")]
RATES_HZ += [Fraction(r) for r in (500, 512, 1000, 2048)]


def design(preset: str, kind: str, fs_hz: float | Fraction, notch_hz: int | None = None) -> FilterDesign:
    bank = FilterBank(preset, 256, notch_hz)
    return bank.design(bank.index(kind, Fraction(fs_hz)))


def gain_db(filt: FilterDesign, frequency_hz: float) -> float:
    return float(20.0 * np.log10(np.abs(filt.gain(frequency_hz)) + 1e-30))


# The stated responses: kind, native rate, frequency, gain in dB from, to.
RESPONSES = [
    ("eeg", 200, 0.0, -700.0, -200.0),
    ("eeg", 200, 0.02, -700.0, -40.0),
    ("eeg", 200, 0.15, -6.3, -5.8),
    ("eeg", 200, 0.3, -0.05, 0.05),
    ("eeg", 200, 1.0, -0.02, 0.02),
    ("eeg", 200, 30.0, -0.01, 0.01),
    ("eeg", 200, 35.0, -0.01, 0.01),
    ("eeg", 200, 39.375, -6.3, -5.8),
    ("eeg", 200, 43.75, -700.0, -80.0),
    ("eeg", 200, 60.0, -700.0, -80.0),
    ("eog", 512, 0.3, -0.05, 0.05),
    ("eog", 512, 35.0, -0.01, 0.01),
    ("eog", 512, 43.75, -700.0, -80.0),
    ("emg", 256, 0.0, -700.0, -200.0),
    ("emg", 256, 5.0, -700.0, -80.0),
    ("emg", 256, 10.0, -0.01, 0.01),
    ("emg", 256, 100.0, -0.01, 0.01),
    ("emg", 512, 125.0, -700.0, -80.0),
    ("ecg", 256, 0.0, -700.0, -200.0),
    ("ecg", 256, 0.3, -0.05, 0.05),
    ("ecg", 256, 70.0, -0.01, 0.01),
    ("ecg", 256, 87.5, -700.0, -80.0),
    ("respiration", 32, 0.0, -700.0, -200.0),
    ("respiration", 32, 0.05, -6.3, -5.8),
    ("respiration", 32, 0.1, -0.05, 0.05),
    ("respiration", 100, 15.0, -0.01, 0.01),
    ("respiration", 100, 18.75, -700.0, -80.0),
    ("respiration", 10, 4.5, -0.01, 0.01),
    ("snore", 500, 0.0, -0.01, 0.01),
    ("snore", 500, 115.0, -0.01, 0.01),
    ("snore", 500, 128.0, -700.0, -80.0),
]


@pytest.mark.parametrize(("kind", "fs_hz", "frequency_hz", "low_db", "high_db"), RESPONSES)
def test_stated_response(kind: str, fs_hz: int, frequency_hz: float, low_db: float, high_db: float) -> None:
    assert low_db <= gain_db(design("aasm", kind, fs_hz), frequency_hz) <= high_db


@pytest.mark.parametrize(
    ("preset", "kind", "fs_hz", "pass_hz", "stop_hz"),
    [
        ("seed", "eeg", 512, (None, 0.95 * 128), (None, 128)),
        ("seed", "ecg", 100, (None, 0.95 * 50), (None, 50)),
        ("none", "eeg", 200, (None, 90), (None, 100)),
        ("none", "eeg", 256, (None, 128), (None, None)),
        ("aasm", "snore", 500, (None, 0.9 * 128), (None, 128)),
        ("aasm", "eeg", 200, (0.3, 35), (0, 1.25 * 35)),
        ("aasm", "eeg", 80, (0.3, 35), (0, 40)),  # 35 Hz is below 0.9 of the Nyquist frequency, its transition is not
        ("aasm", "emg", 512, (10, 100), (5, 125)),
        ("aasm", "respiration", 10, (0.1, 4.5), (0, 5)),
        ("clinical", "eeg", 512, (None, 128), (None, None)),
        ("clinical", "eeg", 100, (None, 50), (None, None)),
        ("aasm", "step", 1, (None, None), (None, None)),
    ],
)
def test_stated_edges(preset: str, kind: str, fs_hz: int, pass_hz: tuple, stop_hz: tuple) -> None:
    filt = design(preset, kind, fs_hz)
    assert (filt.pass_hz, filt.stop_hz) == (pass_hz, stop_hz)


@pytest.mark.parametrize(("kind", "fs_hz"), [("eeg", 200), ("eog", 512), ("ecg", 1000), ("respiration", 32)])
def test_what_would_alias_into_the_low_branch_or_be_its_image_is_80_db_down(kind: str, fs_hz: int) -> None:
    filt = design("aasm", kind, fs_hz)
    assert filt.decimation > 1
    high_hz, rate_hz = filt.pass_hz[0], fs_hz / filt.decimation
    multiples_hz = rate_hz * np.arange(1, filt.decimation // 2 + 1)
    frequency_hz = (multiples_hz[:, None] + np.linspace(-high_hz, high_hz, 21)).ravel()
    for taps in (filt.decimator, filt.interpolator):
        times_s = (np.arange(len(taps)) - len(taps) // 2) / fs_hz
        response = np.cos(2 * np.pi * np.multiply.outer(frequency_hz, times_s)) @ taps / taps.sum()
        assert np.abs(response).max() < 1e-4


@pytest.mark.parametrize(("fs_hz", "samples"), [(1, 1), (8, 1), (256, 1), (512, 2), (1024, 4)])
def test_a_step_is_a_triangle_over_a_sample_of_the_lower_rate(fs_hz: int, samples: int) -> None:
    filt = design("aasm", "step", fs_hz)
    reach = samples * filt.phases
    assert len(filt.main) == 2 * reach - 1
    triangle = 1 - np.abs(np.arange(1 - reach, reach)) / reach
    np.testing.assert_allclose(filt.main, triangle / samples, atol=1e-12)


@pytest.mark.parametrize("mains_hz", [50, 60])
@pytest.mark.parametrize(("kind", "fs_hz"), [("ecg", 200), ("ecg", 256), ("emg", 200), ("emg", 256), ("emg", 512)])
def test_notch_removes_mains_and_little_else(kind: str, fs_hz: int, mains_hz: int) -> None:
    filt = design("aasm", kind, fs_hz, mains_hz)
    assert mains_hz in filt.notches_hz
    for offset_hz in (-0.5, 0.0, 0.5):
        assert gain_db(filt, mains_hz + offset_hz) < -70.0
    for offset_hz in (-4.0, 4.0):
        assert abs(gain_db(filt, mains_hz + offset_hz)) < 0.02
    assert gain_db(filt, 0.0) < -200.0


@pytest.mark.parametrize(
    ("kind", "fs_hz", "mains_hz"), [("eeg", 200, 50), ("eeg", 100, 50), ("emg", 128, 60), ("emg", 200, 50)]
)
def test_low_pass_ends_below_mains_it_cannot_notch(kind: str, fs_hz: int, mains_hz: int) -> None:
    filt = design("aasm", kind, fs_hz, mains_hz)
    for multiple_hz in range(mains_hz, fs_hz // 2 + 1, mains_hz):
        assert gain_db(filt, multiple_hz) < -70.0


@pytest.mark.parametrize("fs_hz", RATES_HZ, ids=str)
@pytest.mark.parametrize(
    ("preset", "kind"), [("aasm", k) for k in KINDS if k != "step"] + [("none", "eeg"), ("seed", "ecg")]
)
def test_ripple_and_stop_band_of_the_whole_grid(preset: str, kind: str, fs_hz: Fraction) -> None:
    """On the upsampled grid: images, aliases and the stop band are 80 dB down, the pass band is flat to 0.1 dB."""
    filt = design(preset, kind, fs_hz)
    grid_hz = float(fs_hz) * filt.phases
    n = 1 << int(np.ceil(np.log2(8 * len(filt.main))))
    response = np.abs(np.fft.rfft(filt.main, n)) / filt.phases
    frequency_hz = np.arange(len(response)) * grid_hz / n
    high, low = filt.pass_hz
    assert low is not None
    inside = frequency_hz <= low
    if filt.dc == 0:
        assert high is not None
        inside &= frequency_hz >= high
    assert np.abs(20.0 * np.log10(response[inside])).max() < 0.01
    if filt.stop_hz[1] is not None:
        assert 20.0 * np.log10(response[frequency_hz >= filt.stop_hz[1]].max()) < -80.0
        assert filt.stop_hz[1] <= min(float(fs_hz), 256.0) / 2.0
    if filt.decimation:
        assert high is not None
        band = np.geomspace(high, low, 400 if len(filt.main) < 100_000 else 20)
        assert np.abs(20.0 * np.log10(filt.gain(band))).max() < 0.1


@pytest.mark.parametrize("fs_hz", RATES_HZ, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_phase_keeps_or_removes_a_constant_exactly(preset: str, fs_hz: Fraction) -> None:
    for kind in KINDS:
        filt = design(preset, kind, fs_hz)
        table, _ = filt.main_table
        np.testing.assert_allclose(table.sum(axis=1), filt.dc, atol=1e-12)
        np.testing.assert_allclose(filt.main, filt.main[::-1], atol=1e-14)
        if filt.decimation:
            np.testing.assert_allclose(filt.interpolator_table[0].sum(axis=1), 1.0, atol=1e-12)
            assert filt.decimator.sum() == pytest.approx(1.0, abs=1e-12)
            assert filt.low.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("fs_hz", RATES_HZ, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_step_taps_are_positive_and_sum_to_one(preset: str, fs_hz: Fraction) -> None:
    filt = design(preset, "step", fs_hz)
    table, _ = filt.main_table
    assert table.min() >= 0.0
    np.testing.assert_allclose(table.sum(axis=1), 1.0, atol=1e-12)
    assert filt.step
    assert filt.decimation == 0


@pytest.mark.parametrize("fs_hz", [260, 300, 500, 512, 1000, 2048])
def test_butterworth_both_ways_as_fir(fs_hz: int) -> None:
    rng = np.random.default_rng(fs_hz)
    x = rng.standard_normal(16000)
    expected = scipy.signal.sosfiltfilt(scipy.signal.butter(4, 256.0 / fs_hz, output="sos"), x)
    taps = fir.butterworth_forward_backward(4, 256.0 / fs_hz)
    got = np.convolve(x, taps, mode="same")
    margin = len(taps)
    error = got[margin:-margin] - expected[margin:-margin]
    assert np.abs(error).max() < 1e-7
    impulse = scipy.signal.sosfilt(scipy.signal.butter(4, 256.0 / fs_hz, output="sos"), np.eye(1, 1 << 13)[0])
    both = np.correlate(impulse, impulse, mode="full") / np.correlate(impulse, impulse, mode="full").sum()
    middle, reach = len(both) // 2, len(taps) // 2
    np.testing.assert_allclose(taps, both[middle - reach : middle + reach + 1], rtol=0, atol=3e-9 * both.max())
    assert taps.sum() == pytest.approx(1.0, abs=1e-13)
    assert np.abs(both[: middle - reach]).max() < 1.001e-9 * both.max()
    assert np.abs(taps[0]) > 0.999e-9 * both.max()


@pytest.mark.parametrize("half_width", [1, 2, 2.5, 500 / 256, 7.01])
def test_a_triangle_reaches_zero_where_it_should(half_width: float) -> None:
    taps = fir.triangle(half_width)
    place = np.arange(len(taps)) - len(taps) // 2
    np.testing.assert_allclose(taps, 1.0 - np.abs(place) / half_width, atol=1e-15)
    assert taps.min() > 0
    assert abs(place[0]) < half_width <= abs(place[0]) + 1


@pytest.mark.parametrize("fs_hz", [64, 100, 128, 200])
def test_identity_and_linear_interpolation_of_clinical(fs_hz: int) -> None:
    table, left = design("clinical", "eeg", fs_hz).main_table
    up = len(table)
    expected = np.stack([1.0 - np.arange(up) / up, np.arange(up) / up], axis=1)
    np.testing.assert_allclose(table[:, left : left + 2], expected, atol=1e-12)


def test_clinical_leaves_out_the_low_pass_within_two_percent_of_the_same_rate() -> None:
    assert design("clinical", "eeg", Fraction("256.1")).main_table[0].shape[1] == 2
    assert design("clinical", "eeg", 262).main_table[0].shape[1] > 2


@pytest.mark.parametrize("preset", ["seed", "none", "clinical"])
def test_same_rate_is_the_identity(preset: str) -> None:
    np.testing.assert_array_equal(design(preset, "eeg", 256).main, [1.0])


def test_kinds_that_the_rate_cannot_carry_say_so() -> None:
    filt = design("aasm", "emg", 1)
    assert filt.dc == 1
    assert filt.pass_hz == (None, 0.45)
    assert any("no 10 Hz high-pass" in issue for issue in filt.issues)
    filt = design("aasm", "emg", 100)
    assert filt.pass_hz == (10.0, 45.0)
    assert any("100 Hz low-pass does not fit below 50 Hz" in issue for issue in filt.issues)
    assert design("aasm", "eeg", 200).issues == ()


def test_rate_of_odd_record_lengths_takes_a_bounded_table() -> None:
    bank = FilterBank("aasm", 256)
    f = bank.index("eeg", Fraction(1000 * 10**6, 9_997_558))
    filt = bank.design(f)
    assert filt.phases < filt.up
    assert filt.phases >= 4096
    assert filt.main_table[0].size <= 1 << 22


def test_index_is_stable_and_rates_are_exact() -> None:
    bank = FilterBank("aasm", 256)
    f = bank.index("eeg", 200)
    g = bank.index("eeg", Fraction("204.85"))
    assert (f, g, bank.index("eeg", Fraction(200)), len(bank)) == (0, 1, 0, 2)
    assert (bank.up(f), bank.down(f)) == (32, 25)
    assert (bank.up(g), bank.down(g)) == (5120, 4097)


def test_tensors_are_cached_until_a_filter_is_added() -> None:
    bank = FilterBank("aasm", 256)
    bank.index("eeg", 200)
    first = bank.tensors("cpu")
    assert bank.tensors("cpu")[1] is first[1]
    bank.index("ecg", 200)
    filters, taps = bank.tensors("cpu")
    assert filters.shape == (2, 25)
    assert taps.numel() > first[1].numel()
    assert (filters[0] == first[0][0]).all()


def test_digest_is_of_the_filters_not_of_the_order() -> None:
    def digest(preset: str, requests: list[tuple[str, int]], notch_hz: int | None = None) -> str:
        bank = FilterBank(preset, 256, notch_hz)
        for kind, fs_hz in requests:
            bank.index(kind, fs_hz)
        return bank.digest()

    both = digest("aasm", [("eeg", 200), ("ecg", 256)])
    assert both == digest("aasm", [("ecg", 256), ("eeg", 200)])
    others = [
        digest("aasm", [("eeg", 200)]),
        digest("aasm", [("eeg", 200), ("ecg", 256)], 50),
        digest("none", [("eeg", 200), ("ecg", 256)]),
        digest("seed", [("eeg", 200), ("ecg", 256)]),
    ]
    assert len({both, *others}) == 5
    assert len(both) == 64


def test_description_is_json() -> None:
    bank = FilterBank("aasm", 256, 50)
    text = json.dumps(bank.describe(bank.index("emg", 256)))
    assert json.loads(text)["notches_hz"] == [50]


def test_default_normalisation_follows_the_preset() -> None:
    assert {p: FilterBank(p).normalise for p in PRESETS} == {
        "seed": "none",
        "clinical": "zscore",
        "aasm": "zscore",
        "none": "none",
    }


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: FilterBank("butter"), "preset is 'butter'; choose one of: seed, clinical, aasm, none"),
        (lambda: FilterBank("aasm", 0), "output rate is 0 Hz; expected a positive number"),
        (lambda: FilterBank("aasm", 256, 55), "notch_hz is 55; expected 50, 60 or None"),
        (lambda: FilterBank("none", 256, 50), "'none' has no notch"),
        (lambda: FilterBank("aasm").index("ekg", 200), "kind is 'ekg'; choose one of: eeg"),
        (lambda: FilterBank("aasm").index("eeg", -1), "native rate is -1 Hz; expected a positive number"),
        (lambda: FilterBank("aasm").index("eeg", float("nan")), "native rate is nan Hz"),  # type: ignore[arg-type]
        (lambda: FilterBank("aasm", 256, 50).index("emg", 16384), "taps an output at 256 Hz; at most 6000"),
        (
            lambda: FilterBank("aasm", 256, 50).index("emg", Fraction(2_999_999, 1250)),
            "too large a table. Choose an output rate with a simpler ratio",
        ),
    ],
)
def test_refusals_are_sentences(call: object, sentence: str) -> None:
    with pytest.raises(SleepfmError, match=sentence):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(("up", "down"), [(1, 1), (1, 2), (2, 1), (3, 7), (25, 64), (32, 25), (64, 25), (128, 125)])
def test_groups_of_outputs_are_the_polyphase_table(up: int, down: int) -> None:
    rng = np.random.default_rng(up * 1000 + down)
    table = rng.standard_normal((up, 9))
    groups, repeats = fir.grouped(table, down, 16)
    period = repeats * up
    assert len(groups) == -(-period // 16)
    assert len(groups) * 16 <= 1.03 * period + 1e-9
    x = rng.standard_normal(3 * repeats * down + groups.shape[1] + 9)
    for n in range(2 * period):
        p, g, lane = n // period, n % period // 16, n % period % 16
        begin = p * repeats * down + g * 16 * down // up
        got = x[begin : begin + groups.shape[1]] @ groups[g, :, lane]
        q = n * down // up
        assert got == pytest.approx(x[q : q + 9] @ table[n * down % up], abs=1e-12)
    assert not groups[-1, :, period - 1 - 16 * (len(groups) - 1) + 1 :].any()


def test_plots_of_the_presets_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script = Path(__file__).resolve().parents[1] / "docs" / "filter_responses.py"
    if not script.exists():
        pytest.skip("the documents are in the clone, not in the package")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=environment, timeout=120)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"filters-aasm.svg", "filters-resampling.svg", "filters-step.svg"}
    assert names == {path.name for path in script.parent.glob("*.svg")}


PAGE = Path(__file__).resolve().parents[1] / "docs" / "kernels" / "filter-resample.md"


def stated_designs() -> list[list[str]]:
    """Rows of the page's table of designs, as lists of cells."""
    if not PAGE.exists():
        return []
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| preset, kind | fs, Hz | flat from"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[head + 2 :])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def as_stated(filt: FilterDesign, context: str) -> list[str]:
    """What the page says of a design: rate, edges, taps, low branch, seconds of context."""

    def number(value: float | None) -> str:
        return f"{value:.4g}" if value else "-"

    low_branch = 0.0
    if filt.decimation:
        sides = filt.decimator.size + filt.low.size
        low_branch = sides / filt.decimation + -(-filt.interpolator.size // filt.decimation)
    edges = [number(filt.pass_hz[0]), number(filt.pass_hz[1] and round(filt.pass_hz[1], 1)), number(filt.stop_hz[1])]
    taps = filt.main_table[0].shape[1]
    return [number(float(filt.fs_hz)), *edges, str(taps), f"{low_branch:.0f}" if low_branch else "-", context]


@pytest.mark.parametrize("row", stated_designs(), ids=lambda row: f"{row[0]} {row[1]}")
def test_the_page_states_the_designs_that_the_kernels_run(row: list[str]) -> None:
    """Where this fails, state the design and draw its plots again: python docs/filter_responses.py."""
    words = row[0].replace("`", "").replace(", notch", "").split()
    preset, kind = ("none", "step") if words == ["step"] else words[:2]
    notch_hz = int(words[2]) if len(words) > 2 else None
    bank = FilterBank(preset, 256, notch_hz)
    f = bank.index(kind, Fraction(row[1]))
    seconds = bank.context(f) / float(row[1])
    assert row[1:] == as_stated(bank.design(f), f"{seconds:.1f}")
    if kind != "step" and preset != "clinical":
        filt = bank.design(f)
        low, high = filt.pass_hz
        inside = np.linspace((low or 0.0) * 1.0001, high, 400)
        if not filt.notches_hz:
            assert np.abs([gain_db(filt, x) for x in inside]).max() < 0.1
        beyond = np.linspace(filt.stop_hz[1], 0.49 * filt.up * float(filt.fs_hz), 400)
        assert max(gain_db(filt, x) for x in beyond) < -80.0


# ---- sharing and copying --------------------------------------------------------------------------------------------


def test_threads_share_a_bank() -> None:
    """Each gets the filter it asked for, and a filter is designed once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(5):
            bank, found = FilterBank("none", 256), []
            together = threading.Barrier(4)

            def ask(bank=bank, found=found, together=together) -> None:
                together.wait()
                for fs_hz in (100, 250, 500, 64):
                    found.append((fs_hz, bank.index("eeg", fs_hz), bank.tensors()))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(found) == 16
            assert len(bank) == 4
            alone = FilterBank("none", 256)
            for fs_hz in (100, 250, 500, 64):
                alone.index("eeg", fs_hz)
            assert bank.digest() == alone.digest()
            for fs_hz, f, (filters, taps) in found:
                assert bank.design(f).fs_hz == fs_hz
                row, start = filters[f], int(filters[f, 3])
                reach = int(row[2]) * int(row[5])
                whole = bank.tensors()
                assert filters.equal(whole[0][: len(filters)])
                assert taps.equal(whole[1][: len(taps)])
                assert start + reach <= len(taps)
    finally:
        sys.setswitchinterval(before)


def test_a_copy_of_a_bank_goes_its_own_way() -> None:
    bank = FilterBank("aasm", 256, 50)
    f = bank.index("eeg", 200)
    bank.tensors()
    for again in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert again.digest() == bank.digest()
        assert all(a.equal(b) for a, b in zip(again.tensors(), bank.tensors(), strict=True))
        assert (again.index("eeg", 200), again.index("ecg", 500)) == (f, f + 1)
        assert len(bank) == f + 1


@pytest.mark.parametrize("fs_hz", [np.float64(204.85), np.float32(200), np.int16(200), 200.0, Fraction(200)])
def test_rates_are_numbers_of_any_kind(fs_hz) -> None:
    bank = FilterBank("none", np.float64(256.0))
    assert bank.design(bank.index("eeg", fs_hz)).fs_hz == Fraction(repr(float(fs_hz)))


@pytest.mark.parametrize("fs_hz", ["200", None, True, np.True_, 1j, float("nan"), -1, 0, 1e-300, 1e-9, 1e300, 1e9])
def test_rates_that_are_none_are_refused(fs_hz) -> None:
    with pytest.raises(SleepfmError, match=r"(the native rate is|a 'eeg' channel (has a rate )?of) .*Hz"):
        FilterBank("none", 256).index("eeg", fs_hz)
