"""P/raw_cases and P/prepared_cases: from files in the landing zone to measured, audited cases, batch by batch."""

from typing import TYPE_CHECKING

import dagster as dg

from assets import keys, versions
from assets.gates import Gate
from assets.shell import Call, Stage, build

if TYPE_CHECKING:
    from med_assets.dataset.checks import CheckOutcome
    from med_assets.settings import Workspace
    from med_assets.storage.result import StageResult


def raw_cases(program: str) -> dg.AssetsDefinition:
    """Files of a batch grouped into cases, de-identified and stored."""

    def run(call: Call) -> "StageResult":
        from med_assets.intake.stage import intake

        return intake(call.ws, program, _batch(call.batch))

    def residual_phi(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.residual_phi(ws, program, _batch(batch))

    return build(
        Stage(
            program,
            "raw_cases",
            "Files of an intake batch grouped into cases, de-identified, content-hashed and stored as DICOM. "
            "What can't be used is quarantined with a reason.",
            versions.of_stage(program, "intake"),
            run,
            kinds=frozenset({"dicom", "parquet"}),
            gates=(
                Gate(
                    "residual_phi",
                    "No name, id, date or free text of a patient is left in what was stored.",
                    residual_phi,
                ),
            ),
            by_batch=True,
            touches_raw_files=True,
        )
    )


def prepared_cases(program: str) -> dg.AssetsDefinition:
    """Cases converted to arrays, measured and audited."""

    def run(call: Call) -> "StageResult":
        from med_assets.preparation.stage import prepare

        return prepare(call.ws, program, _batch(call.batch))

    def audit(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.audit(ws, program, _batch(batch))

    return build(
        Stage(
            program,
            "prepared_cases",
            "Cases of a batch converted, preprocessed and measured; what can't be is quarantined with a reason.",
            versions.of_stage(program, "prepare"),
            run,
            deps=(keys.key(program, "raw_cases"),),
            kinds=frozenset({"numpy", "parquet"}),
            gates=(
                Gate(
                    "audit", "The facts of the accepted cases are what the program expects (Great Expectations).", audit
                ),
            ),
            by_batch=True,
        )
    )


def _batch(batch: str | None) -> str:
    if batch is None:
        raise dg.DagsterInvariantViolationError("expected a partition that names an intake batch, got none")
    return batch
