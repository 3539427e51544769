"""The words that scorers write for sleep stages and respiratory events, reduced to AASM names.

Sources: the AASM manual (stage and event names), Rechtschaffen & Kales (S1-S4, movement time), the EDF+ standard
texts (``Sleep stage W``), NSRR ``PSGAnnotation`` concepts (``Stage 2 sleep|2``, ``SRO:Stage2Sleep``), Profusion codes.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal

__all__ = [
    "EPOCH_S",
    "LONGEST_NAME",
    "NO_STAGE",
    "STAGES",
    "RespiratoryEvent",
    "Stage",
    "has_words_of_other_scripts",
    "is_marker",
    "other_letters",
    "perhaps_respiratory",
    "respiratory_event_of",
    "stage_of",
    "with_latin_words",
]

Stage = Literal["W", "N1", "N2", "N3", "R", "none"]
RespiratoryEvent = Literal["obstructive_apnea", "central_apnea", "mixed_apnea", "hypopnea"]

STAGES: tuple[Stage, ...] = ("W", "N1", "N2", "N3", "R")
"""Stage names in the order of their codes 0..4."""
NO_STAGE = -1
"""Code of an epoch without a stage: movement, unscored, artefact, not covered."""
EPOCH_S = 30
"""Length of a scored epoch in seconds (AASM)."""
LONGEST_NAME = 500
"""A text of more characters is a remark and names nothing; to look for brackets in it takes its length squared."""

STAGE_WORDS: dict[Stage, tuple[str, ...]] = {
    "W": (
        *("w", "0", "wake", "wk", "wak", "awake", "wakefulness", "waking", "wakestate", "s0", "n0", "stade0"),
        *("wach", "wachzustand", "wachheit", "eveil", "eveille", "veille", "vigilia", "despierto", "veglia", "sveglio"),
        *("wakker", "waak", "acordado", "vaken", "vakenhet", "vigil"),
    ),
    "N1": ("n1", "1", "s1", "nrem1", "nonrem1", "nr1", "st1", "stage1nrem", "nonrapideyemovementn1", "nremi"),
    "N2": ("n2", "2", "s2", "nrem2", "nonrem2", "nr2", "st2", "stage2nrem", "nonrapideyemovementn2", "nremii"),
    "N3": (
        *("n3", "3", "s3", "nrem3", "nonrem3", "nr3", "st3", "nonrapideyemovementn3", "nremiii"),
        *("n4", "4", "s4", "nrem4", "nonrem4", "nr4", "st4", "nonrapideyemovementn4", "nremiv"),
        *(
            "34",
            "s34",
            "s3s4",
            "n34",
            "n3n4",
            "nrem34",
            "sws",
            "slowwave",
            "slowwavesleep",
            "sommeillentprofond",
            "tiefschlaf",
            "diepe",
        ),
    ),
    "R": (
        *("r", "5", "rem", "rapideyemovement", "rapideyemovementr", "stager", "rems", "sr", "paradoxal"),
        *("paradoxical", "sommeilparadoxal", "suenorem", "sonnorem", "sonorem", "traumschlaf"),
    ),
    "none": (
        *("?", "6", "9", "unscored", "notscored", "noscore", "unsc", "uns", "unknown", "undefined", "undetermined"),
        *("nostage", "none", "nan", "na", "notavailable", "invalid", "unstaged", "sp", "m", "mt", "movement"),
        *("movementtime", "bodymovement", "mov", "mvt", "art", "artifact", "artefact", "artifacts", "artefacts"),
        *("mouvement", "mouvements", "tempsdemouvement", "bewegung", "bewegungszeit", "nonscore", "nonnote"),
        *("inconnu", "indetermine", "artefakt", "unbekannt", "nichtbewertet", "ungescored", "movimiento", "movimento"),
        *("desconocido", "sconosciuto", "nopuntuado", "unclassified", "nonclasse", "indeterminate"),
    ),
}

MARKERS = frozenset(
    (
        *("m", "movement", "bodymovement", "mov", "mvt", "art", "artifact", "artefact", "artifacts", "artefacts"),
        *("mouvement", "mouvements", "bewegung", "artefakt", "movimiento", "movimento", "unknown", "inconnu"),
        *("unbekannt", "desconocido", "sconosciuto", "invalid", "na", "nan", "none", "sp", "undefined"),
    )
)
"""Words of ``none`` that files also use for a moment's remark; without a duration they say nothing of an epoch."""

