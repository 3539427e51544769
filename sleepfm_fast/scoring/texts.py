"""The meaning of a scoring's texts that the vocabulary lacks: words that the user explains, ambiguous numbers."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted, first_of
from sleepfm_fast.scoring.stages import (
    EPOCH_S,
    LONGEST_NAME,
    fold,
    other_letters,
    perhaps_respiratory,
    respiratory_event_of,
    stage_of,
)
from sleepfm_fast.scoring.timed_texts import Event, Scoring

__all__ = ["asks_meaning", "parse_meanings", "stated", "told_apart", "translated", "unknown_texts"]

MEANINGS = {
    **{stage.casefold(): f"Sleep stage {stage}" for stage in ("W", "N1", "N2", "N3", "R")},
    **{"none": "Sleep stage ?", "apnea": "Apnea", "apnoea": "Apnea", "hypopnea": "Hypopnea", "hypopnoea": "Hypopnea"},
    "ignore": "",
}
"""The meanings that ``--meanings`` may give a text, and the text of the vocabulary that replaces it."""
NUMBER = re.compile(r"[+-]?\d{1,9}(?:\.0+)?")
TEXTS_SHOWN = 6
WHOLE_S = 3600.0
"""Numbers are compared with a typical night if they cover an hour or more; a shorter piece may hold any stages."""


def parse_meanings(stated: Sequence[str]) -> dict[str, str]:
    """Parse meanings such as ``4=R`` and ``Leichtschlaf=N2`` into the text's key and the text that replaces it.

    Raises
    ------
    SleepfmError
        When one is not of that form or none of the choices, or when a text is given two meanings.
    """
    meanings: dict[str, str] = {}
    for item in stated:
        text, equals, meaning = item.rpartition("=")
        stage = stage_of(meaning.strip()) if re.search(r"[a-z]", meaning, re.IGNORECASE) else None
        wanted = MEANINGS.get(meaning.strip().casefold(), None if stage in (None, "none") else f"Sleep stage {stage}")
        if not equals or not key_of(text) or wanted is None:
            raise SleepfmError(
                f"--meanings '{item}' is not understood; expected TEXT=MEANING, such as 4=R or 'light sleep=N2', "
                "with one of: W, N1, N2, N3, R, none (not scored), apnea, hypopnea, ignore."
            )
        if meanings.setdefault(key_of(text), wanted) != wanted:
            raise SleepfmError(f"--meanings gives '{text}' two meanings; keep one.")
    return meanings


def stated(meanings: Mapping[str, str]) -> list[str]:
    """Undo :func:`parse_meanings`: return ``TEXT=MEANING`` for each, where TEXT is the key."""
    names = {wanted: name.upper() if len(name) < 3 else name for name, wanted in reversed(MEANINGS.items())}
    return [f"{text}={names.get(wanted, wanted)}" for text, wanted in meanings.items()]


def key_of(text: str) -> str:
    """Return the form in which texts are compared: letters and digits only, or a number's value with its sign."""
    stripped = text.strip()
    if NUMBER.fullmatch(stripped):
        return str(int(float(stripped)))
    return (
        stripped.casefold() if other_letters(stripped.replace("ß", "ss")) else fold(stripped)
    ) or stripped.casefold()


def translated(scoring: Scoring, meanings: Mapping[str, str]) -> Scoring:
    """Replace the texts that were given a meaning, and drop the events to be ignored."""
    if not meanings:
        return scoring
    events = []
    for event in scoring.events:
        text = meanings.get(key_of(event.text), event.text)
        if text:
            events.append(replace(event, text=text) if text != event.text else event)
    return replace(scoring, events=tuple(events))


def told_apart(events: Sequence[Event], source: str, issues: list[str]) -> Sequence[Event]:
    """Turn numbers into "not scored" where they may follow another convention than Rechtschaffen and Kales' codes.

    Those codes begin with 0 for wake and end with 4 (S4, which is N3) and 5 (REM). AASM codes have no S4, and in much
    software 4 is REM: a 4 without any 5 may be either. Other conventions count from 1, count backwards, or place REM
    elsewhere; they show in that the sequence, read by the codes, looks like no night.
    """
    numbered = [event for event in events if NUMBER.fullmatch(event.text.strip())]
    codes = [int(float(event.text)) for event in numbered]
    there = Counter(codes)
    doubt = unlike_a_night(codes, sum(event.duration_s or EPOCH_S for event in numbered))
    if doubt:
        known = " ".join(f"{code}=..." for code in sorted(there) if stage_of(str(code)) not in (None, "none"))
        issues.append(
            f"{source} writes stages as numbers, and {doubt}: they can hardly be 0 for W, 1 to 4 and 5 for REM, so "
            f"none of them got a stage. Say what each means, as with --meanings {known} (W, N1, N2, N3, R or none)."
        )
        return unstaged(events, set(there))
    by_word = any(stage_of(e.text) == "R" and (not e.duration_s or e.duration_s >= EPOCH_S / 2) for e in events)
    if not there[4] or there[5] or by_word:  # where REM has a word, and is no burst of eye movements, 4 is S4
        return events
    issues.append(
        f"{source} writes stages as numbers, with a 4 ({counted(there[4], 'time')}) and no 5: 4 may be S4 or REM, so "
        "those epochs got no stage. Say which with --meanings 4=R or --meanings 4=N3."
    )
    return unstaged(events, {4})


