"""P/dataset and P/splits: which cases count, and who is trained on."""

import dagster as dg

from assets import keys, versions
from assets.checks import blocking, informing
from assets.factory import attributes, one_signature, run_stage
from med_assets.launch.stages import Stage
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource


def dataset(program: str) -> dg.AssetsDefinition:
    """Manifest of the accepted case versions."""
    key = keys.key(program, "dataset")

    @dg.asset(
        **attributes(
            key,
            "One manifest of the newest accepted version of every case; its data version is the hash of its content.",
            versions.of_dataset(),
            {"parquet"},
        ),
        deps=[keys.key(program, "prepared_cases")],
        check_specs=[blocking("synthetic_data", key, "No synthetic case is in a dataset for production.")],
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.DATASET, read=["prepared_cases"])

    return asset


def splits(program: str) -> dg.AssetsDefinition:
    """Assignment of patients to training, validation and test."""
    key = keys.key(program, "splits")

    @dg.asset(
        **attributes(
            key,
            "Training, validation and test per patient; an assignment once made does not move.",
            versions.of_splits(program),
            {"parquet"},
        ),
        deps=[keys.key(program, "dataset")],
        check_specs=[
            blocking("patient_leakage", key, "No patient is in two splits."),
            blocking(
                "between_cases",
                key,
                "No case contradicts another and the splits hold what they must: no picture in two, no class missing in one.",
            ),
            informing(
                "held_out",
                key,
                "Nothing known makes the scores of held-out cases doubtful, such as what a foundation model has seen.",
            ),
        ],
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.SPLITS)

    return asset
