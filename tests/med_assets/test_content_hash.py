"""The hash of a case's images and contours."""

import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from med_assets.errors import CaseRejected
from med_assets.intake.contents import content_hash


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
