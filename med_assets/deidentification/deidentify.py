"""De-identification of DICOM objects: an allow-list, keyed pseudonyms and UIDs, shifted dates, same bytes every time.

What may stay is in `profile`, what is refused in `object_policy`; this module carries it out. Libraries looked at,
and why the table is our own:

- dicognito 0.19 strips ten named elements and replaces names, ids and dates; descriptions, comments, private elements
  and curves pass through, and its shift is one per run, not per patient.
- dicom-anonymizer 2.1 carries table E.1-1 of PS3.15 as a deny-list: what the table doesn't know survives, its UIDs are
  random, so a second run differs, and dates are emptied. Its table is right, and the allow-list was held against it.
- deid 0.4 has a recipe language and no keyed UIDs; its base recipe is a deny-list too.
"""

import datetime
import hashlib
import hmac
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydicom import uid as uids
from pydicom.config import disable_value_validation
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

from med_assets.deidentification.clinical_words import clinical, words
from med_assets.deidentification.codes import standard_code
from med_assets.deidentification.object_policy import refuse_unsafe
from med_assets.deidentification.profile import (
    CLEAN_PIXELS,
    ENUMERATED,
    KNOWN_VALUES,
    REMOVED,
    REQUIRED_TEXTS,
    SENDER_NUMBERS,
    Action,
    code_term,
    known_value,
    registered,
)
from med_assets.deidentification.profiles import STRICT, Profile
from med_assets.deidentification.research import DESCRIPTIONS, ROUNDED, whole_years
from med_assets.dicom.compression import lost_values
from med_assets.dicom.element_values import decimals, read_element, values
from med_assets.dicom.elements import identifier, text
from med_assets.dicom.encoded import CHARACTER_SET, encoded, stored_decimals, stored_text
from med_assets.dicom.objects import code_item
from med_assets.dicom.pixel_data import clean_pixels, require_syntax
from med_assets.dicom.repeated import Repeated, in_order, is_kept
from med_assets.dicom.seg import SOURCE_VALUE
from med_assets.dicom.sop_classes import USUALLY_BURNED_IN
from med_assets.dicom.structure_names import Vocabulary
from med_assets.dicom.ultrasound import without_burnt_in_text
from med_assets.dicom.undecoded import Facts, plain, representation_of, tag_of, tag_of_keyword
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.storage.versions import part_of

MIN_SHIFT_DAYS, MAX_SHIFT_DAYS = 366, 3650
"""Bounds of the per-patient date shift, always into the past: over a year, so that the season does not survive."""

IDENTIFIERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "PatientBirthDate", "PatientAddress")
"""Elements whose values identify a patient wherever they stand."""

MIN_NUMBER_DIGITS = 4
"""Shorter numbers are no identifiers: series and images are counted by them."""

_SENDER_TAGS = frozenset(map(tag_of_keyword, SENDER_NUMBERS))
_CHARACTER_SET = tag_of(0x00080005)

_APART = frozenset({None, Action.PIXELS, Action.STAND_IN})
"""What happens to elements that are taken over by no rule of their own, or not at all."""

_PLAIN = frozenset({(Action.UID, "UI"), (Action.KEEP, "IS")})
"""What of slices differs from slice to slice, and is written as it reads."""

IMPLEMENTATION_UID = "2.25.143202918847170297421270129330160311973"
"""Written as ImplementationClassUID: fixed, so that the bytes do not change with the pydicom version."""

IMPLEMENTATION_VERSION = "MED_ASSETS_1"
"""Written as ImplementationVersionName."""


