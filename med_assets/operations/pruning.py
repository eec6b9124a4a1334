"""What a home holds by kind and experiment, what of it nothing current refers to, and its removal.

Kept is whatever a table names, those tables aside that are a history of all runs; what kept checkpoints and unfinished jobs name in
turn, such as initial weights, teachers and prepared cases; and what the kept checkpoints predicted of prepared cases.
De-identified files, tables and what people decided are never removed.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from med_assets import program
from med_assets.catalog import (
    VERSION,
    VERSION_KIND,
    Catalog,
    refresh_tables,
    remove_objects,
    texts_of,
    unreferenced_objects,
    usable,
)
from med_assets.errors import ArtifactMissing, ConfigurationError, LockHeld
from med_assets.evaluation.predicting import prediction_key
from med_assets.evaluation.scoring import score_keys
from med_assets.launch import jobs
from med_assets.launch.configuration import runs
from med_assets.operations import bucket_pruning
from med_assets.operations.stored import DAY_S, KEY, Stored, why_kept
from med_assets.records import RECORDS, ExperimentEntry, RunScore, TrainingRun
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.artifacts import MANIFEST
from med_assets.storage.lake import Unreferenced
from med_assets.storage.locks import alone, alone_here
from med_assets.storage.s3 import shared_files
from med_assets.storage.s3.retention import LEAST_DAYS
from med_assets.storage.s3.store import S3Store

HISTORY = (ExperimentEntry, RunScore, TrainingRun)
"""Records of every run there ever was: that one names a checkpoint does not keep it."""

UNKNOWN = "-"
"""What stands for a program or experiment that isn't known."""

JOB = "job"
"""Kind of the folder of a training or prediction, with its log."""

EARLIER = "earlier file"
"""Kind of a version of a report or an exported prediction that a newer one took the place of, in the bucket of a shared home."""

TABLES = "earlier tables"
"""Kind of an object of the tables of a shared home that nothing needs."""

ASIDE = "pruned-"
"""Start of the name of the folder into which a job is moved to be removed."""

SHORTEST_DAYS = 1.0
"""What another machine may be about to name is younger."""


@dataclass(frozen=True)
class Total:
    """What there is of a kind and an owner, and what of that may go."""

    kind: str
    owner: str
    n: int
    bytes: int
    removable_n: int
    removable_bytes: int


def examine(ws: Settings, older_than_days: float, *, interrupted: bool = False) -> list[Stored]:
    """List everything in a home with what keeps it; `interrupted` lets unfinished jobs go that are older and that nobody runs.

    In a shared home this is a look, see `bucket_pruning`; what is younger than a day stays whatever is asked for. Raises
    ConfigurationError for a home whose store has checkpoints and whose tables name none.
    """
    refresh_tables(ws)
    shared = ws.store if isinstance(ws.store, S3Store) else None
    if shared:
        older_than_days = max(older_than_days, SHORTEST_DAYS)
    found = [_job(ws, job, older_than_days, interrupted) for job in _folders(ws.jobs)]
    found += [_folder(ws, name) for name in ("lake", "reports", "predictions") if (ws.home / name).is_dir()]
    named = _named_by_tables(ws)
    if ws.store.keys("checkpoint") and not any(key.startswith("checkpoint/") for key in named):
        raise ConfigurationError(
            "expected tables that name checkpoints of the store, got none; check MED_ASSETS_HOME, and restore the tables of the home"
        )
    unfinished = [one.folder for one in found if one.kind == JOB and one.kept and one.folder]
    named |= {key for job in unfinished for key in _keys_in(job)} | _of_dataset_versions(ws)
    kept = _closure(ws, named | (bucket_pruning.keys_of_jobs(shared) if shared else set()))
    owners = _owners(ws)
    made = _made_by(ws, owners)
    kept |= {key for key, checkpoint in made.items() if checkpoint in kept}
    owners = {key: owners.get(checkpoint, UNKNOWN) for key, checkpoint in made.items()} | owners
    if shared:
        found += _earlier_files(ws, older_than_days)
        found += [
            Stored(TABLES, UNKNOWN, one.name, one.bytes, one.age_days, "")
            for one in unreferenced_objects(ws, max(older_than_days, LEAST_DAYS))
        ]
        return found + list(bucket_pruning.examine(ws, shared, kept, owners, older_than_days, interrupted=interrupted))
    return found + [_artifact(ws, key, owners.get(key, UNKNOWN), kept, older_than_days) for key in ws.store.all_keys()]


