"""The analyses of rt_dose against numbers worked out by hand: gamma by region, and the spread of accepted plans."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from med_assets.cli import stages
from med_assets.evaluation.predicting import prediction_key
from med_assets.programs.rt_dose import spread
from med_assets.programs.rt_dose.gamma_by_region import rates, side_by_side
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import load_site
from med_assets.programs.rt_dose.spread import Patients
from med_assets.programs.rt_dose.voxel_classes import (
    AXIAL,
    FINE_MM,
    N_DISTANCES,
    OF_LEVEL,
    REGIONS,
    chosen,
    classify,
    moments,
    planned_moments,
)
from med_assets.reporting.evaluation_sections import analyses
from med_assets.reporting.report_facts import gather
from med_assets.settings import Workspace
from tests.med_assets.programs.rt_dose.builders import write_case
from tests.med_assets.stages import models

P = "rt_dose"
GAMMA = "gamma_3pct_3mm"


def gamma_rows(values: dict[str, dict[str, list[float | None]]]) -> list[dict[str, object]]:
    """Rows of the lake by experiment and region, a value per patient."""
    keys = {"program": P, "checkpoint": "c", "split": "val", "metric": GAMMA, "unit": "%", "convention": "global gamma"}
    return [
        keys
        | {"experiment": name, "subject": region, "case_id": f"v{number}", "patient_id": f"p{number}", "value": value}
        for name, regions in values.items()
        for region, found in regions.items()
        for number, value in enumerate(found)
    ]


SCORES: dict[str, dict[str, list[float | None]]] = {
    "mean_dose": {"body": [50.0, 60.0], "oars": [40.0, None]},
    "baseline": {"body": [80.0, 90.0], "oars": [30.0, 50.0]},
}


def test_gamma_by_region_is_the_mean_over_patients_with_the_best_in_the_body_first() -> None:
    found = rates(pd.DataFrame(gamma_rows(SCORES)))
    assert found.astype(object).where(found.notna(), None).to_numpy().tolist() == [
        ["baseline", "body", 85.0, 80.0, 90.0, 2],
        ["baseline", "oars", 40.0, 30.0, 50.0, 2],
        ["mean_dose", "body", 55.0, 50.0, 60.0, 2],
        ["mean_dose", "oars", 40.0, None, None, 1],
    ]
    assert side_by_side(found).to_dict("records")[1] == {
        "experiment": "mean_dose", "body": "55.00 [50.00, 60.00] (n = 2)", "oars": "40.00 (n = 1)",
    }  # fmt: skip


def test_gamma_of_other_settings_is_a_table_of_its_own_and_the_test_set_is_in_none(workspace: Workspace) -> None:
    rows = gamma_rows(SCORES)
    rows += [row | {"convention": "local gamma"} for row in rows if row["experiment"] == "baseline"]
    rows += [row | {"split": "test", "value": 1.0} for row in rows]
    for name in ("baseline", "mean_dose"):
        workspace.lake.write("evaluation_cases", f"{P}/{name}", [row for row in rows if row["experiment"] == name])
    result = stages.analyse(workspace, P, "gamma_by_region")
    assert [len(table) for table in result.tables.values()] == [2, 4, 1, 2]
    assert result.tables["Gamma by region"]["body"].tolist()[0] == "85.00 [80.00, 90.00] (n = 2)"
    assert all(image.is_file() for image in result.images.values())


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedCase:
    """A PTV70 of one voxel at [2, 2, 2], a PTV56 beside it in x, and a rectum voxel, on a grid of 10 x 5 x 5 mm that is all body."""
    site, shape = load_site("prostate_sib"), (6, 8, 24)
    folder = write_case(tmp_path / "c", shape=shape, spacing_mm=(10.0, 5.0, 5.0))
    bits = np.zeros(shape, np.uint16)
    for name, at in {"PTV70": (2, 2, 2), "PTV56": (2, 2, 3), "Rectum": (4, 2, 2)}.items():
        bits[at] |= np.uint16(1) << site.structures.index(name)
    np.save(folder / "masks.npy", bits)
    np.save(folder / "body.npy", np.ones(shape, bool))
    return PreparedCase.open(folder)


def test_a_voxel_is_known_by_level_region_slices_and_distance_also_beyond_50_mm(prepared: PreparedCase) -> None:
    voxels = classify(prepared, load_site("prostate_sib"))

    def at(*place: int) -> tuple[int, str, str, float]:
        """Level, region, slices and upper end of the distance bin of a voxel."""
        index = int(np.flatnonzero(voxels.places == np.ravel_multi_index(place, prepared.shape))[0])
        rest, distance = divmod(int(voxels.classes[index]), N_DISTANCES)
        rest, axial = divmod(rest, len(AXIAL))
        level, region = divmod(rest, len(REGIONS))
        return level, REGIONS[region], AXIAL[axial], FINE_MM[distance]

    assert voxels.n_classes == 2 * OF_LEVEL
    assert at(2, 2, 2) == (0, "target", "in target slices", -5.0)
    assert at(2, 2, 3) == (1, "target", "in target slices", -5.0)
    assert at(2, 4, 2) == (0, "elsewhere", "in target slices", 10.0)
    assert at(2, 2, 5) == (1, "elsewhere", "in target slices", 10.0)
    assert at(3, 2, 2) == (0, "elsewhere", "to 10 mm beyond", 10.0)
    assert at(4, 2, 2) == (0, "organ", "further beyond", 20.0)
    assert at(2, 2, 17) == (1, "elsewhere", "in target slices", 70.0)


def patients(values: list[list[float]]) -> Patients:
    """Patients with ten voxels of each of these values, all in one class of voxels elsewhere; doses are fractions of the prescription."""
    at = np.flatnonzero(chosen(("elsewhere",), AXIAL[:1], 10.0, 12.5, OF_LEVEL))[0]
    cases = []
    for number, own in enumerate(values):
        doses = np.repeat(own, 10)
        voxels = type("V", (), {"classes": np.full(len(doses), at), "n_classes": OF_LEVEL})()
        cases.append((f"p{number}", moments(voxels, doses)))
    return Patients.of(cases)


FREE = chosen(("elsewhere",), AXIAL, 10.0, np.inf, OF_LEVEL)


def test_natural_variance_is_that_between_the_means_of_patients_plus_that_within_one() -> None:
    doses = patients([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]])  # means 1, 2, 3: variance 1; within each: 1
    weights = spread.counts(len(doses))
    variation = spread.natural(doses, weights)
    (at,) = np.flatnonzero(variation.defined)
    assert (variation.between[0, at], variation.within[0, at]) == (pytest.approx(1.0), pytest.approx(1.0))
    mean, within = doses.pooled(FREE)
    assert (mean.tolist(), within.tolist()) == ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert spread.spread_of_means(mean, weights)[0] == pytest.approx(1.0)
    found = spread.interval_of_variance(spread.expected(variation.both(), doses.n, FREE, weights)[0], 70.0, 3)
    assert found.mean == pytest.approx(70 * 2**0.5)
    assert found.low is not None
    assert found.low < 70 * 2**0.5


def test_the_ratio_of_a_model_that_errs_by_twice_the_natural_sd_is_two() -> None:
    variation = spread.natural(patients([[0.0], [1.0], [2.0]]), spread.counts(3))  # SD 1
    found = spread.compare(patients([[2.0, -2.0], [2.0, 2.0]]), variation, FREE, 70.0)
    assert found is not None
    assert (found.mae.mean, found.rmse.mean, found.natural.mean) == (
        pytest.approx(140),
        pytest.approx(140),
        pytest.approx(70),
    )
    assert (found.ratio.mean, found.ratio.n, found.covered) == (pytest.approx(2.0), 2, 1.0)
    assert found.ratio_between.mean == pytest.approx(2.0)
    assert spread.compare(patients([[1.0]]), variation, ~FREE, 70.0) is None


def test_two_patients_say_nothing_of_how_plans_differ() -> None:
    two = patients([[0.0], [1.0]])
    variation = spread.natural(two, spread.counts(2))
    assert not variation.defined.any()
    assert spread.compare(two, variation, FREE, 70.0) is None


OFFSETS_GY = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""By how much all of a patient's dose is moved: their sample SD is the root of 2.5 Gy^2."""


