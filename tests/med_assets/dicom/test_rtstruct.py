"""Contours become the voxels whose centres they enclose, and names become structures, without guesses."""

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from med_assets.dicom.contours import mask_to_contours
from med_assets.dicom.geometry import Geometry
from med_assets.dicom.rtstruct import Roi, draw, rasterise, read_rois, read_structure_set
from med_assets.dicom.structure_names import match_rois, normalise
from med_assets.errors import CaseRejected, ConfigurationError

GRID = Geometry((9, 20, 24), (2.5, 1.5, 0.75), (-10.0, -20.0, -30.0))


def contour(z, *corners):
    """A closed contour in LPS mm from (y, x) corners in voxels on the plane of slice `z`."""
    return GRID.to_points(np.array([(z, y, x) for y, x in corners], float))


def square(z, low, high):
    return contour(z, (low, low), (low, high), (high, high), (high, low))


def filled(*contours):
    return rasterise(Roi(1, "PTV70", contours), GRID)


def code(function, *arguments):
    with pytest.raises(CaseRejected) as caught:
        function(*arguments)
    return caught.value.code


def structure_set(*contours, kind="CLOSED_PLANAR"):
    ds = Dataset()
    ds.Modality = "RTSTRUCT"
    roi, item = Dataset(), Dataset()
    roi.ROINumber, roi.ROIName = 7, "PTV_70 Gy"
    item.ReferencedROINumber, item.ContourSequence = 7, []
    for points in contours:
        entry = Dataset()
        entry.ContourGeometricType = kind
        entry.ContourData = [float(value) for value in np.ravel(points)]
        item.ContourSequence.append(entry)
    ds.StructureSetROISequence, ds.ROIContourSequence = [roi], [item]
    return ds


def test_a_voxel_belongs_to_an_roi_when_its_centre_lies_inside():
    mask = filled(square(3, 4.5, 8.5), square(4, 4.5, 8.4))
    assert mask[3, 5:9, 5:9].all()
    assert mask[3].sum() == 16
    assert mask.sum() == 32


def test_polygons_of_any_shape_agree_with_an_independent_point_in_polygon_test():
    rng = np.random.default_rng(3)
    for _ in range(20):
        corners = rng.uniform(-0.4, 18, (rng.integers(3, 12), 2))
        y, x = np.mgrid[:20, :24]
        # An even-odd count by rays; matplotlib fills by winding, so corners are ordered to a star, which is the same.
        centre = corners.mean(axis=0)
        corners = corners[np.argsort(np.arctan2(*(corners - centre).T))]
        expected = Polygon(corners).contains_points(np.column_stack([y.ravel(), x.ravel()])).reshape(20, 24)
        np.testing.assert_array_equal(filled(contour(2, *corners))[2], expected)


def test_an_inner_contour_is_a_hole_and_separate_ones_are_parts():
    mask = filled(square(3, 2.5, 12.5), square(3, 5.5, 8.5), square(3, 14.5, 16.5))
    assert mask.sum() == 100 - 9 + 4
    assert not mask[3, 7, 7]


def test_a_keyhole_is_a_hole_and_its_double_line_leaves_no_speck():
    outer = [(2.5, 2.5), (2.5, 12.5), (12.5, 12.5), (12.5, 2.5)]
    inner = [(5.5, 5.5), (8.5, 5.5), (8.5, 8.5), (5.5, 8.5)]
    keyhole = contour(3, *outer, outer[0], *inner, inner[0])
    np.testing.assert_array_equal(filled(keyhole), filled(contour(3, *outer), contour(3, *inner)))


def test_a_contour_between_slices_goes_to_the_nearest_only():
    assert np.flatnonzero(filled(square(3.3, 4.5, 8.5)).any(axis=(1, 2))).tolist() == [3]
    assert np.flatnonzero(filled(square(3.5, 4.5, 8.5)).any(axis=(1, 2))).tolist() == [3]
    assert np.flatnonzero(filled(square(3.7, 4.5, 8.5)).any(axis=(1, 2))).tolist() == [4]


def test_contours_on_every_other_slice_reach_half_their_distance_and_keep_their_own_shape():
    mask = filled(square(1, 4.5, 8.5), square(3, 4.5, 10.5), square(5, 4.5, 8.5))
    assert mask.sum(axis=(1, 2)).tolist() == [16, 16, 36, 36, 16, 16, 0, 0, 0]


