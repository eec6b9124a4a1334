"""The stored bytes read back: what is damaged or lost, what can be made again, and by which command."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from med_assets import program
from med_assets.catalog import VERSION_KIND, Catalog
from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.landing import batches
from med_assets.records import AnalysisResult, CaseVersion, Checkpoint, PreparedCase, Threshold
from med_assets.settings import Settings
from med_assets.storage.record import Record

R = TypeVar("R", bound=Record)

DERIVED = ("analysis", "confidence", "intake", "measure", "origin", "prepared", "raw", "scan", "score", "thresholds")
"""Kinds of artifacts that can be made again, as long as what they are made of is there; a training costs more."""

KINDS = (*DERIVED, "checkpoint", VERSION_KIND)


@dataclass(frozen=True)
class Damage:
    """An artifact that can't be read as it was written. `remedy` is for a person; `again` whether it can be made again."""

    key: str
    state: str
    again: bool
    remedy: str


def examine(ws: Settings) -> list[Damage]:
    """Read back all artifacts and look for those that the lake names and the store has lost; sorted by key."""
    state = dict.fromkeys(missing(ws), "missing")
    for key in (key for kind in KINDS for key in ws.store.keys(kind)):
        try:
            ws.store.verify(key)
        except ArtifactCorrupt:
            state[key] = "corrupt"
    return [Damage(key, found, *_remedy(ws, key, state)) for key, found in sorted(state.items())]


def missing(ws: Settings) -> list[str]:
    """Keys of the artifacts that a table names and the store has lost, sorted; nothing is read back."""
    return sorted(key for key in named(ws) if not ws.store.has(key))


def remove_damaged(ws: Settings, damages: list[Damage]) -> list[Damage]:
    """Take corrupt artifacts that can be made again out of the store; returns those that were removed."""
    removed = [damage for damage in damages if damage.again and damage.state == "corrupt"]
    for damage in removed:
        ws.store.remove(damage.key)
    return removed


def _rows(ws: Settings, of: type[R]) -> Iterator[R]:
    for name in program.registered():
        yield from Catalog(ws, name).rows(of)


def named(ws: Settings) -> set[str]:
    """Keys of all artifacts that a table names."""
    found: set[str] = set()
    for name in program.registered():
        catalog = Catalog(ws, name)
        found |= {row.artifact for row in catalog.case_versions()} | {row.artifact for row in catalog.prepared()}
        found |= {row.checkpoint for row in catalog.rows(Checkpoint)} | {row.checkpoint for row in catalog.champions()}
        found |= {row.artifact for row in catalog.rows(Threshold)} | {
            row.artifact for row in catalog.rows(AnalysisResult)
        }
    return found - {""}


def _remedy(ws: Settings, key: str, damaged: dict[str, str]) -> tuple[bool, str]:
    """Whether an artifact can be made again, and what a person does."""
    kind = key.split("/")[0]
    if kind == "raw":
        return _raw(ws, key)
    if kind == "prepared":
        return _prepared(ws, key, damaged)
    if kind == "checkpoint":
        return False, "restore it from a backup; else delete its folder in the store, train again and promote again"
    if kind == VERSION_KIND:
        return False, "restore it from a backup: it is a dataset as it was"
    commands = {
        "analysis": "`med-assets analyse`",
        "confidence": "`med-assets evaluate`",
        "score": "`med-assets evaluate` or `monitor`",
        "thresholds": "`med-assets thresholds`",
    }
    command = commands.get(kind, "the next command that needs it")
    return True, f"{command} makes it again"


def _raw(ws: Settings, key: str) -> tuple[bool, str]:
    rows = [row for row in _rows(ws, CaseVersion) if row.artifact == key]
    for row in reversed(rows):
        if _landed(ws, row.program, row.batch):
            return True, f"med-assets ingest {row.program} --batch {row.batch}"
    return False, (
        "its files are no longer in the landing folder as they were: restore it from a backup, or send the same files "
        "again, take them in, and repeat this command"
    )


def _prepared(ws: Settings, key: str, damaged: dict[str, str]) -> tuple[bool, str]:
    rows = [row for row in _rows(ws, PreparedCase) if row.artifact == key]
    for row in reversed(rows):
        versions = Catalog(ws, row.program).case_versions(row.batch)
        raws = [version.artifact for version in versions if version.case_id == row.case_id]
        if all(raw not in damaged or _raw(ws, raw)[0] for raw in raws):
            return True, f"med-assets ingest {row.program} --batch {row.batch}"
    return not rows, "get the stored DICOM of its case back first" if rows else "nothing: no case refers to it"


def _landed(ws: Settings, name: str, batch: str) -> bool:
    """Whether all that a batch was made of lies in the landing folder as it was."""
    try:
        listed = batches.manifest(ws, name, batch)
    except ConfigurationError:
        return False
    found = ((batches.read_entry(ws, name, entry), fingerprint) for entry, fingerprint in listed.items())
    return all(entry is not None and entry.fingerprint == fingerprint for entry, fingerprint in found)
