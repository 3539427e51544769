"""What to say of intervals that rest on few subjects: they are narrower than they claim to be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sleepfm_fast.plurals import agreeing

__all__ = [
    "FEW_SUBJECTS", "class_caution", "class_notice", "covered", "interval_caution", "interval_notice", "rarest_caution",
]  # fmt: skip

FEW_SUBJECTS = 10  # from here on :func:`covered` is at least 0.90


def covered(n_subjects: int) -> float:
    """How often a nominal 95 % percentile interval over subjects holds the truth.

    Of a mean over n subjects that are normally distributed: the bootstrap's standard error is s sqrt((n - 1) / n) /
    sqrt(n), so that the share is P(|t| < 1.96 sqrt((n - 1) / n)) with n - 1 degrees of freedom. Other figures, and
    subjects that differ in more skewed ways, are not covered better. Of two subjects the interval runs from one to the
    other, since a quarter of the resamples draws either alone: they lie on both sides of the median in half of all
    cases.

    Parameters
    ----------
    n_subjects : int
        At least 2.
    """
    if n_subjects == 2:
        return 0.5
    from scipy.special import stdtr

    return float(2 * stdtr(n_subjects - 1, 1.96 * math.sqrt((n_subjects - 1) / n_subjects)) - 1)


def interval_caution(n_subjects: int) -> str:
    """Return :func:`interval_notice` as a sentence of a text, with a space before it; empty where there is none."""
    notice = interval_notice(n_subjects)
    return f" {notice[0].upper()}{notice[1:]}" if notice else ""


def interval_notice(n_subjects: int) -> str:
    """Return the sentence that belongs beside intervals over so many subjects; empty from :data:`FEW_SUBJECTS` on."""
    if n_subjects >= FEW_SUBJECTS or n_subjects < 1:
        return ""
    if n_subjects == 1:
        return "one subject; there is nothing to bootstrap over, so no intervals."
    return (
        f"with {n_subjects} subjects the intervals are too narrow: for a mean they contain the true value about "
        f"{100 * covered(n_subjects):.0f} times in 100, not 95."
    )


def class_caution(classes: Mapping[str, Any], n_subjects: int) -> str:
    """Return :func:`class_notice` as a sentence of a text, with a space before it; empty where there is none."""
    notice = class_notice(classes, n_subjects)
    return f" {notice[0].upper()}{notice[1:]}" if notice else ""


def class_notice(classes: Mapping[str, Any], n_subjects: int) -> str:
    """Return the sentence that belongs beside intervals of classes that few of the subjects have, or few lack.

    What an AUROC varies by is as much those who have the class as those who have others: of two groups the smaller
    decides, and coverage is about :func:`covered` of it (tests/test_interval_notice.py).

    Parameters
    ----------
    classes : mapping of str to dict
        Of a record: ``n_subjects`` and ``n_subjects_of_others`` of each class; records of before have neither.
    n_subjects : int
        Tested in all; where :func:`interval_notice` says nearly the same of them, nothing is said.
    """
    if n_subjects < 2:
        return ""
    sides = sides_of(classes)
    parts = []
    if ones := [name for n, name, _ in sides if n == 1]:
        each, these = agreeing(len(ones), "", " each"), agreeing(len(ones), "this class", "these classes")
        parts.append(
            f"one subject{each} has clips of {' and of '.join(ones)}, which says nothing of others like them: the "
            f"figures of {these}, and means over {agreeing(len(ones), 'it', 'them')}, have no interval"
        )
    fewest = min((smaller for _, _, smaller in sides if smaller > 1), default=n_subjects)
    if fewest < FEW_SUBJECTS and covered(fewest) < covered(n_subjects) - 0.03:
        few = [name for n, name, smaller in sides if n == smaller == fewest]
        each, these = agreeing(len(few), "", " each"), agreeing(len(few), "this class", "these classes")
        means = "" if ones else f", and of means over {agreeing(len(few), 'it', 'them')},"
        parts.append(
            f"only {fewest} subjects{each} have clips of {' and of '.join(few)}: intervals of {these}{means} contain "
            f"the true value about {100 * covered(fewest):.0f} times in 100, not 95"
        )
    return "; ".join(parts) + "." if parts else ""


def sides_of(classes: Mapping[str, Any]) -> list[tuple[int, str, int]]:
    """Subjects with each class that can be told from others, and subjects with those others.

    Each as their number, what they have in words, and the smaller number of the two.
    """
    found: list[tuple[int, str, int]] = []
    for name, entry in classes.items() if isinstance(classes, Mapping) else ():
        given = (
            [entry.get(key) for key in ("n_test", "n_subjects", "n_subjects_of_others")]
            if isinstance(entry, Mapping)
            else []
        )
        sizes = [size for size in given if type(size) is int and size > 0]
        if len(sizes) == 3:
            _, with_it, with_others = sizes
            smaller = min(with_it, with_others)
            found += [(with_it, name, smaller), (with_others, f"other than {name}", smaller)]
    return found


def rarest_caution(several: Iterable[Mapping[str, Any]], n_subjects: int) -> str:
    """Return the sentence for figures of several results, whose classes are given; empty where there is none.

    Parameters
    ----------
    several : iterable of mapping
        The classes of each result, as of :func:`class_notice`.
    n_subjects : int
        The fewest tested in any of them.
    """
    smaller = [of_two for classes in several for _, _, of_two in sides_of(classes)]
    fewest = min((n for n in smaller if n > 1), default=n_subjects)
    if n_subjects < 2 or fewest >= FEW_SUBJECTS or covered(fewest) >= covered(n_subjects) - 0.03:
        return ""
    return (
        f" Of the rarest class only {fewest} subjects have clips: intervals of such a class, and of means over it, "
        f"contain the true value about {100 * covered(fewest):.0f} times in 100."
    )
