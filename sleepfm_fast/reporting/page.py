"""The page: sections of figures with captions and sources -> one HTML file, and the same numbers as JSON.

The file asks for nothing: no script at all, style inline, figures inline SVG; a content security policy forbids the
browser to load anything even where a name from a recording tried to.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleepfm_fast.reporting.markup import element, escape
from sleepfm_fast.reporting.plot import Plot

__all__ = ["Figure", "Group", "Missing", "Section", "render", "table", "to_record"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass
class Figure:
    """One thing to look at.

    Attributes
    ----------
    title : str
    body : str or Plot or sequence of both
        Markup (already escaped) or plots, one under the other.
    caption : str
        Plain text: what is shown, and how to read it.
    sources : sequence of Path
        The files it was drawn from.
    data : Any
        The numbers shown, for the JSON beside the page.
    wide : bool
        It takes the whole width of the page.
    key : str
        Markup of its legend.
    folded : bool
        Behind a line that opens it.
    file : str
        Name of the SVG file that it was written to; empty where it was not.
    """

    title: str
    body: str | Plot | Sequence[str | Plot]
    caption: str
    sources: Sequence[Path]
    data: Any = None
    wide: bool = False
    key: str = ""
    folded: bool = False
    file: str = ""


@dataclass(frozen=True)
class Missing:
    """What could not be drawn, why, and the command that makes the input."""

    what: str
    command: str = ""


@dataclass
class Group:
    """Figures that belong together, side by side where there is room."""

    title: str = ""
    note: str = ""
    items: list[Figure | Missing] = field(default_factory=list)
    folded: bool = False


@dataclass
class Section:
    """A chapter of the page."""

    identity: str
    title: str
    lead: str = ""
    groups: list[Group] = field(default_factory=list)

    def figures(self) -> Iterator[Figure]:
        """All of its figures."""
        yield from (item for group in self.groups for item in group.items if isinstance(item, Figure))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    *,
    numeric: bool = True,
    escaped: bool = False,
) -> str:
    """Write a table whose first column names its rows; it scrolls by itself where it is wider than the page.

    Parameters
    ----------
    head : sequence of str
        Column names.
    rows : iterable of sequence of str
        Cells.
    caption : str
        Read aloud, not shown: the figure's caption is.
    numeric : bool
        Right-align all but the first column.
    escaped : bool
        The cells are markup already.
    """
    raw = (lambda text: text) if escaped else escape
    columns = element("tr", *(element("th", escape(h), scope="col") for h in head))
    lines = [
        element("tr", element("th", raw(row[0]), scope="row"), *(element("td", raw(cell)) for cell in row[1:]))
        for row in rows
    ]
    inner = element(
        "table",
        element("caption", escape(caption), class_="spoken"),
        element("thead", columns),
        element("tbody", *lines),
        class_="numbers" if numeric else None,
    )
    # A region that scrolls must be reachable by keyboard.
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def named(files: Sequence[Path], base: Path) -> str:
    """Name files, those of one folder together; within the page's folder as seen from there."""
    folders: dict[Path, list[str]] = {}
    for file in dict.fromkeys(files):
        near = file.relative_to(base) if file.is_relative_to(base) else file
        folders.setdefault(near.parent, []).append(near.name)
    return "; ".join(
        f"{element('code', escape(folder / names[0]))}"
        + "".join(f", {element('code', escape(name))}" for name in names[1:])
        for folder, names in folders.items()
    )


class Writer:
    """Numbers the figures and writes the markup."""

    def __init__(self, base: Path) -> None:
        self.count, self.base = 0, base

    def figure(self, figure: Figure, level: int) -> str:
        self.count += 1
        identity = f"f{self.count}"
        parts = [figure.body] if isinstance(figure.body, str | Plot) else list(figure.body)
        drawn = [part.render(f"{identity}-{i}") if isinstance(part, Plot) else part for i, part in enumerate(parts)]
        drawn_from = (
            element("span", f"From {named(figure.sources, self.base)}.", class_="source") if figure.sources else ""
        )
        caption = element("figcaption", escape(figure.caption), " " if figure.caption else "", drawn_from)
        heading = element(f"h{level}", escape(figure.title), id=identity, class_="of-figure")
        classes = "wide" if figure.wide else None
        if figure.folded:
            inner = element("figure", *drawn, figure.key, caption, aria_label=figure.title)
            return element("details", element("summary", escape(figure.title), id=identity), inner, class_=classes)
        return element("figure", heading, *drawn, figure.key, caption, class_=classes, aria_labelledby=identity)

    def missing(self, missing: Missing) -> str:
        command = element("pre", element("code", escape(missing.command))) if missing.command else ""
        return element("div", element("p", escape(missing.what)), command, class_="missing")

    def group(self, group: Group) -> str:
        title = element("h3", escape(group.title)) if group.title else ""
        note = element("p", escape(group.note), class_="lead") if group.note else ""
        level = 4 if group.title else 3  # no level is left out, by which screen readers go through the page
        items = [self.figure(item, level) if isinstance(item, Figure) else self.missing(item) for item in group.items]
        grid = element("div", *items, class_="grid")
        if group.folded:
            return element("details", element("summary", escape(group.title)), note, grid, class_="group")
        return element("div", title, note, grid, class_="group")

    def section(self, section: Section) -> str:
        lead = element("p", escape(section.lead), class_="lead") if section.lead else ""
        return element(
            "section",
            element("h2", escape(section.title), id=section.identity),
            lead,
            *(self.group(group) for group in section.groups),
            aria_labelledby=section.identity,
        )


def render(title: str, subtitle: str, notices: Sequence[str], sections: Sequence[Section], base: Path) -> str:
    """Write the page.

    Parameters
    ----------
    title, subtitle : str
        Plain text.
    notices : sequence of str
        What a reader must know before the first figure.
    sections : sequence of Section
    base : Path
        Folder of the page, from which captions name their files.

    Returns
    -------
    str
        A whole HTML document.
    """
    writer = Writer(base)
    style = importlib.resources.files("sleepfm_fast.reporting").joinpath("page.css").read_text(encoding="utf-8")
    links = [element("li", element("a", escape(s.title), href=f"#{s.identity}")) for s in sections]
    warned = [element("p", escape(n)) for n in notices]
    body = element(
        "body",
        element("a", "Skip to the figures", href="#main", class_="skip"),
        element(
            "header",
            element("h1", escape(title)),
            element("p", escape(subtitle), class_="lead"),
            element("div", *warned, class_="notice", role="note") if warned else "",
            element("nav", element("ul", *links), aria_label="Sections"),
        ),
        element("main", *(writer.section(s) for s in sections), id="main"),
    )
    head = "".join(
        (
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="generator" content="sleepfm_fast">',
            # An icon of no bytes: browsers ask the folder for favicon.ico otherwise.
            '<link rel="icon" href="data:,">',
            element("title", escape(title)),
            f"<style>\n{style}</style>",
        )
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n{body}\n</html>\n'


def to_record(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """The numbers of every figure and the files they came from, in the order of the page."""
    return [
        {
            "section": section.title,
            "figures": [
                {
                    "title": figure.title,
                    "group": group.title,
                    "caption": figure.caption,
                    "files": [str(path) for path in dict.fromkeys(figure.sources)],
                    "data": figure.data,
                    **({"svg": figure.file} if figure.file else {}),
                }
                for group in section.groups
                for figure in group.items
                if isinstance(figure, Figure)
            ],
            "missing": [
                {"what": item.what, "command": item.command}
                for group in section.groups
                for item in group.items
                if isinstance(item, Missing)
            ],
        }
        for section in sections
    ]
