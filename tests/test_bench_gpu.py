"""The GPU run: its rehearsal without a GPU, and that no failure stops it or is hidden."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sleepfm_fast

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
if not (BENCH / "gpu.sh").is_file():
    pytest.skip("the benchmarks are in the clone, not in the package", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import gpu_probe  # noqa: E402
import gpu_sanitize  # noqa: E402
import gpu_steps  # noqa: E402
from emulated_mbconv_train import BUFFERS, emulate_training  # noqa: E402


def gpu(*arguments, cwd=None, **environment):
    environment = {"PYTHON": sys.executable, "SLEEPFM_BUILD": "none", **environment}
    return subprocess.run(
        ["bash", str(BENCH / "gpu.sh"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def test_rehearsal_of_two_steps(tmp_path):
    # .ci/run rehearses all of them.
    done = gpu("--rehearse", str(tmp_path / "out"), SLEEPFM_GPU_STEPS="sanitizer memcheck,tests on the cpu")
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "gpu.log"}
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert document["passed"]
    assert document["rehearsal"]
    assert document["build"]["by"] == "none"
    assert document["machine"]["commit"] != "unknown" or not (ROOT / ".git").exists()
    memcheck, on_the_cpu = document["steps"]
    assert (memcheck["name"], memcheck["outcome"]) == ("sanitizer memcheck", "passed")
    assert on_the_cpu["result"]["passed"] > 5
    assert on_the_cpu["result"]["failed"] == 0
    last = done.stdout.splitlines()
    assert any(line.startswith("tests on the cpu") for line in last)
    assert "gpu.json: all results" in last[-1]


def test_the_steps_are_all_there_and_require_cuda(tmp_path):
    for rehearse in (False, True):
        steps = gpu_steps.steps(tmp_path, rehearse)
        assert {step.name for step in steps} == {
            *(f"tests on cuda: {name}" for name in gpu_steps.CUDA_TESTS),
            *(f"benchmarks on cuda: {name}" for name in gpu_steps.CUDA_BENCHES), "measurements",
            *(f"sanitizer {t}" for t in gpu_steps.SANITIZERS), "tests on the cpu", "benchmarks on cpu",
        }  # fmt: skip
        assert not any("," in step.name for step in steps)  # which separates them in --only
    by_name = {step.name: step for step in gpu_steps.steps(tmp_path, False)}
    assert {"small", "mma", "gemm", "other losses", "all else"} <= set(gpu_steps.CUDA_TESTS)
    for name, step in by_name.items():
        if "pytest" in step.command:
            assert "-W default" in " ".join(step.command), name
        assert (step.environment.get("SLEEPFM_REQUIRE_CUDA") == "1") == name.startswith("tests on cuda"), name
        assert (step.environment.get("CUDA_VISIBLE_DEVICES") == "") == name.endswith("cpu"), name


COLLECT = """
import json, sys, pytest
options = ["-p", "no:cacheprovider", "--collect-only", "-q", "-m", "cuda"]
for selection in json.loads(sys.argv[1]):
    assert pytest.main([*options, *selection]) == 0, selection
    print("end of a selection")
"""


def collected(selections):
    """Names of the tests marked cuda that each selection collects, in one process that imports their modules once."""
    command = [sys.executable, "-c", COLLECT, json.dumps(selections)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *parts, _ = done.stdout.split("end of a selection\n")
    assert len(parts) == len(selections)
    return [[line for line in part.splitlines() if "::" in line] for part in parts]


@pytest.mark.slow
def test_the_tests_on_cuda_leave_none_out_and_run_none_twice():
    """What is marked cuda, collected at once and by the steps."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in path.read_text()]
    names = [str(path.relative_to(ROOT)) for path in files if path != Path(__file__)]
    everything, *by_step = collected([names, *gpu_steps.CUDA_TESTS.values()])
    assert len(everything) > 100
    assert sorted(itertools.chain(*by_step)) == sorted(everything)


def test_steps_are_chosen_by_name_or_by_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu_steps, "steps", lambda work, rehearse: [step(name, "pass") for name in ("a: one", "a: two", "b")]
    )
    for only, names in (("a", ["a: one", "a: two"]), ("a: two,b", ["a: two", "b"])):
        arguments = [str(tmp_path), "--work", str(tmp_path), "--deadline", "100", "--only", only]
        assert gpu_steps.main(arguments) == 0
        document = json.loads((tmp_path / "gpu.json").read_text())
        assert [row["name"] for row in document["steps"]] == names


