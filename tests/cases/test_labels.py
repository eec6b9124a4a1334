"""A label is what the value in the user's own file says: kept through DICOM and de-identification, shown, and mapped by."""

import json
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest

from med_assets import program
from med_assets.cli.main import main
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.residual import residual_phi
from med_assets.dicom.label_rows import LabelRow
from med_assets.dicom.seg import read_segments
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.evaluation.mask_files import read_mask
from med_assets.experiments.configuration import load
from med_assets.landing.importing.volumes import datalist_pairs, import_pairs
from med_assets.launch.training import train
from med_assets.preparation.labels import label_rows
from med_assets.programs.lumbar_mr.levels import ROI_NAMES
from med_assets.programs.lung_ct.classes import relabelling
from med_assets.programs.lung_ct.experiment import Labels
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.review.explain import explain_case
from med_assets.settings import Workspace
from med_assets.training.job import run
from tests.invented import (
    Study,
    box_contours,
    chest_case,
    ct,
    ingest,
    mr,
    plan_case,
    rtstruct,
    segmentation_2d,
    square,
    us,
    write,
)

TUMOUR, HEART, STRANGE = 27, 392, 12
VOXEL_ML = 0.045


def datalist(
    root: Path, cases: int = 1, names: dict[str, str] | None = None, values: tuple[int, ...] = (2, 7, 40)
) -> Path:
    """Pairs with a tumour of 27 voxels, a heart of 392 and something of 12, under these label values."""
    tumour, heart, strange = values
    training = []
    for case in range(cases):
        rng = np.random.default_rng(case)
        image = np.full((28, 28, 14), -900, np.int16)
        image[6:22, 6:22, :] = 30
        image += rng.integers(-20, 20, image.shape).astype(np.int16)
        label = np.zeros(image.shape, np.uint16)
        label[8:11, 8:11, 5:8], label[13:20, 13:20, 3:11], label[8:11, 18:20, 5:7] = tumour, heart, strange
        for kind, array in (("i", image), ("l", label)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(array, np.diag([-3.0, -3.0, 5.0, 1.0])).to_filename(root / kind / f"c{case}.nii.gz")
        training.append({"image": f"i/c{case}.nii.gz", "label": f"l/c{case}.nii.gz"})
    names = {str(tumour): "lung tumor", str(heart): "heart"} if names is None else names
    (root / "list.json").write_text(json.dumps({"labels": names, "training": training}))
    return root / "list.json"


def imported(ws: Workspace, file: Path) -> list[PreparedCase]:
    """The prepared cases of a datalist that went the whole way."""
    import_pairs(datalist_pairs(file), ws.landing / "lung_ct")
    _, prepared = ingest(ws, "lung_ct")
    return [PreparedCase.open(ws.store.fetch(row["artifact"])) for row in prepared]


def taken(case: PreparedCase, *pairs: tuple[int | str, int | str]) -> dict[int, int]:
    """Voxels on the scanner's grid by the class that a mapping makes of them; each label of these cases stands alone."""
    table = relabelling(case, Labels(mode="mapping", mapping=pairs)).table
    voxels = {one.value: one.voxels for one in case.labels}
    found: dict[int, int] = {}
    for values, class_id in zip(case.combinations, table.tolist(), strict=True):
        if class_id:
            found[class_id] = found.get(class_id, 0) + sum(voxels[value] for value in values)
    return found


def test_a_mapping_is_by_the_value_of_the_users_file(workspace: Workspace, tmp_path: Path) -> None:
    (case,) = imported(workspace, datalist(tmp_path))
    assert [(one.value, one.name, one.class_id, one.voxels) for one in case.labels] == [
        (2, "lung tumor", 23, TUMOUR),
        (7, "heart", 115, HEART),
        (40, "UNRECOGNISED_1", None, STRANGE),
    ]
    assert [one.ml for one in case.labels] == pytest.approx([n * VOXEL_ML for n in (TUMOUR, HEART, STRANGE)])
    assert taken(case, (2, 23)) == {23: TUMOUR}
    assert taken(case, (7, 23)) == {23: HEART}
    assert taken(case, (40, 133)) == {133: STRANGE}
    assert taken(case, ("heart", 23), ("SCT:108369006", 115)) == {23: HEART, 115: TUMOUR}
    assert taken(case, (2, "heart"), (40, 200), (7, 23)) == {23: HEART, 115: TUMOUR, 200: STRANGE}


@pytest.mark.parametrize("values", [(40, 7, 2), (255 + 45, 1, 65535)])
def test_any_values_in_any_order_stand_for_what_the_file_says(
    workspace: Workspace, tmp_path: Path, values: tuple[int, int, int]
) -> None:
    tumour, heart, strange = values
    (case,) = imported(workspace, datalist(tmp_path, values=values))
    assert {one.value: (one.class_id, one.voxels) for one in case.labels} == {
        tumour: (23, TUMOUR),
        heart: (115, HEART),
        strange: (None, STRANGE),
    }
    assert taken(case, (tumour, 23), (heart, 24), (strange, 133)) == {23: TUMOUR, 24: HEART, 133: STRANGE}


def test_a_label_value_that_16_bits_do_not_hold_is_refused_with_the_range(tmp_path: Path) -> None:
    file = datalist(tmp_path)
    label = np.zeros((28, 28, 14), np.int32)
    label[3, 3, 3] = 70000
    nibabel.Nifti1Image(label, np.diag([-3.0, -3.0, 5.0, 1.0])).to_filename(tmp_path / "l" / "c0.nii.gz")
    ((name, reason),) = import_pairs(datalist_pairs(file), tmp_path / "out").skipped.items()
    assert (name, reason.split(":")[0]) == ("i-list-c0", "not_integer_labels")
    assert "from 0 to 65535" in reason
    assert "0 to 70000" in reason


def test_the_value_survives_deidentification_and_no_other_description_does(tmp_path: Path) -> None:
    import_pairs(datalist_pairs(datalist(tmp_path)), tmp_path / "out")
    seg = pydicom.dcmread(tmp_path / "out" / "i-list-c0" / "SEG.dcm")
    assert [one.SegmentDescription for one in seg.SegmentSequence] == [
        "source value 2", "source value 7", "source value 40"
    ]  # fmt: skip
    seg.SegmentSequence[2].SegmentDescription = "source value 40, drawn by Dr Mustermann"
    assert {finding.reason.split()[0] for finding in residual_phi([seg])} > {"SegmentDescription"}
    safe = Deidentifier(b"key", ["lung tumor", "heart"]).apply(seg)
    assert [one.get("SegmentDescription") for one in safe.SegmentSequence] == ["source value 2", "source value 7", None]
    assert residual_phi([safe], known=["Mustermann"]) == []
    assert [one.value for one in read_segments(safe).segments] == [2, 7, 3]


def test_a_source_value_that_two_segments_claim_is_refused(tmp_path: Path) -> None:
    import_pairs(datalist_pairs(datalist(tmp_path)), tmp_path / "out")
    seg = pydicom.dcmread(tmp_path / "out" / "i-list-c0" / "SEG.dcm")
    del seg.SegmentSequence[1].SegmentDescription  # now 2, as the first
    with pytest.raises(CaseRejected, match=r"\[2\]") as refused:
        read_segments(seg)
    assert refused.value.code == "duplicate_segment"


def test_import_shows_what_each_value_counts_as(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = datalist(tmp_path, cases=2)
    report = import_pairs(datalist_pairs(file), tmp_path / "out")
    rows = [
        LabelRow(2, "lung tumor", 2 * TUMOUR, pytest.approx(2 * TUMOUR * VOXEL_ML), cases=2),
        LabelRow(7, "heart", 2 * HEART, pytest.approx(2 * HEART * VOXEL_ML), cases=2),
        LabelRow(40, "label_40", 2 * STRANGE, pytest.approx(2 * STRANGE * VOXEL_ML), cases=2),
    ]
    assert list(report.labels) == rows
    again = import_pairs(datalist_pairs(file), tmp_path / "out")
    assert (len(again.existing), list(again.labels)) == (2, rows)
    assert main(["import", "datalist", str(file), str(tmp_path / "out")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["source", "value", "name", "cases", "voxels", "ml", "maps", "to"]
    assert lines[1] == ["2", "lung", "tumor", "2", "54", "2.430", "23", "lung", "tumor"]
    assert lines[3] == ["40", "label_40", "2", "24", "1.080", "-"]


def test_explain_shows_the_labels_of_a_case(workspace: Workspace, tmp_path: Path) -> None:
    imported(workspace, datalist(tmp_path))
    (row,) = workspace.lake.rows("prepared_cases", "lung_ct")
    lines = [line.split() for line in explain_case(workspace, row["case_id"]).splitlines()]
    start = lines.index(["labels", "of", "its", "source:"])
    assert lines[start + 1 : start + 5] == [
        ["source", "value", "name", "voxels", "ml", "maps", "to"],
        ["2", "lung", "tumor", "27", "1.215", "23", "lung", "tumor"],
        ["7", "heart", "392", "17.640", "115", "heart"],
        ["40", "UNRECOGNISED_1", "12", "0.540", "-"],
    ]


def test_segments_of_other_tools_are_known_by_their_number_and_rois_by_theirs(
    workspace: Workspace, tmp_path: Path
) -> None:
    study = Study("order")
    slices = ct(study, n=9, dz=5.0)
    heights = [float(one.ImagePositionPatient[2]) for one in slices]
    rois = [("Lung tumor", box_contours(7.5, heights)), ("Couch 7", [square(300.0, z) for z in heights]),
            ("Strange thing", box_contours(12.5, heights, (40, 0, 0)))]  # fmt: skip
    case = chest_case("order", rois, slices=slices, st=study)
    for sequence, keyword in (
        ("StructureSetROISequence", "ROINumber"),
        ("ROIContourSequence", "ReferencedROINumber"),
        ("RTROIObservationsSequence", "ReferencedROINumber"),
    ):
        for one, number in zip(case[-1][sequence].value, (31, 5, 17), strict=True):
            setattr(one, keyword, number)
    write(case, workspace.landing / "lung_ct" / "a")
    _, prepared = ingest(workspace, "lung_ct")
    found = PreparedCase.open(workspace.store.fetch(prepared[0]["artifact"]))
    assert [(one.value, one.class_id, one.voxels) for one in found.labels] == [
        (5, None, 9 * 64 * 64),
        (17, None, 5 * 5 * 5),
        (31, 23, 3 * 3 * 3),
    ]
    overlapping = relabelling(found, Labels(mode="mapping", mapping=((5, 140), (17, 133), (31, 23))))
    assert {
        values: int(class_id) for values, class_id in zip(found.combinations, overlapping.table, strict=True)
    } == {(): 0, (5,): 140, (5, 17): 140, (5, 31): 23}  # fmt: skip


def test_a_mapping_that_hits_nothing_ends_before_training_and_what_it_leaves_out_is_listed(
    workspace: Workspace, tmp_path: Path
) -> None:
    imported(workspace, datalist(tmp_path, cases=2))
    rows = workspace.lake.rows("prepared_cases", "lung_ct")
    keys = ("program", "case_id", "patient_id", "version", "content_hash", "artifact")
    members = [{key: row[key] for key in keys} | {"given_split": None, "synthetic": False} for row in rows]
    places = [{"program": "lung_ct", "patient_id": row["patient_id"], "split": split, "fold": 0, "assigned_by": "test"}
              for row, split in zip(rows, ("train", "val"), strict=True)]  # fmt: skip
    workspace.lake.write("dataset", "lung_ct", members)
    workspace.lake.write("splits", "lung_ct", places)
    launched: list[Path] = []
    with pytest.raises(ConfigurationError, match=r"got 1, which no case has; they have the values \[2, 7, 40\]"):
        train(workspace, "lung_ct", "from_scratch", ["labels={mode:mapping,mapping:[[1,23]]}"], launched.append)
    assert launched == []
    short = ("schedule.epochs=1", "patches.per_epoch=1", "patches.size=[16,16,16]", "inference.window=[32,32,32]")
    named = ("labels={mode:mapping,mapping:[[40,133],[lung tumor,23]]}", *short)
    result = train(workspace, "lung_ct", "from_scratch", named, launch=lambda job: run(job) and None)
    assert result.summary["warnings"] == (
        f"labels.mapping leaves out source value 7 (heart): {2 * HEART} voxels in 2 of 2 cases are background"
    )


def test_dose_weights_of_the_same_structures_in_another_order_are_no_start() -> None:
    chosen = load("rt_dose", "adversarial")
    assert isinstance(chosen, DoseExperiment)
    first, second, *others = chosen.site.structures
    turned = chosen.site.model_copy(update={"structures": (second, first, *others)})
    before = chosen.model_copy(update={"site": turned})
    assert chosen.objection_to(chosen) is None
    objection = chosen.objection_to(before)
    assert objection is not None
    assert f"{second}, {first}" in objection


def test_names_of_a_slicer_segmentation_are_by_label_value_and_not_by_segment(tmp_path: Path) -> None:
    file = datalist(tmp_path, names={"40": "oesophagus"})
    label = np.asarray(nibabel.load(tmp_path / "l" / "c0.nii.gz").dataobj)
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([3.0, 3.0, 5.0]),
        "space origin": [0, 0, 0],
    }
    for place, (value, name) in enumerate([(40, "heart"), (7, "heart"), (2, "lung tumor")]):
        header |= {f"Segment{place}_LabelValue": str(value), f"Segment{place}_Name": name, f"Segment{place}_Layer": "0"}
    nrrd.write(str(tmp_path / "l" / "c0.seg.nrrd"), label, header)
    content = json.loads(file.read_text())
    content["training"][0]["label"] = "l/c0.seg.nrrd"
    file.write_text(json.dumps(content))
    report = import_pairs(datalist_pairs(file), tmp_path / "out")
    assert [(row.value, row.name, row.voxels) for row in report.labels] == [
        (2, "lung tumor", TUMOUR),
        (7, "heart", HEART),
        (40, "oesophagus", STRANGE),
    ]


def test_masks_of_an_imported_segmentation_are_scored_by_the_values_of_its_file(tmp_path: Path) -> None:
    import_pairs(datalist_pairs(datalist(tmp_path)), tmp_path / "out")
    seg = read_mask(tmp_path / "out" / "i-list-c0" / "SEG.dcm")
    assert seg.classes("value") == read_mask(tmp_path / "l" / "c0.nii.gz").classes("value") == {"2", "7", "40"}
    assert seg.codings == ("label", "value")
    stored = Deidentifier(b"key", ["lung tumor", "heart"]).apply(
        pydicom.dcmread(tmp_path / "out" / "i-list-c0" / "SEG.dcm")
    )
    stored.save_as(tmp_path / "stored.dcm", enforce_file_format=True)
    assert read_mask(tmp_path / "stored.dcm").codings == ("value",)


def test_explain_shows_which_roi_of_a_plan_is_which_structure(workspace: Workspace) -> None:
    case = plan_case("rois")
    numbers = {"BODY": 12, "PTV70": 3, "PTV56": 40, "Rectum": 7, "Bladder": 1}
    for sequence, keyword in (
        ("StructureSetROISequence", "ROINumber"),
        ("ROIContourSequence", "ReferencedROINumber"),
        ("RTROIObservationsSequence", "ReferencedROINumber"),
    ):
        for one, number in zip(case[-3][sequence].value, numbers.values(), strict=True):
            setattr(one, keyword, number)
    case[-3].StructureSetROISequence[4].ROIName = "Something else"
    write(case, workspace.landing / "rt_dose" / "a")
    ingest(workspace, "rt_dose")
    (row,) = workspace.lake.rows("prepared_cases", "rt_dose")
    lines = [line.split() for line in explain_case(workspace, row["case_id"]).splitlines()]
    start = lines.index(["labels", "of", "its", "source:"])
    shown = {int(one[0]): (one[1], one[-1]) for one in lines[start + 2 : start + 7]}
    assert shown == {
        1: ("UNRECOGNISED_1", "-"),
        3: ("PTV70", "PTV70"),
        7: ("Rectum", "Rectum"),
        12: ("BODY", "body"),
        40: ("PTV56", "PTV56"),
    }
    rows = label_rows("rt_dose", workspace.store.fetch(row["artifact"]))
    assert [(one.value, one.voxels) for one in rows] == [
        (1, None),
        (3, 729),
        (7, 729),
        (12, rows[3].voxels),
        (40, 2197),
    ]
    assert rows[3].voxels == pytest.approx(np.pi * 125 * 95, rel=0.02)


def rows_shown(ws: Workspace, name: str) -> list[dict[str, object]]:
    """The label table of the only prepared case, which `explain` prints too."""
    (raw,) = ws.lake.rows("raw_cases", name)
    assert raw["status"] == "ok", raw["reason"]
    (row,) = ws.lake.rows("prepared_cases", name)
    assert row["status"] == "ok", row["reason"]
    assert "labels of its source:" in explain_case(ws, row["case_id"])
    return [one.shown() for one in label_rows(name, ws.store.fetch(row["artifact"]))]


def test_explain_shows_each_mask_of_an_image_and_how_they_were_united(workspace: Workspace) -> None:
    st = Study("masks")
    pixels = np.random.default_rng(0).integers(20, 200, (80, 100))
    image = us(st, pixels, bia="NO", region=(0, 0, 99, 79))
    first, second = np.zeros((2, 80, 100), bool)
    first[10:20, 10:20] = second[15:25, 10:20] = True
    masks = [segmentation_2d(st, image, one, sop=str(number)) for number, one in enumerate((first, second))]
    write([image, *masks], workspace.landing / "breast_us" / "a")
    ingest(workspace, "breast_us")
    counts_as = "malignant: 150 pixels of 2 masks united"
    of_each = {"source value": 1, "name": "malignant", "pixels": 100, "mm2": "1.00", "maps to": counts_as}
    assert rows_shown(workspace, "breast_us") == [
        of_each | {"mask": "1 of 2"},
        of_each | {"mask": "2 of 2"},
    ]


def test_explain_shows_which_point_marks_which_level(workspace: Workspace) -> None:
    st = Study("points")
    series = mr(st)
    at = {name: (0.0, 0.0, 60.0 - 30.0 * number) for number, name in enumerate(ROI_NAMES.values())}
    points = [(name, [(np.array([place]), "POINT")]) for name, place in at.items()]
    points[0][1].append((np.array([(0.0, 9.0, 9.0)]), "POINT"))  # a level with two points has none
    points += [("Mrs Smith", [(np.array([(0.0, 0.0, 0.0)]), "POINT")]), ("LSTV normal", [(np.zeros((1, 3)), "POINT")])]
    write([*series, rtstruct(st, series, points)], workspace.landing / "lumbar_mr" / "a")
    ingest(workspace, "lumbar_mr")
    shown = rows_shown(workspace, "lumbar_mr")
    assert [(one["source value"], one["name"], one["maps to"]) for one in shown] == [
        (1, "L1/L2", "left out"),
        (1, "L1/L2", "left out"),
        (2, "L2/L3", "L2/L3"),
        (3, "L3/L4", "L3/L4"),
        (4, "L4/L5", "L4/L5"),
        (5, "L5/S1", "L5/S1"),
        (6, "UNRECOGNISED_1", "-"),
        (7, "LSTV normal", "LSTV normal"),
    ]
    (row,) = workspace.lake.rows("prepared_cases", "lumbar_mr")
    truth = json.loads((workspace.store.fetch(row["artifact"]) / "truth.json").read_text())["levels"]["l5_s1"]
    assert [shown[5][axis] for axis in ("slice", "row", "column")] == [f"{value:.1f}" for value in truth]


def test_explain_shows_the_labels_of_a_volume(workspace: Workspace) -> None:
    program.get("retinal_oct").write_phantoms(workspace.landing / "retinal_oct", 1, 3)
    ingest(workspace, "retinal_oct")
    row = next(row for row in workspace.lake.rows("prepared_cases", "retinal_oct") if row["status"] == "ok")
    group, site = label_rows("retinal_oct", workspace.store.fetch(row["artifact"]))
    facts = next(
        one for one in workspace.lake.rows("retinal_oct_facts", "retinal_oct") if one["case_id"] == row["case_id"]
    )
    assert (group.value, group.name) == (facts["study_group"], "study group")
    assert group.maps_to.startswith("class ")
    assert site.value == facts["site"]
    assert group.measured == {"eye": facts["laterality"], "protocol": facts["protocol"]}
