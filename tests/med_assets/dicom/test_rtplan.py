"""A plan says what was prescribed, and what it does not say is None."""

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from med_assets.dicom.rtplan import OrganLimit, Plan, read_plan
from med_assets.errors import CaseRejected


def rtplan(*targets, fractions=(28,), structure_sets=("1.2.3",)):
    ds = Dataset()
    ds.Modality, ds.SOPInstanceUID, ds.PatientID = "RTPLAN", "1.2.9", "DOE-JANE-1961"
    ds.DoseReferenceSequence, ds.FractionGroupSequence, ds.ReferencedStructureSetSequence = [], [], []
    for roi, dose in targets:
        item = Dataset()
        item.DoseReferenceType = "TARGET"
        if roi is not None:
            item.ReferencedROINumber = roi
        item.TargetPrescriptionDose = dose
        ds.DoseReferenceSequence.append(item)
    for count in fractions:
        group = Dataset()
        group.NumberOfFractionsPlanned = count
        ds.FractionGroupSequence.append(group)
    for uid in structure_sets:
        item = Dataset()
        item.ReferencedSOPInstanceUID = uid
        ds.ReferencedStructureSetSequence.append(item)
    return ds


def test_the_prescription_is_the_highest_target_dose():
    plan = read_plan(rtplan((2, "56"), (1, "70.0"), (None, "50.4")))
    assert plan == Plan("1.2.9", 70.0, ((2, 56.0), (1, 70.0), (None, 50.4)), 28, "1.2.3")


def test_fractions_of_all_groups_count_and_one_unknown_makes_the_sum_unknown():
    assert read_plan(rtplan((1, "70"), fractions=(25, 10))).fractions == 35
    assert read_plan(rtplan((1, "70"), fractions=(25, None))).fractions is None


def organ(roi, **values):
    item = Dataset()
    item.DoseReferenceType = "ORGAN_AT_RISK"
    if roi is not None:
        item.ReferencedROINumber = roi
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def test_limits_of_organs_are_those_that_name_their_roi_and_can_be_limits():
    ds = rtplan((1, "70"))
    ds.DoseReferenceSequence += [
        organ(4, OrganAtRiskMaximumDose="50", OrganAtRiskOverdoseVolumeFraction="40"),
        organ(4, OrganAtRiskLimitDose="72.5"),
        organ(None, OrganAtRiskLimitDose="72.5"),
        organ(5, OrganAtRiskMaximumDose="50"),
        organ(6, OrganAtRiskLimitDose="7250", OrganAtRiskMaximumDose="50", OrganAtRiskOverdoseVolumeFraction="101"),
    ]
    assert read_plan(ds).organ_limits == (OrganLimit(4, None, 50.0, 40.0), OrganLimit(4, 72.5, None, None))
    assert read_plan(ds).prescription_gy == 70.0


def test_what_a_plan_does_not_say_is_none():
    ds = Dataset()
    ds.Modality, ds.SOPInstanceUID = "RTPLAN", "1.2.9"
    assert read_plan(ds) == Plan("1.2.9", None, (), None, None)
    assert read_plan(rtplan((1, "70"), structure_sets=("1.2.3", "1.2.4"))).structure_set_uid is None


@pytest.mark.parametrize("dose", ["7000", "0", "-70"])
def test_an_impossible_prescription_is_refused(dose):
    with pytest.raises(CaseRejected, match="cGy") as caught:
        read_plan(rtplan((1, dose)))
    assert caught.value.code == "bad_prescription"


def test_an_object_of_another_modality_is_refused():
    ds = rtplan((1, "70"))
    ds.Modality = "RTDOSE"
    with pytest.raises(CaseRejected) as caught:
        read_plan(ds)
    assert caught.value.code == "wrong_modality"


def test_pydicoms_own_plan_is_read():
    ds = pydicom.dcmread(get_testdata_file("rtplan.dcm"))
    plan = read_plan(ds)
    assert plan.sop_instance_uid == ds.SOPInstanceUID
    assert plan.fractions == ds.FractionGroupSequence[0].NumberOfFractionsPlanned
    assert plan.structure_set_uid == ds.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID
