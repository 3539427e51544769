"""Section: nights of held-out subjects, hour by hour: the scorer's stages, the predicted ones, how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.calibration import correct_for_prior, recorded_prior
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section
from sleepfm_fast.reporting.plot import Plot, legend
from sleepfm_fast.reporting.scale import Scale
from sleepfm_fast.reporting.sources import MISSHAPEN, Run
from sleepfm_fast.reporting.wording import number_of, share
from sleepfm_fast.results import Result
from sleepfm_fast.scoring.stages import EPOCH_S, STAGES

__all__ = ["choose_recordings", "hypnogram_section"]

Floats = npt.NDArray[np.float64]

MOST_RUNS = 4  # whose predictions stand under the scorer's

# From the top of a hypnogram down: wake, REM, then sleep of growing depth.
ORDER = ("W", "R", "N1", "N2", "N3")
HEIGHT_OF = {STAGES.index(name): len(ORDER) - 1 - i for i, name in enumerate(ORDER)}
LEVELS = Scale(-0.5, 4.5, ticks=tuple((float(HEIGHT_OF[STAGES.index(n)]), n) for n in ORDER))
UNIT = Scale(0.0, 1.0, ticks=((0.0, "0"), (0.5, "0.5"), (1.0, "1")))


@dataclass(frozen=True)
class Night:
    """The test clips of one recording in one result, in time order; times in hours.

    ``probability`` is as fitted, of which the result's figures are; ``prior`` has the frequencies of the training
    clips' classes where the classifier was fitted as if all were equally frequent.
    """

    result: Result
    name: str
    start: Floats
    label: npt.NDArray[np.int64]
    probability: Floats
    classes: tuple[int, ...]
    prior: Floats | None = None

    @property
    def stop(self) -> Floats:
        return self.start + EPOCH_S / 3600

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        codes: npt.NDArray[np.int64] = np.asarray(self.classes, np.int64)[self.probability.argmax(1)]
        return codes

    @property
    def believed(self) -> Floats:
        """Probabilities that can be taken at their word: corrected for the prior where there is one."""
        return self.probability if self.prior is None else correct_for_prior(self.probability, self.prior)

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.label).mean())


def nights_of(result: Result) -> dict[str, Night]:
    """Split a result's clips by recording.

    Raises
    ------
    SleepfmError
        When arrays that a classifier writes are missing.
    """
    recording, label = np.asarray(result.array("recording")), np.asarray(result.array("label"), np.int64)
    onset, probability = np.asarray(result.array("onset_s")), np.asarray(result.array("probability"), np.float64)
    names = result.record.get("recordings")
    classes = result.record.get("trained_classes")
    if not isinstance(names, list) or not isinstance(classes, list) or len(classes) != probability.shape[1]:
        raise SleepfmError(f"{result.path / 'result.json'} lacks the names of recordings or classes; write it again.")
    prior = recorded_prior(result.record)
    nights = {}
    order = np.lexsort((onset, recording))
    starts = np.flatnonzero(np.r_[True, np.diff(recording[order]) != 0])
    for rows in np.split(order, starts[1:]):
        r = int(recording[rows[0]])
        nights[str(names[r])] = Night(
            result, str(names[r]), onset[rows] / 3600, label[rows], probability[rows], tuple(int(c) for c in classes),
            prior,
        )  # fmt: skip
    return nights


def choose_recordings(nights: dict[str, Night], n: int) -> list[str]:
    """Spread ``n`` nights evenly from the best predicted to the worst, both included; of two, median and worst."""
    ranked = sorted(nights, key=lambda name: (-nights[name].accuracy, name))
    if n >= len(ranked):
        return ranked
    places = [0.5] if n == 1 else [0.5, 1.0] if n == 2 else np.linspace(0, 1, n).tolist()
    return [ranked[round(p * (len(ranked) - 1))] for p in places]


def entropy(probability: Floats) -> Floats:
    """Shannon entropy in units of the largest possible: 0 sure, 1 all equal."""
    p = np.clip(probability, 1e-12, 1.0)
    return np.asarray(-(p * np.log(p)).sum(1) / np.log(max(p.shape[1], 2)), np.float64)


def staircase(plot: Plot, night: Night, stage: npt.NDArray[np.int64], class_: str) -> None:
    """Draw stages as steps, and REM as bars, as printed hypnograms do."""
    heights = np.array([HEIGHT_OF[k] for k in stage.tolist()], np.float64)
    plot.steps(night.start, night.stop, heights, class_)
    rem = stage == STAGES.index("R")
    level = float(HEIGHT_OF[STAGES.index("R")])
    plot.blocks(night.start[rem], night.stop[rem], level - 0.16, level + 0.16, "r")


def ribbon(plot: Plot, night: Night) -> None:
    """Stack the probabilities of the stages; where clips are missing the ribbon is cut."""
    breaks = np.flatnonzero(night.start[1:] > night.stop[:-1] + 1e-6) + 1
    believed = night.believed
    order = [n for n in reversed(ORDER) if STAGES.index(n) in night.classes]
    for rows in np.split(np.arange(len(night.start)), breaks):
        edges = np.repeat(np.r_[night.start[rows], night.stop[rows[-1]]], 2)[1:-1]
        below = np.zeros(len(rows))
        for name in order:
            above = below + believed[rows, night.classes.index(STAGES.index(name))]
            if name == order[-1]:
                above = np.ones(len(rows))
            plot.area(edges, np.repeat(below, 2), np.repeat(above, 2), name.lower())
            below = above


def predicted_plots(night: Night, x: Scale, who: str) -> list[str | Plot]:
    """Draw what one classifier says of a night: its stages, and how sure it is."""
    wrong = night.predicted != night.label
    plot = Plot(
        x, LEVELS, f"Predicted stages of {night.name}",
        f"Step plot of the predicted stages. {share(int((~wrong).sum()), len(wrong))} of {counted(len(wrong), 'clip')} "
        "agree with the scorer; disagreements are marked below.",
        y_label=f"predicted{who}: {share(int((~wrong).sum()), len(wrong))} agree", height_px=105,
    )  # fmt: skip
    staircase(plot, night, night.predicted, "s0 solid")
    plot.blocks(night.start[wrong], night.stop[wrong], -0.5, -0.3, "wrong")
    uncertainty = entropy(night.believed)
    sure = Plot(
        x, UNIT, f"Probabilities of {night.name}",
        f"Stacked probabilities of the stages over the night. The entropy is {uncertainty.mean():.2f} on average, "
        "where 0 is certainty, and 1 that all stages are equally likely.",
        y_label=f"probability of each stage{who}", height_px=84,
    )  # fmt: skip
    ribbon(sure, night)
    doubt = Plot(
        x, UNIT, f"Uncertainty of {night.name}", "Entropy of the predicted probabilities over the night.",
        y_label="uncertainty (normalised entropy, 0 to 1)", height_px=42,
    )  # fmt: skip
    doubt.y = Scale(0.0, 1.0, ticks=((0.0, "0"), (1.0, "1")))
    edges = np.repeat(np.r_[night.start, night.stop[-1]], 2)[1:-1]
    doubt.area(edges, np.zeros(len(edges)), np.repeat(uncertainty, 2), "entropy")
    return [plot, sure, doubt]


def breathing_plot(night: Night, x: Scale, who: str) -> Plot:
    """Scored respiratory events as blocks, their predicted probability as a line."""
    event = TASKS["sdb"].names.index("event")
    truth = night.label == event
    plot = Plot(
        x, Scale(-0.32, 1.0, ticks=((0.0, "0"), (0.5, "0.5"), (1.0, "1"))), f"Respiratory events of {night.name}",
        f"{int(truth.sum())} of {counted(len(truth), 'clip')} {agreeing(int(truth.sum()), 'holds', 'hold')} a scored "
        "respiratory event (blocks below the axis); the line is the predicted probability of one.",
        y_label=f"respiratory event{who}: probability, and scored events (blocks)", height_px=84,
    )  # fmt: skip
    plot.blocks(night.start[truth], night.stop[truth], -0.3, -0.08, "event")
    if event in night.classes:
        p = night.believed[:, night.classes.index(event)]
        plot.steps(night.start, night.stop, p, "s0 solid")
    return plot


def rounded(night: Night) -> dict[str, Any]:
    """The numbers of a night as drawn."""
    names = night.result.record["class_names"] if "class_names" in night.result.record else list(STAGES)
    return {
        "onset_h": night.start.round(5).tolist(),
        "truth": [names[k] for k in night.label.tolist()],
        "predicted": [names[k] for k in night.predicted.tolist()],
        "classes": [names[k] for k in night.classes],
        "probability": night.believed.round(3).tolist(),
        "corrected_for_prior": night.prior is not None,
        "accuracy": night.accuracy,
    }


def night_figure(
    name: str, staged: Sequence[tuple[Run, Night]], breathing: Sequence[tuple[Run, Night]], several: bool
) -> Figure:
    """Draw one recording: the scorer, then every run's prediction, then breathing."""
    truth = staged[0][1]
    x = Scale(float(truth.start[0]), float(truth.stop[-1]))
    top = Plot(
        x, LEVELS, f"Scored stages of {name}",
        "Step plot of the scorer's stages: "
        + ", ".join(f"{n} {share(int((truth.label == STAGES.index(n)).sum()), len(truth.label))}" for n in ORDER)
        + " of the clips.",
        y_label="scored", height_px=105,
    )  # fmt: skip
    staircase(top, truth, truth.label, "truth")
    parts: list[str | Plot] = [top]
    for run, night in staged:
        parts += predicted_plots(night, x, f" by {run.name}" if several else "")
    parts += [breathing_plot(night, x, f" by {run.name}" if several else "") for run, night in breathing]
    for part in parts[:-1]:
        if isinstance(part, Plot):
            part.x = Scale(x.low, x.high, ticks=tuple((value, "") for value, _ in x.marks()))
    last = parts[-1]
    if isinstance(last, Plot):
        last.x_label = "hours since the start of the recording"
    sources = [
        night.result.array_file(array)
        for _, night in (*staged, *breathing)
        for array in ("label", "probability", "onset_s", "recording")
    ]
    data = {
        "stages": {run.name: rounded(night) for run, night in staged},
        "respiratory_events": {run.name: rounded(night) for run, night in breathing},
    }
    corrected = (
        " Probabilities and entropy are corrected to the class frequencies of the training clips, since the classifier "
        "was fitted as if all classes were equally frequent; the predicted stages are those of the fit, of which the "
        "figures elsewhere are, so that the widest band is not always the predicted stage."
        if any(night.prior is not None for _, night in (*staged, *breathing))
        else ""
    )
    key = legend([(n.lower(), n) for n in ORDER] + [("wrong", "differs, or event")], "area")
    return Figure(
        name,
        parts,
        f"{number_of(len(truth.label), 'scored clip')} of 30 s. Marks below the prediction are clips where it differs "
        f"from the scorer. In the probability band, from the bottom up: N3, N2, N1, R, W. An entropy "
        f"of 1: all stages are equally likely.{corrected}",
        sources,
        data,
        wide=True,
        key=key,
    )


