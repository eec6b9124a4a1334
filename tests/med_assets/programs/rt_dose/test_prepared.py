"""Prepared cases as memory maps."""

from pathlib import Path

import numpy as np
import pytest

from med_assets.errors import ArtifactCorrupt
from med_assets.programs.rt_dose.prepared import PreparedCase, scale_ct, scale_sdf
from tests.med_assets.programs.rt_dose.builders import write_case

CORNER = (slice(0, 4), slice(2, 8), slice(1, 3))


def test_arrays_are_memory_maps(case: PreparedCase) -> None:
    assert all(isinstance(array, np.memmap) for array in (case.ct, case.dose, case.masks, case.sdf, case.body))


def test_ct_is_scaled_from_air_at_zero_to_one() -> None:
    assert scale_ct(np.array([-2000, -1000, 0, 3000, 4000])).tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]


def test_signed_distances_are_scaled_to_one_at_fifty_mm() -> None:
    assert scale_sdf(np.array([-127, 0, 127], np.int8)).tolist() == [-1.0, 0.0, 1.0]


def test_a_part_of_the_input_equals_that_part_of_the_whole(case: PreparedCase) -> None:
    whole = case.input()
    assert whole.shape == (9, *case.shape)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(case.input(CORNER), whole[(slice(None), *CORNER)])


def test_all_masks_are_the_masks_in_order(case: PreparedCase) -> None:
    stacked = np.stack([case.mask(name, CORNER) for name in case.structures])
    np.testing.assert_array_equal(case.all_masks(CORNER), stacked)


def test_signed_distances_agree_in_sign_with_the_masks(case: PreparedCase) -> None:
    np.testing.assert_array_equal(case.input()[1:] < 0, case.all_masks())


def test_an_absent_structure_is_an_empty_mask_far_away(tmp_path: Path) -> None:
    case = PreparedCase.open(write_case(tmp_path / "c", absent=["Bowel"]))
    assert not case.mask("Bowel").any()
    assert (case.input()[8] == 1.0).all()
    assert "Bowel" not in case.present


def test_the_target_is_in_units_of_the_prescription(case: PreparedCase) -> None:
    np.testing.assert_allclose(case.target() * 70.0, case.dose, rtol=1e-6)


def test_a_name_that_is_no_structure_is_refused(case: PreparedCase) -> None:
    with pytest.raises(KeyError, match="Larynx"):
        case.mask("Larynx")


def test_padding_is_air_far_outside_of_all(case: PreparedCase) -> None:
    padded = case.pad(case.input(), [(1, 0), (0, 0), (0, 0)])
    assert (padded[0, 0] == 0).all()
    assert (padded[1:, 0] == 1).all()


@pytest.mark.parametrize("wrong", ["shape", "missing"])
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, wrong: str) -> None:
    folder = write_case(tmp_path / "c")
    if wrong == "shape":
        np.save(folder / "dose.npy", np.zeros((2, 2, 2), np.float32))
    else:
        (folder / "sdf.npy").unlink()
    with pytest.raises(ArtifactCorrupt, match="prepare it again"):
        PreparedCase.open(folder)