@part_of("deidentification.profile.profile")
class Deidentifier:
    """De-identifies objects of any number of patients under one key: same key and input, same output, on any machine.

    `roi_vocabulary` holds structure names that may stay, e.g. the synonyms of a site; a Vocabulary says how they are compared, and
    which texts of other elements may stay beside KNOWN_VALUES. `profile` says what happens to each element.
    """

    def __init__(self, key: bytes, roi_vocabulary: Collection[str] = (), profile: Profile = STRICT) -> None:
        """Raises ConfigurationError when the key is empty, and for texts of an element that the profile does not let through."""
        if not key:
            raise ConfigurationError("expected a pseudonym key, got an empty one; set MED_ASSETS_PSEUDONYM_KEY")
        self._key, self.profile = bytes(key), profile
        self.elements: Repeated[DataElement | RawDataElement | None] = Repeated()
        self._identified: Repeated[bool] = Repeated()
        self._declared: tuple[Any, dict[BaseTag, DataElement | RawDataElement]] | None = None
        self._vocabulary = Vocabulary.of(roi_vocabulary)
        if other := sorted(self._vocabulary.texts.keys() - KNOWN_VALUES.keys()):
            raise ConfigurationError(
                f"expected a program's texts for elements among {sorted(KNOWN_VALUES)}, got {other}"
            )
        own = self._vocabulary.texts
        self._texts = {**own, **{name: terms | own.get(name, frozenset()) for name, terms in profile.texts.items()}}

    @property
    def key(self) -> bytes:
        """The key of all pseudonyms."""
        return self._key

    @property
    def stand_ins(self) -> frozenset[str]:
        """Pseudonyms and UIDs of objects that are given, which identify nobody and may stay: none of those that a sender assigned."""
        return frozenset()

    @property
    def vocabulary(self) -> Vocabulary:
        """Names of structures, and texts, that may stay."""
        return self._vocabulary

    def character_set(self, syntax: UID) -> RawDataElement:
        """SpecificCharacterSet of what is stored."""
        return stored_text(_CHARACTER_SET, "CS", CHARACTER_SET, syntax)

    def pseudonym(self, patient_id: str) -> str:
        """16 hexadecimal digits that stand for the patient; surrounding blanks of the id do not count."""
        return self._digest("patient", _clean(patient_id)).hex()[:16]

    def uid(self, original: str) -> str:
        """Keyed UID under 2.25; UIDs that the standard registers (classes, transfer syntaxes) stay."""
        original = _clean(original)
        if not original or registered(original):
            return original
        return f"2.25.{int.from_bytes(self._digest('uid', original)[:16])}"

    def days(self, patient_id: str) -> int:
        """Days to add to every date of this patient: negative, between MIN_SHIFT_DAYS and MAX_SHIFT_DAYS ago."""
        number = int.from_bytes(self._digest("days", _clean(patient_id))[:8])
        return -(MIN_SHIFT_DAYS + number % (MAX_SHIFT_DAYS - MIN_SHIFT_DAYS + 1))

    def structure(self, name: str) -> str | None:
        """The name that a structure keeps, which is that of the vocabulary where a pattern matches; None for one of no meaning."""
        return self._vocabulary.kept(name)

    def text(self, keyword: str, value: str) -> str:
        """The value that a text element of the closed vocabulary keeps; empty for one that may not stay."""
        return known_value(keyword, value, self._texts)

    def apply(self, ds: Dataset, *, text_blanked: bool = False) -> Dataset:
        """A de-identified copy of `ds` with fixed file meta; pixels keep their values, and nothing but these (`clean_pixels`). In
        ultrasound all outside of the regions of tissue is blanked.

        `text_blanked` says that text was blanked in the pixels before, which the object then declares.

        Elements of a dataset that is not decoded yet are taken over, encoded as they are stored, from an earlier object of the same
        patient that had them too.

        Raises CaseRejected: unsupported_sop_class, missing_patient_id, missing_uid, burned_in_annotation,
        region_outside_image, overlay_in_pixels, malformed_element, truncated_file,
        undecodable_pixels, unsafe_pixel_stream. The input is not changed; its values must be in memory.
        """
        with disable_value_validation():  # its warnings quote the values
            return self._apply(ds, text_blanked)

    def _apply(self, ds: Dataset, blanked: bool) -> Dataset:
        elements = in_order(ds)  # before some are decoded
        refuse_unsafe(ds)
        received = _transfer_syntax(ds)
        require_syntax(received)
        lossy = lost_values(ds)  # before text is blanked, which leaves the pixels uncompressed
        if text(ds, "SOPClassUID") in USUALLY_BURNED_IN:
            ds, beside_tissue = without_burnt_in_text(ds)
            elements, blanked = in_order(ds), blanked or beside_tissue
        methods = (*self.profile.options, CLEAN_PIXELS) if blanked else self.profile.options
        patient_id = _clean(text(ds, "PatientID"))
        if not patient_id:
            raise CaseRejected(
                "missing_patient_id",
                "expected a PatientID, got none; dates and splits are kept per patient, so have the owner assign one",
            )
        if not text(ds, "SOPInstanceUID"):
            raise CaseRejected("missing_uid", "expected a SOPInstanceUID, got none; export the object again")
        walk = _Walk(self, self.pseudonym(patient_id), self.days(patient_id), received)
        out = walk.object(ds, elements)
        self.without_identifiers(out, _own_identifiers(ds))
        if self.profile.keeps_descriptions:
            self._without_words(out, _own_names(ds))
        if "PerFrameFunctionalGroupsSequence" in out:
            _fill_required(ds, out)
        for declared in self._declarations(walk.pseudonym, methods, received).values():
            out[declared.tag] = declared
        pixels, syntax = clean_pixels(ds, _transfer_syntax(ds)), _transfer_syntax(ds)
        if lossy:  # pixels may be stored uncompressed, and have lost values all the same
            out.LossyImageCompression = "01"
        if pixels is not None:
            pixels.put_into(out)
            syntax = pixels.syntax
        out.file_meta = _file_meta(
            out, uids.ExplicitVRLittleEndian if pixels is None and syntax.is_encapsulated else syntax
        )
        return out

    def _declarations(
        self, pseudonym: str, methods: tuple[tuple[str, str], ...], syntax: UID
    ) -> dict[BaseTag, DataElement | RawDataElement]:
        """Whose object it is, and how it was de-identified: the same elements in each object of a patient."""
        key = pseudonym, methods, syntax
        if self._declared is None or self._declared[0] != key:
            declared = Dataset()
            declared.PatientID = declared.PatientName = pseudonym
            declared.PatientIdentityRemoved = "YES"
            declared.LongitudinalTemporalInformationModified = "MODIFIED"
            declared.DeidentificationMethod = self.profile.method
            declared.DeidentificationMethodCodeSequence = [
                code_item(value, "DCM", meaning) for value, meaning in methods
            ]
            self._declared = key, {element.tag: encoded(element, syntax) for element in declared}
        return self._declared[1]

    def without_identifiers(self, ds: Dataset, known: Collection[str]) -> None:
        """Empty, in place, numbers that senders assign (SENDER_NUMBERS) and shifted dates that equal a `known` identifier, and drop
        the words of descriptions that do.

        All other numbers are counts and measures: one that equals an identifier does so by chance, and stays.
        """
        self._without_words(ds, known)
        numbers = frozenset(
            text for text in known if len(text) >= MIN_NUMBER_DIGITS and text.isascii() and text.isdigit()
        )
        if not numbers:
            return
        around = self._identified.surroundings(ds, numbers)
        asked = [stored for tag, stored in dict(ds.items()).items() if tag in _MAY_IDENTIFY]
        have = self._identified.each(ds, asked, around, lambda stored: _has_number(ds, stored.tag, numbers))
        for tag in [stored.tag for stored, has in zip(asked, have, strict=True) if has]:
            _empty_number(ds, tag, numbers)

    def _without_words(self, ds: Dataset, known: Collection[str]) -> None:
        """Drop, in place, the words of descriptions that are one of `known`."""
        for keyword in DESCRIPTIONS if self.profile.keeps_descriptions else ():
            if not (description := text(ds, keyword)):
                continue
            folded = {each.strip().casefold() for each in known}
            kept = " ".join(word for word in words(description) if word.casefold() not in folded)
            if kept != description:
                setattr(ds, keyword, kept)

    def _digest(self, domain: str, text: str) -> bytes:
        return hmac.new(self._key, f"{domain}\0{text}".encode(), hashlib.sha256).digest()


