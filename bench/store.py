"""Measure every benchmark in a fresh process, as a user's program is one, and keep the figures.

``python bench/store.py NAME [benchmarks ...]`` writes bench/results/NAME.json. What a process did before decides what a
benchmark of it shows: glibc's malloc keeps the pages of a freed array or gives them back to the system according to the
largest array that was freed so far, and a rival that allocates its intermediates takes up to twice as long where every
page is fresh (docs/kernels/encoder-blocks.md). So conftest.py has malloc keep them, for all arms. ``pytest bench/
--store NAME`` is one process for all, which is quicker.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
PASSED, NOTHING_COLLECTED = 0, 5


class StoreError(Exception):
    """A sentence for whoever measures."""


def functions(benchmarks: Sequence[str], root: Path) -> list[str]:
    """Return the test functions of the benchmarks, in pytest's order; the variants of one stay together."""
    done = subprocess.run(
        [*PYTEST, *benchmarks, "--collect-only", "-q"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StoreError(f"pytest could not collect {' '.join(benchmarks)}:\n{done.stdout}{done.stderr}")
    names = [line.split("[")[0] for line in done.stdout.splitlines() if "::" in line]
    return list(dict.fromkeys(names))


def measured(function: str, root: Path) -> tuple[bool, dict[str, Any]]:
    """Run one test function in a process of its own; whether it passed, and what it stored (nothing if skipped)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*PYTEST, function, "-q", "--store", "part", "--results", folder]
        passed = subprocess.run(command, cwd=root, check=False).returncode in (PASSED, NOTHING_COLLECTED)
        part = Path(folder) / "part.json"
        return passed, json.loads(part.read_text(encoding="utf-8")) if part.exists() else {}


def write(document: dict[str, Any], path: Path) -> None:
    """Write a stored run; what is killed on the way leaves the former one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Measure, print what pytest prints, write the file after every benchmark; 0 when all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the run's name: letters, digits, '.', '_' and '-'")
    parser.add_argument("benchmarks", nargs="*", default=["bench/"], help="as pytest takes them (bench/)")
    parser.add_argument("--results", type=Path, default=root / "bench" / "results", help="the folder of stored runs")
    options = parser.parse_args(argv)
    path = options.results / f"{options.name}.json"
    machine: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    try:
        todo = functions(options.benchmarks, root)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for place, function in enumerate(todo, 1):
        print(f"{place} of {len(todo)}: {function}", flush=True)
        passed, part = measured(function, root)
        if not passed:
            failed.append(function)
        # The load is highest where it could disturb most; all else is the same in every part.
        load = max(part.get("machine", machine).get("load_average", 0), machine.get("load_average", 0))
        machine = {**part.get("machine", machine), "load_average": load}
        results += part.get("results", [])
        document = {"name": options.name, "machine": machine, "processes": "one a benchmark", "results": results}
        write({**document, "passed": not failed and place == len(todo)}, path)
    if failed:
        print(f"error: failed: {', '.join(failed)}; {path} holds the others and counts as not passed.", file=sys.stderr)
        return 1
    print(f"{len(results)} comparisons in {path}; python bench/report.py draws the pages from it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
