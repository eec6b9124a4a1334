"""The hash of a case's images and contours, and the files that are stored of a case."""

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.profiles import STRICT
from med_assets.dicom.discover import load, scan
from med_assets.errors import CaseRejected
from med_assets.intake.contents import content_hash, store_objects
from med_assets.program import get
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace
from med_assets.storage.files import folder_hashes


def frame(position: object = (1.0, 2.0, 3.0)) -> Dataset:
    plane, groups, ds = Dataset(), Dataset(), Dataset()
    plane.ImagePositionPatient = list(position) if isinstance(position, tuple) else None
    groups.PlanePositionSequence = [plane]
    ds.PerFrameFunctionalGroupsSequence = [groups]
    ds.Modality, ds.PixelData = "OPT", b"\0\0"
    return ds


def test_the_position_of_a_frame_counts() -> None:
    assert content_hash([frame()]) == content_hash([frame()])
    assert len({content_hash([frame(one)]) for one in ((1.0, 2.0, 3.0), (1.0, 2.0, 4.0), None)}) == 3


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ContourData"])
def test_text_in_place_of_a_number_is_named(keyword: str) -> None:
    """An element that is passed on unread as text, such as one whose VR the file declares otherwise."""
    ds = frame()
    holder = ds
    if keyword == "ContourData":
        contour, roi = Dataset(), Dataset()
        roi.ContourSequence, ds.ROIContourSequence, holder = [contour], [roi], contour
    holder[Tag(keyword)] = RawDataElement(Tag(keyword), "LO", 4, b"east", 0, False, True)
    with pytest.raises(CaseRejected, match=f"expected numbers in {keyword}") as refused:
        content_hash([ds])
    assert refused.value.code == "malformed_element"


def deidentified(ws: Workspace, folder: Path) -> list[Dataset]:
    """CT, structures, plan and dose of a phantom."""
    keys = Deidentifier(b"key", get("rt_dose").roi_vocabulary(ws))
    return [keys.apply(load(one.path)) for one in scan(folder).instances]


def test_what_is_named_of_stored_objects_is_what_their_files_hold(workspace: Workspace, tmp_path: Path) -> None:
    write_case(tmp_path / "case", 1, shape=(4, 16, 16), spacing_mm=(5.0, 20.0, 20.0))
    objects = deidentified(workspace, tmp_path / "case")
    expected, images = content_hash(objects), content_hash([one for one in objects if one.Modality == "CT"])
    vocabulary = get("rt_dose").roi_vocabulary(workspace)
    again = deidentified(workspace, tmp_path / "case")
    content, hashes = store_objects(again, {"SMITH"}, tmp_path / "stored", vocabulary, STRICT)
    assert (content.content_hash, content.images_hash) == (expected, images)
    assert hashes == folder_hashes(tmp_path / "stored")
    assert len(hashes) == len(objects)
    stored = [load(one.path) for one in scan(tmp_path / "stored").instances]
    assert content_hash(stored) == expected


def test_nothing_is_stored_of_objects_in_which_identity_is_found(workspace: Workspace, tmp_path: Path) -> None:
    write_case(tmp_path / "case", 1, shape=(4, 16, 16), spacing_mm=(5.0, 20.0, 20.0))
    objects = deidentified(workspace, tmp_path / "case")
    objects[-1].PatientComments = "SMITH"
    assert refused_for(objects, tmp_path / "stored", workspace) == "(0010,4000)"


def test_nothing_is_stored_of_objects_in_whose_pixels_identity_is_found(workspace: Workspace, tmp_path: Path) -> None:
    write_case(tmp_path / "case", 1, shape=(4, 16, 16), spacing_mm=(5.0, 20.0, 20.0))
    objects = deidentified(workspace, tmp_path / "case")
    image = next(one for one in objects if one.Modality == "CT")
    image["PixelData"].value = image.PixelData[:99] + b"MCGILLICUDDY" + image.PixelData[111:]
    assert refused_for(objects, tmp_path / "stored", workspace) == "(7FE0,0010)"


def refused_for(objects: list[Dataset], folder: Path, ws: Workspace) -> str:
    """The tag for which objects are refused, of which nothing is stored."""
    vocabulary = get("rt_dose").roi_vocabulary(ws)
    with pytest.raises(CaseRejected) as refused:
        store_objects(objects, {"SMITH", "MCGILLICUDDY"}, folder, vocabulary, STRICT)
    assert refused.value.code == "residual_phi"
    assert not folder.exists()
    return refused.value.message.partition("['")[2].partition("']")[0]
