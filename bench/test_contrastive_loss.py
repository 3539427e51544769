"""Forward and backward of the contrastive loss, M = 3, D = 512, leave-one-out, both directions.

Ours returns the ranks and counts of every clip as well; the rivals compute the loss only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import loss_rivals
import memory
import pytest
import torch

from sleepfm_fast import build_info

# Of torch about itself, where it compiles the rival's autograd function.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch._prims_common.check:FutureWarning"),
]

SETUP = """
import sys
sys.path.insert(0, {folder!r})
import loss_rivals
x, tau = loss_rivals.inputs({n})
loss = loss_rivals.{loss}
loss_rivals.step(loss, x, tau)
x.grad = tau.grad = None
"""
# Above this one call of the slow rivals costs seconds, and what it would say is known at the sizes below.
LARGEST_OF_ALL_RIVALS = 2048
ROUNDS = {32: 100, 512: 10, 2048: 6, 4096: 6}
# Times as fast as the fastest rival, measured on two cores of Zen 4: 1.25 to 1.4, 1.35, 1.35 from N = 512 on. Three
# products at this processor's peak, 230 GFLOP/s, would be 1.6 times as fast as it at N = 512 and 2.0 times at 4096.
# N = 32, gradients in the forward pass: 2.7 on two busy cores of Zen 3.
AT_LEAST = {32: 2.0, 512: 1.1, 2048: 1.1, 4096: 1.1}
# Who writes the derivative out makes the same three products a problem; what is left are launches and passes.
BY_HAND_AT_LEAST = {32: 1.5, 512: 0.9, 2048: 0.9, 4096: 0.9}
MEMORY_N = 8192
EAGER, BY_HAND, COMPILED = "PyTorch", "PyTorch, derivative by hand", "torch.compile, derivative by hand"
SHARE_OF_MEMORY = {EAGER: 0.1, BY_HAND: 0.5, COMPILED: 0.5}  # measured: 0.08, 0.34, 0.35
# Times as fast at that size, by instruction set. Measured on Sapphire Rapids: 5.4, 1.7 and 1.7 with tiles, 1.9, 0.8 and
# 0.8 with AVX-512; on Zen 4: 1.5 for the first. Without tiles a fourth product, the cosines once more, costs what it
# saves in memory.
WITHOUT_TILES = {EAGER: 1.2, BY_HAND: 0.7, COMPILED: 0.7}
MEMORY_AT_LEAST = {
    "amx": {EAGER: 3.0, BY_HAND: 1.3, COMPILED: 1.3},
    "avx512_bf16": WITHOUT_TILES,
    "avx512": WITHOUT_TILES,
    "avx2": WITHOUT_TILES,
}


def agree(results):
    """Float32 throughout. A gradient element sums N terms of both signs: 1e-5 of the largest element."""
    value, d_x, d_tau = results["ours"]
    for other_value, other_d_x, other_d_tau in results.values():
        torch.testing.assert_close(other_value, value, rtol=1e-5, atol=0)
        torch.testing.assert_close(other_d_x, d_x, rtol=0, atol=1e-5 * float(d_x.abs().max()))
        torch.testing.assert_close(other_d_tau, d_tau, rtol=1e-4, atol=1e-5)


def name_of(n):
    return f"contrastive loss, forward + backward, N = {n}, D = {loss_rivals.D}, M = {loss_rivals.M}"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("n", ROUNDS)
def test_contrastive_loss(versus, quick, n):
    if quick and n > 2048:
        pytest.skip("not in quick mode: it takes seconds a call")
    losses = {"ours": "fused", "PyTorch": "eager", "PyTorch, derivative by hand": "by_hand"}
    if n <= LARGEST_OF_ALL_RIVALS:
        losses["reference"] = "by_definition"
        if hasattr(torch.nn.functional, "linear_cross_entropy"):
            losses["F.linear_cross_entropy"] = "linear_cross_entropy"
    if not quick:  # tens of seconds of compiling
        losses["torch.compile"] = "compiled()"
        losses["torch.compile, derivative by hand"] = "compiled_by_hand()"
    x, tau = loss_rivals.inputs(n)
    arms = {}
    for arm, name in losses.items():
        loss = getattr(loss_rivals, name.removesuffix("()"))
        loss = loss() if name.endswith("()") else loss
        arms[arm] = partial(loss_rivals.step, loss, x, tau)

    measured = {arm: name for arm, name in losses.items() if arm != "reference"}
    if quick:
        measured = {arm: measured[arm] for arm in ("ours", "PyTorch")} if n == 512 else {}
    folder = str(Path(__file__).parent)
    peak = {
        arm: (SETUP.format(folder=folder, n=n, loss=name), "loss_rivals.step(loss, x, tau)")
        for arm, name in measured.items()
        if n > 32  # below, the memory is that of a few pages
    }
    result = versus(
        name_of(n),
        arms,
        agree=agree,
        rounds=ROUNDS[n],
        peak=peak,
    )
    for rival in measured:
        if rival != "ours":
            result.require(rival, at_least=BY_HAND_AT_LEAST[n] if "by hand" in rival else AT_LEAST[n])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's own
def test_peak_memory(versus, quick):
    """Nothing is kept at this size: ours takes a tenth of PyTorch's memory, and half of what a matrix at a time takes.

    The rivals that keep a matrix of exponentials, 256 MiB, make three products a problem; ours makes the cosines again.
    """
    if quick:
        pytest.skip("not in quick mode: it takes seconds a call, and PyTorch 3 GB")
    folder = str(Path(__file__).parent)
    losses = {"ours": "fused", EAGER: "eager", BY_HAND: "by_hand", COMPILED: "compiled_by_hand()"}
    peaks = {
        arm: memory.peak_rss_mib(
            SETUP.format(folder=folder, n=MEMORY_N, loss=name),
            "loss_rivals.step(loss, x, tau)",
        )
        for arm, name in losses.items()
    }
    for rival, share in SHARE_OF_MEMORY.items():
        assert peaks["ours"] < share * peaks[rival], peaks
    x, tau = loss_rivals.inputs(MEMORY_N)
    arms = {}
    for arm, name in losses.items():
        loss = getattr(loss_rivals, name.removesuffix("()"))
        arms[arm] = partial(loss_rivals.step, loss() if name.endswith("()") else loss, x, tau)
    result = versus(name_of(MEMORY_N), arms, agree=agree, rounds=4, more={"peak_rss_mib": peaks})
    for rival, at_least in MEMORY_AT_LEAST.get(build_info()["cpu_instruction_set_in_use"], {}).items():
        result.require(rival, at_least=at_least)