@pytest.mark.parametrize("arguments", [[], ["--rehearse"], ["--help"], ["a", "b"]])
def test_wrong_usage(arguments):
    done = gpu(*arguments)
    assert done.returncode == 2
    assert "usage: bash bench/gpu.sh" in done.stderr


def test_without_a_gpu_the_run_says_so(tmp_path):
    if torch.cuda.is_available() or shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    done = gpu(str(tmp_path))
    assert done.returncode == 1
    assert "finds a GPU" in done.stderr


def test_an_unknown_way_to_build_is_refused(tmp_path):
    done = gpu("--rehearse", str(tmp_path), SLEEPFM_BUILD="make")
    assert done.returncode == 2
    assert "choose cmake, pip or none" in done.stderr


def test_a_warning_does_not_end_the_only_run(tmp_path):
    """The project's own setting makes errors of warnings; what the steps add takes it back."""
    (tmp_path / "test_it.py").write_text("import warnings\n\n\ndef test_it():\n    warnings.warn('of a GPU')\n")
    (step,) = [step for step in gpu_steps.steps(tmp_path, False) if step.name == "tests on cuda: compiled blocks"]
    options = step.command[step.command.index("-W") :][:2]
    for added, status in (([], 1), (options, 0)):
        command = [*step.command[:3], "-q", "-c", str(ROOT / "pyproject.toml"), *added, "--rootdir", str(tmp_path)]
        done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr


@pytest.fixture
def stub_cmake(tmp_path):
    """A cmake that notes its calls and installs the module of this process; what it does besides is given."""

    def install(command):
        folder, calls = tmp_path / "cmake", tmp_path / "calls"
        folder.mkdir()
        lines = [f'echo "$@" >> "{calls}"', command]
        lines.append(f'case $1 in --install) cp "{sleepfm_fast._C.__file__}" "$4/sleepfm_fast/" ;; esac')
        (folder / "cmake").write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (folder / "cmake").chmod(0o755)
        return {"SLEEPFM_BUILD": "cmake", "PATH": f"{folder}:{os.environ['PATH']}"}, calls

    return install


