"""The tables about a data set, and pictures that are in it twice."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from med_assets.catalog import Case
from med_assets.program import Finding, ReportTable
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.similarity import CORRELATION, HASH_BITS, candidates, correlation
from med_assets.programs.breast_us.vocabulary import NORMAL
from med_assets.records import CaseVersion
from med_assets.records import PreparedCase as RefusedCase


def tables(cases: Sequence[Case], refused: Sequence[CaseVersion | RefusedCase]) -> list[ReportTable]:
    """Return the tables about the data: cases by data set and label in each split, and why others are not in."""
    import pandas as pd

    frame = pd.DataFrame([{**case.facts, "split": case.split, "patient_id": case.patient_id} for case in cases])
    rows = []
    if len(frame):
        frame["split"] = frame["split"].fillna("none")
        for (dataset, label), group in frame.groupby(["dataset", "label"], sort=True):
            counts = group["split"].value_counts()
            row = {"data set": dataset, "label": label, "images": len(group), "patients": group["patient_id"].nunique()}
            row |= {split: int(counts.get(split, 0)) for split in ("train", "val", "test", "external")}
            row["calibrated"] = int(group["pixel_mm"].notna().sum())
            rows.append(row)
    skipped = Counter(str(row.reason_code) for row in refused)
    return [
        ReportTable("Images", "By data set and label, and where their patients are.", pd.DataFrame(rows)),
        ReportTable(
            "Images left out", "How many are not in, by reason.",
            pd.DataFrame(sorted(skipped.items()), columns=["reason", "images"]),
        ),
    ]  # fmt: skip


def warnings(cases: Sequence[Case]) -> list[str]:
    """Return what makes scores of held-out cases doubtful: splits without normals or without calibration."""
    text = []
    for split in ("val", "test"):
        held = [case for case in cases if case.split == split]
        if held and not any(case.facts["label"] == NORMAL for case in held):
            text.append(f"none of {len(held)} {split} images is normal, so false alarms are not measured there")
    return text


def duplicates(cases: Sequence[Case], folder_of: Callable[[str], Path]) -> list[Finding]:
    """Return the pairs of images that are the same picture, exactly or nearly, each with both shown.

    A pair of two labels, or in two splits, blocks. A pair of one patient or in one split is reported and blocks nothing.
    """
    known = sorted((case for case in cases if case.facts.get("dhash")), key=lambda case: case.case_id)
    found, opened = [], dict[int, PreparedCase]()
    for one, other in candidates([str(case.facts["dhash"]) for case in known]):
        for index in (one, other):
            if index not in opened:
                opened[index] = PreparedCase.open(folder_of(known[index].artifact))
        alike = correlation(opened[one].image, opened[other].image)
        if alike >= CORRELATION:
            found.append(_finding(known[one], known[other], opened[one], opened[other], alike))
    return found


def _finding(a: Case, b: Case, first: PreparedCase, second: PreparedCase, alike: float) -> Finding:
    from med_assets.programs.breast_us.pictures import side_by_side

    splits = {case.split for case in (a, b)} - {None}
    wrong = [
        *(["in two splits"] if len(splits) > 1 else []),
        *(["with two labels"] if a.facts["label"] != b.facts["label"] else []),
    ]
    text = (
        f"cases {a.case_id} ({a.facts['label']}, {a.split or 'no split yet'}) and {b.case_id} ({b.facts['label']}, "
        f"{b.split or 'no split yet'}) are the same picture {' and '.join(wrong) or 'twice'}: correlation "
        f"{alike:.3f}, hashes within {HASH_BITS} bits of 64"
    )
    if wrong:
        text += "; withdraw the one that is not to count"
    shown = {
        f"{case.case_id}: {case.facts['label']}, {case.split or 'no split'}": opened.image
        for case, opened in ((a, first), (b, second))
    }
    return Finding(
        code="same_picture", text=text, cases=(a.case_id, b.case_id), blocking=bool(wrong),
        plot=partial(side_by_side, images=shown),
    )  # fmt: skip
