"""The channels that sleep laboratories record, the names they go by, and the montages that models are fed.

Names follow the AASM manual (electrodes of the 10-20 system, M1/M2, E1/E2, recommended derivations) and the headers
of public cohorts: Sleep-EDF, SHHS, MESA, CFS and others of the NSRR, CinC 2018, STAGES, Noxturnal exports.
Spelling (case, spaces, separators, ``EEG `` prefixes, A1/M1, T3/T7, ``-Ref``) is forgiven by
:mod:`sleepfm_fast.channels`, so an alias stands for all its spellings.
"""

from __future__ import annotations

from sleepfm_fast.montage.slots import Modality, Montage, Slot

__all__ = ["CHANNELS", "MONTAGES"]


def labels(listed: str) -> tuple[str, ...]:
    """Split a list of labels."""
    return tuple(listed.split(", "))


def pairs(listed: str) -> tuple[tuple[str, str], ...]:
    """Split a list of differences, ``A - B, C - D``."""
    return tuple((plus, minus) for plus, minus in (pair.split(" - ") for pair in labels(listed)))


REFERENCES = labels("M1, M2, Cz, Fpz, M1M2, Avg, AVE, AR, LM, G1, G2")
"""What all electrodes of a recording may have been recorded against."""


def against_others(electrode: str, reference: str, known: tuple[str, ...] = REFERENCES) -> tuple[tuple[str, str], ...]:
    """Differences of two channels with a reference in common, which cancels: (C3 - Cz) - (M2 - Cz) is C3 - M2."""
    return tuple((f"{electrode}-{r}", f"{reference}-{r}") for r in known if r not in (electrode, reference))


def derived(electrode: str, reference: str, *unnamed: str) -> Slot:
    """Describe an EEG electrode against its recommended reference; with another reference it may stand in.

    ``unnamed`` are a cohort's labels for it that name no electrodes.
    """
    others = [r for r in REFERENCES if r != reference]
    return Slot(
        f"{electrode}-{reference}",
        "eeg",
        (f"{electrode}-{reference}",),
        ((electrode, reference), *against_others(electrode, reference)),
        (electrode, *(f"{electrode}-{other}" for other in others), *unnamed),
    )


LEFT_EYE = labels(
    "E1, LOC, EOG L, EOG left, L EOG, left EOG, EOG1, EOG gauche, EOG links, EOG li, Auge links, EOG sin, EOG sx, "
    "Left eye, EOG Left Horiz, Ojo izq, Ojo izquierdo, EOG izq, EOG izquierdo, Olho esq, Olho esquerdo, EOG esq, "
    "EOG esquerdo, Occhio sx, Occhio sinistro, Oeil gauche, Auge li, Oog links, EOG E, EOG G"
)
RIGHT_EYE = labels(
    "E2, ROC, EOG R, EOG right, R EOG, right EOG, EOG2, EOG droit, EOG droite, EOG rechts, EOG re, Auge rechts, EOG "
    "dx, Right eye, EOG Right Horiz, Ojo der, Ojo derecho, EOG der, EOG derecho, Olho dir, Olho direito, EOG dir, EOG "
    "direito, Occhio dx, Occhio destro, Oeil droit, Auge re, Oog rechts, EOG D"
)


def eye(name: str, electrode: tuple[str, ...], reference: str, *differences: tuple[str, str]) -> Slot:
    """Describe an EOG electrode by its many names, first with, then without and with other references."""
    named = tuple(f"{label}-{reference}" for label in electrode)
    other = "M1" if reference == "M2" else "M2"
    elsewhere = tuple(f"{label}-{r}" for r in (other, "Fpz", "Cz", "Avg", "M1M2") for label in electrode)
    bipolar = labels("EOG horizontal, HEOG, EOG H, EOG") if electrode is LEFT_EYE else ()
    if name == electrode[0]:
        return Slot(name, "eog", (*electrode, *named, *elsewhere), (), bipolar)
    rereferenced = tuple(pair for label, minus in differences for pair in against_others(label, minus))
    return Slot(name, "eog", (name, *named), (*differences, *rereferenced), (*electrode, *elsewhere, *bipolar))


ECG_LEADS = pairs("ECG1 - ECG2, EKG1 - EKG2, ECG L - ECG R, EKG L - EKG R, ECG LA - ECG RA")
COMMON = labels("Cz, M1, M2, Fpz, M1M2, Avg")
"""References of the scalp that an ECG's electrodes may have been recorded against."""

