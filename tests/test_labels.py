"""Labels of 30-s clips: the grid, stages, sleep-disordered breathing."""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sleepfm_fast.edf import Segment
from sleepfm_fast.scoring import labels
from sleepfm_fast.scoring.labels import clip_labels, count_outside
from sleepfm_fast.scoring.stage_spans import StageSpan
from sleepfm_fast.scoring.stages import STAGES, respiratory_event_of, stage_of
from sleepfm_fast.scoring.timed_texts import Event, Scoring
from sleepfm_fast.store.clip_writer import segment_of

DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclasses.dataclass(frozen=True)
class Stretch:
    first_record: int
    n_records: int
    onset_s: Fraction


def scored(*events: tuple[float, float | None, str], events_scored: bool | None = None) -> Scoring:
    return Scoring(tuple(Event(*event) for event in events), "test", (), events_scored)


def counts(codes: np.ndarray) -> dict[int, int]:
    return dict(sorted(Counter(codes.tolist()).items()))


# Grid and stages


def test_late_start_anchors_the_grid_and_extends_backwards():
    grid = clip_labels(scored((75.0, 60.0, "N2")), 200)
    assert grid.onsets_s.tolist() == [15, 45, 75, 105, 135, 165]
    assert grid.stage.tolist() == [-1, -1, 2, 2, -1, -1]


def test_the_grid_is_anchored_on_a_scored_stage():
    grid = clip_labels(scored((3.0, 5.0, "Artifact"), (10.0, 30.0, "N2"), (40.0, 30.0, "?")), 100)
    assert grid.onsets_s.tolist() == [10, 40, 70]
    assert grid.stage.tolist() == [2, -1, -1]


def test_a_scoring_that_began_before_the_recording():
    grid = clip_labels(scored((-45.0, 30.0, "W"), (-15.0, 30.0, "N1"), (15.0, 30.0, "N2")), 60)
    assert grid.onsets_s.tolist() == [15]
    assert grid.stage.tolist() == [2]


def test_no_stages_and_no_scoring():
    for scoring in (None, scored(), scored((3.0, 1.0, "QRS"))):
        grid = clip_labels(scoring, 95)
        assert grid.onsets_s.tolist() == [0, 30, 60]
        assert counts(grid.stage) == counts(grid.sdb) == {-1: 3}
        assert grid.issues
    assert len(clip_labels(None, 0).stage) == 0
    assert len(clip_labels(None, 29.9).stage) == 0


def test_overlap_goes_to_the_stage_that_covers_most():
    grid = clip_labels(scored((0, 30, "W"), (25, 30, "S4"), (30, 30, "S3"), (60, 30, "R")), 90)
    assert grid.stage.tolist() == [0, 3, 4]
    assert any("overlap in 1 epoch;" in issue for issue in grid.issues)


def test_equal_coverage_goes_to_the_later_start():
    assert clip_labels(scored((0, 60, "N2"), (30, 30, "N3")), 60).stage.tolist() == [2, 3]
    assert clip_labels(scored((0, 30, "N2"), (30, 15, "N2"), (45, 15, "N3")), 60).stage.tolist() == [2, 3]
    twice = clip_labels(scored((0, 30, "N2"), (0, 30, "N3"), (30, 30, "W")), 60)
    assert twice.stage.tolist() == [-1, 0]
    assert any("1 that stayed undecided" in issue for issue in twice.issues)


def test_two_scorers_in_one_file_are_noticed():
    one = [(30 * i, 30, "N2") for i in range(40)]
    other = [(30 * i, 30, "N3" if i % 4 == 0 else "N2") for i in range(40)]
    (said,) = [issue for issue in clip_labels(scored(*one, *other), 1200).issues if "two scorers" in issue]
    assert "10 of 40 with different stages" in said
    assert "--labels" in said
    for alike in ((*one, *one), one, (*one, (30, 30, "N3"))):
        assert not any("two scorers" in issue for issue in clip_labels(scored(*alike), 1200).issues)


