"""P/dataset and P/splits: which cases count, and who is trained on."""

from typing import TYPE_CHECKING

import dagster as dg

from assets import keys, versions
from assets.gates import Gate
from assets.shell import Call, Stage, build

if TYPE_CHECKING:
    from med_assets.dataset.checks import CheckOutcome
    from med_assets.settings import Workspace
    from med_assets.storage.result import StageResult


def dataset(program: str) -> dg.AssetsDefinition:
    """Manifest of the accepted case versions."""

    def run(call: Call) -> "StageResult":
        from med_assets.dataset.stage import dataset

        return dataset(call.ws, program)

    def synthetic_data(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.synthetic_data(ws, program)

    return build(
        Stage(
            program,
            "dataset",
            "One manifest of the newest accepted version of every case; its data version is the hash of its content.",
            versions.of_dataset(),
            run,
            deps=(keys.key(program, "prepared_cases"),),
            kinds=frozenset({"parquet"}),
            gates=(Gate("synthetic_data", "No synthetic case is in a dataset for production.", synthetic_data),),
        )
    )


def splits(program: str) -> dg.AssetsDefinition:
    """Assignment of patients to training, validation and test."""

    def run(call: Call) -> "StageResult":
        from med_assets.dataset.stage import splits

        return splits(call.ws, program)

    def patient_leakage(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.patient_leakage(ws, program)

    def between_cases(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.between_cases(ws, program)

    def held_out(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.held_out(ws, program)

    return build(
        Stage(
            program,
            "splits",
            "Training, validation and test per patient; an assignment once made does not move.",
            versions.of_splits(program),
            run,
            deps=(keys.key(program, "dataset"),),
            kinds=frozenset({"parquet"}),
            gates=(
                Gate("patient_leakage", "No patient is in two splits.", patient_leakage),
                Gate(
                    "between_cases",
                    "No case contradicts another and the splits hold what they must: no picture in two, no class missing in one.",
                    between_cases,
                ),
                Gate(
                    "held_out",
                    "Nothing known makes the scores of held-out cases doubtful, such as what a foundation model has seen.",
                    held_out,
                    blocking=False,
                ),
            ),
        )
    )
