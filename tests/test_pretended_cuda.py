"""Commands and operations on a CUDA device that is none (``pretended_cuda/``): where tensors lie and the host waits."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sleepfm_fast import train
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.ops.cuda_kernels import ARCHITECTURES

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "pretended_cuda"
TORCH = Path(torch.__file__).parent
TESTED = (2, 13)  # whose headers device.cpp is known to compile with
SMALL = ("--preset", "tiny", "--batch-size", "8", "--max-steps", "12", "--threads", "1")
TINY_STEPS = 12

pytestmark = [
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has a CUDA device of its own"),
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs Linux and g++"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    library = tmp_path_factory.mktemp("pretended_cuda") / "device.so"
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{TORCH / 'include'}", str(SOURCES / "device.cpp")]
    command += ["-o", str(library), f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if done.returncode and version != TESTED:
        pytest.skip(f"device.cpp does not compile with the headers of torch {torch.__version__}")
    assert done.returncode == 0, done.stderr
    paths = [str(SOURCES), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PRETENDED_CUDA": str(library), "PYTHONPATH": os.pathsep.join(paths)}


def on_device(environment: dict[str, str], notes: Path, *command: object) -> dict[str, int]:
    """Run a command with ``--device cuda``; where it waited, and what it copied to the device."""
    arguments = [sys.executable, str(SOURCES / "device.py"), str(notes), *map(str, command), "--device", "cuda"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    noted: dict[str, int] = json.loads(notes.read_text(encoding="utf-8"))
    return noted


def in_steps(noted: dict[str, int], n_steps: int) -> dict[str, int]:
    """What happened in every step, or more often, but for the checkpoints and the way of the model to the device."""
    elsewhere = ("runs/checkpoints.py", "training/validation.py", "training/facts.py")
    return {
        place: n
        for place, n in noted.items()
        if n >= n_steps and "without waiting" not in place and place.split()[-1].split(":")[0] not in elsewhere
    }


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"] + [
        row["validation_loss"] for row in rows if row["kind"] == "epoch"
    ]


def test_trains_as_on_the_cpu_and_waits_once_a_step(environment, cohort_store, tmp_path):
    options = [*SMALL, "--lr", "0.01", "--dropout", "0"]  # whose draws are others on CUDA
    assert train.cli([str(cohort_store), str(tmp_path / "cpu"), *options, "--device", "cpu"]) == 0
    noted = on_device(environment, tmp_path / "notes", "train", cohort_store, tmp_path / "cuda", *options)
    expected = losses(tmp_path / "cpu")
    assert len(expected) >= 2
    np.testing.assert_allclose(losses(tmp_path / "cuda"), expected, rtol=1e-5)
    waits = in_steps(noted, TINY_STEPS)
    moved = [place for place in waits if place.startswith("upload training/contrastive.py")]  # the model, once
    assert len(moved) == 1
    del waits[moved[0]]
    (where,) = waits
    assert re.fullmatch(r"wait training/loop\.py:\d+", where)
    assert waits[where] == TINY_STEPS

    on_device(environment, tmp_path / "notes", "embed", tmp_path / "cuda", cohort_store, tmp_path / "embeddings")
    found = Embeddings(tmp_path / "embeddings")
    assert np.isfinite(np.asarray(found.vectors)).all()


@pytest.mark.parametrize(
    "options",
    [
        [*SMALL, "--precision", "bfloat16", "--micro-batch", "3", "--modality-dropout", "0.5", "--mode", "pairwise"],
        [*SMALL, "--modalities", "brain", "--loss-scale", "sum", "--directions", "row"],
    ],
    ids=["parts", "one modality"],
)
def test_other_ways_to_train(environment, cohort_store, tmp_path, options):
    noted = on_device(environment, tmp_path / "notes", "train", cohort_store, tmp_path / "run", *options)
    waits = [place for place in in_steps(noted, TINY_STEPS) if not place.startswith("upload training/contrastive.py")]
    assert len(waits) == 1
    assert all(np.isfinite(losses(tmp_path / "run")))


@pytest.mark.skipif(not ARCHITECTURES, reason="this build has no CUDA kernels")
def test_fused_blocks(environment, planted, tmp_path):
    options = ["--precision", "bfloat16", "--fused-blocks"]
    training = ["--max-steps", "1", "--batch-size", "4", "--threads", "1", "--dropout", "0"]
    run, embeddings = tmp_path / "run", tmp_path / "embeddings"
    on_device(environment, tmp_path / "notes", "train", planted, run, *training, *options)
    assert all(np.isfinite(losses(run)))
    on_device(environment, tmp_path / "notes", "embed", run, planted, embeddings, *options)


def test_a_supervised_network(environment, cohort_store, tmp_path):
    run = tmp_path / "run"
    noted = on_device(environment, tmp_path / "notes", "supervise", cohort_store, run, "--task", "stage", *SMALL)
    assert sum(n == TINY_STEPS for place, n in noted.items() if place.startswith("wait training/loop.py")) == 1
    table = tmp_path / "stages.csv"
    on_device(environment, tmp_path / "notes", "classify", run, cohort_store, "--table", table, "--subjects", "all")
    assert table.stat().st_size > 0


LOSSES = """
import device
from device import DeviceTensor, NOTED, PretendedCuda, values_of
import torch
from test_contrastive_gemm import Emulator
from sleepfm_fast.ops import contrastive_chunked as chunked, contrastive_gemm as gemm

