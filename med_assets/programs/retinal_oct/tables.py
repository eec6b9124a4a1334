"""Tables of the report: the confusion matrix and the scores of each class."""

from typing import TYPE_CHECKING

from med_assets.program import ReportTable
from med_assets.programs.retinal_oct.score import CLASS_NAMES, pooled, wide
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.records import CaseScore

if TYPE_CHECKING:
    import pandas as pd


def tables(rows: "pd.DataFrame") -> list[ReportTable]:
    """All tables of the program, from the scores of one model on one split."""
    scores = [CaseScore.of({str(name): value for name, value in row.items()}) for row in rows.to_dict("records")]
    table = wide(scores)
    if table.empty:
        return []
    return [confusion_table(table), class_table(scores, table), calibration_table(scores)]


def calibration_table(scores: list[CaseScore]) -> ReportTable:
    """Agreement of ordered classes, and how far probabilities can be trusted, with n and intervals."""
    import pandas as pd

    wanted = {"weighted_kappa": "weighted kappa", "calibration_error": "calibration error", "brier": "Brier score"}
    shown = [
        {
            "score": wanted[one.metric],
            "value": "" if one.value is None else f"{one.value:.3f}",
            "95 % interval": "" if one.low is None else f"[{one.low:.3f}, {one.high:.3f}]",
            "cases": one.n,
            "what it is": one.convention,
        }
        for one in pooled(scores)
        if one.metric in wanted
    ]
    text = "Over all cases; 95 % bootstrap intervals over patients within each class."
    return ReportTable("Agreement and calibration", text, pd.DataFrame(shown))


def confusion_table(table: "pd.DataFrame") -> ReportTable:
    """How often each true class was predicted as which."""
    import pandas as pd

    counts = pd.crosstab(table["y_true"], table["y_pred"]).reindex(
        index=range(len(CLASSES)), columns=range(len(CLASSES)), fill_value=0
    )
    shown = pd.DataFrame(counts.to_numpy(), columns=[f"predicted {name}" for name in CLASSES])
    shown.insert(0, "true class", list(CLASSES))
    shown["cases"] = counts.sum(axis=1).to_numpy()
    return ReportTable("Confusion matrix", "Rows are true classes, columns predicted ones.", shown)


def class_table(scores: list[CaseScore], table: "pd.DataFrame") -> ReportTable:
    """F1 and area under the ROC curve of each class and of all, with intervals."""
    import pandas as pd

    found = {(one.metric, one.subject): one for one in pooled(scores)}

    def cell(metric: str, subject: str) -> str:
        one = found.get((metric, subject))
        if one is None or one.value is None:
            return ""
        return f"{one.value:.2f}" + ("" if one.low is None else f" [{one.low:.2f}, {one.high:.2f}]")

    shown = [
        {
            "class": label,
            "cases": int((table["y_true"] == index).sum()),
            "F1": cell("f1", name),
            "AUROC": cell("auroc", name),
        }
        for index, (label, name) in enumerate(zip(CLASSES, CLASS_NAMES, strict=True))
    ]
    shown.append(
        {
            "class": "mean over classes",
            "cases": len(table),
            "F1": cell("macro_f1", "all"),
            "AUROC": cell("auroc", "all"),
        }
    )
    shown.append({"class": "weighted by cases", "cases": len(table), "F1": cell("weighted_f1", "all"), "AUROC": ""})
    shown.append({"class": "accuracy", "cases": len(table), "F1": cell("accuracy", "all"), "AUROC": ""})
    text = "Each class against the rest; 95 % bootstrap intervals over patients within each class."
    return ReportTable("Classes", text, pd.DataFrame(shown))
