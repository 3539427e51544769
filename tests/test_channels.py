"""Channel names, montages, units."""

import dataclasses
import itertools
import json
import os
import random
from fractions import Fraction
from pathlib import Path

import pytest

from sleepfm_fast.channels import (
    KINDS,
    MODALITIES,
    MONTAGES,
    ChannelError,
    Montage,
    assign,
    canonical,
    channel_of,
    fits,
    kind_of,
    resolve_auto,
    unassigned,
    unit_of,
)
from sleepfm_fast.edf import Signal
from sleepfm_fast.montage.montages import CHANNELS
from sleepfm_fast.montage.slots import MODALITY_OF_KIND

DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def signal(label: str, index: int = 0, *, unit: str = "uV", top: float = 500.0, fs_hz=100, calibrated: bool = True):
    return Signal(
        index=index,
        label=label,
        unit=unit,
        transducer="",
        prefilter="",
        physical_min=-top,
        physical_max=top,
        digital_min=-2048,
        digital_max=2047,
        samples_per_record=int(fs_hz),
        offset_bytes=0,
        fs_hz=Fraction(fs_hz),
        gain=2 * top / 4095,
        offset=0.0,
        calibrated=calibrated,
    )


def signals(*labels: str, **options) -> list[Signal]:
    return [signal(label, i, **options) for i, label in enumerate(labels)]


def filled_by(labels, montage: str) -> dict[str, str]:
    found = assign(signals(*labels), MONTAGES[montage])
    return {
        a.slot.name: a.signal.label + (f" - {a.minus.label}" if a.minus else "") for a in found if a.signal is not None
    }


SPELLINGS = {
    "C4-M1": ["C4-A1", "c4/m1", "EEG C4-A1", "C4A1", "C4 M1", "C4_M1", "EEG C4:M1", "EEG(C4-A1)", "C4.A1", "EEG_C4-M1"],
    "C3-M2": ["EEG C3-A2-Ref", "c3-a2", "C3M2-LE"],
    "E1": ["LOC", "E1-M2", "LOC-A2", "EOG(L)", "EOG-L", "EOG left", "EOG L", "E1-A2", "LOC-M2"],
    "E2": ["ROC", "E2-M1", "ROC-A1", "EOG(R)", "E2-M2", "EOG Right", "EOG rechts"],
    "Chin EMG": ["EMG", "EMG submental", "Chin1-Chin2", "CHIN", "EMG Chin", "chin emg", "EMG1-EMG2", "Lchin-Rchin"],
    "ECG": ["EKG", "ECG", "ECG I", "ECG II", "EKG1-EKG2", "ecg", "ECG1-ECG2", "ECG EKG", "ECG L-ECG R"],
    "Thermal Flow": ["Flow", "AIRFLOW", "Resp oro-nasal", "NEW AIR", "Airflow", "Therm", "ORONASAL", "Débit"],
    "Nasal Pressure": ["Pres", "NasalPressure", "PTAF", "Nasal Pres", "N-Press", "Resp nasal pressure", "CannulaFlow"],
    "Chest": [
        "Thor",
        "THO",
        "Chest",
        "THOR RES",
        "Thorax",
        "Resp chest",
        "THX",
        "RIP Thorax",
        "Resp Thorax",
        "Thoracic",
    ],
    "Abdomen": [
        "Abdo",
        "ABD",
        "Resp abdomen",
        "ABDO RES",
        "RIP Abdomen",
        "Abdominal",
        "ABDM",
        "Bauch",
    ],
    "Snore": ["SNORE", "Snoring", "Mic", "Ronflement", "Schnarchen"],
    "SpO2": ["SaO2", "SpO2", "SAO2", "OSAT", "SpO2-", "O2 Sat", "Resp SpO2"],
    "Pulse Rate": ["HR", "PR", "H.R.", "Pulse", "PULSE RATE", "Pouls", "Puls"],
}


@pytest.mark.parametrize(("slot", "label"), [(slot, label) for slot, many in SPELLINGS.items() for label in many])
def test_names_that_cohorts_use(slot, label):
    assert filled_by([label], "aasm") == {slot: label}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A1", "M1"),
        ("A2", "M2"),
        ("T3", "T7"),
        ("T4", "T8"),
        ("T5", "P7"),
        ("T6", "P8"),
        ("T3-A2", "t7 m2"),
        ("T5O1", "P7-O1"),
    ],
)
def test_renamed_electrodes(old, new):
    assert canonical(old)[0] == canonical(new)[0]


