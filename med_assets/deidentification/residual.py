"""Looks for identity that is still in stored DICOM: a check made after de-identification that does not trust it.

It reads every element of every file at every depth, and reports what the confidentiality profile would not have let
through, and every occurrence of strings that are known to identify the patients. A finding never quotes what it found.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_has_tag, dictionary_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag
from pydicom.uid import RLELossless

from med_assets.deidentification.clinical_words import clinical, words
from med_assets.deidentification.codes import CODE_ELEMENTS, standard_meaning
from med_assets.deidentification.deidentify import IDENTIFIERS, IMPLEMENTATION_VERSION, MIN_NUMBER_DIGITS
from med_assets.deidentification.known_bytes import KnownBytes
from med_assets.deidentification.profile import (
    CODE_TERMS,
    FILE_META,
    FIXED_VALUES,
    KNOWN_VALUES,
    REMOVED,
    REQUIRED_TEXTS,
    SENDER_NUMBERS,
    Action,
    registered,
)
from med_assets.deidentification.profiles import STRICT, Profile, declared_profile
from med_assets.deidentification.research import DESCRIPTIONS
from med_assets.dicom.element_values import decimals, read_element, values
from med_assets.dicom.elements import text
from med_assets.dicom.repeated import Repeated, in_order
from med_assets.dicom.seg import SOURCE_VALUE
from med_assets.dicom.sop_classes import PIXEL_CLASSES, USUALLY_BURNED_IN
from med_assets.dicom.structure_names import Vocabulary
from med_assets.dicom.undecoded import Facts, plain_element, tag_of_keyword
from med_assets.errors import CaseRejected
from med_assets.storage.versions import versioned

MIN_NAME_CHARS = 3
"""Shorter names are not looked for; neither are ids with digits of fewer than MIN_NUMBER_DIGITS characters."""

MIN_PART_CHARS = 4
"""Longer names are found as a part of a word too, shorter ones as a whole word."""

_PSEUDONYM = re.compile(r"[0-9a-f]{16}\Z")
_HASH = re.compile(r"[0-9a-f]{16,128}\Z")
_KEYED_UID = re.compile(r"2\.25\.[0-9]{1,39}\Z")
_STRUCTURE = re.compile(r"UNRECOGNISED_[0-9]+\Z")
_FORMS = {
    Action.UID: _KEYED_UID,
    Action.DATE: re.compile(r"[0-9]{8}\Z"),
    Action.EMPTY: re.compile(r"\Z"),
    Action.PSEUDONYM: _PSEUDONYM,
    Action.SOURCE_VALUE: SOURCE_VALUE,
}
_CLOSED = {
    **KNOWN_VALUES,
    **{keyword: terms | {REMOVED} for keyword, terms in CODE_TERMS.items()},
    **{keyword: frozenset({text}) for keyword, text in FIXED_VALUES.items()},
    **{keyword: KNOWN_VALUES.get(keyword, frozenset()) | {text} for keyword, text in REQUIRED_TEXTS.items()},
}
STRUCTURES = frozenset({"ROIName", "SegmentLabel"})
"""Names that are text; where the vocabulary is not given, any text."""

_NEVER_IDENTIFY = frozenset({"DS", "FL", "FD", "US", "SS", "UL", "SL", "OB", "OW", "OF", "OD", "CS", "DA", "TM", "IS"})
"""What is neither text nor a name, a UID or a sequence, and identifies no one unless it is one of IDENTIFIERS."""

_IDENTIFIER_TAGS = frozenset(map(tag_of_keyword, IDENTIFIERS))

_DECIMALS_THAT_IDENTIFY = frozenset(map(tag_of_keyword, (*SENDER_NUMBERS, *_CLOSED)))
"""Kept elements of which also a number can be a finding."""

_TEXT = frozenset({"AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that should not be there: where (tag path such as `(3006,0020)[0](3006,0026)`, or `file`) and why."""

    tag: str
    reason: str


