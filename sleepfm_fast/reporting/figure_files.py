"""Every figure of the page that is drawn as an SVG file of its own: on white, light style, nothing outside the file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.reporting.drawing import Canvas, classes_of, units_of, words_of
from sleepfm_fast.reporting.look import attributes_of, colour
from sleepfm_fast.reporting.markup import element, escape, number
from sleepfm_fast.reporting.page import Figure, Section
from sleepfm_fast.reporting.plot import Plot

__all__ = ["draw_figures", "earlier_figures", "figure_svg", "refuse_folder"]

NARROW_PX, WIDE_PX = 360.0, 720.0  # 95 and 190 mm: one and two columns of a page
MARGIN_PX = 8.0
PANEL_PX, PANEL_GAP_PX = 226.0, 13.0  # three beside each other
STRIP_PX = 44.0
FONTS = "Arial, Helvetica, 'Liberation Sans', sans-serif"
MARK = "<!-- A figure of sleepfm_fast.report. -->"
CHARACTER_PX = 6.6  # an average character of 12 px: what legends and headings are broken by
BOLD_CHARACTER_PX = 7.1
TITLE_PX, TITLE_CHARACTER_PX = 14.0, 8.2  # bold
HEAT = "rgb(0,114,178)"


class Column:
    """Blocks one under the other between two edges; ``y`` is where the next one begins."""

    def __init__(self, canvas: Canvas, x: float, y: float, width: float) -> None:
        self.canvas, self.x, self.y, self.width = canvas, x, y, width
        self.n_drawn = 0

    def block(self, node: ET.Element) -> None:
        """Draw an element of the page and what it holds; tables and words are left out."""
        classes = classes_of(node)
        drawers: dict[str, Callable[[ET.Element], None]] = {
            "plot": self.plot, "scatter": self.scatter, "strip-name": self.strip_name, "strip": self.strip,
            "panels": self.panels, "legend": self.legend, "bar": self.bar, "confusion": self.confusion,
        }  # fmt: skip
        for name, draw in drawers.items():
            if name in classes:
                draw(node)
                return
        if "panel" in classes:
            for line in broken(words_of(node), self.width, BOLD_CHARACTER_PX):
                self.canvas.text(self.x, self.y + 13, line, ink="--ink", bold=True)
                self.y += 16
            self.y += 2
        elif node.tag != "table" and "range" not in classes:
            for child in node:
                self.block(child)

    def title(self, text: str, group: str) -> None:
        """Write what the figure is, and below it of what, over as many lines as it takes."""
        for line in broken(text, self.width, TITLE_CHARACTER_PX):
            self.canvas.text(self.x, self.y + TITLE_PX, line, size=TITLE_PX, ink="--ink", bold=True)
            self.y += 18
        for line in broken(group, self.width) if group else ():
            self.canvas.text(self.x, self.y + 12, line)
            self.y += 16
        self.y += 6

    def plot(self, node: ET.Element) -> None:
        """Draw a plot with the name of its y axis above and the ticks around it."""
        left, right = 46.0, 14.0
        for child in node:
            if child.tag == "div":
                self.canvas.text(self.x, self.y + 11, words_of(child))
                self.y += 19
        svg = node.find("svg")
        assert svg is not None
        width = self.width - left - right
        height = width if "square" in classes_of(svg) else float(re.sub(r"\D", "", svg.get("style", "")) or 200)
        self.y += 4
        self.canvas.plot(svg, self.x + left, self.y, width, height)
        self.y += height + (24 if "bare" in classes_of(node) else 43)
        self.n_drawn += 1

    def scatter(self, node: ET.Element) -> None:
        """Draw a plane of points."""
        side = min(self.width, NARROW_PX)
        self.canvas.rectangle(self.x, self.y, side, side, fill="none", stroke=colour("--rule"))
        self.canvas.scaled(node, self.x, self.y, side / units_of(node)[0])
        self.y += side + 6
        self.n_drawn += 1

    def strip_name(self, node: ET.Element) -> None:
        """Write a channel's name and, at the other edge, its range."""
        limits = node.find("span")
        assert limits is not None
        name = (node.text or "").strip()
        room = int(self.width / CHARACTER_PX) - len(words_of(limits)) - 1
        self.canvas.text(
            self.x, self.y + 14, name if len(name) <= room else f"{name[: max(room - 1, 1)]}…", ink="--ink"
        )
        self.canvas.text(self.x + self.width, self.y + 14, words_of(limits), anchor="end")
        self.y += 18

    def strip(self, node: ET.Element) -> None:
        """Draw a signal."""
        self.canvas.strip(node, self.x, self.y, self.width, STRIP_PX)
        self.y += STRIP_PX + 4
        self.n_drawn += 1

    def panels(self, node: ET.Element) -> None:
        """Draw panels side by side, as many as there is room for."""
        columns = max(int((self.width + PANEL_GAP_PX) // (PANEL_PX + PANEL_GAP_PX)), 1)
        width = (self.width - (columns - 1) * PANEL_GAP_PX) / columns
        for first in range(0, len(node), columns):
            lowest = self.y
            for i, panel in enumerate(node[first : first + columns]):
                column = Column(self.canvas, self.x + i * (width + PANEL_GAP_PX), self.y, width)
                column.block(panel)
                self.n_drawn += column.n_drawn
                lowest = max(lowest, column.y)
            self.y = lowest + 10

    def legend(self, node: ET.Element) -> None:
        """Write a key, entries side by side while there is room."""
        x = self.x
        for item in node:
            svg = item.find("svg")
            assert svg is not None
            width, height = float(svg.get("width", 28)), float(svg.get("height", 14))
            first, *further = broken(words_of(item), self.width - width - 6)
            needed = self.width if further else width + 6 + CHARACTER_PX * len(first)
            if x > self.x and x + needed > self.x + self.width:
                x = self.x
                self.y += 18
            scale = width / units_of(svg)[0] if svg.get("viewBox") else 1.0
            self.canvas.scaled(svg, x, self.y + 9 - height / 2, scale)
            self.canvas.text(x + width + 6, self.y + 13, first, ink="--ink")
            for line in further:
                self.y += 15
                self.canvas.text(x + width + 6, self.y + 13, line, ink="--ink")
            x += needed + 14
        self.y += 22

    def bar(self, node: ET.Element) -> None:
        """Draw shares as one bar."""
        x, height = self.x, 18.0
        for part in node:
            width = float(re.sub(r"[^\d.]", "", part.get("style", "")) or 0) / 100 * self.width
            looks = attributes_of((("i", classes_of(part)), ("path", frozenset({"area"} | classes_of(part)))))
            self.canvas.rectangle(x, self.y, width, height, **looks)
            x += width
        self.canvas.rectangle(self.x, self.y, self.width, height, fill="none", stroke=colour("--rule"))
        self.y += height + 6
        self.n_drawn += 1

    def confusion(self, node: ET.Element) -> None:
        """Draw a confusion matrix, its shares and counts in cells."""
        above, head, *rows = node.iter("tr")
        left, cell_height = 58.0, 36.0
        width = (self.width - left) / max(len(head), 1)
        frames = []
        truth, predicted = above
        middle = self.x + left + len(head) * width / 2
        self.canvas.text(middle, self.y + 14, words_of(predicted), anchor="middle", bold=True)
        self.canvas.text(self.x + left - 8, self.y + 30, words_of(truth), anchor="end", bold=True)
        for i, name in enumerate(head):
            at = self.x + left + (i + 0.5) * width
            self.canvas.text(at, self.y + 30, words_of(name), anchor="middle", bold=True)
        self.y += 38
        for row in rows:
            for j, cell in enumerate(row):
                small = cell.find("small")
                lines = [(cell.text or "").strip(), "" if small is None else words_of(small)]
                x = self.x + left + (j - 1) * width
                if j:
                    share = float(cell.get("style", "--v:0").partition(":")[2])
                    self.canvas.rectangle(x, self.y, width, cell_height, fill=HEAT, fill_opacity=round(share * 0.5, 4))
                    if "own" in classes_of(cell):
                        frames.append((x + 1, self.y + 1))
                for line, (dy, size, ink) in zip(lines, ((16, 12, "--ink"), (29, 10, "--soft")), strict=True):
                    at, anchor = (x + width / 2, "middle") if j else (self.x + left - 8, "end")
                    self.canvas.text(at, self.y + dy, line, anchor=anchor, size=size, ink=ink)
            self.y += cell_height
        for x, y in frames:
            self.canvas.rectangle(x, y, width - 2, cell_height - 2, fill="none", stroke=colour("--ink"))
        self.y += 6
        self.n_drawn += 1


def broken(text: str, width: float, character_px: float = CHARACTER_PX) -> list[str]:
    """Lines of at most a width, broken between words, and within one that is longer than a line."""
    most = max(int(width / character_px), 1)
    lines = [""]
    for word in text.split():
        for piece in (word[i : i + most] for i in range(0, len(word), most)):
            if lines[-1] and len(lines[-1]) + 1 + len(piece) > most:
                lines.append("")
            lines[-1] = f"{lines[-1]} {piece}".strip()
    return lines


def figure_svg(figure: Figure, group: str = "", section: str = "") -> str | None:
    """A figure as an SVG document; None where it is a table or words.

    Parameters
    ----------
    figure : Figure
    group, section : str
        Titles of what it stands in. They are headings on the page; here they and the figure's title are drawn above
        it, and are the document's title.
    """
    parts = [figure.body] if isinstance(figure.body, str | Plot) else list(figure.body)
    markup = [part.render(f"p{i}") if isinstance(part, Plot) else part for i, part in enumerate(parts)]
    page = ET.fromstring(f"<div>{''.join(markup)}{figure.key}</div>")
    canvas = Canvas()
    narrow = next(page.iter("table"), None) is not None or not figure.wide
    width = NARROW_PX if narrow else WIDE_PX
    column = Column(canvas, MARGIN_PX, MARGIN_PX, width - 2 * MARGIN_PX)
    column.title(": ".join(filter(None, (section, figure.title))), group)
    column.block(page)
    if not column.n_drawn:
        return None
    height = column.y + MARGIN_PX - 4
    size = {"width": width, "height": height, "viewBox": f"0 0 {number(width)} {number(height)}"}
    root = element(
        "svg",
        element("title", escape(": ".join(filter(None, (section, group, figure.title))))),
        element("desc", escape(figure.caption)),
        element("rect", width=width, height=height, fill="#ffffff"),
        *canvas.parts,
        xmlns="http://www.w3.org/2000/svg",
        font_family=FONTS,
        **size,
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{MARK}\n{root}\n'


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens of a text, to name a file by."""
    plain = unicodedata.normalize("NFKD", text.replace("→", " to ")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].rstrip("-")


def earlier_figures(folder: Path) -> list[Path]:
    """Figures that a report wrote into a folder before; none where there is no folder."""
    found = []
    for path in sorted(folder.glob("*.svg")):
        with path.open("rb") as file:
            if MARK.encode() in file.read(200):
                found.append(path)
    return found


def refuse_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder for figures that is a file, or that holds a report's figures already.

    Raises
    ------
    SleepfmError
    """
    if folder.exists() and not folder.is_dir():
        raise SleepfmError(f"--figures {folder} is a file; give a folder for the SVG files.")
    if folder.is_dir() and not overwrite and (found := earlier_figures(folder)):
        raise SleepfmError(
            f"--figures {folder} holds figures of a report already (such as {found[0].name}). Give another folder, or "
            "add --overwrite."
        )


def draw_figures(sections: Iterable[Section], folder: Path) -> dict[Path, bytes]:
    """Draw every figure that is a file of its own, and note the file's name in ``figure.file``.

    Figures that an earlier report left in the folder are replaced; other files there keep their names.

    Returns
    -------
    dict of Path to bytes
        To be written, in the order of the page.
    """
    earlier = set(earlier_figures(folder))
    drawn: dict[Path, bytes] = {}
    for section in sections:
        for group in section.groups:
            for figure in group.items:
                if not isinstance(figure, Figure):
                    continue
                if (text := figure_svg(figure, group.title, section.title)) is None:
                    continue
                name = "-".join(filter(None, (section.identity, slug(group.title), slug(figure.title))))
                path, n = folder / f"{name}.svg", 1
                while path in drawn or (path.exists() and path not in earlier):
                    n += 1
                    path = folder / f"{name}-{n}.svg"
                figure.file = path.name
                drawn[path] = text.encode("utf-8")
    return drawn
