"""The words that name sleep stages and respiratory events."""

from __future__ import annotations

import pytest

from sleepfm_fast.scoring.stages import STAGE_OF_WORD, is_marker, perhaps_respiratory, respiratory_event_of, stage_of

STAGE_TEXTS = {
    "W": "W, Wake, Wake|0, 0, SlpStgWake, Sleep stage W, SDO:WakeState, SRO:Wake, Éveil, Wach, AWAKE",
    "N1": (
        "N1, S1, 1, Stage 1 sleep|1, Sleep stage 1, SRO:Stage1Sleep, NREM 1, nonrem1, 1.0, Stage N1, "
        "NonRapidEyeMovementSleep-N1"
    ),
    "N2": (
        "N2, S2, 2, Sleep stage N2, NREM stage 2, Stade 2, Schlafstadium 2, Non-REM 2, Stadium II, NREM II, "
        "NonRapidEyeMovementSleep-N2"
    ),
    "N3": (
        "N3, S3, S4, 3, 4, Stage 4 sleep|4, Sleep stage 3/4, SWS, Stage 3 sleep|3, Sleep stage 4, "
        "NonRapidEyeMovementSleep-N3"
    ),
    "R": (
        "R, REM, 5, REM sleep|5, SRO:RapidEyeMovement, Sleep stage R, Stage REM, Sommeil paradoxal, rem, "
        "RapidEyeMovementSleep-R"
    ),
    "none": (
        "?, Sleep stage ?, Movement time, M, MT, 6, 9, Unscored|9, Movement|6, Artifact, SP, undefined, UnknownStage, "
        "-1, -2, nan, Not scored, ART, UNS"
    ),
}


@pytest.mark.parametrize(
    ("stage", "text"), [(stage, text) for stage, texts in STAGE_TEXTS.items() for text in texts.split(", ")]
)
def test_stage_words(stage, text):
    assert stage_of(text) == stage_of(f"  {text}\t") == stage
    assert respiratory_event_of(text) is None


@pytest.mark.parametrize(
    ("stage", "text"),
    [("N1", "Stage I"), ("N3", "Stage IV"), ("N1", "Stage 1 (N1)"), ("N3", "N3 (SWS)"), ("R", "Stage R (REM)"),
     ("R", "REM-Schlaf"), ("N3", "Tiefschlaf"), ("none", "Movement (leg)"), (None, "Arousal (N2)"), (None, "Limb (W)")],
)  # fmt: skip
def test_roman_numbers_and_what_stands_in_brackets(stage, text):
    assert stage_of(text) == stage


@pytest.mark.parametrize("word", STAGE_OF_WORD)
def test_every_word_of_the_vocabulary_in_every_spelling(word):
    stage = STAGE_OF_WORD[word]
    texts = [word.upper(), f"Sleep stage {word}", f"stage_{word}", f"{word}|7"]
    # "3/4" is a stage, the number 34 is not
    for text in texts[word == "34" :]:
        assert stage_of(text) == stage, text


NO_STAGE_TEXTS = (
    "Stage, Sleep, Micro-éveil, Notification, Avertissement, Lights off, Lights on, Arousal, QRS, 10, Limb "
    "movement, SRO:SpO2Artifact, SRO:Arousal, Recording Start Time, Stages|Stages, Arousal|Wake, N12, Wake after "
    "sleep onset, R wave, 1.5, W LA, IV, II, Leichtschlaf, REM (phasic burst) 3"
)


@pytest.mark.parametrize("text", ["", *NO_STAGE_TEXTS.split(", ")])
def test_texts_that_are_no_stage(text):
    assert stage_of(text) is None


@pytest.mark.parametrize(
    ("text", "stage"),
    [("体位 1", None), ("灯光 0", None), ("Позиция 2", None), ("Позиция: R", None), ("清醒", "W"), ("清醒期", "W"),
     ("N2期", "N2"), ("1期", "N1"), ("快速眼动期", "R"), ("非快速眼动3期", "N3"), ("Стадия 2", "N2"),
     ("未分期", "none")],
)  # fmt: skip
def test_a_number_behind_letters_of_another_script_is_no_stage(text, stage):
    assert stage_of(text) == stage