def test_spelling_does_not_make_channels_equal():
    names = [
        "C3-M2",
        "C4-M1",
        "C3-M1",
        "Fz-Cz",
        "Fpz-Cz",
        "Cz",
        "F3",
        "Fp1",
        "O2",
        "SpO2",
        "T3",
        "T4",
        "ECG1",
        "ECG2",
        "EMG1",
    ]
    assert len({canonical(name)[0].key for name in names}) == len(names)


@pytest.mark.parametrize(
    ("label", "channel"),
    [("EEG F3-M2 [uV]", ("F3-M2", "eeg")), ("C4-A1 (µV)", ("C4-M1", "eeg")), ("ECG (mV)", ("ECG", "ecg")),
     ("SaO2 [%]", ("SpO2", "step")), ("Pulse (bpm)", ("Pulse Rate", "step")), ("EOG (R)", ("E2", "eog"))],
)  # fmt: skip
def test_a_unit_behind_a_label_is_no_part_of_the_name(label, channel):
    assert channel_of(label) == channel


def test_a_prefix_ties_a_label_to_its_kind():
    assert fits("EMG chest", "chest", "emg")
    assert not fits("EMG chest", "chest", "respiration")
    assert filled_by(["EMG chest"], "aasm") == {}
    assert filled_by(["O2-M1"], "aasm") == {"O2-M1": "O2-M1"}
    assert kind_of("O2-M1") == kind_of("O2") == "eeg"


@pytest.mark.parametrize("montage", MONTAGES.values(), ids=MONTAGES.keys())
def test_every_alias_fills_its_own_slot_and_no_other(montage):
    for slot in montage.slots:
        for alias in slot.aliases:
            filled = [a for a in assign([signal(alias)], montage) if a.signal is not None]
            assert [a.slot.name for a in filled] == [slot.name], alias
            assert filled[0].issues == (), alias
            exact = [s.name for s in montage.slots if any(fits(alias, other, s.kind) for other in s.aliases)]
            assert exact == [slot.name], alias


@pytest.mark.parametrize(
    ("label", "slot"),
    [
        ("EOG li", "E1"),
        ("EOG_RE", "E2"),
        ("Auge rechts-M1", "E2"),
        ("Nasaldruck", "Nasal Pressure"),
        ("STAUDRUCK", "Nasal Pressure"),
    ],
)
def test_german_short_forms(label, slot):
    names = [name for name, s in CHANNELS.items() if any(fits(label, alias, s.kind) for alias in s.aliases)]
    assert names == [slot]


@pytest.mark.parametrize("slot", CHANNELS.values(), ids=CHANNELS.keys())
def test_the_kind_of_every_alias(slot):
    assert {alias: kind_of(alias) for alias in slot.aliases} == dict.fromkeys(slot.aliases, slot.kind)


@pytest.mark.parametrize(
    ("name", "brain", "ecg", "respiratory"), [("paper", 10, 2, 7), ("cinc2018", 5, 1, 3), ("aasm", 9, 1, 7)]
)
def test_montages(name, brain, ecg, respiratory):
    montage = MONTAGES[name]
    assert [m.name for m in montage.modalities] == list(MODALITIES) == ["respiratory", "brain", "ecg"]
    assert [len(m.slots) for m in montage.modalities] == [respiratory, brain, ecg]
    assert montage.slots == tuple(slot for m in montage.modalities for slot in m.slots)
    assert len({slot.name for slot in montage.slots}) == len(montage.slots)
    for modality in montage.modalities:
        assert {MODALITY_OF_KIND[slot.kind] for slot in modality.slots} == {modality.name}
    assert Montage.from_dict(json.loads(json.dumps(montage.to_dict()))) == montage


def test_cinc2018_has_the_order_of_the_demonstration():
    names = [slot.name for slot in MONTAGES["cinc2018"].slots]
    assert names == ["CHEST", "SaO2", "ABD", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2", "ECG"]
    recorded = [
        *("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2"),
        *("Chin1-Chin2", "ABD", "CHEST", "AIRFLOW", "SaO2", "ECG"),
    ]
    assert filled_by(recorded, "cinc2018") == {name: name for name in names}


def test_paper_montage_takes_its_own_labels():
    brain = ["M1", "Fp1", "Fz", "Fp2", "M2", "C3", "C4", "O1", "O2", "E1"]
    recorded = [f"{e}-Cz" for e in brain] + ["EKG_L-Cz", "EKG_R-Cz"]
    recorded += ["Snore", "Nasal Pressure", "Oral Therm", "Chest", "Abd", "SpO2", "Pulse Rate"]
    assert sorted(filled_by(recorded, "paper").values()) == sorted(recorded)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("name"),
        lambda d: d["modalities"].reverse(),
        lambda d: d["modalities"][0]["slots"][0].update(kind="meg"),
        lambda d: d["modalities"][0]["slots"].append(d["modalities"][0]["slots"][0]),
        lambda d: d["modalities"][0].update(name="lungs"),
        lambda d: d["modalities"][0].update(slots=3),
        lambda d: d["modalities"][1]["slots"][0].update(derivations=[["C3", ""]]),
        lambda d: d["modalities"][1]["slots"][0].update(substitutes=[" "]),
        lambda d: d["modalities"][1]["slots"][0].update(aliases=[""]),
    ],
)
def test_damaged_montage_is_refused(damage):
    plain = MONTAGES["aasm"].to_dict()
    damage(plain)
    with pytest.raises(ChannelError):
        Montage.from_dict(plain)


