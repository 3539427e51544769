"""The measure of agreement fails when it should."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close, assert_norm_close

TRUTH = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)


def test_passes_within_torchs_error_plus_term():
    ours = TRUTH + torch.tensor([[0.0, 0.0], [0.0, 0.3]], dtype=torch.float64)
    same = TRUTH - torch.tensor([[0.0, 0.0], [0.0, 0.2]], dtype=torch.float64)
    assert assert_close(ours, same, TRUTH, 0.15) == pytest.approx(0.3 / 0.35)


def test_names_the_worst_element():
    ours = TRUTH + torch.tensor([[0.2, 0.0], [0.7, 0.0]], dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"gradient: 2 of 4 elements .* the worst at \(1, 0\): ours 3\.7"):
        assert_close(ours, TRUTH, TRUTH, 0.1, "gradient")


def test_torchs_error_elsewhere_does_not_excuse():
    ours = TRUTH + torch.tensor([[0.2, 0.0], [0.0, 0.0]], dtype=torch.float64)
    same = TRUTH + torch.tensor([[0.0, 0.2], [0.2, 0.2]], dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"the worst at \(0, 0\)"):
        assert_close(ours, same, TRUTH, 0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_fails(value):
    ours = TRUTH.clone()
    ours[0, 1] = value
    with pytest.raises(AssertionError, match=r"1 of 4 .* the worst at \(0, 1\)"):
        assert_close(ours, TRUTH, TRUTH, 1e9)


def test_nan_that_only_torch_has_excuses_nothing():
    same = TRUTH.clone()
    same[1, 1] = float("nan")
    with pytest.raises(AssertionError, match=r"the worst at \(1, 1\)"):
        assert_close(TRUTH, same, TRUTH, 1.0)


def test_nan_in_all_three_agrees():
    everywhere = TRUTH.clone()
    everywhere[0, 0] = float("nan")
    assert assert_close(everywhere, everywhere, everywhere, 0.0) == 0.0


def test_shapes_and_truths_precision():
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_close(TRUTH[0], TRUTH, TRUTH, 1.0)
    with pytest.raises(AssertionError, match="must be float64"):
        assert_close(TRUTH, TRUTH, TRUTH.float(), 1.0)


def test_empty():
    empty = torch.empty(0, 3, dtype=torch.float64)
    assert assert_close(empty, empty, empty, 0.0) == 0.0


def test_norms_see_what_all_elements_share():
    ours, same = TRUTH * 1.01, TRUTH * 1.004
    size = float(TRUTH.norm())
    assert assert_norm_close(ours, same, TRUTH, 0.0021 * size) == pytest.approx(0.01 / 0.0101)
    with pytest.raises(AssertionError, match=r"gradient: the error's norm 0\.0548 is more than the allowed 0\.0493"):
        assert_norm_close(ours, same, TRUTH, 0.001 * size, "gradient")


def test_a_norm_that_is_not_a_number_fails():
    ours = TRUTH.clone()
    ours[0, 1] = float("nan")
    with pytest.raises(AssertionError, match="norm nan"):
        assert_norm_close(ours, TRUTH, TRUTH, 1e9)
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_norm_close(TRUTH[0], TRUTH, TRUTH, 1.0)
