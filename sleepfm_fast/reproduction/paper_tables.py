"""Tables and figures of the paper as cells: where our figure is read, and what Thapa et al. (2024) print there.

Numbers are those of arXiv:2405.17766 (ICML 2024), table by table. Those of its abstract are not used: all eight are
the averages of Tables 2 and 3, age and sex, not of staging and sleep-disordered breathing. Figures 2 and 3 are curves;
their values were read off the plots to about 0.01.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sleepfm_fast.montage.slots import MODALITIES
from sleepfm_fast.plurals import counted
from sleepfm_fast.reproduction.experiments import Evaluation, Modality, Run, Source, Task
from sleepfm_fast.scoring.stages import STAGES

__all__ = [
    "AGES",
    "FIGURES",
    "METHODS",
    "PAPER_CANDIDATES",
    "TABLES",
    "TITLES",
    "WITH_CHANCE",
    "Cell",
    "PaperTable",
    "few_shot_figure",
    "make_table",
    "pretraining_figure",
    "run_of",
    "size_table",
]

PAPER_CANDIDATES = 90_000  # clips among which Tables 4 and 5 retrieve
TABLES = (*range(2, 9), *range(11, 19), 29, 30)
FIGURES = (2, 3)

LOO, PAIRWISE = Run("contrastive"), Run("contrastive", "pairwise")
WITH_CHANCE = "macro_absent_at_chance"
"""Mean over all classes of the test clips, those never trained at chance, as few_shot writes it."""
METHODS: dict[str, Run] = {"leave-one-out": LOO, "pairwise": PAIRWISE}
AGES = ("0-18", "18-35", "35-50", "50+")


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes
    ----------
    row, method : str
        Place in the table.
    figure : str
        What is measured, such as AUROC; each has a table of its own.
    sources : tuple of Source
        Results it is read from; the mean where there are several (replicates).
    path : tuple of str
        Keys that lead to it in ``result.json``; of a list of directions, ``query -> candidates``; of a few-shot curve,
        the number of subjects.
    paper : float or None
        The paper's figure, None where it has none.
    """

    row: str
    method: str
    figure: str
    sources: tuple[Source, ...]
    path: tuple[str, ...]
    paper: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper (or, without a number, one that it does not have)."""

    name: str
    title: str
    rows: str
    cells: tuple[Cell, ...]
    note: str = ""

    def paper_text(self, figure: str, value: float) -> str:
        """One of the paper's figures with the digits it is printed with, zeros at the end included.

        Its tables give shares with three digits, recall with two, and whole ranks. A plot is read to a hundredth, here
        and there closer.
        """
        digits = {"median rank": 0, "recall@10": 2}.get(figure, 3)
        if self.name.startswith("Figure") and round(value, 2) == value:
            digits = 2
        return f"{value:.{digits}f}"


#                        leave-one-out, pairwise, CNN; None where not tabulated
Triple = tuple[float | None, float | None, float | None]
NONE: Triple = (None, None, None)

CLASSES: dict[Task, dict[str, dict[str, Triple]]] = {
    "stage": {
        "AUROC": {
            "W": (0.945, 0.930, 0.869),
            "N1": (0.814, 0.782, 0.706),
            "N2": (0.891, 0.861, 0.840),
            "N3": (0.928, 0.918, 0.918),
            "R": (0.951, 0.891, 0.878),
            "macro": (0.906, 0.876, 0.842),
        },
        "AUPRC": {
            "W": (0.862, 0.827, 0.711),
            "N1": (0.233, 0.186, 0.130),
            "N2": (0.876, 0.849, 0.822),
            "N3": (0.676, 0.615, 0.695),
            "R": (0.778, 0.565, 0.540),
            "macro": (0.685, 0.608, 0.579),
        },
    },
    "sdb": {"AUROC": {"macro": (0.941, 0.902, 0.843)}, "AUPRC": {"macro": (0.711, 0.586, 0.555)}},
    "age": {
        "AUROC": {
            "0-18": (0.982, 0.977, 0.864),
            "18-35": (0.852, 0.809, 0.683),
            "35-50": (0.784, 0.740, 0.606),
            "50+": (0.915, 0.880, 0.745),
            "macro": (0.883, 0.851, 0.724),
        },
        "AUPRC": {"macro": (0.716, 0.664, 0.481)},
    },
    "sex": {"AUROC": {"macro": (0.850, 0.810, 0.690)}, "AUPRC": {"macro": (0.774, 0.731, 0.614)}},
}
TITLES: dict[Task, str] = {
    "stage": "sleep stages",
    "sdb": "sleep-disordered breathing",
    "age": "age group",
    "sex": "sex",
}
OF_TABLE: dict[int, Task] = {2: "age", 3: "sex", 6: "stage", 7: "sdb"}

#            query, candidates: (median rank, recall@10) of leave-one-out, of pairwise
RETRIEVAL = {
    ("brain", "ecg"): ((7.0, 0.58), (1.0, 0.74)),
    ("brain", "respiratory"): ((416.0, 0.05), (6.0, 0.58)),
    ("ecg", "brain"): ((13.0, 0.46), (1.0, 0.82)),
    ("ecg", "respiratory"): ((19.0, 0.39), (2.0, 0.81)),
    ("respiratory", "brain"): ((400.0, 0.05), (5.0, 0.60)),
    ("respiratory", "ecg"): ((21.0, 0.38), (2.0, 0.82)),
}

#        number: (task, method, {figure: (ecg, respiratory, brain)})
SINGLE: dict[int, tuple[Task, str, dict[str, Triple]]] = {
    # The paper prints 0.436, 0.484, 0.669 as the AUPRC of Table 11; the means of its own class figures are these.
    11: ("stage", "leave-one-out", {"AUROC": (0.891, 0.765, 0.900), "AUPRC": (0.653, 0.436, 0.669)}),
    12: ("sdb", "leave-one-out", {"AUROC": (0.735, 0.925, 0.735), "AUPRC": (0.040, 0.697, 0.040)}),
    13: ("stage", "pairwise", {"AUROC": (0.862, 0.720, 0.870), "AUPRC": (0.583, 0.381, 0.594)}),
    14: ("sdb", "pairwise", {"AUROC": (0.698, 0.893, 0.706), "AUPRC": (0.029, 0.601, 0.030)}),
    15: ("age", "leave-one-out", {"AUROC": (0.872, 0.837, 0.805), "AUPRC": (0.693, 0.644, 0.600)}),
    16: ("sex", "leave-one-out", {"AUROC": (0.829, 0.790, 0.778), "AUPRC": NONE}),
    17: ("age", "pairwise", {"AUROC": (0.832, 0.818, 0.818), "AUPRC": NONE}),
    18: ("sex", "pairwise", {"AUROC": (0.795, 0.746, 0.765), "AUPRC": NONE}),
    29: ("stage", "supervised CNN", {"AUROC": (0.500, 0.563, 0.850), "AUPRC": NONE}),
    30: ("sdb", "supervised CNN", {"AUROC": (0.552, 0.870, 0.387), "AUPRC": NONE}),
}
PAPER_ORDER = ("ecg", "respiratory", "brain")

EXTERNAL = {
    "AUROC": {"W": 0.966, "N1": 0.830, "N2": 0.902, "N3": 0.971, "R": 0.950, "macro": 0.924},
    "AUPRC": {"W": 0.867, "N1": 0.471, "N2": 0.857, "N3": 0.821, "R": 0.778, "macro": 0.759},
    "F1": {"W": 0.790, "N1": 0.439, "N2": 0.793, "N3": 0.743, "R": 0.717, "macro": 0.700},
}

# Of Table 8; Table 31 prints 0.754, 0.447 and 0.253 for what must be another network.
EXTERNAL_CNN = {"AUROC": 0.843, "AUPRC": 0.553, "F1": 0.363}

FEW_SHOT_SUBJECTS = (1, 2, 4, 8, 16, 32, 64, 128, 1265)
FEW_SHOT: dict[Task, tuple[str, dict[str, tuple[float | None, ...]]]] = {
    "stage": (
        "AUROC",
        {
            "leave-one-out": (0.71, 0.735, 0.73, 0.77, 0.83, 0.858, 0.884, 0.892, 0.906),
            "pairwise": (0.685, 0.72, 0.735, 0.78, 0.81, 0.834, 0.856, 0.865, 0.876),
            "supervised CNN": (0.505, 0.54, 0.515, 0.54, 0.51, 0.53, 0.57, 0.59, 0.785),
        },
    ),
    "sdb": (
        "AUPRC",
        {
            "leave-one-out": (0.08, 0.065, 0.04, 0.10, 0.49, 0.58, 0.635, 0.68, 0.711),
            "pairwise": (0.077, 0.075, 0.045, 0.14, 0.275, 0.40, 0.45, 0.515, 0.586),
            "supervised CNN": (0.02, None, None, None, None, None, 0.27, 0.25, 0.62),
        },
    ),
}

#                                     staging from brain: AUROC, AUPRC; SDB from respiratory: AUROC, AUPRC
PRETRAINED_ON: dict[tuple[str, ...], tuple[float | None, float | None, float | None, float | None]] = {
    (): (0.902, 0.669, 0.925, 0.696),
    ("brain", "ecg"): (0.894, 0.650, None, None),
    ("respiratory", "brain"): (0.831, 0.51, 0.797, 0.082),
    ("respiratory", "ecg"): (None, None, 0.907, 0.585),
    ("brain",): (0.617, 0.289, None, None),
    ("respiratory",): (None, None, 0.860, 0.447),
}


def run_of(method: str, task: Task, modality: Modality = "all") -> Source:
    """Where a method's result for a task is."""
    if method == "supervised CNN":
        return Source(Run("supervised", task=task, modality=modality), Evaluation("supervised", task))
    run = Run("features") if method == "hand-made features" else METHODS[method]
    return Source(run, Evaluation("probe", task, modality))


