"""HTML and SVG as text: every attribute and every text that may come from a file is escaped here."""

from __future__ import annotations

import html
import math
import re
from typing import Any

__all__ = ["element", "escape", "number", "percent"]

# Characters that HTML forbids, and marks that turn the direction of the text around them.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff]"
)


def plain_text(value: object) -> str:
    """Make printable text: control characters, lone surrogates and direction marks become U+FFFD."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return UNPRINTABLE.sub("\ufffd", text)


def escape(value: object) -> str:
    """Escape text for HTML, in elements and in quoted attributes."""
    return html.escape(plain_text(value), quote=True)


def element(name: str, *content: str, **attributes: Any) -> str:
    """Write one element.

    Parameters
    ----------
    name : str
        Its tag.
    content : str
        Markup, not escaped again.
    attributes : str or number or None
        Escaped; ``class_`` is class, ``_`` within a name is ``-``; None leaves the attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value) if isinstance(value, float) else value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(content)}</{name}>"


def number(value: float, digits: int = 2) -> str:
    """Shortest text of a number with at most ``digits`` decimals, as attributes and paths want it."""
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be drawn")
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def percent(fraction: float) -> str:
    """A fraction as an SVG length relative to the plot."""
    return f"{number(100 * fraction, 3)}%"