CHANNELS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot(
            "Thermal Flow",
            "respiration",
            labels(
                "Thermal Flow, Thermistor, Therm, Oral Therm, Oral Thermistor, Nasal Therm, Thermistance, Resp "
                "oro-nasal, oro-nasal, oronasal flow, Flow, Airflow, Resp Airflow, Resp Flow, FLOW_TH, Flow Therm, "
                "Flow Aux, New Air, AUX Flow, Thermocouple, TFlow, Therm Flow, Flux nasal, Flux, Débit, Flux "
                "oro-nasal, Atemfluss, Luftfluss, Naso-buccal, Flujo, Flusso, Airflow1, Flow1, Nasal/Oral, Resp Flow "
                "Thermistor, OroNasal Thermistor, Flow oronasal, New A/F, Termistore, Ther, Fluxo, Fluxo aereo, Flujo "
                "aereo, Flusso aereo, Fluxo oronasal, Flujo oronasal, Flusso oronasale, Luftflöde, Termistor, "
                "Termopar, Termocoppia"
            ),
        ),
        Slot(
            "Nasal Pressure",
            "respiration",
            labels(
                "Nasal Pressure, NPress, Nasal Pres, Nas Pres, Nasal, NAF, Pressure, Pres, PNASAL, Nasal Pressure "
                "Flow, PTAF, Nasal Cannula, Cannula, Cannulaflow, Nasal Flow, Naspr, Nasendruck, Nasaldruck, "
                "Staudruck, Pression nasale, Pression, Canule nasale, Canule, Druck, PFlow, Press, Pressure Flow, "
                "Nasal Airflow, FLOW_P, Presion nasal, Pneumoflow, Resp Nasal Pressure, Flow Cannula, Nasal P, Pnasal "
                "flow, Nasal Press, Canula, Can, Pressao nasal, Pressione nasale, Neusdruk, Nästryck, Canula nasal, "
                "Cannula nasale, Neuscanule, Nasenkanüle, Näskanyl"
            ),
        ),
        Slot(
            "Chest",
            "respiration",
            labels(
                "Chest, Thorax, Thor, THO, Thoracic, Thoracic Effort, Thor Effort, Thorax Effort, Chest Effort, Effort"
                " Chest, Effort Tho, Effort Thorax, THO Effort, RIP Thorax, RIP Thor, RIP Tho, RIP Thoracic, Thorax "
                "RIP, Resp Thorax, Resp chest, THX, THOR RES, Thoracique, Effort thoracique, Sangle thorax, Brustkorb,"
                " Atmung Thorax, Torax, Torace, Inductance Thorax, Thorax Belt, Chest Belt, Thor Belt, Resp Rib, "
                "RIBCAGE, Chest Wall, Thorax 1, Thoracic Respiration, VTO, VTH, Thrx, RIP Thrx, Resp Effort Thor, Resp"
                " Tho, Thoraxx, XCHEST, Thorax_DC, Tho Res, Belt Thor, Belt Thorax, Inductance Thor, Toracico, "
                "Brustgurt, Thoraxgurt, Banda toracica, Cinta toracica, Faixa toracica, Fascia toracica, Esfuerzo "
                "toracico, Esforço toracico, Sforzo toracico, Sangle thoracique, Ceinture thoracique, Borst, Borstkas,"
                " Borstband, Thoraxband, Bröst, Bröstband"
            ),
        ),
        Slot(
            "Abdomen",
            "respiration",
            labels(
                "Abdomen, Abd, Abdo, ABDM, Abdominal, Abdominal Effort, Abdo Effort, Abdomen Effort, Effort Abd, "
                "Effort Abdo, Effort Abdomen, ABD Effort, RIP Abdomen, RIP Abdo, RIP Abd, RIP Abdominal, Abdomen RIP, "
                "Resp Abdomen, Resp Abdominal, ABDO RES, Abdominale, Effort abdominal, Sangle abdomen, Bauch, Atmung "
                "Abdomen, Addome, Abdomen Belt, Inductance Abdomen, Abdo Belt, Abdominal Respiration, VAB, Abdomen_DC,"
                " Resp Abd, Resp Effort Abd, Abdm Effort, ABDOM, RIP Abdom, Abdomn, Abd Belt, Abd Res, Belt Abdo, Belt"
                " Abdomen, Inductance Abdomen, Inductance Abdom, Addominale, Abdome, Bauchgurt, Abdomengurt, Banda "
                "abdominal, Cinta abdominal, Faixa abdominal, Fascia addominale, Esfuerzo abdominal, Esforço "
                "abdominal, Sforzo addominale, Sangle abdominale, Ceinture abdominale, Buik, Buikband, Buk, Bukband"
            ),
        ),
        Slot(
            "Snore",
            "snore",
            labels(
                "Snore, Snoring, SNOR, Snore Sensor, Snore_DC, Ronflement, Ronflements, Schnarchen, Microphone, "
                "Mic, Micro, Mikro, Sound, Audio Volume, Snore Mic, Ronquido, Russamento, Schnarch, Audio, Larynx, "
                "Trachea Sound, Snore Vibration, DC Snore, Ronco, Roncos, Ronquidos, Snurken, Snarkning"
            ),
        ),
        Slot(
            "SpO2",
            "step",
            labels(
                "SpO2, SaO2, O2 Sat, SAT, Oxygen Saturation, Saturation, SpO2 BB, SpO2-OSAT, OSAT, SpO2_1, Oximeter "
                "SpO2, Ox Sat, Oxi SpO2, SaO2 SpO2, Sättigung, Sat O2, Sauerstoffsättigung, SaO2 1, SpO2 Nonin, "
                "Oximetry, O2 saturation, Saturimetro, Oxymetrie, SPO2 Sat, SpO2 Oximeter, NONIN SpO2, SaO2 SaO2, SO2,"
                " Ossimetro, Saturaçao, Saturaçao O2, Saturaçao de O2, Saturacion, Saturacion O2, Saturacion de O2, "
                "Saturazione, Saturazione O2, Saturatie, O2-Sättigung, Syremättnad, Oximetria, Ossimetria"
            ),
        ),
        Slot(
            "Pulse Rate",
            "step",
            labels(
                "Pulse Rate, PR, Pulse, Puls, HR, Heart Rate, BPM, Pouls, Pulso, Pulsfrequenz, Herzfrequenz, Herzrate,"
                " Fréquence cardiaque, FC, Oximeter Pulse, Pulsrate, SpO2 Pulse, Oxi Pulse, DHR, HRate, NONIN Pulse, "
                "Pulse Oximeter, Frequence de pouls, Puls BB, Frecuencia cardiaca, Frequencia cardiaca, Frequenza "
                "cardiaca, Frecuencia de pulso, Frequencia de pulso, Hartfrequentie, Hjärtfrekvens, Pulsfrekvens"
            ),
        ),
        Slot(
            "ECG",
            "ecg",
            labels(
                "ECG, EKG, ECG II, EKG II, ECG2 Lead, Lead II, ECG1-ECG2, ECG2-ECG1, ECG1-2, ECG I, EKG I, "
                "ECG L-ECG R, ECG R-ECG L, ECG LA-RA, ECG EKG, ECG modif, ECG+-ECG-, ECG Ableitung, ECG V2, ECG V1, "
                "ECG V5, EKG1-EKG2, EKG2-EKG1, EKG1-2, EKG L-EKG R, EKG R-EKG L, ECGx, LA-RA, RA-LA, Kardio, "
                "Electrocardiogramme, EKG2-EKG, ECG2-ECG"
            ),
            (
                *ECG_LEADS,
                *(pair for plus, minus in ECG_LEADS for pair in against_others(plus, minus, COMMON)),
            ),
            labels("ECG1, EKG1, ECG L, EKG L, ECG LA, ECG2, EKG2, ECG R, EKG R, ECG RA, ECG III, EKG III"),
        ),
        Slot(
            "Chin EMG",
            "emg",
            labels(
                "Chin EMG, EMG Chin, Chin, Chin1-Chin2, Chin1-2, Chin3-Chin2, Chin2-Chin1, Chin2-Chin3, EMG submental,"
                " submental, EMG1-EMG2, EMG, EMG1, Lchin-Rchin, Lchin-Cchin, Cchin-Lchin, Rchin-Lchin, ChinL-ChinR, "
                "EMG1-2, CHIN EMG1, EMG chin 1, EMG Menton, Menton, EMG Kinn, Kinn, EMG mentalis, mentalis, EMG "
                "Submentalis, Subment, EMG Mento, Menton 1, Chin Ctr, EMG+-EMG-, 1-2 Chin, Cchin-L, Cchin-R, Rchin-L, "
                "Queixo, EMG Queixo, Mento, Barbilla, EMG Barbilla, Mentoniano, EMG Mentoniano, EMG Kin, Kin EMG, "
                "Haka, EMG Haka"
            ),
            pairs("Chin1 - Chin2, Lchin - Rchin, Lchin - Cchin, Chin L - Chin R, EMG L - EMG R, Chin3 - Chin2"),
            labels("Chin1, Lchin, Chin L, Cchin, Chin2, EMG2, Rchin, Chin R, EMG3, EMG L, EMG R"),
        ),
    )
}

