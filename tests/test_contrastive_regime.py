"""Which CUDA path the contrastive loss takes."""

import pytest
import torch

from sleepfm_fast.ops import contrastive_chunked, contrastive_cuda
from sleepfm_fast.ops.contrastive_regime import GEMM_SAMPLES, REGIMES, SMALL_SAMPLES, regime

A100, RTX_3090, RTX_4090, H200, B200, RTX_5090 = (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)
ORIN = (8, 7)  # 164 KB of shared memory, as the A100


@pytest.mark.parametrize(
    ("expected", "n_samples", "n_dim", "n_modalities", "dtype", "precision", "capability"),
    [
        # The batch that the published code trains with, and larger ones.
        ("small", 32, 512, 3, torch.float32, "highest", H200),
        ("small", 128, 128, 4, torch.bfloat16, "high", A100),
        ("small", 1, 1, 2, torch.float16, "high", RTX_3090),
        ("mma", 1024, 512, 3, torch.float32, "highest", H200),
        ("mma", 3071, 512, 3, torch.float32, "highest", H200),
        ("gemm", 3072, 512, 3, torch.float32, "highest", H200),
        ("mma", 3071, 512, 3, torch.float32, "high", H200),
        ("gemm", 3072, 512, 3, torch.float32, "high", H200),
        ("mma", 3071, 256, 3, torch.float32, "highest", H200),
        ("mma", 2048, 512, 3, torch.float32, "highest", A100),
        ("gemm", 32768, 512, 3, torch.float32, "high", H200),
        ("gemm", 131072, 512, 3, torch.bfloat16, "highest", B200),
        ("mma", 32768, 128, 4, torch.float32, "highest", H200),
        ("mma", 32768, 512, 3, torch.float32, "highest", A100),
        ("mma", 32768, 512, 3, torch.float32, "high", RTX_4090),
        ("gemm", 32768, 512, 3, torch.float32, "highest", RTX_4090),
        ("gemm", 32768, 512, 3, torch.float32, "highest", RTX_5090),
        ("mma", 32768, 512, 3, torch.float32, "highest", ORIN),
        ("mma", 32768, 256, 3, torch.float32, "highest", RTX_3090),
        # More dimensions than the tensor-core kernels take.
        ("small", 64, 1024, 3, torch.float32, "highest", H200),
        ("gemm", 1024, 513, 3, torch.float32, "high", A100),
        # What no kernel covers.
        ("chunked", 32768, 512, 3, torch.float64, "highest", H200),
        ("chunked", 0, 512, 3, torch.float32, "highest", H200),
        ("chunked", 32, 512, 3, torch.float32, "highest", (7, 5)),
    ],
)
def test_table(expected, n_samples, n_dim, n_modalities, dtype, precision, capability):
    assert regime(n_samples, n_dim, n_modalities, dtype, precision, capability) == expected


def test_builds_without_kernels():
    assert regime(32, 512, 3, torch.float32, "highest", H200, kernels=False) == "chunked"


@pytest.mark.parametrize("capability", [A100, RTX_3090, RTX_4090, H200, B200, RTX_5090, ORIN])
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("n_dim", [1, 64, 512, 513, 1024])
@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
def test_paths_follow_each_other_as_n_grows(capability, precision, n_dim, mode):
    """One path after the other, none comes back, and the one-launch kernel stays within its memory."""
    bounds = (SMALL_SAMPLES, SMALL_SAMPLES + 1, GEMM_SAMPLES - 1, GEMM_SAMPLES, 10**6)
    sizes = sorted({*range(1, 1200, 7), *bounds})
    order = [regime(n, n_dim, 3, torch.float32, precision, capability, mode) for n in sizes]
    places = [("small", "mma", "gemm").index(name) for name in order]
    assert places == sorted(places)
    assert order[0] == "small"
    assert all(name != "small" for n, name in zip(sizes, order, strict=True) if n > SMALL_SAMPLES)
    assert n_dim <= 512 or "mma" not in order


def test_override(monkeypatch):
    x = torch.zeros(3, 32, 64)
    for name in REGIMES:
        monkeypatch.setenv(contrastive_cuda.VARIABLE, name)
        assert contrastive_cuda.chosen_regime(x, "pairwise", "high") == name
    monkeypatch.setenv(contrastive_cuda.VARIABLE, "fastest")
    with pytest.raises(ValueError, match=r"is 'fastest'; choose one of small, mma, gemm, chunked, or unset it"):
        contrastive_cuda.chosen_regime(x, "pairwise", "high")


def by_the_older_function(precision):
    torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")


def by_the_newer_setting(precision):
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has one way to set the precision of products")
    torch.backends.cuda.matmul.fp32_precision = precision


@pytest.mark.parametrize("allow", [by_the_older_function, by_the_newer_setting])
def test_products_of_torch_keep_float32_whatever_the_process_allows(allow, monkeypatch):
    """Without kernels of ours "highest" is torch's float32, not TF32, which a process may allow."""
    found = []

    def seen(compute):
        def run(*arguments):
            found.append(torch.backends.cuda.matmul.allow_tf32)
            return compute(*arguments)

        return run

    monkeypatch.setenv(contrastive_cuda.VARIABLE, "chunked")
    for name in ("forward", "backward"):
        monkeypatch.setattr(contrastive_chunked, name, seen(getattr(contrastive_chunked, name)))
    x, tau = torch.ones(2, 5, 3).cumsum(1).sin(), torch.tensor(1.0)
    try:
        allow("tf32")
        before = torch.backends.cuda.matmul.fp32_precision if allow is by_the_newer_setting else None
        *_, n_valid, state = contrastive_cuda.forward(x, tau, None, "pairwise", "both", "highest", 0, 5)
        arguments = (torch.tensor(1.0), x, tau, None, n_valid, state, "pairwise", "both")
        contrastive_cuda.backward(*arguments, "highest", 0, 5)
        assert found == [False, False]
        if before is None:
            assert torch.get_float32_matmul_precision() == "high"
            contrastive_cuda.backward(*arguments, "high", 0, 5)
            assert found[2:] == [True]
        else:
            assert torch.backends.cuda.matmul.fp32_precision == before == "tf32"
    finally:
        allow("ieee")
        torch.set_float32_matmul_precision("highest")