def test_movement_covers_like_a_stage():
    assert clip_labels(scored((0, 30, "N2"), (30, 20, "Movement time"), (50, 10, "N2")), 60).stage.tolist() == [2, -1]
    assert clip_labels(scored((0, 30, "N2"), (30, 8, "Movement"), (38, 22, "N2")), 60).stage.tolist() == [2, 2]


@pytest.mark.parametrize(("covered_s", "stage"), [(14.9, -1), (15.0, 1), (30.0, 1)])
def test_half_of_an_epoch_must_be_covered(covered_s, stage):
    grid = clip_labels(scored((0, 30, "W"), (30, covered_s, "N1")), 60)
    assert grid.stage.tolist() == [0, stage]
    assert any("less than half" in issue for issue in grid.issues) == (stage == -1)


@pytest.mark.parametrize("duration_s", [0.0, None])
def test_stages_without_duration_last_until_the_next(duration_s):
    events = [
        (0, duration_s, "Wake"),
        (90, duration_s, "Stage2"),
        (120, duration_s, "UnknownStage"),
        (150, duration_s, "REM"),
    ]
    grid = clip_labels(scored(*events, (100, 1.0, "Arousal")), 240)
    assert grid.stage.tolist() == [0, 0, 0, 2, -1, 4, -1, -1]
    assert any("4 stage annotations have no duration" in issue for issue in grid.issues)


@pytest.mark.parametrize("n_remarks", [1, 3])
@pytest.mark.parametrize("last_s", [30, None])
def test_a_remark_without_duration_is_no_epoch(n_remarks, last_s):
    remarks = [(30, 0.0, "Movement"), (31, None, "Artifact"), (33, None, "Movement")][:n_remarks]
    grid = clip_labels(scored((0, 60, "W"), *remarks, (60, last_s, "N1")), 90)
    assert grid.stage.tolist() == [0, 0, 1]


def test_movement_in_a_list_of_stages_without_durations_is_an_epoch():
    grid = clip_labels(scored((0, None, "W"), (30, None, "Movement"), (60, 0.0, "N1")), 90)
    assert grid.stage.tolist() == [0, -1, 1]