def test_a_gap_between_parts_of_an_roi_stays_empty():
    mask = filled(*(square(z, 4.5, 8.5) for z in (0, 1, 2, 6, 7)))
    assert mask.any(axis=(1, 2)).tolist() == [True, True, True, False, False, False, True, True, False]


def test_contours_closer_together_than_slices_are_not_merged():
    mask = filled(*(square(z / 2, 4.5, 8.5 + (z % 2)) for z in range(17)))
    assert mask.sum(axis=(1, 2)).tolist() == [16] * 9


def test_contours_outside_the_image_are_refused_and_half_a_voxel_over_its_edge_is_not():
    assert code(filled, square(3, -5, 8)) == "contour_outside_image"
    assert code(filled, square(3, 4, 30)) == "contour_outside_image"
    assert code(filled, square(-1, 4, 8)) == "contour_outside_image"
    assert code(filled, square(9, 4, 8)) == "contour_outside_image"
    mask = filled(contour(3, (-0.9, -0.9), (-0.9, 23.9), (19.9, 23.9), (19.9, -0.9)))
    assert mask[3].all()
    assert mask.sum() == 480


def test_a_contour_across_slices_is_refused():
    points = square(3, 4, 8)
    points[0, 2] += 3
    assert code(filled, points) == "contour_not_axial"


def test_an_roi_without_contours_is_an_empty_mask():
    assert not filled().any()


@settings(max_examples=60, deadline=None)
@given(mask=arrays(bool, (5, 6, 7)), tilt=st.sampled_from([0.0, 0.1]), edge=st.booleans())
def test_rasterising_the_contours_of_a_mask_gives_back_every_voxel(mask, tilt, edge):
    """Two filled slices at least touch here: planes regularly apart are by design read as coarser contours."""
    mask[2:4, 3, 3] = True
    mask[0, 0, 0] |= edge
    direction = ((0.0, 0.0, 1.0), (-np.sin(tilt), np.cos(tilt), 0.0), (np.cos(tilt), np.sin(tilt), 0.0))
    geometry = Geometry(mask.shape, (3.0, 0.9765625, 0.7), (-211.3, 17.123, -905.5), direction)
    filled_slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if len(filled_slices) > 2 and (np.diff(filled_slices) == 1).sum() * 2 <= len(filled_slices) - 1:
        mask[:, 3, 3] = True
    contours = tuple(mask_to_contours(mask, geometry))
    np.testing.assert_array_equal(rasterise(Roi(1, "any", contours), geometry), mask)


def test_the_area_of_a_structure_of_clinical_size_is_that_of_its_outline():
    geometry = Geometry((200, 512, 512), (2.0, 1.0, 1.0), (-256.0, -256.0, -200.0))
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.column_stack([200 * np.cos(angle), 150 * np.sin(angle)])
    contours = tuple(np.column_stack([ring, np.full(400, -200.0 + 2 * z)]) for z in range(200))
    mask = rasterise(Roi(1, "Body", contours), geometry)
    assert mask.sum() / 200 == pytest.approx(np.pi * 200 * 150, rel=1e-3)


def test_rois_are_read_with_number_name_and_points_in_mm(tmp_path):
    points = square(3, 4.5, 8.5)
    path = tmp_path / "rs"
    ds = structure_set(points, points[:, ::-1])
    ds.save_as(path, implicit_vr=False, little_endian=True)
    for source in (ds, pydicom.dcmread(path, force=True)):
        (roi,) = read_rois(source)
        assert (roi.number, roi.name, len(roi.contours)) == (7, "PTV_70 Gy", 2)
        np.testing.assert_allclose(roi.contours[0], points)


def test_pydicoms_own_structure_set_is_read():
    rois = read_rois(pydicom.dcmread(get_testdata_file("rtstruct.dcm"), force=True))
    assert [(roi.name, len(roi.contours)) for roi in rois][:1] != []
    assert all(contour.shape[1] == 3 for roi in rois for contour in roi.contours)


def test_points_and_open_lines_enclose_nothing():
    (roi,) = read_rois(structure_set([[1.0, 2.0, 3.0]], kind="POINT"))
    assert roi.contours == ()


