"""Elements as they are stored, read without decoding them: pydicom takes 20 us for each, and a slice has 60, mostly those of the one before."""

import re
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Generic, TypeGuard, TypeVar

from pydicom._dicom_dict import DicomDictionary
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pydicom.valuerep import IS

T = TypeVar("T")
Element = TypeVar("Element", DataElement, RawDataElement, DataElement | RawDataElement | None)

LONGEST_BYTES = 4096
"""Longer values, which rarely repeat, are not kept."""

_TAGS = {number: BaseTag(number) for number in DicomDictionary}

PRIVATE = 0x00010000
"""The bit of a tag that makes its group odd."""

_CHARACTER_SET = 0x00080005

_TEXT = re.compile(rb"([!-\[\]-}](?:[ -\[\]-}]*[!-\[\]-}])?)[ \0]*")
_FORMS = {
    **dict.fromkeys(("CS", "DA", "TM", "LO", "SH"), _TEXT),
    "UI": re.compile(rb"([0-9][0-9.]*)[ \0]*"),
    "IS": re.compile(rb"(-?[0-9]{1,9}) *"),
}
"""One value of each value representation that pydicom decodes to the same text in all character sets: no backslash, no tilde."""

_NUMBER = re.compile(rb" *([-+]?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][-+]?[0-9]{1,2})?) *")
_WHOLE_NUMBER = re.compile(rb" *([-+]?[0-9]{1,9}) *")

_MAKE: dict[str, Callable[[str], str | int]] = {"UI": partial(UID, validation_mode=IGNORE), "IS": IS}


def tag_of(number: int) -> BaseTag:
    """The tag of a number, the same object for each element of the dictionary: pydicom compares others in Python at each look-up."""
    return _TAGS.get(number) or BaseTag(number)


@cache
def tag_of_keyword(keyword: str) -> BaseTag:
    """The tag of an element of the dictionary. Raises ValueError for another keyword."""
    return tag_of(Tag(keyword))


@cache
def representation_of(tag: BaseTag) -> str:
    """The value representation in the dictionary, such as "US or SS", empty for an element that is not there."""
    return dictionary_VR(tag) if dictionary_has_tag(tag) else ""


def is_private(tag: int) -> bool:
    """Whether a tag is of an odd group."""
    return bool(tag & PRIVATE)


def is_short(stored: object) -> TypeGuard[RawDataElement]:
    """Whether an element is undecoded, and short enough to be kept as a key."""
    return type(stored) is RawDataElement and (stored.value is None or len(stored.value) <= LONGEST_BYTES)


def anywhere(stored: Element) -> Element:
    """The same element whatever its place in its file."""
    if type(stored) is RawDataElement and stored.value_tell:
        return stored._replace(value_tell=0)
    return stored


def plain(stored: object) -> str | None:
    """The text of an undecoded element that holds one plain value: what pydicom decodes it to. None of any other element."""
    if type(stored) is not RawDataElement or not stored.value:
        return None
    form = _FORMS.get(stored.VR or representation_of(stored.tag))
    found = None if form is None else form.fullmatch(stored.value)
    return None if found is None else found[1].decode("ascii")


def plain_element(stored: object) -> DataElement | None:
    """The element that pydicom decodes an undecoded one with a plain value to; None of any other."""
    text = plain(stored)
    if text is None:
        return None
    assert isinstance(stored, RawDataElement)
    representation = stored.VR or representation_of(stored.tag)
    value = _MAKE.get(representation, str)(text)
    return DataElement(stored.tag, representation, value, already_converted=True)


def plain_number(stored: object) -> float | None:
    """The number of an undecoded element of decimal text or whole numbers, None where it holds anything else, or several."""
    if type(stored) is not RawDataElement or not stored.value:
        return None
    representation = stored.VR or representation_of(stored.tag)
    form = _NUMBER if representation == "DS" else _WHOLE_NUMBER if representation == "IS" else None
    found = None if form is None else form.fullmatch(stored.value)
    return None if found is None else float(found[1])


def plain_integer(stored: object) -> int | None:
    """The number of an undecoded element that holds one unsigned integer of two bytes; None of any other."""
    if type(stored) is not RawDataElement or stored.value is None or len(stored.value) != 2:
        return None
    if (stored.VR or representation_of(stored.tag)) != "US":
        return None
    return int.from_bytes(stored.value, "little" if stored.is_little_endian else "big")


def _as_stored(character_set: DataElement | RawDataElement | None) -> DataElement | RawDataElement | None:
    """The element SpecificCharacterSet before pydicom decoded it, as it does for each text."""
    if not isinstance(character_set, DataElement) or not isinstance(character_set.value, str):
        return character_set
    value = character_set.value.encode("ascii", "replace")
    return RawDataElement(character_set.tag, "CS", len(value), value, 0, False, True)


class Facts(Generic[T]):
    """What a function makes of certain elements alone, made once for those that are stored the same, as in the slices of a series.

    The function is given a dataset of these elements, and of the ones that say how they are encoded.
    """

    def __init__(self, make: Callable[[Dataset], T], *keywords: str, most: int = 256) -> None:
        self._make = make
        self._tags = [tag_of(_CHARACTER_SET), *map(tag_of_keyword, keywords)]
        self._kept = lru_cache(most)(self._of)

    def __call__(self, ds: Dataset) -> T:
        there = dict(ds.items())
        elements = [there.get(tag) for tag in self._tags]
        elements[0] = _as_stored(elements[0])
        character_set = ds.original_character_set
        encoding = character_set if isinstance(character_set, str) else tuple(character_set)
        make = self._kept if all(element is None or is_short(element) for element in elements) else self._of
        return make(tuple(map(anywhere, elements)), encoding, *ds.original_encoding)

    def _of(
        self,
        elements: tuple[RawDataElement | DataElement | None, ...],
        encoding: str | tuple[str, ...],
        implicit: bool | None,
        little: bool | None,
    ) -> T:
        ds = Dataset({element.tag: element for element in elements if element is not None})
        ds.set_original_encoding(implicit, little, encoding if isinstance(encoding, str) else list(encoding))
        return self._make(ds)
