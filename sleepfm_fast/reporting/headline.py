"""Section: the figures that are asked for first, with intervals, chance and a sentence on what each one means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sleepfm_fast.evaluation.interval_notice import interval_caution, rarest_caution
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.plurals import agreeing
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.comparison import spread
from sleepfm_fast.reporting.markup import element, escape
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section
from sleepfm_fast.reporting.retrieval import recall_keys
from sleepfm_fast.reporting.sources import MISSHAPEN, Run, over_nights
from sleepfm_fast.reporting.wording import count, interval, number_of, value_of
from sleepfm_fast.results import Result

__all__ = ["headline_section"]


@dataclass(frozen=True)
class Reading:
    """One run's value of a figure."""

    run: Run
    figure: Any
    chance: float | None
    note: str
    file: Path
    k: int = 0
    candidates: tuple[int, int] | None = None

    @property
    def value(self) -> float:
        value = value_of(self.figure)
        assert value is not None
        return value


def night_reading(run: Run, task: str) -> Reading | None:
    """Read the AUROC over nights of the result that speaks for a task."""
    result = run.classified(task)
    nights = over_nights(result) if result is not None else {}
    figure = (nights.get("macro") or {}).get("auroc")
    if result is None or value_of(figure) is None:
        return None
    note = f"{classifier_of(result)}, {number_of(nights.get('n_nights'), 'night')} of "
    note += number_of(nights.get("n_subjects"), "test subject")
    note += averaged(nights.get("classes") or {}, "auroc")
    return Reading(run, figure, 0.5, note, result.record_file)


def classifier_of(result: Result) -> str:
    """Say what kind of classifier a result is of, and what it saw."""
    modalities = result.record.get("modalities") or ()
    saw = "all modalities" if len(modalities) > 1 else ", ".join(modalities)
    return f"{'end-to-end network' if result.command == 'supervise' else 'probe'}, {saw}"


def averaged(classes: dict[str, Any], key: str) -> str:
    """Say that a mean is over fewer classes than there are; empty where it is not."""
    have = len(with_figure(classes, key))
    few = key in next(iter(classes.values()), {}) and have < len(classes)
    classes_have = f"classes that {agreeing(have, 'has', 'have')} it"
    return f"; mean of the {have} of {len(classes)} {classes_have}" if few else ""


def classifier_reading(run: Run, task: str, key: str, chance: Callable[[Result], float | None]) -> Reading | None:
    """Read a figure of the result that speaks for a task."""
    result = run.classified(task)
    if result is None:
        return None
    figure = result.record.get(key) if key in result.record else (result.record.get("macro") or {}).get(key)
    if value_of(figure) is None:
        return None
    test = result.record.get("test") or {}
    subjects = number_of(test.get("n_subjects", 0), "test subject")
    note = f"{classifier_of(result)}, {subjects}, {number_of(test.get('n_clips', 0), 'clip')}"
    note += averaged(result.record.get("classes") or {}, key)
    return Reading(run, figure, chance(result), note, result.record_file)


def with_figure(classes: dict[str, Any], figure: str) -> list[dict[str, Any]]:
    """The classes that a mean of a figure is over: those that have it."""
    return [entry for entry in classes.values() if value_of(entry.get(figure)) is not None]


def mean_prevalence(result: Result) -> float | None:
    """Chance level of a mean of AUPRC: of the same classes."""
    shares = [
        v
        for c in with_figure(result.record.get("classes") or {}, "auprc")
        if (v := value_of(c.get("prevalence"))) is not None
    ]
    return sum(shares) / len(shares) if shares else None


def retrieval_result(run: Run) -> tuple[Result, str] | None:
    """Choose the retrieval that speaks for a run, and the largest recall@k of it with k of 10 or less.

    Only held-out clips speak for a run; retrieval among training clips stands in its own section.
    """
    results = [r for r in run.results_of("retrieve") if on_test_clips(run, r)]

    def order(result: Result) -> tuple[bool, bool, bool, str]:
        scope = str(result.record.get("scope") or "")
        named = result.path.name in ("retrieve", "retrieval")
        return scope not in ("", "all", "cohort"), is_draw(result), not named, str(result.path)

    for result in sorted(results, key=order):
        keys = recall_keys(result.record)
        keys = [k for k in keys if int(k.partition("@")[2]) <= 10] or keys[:1]
        entry = (result.record.get("mean") or {}).get(keys[-1]) if keys else None
        if value_of(entry) is not None:
            return result, keys[-1]
    return None


def is_draw(result: Result) -> bool:
    """Whether only some candidates were drawn (``--candidates``), among which more is found."""
    options = result.record.get("made_of")
    return isinstance(options, dict) and options.get("candidates") is not None


def queried(result: Result, key: str) -> list[Any]:
    """One entry of every direction of a retrieval that has it."""
    directions = result.record.get("directions")
    found = (d.get(key) for d in directions if isinstance(d, dict)) if isinstance(directions, list) else ()
    return [value for value in found if value is not None]