def score_path(row: str, figure: str) -> tuple[str, ...]:
    """Keys of a class's or the macro figure."""
    return ("macro", figure.lower()) if row == "macro" else ("classes", row, figure.lower())


def class_cells(task: Task) -> Iterator[Cell]:
    """Tables 2, 3, 6 and 7: every method, per class and macro."""
    methods = ("leave-one-out", "pairwise", "supervised CNN")
    rows = {"stage": (*STAGES, "macro"), "age": (*AGES, "macro")}.get(task, ("macro",))
    for figure, paper in CLASSES[task].items():
        for row in rows:
            values = paper.get(row, NONE)
            for method, value in zip(methods, values, strict=True):
                yield Cell(row, method, figure, (run_of(method, task),), score_path(row, figure), value)
            yield Cell(
                row, "hand-made features", figure, (run_of("hand-made features", task),), score_path(row, figure)
            )


def retrieval_cells(number: int) -> Iterator[Cell]:
    """Tables 4 and 5."""
    method = "leave-one-out" if number == 4 else "pairwise"
    source = (Source(METHODS[method], Evaluation("retrieve")),)
    for (query, candidates), both in RETRIEVAL.items():
        row = f"{query} -> {candidates}"
        median_rank, recall = both[number - 4]
        yield Cell(row, method, "median rank", source, ("directions", row, "median_rank"), median_rank)
        yield Cell(row, method, "recall@10", source, ("directions", row, "recall@10"), recall)
        yield Cell(
            row, f"{method}, times chance", "recall@10", source, ("directions", row, "recall@10", "times_chance")
        )


