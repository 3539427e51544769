"""The page's drawings, whose sizes are percentages, as plain SVG of a fixed size: absolute coordinates, no styles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from sleepfm_fast.reporting.look import Chain, attributes_of, colour
from sleepfm_fast.reporting.markup import element, escape, number

__all__ = ["Canvas", "classes_of", "units_of", "words_of"]

TOKEN = re.compile(r"([MmLlHhVvZz])|(-?(?:\d+\.?\d*|\.\d+))")
EM_PX = 12.0  # of the text in plots


def classes_of(node: ET.Element) -> frozenset[str]:
    """Classes of an element of the page."""
    return frozenset(node.get("class", "").split())


def words_of(node: ET.Element) -> str:
    """All of an element's text."""
    return "".join(node.itertext())


def length(text: str, whole: float) -> float:
    """Pixels of ``50%``, ``1.2em``, ``3px`` or ``3``."""
    if text.endswith("%"):
        return float(text[:-1]) / 100 * whole
    return float(text[:-2]) * EM_PX if text.endswith("em") else float(text.removesuffix("px"))


def points(path: str) -> Iterator[tuple[str, float, float]]:
    """Absolute points of a path of straight lines: M, L or Z (whose point does not count)."""
    tokens = [m.groups() for m in TOKEN.finditer(path)]
    i, x, y, command = 0, 0.0, 0.0, "M"
    first = (0.0, 0.0)
    while i < len(tokens):
        if tokens[i][0]:
            command = tokens[i][0]
            i += 1
            if command in "Zz":
                x, y = first
                yield "Z", x, y
                continue
        n = 1 if command in "HhVv" else 2
        given = [float(t[1]) for t in tokens[i : i + n]]
        i += n
        px, py = (x, y) if command.islower() else (0.0, 0.0)
        if command in "Hh":
            x = px + given[0]
        elif command in "Vv":
            y = py + given[0]
        else:
            x, y = px + given[0], py + given[1]
        if command in "Mm":
            first = (x, y)
            yield "M", x, y
            command = "L" if command == "M" else "l"  # what follows a point without a command is a line
        else:
            yield "L", x, y


@dataclass(frozen=True)
class Frame:
    """Where a drawing stands, in pixels, and the units that it is drawn in."""

    x: float
    y: float
    width: float
    height: float
    units_x: float
    units_y: float

    def path(self, d: str) -> str:
        """A path in pixels."""
        sx, sy = self.width / self.units_x, self.height / self.units_y
        return "".join(
            "Z" if command == "Z" else f"{command}{number(self.x + px * sx)} {number(self.y + py * sy)}"
            for command, px, py in points(d)
        )


class Canvas:
    """Collects plain SVG elements in ``parts``."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "start", size: float = 12, ink: str = "--soft",
        bold: bool = False,
    ) -> None:  # fmt: skip
        """Write at a point."""
        looks = {"text_anchor": None if anchor == "start" else anchor, "font_weight": "600" if bold else None}
        self.parts.append(element("text", escape(text), x=x, y=y, fill=colour(ink), font_size=float(size), **looks))

    def rectangle(self, x: float, y: float, width: float, height: float, **looks: str | float | None) -> None:
        """Draw a rectangle."""
        self.parts.append(element("rect", x=x, y=y, width=width, height=height, **looks))

    def shape(self, d: str, chain: Chain, *inner: str, **more: str) -> None:
        """Draw a path of the page with the look that its classes give it."""
        self.parts.append(element("path", *inner, d=d, **attributes_of(chain), **more))

    def plot(self, svg: ET.Element, x: float, y: float, width: float, height: float) -> None:
        """Draw one of :class:`sleepfm_fast.reporting.plot.Plot`, its data between these edges."""
        around: Chain = (("div", frozenset({"plot"})), ("svg", frozenset()))
        for node in svg:
            classes = classes_of(node)
            chain = (*around, (node.tag, classes))
            if node.tag == "line":
                ends = {k: length(node.get(k, "0"), width) + x for k in ("x1", "x2")}
                ends |= {k: length(node.get(k, "0"), height) + y for k in ("y1", "y2")}
                self.parts.append(element("line", **ends, **attributes_of(chain)))
            elif node.tag == "text":
                at_x = x + length(node.get("x", "0"), width) + length(node.get("dx", "0"), width)
                at_y = y + length(node.get("y", "0"), height) + length(node.get("dy", "0"), height)
                looks = attributes_of(chain)
                if node.get("text-anchor", "start") != "start":
                    looks["text-anchor"] = node.get("text-anchor", "")
                looks["font-size"] = looks.get("font-size", "12px").removesuffix("px")
                self.parts.append(element("text", escape(words_of(node)), x=at_x, y=at_y, **looks))
            elif "data" in classes:
                self.paths(node, Frame(x, y, width, height, *units_of(node)), chain)
            elif "at" in classes:
                mark = node[0]
                tip = [element("title", escape(words_of(child))) for child in mark]
                at = (x + length(node.get("x", "0"), width), y + length(node.get("y", "0"), height))
                move = f"translate({number(at[0])} {number(at[1])})"
                self.shape(mark.get("d", ""), (*chain, ("path", classes_of(mark))), *tip, transform=move)

    def paths(self, svg: ET.Element, frame: Frame, chain: Chain) -> None:
        """Draw the paths of a stretched drawing."""
        for node in svg:
            if node.tag == "path":
                self.shape(frame.path(node.get("d", "")), (*chain, ("path", classes_of(node))))

    def strip(self, svg: ET.Element, x: float, y: float, width: float, height: float) -> None:
        """Draw a strip of a signal."""
        self.rectangle(x, y, width, height, fill=colour("--card"))
        self.paths(svg, Frame(x, y, width, height, *units_of(svg)), (("svg", classes_of(svg)),))

    def scaled(self, svg: ET.Element, x: float, y: float, scale: float) -> None:
        """Draw paths of any kind, all of one scale, with strokes as wide as they are in the page."""
        for node in svg.iter("path"):
            looks = attributes_of((("svg", classes_of(svg)), ("path", classes_of(node))))
            if "stroke-width" in looks:
                looks["stroke-width"] = number(float(looks["stroke-width"]) / scale, 3)
            move = f"translate({number(x)} {number(y)}) scale({number(scale, 5)})"
            inner = f"{move} {node.get('transform', '')}".rstrip()
            self.parts.append(element("path", d=node.get("d", ""), transform=inner, **looks))


def units_of(svg: ET.Element) -> tuple[float, float]:
    """Width and height of a drawing's own units."""
    _, _, width, height = (float(part) for part in svg.get("viewBox", "0 0 1 1").split())
    return width, height
