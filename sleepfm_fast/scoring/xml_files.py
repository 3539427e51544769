"""Scoring in XML: NSRR ``PSGAnnotation``, Compumedics Profusion ``CMPStudyConfig``, Philips Sleepware ``PatientStudy``.

Source: the NSRR's description of its annotation files and samples of its EDF editor and translator.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.clock import number
from sleepfm_fast.scoring.stages import EPOCH_S, respiratory_event_of, stage_of
from sleepfm_fast.scoring.timed_texts import Event, Scoring, ScoringError

__all__ = ["parse_xml"]

# Expat's codes for an invalid token, an unknown encoding and an encoding declared incorrectly.
WRONG_ENCODING = (4, 18, 19)


def parse_xml(data: bytes, source: str) -> Scoring:
    """Read the bytes of a ``PSGAnnotation``, ``CMPStudyConfig`` or ``PatientStudy`` document.

    Raises
    ------
    ScoringError
        When the document is malformed, declares a document type or entities, or is of another kind.
    """
    issues: list[str] = []
    root = document(data, source, issues)
    kind = name_of(root)
    if kind == "PSGAnnotation":
        events = [*scored_events(root, ("EventConcept", "Name", "EventType"), issues)]
    elif kind == "CMPStudyConfig":
        events = [*scored_events(root, ("Name", "EventConcept"), issues), *profusion_stages(root, source, issues)]
    elif kind == "PatientStudy":
        events = [*sleepware_stages(root, source, issues), *sleepware_events(root, issues)]
    else:
        raise ScoringError(
            f"{source} is an XML document <{kind[:60]}>; expected the annotations of the NSRR (<PSGAnnotation>), of "
            "Profusion (<CMPStudyConfig>) or of Sleepware (<PatientStudy>). Convert it to one of these or to a CSV "
            "with the columns onset, duration, description."
        )
    if not any(stage_of(event.text) or respiratory_event_of(event.text) for event in events):
        issues.append(
            f"{source} holds {counted(len(events), 'event')}, none of which is a sleep stage or a respiratory event."
        )
    return Scoring(tuple(events), source, tuple(issues), events_scored=True)


def name_of(element: Element) -> str:
    """Tag without a namespace prefix."""
    return element.tag.rsplit(":", 1)[-1]


def document(data: bytes, source: str, issues: list[str]) -> Element:
    """Parse without ever reading a document type: entities could expand without bound or name other files."""
    reason = ""
    for encoding in (None, "utf-8", "iso-8859-1"):
        builder = TreeBuilder()
        parser = expat.ParserCreate(encoding)
        parser.buffer_text = True
        parser.StartElementHandler = builder.start
        parser.EndElementHandler = builder.end
        parser.CharacterDataHandler = builder.data

        def refuse(*_: object) -> None:
            raise ScoringError(
                f"{source} declares a document type (<!DOCTYPE>), which scoring files do not have and which could pull "
                "in other files. Remove the declaration if you trust the file."
            )

        parser.StartDoctypeDeclHandler = refuse
        try:
            parser.Parse(data, True)
        except (LookupError, ValueError) as error:
            # an encoding that does not exist, or that the parser cannot take
            reason, declared_wrongly = str(error), True
        except expat.ExpatError as error:
            reason = f"{expat.ErrorString(error.code)} in line {error.lineno}, column {error.offset + 1}"
            declared_wrongly = error.code in WRONG_ENCODING
        else:
            if encoding is not None:
                issues.append(f"{source} is not in the encoding that it declares; it was read as {encoding}.")
            return builder.close()
        if not declared_wrongly:
            break
    raise ScoringError(f"{source} is not well-formed XML: {reason}. Was the file transferred whole?")


def child_text(element: Element, *names: str) -> str | None:
    """Text of the first child that has one of the names, tried in their order."""
    for name in names:
        for child in element:
            if name_of(child) == name and child.text and child.text.strip():
                return child.text.strip()
    return None


def scored_events(root: Element, names: tuple[str, ...], issues: list[str]) -> Iterator[Event]:
    """Every ``ScoredEvent`` with a start; its text is the first of ``names`` that it has."""
    n_timeless = 0
    for element in root.iter():
        if name_of(element) != "ScoredEvent":
            continue
        onset_s = number(child_text(element, "Start") or "")
        text = child_text(element, *names)
        if onset_s is None or text is None:
            n_timeless += 1
            continue
        yield Event(onset_s, number(child_text(element, "Duration") or ""), text)
    say_timeless(n_timeless, issues)


def say_timeless(n_timeless: int, issues: list[str]) -> None:
    """Count the events that could not be used."""
    if n_timeless:
        events = counted(n_timeless, "scored event has", "scored events have")
        were = agreeing(n_timeless, "was", "were")
        issues.append(f"{events} no name or no readable start and {were} left out.")


def profusion_stages(root: Element, source: str, issues: list[str]) -> Iterator[Event]:
    """``SleepStages``: one code an epoch, from the recording's start."""
    epoch_s = number(child_text(root, "EpochLength") or "")
    if epoch_s is None or epoch_s <= 0:
        epoch_s = float(EPOCH_S)
        issues.append(f"{source} states no epoch length; {EPOCH_S} s was taken.")
    n_unknown = 0
    epoch = 0
    for element in root.iter():
        if name_of(element) != "SleepStage":
            continue
        text = (element.text or "").strip()
        n_unknown += stage_of(text) is None
        # The code is a stage of the R&K set; the prefix keeps it apart from the events' texts.
        yield Event(epoch * epoch_s, epoch_s, f"Sleep stage {text}")
        epoch += 1
    if n_unknown:
        issues.append(
            f"{n_unknown} of {counted(epoch, 'sleep stage code')} {agreeing(n_unknown, 'is', 'are')} not known; "
            f"{agreeing(n_unknown, 'that epoch has', 'those epochs have')} no stage."
        )


def sleepware_stages(root: Element, source: str, issues: list[str]) -> Iterator[Event]:
    """Changes of stage by a scorer, or else by the software: ``<Stage Type="NonREM2" Start="960"/>``."""
    blocks = {name_of(element): element for element in root.iter() if name_of(element).endswith("Staging")}
    by_scorer, by_software = (
        [e for e in (blocks[name].iter() if name in blocks else ()) if name_of(e) == "Stage"]
        for name in ("UserStaging", "MachineStaging")
    )
    if by_software and not by_scorer:
        issues.append(f"{source} has no stages of a scorer; those of the software were taken.")
    for element in by_scorer or by_software:
        if (onset_s := number(element.get("Start", ""))) is not None:
            yield Event(onset_s, None, f"Sleep stage {element.get('Type', '?')}")


def sleepware_events(root: Element, issues: list[str]) -> Iterator[Event]:
    """``<Event Family="Respiratory" Type="ObstructiveApnea" Start="3011.5" Duration="16.5"/>``."""
    n_timeless = 0
    for element in root.iter():
        text = element.get("Type") if name_of(element) == "Event" else None
        if text is None:
            continue
        onset_s = number(element.get("Start", ""))
        n_timeless += onset_s is None
        if onset_s is not None:
            yield Event(onset_s, number(element.get("Duration", "")), text)
    say_timeless(n_timeless, issues)
