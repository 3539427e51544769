"""What the CUDA compiler made of the kernels: registers, memory, instructions; a line of GATES each, no GPU needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"


@dataclass(frozen=True)
class Gate:
    """Ceilings and intended instructions of one kernel, in every instantiation and for every architecture.

    Attributes
    ----------
    kernel
        Regular expression on the demangled name without arguments' types: ``filter_resample_kernel``.
    registers
        Most registers a thread: 65536 over the threads that shall live on a multiprocessor.
    shared_bytes
        Most static shared memory.
    instructions
        Least number of each SASS instruction; a name matches with everything that follows a dot, so that ``LDG.E.128``
        counts ``LDG.E.128.CONSTANT`` too.
    loads_together
        Least number of loads of 8 bytes from device memory between two branches somewhere in the kernel: those under
        way at once. The kernels that stream have such loads, their parameters come by others.
    architectures
        What the kernel is compiled for; empty: all.
    absent
        Parts of names of instructions that it may not have.
    """

    kernel: str
    registers: int
    shared_bytes: int
    instructions: dict[str, int] = field(default_factory=dict)
    loads_together: int = 0
    architectures: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


GATES = (
    # Ten products of at most 32 sums by four taps; taps and padded samples from shared memory by 16 bytes, and so are
    # samples and outputs from and to device memory.
    Gate(
        "filter_resample_kernel",
        registers=128,
        shared_bytes=6144,
        instructions={"FFMA": 1000, "LDS.128": 50, "LDG.E.128": 3, "STG.E.128": 3},
    ),
    # Its phases read what others of the same launch wrote: not by the read-only path, and between a fence and an
    # emptied first cache.
    Gate(
        "contrastive_small_kernel",
        registers=128,
        shared_bytes=2304,
        instructions={"FFMA": 64, "MUFU.EX2": 4, "MEMBAR": 4, "CCTL.IVALL": 4},
        absent=("CONSTANT",),
    ),
    Gate("contrastive_prepare_kernel", registers=208, shared_bytes=0),
    Gate("contrastive_own_kernel", registers=80, shared_bytes=0, instructions={"HMMA": 8}),
    Gate(
        "contrastive_forward_kernel",
        registers=255,
        shared_bytes=0,
        instructions={"HMMA": 48, "LDSM": 12, "LDGSTS": 2, "MUFU.EX2": 16},
    ),
    Gate(
        "contrastive_forward_kernelINS.*Lb0E",  # "high": two blocks of 256 threads share a multiprocessor
        registers=128,
        shared_bytes=0,
    ),
    Gate("contrastive_(finish|total)_kernel", registers=64, shared_bytes=3072),
    Gate("contrastive_(shift|weights|slope)_kernel", registers=40, shared_bytes=4096),
    Gate(
        "contrastive_backward_kernel",
        registers=240,
        shared_bytes=0,
        instructions={"HMMA": 24, "LDSM": 12, "LDGSTS": 4, "MUFU.EX2": 6, "STG.E.64": 6},
    ),
    Gate("contrastive_combine_kernel", registers=176, shared_bytes=8192),
    Gate("gemm_statistics_kernel", registers=80, shared_bytes=13312, instructions={"MUFU.EX2": 36, "LDG.E.NA.128": 4}),
    Gate("gemm_gradient_kernel", registers=80, shared_bytes=3072, instructions={"LDG.E.NA.128": 4, "STG.E.64": 8}),
    Gate("gemm_(operands|accumulate|finish_gradient)_kernel", registers=128, shared_bytes=3072),
    Gate("gemm_(merge|finish|total|weights)_kernel", registers=64, shared_bytes=17408),
    # Both ReLU6 are saturation within the addition of the bias and the last multiply-add; weights by 16 bytes.
    Gate(
        "mbconv_evaluate_kernel",
        registers=240,
        shared_bytes=0,
        instructions={
            **{"HMMA": 20, "FADD.SAT": 16, "FFMA": 24, "FFMA.SAT": 8, "SHFL": 6, "LDGSTS.E.BYPASS.128": 2},
            **{"LDS.128": 7, "STG.E": 4},
        },
    ),
    Gate("mbconv_evaluate_kernel.*PolicyILi.ELi.*ELi.ELi.ELi12E", registers=168, shared_bytes=0),
    Gate("mbconv_evaluate_kernel.*PolicyILi.ELi.*ELi.ELi.ELi8ELi2E", registers=128, shared_bytes=0),
    # They stream: every load and store of a walker is 8 bytes, and enough warps share a multiprocessor to hide them.
    Gate(
        "mbconv_depthwise_kernelILi1E",  # three blocks of 256 threads
        registers=80,
        shared_bytes=8192,
        instructions={"LDG.E.64": 5, "STG.E.64": 1, "FFMA": 24},
    ),
    Gate(
        "mbconv_depthwise_kernelILi2E",
        registers=128,
        shared_bytes=8192,
        instructions={"LDG.E.64": 7, "STG.E.64": 1, "FFMA": 28},
    ),
    # A loop that the compiler unrolls has a branch behind every load, and waits for each alone.
    Gate(
        "mbconv_activate_kernel",
        registers=64,
        shared_bytes=0,
        instructions={"LDG.E.64": 8, "STG.E.64": 8},
        loads_together=8,
    ),
    Gate(
        "mbconv_gradient_sums_kernel",
        registers=64,
        shared_bytes=8192,
        instructions={"LDG.E.64": 8, "FFMA": 24},
        loads_together=8,
    ),
    Gate(
        "mbconv_depthwise_backward_kernel",
        registers=128,
        shared_bytes=20480,
        instructions={"LDG.E.64": 8, "STG.E.64": 1, "FFMA": 40},
    ),
    Gate(
        "mbconv_expansion_sums_kernel",
        registers=64,
        shared_bytes=8192,
        instructions={"LDG.E.64": 8, "FFMA": 16},
        loads_together=8,
    ),
    Gate("mbconv_finish_.*_kernel", registers=96, shared_bytes=10240),
)
# Local memory: spilled registers, or an array whose index the compiler does not know.
FORBIDDEN = ("LDL", "STL")


@dataclass
class Compiled:
    """One kernel for one architecture."""

    name: str
    architecture: str
    registers: int = 0
    stack_bytes: int = 0
    local_bytes: int = 0
    shared_bytes: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    loads_together: int = 0

    def count(self, instruction: str) -> int:
        return sum(
            n for name, n in self.instructions.items() if name == instruction or name.startswith(instruction + ".")
        )


def tool(name: str) -> str:
    """A program of the CUDA toolkit, or of its package on PyPI."""
    found = shutil.which(name)
    if found is None and (nvcc := shutil.which("nvcc")) is not None:
        found = shutil.which(name, path=str(Path(nvcc).resolve().parent))
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = found or shutil.which(name, path=str(Path(folder) / "cu13" / "bin"))
    if found is None:
        pytest.skip(f"{name} is not here: install the CUDA toolkit's, or `pip install nvidia-cuda-{name}`")
    return found


def built_library() -> Path | None:
    """The newest extension module with CUDA code that is newer than every CUDA source."""
    newest_source = max(path.stat().st_mtime for path in [*SOURCES.iterdir(), *(ROOT / "csrc").glob("*.h")])
    built = sorted([*(ROOT / "build").glob("*/_C*.so"), *(ROOT / "sleepfm_fast").glob("_C*.so")],
                   key=lambda path: path.stat().st_mtime, reverse=True)  # fmt: skip
    for path in built:
        if path.stat().st_mtime > newest_source and b".nv_fatbin" in path.read_bytes():
            return path
    return None


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files with the compiled kernels: what was built, else every source compiled for one architecture."""
    library = built_library()
    if library is not None:
        return [library]
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no build with CUDA kernels is here, and no nvcc to compile them")
    folder = tmp_path_factory.mktemp("cubin")
    cubins = []
    for source in sorted(SOURCES.glob("*.cu")):
        cubins.append(folder / f"{source.stem}.cubin")
        command = [nvcc, "-std=c++17", "-O3", "-arch=sm_80", "-cubin", f"-I{ROOT / 'csrc'}", "-o", str(cubins[-1])]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return cubins


