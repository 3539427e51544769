"""What ``--montage auto`` makes of the channels of public cohorts, under the names that these give them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from nights import Lead, write_night

from sleepfm_fast.channels import MONTAGES, ChannelError, assign, channel_of, kind_of, resolve_auto
from sleepfm_fast.edf import Signal
from sleepfm_fast.preprocess import cli

ROOT = Path(__file__).resolve().parents[1]


def signals(labels: str, fs_hz: int = 128) -> list[Signal]:
    return [
        Signal(i, label, "uV", "", "", -500.0, 500.0, -2048, 2047, fs_hz, 0, Fraction(fs_hz), 1000 / 4095, 0.0, True)
        for i, label in enumerate(labels.split(", "))
    ]


# kind -> labels of the cohort; None: no slot, whatever the montage
COHORTS: dict[str, dict[str | None, str]] = {
    "ABC": {
        "eeg": "F3, F4, C3, C4, O1, O2, M1, M2",
        "eog": "E1, E2",
        "emg": "Chin1, Chin2, Chin3, LLeg1, LLeg2, RLeg1, RLeg2",
        "ecg": "ECG1, ECG2, ECG3",
        "respiration": "Airflow, Nasal, Cannula Flow, Chest, Abdomen, Sum",
        "snore": "Snore",
        "step": "SpO2, Pulse",
        None: "PlethWV, OxStatus, Pos, C-Pres, Leak",
    },
    "BOAS": {
        "eeg": "PSG_F3, PSG_F4, PSG_C3, PSG_O1",
        "eog": "PSG_EOGL, PSG_EOGR",
        "emg": "PSG_EMG",
        "ecg": "PSG_ECG",
        "respiration": "PSG_THER, PSG_CAN, PSG_THOR, PSG_ABD",
        "step": "PSG_SPO2, PSG_PULSE, HB_PULSE",
        None: "HB_1, HB_2, HB_IMU_1, PSG_BEAT",
    },
    "CAP": {
        "eeg": "Fp2-F4, F4-C4, C4-P4, P4-O2, F8-T4, F7-T3, C4-A1",
        "eog": "ROC-LOC, LOC-ROC, EOG dx, EOG sin, LOC-A1, ROC-A2",
        "emg": "EMG1-EMG2, DX1-DX2, SX1-SX2, Dx1-DX2, Tib dx, Tib sx",
        "ecg": "ECG1-ECG2, Ekg",
        "respiration": "Flusso, FLOW, TORACE, TORAX, ADDOME, TERMISTORE, CANULA, toracico, addominale",
        "snore": "MIC, Microfono",
        "step": "SAO2, HR, SatO2, OSSIMETRO",
        None: "PLETH, STAT, Posizione",
    },
    "CFS": {
        "eeg": "C3, C4, M1, M2",
        "eog": "LOC, ROC",
        "emg": "EMG1, EMG2, EMG3, L Leg, R Leg",
        "ecg": "ECG1, ECG2",
        "respiration": "AIRFLOW, THOR EFFORT, ABDO EFFORT, SUM, NASAL PRES",
        "snore": "SNORE",
        "step": "PULSE, SpO2",
        None: "PlethWV, OX STATUS, POSITION, Light",
    },
    "CHAT": {
        "eeg": "C3, C4, O1, O2, T3, T4, F3, F4, M1, M2",
        "eog": "E1, E2",
        "emg": "Lchin, Rchin, Cchin, Lleg1, Lleg2, Rleg1, Rleg2",
        "ecg": "ECG1, ECG2, ECG3",
        "respiration": "Airflow, Cannula Flow, CannulaFlow, Nasal Pressure, Chest, ABD, Abdomen, SUM, RIPSum",
        "snore": "Snore",
        "step": "SpO2, SAO2, Pulse, DHR, EtCO2, Capno, TcCO2",
        None: "Pleth, PlethWV, OxStatus, Position",
    },
    "CinC 2018": {
        "eeg": "F3-M2, F4-M1, C3-M2, C4-M1, O1-M2, O2-M1",
        "eog": "E1-M2",
        "emg": "Chin1-Chin2",
        "ecg": "ECG",
        "respiration": "ABD, CHEST, AIRFLOW",
        "step": "SaO2",
    },
    "DREEM": {
        "eeg": "C3_M2, F3_F4, F3_M2, F3_O1, F4_M1, F4_O2, FP1_F3, FP1_M2, FP1_O1, FP2_F4",
        "eog": "EOG1, EOG2",
        "emg": "EMG",
        "ecg": "ECG",
    },
    "HCHS": {
        "respiration": "A-Flow, FVP/A-Effort",
        "snore": "A-Snore",
        "step": "A-SpO2, A-Pulse",
        None: "HMov, HPos",
    },
    "HMC": {"eeg": "EEG F4-M1, EEG C3-M2", "eog": "EOG E1-M2", "emg": "EMG chin", "ecg": "ECG"},
    "HomePAP": {
        "eeg": "F3, C4, O2, M1",
        "eog": "E1, E2",
        "emg": "CHIN, Lchin, C.Chin, L-Leg, LLEG1",
        "ecg": "ECG1, EKG2, ECG I",
        "respiration": "Nasal Pressure, PTAF, Thermistor, ABD RES, THO RES, CFlow, CPAP flow, PAP Flow, Mask Flow",
        "snore": "Snoring",
        "step": "SAO2, Pulse, HRATE",
        None: "Pleth, CPAP, CPAP Press, C-Press, IPAP, EPAP, PAP Pres, Leak, TIDAL VOL, Body",
    },
    "ISRUC": {
        "eeg": "F3-A2, C3-A2, O1-A2, F4-A1, C4-A1, O2-A1",
        "eog": "LOC-A2, ROC-A1",
        "step": "SaO2",
        None: "X1, X2, X3, X8, DC3, DC8",  # only the cohort's own table says which of them is what
    },
    "MASS": {
        "eeg": "EEG C3-CLE, EEG C3-LER, EEG Fp1-CLE, EEG A2-CLE",
        "eog": "EOG Left Horiz, EOG Right Horiz, EOG Upper Vertic",
        "emg": "EMG Chin1, EMG Chin2, EMG Ant Tibial L",
        "ecg": "ECG ECGI, ECG I",
        "respiration": "Resp Thermistor, Resp Nasal, Resp Cannula, Resp Belt Thor, Resp Belt Abdo",
        "step": "SaO2 SaO2",
    },
    "MESA": {
        "eeg": "EEG1, EEG2, EEG3",
        "eog": "EOG-L, EOG-R",
        "emg": "EMG, Leg",
        "ecg": "EKG",
        "respiration": "Pres, Flow, Thor, Abdo, Therm",
        "snore": "Snore",
        "step": "SpO2, HR, DHR",
        None: "Pleth, OxStatus, Pos, EKG_Off, EOG-L_Off, EOG-R_Off, EMG_Off, EEG1_Off, EEG2_Off, EEG3_Off",
    },
    "MrOS": {
        "eeg": "C3, C4, A1, A2",
        "eog": "LOC, ROC",
        "emg": "L Chin, R Chin, LChin, RChin, Leg L, Leg R, Leg/L, LegR",
        "ecg": "ECG L, ECG R",
        "respiration": "Airflow, Cannula Flow, CannulaFlow, Thoracic, Abdominal, SUM",
        "step": "SaO2, HR",
        None: "Position, STAT",
    },
    "NCH": {
        "eeg": "EEG F4-M1, EEG CZ-O1",
        "eog": "EOG LOC-M2, EEG LOC-M2",
        "emg": "EMG CHIN1-CHIN2, EEG CHIN1-CHIN2, EMG LLEG-RLEG",
        "ecg": "ECG EKG2-EKG, ECG LA-RA",
        "respiration": "RESP PTAF, RESP AIRFLOW, RESP THORACIC, RESP ABDOMINAL, C-FLOW",
        "snore": "SNORE",
        "step": "SPO2, ETCO2, TCCO2, CAPNO, RESP RATE",
        None: "TIDAL VOL, PATIENT EVENT, C-PRESSURE",
    },
    "SHHS": {
        "eeg": "EEG, EEG(sec), EEG2, EEG sec",
        "eog": "EOG(L), EOG(R)",
        "emg": "EMG",
        "ecg": "ECG",
        "respiration": "AIRFLOW, NEW AIR, NEWAIR, New A/F, THOR RES, ABDO RES",
        "snore": "SOUND",
        "step": "SaO2, H.R.",
        None: "POSITION, LIGHT, OX stat, AUX, EPMS",
    },
    "Sleep-EDF": {
        "eeg": "EEG Fpz-Cz, EEG Pz-Oz",
        "eog": "EOG horizontal",
        "emg": "EMG submental",
        "respiration": "Resp oro-nasal",
        None: "Temp rectal, Event marker, Marker",
    },
    "SLPDB": {
        "eeg": "EEG (C4-A1), EEG (O2-A1)",
        "eog": "EOG (right)",
        "ecg": "ECG",
        "respiration": "Resp (nasal), Resp (chest), Resp (abdomen), Resp (sum)",
        "step": "SO2",
        None: "BP",
    },
    "STAGES": {
        "eeg": "C3M2, C4M1, F3M2, O1M2, C3-M2",
        "eog": "E1M2, E2M2",
        "emg": "Chin1-Chin2, EMG #1, RLEG, LLEG, R-LEG+, LAT, RAT",
        "ecg": "EKG, EKG1-EKG2",
        "respiration": "Flow Patient, Flow_DR, Nasal_Therm, PTAF, Thor, Abdo, RIP Sum, Inductance abdom, PAP Pt Flow",
        "snore": "Snore_DR",
        "step": "SpO2, SpO2_DR, PulseRate, Heart Rate, PR, Resp Rate",
        None: "Pleth, Plethysmogram, PTT, Body Position, CPAP Pressure, Total Leak, EKG_Impedance, X Axis, Activity",
    },
    "UCDDB": {
        "eeg": "C3A2, C4A1",
        "eog": "Lefteye, RightEye",
        "emg": "EMG",
        "ecg": "ECG",
        "respiration": "Flow, Sum, ribcage, abdo",
        "snore": "Sound",
        "step": "SpO2, Pulse",
        None: "BodyPos",
    },
    "WSC": {
        "eeg": "C3_M2, F3_M2, O1_M2, Cz_M2, C3_AVG, Fz_AVG, Pz_Cz",
        "eog": "E1, E2",
        "emg": "chin, cchin_l, cchin_r, rchin_l, lleg, rleg, lleg_r",
        "ecg": "ECG",
        "respiration": "nas_pres, flow, nasalflow, oralflow, thorax, abdomen, sum, therm",
        "snore": "snore",
        "step": "spo2, hr",
        None: "position, pleth",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        pytest.param(label, kind, id=f"{cohort}-{label}")
        for cohort, kinds in COHORTS.items()
        for kind, labels in kinds.items()
        for label in labels.split(", ")
    ],
)
def test_kind_of_a_cohorts_channel(label, kind):
    assert kind_of(label) == channel_of(label)[1] == kind


@pytest.mark.parametrize(
    ("labels", "channel"),
    [
        ("BOAS: PSG_THER; SHHS: NEW AIR, New A/F; CAP: TERMISTORE; MASS: Resp Thermistor", "Thermal Flow"),
        ("BOAS: PSG_CAN; CFS: NASAL PRES; WSC: nas_pres; CAP: CANULA; NCH: RESP PTAF", "Nasal Pressure"),
        ("SHHS: THOR RES; HomePAP: THO RES; MASS: Resp Belt Thor; CAP: TORACE, toracico; UCDDB: ribcage", "Chest"),
        ("SHHS: ABDO RES; HomePAP: ABD RES; MASS: Resp Belt Abdo; CAP: ADDOME; STAGES: Inductance abdom", "Abdomen"),
        ("MASS: SaO2 SaO2; SLPDB: SO2; CAP: SatO2, OSSIMETRO", "SpO2"),
        ("MESA: HR, DHR; SHHS: H.R.; CFS: PULSE; HomePAP: HRATE; NCH: PR", "Pulse Rate"),
        ("NCH: ECG EKG2-EKG, ECG LA-RA; MASS: ECG ECGI", "ECG"),
        ("NCH: EEG CHIN1-CHIN2; WSC: cchin_l", "Chin EMG"),
        ("UCDDB: Lefteye; STAGES: E1M2; NCH: EEG LOC-M2; CAP: EOG sin; MASS: EOG Left Horiz", "E1"),
        ("pt: Queixo, EMG Queixo; es: Barbilla, Mentón; it: Mento; nl: EMG kin; sv: Haka", "Chin EMG"),
        ("pt: Fluxo, Termistor; es: Flujo aéreo; sv: Luftflöde; Nihon Kohden: Airflow DC01", "Thermal Flow"),
        ("pt: Pressão nasal; it: Pressione nasale; nl: Neusdruk; sv: Nästryck; de: Nasenkanüle", "Nasal Pressure"),
        ("pt: Ronco; es: Ronquidos; nl: Snurken; sv: Snarkning", "Snore"),
        ("pt: Saturacao, Saturação de O2; es: Saturación; sv: Syremättnad; Nihon Kohden: SpO2 DC04", "SpO2"),
        ("pt: Frequência cardíaca; es: Frecuencia cardíaca; it: Frequenza cardiaca; sv: Hjärtfrekvens", "Pulse Rate"),
        ("de: Brustgurt, Thoraxgurt; pt: Cinta torácica; nl: Borstband; sv: Bröst; Nihon Kohden: DC03 Thor", "Chest"),
        ("de: Bauchgurt; pt: Abdome, Esforço abdominal; fr: Sangle abdominale; nl: Buikband; sv: Buk", "Abdomen"),
        ("es: Ojo izq, EOG izq; pt: Olho esquerdo, EOG esq, EOG E; it: Occhio sx; nl: Oog links; fr: EOG G", "E1"),
        ("es: Ojo derecho, EOG der; pt: Olho direito, EOG dir, EOG D; it: Occhio dx; nl: Oog rechts", "E2"),
        ("UCDDB: RightEye; STAGES: E2M2; CAP: EOG dx; MASS: EOG Right Horiz", "E2"),
    ],
)
def test_names_of_one_channel(labels, channel):
    named = [label for cohort in labels.split("; ") for label in cohort.split(": ")[1].split(", ")]
    assert {label: channel_of(label)[0] for label in named} == dict.fromkeys(named, channel)
    for label in named:
        filled = [a.slot.name for a in assign(signals(label), MONTAGES["aasm"]) if a.signal is not None]
        assert filled == [channel], label


@pytest.mark.parametrize("labels", ["nasalflow, nas_pres", "nas_pres, nasalflow", "Nasal Flow, Nasal Pres"])
def test_a_nasal_pressure_is_taken_before_a_nasal_flow(labels):
    """The Wisconsin Sleep Cohort's nasalflow is a thermistor."""
    (filled,) = [a for a in assign(signals(labels), MONTAGES["aasm"]) if a.signal is not None]
    assert filled.slot.name == "Nasal Pressure"
    assert filled.signal.label in ("nas_pres", "Nasal Pres")