@pytest.fixture
def ws(workspace: Workspace, tmp_path: Path) -> Workspace:
    """Five training patients of one geometry whose dose is 30 Gy plus an offset, one that can't be read, and two validated ones.

    The model is 3 Gy too high in the first and 3 Gy too low in the second.
    """
    names = {f"t{number}": offset for number, offset in enumerate(OFFSETS_GY)} | {"v0": 0.0, "v1": 0.0}
    models.cases(workspace, {"train": [*(name for name in names if name[0] == "t"), "broken"], "val": ["v0", "v1"]})
    with workspace.store.create(models.artifact("broken")) as folder:
        (folder / "case.json").write_text(json.dumps({}))
    for name, offset in names.items():
        made = write_case(tmp_path / name)
        dose = np.full((32, 32, 32), 30.0 + offset, np.float32)
        np.save(made / "dose.npy", dose)
        with workspace.store.create(models.artifact(name)) as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
    scored = []
    for name, error in (("v0", 3.0), ("v1", -3.0)):
        with workspace.store.create(prediction_key(workspace, P, "checkpoint/0", models.artifact(name))) as folder:
            np.save(folder / "prediction_gy.npy", np.full((32, 32, 32), 30.0 + error, np.float32))
        keys = {"program": P, "experiment": "baseline", "checkpoint": "checkpoint/0", "split": "val"}
        scored.append(keys | {"case_id": name, "patient_id": f"p-{name}", "metric": "mae", "subject": "body"})
    workspace.lake.write("evaluation_cases", f"{P}/baseline", scored)
    return workspace


