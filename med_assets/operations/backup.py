"""A backup of a home: tables, audit trail, artifacts, reports, exported predictions, settings and Dagster's records.

Tables and audit trail are those of one moment, and artifacts are copied after them; so whatever the tables name is in the backup,
though work goes on. Bytes are kept by their hash, so the next backup copies only what is new, and so does one that was killed when
it is started again. No secret is part of a backup.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from med_assets import __version__
from med_assets.catalog import shared_tables
from med_assets.deidentification.audit_trail import LOCK
from med_assets.deidentification.chain import FOLDER as TRAIL
from med_assets.deidentification.chain import HEAD, WAITING, chain_of
from med_assets.errors import ArtifactCorrupt, ArtifactMissing, ConfigurationError
from med_assets.experiments.weights import FOLDER as WEIGHTS
from med_assets.operations import integrity
from med_assets.operations.dagster_records import collect, dagster_home
from med_assets.operations.destination import DAMAGED, SHA256, Destination, damaged
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.files import canonical_json, digest, file_sha256, walk, write_json
from med_assets.storage.locks import alone, alone_here
from med_assets.storage.progress import bar as progress_bar
from med_assets.storage.s3 import shared_files
from med_assets.storage.scratch import scratch
from med_assets.storage.snapshot import snapshot

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

FORMAT = 1

AT_ONE_MOMENT = ("lake", TRAIL)
AFTERWARDS = ("reports", "predictions", WEIGHTS)
SETTINGS = ("network.yaml",)
"""What a person put into the home and is no secret."""

DAGSTER = "dagster"
FOLDERS = (*AT_ONE_MOMENT, *AFTERWARDS, DAGSTER)

NOT_PART = {
    "review_logins": "logins of the review page: keep a copy elsewhere, or make new ones with `med-assets review-login`",
    "demo.env": "settings of the demo with its key",
    "landing": "the landing zone, with the original files: back it up where originals belong",
    "network": "the queue of the DICOM network, which identifies patients",
}
"""Why a file or folder of a home is in no backup."""

SILENT = ("store", "tmp", "staging", "data", "catalog.duckdb", *FOLDERS, *SETTINGS)
"""What is in a backup or is made again, and is not worth a line."""

FILES_AT_ONCE = 256


@dataclass(frozen=True)
class Part:
    """A file of the home, or an artifact with all its files; `sha256` is that of the file, or of the artifact's manifest."""

    kind: str
    name: str
    """Path below the home, or the key of the artifact."""
    sha256: str
    bytes: int


FILE, ARTIFACT = "file", "artifact"


@dataclass(frozen=True)
class Backup:
    """One backup: when it was made, of what, and the object that lists its parts."""

    name: str
    at: str
    version: str
    """Version of the program."""
    parts: str
    n_files: int
    n_artifacts: int
    bytes: int
    damaged: tuple[str, ...]
    """Artifacts whose files were not as they were written, and so are not part of it."""
    missing: tuple[str, ...]
    """Artifacts that a table names and the store had lost."""


@dataclass(frozen=True)
class Made:
    """A backup that was just made: what was copied for it, and what of the home is not part of it, in words."""

    backup: Backup
    n_copied: int
    copied_bytes: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """An object of backups that can't be read back, with one part and the backups that need it."""

    sha256: str
    part: str
    backups: tuple[str, ...]


class _Copies:
    """Puts files to a destination unless they are there, and counts them."""

    def __init__(self, place: Destination) -> None:
        self.place, self.lost = place, damaged(place)
        self.there = place.objects() - self.lost
        self.n, self.bytes = 0, 0

    def put(self, files: Mapping[str, Path]) -> set[str]:
        """Copy what is not there; returns the hashes whose file has other bytes."""
        new = {sha256: path for sha256, path in files.items() if sha256 not in self.there}
        sizes = {sha256: path.stat().st_size for sha256, path in new.items()}
        bad = set(self.place.put(new)) if new else set()
        self.there |= new.keys() - bad
        self.n += len(new) - len(bad)
        self.bytes += sum(size for sha256, size in sizes.items() if sha256 not in bad)
        return bad


