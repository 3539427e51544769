"""Whose recording a header says it is: what two nights of one person have in common whatever their files are called."""

from __future__ import annotations

import hashlib
import re

__all__ = ["patient_key"]

ANONYMOUS = {
    "anon", "anonym", "anonymized", "anonymised", "anonymous", "deidentified", "none", "null", "na", "nn", "noname",
    "patient", "test", "unknown", "unbekannt",
}  # fmt: skip


def patient_key(file_format: str, field: str) -> str:
    """Digest of the patient that a header names; empty where it names nobody.

    In EDF+ and BDF+ that is the code, the first of the field's four parts: where it is X, the name is seldom one
    (Sleep-EDF has ``X F X Female_33yr``). In plain EDF the whole field counts. A text without a digit is as often
    an abbreviation, or a word for nobody, as a name: it counts from six letters on.
    """
    text = " ".join(field.casefold().split())
    if file_format not in ("EDF", "BDF") or text.startswith("x "):
        text = text.partition(" ")[0]
    letters = re.sub(r"[\W_]+", "", text)
    nobody = not letters.strip("x0") or letters in ANONYMOUS
    # A sex and an age, with words for them, are those of many.
    if nobody or re.fullmatch(r"x*[mf]?(?:ale|emale)?x*\d{0,3}(?:y|yr|yrs|years)?x*", letters):
        return ""
    if not re.search(r"\d", letters) and len(letters) < 6:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
