"""One page of a plan against the predicted dose: dose wash, DVHs, clinical limits and criteria, gamma and dose score."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from med_assets.capabilities import ModelOfPage
from med_assets.metrics.score import Score
from med_assets.programs.rt_dose.kept import PREDICTION
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Site
from med_assets.reporting.dose_plots import dvh_lines, plot_dose
from med_assets.reporting.style import INK, MUTED, RULE, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TARGET_ROWS, ORGAN_ROWS = ("D98", "D50", "D2"), ("Dmean",)
"""Criteria that the table has of each target and organ beside the limits of the site."""

MISSED = "#fbe3d6"
"""Background of a value that misses its limit; a mark beside it says the same."""

COLUMNS = ("structure", "criterion", "limit", "planned", "predicted", "predicted - planned", "usual difference")
WIDTHS = (0.14, 0.12, 0.14, 0.13, 0.13, 0.17, 0.17)


@dataclass(frozen=True)
class Row:
    """One line of the table: a criterion of a structure, with the limit where it has one."""

    score: Score
    limit: str
    usual: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The text of each column."""
        score = self.score
        name = score.metric.partition("_")[2]
        difference = None if score.truth is None or score.prediction is None else score.prediction - score.truth
        return (
            score.subject, name, self.limit, _value(score.truth, score.unit, score.passed_truth),
            _value(score.prediction, score.unit, score.passed), _value(difference, score.unit, sign=True), self.usual,
        )  # fmt: skip


def write_page(
    prepared: Path, predicted: Path, scores: Sequence[Score], site: Site, model: ModelOfPage, path: Path
) -> Mapping[str, float | str | None]:
    """Write the page of one case to `path`, a PDF of one page of A4; returns what an index of all cases says of it.

    `scores` are those of the prediction against the plan. The case bears its pseudonymous id alone. Raises NoTruth for a case to predict.
    """
    case, prediction = PreparedCase.open(prepared), np.load(predicted / PREDICTION)
    planned, valid = np.asarray(case.dose), np.asarray(case.valid)
    masks = {name: case.mask(name) & valid for name in case.present}
    rows = list(_rows(scores, site, model))
    with tempfile.TemporaryDirectory() as folder, page(path) as sheet:
        wash = plot_dose(
            Path(folder) / "wash.png", np.asarray(case.ct), planned, prediction, case.spacing_mm, case.prescription_gy,
            outlines={name: masks[name] for name in site.targets if name in masks}, calculated=valid,
        )  # fmt: skip
        _head(sheet, case, site, model, scores)
        _picture(sheet, wash)
        axis = sheet.add_axes((0.085, 0.385, 0.66, 0.165))
        handles = dvh_lines(axis, planned, prediction, masks)
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_fontsize(7.5)
        axis.yaxis.label.set_fontsize(7.5)
        sheet.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.76, 0.555), fontsize=7)
        _table(sheet.add_axes((0.05, 0.055, 0.9, 0.295)), rows)
        sheet.text(0.05, 0.025, _note(model), fontsize=6.2, color=MUTED, va="bottom")
    return _index(case, scores, rows)


def _rows(scores: Sequence[Score], site: Site, model: ModelOfPage) -> Iterator[Row]:
    """The limits, then further criteria of targets and organs, of the structures that the case has."""
    limited = [score for score in scores if score.metric.startswith("limit_")]
    named = {(score.subject, score.metric.partition("_")[2]) for score in limited}
    limits = {(limit.structure, limit.metric): limit for limit in site.limits}
    for score in limited:
        limit = limits[score.subject, score.metric.partition("_")[2]]
        sign = "≥" if limit.bound == "min" else "≤"
        if score.truth is not None:
            yield Row(score, f"{sign} {limit.value:g} {limit.unit}", _usual(model, score))
    wanted = {(name, f"dvh_{one}") for name in site.targets for one in TARGET_ROWS}
    wanted |= {(name, f"dvh_{one}") for name in site.oars for one in ORGAN_ROWS}
    for score in scores:
        shown = (score.subject, score.metric) in wanted and score.truth is not None
        if shown and (score.subject, score.metric.partition("_")[2]) not in named:
            yield Row(score, "", _usual(model, score))


def _usual(model: ModelOfPage, score: Score) -> str:
    found = model.usual.get((f"dvh_{score.metric.partition('_')[2]}", score.subject))
    return "" if found is None else f"{found.mean_absolute:.2f} {score.unit} (n = {found.n})"