def test_derivation_needs_both_electrodes_at_one_rate_and_unit():
    assert filled_by(["C3", "A2", "C4"], "aasm") == {"C3-M2": "C3 - A2", "C4-M1": "C4"}
    both = [signal("C3", 0), signal("M2", 1, fs_hz=200)]
    (only,) = (a for a in assign(both, MONTAGES["aasm"]) if a.signal is not None)
    assert only.minus is None
    assert "stands in" in only.issues[0]
    both = [signal("C3", 0), signal("M2", 1, unit="mV")]
    assert all(a.minus is None for a in assign(both, MONTAGES["aasm"]))
    # the recorded derivation is better than the computed one
    assert filled_by(["C3", "M2", "C3-M2"], "aasm") == {"C3-M2": "C3-M2"}


def test_one_reference_serves_several_slots():
    found = filled_by(["F3", "C3", "O1", "M2", "Chin1", "Chin2", "ECG1", "ECG2"], "aasm")
    assert found == {
        "F3-M2": "F3 - M2",
        "C3-M2": "C3 - M2",
        "O1-M2": "O1 - M2",
        "Chin EMG": "Chin1 - Chin2",
        "ECG": "ECG1 - ECG2",
    }


PAPER_LABELS = ("C3-Cz", "C4-Cz", "O1-Cz", "M1-Cz", "M2-Cz", "E1-Cz", "EKG_L-Cz", "EKG_R-Cz")


def test_a_reference_that_all_electrodes_have_in_common_is_taken_out():
    """The paper's recordings, ECG and EEG against Cz: the differences hold no Cz any more."""
    assert filled_by(PAPER_LABELS, "cinc2018") == {
        "C3-M2": "C3-Cz - M2-Cz",
        "C4-M1": "C4-Cz - M1-Cz",
        "O1-M2": "O1-Cz - M2-Cz",
        "E1-M2": "E1-Cz - M2-Cz",
        "ECG": "EKG_L-Cz - EKG_R-Cz",
    }
    found = filled_by(PAPER_LABELS, "aasm")
    assert (found["C4-M1"], found["ECG"]) == ("C4-Cz - M1-Cz", "EKG_L-Cz - EKG_R-Cz")
    assert filled_by(("C3-Fpz", "Cz-Fpz", "M2-Fpz"), "paper") == {
        "C3-Cz": "C3-Fpz - Cz-Fpz",
        "M2-Cz": "M2-Fpz - Cz-Fpz",
    }


def test_two_references_have_nothing_in_common():
    # Without a mastoid against the same electrode the channel stands in, as recorded.
    assert filled_by(("C3-Cz", "M2-Fpz"), "aasm") == {"C3-M2": "C3-Cz"}
    assert filled_by(("EKG_L-Cz", "EKG_R-M1"), "aasm") == {}
    # A channel that has the right reference is taken as it is.
    assert filled_by(("C3-M2", "C3-Cz", "M2-Cz"), "aasm") == {"C3-M2": "C3-M2"}


def test_substitutes_are_reported():
    assignments = assign(signals("EEG C4-Cz", "EOG horizontal", "SaO2"), MONTAGES["aasm"])
    by_name = {a.slot.name: a for a in assignments}
    assert "stands in for C4-M1" in by_name["C4-M1"].issues[0]
    assert "stands in for E1" in by_name["E1"].issues[0]
    assert by_name["SpO2"].issues == ()
    assert by_name["F3-M2"].signal is None
    assert len(assignments) == len(MONTAGES["aasm"].slots)


