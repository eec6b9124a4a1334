"""Elements that come again byte for byte, as nearly all do from slice to slice: what was made of one is made once.

What follows from an element depends on its tag, value representation and bytes, on how its object is encoded (byte order, character
set, and whether pixels are signed, on which "US or SS" depends), and on what the caller names, such as the patient. All of this is
the key. Sequences are one element with all that is in them. Private elements, whose meaning depends on a block that another
element reserves, and long values, which rarely repeat, are never kept.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import Generic, TypeGuard, TypeVar

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from med_assets.dicom.undecoded import LONGEST_BYTES, PRIVATE, anywhere, is_private, is_short, plain, tag_of

T = TypeVar("T")

MOST = 1 << 13
"""Elements that are kept at a time, so that they take at most 32 MB; beyond them it starts anew."""

_CHARACTER_SET, _PIXEL_REPRESENTATION, _PIXEL_DATA = tag_of(0x00080005), tag_of(0x00280103), tag_of(0x7FE00010)
_MISSING = object()
_NOTHING = None, None


class Repeated(Generic[T]):
    """What was made of elements that are not decoded yet."""

    def __init__(self) -> None:
        self._numbers, self._surroundings = count(), dict[Hashable, int]()
        self._kept: dict[Hashable, T] = {}
        self._last: dict[int, list[tuple[RawDataElement | None, T | None]]] = {}
        """By surroundings the elements of the last object that were kept, in its order, and what was made of each."""

    def surroundings(self, ds: Dataset, *more: Hashable) -> int:
        """A number that stands for all that elements of `ds` depend on beside themselves; `more` is what the caller adds to that."""
        encoding, elements = ds.original_character_set, dict(ds.items())
        key = (
            encoding if isinstance(encoding, str) else tuple(encoding),
            _content(elements.get(_CHARACTER_SET)),
            _content(elements.get(_PIXEL_REPRESENTATION)),
            _PIXEL_DATA in elements,
            *more,
        )
        return self._surroundings.setdefault(key, next(self._numbers))

    def each(
        self,
        ds: Dataset,
        elements: Iterable[RawDataElement | DataElement],
        surroundings: int,
        make: Callable[[RawDataElement | DataElement], T],
        keep: Callable[[], bool] | None = None,
    ) -> Iterator[T]:
        """Yield what `of` returns for each of `elements` of `ds`: of those that were the same objects in the last call without a look-up."""
        kept, now = self._kept, list[tuple[RawDataElement | None, T | None]]()
        last, self._last[surroundings] = iter(self._last.get(surroundings, ())), now
        for stored in elements:
            before = next(last, _NOTHING)
            if before[0] is stored:
                now.append(before)
                yield before[1]  # type: ignore[misc]  # what was made of it
                continue
            # `is_kept` and `anywhere` in place: a slice has 200 of them in all.
            if (
                type(stored) is RawDataElement
                and not stored.tag & PRIVATE
                and (stored.value is None or len(stored.value) <= LONGEST_BYTES)
            ):
                made = kept.get((surroundings, anywhere(stored) if stored.value_tell else stored), _MISSING)
                if made is not _MISSING:
                    now.append((stored, made))  # type: ignore[arg-type]  # no longer what is missing
                    yield made  # type: ignore[misc]  # no longer what is missing
                    continue
            now.append(_NOTHING)
            yield self.of(ds, stored, surroundings, partial(make, stored), keep)

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
        key = surroundings, anywhere(stored)
        if key in self._kept:
            return self._kept[key]
        made = make()
        if ds.get_item(stored.tag, keep_deferred=True) is not stored:
            ds[stored.tag] = stored
        if keep is not None and not keep():
            return made
        if len(self._kept) >= MOST:
            self._kept.clear()
            self._surroundings.clear()
            self._last.clear()
        self._kept[key] = made
        return made


def is_kept(stored: RawDataElement | DataElement) -> TypeGuard[RawDataElement]:
    """Whether what is made of an element is kept."""
    return is_short(stored) and not is_private(stored.tag)


def in_order(ds: Dataset) -> list[tuple[BaseTag, RawDataElement | DataElement]]:
    """Elements of a dataset by tag, as they are stored."""
    return sorted(ds.items(), key=lambda item: int(item[0]))


def _content(stored: RawDataElement | DataElement | None) -> Hashable:
    if stored is None:
        return None
    return stored.VR, plain(stored) or (stored.value if isinstance(stored, RawDataElement) else str(stored.value))
