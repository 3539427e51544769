"""What the label of a signal means, however it is spelled: which channel, and of which kind."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from sleepfm_fast.montage.montages import CHANNELS

__all__ = ["Name", "canonical", "fits", "is_unknown", "kind_of", "matched_as", "numbered_contacts", "unaccented"]

# 10-20 names that changed (T3 -> T7 and so on) and the two names of the mastoid reference.
RENAMED = {"a1": "m1", "a2": "m2", "t3": "t7", "t4": "t8", "t5": "p7", "t6": "p8"}
ELECTRODE = re.compile(r"(?:fp|af|fc|ft|cp|tp|po|f|c|t|p|o)(?:10|[1-9]|z)|[ni]z|[am][12]|e[12]|pg[12]")
PREFIX = re.compile(r"(eeg|eog|ecg|ekg|emg|resp|resp\.|respiration)[\s_.:/(-]+(?=\S)")
CONTACT = re.compile(r"(?P<letter>[A-Z])'?(?P<number>[1-9]|[12][0-9]|3[0-2])")
LAST_OF_LETTER = {"A": 2, "C": 10, "E": 2, "F": 10, "M": 2, "O": 2, "P": 10, "T": 10}
"""The highest number that an electrode of the 10-20 system, its extensions or the AASM has behind a single letter."""
CONTACTS_OF_LETTER, MANY_CONTACTS = 4, 16
"""Of two letters or more: X1 to X22 alone are the spare inputs of a headbox, beside electrodes of the 10-20 system."""
DEVICE = re.compile(r"^(?:psg|pol)[\s_.:/-]+(?=\S)")
"""What says nothing of the signal: ``PSG_F3`` beside a headband's channels (BOAS), ``POL SpO2`` (Nihon Kohden)."""
INPUT = re.compile(r"^dc ?\d{1,2}[\s_.:/-]+(?=\S)|(?<![\s_.:/-])[\s_.:/-]+dc ?\d{1,2}$")
"""A socket of the headbox beside what is plugged into it (Nihon Kohden): ``Airflow DC01``, ``DC03 Thor``."""
PREFIXES = frozenset(("eeg", "eog", "ecg", "ekg", "emg", "resp", "respiration"))
"""Of a label such as ``EEG DC01`` the socket is all that it says."""
SOCKET = re.compile(r"dc ?\d{1,2}")
"""An input for other devices, such as an oximeter's; Nihon Kohden's exports put ``EEG`` before it too."""
# Each begins where a run begins: a search from every character of a long run takes time by the square of its length.
REFERENCE = re.compile(r"(?<![\s_.:/-])[\s_.:/-]+(?:ref|reference|le)\d*$")
UNIT_BEHIND = re.compile(r"(?<!\s)\s*[\[(]\s*(?:[numµμ]?v|%|bpm|cmh2o)\s*[\])]\s*$")
"""``EEG F3-M2 [uV]``: some exports write the unit into the label."""
BEHIND_EEG = ("eeg", "eog", "emg", "ecg")
"""Kinds that a label with the prefix ``EEG`` may be of: amplifiers' exports put it before all their potentials."""
KIND_OF_PREFIX = {
    **{"eeg": BEHIND_EEG, "eog": ("eog",), "ecg": ("ecg",), "ekg": ("ecg",), "emg": ("emg",)},
    **{"resp": ("respiration", "snore", "step"), "respiration": ("respiration", "snore", "step")},
}

