"""Tables of the report: each case's two Dices, volumes and distances, and its lesions, of one model on one split."""

from typing import TYPE_CHECKING

from med_assets.program import ReportTable
from med_assets.programs.lung_ct import lesion_sizes
from med_assets.programs.lung_ct.score import TRAINING_GRID_DICE

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 50
"""Most cases of a table, the worst; all are in the lake."""


def tables(rows: "pd.DataFrame") -> list[ReportTable]:
    """All tables of the program."""
    return [per_case(rows), lesions(rows), lesion_sizes.table(rows)]


def per_case(rows: "pd.DataFrame") -> ReportTable:
    """Formal and training-time Dice, surfaces and volumes of each case, the lowest formal Dice first."""
    import pandas as pd

    table = []
    for case_id, group in _sorted(rows):
        volume = _row(group, "volume")
        table.append(
            {
                "case": case_id,
                "Dice": _text(group, "dice", 3),
                "HD95, mm": _text(group, "hd95", 1),
                "surface Dice": _text(group, "surface_dice", 3),
                "true, ml": _number(volume["truth"] if volume is not None else None, 2),
                "predicted, ml": _number(volume["prediction"] if volume is not None else None, 2),
                "Dice on the training grid": _text(group, TRAINING_GRID_DICE, 3),
            }
        )
    text = (
        "The target in each case, the lowest Dice first. Dice, HD95 and surface Dice are formal: on the scanner's own grid. "
        f"{_convention(rows, 'surface_dice')} The Dice on the training grid is what validation during training shows, "
        "another number. Empty where undefined: a case without the target."
    )
    columns = ["case", "Dice", "HD95, mm", "surface Dice", "true, ml", "predicted, ml", "Dice on the training grid"]
    return ReportTable("The target, case by case", text, pd.DataFrame(table[:SHOWN], columns=columns))


def lesions(rows: "pd.DataFrame") -> ReportTable:
    """Lesions of each case: how many there are, were predicted, were found, and false positives; then their sum."""
    import pandas as pd

    table = []
    true_all = found_all = predicted_all = false_all = 0
    for case_id, group in _sorted(rows):
        count = _row(group, "lesions")
        if count is None:
            continue
        true, predicted = int(count["truth"]), int(count["prediction"])
        share, false = _value(group, "lesion_sensitivity"), int(_value(group, "false_positives_per_scan") or 0)
        found = round((share or 0.0) * true)
        table.append(
            {"case": case_id, "lesions": true, "found": found, "predicted": predicted, "false positives": false}
        )
        true_all, found_all = true_all + true, found_all + found
        predicted_all, false_all = predicted_all + predicted, false_all + false
    table = table[:SHOWN]
    if table:
        table.append(
            {
                "case": "all", "lesions": true_all, "found": found_all, "predicted": predicted_all,
                "false positives": false_all,
            }
        )  # fmt: skip
    text = f"Lesions of the target. {_convention(rows, 'lesion_sensitivity')}"
    columns = ["case", "lesions", "found", "predicted", "false positives"]
    return ReportTable("Lesions", text, pd.DataFrame(table, columns=columns))


def _sorted(rows: "pd.DataFrame") -> "list[tuple[str, pd.DataFrame]]":
    groups = [(str(case_id), group) for case_id, group in rows.groupby("case_id", sort=True)]

    def order(item: "tuple[str, pd.DataFrame]") -> float:
        dice = _value(item[1], "dice")
        return 2.0 if dice is None else dice

    return sorted(groups, key=order)


def _row(group: "pd.DataFrame", metric: str) -> "pd.Series | None":
    found = group[group["metric"] == metric]
    return found.iloc[0] if len(found) else None


def _value(group: "pd.DataFrame", metric: str) -> float | None:
    import pandas as pd

    row = _row(group, metric)
    return None if row is None or pd.isna(row["value"]) else float(row["value"])


def _text(group: "pd.DataFrame", metric: str, digits: int) -> str:
    return _number(_value(group, metric), digits)


def _number(value: float | None, digits: int) -> str:
    import pandas as pd

    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _convention(rows: "pd.DataFrame", metric: str) -> str:
    found = rows.loc[rows["metric"] == metric, "convention"]
    return f"{metric}: {found.iloc[0]}." if len(found) else ""
