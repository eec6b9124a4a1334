"""How well a folder of de-identified objects answers a key: the share of checks that pass, by kind, and what another scorer reads."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from med_assets.deidentification.answer_key import ANSWERS, Answer, Check, pixel_digest
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.blanking import stored_pixels
from med_assets.dicom.element_values import values
from med_assets.dicom.elements import quietly
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.storage.files import replacing, write_json

SCORER = "midi_scorer"
"""Folder of what the scorer of MIDI-B reads, beside the key."""

MIN_WORD_CHARS = 3
"""Shorter words of a text are not looked for."""


@dataclass(frozen=True)
class IdMapping:
    """New ids by old ones: of UIDs and of patients."""

    uids: Mapping[str, str]
    patients: Mapping[str, str]


@dataclass(frozen=True)
class Share:
    """Checks of one kind: how many there are, how many pass, and the exact 95 % interval of the share (Clopper and Pearson 1934)."""

    check: Check
    n: int
    passed: int
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """Shares by kind of check, keywords that failed and how often, and instances of the key that have no de-identified object."""

    shares: tuple[Share, ...]
    failed: Mapping[tuple[Check, int], int]
    missing: int


def mapping_of(answers: Iterable[Answer], key: bytes) -> IdMapping:
    """The ids that this home gives."""
    ids = Deidentifier(key)
    uids, patients = set(), set()
    for each in answers:
        uids |= {each.study, each.series, each.instance}
        if each.check is Check.UID_CONSISTENT:
            uids.add(each.value)
        if each.check is Check.PATIENT_ID_CONSISTENT:
            patients.add(each.value)
    return IdMapping({uid: ids.uid(uid) for uid in sorted(uids)}, {one: ids.pseudonym(one) for one in sorted(patients)})


def read_mapping(uids: Path, patients: Path) -> IdMapping:
    """The ids that another tool gave, from two CSV files with the columns id_old and id_new. Raises ConfigurationError."""

    def read(path: Path) -> dict[str, str]:
        try:
            with path.open(newline="") as stream:
                return {row["id_old"]: row["id_new"] for row in csv.DictReader(stream)}
        except (OSError, KeyError, csv.Error, UnicodeDecodeError):
            raise ConfigurationError(
                f"expected a CSV with the columns id_old and id_new in {path.name}, got none"
            ) from None

    return IdMapping(read(uids), read(patients))


def score(answers: Iterable[Answer], folder: Path, mapping: IdMapping) -> Score:
    """Score the objects of a folder, which are found by their new SOPInstanceUID; all checks of one that is missing fail.

    Raises ConfigurationError where no object of the key is there.
    """
    paths = _paths(folder)
    n, passed, failed = dict.fromkeys(Check, 0), dict.fromkeys(Check, 0), dict[tuple[Check, int], int]()
    by_instance: dict[str, list[Answer]] = {}
    for each in answers:
        by_instance.setdefault(each.instance, []).append(each)
    missing = 0
    for instance, checks in sorted(by_instance.items()):
        path = paths.get(mapping.uids.get(instance, ""))
        ds = dcmread(path) if path else None
        missing += ds is None
        for each in checks:
            n[each.check] += 1
            with quietly():
                good = ds is not None and _passes(each, ds, mapping)
            passed[each.check] += good
            if not good:
                failed[each.check, each.tag] = failed.get((each.check, each.tag), 0) + 1
    if missing == len(by_instance):
        raise ConfigurationError(
            f"expected de-identified objects of the key, found none of {missing}; give the folder with the output, and the mapping of ids of "
            "the tool that made it (--uids, --patients) where that is not this home"
        )
    shares = tuple(
        Share(check, n[check], passed[check], *_interval(passed[check], n[check])) for check in Check if n[check]
    )
    return Score(shares, failed, missing)


def write_for_scorer(folder: Path, deidentified: Path, mapping: IdMapping) -> Path:
    """Write what the scorer of MIDI-B reads beside the key: its configuration and the two mappings; returns the configuration."""
    into = folder / SCORER
    for name, ids in (("uid_mapping.csv", mapping.uids), ("patid_mapping.csv", mapping.patients)):
        with replacing(into / name) as temporary, temporary.open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(("id_old", "id_new"))
            table.writerows(sorted(ids.items()))
    write_json(
        into / "config.json",
        {
            "run_name": "med_assets", "input_data_path": str(deidentified.absolute()), "output_data_path": str((into / "output").absolute()),
            "answer_db_file": str((folder / ANSWERS).absolute()), "uid_mapping_file": str((into / "uid_mapping.csv").absolute()),
            "patid_mapping_file": str((into / "patid_mapping.csv").absolute()), "multiprocessing": "False", "multiprocessing_cpus": "1",
            "log_path": str((into / "logs").absolute()), "log_level": "info",
        },
    )  # fmt: skip
    return into / "config.json"


def _paths(folder: Path) -> dict[str, Path]:
    """Files by SOPInstanceUID."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with quietly():
                found[str(dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).SOPInstanceUID)] = (
                    path
                )
        except (InvalidDicomError, OSError, EOFError, AttributeError):
            continue
    return found


def _passes(asked: Answer, ds: Dataset, mapping: IdMapping) -> bool:
    """Whether an object answers a check."""
    texts = (
        [str(value) for value in values(ds[asked.tag].value)] if asked.tag in ds and asked.tag != 0x7FE00010 else [""]
    )
    there = "\\".join(texts).strip()
    match asked.check:
        case Check.TAG_RETAINED:
            return asked.tag in ds
        case Check.TEXT_REMOVED:
            return not any(word in there.casefold() for word in _words(asked.text))
        case Check.TEXT_RETAINED:
            return asked.text.casefold() in there.casefold() or _number(asked.text, there)
        case Check.DATE_SHIFTED | Check.UID_CHANGED:
            return asked.value not in there
        case Check.UID_CONSISTENT:
            return there == mapping.uids.get(asked.value)
        case Check.PATIENT_ID_CONSISTENT:
            return there == mapping.patients.get(asked.value)
        case Check.PIXELS_HIDDEN | Check.PIXELS_RETAINED:
            return _pixels_pass(asked, ds)


def _pixels_pass(asked: Answer, ds: Dataset) -> bool:
    try:
        frames = stored_pixels(ds)
    except CaseRejected:
        return False
    if asked.check is Check.PIXELS_RETAINED:
        return pixel_digest(frames) == asked.text
    outside = np.ones(frames.shape[1:3], bool)
    for top, bottom, left, right in json.loads(asked.text):
        outside[top:bottom, left:right] = False
    return not outside.any() or len(np.unique(frames[:, outside])) == 1


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", text.casefold()) if len(word) >= MIN_WORD_CHARS]


def _number(asked: str, there: str) -> bool:
    try:
        return float(asked) == float(there)
    except ValueError:
        return False


def _interval(passed: int, n: int) -> tuple[float, float]:
    from scipy.stats import beta

    low = float(beta.ppf(0.025, passed, n - passed + 1)) if passed else 0.0
    high = float(beta.ppf(0.975, passed + 1, n - passed)) if passed < n else 1.0
    return low, high