def external_cells() -> Iterator[Cell]:
    """Table 8: the encoders and the probe meet another laboratory."""
    probes = {"probe fitted on our store": "external", "probe fitted on the external store": "external_own"}
    for figure, paper in EXTERNAL.items():
        for row in (*STAGES, "macro"):
            for method, kind in probes.items():
                evaluation = Evaluation("external" if kind == "external" else "external_own", "stage")
                value = paper[row] if kind == "external_own" else None
                yield Cell(row, method, figure, (Source(LOO, evaluation),), score_path(row, figure), value)
            network = Source(Run("supervised"), Evaluation("external", "stage"))
            value = EXTERNAL_CNN[figure] if row == "macro" else None
            yield Cell(row, "supervised CNN of our store", figure, (network,), score_path(row, figure), value)


def single_cells(number: int) -> Iterator[Cell]:
    """Tables 11 to 18, 29 and 30: one modality at a time."""
    task, method, figures = SINGLE[number]
    for figure, paper in figures.items():
        for modality, value in zip(PAPER_ORDER, paper, strict=True):
            chosen: Modality = modality  # type: ignore[assignment]
            yield Cell(modality, method, figure, (run_of(method, task, chosen),), ("macro", figure.lower()), value)


def pretraining_cells() -> Iterator[Cell]:
    """Figure 3 at all training subjects."""
    asked: tuple[tuple[Task, Modality], ...] = (("stage", "brain"), ("sdb", "respiratory"))
    for modalities, paper in PRETRAINED_ON.items():
        row = "all three" if not modalities else " and ".join(modalities)
        for i, (task, modality) in enumerate(asked):
            if modalities and modality not in modalities:
                continue
            for j, figure in enumerate(("AUROC", "AUPRC")):
                source = Source(Run("contrastive", modalities=modalities), Evaluation("probe", task, modality))
                method = f"{TITLES[task]} from {modality}"
                yield Cell(row, method, figure, (source,), ("macro", figure.lower()), paper[2 * i + j])


