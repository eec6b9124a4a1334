"""Phantoms with planted identity, and an answer key that says what de-identification must do to each element.

The key is an SQLite file in the layout that the scorer of the MIDI-B challenge reads: the table `answer_data` with the UIDs of an
instance and, as JSON, its checks. Values are written between angle brackets there. Nothing in it is of a person.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from med_assets.dicom.blanking import stored_pixels
from med_assets.dicom.elements import text
from med_assets.dicom.ultrasound import tissue_regions
from med_assets.errors import ConfigurationError

ANSWERS, ORIGINALS = "answers.db", "originals"
"""Files of a key: the answers, and the folder of phantoms with planted identity."""


class Check(StrEnum):
    """What is asked of an element; the names are those of the scorer."""

    TAG_RETAINED = "tag_retained"
    TEXT_REMOVED = "text_removed"
    TEXT_RETAINED = "text_retained"
    DATE_SHIFTED = "date_shifted"
    UID_CHANGED = "uid_changed"
    UID_CONSISTENT = "uid_consistent"
    PATIENT_ID_CONSISTENT = "patid_consistent"
    PIXELS_HIDDEN = "pixels_hidden"
    PIXELS_RETAINED = "pixels_retained"


@dataclass(frozen=True)
class Answer:
    """One check: of an instance by its original UIDs, of an element, with its original value and the text that is asked for."""

    study: str
    series: str
    instance: str
    tag: int
    check: Check
    value: str
    text: str = ""


PLANTED = {
    "PatientName": "Plantagon^Quimby", "OtherPatientIDs": "PLANT-OTHER-4711", "PatientBirthDate": "19010203",
    "PatientAddress": "17 Inventia Lane", "AccessionNumber": "PLANTACC0815", "ReferringPhysicianName": "Refferton^Invented",
    "OperatorsName": "Opperman^Invented", "InstitutionName": "Hospital of Nowhereville", "StationName": "PLANTSTATION9",
    "StudyID": "PLANTSTUDY7", "PatientComments": "seen with Quimby Plantagon on ward 9", "DeviceSerialNumber": "PLANTSN-55512",
    "RequestingPhysician": "Askerton^Invented", "ImageComments": "called Quimby Plantagon about this",
}  # fmt: skip
"""Invented identity by element: all of it must go."""

DESCRIPTIONS = {
    "StudyDescription": ("CHEST AND ABDOMEN", "Plantagon"),
    "SeriesDescription": ("AXIAL STANDARD", "Quimby"),
}
"""Descriptions: words of the examination, which should stay, and a name, which must go."""

CHARACTERISTICS = {"PatientSex": "F", "PatientAge": "094Y", "PatientWeight": "83.4", "EthnicGroup": "Inventian"}
"""What the profile `research` keeps of a patient: the sex as it is, an age and a weight of a band, the ethnic group not at all."""

PLANTED_DATES = {"StudyDate": "20190304", "SeriesDate": "20190304", "ContentDate": "20190305"}
PRIVATE_GROUP, PRIVATE_CREATOR = 0x0029, "PLANTED PRIVATE"

RETAINED_TAGS = (
    "SOPClassUID",
    "Modality",
    "PatientID",
    "PatientName",
    "StudyDate",
    "StudyInstanceUID",
    "PatientSex",
    "SeriesNumber",
)
"""Elements that readers of the object need; they may have another value."""

RETAINED_TEXTS = (
    "Modality",
    "Rows",
    "Columns",
    "SliceThickness",
    "KVP",
    "BodyPartExamined",
    "PatientPosition",
    "PhotometricInterpretation",
)
"""Elements whose value says nothing of a person and is needed, as far as an object has them, with one value."""

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


def write_key(folder: Path, *, characteristics: bool = False) -> int:
    """Plant identity into the phantoms of `folder / ORIGINALS`, and write the answers beside it; returns how many checks there are.

    With `characteristics` the key asks for those of the patient too, as the profile `research` keeps them.

    Raises ConfigurationError where there are no DICOM files.
    """
    answers: list[Answer] = []
    for path in sorted(path for path in (folder / ORIGINALS).rglob("*") if path.is_file()):
        try:
            ds = dcmread(path)
        except InvalidDicomError:
            continue
        _plant(ds, CHARACTERISTICS if characteristics else {})
        ds.save_as(path, enforce_file_format=True)
        answers += _answers(ds, characteristics=characteristics)
    if not answers:
        raise ConfigurationError(
            f"expected DICOM files in the folder {ORIGINALS}, got none; write phantoms there first"
        )
    _write(folder / ANSWERS, answers)
    return len(answers)


def read_key(path: Path) -> list[Answer]:
    """The answers of a key, also of one that others wrote in this layout; checks that are none of `Check` are left out.

    Raises ConfigurationError for a file in another layout.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"expected an answer key in {path.name}, found no such file; med-assets deid-key writes one"
        )
    known = set(Check)
    try:
        with closing(sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID, AnswerData FROM answer_data"
            ).fetchall()
        return [
            Answer(study, series, instance, Tag(_plain(each["tag_ds"]).strip("()").replace(",", "")), Check(action), _plain(each["value"]), _plain(each["action_text"]))
            for study, series, instance, data in rows
            for each in json.loads(data).values()
            if (action := _plain(each["action"])) in known and '"' not in each["tag_ds"] and "[" not in each["tag_ds"]
        ]  # fmt: skip
    except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigurationError(
            f"expected the table answer_data with UIDs and AnswerData in {path.name}, got another layout"
        ) from None