PREFIXES = (
    *(
        "sleepstage",
        "stagesleep",
        "sleepstg",
        "slpstg",
        "slpstage",
        "stage",
        "stg",
        "sleep",
        "hypnogram",
        "schlafstadium",
    ),
    *("schlafphase", "stadium", "stufe", "stadedesommeil", "stadesommeil", "stade", "phasedesommeil", "sommeil"),
    *("estagio", "somnstadium", "slaapfase", "somn", "slaap", "sueno", "sonno", "sono"),
    *("estadio", "etapa", "fasedesueno", "fase", "stadio", "fasedisonno", "slaapstadium", "nremstage", "nonremstage"),
)
SUFFIXES = (
    "sleep",
    "stage",
    "state",
    "schlaf",
    "sommeil",
    "sleepstage",
    "nrem",
    "slaap",
    "sueno",
    "sonno",
    "sono",
    "somn",
)

ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4"}
STAGE_OF_WORD: dict[str, Stage] = {word: stage for stage, words in STAGE_WORDS.items() for word in words}
STAGE_OF_NUMBER: dict[int, Stage] = {
    **{0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "N3", 5: "R", 6: "none", 7: "none", 8: "none", 9: "none"},
    **{-1: "none", -2: "none"},
}

OBSTRUCTIVE = r"obstructive?s?|obstructiva|obstruktive?|obstructieve|ostruttiva|obstrutiva|obstruct|obstr|obs"
CENTRAL = r"centrale?s?|zentrale?|cent"
MIXED = r"mixed|mixtes?|mixta|mista|gemischte?|gemengde?|mix"
APNEA = r"apneas?|apnoeas?|apnees?|apnoen?|apneus?|apneias?|apn"
HYPOPNEA = r"hypopneas?|hypopnoeas?|hypopnees?|hypopnoen?|hypopneus?|hipopneas?|hipopneias?|ipopneas?|ipopnee|hypop|hyp"
# What may stand around the event's name without changing what it is: criteria and accompaniments. A text must be of
# this form in one way only: each further way doubles the time that a long one takes, so digits are taken all at once.
AROUND = (
    r"(?:event|finding|evenement|ereignis|sleep|(?:with|w|and|avec|mit|con)?(?:arousals?|desaturations?|desat)|"
    r"rule(?:\d?[ab])?|aasm|(?<!\d)\d+(?!\d)(?:percent|pct|seconds?|secs?|s)?)*"
)
RESPIRATORY = re.compile(
    rf"(?:aasm)?(?:resp|respiratory|respiratoire)?(?:event)?(?P<before>{OBSTRUCTIVE}|{CENTRAL}|{MIXED})?(?:sleep)?"
    rf"(?:(?P<apnea>{APNEA})|(?P<hypopnea>{HYPOPNEA}))(?:du)?(?:sommeil)?"
    rf"(?P<after>{OBSTRUCTIVE}|{CENTRAL}|{MIXED})?{AROUND}"
)
ABBREVIATIONS: dict[str, RespiratoryEvent] = {
    **{
        "oa": "obstructive_apnea",
        "oap": "obstructive_apnea",
        "apo": "obstructive_apnea",
        "apneao": "obstructive_apnea",
    },
    **{"apc": "central_apnea", "apneac": "central_apnea"},
    **{"apm": "mixed_apnea", "apneam": "mixed_apnea"},
    # A. Obstructive, H. Central: Noxturnal
    **{"aobstructive": "obstructive_apnea", "acentral": "central_apnea", "amixed": "mixed_apnea"},
    **{"hobstructive": "hypopnea", "hcentral": "hypopnea", "hmixed": "hypopnea"},
}
DOUBTFUL = frozenset(
    (
        *("ca", "ma", "ac", "ao", "am", "h", "ch", "oh", "mh", "ho", "hc", "ah", "ap", "hypo", "osa", "csa", "msa"),
        *("cap", "map", "obstructive", "central", "mixed", "obstruktiv", "zentral", "gemischt", "obstructif"),
        *("obs", "obst", "obstr", "cent", "mix", "respiratoryevent", "respevent", "resp", "unsure"),
    )
)
"""Texts that are respiratory events in some laboratories and something else, or nothing, in others: CAP is a central
apnoea or the cyclic alternating pattern. The NSRR's ``Unsure|Unsure`` are hypopnoeas for its indices (a smaller drop of
the flow) and for nobody else. Only the user can say; none is taken for an event unasked."""

