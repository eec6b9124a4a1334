"""The champion: the promoted checkpoint, which changes only through a written gate, and its monitoring per batch."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.files import digest, read_json
from med_assets.metrics.bootstrap import Interval, paired_difference
from med_assets.program import Metric
from med_assets.settings import Workspace
from med_assets.stages.dataset import cases_of
from med_assets.stages.evaluation import SEED, score_cases
from med_assets.stages.result import StageResult, accepted

SPLIT = "val"
"""Split that decides. The test split is reported and never chooses."""


Values = dict[str, tuple[str, dict[tuple[str, str], float | None]]]
"""By case id: the patient, and the value of each (metric, subject)."""


def _values(ws: Workspace, program_name: str, checkpoint: str) -> Values:
    """Scores of a checkpoint on today's deciding cases; what was scored before comes from the store."""
    cases = [case for case in cases_of(ws, program_name) if case["split"] == SPLIT]
    scores, _, _ = score_cases(ws, program_name, checkpoint, cases)
    patients = {case["case_id"]: case["patient_id"] for case in cases}
    return {
        case_id: (patients[case_id], {(row["metric"], row["subject"]): row["value"] for row in rows})
        for case_id, rows in scores.items()
    }


def _compare(ours: Values, theirs: Values, metric: Metric) -> Interval:
    """Paired difference ours - theirs over the shared cases, positive when ours is worse."""
    sign, key = (1 if metric.lower_is_better else -1), (metric.name, metric.subject)
    shared = sorted(ours.keys() & theirs.keys())

    def signed(side: Values) -> list[float | None]:
        found = [side[case_id][1].get(key) for case_id in shared]
        return [None if value is None else sign * value for value in found]

    return paired_difference(signed(ours), signed(theirs), SEED, groups=[ours[case_id][0] for case_id in shared])


def current(ws: Workspace, program_name: str) -> dict[str, Any] | None:
    """The champion's row, or None before the first promotion."""
    rows = ws.lake.rows("champions", program_name)
    return rows[-1] if rows else None


def best_candidate(ws: Workspace, program_name: str) -> dict[str, Any] | None:
    """The evaluated experiment, the baseline aside, with the best mean of the primary metric on the deciding split."""
    chosen = program.get(program_name)
    sign, key = (
        (1 if chosen.primary_metric.lower_is_better else -1),
        (chosen.primary_metric.name, chosen.primary_metric.subject),
    )
    rows = [
        row
        for row in ws.lake.rows("evaluation", program_name)
        if row["split"] == SPLIT
        and (row["metric"], row["subject"]) == key
        and row["mean"] is not None
        and row["experiment"] != chosen.baseline
    ]
    return min(rows, key=lambda row: (sign * row["mean"], row["experiment"]), default=None)


def decide(ws: Workspace, program_name: str) -> dict[str, Any]:
    """Apply the gate to the best challenger: promoted or not, the reason, and the paired numbers it rests on.

    The challenger must beat the champion (before the first promotion, the baseline) on the same validation cases: the upper
    end of the interval of the paired difference must lie beyond the margin, and no guarded metric may be worse on average.
    """
    chosen = program.get(program_name)
    rule = program.config(program_name).get("promotion", {})
    margin, guard, least = (
        float(rule.get("margin", 0.0)),
        float(rule.get("guard_margin", 0.0)),
        int(rule.get("min_cases", 2)),
    )
    verdict: dict[str, Any] = {
        "program": program_name,
        "challenger": None,
        "checkpoint": None,
        "reference": None,
        "promoted": False,
    }
    verdict |= {"refused": False, "mean": None, "low": None, "high": None, "n": 0}
    best, holder = best_candidate(ws, program_name), current(ws, program_name)
    if best is None:
        return verdict | {"reason": "no experiment has a validation score yet"}
    verdict |= {"challenger": best["experiment"], "checkpoint": best["checkpoint"]}
    if holder and holder["checkpoint"] == best["checkpoint"]:
        return verdict | {"reason": f"{best['experiment']} is the champion and still the best"}
    if holder is None and chosen.baseline and not ws.lake.rows("checkpoints", f"{program_name}/{chosen.baseline}"):
        return verdict | {
            "refused": True,
            "reason": f"expected the baseline {chosen.baseline} trained, to compare with; train it first",
        }
    if holder is None and chosen.baseline is None:
        return verdict | {
            "promoted": True,
            "reason": f"{best['experiment']} is the first, and the program has no baseline to beat",
        }
    reference = holder or ws.lake.rows("checkpoints", f"{program_name}/{chosen.baseline}")[0]
    ours = _values(ws, program_name, best["checkpoint"])
    theirs = _values(ws, program_name, reference["checkpoint"])
    found = _compare(ours, theirs, chosen.primary_metric)
    verdict |= {
        "reference": reference["experiment"],
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "n": found.n,
    }
    if found.n < least or found.high is None:
        return verdict | {
            "refused": True,
            "reason": f"expected at least {least} shared validation cases of two patients, got {found.n}",
        }
    numbers = (
        f"{best['experiment']} against {reference['experiment']}: {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] "
        f"{chosen.primary_metric.unit} (below 0 is better), n = {found.n}"
    )
    if found.high >= -margin:
        return verdict | {
            "refused": True,
            "reason": f"not better beyond doubt in {chosen.primary_metric.name}: {numbers}",
        }
    for metric in chosen.guarded_metrics:
        difference = _compare(ours, theirs, metric).mean
        if difference is None or difference > guard:
            text = "undefined" if difference is None else f"worse by {difference:.3f} {metric.unit} on average"
            return verdict | {"refused": True, "reason": f"guarded metric {metric.name} is {text}; {numbers}"}
    return verdict | {"promoted": True, "reason": f"better in {chosen.primary_metric.name}: {numbers}"}