def few_shot_figure(subjects: tuple[int, ...], replicates: int, n_training: int) -> PaperTable:
    """Figure 2: few training subjects for the probe, or for the network.

    Parameters
    ----------
    subjects : tuple of int
        How many subjects.
    replicates : int
        Draws of each number.
    n_training : int
        Training subjects that there are; more are not asked for.
    """
    cells = []
    for task, (figure, paper) in FEW_SHOT.items():
        for k in (k for k in subjects if k <= n_training):
            for method in ("leave-one-out", "pairwise", "hand-made features", "supervised CNN"):
                values = dict(zip(FEW_SHOT_SUBJECTS, paper.get(method, ()), strict=False))
                path: tuple[str, ...] = (WITH_CHANCE, figure.lower())
                if method == "supervised CNN":
                    runs = [Run("supervised", task=task, subjects=k, replicate=r) for r in range(replicates)]
                    sources = tuple(Source(run, Evaluation("supervised", task)) for run in runs)
                else:
                    run = Run("features") if method == "hand-made features" else METHODS[method]
                    sources = (Source(run, Evaluation("few_shot", task)),)
                    path = ("curve", str(k), figure.lower())
                cells.append(Cell(str(k), method, f"{TITLES[task]}, {figure}", sources, path, values.get(k)))
        for method in ("leave-one-out", "pairwise", "hand-made features", "supervised CNN"):
            source = (run_of(method, task),)
            every = paper[method][-1] if method in paper else None
            path = (WITH_CHANCE, figure.lower())
            cells.append(Cell(f"all {n_training}", method, f"{TITLES[task]}, {figure}", source, path, every))
    return PaperTable(
        "Figure 2",
        "few-shot: training subjects of the probe or the network",
        "subjects",
        tuple(cells),
        f"Mean over {counted(replicates, 'draw')} of subjects; in brackets the least and the greatest. Classes that a "
        "draw lacks count at chance. The paper's values are read off its plot, the last one of 1,265 subjects. Its "
        "embeddings, like ours, were pretrained on all pretraining subjects.",
    )


def size_table(sizes: tuple[int, ...], n_training: int) -> PaperTable:
    """Performance against the number of subjects that pretraining saw; the paper has no such table."""
    cells = []
    asked: tuple[tuple[Task, str], ...] = (("stage", "AUROC"), ("sdb", "AUROC"), ("sdb", "AUPRC"))
    for n in (*(n for n in sizes if n < n_training), 0):
        run, row = Run("contrastive", subjects=n), str(n or n_training)
        for task, figure in asked:
            source = Source(run, Evaluation("probe", task))
            cells.append(Cell(row, "leave-one-out", f"{TITLES[task]}, {figure}", (source,), ("macro", figure.lower())))
        source = Source(run, Evaluation("retrieve"))
        cells.append(Cell(row, "leave-one-out", "retrieval, mean recall@10", (source,), ("mean", "recall@10", "value")))
    return PaperTable(
        "Pretraining size",
        "performance against the number of pretraining subjects",
        "subjects",
        tuple(cells),
        "The probe is fitted on all training subjects each time. The paper has no such table.",
    )


def make_table(number: int) -> PaperTable:
    """Describe one numbered table of the paper, or Figure 3 as number 103."""
    if number in OF_TABLE:
        task = OF_TABLE[number]
        return PaperTable(f"Table {number}", TITLES[task], "class", tuple(class_cells(task)))
    if number in (4, 5):
        title = f"retrieval, {'leave-one-out' if number == 4 else 'pairwise'} pretraining"
        note = f"The paper's candidates are {PAPER_CANDIDATES:,} clips; ranks and recall depend on how many there are."
        return PaperTable(f"Table {number}", title, "query -> candidates", tuple(retrieval_cells(number)), note)
    if number == 8:
        note = (
            "The encoders saw our store only. The paper's figures are of 100 test participants of the PhysioNet "
            "challenge of 2018. Its table does not say which subjects the probe was fitted on; both ways are given, "
            "and its figures stand beside the second."
        )
        return PaperTable("Table 8", "sleep stages, external validation", "class", tuple(external_cells()), note)
    task, method, _ = SINGLE[number]
    return PaperTable(
        f"Table {number}", f"{TITLES[task]} by modality, {method}", "modality", tuple(single_cells(number))
    )


def pretraining_figure() -> PaperTable:
    """Describe Figure 3."""
    return PaperTable(
        "Figure 3",
        "modalities of the pretraining",
        "pretrained on",
        tuple(pretraining_cells()),
        "All training subjects. One modality alone is pretrained with neighbouring clips as positives. The paper's "
        "values are read off its plot.",
    )


assert set(MODALITIES) == set(PAPER_ORDER)