ABBREVIATED = re.compile(rf"ap(?:ob|centr|{OBSTRUCTIVE}|{CENTRAL}|{MIXED})|(?:ob|{OBSTRUCTIVE}|{CENTRAL}|{MIXED})ap?")
"""As doubtful as those: ``Ap. obs.``, ``Ap centrale``, ``ObsA``."""


def fold(text: str) -> str:
    """Reduce a name to its letters, digits and question marks: no case, accents, spaces or punctuation."""
    if len(text) > LONGEST_NAME:
        return ""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss")).casefold()
    return "".join(c for c in plain if (c.isalnum() and c.isascii()) or c == "?")


OTHER_SCRIPTS = (
    *(
        ("非快速眼动", "nrem"),
        ("快速眼动", "rem"),
        ("快动眼", "rem"),
        ("清醒", "wake"),
        ("觉醒", "wake"),
        ("覚醒", "wake"),
    ),
    *(("开始时间", "start"), ("结束时间", "end"), ("持续时间", "duration"), ("时长", "duration"), ("时间", "time")),
    *(("未分期", "unscored"), ("体动", "movement"), ("睡眠分期", "stage"), ("睡眠期", "stage"), ("睡眠", "sleep")),
    *(("期", ""), ("阻塞性", "obstructive"), ("中枢性", "central"), ("混合性", "mixed"), ("呼吸暂停", "apnea")),
    *(("低通气", "hypopnea"), ("事件", "event"), ("стадия", "stage"), ("бодрствование", "wake"), ("сна", "")),
)
"""Words in other letters than Latin ones, the longer of two that begin alike first, and what they mean."""


def other_letters(text: str) -> str:
    """Letters of a text that :func:`fold` drops, as those of another script: without them it says something else."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss").casefold())
    return "".join(c for c in plain if c.isalnum() and not c.isascii())


def with_latin_words(text: str) -> str:
    """Put the known words of other scripts into English."""
    if not other_letters(text):
        return text
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss").casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    for word, meaning in OTHER_SCRIPTS:
        plain = plain.replace(unicodedata.normalize("NFKD", word), meaning)
    return plain


def has_words_of_other_scripts(text: str) -> bool:
    """Whether a text has a known word of another script; single signs may come of a wrong encoding."""
    return any(len(word) > 1 and word in text for word, _ in OTHER_SCRIPTS)


def in_latin(text: str) -> str | None:
    """Return a text in Latin letters, None where it has words of another script that are not known.

    ``体位 1`` is a position and no stage 1.
    """
    plain = with_latin_words(text)
    return None if other_letters(plain) else plain


def concept(text: str) -> str:
    """Take the concept out of NSRR's ``concept|note`` and ``SRO:Concept``."""
    return re.sub(r"^\s*(?:SRO|SDO)\s*:", "", text.split("|")[0])


