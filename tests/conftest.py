"""What test files share: recordings, poisoned memory, a simulated cohort, the order of files, which tests need CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Before libraries with threads are imported: the threads of workers side by side wait for each other at barriers.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SEED = int(os.environ.get("SLEEPFM_TEST_SEED", "0"))  # another one shows which tests pass by luck of the draw


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real recordings that are not part of the project."""
    folder = Path(os.environ.get("SLEEPFM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real recordings are missing: {folder} (set SLEEPFM_TEST_DATA)")
    return folder


THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def _state(request):
    """No test sees random numbers, or has threads, that depend on which tests ran before it: commands set both."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - libraries under test may use the global state
    if request.node.get_closest_marker("cuda") is not None:
        torch.manual_seed(SEED)
    else:  # that function keeps three stacks as text for every test: what to do once a device is there
        torch.default_generator.manual_seed(SEED)
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session", autouse=True)
def _measured_copies():
    """Where coverage is measured, forked copies save what they ran with each result: after the last they are killed."""
    if "COVERAGE_PROCESS_CONFIG" not in os.environ:
        return
    from coverage import Coverage

    from sleepfm_fast.execution import forked

    packed = forked.packed

    def saved(*found: Any) -> memoryview:
        with contextlib.suppress(Exception):  # as where a test takes its own permissions away
            Coverage.current().save()
        return packed(*found)

    forked.packed = saved


@pytest.fixture
def poisoned() -> Callable[[Callable[[], Any]], Any]:
    """A function that calls another one while what torch.empty gives holds NaN."""

    def call(function: Callable[[], Any]) -> Any:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            return function()
        finally:
            torch.use_deterministic_algorithms(False)

    return call


@pytest.fixture
def spoilt_heap() -> Callable[[], None]:
    """A function that leaves NaN in what malloc gives next, which compiled code takes without torch."""

    def spoil() -> None:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = (ctypes.c_void_p,)
        n_bytes = 16 << 20
        for _ in range(2):  # the first goes back to the system, and tells glibc to keep the next one of this size
            block = libc.malloc(ctypes.c_size_t(n_bytes))
            ctypes.memset(block, 0xFF, n_bytes)
            libc.free(block)

    return spoil


# Workers take whole files (``--dist loadfile``): a long one taken last would leave the others without work. These take
# the longest, from 150 s down to 14.
FIRST_FILES = (
    "test_emulated_avx512.py",
    "test_software_tiles.py",
    "test_emulated_races.py",
    "test_kills.py",
    "test_contrastive_cuda_kernels.py",
    "test_inference.py",
    "test_cuda_binary.py",
    "test_distributed_training.py",
    "test_bench.py",
    "test_rank_bounds.py",
    "test_commands.py",
    "test_compat.py",
    "test_pretended_cuda.py",
    "test_system.py",
    "test_training.py",
    "test_bench_gpu.py",
    "test_pretrained.py",
    "test_distributed_supervise.py",
    "test_simulate.py",
    "test_reproduce.py",
    "test_mbconv.py",
    "test_cohort_jobs.py",
    "test_contrastive_loss.py",
    "test_findings.py",
    "test_mbconv_evaluate.py",
    "test_filters.py",
    "test_distributed.py",
    "test_precision.py",
    "test_cuda_on_cpu.py",
    "test_supervise.py",
    "test_seed_checkpoint.py",
    "test_waiting.py",
    "test_mbconv_bfloat16.py",
    "test_contrastive_loss_contract.py",
    "test_encoder_in_torch.py",
    "test_optimiser.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Have workers take files in the order of collection, not those of most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where workers share the tests, begin with the files that should not come last."""
    if worker:
        place = {name: k for k, name in enumerate(FIRST_FILES)}
        items.sort(key=lambda item: place.get(item.path.name, len(place)))


MOST_WORKERS = 8  # each needs up to 2.5 GB; from here on the longest file decides how long the tests take


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which the tests do not need
def pytest_xdist_auto_num_workers() -> int:
    """Answer ``-n auto``: the processors that this process may use, hyperthreads included."""
    from sleepfm_fast.system import processors

    given = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    return int(given) if given else min(processors(), MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)  # before fixtures, those of a module included
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip CUDA tests where there is no GPU, unless this machine is said to have one; hide it from all others."""
    from gpu_visibility import show_gpu

    marked = item.get_closest_marker("cuda") is not None
    show_gpu(marked)
    if not marked:
        return
    if not torch.cuda.is_available():
        if os.environ.get("SLEEPFM_REQUIRE_CUDA") == "1":
            pytest.fail("SLEEPFM_REQUIRE_CUDA=1, but torch sees no CUDA device")
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight simulated subjects, 21 minutes each."""
    from sleepfm_fast import simulate

    folder = tmp_path_factory.mktemp("cohort") / "edf"
    assert simulate.cli([str(folder), "--subjects", "8", "--hours", "0.35", "--seed", "3"]) == 0
    return folder


@pytest.fixture(scope="session")
def cohort_store(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip store of :func:`cohort`."""
    from sleepfm_fast import preprocess

    store = tmp_path_factory.mktemp("store") / "store"
    assert preprocess.cli([str(cohort), str(store)]) == 0
    return store


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip store of twelve subjects of 16 clips. EEG tells the stage; a third has no ECG, a quarter no flow."""
    from known_nights import ECG, EEG, FLOW, staged_night

    from sleepfm_fast import preprocess

    folder = tmp_path_factory.mktemp("planted") / "edf"
    folder.mkdir()
    for i in range(12):
        leads = [EEG, *([ECG] if i % 3 else []), *([FLOW] if i % 4 else [])]
        stages = np.random.default_rng(i).permutation(["W"] * 8 + ["2"] * 8)
        stages = [s if j else "?" for j, s in enumerate(stages)]  # the first clip is not scored
        staged_night(folder / f"p{i:02d}.edf", stages, seed=i, leads=leads)
    store = folder.parent / "store"
    assert preprocess.cli([str(folder), str(store), "--workers", "1"]) == 0
    return store
