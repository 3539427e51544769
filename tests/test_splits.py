import numpy as np
import pytest

from sleepfm_fast.splits import Split, assign_subjects

NAMES = [f"subject-{i}" for i in range(2000)]


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


def test_two_subjects_train_and_test():
    codes, notices = assign_subjects(["a", "b"], Split())
    assert sorted(codes) == [0, 2]
    assert any("only two subjects" in notice for notice in notices)


def test_one_subject_overlaps_and_says_so():
    codes, notices = assign_subjects(["a"], Split())
    assert list(codes) == [-1]
    assert "memorisation" in notices[0]


def test_another_salt_is_another_split():
    one, _ = assign_subjects(NAMES, Split())
    other, _ = assign_subjects(NAMES, Split(salt="other"))
    assert (one != other).mean() > 0.2
