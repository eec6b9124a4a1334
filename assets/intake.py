"""P/raw_cases and P/prepared_cases: from files in the landing zone to measured, audited cases, batch by batch."""

import dagster as dg

from assets import keys, versions
from assets.checks import blocking
from assets.factory import attributes, batches, one_signature, run_stage, several_batches_in_a_run
from med_assets.launch.stages import Stage
from resources.launcher import LauncherResource
from resources.phi_safe_errors import phi_safe
from resources.workspace import WorkspaceResource


@several_batches_in_a_run()
def raw_cases(program: str) -> dg.AssetsDefinition:
    """Files of a batch grouped into cases, de-identified and stored."""
    key = keys.key(program, "raw_cases")

    @dg.asset(
        **attributes(
            key,
            "Files of an intake batch grouped into cases, de-identified, content-hashed and stored as DICOM. "
            "What can't be used is quarantined with a reason.",
            versions.of_stage(program, "intake"),
            {"dicom", "parquet"},
        ),
        partitions_def=keys.batches_of(program),
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[
            blocking("residual_phi", key, "No name, id, date or free text of a patient is left in what was stored.")
        ],
        pool=keys.INTAKE_POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return phi_safe(lambda: run_stage(context, workspace, launcher, Stage.INTAKE, batches(context)))

    return asset


@several_batches_in_a_run()
def prepared_cases(program: str) -> dg.AssetsDefinition:
    """Cases converted to arrays, measured and audited."""
    key = keys.key(program, "prepared_cases")

    @dg.asset(
        **attributes(
            key,
            "Cases of a batch converted, measured, and audited by Great Expectations; what fails is quarantined with a reason.",
            versions.of_prepared_cases(program),
            {"numpy", "parquet"},
        ),
        deps=[keys.key(program, "raw_cases")],
        partitions_def=keys.batches_of(program),
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[
            blocking(
                "audit",
                key,
                "No more of the batch is quarantined than the policy of the program allows, and no accepted case has a warning.",
            )
        ],
        pool=keys.INTAKE_POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.PREPARE, batches(context))

    return asset
