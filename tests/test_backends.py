"""What commands say about what runs: filter, encoders and loss, on which device, and where that is the slow way."""

import pytest
import torch
from called import last_json

from sleepfm_fast import build_info, classify, embed, supervise, train
from sleepfm_fast.encoder import PRESETS, build_encoder
from sleepfm_fast.model import backends
from sleepfm_fast.model.backends import encoder_backend, filter_backend, loss_backend
from sleepfm_fast.ops import contrastive_cuda

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ISA = build_info()["cpu_instruction_set_in_use"]
PUBLISHED, TINY = (build_encoder(1, PRESETS[name]) for name in ("seed", "tiny"))


def with_kernels(monkeypatch, there, capability=(9, 0)):
    for module in (backends, contrastive_cuda):
        monkeypatch.setattr(module, "has_kernels", lambda device: there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_on_the_cpu():
    assert filter_backend(CPU) == f"filter: C++ ({ISA})"
    assert loss_backend(CPU, 32, 512, 3, "leave_one_out") == f"loss: C++ ({ISA})"
    assert encoder_backend(PUBLISHED, CPU, "float32") == f"encoders: fused C++ ({ISA}) blocks in float32"
    assert encoder_backend(TINY, CPU, "float32") == "encoders: torch in float32"


@pytest.mark.parametrize("multiplies", [False, True])
def test_bfloat16_that_saves_nothing_is_said(monkeypatch, multiplies):
    monkeypatch.setattr(backends, "build_info", lambda: {**build_info(), "cpu_multiplies_bfloat16": multiplies})
    said = encoder_backend(PUBLISHED, CPU, "bfloat16")
    assert said.startswith(f"encoders: fused C++ ({ISA}) blocks in bfloat16")
    assert ("not faster than float32" in said) == (not multiplies)
    assert "faster" not in encoder_backend(PUBLISHED, CPU, "float32")
    assert "faster" not in encoder_backend(PUBLISHED, CUDA, "bfloat16")


def test_on_cuda(monkeypatch):
    with_kernels(monkeypatch, True)
    assert filter_backend(CUDA) == "filter: one CUDA kernel"
    assert encoder_backend(PUBLISHED, CUDA, "bfloat16") == "encoders: torch in bfloat16"
    compiled = encoder_backend(PUBLISHED, CUDA, "float32", through_compile=True)
    assert compiled == "encoders: torch.compile in float32"
    fused = encoder_backend(PUBLISHED, CUDA, "bfloat16", fused_blocks=True)
    assert fused == "encoders: fused CUDA blocks in bfloat16"
    for n, path in ((32, "small"), (1024, "mma"), (32768, "gemm")):
        assert loss_backend(CUDA, n, 512, 3, "leave_one_out").endswith(f"({path})")
    monkeypatch.setenv("SLEEPFM_CONTRASTIVE_REGIME", "mma")
    assert loss_backend(CUDA, 32, 512, 3, "pairwise") == "loss: CUDA kernels on tensor cores (mma)"


def test_a_gpu_that_the_build_does_not_suit(monkeypatch):
    with_kernels(monkeypatch, False)
    lacking = "this build has no kernels for this GPU"
    assert filter_backend(CUDA) == f"filter: C++ ({ISA}) on the CPU, {lacking}"
    assert loss_backend(CUDA, 32, 512, 3, "pairwise") == f"loss: torch operations, in chunks (chunked), {lacking}"


def test_commands_say_it(cohort_store, tmp_path, capsys):
    small = ["--preset", "tiny", "--batch-size", "16", "--threads", "1"]
    assert train.cli([str(cohort_store), str(tmp_path / "run"), *small, "--max-steps", "1"]) == 0
    filters, encoders = f"filter: C++ ({ISA})", "encoders: torch in float32"
    said = capsys.readouterr().err
    assert f"1 step of 16 clips on cpu ({filters}; {encoders}; loss: C++ ({ISA}); 1 thread)" in said
    arguments = [str(tmp_path / "run"), str(cohort_store), str(tmp_path / "embeddings")]
    assert embed.cli(arguments) == 0
    captured = capsys.readouterr()
    n = last_json(captured.out)["clips"]
    assert f"{n} clips on cpu ({filters}; {encoders}; " in captured.err
    assert "\x1b" not in captured.err, "a bar below another one begins a line of a log whenever it moves"
    assert embed.cli(arguments) == 0  # finished: nothing runs
    assert "on cpu (" not in capsys.readouterr().err
    one = [str(cohort_store), str(tmp_path / "cnn"), "--task", "stage", *small, "--epochs", "1"]
    assert supervise.cli(one) == 0
    assert f"of 16 clips on cpu ({filters}; {encoders}; 1 thread)" in capsys.readouterr().err
    table = ["--table", str(tmp_path / "t.csv"), "--subjects", "all", "--threads", "1"]
    assert classify.cli([str(tmp_path / "cnn"), str(cohort_store), *table]) == 0
    assert f"clips on cpu ({filters}; {encoders}; 1 thread)" in capsys.readouterr().err
