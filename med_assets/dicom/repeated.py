"""Elements that come again byte for byte, as nearly all do from slice to slice: what was made of one is made once.

What follows from an element depends on its tag, value representation and bytes, on how its object is encoded (byte order, character
set, and whether pixels are signed, on which "US or SS" depends), and on what the caller names, such as the patient. All of this is
the key. Sequences are one element with all that is in them. Private elements, whose meaning depends on a block that another
element reserves, and long values, which rarely repeat, are never kept.
"""

from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeGuard, TypeVar

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

T = TypeVar("T")

LONGEST_BYTES = 4096
"""Longer values are not kept."""

MOST = 1 << 13
"""Elements that are kept at a time, so that they take at most 32 MB; beyond them it starts anew."""

_CHARACTER_SET, _PIXEL_REPRESENTATION = 0x00080005, 0x00280103


class Repeated(Generic[T]):
    """What was made of elements that are not decoded yet."""

    def __init__(self) -> None:
        self._numbers, self._surroundings = count(), dict[Hashable, int]()
        self._kept: dict[Hashable, T] = {}

    def surroundings(self, ds: Dataset, *more: Hashable) -> int:
        """A number that stands for all that elements of `ds` depend on beside themselves; `more` is what the caller adds to that."""
        encoding = ds.original_character_set
        key = (
            encoding if isinstance(encoding, str) else tuple(encoding),
            _content(ds, _CHARACTER_SET),
            _content(ds, _PIXEL_REPRESENTATION),
            "PixelData" in ds,
            *more,
        )
        return self._surroundings.setdefault(key, next(self._numbers))

    def of(
        self,
        ds: Dataset,
        stored: RawDataElement | DataElement,
        surroundings: int,
        make: Callable[[], T],
        keep: Callable[[], bool] | None = None,
    ) -> T:
        """Return what `make` returned for an equal element. It may decode the element in `ds`, which has it undecoded afterwards.

        What it raises is not kept, nor where `keep` then says that it depends on more. An element that is decoded already, is
        private or long is made something of each time.
        """
        if not is_kept(stored):
            return make()
        key = (surroundings, *stored[:4], *stored[5:7])  # all but the place in the file
        if key in self._kept:
            return self._kept[key]
        made = make()
        ds[stored.tag] = stored
        if keep is not None and not keep():
            return made
        if len(self._kept) >= MOST:
            self._kept.clear()
            self._surroundings.clear()
        self._kept[key] = made
        return made


def is_kept(stored: RawDataElement | DataElement) -> TypeGuard[RawDataElement]:
    """Whether what is made of an element is kept."""
    if not isinstance(stored, RawDataElement):
        return False
    value = stored.value
    return (value is None or len(value) <= LONGEST_BYTES) and not stored.tag.is_private


def in_order(ds: Dataset) -> list[tuple[BaseTag, RawDataElement | DataElement]]:
    """Elements of a dataset by tag, as they are stored."""
    return sorted(ds.items(), key=lambda item: int(item[0]))


def _content(ds: Dataset, tag: int) -> Hashable:
    stored = ds.get_item(tag) if tag in ds else None
    if stored is None:
        return None
    return stored.VR, stored.value if isinstance(stored, RawDataElement) else str(stored.value)
