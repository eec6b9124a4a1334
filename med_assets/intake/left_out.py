"""What stands beside the images of a study and is part of no case: localizers, screen captures, reports and their like."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from med_assets.dicom.sop_classes import MODALITIES, STORAGE
from med_assets.program import Refusal

if TYPE_CHECKING:
    from med_assets.dicom.discover import Instance

LOCALIZER, SCREEN_CAPTURE, NO_IMAGE = "localizer", "screen_capture", "not_an_image"

MEANING = {
    LOCALIZER: "localizer images, by ImageType or since their series has one slice of each orientation",
    SCREEN_CAPTURE: "screen captures, secondary captures or images made by a viewer",
    NO_IMAGE: "reports, presentation states, key object selections, raw data or other objects without images",
}
"""Codes of what is left out, and what it is."""

LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SCANOSCOPE", "SURVIEW", "SCOUT VIEW"})
CAPTURE_TYPES = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "SCREEN", "DOSE_INFO", "DOSE INFO", "PROTOCOL"})
CAPTURE_PREFIX = "CSA "
"""Siemens marks what its viewers and applications made (CSA 3D EDITOR, CSA REPORT, CSA MPR) so."""

CAPTURE_CLASSES = frozenset({f"{STORAGE}7", *(f"{STORAGE}7.{number}" for number in range(1, 5))})
NO_IMAGE_CLASSES = (
    f"{STORAGE}88.", f"{STORAGE}11.", f"{STORAGE}104.", f"{STORAGE}66.1", f"{STORAGE}66.2", f"{STORAGE}66.3",
    f"{STORAGE}9.", f"{STORAGE}4.2", f"{STORAGE}67", "1.3.12.2.1107.5.9.1", "1.2.840.113619.4.",
)  # fmt: skip
"""Prefixes of SOP classes: SR, presentation states, documents, registrations, waveforms, spectra, and raw data of makers."""

RAW_DATA = f"{STORAGE}66"
NO_IMAGE_MODALITIES = frozenset({"SR", "PR", "KO", "DOC", "REG", "RTRECORD", "RAW", "FID", "AU", "PLAN"})

KNOWN_MODALITIES = frozenset({
    "AU", "BI", "BMD", "CR", "CT", "DG", "DOC", "DX", "ECG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS",
    "KO", "LS", "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPV", "OSS", "OT", "PLAN", "PR", "PT", "PX", "REG",
    "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "STAIN",
    "TG", "US", "VA", "XA", "XC",
})  # fmt: skip
"""Modalities of PS3.3: messages name no other, since any text can stand in that element."""


def shown(modality: str) -> str:
    """A modality as messages name it."""
    return modality if modality in KNOWN_MODALITIES else "other modalities"


STACKED = frozenset(name for name, kind in MODALITIES.items() if kind.stacked)
"""Modalities whose series are stacks of slices."""


def kind_of(instance: "Instance") -> str:
    """Code of what an object is that belongs to no case, empty for all others."""
    sop_class = instance.sop_class_uid
    if sop_class in CAPTURE_CLASSES:
        return SCREEN_CAPTURE
    no_image = sop_class == RAW_DATA or any(_under(sop_class, prefix) for prefix in NO_IMAGE_CLASSES)
    if no_image or instance.modality in NO_IMAGE_MODALITIES:
        return NO_IMAGE
    if instance.modality not in STACKED:
        return ""
    types = instance.image_type
    if not LOCALIZER_TYPES.isdisjoint(word for value in types[2:] for word in (value, *value.split())):
        return LOCALIZER
    if any(value in CAPTURE_TYPES or value.startswith(CAPTURE_PREFIX) for value in types[2:]):
        return SCREEN_CAPTURE
    return ""


def _under(sop_class: str, prefix: str) -> bool:
    return sop_class.startswith(prefix) if prefix.endswith(".") else sop_class == prefix


def set_aside(
    instances: Sequence["Instance"], image_modality: str = ""
) -> tuple[list["Instance"], dict[str, list["Instance"]]]:
    """Split the instances of one study into those that cases are made of, and those left out, by code.

    What a label refers to is never left out. `image_modality` is given where an entry holds none but such images: then they
    stay, and the program says what is wrong with them.
    """
    named = {uid for one in instances for uid in one.referenced_sops}
    aside: dict[str, list[Instance]] = defaultdict(list)
    kept: list[Instance] = []
    for one in instances:
        code = "" if one.sop_instance_uid in named or one.modality == image_modality else kind_of(one)
        (aside[code] if code else kept).append(one)
    series: dict[str, list[Instance]] = defaultdict(list)
    for one in kept:
        if one.modality in STACKED:
            series[one.series_uid].append(one)
    single = {uid for uid, slices in series.items() if _one_of_each(slices, named)}
    if len(single) < len(series):
        aside[LOCALIZER] += [one for one in kept if one.series_uid in single]
        kept = [one for one in kept if one.series_uid not in single]
    return kept, {code: found for code, found in aside.items() if found}


def _one_of_each(slices: Sequence["Instance"], named: Collection[str]) -> bool:
    """Whether a series has one slice of each orientation that it has, and no label refers to it."""
    if any(one.frames > 1 or not one.orientation or one.sop_instance_uid in named for one in slices):
        return False
    return len({tuple(round(value, 1) for value in one.orientation) for one in slices}) == len(slices)


def notes(aside: Mapping[str, Sequence["Instance"]], patient_id: str) -> list[Refusal]:
    """A note for each code with how many objects were left out."""
    return [
        Refusal(
            code,
            f"{len(found)} objects beside the case are not used: {MEANING[code]}",
            len(found),
            patient_id,
            note=True,
        )
        for code, found in sorted(aside.items())
    ]
