"""Measurements as DICOM SR, read by highdicom: values, codes, what they are about, and whose they are."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from med_assets.cli import main as cli
from med_assets.cli import stages
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.sr_write import MILLILITRE, Finding, OfImages, Quantity, write_report
from med_assets.dicom.ultrasound import write_us
from med_assets.evaluation.predict_folder import Outcome
from med_assets.settings import Workspace
from tests.cases.test_to_predict import champion, files_of, phantoms, strip

REPORT = "predicted_measurements.dcm"


def reported(name: str, ws: Workspace, tmp_path: Path, seed: int = 5) -> tuple[Outcome, Path, Any]:
    """A predicted phantom, its folder, and its report as highdicom reads it."""
    champion(ws, name)
    source = strip(phantoms(tmp_path / "cases", name, 1, seed)[0], name)
    (found,) = stages.predict_folder(ws, name, source, None, tmp_path / "out", report=True)
    assert found.reason == ""
    (path,) = [path for path in found.paths if path.name == REPORT]
    return found, path.parent, highdicom.sr.srread(path)


def values(group: Any) -> dict[str, tuple[float, str]]:
    """Value and unit of each measurement by the meaning of its name."""
    return {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()}


def require_evidence(report: Any, folder: Path) -> set[str]:
    """Check that a report is of the patient and study of what lies beside it; returns the UIDs of its evidence."""
    beside = [pydicom.dcmread(path) for path in folder.glob("*.dcm") if path.name != REPORT]
    for ds in beside:
        assert (report.PatientID, report.StudyInstanceUID) == (ds.PatientID, ds.StudyInstanceUID)
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert report.SeriesDescription == "PREDICTED MEASUREMENTS, NOT FOR CLINICAL USE"
    listed = {
        str(one.ReferencedSOPInstanceUID)
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in report.get(keyword) or ()
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    referenced = {
        str(element.value)
        for item in pydicom.dcmread(folder / REPORT).ContentSequence
        for element in item.iterall()
        if element.keyword == "ReferencedSOPInstanceUID"
    }
    assert referenced <= listed
    return listed


def test_the_volume_of_a_segment_refers_to_it_and_is_that_of_the_prediction(
    workspace: Workspace, tmp_path: Path
) -> None:
    found, folder, report = reported("lung_ct", workspace, tmp_path)
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    seg = pydicom.dcmread(folder / "predicted_target.dcm")
    assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    assert group.finding_type == codes.SCT.Neoplasm
    (value, unit) = values(group)["Volume"]
    assert unit == "ml"
    assert value == pytest.approx(float(found.measured["volume, ml"] or 0))
    assert group.get_measurements(codes.SCT.Volume)[0].method == codes.DCM.SumOfSegmentedVoxelMethodForVolume
    evidence = require_evidence(report, folder)
    assert seg.SOPInstanceUID in evidence
    images = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {str(one.ReferencedSOPInstanceUID) for one in images} <= evidence


def test_the_area_of_an_outline_is_that_of_its_pixels_and_there_is_none_without_calibration(
    workspace: Workspace, tmp_path: Path
) -> None:
    _, folder, report = reported("breast_us", workspace, tmp_path)
    (group,) = report.content.get_planar_roi_measurement_groups()
    seg = pydicom.dcmread(folder / "predicted_lesion.dcm")
    assert group.referenced_segmentation_frame.referenced_sop_instance_uid == seg.SOPInstanceUID
    image = next(path for path in files_of(tmp_path / "cases") if pydicom.dcmread(path).Modality == "US")
    region = pydicom.dcmread(image).SequenceOfUltrasoundRegions[0]
    pixel_mm2 = float(region.PhysicalDeltaX) * 10 * float(region.PhysicalDeltaY) * 10
    (value, unit) = values(group)["Area"]
    assert unit == "mm2"
    assert value == pytest.approx(int(seg.pixel_array.sum()) * pixel_mm2)
    require_evidence(report, folder)
    plain = tmp_path / "plain"
    plain.mkdir()
    identity = Identity("P1", derived_uid("study"), "")
    write_us(plain / "us.dcm", np.arange(64 * 64, dtype=np.uint8).reshape(64, 64), identity)
    (of_plain,) = stages.predict_folder(workspace, "breast_us", plain, None, tmp_path / "of-plain", report=True)
    assert of_plain.paths
    assert REPORT not in {path.name for path in of_plain.paths}


def test_each_level_has_its_point_its_disc_and_the_distance_to_the_next(workspace: Workspace, tmp_path: Path) -> None:
    _, folder, report = reported("lumbar_mr", workspace, tmp_path)
    points = {
        str(roi.ROIName): np.array(contour.ContourSequence[0].ContourData, float)
        for ds in [pydicom.dcmread(folder / "predicted_levels.dcm")]
        for roi, contour in zip(ds.StructureSetROISequence, ds.ROIContourSequence, strict=True)
    }
    groups = {one.tracking_identifier: one for one in report.content.get_planar_roi_measurement_groups()}
    assert list(groups) == ["L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
    for name, point in points.items():
        assert np.allclose(groups[name].roi.value, point, atol=1e-3)
    assert groups["L1/L2"].finding_sites[0].value == codes.SCT.L1L2Disc
    assert groups["L5/S1"].finding_sites[0].value == codes.SCT.L5S1Disc
    for upper, lower in zip(list(points)[:-1], list(points)[1:], strict=True):
        (value, unit) = values(groups[upper])["Distance"]
        assert unit == "mm"
        assert value == pytest.approx(np.linalg.norm(points[lower] - points[upper]), abs=1e-3)
    assert values(groups["L5/S1"]) == {}
    require_evidence(report, folder)


def test_the_dose_of_each_structure_is_that_of_its_voxels(workspace: Workspace, tmp_path: Path) -> None:
    found, folder, report = reported("rt_dose", workspace, tmp_path)
    groups = {one.tracking_identifier: one for one in report.content.get_image_measurement_groups()}
    dose = pydicom.dcmread(folder / "predicted_dose.dcm")
    means = {name: value for name, value in found.measured.items() if name.startswith("mean of")}
    assert {f"mean of {name}, Gy" for name in groups} == set(means)
    for name, group in groups.items():
        measured = values(group)
        assert measured["Mean Absorbed Radiation Dose"] == (pytest.approx(means[f"mean of {name}, Gy"]), "Gy")
        low, middle, high = (
            measured[f"{kind} Absorbed Radiation Dose"][0] for kind in ("Minimum", "Median", "Maximum")
        )
        assert low <= middle <= high
        assert measured["Volume"][0] > 0
        assert group.source_images[0].referenced_sop_instance_uid == dose.SOPInstanceUID
    assert groups["PTV70"].finding_type == codes.SCT.PlanningTargetVolume
    assert dose.SOPInstanceUID in require_evidence(report, folder)


def test_the_same_findings_give_the_same_bytes_and_no_findings_are_an_error(tmp_path: Path) -> None:
    image = write_us(tmp_path / "us.dcm", np.zeros((8, 8), np.uint8), Identity("P1", derived_uid("study"), ""))
    quantity = Quantity(codes.SCT.Volume, 1.5, MILLILITRE)
    finding = Finding("target", codes.SCT.Lesion, OfImages((image,)), (quantity,))
    for name in ("one.dcm", "two.dcm"):
        write_report(tmp_path / name, [finding], codes.SCT.Ultrasonography, [image], made_by="checkpoint/0")
    assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()
    with pytest.raises(ValueError, match="findings"):
        write_report(tmp_path / "no.dcm", [], codes.SCT.Ultrasonography, [image], made_by="checkpoint/0")


def test_a_program_that_measures_nothing_says_so(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "retinal_oct", "--sr", "--out", "x"]) == 1
    assert "--sr" in capsys.readouterr().err
