"""Write the measurements of bench/results/*.json between two marks. Nothing there is typed by hand.

``python bench/report.py`` writes every comparison into docs/benchmarks.md and the headlines into README.md, there only
of runs that measured them all, as a run of older code, or of a part of the benchmarks, did not. A page of a kernel
(docs/kernels/) names the comparisons that it wants with all rivals, in a comment that the table follows. In
docs/kernels.md the kernels' times are beside their bounds. Errors (errors.py) are in the pages of their kernels.
``python bench/report.py --check`` only says whether all pages are up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from bounds import BOUNDS, RATES
from interleave import quantile

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
BOUNDS_BEGIN, BOUNDS_END = "<!-- bench:bounds -->", "<!-- bench:bounds-end -->"
# The comment names comparisons, separated by semicolons.
RIVALS = re.compile(r"(<!-- bench:rivals ([^\n]+?) -->\n).*?(<!-- bench:rivals-end -->)", re.DOTALL)
# The comment names the op.
ERRORS = re.compile(r"(<!-- bench:errors (loss|filter) -->\n).*?(<!-- bench:errors-end -->)", re.DOTALL)

# Of fewer rounds the extremes are shown: their 10th and 90th percentiles would be interpolated between them.
ROUNDS_FOR_A_BAND = 10
BAND = "10-90 % of rounds; below 10 their range"
OLDER = "older method"
OLDER_METHOD = (
    "Every call was timed once, cold; malloc gave freed pages back; the fastest rivals of later runs were missing, and "
    "so were later changes of ours. Neither its times nor its shares compare with those of other runs."
)

# The README's rows, by how their names begin: one or two a stage of the pipeline, in the order of the data's flow.
HEADLINES = (
    "read 8 h of EDF+, 15 signals, in microvolts",
    "filter 0.3-35 Hz",
    "EDF file to model input as the original",
    "contrastive loss, forward + backward, N = 512,",
    "contrastive loss, forward + backward, N = 4096,",
    "embedding, published encoder",
    "embedding, preset seed",
    "training step, published encoder",
    "training step, preset seed",
    "AUROC and AUPRC",
    "ranks in both directions",
)


class ReportError(Exception):
    """A sentence for whoever runs the report."""


def time_text(seconds: float) -> str:
    """Format a duration with three digits in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def ratios_of_rounds(result: dict[str, Any], rival: str) -> tuple[float, float, int]:
    """Return how many times longer a rival takes, round by round: the band, or the range, and the number of rounds."""
    ours = next(iter(result["medians_s"]))
    each = [theirs / own for theirs, own in zip(result["seconds"][rival], result["seconds"][ours], strict=True)]
    if len(each) < ROUNDS_FOR_A_BAND:
        return min(each), max(each), len(each)
    return quantile(each, 0.1), quantile(each, 0.9), len(each)


def ratio_text(result: dict[str, Any], rival: str) -> str:
    """Format how many times longer a rival takes: the median and the band, or the range, of the rounds."""
    low, high, n = ratios_of_rounds(result, rival)
    rounds = f"of {n} rounds: " if n < ROUNDS_FOR_A_BAND else ""
    return f"{result['ratios'][rival]['median']:.2f} ({rounds}{low:.2f}-{high:.2f})"


def is_of_an_older_method(document: dict[str, Any]) -> bool:
    """Whether a run lacks kept pages, and with them second calls and the fastest rivals: all came with one method."""
    return "malloc" not in document["machine"]


def label(document: dict[str, Any], name: str) -> str:
    """Return what stands above the columns of a run."""
    return f"{name}, {OLDER}" if is_of_an_older_method(document) else name


def warning(documents: list[dict[str, Any]]) -> list[str]:
    """Say of which runs the columns are not to be set beside the others, if there are any."""
    older = [d for d in documents if is_of_an_older_method(d)]
    each = ", ".join(f"`{d['name']}` (commit {d['machine']['commit']})" for d in older)
    return [f"*{OLDER.capitalize()}*: {each}. {OLDER_METHOD}"] if older else []


def versions(machine: dict[str, Any]) -> str:
    """Name the versions that the times depend on, as far as the run recorded them."""
    names = ("torch", "numpy", "scipy", "scikit-learn", "numba", "pyedflib", "edfio", "mne", "soxr")
    names += ("onnxruntime", "openvino", "faiss-cpu")
    return ", ".join(f"{name} {machine[name]}" for name in names if name in machine)