@pytest.mark.parametrize("label", ["Nasenfluss", "Fluxo nasal", "Flujo nasal", "Atemgurt", "DC01", "EEG DC01", "Kin"])
def test_a_name_of_two_channels_is_that_of_neither(label):
    """A flow of the nose is taken by a thermistor or a cannula, a belt of breathing lies on chest or abdomen."""
    assert not any(a.signal is not None for a in assign(signals(label), MONTAGES["aasm"]))


def test_labels_that_nobody_understands_are_said(tmp_path, capsys):
    (nights := tmp_path / "nights").mkdir()
    for i in range(12):
        spare = (Lead("Gurke"), Lead("Position"), *([Lead("Kin")] if i < 3 else []))
        write_night(nights / f"n{i}.edf", leads=(Lead("C3-M2"), Lead("Thor"), *spare), seed=i)
    options = ["--backend", "threading", "--workers", "1"]
    report = tmp_path / "report.json"
    assert cli(["--inspect", str(nights), "--json", str(report), *options]) == 0
    capsys.readouterr()
    found = {f["code"]: f for f in json.loads(report.read_text())["findings"] if f["code"].endswith("_label")}
    unknown, unused = found["unknown_label"], found["unused_label"]
    assert (unknown["severity"], unknown["figures"]) == ("warning", {"labels": {"Gurke": 12, "Kin": 3}})
    assert "Gurke (12 of 12), Kin (3 of 12)" in unknown["text"]
    assert len(unknown["paths"]) == 12
    assert (unused["severity"], unused["figures"]) == ("note", {"labels": {"Position": 12}})
    assert cli([str(nights), str(tmp_path / "store"), *options]) == 0
    (notice,) = [line for line in capsys.readouterr().err.splitlines() if "Gurke" in line]
    assert notice == f"notice: {unknown['text']}; {unknown['action']}"
    # what the sentence says to do
    said = {"*": {"Gurke": {"alias": "Chin EMG"}, "Kin": {"exclude": True}}}
    (tmp_path / "overrides.json").write_text(json.dumps(said))
    overrides = ["--overrides", str(tmp_path / "overrides.json")]
    assert cli([str(nights), str(tmp_path / "named"), *overrides, *options]) == 0
    assert "Gurke" not in capsys.readouterr().err
    montage = json.loads((tmp_path / "named" / "store.json").read_text())["montage"]
    assert [slot["name"] for m in montage["modalities"] for slot in m["slots"]] == ["Chest", "C3-M2", "Chin EMG"]