def make(ws: Settings, place: Destination, *, with_dagster: bool = True) -> Made:
    """Make a backup. Raises ConfigurationError, DiskFull and RemoteFailed; there is no new backup then, and the same call goes on."""
    if ws.store_location is None and not ws.home.is_dir():
        raise ConfigurationError("expected a home, got a folder that does not exist; check MED_ASSETS_HOME")
    if place.is_within(ws):
        raise ConfigurationError(
            f"expected a place for backups outside of the home and its store, got {place}; name another"
        )
    at = datetime.now(UTC)
    name = f"{at:%Y-%m-%dT%H-%M-%S}_{at.microsecond:06x}"  # names are in the order of times
    copies = _Copies(place)
    with alone(ws, "prune"), TemporaryDirectory(dir=scratch(ws.home)) as folder:
        copy = Path(folder)
        # Dagster first: where it knows less than the tables it asks for work that is there already; more, and it would not ask.
        records = dagster_home(ws.home)
        left_out = collect(records, copy / DAGSTER) if with_dagster else ["Dagster's records, as asked for"]
        _tables_and_trail(ws, copy)
        known = _known_artifacts(place) if not copies.lost else {}
        artifacts, bad, missing = _artifacts(ws, replace(ws, home=copy, store_location=None), copies, known)
        _pull(ws)
        snapshot({part: ws.home / part for part in AFTERWARDS}, copy)
        for part in SETTINGS:
            if (ws.home / part).is_file():
                shutil.copyfile(ws.home / part, copy / part)
        files = list(_files(copy, copies))
        parts = [*files, *artifacts]
        listed = copy / "parts.parquet"
        _write_parts(parts, listed)
        sha256 = file_sha256(listed)
        copies.put({sha256: listed})
    backup = Backup(
        name, at.isoformat(timespec="seconds"), __version__, sha256, len(files), len(artifacts), sum(part.bytes for part in parts),
        tuple(bad), tuple(missing),
    )  # fmt: skip
    body = {"format": FORMAT, **asdict(backup)}
    if copies.lost:
        place.write(DAMAGED, json.dumps(sorted(copies.lost - copies.there)))
    place.write(name, json.dumps({**body, "hash": digest(body)}, indent=1))
    return Made(backup, copies.n, copies.bytes, (*left_out, *_left_out(ws)))


def _tables_and_trail(ws: Settings, copy: Path) -> None:
    """Put tables and audit trail, as they are at one moment, below a folder as a home of one machine has them."""
    if ws.store_location is None:
        snapshot({part: ws.home / part for part in AT_ONE_MOMENT}, copy)
        return
    with alone(ws, LOCK):  # of entries and their rows
        tables, chain = shared_tables(ws), chain_of(ws)
        paths, head, waiting = chain.paths(anew=True), chain.head(), chain.waiting()
        trail = copy / TRAIL
        trail.mkdir()
        for path in paths:
            shutil.copyfile(path, trail / path.name)
        for name, content in ((HEAD, head), (WAITING, waiting)):
            if content:
                write_json(trail / name, content)
    if tables is not None:
        tables.copy_to(copy / "lake")


def _pull(ws: Settings) -> None:
    """Bring reports and exported predictions of all machines of a shared home here."""
    for files in (shared_files.reports(ws), shared_files.predictions(ws)):
        if files is not None:
            with alone_here(ws, shared_files.LOCK):
                for group in files.groups():
                    files.pull(group)


def _left_out(ws: Settings) -> Iterator[str]:
    """What a home holds that is not part of a backup, and why."""
    for path in sorted(ws.home.iterdir()) if ws.home.is_dir() else ():
        if path.name in NOT_PART:
            yield NOT_PART[path.name]
        elif path.name not in SILENT and not path.name.startswith("."):
            yield f"{names.escaped(path.name)}, which is no part of a home"


