"""Beams of a plan: arcs, angles, monitor units, and what the leaves of its collimator leave open.

What a plan does not say, or says in a form that can't be read, is None: no beam ever refuses a case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from med_assets.dicom.elements import number, numbers, text

LEAVES = {"MLCX": ("X", "Y"), "MLCY": ("Y", "X")}
"""Kinds of leaves, with the axis along which they move and the one along which they lie side by side (IEC 61217)."""

JAWS = {"X": "X", "ASYMX": "X", "Y": "Y", "ASYMY": "Y"}
"""Kinds of jaws, with the axis along which they move."""

TREATMENT = ("TREATMENT", "")
"""Values of TreatmentDeliveryType of a beam that treats; others are for set-up and images."""


@dataclass(frozen=True, eq=False)
class ControlPoint:
    """The state of a beam at one of its control points; what it does not state is that of the one before.

    Angles are in deg, `meterset_weight` is cumulative. `jaws_mm` are the two positions by axis, and `leaves_mm` (2, pairs) those of both
    banks, in the isocentre plane; None where a plan states none.
    """

    gantry_deg: float | None = None
    rotation: str = ""
    collimator_deg: float | None = None
    couch_deg: float | None = None
    energy: float | None = None
    meterset_weight: float | None = None
    jaws_mm: Mapping[str, tuple[float, float]] | None = None
    leaves_mm: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Beam:
    """One treatment beam: its number, monitor units in a fraction, leaves, and control points.

    `leaf_kind` is one of LEAVES, and `boundaries_mm` (pairs + 1) are where its leaves border on each other; both None of a beam without
    leaves, or with several layers of them.
    """

    number: int | None
    radiation: str
    meterset: float | None
    final_weight: float | None
    leaf_kind: str | None
    boundaries_mm: NDArray[np.float64] | None
    control_points: tuple[ControlPoint, ...]

    @property
    def is_arc(self) -> bool:
        """Whether the gantry turns while the beam is on."""
        return any(point.rotation in ("CW", "CC") for point in self.control_points)

    @property
    def pairs(self) -> int | None:
        """Leaf pairs of the collimator."""
        return None if self.boundaries_mm is None else len(self.boundaries_mm) - 1

    def gantry(self) -> str:
        """The gantry angle, of an arc where it starts and stops and its direction, such as "181-179 CW"; empty where unknown."""
        angles = [point.gantry_deg for point in self.control_points if point.gantry_deg is not None]
        if not angles:
            return ""
        turns = next((point.rotation for point in self.control_points if point.rotation in ("CW", "CC")), "")
        return f"{angles[0]:g}-{angles[-1]:g} {turns}" if turns else f"{angles[0]:g}"

    def aperture_cm2(self, point: ControlPoint) -> float | None:
        """Area that leaves and jaws leave open at a control point, in the isocentre plane; None where no leaves are known."""
        if self.leaf_kind is None or self.boundaries_mm is None or point.leaves_mm is None:
            return None
        along, across = LEAVES[self.leaf_kind]
        jaws = point.jaws_mm or {}
        low, high = jaws.get(along, (-np.inf, np.inf))
        opening = np.clip(np.minimum(point.leaves_mm[1], high) - np.maximum(point.leaves_mm[0], low), 0, None)
        low, high = jaws.get(across, (-np.inf, np.inf))
        width = np.clip(np.minimum(self.boundaries_mm[1:], high) - np.maximum(self.boundaries_mm[:-1], low), 0, None)
        return float((opening * width).sum()) / 100

    def mean_aperture_cm2(self) -> float | None:
        """Mean open area over the monitor units: that between two control points is the mean of theirs; None where it isn't known."""
        weighted, total = 0.0, 0.0
        for first, second in zip(self.control_points, self.control_points[1:], strict=False):
            if first.meterset_weight is None or second.meterset_weight is None:
                return None
            given = second.meterset_weight - first.meterset_weight
            if given <= 0:
                continue
            areas = (self.aperture_cm2(first), self.aperture_cm2(second))
            if areas[0] is None or areas[1] is None:
                return None
            weighted, total = weighted + given * (areas[0] + areas[1]) / 2, total + given
        return weighted / total if total else None


def read_beams(plan: Dataset) -> tuple[Beam, ...]:
    """Return the treatment beams of an RTPLAN in its order; those for set-up and images are left out."""
    metersets: dict[int, float | None] = {}
    groups = _items(plan, "FractionGroupSequence")
    if len(groups) == 1:  # of several groups a beam may have several
        for reference in _items(groups[0], "ReferencedBeamSequence"):
            if (named := number(reference, "ReferencedBeamNumber")) is not None:
                metersets[int(named)] = number(reference, "BeamMeterset")
    return tuple(
        _beam(beam, metersets)
        for beam in _items(plan, "BeamSequence")
        if text(beam, "TreatmentDeliveryType").upper() in TREATMENT
    )


def _beam(beam: Dataset, metersets: Mapping[int, float | None]) -> Beam:
    named = number(beam, "BeamNumber")
    kinds: list[tuple[str | None, NDArray[np.float64] | None]] = [
        (named_kind, numbers(device, "LeafPositionBoundaries"))
        for device in _items(beam, "BeamLimitingDeviceSequence")
        if (named_kind := text(device, "RTBeamLimitingDeviceType").upper()).startswith("MLC")
    ]
    kind, boundaries = kinds[0] if len(kinds) == 1 else (None, None)
    if kind not in LEAVES or boundaries is None or len(boundaries) < 2 or (np.diff(boundaries) <= 0).any():
        kind, boundaries = None, None
    return Beam(
        number=None if named is None else int(named),
        radiation=text(beam, "RadiationType").upper(),
        meterset=None if named is None else metersets.get(int(named)),
        final_weight=number(beam, "FinalCumulativeMetersetWeight"),
        leaf_kind=kind,
        boundaries_mm=boundaries,
        control_points=tuple(
            _control_points(
                _items(beam, "ControlPointSequence"), kind, 0 if boundaries is None else len(boundaries) - 1
            )
        ),
    )