CAP = ", ".join(f"{letter}{number}" for letter in "ABCD" for number in range(1, 33))
DEPTH = ", ".join(f"{letter}{number}" for letter in ("A", "C", "F'", "B", "H'") for number in range(1, 10))


@pytest.mark.parametrize("labels", [CAP, DEPTH])
def test_numbered_contacts_are_no_electrodes_of_the_10_20_system(labels):
    """BioSemi's A2 and C3 lie elsewhere, and so do those of electrodes in the brain: C3-A2 would be another channel."""
    for name in ("aasm", "paper"):
        assert not any(a.signal is not None for a in assign(signals(f"{labels}, Status"), MONTAGES[name]))
    with pytest.raises(ChannelError, match="no channel of a known kind"):
        resolve_auto([signals(labels)])
    named = assign(signals(f"{labels}, C3-M2, ECG"), MONTAGES["aasm"])
    assert [a.signal.label for a in named if a.signal is not None] == ["C3-M2", "ECG"]
    montage = resolve_auto([signals(f"{labels}, EEG C3, ECG")])
    assert [slot.name for slot in montage.slots] == ["EEG C3", "ECG"]


def test_a_high_density_montage_of_named_electrodes_stays():
    numbers = {"A": 2, "C": 6, "F": 10, "P": 10, "T": 10, "O": 2, "E": 2}
    numbers |= {"X": 22, "R": 2}  # and the spare inputs of a headbox
    labels = ", ".join(f"{letter}{number + 1}" for letter, last in numbers.items() for number in range(last))
    filled = assign(signals(labels), MONTAGES["aasm"])
    assert {"C3-M2", "C4-M1", "F3-M2", "O1-M2"} <= {a.slot.name for a in filled if a.signal is not None}