def unrecognised_structures(ds: Dataset) -> int:
    """Number of structures in a de-identified object whose names were not in the vocabulary."""
    names = [item.get("ROIName", "") for item in ds.get("StructureSetROISequence", ())]
    names += [item.get("SegmentLabel", "") for item in ds.get("SegmentSequence", ())]
    return sum(str(name).startswith("UNRECOGNISED_") for name in names)


@dataclass
class _Walk:
    """One pass over one object."""

    keys: Deidentifier
    pseudonym: str
    days: int
    syntax: UID
    unrecognised: int = 0
    before: int = 0
    """Structures that were numbered before the element that is looked at."""

    def object(self, ds: Dataset, elements: Sequence[tuple[BaseTag, DataElement | RawDataElement]]) -> Dataset:
        """All of an object but its pixels, in UTF-8; what came before for this patient is taken over encoded."""
        repeated = self.keys.elements
        out: dict[BaseTag, DataElement | RawDataElement] = {_CHARACTER_SET: self.keys.character_set(self.syntax)}
        around = repeated.surroundings(ds, self.pseudonym, self.days, self.syntax)
        kept = [stored for tag, stored in elements if self.keys.profile.actions.get(tag) not in _APART]
        for element in repeated.each(ds, kept, around, partial(self._stored, ds), self._numbered_none):
            if element is not None and (tag := tag_of(element.tag)) is not _CHARACTER_SET:
                out[tag] = element
        return Dataset(out)

    def _numbered_none(self) -> bool:
        """Whether the last element numbered no structure: such a number depends on the structures before it."""
        return self.unrecognised == self.before

    def _stored(self, ds: Dataset, stored: DataElement | RawDataElement) -> DataElement | RawDataElement | None:
        self.before, action = self.unrecognised, self.keys.profile.actions[stored.tag]
        if (written := self._undecoded(stored, action)) is not None:
            return written
        element = self.element(read_element(ds, stored.tag), action)
        return element if element is None or not is_kept(stored) else encoded(element, self.syntax)

    def _undecoded(self, stored: DataElement | RawDataElement, action: Action) -> RawDataElement | None:
        """What is written of an element that needs no decoding: numbers that stay, and UIDs; None of any other."""
        if action is Action.KEEP and (numbers := decimals(stored)) is not None:
            return stored_decimals(stored.tag, numbers, self.syntax)
        value, representation = plain(stored), representation_of(stored.tag)
        if value is None or (stored.VR or representation) != representation or (action, representation) not in _PLAIN:
            return None
        value = self.keys.uid(value) if action is Action.UID else value
        return stored_text(stored.tag, representation, value, self.syntax)

    def dataset(self, ds: Dataset) -> Dataset:
        out: dict[BaseTag, DataElement | RawDataElement] = {}
        for tag, stored in in_order(ds):
            action = self.keys.profile.actions.get(tag)
            if action is None or action in _APART or action is Action.WORDS:
                continue
            element = self._undecoded(stored, action) or self.element(read_element(ds, tag), action)
            if element is not None:
                out[tag_of(tag)] = element
        return Dataset(out)

    def element(self, element: DataElement, action: Action) -> DataElement | None:
        if action is Action.NESTED:
            return _with(element, [self.dataset(item) for item in element.value])
        if action is Action.CODED:
            items = [code for item in element.value if (code := standard_code(item)) is not None]
            return _with(element, items) if items else None
        if action is Action.SOURCE_VALUE:
            return _same(element) if SOURCE_VALUE.match(str(element.value)) else None
        if action is Action.OWN_VOCABULARY:
            own = self.keys.text(element.keyword, str(element.value))
            return _with(element, own) if own else None
        if action in _REWRITTEN:
            kept = _REWRITTEN[action](element)
            return _with(element, kept) if kept else None
        if action is Action.EMPTY and element.VR == "SQ":
            return _with(element, [])
        if action is Action.KEEP:
            return self._code_string(element) if element.VR == "CS" else _same(element)
        replace: dict[Action, Callable[[str], str]] = {
            Action.UID: self.keys.uid,
            Action.DATE: self._date,
            Action.EMPTY: lambda _: "",
            Action.PSEUDONYM: lambda _: self.pseudonym,
            Action.FIXED: lambda _: self.keys.profile.fixed(element.keyword),
            Action.VOCABULARY: lambda text: self.keys.text(element.keyword, text),
            Action.STRUCTURE: self._structure,
        }
        return _with(element, _map(element.value, replace[action]))

    def _code_string(self, element: DataElement) -> DataElement | None:
        terms = [code_term(element.keyword, str(value)) for value in values(element.value)]
        if None in terms and (len(terms) == 1 or element.keyword in ENUMERATED):
            return None
        kept = [REMOVED if term is None else term for term in terms]
        return _with(element, kept[0] if len(kept) == 1 else kept)

    def _date(self, text: str) -> str:
        try:
            date = datetime.datetime.strptime(text.strip()[:8], "%Y%m%d") + datetime.timedelta(days=self.days)
        except (ValueError, OverflowError):
            return ""
        return f"{date:%Y%m%d}" if date.year >= 1000 else ""

    def _structure(self, name: str) -> str:
        kept = self.keys.structure(name)
        if kept is not None:
            return kept
        self.unrecognised += 1
        return f"UNRECOGNISED_{self.unrecognised}"


