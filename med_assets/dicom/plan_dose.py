"""The dose of a whole plan, as one object states it or as the sum of the doses of all its beams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset

from med_assets.dicom.elements import number, text
from med_assets.dicom.geometry import Volume
from med_assets.dicom.rtbeams import read_beams
from med_assets.dicom.rtdose import BEAM, PLAN, read_dose
from med_assets.errors import CaseRejected


def read_plan_dose(doses: Sequence[Dataset], plan: Dataset | None) -> Volume:
    """Return the dose of a plan in Gy: that of its one RTDOSE of the whole plan, beside which doses of beams do not count; else the sum of
    those of its beams, when each beam is there once and all are on one grid.

    Raises `CaseRejected`: "several_doses", "dose_not_plan_sum" where a beam is missing, and those of `read_dose`.
    """
    kinds = [text(dose, "DoseSummationType").upper() for dose in doses]
    whole = [dose for dose, kind in zip(doses, kinds, strict=True) if kind == PLAN]
    others = [kind for kind in kinds if kind not in (PLAN, BEAM)]
    if len(whole) > 1 or (whole and others):
        raise CaseRejected(
            "several_doses", f"expected one RTDOSE of the whole plan, got {len(doses)}; send the one that was treated"
        )
    if whole:
        return read_dose(whole[0])
    if others or plan is None:
        return read_dose(doses[kinds.index(others[0])] if others else doses[0])
    return _sum_of_beams(doses, plan)


def _sum_of_beams(doses: Sequence[Dataset], plan: Dataset) -> Volume:
    wanted = {beam.number for beam in read_beams(plan) if beam.number is not None and beam.meterset != 0}
    if len(plan.get("FractionGroupSequence") or ()) != 1 or not wanted:
        raise _incomplete("a plan of one fraction group that names its beams", "another or none")
    beams = [sorted(_beams_of(dose)) for dose in doses]
    counts = Counter(beam for of_dose in beams for beam in of_dose)
    if counts != Counter(wanted):
        missing, twice = len(wanted - counts.keys()), sum(count > 1 for count in counts.values())
        stray = len(counts.keys() - wanted)
        raise _incomplete(
            f"the dose of each of the plan's {len(wanted)} beams once",
            f"{missing} missing, {twice} several times, and {stray} of no beam that is treated",
        )
    volumes = [
        read_dose(dose, BEAM) for _, dose in sorted(zip(beams, doses, strict=True), key=lambda of_dose: of_dose[0])
    ]
    first, *rest = volumes
    if any(not volume.geometry.same_grid(first.geometry) for volume in rest):
        raise _incomplete("the doses of all beams on one grid", "several grids")
    total = np.zeros(first.array.shape)
    for volume in volumes:
        total += volume.array
    return replace(first, array=total.astype(np.float32))


def _beams_of(dose: Dataset) -> Iterator[int]:
    """Numbers of the beams that a dose is of."""
    for plan in dose.get("ReferencedRTPlanSequence") or ():
        for group in plan.get("ReferencedFractionGroupSequence") or ():
            for beam in group.get("ReferencedBeamSequence") or ():
                if (named := number(beam, "ReferencedBeamNumber")) is not None:
                    yield int(named)


def _incomplete(expected: str, got: str) -> CaseRejected:
    return CaseRejected(
        "dose_not_plan_sum",
        f"Expected {expected}; got {got}. Doses of beams are added only when they are a whole plan: export the dose of the whole plan.",
    )