def totals(found: Iterable[Stored]) -> list[Total]:
    """Number and size by kind and owner, sorted."""
    groups: dict[tuple[str, str], list[Stored]] = {}
    for one in found:
        groups.setdefault((one.kind, one.owner), []).append(one)
    return [
        Total(
            kind, owner, len(group), sum(one.bytes for one in group),
            sum(not one.kept for one in group), sum(one.bytes for one in group if not one.kept),
        )
        for (kind, owner), group in sorted(groups.items())
    ]  # fmt: skip


def remove(ws: Settings, found: Iterable[Stored]) -> list[Stored]:
    """Remove what nothing keeps; returns what was removed. A job that somebody started since stays."""
    going = [one for one in found if not one.kept]
    with alone(ws, "prune"):
        for left in (ws.home / "tmp").glob(f"{ASIDE}*"):  # of a process that was killed
            shutil.rmtree(left)
        removed = [one for one in going if one.kind == JOB and one.folder and _remove_job(ws, one.folder)]
        removed += [one for one in going if one.kind == EARLIER and _remove_earlier(ws, one)]
        tables = [one for one in going if one.kind == TABLES]
        remove_objects(ws, [Unreferenced(one.name, one.bytes, one.age_days) for one in tables])
        artifacts = [one for one in going if one.kind not in (JOB, EARLIER, TABLES)]
        if isinstance(ws.store, S3Store):
            refresh_tables(ws)  # another machine may have named something since
            return [*removed, *tables, *bucket_pruning.remove(ws.store, artifacts, _named_by_tables(ws))]
        for one in artifacts:
            ws.store.remove(one.name)
        return [*removed, *artifacts]


def _shared_files(ws: Settings) -> dict[str, shared_files.SharedFiles]:
    """What the machines of a shared home have in common, by name of its folder."""
    found = {"reports": shared_files.reports(ws), "predictions": shared_files.predictions(ws)}
    return {name: files for name, files in found.items() if files is not None}


def _earlier_files(ws: Settings, older_than_days: float) -> Iterator[Stored]:
    for name, files in _shared_files(ws).items():
        for each in files.unused(max(older_than_days, SHORTEST_DAYS) * DAY_S):
            age_days = (time.time() - each.modified) / DAY_S
            yield Stored(EARLIER, name, each.key, each.size, age_days, kept="")


def _remove_earlier(ws: Settings, one: Stored) -> bool:
    return _shared_files(ws)[one.owner].remove(one.name, SHORTEST_DAYS * DAY_S)


def _named_by_tables(ws: Settings) -> set[str]:
    """Keys in any column of the tables of all programs that are not a history of runs, whether or not a program is in use."""
    keys: set[str] = set()
    for of in RECORDS:
        if of in HISTORY:
            continue
        keys |= {text for text in texts_of(ws, of) if names.ARTIFACT.fits(text)}
    return keys


def _closure(ws: Settings, keys: set[str]) -> set[str]:
    """The keys, and those that the files of their checkpoints name in turn."""
    kept: set[str] = set()
    left = set(keys)
    while left:
        key = left.pop()
        kept.add(key)
        if key.startswith("checkpoint/") and ws.store.has(key):
            texts = ws.store.texts(key, ".json").values()
            left |= {found for text in texts for found in KEY.findall(text)} - kept
    return kept


def _keys_in(folder: Path) -> set[str]:
    """Keys that the JSON files of a folder name."""
    return {key for path in folder.glob("*.json") for key in KEY.findall(path.read_text(errors="replace"))}


