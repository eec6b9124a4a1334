"""What a home is up to, as metrics for Prometheus: counts alone, and names of programs, experiments, reasons and states.

A scrape reads the tables of a program only where they were written since the last one.
"""

import json
import shutil
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from med_assets import program
from med_assets.catalog import Catalog, refresh_tables
from med_assets.errors import MedAssetsError
from med_assets.landing import batches, space
from med_assets.records import BatchAudit, CaseVersion, Champion, DatasetCase, PreparedCase, SplitAssignment
from med_assets.settings import Settings
from med_assets.storage.exposition import Family, Sample, gauge
from med_assets.storage.files import read_json
from med_assets.training import nvidia_smi

PREFIX = "med_assets_"

STAGES = (("intake", CaseVersion), ("preparation", PreparedCase))

RUN_STATES = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
"""States of Dagster's runs that are not over."""

PATIENCE_S = 5.0
"""Longest wait for Dagster's webserver."""

GPU_FIELDS = ("index", "memory.used", "memory.total", "temperature.gpu", "utilization.gpu")
MIB = 2**20


class Collector:
    """Collects the metrics of a home; `dagster_url` is that of Dagster's webserver, empty for none."""

    def __init__(self, ws: Settings, dagster_url: str = "") -> None:
        self.ws, self.dagster_url = ws, dagster_url.rstrip("/")
        self._of_tables: dict[str, tuple[object, list[Family], _Batches]] = {}

    def families(self) -> list[Family]:
        """All metrics as they are now."""
        refresh_tables(self.ws)
        found = [family for name in program.registered() for family in self._program(name)]
        found += [*trainings(self.ws), *disks(self.ws), *gpus()]
        if self.dagster_url:
            found += dagster_runs(self.dagster_url)
        return merged(found)

    def _program(self, name: str) -> list[Family]:
        """Those of the tables of a program, read anew when any of them is another."""
        catalog = Catalog(self.ws, name)
        tables = (CaseVersion, PreparedCase, BatchAudit, DatasetCase, SplitAssignment, Champion)
        stamps = tuple(catalog.folder_stamp(table) for table in tables)
        if name not in self._of_tables or self._of_tables[name][0] != stamps:
            found = [
                *_cases(catalog, name),
                *_dataset(catalog, name),
                *_latencies(catalog, name),
                *_champion(catalog, name),
            ]
            self._of_tables[name] = stamps, found, _Batches.of(catalog)
        _, found, seen = self._of_tables[name]
        return [*found, seen.family(self.ws, name)]


@dataclass(frozen=True)
class _Batches:
    """Names of the batches that the tables know, by how far they are."""

    taken_in: frozenset[str]
    prepared: frozenset[str]
    held_back: frozenset[str]

    @classmethod
    def of(cls, catalog: Catalog) -> Self:
        """The batches of a program."""
        taken_in = frozenset(key[-1] for key in catalog.keys(CaseVersion))
        prepared = frozenset(key[-1] for key in catalog.keys(PreparedCase))
        return cls(taken_in - prepared, prepared, prepared & catalog.held_back())

    def family(self, ws: Settings, name: str) -> Family:
        """Batches by how far they are; the landing zone is asked for those that no table has yet."""
        states = {
            "taken in": len(self.taken_in),
            "prepared": len(self.prepared - self.held_back),
            "held back": len(self.held_back),
        }
        with suppress(MedAssetsError, OSError):  # a landing zone that can't be read now
            states["waiting"] = len(set(batches.known(ws, name)) - self.taken_in - self.prepared)
        samples = tuple(Sample(n, {"program": name, "state": state}) for state, n in sorted(states.items()))
        return Family(f"{PREFIX}batches", "batches by how far they are", samples)


def merged(families: Iterable[Family]) -> list[Family]:
    """One family of each name, with the samples of all."""
    found: dict[str, Family] = {}
    for family in families:
        before = found.get(family.name)
        samples = (*before.samples, *family.samples) if before else family.samples
        found[family.name] = Family(family.name, family.meaning, samples, family.kind)
    return list(found.values())


def _cases(catalog: Catalog, name: str) -> Iterator[Family]:
    """Cases by status, and quarantined ones by reason, over all versions and batches."""
    statuses, reasons = list[Sample](), list[Sample]()
    for stage, of in STAGES:
        rows = catalog.frame(of, columns=["status", "reason_code"])
        labels = {"program": name, "stage": stage}
        for status, n in sorted(Counter(rows["status"]).items()):
            statuses.append(Sample(n, {**labels, "status": str(status)}))
        refused = rows[rows["status"] == "quarantined"]["reason_code"].fillna("")
        reasons += [Sample(n, {**labels, "reason": str(code)}) for code, n in sorted(Counter(refused).items())]
    yield Family(f"{PREFIX}cases", "versions of cases by their status after a stage", tuple(statuses))
    yield Family(f"{PREFIX}quarantined_cases", "versions of cases that a stage refused, by reason", tuple(reasons))


def _dataset(catalog: Catalog, name: str) -> Iterator[Family]:
    places = Counter(case.split or "unassigned" for case in catalog.described())
    samples = tuple(Sample(n, {"program": name, "split": split}) for split, n in sorted(places.items()))
    yield Family(f"{PREFIX}dataset_cases", "cases of the present dataset by split", samples)


