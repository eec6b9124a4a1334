"""Analyses: run when what they read has changed, kept in the store, written for people, and shown in the report."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError, DiskFull, RemoteFailed
from med_assets.evaluation import analysis
from med_assets.evaluation.analysis import Analysis
from med_assets.evaluation.scoring import record_failures
from med_assets.experiments import configuration as experiments
from med_assets.program import ReportTable
from med_assets.records import AnalysisResult, CaseScore, Checkpoint, Failure, SplitAssignment
from med_assets.settings import Settings
from med_assets.storage.escaping import csv
from med_assets.storage.files import digest, folder_hashes, read_json, replacing, write_json, write_text
from med_assets.storage.provenance import git_state
from med_assets.storage.result import StageResult

if TYPE_CHECKING:
    pass

CONTENT, VALUES = "analysis.json", "values.json"

STAGE = "analysis"
"""Stage of the failures of an analysis, whose name is in the place of an experiment's."""


class Measuring:
    """Measures cases one by one for an analysis; what was measured is kept in the store by what it was made of.

    A case that fails is noted in `failures` and left out; nothing else stops. `identity` are all that the numbers depend on
    beside the case, such as the version of the code.
    """

    def __init__(self, ws: Settings, *identity: object) -> None:
        self.ws, self.identity = ws, identity
        self.failures: dict[str, str] = {}

    def of(self, case_id: str, inputs: object, work: Callable[[], Mapping[str, object]]) -> Mapping[str, Any] | None:
        """What `work` returns, which JSON must be able to hold; `inputs` is what it is made of. None where it fails."""
        key = f"measure/{digest(*self.identity, inputs)}"
        if not self.ws.store.has(key):
            try:
                values = dict(work())
            except (DiskFull, RemoteFailed):  # no fault of the case
                raise
            except Exception as error:  # one bad case never stops an analysis; it is reported, and missing from n
                self.failures[case_id] = f"{type(error).__name__}: {error}"
                return None
            with self.ws.store.create(key) as folder:
                write_json(folder / VALUES, values)
        return dict(read_json(self.ws.store.fetch(key) / VALUES))

    def record(self, program_name: str, name: str) -> None:
        """Record the cases that failed, where the report and the stage find them."""
        record_failures(self.ws, program_name, STAGE, name, "", self.failures)


def folder_of(ws: Settings, program_name: str, name: str) -> Path:
    """Where the tables and pictures of an analysis are written for people."""
    return ws.reports / program_name / "analyses" / name


def code_version(ws: Settings, chosen: Analysis) -> str:
    """Version of the code of an analysis together with the hash of its settings."""
    return f"{chosen.version}-{digest(chosen.settings(ws))}"


def _content(ws: Settings, program_name: str, parts: tuple[str, ...]) -> str | list[str]:
    """What the content of an asset is known by; `parts` are those of its key after the program."""
    stage, *experiment = parts
    catalog = Catalog(ws, program_name)
    match stage:
        case "dataset":
            return catalog.dataset().version
        case "splits":
            return catalog.content(SplitAssignment)
        case "evaluation" | "leaderboard":
            return catalog.content(CaseScore, *experiment)
        case "checkpoint":
            return [row.checkpoint for row in catalog.rows(Checkpoint, *experiment)]
        case "champion":
            return [row.checkpoint for row in catalog.champions()]
        case _:
            raise ConfigurationError(f"expected a stage that an analysis can read, got {stage!r}")


def artifact_key(ws: Settings, program_name: str, chosen: Analysis) -> str:
    """Key of what an analysis finds now: its code, its settings and the content of all it reads."""
    inputs = [[parts, _content(ws, program_name, parts)] for parts in chosen.inputs(experiments.names(program_name))]
    return "analysis/" + digest(program_name, chosen.name, code_version(ws, chosen), inputs)


def analyse(ws: Settings, program_name: str, name: str) -> StageResult:
    """Run an analysis, or reuse what it found in the same inputs; tables as CSV and pictures go to the reports' folder.

    One that left cases out runs again. The data version is that of the tables and their words, not of the pictures.
    """
    chosen = analysis.find(program_name, name)
    key, catalog = artifact_key(ws, program_name, chosen), Catalog(ws, program_name)
    if any(row.artifact == key and row.failed for row in catalog.rows(AnalysisResult, name)):
        ws.store.remove(key)
    fresh = not ws.store.has(key)
    if fresh:
        record_failures(ws, program_name, STAGE, name, "", {})
        with ws.store.create(key) as folder:
            _keep(folder, chosen.run(ws, folder))
    failures = {row.case_id: row.error for row in catalog.rows(Failure, STAGE, name)}
    dataset = catalog.dataset()
    row = AnalysisResult(
        program=program_name,
        analysis=name,
        artifact=key,
        dataset_version=dataset.version,
        code_version=code_version(ws, chosen),
        synthetic=bool(dataset.synthetic),
        failed=len(failures),
        git_commit=git_state(),
    )
    catalog.replace(AnalysisResult, [row], name)
    _publish(ws.store.fetch(key), folder_of(ws, program_name, name))
    found = read_tables(ws.store.fetch(key))
    return StageResult(
        data_version=digest(read_json(ws.store.fetch(key) / CONTENT)),
        counts={"new": int(fresh), "reused": int(not fresh), "failed": len(failures)},
        summary={
            "artifact": key,
            "dataset_version": row.dataset_version,
            "folder": str(folder_of(ws, program_name, name).relative_to(ws.home)),
            "failures": failures,
        },
        tables={table.title: table.rows for table in found},
        images={image.stem: image for table in found for image in table.images},
    )


def _keep(folder: Path, tables: Sequence[ReportTable]) -> None:
    """Write tables into the folder that holds their pictures: one JSON for the report, and a CSV each for people."""
    content = []
    for number, table in enumerate(tables, start=1):
        name = f"{number:02d}_{''.join(one if one.isalnum() else '_' for one in table.title.lower()).strip('_')}.csv"
        write_text(folder / name, csv(table.rows))
        for image in table.images:
            if image.parent != folder:
                shutil.copyfile(image, folder / image.name)
        rows = [[_plain(value) for value in row] for row in table.rows.itertuples(index=False, name=None)]
        content.append(
            {
                "title": table.title,
                "text": table.text,
                "columns": [str(one) for one in table.rows.columns],
                "rows": rows,
            }
            | {"images": [image.name for image in table.images], "captions": list(table.captions), "csv": name}
        )
    write_json(folder / CONTENT, content)


def _plain(value: Any) -> Any:
    """A cell as JSON has it; what is undefined becomes null."""
    if isinstance(value, list | tuple | dict):
        return value
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def read_tables(folder: Path) -> list[ReportTable]:
    return [
        ReportTable(
            one["title"],
            one["text"],
            pd.DataFrame(one["rows"], columns=one["columns"]),
            tuple(folder / name for name in one["images"]),
            tuple(one["captions"]),
        )
        for one in read_json(folder / CONTENT)
    ]


def _publish(folder: Path, out: Path) -> None:
    """Copy the files of an artifact to where people look, and take away those of an earlier run."""
    names = [name for name in folder_hashes(folder) if name != "manifest.json"]
    for name in names:
        with replacing(out / name) as temporary:
            shutil.copyfile(folder / name, temporary)
    for path in [path for path in out.rglob("*") if path.is_file()]:
        if path.relative_to(out).as_posix() not in names:
            path.unlink()


def synthetic(ws: Settings, program_name: str) -> int:
    """How many analyses in the report are of synthetic cases."""
    return sum(row.synthetic for row in Catalog(ws, program_name).rows(AnalysisResult))
