"""Looks for identity that is still in stored DICOM: a check of its own, made after de-identification and not trusting it.

It reads every element of every file at every depth, and reports what the confidentiality profile would not have let
through, and every occurrence of strings that are known to identify the patients. A finding never quotes what it found.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from med_assets.dicom.admission import read_element, values
from med_assets.dicom.codes import CODE_ELEMENTS, standard_codes
from med_assets.dicom.confidentiality import (
    ALLOWED,
    ENUMERATED,
    FILE_META,
    FIXED_VALUES,
    KNOWN_VALUES,
    USUALLY_BURNED_IN,
    Action,
)
from med_assets.dicom.deidentify import CODE_STRING
from med_assets.errors import CaseRejected

MIN_KNOWN_CHARS = 4
"""Shorter known strings are not looked for: they occur by chance in ordinary values."""

MIN_KNOWN_CHARS_IN_PIXELS = 8
"""The same for compressed pixel data, where any short string occurs by chance among megabytes."""

_PSEUDONYM = re.compile(r"[0-9a-f]{16}\Z")
_KEYED_UID = re.compile(r"2\.25\.[0-9]{1,39}\Z")
_STRUCTURE = re.compile(r"UNRECOGNISED_[0-9]+\Z")
_TEXT = frozenset({"AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
_IDENTIFYING = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "PatientBirthDate", "PatientAddress")


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that should not be there: where (tag path such as `(3006,0020)[0](3006,0026)`, or `file`) and why."""

    tag: str
    reason: str


def residual_phi(
    source: Path | Iterable[Dataset | Path], *, known: Collection[str] = (), roi_vocabulary: Collection[str] | None = None
) -> list[Finding]:
    """What is left of identity in stored objects: sorted distinct findings, empty when there is none.

    `source` is a folder (searched to its depth, file and folder names included), or files and datasets. `known` are
    strings that identify these patients, e.g. from `identifying_values`; those under MIN_KNOWN_CHARS are left out.
    With `roi_vocabulary`, structure names outside it are findings; without, only `known` is looked for in them.
    """
    scan = _Scan(known, roi_vocabulary)
    found: set[Finding] = set()
    for name, ds in _objects(source):
        found.update(scan.name(name))
        found.update([Finding("file", "not a readable DICOM file")] if ds is None else scan.object(ds))
    return sorted(found)


def identifying_values(ds: Dataset) -> frozenset[str]:
    """Strings of an original object to look for afterwards: name parts of all persons, ids, birth date, instance UIDs."""
    found: set[str] = set()
    for element in ds.iterall():
        if element.tag.is_private or element.is_empty:
            continue
        if element.VR == "PN":
            found.update(part for value in values(element.value) for part in re.split(r"[\^=\s]+", value))
        elif element.keyword in _IDENTIFYING or (element.VR == "UI" and element.keyword.endswith("InstanceUID")):
            found.update(str(value) for value in values(element.value))
    return frozenset(text.strip() for text in found if len(text.strip()) >= MIN_KNOWN_CHARS)


