"""The benchmark harness: turns, equality, storing, memory, and the report that writes the README's block."""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

import sleepfm_fast
from sleepfm_fast.system import processors

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
if not BENCH.is_dir():
    pytest.skip("the benchmarks are in the clone, not in the package", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import errors  # noqa: E402
import interleave  # noqa: E402
import machine  # noqa: E402
import memory  # noqa: E402
import report  # noqa: E402


class Clock:
    """Time that passes only where an arm says so."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def arm(self, name, *seconds):
        left = list(seconds)

        def call():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return name.upper()

        return call

    def __call__(self):
        return self.now


def test_arms_take_turns_in_alternating_order():
    clock, seen = Clock(), []
    arms = {"ours": clock.arm("ours", 9, 1, 2, 3, 4), "rival": clock.arm("rival", 9, 2, 2, 9, 8)}
    c = interleave.interleave("x", arms, rounds=4, agree=seen.append, quick=False, clock=clock)
    assert clock.calls == ["ours", "rival", "ours", "rival", "rival", "ours", "ours", "rival", "rival", "ours"]
    assert seen == [{"ours": "OURS", "rival": "RIVAL"}]
    assert c.seconds == {"ours": [1, 2, 3, 4], "rival": [2, 2, 9, 8]}  # the first call, 9 s, warms up
    assert c.medians == {"ours": 2.5, "rival": 5.0}
    assert c.ratios == {"rival": {"median": 2.0, "low": pytest.approx(1.3), "high": pytest.approx(2.7)}}
    c.require("rival", at_least=2.0)
    with pytest.raises(AssertionError, match=r"ours is 2\.00 times as fast as rival, expected 2\.1"):
        c.require("rival", at_least=2.1)


def test_a_short_call_is_timed_the_second_time_and_one_that_compiled_first_from_then_on():
    clock = Clock()
    arms = {"ours": clock.arm("ours", 0.1, 0.5, 0.1, 0.5, 0.2), "rival": clock.arm("rival", 9, 0.9, 0.7, 0.6)}
    c = interleave.interleave("x", arms, rounds=2, agree=lambda results: None, quick=False, clock=clock)
    assert clock.calls == ["ours", "rival", "ours", "ours", "rival", "rival", "rival", "ours", "ours"]
    assert c.seconds == {
        "ours": [pytest.approx(0.1), pytest.approx(0.2)],
        "rival": [pytest.approx(0.9), pytest.approx(0.6)],
    }


def test_what_an_arm_leaves_in_cycles_is_freed_before_the_next_arms_turn():
    class Node:
        pass

    left, alive = [], []

    def leaves():
        node = Node()
        node.self = node
        left.append(weakref.ref(node))

    def looks():
        alive.append(sum(ref() is not None for ref in left))

    gc.disable()  # as if the collector's turn had not come yet
    try:
        interleave.interleave("x", {"a": leaves, "b": looks}, rounds=2, agree=lambda results: None, quick=False)
    finally:
        gc.enable()
    assert alive[0] == 1  # before the rounds nobody is timed
    assert alive[1:] == [0] * 4


def test_quick_calls_each_arm_once_and_still_checks():
    clock = Clock()
    arms = {"ours": clock.arm("ours", 2), "rival": clock.arm("rival", 1)}
    c = interleave.interleave("x", arms, rounds=4, agree=lambda results: None, quick=True, clock=clock)
    assert clock.calls == ["ours", "rival"]
    c.require("rival", at_least=100)  # a quick run does not judge time

    def differ(results):
        assert results["ours"] == results["rival"]

    with pytest.raises(AssertionError):
        interleave.interleave("x", arms, rounds=4, agree=differ, quick=True, clock=clock)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_rounds_are_even(rounds):
    with pytest.raises(ValueError, match="expected an even number"):
        interleave.interleave("x", {"a": int}, rounds=rounds, agree=print, quick=False)


def test_machine_record_names_what_it_ran_on():
    record = machine.record()
    assert record["cpu_cores"] == processors()
    assert record["instruction_set"] == sleepfm_fast.build_info()["cpu_instruction_set_in_use"]
    assert record["sleepfm_fast"] == sleepfm_fast.__version__
    assert record["torch"].split(".")[0].isdigit()
    json.dumps(record)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_says_when_the_sources_differ(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert machine.commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    assert len(machine.commit(tmp_path)) == 12
    (tmp_path / "a").write_text("2")
    assert machine.commit(tmp_path).endswith("+changes")


def test_peak_memory_is_the_bodys():
    setup = "import numpy as np\nbig = np.ones(30 * 2**17)\ndel big\n"  # 30 MiB, gone before the body
    assert 38 < memory.peak_rss_mib(setup, "x = np.ones(40 * 2**17)") < 50
    assert memory.peak_rss_mib(setup, "pass") < 5
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        memory.peak_rss_mib("", "1 / 0")


def test_memory_that_our_ops_keep_counts_for_the_body_that_uses_it():
    setup = "import torch\nfrom sleepfm_fast.ops.pages import empty\n"
    setup += "use = lambda: empty(torch.empty(0), (10 * 2**20,)).fill_(1.0)\nuse()"
    assert 38 < memory.peak_rss_mib(setup, "use()") < 50
    # A thread looks now and then: the body waits until it has looked at what is held.
    seen = "kept = use()\nwhile _peak - _before < 38 * 1024: _time.sleep(0.01)"
    assert 38 < memory.peak_anonymous_mib(setup, seen) < 50


BENCHMARK = """
import os
import resource

def told(call):
    call()
    return float(os.environ["SECONDS"])

def test_sum(versus, quick):
    c = versus("a sum", {"ours": lambda: sum(range(10)), "rival": lambda: 45}, agree=check, rounds=2,
               peak={"ours": ("", "x = 1")}, more={"process": os.getpid()})
    assert len(c.seconds["ours"]) == (1 if quick else 2)

def check(results):
    assert results["ours"] == results["rival"] == EXPECTED

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def test_constant(versus):
    versus("a constant", {"ours": lambda: 45, "rival": lambda: 45}, agree=check, rounds=2,
           measure=told if "SECONDS" in os.environ else None,
           more={"process": os.getpid(), "fresh_pages": fresh_pages()})
"""


@pytest.fixture
def bench_run(tmp_path):
    """Run the harness on a benchmark of its own, in a copy, as ``pytest bench/`` in the project is run."""
    folder = tmp_path / "bench"
    folder.mkdir()
    for path in BENCH.glob("*.py"):
        if not path.name.startswith("test_"):
            shutil.copy(path, folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def run(*arguments, expected=45, environment=None, program=("-m", "pytest", "bench/", "-p", "no:cacheprovider")):
        (folder / "test_bench_sum.py").write_text(BENCHMARK.replace("EXPECTED", str(expected)))
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": path, **(environment or {})}
        environment.pop("PYTEST_XDIST_WORKER", None)  # with it pytest-benchmark takes itself for a worker's
        return subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    run.results = folder / "results"
    return run


def test_bench_measures_and_stores(bench_run):
    done = bench_run("--store", "here", "--benchmark-json=benchmarks.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rivals in turns" in done.stdout
    assert "Name (time in" in done.stdout  # pytest-benchmark is on although addopts turn it off
    document = json.loads((bench_run.results / "here.json").read_text())
    assert document["passed"] is True
    assert document["machine"]["cpu_model"] == machine.cpu_model()
    result, constant = document["results"]
    assert (result["name"], len(result["seconds"]["ours"])) == ("a sum", 2)
    assert set(result["peak_rss_mib"]) == {"ours"}
    assert "| a sum | " in "\n".join(report.table(document))
    assert (document["processes"], result["process"]) == ("one", constant["process"])
    if document["machine"]["malloc"] == "keeps freed pages":  # four times the same 64 MiB
        assert constant["fresh_pages"] < 2 * (64 << 20) / os.sysconf("SC_PAGE_SIZE")
    else:
        assert platform.libc_ver()[0] != "glibc"
    by_name = {
        b["name"]: b
        for b in json.loads((bench_run.results.parent.parent / "benchmarks.json").read_text())["benchmarks"]
    }
    assert by_name["test_sum"]["stats"]["data"] == pytest.approx(result["seconds"]["ours"])
    assert by_name["test_sum"]["extra_info"]["ratios"] == result["ratios"]


def test_a_slower_commit_fails_the_regression_run(bench_run):
    once = ("-k", "constant", "--benchmark-storage=kept")
    compare = (*once, "--benchmark-compare", "--benchmark-compare-fail=median:20%")
    took = {"SECONDS": "0.100", "SLEEPFM_CPU": "portable"}
    assert bench_run(*once, "--benchmark-save=before", environment=took).returncode == 0
    done = bench_run(*compare, environment={**took, "SECONDS": "0.119"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "machine_info is different" not in done.stderr
    done = bench_run(*compare, environment={**took, "SECONDS": "0.121"})
    assert done.returncode != 0
    assert "Performance has regressed" in done.stdout + done.stderr


def test_a_run_on_another_machine_is_compared_with_a_warning(bench_run, tmp_path):
    once = ("-k", "constant", "--benchmark-storage=kept")
    assert bench_run(*once, "--benchmark-save=before").returncode == 0
    (kept,) = (tmp_path / "kept").rglob("*.json")
    kept.write_text(kept.read_text().replace(machine.cpu_model(), "another processor"))
    done = bench_run(*once, "--benchmark-compare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "machine_info is different" in done.stderr


def test_a_stored_run_gives_every_benchmark_a_process(bench_run):
    done = bench_run("here", "--results", str(bench_run.results), program=("bench/store.py",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2: bench/test_bench_sum.py::test_constant" in done.stdout
    document = json.loads((bench_run.results / "here.json").read_text())
    assert (document["passed"], document["processes"]) == (True, "one a benchmark")
    assert [r["name"] for r in document["results"]] == ["a sum", "a constant"]
    assert len({r["process"] for r in document["results"]}) == 2
    done = bench_run("there", "--results", str(bench_run.results), program=("bench/store.py",), expected=46)
    assert done.returncode == 1
    assert "failed: bench/test_bench_sum.py::test_sum, bench/test_bench_sum.py::test_constant" in done.stderr
    assert json.loads((bench_run.results / "there.json").read_text())["passed"] is False
    done = bench_run("here", "bench/nothing.py", program=("bench/store.py",))
    assert done.returncode == 1
    assert "error: pytest could not collect bench/nothing.py" in done.stderr


def test_bench_quick_checks_and_times_nothing(bench_run):
    done = bench_run("--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "quick: 2 comparisons agree; nothing was timed" in done.stdout
    assert "Name (time in" not in done.stdout
    assert not bench_run.results.exists()
    done = bench_run("--quick", expected=46)
    assert done.returncode == 1
    done = bench_run("--quick", "--store", "here")
    assert done.returncode == 4
    assert "--store keeps measurements" in done.stderr
    assert bench_run("--store", "../here").returncode == 4


def stored(folder, name="run", passed=True):
    document = {
        "name": name,
        "machine": {
            "cpu_model": "C",
            "cpu_cores": 2,
            "instruction_set": "avx2",
            "torch": "2",
            "python": "3",
            "commit": "abc",
            "gpu": None,
            "malloc": "keeps freed pages",
        },
        "passed": passed,
        "results": [
            {
                "name": "a sum",
                "seconds": {"ours": [0.01, 0.02], "slower": [2.6, 2.6], "rival": [2.0, 3.0]},
                "medians_s": {"ours": 0.0123, "slower": 2.6, "rival": 2.5},
                "ratios": {"rival": {"median": 203.25, "low": 190, "high": 210.5}, "slower": {}},
                "peak_rss_mib": {"ours": 3.2, "rival": 400},
            },
            {"name": "alone", "seconds": {}, "medians_s": {"ours": 4e-6}, "ratios": {}},
        ],
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document))


def report_run(tmp_path, *arguments):
    return report.main(["--results", str(tmp_path / "results"), "--root", str(tmp_path), *arguments])


def pages(tmp_path, text):
    (tmp_path / "docs").mkdir(exist_ok=True)
    (tmp_path / "docs" / "kernels.md").write_text(f"{report.BOUNDS_BEGIN}\n{report.BOUNDS_END}\n")
    both = tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"
    for page in both:
        page.write_text(text)
    return both


def test_report_rewrites_only_its_blocks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "HEADLINES", ("alone",))
    stored(tmp_path / "results")
    readme, page = pages(tmp_path, f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n")
    assert report_run(tmp_path, "--check") == 1
    assert capsys.readouterr().err.count("out of date") == 3
    assert report_run(tmp_path) == 0
    heads = "| what | ours | fastest rival |", "| what | ours, run (avx2) | times faster"
    for text, head in zip((page.read_text(), readme.read_text()), heads, strict=True):
        assert text.startswith(f"# Title\n\n{report.BEGIN}\n{head}")
        assert (
            "\n\n**run**: C, 2 cores, avx2, Python 3, torch 2; commit abc, malloc keeps freed pages. All rivals" in text
        )
        assert text.endswith(f"\n{report.END}\n\nAfter.\n")
        assert "slower" not in text  # one row a comparison: the fastest rival
        assert "old" not in text
    assert "| alone | 4 µs | - | - | - | - |" in page.read_text()
    assert "| a sum | 12.3 ms | rival | 2.5 s | 203.25 (of 2 rounds: 150.00-200.00) | 3 / 400 MiB |" in page.read_text()
    assert "\n| alone | 4 µs | - |\n" in readme.read_text()
    assert "a sum" not in readme.read_text()
    assert report_run(tmp_path, "--check") == 0
    before = readme.read_text(), page.read_text()
    assert report_run(tmp_path) == 0
    assert (readme.read_text(), page.read_text()) == before


def test_the_readme_shows_runs_with_every_headline(tmp_path, capsys, monkeypatch):
    readme, page = pages(tmp_path, f"{report.BEGIN}\n{report.END}\n")
    stored(tmp_path / "results")
    part = json.loads((tmp_path / "results" / "run.json").read_text())
    part.update(name="part", results=[r for r in part["results"] if r["name"] != "alone"])
    (tmp_path / "results" / "part.json").write_text(json.dumps(part))
    monkeypatch.setattr(report, "HEADLINES", ("a sum", "alone"))
    assert report_run(tmp_path) == 0
    assert "**run**" in readme.read_text()
    assert "**part**" not in readme.read_text()
    assert "\n| a sum | 12.3 ms, 3 MiB | 203.25 (150.00-200.00) than rival, 400 MiB |\n" in readme.read_text()
    assert "**run**" in page.read_text()
    assert "**part**" in page.read_text()
    later = json.loads((tmp_path / "results" / "run.json").read_text())
    later["results"][0]["name"] = "a sum of more"
    later["results"][1]["medians_s"]["ours"] = 5e-6
    (tmp_path / "results" / "later.json").write_text(json.dumps(later | {"name": "later"}))
    assert report_run(tmp_path) == 0
    assert "| what | ours, later (avx2) | times faster" in readme.read_text()
    rows = [line for line in readme.read_text().splitlines() if line.startswith("| a")]
    assert rows == [  # in the order of the headlines; what a run lacks is a dash
        "| a sum of more | 12.3 ms, 3 MiB | 203.25 (150.00-200.00) than rival, 400 MiB | - | - |",
        "| a sum | - | - | 12.3 ms, 3 MiB | 203.25 (150.00-200.00) than rival, 400 MiB |",
        "| alone | 5 µs | - | 4 µs | - |",
    ]
    (tmp_path / "results" / "later.json").unlink()
    monkeypatch.setattr(report, "HEADLINES", ("a sum", "a product"))
    assert report_run(tmp_path) == 1
    assert "run.json lacks a product" in capsys.readouterr().err


def test_the_readme_leaves_out_runs_of_before_malloc_kept_pages_once_there_is_one(tmp_path, monkeypatch):
    readme, page = pages(tmp_path, f"{report.BEGIN}\n{report.END}\n")
    stored(tmp_path / "results")
    document = json.loads((tmp_path / "results" / "run.json").read_text())
    (tmp_path / "results" / "now.json").write_text(json.dumps(document | {"name": "now"}))
    del document["machine"]["malloc"]
    (tmp_path / "results" / "run.json").write_text(json.dumps(document))
    monkeypatch.setattr(report, "HEADLINES", ("alone",))
    assert report_run(tmp_path) == 0
    assert "**now**" in readme.read_text()
    assert "**run**" not in readme.read_text()
    assert "**run**" in page.read_text()


def test_a_page_of_a_kernel_has_the_rivals_of_the_comparisons_it_names(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "HEADLINES", ("alone",))
    stored(tmp_path / "results")
    document = json.loads((tmp_path / "results" / "run.json").read_text())
    document["results"] = document["results"][:1]
    document["results"][0]["medians_s"] = {"ours": 2e-3, "another": 0.5}
    document["results"][0]["ratios"] = {"another": {"median": 250, "low": 240, "high": 260}}
    rounds = {"ours": [2e-3] * 11, "another": [2e-3 * i for i in range(245, 256)]}
    document["results"][0]["seconds"] = rounds
    (tmp_path / "results" / "a.json").write_text(json.dumps(document | {"name": "second"}))
    document["results"][0]["name"] = "something else"
    (tmp_path / "results" / "b.json").write_text(json.dumps(document | {"name": "third"}))
    pages(tmp_path, f"{report.BEGIN}\n{report.END}\n")
    kernel = tmp_path / "docs" / "kernels" / "sum.md"
    kernel.parent.mkdir()
    kernel.write_text("# Sum\n\n<!-- bench:rivals a sum; alone -->\nold\n<!-- bench:rivals-end -->\nAfter.\n")
    assert report_run(tmp_path) == 0
    lines = kernel.read_text().splitlines()
    assert lines[:3] == ["# Sum", "", "<!-- bench:rivals a sum; alone -->"]
    assert lines[3] == f"| | run | times ours ({report.BAND}) | second | times ours ({report.BAND}) |"
    assert lines[5:11] == [
        "| **a sum** | | | | |",
        "| ours | 12.3 ms, 3 MiB | | 2 ms, 3 MiB | |",
        "| another | - | | 500 ms | 250.00 (246.00-254.00) |",
        "| rival | 2.5 s, 400 MiB | 203.25 (of 2 rounds: 150.00-200.00) | - | |",
        "| slower | 2.6 s | | - | |",
        "| **alone** | | | | |",
    ]
    assert "old" not in kernel.read_text()
    assert "`bench/results/run.json` (C, 2 cores, avx2, commit abc)" in kernel.read_text()
    assert lines[-2:] == ["<!-- bench:rivals-end -->", "After."]
    assert report_run(tmp_path, "--check") == 0
    kernel.write_text("<!-- bench:rivals a product -->\n<!-- bench:rivals-end -->\n")
    capsys.readouterr()
    assert report_run(tmp_path) == 1
    assert "'a product'" in capsys.readouterr().err


def test_a_run_of_the_older_method_is_marked_wherever_its_columns_are(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "HEADLINES", ("alone",))
    monkeypatch.setattr(report, "RATES", {"run": {"float32": 1e9}, "now": {"float32": 1e9}})
    monkeypatch.setattr(report, "BOUNDS", (report.BOUNDS[0]._replace(result="a sum", kind="float32"),))
    stored(tmp_path / "results", name="now")
    _, page = pages(tmp_path, f"{report.BEGIN}\n{report.END}\n")
    kernel = tmp_path / "docs" / "kernels" / "sum.md"
    kernel.parent.mkdir()
    kernel.write_text("<!-- bench:rivals a sum -->\n<!-- bench:rivals-end -->\n")
    index = tmp_path / "docs" / "kernels.md"
    assert report_run(tmp_path) == 0
    assert not any("older" in p.read_text().lower() for p in (page, kernel, index))
    stored(tmp_path / "results")
    document = json.loads((tmp_path / "results" / "run.json").read_text())
    del document["machine"]["malloc"]
    (tmp_path / "results" / "run.json").write_text(json.dumps(document))
    assert report_run(tmp_path) == 0
    assert "| | now | times ours" in kernel.read_text()
    assert "| run, older method | times ours" in kernel.read_text()
    assert "| avx2: bound | stored | share | avx2, older method: bound |" in index.read_text()
    said = f"*Older method*: `run` (commit abc). {report.OLDER_METHOD}"
    for p in (page, kernel, index):
        assert p.read_text().count(said) == 1
    text = page.read_text()
    assert text.index("**now**") < text.index(said) < text.index("**run**")


def test_the_page_of_kernels_has_bounds_beside_stored_times(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "HEADLINES", ("alone",))
    monkeypatch.setattr(report, "RATES", {"run": {"float32": 1e9}, "never stored": {"float32": 1e9}})
    names = {"title": "A sum", "kind": "float32", "rest": "adding"}
    sums = report.BOUNDS[0]._replace(result="a sum", multiply_adds=6.15e6, **names)
    monkeypatch.setattr(report, "BOUNDS", (sums, sums._replace(kind="int16"), sums._replace(result="never measured")))
    stored(tmp_path / "results")
    stored(tmp_path / "results", name="without a rate")
    pages(tmp_path, f"{report.BEGIN}\n{report.END}\n")
    assert report_run(tmp_path) == 0
    assert (tmp_path / "docs" / "kernels.md").read_text().splitlines() == [
        report.BOUNDS_BEGIN,
        "| kernel | multiply-adds | avx2: bound | stored | share | what takes the rest |",
        "|---|---|---|---|---|---|",
        "| A sum | 0.00615 G | 6.15 ms | 12.3 ms | 50 % | adding |",
        "| A sum | 0.00615 G | - | 12.3 ms | - | adding |",
        "| A sum | 0.00615 G | 6.15 ms | - | - | adding |",
        "",
        "Medians of the stored runs: `bench/results/run.json`.",
        report.BOUNDS_END,
    ]


def small_errors(monkeypatch, operation=lambda op: op):
    """Measure the errors of small tasks in this process."""
    monkeypatch.setattr(errors, "N", 130)
    monkeypatch.setattr(errors, "FILTERS", (errors.Filter("aasm", "eeg", 200), errors.Filter("aasm", "emg", 512, 50)))
    monkeypatch.setattr(errors.ops, "contrastive_loss", operation(errors.ops.contrastive_loss))
    monkeypatch.setattr(errors.ops, "filter_resample", operation(errors.ops.filter_resample))
    monkeypatch.setattr(errors, "ours_with", lambda name: errors.ours())
    return errors.measured(["avx2", "amx"])


def test_errors_are_those_of_rounding(monkeypatch):
    found = small_errors(monkeypatch)
    assert [(case["rows"], case["scale"]) for case in found["loss"]["cases"]] == [
        (rows, scale) for rows in errors.ROWS for scale in errors.SCALES
    ]
    for case in found["loss"]["cases"]:
        assert list(case["errors"]) == ["avx2", "amx", errors.PYTORCH]
        for error in case["errors"].values():
            assert 0 < error["gradient_rms"] < error["gradient_largest"] < 8 * (1 + case["scale"]) * 1e-5
            assert error["loss"] < 8 * (1 + case["scale"]) * 2**-23
    for case in found["filter"]["cases"]:
        assert list(case["errors"]) == ["avx2"]  # amx has no filter of its own
        assert 125 < case["errors"]["avx2"]["noise_db"] < 145
        assert 125 < case["errors"]["avx2"]["drift_db"] < 150


def test_errors_show_one_percent(monkeypatch):
    def too_large(op):
        def planted(*arguments, **options):
            result = op(*arguments, **options)
            return (1.01 * result[0], result[1]) if isinstance(result, tuple) else 1.01 * result

        return planted

    found = small_errors(monkeypatch, too_large)
    for case in found["loss"]["cases"]:
        assert case["errors"]["avx2"]["loss"] == pytest.approx(0.01, rel=1e-2)
        assert case["errors"]["avx2"]["gradient_rms"] == pytest.approx(0.01, rel=1e-2)
        assert case["errors"][errors.PYTORCH]["loss"] < 1e-4
    assert [round(case["errors"]["avx2"]["noise_db"], 1) for case in found["filter"]["cases"]] == [40.0, 40.0]


def test_a_page_of_a_kernel_has_its_errors(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "HEADLINES", ("alone",))
    stored(tmp_path / "results")
    pages(tmp_path, f"{report.BEGIN}\n{report.END}\n")
    kernel = tmp_path / "docs" / "kernels" / "sum.md"
    kernel.parent.mkdir()
    marks = "".join(f"<!-- bench:errors {what} -->\nold\n<!-- bench:errors-end -->\n" for what in ("loss", "filter"))
    kernel.write_text(marks)
    assert report_run(tmp_path) == 1
    assert "no stored errors; measure them with `python bench/errors.py NAME`." in capsys.readouterr().err
    error = {"gradient_rms": 1.26e-7, "gradient_largest": 9e-7, "loss": 0.0, "ranks_moved": 2}
    two = {"avx2": {"noise_db": 136.6, "drift_db": 99.5}, "avx512": {"noise_db": 130.2, "drift_db": 141}}
    document = {
        "kind": "errors",
        "name": "of rounding",
        "machine": {"cpu_model": "C", "commit": "abc"},
        "loss": {"M": 3, "N": 4, "D": 5, "cases": [{"rows": "some", "scale": 14.3, "errors": {"amx": error}}]},
        "filter": {
            "cases": [{"preset": "aasm", "kind": "emg", "fs_hz": 2048, "notch_hz": 50, "errors": two}],
        },
    }
    (tmp_path / "results" / "errors.json").write_text(json.dumps(document))
    assert report_run(tmp_path) == 0
    assert kernel.read_text().splitlines() == [
        "<!-- bench:errors loss -->",
        "| against float64, N = 4, D = 5, M = 3 | amx |",
        "|---|---|",
        "| some, s = 14.3 | 1.3e-7, 9.0e-7; 0.0e+00; 2 |",
        "",
        "`bench/results/of rounding.json` (C, commit abc).",
        "<!-- bench:errors-end -->",
        "<!-- bench:errors filter -->",
        "| preset, kind | fs, Hz | avx2: noise, dB | drift, dB | avx512: noise, dB | drift, dB |",
        "|---|---|---|---|---|---|",
        "| `aasm` emg, notch 50 | 2,048 | 137 | 100 | 130 | 141 |",
        "",
        "`bench/results/of rounding.json` (C, commit abc).",
        "<!-- bench:errors-end -->",
    ]
    assert "of rounding" not in (tmp_path / "docs" / "benchmarks.md").read_text()


def test_every_bound_is_of_a_stored_benchmark():
    names = {result["name"] for document in report.benchmarks(BENCH / "results") for result in document["results"]}
    assert [bound.title for bound in report.BOUNDS if bound.result not in names] == []


def test_the_pages_show_what_is_stored(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("case", ["no marks", "no results", "failed run", "other json", "no readme"])
def test_report_refuses(tmp_path, capsys, case):
    before = f"{report.BEGIN}\n{report.END}\n" if case != "no marks" else "nothing"
    readme, page = pages(tmp_path, before)
    if case == "no readme":
        readme.unlink()
    (tmp_path / "results").mkdir()
    if case != "no results":
        stored(tmp_path / "results", passed=case != "failed run")
    if case == "other json":
        (tmp_path / "results" / "z.json").write_text("[1]")
    assert report_run(tmp_path) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert page.read_text() == before
    assert case == "no readme" or readme.read_text() == before