def retrieval_reading(run: Run) -> Reading | None:
    """Mean recall over the directions of ``results/retrieve`` or the first result."""
    chosen = retrieval_result(run)
    if chosen is None:
        return None
    result, key = chosen
    entry, k = result.record["mean"][key], int(key.partition("@")[2])
    times = value_of(entry.get("times_chance"))
    factor = f", {times:.1f} times chance" if times is not None else ""
    note = f"recall@{k}{factor}; mean of {result.record['mean'].get('n_directions', '-')} directions"
    if subjects := queried(result, "n_subjects"):
        note += f", {number_of(min(subjects), 'test subject')}"
    sizes = [int(n) for low_high in queried(result, "n_candidates") for n in low_high]
    candidates = (min(sizes), max(sizes)) if sizes else None
    return Reading(run, entry, value_of(entry.get("chance")), note, result.record_file, k, candidates)


def on_test_clips(run: Run, result: Result) -> bool:
    """Whether a retrieval result is of the test split of the run's own store."""
    return result.record.get("split") == "test" and not run.external_store(result)


def lead(runs: Sequence[Run]) -> str:
    """Say on whom the figures were measured, as far as the runs' files tell."""
    shared = [run for run in runs if is_memorised(run)]
    unknown = [(run, why) for run in runs if (why := run.unknown_training)]
    if not shared and not unknown:
        words = ["On subjects that neither the encoder nor the classifier was trained on."]
    else:
        words = ["On test clips."]
        if shared:
            names = ", ".join(run.name for run in shared)
            words.append(
                f"Training and test clips of {names} come from the same people, so the figures describe memorisation, "
                "not generalisation."
            )
        words += [
            f"The classifier of {run.name} was not trained on the test subjects, but {why}, so the encoder may have "
            "seen them."
            for run, why in unknown
            if run not in shared
        ]
    words.append("Bars are 95 % intervals, bootstrapped over subjects; dashed marks are chance.")
    tested = [n for run in runs if (n := fewest_subjects(run)) is not None]
    fewest = min(tested, default=0)
    classes = [result.record.get("classes") or {} for run in runs for t in TASKS if (result := run.classified(t))]
    return " ".join(words) + interval_caution(fewest) + rarest_caution(classes, fewest)


def shown(run: Run) -> list[Result]:
    """The results that the run's headline figures are from."""
    results = [result for task in TASKS if (result := run.classified(task)) is not None]
    retrieval = attempted(retrieval_result, run)
    return [*results, *([retrieval[0]] if retrieval else [])]


def is_memorised(run: Run) -> bool:
    """Whether a headline figure was measured on people whom the run was trained on."""
    # Results of earlier versions do not say it.
    overlap = (result.record.get("overlap", run.overlaps) for result in shown(run))
    return any(value is True for value in overlap)


def fewest_subjects(run: Run) -> int | None:
    """The smallest number of test subjects behind any of the run's headline figures."""
    sizes: list[Any] = []
    for result in shown(run):
        test = result.record.get("test")
        sizes += queried(result, "n_subjects") if result.command == "retrieve" else []
        sizes += [test.get("n_subjects")] if isinstance(test, dict) else []
    sizes = [value_of(size) for size in sizes]
    known = [int(size) for size in sizes if size]
    return min(known) if known else None


def not_shown(runs: Sequence[Run]) -> str:
    """Say which runs have retrieval results, but none of the test split."""
    left = []
    for run in runs:
        results = run.results_of("retrieve")
        if results and not any(on_test_clips(run, r) for r in results):
            splits = ", ".join(dict.fromkeys(str(r.record.get("split")) for r in results))
            left.append(f"{run.name} (clips: {splits})")
    return f"No retrieval on the run's own test clips: {'; '.join(left)}. See the section on retrieval." if left else ""


def card(title: str, meaning: str, readings: Sequence[Reading], several: bool) -> Figure:
    """One figure of all runs."""
    parts = []
    for reading in readings:
        limits = interval(reading.figure)
        text = f" 95 % interval {limits[0]:.3f} to {limits[1]:.3f}" if limits else ""
        value = element("div", f"{reading.value:.3f}", element("small", text), class_="value")
        who = element("p", element("b", escape(reading.run.name)), class_="versus") if several else ""
        note = element("p", element("small", escape(reading.note)))
        parts.append(
            element(
                "div",
                who,
                value,
                spread(reading.figure, reading.chance),
                note,
                class_="reading several" if several else "reading",
            )
        )
    return Figure(
        title,
        element("div", *parts, class_="card"),
        meaning,
        [r.file for r in readings],
        {r.run.name: {"figure": r.figure, "chance": r.chance, "note": r.note} for r in readings},
    )


class Card(NamedTuple):
    """A headline figure: its title, what a reading of it means, and how it is read."""

    title: str
    meaning: Callable[[Reading], str]
    read: Callable[[Run], Reading | None]


def half(_: Result) -> float:
    """Chance level of an AUROC."""
    return 0.5


def nothing(_: Result) -> float:
    """Chance level of Cohen's kappa."""
    return 0.0


