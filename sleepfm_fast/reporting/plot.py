"""One plot as responsive SVG: it takes the width it is given, and its text keeps the size of the page's text.

Lines and areas live in an inner SVG that is stretched (strokes are not); ticks, labels and markers stand at percentages
of the plot. Colours, dashes and dark mode come from classes that the page's style sheet defines: ``s0``, ``s1``, ...
are series, each with a colour, a dash pattern and a marker, so that a plot is understood without colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.reporting.markup import element, escape, number, percent
from sleepfm_fast.reporting.scale import Scale

__all__ = ["MARKERS", "Plot", "legend", "polyline", "series_class"]

INNER = 2000  # units of the stretched drawing in both directions: half a pixel at 1,000 pixels of width
N_SERIES = 8
# Markers around (0, 0) in pixels.
MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "M-3.2-3.2h6.4v6.4h-6.4z",
    "M0-4.2L4 3.2H-4z",
    "M0-4.6L4.6 0L0 4.6L-4.6 0z",
    "M0 4.2L4-3.2H-4z",
    "M-4-1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
    "M-4.2 0L-1.3-1.3L0-4.2L1.3-1.3L4.2 0L1.3 1.3L0 4.2L-1.3 1.3z",
    "M-4-2h8v4h-8z",
)


def polyline(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    """Write a path through points given as fractions of the plot (y upwards); NaN lifts the pen.

    Points that round to their predecessor are left out, and so is the middle of a straight horizontal or vertical run.
    """
    path: list[str] = []
    stroke: list[tuple[int, int]] = []

    def flush() -> None:
        if not stroke:
            return
        path.append(f"M{stroke[0][0]} {stroke[0][1]}")
        if len(stroke) == 1:
            path.append("h0")
        before = stroke[0]
        for point in stroke[1:]:
            dx, dy = point[0] - before[0], point[1] - before[1]
            path.append(f"h{dx}" if dy == 0 else f"v{dy}" if dx == 0 else f"l{dx} {dy}")
            before = point
        stroke.clear()

    finite = np.isfinite(x) & np.isfinite(y)
    px = np.rint(np.where(finite, x, 0) * INNER).astype(int).tolist()
    py = np.rint((1 - np.where(finite, y, 0)) * INNER).astype(int).tolist()
    for whole, point in zip(finite.tolist(), zip(px, py, strict=True), strict=True):
        if not whole:
            flush()
            continue
        if stroke and stroke[-1] == point:
            continue
        if len(stroke) > 1:
            (ax, ay), (bx, by), (cx, cy) = stroke[-2], stroke[-1], point
            if (ay == by == cy and (bx - ax) * (cx - bx) > 0) or (ax == bx == cx and (by - ay) * (cy - by) > 0):
                stroke.pop()
        stroke.append(point)
    flush()
    return "".join(path)


class Plot:
    """Collects marks; :meth:`render` writes the SVG.

    Parameters
    ----------
    x, y : Scale
    title : str
        Short name, read aloud first.
    description : str
        What is to be seen, for those who do not see it.
    x_label, y_label : str
        Written beside the axes, with the unit.
    height_px : int
        Height of the plot itself; the width is the page's.
    square : bool
        The height follows the width.
    """

    def __init__(
        self,
        x: Scale,
        y: Scale,
        title: str,
        description: str,
        *,
        x_label: str = "",
        y_label: str = "",
        height_px: int = 200,
        square: bool = False,
    ) -> None:
        self.x, self.y = x, y
        self.title, self.description = title, description
        self.x_label, self.y_label = x_label, y_label
        self.height_px, self.square = height_px, square
        self.paths: list[str] = []
        self.marks: list[str] = []

    def line(self, x: npt.ArrayLike, y: npt.ArrayLike, class_: str) -> None:
        """Draw a line through points; ``class_`` gives it its look."""
        path = polyline(self.x.fraction(x), self.y.fraction(y))
        if path:
            self.paths.append(element("path", d=path, class_=f"line {class_}"))

    def steps(self, start: npt.ArrayLike, stop: npt.ArrayLike, y: npt.ArrayLike, class_: str) -> None:
        """Draw a staircase: value y[i] from start[i] to stop[i]; a gap between two steps lifts the pen."""
        a, b, v = (np.asarray(values, np.float64) for values in (start, stop, y))
        xs: list[float] = []
        ys: list[float] = []
        for i in range(len(a)):
            if i and a[i] > b[i - 1] + 1e-6:
                xs.append(math.nan)
                ys.append(math.nan)
            xs += [a[i], b[i]]
            ys += [v[i], v[i]]
        self.line(xs, ys, class_)

    def area(self, x: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, class_: str) -> None:
        """Fill between two lines over the same x, which must be finite."""
        position = self.x.fraction(x)
        if not position.size:
            return
        top, bottom = self.y.fraction(high), self.y.fraction(low)
        path = polyline(np.concatenate([position, position[::-1]]), np.concatenate([top, bottom[::-1]]))
        self.paths.append(element("path", d=f"{path}z", class_=f"area {class_}"))

    def blocks(self, start: npt.ArrayLike, stop: npt.ArrayLike, low: float, high: float, class_: str) -> None:
        """Fill rectangles from start[i] to stop[i] between two heights; neighbours that touch become one."""
        a, b = np.asarray(start, np.float64), np.asarray(stop, np.float64)
        if not a.size:
            return
        first = np.flatnonzero(np.r_[True, a[1:] > b[:-1] + 1e-6])
        last = np.r_[first[1:] - 1, len(a) - 1]
        left = np.rint(self.x.fraction(a[first]) * INNER).astype(int).tolist()
        right = np.rint(self.x.fraction(b[last]) * INNER).astype(int).tolist()
        top, bottom = (round((1 - float(self.y.fraction(v))) * INNER) for v in (high, low))
        path = "".join(f"M{p} {top}H{max(q, p + 1)}V{bottom}H{p}z" for p, q in zip(left, right, strict=True))
        self.paths.append(element("path", d=path, class_=f"area {class_}"))

    def points(self, x: npt.ArrayLike, y: npt.ArrayLike, series: int, labels: Sequence[str] | None = None) -> None:
        """Set the marker of a series at every finite point; ``labels`` appear when pointed at."""
        px, py = self.x.fraction(x), self.y.fraction(y)
        for i in np.flatnonzero(np.isfinite(px) & np.isfinite(py)).tolist():
            tip = element("title", escape(labels[i])) if labels is not None else ""
            mark = element("path", tip, d=MARKERS[series % len(MARKERS)], class_=f"mark {series_class(series)}")
            self.marks.append(element("svg", mark, x=percent(px[i]), y=percent(1 - py[i]), class_="at"))

    def whiskers(self, x: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, series: int) -> None:
        """Draw vertical intervals at every x where both ends are finite."""
        px, a, b = self.x.fraction(x), self.y.fraction(low), self.y.fraction(high)
        for i in np.flatnonzero(np.isfinite(px) & np.isfinite(a) & np.isfinite(b)):
            at = percent(px[i])
            self.marks.append(
                element(
                    "line", x1=at, x2=at, y1=percent(1 - a[i]), y2=percent(1 - b[i]),
                    class_=f"whisker {series_class(series)}",
                )
            )  # fmt: skip

    def text(self, x: float, y: float, text: str, *, anchor: str = "start") -> None:
        """Write beside a point of the plot."""
        at = {"x": percent(float(self.x.fraction(x))), "y": percent(1 - float(self.y.fraction(y)))}
        self.marks.append(element("text", escape(text), class_="note", text_anchor=anchor, dx="4", dy="-4", **at))

    def _axes(self) -> str:
        parts = []
        for value, label in self.y.marks():
            at = percent(1 - float(self.y.fraction(value)))
            parts.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
            parts.append(element("text", escape(label), x="-6", y=at, dy=".34em", class_="tick end"))
        for value, label in self.x.marks():
            at = percent(float(self.x.fraction(value)))
            parts.append(element("line", x1=at, x2=at, y1="0", y2="100%", class_="grid"))
            parts.append(element("text", escape(label), x=at, y="100%", dy="1.35em", class_="tick middle"))
        parts.append(element("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
        if self.x_label:
            parts.append(element("text", escape(self.x_label), x="50%", y="100%", dy="2.8em", class_="label middle"))
        return "".join(parts)

    def render(self, identity: str) -> str:
        """Write the plot; ``identity`` must be unique in the page."""
        inner = element(
            "svg", *self.paths, viewBox=f"0 0 {INNER} {INNER}", preserveAspectRatio="none", width="100%", height="100%",
            class_="data",
        )  # fmt: skip
        svg = element(
            "svg",
            element("title", escape(self.title), id=f"{identity}-t"),
            element("desc", escape(self.description), id=f"{identity}-d"),
            self._axes(),
            inner,
            *self.marks,
            role="img",
            aria_labelledby=f"{identity}-t {identity}-d",
            class_="square" if self.square else None,
            style=None if self.square else f"height:{self.height_px}px",
        )
        above = element("div", escape(self.y_label), class_="y-label") if self.y_label else ""
        below = "plot" if self.x_label else "plot bare"
        return element("div", above, svg, class_=below)


def series_class(series: int) -> str:
    """Class of the style sheet that a series is drawn with."""
    return f"s{series % N_SERIES}"


def legend(entries: Sequence[tuple[str, str]], kind: str = "line") -> str:
    """Write the key of a plot.

    Parameters
    ----------
    entries : sequence of (class, name)
    kind : {"line", "mark", "both", "area"}
        How the series are drawn in the plot.
    """
    items = []
    for class_, name in entries:
        drawing: list[Any] = []
        if kind in ("line", "both"):
            drawing.append(element("path", d="M0 7H28", class_=f"line {class_}"))
        if kind in ("mark", "both"):
            series = int(class_.removeprefix("s").split()[0]) if class_.startswith("s") else 0
            drawing.append(
                element("path", d=MARKERS[series % len(MARKERS)], class_=f"mark {class_}", transform="translate(14 7)")
            )
        if kind == "area":
            drawing.append(element("path", d="M2 1H26V13H2z", class_=f"area {class_}"))
        key = element("svg", *drawing, width=number(28), height=number(14), class_="key", aria_hidden="true")
        items.append(element("li", key, escape(name)))
    return element("ul", *items, class_="legend")