def test_broken_structure_sets_are_refused():
    good = square(3, 4.5, 8.5)
    for points in (good[:2], good[:1], np.ravel(good)[:-1], []):
        (roi,) = read_rois(structure_set(good, points))
        assert (len(roi.contours), roi.left_out) == (1, 1)
    broken = structure_set(good)
    del broken.ROIContourSequence[0].ContourSequence[0].ContourData
    assert read_rois(broken)[0].left_out == 1
    broken = structure_set(good)
    del broken.ROIContourSequence
    assert code(read_rois, broken) == "missing_rois"
    broken = structure_set(good)
    broken.Modality = "CT"
    assert code(read_rois, broken) == "wrong_modality"


def numbered(number, name):
    entry = Dataset()
    entry.ROINumber, entry.ROIName = number, name
    return entry


def test_contours_that_belong_to_no_single_roi_cost_only_themselves():
    good = square(3, 4.5, 8.5)
    stranger = structure_set(good)
    more = structure_set(good).ROIContourSequence[0]
    more.ReferencedROINumber = 8
    stranger.ROIContourSequence.append(more)
    found = read_structure_set(stranger)
    assert [(roi.number, len(roi.contours)) for roi in found.rois] == [(7, 1)]
    assert [(one.where, one.name) for one in found.unusable] == [("ROI 8", "")]

    without = structure_set(good)
    unnumbered = Dataset()
    unnumbered.ROIName = "Rectum"
    without.StructureSetROISequence.append(unnumbered)
    found = read_structure_set(without)
    assert [roi.number for roi in found.rois] == [7]
    assert [(one.where, one.name) for one in found.unusable] == [("item 2 of the list of ROIs", "Rectum")]

    twice = structure_set(good)
    twice.StructureSetROISequence.append(numbered(7, "Rectum"))
    twice.StructureSetROISequence.append(numbered(9, "Bladder"))
    found = read_structure_set(twice)
    assert [roi.number for roi in found.rois] == [9]
    assert [(one.where, one.name) for one in found.unusable] == [("ROI 7", "PTV_70 Gy"), ("ROI 7", "Rectum")]

    same = structure_set(good)
    same.StructureSetROISequence.append(numbered(7, "ptv 70Gy"))
    assert [(roi.number, len(roi.contours)) for roi in read_structure_set(same).rois] == [(7, 1)]
    assert read_structure_set(same).unusable == ()


def circle(z_mm, radius_mm, points=80):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack([radius_mm * np.cos(angle), radius_mm * np.sin(angle), np.full(points, z_mm)])