@pytest.mark.parametrize(
    ("text", "event"),
    [("阻塞性呼吸暂停", "obstructive_apnea"), ("中枢性呼吸暂停", "central_apnea"), ("混合性呼吸暂停", "mixed_apnea"),
     ("低通气", "hypopnea"), ("呼吸暂停后觉醒", None), ("после apnea", None)],
)  # fmt: skip
def test_respiratory_words_of_another_script(text, event):
    assert respiratory_event_of(text) == event
    assert event is not None or perhaps_respiratory(text)


@pytest.mark.parametrize(
    ("text", "marker"),
    [("Movement", True), ("Movement (leg)", True), ("Artefact", True), ("?", False), ("9", False), ("W", False)],
)
def test_remarks_of_a_moment(text, marker):
    assert is_marker(text) == marker


@pytest.mark.parametrize(
    ("text", "event"),
    [("A. Obstructive", "obstructive_apnea"), ("A. Central", "central_apnea"), ("A. Mixed", "mixed_apnea"),
     ("H. Obstructive", "hypopnea"), ("H.Mixed", "hypopnea"), ("A. Obstrusive", None), ("Airway obstruction", None)],
)  # fmt: skip
def test_noxturnals_names_of_respiratory_events(text, event):
    assert respiratory_event_of(text) == event
    assert event is not None or perhaps_respiratory(text)


RESPIRATORY_TEXTS = {
    "obstructive_apnea": (
        "Obstructive Apnea, Obstructive apnea|Obstructive Apnea, SRO:ObstructiveApnea, Apnoea, resp_obstructiveapnea, "
        "apnea:obstructive, Apnée obstructive, Obstruktive Apnoe, Apnea, OA, Apnea Obstructive [A. O.], Obstructive "
        "apnea with arousal, Apneia obstrutiva, Apnea ostruttiva"
    ),
    "central_apnea": "Central Apnea, Central apnea|Central Apnea, resp_centralapnea, Apnée centrale, Zentrale Apnoe",
    "mixed_apnea": "Mixed Apnea, Mixed apnea|Mixed Apnea, resp_mixedapnea, Apnée mixte, Gemischte Apnoe",
    "hypopnea": (
        "Hypopnea, Hypopnea|Hypopnea, SRO:Hypopnea, resp_hypopnea, Hypopnée, Hypopnoe, Obstructive Hypopnea, Hypopnea "
        "(4%), Hypopnoea, Hypopnea with desaturation, hipopnea, Central hypopnea, hypopnea:obstructive, AASM Hypopnea, "
        "Hypopnea 12.5 s"
    ),
}


@pytest.mark.parametrize(
    ("event", "text"), [(event, text) for event, texts in RESPIRATORY_TEXTS.items() for text in texts.split(", ")]
)
def test_respiratory_words(event, text):
    assert respiratory_event_of(text) == event
    assert stage_of(text) is None
    if not text.startswith("SRO"):
        assert respiratory_event_of(text.upper()) == respiratory_event_of(text.lower()) == event


OTHER_TEXTS = (
    "RERA, Respiratory effort related arousal|RERA, SpO2 desaturation|SpO2 desaturation, Desaturation, Arousal, "
    "Post apnea arousal, no apnea, Apnea alarm, Unsure|Unsure, Arousal (Hypopnea), Periodic breathing, CPAP, "
    "arousal_rera, Apnea-hypopnea index, Snore, SRO:SpO2Desaturation, Arousal|Hypopnea, Obstructive, Hyperpnea"
)


@pytest.mark.parametrize("text", ["", *OTHER_TEXTS.split(", ")])
def test_texts_that_are_no_respiratory_event(text):
    assert respiratory_event_of(text) is None


@pytest.mark.parametrize("text", ["Ap. obs.", "Ap centrale", "Ap. obstr.", "Ap.Ob", "ObsA", "ap mixte"])
def test_an_abbreviation_with_a_type_needs_a_meaning(text):
    assert respiratory_event_of(text) is None
    assert perhaps_respiratory(text)
    assert not perhaps_respiratory("Apex")


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        *(("Vakenhet", "W"), ("REM-sömn", "R"), ("Sömnstadium 2", "N2"), ("N2-sömn", "N2"), ("Estágio 2", "N2")),
        *(("Estágio N3", "N3"), ("Estagio REM", "R"), ("Sueño N2", "N2"), ("Sono N1", "N1"), ("Sonno N2", "N2")),
        *(("Diepe slaap", "N3"), ("Slaapfase 1", "N1"), ("Sono", None), ("Somn", None)),
    ],
)
def test_stages_in_portuguese_swedish_and_dutch(text, stage):
    assert stage_of(text) == stage
