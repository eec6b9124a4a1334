"""P/dataset and P/splits: which cases count, and who is trained on."""

import dagster as dg

from assets import batch_content, keys, versions
from assets.checks import blocking, informing
from assets.factory import attributes, materialized
from med_assets.cli import stages
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
    def asset(context: dg.AssetExecutionContext, workspace: WorkspaceResource) -> dg.MaterializeResult:
        from med_assets.dataset.checks import synthetic_data

        ws = workspace.open()
        read = batch_content.read(ws, program, "prepared_cases")
        result = stages.dataset(ws, program)
        return materialized(context, result, read, synthetic_data=synthetic_data(ws, program))

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
    def asset(context: dg.AssetExecutionContext, workspace: WorkspaceResource) -> dg.MaterializeResult:
        from med_assets.dataset.checks import between_cases, held_out, patient_leakage

        ws = workspace.open()
        return materialized(
            context,
            stages.splits(ws, program),
            patient_leakage=patient_leakage(ws, program),
            between_cases=between_cases(ws, program),
            held_out=held_out(ws, program),
        )

    return asset