def champion(ws: Workspace, program_name: str) -> StageResult:
    """Promote the best challenger if the gate lets it; the decision is kept either way."""
    verdict = decide(ws, program_name)
    if verdict["promoted"]:
        record = ws.lake.rows("checkpoints", f"{program_name}/{verdict['challenger']}")[0]
        row = {name: record[name] for name in ("program", "experiment", "checkpoint", "dataset_version", "n_train")}
        row |= {"promoted_at": datetime.now(UTC).isoformat(timespec="seconds"), "reason": verdict["reason"]}
        ws.lake.write("champions", program_name, [*ws.lake.rows("champions", program_name), row])
    columns = (
        "program",
        "challenger",
        "checkpoint",
        "reference",
        "promoted",
        "refused",
        "reason",
        "mean",
        "low",
        "high",
        "n",
    )
    ws.lake.write("promotions", program_name, [{name: verdict.get(name) for name in columns}])
    now = current(ws, program_name)
    return StageResult(
        data_version=digest(now["checkpoint"] if now else None),
        counts={"promoted": int(verdict["promoted"])},
        summary={
            "champion": now["experiment"] if now else None,
            "checkpoint": now["checkpoint"] if now else None,
            "decision": verdict,
        },
        tables={"history": ws.lake.read("champions", program_name)},
    )


def monitoring(ws: Workspace, program_name: str, batch: str) -> StageResult:
    """Score the champion on the accepted cases of one batch; cases it was trained on are marked."""
    partition, now = f"{program_name}/{batch}", current(ws, program_name)
    if now is None:
        ws.lake.write("monitoring", partition, [])
        return StageResult(
            digest("no champion"), {"new": 0, "reused": 0}, {"note": "there is no champion yet; nothing was scored"}
        )
    chosen = program.get(program_name)
    cases = accepted(ws.lake.rows("prepared_cases", partition))
    seen = {case["case_id"] for case in read_json(ws.store.fetch(now["checkpoint"]) / "provenance.json")["cases"]}
    scores, counts, failures = score_cases(ws, program_name, now["checkpoint"], cases)
    wanted = {(metric.name, metric.subject) for metric in (chosen.primary_metric, *chosen.guarded_metrics)}
    rows = [
        {
            "program": program_name,
            "batch": batch,
            "checkpoint": now["checkpoint"],
            "case_id": case_id,
            "seen_in_training": case_id in seen,
        }
        | {name: score[name] for name in ("metric", "subject", "value", "unit")}
        for case_id in sorted(scores)
        for score in scores[case_id]
        if (score["metric"], score["subject"]) in wanted
    ]
    ws.lake.write("monitoring", partition, rows)
    return StageResult(
        digest(rows), counts | {"failed": len(failures)}, {"failures": failures}, {"scores": pd.DataFrame(rows)}
    )
