"""Which files make a case of the lumbar spine: of each study the one sagittal T2 series, and the points set on it.

This is decided before de-identification, which takes SeriesDescription away.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from med_assets.dicom.mr import T2_ECHO_MS, T2_REPETITION_MS, t2_weighted
from med_assets.intake.grouping import referring
from med_assets.program import RawCase, Refusal

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.dicom.discover import Instance

SAGITTAL_DEGREES = 30.0
"""How far the slice normal of a sagittal series may be from left-right."""

POINTS = "RTSTRUCT"


def is_sagittal(one: "Instance") -> bool | None:
    """Whether the slice normal is within 30 degrees of left-right; None where the image says no orientation."""
    if not one.orientation:
        return None
    normal = np.cross(one.orientation[:3], one.orientation[3:])
    length = float(np.linalg.norm(normal))
    return length > 0 and abs(float(normal[0])) / length >= math.cos(math.radians(SAGITTAL_DEGREES))


def described(one: "Instance") -> bool:
    """Whether the description names a sagittal T2 series: it has "sag" and "t2" in it."""
    words = one.description.lower()
    return "sag" in words and "t2" in words


def shown(one: "Instance") -> list["Instance"]:
    """Return an image as each kind of its frames shows it: one of a single-frame image."""
    return [
        replace(
            one,
            orientation=kind.orientation,
            echo_time_ms=kind.echo_time_ms,
            repetition_time_ms=kind.repetition_time_ms,
        )
        for kind in one.weightings
    ] or [one]


def sagittal_t2(frame: "Dataset") -> bool:
    """Whether one frame is sagittal and, where its echo time is stated, T2-weighted: of several volumes that one is taken."""
    from med_assets.dicom.discover import describe

    one = describe(frame)
    return is_sagittal(one) is True and (one.echo_time_ms is None or one.echo_time_ms >= T2_ECHO_MS)


def candidates(series: Mapping[str, Sequence["Instance"]]) -> tuple[list[str], str, str]:
    """UIDs of the series that can be the sagittal T2 of a study, or none and code and message of why.

    Those that are described so and not stored otherwise; where there are none, those that are sagittal and T2-weighted by
    their headers. The first image of a series in order of SOP instance UIDs
    decides, and any frame of a multi-frame one.
    """
    first = {uid: shown(min(slices, key=lambda one: one.sop_instance_uid)) for uid, slices in series.items()}
    named = [uid for uid, ones in first.items() if described(ones[0])]
    found = [uid for uid in named if any(is_sagittal(one) is not False for one in first[uid])]
    found = found or [uid for uid, ones in first.items() if any(is_sagittal(one) and t2_weighted(one) for one in ones)]
    if found:
        return found, "", ""
    if named:
        text = f"expected sagittal slices in the series described as sagittal T2, got another orientation in all {len(named)}; send the sagittal series"
        return [], "not_sagittal", text
    sagittal = sum(any(is_sagittal(one) for one in ones) for ones in first.values())
    text = (
        f"expected a sagittal T2 series, by its description or by orientation and times (echo {T2_ECHO_MS:g} ms or more, "
        f"repetition {T2_REPETITION_MS:g} ms or more), got {len(series)} MR series, {sagittal} of them sagittal; send it"
    )
    return [], "no_sagittal_t2", text


def group(instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
    """Group instances into a case per study, known by its patient and its study; one without points is to be predicted.

    Of several sagittal T2 series the one that has points is taken, then the one of most slices, of the lowest series
    number, and of the first UID. Refusals: no_sagittal_t2, not_sagittal, several_point_sets, missing_patient_id,
    points_without_series, other_series, wrong_modality.
    """
    studies: dict[str, dict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    for one in instances:
        if one.modality == "MR":
            studies[one.study_uid][one.series_uid].append(one)
    marks = [one for one in instances if one.modality == POINTS]
    cases, refusals = [], []
    used: set[str] = set()
    for study, series in sorted(studies.items()):
        everything = [one for slices in series.values() for one in slices]
        patient = everything[0].patient_id
        found, code, text = candidates(series)
        whole = [*everything, *_points_of(everything, marks, alone=False)]
        if found:
            alone = len(studies) == len(found) == 1
            linked = {uid: _points_of(series[uid], marks, alone) for uid in found}
            chosen = min(found, key=lambda uid: _preference(series[uid], linked[uid]))
            whole = [*series[chosen], *linked[chosen]]
            if len(linked[chosen]) > 1:
                code = "several_point_sets"
                text = f"expected at most one RTSTRUCT with the points of a series, got {len(linked[chosen])}; send the one that counts"
        if not patient.strip():
            code = "missing_patient_id"
            text = "expected a PatientID, got none; without it splits can't keep a patient together"
        used |= {one.sop_instance_uid for one in whole}
        if code:
            refusals.append(Refusal(code, text, len(whole), patient, study))
        else:
            cases.append(RawCase(patient, study, tuple(whole)))
    return cases, refusals + _left([one for one in instances if one.sop_instance_uid not in used])


def _points_of(slices: Sequence["Instance"], marks: Sequence["Instance"], alone: bool) -> list["Instance"]:
    targets, frame = {one.sop_instance_uid for one in slices}, slices[0].frame_of_reference_uid
    return referring(marks, targets, frame, alone)


def _preference(slices: Sequence["Instance"], points: Sequence["Instance"]) -> tuple[bool, int, float, str]:
    number = slices[0].series_number
    return not points, -len(slices), math.inf if number is None else number, slices[0].series_uid


def _left(instances: Sequence["Instance"]) -> list[Refusal]:
    """One refusal for each kind of what is in no case."""
    reasons = {
        "MR": ("other_series", "MR images of other series than the sagittal T2 that was taken; they are not used"),
        POINTS: ("points_without_series", "structure sets that belong to no series taken; send the images with them"),
    }
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for one in instances:
        counts[reasons.get(one.modality, ("wrong_modality", "instances of other kinds; they are not used"))] += 1
    expected = "expected a sagittal T2 series of each study and its points"
    return [Refusal(code, f"{expected}, got also {n} {what}", n) for (code, what), n in sorted(counts.items())]