EEG_AASM = {
    slot.name: slot
    for slot in (
        derived("F4", "M1"),
        derived("C4", "M1", "EEG", "EEG3"),
        derived("O2", "M1"),
        derived("F3", "M2"),
        derived("C3", "M2", "EEG(sec)"),
        derived("O1", "M2"),
    )
}
CHANNELS |= {**EEG_AASM, "E1": eye("E1", LEFT_EYE, "M2"), "E2": eye("E2", RIGHT_EYE, "M2")}


def paper_electrode(electrode: str) -> Slot:
    """Describe an electrode of the paper's recordings, all of them against Cz."""
    others = [r for r in ("M2", "M1", "Fpz", "M1M2", "Avg", "AVE", "AR", "LM") if r != electrode]
    return Slot(
        f"{electrode}-Cz",
        "eeg",
        (f"{electrode}-Cz",),
        ((electrode, "Cz"), *against_others(electrode, "Cz")),
        (electrode, *(f"{electrode}-{other}" for other in others)),
    )


def renamed(name: str, channel: str) -> Slot:
    """Give a channel the name that a montage's authors use."""
    slot = CHANNELS[channel]
    return Slot(name, slot.kind, (name, *slot.aliases), slot.derivations, slot.substitutes)


PAPER_BRAIN = (
    *(paper_electrode(electrode) for electrode in ("M1", "Fp1", "Fz", "Fp2", "M2", "C3", "C4", "O1", "O2")),
    eye("E1-Cz", LEFT_EYE, "Cz", ("E1", "Cz"), ("LOC", "Cz")),
)
PAPER_ECG = (
    Slot(
        "EKG_L-Cz",
        "ecg",
        labels("EKG_L-Cz, ECG_L-Cz"),
        pairs("EKG L - Cz, ECG L - Cz"),
        labels(
            "EKG L, ECG L, ECG, EKG, ECG1, EKG1, ECG LA, ECG I, EKG I, ECG II, EKG II, Lead II, ECG1-ECG2, EKG1-EKG2, "
            "ECG L-ECG R, EKG L-EKG R, ECG LA-RA, ECG EKG"
        ),
    ),
    Slot(
        "EKG_R-Cz",
        "ecg",
        labels("EKG_R-Cz, ECG_R-Cz"),
        pairs("EKG R - Cz, ECG R - Cz"),
        labels("EKG R, ECG R, ECG2, EKG2, ECG RA, ECG III, EKG III"),
    ),
)

