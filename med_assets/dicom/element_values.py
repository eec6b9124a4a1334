"""Elements read with care: a value that can't be what its VR says is refused, as is text in the form of numbers."""

import re
import struct
from functools import cache, lru_cache
from typing import Any

from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.tag import BaseTag

from med_assets.dicom.undecoded import plain_element
from med_assets.errors import CaseRejected

_NUMBERS = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_BINARY = _NUMBERS - {"DS", "IS"} | {"AT"}
_ONE_VALUE = frozenset({"ReferencedSegmentNumber"})
"""Elements that may have many values elsewhere, and have one where they are stored here."""

_DECIMAL_TEXT = frozenset({"DS"})

_PACKED = {"US": "H", "FL": "f", "AT": "I"}
_SHORTEST_TEXT_BYTES = 8
"""Several numbers of these forms are text when all their bytes, no fewer than these, are letters or digits."""

_LARGEST_INDEX = 2**24
"""Indices of dimensions and frames, and places in a picture, are smaller; four letters in one number are not."""

_AS_TEXT_BELOW, _AS_TEXT_FROM = 1e-30, 2.0**17
"""Doubles whose eight bytes are letters or digits lie outside of these magnitudes, where no measured value does."""

_DECIMAL = re.compile(r" *([-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?)? *\Z")


_DECIMAL_BYTES = rb"[-+]?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][-+]?[0-9]{1,2})?"
_DECIMALS_BYTES = re.compile(rb"(%b(?:\\%b)*) ?" % (_DECIMAL_BYTES, _DECIMAL_BYTES))


def decimals(stored: DataElement | RawDataElement | None) -> bytes | None:
    """The numbers of an element of decimal text that is not decoded yet, as decoding and writing leaves them: contours have millions.

    None for any other element, and for text with blanks, gaps, or what is no number: it is decoded, and then checked. The tag is
    in the dictionary.
    """
    if not isinstance(stored, RawDataElement) or not stored.value or _expected(stored.tag) != _DECIMAL_TEXT:
        return None
    return _decimals(stored.value) if stored.VR in ("DS", None) else None


@lru_cache(1 << 12)
def _decimals(value: bytes) -> bytes | None:
    found = _DECIMALS_BYTES.fullmatch(value)
    return None if found is None else bytes(found[1])


def read_element(ds: Dataset, tag: BaseTag) -> DataElement:
    """The decoded element; raises CaseRejected("malformed_element") when the value can't be what its VR says.

    Such a value is not dropped, since an image without, say, its RescaleSlope would be read as something else.
    """
    try:
        element = plain_element(ds.get_item(tag, keep_deferred=True)) or ds[tag]
    # All that pydicom raises for a value that it can't parse: of odd length, or of a VR that it does not know.
    except (ValueError, TypeError, OverflowError, NotImplementedError, BytesLengthException):
        raise _malformed(tag) from None  # the first error quotes the value
    expected = _expected(tag)
    if element.VR not in expected and not (element.VR in _NUMBERS and expected & _NUMBERS):
        raise _malformed(tag)
    if element.VR in _BINARY and not _measures(element):
        raise _malformed(tag)
    if element.VR in ("DS", "IS") and not all(_is_number(value) for value in values(element.value)):
        raise _malformed(tag)
    return element


@cache
def _expected(tag: BaseTag) -> frozenset[str]:
    return frozenset({*dictionary_VR(tag).split(" or "), dictionary_VR(tag)})


def values(value: Any) -> list[Any]:
    """The values of an element as a list: numbers and bytes as they are, the rest as text, none as one empty text."""
    if value is None or (isinstance(value, str) and value == ""):
        return [""]
    many = hasattr(value, "__iter__") and not isinstance(value, str | bytes) and not hasattr(value, "family_name")
    items = list(value) if many else [value]
    return [item if isinstance(item, int | float | bytes) else str(item) for item in items] or [""]


def _measures(element: DataElement) -> bool:
    """Whether binary numbers are as many as the standard allows, and are no text in the form of numbers."""
    numbers = [value for value in values(element.value) if value != ""]
    most = 1 if element.keyword in _ONE_VALUE else dictionary_VM(element.tag).rpartition("-")[2]
    if str(most).isdecimal() and len(numbers) > int(most):
        return False
    if element.VR == "FD":
        return not any(_reads_as_text(float(value)) for value in numbers)
    form = _PACKED.get(element.VR)
    if form and struct.calcsize(f"<{len(numbers)}{form}") >= _SHORTEST_TEXT_BYTES and len(numbers) > 1:
        return not _printable(struct.pack(f"<{len(numbers)}{form}", *numbers))
    return element.VR != "UL" or not any(int(value) > _LARGEST_INDEX for value in numbers)


def _reads_as_text(value: float) -> bool:
    magnitude = abs(value)
    usual = magnitude == 0 or _AS_TEXT_BELOW <= magnitude < _AS_TEXT_FROM
    return not usual and _printable(struct.pack("<d", value))


def _printable(content: bytes) -> bool:
    return all(32 <= byte < 127 for byte in content)


def _is_number(value: Any) -> bool:
    # What is written is the text that came, and Python reads more of it than a DS may be, such as "1_000" and "Nan".
    written = getattr(value, "original_string", None)
    return _DECIMAL.match(str(value if written is None else written)) is not None


def _malformed(tag: BaseTag) -> CaseRejected:
    return CaseRejected(
        "malformed_element",
        f"expected {keyword_for_tag(tag)} {tag} to hold values of VR {dictionary_VR(tag)}, got something else; "
        "export the object again",
    )