PULSE_WAVES = """
Pleth, PLETH, pleth, Pleth., PlethWV, Pleth WV, PPG, PPG1, PPG Red, Plethysmogram, Plethysmograph, Plethysmogramm,
Photoplethysmogram, Photo-plethysmography, Finger Pleth, SpO2 Pleth, SpO2.Pleth, Oximeter Plethysmogram, Nonin Pleth,
Pulse_Ox_Pleth, OxiPleth, PulseWave, Pulse Wave, Pulse Waveform, Pulswelle, Onde de pouls, SpO2 Waveform,
Pulse Oxi Infrared, Pulse Oxi Red, Pulse Amplitude, PulseAmp, PTT, Pulse Transit Time, PWA, PAT, Pletismografia,
Pleth-Ref"""


@pytest.mark.parametrize("label", [label.strip() for label in PULSE_WAVES.split(",")])
def test_the_pulse_wave_belongs_to_no_modality(label):
    assert kind_of(label) is None
    montage = resolve_auto([signals(f"C3-M2, ECG, Thor, {label}")])
    assert [slot.name for slot in montage.slots] == ["Chest", "C3-M2", "ECG"]
    assert not any(
        a.signal is not None for name in ("aasm", "paper", "cinc2018") for a in assign(signals(label), MONTAGES[name])
    )


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ("PR, HR, H.R., DHR, HRate, Pulse, PULSE, Pulse Rate, PulseRate, PlethRate, ECG Rate, ECG HR", "step"),
        ("HR(ECG), HR_ECG, ECG HR, TcpCO2, PtcCO2, Saturatie, POL SpO2, POL PR", "step"),
        ("POL C3, POL Fp1, EEG C3-Ref, PSG C3-M2", "eeg"),
        ("HEOG, VEOG, POL EOG1", "eog"),
        ("Perna E, Perna D, Pierna izq, Gamba sx, Been L, Been rechts, Ben vä, Vänster ben", "emg"),
        ("Nasenfluss, Fluxo nasal, Flusso nasale, Atemgurt, POL DC03 Thor", "respiration"),
        ("DC01, DC-04, EEG DC01, EEG DC 12", None),
        ("Thrx, RIP Thrx, Luftstrom, Flow (CPAP), VTH, Ademhaling", "respiration"),
        ("Pleth Rate, Pulse Rate Pleth, SpO2 PR, Pulse Oximeter, SpO2, SaO2, SpO2 BB, OSAT, Oximeter", "step"),
        ("EEG lead 3, EEG lat, EEG Rat 1, EEG C3-A2, EEG A2-CLE, EEG 1, EEG Fp1-Ref", "eeg"),
        ("EEG EKG1-REF, EEG ECG", "ecg"),
        ("RIP Pleth, Thoracic Plethysmogram, Pleth Thorax, Abd Pleth, Resp Pleth", "respiration"),
        ("Inductance Plethysmography Abdomen, Respiratory inductance plethysmography", "respiration"),
    ],
)  # fmt: skip
def test_what_other_names_say(labels, kind):
    assert {label: kind_of(label) for label in labels.split(", ")} == dict.fromkeys(labels.split(", "), kind)