def test_duplicates_best_rate_then_first_and_reported():
    given = [signal("ECG", 0), signal("EKG", 1), signal("ecg", 2, fs_hz=200), signal("ECG ", 3, fs_hz=200)]
    (ecg,) = (a for a in assign(given, MONTAGES["aasm"]) if a.signal is not None)
    assert ecg.signal.index == 2
    (issue,) = ecg.issues
    assert "(signal 0)" in issue
    assert "(signal 3)" in issue
    assert [s.index for s in unassigned(given, [ecg])] == [0, 1, 3]


@pytest.mark.parametrize("montage", MONTAGES.values(), ids=MONTAGES.keys())
def test_each_signal_fills_one_slot_and_order_does_not_matter(montage):
    rng = random.Random(0)
    pool = sorted({label for slot in montage.slots for label in (*slot.aliases, *slot.substitutes)})
    pool += ["C3", "Cz", "M1", "M2", "noise", ""]
    for _ in range(20):
        given = signals(*rng.sample(pool, 25))
        once = assign(given, montage)
        indices = [a.signal.index for a in once if a.signal is not None]
        assert len(indices) == len(set(indices))
        shuffled = assign(rng.sample(given, len(given)), montage)
        assert once == shuffled
        used = {*indices, *(a.minus.index for a in once if a.minus is not None)}
        assert {s.index for s in unassigned(given, once)} == {s.index for s in given} - used


@pytest.mark.parametrize(
    ("unit", "top", "scale"),
    [
        ("uV", 500, 1),
        ("µV", 500, 1),
        ("μV", 500, 1),
        ("UV", 500, 1),
        ("microvolt", 500, 1),
        ("mV", 5, 1000.0),
        ("V", 0.003, 1000000.0),
        ("nV", 500000, 0.001),
        ("mV", 262, 1000.0),
        ("uV ", 180, 1),
    ],
)
def test_potentials_become_microvolts(unit, top, scale):
    assert unit_of(signal("C3", unit=unit, top=top), "eeg") == ("uV", scale, ())


@pytest.mark.parametrize(
    ("unit", "top", "said"),
    [
        ("V", 3000, "likely it is uV"),
        ("mV", 3200, "likely it is uV"),
        ("uV", 0.003, "likely it is V"),
        ("uV", 5, "likely it is mV"),
        ("", 500, "no unit"),
        ("adu", 500, "the unit 'adu'"),
        ("%", 500, "the unit '%'"),
    ],
)
def test_impossible_units_are_reported_not_guessed(unit, top, said):
    kept, scale, issues = unit_of(signal("C3", unit=unit, top=top), "eeg")
    assert (kept, scale) == (unit, 1.0)
    assert said in issues[0]


@pytest.mark.parametrize(
    ("kind", "unit", "low", "high", "scale"),
    [
        ("eeg", "uV", -10, 10, 1.0),
        ("eog", "uV", -9.9, 9.9, None),
        ("ecg", "mV", -0.0099, 0.0099, None),
        ("emg", "uV", -1, 1, 1.0),  # an envelope
        ("emg", "uV", 0, 0.9, None),
        ("eeg", "mV", -1000, 1000, 1e3),
        ("eeg", "V", -1.01, 1.01, None),
        ("eeg", "uV", -500, 0, 1.0),  # the larger end counts, whichever it is
        ("eeg", "V", 0, 500, None),
        ("eeg", "uV", 0, 0, 1.0),  # says nothing of the unit
        ("eeg", "Millivolts.", -5, 5, 1e3),
        ("ecg", "Volts", -0.005, 0.005, 1e6),
        ("ecg", "nV", -5e6, 5e6, 1e-3),
    ],
)
def test_a_unit_is_converted_where_the_range_allows_it_or_the_user_says_so(kind, unit, low, high, scale):
    given = dataclasses.replace(signal("x", unit=unit), physical_min=low, physical_max=high)
    kept, found, issues = unit_of(given, kind)
    assert (kept, found, bool(issues)) == (("uV", scale, False) if scale else (unit, 1.0, True))
    if scale is None:
        kept, found, issues = unit_of(given, kind, trusted=True)
        assert (kept, found, issues) == ("uV", {"uV": 1.0, "mV": 1e3, "V": 1e6}[unit], ())


def test_other_units_are_the_headers():
    assert unit_of(signal("SaO2", unit="%"), "step") == ("%", 1.0, ())
    assert unit_of(signal("Chest", unit="V", top=5000), "respiration") == ("V", 1.0, ())
    assert unit_of(signal("Chest", unit=""), "respiration") == ("", 1.0, ())
    kept, scale, issues = unit_of(signal("C3", calibrated=False), "eeg")
    assert (kept, scale) == ("", 1.0)
    assert "not calibrated" in issues[0]


