"""Section: embeddings of held-out clips in two dimensions, coloured by stage, subject and modality."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.markup import element
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section
from sleepfm_fast.reporting.sources import Run
from sleepfm_fast.scoring.stages import STAGES

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["project", "projection_section"]

Method = Literal["tsne", "pca"]
MOST_RUNS = 4
SPAN = 1000  # units of a scatter plot
MAX_SUBJECTS = 8  # that get a look of their own; the others are drawn as one
LEAST_FOR_TSNE = 10
Floats = npt.NDArray[np.float64]

# How the points of series i look: the class, and the path of one point around (x, y).
SHAPES = (
    ("dots", "M{x} {y}h0"),
    ("shape", "M{l} {t}h16v16h-16z"),
    ("open", "M{l} {y}a8 8 0 1 0 16 0a8 8 0 1 0-16 0"),
    ("shape", "M{x} {t}l10 17h-20z"),
    ("open", "M{l} {t}l16 16m0-16l-16 16"),
    ("open", "M{l} {t}h16v16h-16z"),
    ("open", "M{x} {t}v18m-9-9h18"),
    ("open", "M{x} {t}l10 17h-20z"),
)


def sample_clips(embeddings: Embeddings, n: int, seed: int) -> tuple[npt.NDArray[np.int64], str]:
    """Draw at most ``n`` clips with every modality: of test subjects, of all where there are none."""
    whole = np.asarray(embeddings.mask.all(axis=1))
    clips, words = embeddings.clips_of("test"), "test" if embeddings.description.overlap else "held-out"
    clips = clips[whole[clips]]
    if len(clips) < 3:
        clips, words = np.flatnonzero(whole), ""
    if len(clips) > n:
        clips = np.sort(np.random.default_rng(seed).choice(clips, n, replace=False))
    return clips, words


def vectors_of(embeddings: Embeddings, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """All modalities of each clip [n, F]; features, which have units, are standardised, and holes are their medians."""
    x = embeddings.matrix(clips, embeddings.modalities)
    if embeddings.kind == "embedding":
        return x
    known = np.isfinite(x)
    x = x[:, known.any(0)]
    known = np.isfinite(x)
    middle = np.array([np.median(column[here]) for column, here in zip(x.T, known.T, strict=True)], np.float32)
    x = np.where(known, x, middle)
    spread = x.std(0)
    standard: npt.NDArray[np.float32] = ((x - x.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    return standard


def project(x: npt.NDArray[np.float32], method: Method, seed: int) -> tuple[Floats, str]:
    """Two dimensions of vectors [n, D], both scaled by one factor into [0, 1], and what was done, in words.

    t-SNE needs neighbours: fewer than ten vectors are projected by PCA.
    """
    from sklearn.decomposition import PCA

    if method == "tsne" and len(x) >= LEAST_FOR_TSNE and np.ptp(x, axis=0).any():
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # scikit-learn's own dependency

        perplexity = min(30.0, (len(x) - 1) / 3)
        # TSNE takes all OpenMP threads whatever n_jobs says; on a busy machine they spend ten times the work waiting
        # for each other at the end of every short step. One thread also gives the same bits everywhere.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            y = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(x)
        words = f"t-SNE (perplexity {perplexity:g}, seed {seed}): neighbours mean something, distances and axes do not"
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pca = PCA(n_components=min(2, *x.shape), random_state=seed).fit(x)
        y = pca.transform(x)
        y = np.hstack([y, np.zeros((len(y), 2 - y.shape[1]))])
        explained = np.nan_to_num(pca.explained_variance_ratio_).sum()
        words = f"PCA, whose two axes hold {100 * explained:.0f} % of the variance"
    y = np.asarray(y, np.float64)
    # One scale for both axes: stretched each by itself, clusters would look rounder and nearer than they are.
    return 0.5 + 0.96 * (y - (y.min(0) + y.max(0)) / 2) / (np.ptp(y, axis=0).max() or 1.0), words


def scatter(y: Floats, series: Sequence[tuple[str, npt.NDArray[np.bool_]]], title: str) -> tuple[str, str]:
    """Draw the points of each series; returns the plot and its key."""
    paths, items = [], []
    for i, (name, chosen) in enumerate(series):
        class_, shape = SHAPES[i % len(SHAPES)]
        points = np.rint(y[chosen] * SPAN).astype(int)
        d = "".join(shape.format(x=px, y=SPAN - py, l=px - 8, t=SPAN - py - 8) for px, py in points.tolist())
        look = f"{class_} s{i % 8}" if name != "others" else f"{class_} others"
        if d:
            paths.append(element("path", d=d, class_=look))
        sample = element("path", d=shape.format(x=28, y=24, l=20, t=16), class_=look)  # about as large as in the plot
        key = element("svg", sample, viewBox="0 0 56 48", width="20", height="17", class_="key", aria_hidden="true")
        items.append(element("li", key, element("span", _escaped(f"{name} ({int(chosen.sum())})"))))
    words = ", ".join(f"{name} {int(chosen.sum())}" for name, chosen in series)
    svg = element(
        "svg",
        element("title", _escaped(title)),
        element("desc", _escaped(f"Scatter plot of {len(y)} points in two dimensions: {words}.")),
        *paths,
        viewBox=f"0 0 {SPAN} {SPAN}",
        class_="scatter",
        role="img",
    )
    return svg, element("ul", *items, class_="legend")


def _escaped(text: str) -> str:
    from sleepfm_fast.reporting.markup import escape

    return escape(text)


def by_stage(stage: npt.NDArray[np.int8]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Series of the stages that occur."""
    series: list[tuple[str, npt.NDArray[np.bool_]]] = [(n, stage == code) for code, n in enumerate(STAGES)]
    series.append(("not scored", stage < 0))
    return [(name, chosen) for name, chosen in series if chosen.any()]


