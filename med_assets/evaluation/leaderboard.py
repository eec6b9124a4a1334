"""The leaderboard: all evaluated experiments side by side, and the differences between each two of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.evaluation.aggregates import INTERVAL, Aggregate, aggregate
from med_assets.evaluation.columns import COLUMNS
from med_assets.evaluation.comparison import SPLIT, paired, primary_by_case, primary_scores
from med_assets.evaluation.line import Line
from med_assets.evaluation.replicates import SPREAD, champion_label, replicates, spread
from med_assets.evaluation.scoring import recorded_scores
from med_assets.program import Metric
from med_assets.records import AggregateScore, Calibration, CaseConfidence, CaseScore, Champion, RunScore, SubgroupScore
from med_assets.settings import Settings
from med_assets.storage.escaping import csv, markdown
from med_assets.storage.files import digest, write_text
from med_assets.storage.result import StageResult

PAIRWISE = "Paired differences in the primary metric, first minus second, on the validation cases that both have; not corrected for their number. Intervals end at the greatest difference that the range of the metric allows."


@dataclass(frozen=True)
class Board:
    """The models of a program side by side, best first, and the comparisons of each two and of replicates."""

    program: str
    lines: tuple[Line, ...]
    champion: str | None
    """Name of the champion's line, if it is marked."""
    tables: Mapping[str, pd.DataFrame]

    @property
    def rows(self) -> list[dict[str, str | float | int | None]]:
        """The lines with the numbers of the deciding metrics."""
        return [line.columns() for line in self.lines]

    def plot(self, path: Path) -> dict[str, Path]:
        """Plot the lines in the primary metric on validation; none without a value."""
        from med_assets.reporting.plots import plot_leaderboard

        metric, table = program.get(self.program).primary_metric, pd.DataFrame(self.rows)
        prefix = f"{SPLIT} {metric.name} "
        drawn = table.rename(columns={prefix + value: value for value in ("mean", "low", "high", "n")})
        if table.empty or "mean" not in drawn:
            return {}
        path.parent.mkdir(parents=True, exist_ok=True)
        found = plot_leaderboard(
            path, drawn[["experiment", "mean", "low", "high", "n"]], unit=metric.shown_unit, metric=f"{metric.name} (validation)",
            lower_is_better=metric.lower_is_better, champion=self.champion,
        )  # fmt: skip
        return {"leaderboard": found}


def board(ws: Settings, program_name: str, champion: Champion | None = None) -> Board:
    """All evaluated experiments side by side, best first by the primary metric on validation, and every other seed.

    A `champion` is marked, and has a line of its own where its experiment was trained again since.
    """
    chosen, catalog = program.get(program_name), Catalog(ws, program_name)
    metrics = chosen.deciding_metrics
    aggregates = catalog.rows(AggregateScore)
    present = {row.checkpoint for row in aggregates}
    holder, held = _champion_scores(ws, program_name, champion, present) if champion else (None, [])
    seeds = replicates(ws, program_name)
    shown_too = {*present, *(row.checkpoint for row in held)}
    lines: dict[str, Line] = {}
    for row in aggregates:
        _add(lines, metrics, chosen.further_metrics, row.experiment, row.checkpoint, row)
    for pooled in aggregate(program_name, held):
        _add(lines, metrics, chosen.further_metrics, held[0].experiment, held[0].checkpoint, pooled)
    for one in seeds:
        for score in one.scores if one.checkpoint not in shown_too else ():
            _add(lines, metrics, chosen.further_metrics, one.label, score.checkpoint, score)
    ordered = _best_first(lines.values(), metrics[0])
    scored = primary_scores(ws, program_name, [line.experiment for line in ordered if line.checkpoint in present])
    if held and holder:
        scored[holder] = primary_by_case(program_name, held)
    names = [line.experiment for line in ordered if line.experiment in scored]
    over_seeds = spread(program_name, seeds)
    tables = {"leaderboard": _readable(catalog, ordered), "pairwise": pairwise(program_name, names, scored)}
    return Board(program_name, tuple(ordered), holder, tables | ({"replicates": over_seeds} if len(over_seeds) else {}))


def leaderboard(ws: Settings, program_name: str) -> StageResult:
    """All evaluated experiments side by side. Which of them is the champion is decided after it, and stands in the report."""
    found, catalog, folder = board(ws, program_name), Catalog(ws, program_name), ws.reports / program_name
    images = found.plot(folder / "plots" / "leaderboard.png")
    write_text(folder / "leaderboard.csv", csv(pd.DataFrame(found.rows)))
    over_seeds = found.tables.get("replicates")
    more = "" if over_seeds is None else f"\n{SPREAD}\n\n{markdown(over_seeds)}"
    text = f"{markdown(found.tables['leaderboard'])}\n{PAIRWISE}\n\n{markdown(found.tables['pairwise'])}{more}"
    write_text(folder / "leaderboard.md", text)
    primary = program.get(program_name).primary_metric
    return StageResult(
        # Covers every score: what reads the scores of all experiments depends on the leaderboard alone.
        data_version=digest(
            found.rows,
            *(
                catalog.content(each)
                for each in (AggregateScore, CaseScore, SubgroupScore, Calibration, CaseConfidence)
            ),
        ),
        counts={"experiments": len(found.lines)},
        summary={"sorted_by": f"{primary.name} on validation", "interval": INTERVAL},
        tables=dict(found.tables),
        images=images,
    )


def _add(
    lines: dict[str, Line],
    metrics: Sequence[Metric],
    further: Collection[tuple[str, str]],
    experiment: str,
    checkpoint: str,
    score: Aggregate | AggregateScore | RunScore,
) -> None:
    """Add a score to the line of its model, which may be new; scores that the leaderboard does not show are left out."""
    if any((score.metric, score.subject) == (metric.name, metric.subject) for metric in metrics):
        line = lines.setdefault(experiment, Line(experiment, checkpoint))
        line.scores[score.split, score.metric] = score
    elif (score.metric, score.subject) in further:
        line = lines.setdefault(experiment, Line(experiment, checkpoint))
        line.further[score.split, score.metric, score.subject] = score


def _best_first(lines: Collection[Line], metric: Metric) -> list[Line]:
    """Lines by the mean of a metric on validation; those without one come last."""
    sign = 1 if metric.lower_is_better else -1

    def rank(line: Line) -> tuple[bool, float, str]:
        found = line.scores.get((SPLIT, metric.name))
        mean = None if found is None else found.mean
        return mean is None, sign * (mean or 0.0), line.experiment

    return sorted(lines, key=rank)


def _champion_scores(
    ws: Settings, program_name: str, champion: Champion, present: Collection[str]
) -> tuple[str, list[CaseScore]]:
    """The champion's name in the leaderboard and, where its checkpoint is no experiment's present one, its recorded scores by case."""
    if champion.checkpoint in present or not ws.store.has(champion.checkpoint):
        return champion.experiment, []
    label = champion_label(champion.experiment)
    recorded = recorded_scores(ws, program_name, champion.experiment, champion.checkpoint, champion=True)
    return label, [replace(score, experiment=label) for score in recorded.rows]


def pairwise(program_name: str, names: Sequence[str], values: Mapping[str, Mapping[str, CaseScore]]) -> pd.DataFrame:
    """The paired difference in the primary metric of each two of `names`, on the validation cases that both have.

    `values` are those of `primary_scores`.
    """
    metric = program.get(program_name).primary_metric
    rows = []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            found = paired(metric, values[first], values[second])
            if found.mean is None:
                continue
            interval = (
                "no interval" if found.low is None or found.high is None else f"[{found.low:+.3f}, {found.high:+.3f}]"
            )
            differs = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
            rows.append(
                {
                    "first": first,
                    "second": second,
                    f"difference, {metric.label}": f"{found.mean:+.3f}",
                    "95 % interval": interval,
                }
                | {"n": str(found.n), "differs": "yes" if differs else "not shown"}
            )
    return pd.DataFrame(rows)


def _readable(catalog: Catalog, lines: Sequence[Line]) -> pd.DataFrame:
    """The leaderboard for people: of each line the cells of every column."""
    rows = []
    for line in lines:
        row = {"experiment": line.experiment}
        for column in COLUMNS:
            row |= column(catalog, line)
        rows.append(row)
    found = pd.DataFrame(rows).fillna("")
    return found.loc[:, [name for name in found if (found[name] != "").any()]]