def _value(value: float | None, unit: str, passed: bool | None = None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    number = f"{value:+.2f}" if sign else f"{value:.2f}"
    shown = number if unit == "1" else f"{number} {unit}"
    return shown if passed is not False else f"{shown}  ✕"


def _head(sheet: "Figure", case: PreparedCase, site: Site, model: ModelOfPage, scores: Sequence[Score]) -> None:
    by_name = {(score.metric, score.subject): score.value for score in scores}
    gamma = [score for score in scores if score.metric.startswith("gamma_") and score.subject == "body"]
    rates = ", ".join(f"{one.metric} {_value(one.value, '%')}" for one in gamma)
    fractions = f" in {case.fractions} fractions" if case.fractions else ""
    synthetic = "   SYNTHETIC" if case.synthetic else ""
    sheet.text(0.05, 0.965, f"Plan and predicted dose: case {case.case_id}{synthetic}", fontsize=13, weight="bold")
    lines = (
        f"{site.title}; prescription {case.prescription_gy:g} Gy{fractions}; model {model.experiment}, {model.checkpoint[:27]}",
        f"body: dose score {_value(by_name.get(('openkbp_dose_score', 'body')), 'Gy')}, {rates}; "
        f"DVH score {_value(by_name.get(('openkbp_dvh_score', 'all')), 'Gy')}; same verdict on limits {_value(by_name.get(('limits_agreement', 'all')), '%')}",
    )
    for number, line in enumerate(lines):
        sheet.text(0.05, 0.947 - 0.016 * number, line, fontsize=7.5, color=INK)
    if model.trained_on_case:
        text = "The model was trained on this very plan: that they agree says little."
        sheet.text(0.05, 0.915, text, fontsize=7.5, weight="bold", color="#b3261e")


def _picture(sheet: "Figure", wash: Path) -> None:
    from matplotlib.image import imread

    axis = sheet.add_axes((0.05, 0.565, 0.9, 0.345))
    axis.imshow(imread(wash), interpolation="antialiased")
    axis.set_axis_off()


def _table(axis: "Axes", rows: Sequence[Row]) -> None:
    axis.set_axis_off()
    if not rows:
        axis.text(0, 0.9, "No structure with a limit or criterion has voxels with a planned dose.", fontsize=8)
        return
    shown = axis.table(
        [row.cells for row in rows], colLabels=COLUMNS, colWidths=WIDTHS, cellLoc="right", loc="upper left"
    )
    shown.auto_set_font_size(False)
    shown.set_fontsize(min(7.0, 170 / (len(rows) + 1)))
    for (line, column), cell in shown.get_celld().items():
        cell.set_height(min(0.055, 1.0 / (len(rows) + 1)))
        cell.set_edgecolor(RULE)
        cell.set_linewidth(0.5)
        if column < 2:
            cell.set_text_props(ha="left")
        if line == 0:
            cell.set_text_props(weight="bold", color=MUTED)
            continue
        score = rows[line - 1].score
        verdict = {3: score.passed_truth, 4: score.passed}.get(column)
        if verdict is False:
            cell.set_facecolor(MISSED)


def _note(model: ModelOfPage) -> str:
    usual = (
        "Usual difference: mean absolute difference of the model's predictions from the plans of n validation cases."
        if model.usual
        else "Usual differences are not known: the model was not evaluated."
    )
    return (
        f"✕ misses the limit. {usual} Definitions: docs/evaluation.md.\nResearch: a predicted dose says what comparable plans reached, "
        "and is no plan; whether a plan is treated is decided by people, with the tools that are cleared for it."
    )


def _index(case: PreparedCase, scores: Sequence[Score], rows: Sequence[Row]) -> dict[str, float | str | None]:
    by_name = {(score.metric, score.subject): score for score in scores}
    limited = [row for row in rows if row.limit]

    def names(chosen: Sequence[Row]) -> str:
        return ", ".join(f"{row.score.subject} {row.cells[1]}" for row in chosen)

    gamma = {
        f"{score.metric}, %": score.value
        for score in scores
        if score.metric.startswith("gamma_") and score.subject == "body"
    }
    better = [row for row in limited if row.score.passed_truth is False and row.score.passed]
    return {
        "prescription, Gy": case.prescription_gy,
        "dose score, Gy": by_name["openkbp_dose_score", "body"].value,
        "DVH score, Gy": by_name["openkbp_dvh_score", "all"].value,
        **gamma,
        "limits": float(len(limited)),
        "plan misses": names([row for row in limited if row.score.passed_truth is False]),
        "plan misses, prediction keeps": names(better),
    }