@pytest.mark.parametrize(
    "label",
    [
        "Hypnogram",
        "Event marker",
        "Temp rectal",
        "Position",
        "POS",
        "Body position",
        "Light",
        "STATUS",
        "Trigger",
        "Battery",
        "Impedance",
        "X Axis",
        "DC1",
        "Unused",
        "",
        "Quality",
        "blah",
    ],
)
def test_labels_of_no_modality(label):
    assert kind_of(label) is None


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("EEG Fpz-Cz", "eeg"),
        ("Fz-Cz", "eeg"),
        ("Cz-Oz", "eeg"),
        ("EEG1", "eeg"),
        ("EEG(sec)", "eeg"),
        ("C3-Avg", "eeg"),
        ("T3-T5", "eeg"),
        ("EOG horizontal", "eog"),
        ("EOG Pos8-M1", "eog"),
        ("EMG linked legs", "emg"),
        ("Leg L", "emg"),
        ("LAT", "emg"),
        ("RLeg", "emg"),
        ("ECG2", "ecg"),
        ("Resp oro-nasal", "respiration"),
        ("CFlow", "respiration"),
        ("RIP Sum", "respiration"),
        ("EtCO2", "step"),
        ("SaO2", "step"),
        ("Snore", "snore"),
    ],
)
def test_labels_tell_kinds(label, kind):
    assert kind_of(label) == kind


def test_auto_needs_half_of_the_recordings():
    cohort = [signals("C3-A2", "ECG", "Thor"), signals("EEG C3-M2", "EKG", "Sum"), signals("C3-M2", "EKG", "Chest")]
    montage = resolve_auto([*cohort, signals("Fz", "EKG", "Chest", "Sum")])
    assert [slot.name for slot in montage.slots] == ["Chest", "Sum", "C3-M2", "ECG"]
    for order in itertools.permutations(cohort):
        assert resolve_auto(order) == resolve_auto(cohort)
    for given in cohort:
        filled = [a for a in assign(given, resolve_auto(cohort)) if a.signal is not None]
        assert "C3-M2" in [a.slot.name for a in filled]
        assert all(a.issues == () for a in filled)


def test_auto_without_a_known_channel():
    with pytest.raises(ChannelError, match="'blah'"):
        resolve_auto([signals("blah"), signals("Status")])
    with pytest.raises(ChannelError):
        resolve_auto([])


def test_auto_leaves_out_modalities_that_the_cohort_lacks():
    assert [m.name for m in resolve_auto([signals("ECG", "C3")]).modalities] == ["brain", "ecg"]


def recorded(name: str):
    from sleepfm_fast.edf import read_recording

    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not there; set SLEEPFM_TEST_DATA")
    return read_recording(DATA / name).signals


def test_auto_on_a_real_recording_takes_every_usable_signal():
    given = recorded("osas2002.edf")
    montage = resolve_auto([given])
    assert [m.name for m in montage.modalities] == ["respiratory", "brain", "ecg"]
    kinds = [slot.kind for slot in montage.slots]
    assert {kind: kinds.count(kind) for kind in KINDS if kind in kinds} == {
        **{"eeg": 7, "eog": 2, "emg": 2, "ecg": 1, "respiration": 3, "step": 1}
    }
    assignments = assign(given, montage)
    assert [s.label for s in unassigned(given, assignments)] == ["Hypnogram"]
    assert all(a.signal is not None and a.minus is None and a.issues == () for a in assignments)
    assert {a.unit for a in assignments if a.slot.kind in ("eeg", "eog", "emg", "ecg")} == {"uV"}
    assert next(a for a in assignments if a.slot.kind == "step").unit == "%"
    assert Montage.from_dict(json.loads(json.dumps(montage.to_dict()))) == montage


def test_presets_on_a_real_recording():
    given = recorded("osas2002.edf")
    for name, expected in {"aasm": 10, "cinc2018": 8}.items():
        filled = [a for a in assign(given, MONTAGES[name]) if a.signal is not None]
        assert len(filled) == expected
        assert {a.unit_scale for a in filled} == {1.0}


def test_sleep_edf():
    given = recorded("short_psg.edf")
    montage = resolve_auto([given])
    assert [slot.name for slot in montage.slots] == [
        *("Thermal Flow", "EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal", "Chin EMG")
    ]
    assert [s.label for s in unassigned(given, assign(given, montage))] == ["Temp rectal", "Event marker"]


def test_a_unit_that_no_header_states():
    given = recorded("ucddb018_eeg.edf")
    (only,) = assign(given, resolve_auto([given]))
    assert (only.unit, only.unit_scale) == ("", 1.0)
    assert "no unit" in only.issues[0]