def test_auto_on_a_cohort_with_switches_and_a_pulse_wave():
    mesa = ", ".join(COHORTS["MESA"].values())
    montage = resolve_auto([signals(mesa)] * 3)
    assert [[slot.name for slot in modality.slots] for modality in montage.modalities] == [
        ["Nasal Pressure", "Thermal Flow", "Chest", "Abdomen", "Snore", "SpO2", "Pulse Rate"],
        ["EEG1", "EEG2", "EEG3", "E1", "E2", "Chin EMG", "Leg"],
        ["ECG"],
    ]
    taken = [a.signal.label for a in assign(signals(mesa), montage) if a.signal is not None]
    assert not [label for label in taken if "Off" in label or "Pleth" in label]


def test_a_pulse_wave_can_be_asked_for(tmp_path, capsys):
    (nights := tmp_path / "nights").mkdir()
    write_night(nights / "a.edf", leads=(Lead("C3-M2"), Lead("Thor"), Lead("PlethWV", 64, "")))
    asked = {"*": {"Pleth*": {"alias": "Resp Pleth"}}}  # what docs/cohorts.md says
    (tmp_path / "overrides.json").write_text(json.dumps(asked))
    assert str(asked)[1:-1].replace("'", '"') in (ROOT / "docs" / "cohorts.md").read_text()
    found = {}
    for name, options in (("plain", []), ("asked", ["--overrides", str(tmp_path / "overrides.json")])):
        assert cli([str(nights), str(tmp_path / name), "--montage", "auto", *options]) == 0
        montage = json.loads((tmp_path / name / "store.json").read_text())["montage"]
        found[name] = [[slot["name"] for slot in modality["slots"]] for modality in montage["modalities"]]
    assert found == {"plain": [["Chest"], ["C3-M2"]], "asked": [["Chest", "Resp Pleth"], ["C3-M2"]]}