CARDS = (
    Card(
        "Sleep staging: AUROC, mean of stages",
        lambda r: (
            f"Of a clip of one stage and a clip of another, the right one gets the higher score {hundred(r)} "
            "times in 100; guessing gets 50."
        ),
        lambda run: classifier_reading(run, "stage", "auroc", half),
    ),
    Card(
        "Sleep staging: AUPRC, mean of stages",
        lambda r: (
            "Precision averaged over all recalls, every stage counting alike; guessing gets a stage's share of the "
            f"clips, {r.chance or 0:.2f} on average."
        ),
        lambda run: classifier_reading(run, "stage", "auprc", mean_prevalence),
    ),
    Card(
        "Sleep staging: F1, mean of stages",
        lambda r: (
            "Harmonic mean of precision and recall when each clip gets its most probable stage, every stage "
            "counting alike; 1 is perfect."
        ),
        lambda run: classifier_reading(run, "stage", "f1", lambda _: None),
    ),
    Card(
        "Sleep staging: Cohen's kappa",
        lambda r: f"Of the agreement with the scorer that chance leaves open, {hundred(r)} % is reached.",
        lambda run: classifier_reading(run, "stage", "cohen_kappa", nothing),
    ),
    Card(
        "Sleep-disordered breathing: AUROC",
        lambda r: (
            f"Of a clip with a respiratory event and one without, the first gets the higher score {hundred(r)} "
            "times in 100; guessing gets 50."
        ),
        lambda run: classifier_reading(run, "sdb", "auroc", half),
    ),
    Card(
        "Sleep-disordered breathing: AUPRC",
        lambda r: (
            f"Precision averaged over all recalls; guessing gets the share of clips with an event, {r.chance or 0:.2f}."
        ),
        lambda run: classifier_reading(run, "sdb", "auprc", mean_prevalence),
    ),
    Card(
        "Age group: AUROC over clips, mean of groups",
        lambda r: (
            f"Of clips of two age groups, the right one gets the higher score {hundred(r)} times in 100; guessing "
            "gets 50."
        ),
        lambda run: classifier_reading(run, "age", "auroc", half),
    ),
    Card(
        "Age group: AUROC over nights, mean of groups",
        lambda r: (
            f"Of nights of two age groups, each by the mean probability of its clips, the right one gets the "
            f"higher score {hundred(r)} times in 100; guessing gets 50."
        ),
        lambda run: night_reading(run, "age"),
    ),
    Card(
        "Sex: AUROC over clips",
        lambda r: (
            f"Of a woman's clip and a man's, hers gets the higher score {hundred(r)} times in 100; guessing gets 50."
        ),
        lambda run: classifier_reading(run, "sex", "auroc", half),
    ),
    Card(
        "Sex: AUROC over nights",
        lambda r: (
            f"Of a woman's night and a man's, each by the mean probability of its clips, hers gets the higher "
            f"score {hundred(r)} times in 100; guessing gets 50."
        ),
        lambda run: night_reading(run, "sex"),
    ),
    Card(
        "Retrieval between modalities",
        lambda r: (
            f"Asked with a clip of one modality, {hundred(r)} times in 100 the clip recorded at the same time with "
            f"another modality is among the {r.k} nearest{candidates(r)}; a random order gets "
            f"{100 * (r.chance or 0):.1f}."
        ),
        retrieval_reading,
    ),
)


def headline_section(runs: Sequence[Run]) -> Section:
    """Draw a card for every figure that any run has."""
    section = Section("headline", "Headline figures", lead(runs), [Group(note=not_shown(runs))])
    items = section.groups[0].items
    for title, meaning, read in CARDS:
        readings = [reading for run in runs if (reading := attempted(read, run)) is not None]
        if readings:
            first = f"{readings[0].run.name}: " if len(runs) > 1 else ""
            items.append(card(title, first + meaning(readings[0]), readings, len(runs) > 1))
    if not items:
        items.append(no_results(runs[0]))
    return section


def no_results(run: Run) -> Missing:
    """Name the commands that make the first figures of a run."""
    # Features of two modalities have no common space to retrieve in.
    has_space = run.embeddings is None or run.embeddings.kind != "feature"
    return Missing(
        "No results on the run's own test clips yet. These commands make them:",
        "\n".join(
            [
                *([suggestions.embed(run)] if run.embeddings is None else []),
                *(suggestions.probe(run, t) for t in ("stage", "sdb")),
                *([suggestions.retrieve(run)] if has_space else []),
            ]
        ),
    )


T = TypeVar("T")


def attempted(read: Callable[[Run], T | None], run: Run) -> T | None:
    """Read a figure; a result of another shape is noted as a problem of the run."""
    try:
        return read(run)
    except MISSHAPEN as error:
        run.problems.append(f"a result of {run.path} is not as its command writes it ({error!r}); run it again.")
        return None


def candidates(reading: Reading) -> str:
    """Among how many clips was searched."""
    if reading.candidates is None:
        return ""
    low, high = reading.candidates
    return f" of {count(low)}" if low == high else f" of {count(low)} to {count(high)}"


def hundred(reading: Reading) -> str:
    """A share in hundredths, with a decimal below 10."""
    value = 100 * reading.value
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"