def _latencies(catalog: Catalog, name: str) -> Iterator[Family]:
    """Of the last batch: how long after it was taken a stage wrote its table."""
    samples = []
    for stage, of in STAGES:
        if (keys := catalog.keys(of)) and (stamp := catalog.stamp(of, *keys[-1])) is not None:
            taken = datetime.strptime(keys[-1][-1].partition("_")[0], batches.TIME_FORMAT).replace(tzinfo=UTC)
            seconds = max(0.0, stamp[0] / 1e9 - taken.timestamp())
            samples.append(Sample(round(seconds, 3), {"program": name, "stage": stage}))
    yield Family(
        f"{PREFIX}last_batch_seconds", "time from taking the last batch to the end of a stage over it", tuple(samples)
    )


def _champion(catalog: Catalog, name: str) -> Iterator[Family]:
    if (champion := catalog.champion()) is None:
        return
    with suppress(ValueError):
        at = datetime.fromisoformat(champion.promoted_at)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        labels = {"program": name, "experiment": champion.experiment}
        yield Family(
            f"{PREFIX}champion_promoted_timestamp_seconds",
            "when the champion was promoted",
            (Sample(at.timestamp(), labels),),
        )


def trainings(ws: Settings) -> Iterator[Family]:
    """Trainings and predictions on this machine that have no result, with their last heartbeat."""
    beats = []
    for path in sorted(ws.jobs.glob("*/heartbeat.json")):
        job = path.parent
        if (job / "result.json").is_file():
            continue
        with suppress(OSError, ValueError, KeyError, AttributeError):
            labels = {"program": _text(job / "program"), "experiment": _experiment(job), "job": job.name}
            beats.append(Sample(float(read_json(path)["time"]), labels))
    yield gauge(
        f"{PREFIX}unfinished_trainings", "trainings and predictions of this machine without a result", len(beats)
    )
    yield Family(
        f"{PREFIX}training_heartbeat_timestamp_seconds", "when such a job showed last that it works", tuple(beats)
    )


def _experiment(job: Path) -> str:
    with suppress(OSError, ValueError, AttributeError):
        return str(read_json(job / "experiment.json").get("name") or "")
    return ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def disks(ws: Settings) -> Iterator[Family]:
    """Size and free space of the disks that fill, and of a bucket how full it was at the last look, and its quota."""
    free, size = list[Sample](), list[Sample]()
    for label, folder in space.folders(ws).items():
        found = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists()))
        free.append(Sample(found.free, {"folder": label}))
        size.append(Sample(found.total, {"folder": label}))
    yield Family(f"{PREFIX}disk_free_bytes", "free space of the disk that a folder is on", tuple(free))
    yield Family(f"{PREFIX}disk_size_bytes", "size of that disk", tuple(size))
    with suppress(MedAssetsError):
        if (used := space.usage(ws)) is not None:
            yield gauge(f"{PREFIX}bucket_bytes", "bytes of the bucket of the home at the last look of gc", used.bytes)
            yield gauge(f"{PREFIX}bucket_looked_at_timestamp_seconds", "when that was", used.at)
    if ws.quota_gb is not None:
        yield gauge(f"{PREFIX}bucket_quota_bytes", "bytes that the bucket of the home may take", ws.quota_gb * space.GB)


def gpus() -> Iterator[Family]:
    """Memory, temperature and use of each GPU of this machine; nothing without any."""
    with suppress(nvidia_smi.NoAnswer):
        lines = nvidia_smi.ask(shutil.which("nvidia-smi"), ",".join(GPU_FIELDS), header=False)
        rows = [[text.strip() for text in line.split(",")] for line in lines]
        wanted = (
            (1, "gpu_memory_used_bytes", "memory of a GPU in use", MIB),
            (2, "gpu_memory_size_bytes", "memory of a GPU", MIB),
            (3, "gpu_temperature_celsius", "temperature of a GPU", 1),
            (4, "gpu_utilization_ratio", "share of time in which a GPU worked", 0.01),
        )
        for place, name, meaning, unit in wanted:
            samples = []
            for row in rows:
                with suppress(ValueError, IndexError):  # a GPU that does not tell it
                    samples.append(Sample(float(row[place]) * unit, {"gpu": row[0]}))
            yield Family(f"{PREFIX}{name}", meaning, tuple(samples))


def dagster_runs(url: str) -> Iterator[Family]:
    """Runs of Dagster that are not over, by state, as its webserver counts them."""
    fields = " ".join(
        f"{state}: runsOrError(filter: {{statuses: [{state}]}}) {{ ... on Runs {{ count }} }}" for state in RUN_STATES
    )
    request = urllib.request.Request(
        f"{url}/graphql",
        json.dumps({"query": f"query {{ {fields} }}"}).encode(),
        {"Content-Type": "application/json"},
    )
    samples: tuple[Sample, ...] = ()
    with suppress(urllib.error.URLError, TimeoutError, OSError, ValueError, KeyError, TypeError):
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            data = json.load(reply)["data"]
        samples = tuple(Sample(int(data[state]["count"]), {"state": state.lower()}) for state in RUN_STATES)
    yield gauge(f"{PREFIX}dagster_up", "1 where Dagster's webserver answers", float(bool(samples)))
    yield Family(f"{PREFIX}dagster_runs", "runs of Dagster that are not over, by state", samples)
