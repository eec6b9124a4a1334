"""The records of all experiments of a program, and their index: what the asset `P/experiments` writes."""

from dataclasses import replace

from med_assets.catalog import Catalog
from med_assets.errors import MedAssetsError
from med_assets.evaluation.stage import found_no_case
from med_assets.launch.training import usable
from med_assets.records import AggregateScore
from med_assets.reporting.experiment_record import record
from med_assets.reporting.index import index
from med_assets.settings import Settings
from med_assets.storage.files import digest
from med_assets.storage.result import StageResult


def recordable(ws: Settings, program_name: str) -> list[str]:
    """Names of the experiments whose present checkpoint is evaluated."""
    catalog, found = Catalog(ws, program_name), []
    for name in usable(ws, program_name):
        checkpoint = catalog.checkpoint(name)
        scored = {row.checkpoint for row in catalog.rows(AggregateScore, name)}
        if checkpoint and (checkpoint.checkpoint in scored or found_no_case(ws, program_name, name)):
            found.append(name)
    return found


def experiments(ws: Settings, program_name: str) -> StageResult:
    """Write the record of every evaluated experiment whose content changed, then the index.

    One that fails costs neither the others nor the index; MedAssetsError names all that failed, after the index was written.
    """
    names, written, failed = recordable(ws, program_name), {}, {}
    for name in names:
        try:
            written[name] = record(ws, program_name, name)
        except MedAssetsError as error:
            failed[name] = str(error)
    result = index(ws, program_name)
    if failed:
        causes = "; ".join(f"{program_name}/{name}: {why}" for name, why in failed.items())
        raise MedAssetsError(f"expected records of {len(names)} experiments, {len(failed)} failed: {causes}")
    counts = {count: sum(each.counts[count] for each in written.values()) for count in ("executed", "plotted")}
    notebooks = {name: each.summary["notebook"] for name, each in written.items() if "notebook" in each.summary}
    return replace(
        result,
        data_version=digest(result.data_version, {name: each.data_version for name, each in written.items()}),
        counts=result.counts | counts,
        summary=result.summary | {"notebooks": notebooks},
    )