def _control_points(items: Iterable[Dataset], kind: str | None, pairs: int) -> Iterator[ControlPoint]:
    """The control points, each with what those before it state and it does not (PS3.3 C.8.8.14.5)."""
    point = ControlPoint()
    for item in items:
        jaws, leaves = dict(point.jaws_mm or {}), point.leaves_mm
        for device in _items(item, "BeamLimitingDevicePositionSequence"):
            name, positions = text(device, "RTBeamLimitingDeviceType").upper(), numbers(device, "LeafJawPositions")
            if name in JAWS:
                jaws.pop(JAWS[name], None)
                if positions is not None and len(positions) == 2:
                    jaws[JAWS[name]] = (float(positions[0]), float(positions[1]))
            elif name == kind:
                leaves = positions.reshape(2, pairs) if positions is not None and len(positions) == 2 * pairs else None
        stated = {
            "gantry_deg": number(item, "GantryAngle"),
            "collimator_deg": number(item, "BeamLimitingDeviceAngle"),
            "couch_deg": number(item, "PatientSupportAngle"),
            "energy": number(item, "NominalBeamEnergy"),
        }
        known = {name: value for name, value in stated.items() if value is not None}
        point = replace(
            point,
            rotation=text(item, "GantryRotationDirection").upper() or point.rotation,
            meterset_weight=number(item, "CumulativeMetersetWeight"),
            jaws_mm=jaws or None,
            leaves_mm=leaves,
            **known,
        )
        yield point


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    found = dataset.get(keyword)
    return [item for item in found if isinstance(item, Dataset)] if isinstance(found, Sequence) else []


@dataclass(frozen=True)
class BeamFacts:
    """What the beams of a plan are like, all together; None where a plan does not say.

    `meterset_mu` is that of one fraction, `gantry_deg` and the like have a value for each beam in its order, and `mean_aperture_cm2`
    is weighted by the monitor units of the beams.
    """

    beams: int
    arcs: int
    gantry_deg: str
    collimator_deg: str
    couch_deg: str
    energy: str
    control_points: int
    meterset_mu: float | None
    mlc_leaf_pairs: int | None
    mean_aperture_cm2: float | None

    @classmethod
    def of(cls, beams: Sequence[Beam]) -> BeamFacts | None:
        """The facts of beams; None without any."""
        if not beams:
            return None
        metersets = [beam.meterset for beam in beams]
        known = [value for value in metersets if value is not None]
        pairs = {beam.pairs for beam in beams}
        areas = [beam.mean_aperture_cm2() for beam in beams]
        whole = len(known) == len(beams)
        mean = None
        if whole and sum(known) > 0 and all(area is not None for area in areas):
            mean = sum(mu * (area or 0.0) for mu, area in zip(known, areas, strict=True)) / sum(known)
        return cls(
            beams=len(beams),
            arcs=sum(beam.is_arc for beam in beams),
            gantry_deg=", ".join(beam.gantry() or "?" for beam in beams),
            collimator_deg=_each(point.collimator_deg for point in _firsts(beams)),
            couch_deg=_each(point.couch_deg for point in _firsts(beams)),
            energy=", ".join(sorted({_energy(beam) for beam in beams})),
            control_points=sum(len(beam.control_points) for beam in beams),
            meterset_mu=sum(known) if whole else None,
            mlc_leaf_pairs=pairs.pop() if len(pairs) == 1 else None,
            mean_aperture_cm2=mean,
        )


def _firsts(beams: Sequence[Beam]) -> Iterator[ControlPoint]:
    return (beam.control_points[0] if beam.control_points else ControlPoint() for beam in beams)


def _each(values: Iterable[float | None]) -> str:
    return ", ".join("?" if value is None else f"{value:g}" for value in values)


def _energy(beam: Beam) -> str:
    energies = {point.energy for point in beam.control_points if point.energy is not None}
    unit = {"PHOTON": "MV"}.get(beam.radiation, "MeV")
    return f"{energies.pop():g} {unit}" if len(energies) == 1 else "?"


COLUMNS = ("beam", "gantry_deg", "collimator_deg", "couch_deg", "meterset_mu", "x1_mm", "x2_mm", "y1_mm", "y2_mm")
"""First columns of `control_point_table`; the positions of the leaves of bank 1 and bank 2 in mm follow."""


def control_point_table(beams: Sequence[Beam]) -> NDArray[np.float32]:
    """All control points as rows of COLUMNS and the leaves, NaN where a plan does not say; (control points, columns).

    The meterset is cumulative within its beam. Beams with fewer leaves than others have NaN after theirs.
    """
    most = max((beam.pairs or 0 for beam in beams), default=0)
    rows = []
    for place, beam in enumerate(beams, start=1):
        for point in beam.control_points:
            leaves = np.full((2, most), np.nan)
            if point.leaves_mm is not None:
                leaves[:, : point.leaves_mm.shape[1]] = point.leaves_mm
            given = None
            if beam.meterset is not None and beam.final_weight and point.meterset_weight is not None:
                given = beam.meterset * point.meterset_weight / beam.final_weight
            jaws = point.jaws_mm or {}
            first = [point.gantry_deg, point.collimator_deg, point.couch_deg, given]
            sides = [*jaws.get("X", (None, None)), *jaws.get("Y", (None, None))]
            rows.append([place, *(np.nan if value is None else value for value in (*first, *sides)), *leaves.ravel()])
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(COLUMNS) + 2 * most)