def headlines(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results that the README shows, in its order."""
    return [result for start in HEADLINES for result in results if result["name"].startswith(start)]


def fastest_rival(result: dict[str, Any]) -> str | None:
    """Return the arm to compare with; none where nobody else was measured. Our own variants are no rivals."""
    _, *others = result["medians_s"]
    rivals = [arm for arm in others if not arm.startswith("ours,")]
    return min(rivals, key=lambda arm: float(result["medians_s"][arm])) if rivals else None


def machine_line(document: dict[str, Any]) -> str:
    """Return a line on the machine, the versions and the commit of a stored run."""
    m = document["machine"]
    where = f"{m['gpu']}, {m['cpu_model']}" if m.get("gpu") else m["cpu_model"]
    load = f", load average {m['load_average']}" if "load_average" in m else ""
    load += ", a process for each benchmark" if document.get("processes") == "one a benchmark" else ""
    load += f", malloc {m['malloc']}" if "malloc" in m else ""
    return (
        f"**{document['name']}**: {where}, {m['cpu_cores']} cores, {m['instruction_set']}, Python {m['python']}, "
        f"{versions(m)}; commit {m['commit']}{load}. All rivals and rounds: `bench/results/{document['name']}.json`."
    )


def table(document: dict[str, Any]) -> list[str]:
    """Return one stored run as a table, one row a comparison, and a line on the machine.

    Each row shows the fastest rival; the others, which a reader may look up, are in the stored file.
    """
    notice = warning([document])
    lines = [
        *notice,
        *[""] * len(notice),
        f"| what | ours | fastest rival | its time | times faster ({BAND}) | extra memory, ours / rival |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in document["results"]:
        ours = next(iter(result["medians_s"]))
        peaks = result.get("peak_rss_mib", {})
        start = f"| {result['name']} | {time_text(result['medians_s'][ours])}"
        if (rival := fastest_rival(result)) is None:
            lines.append(f"{start} | - | - | - | {f'{peaks[ours]:.0f} MiB' if ours in peaks else '-'} |")
            continue
        both = f"{peaks[ours]:.0f} / {peaks[rival]:.0f} MiB" if ours in peaks and rival in peaks else "-"
        lines.append(
            f"{start} | {rival} | {time_text(result['medians_s'][rival])} | {ratio_text(result, rival)} | {both} |"
        )
    return [*lines, "", machine_line(document)]


def headline_cells(result: dict[str, Any] | None) -> str:
    """Return two cells of a headline: our time and extra memory, and how many times faster that is than which rival."""
    if result is None:
        return " - | - |"
    ours = next(iter(result["medians_s"]))
    peaks, rival = result.get("peak_rss_mib", {}), fastest_rival(result)
    memory = {arm: f", {peaks[arm]:.0f} MiB" if arm in peaks else "" for arm in result["medians_s"]}
    cell = f" {time_text(result['medians_s'][ours])}{memory[ours]} |"
    if rival is None:
        return f"{cell} - |"
    low, high, _ = ratios_of_rounds(result, rival)
    return f"{cell} {result['ratios'][rival]['median']:.2f} ({low:.2f}-{high:.2f}) than {rival}{memory[rival]} |"


def headline_table(documents: list[dict[str, Any]]) -> str:
    """Return the headlines of all runs side by side, and a line on each machine."""
    found = [{result["name"]: result for result in headlines(document["results"])} for document in documents]
    names = [
        name for start in HEADLINES for name in dict.fromkeys(n for run in found for n in run) if name.startswith(start)
    ]
    better = f"times faster ({BAND}) than the fastest rival"
    runs = [f"{label(d, d['name'])} ({d['machine']['instruction_set']})" for d in documents]
    heads = "".join(f" ours, {run} | {better} |" for run in runs)
    lines = [
        *warning(documents),
        *[""] * len(warning(documents)),
        f"| what |{heads}",
        "|---|" + "---|---|" * len(documents),
    ]
    lines += [f"| {name} |" + "".join(headline_cells(run.get(name)) for run in found) for name in names]
    return "\n\n".join(["\n".join(lines), *(machine_line(document) for document in documents)])


def stored(path: Path) -> list[str]:
    """Return the lines of one stored run, refusing one that failed or is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        lines = table(document)
        passed = bool(document["passed"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} is not a stored benchmark run ({error!r}); remove it or measure again.") from error
    if not passed:
        raise ReportError(f"{path} is of a run in which a benchmark failed; measure again before reporting it.")
    return lines


def is_experiment(path: Path) -> bool:
    """Whether a stored file is no benchmark: an experiment, which has a page of its own, or errors."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("kind") in ("experiment", "errors")
    except (ValueError, AttributeError):
        return False


def block(results: Path, *, whole: bool) -> str:
    """Return the text between the marks: every stored run whole, or the headlines side by side."""
    files = [path for path in sorted(results.glob("*.json"), key=lambda path: path.stem) if not is_experiment(path)]
    if not files:
        raise ReportError(f"no measurements in {results}; take some with `pytest bench/ --store NAME`.")
    lines = {path: stored(path) for path in files}
    if whole:
        return "\n\n".join("\n".join(lines[path]) for path in files)
    shown = [path for path in files if not missing_headlines(path)]
    if not shown:
        lacks = "; ".join(f"{path.name} lacks {', '.join(missing_headlines(path))}" for path in files)
        raise ReportError(f"no run has every headline: {lacks}. Measure with `pytest bench/ --store NAME`.")
    # Earlier runs leave malloc as it is, and lack the rivals that came with that.
    shown = [path for path in shown if not is_of_an_older_method(read(path))] or shown
    return headline_table([read(path) for path in shown])


def read(path: Path) -> dict[str, Any]:
    """Return a stored run."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def missing_headlines(path: Path) -> list[str]:
    """Return the headlines that a stored run did not measure."""
    names = [str(result["name"]) for result in json.loads(path.read_text(encoding="utf-8"))["results"]]
    return [start for start in HEADLINES if not any(name.startswith(start) for name in names)]


def rewritten(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Return a page with ``text`` between its marks."""
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ReportError(f"the page needs one {begin} followed by one {end}; the measurements go between them.")
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def rivals(names: list[str], documents: list[dict[str, Any]]) -> str:
    """Return comparisons as a table of all arms, two columns for each run that has one of them."""
    runs = [(d, {r["name"]: r for r in d["results"] if r["name"] in names}) for d in documents]
    runs = [(document, found) for document, found in runs if found]
    lines = ["| |" + "".join(f" {label(document, document['name'])} | times ours ({BAND}) |" for document, _ in runs)]
    lines.append("|---|" + "---|---|" * len(runs))
    for name in names:
        results = [found.get(name, {"medians_s": {}, "ratios": {}}) for _, found in runs]
        times = {arm: time for result in reversed(results) for arm, time in result["medians_s"].items()}
        if not times:
            raise ReportError(f"no stored run has the comparison '{name}', which a page in docs/kernels/ names.")
        lines.append(f"| **{name}** |" + " | |" * len(runs))
        for arm in sorted(times, key=lambda arm: (arm != "ours", times[arm])):
            row = f"| {arm} |"
            for result in results:
                median = result["medians_s"].get(arm)
                memory = f", {peaks[arm]:.0f} MiB" if (peaks := result.get("peak_rss_mib", {})) and arm in peaks else ""
                row += f" {time_text(median)}{memory} |" if median else " - |"
                row += f" {ratio_text(result, arm)} |" if result["ratios"].get(arm) else " |"
            lines.append(row)
    machines = [(document["name"], document["machine"]) for document, _ in runs]
    files = "; ".join(
        f"`bench/results/{name}.json` ({m['cpu_model']}, {m['cpu_cores']} cores, {m['instruction_set']}, "
        f"commit {m['commit']})"
        for name, m in machines
    )
    said = " ".join(
        [
            f"Medians and, where measured, extra memory of the stored runs: {files}.",
            *warning([document for document, _ in runs]),
        ]
    )
    return "\n".join([*lines, "", said])


def bounds(documents: list[dict[str, Any]]) -> str:
    """Return the kernels' stored times beside what their multiply-adds alone would take, three columns a run."""
    runs = [
        (d, {r["name"]: r["medians_s"]["ours"] for r in d["results"] if "ours" in r["medians_s"]}) for d in documents
    ]
    runs = [(document, medians) for document, medians in runs if document["name"] in RATES]
    heads = "".join(f" {label(d, d['machine']['instruction_set'])}: bound | stored | share |" for d, _ in runs)
    lines = [
        f"| kernel | multiply-adds |{heads} what takes the rest |",
        "|---|---|" + "---|---|---|" * len(runs) + "---|",
    ]
    for bound in BOUNDS:
        row = f"| {bound.title} | {bound.multiply_adds / 1e9:.3g} G |"
        for document, medians in runs:
            rate, stored_s = RATES[document["name"]].get(bound.kind), medians.get(bound.result)
            row += f" {time_text(bound.multiply_adds / rate)} |" if rate else " - |"
            row += f" {time_text(stored_s)} |" if stored_s else " - |"
            row += f" {100 * bound.multiply_adds / rate / stored_s:.0f} % |" if rate and stored_s else " - |"
        lines.append(f"{row} {bound.rest} |")
    files = ", ".join(f"`bench/results/{document['name']}.json`" for document, _ in runs)
    return "\n".join([*lines, "", " ".join([f"Medians of the stored runs: {files}.", *warning([d for d, _ in runs])])])


def benchmarks(results: Path) -> list[dict[str, Any]]:
    """Return all stored runs by name, without the experiments."""
    files = [path for path in results.glob("*.json") if not is_experiment(path)]
    return sorted((json.loads(path.read_text(encoding="utf-8")) for path in files), key=lambda d: str(d["name"]))


def filter_name(case: dict[str, Any]) -> str:
    """Name a filter as docs/kernels/filter-resample.md does."""
    notch = f", notch {case['notch_hz']}" if case["notch_hz"] else ""
    return f"`{case['preset']}` {case['kind']}{notch} | {case['fs_hz']:,}"


def loss_error(error: dict[str, float]) -> str:
    """Format the errors of one case of the loss."""
    rms, largest, value = (
        f"{error[key]:.1e}".replace("e-0", "e-") for key in ("gradient_rms", "gradient_largest", "loss")
    )
    return f"{rms}, {largest}; {value}; {error['ranks_moved']}"


def errors(what: str, documents: list[dict[str, Any]]) -> str:
    """Return the errors of the loss or of the filter as a table, a column an instruction set of each run."""
    if not documents:
        raise ReportError("no stored errors; measure them with `python bench/errors.py NAME`.")
    lines = []
    for document in documents:
        cases, m = document[what]["cases"], document["machine"]
        arms = list(cases[0]["errors"])
        if what == "loss":
            sizes = ", ".join(f"{size} = {document['loss'][size]}" for size in ("N", "D", "M"))
            lines += [f"| against float64, {sizes} | {' | '.join(arms)} |", "|---" * (1 + len(arms)) + "|"]
            for case in cases:
                cells = " | ".join(loss_error(case["errors"][arm]) for arm in arms)
                lines.append(f"| {case['rows']}, s = {case['scale']:g} | {cells} |")
        else:
            heads = " | ".join(f"{arm}: noise, dB | drift, dB" for arm in arms)
            lines += [f"| preset, kind | fs, Hz | {heads} |", "|---" * (2 + 2 * len(arms)) + "|"]
            for case in cases:
                found = (case["errors"][arm] for arm in arms)
                cells = " | ".join(f"{error['noise_db']:.0f} | {error['drift_db']:.0f}" for error in found)
                lines.append(f"| {filter_name(case)} | {cells} |")
        lines += ["", f"`bench/results/{document['name']}.json` ({m['cpu_model']}, commit {m['commit']}).", ""]
    return "\n".join(lines[:-1])


def stored_errors(results: Path) -> list[dict[str, Any]]:
    """Return all stored errors by name."""
    documents = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json")))
    return [document for document in documents if document.get("kind") == "errors"]


def with_errors(page: str, documents: list[dict[str, Any]]) -> str:
    """Return a page of a kernel with its table of errors drawn from what errors.py stored."""
    return ERRORS.sub(lambda m: f"{m[1]}{errors(m[2], documents)}\n{m[3]}", page)


def with_rivals(page: str, documents: list[dict[str, Any]]) -> str:
    """Return a page of a kernel with its tables of rivals drawn from the stored runs."""
    return RIVALS.sub(lambda m: f"{m[1]}{rivals(m[2].split('; '), documents)}\n{m[3]}", page)


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check the pages; the exit status tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is out of date")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="folder of README.md and docs/")
    arguments = parser.parse_args(argv)
    pages = {arguments.root / "README.md": False, arguments.root / "docs" / "benchmarks.md": True}
    try:
        kernels = sorted((arguments.root / "docs" / "kernels").glob("*.md"))
        index = arguments.root / "docs" / "kernels.md"
        old = {page: page.read_text(encoding="utf-8") for page in (*pages, index, *kernels)}
        new = {page: rewritten(old[page], block(arguments.results, whole=whole)) for page, whole in pages.items()}
        documents = benchmarks(arguments.results)
        errors_found = stored_errors(arguments.results)
        new |= {page: with_errors(with_rivals(old[page], documents), errors_found) for page in kernels}
        new[index] = rewritten(old[index], bounds(documents), BOUNDS_BEGIN, BOUNDS_END)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = [page for page in new if new[page] != old[page]]
    for page in stale:
        if arguments.check:
            print(f"error: {page} is out of date; run `python bench/report.py`.", file=sys.stderr)
        else:
            page.write_text(new[page], encoding="utf-8")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