AMBIGUOUS = re.compile(r"\b(?:lead|lat|rat)\b")
"""Words for an ECG's lead or a leg that mean something else in ``EEG lead 3``, ``EEG lat``."""
TECHNICAL = re.compile(r"(?:^| )(?:off|imp|impedance|quality)(?: |$)")
"""About an electrode, not from it, whatever the prefix says: MESA's ``EKG_Off`` tells whether it was connected."""
BELTS = r"(?:resp|rip|induct|tho|chest|abd|rib|belt)\w*"
# What a label says of its signal's kind, tried in this order on the words of the label. None: not a signal to learn
# from (scored, technical, or of no modality).
KIND_RULES: tuple[tuple[str | None, str], ...] = (
    ("step", r"(?:pulse?|plet\w*|heart|resp\w*|breath\w*|[ec][ck]g) ?rate|hr [ec][ck]g"),
    (None, r"hypnogram|stages?|status|trigger|trig|marker|events?|annotations?|epoch|scoring|lights?|photic|battery"),
    (None, r"imp|impedance|temp|temperature|rectal|position|pos|body|posture|activity|actigraphy|acc|accel\w*|gravity"),
    (None, r"[xyz] axis|elevation|ambient|humidity|unused|dc ?\d+|off|none|empty|ptt|rr|rri|phase|quality|bp|abp"),
    (None, r"video|camera|leak|tidal|derived|flow ?limit\w*|rmi|technical"),
    # Inductance plethysmography is a belt's; other plethysmography is the pulse wave of the oximeter's light.
    ("respiration", rf"{BELTS} (?:.* )?plet\w*|plet\w* (?:.* )?{BELTS}|atemgurt\w*"),
    (None, r"plet\w*|\w*pleth\w*|ppg\d*|(?:pulse?|sp ?o2) ?wave\w*|pulse? ?(?:amp\w*|transit)|pulswelle|onde de pouls"),
    (None, r"pwa|pat|(?:pulse?|oxi\w*) (?:.* )?(?:infra ?)?red"),
    # A device's flow is the airflow of a night under pressure (AASM); the pressure that it gives is a setting.
    ("respiration", r"(?:c|mask|[a-z]{0,2}pap) ?(?:pt |patient )?flow|flow [a-z]{0,2}pap"),
    (None, r"[a-z]{0,2}pap|(?:c|mask|set|[a-z]{0,2}pap) ?pres\w*"),
    ("emg", r"\w*emg\w*|[lrc]?chin\w*|submental\w*|mentalis|masseter|kinn|menton"),
    ("emg", r"[lr]?leg\w*|tib\w*|lat|rat|plm\w*|limb\w*|jambe\w*|bein\w*|[ds]x[12]|pernas?|piernas?|gamb[ae]"),
    ("emg", r"been (?:l|r|li|re|links|rechts)|(?:linker|rechter) ?been|ben (?:va\w*|ho\w*)|(?:vanster|hoger) ?ben"),
    ("eog", r"[hvlr]?eog\w*|(?:loc|roc|e[12])(?:[am][12]|fpz|cz|avg)?|pg[12]|pos8|pos18|(?:left|right|l|r) ?eye"),
    ("ecg", r"[ex]?[ec][ck]g\w*|ekg\w*|lead|cardio|electrocardiogramme|elektrokardiogramm"),
    ("snore", r"snor\w*|ronfl\w*|schnarch\w*|russ\w*|mic\w*|mikro\w*|sound|audio|larynx"),
    ("step", r"sp ?o2\w*|sa? ?o2\w*|o2 ?sat\w*|sat|sat o2|osat|saturat\w*|oxi\w*|oxym\w*|ossimetr\w*|sattigung"),
    ("step", r"(?:et|p?tcp?|p)co2|co2|capno\w*|pulse?|pulse ?rate|pr|hr|heart\w*|bpm|pouls|pols|\w*frequenz"),
    ("respiration", r"resp\w*|\w*flow\w*|air|therm\w*|termist\w*|nasal|oronasal|oro|pres|press|pressure|ptaf"),
    ("respiration", r"chest|tho\w*|thx|abd\w*|rip\w*|effort\w*|belt|rib\w*|sangle|bauch|brust\w*|flux|debit|naf"),
    ("respiration", r"can+ul\w*|npress|pes|sum|ripsum|xsum|esoph\w*|intercost\w*|diaphragm|atem\w*|vth|vto|vab"),
    ("respiration", r"torax|torac\w*|addom\w*|induct\w*|thrx|ther|can|adem\w*|luftstrom|pneumo\w*"),
    ("respiration", r"flux\w*|fluj\w*|fluss\w*|nasenfluss|nasenstrom|naseflod\w*|nasflod\w*"),
    ("eeg", r"eeg\w*"),
)


@dataclass(frozen=True)
class Name:
    """A label without its spelling: the key, and, where a prefix such as ``EEG`` was taken off, the kinds it allows."""

    key: str
    kinds: tuple[str, ...] = ()


