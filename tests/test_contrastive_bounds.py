"""What the checks of the contrastive loss let pass and what not: errors that all elements share, planted in results."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from contrastive_cases import DIRECTIONS, MODES, Result, check_values, embeddings, evaluate, random_mask, twins
from instruction_sets import results_with

import sleepfm_fast
from sleepfm_fast import ops
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics

N_DIM = 512
# Samples, scale; mode, directions and masked take turns. N = 300 is more than one block of the tiles, 64 is not.
SIZES = ((64, 100.0), (300, 100.0), (64, 14.0), (300, 14.0), (64, 1.0), (300, 1.0))
WAYS = list(itertools.product(MODES, DIRECTIONS, (False, True)))
CASES = [(*size, *WAYS[(3 * k + j) % len(WAYS)]) for k, size in enumerate(SIZES) for j in (0, 5)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# The largest share by which a result of each type may be wrong as a whole, scale by scale. In float32: 2e-4 is what
# eight units of a logit's rounding at 100 come to. A 16-bit gradient is rounded to half its epsilon.
PLANTED = {100.0: 2e-4, 14.0: 2e-5, 1.0: 2e-5}
SLOPE_PLANTED = {100.0: 2e-4, 14.0: 1e-4, 1.0: 2e-3}
MESSAGES = {"d_x": "gradient of|norm of d_x", "loss": "loss of", "d_log_temperature": "slope of|norm of d_log"}


def problem(case, dtype):
    """x, log temperature and options."""
    n_samples, scale, mode, directions, masked = case
    mask = random_mask(3, n_samples) if masked else None
    x = embeddings("random", 3, n_samples, N_DIM).to(dtype)
    return x, math.log(scale), {"mode": mode, "directions": directions, "mask": mask}


def computed(case, dtype):
    x, log_temperature, options = problem(case, dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return evaluate(ops.contrastive_loss, x, torch.tensor(log_temperature, dtype=exact), **options)


@functools.cache
def twins_of(case, dtype):
    """The same for every instruction set and planted error."""
    x, log_temperature, options = problem(case, dtype)
    return twins(x, log_temperature, **options)


SCRIPT = """
import sys, torch, test_contrastive_bounds as t
found = [[t.computed(case, dtype) for case in t.CASES] for dtype in t.DTYPES]
torch.save([[(*r[:3], *r.statistics) for r in of] for of in found], sys.argv[1])
"""


@pytest.mark.parametrize("name", sleepfm_fast.build_info()["cpu_instruction_sets"])
def test_planted_errors_are_seen_whichever_instructions_compute(name: str, tmp_path: Path) -> None:
    found = results_with(name, SCRIPT, tmp_path)
    for dtype, of in zip(DTYPES, found, strict=True):
        for case, (loss, d_x, slope, *statistics) in zip(CASES, of, strict=True):
            check_planted(Result(loss, d_x, slope, ContrastiveStatistics(*statistics)), case, dtype)


def check_planted(result: Result, case: tuple, dtype: torch.dtype) -> None:
    """The result passes, and no longer where its gradient, loss or slope is multiplied by a little more than 1."""
    x, log_temperature, options = problem(case, dtype)
    scale, of = case[1], twins_of(case, dtype)
    check_values(result, x, log_temperature, of, **options)
    of_gradient = torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else PLANTED[scale]
    shares = {"d_x": of_gradient, "loss": PLANTED[scale], "d_log_temperature": SLOPE_PLANTED[scale]}
    if dtype == torch.float16 and scale < 100:  # its gradients are below the smallest normal number
        del shares["d_x"]
    for field, share in shares.items():
        value = getattr(result, field)
        for sign in (-1, 1):
            planted = (value.double() * (1 + sign * share)).to(value.dtype)
            wrong = result._replace(**{field: planted})
            with pytest.raises(AssertionError, match=MESSAGES[field]):
                check_values(wrong, x, log_temperature, of, **options)
