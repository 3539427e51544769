"""What the machine can do and how exactly: errors and times of the loss path by path, copies, products, gpu_probe.cu.

``python bench/gpu_probe.py OUT.json`` writes numbers by name. Without a GPU the same code runs at toy sizes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cuda_events
import cuda_loss_rivals as rivals
import torch

from sleepfm_fast.ops import contrastive_cuda, contrastive_gemm, contrastive_small

HERE = Path(__file__).resolve().parent
CUDA = torch.cuda.is_available()


def products(n: int, chunk: int, dim: int) -> dict[str, float]:
    """TFLOP/s of the three products of a loss by chunks of rows, on random float16 data."""
    device = cuda_events.device()
    dtype = torch.float16 if CUDA else torch.float32
    results = {}
    for rows, inner, columns in ((n, dim, n), (chunk, dim, n), (chunk, n, dim), (n, chunk, dim)):
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(columns, inner, device=device, dtype=dtype).T
        out = torch.empty(rows, columns, device=device, dtype=dtype)

        def call(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> Any:
            return torch.mm(a, b, out=out)

        cuda_events.warmed_up(call)
        name = f"product {rows} x {inner} x {columns}, {str(dtype)[6:]} (TFLOP/s)"
        results[name] = 2e-12 * rows * inner * columns / cuda_events.measure(call)
    return results


def copies(n_bytes: int) -> dict[str, float]:
    """TB/s read and written by a copy within the device."""
    a = torch.randn(n_bytes // 4, device=cuda_events.device())
    b = torch.empty_like(a)
    cuda_events.warmed_up(lambda: b.copy_(a))
    return {"copy within the device (TB/s)": 2e-12 * n_bytes / cuda_events.measure(lambda: b.copy_(a))}


def launches() -> dict[str, float]:
    """Microseconds of an empty-handed launch through torch, in a row of many."""
    x = torch.zeros(1, device=cuda_events.device())
    cuda_events.warmed_up(lambda: x.add_(1))
    return {"a launch through torch (us)": 1e6 * cuda_events.measure(lambda: x.add_(1))}


def paths(n: int) -> dict[str, tuple[str, rivals.Loss]]:
    """Every path that may take N samples, and the loss in each precision that makes a difference there."""
    arms = {}
    for path in ("small", "mma", "gemm") if n <= contrastive_small.LARGEST_N else ("mma", "gemm"):
        for name, loss in (("highest", rivals.highest), ("high", rivals.high)):
            if (path, name) != ("small", "high"):  # one and the same
                arms[f"{path}, {name}"] = path, loss
    return arms


def times(sizes: tuple[int, ...], dims: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of forward and backward on every path: where contrastive_regime.py should change between them."""
    results = {}
    for dim in dims:
        for n in sizes:
            x, tau = rivals.inputs(n, cuda_events.device())
            x = x.detach()[..., :dim].contiguous().requires_grad_()
            for arm, (path, loss) in paths(n).items():
                os.environ[contrastive_cuda.VARIABLE] = path
                call = partial(rivals.step, loss, x, tau)
                cuda_events.warmed_up(call)
                results[f"N = {n}, D = {dim}: {arm} (ms)"] = float(f"{1e3 * cuda_events.measure(call):.4g}")
    del os.environ[contrastive_cuda.VARIABLE]
    return results


def products_of_halves() -> dict[str, bool]:
    """Whether torch gives float32 from float16 factors; else the library's path copies its operands to float32."""
    written, added = contrastive_gemm._mixed_products(cuda_events.device())
    return {"torch multiplies float16 to float32": written, "torch adds such products to float32": added}


def errors(n: int, what_they_share: float) -> dict[str, float]:
    """Relative error of a loss and of its gradients (norm for x's) against float64, path by path and for PyTorch.

    What tensor cores leave out where they add is seen here. ``what_they_share``: size of a direction that all samples
    have in common, as those of an untrained encoder have: sums of much that is alike lose most.
    """
    x, tau = rivals.inputs(n, cuda_events.device())
    x = (x.detach() + what_they_share * x.detach()[0, 0]).requires_grad_()
    os.environ[contrastive_cuda.VARIABLE] = "chunked"
    wide = rivals.step(rivals.highest, x.detach().double().requires_grad_(), tau.detach().double().requires_grad_())
    arms = {"PyTorch, float32": ("chunked", rivals.eager), **paths(n)}
    results = {}
    for arm, (path, loss) in arms.items():
        os.environ[contrastive_cuda.VARIABLE] = path
        value, d_x, d_tau = rivals.step(loss, x, tau)
        for what, ours, truth in zip(("loss", "gradient", "slope"), (value, d_x, d_tau), wide, strict=True):
            error = (ours.double() - truth).norm() / truth.norm()
            case = f"N = {n}" + (", alike" if what_they_share else "")
            results[f"error of the {what}, {case}: {arm}"] = float(f"{float(error):.2g}")
    del os.environ[contrastive_cuda.VARIABLE]
    return results


def probe() -> dict[str, Any]:
    """Compile gpu_probe.cu for this GPU and run it; without a GPU compile it only."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return {"gpu_probe.cu": "not run: nvcc is not on the PATH"}
    major, minor = torch.cuda.get_device_capability() if CUDA else (9, 0)
    name = f"{major}{minor}{'a' if major == 9 else ''}"
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "probe")
        target = ["-gencode", f"arch=compute_{name},code=sm_{name}", f"-DBULK={int(major >= 9)}"]
        command = [nvcc, "-std=c++17", "-O3", *target, "-o", program, str(HERE / "gpu_probe.cu")]
        subprocess.run(command, check=True, timeout=50)
        if not CUDA:
            return {"gpu_probe.cu": f"compiled for sm_{name}; there is no GPU to run it"}
        done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=30)
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    return {f"{words} ({unit})": float(value) for words, value, unit in rows}


def described(part: Callable[[], Any]) -> str:
    """Name of a measurement and what it was given, so that two that fail are told apart."""
    if isinstance(part, partial):
        return " ".join(map(str, (part.func.__name__, *part.args)))
    return part.__name__


def main(path: Path) -> int:
    """Write what could be measured; 1 where something could not."""
    results: dict[str, Any] = {}
    status = 0
    shapes = (32768, 8448, 512) if CUDA else (256, 64, 32)
    sizes = (512, 8192) if CUDA else (64,)
    timed = ((128, 256, 512, 1024, 2048, 4096, 8192), (128, 512)) if CUDA else ((64,), (512,))
    for part in (
        products_of_halves,
        *(partial(errors, n, share) for n in sizes for share in (0.0, 3.0)),
        partial(times, *timed),
        partial(copies, 2**32 if CUDA else 2**22),
        launches,
        partial(products, *shapes),
        probe,
    ):
        try:
            results |= part()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            results[f"failed: {described(part)}"] = f"{type(error).__name__}: {str(error)[:300]}"
            status = 1
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