def _files(copy: Path, copies: _Copies) -> Iterator[Part]:
    """Copy the files of the snapshot."""
    waiting: dict[str, Path] = {}
    for path in sorted(walk(copy)):
        sha256 = file_sha256(path)
        waiting[sha256] = path
        yield Part(FILE, path.relative_to(copy).as_posix(), sha256, path.stat().st_size)
        if len(waiting) >= FILES_AT_ONCE:
            copies.put(waiting)
            waiting.clear()
    copies.put(waiting)


def _known_artifacts(place: Destination) -> dict[str, Part]:
    """Artifacts of the last backup by key: as none ever changes, they need not be read again."""
    for name in reversed(place.names()):
        try:
            return {part.name: part for part in parts_of(place, read_backup(place, name)) if part.kind == ARTIFACT}
        except (ConfigurationError, ArtifactCorrupt):  # a damaged one, which `--verify` names
            continue
    return {}


def _artifacts(
    ws: Settings, tables: Settings, copies: _Copies, known: Mapping[str, Part]
) -> tuple[list[Part], list[str], list[str]]:
    """Copy the artifacts of the store; returns them, those that are damaged, and those that the tables name and nobody has."""
    keys = set(ws.store.all_keys())
    named = integrity.named(tables)
    missing = sorted(key for key in named - keys if not ws.store.has(key))
    keys |= named - set(missing)  # a listing of a bucket may lag
    parts, bad = [known[key] for key in sorted(keys & known.keys())], []
    new = sorted(keys - known.keys())
    with progress_bar("copying", "artifact", len(new)) as bar, TemporaryDirectory(dir=scratch(ws.home)) as manifests:
        while new:
            with ExitStack() as stack:
                batch: dict[str, tuple[Part, dict[str, Path]]] = {}
                files: dict[str, Path] = {}
                while new and len(files) < FILES_AT_ONCE:
                    key = new.pop()
                    bar.update()
                    try:
                        hashes = ws.store.file_hashes(key)
                        folder = stack.enter_context(ws.store.files(key))
                        size = sum((folder / name).stat().st_size for name in hashes)
                    except (ArtifactMissing, ArtifactCorrupt, OSError, ValueError):
                        bad.append(key)
                        continue
                    text = canonical_json(hashes)
                    manifest = Path(manifests) / key.replace("/", "-")
                    manifest.write_text(text)
                    part = Part(ARTIFACT, key, file_sha256(manifest), size)
                    own = {sha256: folder / name for name, sha256 in hashes.items()} | {part.sha256: manifest}
                    batch[key] = part, own
                    files |= own
                wrong = copies.put(files)
                for key, (part, own) in batch.items():
                    # A file that several artifacts have may be damaged in one of them alone.
                    if own.keys() & wrong and copies.put(own):
                        bad.append(key)
                    else:
                        parts.append(part)
    return sorted(parts, key=lambda part: part.name), sorted(bad), missing


def _write_parts(parts: Iterable[Part], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [asdict(part) for part in parts]
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), path, compression="zstd")


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema({"kind": pa.string(), "name": pa.string(), "sha256": pa.string(), "bytes": pa.int64()})


def read_backup(place: Destination, name: str) -> Backup:
    """One backup of those there. Raises ConfigurationError for one that is absent or damaged."""
    names.BACKUP.check(name)
    if not (text := place.read(name)):
        raise ConfigurationError(
            f"expected one of the backups {', '.join(place.names()) or '(none)'}, got {name}; `med-assets restore FROM --list` lists them"
        )
    try:
        content = json.loads(text)
        stated = content.pop("hash")
        if stated != digest(content) or content.pop("format") != FORMAT:
            raise ValueError
        content |= {field: tuple(content[field]) for field in ("damaged", "missing")}
        return Backup(**content)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigurationError(
            f"expected the backup {name} as it was written, got something else; restore another one with --backup"
        ) from None