def run_tool(name: str, *arguments: str, folder: Path | None = None) -> str:
    command = [tool(name), *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300).stdout


def architecture_of(cubin: Path) -> str:
    """Architecture of a file that cuobjdump has named: ``library.12.sm_90a.cubin``."""
    (found,) = re.findall(r"\.(sm_\w+)\.cubin$", cubin.name)
    return str(found)


@cache
def read_kernels(binary: Path) -> tuple[Compiled, ...]:
    """All kernels of a library or cubin, one entry for each architecture."""
    with tempfile.TemporaryDirectory() as folder:
        # nvdisasm itself writes a quarter of what `cuobjdump -sass` has it write, without the encoding of each line.
        run_tool("cuobjdump", "-xelf", "all", str(binary.resolve()), folder=Path(folder))
        cubins = sorted(Path(folder).glob("*.cubin"))
        return tuple(kernel for cubin in cubins for kernel in read_cubin(cubin))


def read_cubin(cubin: Path) -> list[Compiled]:
    architecture = architecture_of(cubin)
    # From compute capability 9.0 on, the kibibyte that the system takes of every block is counted too.
    system = 1024 if int(re.sub(r"\D", "", architecture)) >= 90 else 0
    kernels: dict[str, Compiled] = {}
    lines = iter(run_tool("cuobjdump", "-res-usage", str(cubin)).splitlines())
    for line in lines:
        if match := re.match(r"\s*Function (\S+):", line):
            usage = {key: int(n) for key, n in re.findall(r"(\w+):(\d+)", next(lines))}
            kernels[match[1]] = Compiled(
                match[1], architecture, usage["REG"], usage["STACK"], usage["LOCAL"], usage["SHARED"] - system
            )
    kernel, together = Compiled("", ""), 0
    for line in run_tool("nvdisasm", "-c", str(cubin)).splitlines():
        if match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", line):
            kernel.instructions[match[1]] += 1
            together = together + match[1].startswith("LDG.E.64") if match[1] not in ("BRA", "EXIT") else 0
            kernel.loads_together = max(kernel.loads_together, together)
        elif match := re.match(r"\.text\.(\S+):", line):
            kernel = kernels.setdefault(match[1], Compiled(match[1], architecture))
    return list(kernels.values())


