"""Disc heights and squareness against numbers worked out by hand, and from marked points of a landed case to the table of the report."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydicom
import pytest

from med_assets import program
from med_assets.cli import stages
from med_assets.dicom.rtstruct import read_points
from med_assets.dicom.write import Identity, write_points
from med_assets.landing import batches
from med_assets.programs.lumbar_mr.levels import corner
from med_assets.programs.lumbar_mr.morphometrics import MORPHOMETRICS, Measured, Row, corners_of, measure, tables
from med_assets.programs.lumbar_mr.phantom import write_case
from med_assets.settings import Workspace

P = "lumbar_mr"


def corners(
    heights_mm: Mapping[str, float], lengths_mm: Mapping[str, tuple[float, float]]
) -> dict[str, np.ndarray | None]:
    """Ends of endplates of upright bodies of 25 mm: height of the disc below each, and the lengths of its upper and lower endplate."""
    found: dict[str, np.ndarray | None] = {}
    z = 0.0
    for vertebra, (upper, lower) in lengths_mm.items():
        for plate, length in (("upper", upper), ("lower", lower)):
            found[corner(vertebra, plate, "front")] = np.array([0.0, 0.0, z])
            found[corner(vertebra, plate, "back")] = np.array([0.0, length, z])
            z -= 25.0 if plate == "upper" else heights_mm.get(vertebra, 0.0)
    return found


LENGTHS = {"L3": (34.0, 34.0), "L4": (34.0, 34.0), "L5": (34.0, 34.0), "S1": (33.0, 22.0)}


def test_heights_ratio_and_squareness_are_those_of_the_points() -> None:
    found = measure(corners({"L3": 12.0, "L4": 10.0, "L5": 4.0}, LENGTHS))
    assert {name: each.value for name, each in found.items()} == pytest.approx(
        {
            "disc height L3/L4": 12.0, "disc height L4/L5": 10.0, "disc height L5/S1": np.mean([4.0, np.hypot(4.0, 1.0)]),
            "disc-height ratio L4/L5": 10 / 12, "disc-height ratio L5/S1": np.mean([4.0, np.hypot(4.0, 1.0)]) / 10,
            "squareness L5": 1.0, "squareness S1": 1.5,
        }
    )  # fmt: skip
    assert {each.name for each in MORPHOMETRICS} == set(found)


def test_a_measure_without_its_points_is_undefined_and_says_which() -> None:
    points = corners({"L3": 12.0, "L4": 10.0, "L5": 4.0}, LENGTHS)
    del points["S1 lower back"]
    points["L5 upper front"] = None
    found = measure(points)
    assert found["squareness S1"] == Measured(None, "no point S1 lower back")
    assert found["disc height L4/L5"].value is None
    assert found["disc height L4/L5"].reason == "several positions or frames of reference of L5 upper front"
    assert found["disc height L5/S1"].value is not None
    assert found["disc-height ratio L5/S1"].value is None
    flat = measure(corners({"L4": 0.0}, LENGTHS | {"S1": (30.0, 0.0)}))
    assert flat["squareness S1"] == Measured(None, "its lower endplate has no length")
    assert flat["disc-height ratio L5/S1"] == Measured(None, "the disc L4/L5 has no height")


def test_a_point_that_was_set_twice_apart_is_not_guessed(tmp_path: Path) -> None:
    points = {name: point for name, point in corners({"L4": 10.0}, LENGTHS).items() if point is not None}
    twice = points | {"l5_UPPER front": points["L5 upper front"] + 5.0}
    whose = Identity("P", "1.2.3", "1.2.4")
    write_points(tmp_path / "points.dcm", twice, whose, "1.2.5", [("1.2.6", np.zeros(3)), ("1.2.7", np.ones(3))])
    found = corners_of(pydicom.dcmread(tmp_path / "points.dcm"))
    assert [name for name, point in found.items() if point is None] == ["L5 upper front"]
    np.testing.assert_allclose(found["S1 upper back"], points["S1 upper back"])


def test_anatomies_are_compared_and_a_table_without_them_still_has_means() -> None:
    def row(number: int, anatomy: str, ratio: float) -> Row:
        values = {each.name: Measured(None, "no point S1 lower back") for each in MORPHOMETRICS}
        return Row(f"c{number}", f"p{number}", anatomy, values | {"disc-height ratio L5/S1": Measured(ratio)})

    rows = [
        *(row(n, "normal", 0.9 + n / 100) for n in range(6)),
        *(row(6 + n, "sacralised", 0.3 + n / 100) for n in range(3)),
    ]
    summary, cases = (table.rows.set_index(table.rows.columns[0]) for table in tables(rows))
    ratio = summary.loc["disc-height ratio L5/S1"]
    assert (ratio["n"], ratio["transitional"], ratio["normal"], ratio["AUROC"]) == (9, 3, 6, "0.000")
    assert summary.loc["squareness S1", ["n", "mean", "AUROC"]].tolist() == [0, "", ""]
    assert cases.loc["c0", "disc-height ratio L5/S1, 1"] == "0.90"
    assert cases.loc["c0", "undefined"] == "no point S1 lower back"
    (alone, _) = tables([row(0, "unknown", 0.9)])
    assert alone.rows.set_index("measure").loc["disc-height ratio L5/S1", ["n", "mean", "transitional"]].tolist() == [
        1,
        "0.90",
        0,
    ]


@pytest.mark.slow
def test_endplates_of_a_landed_case_pass_de_identification_and_reach_the_table(workspace: Workspace) -> None:
    for seed in (1, 2):
        folder = workspace.landing / P / f"case-{seed}"
        write_case(folder, seed, shape=(7, 96, 96), spacing_mm=(6.0, 2.8, 2.8))
    marked = workspace.landing / P / "case-1" / "points.dcm"
    _add(marked, corners({"L3": 12.0, "L4": 10.0, "L5": 4.0}, LENGTHS))
    batch = batches.take(workspace, P, batches.untaken(workspace, P), 0.0)
    stages.intake(workspace, P, batch)
    stages.prepare(workspace, P, batch)
    stages.dataset(workspace, P)
    stages.splits(workspace, P)
    result = stages.analyse(workspace, P, "morphometrics")
    (case,) = result.tables["Disc heights and squareness by case"].to_dict("records")
    assert (case["disc height L4/L5, mm"], case["squareness S1, 1"], case["undefined"]) == ("10.00", "1.50", "")
    assert {row["points_without_level"] for row in workspace.lake.rows(program.fact_table(P), P)} <= {0}


def _add(path: Path, points: Mapping[str, np.ndarray | None]) -> None:
    """Add points to a structure set, of the frame of reference and images of those that are there."""
    from copy import deepcopy

    dataset = pydicom.dcmread(path)
    assert len(read_points(dataset).points) >= 5
    for number, (name, point) in enumerate(points.items(), start=len(dataset.StructureSetROISequence) + 1):
        assert point is not None
        roi, outline, observation = (
            deepcopy(sequence[0])
            for sequence in (
                dataset.StructureSetROISequence,
                dataset.ROIContourSequence,
                dataset.RTROIObservationsSequence,
            )
        )
        roi.ROINumber = outline.ReferencedROINumber = observation.ReferencedROINumber = (
            observation.ObservationNumber
        ) = number
        roi.ROIName = name
        outline.ContourSequence[0].ContourData = [float(value) for value in point]
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(outline)
        dataset.RTROIObservationsSequence.append(observation)
    dataset.save_as(path)