MONTAGES: dict[str, Montage] = {
    "paper": Montage(
        "paper",
        (
            Modality(
                "respiratory",
                (
                    CHANNELS["Snore"],
                    CHANNELS["Nasal Pressure"],
                    renamed("Oral Therm", "Thermal Flow"),
                    CHANNELS["Chest"],
                    renamed("Abd", "Abdomen"),
                    CHANNELS["SpO2"],
                    CHANNELS["Pulse Rate"],
                ),
            ),
            Modality("brain", PAPER_BRAIN),
            Modality("ecg", PAPER_ECG),
        ),
    ),
    "cinc2018": Montage(
        "cinc2018",
        (
            Modality("respiratory", (renamed("CHEST", "Chest"), renamed("SaO2", "SpO2"), renamed("ABD", "Abdomen"))),
            Modality(
                "brain",
                (
                    *(EEG_AASM[name] for name in ("C3-M2", "C4-M1", "O1-M2", "O2-M1")),
                    eye("E1-M2", LEFT_EYE, "M2", ("E1", "M2"), ("LOC", "M2")),
                ),
            ),
            Modality("ecg", (CHANNELS["ECG"],)),
        ),
    ),
    "aasm": Montage(
        "aasm",
        (
            Modality(
                "respiratory",
                tuple(
                    CHANNELS[name]
                    for name in ("Thermal Flow", "Nasal Pressure", "Chest", "Abdomen", "Snore", "SpO2", "Pulse Rate")
                ),
            ),
            Modality("brain", (*EEG_AASM.values(), CHANNELS["E1"], CHANNELS["E2"], CHANNELS["Chin EMG"])),
            Modality("ecg", (CHANNELS["ECG"],)),
        ),
    ),
}
"""Montages by name: the paper's 10 brain, 2 ECG and 7 respiratory channels; the 5, 1 and 3 of the CinC 2018
demonstration; the AASM's recommended montage. ``auto`` is made from a cohort by
:func:`sleepfm_fast.channels.resolve_auto`."""