def test_a_module_that_was_kept_is_not_built_again(tmp_path, stub_cmake):
    environment, calls = stub_cmake("")
    # As a clone is, whose sources have no compiled module: it is called from there.
    (clone := tmp_path / "clone" / "sleepfm_fast").mkdir(parents=True)
    (clone / "__init__.py").write_text("raise ImportError('not the sources that were built')")
    environment |= {"SLEEPFM_GPU_BUILT": str(tmp_path / "built"), "SLEEPFM_GPU_STEPS": "sanitizer racecheck"}
    for architecture, by, n_calls in (("90", "cmake", 3), ("90", "kept", 3), ("80", "cmake", 6)):
        out = tmp_path / f"{architecture}-{by}"
        done = gpu("--rehearse", str(out), cwd=clone.parent, SLEEPFM_CUDA_ARCHITECTURES=architecture, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((out / "gpu.json").read_text())["build"]["by"] == by
        assert len(calls.read_text().splitlines()) == n_calls


def test_a_build_that_hangs_is_ended_within_the_budget(tmp_path, stub_cmake):
    environment, _ = stub_cmake("case $1 in --build) sleep 100 ;; esac")
    begun = time.monotonic()
    done = gpu("--rehearse", str(tmp_path / "out"), SLEEPFM_GPU_SECONDS="5", **environment)
    assert time.monotonic() - begun < 60
    assert done.returncode == 1
    assert "the build was not done after" in done.stderr
    assert not json.loads((tmp_path / "out" / "gpu.json").read_text())["passed"]


def step(name, code, limit_s=30, **more):
    return gpu_steps.Step(name, [sys.executable, "-c", code], limit_s, **more)


def run_steps(tmp_path, monkeypatch, *steps, deadline="100", more=()):
    monkeypatch.setattr(gpu_steps, "steps", lambda work, rehearse: list(steps))
    status = gpu_steps.main([str(tmp_path), "--work", str(tmp_path), "--deadline", deadline, *more])
    return status, json.loads((tmp_path / "gpu.json").read_text())


def test_a_failing_step_stops_nothing_and_is_told(tmp_path, monkeypatch, capsys):
    status, document = run_steps(
        tmp_path,
        monkeypatch,
        step("broken", "raise SystemExit(3)"),
        step("endless", "import time; time.sleep(60)", limit_s=1),
        step("unreadable", "pass", collect=lambda: json.loads("{")),
        gpu_steps.Step("unstartable", ["/does/not/exist"], 30, beside=True),
        step("absent", "pass", skip="it is not here", beside=True),
        step("fine", "print('seen in the log')", beside=True, collect=lambda: {"passed": 2, "failed": 0, "skipped": 1}),
    )
    assert status == 1
    assert not document["passed"]
    outcomes = {row["name"]: row["outcome"] for row in document["steps"]}
    assert outcomes == {
        "broken": "failed", "endless": "failed", "unreadable": "failed", "unstartable": "failed",
        "absent": "skipped", "fine": "passed"
    }  # fmt: skip
    assert document["steps"][0]["exit_status"] == 3
    assert any("SystemExit(3)" in line for line in document["steps"][0]["last_lines"])
    assert document["steps"][1]["out_of_time"]
    assert "cannot be read" in document["steps"][2]["why"]
    assert "cannot be started" in document["steps"][3]["why"]
    printed = capsys.readouterr().out
    assert "2 passed, 0 failed, 1 skipped" in printed
    assert "out of time" in printed
    assert "seen in the log" in (tmp_path / "gpu.log").read_text()


def test_a_step_of_a_background_job_stores_what_it_has_when_its_time_is_up(tmp_path, monkeypatch):
    """A shell has its background jobs ignore the interrupt, and so would every step."""
    monkeypatch.setattr(gpu_steps, "INTERRUPT_S", 4)
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('stored')"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run_steps(tmp_path, monkeypatch, step("endless", code, limit_s=1))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stored" in (tmp_path / "gpu.log").read_text().splitlines()


MEETING = """
import pathlib, time
mine, other = (pathlib.Path(name) for name in {names!r})
mine.touch()
while not other.exists():
    time.sleep(0.01)
"""


def meeting(tmp_path, **more):
    """Two steps, each of which waits for the other's file."""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    return [step(str(k), MEETING.format(names=names), **more) for k, names in enumerate(((a, b), (b, a)))]


def test_steps_beside_each_other_run_at_the_same_time(tmp_path, monkeypatch):
    assert run_steps(tmp_path, monkeypatch, *meeting(tmp_path, beside=True))[0] == 0
    for name in "ab":
        (tmp_path / name).unlink()
    assert run_steps(tmp_path, monkeypatch, *meeting(tmp_path, limit_s=1))[0] == 1


def test_a_rehearsal_runs_as_many_steps_at_a_time_as_there_are_processors(tmp_path, monkeypatch):
    for processors, status in (({0, 1}, 0), ({0}, 1)):
        folder = tmp_path / str(len(processors))
        folder.mkdir()
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, found=processors: found)
        steps = meeting(folder, limit_s=30 if len(processors) > 1 else 1)
        assert run_steps(folder, monkeypatch, *steps, more=["--rehearse"])[0] == status


def test_steps_after_the_deadline_are_failures(tmp_path, monkeypatch):
    status, document = run_steps(tmp_path, monkeypatch, step("late", "pass"), deadline="5")
    assert status == 1
    assert document["steps"][0]["why"] == "not begun: the budget was used up"


def test_the_budget_cuts_the_last_steps_and_the_summary_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_steps, "INTERRUPT_S", 1)
    monkeypatch.setattr(gpu_steps, "KILL_S", 1)
    monkeypatch.setattr(gpu_steps, "LEAST_S", 1)
    endless = "import time; time.sleep(60)"
    stubborn = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {endless}"
    begun = time.monotonic()
    status, document = run_steps(
        tmp_path,
        monkeypatch,
        step("first", "pass", limit_s=50),
        step("own limit", endless, limit_s=0.5),
        step("side: a", "pass", limit_s=40, beside=True),
        step("side: b", "pass", limit_s=30, beside=True),
        step("stubborn", stubborn, limit_s=60),
        step("least", "pass", limit_s=20),
        deadline="8",
    )
    assert time.monotonic() - begun < 8.5, "a step that ignores the interrupt is killed within the budget"
    assert status == 1
    rows = {row["name"]: row for row in document["steps"]}
    assert [name for name, row in rows.items() if row["outcome"] == "passed"] == ["first", "side: a", "side: b"]
    assert document["budget"] == {"seconds": 8.0, "limits_s": 50 + 0.5 + 40 + 60 + 20}
    assert rows["own limit"]["given_s"] == rows["own limit"]["limit_s"]
    assert 0 < rows["stubborn"]["given_s"] < 6
    assert rows["least"]["why"] == "not begun: the budget was used up"
    printed = capsys.readouterr().out
    assert "out of time: cut at 0.5 s, its limit" in printed
    assert "what was left; its limit is 60 s" in printed
    assert "budget: 8 s for these steps, whose limits sum to 170 s" in printed
    (cut,) = (line for line in printed.splitlines() if line.startswith("cut by the budget"))
    assert "stubborn (" in cut
    assert "least (" in cut
    assert "own limit" not in cut
    assert "SLEEPFM_GPU_STEPS='stubborn,least'" in printed


