"""An append-only log in a bucket: one object an entry, numbered from 1, each written by the one writer that was first.

    NAME/000000000001.json       {"writer": TOKEN, ...}

A writer appends at the number after the newest that it has read, with `If-None-Match: *`; so there are no gaps, and the entries are in one
order for everybody. Entries are read by their numbers and never found by listing, since a listing may lag.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from med_assets.errors import RemoteFailed
from med_assets.storage.files import canonical_json
from med_assets.storage.s3 import conditional
from med_assets.storage.s3.bucket import THREADS, Location

WRITER = "writer"
"""Field of an entry with the token of whoever wrote it: by it a writer whose reply was lost knows its own."""

DIGITS = 12
"""Digits of the number in the name of an entry."""

BLOCK = 64
"""Most entries that are asked for side by side."""

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Entry:
    """An entry of the log; `content` has the token of its writer besides what was appended."""

    number: int
    content: Mapping[str, Any]

    @cached_property
    def text(self) -> str:
        """The entry as its object holds it."""
        return canonical_json(dict(self.content))

    @property
    def writer(self) -> str:
        """Token of whoever wrote it."""
        return str(self.content.get(WRITER, ""))


class Log:
    """The log below one prefix of a bucket. Methods raise RemoteFailed; nothing is kept here, so any thread may use it."""

    def __init__(self, client: Any, location: Location) -> None:
        self.client, self.location = client, location

    @staticmethod
    def name(number: int) -> str:
        """Name of an entry's object, below the log's prefix."""
        return f"{number:0{DIGITS}d}.json"

    def append(self, content: Mapping[str, Any], at: int, writer: str = "") -> tuple[Entry, bool]:
        """Write an entry at a number unless another writer was first; returns the entry that is there, and whether it is ours.

        `at` is the number after the newest that was read. A writer that may have to find out later whether it was the one
        gives its own token. Raises ConfigurationError for a server without conditional writes.
        """
        entry = Entry(at, {**content, WRITER: writer or secrets.token_hex(8)})
        other = conditional.put_new(self.client, self.location, self.name(at), entry.text.encode())
        return (entry, True) if other is None else (self.entry(at, other.content), False)

    def read(self, number: int) -> Entry | None:
        """The entry of a number; None where there is none (yet, or any more)."""
        found = conditional.get(self.client, self.location, self.name(number))
        return None if found is None else self.entry(number, found.content)

    def newer(self, than: int, at_most: int | None = None) -> Iterator[Entry]:
        """Entries after a number, oldest first, up to the newest: at least all that were there when this was called.

        One request when there is none; with more of them ever larger blocks are read side by side.
        """
        first, size = than + 1, 1
        last = None if at_most is None else than + at_most
        while last is None or first <= last:
            numbers = range(first, first + size if last is None else min(first + size, last + 1))
            for entry in side_by_side(self.read, numbers):
                if entry is None:
                    return
                yield entry
            first, size = numbers[-1] + 1, min(2 * size, BLOCK)

    def newest(self) -> int:
        """Number of the newest entry, 0 of an empty log, without anything known: by its digits, the first one first.

        Some 10 requests per digit, side by side; with a number that was once the newest, `newer` is cheaper. Entries that
        `milestones` names must be there.
        """
        digits = next(power for power in range(DIGITS) if not self._exists(10**power))
        number = 0
        for step in (10**each for each in range(digits - 1, -1, -1)):
            numbers = [number + digit * step for digit in range(1, 10)]
            for there_is, each in zip(side_by_side(self._exists, numbers), numbers, strict=True):
                if not there_is:
                    break
                number = each
        return number

    def goes_on(self, after: int) -> bool:
        """Whether there are entries after one whose next may have been removed: one request per digit of its number."""
        return any(side_by_side(self._exists, milestones_after(after)))

    def _exists(self, number: int) -> bool:
        return conditional.exists(self.client, self.location, self.name(number))

    def entry(self, number: int, content: bytes) -> Entry:
        """The entry that an object holds. Raises RemoteFailed for what is none."""
        try:
            return Entry(number, dict(json.loads(content)))
        except ValueError:
            raise RemoteFailed(
                f"expected entry {number} of the log {self.location} to be JSON, got something else; restore that object"
            ) from None


def milestones(newest: int) -> set[int]:
    """Numbers of the entries that `Log.newest` looks for and finds, which whoever removes old entries keeps: 9 per digit at most."""
    kept = set(_powers(newest))
    base = 0
    for step in (10**power for power in range(DIGITS - 1, -1, -1)):
        digit = (newest - base) // step
        kept |= {base + each * step for each in range(1, digit + 1)}
        base += digit * step
    return kept


def milestones_after(number: int) -> list[int]:
    """Numbers of which one is there if any after this one is: where the newest number first differs, that with the next digit there and zeros."""
    return sorted({(number // step + 1) * step for step in _powers(10 * number + 1)})


def _powers(until: int) -> list[int]:
    """Powers of ten up to a number."""
    return [10**power for power in range(DIGITS) if 10**power <= until]


def side_by_side(function: Callable[[S], T], values: Iterable[S]) -> list[T]:
    """Results of a function of each value, by threads when there are several."""
    values = list(values)
    if len(values) < 2:
        return [function(value) for value in values]
    with ThreadPoolExecutor(min(THREADS, len(values))) as threads:
        try:
            return list(threads.map(function, values))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