gemm.TILE_EDGE = 24

class Kernels(Emulator):
    def bind(self, fields):
        launch = super().bind({name: values_of(value) for name, value in fields.items()})
        return lambda step, changed: launch(step, {name: values_of(value) for name, value in changed.items()})

def agree(ours, other, tolerance):
    assert isinstance(ours, DeviceTensor) and isinstance(other, DeviceTensor)
    torch.testing.assert_close(values_of(ours), values_of(other), rtol=tolerance, atol=tolerance)

with PretendedCuda():
    for mode in ("leave_one_out", "pairwise"):
        for masked in (False, True):
            x, tau, one = (values.to("cuda") for values in (torch.randn(3, 40, 24), torch.ones(()), torch.ones(())))
            mask = (torch.rand(3, 40) > 0.3).to("cuda") if masked else None
            gemm.multiply(x[0].half(), x[0].half().T, x.new_empty(40, 40))  # asks torch what it can, once, and waits
            NOTED.clear()
            call = (x, tau, mask, mode, "both", 0, 40)
            plain = chunked.forward(*call)
            d_plain = chunked.backward(one, *call[:3], *plain[4:6], *call[3:])
            for precision, tolerance in (("high", 2e-4), ("highest", 1e-6)):
                call = (x, tau, mask, mode, "both", precision, 0, 40)
                result = gemm.forward(*call, launcher=Kernels())
                d = gemm.backward(one, *call[:3], *result[4:6], *call[3:], launcher=Kernels())
                agree(result[0], plain[0], tolerance)
                agree(d[0], d_plain[0], tolerance)
            assert not NOTED, NOTED
print("done")
"""


def test_the_loss_of_large_batches_waits_for_nothing(environment):
    """So that a CUDA graph can have it: the path of torch's operations, and that of the library's products."""
    command = [sys.executable, "-c", LOSSES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["done"]


MIXED = """
import device
from device import NOTED, PretendedCuda
import torch

with PretendedCuda():
    x, mask = torch.randn(4, 3, device="cuda"), torch.tensor([True, False, True, False])
    assert (x.device.type, x.is_cuda, (x + 1).device) == ("cuda", True, x.device)
    for wrong in (lambda: x + torch.ones(3), lambda: x.index_select(0, torch.tensor([1])), lambda: x.numpy()):
        try:
            wrong()
        except (RuntimeError, TypeError) as error:
            assert "same device" in str(error) or "numpy" in str(error), error
        else:
            raise AssertionError("not refused")
    assert not NOTED, NOTED
    there = mask.to("cuda")
    for waits in (lambda: x.sum().item(), lambda: x[there], lambda: x.cpu(), lambda: x[mask]):
        NOTED.clear()
        waits()
        assert NOTED.get("wait elsewhere") == 1, NOTED
    NOTED.clear()
    torch.ones(3).to("cuda")
    assert NOTED == {"upload elsewhere": 1}
print("done")
"""


def test_the_device_refuses_and_notes_what_a_gpu_would(environment):
    done = subprocess.run(
        [sys.executable, "-c", MIXED], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["done"]
