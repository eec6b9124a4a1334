"""Each kind of bad input is quarantined with its code and a reason, and the good case beside it goes through."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from med_assets.cli import stages
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, edit, files, intake, phantom


def _each(folder: Path, **values: object) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            edit(path, lambda ds: [setattr(ds, name, value) for name, value in values.items()])


def _not_dicom(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "readme.dcm").write_text("no image in here")


def _truncate(folder: Path) -> None:
    path = files(folder, "CT")[3]
    path.write_bytes(path.read_bytes()[:-500])


def _nan_dose(folder: Path) -> None:
    edit(files(folder, "RTDOSE")[0], lambda ds: setattr(ds, "DoseGridScaling", "nan"))


def _no_target(folder: Path) -> None:
    def rename(ds) -> None:
        for item in ds.StructureSetROISequence:
            if "70" in item.ROIName:
                item.ROIName = "Ring 3"

    edit(files(folder, "RTSTRUCT")[0], rename)


def _contour_outside(folder: Path) -> None:
    def move(ds) -> None:
        for roi in ds.ROIContourSequence:
            for contour in roi.ContourSequence:
                points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) + np.array([900.0, 0.0, 0.0])
                contour.ContourData = [f"{value:.3f}" for value in points.ravel()]

    edit(files(folder, "RTSTRUCT")[0], move)


def _second_series(folder: Path) -> None:
    edit(files(folder, "CT")[5], lambda ds: setattr(ds, "SeriesInstanceUID", "1.2.3.4"))


def _drop(modality: str, which: slice = slice(None)) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in files(folder, modality)[which]:
            path.unlink()

    return remove


def _missing_slice(folder: Path) -> None:
    files(folder, "CT")[7].unlink()


BAD = {
    "not_dicom": (_not_dicom, {"not_dicom"}),
    "truncated_file": (_truncate, {"truncated_file"}),
    "zero_slices": (_drop("CT"), {"no_ct"}),
    "missing_slice": (_missing_slice, {"missing_slice"}),
    "mixed_series": (_second_series, {"missing_slice", "no_rtstruct"}),
    "wrong_modality": (lambda folder: _each(folder, Modality="MR"), {"wrong_modality"}),
    "no_rtstruct": (_drop("RTSTRUCT"), {"no_rtstruct"}),
    "no_rtplan": (_drop("RTPLAN"), {"no_rtplan"}),
    "wrong_patient": (
        lambda folder: edit(files(folder, "RTSTRUCT")[0], lambda ds: setattr(ds, "PatientID", "SOMEBODY-ELSE")),
        {"wrong_patient"},
    ),
    "contour_outside_image": (_contour_outside, {"contour_outside_image"}),
    "relative_dose": (
        lambda folder: edit(files(folder, "RTDOSE")[0], lambda ds: setattr(ds, "DoseUnits", "RELATIVE")),
        {"relative_dose"},
    ),
    "no_ptv": (_no_target, {"no_ptv"}),
    "nan_dose": (_nan_dose, {"nan_dose", "missing_dose_scaling"}),
    "missing_patient_id": (lambda folder: _each(folder, PatientID=""), {"missing_patient_id"}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_case_is_quarantined_with_a_reason_and_the_good_one_beside_it_goes_through(
    kind: str, workspace: Workspace
) -> None:
    break_it, codes = BAD[kind]
    drop(workspace, 1)
    break_it(drop(workspace, 2))
    batch, _ = intake(workspace)
    stages.prepare(workspace, P, batch)
    rows = [*workspace.lake.rows("raw_cases", P), *workspace.lake.rows("prepared_cases", P)]
    refused = [row for row in rows if row["status"] == "quarantined"]
    assert {row["reason_code"] for row in refused} & codes
    assert all("xpected" in row["reason"] and len(row["reason"]) > 40 for row in refused)
    assert [row["status"] for row in workspace.lake.rows("prepared_cases", P)].count("ok") == 1


def test_the_same_images_under_another_name_are_refused_as_a_duplicate(workspace: Workspace) -> None:
    drop(workspace, 1)
    intake(workspace)
    _each(drop(workspace, 1, "again"), PatientID="ANOTHER-NAME")
    _, result = intake(workspace)
    assert result.counts["quarantined"] == 1
    assert list(result.tables["quarantine"]["reason_code"]) == ["duplicate_case"]


def test_a_case_in_an_archive_is_the_same_case_as_in_a_folder(workspace: Workspace) -> None:
    drop(workspace, 1)
    _, plain = intake(workspace)
    shutil.make_archive(str(workspace.landing / P / "sent"), "zip", phantom(1))
    _, packed = intake(workspace)
    first, second = (workspace.lake.rows("raw_cases", f"{P}/{name}") for name in workspace_batches(workspace))
    assert (plain.counts["new"], packed.counts["reused"]) == (1, 1), packed.tables["quarantine"].to_dict()
    assert first[0]["version"] == second[0]["version"]


def workspace_batches(ws: Workspace) -> list[str]:
    """Batches in the lake, oldest first."""
    return [name.split("/")[1] for name in ws.lake.partitions("raw_cases", P)]
