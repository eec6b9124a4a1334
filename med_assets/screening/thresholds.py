"""Thresholds of one experiment: fitted on the normal validation cases of its evaluation, and tried on the normal test cases."""

from typing import Any

import pandas as pd

from med_assets import program
from med_assets.capabilities import Screens
from med_assets.dataset.stage import dataset_version
from med_assets.errors import ConfigurationError
from med_assets.evaluation.stage import found_no_case
from med_assets.launch.training import checkpoint_of, stored_checkpoint
from med_assets.screening.contract import Origin, Screening
from med_assets.settings import Workspace
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.provenance import used_cases
from med_assets.storage.result import StageResult

FITTED_ON, TESTED_ON = "val", "test"
"""Splits: the one that also chose the epoch, and the one that chose nothing."""

RECORD = "thresholds.json"


def screening_of(program_name: str) -> Screening:
    """The screening of a program. Raises ConfigurationError for a program that has none."""
    chosen = program.get(program_name)
    if not isinstance(chosen, Screens):
        raise ConfigurationError(
            f"{program_name} looks for no unusual cases: it has no thresholds, screening and queue"
        )
    return chosen.screening()


def thresholds(ws: Workspace, program_name: str, name: str) -> StageResult:
    """Fit the thresholds of an experiment on its recorded evaluation; the record goes to the store by its content.

    Without a normal case there are none, which is said and stops nothing: every risk is then unknown. Raises
    ConfigurationError for an experiment that was not evaluated since it was trained.
    """
    screening, checkpoint = screening_of(program_name), checkpoint_of(ws, program_name, name)["checkpoint"]
    scores = ws.lake.read("evaluation_cases", f"{program_name}/{name}")
    scores = scores[scores["checkpoint"] == checkpoint]
    if scores.empty and not found_no_case(ws, program_name, name):
        raise ConfigurationError(
            f"{program_name}/{name}: its checkpoint has no scores; run `med-assets evaluate {program_name}/{name}` first"
        )
    named = {"experiment": name, "checkpoint": checkpoint}
    learned = used_cases(read_json(stored_checkpoint(ws, program_name, named) / "provenance.json"))
    cases = ws.lake.rows("dataset", program_name)
    synthetic = {case["case_id"] for case in cases if case["synthetic"]}
    fitted_on, tested_on = (scores[scores["split"] == split] for split in (FITTED_ON, TESTED_ON))
    origin = Origin(
        checkpoint,
        dataset_version(cases),
        frozenset(case["patient_id"] for case in learned if case["split"] == "train"),
        bool(synthetic & set(fitted_on["case_id"])),
    )
    fitted = screening.fit(ws, fitted_on, tested_on, origin)
    keys = {"program": program_name, "experiment": name, "checkpoint": checkpoint}
    if fitted is None:
        ws.lake.write("thresholds", f"{program_name}/{name}", [])
        note = f"no {FITTED_ON} case is known to be normal; there are no thresholds, and every risk is unknown"
        return StageResult(digest(checkpoint, None), {"thresholds": 0}, {"note": note, "checkpoint": checkpoint})
    key = f"thresholds/{digest(fitted.record)}"
    if not ws.store.has(key):
        with ws.store.create(key) as folder:
            write_json(folder / RECORD, fitted.record)
    keys |= {"artifact": key, "dataset_version": origin.dataset_version, "synthetic": origin.synthetic}
    ws.lake.write("thresholds", f"{program_name}/{name}", [keys | dict(row) for row in fitted.rows])
    return StageResult(
        data_version=digest(key, fitted.rows),
        counts={"thresholds": len(fitted.rows)},
        summary=keys,
        tables={"thresholds": pd.DataFrame(fitted.rows)},
    )


def record_of(ws: Workspace, program_name: str, name: str, checkpoint: str) -> dict[str, Any] | None:
    """The thresholds of an experiment that were fitted with this very checkpoint; None where there are none."""
    rows = ws.lake.rows("thresholds", f"{program_name}/{name}")
    if not rows or rows[0]["checkpoint"] != checkpoint:
        return None
    return dict(read_json(ws.store.fetch(rows[0]["artifact"]) / RECORD))
