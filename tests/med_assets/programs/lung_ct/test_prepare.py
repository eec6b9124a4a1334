"""From stored DICOM to a prepared case: what the arrays hold, what is measured, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from med_assets import program
from med_assets.dicom.discover import scan
from med_assets.errors import ArtifactCorrupt, CaseRejected
from med_assets.programs.lung_ct import exposure, transforms
from med_assets.programs.lung_ct.prepare import Source, classes_of, orientation, overlay
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.settings import Workspace
from tests.med_assets.programs.lung_ct.builders import GEOMETRY, SPACING_MM, ball, ct_hu, masks, write_case


def prepare(ws: Workspace, folder: Path, out: Path) -> dict[str, object]:
    """Facts of a case as it lies in the store: all of its files in one folder."""
    stored = out.parent / "stored"
    stored.mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.dcm"))):
        (stored / f"{number:04d}.dcm").write_bytes(path.read_bytes())
    out.mkdir()
    return program.get("lung_ct").prepare(ws, "abc", stored, out)


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_arrays_hold_hounsfield_units_and_classes_on_both_grids(
    workspace: Workspace, tmp_path: Path, kind: str
) -> None:
    facts = prepare(workspace, write_case(tmp_path / "in", label=kind), tmp_path / "out")
    case = PreparedCase.open(tmp_path / "out")
    np.testing.assert_array_equal(case.ct, ct_hu())
    for name, number in {"lung tumor": 23, "heart": 115}.items():
        truth = masks()[name]
        # Contours are drawn through voxel edges, so that they give the same voxels back.
        np.testing.assert_array_equal(case.truth == number, truth)
    image, label = transforms.forward_pair(case.ct, case.truth, case.geometry, case.spacing_mm)
    np.testing.assert_array_equal(case.image, image[0].numpy())
    np.testing.assert_array_equal(case.label, label[0].numpy())
    assert case.geometry == GEOMETRY
    assert case.spacing_mm == (5.0, 5.0, 5.0)
    assert (case.target, case.target_id) == ("lung tumor", 23)
    assert case.names == {23: "lung tumor", 115: "heart"}
    counts = {name: int(mask.sum()) for name, mask in masks().items()}
    concepts = {"lung tumor": "SCT:108369006", "heart": "SCT:80891009"} if kind == "SEG" else dict.fromkeys(counts, "")
    assert [(one.value, one.name, one.concept, one.class_id, one.voxels) for one in case.labels] == [
        (1, "lung tumor", concepts["lung tumor"], 23, counts["lung tumor"]),
        (2, "heart", concepts["heart"], 115, counts["heart"]),
    ]
    assert case.labels[1].ml == pytest.approx(counts["heart"] * 0.08)
    assert case.combinations == ((), (1,), (2,))
    np.testing.assert_array_equal(np.array([0, 23, 115])[case.sources], case.label)
    assert case.synthetic
    assert facts["label_kind"] == kind


def test_facts_are_measured(workspace: Workspace, tmp_path: Path) -> None:
    two = masks()
    two["lung tumor"] = two["lung tumor"] | ball((5, 20, 29), 7.0)
    facts = prepare(workspace, write_case(tmp_path / "in", labels=two), tmp_path / "out")
    expected = {
        "slices": 24,
        "spacing_z_mm": 5.0,
        "spacing_xy_mm": 4.0,
        "orientation": "LPS",
        "labels": 2,
        "labels_without_class": 0,
        "classes": 2,
        "overlap_voxels": 0,
        "target_present": True,
        "target_components": 2,
        "exposure": "unseen",
        "label_drift_mm": 0.0,
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["target_ml"] == pytest.approx(two["lung tumor"].sum() * np.prod(SPACING_MM) / 1000)
    assert facts["hu_min"] < -900
    assert facts["hu_max"] > 500
    assert set(facts) == set(program.get("lung_ct").facts) - set(program.COMMON_FACTS)


def test_float_noise_is_harmonised_and_recorded_and_a_shift_is_refused_with_a_picture(
    workspace: Workspace, tmp_path: Path
) -> None:
    noise = replace(GEOMETRY, spacing_mm=(5.0, 4.0005, 4.0005))
    facts = prepare(workspace, write_case(tmp_path / "in", label_geometry=noise), tmp_path / "out")
    assert facts["label_drift_mm"] == pytest.approx(39 * 0.0005)
    np.testing.assert_array_equal(PreparedCase.open(tmp_path / "out").truth == 23, masks()["lung tumor"])

    (tmp_path / "b").mkdir()
    shifted = replace(GEOMETRY, origin_mm=(-78.0, -80.0, -60.0))
    with pytest.raises(CaseRejected) as refused:
        prepare(workspace, write_case(tmp_path / "b" / "in", label_geometry=shifted), tmp_path / "b" / "out")
    assert refused.value.code == "label_grid_mismatch"
    assert "labels are not resampled" in refused.value.message
    assert refused.value.picture is not None
    assert refused.value.picture.startswith(b"\x89PNG")


def test_a_label_on_another_spacing_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    other = replace(GEOMETRY, spacing_mm=(5.0, 4.1, 4.1))
    with pytest.raises(CaseRejected) as refused:
        prepare(workspace, write_case(tmp_path / "in", label_geometry=other), tmp_path / "out")
    assert refused.value.code == "label_grid_mismatch"


def test_labels_without_a_class_are_background_and_counted(workspace: Workspace, tmp_path: Path) -> None:
    labels = {"strange thing": ball((12, 20, 29), 12.0), **masks(), "ignore": ball((3, 20, 11), 8.0)}
    facts = prepare(workspace, write_case(tmp_path / "in", labels=labels), tmp_path / "out")
    case = PreparedCase.open(tmp_path / "out")
    assert facts["labels_without_class"] == 1
    assert {one.value: one.class_id for one in case.labels} == {1: None, 2: 23, 3: 115, 4: 255}
    assert case.labels[0].voxels == labels["strange thing"].sum()
    assert not case.truth[labels["strange thing"]].any()
    assert (case.truth[labels["ignore"] & (case.truth != 23)] == 255).all()
    assert set(case.names) == {23, 115}


def test_where_labels_overlap_the_target_wins_then_the_lower_number() -> None:
    tumour, heart, aorta = (ball(centre, 12.0) for centre in ((12, 20, 14), (12, 20, 18), (12, 24, 18)))
    sources = [Source(1, 6, aorta), Source(2, 115, heart), Source(3, 23, tumour), Source(4, None, heart)]
    indices, combinations = overlay(sources, heart.shape)
    classes, conflicts = classes_of(combinations, sources, 23)
    truth, overlap = classes[indices], conflicts[indices].sum()
    backwards, same = overlay(sources[::-1], heart.shape)
    assert combinations == same
    np.testing.assert_array_equal(indices, backwards)
    for one in sources:
        np.testing.assert_array_equal(np.array([one.value in values for values in combinations])[indices], one.mask)
    assert (truth[tumour] == 23).all()
    assert (truth[aorta & heart & ~tumour] == 6).all()
    assert overlap == ((tumour.astype(int) + heart + aorta) > 1).sum()


def test_segments_of_one_class_are_united_without_being_a_conflict() -> None:
    first, second = ball((12, 20, 14), 12.0), ball((12, 20, 16), 12.0)
    sources = [Source(1, 23, first), Source(2, 23, second)]
    indices, combinations = overlay(sources, first.shape)
    classes, conflicts = classes_of(combinations, sources, 23)
    assert ((classes[indices] == 23) == (first | second)).all()
    assert not conflicts.any()


def test_another_target_can_be_chosen_by_name(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_LUNG_CT_TARGET", "Heart")
    ws = Workspace.from_env()
    facts = prepare(ws, write_case(tmp_path / "in"), tmp_path / "out")
    assert PreparedCase.open(tmp_path / "out").target_id == 115
    assert facts["target_ml"] == pytest.approx(masks()["heart"].sum() * 0.08)
    chosen = program.get("lung_ct")
    assert chosen.settings(ws) != chosen.settings(workspace)
    assert not [one for one in chosen.expectations(ws) if one.column == "target_ml"]


def test_exposure_is_recognised_by_the_stored_pseudonym(workspace: Workspace, tmp_path: Path) -> None:
    from med_assets.deidentification.deidentify import Deidentifier

    stored = Deidentifier(workspace.key).pseudonym(exposure.patient_id("lung_020"))
    facts = prepare(workspace, write_case(tmp_path / "in", patient_id=stored), tmp_path / "out")
    assert facts["exposure"] == PreparedCase.open(tmp_path / "out").exposure == "trained"


def test_orientation_is_read_from_the_first_slice(tmp_path: Path) -> None:
    ds = pydicom.dcmread(write_case(tmp_path / "in", label="none") / "ct" / "0000.dcm")
    assert orientation(ds) == "LPS"
    ds.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    assert orientation(ds) == "RAS"
    ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    assert orientation(ds) == "PIR"


def test_a_series_in_no_hounsfield_units_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in", change=lambda hu: np.full_like(hu, -500.0))
    with pytest.raises(CaseRejected) as refused:
        prepare(workspace, folder, tmp_path / "out")
    assert refused.value.code == "no_tissue"


def test_a_prepared_folder_that_does_not_fit_is_corrupt(workspace: Workspace, tmp_path: Path) -> None:
    prepare(workspace, write_case(tmp_path / "in"), tmp_path / "out")
    np.save(tmp_path / "out" / "truth.npy", np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(ArtifactCorrupt, match=r"truth should be uint8 \(24, 40, 40\)"):
        PreparedCase.open(tmp_path / "out")
    (tmp_path / "out" / "image.npy").unlink()
    with pytest.raises(ArtifactCorrupt, match="missing or unreadable"):
        PreparedCase.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"copies": 2}, "several_labels"),
        ({"patient_id": " "}, "missing_patient_id"),
    ],
)
def test_what_makes_no_case_is_refused_with_a_reason(tmp_path: Path, change: dict, code: str) -> None:
    found = scan(write_case(tmp_path / "in", **change))
    cases, refusals = program.get("lung_ct").group(found.instances)
    assert not cases
    assert [refusal.code for refusal in refusals] == [code]


def test_two_series_keep_their_own_labels_and_strays_are_named(tmp_path: Path) -> None:
    first, second = write_case(tmp_path / "in" / "a", 1), write_case(tmp_path / "in" / "b", 2)
    cases, refusals = program.get("lung_ct").group(scan(tmp_path / "in").instances)
    assert (len(cases), refusals) == (2, [])
    for case in cases:
        assert len({instance.path.parts[-3 if "ct" in instance.path.parts else -2] for instance in case.instances}) == 1
        program.get("lung_ct").verify(case)
    for path in (first / "ct").iterdir():
        path.unlink()
    (second / "label0.dcm").unlink()
    cases, refusals = program.get("lung_ct").group(scan(first).instances)
    assert [refusal.code for refusal in refusals] == ["no_ct"]


def test_a_label_drawn_on_another_ct_is_refused(tmp_path: Path) -> None:
    ours, theirs = (
        write_case(tmp_path / "ours", 1, label="none"),
        write_case(tmp_path / "theirs", 2, patient_id="CHEST-001"),
    )
    (theirs / "label0.dcm").rename(ours / "label0.dcm")
    (case,), refusals = program.get("lung_ct").group(scan(ours).instances)
    assert not refusals
    with pytest.raises(CaseRejected) as refused:
        program.get("lung_ct").verify(case)
    assert refused.value.code == "broken_uid_chain"