def parts_of(place: Destination, backup: Backup) -> list[Part]:
    """The parts of a backup. Raises ArtifactCorrupt where their list can't be read back."""
    import pyarrow.parquet as pq

    with TemporaryDirectory() as folder:
        found = place.get([backup.parts], Path(folder))
        if backup.parts not in found:
            raise ArtifactCorrupt(
                f"backup {backup.name}: the list of its parts can't be read back; restore another one with --backup"
            )
        return [Part(**row) for row in pq.read_table(found[backup.parts], memory_map=False).to_pylist()]


def manifests_of(place: Destination, parts: Iterable[Part], into: Path) -> Iterator[tuple[Part, dict[str, str] | None]]:
    """Hashes of the files of artifacts by name; None for one whose manifest can't be read back."""
    for some in batches_of([part for part in parts if part.kind == ARTIFACT], FILES_AT_ONCE):
        found = place.get(dict.fromkeys(part.sha256 for part in some), into)
        for part in some:
            path = found.get(part.sha256)
            yield part, None if path is None else dict(json.loads(path.read_text()))
        for path in found.values():
            path.unlink()


def batches_of(items: list[T], size: int) -> Iterator[list[T]]:
    """Items, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def forget(ws: Settings, place: Destination, keep: int) -> tuple[list[str], int]:
    """Remove all backups but the last ones, and the objects that only they need; returns their names, and how many objects went.

    A place has the backups of one home, of which one is made at a time; so none is being made now. Raises ArtifactCorrupt, with nothing
    removed, where it can't be read what a kept backup needs.
    """
    with alone(ws, "prune"), TemporaryDirectory(dir=scratch(ws.home)) as folder:
        there = place.names()
        needed: set[str] = set()
        for name in there[-keep:]:
            backup = read_backup(place, name)
            parts = parts_of(place, backup)
            needed |= {part.sha256 for part in parts} | {backup.parts}
            new = [part for part in parts if part.kind == ARTIFACT]
            for part, hashes in manifests_of(place, new, Path(folder)):
                if hashes is None:
                    raise ArtifactCorrupt(
                        f"expected to read what backup {name} needs, got a damaged manifest of {part.name}; nothing was removed: "
                        "`med-assets backup --verify` names all that is damaged, and the next backup writes it again"
                    )
                needed |= set(hashes.values())
        going = there[:-keep]
        for name in going:
            place.remove(name)
        unneeded = place.objects() - needed
        place.discard(sorted(unneeded))
    return going, len(unneeded)


def verify(place: Destination) -> tuple[list[Backup], list[Loss]]:
    """Read all backups back; returns those there, and what of them is damaged or lost, which the next backup writes again.

    Raises ConfigurationError where there is no backup.
    """
    if not place.names():
        raise ConfigurationError(f"expected backups at {place}, got none; `med-assets backup {place}` makes the first")
    backups, owners = [], dict[str, tuple[str, list[str]]]()
    losses = []
    with TemporaryDirectory() as folder:
        into = Path(folder)
        for name in place.names():
            try:
                backup = read_backup(place, name)
                parts = parts_of(place, backup)
            except (ConfigurationError, ArtifactCorrupt):
                losses.append(Loss("", "the list of its parts", (name,)))
                continue
            backups.append(backup)
            needed = {part.sha256: part.name for part in parts} | {backup.parts: "the list of its parts"}
            for part, hashes in manifests_of(place, parts, into):
                needed |= dict.fromkeys((hashes or {}).values(), part.name)
            for sha256, part_name in needed.items():
                owners.setdefault(sha256, (part_name, []))[1].append(name)
        with progress_bar("verifying", "object", len(owners)) as bar:
            for some in batches_of(sorted(owners), FILES_AT_ONCE):
                found = place.get(some, into)
                losses += [
                    Loss(sha256, owners[sha256][0], tuple(owners[sha256][1])) for sha256 in some if sha256 not in found
                ]
                for path in found.values():
                    path.unlink()
                bar.update(len(some))
    lost = {loss.sha256 for loss in losses if SHA256.fullmatch(loss.sha256)}
    if lost or damaged(place):
        place.write(DAMAGED, json.dumps(sorted(lost)))
    return backups, losses