def pixel_digest(pixels: np.ndarray) -> str:
    """MD5 of decoded pixels, as they lie in memory."""
    return hashlib.md5(np.ascontiguousarray(pixels).tobytes(), usedforsecurity=False).hexdigest()


def _plant(ds: Dataset, more: Mapping[str, str]) -> None:
    for keyword, value in {**PLANTED, **PLANTED_DATES, **more}.items():
        setattr(ds, keyword, value)
    for keyword, (words, name) in DESCRIPTIONS.items():
        setattr(ds, keyword, f"{words} {name}")
    ds.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True).add_new(0x01, "LO", PLANTED["PatientName"])


def _answers(ds: Dataset, *, characteristics: bool) -> Iterator[Answer]:
    def answer(tag: int, check: Check, asked: str | None = None) -> Answer:
        value = "" if tag == 0x7FE00010 else str(ds[tag].value).strip() if tag in ds else ""
        study, series, instance = (text(ds, keyword) for keyword in UIDS[:3])
        return Answer(study, series, instance, tag, check, value, value if asked is None else asked)

    for keyword in PLANTED:
        yield answer(_tag(keyword), Check.TEXT_REMOVED)
    for keyword, (words, name) in DESCRIPTIONS.items():
        yield answer(_tag(keyword), Check.TEXT_REMOVED, name)
        yield answer(_tag(keyword), Check.TEXT_RETAINED, words)
    if characteristics:
        yield answer(_tag("PatientSex"), Check.TEXT_RETAINED)
        for keyword in ("PatientAge", "PatientWeight"):
            yield answer(_tag(keyword), Check.TAG_RETAINED)
        for keyword in ("PatientAge", "EthnicGroup"):
            yield answer(_tag(keyword), Check.TEXT_REMOVED)
    for keyword in PLANTED_DATES:
        yield answer(_tag(keyword), Check.DATE_SHIFTED)
    for keyword in RETAINED_TAGS:
        if keyword in ds:
            yield answer(_tag(keyword), Check.TAG_RETAINED)
    for keyword in RETAINED_TEXTS:
        if ds.get(keyword) not in (None, "") and ds[keyword].VM == 1:
            yield answer(_tag(keyword), Check.TEXT_RETAINED)
    for keyword in UIDS:
        if ds.get(keyword):
            yield answer(_tag(keyword), Check.UID_CHANGED)
            yield answer(_tag(keyword), Check.UID_CONSISTENT)
    yield answer(_tag("PatientID"), Check.TEXT_REMOVED)
    yield answer(_tag("PatientID"), Check.PATIENT_ID_CONSISTENT)
    if "PixelData" in ds:
        if text(ds, "Modality") == "US":
            yield answer(0x7FE00010, Check.PIXELS_HIDDEN, json.dumps(_boxes(ds)))
        else:
            yield answer(0x7FE00010, Check.PIXELS_RETAINED, pixel_digest(stored_pixels(ds)))


def _boxes(ds: Dataset) -> list[list[int]]:
    """Tissue of ultrasound as first and last row, first and last column: all outside of it must be hidden."""
    return [[rows.start, rows.stop, columns.start, columns.stop] for (rows, columns), _ in tissue_regions(ds)]


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag


def _plain(value: object) -> str:
    """A value without the angle brackets around it."""
    return str(value or "").removeprefix("<").removesuffix(">")


def _write(path: Path, answers: Iterable[Answer]) -> None:
    by_instance: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for each in answers:
        checks = by_instance.setdefault((each.study, each.series, each.instance), {})
        name = f"({each.tag >> 16:04x},{each.tag & 0xFFFF:04x})"
        checks[str(len(checks))] = {
            "tag": f"<{name}>", "tag_ds": f"<{name}>", "tag_name": f"<{dictionary_description(each.tag)}>", "value": f"<{each.value}>",
            "action": f"<{each.check}>", "action_text": f"<{each.text}>", "answer_category_v2": str(each.check),
        }  # fmt: skip
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE answer_data (StudyInstanceUID TEXT, SeriesInstanceUID TEXT, SOPInstanceUID TEXT, scope TEXT, AnswerData TEXT)"
        )
        database.executemany(
            "INSERT INTO answer_data VALUES (?, ?, ?, '<Instance>', ?)",
            [(*uids, json.dumps(checks)) for uids, checks in sorted(by_instance.items())],
        )