@versioned("3")
def residual_phi(
    source: Path | Iterable[Dataset | Path],
    *,
    known: Collection[str] = (),
    roi_vocabulary: Collection[str] | None = None,
    profile: Profile | None = None,
) -> list[Finding]:
    """What is left of identity in stored objects: sorted distinct findings, empty when there is none.

    `source` is a folder (searched to its depth, file and folder names included), or files and datasets. `known` are
    strings that identify these patients, e.g. from `identifying_values`; those that are too short are left out.
    With `roi_vocabulary`, structure names outside it are findings, and its `texts` are none; without, only `known` is looked for
    in structure names. Each object is held against the profile that it names, and has to name `profile` where that is given.
    """
    scan = _Scan(known, roi_vocabulary, profile)
    found: set[Finding] = set()
    for name, ds in _objects(source):
        found.update(scan.name(name))
        found.update([Finding("file", "not a readable DICOM file")] if ds is None else scan.object(ds))
    return sorted(found)


def identifying_values(ds: Dataset, repeated: Repeated[frozenset[str]] | None = None) -> frozenset[str]:
    """Strings of an original object to look for afterwards: name parts of persons, ids, birth date, instance UIDs.

    `repeated` holds those of elements that came before.
    """
    repeated = Repeated() if repeated is None else repeated
    around = repeated.surroundings(ds)
    found: set[str] = set()
    with disable_value_validation():  # its warnings quote the values
        elements = [stored for _, stored in ds.items()]
        for texts in repeated.each(ds, elements, around, lambda stored: _identifying(ds, stored.tag)):
            found |= texts
    return frozenset(found)


def _identifying(ds: Dataset, tag: BaseTag) -> frozenset[str]:
    """Those of one element, and of all that is in it."""
    found: set[str] = set()
    for element in _readable(ds, [tag]):
        if element.tag.is_private or element.is_empty:
            continue
        if element.VR == "PN":
            names = [str(value) for value in values(element.value)]
            found.update(
                part for name in names for part in (name, *re.split(r"[\^=\s]+", name), *re.split(r"[\W_]+", name))
            )
        elif element.keyword in IDENTIFIERS or (element.VR == "UI" and element.keyword.endswith("InstanceUID")):
            found.update(str(value) for value in values(element.value))
    return frozenset(text.strip() for text in found if _can_identify(text.strip()))


def _readable(ds: Dataset, tags: Iterable[BaseTag]) -> Iterator[DataElement]:
    """Elements at every depth, without those whose bytes are no value of their VR: de-identification drops or refuses these."""
    for tag in tags:
        if (stored := ds.get_item(tag)) is not None and stored.VR in _NEVER_IDENTIFY and tag not in _IDENTIFIER_TAGS:
            continue
        try:
            element = plain_element(stored) or ds[tag]
        # All that pydicom raises for a value that it can't parse: of odd length, or of a VR that it does not know.
        except (ValueError, TypeError, OverflowError, NotImplementedError, BytesLengthException):
            continue
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from _readable(item, list(item.keys()))


