"""The split of the subjects, by a hash of the subject's name, so that adding nights moves no subject."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sleepfm_fast.plurals import counted

__all__ = ["SPLITS", "Split", "assign_subjects", "draw_subjects"]

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """The splitting rule; it is stored with a run, so every later command splits the same way."""

    salt: str = "sleepfm_fast"
    """Text hashed with every subject; another salt is another split."""
    validation: float = 0.1
    """Expected share of the subjects for validation."""
    test: float = 0.2
    """Expected share of the subjects for testing."""

    def rule(self) -> str:
        """Return the rule in words."""
        return (
            f"subjects by SHA-256 of '{self.salt}/<subject>' mapped to [0, 1): below {self.test:g} test, below "
            f"{self.test + self.validation:g} validation, else train"
        )


def hash_fraction(salt: str, subject: str) -> float:
    """Map a subject to [0, 1), the same on every machine."""
    digest = hashlib.sha256(f"{salt}/{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_subjects(
    subjects: Sequence[str], split: Split, known: Mapping[str, int] | None = None
) -> tuple[npt.NDArray[np.int8], tuple[str, ...]]:
    """Assign each subject to a split.

    Parameters
    ----------
    subjects : sequence of str
        Distinct subject names.
    split : Split
        The rule.
    known : mapping of str to int, optional
        Subjects whose split is fixed, such as those of a run's training, as index into :data:`SPLITS`. They keep it, so
        that a subject which the encoder has seen never becomes a test subject.

    Returns
    -------
    codes : int8 array [n_subjects]
        Index into :data:`SPLITS`; -1 for every subject when there is only one (its clips serve all three purposes).
    notices : tuple of str
        Sentences the user must see. In a cohort so small that the hash leaves a split empty, the subject nearest to
        that split is moved into it; that assignment may change as subjects are added, and the notice says so.
    """
    if len(subjects) == 1:
        return np.full(1, -1, np.int8), (
            f"there is only one subject ({subjects[0]}): the same clips serve for training, validation and testing, "
            "so every figure describes memorisation, not generalisation.",
        )
    fractions = np.array([hash_fraction(split.salt, s) for s in subjects])
    codes = np.where(fractions < split.test, 2, np.where(fractions < split.test + split.validation, 1, 0)).astype(
        np.int8
    )
    if len(subjects) == 2:
        codes[codes == 1] = 0
    known = known or {}
    for i, subject in enumerate(subjects):
        codes[i] = known.get(subject, codes[i])
    movable = [int(i) for i in np.argsort(fractions, kind="stable") if subjects[i] not in known]
    notices = []
    shares = (1.0, split.validation if len(subjects) > 2 else 0.0, split.test)
    for code in (2, 0, 1):
        if shares[code] == 0 or (codes == code).any():
            continue
        # Move the subject of the largest split that can spare one whose hash is nearest to the empty split.
        donors = [c for c in range(3) if (codes == c).sum() > 1 and any(codes[i] == c for i in movable)]
        if not donors:
            notices.append(
                f"the {SPLITS[code]} split has none of the {counted(len(subjects), 'subject')}, and none can be moved "
                "there: those the run was trained with keep their split."
            )
            continue
        donor = max(donors, key=lambda c: int((codes == c).sum()))
        candidates = [i for i in movable if codes[i] == donor]
        chosen = candidates[0] if code > donor else candidates[-1]
        codes[chosen] = code
        notices.append(
            f"the hash gave the {SPLITS[code]} split none of the {counted(len(subjects), 'subject')}; "
            f"{subjects[chosen]} was moved there. In a cohort this small the splits may change when subjects are added."
        )
    if len(subjects) == 2:
        notices.append(
            "there are only two subjects: the training subject also serves for validation, so that what validation "
            "chooses, as the best checkpoint, is chosen on training clips."
        )
    return codes, tuple(notices)


def draw_subjects(subjects: Sequence[str], n: int, replicate: int = 0) -> tuple[str, ...]:
    """Draw ``n`` subjects for a few-shot or a pretraining-size experiment.

    Draws are nested, as if a cohort grew: the subjects of a smaller ``n`` are among those of a larger one of the same
    replicate. A hash decides, so that the draw is the same on every machine and changes little when subjects are added
    to the cohort.

    Parameters
    ----------
    subjects : sequence of str
        The subjects to draw from, such as the training subjects.
    n : int
        How many to draw; all of them where there are fewer.
    replicate : int
        Number of the draw; each number gives another one.

    Returns
    -------
    tuple of str
        In the order of the draw.
    """
    return tuple(sorted(subjects, key=lambda subject: (hash_fraction(f"draw {replicate}", subject), subject))[:n])
