"""What the report computes and draws: curves against scikit-learn, scales, paths, signals against the EDF files."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from sleepfm_fast.plurals import clock
from sleepfm_fast.reporting.curves import calibration, precision_recall, roc, thin
from sleepfm_fast.reporting.hypnogram import Night, choose_recordings, entropy
from sleepfm_fast.reporting.markup import element, escape, number
from sleepfm_fast.reporting.plot import INNER, Plot, polyline
from sleepfm_fast.reporting.scale import Scale, covering
from sleepfm_fast.reporting.sources import Run
from sleepfm_fast.reporting.training_curves import MAX_POINTS, loss_figure, thinned
from sleepfm_fast.reporting.wording import count, share, value_of, with_interval


def problem(seed, n=800, ties=False):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    s = rng.standard_normal(n) + 1.2 * y
    return y, np.round(s, 1) if ties else s


def trapezoid(y, x):
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_roc_has_the_area_of_scikit_learn(seed, ties):
    from sklearn.metrics import roc_auc_score

    y, s = problem(seed, ties=ties)
    x, t = roc(y, s)
    assert (x[0], t[0], x[-1], t[-1]) == (0, 0, 1, 1)
    assert trapezoid(t, x) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    a, b = thin(x, t)
    assert len(a) <= len(x)
    assert trapezoid(b, a) == pytest.approx(roc_auc_score(y, s), abs=4e-3)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_has_the_area_of_scikit_learn(seed, ties):
    from sklearn.metrics import average_precision_score

    y, s = problem(seed, ties=ties)
    x, p = precision_recall(y, s)
    assert trapezoid(p, x) == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert (np.diff(x) >= 0).all()


def test_curves_of_one_class_are_refused():
    for positive in (np.zeros(3, bool), np.ones(3, bool)):
        with pytest.raises(ValueError, match="both classes"):
            roc(positive, np.arange(3.0))
    with pytest.raises(ValueError, match="positive"):
        precision_recall(np.zeros(3, bool), np.arange(3.0))


def test_thinning_bounds_the_points():
    y, s = problem(0, n=200_000)
    x, t = thin(*roc(y, s))
    assert len(x) < 1100
    assert (x[-1], t[-1]) == (1, 1)
    assert [v.tolist() for v in thin(np.array([0.0, 1.0]), np.array([0.0, 1.0]))] == [[0, 1], [0, 1]]


def test_calibration_is_that_of_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    p = rng.random(3000)
    y = rng.random(3000) < p**2
    mean, seen, size = calibration(y, p)
    expected_seen, expected_mean = calibration_curve(y, p, n_bins=10)
    np.testing.assert_allclose(mean, expected_mean)
    np.testing.assert_allclose(seen, expected_seen)
    assert size.sum() == 3000
    assert calibration(np.array([True]), np.array([1.0]))[2].tolist() == [1]


@pytest.mark.parametrize("seed", range(40))
def test_ticks_are_few_round_and_within_the_axis(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(5) * 10.0 ** rng.integers(-7, 8)
    log = bool(seed % 2)
    scale = covering(np.abs(values) + 1e-9 if log else values, log=log)
    marks = scale.marks()
    assert 1 <= len(marks) <= 8
    assert all(scale.low * (1 - 1e-9) - 1e-12 <= v <= scale.high * (1 + 1e-9) + 1e-12 for v, _ in marks if log)
    assert len({text for _, text in marks}) == len(marks)
    assert (np.diff(scale.fraction([v for v, _ in marks])) > 0).all()


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1e-3, ["0", "2.5e-4", "5e-4", "7.5e-4", "1e-3"]),  # as of a learning rate: 0.00025 had no room
        (0, 1e-5, ["0", "2.5e-6", "5e-6", "7.5e-6", "1e-5"]),
        (
            1,
            1.00002,
            ["0.99975", "1.00000", "1.00025", "1.00050"],
        ),  # all were 1e0, as of a temperature that hardly moves
        (1e6, 1.05e6, ["1e6", "1.02e6", "1.04e6"]),  # all were 1e6
        (0.0047, 0.0057, ["4.75e-3", "5e-3", "5.25e-3", "5.5e-3"]),  # of one kind
        (0, 0.01, ["0.0000", "0.0025", "0.0050", "0.0075", "0.0100"]),
        (-3, 4, ["-2", "0", "2", "4"]),
    ],
)
def test_tick_texts_are_exact_different_and_have_room(low, high, texts):
    marks = covering([low, high]).marks()
    assert [text for _, text in marks] == texts
    assert all(math.isclose(float(text), value, rel_tol=1e-9, abs_tol=1e-12) for value, text in marks)
    # Arial's digits are 0.556 em wide, its point 0.278; the page leaves 46 px less the gap of 6 to the left edge's 8.
    assert max(12 * sum(0.278 if c == "." else 0.556 for c in text) for text in texts) < 48


def test_scales_of_nothing_and_of_one_value():
    assert covering(np.array([])) == Scale(0, 1)
    assert covering(np.array([np.nan, np.inf])) == Scale(0, 1)
    one = covering(np.array([5.0]))
    assert one.low < 5 < one.high
    assert covering(np.array([0.0])).low < 0
    assert covering(np.array([0.0, -1.0]), log=True).low > 0
    for low, high in ((1, 1), (2, 1), (0, math.nan)):
        with pytest.raises(ValueError, match="no length"):
            Scale(low, high)
    with pytest.raises(ValueError, match="logarithmic"):
        Scale(0, 1, log=True)


def points_of(path):
    """Follow a path of M, h, v, l; returns the strokes."""
    strokes = []
    for command, first, second in re.findall(r"([Mhvl])(-?\d+)(?: ?(-?\d+))?", path):
        a, b = int(first), int(second or 0)
        if command == "M":
            strokes.append([(a, b)])
            continue
        x, y = strokes[-1][-1]
        strokes[-1].append({"h": (x + a, y), "v": (x, y + a), "l": (x + a, y + b)}[command])
    return strokes


def test_a_path_passes_through_its_points_and_lifts_the_pen():
    x = np.array([0, 0.1, 0.2, 0.3, np.nan, 0.5, 0.6, 0.6, 1.0])
    y = np.array([0, 0.5, 0.5, 0.5, 0.1, 1.0, np.nan, 0.2, 0.3])
    strokes = points_of(polyline(x, y))
    assert strokes[0] == [(0, INNER), (200, 1000), (600, 1000)], "the middle of a level run is left out"
    assert strokes[1] == [(1000, 0), (1000, 0)], "a lone point is a dot"
    assert strokes[2] == [(1200, 1600), (2000, 1400)]
    assert polyline(np.array([np.nan]), np.array([1.0])) == ""
    turn = points_of(polyline(np.array([0, 0.5, 0.2]), np.array([0.5, 0.5, 0.5])))
    assert turn == [[(0, 1000), (1000, 1000), (400, 1000)]], "a turn on a level is kept"


def test_touching_blocks_become_one():
    plot = Plot(Scale(0, 10), Scale(0, 1), "t", "d")
    plot.blocks([0, 1, 5], [1, 2, 6], 0, 1, "event")
    assert plot.paths[0].count("M") == 2
    plot.blocks([], [], 0, 1, "event")
    assert len(plot.paths) == 1


def test_markup_escapes_and_refuses_what_cannot_be_drawn():
    assert element("a", "<b>", title='"<&', x=1.50, missing=None, class_="k") == (
        '<a title="&quot;&lt;&amp;" x="1.5" class="k"><b></a>'
    )
    assert escape("a\x00\u202eb\ud800") == "a\ufffd\ufffdb?"
    assert number(-0.0001) == "0"
    assert number(10.0) == "10"
    with pytest.raises(ValueError, match="cannot be drawn"):
        number(math.nan)


def test_words():
    assert count(1234567) == "1\u202f234\u202f567"
    assert clock(3661.4) == "1:01:01"
    assert share(0, 0) == "-"
    assert share(1, 8) == "12\u202f%"
    # What rounds to none or to all is neither.
    parts = [share(part, 10_000) for part in (0, 1, 9, 949, 9_949, 9_970, 9_999, 10_000)]
    assert [p.removesuffix("\u202f%") for p in parts] == ["0", "<0.1", "0.1", "9.5", "99", "99.7", ">99.9", "100"]
    assert value_of({"value": None}) is None
    assert value_of(True) is None
    assert value_of("3") is None
    assert with_interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert with_interval({"value": 0.5, "low": 0.25, "high": 1}) == "0.500 [0.250, 1.000]"
    assert with_interval(None) == "-"


def test_nights_are_chosen_from_best_to_worst():
    def night(name, right):
        label = np.zeros(10, np.int64)
        p = np.zeros((10, 2))
        p[:right, 0] = 1
        p[right:, 1] = 1
        return Night(None, name, np.arange(10) / 120, label, p, (0, 1))

    nights = {f"n{k}": night(f"n{k}", k) for k in range(1, 10)}
    assert choose_recordings(nights, 3) == ["n9", "n5", "n1"]
    assert choose_recordings(nights, 1) == ["n5"]
    assert choose_recordings(nights, 2) == ["n5", "n1"]
    assert choose_recordings(nights, 99) == [f"n{k}" for k in range(9, 0, -1)]


def test_entropy_is_zero_when_sure_and_one_without_an_idea():
    np.testing.assert_allclose(entropy(np.array([[1.0, 0, 0], [1 / 3] * 3])), [0, 1], atol=1e-9)


def test_signals_are_those_of_the_edf_file(cohort, cohort_store):
    import pyedflib

    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.reporting.signals import envelope, strip_markup, strips_of

    store = ClipStore(cohort_store)
    clip = store.recordings[2].first_clip + 7
    strips = strips_of(store, clip, "brain", 3)
    assert len(strips) == 3
    record = store.record(2)
    labels = {c["slot"]: c["labels"] for c in record["channels"] if c["present"]}
    with pyedflib.EdfReader(str(cohort / f"{store.recordings[2].id}.edf")) as edf:
        names = edf.getSignalLabels()
        for strip in (*strips, *strips_of(store, clip, "respiratory", 7), *strips_of(store, clip, "ecg", 1)):
            if len(labels[strip.name]) != 1:
                continue
            signal = names.index(labels[strip.name][0])
            n = round(30 * strip.fs_hz)
            assert edf.getSampleFrequency(signal) == strip.fs_hz
            factor = {"mV": 1e3}.get(edf.getPhysicalDimension(signal).strip(), 1.0)  # potentials are kept in microvolts
            expected = factor * edf.readSignal(signal, start=7 * n, n=n)
            np.testing.assert_allclose(strip.values[:n], expected, atol=1e-6)
            drawn = re.findall(r"-?\d+", envelope(strip))
            assert len(drawn) <= 2 * (2 * 420 + 1)
            assert f"{float(f'{expected.max():.3g}'):.7g}" in strip_markup(strip)


def test_a_flat_and_an_empty_signal_are_drawn():
    from sleepfm_fast.reporting.signals import Strip, strip_markup

    flat = strip_markup(Strip("SpO2", "%", 1.0, np.full(30, 97.0)))
    assert "97 to 97 %" in flat
    assert "NaN" not in flat
    assert "no samples" in strip_markup(Strip("x", "", 1.0, np.empty(0)))


def test_the_projection_is_seeded_and_says_what_it_is():
    from sleepfm_fast.reporting.projection import project

    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    a, words = project(x, "tsne", 3)
    b, _ = project(x, "tsne", 3)
    np.testing.assert_array_equal(a, b)
    assert "t-SNE (perplexity 13, seed 3)" in words
    few, words = project(x[:5], "tsne", 0)
    assert "PCA" in words
    same, words = project(np.ones((12, 4), np.float32), "tsne", 0)
    for y in (a, few, same):
        assert y.shape[1] == 2
        assert np.isfinite(y).all()
        assert ((y >= 0) & (y <= 1)).all()
    one, _ = project(x[:3, :1], "pca", 0)
    assert one.shape == (3, 2)


def test_principal_components_keep_their_proportions():
    from sleepfm_fast.reporting.projection import project

    x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32) * np.array([10, 2, 0.1], np.float32)
    y, _ = project(x, "pca", 0)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    apart = np.linalg.norm((centred @ axes[:2].T)[1:] - (centred @ axes[:2].T)[0], axis=1)
    np.testing.assert_allclose(np.linalg.norm(y[1:] - y[0], axis=1) / apart, 0.96 / np.ptp(x[:, 0]), rtol=0.01)


def test_a_long_training_is_drawn_with_as_many_points_as_a_shorter_one():
    """A million epochs would be three million marks; and of many skipped steps no stretch is lost."""
    n = 20_000
    run = Run(Path("run"), "run")
    for step in range(1, n + 1):
        loss = None if step % 10 == 0 else 2.0
        run.metrics.append({"kind": "step", "epoch": step - 1, "step": step, "loss": loss})
        losses = {"training_loss": 2.0, "validation_loss": 1.0 if step == 4321 else 3.0}
        run.metrics.append({"kind": "epoch", "epoch": step - 1, "step": step, **losses})
    figure = loss_figure(run)
    assert len(figure.body.marks) == 2 * MAX_POINTS
    assert [len(v) for v in figure.data.values() if not isinstance(v, int)] == [MAX_POINTS] * 5
    assert (figure.data["loss"] == 2.0).all()
    assert "The best validation loss is 1, after step 4321." in figure.caption
    assert "from 3 to 3" in figure.body.description


def test_a_stretch_without_any_loss_is_a_gap():
    x = np.arange(2.0 * MAX_POINTS)
    places, values = thinned(x, np.where(x < 2, math.nan, 1.0))
    assert len(places) == MAX_POINTS
    assert math.isnan(values[0])
    assert (values[1:] == 1.0).all()