class _Scan:
    def __init__(
        self, known: Collection[str], roi_vocabulary: Collection[str] | None, profile: Profile | None = None
    ) -> None:
        self._demanded = profile
        self._known = frozenset(text.strip().casefold() for text in known if _can_identify(text.strip()))
        self._parts = frozenset(text for text in self._known if len(text) >= MIN_PART_CHARS)
        self._squeezed = frozenset(text for text in map(_squeeze, self._known) if len(text) >= MIN_PART_CHARS)
        self._bytes = KnownBytes(self._known)
        self._run_length = False
        self._repeated: Repeated[tuple[Finding, ...]] = Repeated()
        self._reasons: dict[tuple[BaseTag, str, str], tuple[str, ...]] = {}
        self._structures = None if roi_vocabulary is None else Vocabulary.of(roi_vocabulary)
        texts = self._structures.texts if self._structures is not None else {}
        self._vocabulary_texts = texts
        self._use(STRICT)

    def _use(self, profile: Profile) -> None:
        """Hold what follows against a profile."""
        self._profile = profile
        closed = {keyword: _CLOSED.get(keyword, frozenset()) | terms for keyword, terms in profile.closed.items()}
        closed |= {name: closed.get(name, _CLOSED[name]) | terms for name, terms in self._vocabulary_texts.items()}
        self._closed = _CLOSED | closed | {"DeidentificationMethod": frozenset({profile.method})}

    def name(self, name: str) -> Iterator[Finding]:
        parts = [part.partition(".")[0] for part in Path(name).parts]
        if any(self._identifies(part) for part in parts):
            yield Finding("file", "a file or folder name contains a known identifying string")

    def object(self, ds: Dataset) -> Iterator[Finding]:
        if isinstance(ds, FileDataset) and any(ds.preamble or b""):
            yield Finding("file", "the preamble is not empty")
        meta = getattr(ds, "file_meta", None)
        meta = Dataset() if meta is None else meta
        around = self._repeated.surroundings(meta, "file meta")
        for found in self._repeated.each(
            meta, [stored for _, stored in in_order(meta)], around, partial(self._meta, meta)
        ):
            yield from found
        self._run_length = text(meta, "TransferSyntaxUID") == RLELossless
        profile = self._demanded or declared_profile(ds)
        if profile is not self._profile:
            self._use(profile)
        around = self._repeated.surroundings(ds, self._run_length, text(ds, "SOPClassUID"), profile.label)
        elements = [stored for _, stored in in_order(ds)]
        for found in self._repeated.each(ds, elements, around, lambda stored: tuple(self._element(ds, stored.tag))):
            yield from found
        yield from _declarations(ds)

    def _meta(self, meta: Dataset, stored: DataElement | RawDataElement) -> tuple[Finding, ...]:
        element = plain_element(stored) or meta[stored.tag]
        if element.keyword not in FILE_META:
            return (Finding(str(element.tag), "file meta element that is not on the allow-list"),)
        if (
            element.value != IMPLEMENTATION_VERSION
            and self._contains_known(element)
            and not registered(str(element.value))
        ):
            return (Finding(str(element.tag), "contains a known identifying string"),)
        return ()

    def _dataset(self, ds: Dataset, path: str) -> Iterator[Finding]:
        for tag in sorted(ds.keys(), key=int):
            yield from self._element(ds, tag, path)

    def _element(self, ds: Dataset, tag: BaseTag, path: str = "") -> Iterator[Finding]:
        """What is wrong with an element; `path` leads to the item that it is in."""
        action = self._profile.actions.get(tag)
        if action is Action.WORDS and path:
            action = None
        if action is Action.KEEP and decimals(ds.get_item(tag)) is not None and tag not in _DECIMALS_THAT_IDENTIFY:
            return  # numbers, which meet digits of identifiers by chance
        try:
            element = ds[tag] if action is None else read_element(ds, tag)
        except (
            CaseRejected,
            ValueError,
            TypeError,
            NotImplementedError,
        ):  # all are findings: the value can't be checked
            yield Finding(f"{path}{tag}", "the value does not have the form of its VR")
            return
        if action is None:
            yield Finding(f"{path}{tag}", "private element" if tag.is_private else "not on the allow-list")
        elif action is Action.PIXELS and (path or text(ds, "SOPClassUID") not in PIXEL_CLASSES):
            yield Finding(f"{path}{tag}", "pixels where the class of the object has none")
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                if action is Action.CODED:
                    yield from self._code(item, f"{path}{tag}[{number}]")
                else:
                    yield from self._dataset(item, f"{path}{tag}[{number}]")
            return
        for reason in self._texts(element, action) if isinstance(element.value, str) else self._value(element, action):
            yield Finding(f"{path}{tag}", reason)

    def _texts(self, element: DataElement, action: Action | None) -> tuple[str, ...]:
        """What is wrong with a text, which is the same in most slices of a series."""
        key = (element.tag, f"{element.VR} {self._profile.label}", str(element.value))
        reasons = self._reasons.get(key)
        if reasons is None:
            reasons = self._reasons[key] = tuple(self._value(element, action))
        return reasons

    def _value(self, element: DataElement, action: Action | None) -> Iterator[str]:
        """What is wrong with a value, from its tag, VR and content alone."""
        verdict = None if action is None else self._verdict(element, action)
        if verdict is False:
            name = "" if action is None else action.name.lower()
            yield f"{_keyword(element.tag)} has a value that the profile does not let through ({name})"
        identifies = self._equals_known if verdict is None and action is not None else self._contains_known
        if verdict is not True and identifies(element):
            yield "contains a known identifying string"

    def _verdict(self, element: DataElement, action: Action) -> bool | None:
        """False: not let through; True: from a closed vocabulary; None: of the right form, but could hold a name."""
        terms, form = self._closed.get(_keyword(element.tag)), _FORMS.get(action)
        structure = action is Action.STRUCTURE and self._structures is not None
        if terms is None and form is None and not structure and action is not Action.WORDS:
            return None  # before the text of megabytes of pixels is made
        texts = [str(value) for value in values(element.value) if value not in ("", b"")]
        if terms is not None:
            return all(text in terms for text in texts)
        if action is Action.WORDS:
            return None if all(text == clinical(text) for text in texts) else False
        if action is Action.STRUCTURE and self._structures is not None:
            return all(_STRUCTURE.match(t) or t in self._structures for t in texts)
        if form is None or all(form.match(text) or (action is Action.UID and registered(text)) for text in texts):
            return None
        return False

    def _code(self, item: Dataset, path: str) -> Iterator[Finding]:
        meaning = standard_meaning(str(item.get("CodingSchemeDesignator")), str(item.get("CodeValue")))
        if meaning is None or item.get("CodeMeaning") != meaning:
            yield Finding(path, "a code, or its text, that is not in the standard's dictionaries")
            yield from self._known_in(item, path)
        more: dict[BaseTag, DataElement | RawDataElement] = {
            tag: item[tag] for tag in list(item.keys()) if _keyword(tag) not in CODE_ELEMENTS
        }
        if more:
            yield from self._dataset(Dataset(more), path)

    def _known_in(self, item: Dataset, path: str) -> Iterator[Finding]:
        for keyword in sorted(CODE_ELEMENTS & set(item.dir())):
            if self._contains_known(item[keyword]):
                yield Finding(f"{path}{item[keyword].tag}", "contains a known identifying string")

    def _contains_known(self, element: DataElement) -> bool:
        if isinstance(element.value, bytes):
            compressed = element.value.startswith(b"\xfe\xff\x00\xe0") and not self._run_length
            return self._bytes.found(element.value, pixels=_keyword(element.tag) == "PixelData" and not compressed)
        return any(self._identifies(str(value)) for value in values(element.value))

    def _equals_known(self, element: DataElement) -> bool:
        """The same of an element of the right form: in a number, a UID or a date digits meet digits by chance."""
        if isinstance(element.value, bytes) or _keyword(element.tag) in STRUCTURES:
            return self._contains_known(element)
        if _keyword(element.tag) in DESCRIPTIONS:
            return any(word.casefold() in self._known for word in words(str(element.value)))
        if element.VR not in _TEXT and _keyword(element.tag) not in SENDER_NUMBERS:
            return False
        return any(str(value).casefold() in self._known for value in values(element.value))

    def _identifies(self, text: str) -> bool:
        if _HASH.match(text) or _KEYED_UID.match(text):  # digits meet digits by chance
            return text.casefold() in self._known
        folded, squeezed = text.casefold(), _squeeze(text)
        if not self._known.isdisjoint(re.split(r"[\W_]+", folded)) or folded in self._known:
            return True
        return any(known in folded for known in self._parts) or any(known in squeezed for known in self._squeezed)


