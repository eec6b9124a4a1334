"""Beams of a plan: what is read is what was stated, open areas are those worked out by hand, and nothing is made up."""

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from med_assets.dicom.rtbeams import COLUMNS, BeamFacts, control_point_table, read_beams


def item(**values: object) -> Dataset:
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def devices(**positions: list[float]) -> list[Dataset]:
    return [item(RTBeamLimitingDeviceType=name, LeafJawPositions=values) for name, values in positions.items()]


def arc(number: int, start: float, stop: float, rotation: str, leaves: list[list[float]]) -> Dataset:
    """An arc of three leaf pairs, each 10 mm wide, with jaws at +-100 x +-10 mm and the same weight between its control points."""
    points = []
    for place, positions in enumerate(leaves):
        point = item(ControlPointIndex=place, CumulativeMetersetWeight=place / (len(leaves) - 1))
        point.BeamLimitingDevicePositionSequence = devices(MLCX=positions)
        if place == 0:
            point.NominalBeamEnergy, point.GantryAngle, point.GantryRotationDirection = 6, start, rotation
            point.BeamLimitingDeviceAngle, point.PatientSupportAngle = 30, 0
            point.BeamLimitingDevicePositionSequence += devices(ASYMX=[-100, 100], ASYMY=[-10, 10])
        elif place == len(leaves) - 1:
            point.GantryAngle, point.GantryRotationDirection = stop, "NONE"
        points.append(point)
    leafs = item(RTBeamLimitingDeviceType="MLCX", NumberOfLeafJawPairs=3, LeafPositionBoundaries=[-15, -5, 5, 15])
    return item(
        BeamNumber=number, RadiationType="PHOTON", TreatmentDeliveryType="TREATMENT", FinalCumulativeMetersetWeight=1,
        BeamLimitingDeviceSequence=[item(RTBeamLimitingDeviceType="ASYMX", NumberOfLeafJawPairs=1), leafs],
        ControlPointSequence=points,
    )  # fmt: skip


def plan(*beams: Dataset, metersets: dict[int, float]) -> Dataset:
    ds = item(Modality="RTPLAN", BeamSequence=list(beams))
    references = [item(ReferencedBeamNumber=number, BeamMeterset=mu) for number, mu in metersets.items()]
    ds.FractionGroupSequence = [item(NumberOfFractionsPlanned=20, ReferencedBeamSequence=references)]
    return ds


OPEN, HALF, CLOSED = [-20, -20, -20, 20, 20, 20], [-20, -20, -20, 0, 0, 0], [0, 0, 0, 0, 0, 0]
"""Leaf positions of both banks: 40 mm open, 20 mm, none. The jaws leave 5 + 10 + 5 mm of the leaves' width."""


def test_two_arcs_give_their_angles_and_the_open_area_worked_out_by_hand() -> None:
    imaging = item(BeamNumber=9, TreatmentDeliveryType="SETUP", ControlPointSequence=[])
    ds = plan(
        arc(1, 181, 179, "CW", [OPEN, OPEN, CLOSED]), arc(2, 179, 181, "CC", [HALF, HALF]), imaging,
        metersets={1: 300, 2: 100, 9: 1},
    )  # fmt: skip
    beams = read_beams(ds)
    assert [beam.number for beam in beams] == [1, 2], "the one for images is none"
    # 40 x 20 mm = 8 cm2, for half the units, then from 8 to 0; the other arc 20 x 20 mm.
    assert beams[0].mean_aperture_cm2() == pytest.approx(0.5 * 8 + 0.5 * 4)
    assert beams[1].mean_aperture_cm2() == pytest.approx(4)
    facts = BeamFacts.of(beams)
    assert facts == BeamFacts(
        2, 2, "181-179 CW, 179-181 CC", "30, 30", "0, 0", "6 MV", 5, 400, 3, facts.mean_aperture_cm2
    )
    assert facts.mean_aperture_cm2 == pytest.approx((300 * 6 + 100 * 4) / 400)


def test_the_table_of_control_points_holds_what_later_ones_take_over() -> None:
    beams = read_beams(plan(arc(1, 181, 179, "CW", [OPEN, HALF, CLOSED]), metersets={1: 300}))
    table = control_point_table(beams)
    assert table.shape == (3, len(COLUMNS) + 6)
    np.testing.assert_allclose(table[1, : len(COLUMNS)], [1, 181, 30, 0, 150, -100, 100, -10, 10])
    np.testing.assert_allclose(table[2, len(COLUMNS) :], CLOSED)


def test_what_a_plan_does_not_say_is_none() -> None:
    assert read_beams(Dataset()) == ()
    assert BeamFacts.of(()) is None
    beam = arc(1, 0, 0, "NONE", [OPEN, OPEN])
    del beam.BeamLimitingDeviceSequence[1].LeafPositionBoundaries
    beam.ControlPointSequence[0].GantryAngle = None
    found = BeamFacts.of(read_beams(plan(beam, metersets={})))
    assert found is not None
    assert (found.arcs, found.meterset_mu, found.mean_aperture_cm2, found.mlc_leaf_pairs) == (0, None, None, None)
    beam.BeamLimitingDeviceSequence += [item(RTBeamLimitingDeviceType=f"MLCX{layer}") for layer in (1, 2)]
    assert read_beams(plan(beam, metersets={1: 1}))[0].leaf_kind is None, "of several layers neither is the leaves"


def test_a_plan_of_another_maker_is_read() -> None:
    (beam,) = read_beams(pydicom.dcmread(get_testdata_file("rtplan.dcm")))
    assert beam.gantry() == "0"
    assert not beam.is_arc
    assert beam.meterset == pytest.approx(116.0036697)
