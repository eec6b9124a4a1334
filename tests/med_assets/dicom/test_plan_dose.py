"""Doses of beams are added when they are a whole plan, and refused with what is missing when they are not."""

import copy
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from med_assets.catalog import Catalog
from med_assets.dicom.plan_dose import read_plan_dose
from med_assets.dicom.rtdose import read_dose
from med_assets.errors import CaseRejected
from med_assets.settings import Workspace
from tests.med_assets.dicom.test_rtbeams import OPEN, arc, item, plan
from tests.med_assets.dicom.test_rtdose import STORED, rtdose
from tests.med_assets.stages.builders import P, drop, edit, files, ingest

TWO = plan(
    arc(1, 181, 179, "CW", [OPEN, OPEN]), arc(2, 179, 181, "CC", [OPEN, OPEN]), metersets={1: 300, 2: 100}
)  # fmt: skip


def refer(dose: Dataset, *beams: int) -> Dataset:
    """Make a dose one of these beams."""
    dose.DoseSummationType = "BEAM"
    references = [item(ReferencedBeamNumber=number) for number in beams]
    group = item(ReferencedFractionGroupNumber=1, ReferencedBeamSequence=references)
    if "ReferencedRTPlanSequence" not in dose:
        dose.ReferencedRTPlanSequence = [Dataset()]
    dose.ReferencedRTPlanSequence[0].ReferencedFractionGroupSequence = [group]
    return dose


def code_of(*doses: Dataset, of: Dataset | None = TWO) -> str:
    with pytest.raises(CaseRejected) as caught:
        read_plan_dose(doses, of)
    return caught.value.code


def test_doses_of_all_beams_add_up_to_that_of_the_plan_in_any_order() -> None:
    share = STORED // 3
    first, second = refer(rtdose(share), 1), refer(rtdose(STORED - share), 2)
    whole = read_dose(rtdose())
    for doses in ([first, second], [second, first]):
        found = read_plan_dose(doses, TWO)
        assert found.geometry == whole.geometry
        np.testing.assert_allclose(found.array, whole.array, rtol=1e-6)
    np.testing.assert_array_equal(read_plan_dose([refer(rtdose(), 1, 2)], TWO).array, whole.array)


def test_the_dose_of_the_whole_plan_is_taken_where_it_came_beside_those_of_beams() -> None:
    beam = refer(rtdose(STORED // 2), 1)
    np.testing.assert_array_equal(read_plan_dose([beam, rtdose()], TWO).array, read_dose(rtdose()).array)
    assert code_of(rtdose(), rtdose()) == "several_doses"
    assert code_of(rtdose(), rtdose(DoseSummationType="FRACTION")) == "several_doses"


def test_what_is_not_the_whole_plan_is_refused() -> None:
    first, second = refer(rtdose(), 1), refer(rtdose(), 2)
    assert code_of(first) == "dose_not_plan_sum", "a beam is missing"
    assert code_of(first, refer(rtdose(), 1)) == "dose_not_plan_sum", "a beam is there twice"
    assert code_of(first, second, refer(rtdose(), 7)) == "dose_not_plan_sum", "one is of no beam"
    assert code_of(first, refer(rtdose(PixelSpacing=[2.0, 2.5]), 2)) == "dose_not_plan_sum", "grids differ"
    assert code_of(first, second, of=None) == "dose_not_plan_sum", "no plan"
    twice = copy.deepcopy(TWO)
    twice.FractionGroupSequence = [*twice.FractionGroupSequence, *copy.deepcopy(twice.FractionGroupSequence)]
    assert code_of(first, second, of=twice) == "dose_not_plan_sum", "of two fraction groups a beam may be in both"
    assert code_of(first, rtdose(DoseSummationType="FRACTION")) == "dose_not_plan_sum"
    assert code_of(first, refer(rtdose(DoseUnits="RELATIVE"), 2)) == "relative_dose"


def test_a_case_with_the_doses_of_its_beams_is_taken_in_and_one_that_lacks_a_beam_is_quarantined(
    workspace: Workspace,
) -> None:
    for seed, name in ((1, "whole"), (2, "short")):
        folder = drop(workspace, seed, name)
        (plan_file,) = files(folder, "RTPLAN")
        edit(plan_file, add_beams)
        split(folder, beams=(1, 2) if name == "whole" else (1,))
    batch = ingest(workspace)
    found = {case.reason_code or "": case for case in Catalog(workspace, P).case_versions(batch)}
    assert "dose_not_plan_sum" in found
    (prepared,) = [row for row in Catalog(workspace, P).prepared(batch) if row.status == "ok"]
    facts = next(row.values for row in Catalog(workspace, P).facts(batch) if row.case_id == prepared.case_id)
    assert facts["target_mean_ratio"] == pytest.approx(1.0, abs=0.03)


def add_beams(ds: Dataset) -> None:
    ds.BeamSequence = TWO.BeamSequence
    ds.FractionGroupSequence[0].ReferencedBeamSequence = TWO.FractionGroupSequence[0].ReferencedBeamSequence


def split(folder: Path, beams: tuple[int, ...]) -> None:
    """Put the doses of two beams, 30 % and 70 %, in the place of the dose, or the first of them alone."""
    (path,) = files(folder, "RTDOSE")
    for number in beams:
        ds = pydicom.dcmread(path)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        ds.DoseGridScaling = f"{float(ds.DoseGridScaling) * (0.3 if number == 1 else 0.7):.10g}"
        refer(ds, number).save_as(path.with_name(f"beam-{number}"))
    path.unlink()
