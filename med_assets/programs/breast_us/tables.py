"""Tables of the report: each image's scores, the lowest first, and images without a lesion."""

from typing import TYPE_CHECKING

from med_assets.program import ReportTable

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 50
"""Most images of a table, the worst; all are in the lake."""

COLUMNS = {
    "dice": "Dice", "iou": "IoU", "hd95_px": "HD95, px", "hd95_mm": "HD95, mm", "boundary_f": "boundary F",
    "sensitivity": "sensitivity", "specificity": "specificity", "calibration_error": "calibration error",
}  # fmt: skip


def tables(rows: "pd.DataFrame") -> list[ReportTable]:
    """All tables of the program."""
    wide = rows.pivot_table(index="case_id", columns="metric", values="value", dropna=False)
    return [lesions(wide), normals(wide)]


def lesions(wide: "pd.DataFrame") -> ReportTable:
    """Scores of the images with a lesion, the lowest Dice first."""
    found = wide[wide["dice"].notna()].sort_values(["dice"], kind="stable") if "dice" in wide else wide.iloc[:0]
    table = found.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS).round(3)
    table.insert(0, "image", table.index)
    text = "Images with a lesion, the lowest Dice first. HD95 is empty where nothing was predicted, in mm also without calibration."
    return ReportTable("Lesions, image by image", text, table.head(SHOWN).reset_index(drop=True))


def normals(wide: "pd.DataFrame") -> ReportTable:
    """Images without a lesion, and on how many something was predicted."""
    import pandas as pd

    seen = wide["normal_recognised"].dropna() if "normal_recognised" in wide else pd.Series(dtype=float)
    alarms = seen[seen == 0]
    rows = [
        ("images without a lesion", len(seen)),
        ("nothing predicted", int(seen.sum())),
        ("false alarms", len(alarms)),
    ]
    listed = f" False alarms: {', '.join(map(str, alarms.index[:SHOWN]))}." if len(alarms) else ""
    text = f"Images that a reader called normal; their Dice is undefined.{listed}"
    return ReportTable("Normals", text, pd.DataFrame(rows, columns=["what", "images"]))
