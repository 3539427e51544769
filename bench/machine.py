"""What a measurement was taken on: processor, cores, versions, instruction set, commit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import sleepfm_fast
from sleepfm_fast.system import processors

ROOT = Path(__file__).resolve().parent.parent
# Not needed by the package; compared with where they are installed.
RIVALS = ("edfio", "mne", "soxr", "triton", "memeff", "inf-cl", "cut-cross-entropy", "liger-kernel")
RIVALS += ("torchaudio", "julius", "onnxruntime", "openvino", "faiss-cpu")


def cpu_model() -> str:
    """Return the processor's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def commit(root: Path = ROOT) -> str:
    """Return the commit of the sources, with ``+changes`` where tracked files differ from it, or ``unknown``."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [
                "git",
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ".",
                ":!bench/results",
                ":!README.md",
                ":!docs/benchmarks.md",
            ],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SLEEPFM_COMMIT", "unknown") if root == ROOT else "unknown"
    return head.stdout.strip()[:12] + ("+changes" if changes.stdout.strip() else "")


def driver() -> str | None:
    """Return the NVIDIA driver's version, None where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def gpu_facts(torch: Any) -> dict[str, Any]:
    """Describe the current CUDA device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_driver": driver(),
    }


def record() -> dict[str, Any]:
    """Describe this machine and build; plain values only."""
    build = sleepfm_fast.build_info()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    result: dict[str, Any] = {
        "cpu_model": cpu_model(),
        "cpu_cores": processors(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "instruction_set": build["cpu_instruction_set_in_use"],
        "compiler": build["compiler"],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sleepfm_fast": sleepfm_fast.__version__,
        "commit": commit(),
        "load_average": round(os.getloadavg()[0], 1),
        "gpu": None,
    }
    for package in ("torch", "numpy", "scipy", "scikit-learn", "numba", "pyedflib", *RIVALS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[package] = importlib.metadata.version(package)
    if build["cuda_architectures"]:
        import torch

        if torch.cuda.is_available():
            result["gpu"] = torch.cuda.get_device_name()
            result["cuda"] = torch.version.cuda
            result |= gpu_facts(torch)
    return result