def _rounded(element: DataElement) -> str:
    try:
        return ROUNDED[element.keyword].rounded(float(element.value))
    except (TypeError, ValueError):
        return ""


_REWRITTEN: dict[Action, Callable[[DataElement], str]] = {
    Action.AGE: lambda element: whole_years(str(element.value)),
    Action.WORDS: lambda element: clinical(str(element.value)),
    Action.ROUNDED: _rounded,
}
"""Elements of which a part stays, if any; else they are removed."""


_MAY_IDENTIFY = _SENDER_TAGS | {tag for tag, action in STRICT.actions.items() if action in (Action.NESTED, Action.DATE)}
"""Elements that are, or hold, numbers that senders assign, and dates."""


def _has_number(ds: Dataset, tag: BaseTag, numbers: frozenset[str]) -> bool:
    """Whether an element is one of `numbers`, or has an item with such an element at any depth."""
    if STRICT.actions.get(tag) is Action.NESTED:
        return any(
            _has_number(item, inner, numbers)
            for item in ds[tag].value or ()
            for inner in list(item.keys())
            if inner in _MAY_IDENTIFY
        )
    return not numbers.isdisjoint(str(value) for value in values(ds[tag].value))


def _empty_number(ds: Dataset, tag: BaseTag, numbers: frozenset[str]) -> None:
    if STRICT.actions.get(tag) is not Action.NESTED:
        ds[tag] = DataElement(tag, ds[tag].VR, None)
        return
    for item in ds[tag].value or ():
        for inner in [
            inner for inner in list(item.keys()) if inner in _MAY_IDENTIFY and _has_number(item, inner, numbers)
        ]:
            _empty_number(item, inner, numbers)