def test_what_matters_most_comes_first(tmp_path):
    """Right or wrong before our times, ours before the rivals', and of what is least valuable the largest limits."""
    names = [step.name for step in gpu_steps.steps(tmp_path, False)]
    order = ["tests on cuda: small", "benchmarks on cuda: loss", "measurements", "benchmarks on cuda: rivals"]
    # A CPU is easier to come by than a GPU, whose time this is.
    order += ["benchmarks on cuda: compiled encoder", "tests on the cpu", "benchmarks on cpu"]
    places = [names.index(name) for name in order]
    assert places == sorted(places)
    assert places[-1] == len(names) - 1


def test_all_passed_is_zero(tmp_path, monkeypatch):
    assert run_steps(tmp_path, monkeypatch, step("fine", "pass"))[0] == 0


def test_counts_of_a_junit_file(tmp_path):
    code = "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('x')\n"
    (tmp_path / "test_three.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=counts.xml", "test_three.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert gpu_steps.test_counts(tmp_path / "counts.xml") == {"passed": 1, "failed": 1, "skipped": 1}
    assert gpu_steps.test_counts(tmp_path / "none.xml") == {}


def test_the_table_shows_arms_predictions_and_what_failed():
    result = {
        "name": "a loss",
        "medians_s": {"ours": 0.03, "rival": 0.3},
        "ratios": {"rival": {"median": 10.0, "low": 9, "high": 11}},
        "peak_device_mib": {"ours": 120.0, "rival": None},
        "predicted_s": 0.02,
        "failed": {"other": "OutOfMemoryError: 190 GB"},
    }
    text = "\n".join(gpu_steps.comparison(result))
    for words in ("a loss (predicted 20 ms)", "30 ms", "10.00 x", "120 MiB", "failed: OutOfMemoryError"):
        assert words in text


@pytest.mark.parametrize(("fused_s", "words"), [(0.9, "reached"), (1.1, "missed")])
def test_the_table_says_whether_the_fastest_of_ours_reaches_the_floor(fused_s, words):
    medians = {"ours": 2.0, "ours, fused blocks, bfloat16": fused_s, "PyTorch": 0.5}
    result = {"name": "embedding", "medians_s": medians, "ratios": {}, "floor_s": 1.0}
    assert gpu_steps.comparison(result)[0] == f"embedding (at most 1 s: {words})"
    assert (
        gpu_steps.comparison({**result, "predicted_s": 0.5})[0] == f"embedding (predicted 500 ms, at most 1 s: {words})"
    )


def test_the_encoders_benchmarks_expect_what_their_page_computes():
    source = (ROOT / "bench" / "test_cuda_encoder.py").read_text()
    page = " ".join((ROOT / "docs" / "kernels" / "encoder-blocks-cuda.md").read_text().split())
    for name, words in (("EMBEDDED", "embed"), ("TRAINED", "train on")):
        (computed,) = re.findall(rf"Computed for an H200: three encoders {words} ([\d,]+) clips/s, against", page)
        assert f"COMPUTED_{name} = 3 * {computed.replace(',', '_')}\n" in source


def test_the_table_ends_with_the_steps_and_names_the_tests_that_failed(tmp_path, monkeypatch, capsys):
    """The tail of the output may be all that anybody sees of a run."""
    summary = "\n".join(f"FAILED tests/test_a.py::test_{k} - assert {k}" for k in range(8))
    comparisons = [{"name": "a loss", "medians_s": {"ours": 0.03}, "ratios": {}}]
    run_steps(
        tmp_path,
        monkeypatch,
        step("tests", f"print({summary!r}); raise SystemExit(1)"),
        step("broken", "raise RuntimeError('no such device')"),
        step("measurements", "pass", collect=lambda: {"a launch (us)": 3.5}),
        step("times", "pass", collect=lambda: comparisons),
    )
    printed = capsys.readouterr().out
    places = [printed.index(words) for words in ("a launch (us)", "a loss", "step ", "test_a.py::test_0", "budget:")]
    assert places == sorted(places)
    assert "test_a.py::test_5" in printed
    assert "test_a.py::test_6" not in printed
    assert "and 2 more" in printed
    assert "RuntimeError: no such device" in printed


def test_failures_are_counted_over_the_whole_log_and_a_test_that_hangs_is_named(tmp_path, monkeypatch, capsys):
    many = "\n".join(f"FAILED tests/test_a.py::test_{k} - assert {k}" for k in range(200))
    _, document = run_steps(tmp_path, monkeypatch, step("many", f"print({many!r}); raise SystemExit(1)"))
    assert len(document["steps"][0]["failed_tests"]) == 200
    printed = capsys.readouterr().out
    assert "test_a.py::test_0 -" in printed
    assert "and 194 more" in printed
    (tests := tmp_path / "hangs" / "tests").mkdir(parents=True)
    body = ["import time, pytest", "@pytest.mark.parametrize('n', ['1-a b', '2'])", "def test_it(n):"]
    (tests / "test_hangs.py").write_text("\n".join([*body, "    time.sleep(60 * (n == '2'))", ""]))
    command = [*("-v", "-p", "no:cacheprovider", "--timeout", "2", "--timeout-method", "thread", "-c", "/dev/null")]
    words = [sys.executable, "-m", "pytest", *command, "--rootdir", str(tests.parent), "tests/test_hangs.py"]
    monkeypatch.setattr(gpu_steps, "ROOT", tests.parent)
    _, document = run_steps(tests.parent, monkeypatch, gpu_steps.Step("hangs", words, 60))
    assert document["steps"][0]["failed_tests"] == ["in tests/test_hangs.py::test_it[2]"]
    assert "    in tests/test_hangs.py::test_it[2]" in capsys.readouterr().out


def test_the_sanitizer_is_found_beside_the_compiler(tmp_path):
    """Where only nvcc is on the PATH, as a link into the toolkit."""
    toolkit, on_path = tmp_path / "cuda" / "bin", tmp_path / "on_path"
    for folder in (toolkit, on_path):
        folder.mkdir(parents=True)
    for name in ("nvcc", "compute-sanitizer"):
        (toolkit / name).write_text("#!/bin/sh\n")
        (toolkit / name).chmod(0o755)
    (on_path / "nvcc").symlink_to(toolkit / "nvcc")
    if shutil.which("compute-sanitizer"):
        pytest.skip("the whole toolkit is on the PATH")
    path = f"{on_path}:{os.environ['PATH']}"
    done = gpu("--rehearse", str(tmp_path / "out"), PATH=path, SLEEPFM_GPU_STEPS="sanitizer racecheck")
    assert done.returncode == 0, done.stdout + done.stderr
    (racecheck,) = json.loads((tmp_path / "out" / "gpu.json").read_text())["steps"]
    assert racecheck["outcome"] == "passed"


def test_initcheck_sees_no_product_of_a_library(monkeypatch):
    """Nor may a change of the kernels' arguments be noticed on a device only."""
    words = gpu_steps.SANITIZER_PATHS["initcheck"]
    assert set(words) == {*gpu_sanitize.SIZES, gpu_sanitize.BETWEEN} - {"gemm"}
    emulated = emulate_training(monkeypatch)
    for product in ("mm", "addmm", "mv"):
        monkeypatch.setattr(torch, product, None)
    monkeypatch.setattr(gpu_sanitize, "BLOCKS", ((8, 16, 2), (8, 8, 1)))
    gpu_sanitize.between_products(torch.device("cpu"))
    assert set(emulated.counts) == set(BUFFERS)


def test_measurements_that_fail_stop_nothing_and_are_told_apart(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("an illegal memory access")

    for name in ("errors", "times", "copies", "products", "probe"):
        monkeypatch.setattr(gpu_probe, name, broken)
    assert gpu_probe.main(tmp_path / "probe.json") == 1
    found = json.loads((tmp_path / "probe.json").read_text())
    failed = [what for what in found if what.startswith("failed: ")]
    assert len(failed) == 6
    assert all("illegal memory access" in found[what] for what in failed)
    assert "a launch through torch (us)" in found


def test_every_path_is_timed_where_it_may_run(monkeypatch):
    monkeypatch.setattr(gpu_probe.cuda_events, "measure", lambda call: 0.0123456)
    found = gpu_probe.times((8, 2000), (16,))
    assert set(found.values()) == {12.35}
    assert [what for what in found if "small" in what] == ["N = 8, D = 16: small, highest (ms)"]
    assert {"N = 2000, D = 16: mma, high (ms)", "N = 2000, D = 16: gemm, highest (ms)"} < set(found)
    assert gpu_probe.contrastive_cuda.VARIABLE not in os.environ


def test_wheels_usage():
    done = subprocess.run(["bash", str(BENCH / "gpu_wheels.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_scripts_are_clean():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install --group dev)")
    scripts = [*BENCH.glob("*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run([shellcheck, *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