@pytest.mark.parametrize("epoch_s", [20, 30])
def test_in_a_list_of_every_epoch_a_gap_is_not_scored(epoch_s):
    """The stage before the gap would last through it: an hour of a stage that nobody saw."""
    onsets = [epoch_s * k for k in range(90) if not 60 <= epoch_s * k < 240]
    stages = {onset: STAGES[onset // 60 % 5] for onset in onsets}
    grid = clip_labels(scored(*((onset, None, text) for onset, text in stages.items())), epoch_s * 90)
    expected = [-1 if 60 <= onset < 240 else onset // 60 % 5 for onset in grid.onsets_s]
    assert grid.stage.tolist() == expected
    assert any(f"listed every {epoch_s} s, with 1 gap; what lies in a gap" in issue for issue in grid.issues)


@pytest.mark.parametrize(("n_changes", "is_list"), [(1, True), (2, False)])
def test_where_stages_are_listed_as_they_change_each_lasts_until_the_next(n_changes, is_list):
    """Of 20 steps, 95 % of an epoch make a list of epochs; of fewer steps nothing is known."""
    steps = [30] * (20 - n_changes) + [120] * n_changes
    onsets = np.cumsum([0, *steps]).tolist()
    grid = clip_labels(scored(*((onset, None, "N2") for onset in onsets)), onsets[-1] + 30)
    assert counts(grid.stage) == ({-1: 3, 2: 21} if is_list else {2: len(grid.stage)})
    grid = clip_labels(scored(*((onset, None, "N2") for onset in onsets[1:])), onsets[-1] + 30)
    assert -1 not in grid.stage[1:]


def test_bad_durations_and_foreign_labels_are_reported():
    grid = clip_labels(scored((0, -30, "W"), (30, 30, "N1"), (0, float("inf"), "N2")), 60)
    assert grid.stage.tolist() == [-1, 1]
    assert any("2 stage annotations with a negative or infinite" in issue for issue in grid.issues)
    grid = clip_labels(scored((6000, 30, "N1")), 60)
    assert any("belong to this recording" in issue for issue in grid.issues)


def test_stages_off_the_grid_are_reported():
    grid = clip_labels(scored((0, 50, "W"), (50, 40, "N1")), 90)
    assert grid.stage.tolist() == [0, 0, 1]
    assert any("1 of 2 stage annotations does not start on the 30-s grid" in issue for issue in grid.issues)


def test_clips_lie_where_most_epochs_lie_and_not_where_the_first_stage_begins():
    """The first stage lasts until lights off, or is the rest of an epoch that was cut: no clip may mix two epochs."""
    epochs = [(137 + 30 * k, 30, "W12R"[k % 4]) for k in range(8)]
    grid = clip_labels(scored((0, 137, "W"), *epochs), 420)
    assert grid.onsets_s.tolist() == [17 + 30 * k for k in range(13)]
    assert grid.stage.tolist() == [0, 0, 0, 0, *[0, 1, 2, 4] * 2, -1]
    assert any("1 of 9 stage annotations does not start on the 30-s grid of most of them" in i for i in grid.issues)
    # Epochs of 20 s agree on no grid of 30 s: the first decides, as it does of two.
    grid = clip_labels(scored(*((5 + 20 * k, 20, "W") for k in range(6))), 125)
    assert grid.onsets_s.tolist() == [5, 35, 65, 95]


def test_what_many_gaps_leave_in_no_clip_is_said():
    stretches = [
        Stretch(35 * k, 35, Fraction(71 * k, 2)) for k in range(20)
    ]  # of 35 s, a gap of half a second after each
    grid = clip_labels(None, Fraction(71 * 19, 2) + 35, stretches)
    left_min = (20 * 35 - 30 * len(grid.onsets_s)) / 60
    assert any(f"leave {left_min:.1f} of its 11.7 recorded minutes in no clip" in issue for issue in grid.issues)
    grid = clip_labels(None, 1200, [Stretch(0, 600, Fraction(0)), Stretch(600, 590, Fraction(610))])
    assert not any("in no clip" in issue for issue in grid.issues)


SEGMENTS = (Stretch(0, 10, Fraction(0)), Stretch(10, 12, Fraction(205, 2)), Stretch(22, 2, Fraction(300)))


def test_clips_are_whole_inside_one_segment():
    # records of 10 s: 0-100, 102.5-222.5, 300-320
    grid = clip_labels(scored((0, 300, "N2")), 320, SEGMENTS)
    assert grid.onsets_s.tolist() == [0, 30, 60, 120, 150, 180]
    assert counts(grid.stage) == {2: 6}
    grid = clip_labels(scored((12.5, 30, "N2")), 320, SEGMENTS)
    assert grid.onsets_s.tolist() == [12.5, 42.5, 102.5, 132.5, 162.5, 192.5]
    assert len(clip_labels(None, 0, (Stretch(0, 0, Fraction(0)),)).stage) == 0
    minutes = (Stretch(0, 1, Fraction(0)), Stretch(1, 1, Fraction(100)))  # of one record of 60 s each
    assert clip_labels(None, 160, minutes).onsets_s.tolist() == [0, 30, 120]


@pytest.mark.parametrize("seed", range(20))
def test_what_lies_in_many_stretches_that_may_overlap(seed):
    rng = random.Random(seed)
    stretches = [(float(a), float(a + rng.randint(1, 70))) for a in rng.choices(range(1000), k=rng.randint(0, 30))]
    spans = [StageSpan(float(a), float(a + rng.randint(0, 40)), 2) for a in rng.choices(range(-50, 1100), k=50)]
    expected = sum(not any(s.onset_s < end and s.end_s > start for start, end in stretches) for s in spans)
    assert count_outside(spans, stretches) == expected

    segments = [Segment(0, int(b - a), Fraction(int(a))) for a, b in stretches]
    inside = [x for x in np.arange(0, 1070, 7.5).tolist() if any(a <= x and x + 30 <= b for a, b in stretches)]
    first = [next(i for i, (a, b) in enumerate(stretches) if a <= x and x + 30 <= b) for x in inside]
    assert segment_of(np.array(inside), segments, Fraction(1)).tolist() == first


def test_a_clip_as_long_as_its_segment_is_in_it_whatever_the_rounding():
    onsets = [Fraction(k, 7) for k in range(1, 200)]
    inexact = [float(at) + 30.0 > float(at + 30) for at in onsets]
    assert any(inexact)
    for at in onsets:
        for first in (Segment(0, 90, at), Segment(0, 90, at + 1)):
            segments = [first, Segment(90, 90, at)]
            assert segment_of(np.array([float(at)]), segments, Fraction(1, 3)).tolist() == [int(first.onset_s != at)]
    with pytest.raises(ValueError, match="lies in no segment"):
        segment_of(np.array([0.1]), [Segment(0, 90, Fraction(0))], Fraction(1, 3))


def test_stretches_are_not_walked_for_every_stage(monkeypatch):
    """An EDF+D recording may have a stretch a record: of the 6.4 s that one of 64,000 took, the walks were 4.7 s."""
    walks = []

    class Counted(list):
        def __iter__(self):
            walks.append(None)
            return super().__iter__()

    monkeypatch.setattr(labels, "stretches_of", lambda n_s, segments: Counted([(0.0, 100.0), (200.0, 6300.0)]))
    clip_labels(scored(*((30.0 * i, 30.0, "N2") for i in range(200))), 6300)
    assert len(walks) < 10


def test_fractional_records_reach_the_end_exactly():
    # 7 records of 30/7 s end at 30 s, though no float holds 30/7
    segments = (Stretch(0, 7, Fraction(0)), Stretch(7, 7, Fraction(1, 3) + 30))
    grid = clip_labels(None, float(Fraction(1, 3) + 60), segments)
    assert grid.onsets_s.tolist() == [0]
    grid = clip_labels(scored((1 / 3, 30, "W")), float(Fraction(1, 3) + 60), segments)
    assert grid.onsets_s.tolist() == pytest.approx([30 + 1 / 3])


def test_discontinuous_recording():
    from sleepfm_fast.edf import read_recording

    path = DATA / "awkward" / "edfReader__edfPlusD.edf"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set SLEEPFM_TEST_DATA")
    recording = read_recording(path)
    assert len(recording.segments) > 1
    grid = clip_labels(None, recording.duration_s, recording.segments)
    for onset_s in grid.onsets_s:
        inside = [
            s
            for s in recording.segments
            if s.onset_s <= onset_s and onset_s + 30 <= s.onset_s + s.n_records * recording.record_s
        ]
        assert len(inside) == 1


# Sleep-disordered breathing


@pytest.mark.parametrize(
    ("onset_s", "duration_s", "sdb"),
    [
        (35, 12, [0, 1, 0, 0]),
        (20, 20, [1, 1, 0, 0]),
        (20.5, 20, [0, 1, 0, 0]),
        (19, 22, [1, 1, 0, 0]),
        (26, 8, [1, 1, 0, 0]),
        (27, 8, [0, 1, 0, 0]),
        (20, 60, [1, 1, 1, 0]),
        (35, 4, [0, 1, 0, 0]),
        (-5, 14, [1, 0, 0, 0]),
        (-9, 14, [0, 0, 0, 0]),
        (110, 60, [0, 0, 0, 1]),
        (111, 60, [0, 0, 0, 0]),
        (60, None, [0, 0, 1, 0]),
        (59.9, 0.0, [0, 1, 0, 0]),
    ],
)
def test_sdb_rule(onset_s, duration_s, sdb):
    events = ((0, 120, "N2"), (onset_s, duration_s, "Obstructive apnea"))
    assert clip_labels(scored(*events), 120).sdb.tolist() == sdb


def test_two_halves_do_not_add_up():
    """Each event counts by itself: 6 s of one and 6 s of another, both longer than 12 s, are no event of 12 s."""
    grid = clip_labels(scored((0, 90, "N2"), (11, 25, "Hypopnea"), (54, 25, "Hypopnea")), 90)
    assert grid.sdb.tolist() == [1, 0, 1]


@pytest.mark.parametrize("text", ["RERA", "SpO2 desaturation", "Arousal", "Snore", "Unsure|Unsure"])
def test_other_events_are_not_sdb(text):
    events = ((0, 60, "N2"), (5, 20, text))
    assert clip_labels(scored(*events), 60).sdb.tolist() == [-1, -1]
    assert clip_labels(scored(*events, events_scored=True), 60).sdb.tolist() == [0, 0]
    assert clip_labels(scored(*events), 60, events_scored=True).sdb.tolist() == [0, 0]


def test_who_says_that_events_were_scored():
    events = ((0, 60, "N2"), (5, 20, "Hypopnea"))
    assert clip_labels(scored(*events), 60).sdb.tolist() == [1, 0]
    assert clip_labels(scored(*events, events_scored=False), 60).sdb.tolist() == [1, -1]
    assert clip_labels(scored((0, 60, "N2"), events_scored=True), 60).sdb.tolist() == [0, 0]


def test_before_the_first_stage_and_after_the_last_nobody_looked_for_events():
    events = ((90, 30, "N2"), (120, 30, "?"), (150, 30, "R"), (100, 20, "Hypopnea"), (215, 20, "Obstructive apnea"))
    grid = clip_labels(scored(*events), 300)
    assert grid.stage.tolist() == [-1, -1, -1, 2, -1, 4, -1, -1, -1, -1]
    assert grid.sdb.tolist() == [-1, -1, -1, 1, 0, 0, -1, 1, -1, -1], "an event that was scored there counts"
    assert clip_labels(scored((100, 20, "Hypopnea")), 150).sdb.tolist() == [0, 0, 0, 1, 0], "events alone: all of it"


# Properties over random scorings

WORDS = ["W", "N1", "N2", "N3", "R", "?", "Obstructive apnea", "Hypopnea", "Arousal"]


def random_scoring(rng: random.Random, n_s: int) -> list[tuple[float, float | None, str]]:
    """Draw times on whole tenths, so that an independent count by tenths of a second is exact."""
    events: list[tuple[float, float | None, str]] = [(rng.randrange(0, 60), 30, "W")]
    for _ in range(rng.randrange(1, 40)):
        text = rng.choice(WORDS)
        duration_s = rng.choice([30, 60, 300, 7, 25]) if stage_of(text) else rng.randrange(20, 700) / 10
        events.append((rng.randrange(-600, 10 * n_s) / 10, duration_s, text))
    return events


def by_tenths(events, onsets_s) -> tuple[list[int], list[int]]:
    """Stages and SDB by counting tenths of a second, one clip at a time: the rule restated."""
    stages, sdb = [], []
    told = [(a, a + d) for a, d, text in events if stage_of(text) not in (None, "none")]
    for onset_s in onsets_s:
        clip = range(round(10 * onset_s), round(10 * onset_s) + 300)
        covered: dict[int, set[int]] = {}
        latest: dict[int, float] = {}
        hit = 0
        for start, duration, text in events:
            ticks = set(range(max(round(10 * start), clip.start), min(round(10 * (start + duration)), clip.stop)))
            stage = stage_of(text)
            if stage is not None and ticks:
                code = -1 if stage == "none" else STAGES.index(stage)
                covered.setdefault(code, set()).update(ticks)
                latest[code] = max(latest.get(code, -1e9), start)
            if respiratory_event_of(text) is not None and len(ticks) >= min(100, 5 * duration):
                hit = 1
        outside = onset_s + 30 <= min(a for a, _ in told) or onset_s >= max(b for _, b in told)
        sdb.append(-1 if outside and not hit else hit)
        best = sorted(((len(ticks), latest[code], code) for code, ticks in covered.items()), reverse=True)
        if not best or len(set().union(*covered.values())) < 150 or (len(best) > 1 and best[0][:2] == best[1][:2]):
            stages.append(-1)
        else:
            stages.append(best[0][2])
    return stages, sdb


@pytest.mark.parametrize("seed", range(40))
def test_random_scorings_against_a_count_by_tenths(seed):
    rng = random.Random(seed)
    n_s = rng.randrange(60, 900)
    events = random_scoring(rng, n_s)
    grid = clip_labels(scored(*events), n_s, events_scored=True)
    anchored = min(event[0] for event in events if stage_of(event[2]) not in (None, "none"))
    assert all(((onset - anchored) / 30) == pytest.approx(round((onset - anchored) / 30)) for onset in grid.onsets_s)
    assert len(grid.onsets_s) == int((n_s - anchored % 30 + 1e-9) // 30)
    stages, sdb = by_tenths(events, grid.onsets_s)
    assert grid.stage.tolist() == stages
    assert grid.sdb.tolist() == sdb
    assert grid.stage.dtype == grid.sdb.dtype == np.int8
    assert grid.onsets_s.dtype == np.float64


@pytest.mark.parametrize("seed", range(10))
def test_order_does_not_matter(seed):
    rng = random.Random(seed)
    events = random_scoring(rng, 600)
    first = clip_labels(scored(*events), 600)
    second = clip_labels(scored(*rng.sample(events, len(events))), 600)
    for name in ("onsets_s", "stage", "sdb"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.issues == second.issues


@pytest.mark.parametrize("seed", range(10))
def test_shifting_by_an_epoch_shifts_the_labels_by_one(seed):
    events = random_scoring(random.Random(seed), 600)
    first = clip_labels(scored(*events), 600, events_scored=True)
    later = clip_labels(scored(*((a + 30, b, c) for a, b, c in events)), 600, events_scored=True)
    np.testing.assert_allclose(first.onsets_s, later.onsets_s, atol=1e-6)
    np.testing.assert_array_equal(first.stage[:-1], later.stage[1:])
    np.testing.assert_array_equal(first.sdb[:-1], later.sdb[1:])


# Events that cannot be


def test_an_event_that_was_never_ended_makes_no_clip_an_event():
    stages = [(30.0 * k, 30.0, "N2") for k in range(40)]
    events = [(65.0, 20.0, "Hypopnea"), (300.0, 600.0, "Obstructive apnea"), (425.0, 20.0, "Hypopnea")]
    grid = clip_labels(scored(*stages, *events), 1200)
    expected = np.zeros(40, int)
    expected[10:30] = -1
    expected[[2, 14]] = 1
    assert grid.sdb.tolist() == expected.tolist()
    (issue,) = grid.issues
    assert issue.startswith(
        "1 of 3 respiratory events is longer than any apnoea or hypopnoea lasts, the longest of 600"
    )
    assert "milliseconds" not in issue
    longest = clip_labels(scored(*stages, (300.0, 300.0, "Obstructive apnea")), 1200)
    assert (np.flatnonzero(longest.sdb == 1).tolist(), longest.issues) == ([*range(10, 20)], ())
    longer = clip_labels(scored(*stages, (300.0, 300.5, "Obstructive apnea")), 1200)
    assert np.flatnonzero(longer.sdb == -1).tolist() == [*range(10, 20)]


def test_durations_in_milliseconds_are_said_to_be_so():
    stages = [(30.0 * k, 30.0, "N2") for k in range(40)]
    grid = clip_labels(scored(*stages, (305.0, 15_000.0, "Hypopnea"), (605.0, 22_000.0, "Hypopnea")), 1200)
    assert counts(grid.sdb) == {-1: 30, 0: 10}
    assert "the column's name, Duration (ms)" in grid.issues[0]
