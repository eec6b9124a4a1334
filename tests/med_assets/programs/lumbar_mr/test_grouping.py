"""Of each study the sagittal T2 series is taken, by its description or by what its headers say, and nothing is lost."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from med_assets.dicom.discover import scan
from med_assets.dicom.geometry import Geometry, Volume
from med_assets.programs.lumbar_mr import LumbarMr
from tests.med_assets.programs.lumbar_mr.series_builders import AXIAL, flipped, identity, values, write_series

AXIAL_VOLUME = Volume(values()[:, :30, :30], Geometry((6, 30, 30), (4.0, 3.0, 3.0), (-45.0, -45.0, 0.0), AXIAL))


def group(folder: Path):
    found = scan(folder)
    assert not found.rejected
    return LumbarMr().group(found.instances), found.instances


def taken(folder: Path) -> dict[str, int]:
    """What the one case of a folder is made of, by the name of the folder of each file."""
    (cases, _), _ = group(folder)
    (case,) = cases
    return Counter(
        path.stem if path.parent == folder else path.parent.name for path in (i.path for i in case.instances)
    )


def test_the_series_is_taken_by_its_description_with_its_points_and_others_are_counted(tmp_path: Path) -> None:
    who = identity()
    write_series(tmp_path, who, "a", description="Sagittal T1", times_ms=(10, 500), at=None)
    write_series(tmp_path, who, "b", description="Sagittal T2/STIR", times_ms=(None, None))
    write_series(tmp_path, who, "c", volume=AXIAL_VOLUME, description="Axial T2", at=None)
    (cases, refusals), instances = group(tmp_path)
    assert taken(tmp_path) == {"b": 7}
    assert cases[0].identity_uid == who.study_uid
    assert [(one.code, one.n_instances) for one in refusals] == [("other_series", 12)]
    assert sum(one.n_instances for one in refusals) + len(cases[0].instances) == len(instances)


def test_without_a_description_orientation_and_contrast_decide(tmp_path: Path) -> None:
    who = identity()
    write_series(tmp_path, who, "a", description="", times_ms=(12, 600), at=None)
    write_series(tmp_path, who, "b", description="", times_ms=(90, 3000), at=None)
    write_series(tmp_path, who, "c", volume=AXIAL_VOLUME, description="", times_ms=(100, 4000), at=None)
    assert taken(tmp_path) == {"b": 6}


def test_of_several_the_one_with_points_then_of_most_slices_then_of_the_lowest_number_is_taken(tmp_path: Path) -> None:
    who = identity()
    whole = flipped(values(), ())
    fewer = Volume(whole.array[:4], replace(whole.geometry, shape=(4, *whole.geometry.shape[1:])))
    write_series(tmp_path, who, "few", volume=fewer, at=None)
    write_series(tmp_path, who, "many", at=None)
    assert taken(tmp_path) == {"many": 6}
    write_series(tmp_path, who, "few", volume=fewer)
    assert taken(tmp_path) == {"few": 5}


def refusal(folder: Path) -> str:
    (cases, refusals), instances = group(folder)
    assert not cases
    (one,) = refusals
    assert one.n_instances == len(instances)
    return one.code


def test_a_study_without_a_sagittal_t2_series_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, identity(), "a", description="Sagittal T1", times_ms=(12, 600), at=None)
    assert refusal(tmp_path) == "no_sagittal_t2"


def test_a_series_that_is_described_as_sagittal_and_stored_otherwise_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, identity(), "a", volume=AXIAL_VOLUME, at=None)
    assert refusal(tmp_path) == "not_sagittal"


def test_two_point_sets_of_one_series_and_a_patient_without_an_id_are_refused(tmp_path: Path) -> None:
    two, nobody = tmp_path / "two", tmp_path / "nobody"
    write_series(two, identity())
    content = (two / "t2.dcm").read_bytes()
    uid = next(one.sop_instance_uid for one in scan(two).instances if one.modality == "RTSTRUCT")
    (two / "again.dcm").write_bytes(
        content.replace(uid.encode(), uid[:-1].encode() + b"0" if uid[-1] != "0" else uid[:-1].encode() + b"1")
    )
    assert refusal(two) == "several_point_sets"
    write_series(nobody, identity(patient_id=" "))
    assert refusal(nobody) == "missing_patient_id"


def test_points_of_another_study_are_not_taken(tmp_path: Path) -> None:
    write_series(tmp_path / "a", identity(1), at=None)
    write_series(tmp_path / "b", identity(2))
    for path in (tmp_path / "b" / "t2").iterdir():
        path.unlink()
    write_series(tmp_path / "c", identity(3), at=None)
    (cases, refusals), _ = group(tmp_path)
    assert [len(case.instances) for case in cases] == [6, 6]
    assert [(one.code, one.n_instances) for one in refusals] == [("points_without_series", 1)]


@pytest.mark.parametrize(("degrees", "sagittal"), [(25, True), (35, False)])
def test_a_series_turned_by_up_to_thirty_degrees_counts_as_sagittal(
    tmp_path: Path, degrees: float, sagittal: bool
) -> None:
    turn = np.deg2rad(degrees)
    direction = ((np.cos(turn), np.sin(turn), 0.0), (0.0, 0.0, -1.0), (-np.sin(turn), np.cos(turn), 0.0))
    whole = flipped(values(), ())
    volume = Volume(whole.array, replace(whole.geometry, direction=direction))
    write_series(tmp_path, identity(), volume=volume, description="", at=None)
    (cases, _), _ = group(tmp_path)
    assert bool(cases) is sagittal