def unaccented(text: str) -> str:
    """A text without case, accents and the blanks around it."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in plain if not unicodedata.combining(c)).strip()


@lru_cache(maxsize=65536)
def canonical(label: str) -> tuple[Name, ...]:
    """Reduce a label to names that do not depend on spelling, the fullest first.

    Case, accents, spaces and separators go; A1, A2, T3-T6 become M1, M2, T7, T8, P7, P8; a trailing ``-Ref`` or
    ``-LE`` goes; and a prefix such as ``EEG`` goes in the second name, which then only fits slots of that kind.
    """
    plain = unaccented(label.replace("μ", "u").replace("µ", "u"))
    plain = bare(plain)
    names = [Name(key(plain))]
    if match := PREFIX.match(plain):
        names.append(Name(key(plain[match.end() :]), KIND_OF_PREFIX[match[1].rstrip(".")]))
    return tuple(name for name in names if name.key)


def bare(plain: str) -> str:
    """An unaccented label without the device, the socket, the unit and the reference of an export."""
    plain = REFERENCE.sub("", UNIT_BEHIND.sub("", DEVICE.sub("", plain)))
    named = INPUT.sub("", plain, count=1)
    return plain if named in PREFIXES else named


def key(plain: str) -> str:
    """Join the words of a case-folded label; words made of electrode names get their present names."""
    return "".join(present_names(word) for word in re.findall(r"[a-z0-9+]+", plain))


def present_names(word: str) -> str:
    """``c3a2`` -> ``c3m2``; words that are not made of electrode names alone stay."""
    found = ELECTRODE.findall(word)
    if "".join(found) != word:
        return word
    return "".join(RENAMED.get(electrode, electrode) for electrode in found)


def fits(label: str, alias: str, kind: str) -> bool:
    """Whether a label is a spelling of an alias of a slot of some kind."""
    return matched_as(label, alias, kind) is not None


def matched_as(label: str, alias: str, kind: str) -> int | None:
    """0 where the whole label is a spelling of the alias, 1 where it is without its prefix, None where it is not."""
    wanted = canonical(alias)[0].key
    for place, name in enumerate(canonical(label)):
        if name.key == wanted and (not name.kinds or kind in name.kinds):
            return place
    return None


def kind_of(label: str) -> str | None:
    """Tell a signal's kind by its label; None where the label does not say, or names no signal to learn from."""
    return told_of(label)[0]


@lru_cache(maxsize=65536)
def is_unknown(label: str) -> bool:
    """Whether a label says neither a kind nor that its signal is none to learn from."""
    return told_of(label) == (None, False)


def told_of(label: str) -> tuple[str | None, bool]:
    """Kind that a label says, and whether it is understood."""
    plain = bare(unaccented(label))
    words = re.findall(r"[a-z0-9]+", plain)
    text = " ".join(words)
    if TECHNICAL.search(text):
        return None, True
    # A prefix that the standard texts of EDF+ define overrules what is behind it, EEG only what is no other potential.
    prefix, rest = (words[0], " ".join(words[1:])) if len(words) > 1 else ("", text)
    if prefix in ("eog", "ecg", "ekg", "emg"):
        return ("step" if rest in ("rate", "hr", "bpm") else KIND_OF_PREFIX[prefix][0]), True
    if prefix == "eeg":
        if SOCKET.fullmatch(rest):
            return None, True
        behind, _ = by_rules(AMBIGUOUS.sub("", rest))
        return (behind if behind in BEHIND_EEG else "eeg"), True
    kind, told = by_rules(text)
    if told:
        return kind, True
    # any pair of electrodes: C3-M2, Fp1A2, Cz
    if words and all("".join(ELECTRODE.findall(word)) == word or word in REFERENCES for word in words):
        return ("eeg" if any(ELECTRODE.match(word) for word in words) else None), True
    for slot in CHANNELS.values():
        if any(fits(label, alias, slot.kind) for alias in slot.aliases):
            return slot.kind, True
    return None, False


def numbered_contacts(labels: Iterable[str]) -> frozenset[str]:
    """Labels that number the contacts of a cap or of depth electrodes; none where they may be the 10-20 system's.

    A cap of BioSemi has A1 to A32, B1 to B32 and so on, an electrode in the brain A1 to A15: their A1 is no mastoid
    and their C3 no central electrode. They are told by the others, which the 10-20 system does not have.
    """
    found = {label: match for label in labels if (match := CONTACT.fullmatch(label.strip())) is not None}
    foreign = Counter(m["letter"] for m in found.values() if int(m["number"]) > LAST_OF_LETTER.get(m["letter"], 0))
    rows = [n for n in foreign.values() if n >= CONTACTS_OF_LETTER]
    return frozenset(found) if len(rows) > 1 and sum(rows) >= MANY_CONTACTS else frozenset()


def by_rules(text: str) -> tuple[str | None, bool]:
    """The kind that the first rule with one of the words of ``text`` tells, and whether there is such a rule."""
    for kind, rule in KIND_RULES:
        if re.search(rf"(?:^| )(?:{rule})(?: |$)", text):
            return kind, True
    return None, False


REFERENCES = frozenset(("avg", "ave", "ar", "av", "lm", "ref", "le", "g1", "g2", "gnd"))