def _owners(ws: Settings) -> dict[str, str]:
    """Program and experiment of each checkpoint in the store, the program alone of prepared cases, their files and versions of datasets."""
    owners = {}
    for key in ws.store.keys("checkpoint"):
        texts = ws.store.texts(key, ".json")
        owners[key] = (
            f"{_field(texts.get('provenance.json'), 'program')}/{_field(texts.get('experiment.json'), 'name')}"
        )
    for key in ws.store.keys(VERSION_KIND):
        owners[key] = _field(ws.store.texts(key, VERSION).get(VERSION), "program")
    for name in program.registered():
        catalog = Catalog(ws, name)
        owners |= {row.artifact: name for row in catalog.prepared()} | {
            row.artifact: name for row in catalog.case_versions()
        }
        owners |= {row.checkpoint: f"{name}/{row.experiment}" for row in catalog.rows(TrainingRun)}
    return owners


def _field(text: str | None, name: str) -> str:
    """A field of an object of JSON."""
    with suppress(ValueError, AttributeError):
        return str(json.loads(text or "").get(name) or UNKNOWN)
    return UNKNOWN


def _of_dataset_versions(ws: Settings) -> set[str]:
    """Keys that the kept versions of datasets name in their Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: set[str] = set()
    for key in ws.store.keys("dataset"):
        with ws.store.files(key) as folder:
            for path in folder.rglob("*.parquet"):
                rows = pq.read_table(path, memory_map=False)
                columns = [rows[each.name].to_pylist() for each in rows.schema if pa.types.is_string(each.type)]
                found |= {text for column in columns for text in column if names.ARTIFACT.fits(text)}
    return found


def _made_by(ws: Settings, owners: dict[str, str]) -> dict[str, str]:
    """Checkpoint by the key of each prediction and score that the present code makes with it of a prepared case."""
    made: dict[str, str] = {}
    for name in program.registered():
        prepared = {row.artifact for row in usable(Catalog(ws, name).prepared())}
        for checkpoint in ws.store.keys("checkpoint"):
            if owners[checkpoint].partition("/")[0] not in (name, UNKNOWN):
                continue
            made |= dict.fromkeys(score_keys(ws, name, checkpoint, prepared).values(), checkpoint)
            for artifact in prepared:
                with suppress(ArtifactMissing, KeyError):
                    made[prediction_key(ws, name, checkpoint, artifact)] = checkpoint
    return made


def _artifact(ws: Settings, key: str, owner: str, kept: set[str], older_than_days: float) -> Stored:
    kind, folder = key.split("/")[0], ws.store.fetch(key)
    age_days = (time.time() - (folder / MANIFEST).stat().st_mtime) / DAY_S
    why = why_kept(key, kept, age_days, older_than_days)
    return Stored(kind, owner, key, _size(folder), age_days, why, folder)


def _job(ws: Settings, job: Path, older_than_days: float, interrupted: bool) -> Stored:
    owner = f"{_text(job / 'program')}/{_field(_text(job / 'experiment.json'), 'name')}"
    newest = max((path.stat().st_mtime for path in [job, *job.rglob("*")] if path.exists()), default=time.time())
    age_days = (time.time() - newest) / DAY_S
    published = ws.store.has(f"checkpoint/{job.name}")
    why = ""
    if age_days < older_than_days:
        why = "too new"
    elif runs(job):
        why = "running"
    elif not (published or interrupted):
        why = "unfinished"
    return Stored(JOB, owner, job.name, _size(job), age_days, why, job)


def _remove_job(ws: Settings, job: Path) -> bool:
    try:
        # The folder is this machine's; another that trains the same in a shared home has its own.
        with alone_here(ws, f"training-{job.name}", wait=False, file=job / jobs.FOLLOWED):
            if runs(job):
                return False
            # By one rename, so that a kill in the middle leaves no half job where a whole one is looked for.
            (ws.home / "tmp").mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(dir=ws.home / "tmp", prefix=ASIDE))
            job.rename(aside / job.name)
            shutil.rmtree(aside)
    except LockHeld:
        return False
    return True


def _folder(ws: Settings, name: str) -> Stored:
    folder = ws.home / name
    return Stored(name, UNKNOWN, name, _size(folder), 0.0, "never removed", folder)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else UNKNOWN
