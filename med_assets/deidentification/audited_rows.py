"""Rows of tables that say what a person decided, each written together with its entry in the audit trail.

The entry is first written beside the chain, signed; then the row is written, and then the entry is appended. A process
that is killed leaves neither a row nor an entry, or a row whose entry waits: the next that records a decision, or looks at the trail, appends it.
"""

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from med_assets import program as programs
from med_assets.catalog import Catalog
from med_assets.deidentification.audit_trail import (
    LOCK,
    Entry,
    Kind,
    append,
    draft,
    entries,
    parse_entry,
    signed,
    signing_key,
)
from med_assets.deidentification.chain import Chain, chain_of
from med_assets.errors import ConfigurationError
from med_assets.records import BatchAudit, Champion, ReaderDecision, Withdrawal
from med_assets.settings import Settings
from med_assets.storage.lake import ANY, Expected
from med_assets.storage.locks import alone
from med_assets.storage.record import Record

COMPLETED = "completed"
"""Marks the content of an entry that was written for a row which had none."""


@dataclass(frozen=True)
class _Audited:
    """A table whose rows have entries: the field that is the subject, and the content of an entry by the field that it is taken from.

    The rows of a `history` are all kept; of other tables a subject has one row, and its last entry counts.
    """

    record: type[Record]
    subject: str
    fields: Mapping[str, str]
    history: bool
    optional: Mapping[str, str] = field(default_factory=dict)
    """Further fields of an entry, which it lacks where the row has no value of them: those that earlier versions did not record."""

    def content(self, row: Record) -> dict[str, Any]:
        """What an entry says of a row; empty for a row in which nobody decided anything."""
        found = {name: getattr(row, of) for name, of in self.fields.items()}
        more = {name: value for name, of in self.optional.items() if (value := getattr(row, of)) is not None}
        return {} if None in found.values() else found | more

    def stated_in(self, entry: Entry) -> dict[str, Any]:
        """What an entry says of its row."""
        more = {name: entry.content[name] for name in self.optional if name in entry.content}
        return {name: entry.content.get(name) for name in self.fields} | more

    def rows(self, catalog: Catalog, subject: str | None = None) -> list[Record]:
        """The rows of a subject, or all."""
        under = (subject,) if subject is not None and self.record.PARTITION else ()
        rows = [row for row in catalog.rows(self.record, *under) if self.content(row)]
        return rows if subject is None else [row for row in rows if getattr(row, self.subject) == subject]


AUDITED: Mapping[Kind, _Audited] = {
    Kind.DECISION: _Audited(
        ReaderDecision,
        "case_id",
        {name: name for name in ("version", "decision", "read_at")},
        True,
        {"reader": "reader"},
    ),
    Kind.CHAMPION: _Audited(Champion, "checkpoint", {each.name: each.name for each in Champion.columns()}, True),
    Kind.WITHDRAWAL: _Audited(Withdrawal, "case_id", {"reason": "reason"}, False),
    Kind.ACCEPTED: _Audited(BatchAudit, "batch", {"reason": "accepted_because"}, False),
}


@dataclass(frozen=True)
class Unmatched:
    """A row without an entry, or an entry (of a `number`) without a row."""

    kind: Kind
    program: str
    subject: str
    number: int | None
    content: Mapping[str, Any]


def write_row(ws: Settings, kind: Kind, row: Record, by: str = "", expected: Expected = ANY) -> None:
    """Write a row of a table of AUDITED and its entry: both, whenever the process is killed, or neither.

    `by` is who decided, where that is not whoever runs this process.
    Of a table that is a history the row is added to those that are there, else it takes the place of its subject's.
    Raises ConfigurationError for a home without a key, and Conflict where the rows have not the stamp that is `expected`; nothing is written then.
    """
    of, key = AUDITED[kind], signing_key(ws)
    if not (content := of.content(row)):
        raise ConfigurationError(f"expected a row in which {', '.join(of.fields.values())} are set, got an empty one")
    entry = draft(kind, row.program, getattr(row, of.subject), content)
    entry = replace(entry, person=by or entry.person)
    with alone(ws, LOCK):
        chain = chain_of(ws)
        _append_waiting(ws, chain)
        entry = replace(entry, hash=entry.expected_hash())
        chain.wait(asdict(replace(entry, signature=signed(key, f"waiting {entry.hash}"))))
        catalog = Catalog(ws, row.program)
        partition = [getattr(row, name) for name in of.record.PARTITION]
        if of.history:
            catalog.append(of.record, [row], *partition, expected=expected)
        else:
            catalog.replace(of.record, [row], *partition, expected=expected)
        append(ws, entry)
        chain.wait(None)


def append_waiting(ws: Settings) -> bool:
    """Append the entry of a row whose process was killed before it did; returns whether there was one."""
    with alone(ws, LOCK):
        return _append_waiting(ws, chain_of(ws))


def _append_waiting(ws: Settings, chain: Chain) -> bool:
    key, content = signing_key(ws), chain.waiting()
    if content is None:
        return False
    try:
        entry = parse_entry(content)
        valid = entry.hash == entry.expected_hash()
        valid = valid and hmac.compare_digest(entry.signature, signed(key, f"waiting {entry.hash}"))
    except TypeError:
        valid = False
    # What med_assets did not write is not signed by it: its row, if there is one, is among those without an entry.
    written = valid and _has_row(ws, entry)
    if written:
        append(ws, entry)
    chain.wait(None)
    return written


def _has_row(ws: Settings, entry: Entry) -> bool:
    of = AUDITED[Kind(entry.kind)]
    rows = of.rows(Catalog(ws, entry.program), entry.subject)
    return any(of.content(row) == entry.content for row in rows)


def unmatched(ws: Settings) -> list[Unmatched]:
    """Every row without an entry and every entry without a row, by program and kind."""
    with alone(ws, LOCK):
        found = list(entries(ws))
        names = sorted({*programs.REGISTRY, *(entry.program for entry in found)})
        return [each for name in names for kind in AUDITED for each in _unmatched(ws, name, kind, found)]


def _unmatched(ws: Settings, program: str, kind: Kind, found: list[Entry]) -> Iterator[Unmatched]:
    of = AUDITED[kind]
    own = [entry for entry in found if (entry.program, entry.kind) == (program, kind)]
    if not of.history:
        own = list({entry.subject: entry for entry in own}.values())
    rows = of.rows(Catalog(ws, program))
    stated = [(getattr(row, of.subject), of.content(row)) for row in rows]
    contents = [(entry.subject, of.stated_in(entry)) for entry in own]
    for entry, content in zip(own, contents, strict=True):
        if content not in stated:
            yield Unmatched(kind, program, entry.subject, entry.number, entry.content)
    for row in stated:
        if row not in contents:
            yield Unmatched(kind, program, row[0], None, row[1])


def complete(ws: Settings) -> list[Unmatched]:
    """Append an entry for every row without one, marked as written afterwards; returns what still does not match."""
    for each in unmatched(ws):
        if each.number is None:
            with alone(ws, LOCK):
                append(
                    ws,
                    draft(each.kind, each.program, each.subject, {**each.content, COMPLETED: "its row had no entry"}),
                )
    return unmatched(ws)
