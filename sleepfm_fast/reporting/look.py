"""How the page's style sheet makes a drawing look in the light style, as attributes that every SVG reader knows.

Programs for drawing and typesetting know neither custom properties (``var(--c)``) nor the page's classes.
"""

from __future__ import annotations

import importlib.resources
import re
from functools import cache

__all__ = ["Chain", "attributes_of", "colour"]

Chain = tuple[tuple[str, frozenset[str]], ...]
"""An element and those around it, the outermost first: tag and classes of each."""
Rule = tuple[tuple[int, int], Chain, dict[str, str]]
DRAWN = (
    *("fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap"),
    *("opacity", "font-size", "text-anchor"),
)
LEFT_OUT = {"stroke": "none", "opacity": "1", "text-anchor": "start", "stroke-dasharray": "none"}
"""Values that an element without the attribute has."""
VARIABLE = re.compile(r"var\((--[\w-]+)(?:,\s*([^()]+))?\)")


@cache
def sheet() -> tuple[dict[str, str], tuple[Rule, ...]]:
    """The custom properties of the light style, and the rules for elements, media queries left out."""
    css = importlib.resources.files("sleepfm_fast.reporting").joinpath("page.css").read_text(encoding="utf-8")
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    css = re.sub(r"@[^{};]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", css)
    root: dict[str, str] = {}
    rules: list[Rule] = []
    for selectors, content in re.findall(r"([^{}]+)\{([^{}]*)\}", css):
        pairs = (line.partition(":") for line in content.split(";") if ":" in line)
        declared = {name.strip(): value.strip() for name, _, value in pairs}
        for selector in selectors.split(","):
            if selector.strip() == ":root":
                root |= declared
            elif not re.search(r"[:*+\[]", selector):
                parts = tuple(compound(word) for word in selector.replace(">", " ").split())
                weight = (sum(len(classes) for _, classes in parts), sum(bool(tag) for tag, _ in parts))
                rules.append((weight, parts, declared))
    return root, tuple(sorted(rules, key=lambda rule: rule[0]))  # of equal weight the later counts


def compound(word: str) -> tuple[str, frozenset[str]]:
    """``path.line.s1`` -> its tag, which may be empty, and its classes."""
    tag, *classes = word.split(".")
    return tag, frozenset(classes)


def fits(rule: Chain, chain: Chain) -> bool:
    """Whether a selector's last part is the element and the parts before it are found around it, in order."""
    tag, classes = rule[-1]
    if not chain or (tag and tag != chain[-1][0]) or not classes <= chain[-1][1]:
        return False
    around = iter(chain[:-1])
    return all(any((not t or t == a[0]) and c <= a[1] for a in around) for t, c in rule[:-1])


def colour(name: str) -> str:
    """A custom property of the light style, such as ``--ink``."""
    return sheet()[0][name]


def attributes_of(chain: Chain) -> dict[str, str]:
    """Presentation attributes of the last element of ``chain``."""
    root, rules = sheet()
    values: dict[str, str] = {}
    for i in range(1, len(chain) + 1):
        own = {k: v for _, parts, declared in rules if fits(parts, chain[:i]) for k, v in declared.items()}
        # Of what is around it an element inherits its colour; the drawings set nothing else there.
        values = {**{k: v for k, v in values.items() if k.startswith("--")}, **own}
    known = {**root, "currentColor": root["--ink"], **values}

    def resolved(text: str) -> str:
        for _ in range(4):
            text = VARIABLE.sub(lambda m: known.get(m[1], m[2] or root["--ink"]), text)
        return known.get(text, text) if text == "currentColor" else text

    found = {name: resolved(values[name]) for name in DRAWN if name in values}
    return {name: value for name, value in found.items() if LEFT_OUT.get(name) != value}