def test_variability_of_doses_with_a_known_sd_is_that_sd_and_a_broken_case_is_left_out(ws: Workspace) -> None:
    result = stages.analyse(ws, P, "low_dose_variability")
    assert list(result.summary["failures"]) == ["broken"]
    sd = 2.5**0.5
    compared = result.tables["Errors of models against natural variation"].set_index("where")
    assert set(compared["n"]) == {2}
    free = compared.loc["free of constraints"]
    assert free["MAE"].startswith("3.00")
    assert free["RMSE"].startswith("3.00")
    assert free["natural SD"].startswith(f"{sd:.2f} [")
    assert free["ratio"].startswith(f"{3 / sd:.2f} [")
    assert free["within natural variation"] == "no"
    assert free["voxels covered, %"] == 100
    profile = result.tables["Planned dose along the distance to the targets"]
    assert set(profile["n"]) == {5}
    assert profile["mean"].tolist() == pytest.approx([30.0] * len(profile))
    assert profile["5 %"].tolist() == pytest.approx([28.2] * len(profile), rel=1e-6)
    assert profile["SD within a patient"].tolist() == pytest.approx([0.0] * len(profile), abs=1e-3)
    assert profile["SD between patients"].str.startswith(f"{sd:.2f} [").all()
    classes = result.tables["What geometry leaves open"]
    assert classes["between patients"].str.startswith(f"{sd:.2f} [").all()
    assert set(classes["region"]) == {"organ", "elsewhere"}


def test_moments_are_measured_in_units_of_the_prescription_within_the_body(
    prepared: PreparedCase, tmp_path: Path
) -> None:
    found = planned_moments(tmp_path / "c", load_site("prostate_sib"))
    assert sum(found["n"]) == np.prod(prepared.shape)
    assert sum(found["sum"]) == pytest.approx(float(np.asarray(prepared.dose).sum()) / 70, rel=1e-5)


def test_a_prediction_that_is_not_in_the_store_is_named(ws: Workspace) -> None:
    ws.store.remove(prediction_key(ws, P, "checkpoint/0", models.artifact("v1")))
    failures = stages.analyse(ws, P, "low_dose_variability").summary["failures"]
    assert "run `med-assets evaluate rt_dose/baseline`" in failures["v1"]


def test_two_training_patients_are_too_few_and_the_report_says_so(ws: Workspace) -> None:
    ws.lake.write("dataset", P, [row for row in ws.lake.rows("dataset", P) if row["case_id"] in {"t0", "t1", "v0"}])
    stages.analyse(ws, P, "low_dose_variability")
    (section,) = analyses(gather(ws, P))
    assert "Expected 3 training patients or more to see how their plans differ, got 2" in section.text