class _Scan:
    def __init__(self, known: Collection[str], roi_vocabulary: Collection[str] | None) -> None:
        self._known = frozenset(text.strip().casefold() for text in known if len(text.strip()) >= MIN_KNOWN_CHARS)
        self._squeezed = frozenset(text for text in map(_squeeze, self._known) if len(text) >= MIN_KNOWN_CHARS)
        self._in_pixels = [text.encode() for text in self._known if len(text) >= MIN_KNOWN_CHARS_IN_PIXELS]
        self._structures = None if roi_vocabulary is None else {_squeeze(name) for name in roi_vocabulary}

    def name(self, name: str) -> Iterator[Finding]:
        if self._identifies(name):
            yield Finding("file", "a file or folder name contains a known identifying string")

    def object(self, ds: Dataset) -> Iterator[Finding]:
        if isinstance(ds, FileDataset) and any(ds.preamble or b""):
            yield Finding("file", "the preamble is not empty")
        for element in getattr(ds, "file_meta", ()):
            if element.keyword not in FILE_META:
                yield Finding(str(element.tag), "file meta element that is not on the allow-list")
            if element.VR in _TEXT and any(self._identifies(value) for value in values(element.value)):
                yield Finding(str(element.tag), "contains a known identifying string")
        yield from self._declarations(ds)
        yield from self._dataset(ds, "")

    def _declarations(self, ds: Dataset) -> Iterator[Finding]:
        if ds.get("PatientIdentityRemoved") != "YES":
            yield Finding("(0012,0062)", "PatientIdentityRemoved is not YES")
        if ds.get("LongitudinalTemporalInformationModified") != "MODIFIED":
            yield Finding("(0028,0303)", "dates are not declared as shifted")
        burned_in = str(ds.get("BurnedInAnnotation", "")).strip().upper()
        if burned_in == "YES" or (str(ds.get("SOPClassUID", "")) in USUALLY_BURNED_IN and burned_in != "NO"):
            yield Finding("(0028,0301)", "the pixels hold text, or do not say that they hold none")

    def _dataset(self, ds: Dataset, path: str, *, coded: bool = False) -> Iterator[Finding]:
        for tag in sorted(ds.keys()):
            where = f"{path}{tag}"
            if tag.is_private:
                yield Finding(where, "private element")
            elif coded:
                yield from self._code_element(ds, ds[tag], where)
            elif tag not in ALLOWED:
                yield Finding(where, "not on the allow-list")
            yield from self._value(ds, tag, where, coded)

    def _value(self, ds: Dataset, tag: int, where: str, coded: bool) -> Iterator[Finding]:
        action = ALLOWED.get(tag)
        try:
            element = read_element(ds, ds[tag].tag) if action is not None and not coded else ds[tag]
        except (CaseRejected, ValueError, TypeError, NotImplementedError):
            yield Finding(where, "the value does not have the form of its VR")
            return
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                yield from self._dataset(item, f"{where}[{number}]", coded=action is Action.CODED)
            return
        if action is not None and not coded:
            yield from self._allowed(element, action, where)
        if self._contains_known(element):
            yield Finding(where, "contains a known identifying string")

    def _allowed(self, element: DataElement, action: Action, where: str) -> Iterator[Finding]:
        texts = [str(value) for value in values(element.value) if value not in ("", b"")]
        keyword = element.keyword
        if action is Action.KEEP and element.VR == "CS":
            terms = ENUMERATED.get(keyword)
            good = all(text in terms if terms else CODE_STRING.match(text) for text in texts)
        elif action is Action.UID:
            good = all(_KEYED_UID.match(text) or UID(text).type for text in texts)
        elif action is Action.DATE:
            good = all(re.fullmatch(r"\d{8}", text) for text in texts)
        elif action is Action.EMPTY:
            good = not texts
        elif action is Action.PSEUDONYM:
            good = all(_PSEUDONYM.match(text) for text in texts)
        elif action is Action.VOCABULARY:
            good = all(text in KNOWN_VALUES[keyword] for text in texts)
        elif action is Action.FIXED:
            good = all(text == FIXED_VALUES[keyword] for text in texts)
        elif action is Action.STRUCTURE:
            good = self._structures is None or all(_STRUCTURE.match(t) or _squeeze(t) in self._structures for t in texts)
        else:
            good = True
        if not good:
            yield Finding(where, f"{keyword} has a value that the profile does not let through ({action.name.lower()})")

    def _code_element(self, item: Dataset, element: DataElement, where: str) -> Iterator[Finding]:
        meaning = standard_codes().get((str(item.get("CodingSchemeDesignator", "")), str(item.get("CodeValue", ""))))
        declared = element.value if element.keyword == "CodeMeaning" else meaning
        if element.keyword not in CODE_ELEMENTS or meaning is None or declared != meaning:
            yield Finding(where, "a code, or its text, that is not in the standard's dictionaries")

    def _contains_known(self, element: DataElement) -> bool:
        if isinstance(element.value, bytes):
            compressed = element.value.startswith(b"\xfe\xff\x00\xe0")
            return compressed and any(text in element.value.lower() for text in self._in_pixels)
        if element.VR not in _TEXT:
            return any(str(value).casefold() in self._known for value in values(element.value))
        return any(self._identifies(value) for value in values(element.value))

    def _identifies(self, text: str) -> bool:
        if _PSEUDONYM.match(text) or _KEYED_UID.match(text):
            return text.casefold() in self._known
        folded, squeezed = text.casefold(), _squeeze(text)
        return any(known in folded for known in self._known) or any(known in squeezed for known in self._squeezed)


def _squeeze(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _objects(source: Path | Iterable[Dataset | Path]) -> Iterator[tuple[str, Dataset | None]]:
    if isinstance(source, Path):
        root = source
        paths: Iterable[Dataset | Path] = sorted(path for path in source.rglob("*") if path.is_file())
    else:
        root, paths = Path(), source
    with disable_value_validation():
        for item in paths:
            if isinstance(item, Dataset):
                yield "", item
                continue
            try:
                ds: Dataset | None = dcmread(item)
            except (InvalidDicomError, OSError, EOFError):
                ds = None
            yield str(item.relative_to(root)) if item.is_relative_to(root) else item.name, ds
