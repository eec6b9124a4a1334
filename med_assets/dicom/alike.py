"""Files that are as the one before but for the values of some elements, as the slices of a series are: what is the same is compared, not parsed.

The elements of the last file, explicit VR in little endian with native pixels at its end, are kept with their bytes. Those that come
again in the next one are compared as runs, and are the same objects in its dataset; only the others are cut out of it.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileDataset
from pydicom.tag import BaseTag

from med_assets.dicom.bounds import LONG, UNDEFINED, ElementBounds
from med_assets.dicom.copies import with_elements
from med_assets.dicom.cut import META_START, empty_value
from med_assets.dicom.undecoded import tag_of

MOST_BYTES = 1 << 14
"""Of a file before its pixels; a larger header is parsed each time."""

_META_END = 0x00030000
_ONCE = frozenset({0x00020010, 0x00080005})
"""Transfer syntax and character set, on which the meaning of all other elements depends."""

_NOT_CUT = frozenset({b"SQ", b"UN"})
"""What may hold elements, whose bounds are to be measured."""

_PIXEL_DATA = 0x7FE00010
_ENCODING = (0, False, True)
"""Position in the file, which is left out, and encoding of the elements that are kept."""

_SHORT_LENGTH, _LONG_LENGTH = struct.Struct("<H").unpack_from, struct.Struct("<I").unpack_from

Elements = dict[BaseTag, DataElement | RawDataElement]


class _Item(NamedTuple):
    """An element of the last file with its bytes from the header on."""

    content: bytes
    element: RawDataElement


@dataclass(frozen=True)
class _Run:
    """Elements that follow each other and come again."""

    content: bytes
    meta: Elements
    elements: Elements


@dataclass(frozen=True)
class _Other:
    """An element with another value in each file: the bytes of its tag and VR."""

    head: bytes
    tag: BaseTag
    representation: str
    is_long: bool


def _encoding(element: RawDataElement) -> tuple[int, bool, bool]:
    return element.value_tell, element.is_implicit_VR, element.is_little_endian


class Alike:
    """What the last file had, and which of its elements had another value in those before it."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._others: set[int] = set()
        self._segments: list[_Run | _Other] = []
        self._pixels: RawDataElement | None = None
        self._pixel_header = b""
        self._model: FileDataset | None = None

    def learn(self, data: bytes, places: Sequence[ElementBounds], dataset: FileDataset) -> None:
        """Take a file that was parsed, whose elements are at `places`, as the last one."""
        items, before = self._of(data, places, dataset), self._items
        self._segments = []
        if not items:
            self._items = []
            return
        same_form = len(items) == len(before) and all(
            new.content[:6] == old.content[:6] for new, old in zip(items, before, strict=True)
        )
        if not same_form:
            self._others.clear()
        else:
            self._others |= {
                number
                for number, (new, old) in enumerate(zip(items, before, strict=True))
                if new.content != old.content
            }
        self._items = items
        if any(items[number].element.tag in _ONCE or items[number].content[4:6] in _NOT_CUT for number in self._others):
            self._others.clear()
            return
        pixels = dict(dataset.items())[tag_of(_PIXEL_DATA)]
        assert isinstance(pixels, RawDataElement)
        self._pixels, self._pixel_header = pixels._replace(value=b""), data[places[-1].start : places[-1].value]
        self._model = with_elements(dataset, {})
        self._model.file_meta = with_elements(dataset.file_meta, {})
        if same_form:
            self._segments = list(self._divided())

    def _of(self, data: bytes, places: Sequence[ElementBounds], dataset: FileDataset) -> list[_Item]:
        """The elements before the pixels; none where a file has another form than those that are compared here."""
        if not places:
            return []
        last, items, position = places[-1], list[_Item](), META_START
        usual = last.tag == _PIXEL_DATA and last.code in (b"OB", b"OW") and last.length not in (0, UNDEFINED)
        if not usual or last.value > MOST_BYTES or len(dataset) != len(places) or data[128:META_START] != b"DICM":
            return []
        for element in dict(dataset.file_meta.items()).values():
            if type(element) is not RawDataElement or _encoding(element) != _ENCODING:
                return []
            end = position + (12 if str(element.VR).encode() in LONG else 8) + element.length
            items.append(_Item(data[position:end], element))
            position = end
        if position != places[0].start:
            return []
        elements = dict(dataset.items())
        for place in places[:-1]:
            element = elements[tag_of(place.tag)]
            if type(element) is not RawDataElement or _encoding(element) != _ENCODING:
                return []
            items.append(_Item(data[place.start : place.value + place.length], element))
        return items

    def _divided(self) -> Iterator[_Run | _Other]:
        """Runs of elements that came again, and the others."""
        for other, group in groupby(enumerate(self._items), lambda item: item[0] in self._others):
            run = [item for _, item in group]
            if other:
                for content, element in run:
                    is_long = content[4:6] in LONG
                    yield _Other(content[:6], tag_of(element.tag), str(element.VR), is_long)
                continue
            elements: Elements = {tag_of(element.tag): element for _, element in run}
            meta = {tag: element for tag, element in elements.items() if tag < _META_END}
            yield _Run(
                b"".join(item.content for item in run),
                meta,
                {tag: element for tag, element in elements.items() if tag >= _META_END},
            )

    def cut(self, start: bytes, size: int, pixels_at: Callable[[int, int], bytes]) -> FileDataset | None:
        """The dataset of a file of `size` bytes by its first ones; None of one that is not as those before it.

        `pixels_at` reads bytes of it, by their place and number.
        """
        if not self._segments or self._pixels is None or self._model is None or start[128:META_START] != b"DICM":
            return None
        meta: Elements = {}
        elements: Elements = {}
        position = META_START
        for segment in self._segments:
            if isinstance(segment, _Run):
                if not start.startswith(segment.content, position):
                    return None
                meta.update(segment.meta)
                elements.update(segment.elements)
                position += len(segment.content)
                continue
            first = position + (12 if segment.is_long else 8)
            if not start.startswith(segment.head, position) or first > len(start):
                return None
            (length,) = _LONG_LENGTH(start, position + 8) if segment.is_long else _SHORT_LENGTH(start, position + 6)
            position = first + length
            if position > len(start):
                return None
            value = start[first:position] if length else empty_value(segment.representation)
            element = RawDataElement(segment.tag, segment.representation, length, value, 0, False, True)
            (meta if segment.tag < _META_END else elements)[segment.tag] = element
        n_bytes = self._pixels.length
        position += len(self._pixel_header)
        if not start.startswith(self._pixel_header, position - len(self._pixel_header)) or position + n_bytes != size:
            return None
        value = pixels_at(position, n_bytes)
        if len(value) != n_bytes:  # it changed meanwhile
            return None
        elements[self._pixels.tag] = self._pixels._replace(value=value)
        dataset = with_elements(self._model, elements)
        dataset.preamble, dataset.file_meta = start[:128], with_elements(self._model.file_meta, meta)
        return dataset
