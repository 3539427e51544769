"""Tiles (AMX): what the system allows a process, and what an op leaves behind for other code of its thread."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_mbconv import arguments, upstream_of
from test_mbconv_bfloat16 import NETWORKS, network, running_of

import sleepfm_fast
from sleepfm_fast import ops

TESTS = Path(__file__).resolve().parent
DIMS = (3, 9, 54, 16, 700, 1)

pytestmark = pytest.mark.skipif(
    "amx" not in sleepfm_fast.build_info()["cpu_instruction_sets"], reason="this processor or system has no tiles"
)

# Says which instruction set is in use, and the bits of an evaluation.
REPORT = """
def report():
    global sleepfm_fast, t
    import hashlib, sleepfm_fast, test_tiles_in_a_process as t
    bits = hashlib.sha256(t.evaluation().numpy().tobytes()).hexdigest()
    print(sleepfm_fast.build_info()["cpu_instruction_set_in_use"], bits, flush=True)
"""

SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("n_bytes", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 4096)), None) == 0
report()
"""

# A filter of system calls, as containers have, by which arch_prctl(ARCH_REQ_XCOMP_PERM, ...) has no effect: EINVAL, as
# of Linux before 5.16, or EPERM.
REFUSED_CALL = """
import ctypes, struct
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
steps = [(LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 3, 158), (LOAD, 0, 0, 16), (JUMP_IF_EQUAL, 0, 1, 0x1023),
         (RETURN, 0, 0, ERROR | {errno}), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
report()
"""

THREAD_STARTED_BEFORE = """
import threading
begin = threading.Event()
thread = threading.Thread(target=lambda: (begin.wait(), report()))
thread.start()
import sleepfm_fast
assert sleepfm_fast.build_info()["cpu_instruction_set_in_use"] == "amx"
begin.set()
thread.join()
"""

FORKED = """
import os, sleepfm_fast
assert sleepfm_fast.build_info()["cpu_instruction_set_in_use"] == "amx"
child = os.fork()
if child == 0:
    report()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""

# Whether Linux gives the process tiles: bit 18 of ARCH_GET_XCOMP_PERM.
PERMISSION = """
import ctypes
report()
t.contrast(), t.train_block()
features = ctypes.c_uint64()
assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(features)) == 0
print("amx" in sleepfm_fast.build_info()["cpu_instruction_sets"], features.value >> 18 & 1)
"""


def evaluation():
    x, *weights = arguments(DIMS)
    with torch.no_grad():
        return ops.mbconv(x, *weights, running=running_of(DIMS[2]), precision="bfloat16")[0]


def reported(code: str, instruction_set: str = "") -> list[str]:
    path = os.pathsep.join([str(TESTS), *(p for p in sys.path if p)])
    environment = {**os.environ, "SLEEPFM_CPU": instruction_set, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REPORT + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "code", [SMALL_SIGNAL_STACK, *(REFUSED_CALL.replace("{errno}", str(errno)) for errno in (1, 22))]
)
def test_where_the_system_refuses_tiles_there_are_vectors(code):
    assert reported(code) == reported("report()", "avx512_bf16")


@pytest.mark.parametrize("code", [THREAD_STARTED_BEFORE, FORKED])
def test_permission_is_that_of_all_threads_and_of_children(code):
    assert reported(code) == reported("report()", "amx")


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512", "avx512_bf16", "amx", ""])
def test_permission_is_asked_for_only_where_tiles_are_the_choice(instruction_set):
    in_use, _, offered, granted = reported(PERMISSION, instruction_set)
    assert (in_use, offered) == (instruction_set or "amx", "True")
    assert granted == str(int(in_use == "amx"))


@pytest.fixture(scope="module")
def shapes_in_use(tmp_path_factory):
    """A function that returns the shapes of this thread's tiles, zero where none are in use."""
    folder = tmp_path_factory.mktemp("shapes")
    source = 'void shapes(char (*to)[64]) { asm volatile("sttilecfg %0" : "=m"(*to)); }\n'
    (folder / "shapes.c").write_text(source)
    command = [*os.environ.get("CC", "cc").split(), "-shared", "-fPIC", folder / "shapes.c", "-o", folder / "shapes.so"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "shapes.so"))

    def shapes() -> bytes:
        to = ctypes.create_string_buffer(64)
        library.shapes(to)
        return to.raw

    return shapes


def train_block():
    leaves = [value.requires_grad_() for value in arguments(DIMS)]
    y, _ = ops.mbconv(*leaves, precision="bfloat16")
    return torch.autograd.grad((y * upstream_of(y)).sum(), leaves)


def evaluate_network():
    with torch.no_grad():
        return ops.encoder_evaluate(*network(*NETWORKS[0]), precision="bfloat16")


def contrast():
    x = torch.randn(3, 200, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, _ = ops.contrastive_loss(x, torch.zeros(()), mode="pairwise")
    return torch.autograd.grad(loss, x)


def multiply_in_torch():
    a = torch.randn(512, 512, generator=torch.Generator().manual_seed(2)).bfloat16()
    return a @ a


OURS = (evaluation, train_block, evaluate_network, contrast)


def bits_of(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("op", OURS)
def test_an_op_gives_the_tiles_back(op, shapes_in_use, monkeypatch):
    """Else the system would save 8 KB whenever it leaves the thread, and other code find shapes that it has not set."""
    monkeypatch.delenv("SLEEPFM_CPU", raising=False)
    op()
    assert shapes_in_use() == bytes(64)


@pytest.mark.parametrize("op", OURS)
def test_ours_and_torch_by_turns_compute_what_they_do_alone(op):
    """oneDNN, which multiplies bfloat16 for torch, shapes the thread's tiles too."""
    ours, theirs = bits_of(op()), multiply_in_torch()
    for _ in range(3):
        assert torch.equal(multiply_in_torch(), theirs)
        assert all(torch.equal(a, b) for a, b in zip(bits_of(op()), ours, strict=True))