@pytest.fixture(scope="module")
def compiled(binaries: list[Path]) -> list[Compiled]:
    kernels = [kernel for binary in binaries for kernel in read_kernels(binary)]
    assert kernels, f"cuobjdump finds no kernel in {', '.join(map(str, binaries))}"
    return kernels


def gated(compiled: list[Compiled], gate: Gate) -> list[Compiled]:
    return [kernel for kernel in compiled if re.search(gate.kernel, kernel.name)]


def test_every_kernel_has_a_gate(compiled: list[Compiled]) -> None:
    without = {kernel.name for kernel in compiled if not any(re.search(gate.kernel, kernel.name) for gate in GATES)}
    assert not without, f"add a line to GATES for: {', '.join(sorted(without))}"


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.kernel)
def test_kernel_is_compiled_for_every_architecture(compiled: list[Compiled], gate: Gate) -> None:
    built = {kernel.architecture for kernel in compiled}
    expected = built & set(gate.architectures) if gate.architectures else built
    assert {kernel.architecture for kernel in gated(compiled, gate)} == expected


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.kernel)
def test_registers_and_memory_stay_below_their_ceilings(compiled: list[Compiled], gate: Gate) -> None:
    for kernel in gated(compiled, gate):
        which = f"{kernel.name} for {kernel.architecture}"
        assert kernel.registers <= gate.registers, which
        assert kernel.shared_bytes <= gate.shared_bytes, which
        assert (kernel.stack_bytes, kernel.local_bytes) == (0, 0), f"{which} keeps registers or arrays in local memory"


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.kernel)
def test_intended_instructions_are_there(compiled: list[Compiled], gate: Gate) -> None:
    for kernel in gated(compiled, gate):
        which = f"{kernel.name} for {kernel.architecture}"
        assert sum(kernel.instructions.values()) > 50, f"{which} was not disassembled"
        for instruction in FORBIDDEN:
            assert kernel.count(instruction) == 0, f"{which} uses {instruction}"
        for instruction, least in gate.instructions.items():
            assert kernel.count(instruction) >= least, f"{which}: {instruction}"
        for part in gate.absent:
            assert not [name for name in kernel.instructions if part in name], f"{which} uses {part}"
        assert kernel.loads_together >= gate.loads_together, f"{which}: loads one at a time"


def test_newer_gpus_find_ptx(binaries: list[Path]) -> None:
    """Machine code serves GPUs of its own generation, PTX every newer one unless it is an architecture's own (90a)."""
    if binaries[0].suffix != ".so":
        pytest.skip("no library is built here")
    machine_code, ptx = (
        set(re.findall(rf"\.sm_(\w+)\.{kind}\b", run_tool("cuobjdump", option, str(binaries[0]))))
        for kind, option in (("cubin", "--list-elf"), ("ptx", "--list-ptx"))
    )
    if not ptx or not any(name.isdigit() for name in machine_code):
        pytest.skip("this build is for one kind of GPU")
    assert any(name.isdigit() and int(name) <= 100 for name in ptx), f"machine code {machine_code}, PTX {ptx}"


SPILLING = """
__global__ void __launch_bounds__(1024, 2) spilling(float* x, int n) {
    float keep[160];
#pragma unroll
    for (int i = 0; i < 160; ++i) keep[i] = x[i * n];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 160; ++i) x[i + n] = keep[159 - i] * keep[i];
}
"""


def test_a_kernel_that_spills_is_noticed(tmp_path: Path) -> None:
    """The reading of cuobjdump's output sees local memory where there is some."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc is here to compile a kernel that spills")
    source, cubin = tmp_path / "spilling.cu", tmp_path / "spilling.cubin"
    source.write_text(SPILLING)
    subprocess.run([nvcc, "-arch=sm_80", "-cubin", "-o", str(cubin), str(source)], check=True, timeout=300)
    (kernel,) = read_kernels(cubin)
    assert kernel.registers == 32
    assert kernel.stack_bytes > 0
    assert kernel.count("LDL") > 0
    assert kernel.count("STL") > 0
