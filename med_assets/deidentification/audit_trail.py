"""A chain of signed entries: what intake removed, kept and changed of each batch, and what people decided about cases and champions.

Each entry is a file of its own below `audit/` of the home, or an object of the bucket that a shared home lies in. It holds the hash of the entry before it and is signed with a key that
is derived from that of the pseudonyms, so that an entry which was changed, removed or moved is found, and which one.
"""

import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from getpass import getuser
from pathlib import Path
from typing import Any

from med_assets.deidentification.chain import chain_of
from med_assets.errors import ConfigurationError
from med_assets.settings import Settings, Workspace
from med_assets.storage.escaping import visible
from med_assets.storage.files import canonical_json, digest, read_json
from med_assets.storage.locks import alone

FIRST = "0" * 64
"""Stands for the hash of what is before the first entry."""

LOCK = "audit"
"""Lock of the chain: one process at a time appends, and writes the rows that have an entry."""

MAX_PERSON_CHARS = 64


class Kind(StrEnum):
    """What an entry is about."""

    BATCH = "batch"
    CHAMPION = "champion"
    DECISION = "reader decision"
    WITHDRAWAL = "withdrawal"
    ACCEPTED = "batch accepted"
    LINK = "link"


@dataclass(frozen=True)
class Entry:
    """One entry of the chain.

    `subject` is the batch, the case or the checkpoint; `person` is who ran the command or the process; `content` is plain JSON.
    """

    number: int
    at: str
    kind: str
    program: str
    subject: str
    person: str
    content: Mapping[str, Any]
    previous: str
    hash: str = ""
    signature: str = ""

    def expected_hash(self) -> str:
        """SHA-256 of all but the hash and the signature."""
        body = {name: value for name, value in asdict(self).items() if name not in ("hash", "signature")}
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()


@dataclass(frozen=True)
class Broken:
    """An entry that is not as it was written, and what is wrong with it."""

    number: int
    reason: str


def person() -> str:
    """Who runs this process: MED_ASSETS_PERSON, else the name of the account."""
    try:
        name = os.environ.get("MED_ASSETS_PERSON") or getuser()
    except (KeyError, OSError):
        name = "unknown"
    return visible(name)[:MAX_PERSON_CHARS]


def record(ws: Settings, kind: Kind, program: str, subject: str, content: Mapping[str, Any]) -> None:
    """Append an entry, unless the last one of this kind and subject says the same: a step that is done again records nothing.

    Of several processes each appends after the other; a process that is killed leaves a whole entry or none. What belongs
    to a row of a table is recorded by `audited_rows` instead. Raises ConfigurationError for a home without a key.
    """
    signing_key(ws)
    with alone(ws, LOCK):
        append(ws, draft(kind, program, subject, content))


def draft(kind: Kind, program: str, subject: str, content: Mapping[str, Any]) -> Entry:
    """An entry of this time and person, without its place in the chain."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Entry(
        number=0, at=at, kind=str(kind), program=program, subject=subject, person=person(), content=content, previous=""
    )


def append(ws: Settings, entry: Entry) -> None:
    """Give a draft its place at the end of the chain, as `record` says. The caller holds LOCK."""
    key = signing_key(ws)
    about, says = digest(entry.kind, entry.program, entry.subject), digest(dict(entry.content))
    chain = chain_of(ws)
    while chain.last_says(about) != says:
        number, previous = chain.last() or (0, FIRST)
        entry = replace(entry, number=number + 1, previous=previous)
        entry = replace(entry, hash=entry.expected_hash())
        entry = replace(entry, signature=signed(key, entry.hash))
        if chain.add(entry.number, about, says, asdict(entry)):
            signature = signed(key, f"head {entry.number} {entry.hash}")
            chain.write_head({"number": entry.number, "hash": entry.hash, "signature": signature})
            return


def entries(ws: Settings) -> Iterator[Entry]:
    """The entries, oldest first. Raises ConfigurationError for a file that is none."""
    return map(read_entry, chain_of(ws).paths())


def verify(ws: Workspace) -> list[Broken]:
    """Every entry that was changed, is missing, stands in another place, or is not signed with this home's key; none if all are right."""
    key, broken, previous, expected = signing_key(ws), list[Broken](), FIRST, 1
    for path in chain_of(ws).paths(anew=True):
        try:
            entry = read_entry(path)
        except ConfigurationError:
            broken.append(Broken(expected, "its file can't be read as an entry"))
            previous, expected = "", expected + 1
            continue
        for missing in range(expected, entry.number):
            broken.append(Broken(missing, "it is missing"))
        if entry.number != int(path.stem[:8]) or entry.number < expected:
            broken.append(Broken(entry.number, "it stands in another place than it was written to"))
        if entry.hash != entry.expected_hash():
            broken.append(Broken(entry.number, "it was changed: its content does not have its hash"))
        elif not hmac.compare_digest(entry.signature, signed(key, entry.hash)):
            broken.append(Broken(entry.number, "it is not signed with the key of this home"))
        if entry.number == expected and previous and entry.previous != previous:
            broken.append(Broken(entry.number, "it does not follow the entry before it"))
        previous, expected = entry.hash, max(expected, entry.number) + 1
    return broken + _missing_at_end(ws, key, expected - 1, previous)


def _missing_at_end(ws: Settings, key: bytes, n: int, last: str) -> list[Broken]:
    """What the head knows of and is not there; a process killed between an entry and the head leaves the head one behind."""
    head = chain_of(ws).head()
    if head is None:
        return [Broken(n, "the head of the chain is missing, so that later entries may be too")] if n > 1 else []
    number, of = int(head.get("number", 0)), str(head.get("hash", ""))
    if not hmac.compare_digest(str(head.get("signature", "")), signed(key, f"head {number} {of}")):
        return [Broken(n, "the head of the chain is not signed with the key of this home")]
    if number > n:
        return [Broken(missing, "it is missing") for missing in range(n + 1, number + 1)]
    if number < n - 1 or (number == n and of != last):
        return [Broken(n, "the head of the chain names another last entry")]
    return []


def read_entry(path: Path) -> Entry:
    """The entry in a file. Raises ConfigurationError for a file that is none."""
    try:
        return parse_entry(read_json(path))
    except (ValueError, TypeError, OSError):
        raise ConfigurationError(
            f"expected an entry of the audit trail in {path.name}, got something else; restore it from a backup"
        ) from None


def parse_entry(content: Mapping[str, Any]) -> Entry:
    """The entry whose fields these are. Raises TypeError for other fields."""
    return Entry(**content)


def signing_key(ws: Settings) -> bytes:
    """The key of signatures, from which that of the pseudonyms can't be computed. Raises ConfigurationError for a home without a key."""
    if not isinstance(ws, Workspace):
        raise ConfigurationError("expected a home with its key, which signs the audit trail, got one without")
    return hmac.new(ws.key, b"audit trail\0signatures", hashlib.sha256).digest()


def signed(key: bytes, text: str) -> str:
    """Signature of a text, in hexadecimal digits."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
