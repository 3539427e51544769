"""The sexes of a participants table, as laboratories write them: words, letters and codes, reduced to M and F."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sleepfm_fast.montage.channel_names import unaccented
from sleepfm_fast.plurals import counted, first_lines

__all__ = ["MISSING", "codes_in", "sexes_of"]

WORDS = {
    **dict.fromkeys(("m", "male", "man", "men", "boy", "mann", "mannlich", "masculin", "masculino", "maschile"), "M"),
    **dict.fromkeys(("homme", "hombre", "uomo", "maschio", "homem", "varon", "mannelijk", "junge", "kille"), "M"),
    **dict.fromkeys(("f", "female", "w", "woman", "women", "girl", "frau", "weiblich", "feminin", "femenino"), "F"),
    **dict.fromkeys(("femme", "mujer", "donna", "femmina", "femminile", "mulher", "feminino", "vrouw"), "F"),
    **dict.fromkeys(("vrouwelijk", "v", "kvinna", "kvinde", "hembra"), "F"),
}
"""Without case and accents."""
MISSING = ("", "na", "nan", "n/a", "none", "null", "unknown", "not reported", "?", ".", "-")
ISO_5218 = {"1": "M", "2": "F"}
STATED = re.compile(
    r"(?<![a-z])(?P<word>[a-z]+) ?[=: ]? ?(?P<code>\d)(?!\d)|(?<!\d)(?P<first>\d) ?[=: ]? ?(?P<behind>[a-z]+)"
)
"""``F=1``, ``M1/F2``, ``1: male``."""


def codes_in(header: str) -> dict[str, str]:
    """Sexes of the codes that a column's name states, as Sleep-EDF's ``sex (F=1)``; empty where it states none."""
    found = {}
    for match in STATED.finditer(key_of(header)):
        sex = WORDS.get(match["word"] or match["behind"])
        if sex is not None:
            found[match["code"] or match["first"]] = sex
    return found if len({*found.values()}) == len(found) else {}


def sexes_of(given: Sequence[str], name: str, issues: list[str], header: str = "") -> list[str | None]:
    """Sex of each row.

    Parameters
    ----------
    given : sequence of str
        The cells. What a code or the letter M stands for is told by the column's other cells.
    name : str
        The table, for messages.
    issues : list of str
        What was taken for what, and what could not be understood, is appended.
    header : str
        The column's name, which may state what its codes mean.

    Returns
    -------
    list of str or None
        M, F, None where nothing is given, or the cell itself where it is neither.
    """
    keys = [key_of(cell) for cell in given]
    words, there = dict(WORDS), set(keys)
    stated = codes_in(header)
    others = {key for key in there if key.isdigit() and key not in stated}
    if len(stated) == 1 and len(others) == 1:
        stated[others.pop()] = "F" if "M" in stated.values() else "M"
    if stated:
        words |= stated
        meant = " and ".join(f"{code} as {'male' if sex == 'M' else 'female'}" for code, sex in sorted(stated.items()))
        issues.append(f"{name}: the sexes are coded; {meant}, by the column's name '{header}'.")
    elif {"1", "2"} <= there:
        # Without one of both the code is another one: where it is 0 and 1, tables differ in what they mean, and all
        # 2 are the men of a cohort of men (MrOS).
        words |= ISO_5218
        nought = ", 0 as not known" if "0" in there else ""
        issues.append(f"{name}: the sexes are coded; 1 is taken as male and 2 as female (ISO 5218){nought}.")
    if "h" in there:
        words["h"] = "M"
        if "m" in there and not there & {"f", "w", "v"}:
            words["m"] = "F"
            issues.append(f"{name}: the sexes are H and M; H is taken as male (hombre) and M as female (mujer).")
        else:
            issues.append(f"{name}: the sex H is taken as male (homme, hombre).")
    coded = not stated and {"1", "2"} <= there
    found: list[str | None] = []
    for cell, key in zip(given, keys, strict=True):
        nothing = cell.casefold() in MISSING or (key == "0" and coded)
        found.append(None if nothing else words.get(key, cell))
    unknown = Counter(sex for sex in found if sex not in (None, "M", "F"))
    neither = [
        f"{name}: the sex '{sex}' of {counted(n, 'row')} is neither male nor female; it is kept, without a label of "
        "sex."
        for sex, n in unknown.items()
    ]
    issues += first_lines(neither, f"{name}:", "more text is no sex", "more texts are no sexes")
    return found


def key_of(cell: str) -> str:
    """How a cell is compared: no case, accents or decimals, which a code gets where a column has holes."""
    return re.sub(r"^(\d+)[.,]0+$", r"\1", unaccented(cell))