def _undeclared(ds: Dataset) -> tuple[Finding, ...]:
    found = []
    if ds.get("PatientIdentityRemoved") != "YES":
        found.append(Finding("(0012,0062)", "PatientIdentityRemoved is not YES"))
    if ds.get("LongitudinalTemporalInformationModified") != "MODIFIED":
        found.append(Finding("(0028,0303)", "dates are not declared as shifted"))
    burned_in = str(ds.get("BurnedInAnnotation", "")).strip().upper()
    if burned_in == "YES" or (str(ds.get("SOPClassUID", "")) in USUALLY_BURNED_IN and burned_in != "NO"):
        found.append(Finding("(0028,0301)", "the pixels hold text, or do not say that they hold none"))
    return tuple(found)


_declarations = Facts(
    _undeclared,
    "PatientIdentityRemoved", "LongitudinalTemporalInformationModified", "BurnedInAnnotation", "SOPClassUID",
)  # fmt: skip
"""What an object does not declare, and has to."""


@cache
def _keyword(tag: BaseTag) -> str:
    return dictionary_keyword(tag) if dictionary_has_tag(tag) else ""


def _can_identify(text: str) -> bool:
    """Whether a string is long enough to be looked for: names of three letters, ids with digits of four characters."""
    name = not any(letter.isdigit() for letter in text)
    # A name in ideographs or syllables has two characters, or one.
    enough = 2 if name and text and min(text) > "\u2e80" else MIN_NAME_CHARS if name else MIN_NUMBER_DIGITS
    return len(text) >= enough


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
