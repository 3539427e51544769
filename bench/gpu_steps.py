"""The steps of bench/gpu.sh, each limited in time: tests, sanitizers, benchmarks, measurements; one JSON, one table.

A step that fails or runs out of time is recorded and never stops the later ones; the exit status is 1 if any did.

The budget: all steps together end by the deadline. They stand in the order of what matters most, and each may take its
own limit, which is far more than it should need, or what is left if that is less; nothing is kept for later ones. So
the limits may sum to more than the deadline, and where steps take longer than foreseen the least valuable are cut. The
summary names them, and how to run them alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Only this project's kernels are checked: the libraries' are many, slow to instrument, and not ours to repair.
# initcheck must see who writes, so it sees all kernels, and does without the library's products: those of the loss's
# path and those of blocks in training. Whether it sees bulk copies write, as these products may, is not known.
OWN_KERNELS = ["--kernel-name", "kernel_substring=sleepfm"]
SANITIZER_OPTIONS = {
    "memcheck": [*OWN_KERNELS, "--report-api-errors", "no"],  # torch tries calls that fail; ours check their own
    "racecheck": OWN_KERNELS,
    "synccheck": OWN_KERNELS,
    "initcheck": [],
}
SANITIZER_PATHS = {"initcheck": ["small", "mma", "between"]}
# Tests that need a GPU, in processes of their own: an illegal access ends its process's use of the GPU, and a kernel
# that never returns ends the process.
LOSS_TESTS = ("tests/test_contrastive_cuda.py", "tests/test_contrastive_small.py", "tests/test_contrastive_gemm.py")
# By file: to import all of the tests takes longer than those on a GPU run.
OTHER_TESTS = tuple(
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests").glob("test_*.py"))
    if "mark.cuda" in path.read_text(encoding="utf-8") and path.name != "test_bench_gpu.py"
)
# torch.compile may take most of a step's time, and its process with it.
COMPILED_TEST = "tests/test_fused_blocks.py::test_embeds_on_cuda_as_well_as_torch_does[True]"
TRAINING_TESTS = "tests/test_training_cuda.py"  # make nights and train on them: as long as all others together
CUDA_TESTS = {
    "small": ["tests/test_contrastive_cuda.py", "tests/test_contrastive_small.py", "-k", "small"],
    "mma": ["tests/test_contrastive_cuda.py", "-k", "mma"],
    "gemm": ["tests/test_contrastive_cuda.py", "tests/test_contrastive_gemm.py", "-k", "gemm"],
    "other losses": ["tests/test_contrastive_cuda.py", "-k", "not (small or mma or gemm)"],
    "all else": [
        *(file for file in OTHER_TESTS if file not in (*LOSS_TESTS, TRAINING_TESTS)),
        f"--deselect={COMPILED_TEST}",
    ],
    "training": [TRAINING_TESTS],
    "compiled blocks": [COMPILED_TEST],
}
# Without a GPU "all else" would import many files to skip nearly every test.
REHEARSED = {**CUDA_TESTS, "all else": ["tests/test_filter_resample_contract.py", "tests/test_side_stream.py"]}
CUDA_BENCHES = {
    "loss": ["bench/test_cuda.py::test_contrastive_loss_cuda"],
    "filter": ["bench/test_cuda.py::test_filter_resample_cuda"],
    "encoder": ["bench/test_cuda_encoder.py", "bench/test_cuda_blocks.py", "-k", "eager"],
    "graph": ["bench/test_cuda.py::test_graph_replay_cuda"],
    "rivals": ["bench/test_cuda.py::test_contrastive_loss_rivals_cuda"],
    "compiled encoder": ["bench/test_cuda_encoder.py", "-k", "compiled"],
}
HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}  # what is said of the CPU is done there
INTERRUPT_S, KILL_S = 10, 10
"""How long a step may take to end when it is interrupted, and then when it is killed; within the deadline, too."""
LEAST_S = 10  # a step with less is not begun
LAST_LINES = 40  # of the log of a step that fails, kept in the JSON
BEGUN = re.compile(r"(tests/\S+::.+?)(?= PASSED| FAILED| SKIPPED| ERROR| XFAIL| XPASS| \+\+\+|\s*$)")
"""A test that pytest -v has begun; what became of it follows in the line."""
MOST_NAMED = 6  # of its tests that failed, in the table


@dataclass
class Step:
    """One command and what is read from what it leaves."""

    name: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    collect: Callable[[], Any] | None = None
    """Reads the step's result; called whatever the outcome."""
    skip: str = ""
    """Why the step cannot run here."""
    beside: bool = False
    """Runs at the same time as the steps next to it that do so too: nothing in it is timed."""