def unstaged(events: Sequence[Event], codes: Collection[int]) -> Sequence[Event]:
    """Return the events with those whose text is one of the numbers ``codes`` as not scored."""
    return [
        replace(e, text="Sleep stage ?") if NUMBER.fullmatch(e.text.strip()) and int(float(e.text)) in codes else e
        for e in events
    ]


def unlike_a_night(codes: Sequence[int], lasting_s: float) -> str:
    """Say in what respect stages as numbers, in temporal order, are unlike a night; empty if in none."""
    scored = [code for code in codes if 0 <= code <= 5]
    changes = [(a, b) for a, b in itertools.pairwise(scored) if a != b]
    before_rem = Counter(a for a, b in changes if b == 5)
    from_deep, entered = before_rem[3] + before_rem[4], sum(before_rem.values())
    if entered >= 2 and 2 * from_deep > entered:
        return f"5 comes behind 3 or 4 in {from_deep} of {entered} places, as REM does not"
    if not scored or lasting_s < WHOLE_S:
        return ""
    runs = Counter(code for code, _ in itertools.groupby(scored))
    ones, twos = (scored.count(code) / max(runs[code], 1) for code in (1, 2))
    if 4 in runs and 5 not in runs and ones > 2 * twos:
        return f"1 lasts {ones:.3g} epochs at a time and 2 lasts {twos:.3g}, as REM and N1 do and N1 and N2 do not"
    if 0 not in scored:
        return f"none of {len(scored)} is a 0, and no night is without wake"
    return "the first is a 5, and no night begins with REM" if scored[0] == 5 else ""


def asks_meaning(issue: str) -> bool:
    """Whether a remark on a night asks for ``--meanings``."""
    return "--meanings" in issue


def unknown_texts(events: Sequence[Event], issues: list[str]) -> None:
    """Make remarks on texts that look like a stage or a respiratory event but are known as neither.

    What a text about breathing without a duration is depends on the other respiratory events. Where these have
    durations, it is a remark of the technician, and is only mentioned. Where none has, it may be an event like them,
    and the user is asked for its meaning.
    """
    unstaged: Counter[str] = Counter()
    breathing: Counter[str] = Counter()
    moments: Counter[str] = Counter()
    timed = False
    stages = [event for event in events if stage_of(event.text) is not None]
    begun_s = [event.onset_s for event in stages]
    grid = {event.onset_s % EPOCH_S for event in stages}
    for event in events:
        duration_s = event.duration_s or 0.0
        lasts = duration_s > 0 and math.isfinite(duration_s)
        respiratory = respiratory_event_of(event.text) is not None
        timed |= respiratory and lasts
        if respiratory or stage_of(event.text) is not None or len(event.text) > LONGEST_NAME:
            continue
        whole_epochs = bool(event.duration_s) and duration_s % EPOCH_S == 0
        before = bisect.bisect_right(begun_s, event.onset_s) - 1
        stage = stages[before] if before >= 0 else None
        staged = stage is not None and (not stage.duration_s or stage.onset_s + stage.duration_s > event.onset_s)
        if whole_epochs and not staged and event.onset_s % EPOCH_S in grid:
            unstaged[event.text] += 1
        elif (duration_s >= 10 or not lasts) and perhaps_respiratory(event.text):
            (breathing if lasts else moments)[event.text] += 1
    asked = [
        (unstaged, "are as long as epochs and name no sleep stage that is known", "N2"),
        (breathing, "seem to be respiratory events and are not known as such", "hypopnea"),
    ]
    if not timed:
        asked.append((moments, "seem to be respiratory events without a duration and are not known as such", "apnea"))
    for found, what, example in asked:
        if found:
            first = found.most_common(1)[0][0]
            if example != "N2" and (named := re.search(r"hyp|apn(o?e|é|ö)", first, re.IGNORECASE)):
                example = "hypopnea" if named[0].lower() == "hyp" else "apnea"
            issues.append(
                f"texts that {what}: {listed(found)}. Say what they mean, as with --meanings '{first}={example}'."
            )
    if timed and moments:
        issues.append(
            f"texts about breathing without a duration, beside respiratory events that have one: {listed(moments)}. "
            "They were taken for remarks; if they are events, give them a meaning."
        )


def listed(found: Counter[str]) -> str:
    """List the most frequent texts with their counts."""
    return first_of([f"'{text}' ({n})" for text, n in found.most_common()], TEXTS_SHOWN)
