import hashlib
import itertools

import numpy as np
import pytest

from sleepfm_fast.runs.origin import Seen, seen_by, split_before
from sleepfm_fast.runs.splits import Split, assign_subjects, draw_subjects

NAMES = [f"subject-{i}" for i in range(2000)]


def share_of(name: str, salt: str) -> float:
    return int(hashlib.sha256(f"{salt}/{name}".encode()).hexdigest(), 16) / 2**256


def test_expected_shares():
    codes, notices = assign_subjects(NAMES, Split())
    shares = np.bincount(codes, minlength=3) / len(NAMES)
    assert notices == ()
    # three standard deviations of a binomial with n = 2000
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=3 * np.sqrt(0.25 / 2000))


def test_adding_subjects_moves_nobody():
    few, _ = assign_subjects(NAMES[:100], Split())
    many, _ = assign_subjects(NAMES, Split())
    np.testing.assert_array_equal(few, many[:100])


def test_order_of_subjects_does_not_matter():
    forwards, _ = assign_subjects(NAMES[:50], Split())
    backwards, _ = assign_subjects(NAMES[:50][::-1], Split())
    np.testing.assert_array_equal(forwards, backwards[::-1])


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_small_cohorts_fill_every_split_and_say_so(n):
    for start in range(0, 200, n):
        codes, notices = assign_subjects(NAMES[start : start + n], Split())
        assert set(codes) == {0, 1, 2}
        assert all("may change when subjects are added" in notice for notice in notices)


def test_the_split_is_the_one_that_the_rule_says():
    """By the words of the rule alone: a study repeated elsewhere, or years later, tests on the same subjects."""
    split = Split(salt="study", validation=0.25, test=0.125)
    assert "'study/<subject>' mapped to [0, 1): below 0.125 test, below 0.375 validation" in split.rule()
    shares = [share_of(name, "study") for name in NAMES]
    codes, _ = assign_subjects(NAMES, split)
    assert codes.tolist() == [2 if share < 0.125 else 1 if share < 0.375 else 0 for share in shares]


def test_who_fills_an_empty_split_is_the_nearest_of_the_largest():
    """The assignment then differs least from that of the same subjects in a larger cohort."""
    begins, ends = (0.3, 0.2, 0.0), (1.0, 0.3, 0.2)  # of the shares that train, validate, test
    filled = set()
    for n, start in itertools.product((3, 4, 5, 6), range(0, 1990, 5)):
        names = NAMES[start : start + n]
        shares = [share_of(name, Split().salt) for name in names]
        by_hash = [next(c for c in range(3) if begins[c] <= share < ends[c]) for share in shares]
        (empty, *others) = [c for c in range(3) if c not in by_hash] or [None]
        if empty is None or others:
            continue
        codes = assign_subjects(names, Split())[0].tolist()
        (moved,) = (i for i in range(n) if codes[i] != by_hash[i])
        largest = [i for i in range(n) if by_hash[i] == by_hash[moved]]
        assert len(largest) == max(by_hash.count(c) for c in range(3))
        away = {i: max(begins[empty] - shares[i], shares[i] - ends[empty]) for i in largest}
        assert (codes[moved], moved) == (empty, min(away, key=away.get))
        filled.add((empty, by_hash[moved]))
    assert filled >= {(1, 0), (2, 0), (0, 2)}, "validation and test from train, train from test"


def test_two_subjects_train_and_test():
    for pair in zip(NAMES[:60:2], NAMES[1:60:2], strict=True):
        codes, notices = assign_subjects(pair, Split())
        assert sorted(codes) == [0, 2]
        assert any("only two subjects" in notice for notice in notices)
        assert not any("validation split" in notice for notice in notices)


def test_one_subject_overlaps_and_says_so():
    codes, notices = assign_subjects(["a"], Split())
    assert list(codes) == [-1]
    assert "memorisation" in notices[0]


def test_a_share_of_nothing_stays_empty():
    codes, notices = assign_subjects(NAMES[:30], Split(test=0))
    assert 2 not in codes
    assert notices == ()
    codes, notices = assign_subjects(NAMES[:5], Split(test=0, validation=0))
    assert set(codes) == {0}
    assert notices == ()


def test_another_salt_is_another_split():
    one, _ = assign_subjects(NAMES, Split())
    other, _ = assign_subjects(NAMES, Split(salt="other"))
    assert (one != other).mean() > 0.2


def test_a_subject_that_a_run_was_trained_with_is_never_moved_into_the_test_split():
    known = {name: int(code) for name, code in zip(NAMES, assign_subjects(NAMES, Split())[0], strict=True)}
    trained = [name for name in NAMES if known[name] == 0][:4]
    alone, _ = assign_subjects(trained, Split())
    assert 2 in alone, "without the run's splits one of them would be tested on"
    codes, notices = assign_subjects(trained, Split(), known)
    assert set(codes) == {0}
    assert any("test split has none of the 4 subjects" in notice for notice in notices)
    # a new subject may be moved, the known ones may not
    new = next(f"new-{i}" for i in range(99) if assign_subjects([*NAMES, f"new-{i}"], Split())[0][-1] == 0)
    codes, _ = assign_subjects([*trained, new], Split(), known)
    assert codes.tolist() == [0, 0, 0, 0, 2]


def test_a_split_that_a_small_cohort_got_by_moving_stays_when_subjects_are_added():
    for start in range(0, 200, 5):
        few = NAMES[start : start + 5]
        codes, _ = assign_subjects(few, Split())
        known = dict(zip(few, codes.tolist(), strict=True))
        more, _ = assign_subjects([*few, *NAMES[300:310]], Split(), known)
        np.testing.assert_array_equal(more[:5], codes)


def test_draws_are_nested_and_differ_between_replicates():
    subjects = [f"s{i}" for i in range(50)]
    larger = draw_subjects(subjects, 20)
    assert draw_subjects(subjects[::-1], 8) == larger[:8]
    assert set(draw_subjects(subjects, 20, replicate=1)) != set(larger)
    assert set(draw_subjects(subjects, 99)) == set(subjects)
    with_more = draw_subjects([*subjects, "new"], 20)
    assert len(set(with_more) - set(larger)) <= 1


@pytest.mark.parametrize(
    ("config", "subjects", "complete"),
    [
        (None, {}, False),  # weights alone
        ({"subjects": {}}, {}, False),  # the authors' checkpoint, imported
        ({"subjects": {"a": 0, "b": 2}}, {"a": 0, "b": 2}, True),
        ({"subjects": {"a": 0}, "initialised_from": {"subjects": {"a": 0}, "subjects_known": True}}, {"a": 0}, True),
        ({"subjects": {"a": 0}, "initialised_from": {"subjects": {}, "subjects_known": False}}, {"a": 0}, False),
        ({"subjects": {"a": 0}, "initialised_from": {"subjects": {}}}, {"a": 0}, False),  # of before this was kept
    ],
)
def test_whom_weights_have_seen_is_known_only_if_it_is_for_all_their_trainings(config, subjects, complete):
    assert seen_by(config) == Seen(subjects, complete)


def test_a_training_from_nothing_has_seen_nobody_and_a_resumed_one_those_of_its_start():
    assert split_before(None) == Seen({}, complete=True)
    assert split_before({"subjects": {"a": 2}, "subjects_known": True}) == Seen({"a": 2}, complete=True)
    assert split_before({"subjects": {"a": 2}}) == Seen({"a": 2}, complete=False)
