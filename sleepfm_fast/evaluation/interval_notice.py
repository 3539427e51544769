"""What to say of intervals that rest on few subjects: they are narrower than they claim to be."""

from __future__ import annotations

import math

__all__ = ["FEW_SUBJECTS", "covered", "interval_caution", "interval_notice"]

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
        f"with {n_subjects} subjects the intervals are too narrow: of a mean they hold the truth about "
        f"{100 * covered(n_subjects):.0f} times in 100, not 95."
    )