def hypnogram_section(runs: Sequence[Run], n: int) -> Section:
    """Draw ``n`` nights, chosen by how well the first run that staged them did."""
    section = Section(
        "nights",
        "Nights of test subjects" if any(run.overlaps for run in runs) else "Nights of held-out subjects",
        "The scorer's hypnogram with the predicted one under it, how sure the prediction is, and breathing below.",
    )
    group = Group()
    by_task: dict[str, list[tuple[Run, dict[str, Night]]]] = {"stage": [], "sdb": []}
    for task, found in by_task.items():
        for run in runs:
            result = run.classified(task)
            if result is None or len(found) == MOST_RUNS:
                continue
            try:
                found.append((run, nights_of(result)))
            except MISSHAPEN as error:
                group.items.append(Missing(f"{result.path} cannot be drawn: {error}"))
    if by_task["stage"]:
        _, first = by_task["stage"][0]
        chosen = choose_recordings(first, n)
        if len(chosen) < len(first):
            group.note = (
                f"{len(chosen)} of {len(first)} recordings, chosen by the agreement of the first run's prediction: "
                "from the best to the worst. Ask for more with --recordings."
            )
        if sum(run.classified("stage") is not None for run in runs) > MOST_RUNS:
            group.note += f" The first {MOST_RUNS} runs are drawn."
        for name in chosen:
            staged = [(run, nights[name]) for run, nights in by_task["stage"] if name in nights]
            breathing = [(run, nights[name]) for run, nights in by_task["sdb"] if name in nights]
            try:
                group.items.append(night_figure(name, staged, breathing, len(runs) > 1))
            except MISSHAPEN as error:
                group.items.append(Missing(f"The night {name} cannot be drawn from its results ({error!r})."))
    else:
        run = runs[0]
        group.items.append(
            Missing(
                "No run has a result for sleep stages with an array of probabilities. These commands make them:",
                "\n".join(suggestions.probe(run, task) for task in by_task),
            )
        )
    section.groups.append(group)
    return section