@pytest.mark.parametrize("jitter", [0.0, 0.08])
@pytest.mark.parametrize("slice_mm", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("plane_mm", [0.05, 0.12, 0.2, 0.25, 0.3, 1.0])
def test_a_tapering_hollow_structure_keeps_its_shape_however_dense_its_planes_are(plane_mm, slice_mm, jitter):
    geometry = Geometry((int(30 / slice_mm), 40, 40), (slice_mm, 1.0, 1.0), (-19.3, -19.1, -15.0))
    heights = np.arange(-11.97, 12, plane_mm)
    heights += np.random.default_rng(4).uniform(-jitter, jitter, len(heights)) * plane_mm
    contours = [circle(z, 10 + z / 3) for z in heights] + [circle(z, 4) for z in heights]
    drawing = draw(Roi(1, "taper", tuple(contours)), geometry)
    slices = geometry.to_index(np.array([[0, 0, z] for z in heights]))[:, 0]
    distance = np.hypot(np.arange(40)[:, None] - 19.1, np.arange(40) - 19.3)
    for index in range(geometry.shape[0]):
        near = np.abs(slices - index)
        if near.min() > 0.4:
            continue
        z = heights[near.argmin()]
        expected = (distance < 10 + z / 3) & (distance > 4)
        assert (drawing.mask[index] != expected).sum() <= 12, (index, z)
    area = sum(np.pi * ((10 + z / 3) ** 2 - 16) for z in heights) * 24 / len(heights) / 1000
    assert drawing.area_ml == pytest.approx(area, rel=0.03)
    assert drawing.mask.sum() * slice_mm / 1000 == pytest.approx(area, rel=0.2)
    assert drawing.overlaps == 0


@pytest.mark.parametrize("noise_mm", [0.0, 0.004, 0.02, 0.134])
@pytest.mark.parametrize(("slice_mm", "plane_mm"), [(0.3, 3.0), (3.0, 3.0), (1.0, 2.0), (5.0, 5.0)])
def test_holes_stay_holes_whatever_the_noise_of_heights(slice_mm, plane_mm, noise_mm):
    geometry = Geometry((int(36 / slice_mm), 40, 40), (slice_mm, 1.0, 1.0), (-19.5, -19.5, -18.0))
    heights = np.arange(-12, 12.1, plane_mm)
    noise = np.random.default_rng(5).uniform(-noise_mm / 2, noise_mm / 2, (2, len(heights)))
    outer = [circle(z + d, 12) for z, d in zip(heights, noise[0], strict=True)]
    inner = [circle(z + d, 6) for z, d in zip(heights, noise[1], strict=True)]
    drawing = draw(Roi(1, "ring", (*outer, *inner)), geometry)
    drawn = drawing.mask.sum(axis=(1, 2))
    assert set(drawn[drawn > 0].tolist()) == {drawn.max()}
    assert drawn.max() == pytest.approx(np.pi * (144 - 36), abs=14)


def test_the_volume_of_contours_counts_holes_islands_parts_overlaps_and_xor():
    geometry = Geometry((9, 40, 40), (1.0, 1.0, 1.0), (-19.5, -19.5, -4.0))

    def box(half, z, x=0.0):
        return np.array([(x - half, -half, z), (x + half, -half, z), (x + half, half, z), (x - half, half, z)])

    heights = range(-2, 3)
    ring = [box(half, z) for z in heights for half in (10, 6, 2)]
    assert draw(Roi(1, "ring", tuple(ring)), geometry).area_ml == pytest.approx(5 * (400 - 144 + 16) / 1000)
    parts = [box(3, z, x) for z in heights for x in (-6, 6)]
    assert draw(Roi(1, "parts", tuple(parts)), geometry).area_ml == pytest.approx(5 * 72 / 1000)
    crossed = [box(5, z, x) for z in heights for x in (-2, 2)]
    united = draw(Roi(1, "united", tuple(crossed)), geometry)
    assert (united.area_ml, united.overlaps) == (pytest.approx(5 * 140 / 1000), 5)
    assert draw(Roi(1, "xor", tuple(crossed), xor=True), geometry).area_ml == pytest.approx(5 * 80 / 1000)
    assert draw(Roi(1, "twice", tuple(parts * 2)), geometry).area_ml == pytest.approx(5 * 72 / 1000)


def test_names_match_whatever_their_case_dashes_spaces_and_units():
    assert {normalise(name) for name in ("PTV70", "ptv_70", "PTV 70 Gy", "Ptv-70GY")} == {"ptv70"}
    names = ["PTV_70Gy", "Rectum", "rectum 2", "Fem Head L", "CouchSurface", "Blase", "BLADDER"]
    synonyms = {"PTV70": (), "Rectum": (), "Femur_L": ("FemHead_L",), "Bladder": ("Blase",), "Bowel": ()}
    match = match_rois(names, synonyms)
    assert match.found == {"PTV70": 0, "Rectum": 1, "Femur_L": 3}
    assert match.unmatched == (2, 4)
    assert match.ambiguous == {"Bladder": (5, 6)}
    preferred = match_rois(names, synonyms, {"Bladder": ("Harnblase", "Blase", "Bladder")})
    assert (preferred.found["Bladder"], preferred.passed_over) == (5, {"Bladder": (6,)})
    assert match_rois(["Rectum", "rectum"], synonyms, {"Rectum": ("Rectum",)}).ambiguous == {"Rectum": (0, 1)}


def test_what_fits_a_pattern_counts_only_where_no_name_does():
    fallback = {"Rectum": ("first", "second")}
    assert match_rois(["second", "first"], {"Rectum": ()}, None, fallback).found == {"Rectum": 1}
    assert match_rois(["first", "Rectum"], {"Rectum": ()}, None, fallback).found == {"Rectum": 1}
    assert match_rois(["first", "first"], {"Rectum": ()}, None, fallback).ambiguous == {"Rectum": (0, 1)}


def test_a_synonym_of_two_structures_is_an_error_of_configuration():
    with pytest.raises(ConfigurationError, match="one structure"):
        match_rois([], {"Rectum": ("Organ",), "Bladder": ("organ",)})