def stage_word(text: str) -> str | None:
    """Return the word of the vocabulary that ``text`` is, with or without brackets behind it, or None."""
    if len(text) > LONGEST_NAME:
        return None
    bare = re.sub(r"(?<=\w)\s*[(\[][^()\[\]]*[)\]]\s*$", "", text)
    return word_of(text) or (word_of(bare) if bare != text else None)


def word_of(text: str) -> str | None:
    latin = in_latin(concept(text))
    if latin is None:
        return None
    key = fold(latin)
    cores = [key] + [key[len(p) :] for p in PREFIXES if key.startswith(p) and len(key) > len(p)]
    cores += [core[: -len(s)] for core in cores for s in SUFFIXES if core.endswith(s) and len(core) > len(s)]
    # NonRapidEyeMovementSleep-N1
    cores += [core.replace("sleep", "") for core in cores if "rapideyemovement" in core]
    # "Stage II": only behind a prefix, for "IV" alone is an infusion
    cores += [ROMAN[core] for core in cores if core in ROMAN and core != key]
    return next((core for core in cores if core in STAGE_OF_WORD), None)


@lru_cache(maxsize=4096)
def stage_of(text: str) -> Stage | None:
    """AASM stage that an annotation's text names.

    Parameters
    ----------
    text : str
        For instance ``Sleep stage W``, ``Stage 4 sleep|4``, ``SRO:RapidEyeMovement``, ``N2``, ``3``, ``2.0``,
        ``Éveil``. Bare numbers are Rechtschaffen & Kales' codes as Profusion writes them: 0 wake, 1-4, 5 REM,
        6 movement, 9 unscored; -1 and -2 are artefact and unscored.

    Returns
    -------
    str or None
        ``"W"``, ``"N1"``, ``"N2"``, ``"N3"`` (S3 and S4 too), ``"R"``; ``"none"`` for movement, artefact and
        unscored; None where the text names no stage at all.
    """
    stripped = text.strip()
    if re.fullmatch(r"[+-]?\d{1,9}(?:\.0+)?", stripped):
        return STAGE_OF_NUMBER.get(int(float(stripped)))
    word = stage_word(stripped)
    return None if word is None else STAGE_OF_WORD[word]


def is_marker(text: str) -> bool:
    """Whether a text that means "no stage" is also used for remarks of a moment (movement, artefact)."""
    word = stage_word(text.strip())
    return word is not None and word in MARKERS


def perhaps_respiratory(text: str) -> bool:
    """Whether a text that is no known respiratory event may be one: a bare type or abbreviation, or part of a word."""
    if len(text) > LONGEST_NAME:
        return False
    text = with_latin_words(text)
    key = fold(concept(text))
    return (
        key in DOUBTFUL
        or ABBREVIATED.fullmatch(key) is not None
        or re.search(r"hyp[oe]?p|apn|pnoe|pnee|obstru", text.casefold()) is not None
    )


@lru_cache(maxsize=4096)
def respiratory_event_of(text: str) -> RespiratoryEvent | None:
    """Respiratory event that an annotation's text names; None for RERA, desaturation, arousal and all else.

    An apnoea whose type is not stated is returned as obstructive, the commonest. The text must be the event's name
    and nothing more than its type and criteria: a remark such as ``post apnea arousal`` is not an event.
    """
    named = in_latin(concept(text)) if len(text) <= LONGEST_NAME else None
    if named is None:
        return None
    for part in (named, re.sub(r"[(\[{].*?[)\]}]", " ", named)):
        key = fold(part)
        if key in ABBREVIATIONS:
            return ABBREVIATIONS[key]
        match = RESPIRATORY.fullmatch(key)
        if match is None:
            continue
        if match["hypopnea"]:
            return "hypopnea"
        kind = match["before"] or match["after"] or ""
        if re.fullmatch(CENTRAL, kind):
            return "central_apnea"
        return "mixed_apnea" if re.fullmatch(MIXED, kind) else "obstructive_apnea"
    return None