def by_subject(subject: npt.NDArray[np.int32], names: Sequence[str]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Series of the subjects with most clips, and one of all others."""
    codes, sizes = np.unique(subject, return_counts=True)
    shown = sorted(codes[np.argsort(-sizes, kind="stable")][:MAX_SUBJECTS].tolist())
    series = [(names[c], subject == c) for c in shown]
    rest = ~np.isin(subject, shown)
    return [*series, ("others", rest)] if rest.any() else series


def run_figures(run: Run, embeddings: Embeddings, n: int, method: Method, seed: int) -> list[Figure | Missing]:
    """Draw the three scatter plots of one run."""
    clips, words = sample_clips(embeddings, n, seed)
    if len(clips) < 3:
        return [
            Missing(f"{embeddings.path} has {counted(len(clips), 'clip')} with every modality: too few for a plane.")
        ]
    m = len(embeddings.modalities)
    y, how = project(vectors_of(embeddings, clips), method, seed)
    stage, subject = np.asarray(embeddings.stage)[clips], np.asarray(embeddings.subject)[clips]
    sources = [embeddings.path / "embeddings.npy", embeddings.path / "embeddings.json"]
    what = f"{len(clips)} {words} clips".replace("  ", " ")
    data: dict[str, Any] = {"clip": clips, "xy": y.round(4), "method": how, "seed": seed}
    kind = "" if embeddings.kind == "embedding" else " and standardised"
    figures: list[Figure | Missing] = []
    plots: list[tuple[str, Any, str, dict[str, Any]]] = [
        ("by sleep stage", by_stage(stage), "stage", {"stage": stage}),
        ("by subject", by_subject(subject, embeddings.description.subjects), "subject", {"subject": subject}),
    ]
    for title, series, key, column in plots:
        svg, names = scatter(y, series, f"Embeddings of {run.name} {title}")
        note = (
            "Where points of one colour lie together, the stage can be read off."
            if key == "stage"
            else "Where points of one colour lie together, the embedding also knows who sleeps."
        )
        figures.append(
            Figure(
                f"Clips {title}", svg,
                f"{what[0].upper()}{what[1:]}, all modalities concatenated{kind}; {how}. {note}",
                [*sources, embeddings.path / f"{key}.npy"], {**data, **column}, key=names,
            )
        )  # fmt: skip
    if m > 1 and embeddings.kind == "embedding":
        few = clips if len(clips) <= max(n // m, 3) else np.sort(
            np.random.default_rng(seed).choice(clips, max(n // m, 3), replace=False)
        )  # fmt: skip
        z, how = project(embeddings.read(few).reshape(len(few) * m, -1), method, seed)
        modality = np.tile(np.arange(m), len(few))
        series = [(name, modality == i) for i, name in enumerate(embeddings.modalities)]
        svg, names = scatter(z, series, f"Embeddings of {run.name} by modality")
        figures.append(
            Figure(
                "Clips by modality", svg,
                f"{len(few)} of the clips, each modality's vector a point of its own; {how}. Modalities mixed: a "
                "clip is described alike whichever sensors saw it. Apart: what a sensor is outweighs what it sees.",
                sources, {"clip": few, "xy": z.round(4), "modalities": embeddings.modalities, "method": how}, key=names,
            )
        )  # fmt: skip
    return figures


def projection_section(runs: Sequence[Run], n: int, method: Method, seed: int) -> Section:
    """Draw every run's embeddings."""
    section = Section("plane", "Embeddings in two dimensions")
    n_drawn = 0
    for run in runs:
        embeddings = run.embeddings
        if embeddings is not None and n_drawn == MOST_RUNS:
            section.lead = f"The first {MOST_RUNS} runs that have embeddings are drawn; name another first to see its."
            continue
        if embeddings is not None:
            n_drawn += 1
            try:
                items = run_figures(run, embeddings, n, method, seed)
            except SleepfmError as error:
                items = [Missing(str(error))]
        elif run.config and not run.supervised:
            items = [
                Missing(
                    f"{run.name} has no embeddings. This command makes them:",
                    suggestions.embed(run),
                )
            ]
        else:
            continue
        section.groups.append(Group(run.name if len(runs) > 1 else "", items=items))
    if not section.groups:
        section.groups.append(Group(items=[Missing("None of the folders has embeddings.")]))
    return section
