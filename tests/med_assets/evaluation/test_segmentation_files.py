"""A dataset written for nnU-Net or as TotalSegmentator has it, and predictions of such frameworks on the leaderboard."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import main as cli
from med_assets.cli import stages
from med_assets.dicom.geometry import Geometry
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.evaluation.segmentation_files import IMPORTED, import_predictions, write_dataset
from med_assets.preparation.nifti import read_mask_on, write_nifti
from med_assets.promotion.champions import candidates
from med_assets.records import AggregateScore, CaseScore
from med_assets.settings import Workspace
from tests.invented import ingest
from tests.med_assets.programs.lung_ct.builders import write_case as write_chest


def dataset(ws: Workspace, name: str, n: int) -> dict[str, list[str]]:
    """A home with synthetic cases, two of them in validation, one in test and the others in training; ids by split."""
    if name == "lung_ct":
        for seed in range(n):  # a fifth of the voxels of its phantoms
            write_chest(ws.landing / name / f"case{seed}", seed)
    else:
        program.get(name).write_phantoms(ws.landing / name, n, 0)
    ingest(ws, name)
    stages.dataset(ws, name)
    stages.splits(ws, name)
    splits = ["val", "val", "test", *["train"] * (n - 3)]
    rows = [{**row, "split": split} for row, split in zip(ws.lake.rows("splits", name), splits, strict=True)]
    ws.lake.write("splits", name, rows)
    found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for case in Catalog(ws, name).cases():
        found[str(case.split)].append(case.case_id)
    assert [len(found[split]) for split in ("val", "test")] == [2, 1]
    return found


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_pictures_go_out_with_our_splits_and_come_back_as_an_experiment_that_is_never_promoted(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, ws = "breast_us", workspace
    splits = dataset(ws, name, 5)
    assert cli.main(["export-dataset", name, str(tmp_path), "--id", "7"]) == 0
    folder = tmp_path / "Dataset007_breast_us"
    described = json.loads((folder / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "ultrasound"}
    assert described["labels"] == {"background": 0, "lesion": 1}
    assert described["file_ending"] == ".png"
    assert described["numTraining"] == len(splits["train"]) + len(splits["val"])
    assert json.loads((folder / "splits_final.json").read_text()) == [
        {split: sorted(splits[split]) for split in ("train", "val")}
    ]
    ours = sorted(splits["train"] + splits["val"])
    expected = {f"imagesTr/{one}_0000.png" for one in ours} | {f"labelsTr/{one}.png" for one in ours}
    expected |= {f"imagesTs/{one}_0000.png" for one in splits["test"]}
    assert tree(folder) == expected | {"dataset.json", "splits_final.json"}
    label = np.asarray(Image.open(folder / "labelsTr" / f"{ours[0]}.png"))
    assert set(np.unique(label)) <= {0, 1}
    with pytest.raises(ConfigurationError, match="not there yet"):
        write_dataset(ws, name, tmp_path, 7)

    predictions = tmp_path / "predicted"
    predictions.mkdir()
    for one in splits["val"]:
        shutil.copy(folder / "labelsTr" / f"{one}.png", predictions)
    shutil.copy(folder / "labelsTr" / f"{splits['train'][0]}.png", predictions)
    shutil.copy(folder / "labelsTr" / f"{ours[0]}.png", predictions / "nobody.png")
    assert cli.main(["import-predictions", f"{name}/nnunet_2d", str(predictions)]) == 0
    output = capsys.readouterr().out
    assert "nobody" in output
    assert "of the split train" in output
    catalog = Catalog(ws, name)
    scored = [row for row in catalog.rows(CaseScore, "nnunet_2d") if row.metric == "dice"]
    assert {row.case_id for row in scored} == set(splits["val"])
    assert {row.value for row in scored if row.value is not None} <= {1.0}
    (row,) = [
        row
        for row in catalog.rows(AggregateScore, "nnunet_2d")
        if (row.split, row.metric, row.subject)
        == ("val", program.get(name).primary_metric.name, program.get(name).primary_metric.subject)
    ]
    assert row.checkpoint.startswith(IMPORTED)
    board = stages.leaderboard(ws, name).tables["leaderboard"]
    assert list(board["experiment"]) == ["nnunet_2d"]
    assert board["checkpoint"][0] == row.checkpoint
    assert candidates(ws, name) == []
    assert cli.main(["promote", name, "--experiment", "nnunet_2d"]) == 1
    assert "imported" in capsys.readouterr().err
    assert stages.champion(ws, name).summary["champion"] is None
    assert "nnunet_2d" in (ws.home / str(stages.report(ws, name).summary["path"])).read_text()
    stages.index(ws, name)
    again = import_predictions(ws, name, "nnunet_2d", predictions)
    assert again.key == row.checkpoint

    (predictions / f"{splits['val'][0]}.png").unlink()
    with pytest.raises(ConfigurationError, match=splits["val"][0]):
        import_predictions(ws, name, "nnunet_2d", predictions)
    with pytest.raises(ConfigurationError, match="name that no experiment"):
        import_predictions(ws, name, "tinyusfm", predictions)


def test_the_folds_of_a_cross_validation_are_those_of_our_patients_and_hold_no_validation_case(
    workspace: Workspace, tmp_path: Path
) -> None:
    name, ws = "breast_us", workspace
    splits = dataset(ws, name, 7)
    for fold in (1, 3):
        rows = [{**row, "fold": fold if row["split"] == "train" else 0} for row in ws.lake.rows("splits", name)]
        ws.lake.write("splits", name, rows)
        if fold == 1:
            with pytest.raises(ConfigurationError, match="two folds or more, got 1"):
                write_dataset(ws, name, tmp_path, 7, folds=True)
    rows = ws.lake.rows("splits", name)
    known = [row["patient_id"] for row in rows if row["split"] == "train"]
    first = set(known[:2])
    ws.lake.write("splits", name, [{**row, "fold": 1 if row["patient_id"] in first else row["fold"]} for row in rows])
    folder = write_dataset(ws, name, tmp_path, 7, folds=True).folder
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == 2
    of_first = {case.case_id for case in Catalog(ws, name).cases("train") if case.patient_id in first}
    assert [set(fold["val"]) for fold in folds] == [of_first, set(splits["train"]) - of_first]
    assert all(sorted(fold["train"] + fold["val"]) == sorted(splits["train"]) for fold in folds)
    assert {path.stem for path in (folder / "labelsTr").iterdir()} == set(splits["train"])
    held_back = {path.name.removesuffix("_0000.png") for path in (folder / "imagesTs").iterdir()}
    assert held_back == {*splits["val"], *splits["test"]}
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == len(splits["train"])


def test_volumes_go_out_in_both_layouts_and_a_mask_of_another_grid_is_refused_alone(
    workspace: Workspace, tmp_path: Path
) -> None:
    name, ws = "lung_ct", workspace
    splits = dataset(ws, name, 4)
    nnunet = write_dataset(ws, name, tmp_path, 501).folder
    folders = write_dataset(ws, name, tmp_path, 501, "totalsegmentator").folder
    val = splits["val"]
    image = nibabel.load(nnunet / "imagesTr" / f"{val[0]}_0000.nii.gz")
    label = nibabel.load(folders / val[0] / "segmentations" / "target.nii.gz")
    assert (folders / val[0] / "ct.nii.gz").is_file()
    assert not any((folders / one / "segmentations").exists() for one in splits["test"])
    assert image.shape == label.shape
    assert np.allclose(image.affine, label.affine)
    found = import_predictions(ws, name, "totalsegmentator", folders)
    assert found.scored == len(val)
    dice = [row for row in Catalog(ws, name).rows(CaseScore, "totalsegmentator") if row.metric == "dice"]
    assert [row.value for row in dice] == [1.0] * len(val)
    assert all("imported" in row.convention for row in dice)

    moved = tmp_path / "moved"
    moved.mkdir()
    for one in val:
        shutil.copy(nnunet / "labelsTr" / f"{one}.nii.gz", moved)
    affine = label.affine.copy()
    affine[0, 3] += 3
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj), affine), moved / f"{val[0]}.nii.gz")
    shifted = import_predictions(ws, name, "shifted", moved)
    assert "another place" in shifted.left_out[val[0]]
    assert shifted.scored == 1


def test_a_mask_is_read_on_the_grid_of_its_case_however_its_axes_run(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((4, 5, 6)) > 0.5
    direction = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
    grid: Any = Geometry(mask.shape, (3.0, 0.7, 0.9), (5.0, -7.0, 11.0), direction)
    path = write_nifti(tmp_path / "mask.nii.gz", mask.astype(np.uint8), grid)
    assert np.array_equal(read_mask_on(path, grid), mask)
    other = Geometry(mask.shape, (3.0, 0.7, 0.9), (5.0, -7.0, 11.5), direction)
    with pytest.raises(CaseRejected, match="another place"):
        read_mask_on(path, other)
    write_nifti(path, mask.astype(np.uint8) * 2, grid)
    with pytest.raises(CaseRejected, match="0 and 1"):
        read_mask_on(path, grid)
