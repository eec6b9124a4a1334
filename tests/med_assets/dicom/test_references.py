"""Only objects that name each other, of one patient and one frame of reference, make a case."""

from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from med_assets.dicom.discover import Instance
from med_assets.dicom.references import verify_chain
from med_assets.errors import CaseRejected


def instance(modality, uid, *references, **values):
    base = Instance(Path("DOE"), "1.2", uid, "1.3", "1.4", "1.5", modality, "DOE-JANE-1961", references)
    return replace(base, **values)


def chain(**changes):
    """Arguments of `verify_chain`, with changes to one object by its argument's name."""
    objects = {
        "plan": instance("RTPLAN", "2.1", "2.2", frame_of_reference_uid=""),
        "structure_set": instance("RTSTRUCT", "2.2", "3.1", "3.2"),
        "dose": instance("RTDOSE", "2.3", "2.1"),
        "ct_instances": [instance("CT", f"3.{index}") for index in (1, 2, 3)],
    }
    for name, values in changes.items():
        if name == "ct_instances":
            objects[name][1:] = [replace(image, **values) for image in objects[name][1:]]
        else:
            objects[name] = replace(objects[name], **values)
    return objects


def code(objects):
    with pytest.raises(CaseRejected) as caught:
        verify_chain(**objects)
    assert "DOE" not in caught.value.message
    return caught.value.code


def test_a_whole_chain_is_accepted():
    verify_chain(**chain())
    verify_chain(**chain(plan={"frame_of_reference_uid": "1.5"}))


@pytest.mark.parametrize("name", ["plan", "structure_set", "dose", "ct_instances"])
def test_an_object_of_another_patient_or_none_is_refused(name):
    assert code(chain(**{name: {"patient_id": "DOE-JOHN"}})) == "wrong_patient"
    assert code(chain(**{name: {"patient_id": ""}})) == "missing_patient_id"


@pytest.mark.parametrize(
    ("name", "references"),
    [
        ("dose", ("9.9",)),
        ("dose", ()),
        ("plan", ("9.9",)),
        ("plan", ()),
        ("structure_set", ("9.1", "9.2")),
        ("structure_set", ("3.1", "3.4")),
        ("structure_set", ()),
    ],
)
def test_a_foreign_or_absent_reference_breaks_the_chain(name, references):
    assert code(chain(**{name: {"referenced_sops": references}})) == "broken_uid_chain"


@pytest.mark.parametrize("name", ["plan", "structure_set", "dose", "ct_instances"])
def test_another_frame_of_reference_is_refused(name):
    assert code(chain(**{name: {"frame_of_reference_uid": "9.9"}})) == "frame_of_reference_mismatch"


@pytest.mark.parametrize("name", ["structure_set", "dose", "ct_instances"])
def test_an_unnamed_frame_of_reference_is_refused(name):
    assert code(chain(**{name: {"frame_of_reference_uid": ""}})) == "frame_of_reference_mismatch"


def test_a_plan_without_a_ct_is_refused():
    assert code({**chain(), "ct_instances": []}) == "zero_slices"


def test_datasets_are_taken_as_well_as_scanned_instances():
    dose = pydicom.dcmread(get_testdata_file("rtdose.dcm"))
    assert code({**chain(), "dose": dose}) in {"wrong_patient", "missing_patient_id"}
