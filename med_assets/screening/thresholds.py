"""Thresholds of one experiment: fitted on the normal validation cases of its evaluation, and tried on the normal test cases."""

from collections.abc import Mapping
from dataclasses import asdict

import pandas as pd

from med_assets import program
from med_assets.capabilities import Screens
from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.evaluation.stage import found_no_case
from med_assets.launch.training import checkpoint_of, stored_checkpoint
from med_assets.records import CaseScore, Champion, Checkpoint, Threshold
from med_assets.screening.contract import Origin, Screening
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.provenance import cases_used_by
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


def thresholds(ws: Settings, program_name: str, name: str) -> StageResult:
    """Fit the thresholds of an experiment on its recorded evaluation; the record goes to the store by its content.

    Without a normal case there are none, which is reported and stops nothing: every risk is then unknown. Raises
    ConfigurationError for an experiment that was not evaluated since it was trained.
    """
    screening, catalog = screening_of(program_name), Catalog(ws, program_name)
    model = checkpoint_of(ws, program_name, name)
    checkpoint = model.checkpoint
    scores = [score for score in catalog.rows(CaseScore, name) if score.checkpoint == checkpoint]
    if not scores and not found_no_case(ws, program_name, name):
        raise ConfigurationError(
            f"{program_name}/{name}: its checkpoint has no scores; run `med-assets evaluate {program_name}/{name}` first"
        )
    stored_checkpoint(ws, program_name, model)
    dataset = catalog.dataset()
    fitted_on, tested_on = ([score for score in scores if score.split == split] for split in (FITTED_ON, TESTED_ON))
    origin = Origin(
        checkpoint,
        dataset.version,
        frozenset(case.patient_id for case in cases_used_by(ws.store, checkpoint) if case.split == "train"),
        any(score.case_id in dataset.synthetic for score in fitted_on),
    )
    fitted = screening.fit(ws, fitted_on, tested_on, origin)
    if fitted is None:
        catalog.replace(Threshold, [], name)
        note = f"no {FITTED_ON} case is known to be normal; there are no thresholds, and every risk is unknown"
        return StageResult(digest(checkpoint, None), {"thresholds": 0}, {"note": note, "checkpoint": checkpoint})
    key = f"thresholds/{digest(fitted.record)}"
    if not ws.store.has(key):
        with ws.store.create(key) as folder:
            write_json(folder / RECORD, fitted.record)
    keys = {"program": program_name, "experiment": name, "checkpoint": checkpoint, "artifact": key}
    made = {"dataset_version": origin.dataset_version, "synthetic": origin.synthetic}
    rows = [asdict(threshold) for threshold in fitted.thresholds]
    catalog.replace(Threshold, [Threshold.of(keys | made | row) for row in rows], name)
    return StageResult(
        data_version=digest(key, rows),
        counts={"thresholds": len(rows)},
        summary=keys | made,
        tables={"thresholds": pd.DataFrame(rows)},
    )


def record_of(catalog: Catalog, model: Champion | Checkpoint) -> Mapping[str, object] | None:
    """The record of the thresholds that were fitted with this very model; None where there are none."""
    thresholds = catalog.rows(Threshold, model.experiment)
    if not thresholds or thresholds[0].checkpoint != model.checkpoint:
        return None
    return dict(read_json(catalog.ws.store.fetch(thresholds[0].artifact) / RECORD))