def _fill_required(source: Dataset, out: Dataset) -> None:
    """Put a value of no meaning where the source has one that may not stay, and a multi-frame object needs one."""
    for keyword, value in REQUIRED_TEXTS.items():
        if source.get(keyword) and not out.get(keyword):
            setattr(out, keyword, value)


PERSONS = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ReferringPhysicianName", "RequestingPhysician",
    "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord", "ConsultingPhysicianName",
    "ResponsiblePerson",
)  # fmt: skip
"""Elements with names of persons, none of which is a word of a description that stays; intake looks at those of all objects of a case."""

_own_names = Facts(
    lambda ds: [word for keyword in PERSONS for value in values(ds.get(keyword)) for word in words(str(value))],
    *PERSONS,
)
"""The words of the names of PERSONS that an object has."""

_own_identifiers = Facts(
    lambda ds: [_clean(value) for keyword in IDENTIFIERS for value in values(ds.get(keyword))], *IDENTIFIERS
)
"""The values of IDENTIFIERS that an object has."""


def _transfer_syntax(ds: Dataset) -> UID:
    meta = getattr(ds, "file_meta", None)
    if meta is not None and "TransferSyntaxUID" in meta:
        return UID(text(meta, "TransferSyntaxUID"))
    implicit, little = ds.original_encoding
    if little is False:
        return uids.ExplicitVRBigEndian
    return uids.ImplicitVRLittleEndian if implicit else uids.ExplicitVRLittleEndian


def _file_meta(out: Dataset, syntax: UID) -> FileMetaDataset:
    version = RawDataElement(tag_of(0x00020001), "OB", 2, b"\0\1", 0, False, True)
    texts = [
        stored_text(tag_of(number), representation, value, uids.ExplicitVRLittleEndian)
        for number, representation, value in (
            (0x00020002, "UI", text(out, "SOPClassUID")),
            (0x00020003, "UI", text(out, "SOPInstanceUID")),
            (0x00020010, "UI", syntax),
            (0x00020012, "UI", IMPLEMENTATION_UID),
            (0x00020013, "SH", IMPLEMENTATION_VERSION),
        )
    ]
    return FileMetaDataset({element.tag: element for element in (version, *texts)})


def _same(element: DataElement) -> DataElement:
    return DataElement(element.tag, element.VR, element.value, already_converted=True)


def _with(element: DataElement, value: Any) -> DataElement:
    return DataElement(element.tag, element.VR, value)


def _map(value: Any, function: Callable[[str], str]) -> Any:
    mapped = [function(item) for item in values(value)]
    return mapped[0] if len(mapped) == 1 else mapped


def _clean(text: object) -> str:
    return identifier(text)
