"""A predicted dose written for other tools comes back where it was predicted."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from med_assets.cli import stages
from med_assets.dicom.discover import describe
from med_assets.dicom.geometry import Geometry
from med_assets.dicom.references import verify_chain
from med_assets.dicom.rtdose import read_dose
from med_assets.errors import ConfigurationError
from med_assets.programs.rt_dose.export import write_prediction
from med_assets.programs.rt_dose.kept import PREDICTION
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, ingest


@pytest.fixture
def exported(workspace: Workspace, tmp_path: Path) -> tuple[Path, PreparedCase, Path, np.ndarray]:
    """Folder of the export, the prepared case, its raw DICOM, and the exported prediction in Gy."""
    drop(workspace, 2)
    batch = ingest(workspace)
    (raw,) = workspace.lake.rows("raw_cases", f"{P}/{batch}")
    (row,) = workspace.lake.rows("prepared_cases", f"{P}/{batch}")
    prepared = workspace.store.fetch(row["artifact"])
    case = PreparedCase.open(prepared)
    prediction = np.random.default_rng(0).uniform(0, 75, case.shape).astype(np.float32)
    kept = tmp_path / "kept"
    kept.mkdir()
    np.save(kept / PREDICTION, prediction)
    folder = workspace.store.fetch(raw["artifact"])
    write_prediction(folder, prepared, kept, tmp_path / "out", "checkpoint/0123456789abcdef")
    return tmp_path / "out", case, folder, prediction


def test_the_rtdose_is_of_the_same_plan_and_grid_and_says_that_it_was_predicted(
    exported: tuple[Path, PreparedCase, Path, np.ndarray],
) -> None:
    out, case, raw, prediction = exported
    ds = pydicom.dcmread(out / "predicted_dose.dcm")
    volume = read_dose(ds)
    assert volume.geometry.same_grid(Geometry.from_dict(case.geometry))
    # Half a step of 16 bit.
    np.testing.assert_allclose(volume.array, prediction, rtol=1e-6, atol=float(ds.DoseGridScaling) / 2 + 1e-6)
    assert ds.BitsAllocated == 16
    objects = [pydicom.dcmread(path) for path in sorted(raw.glob("*.dcm"))]
    by_modality = {one.Modality: one for one in objects}
    slices = [describe(one) for one in objects if one.Modality == "CT"]
    verify_chain(by_modality["RTPLAN"], by_modality["RTSTRUCT"], ds, slices)
    assert [one.ReferencedSOPInstanceUID for one in ds.ReferencedInstanceSequence] == [
        by_modality["RTSTRUCT"].SOPInstanceUID
    ]
    assert {one.ReferencedSOPInstanceUID for one in ds.ReferencedImageSequence} == {
        one.SOPInstanceUID for one in objects if one.Modality == "CT"
    }
    assert ds.SeriesInstanceUID != by_modality["RTDOSE"].SeriesInstanceUID
    assert ds.SOPInstanceUID != by_modality["RTDOSE"].SOPInstanceUID
    assert "PREDICTED" in ds.SeriesDescription
    assert "0123456789abcdef" in ds.DoseComment


def test_the_nifti_files_have_the_voxels_at_the_same_places(
    exported: tuple[Path, PreparedCase, Path, np.ndarray],
) -> None:
    out, case, _, prediction = exported
    image = nibabel.load(out / "predicted_dose.nii.gz")
    index = (5, 7, 11)
    assert np.asarray(image.dataobj)[index[::-1]] == pytest.approx(prediction[index])
    x, y, z = Geometry.from_dict(case.geometry).to_points(np.array([index]))[0]
    np.testing.assert_allclose(image.affine @ [*index[::-1], 1], [-x, -y, z, 1], atol=1e-4)
    assert nibabel.load(out / "ct.nii.gz").get_data_dtype() == np.int16


def test_the_dvh_of_each_structure_is_that_of_the_voxels(exported: tuple[Path, PreparedCase, Path, np.ndarray]) -> None:
    out, case, _, prediction = exported
    table = pd.read_csv(out / "dvh.csv")
    assert sorted(table["structure"].unique()) == sorted(case.present)
    name = case.present[0]
    mask = case.mask(name) & np.asarray(case.valid)
    own = table[table["structure"] == name].set_index("dose_gy")
    for column, dose in (("predicted_percent", prediction), ("planned_percent", np.asarray(case.dose))):
        assert own.loc[0.0, column] == 100
        assert own.loc[40.0, column] == pytest.approx(100 * (dose[mask] >= 40.0).mean(), abs=1e-3)
        assert own[column].is_monotonic_decreasing
    assert own["volume_ml"].iloc[0] == pytest.approx(mask.sum() * np.prod(case.spacing_mm) / 1000, abs=1e-3)
    assert own.index[-1] >= prediction[np.asarray(case.valid)].max() - 1e-6


def test_without_a_champion_a_model_must_be_named(workspace: Workspace, tmp_path: Path) -> None:
    drop(workspace, 2)
    ingest(workspace)
    with pytest.raises(ConfigurationError, match="no champion yet"):
        stages.predict(workspace, P, "", None, tmp_path)
    with pytest.raises(ConfigurationError, match="got 0"):
        stages.predict(workspace, P, "no-such-case", None, tmp_path)
