"""Predicted levels as files: the points read back at their places, and a level that was not found is never a point."""

import csv
from pathlib import Path

import numpy as np
import pydicom

from med_assets.dicom.rtstruct import read_points
from med_assets.files import write_json
from med_assets.programs.lumbar_mr import LumbarMr
from med_assets.programs.lumbar_mr.levels import LEVELS, ROI_NAMES
from med_assets.programs.lumbar_mr.predict import Prediction
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.scorer import HEATS, SLICE_HEATS, SUMMARY, summary
from med_assets.settings import Workspace
from tests.med_assets.programs.lumbar_mr.series_builders import AT, GEOMETRY, identity, write_series


def export(ws: Workspace, folder: Path, found: dict[str, tuple[float, float, float] | None]) -> list[Path]:
    """Files of a case for which a model found these points (s, y, x)."""
    write_series(folder / "in", identity())
    raw, prepared, predicted = (folder / name for name in ("raw", "prepared", "predicted"))
    for made in (raw, prepared, predicted):
        made.mkdir()
    for number, path in enumerate(sorted((folder / "in").rglob("*.dcm"), reverse=True)):
        (raw / f"{(number * 7) % 101:04d}.dcm").write_bytes(path.read_bytes())
    LumbarMr().prepare(ws, "abc", raw, prepared)
    case = PreparedCase.open(prepared)
    heats = np.zeros((len(LEVELS), 160, 160), np.float32)
    said = summary(case, Prediction(heats, heats[None], (2,), heats[:0], found, 2))
    write_json(predicted / SUMMARY, said | {"uncertainty": {level: {"confidence": 0.5} for level in LEVELS}})
    np.save(predicted / HEATS, heats)
    np.save(predicted / SLICE_HEATS, heats[None])
    return LumbarMr().write_prediction(raw, prepared, predicted, folder / "out", "checkpoint/0123")


def test_points_come_back_at_their_places_and_name_the_model(workspace: Workspace, tmp_path: Path) -> None:
    found = {level: tuple(map(float, AT[level])) for level in LEVELS}
    dicom, table = export(workspace, tmp_path, found | {"l3_l4": None})
    dataset = pydicom.dcmread(dicom)
    points = read_points(dataset)
    assert set(points) == {name for level, name in ROI_NAMES.items() if level != "l3_l4"}
    for level, name in ROI_NAMES.items():
        if level != "l3_l4":
            np.testing.assert_allclose(points[name], GEOMETRY.to_points(AT[level])[0], atol=1e-3)
    assert "checkpoint/0123" in str(dataset)
    rows = {row["level"]: row for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())}
    assert (rows["l3_l4"]["x_mm"], rows["l1_l2"]["confidence"]) == ("", "0.5")
    assert float(rows["l5_s1"]["z_mm"]) == round(float(GEOMETRY.to_points(AT["l5_s1"])[0][2]), 2)


def test_where_nothing_was_found_there_is_a_table_alone(workspace: Workspace, tmp_path: Path) -> None:
    (table,) = export(workspace, tmp_path, dict.fromkeys(LEVELS))
    assert table.name == "predicted_levels.csv"
