"""Natural variability: how far accepted plans lie apart where no constraint binds, and whether models err by more than that."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from med_assets.catalog import Case, Catalog
from med_assets.errors import MedAssetsError
from med_assets.program import ReportTable
from med_assets.programs.rt_dose import analyses
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Site, load_site
from med_assets.programs.rt_dose.spread import Patients
from med_assets.programs.rt_dose.variability_tables import tables
from med_assets.programs.rt_dose.voxel_classes import FINE_MM, classify, moments, planned_moments
from med_assets.records import CaseScore
from med_assets.settings import Settings
from med_assets.storage.versions import version_of

NAME = "low_dose_variability"


def _site(ws: Settings) -> Site:
    return load_site(ws.option("rt_dose", "site", "prostate_sib"))


def low_dose_variability(ws: Settings, out: Path) -> list[ReportTable]:
    """Measure the training cases one by one, then every evaluated model on the validation cases; no table without cases."""
    from med_assets.evaluation.analyse import Measuring

    site = _site(ws)
    measuring = Measuring(ws, NAME, version_of(analyses.low_dose_variability), site.targets, site.oars, FINE_MM)
    catalog, doses, prescriptions = Catalog(ws, "rt_dose"), [], []
    for case in catalog.cases("train"):
        folder = ws.store.fetch(case.artifact)
        found = measuring.of(case.case_id, case.artifact, partial(planned, folder, site))
        if found is not None:
            doses.append((case.patient_id, found))
            prescriptions.append(float(found["prescription_gy"]))
    errors = model_errors(ws, catalog.cases("val"), site, measuring)
    measuring.record("rt_dose", NAME)
    if not doses:
        return []
    return tables(
        Patients.of(doses), {name: Patients.of(found) for name, found in errors.items()}, median(prescriptions), out
    )


def planned(folder: Path, site: Site) -> dict[str, Any]:
    """Moments of one planned dose and its prescription, Gy."""
    return {**planned_moments(folder, site), "prescription_gy": PreparedCase.open(folder).prescription_gy}


def model_errors(
    ws: Settings, cases: Sequence[Case], site: Site, measuring: Any
) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Moments of predicted minus planned dose by experiment, as (patient, moments) of each case that the experiment was scored on."""
    from med_assets.evaluation.predicting import prediction_key
    from med_assets.programs.rt_dose.kept import PREDICTION

    rows = Catalog(ws, "rt_dose").frame(CaseScore)
    scored = rows[rows["split"] == "val"][["experiment", "checkpoint", "case_id"]].drop_duplicates()
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for case in cases:
        prepared = ws.store.fetch(case.artifact)

        @cache
        def opened(prepared: Path = prepared) -> Any:
            one = PreparedCase.open(prepared)
            return one, classify(one, site)

        def differences(key: str, experiment: str, opened: Any = opened) -> dict[str, Any]:
            if not ws.store.has(key):
                raise MedAssetsError(
                    f"expected the dose that {experiment} predicted in the store, got none; run `med-assets evaluate rt_dose/{experiment}`"
                )
            one, voxels = opened()
            difference = np.load(ws.store.fetch(key) / PREDICTION) - np.asarray(one.dose)
            return moments(voxels, difference.reshape(-1)[voxels.places] / one.prescription_gy)

        for experiment, checkpoint in scored[scored["case_id"] == case.case_id][
            ["experiment", "checkpoint"]
        ].itertuples(index=False, name=None):
            key = prediction_key(ws, "rt_dose", checkpoint, case.artifact)
            values = measuring.of(case.case_id, [case.artifact, key], partial(differences, key, experiment))
            if values is not None:
                found.setdefault(experiment, []).append((case.patient_id, values))
    return dict(sorted(found.items()))