@contextlib.contextmanager
def steps_hear_interrupts() -> Iterator[None]:
    """Let processes that are started in here be interrupted, where this one is a shell's background job.

    A shell has such a job ignore the interrupt, and a process hands down what it ignores, but not what it handles.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_limited(command: list[str], limit_s: float, environment: dict[str, str], log: Path) -> tuple[int, bool]:
    """Run in a process group of its own: interrupt at the limit, kill some seconds later. Exit status, out of time."""
    with log.open("ab") as output:
        output.write(f"\n==== {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(limit_s), False
        except subprocess.TimeoutExpired:
            # The first interrupt lets pytest store what it has measured.
            for number, patience_s in ((signal.SIGINT, INTERRUPT_S), (signal.SIGKILL, KILL_S)):
                os.killpg(process.pid, number)
                try:
                    return process.wait(patience_s), True
                except subprocess.TimeoutExpired:
                    continue
            return -int(signal.SIGKILL), True


def test_counts(path: Path) -> dict[str, int]:
    """Passed, failed, skipped of a JUnit file; nothing where there is none."""
    if not path.is_file():
        return {}
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ET.parse(path).getroot().iter("testsuite"):
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    passed = totals["tests"] - totals["failures"] - totals["errors"] - totals["skipped"]
    return {"passed": passed, "failed": totals["failures"] + totals["errors"], "skipped": totals["skipped"]}


def stored_results(path: Path) -> list[dict[str, Any]]:
    """Return the comparisons of one benchmark file written by ``--store``."""
    return list(json.loads(path.read_text())["results"]) if path.is_file() else []


def json_of(path: Path) -> Any:
    """Return a JSON file's value, None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def steps(work: Path, rehearse: bool) -> list[Step]:
    """What is run, in order of what matters most: right or wrong, our times, rivals' times, the rest."""
    # The project's tests make errors of warnings. What torch and its compiler warn of on a GPU has never been seen: it
    # stands in the log here, and fails nothing.
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "default"]
    parallel = ["-n", str(max(len(os.sched_getaffinity(0)) * 3 // 4, 1)), "--dist", "loadfile"]
    have_xdist = importlib.util.find_spec("xdist") is not None and not rehearse
    results = work / "results"
    small = ["tests/test_closeness.py", "tests/test_launch.py"] if rehearse else []

    def tests(name: str, arguments: list[str], limit_s: float, environment: dict[str, str]) -> Step:
        file = work / f"{re.sub('[^a-z]+', '-', name)}.xml"
        command = [*pytest, f"--junitxml={file}", *arguments]
        return Step(name, command, limit_s, environment, lambda: test_counts(file), beside=True)

    def tests_on_cuda(name: str, arguments: list[str]) -> Step:
        # The name of each test stands in the log before it runs; a test that hangs is killed with its process.
        # A test that makes nights, compiles for the processor and starts torch on the device needs half a minute.
        verbose = ["-v", "--timeout", "100", "--timeout-method", "thread", "-m", "cuda"]
        threads = {"OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // len(CUDA_TESTS), 1))}
        environment = threads if rehearse else {**threads, "SLEEPFM_REQUIRE_CUDA": "1"}
        return tests(f"tests on cuda: {name}", [*verbose, *arguments], 120, environment)

    def bench(name: str, paths: list[str], limit_s: float, environment: dict[str, str]) -> Step:
        stored = name.replace(" ", "-").replace(":", "")
        mode = ["--quick"] if rehearse else ["--store", stored, "--results", str(results)]
        file = results / f"{stored}.json"
        command = [*pytest, "-q", *paths, *mode]
        # A rehearsal does on a CPU, maybe a busy one, what the limit allows a GPU for.
        given_s = 3 * limit_s if rehearse else limit_s
        return Step(f"benchmarks on {name}", command, given_s, environment, lambda: stored_results(file))

    sanitizer = shutil.which("compute-sanitizer")
    probe = work / "probe.json"
    selection = [sys.executable, str(HERE / "gpu_sanitize.py")]
    cpu_benches = sorted(str(p.relative_to(ROOT)) for p in HERE.glob("test_*.py") if "cuda" not in p.name)
    if rehearse:
        cpu_benches = ["bench/test_clip_store.py"]
    missing = "" if sanitizer else "compute-sanitizer is not on the PATH"

    def sanitize(tool: str) -> Step:
        checked = [str(sanitizer), "--tool", tool, "--error-exitcode", "9", "--launch-timeout", "120"]
        return Step(
            f"sanitizer {tool}",
            [*([] if rehearse else [*checked, *SANITIZER_OPTIONS[tool]]), *selection, *SANITIZER_PATHS.get(tool, [])],
            120,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"},
            None,
            "" if rehearse and tool == "memcheck" else missing,
            beside=True,
        )

    def bench_on_cuda(name: str, limit_s: float) -> Step:
        return bench(f"cuda: {name}", CUDA_BENCHES[name], limit_s, {})

    return [
        *(tests_on_cuda(name, words) for name, words in (REHEARSED if rehearse else CUDA_TESTS).items()),
        bench_on_cuda("loss", 100),
        bench_on_cuda("filter", 50),
        bench_on_cuda("encoder", 90),
        bench_on_cuda("graph", 30),
        Step("measurements", [sys.executable, str(HERE / "gpu_probe.py"), str(probe)], 90, {}, lambda: json_of(probe)),
        *(sanitize(tool) for tool in SANITIZERS),
        bench_on_cuda("rivals", 130),
        bench_on_cuda("compiled encoder", 130),
        tests("tests on the cpu", ["-q", "-m", "not cuda", *(parallel if have_xdist else []), *small], 150, HIDDEN),
        bench("cpu", cpu_benches, 200, HIDDEN),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run all steps; 0 when all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of gpu.json and gpu.log")
    parser.add_argument("--rehearse", action="store_true", help="no GPU: small selections, nothing timed")
    parser.add_argument("--work", type=Path, required=True, help="folder for what may be deleted afterwards")
    parser.add_argument("--deadline", type=float, required=True, help="seconds for all steps together")
    parser.add_argument(
        "--only",
        default="",
        help="names of steps, or what they have before a colon, separated by commas; all by default",
    )
    parser.add_argument("--build", default="{}", help="JSON about the build, stored as it is")
    arguments = parser.parse_args(argv)
    start = time.monotonic()
    log, file = arguments.out / "gpu.log", arguments.out / "gpu.json"
    document: dict[str, Any] = {
        "format": "sleepfm_fast gpu run",
        "rehearsal": arguments.rehearse,
        "machine": machine.record(),
        "build": json.loads(arguments.build),
        "steps": [],
    }
    only = {name.strip() for name in arguments.only.split(",") if name.strip()}
    chosen = [
        step
        for step in steps(arguments.work, arguments.rehearse)
        if not only or step.name in only or step.name.partition(":")[0] in only
    ]
    if not chosen:
        parser.error(f"--only {arguments.only} names no step")
    deadline = start + arguments.deadline
    batches = batches_of(chosen)
    document["budget"] = {
        "seconds": arguments.deadline,
        "limits_s": sum(max(step.limit_s for step in batch) for batch in batches),
    }
    n_at_once = len(chosen)
    if arguments.rehearse:  # nothing is timed, and a processor that had several steps would take them to their limits
        batches, n_at_once = [chosen], len(os.sched_getaffinity(0))
    for batch in batches:
        with steps_hear_interrupts(), ThreadPoolExecutor(min(len(batch), n_at_once)) as pool:
            logs = [arguments.work / f"step-{len(document['steps']) + k}.log" for k in range(len(batch))]
            document["steps"] += pool.map(perform, batch, logs, itertools.repeat(deadline))
        with log.open("ab") as whole:
            whole.writelines(path.read_bytes() for path in logs if path.is_file())
        write(file, document)
    document["passed"] = all(row["outcome"] != "failed" for row in document["steps"])
    write(file, document)
    print("\n".join(table(document)))
    print(f"\n{file}: all results; {log}: what every step printed")
    return 0 if document["passed"] else 1


def batches_of(chosen: list[Step]) -> list[list[Step]]:
    """Steps that run at the same time, in order."""
    batches: list[list[Step]] = []
    for together, neighbours in itertools.groupby(chosen, key=lambda step: step.beside):
        group = list(neighbours)
        batches += [group] if together else [[step] for step in group]
    return batches


def perform(step: Step, log: Path, deadline: float) -> dict[str, Any]:
    """Run one step and say how it went."""
    left = deadline - INTERRUPT_S - KILL_S - time.monotonic()
    given_s = round(max(min(step.limit_s, left), 0.0), 1)
    row: dict[str, Any] = {"name": step.name, "limit_s": step.limit_s, "given_s": given_s}
    if step.skip:
        return {**row, "outcome": "skipped", "why": step.skip}
    if left < LEAST_S:
        return {**row, "outcome": "failed", "out_of_time": True, "why": "not begun: the budget was used up"}
    begun = time.monotonic()
    try:
        status, late = run_limited(step.command, given_s, step.environment, log)
    except OSError as error:
        return {**row, "outcome": "failed", "why": f"it cannot be started: {error}"}
    row |= {
        "outcome": "failed" if status or late else "passed",
        "exit_status": status,
        "out_of_time": late,
        "seconds": round(time.monotonic() - begun, 1),
    }
    if row["outcome"] == "failed" and log.is_file():
        lines = log.read_text(errors="replace").splitlines()
        row["last_lines"] = lines[-LAST_LINES:]
        row["failed_tests"] = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        begun_tests = [match[1] for line in lines if (match := BEGUN.match(line))]
        # The process of a test that hangs ends with it, before pytest sums up.
        if begun_tests and not row["failed_tests"]:
            row["failed_tests"] = [f"in {begun_tests[-1]}"]
    try:
        row["result"] = step.collect() if step.collect else None
    except (OSError, ValueError, KeyError, ET.ParseError) as error:
        row |= {"outcome": "failed", "why": f"its result cannot be read: {error}"}
    return row


def write(file: Path, document: dict[str, Any]) -> None:
    """Replace the JSON, so that what was finished is kept whatever happens next."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def table(document: dict[str, Any]) -> list[str]:
    """Format measurements, comparisons and, last, where a terminal or the tail of a log shows them, the steps."""
    m = document["machine"]
    lines = []
    for row in document["steps"]:
        if row["name"] == "measurements" and isinstance(row.get("result"), dict):
            lines += [*(f"{name:60} {value}" for name, value in row["result"].items()), ""]
    for row in document["steps"]:
        for result in row.get("result") or [] if isinstance(row.get("result"), list) else []:
            lines += [*comparison(result), ""]
    lines += [
        f"{m.get('gpu') or 'no GPU'}, driver {m.get('gpu_driver') or '-'}, CUDA {m.get('cuda', '-')}, "
        f"torch {m['torch']}, {m['cpu_cores']} cores, commit {m['commit']}",
        "",
        f"{'step':32} {'outcome':9} {'s':>6}  result",
    ]
    for row in document["steps"]:
        result = row.get("result")
        counts = result if isinstance(result, dict) and "passed" in result else {}
        words = row.get("why") or ", ".join(f"{n} {word}" for word, n in counts.items())
        if row.get("out_of_time") and not row.get("why"):
            own = row["given_s"] >= row["limit_s"]
            whose = "its limit" if own else f"what was left; its limit is {row['limit_s']:g} s"
            words = ", ".join(filter(None, [words, f"out of time: cut at {row['given_s']:g} s, {whose}"]))
        lines.append(f"{row['name']:32} {row['outcome']:9} {row.get('seconds', '-'):>6}  {words}")
        lines += failures(row)
    return lines + budget_lines(document)


def failures(row: dict[str, Any]) -> list[str]:
    """Tests that failed, as pytest names them, or what was said last; the rest is in the JSON and in the log."""
    if row["outcome"] != "failed":
        return []
    said = [line.strip() for line in row.get("last_lines", []) if line.strip()]
    named = row.get("failed_tests", [])
    chosen = [*named[:MOST_NAMED], *([f"and {len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else [])]
    return [f"    {line[:150]}" for line in chosen or said[-2:]]


def budget_lines(document: dict[str, Any]) -> list[str]:
    """Say how much time there was, and what was cut for want of it."""
    budget = document.get("budget")
    if budget is None:
        return []
    lines = ["", f"budget: {budget['seconds']:.0f} s for these steps, whose limits sum to {budget['limits_s']:.0f} s"]
    cut = [row for row in document["steps"] if row.get("out_of_time") and row["given_s"] < row["limit_s"]]
    if cut:
        names = ", ".join(f"{row['name']} ({row['given_s']:.0f} of {row['limit_s']:.0f} s)" for row in cut)
        lines += [
            f"cut by the budget, the least valuable: {names}",
            f"to run them alone: SLEEPFM_GPU_STEPS='{','.join(row['name'] for row in cut)}' bash bench/gpu.sh OUT; or "
            "all with a larger SLEEPFM_GPU_SECONDS",
        ]
    return lines


def floor_words(result: dict[str, Any]) -> str:
    """Say whether the fastest of our arms takes no longer than the speed that was asked for allows."""
    ours = [seconds for arm, seconds in result["medians_s"].items() if arm.startswith("ours")]
    if not result.get("floor_s") or not ours:
        return ""
    return ": reached" if min(ours) <= result["floor_s"] else ": missed"


def comparison(result: dict[str, Any]) -> list[str]:
    """Format one comparison: a line an arm."""
    aims = [
        f"{word} {report.time_text(result[name])}"
        for word, name in (("predicted", "predicted_s"), ("at most", "floor_s"))
        if result.get(name)
    ]
    lines = [result["name"] + (f" ({', '.join(aims)}" + floor_words(result) + ")" if aims else "")]
    peaks = result.get("peak_device_mib") or result.get("peak_rss_mib") or {}
    for arm, seconds in result["medians_s"].items():
        ratio = result["ratios"].get(arm)
        times = f"{ratio['median']:8.2f} x" if ratio else " " * 10
        memory = f"{peaks[arm]:9.0f} MiB" if peaks.get(arm) is not None else ""
        lines.append(f"  {arm:44} {report.time_text(seconds):>10} {times} {memory}")
    return lines + [f"  {arm:44} failed: {why}" for arm, why in (result.get("failed") or {}).items()]


if __name__ == "__main__":
    sys.exit(main())
