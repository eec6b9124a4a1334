"""The champion: the promoted checkpoint, which changes only through a written gate or by a person's rollback.

Every decision is kept: `promotions` holds a row per evaluated experiment each time its verdict changed, `champions` a row
per change of the champion, oldest first. The last row of `champions` is the champion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.dataset.stage import cases_of, dataset_version
from med_assets.errors import ArtifactMissing, ConfigurationError
from med_assets.evaluation.stage import SEED, score_cases
from med_assets.experiments import policies
from med_assets.experiments.configured import configuration_changed
from med_assets.experiments.policies import Promotion
from med_assets.launch.training import stored_checkpoint
from med_assets.metrics.multiple import holm
from med_assets.metrics.paired_test import ALPHA, PairedTest, paired_test
from med_assets.program import Metric
from med_assets.records import AggregateScore, Champion, Checkpoint, Verdict
from med_assets.settings import Workspace
from med_assets.storage.files import digest, read_json
from med_assets.storage.locks import alone
from med_assets.storage.provenance import used_cases
from med_assets.storage.result import StageResult
from med_assets.storage.versions import versioned

SPLIT = "val"
"""Split that decides. The test split is reported and never chooses."""

PROMOTED, BY_NAME, ROLLED_BACK = "promoted", "promoted by name", "rolled back"
"""What changed the champion: the gate alone, a person's wish that passed the gate, or a person's rollback."""

DECISION_COLUMNS = [
    "experiment", "labels", "against", "difference", "n", "p", "adjusted p", "detectable", "reason", "checkpoint",
]  # fmt: skip

Values = dict[str, dict[tuple[str, str], float | None]]
"""By case id the value of each (metric, subject)."""

TOO_FEW = "too few cases to promote"
"""How the reason of a promotion by the mean alone begins, in a demo with fewer patients than the gate asks for."""


@dataclass(frozen=True)
class Judged:
    """A checkpoint before the gate: the hash of its weights, what it was trained on, and its scores on deciding cases."""

    experiment: str
    checkpoint: str
    weights_sha256: str
    learned: frozenset[str]
    values: Values
    truths: Values = field(default_factory=dict)
    """By case id the true side of each (metric, subject), where it has one."""


def current(ws: Workspace, program_name: str) -> Champion | None:
    """The champion, or None before the first promotion."""
    return Catalog(ws, program_name).champion()


def shown(ws: Workspace, program_name: str) -> tuple[Champion | Checkpoint | None, bool]:
    """The checkpoint that people are shown, the champion or else the best candidate, and whether it is the champion."""
    if (now := current(ws, program_name)) is not None:
        return now, True
    best = best_candidate(ws, program_name)
    return (Catalog(ws, program_name).checkpoint(best.experiment) if best else None), False


def version(ws: Workspace, program_name: str) -> str:
    """Data version of the champion: it changes when the champion does."""
    now = current(ws, program_name)
    return digest(now["checkpoint"] if now else None)


def taken_back(ws: Workspace, program_name: str) -> dict[str, Champion]:
    """Checkpoints that were rolled back and not promoted again since, each with the rollback."""
    found: dict[str, Champion] = {}
    previous = None
    for row in Catalog(ws, program_name).champions():
        if row.action == ROLLED_BACK and previous is not None:
            found[previous.checkpoint] = row
        found.pop(row.checkpoint, None)
        previous = row
    return found


def candidates(ws: Workspace, program_name: str) -> list[AggregateScore]:
    """The evaluated experiments, the baseline aside, best first by the mean of the primary metric on the deciding split."""
    chosen = program.get(program_name)
    metric, sign = chosen.primary_metric, 1 if chosen.primary_metric.lower_is_better else -1
    rows = [
        row
        for row in Catalog(ws, program_name).rows(AggregateScore)
        if (row.split, row.metric, row.subject) == (SPLIT, metric.name, metric.subject)
        and row.mean is not None
        and row.experiment != chosen.baseline
    ]
    return sorted(rows, key=lambda row: (sign * (row.mean or 0.0), row.experiment))


def best_candidate(ws: Workspace, program_name: str) -> AggregateScore | None:
    """The first of the candidates, or None."""
    return next(iter(candidates(ws, program_name)), None)


def judged(ws: Workspace, program_name: str, row: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> Judged:
    """A checkpoint with its scores of these cases; what was scored before comes from the store."""
    record = read_json(stored_checkpoint(ws, program_name, row) / "provenance.json")
    scores, _, _ = score_cases(ws, program_name, row["checkpoint"], cases)
    return Judged(
        row["experiment"],
        row["checkpoint"],
        record["weights_sha256"],
        frozenset(case["case_id"] for case in used_cases(record) if case["split"] == "train"),
        *(
            {id: {(one["metric"], one["subject"]): one[side] for one in rows} for id, rows in scores.items()}
            for side in ("value", "truth")
        ),
    )


@dataclass(frozen=True)
class Comparison:
    """Paired difference in one metric, above 0 where the challenger is worse, and how many pairs only it lacks.

    `difference.p` is that of "not better by more than the margin".
    """

    metric: Metric
    difference: PairedTest
    n_lost: int

    def __str__(self) -> str:
        found = self.difference
        if found.mean is None:
            return f"{self.metric.name}: undefined, n = {found.n}"
        ends = "no interval" if found.low is None or found.high is None else f"[{found.low:+.3f}, {found.high:+.3f}]"
        p = "" if found.p is None else f", p = {found.p:.2g}"
        return f"{self.metric.name}: {found.mean:+.3f} {ends}{self.metric.after} (below 0 is better), n = {found.n}{p}"


def compare(
    ours: Judged,
    theirs: Judged,
    cases: Sequence[Mapping[str, Any]],
    metric: Metric,
    margin: float = 0.0,
    challengers: int = 1,
) -> Comparison:
    """Compare two models case by case, on the given cases that neither was trained on.

    The test is whether the challenger is better by more than `margin`, worse by less than it where the margin is negative.
    """
    sign, key = (1 if metric.lower_is_better else -1), (metric.name, metric.subject)
    fair = [case for case in cases if case["case_id"] not in ours.learned | theirs.learned]

    def signed(side: Judged) -> list[float | None]:
        found = [side.values.get(case["case_id"], {}).get(key) for case in fair]
        return [None if value is None else sign * value for value in found]

    first, second = signed(ours), signed(theirs)
    lost = sum(a is None and b is not None for a, b in zip(first, second, strict=True))
    groups = [case["patient_id"] for case in fair]
    classes = [ours.truths.get(case["case_id"], {}).get(key) for case in fair] if metric.by_class else None
    found = paired_test(
        first,
        second,
        SEED,
        groups=groups,
        strata=classes,
        margin=margin,
        challengers=challengers,
        bounds=metric.range,  # turned round or not, differences of its values have the same range
    )
    return Comparison(metric, found, lost)


@dataclass
class Contest:
    """One challenger of a decision: its verdict, what speaks against it, what the reference is called, and the comparisons."""

    verdict: dict[str, Any]
    objections: list[str]
    against: str = ""
    primary: Comparison | None = None
    guards: tuple[Comparison, ...] = ()


def _weigh(contests: Sequence[Contest], rule: Promotion, by_mean: bool) -> None:
    """Add to each contest what its numbers say, with p adjusted over all challengers of the decision."""
    adjusted = holm([each.primary.difference.p if each.primary else None for each in contests])
    for contest, p in zip(contests, adjusted, strict=True):
        if contest.primary is None:
            continue
        found = contest.primary.difference
        contest.verdict["p_adjusted"] = p
        few = found.n_patients < rule.min_cases
        if few and by_mean:
            contest.verdict["reason"] = (
                f"{TOO_FEW}: {found.n_patients} patients of at least {rule.min_cases}; this demo promotes by the "
                f"mean alone, which shows nothing; better mean than {contest.against} in {contest.primary}"
            )
            contest.objections += _objections_by_mean(rule, contest)
        else:
            contest.objections += _objections(rule, contest, few)


def _lost(contest: Contest) -> list[str]:
    assert contest.primary is not None
    return [
        f"{each.n_lost} validation cases have {each.metric.name} for {contest.against} only; "
        "evaluate the challenger again and see its failures"
        for each in (contest.primary, *contest.guards)
        if each.n_lost
    ]


def _objections(rule: Promotion, contest: Contest, few: bool) -> list[str]:
    """What the numbers say against the challenger."""
    primary, p = contest.primary, contest.verdict["p_adjusted"]
    assert primary is not None
    found = _lost(contest)
    unit, detectable = primary.metric.after, primary.difference.detectable
    could = "" if detectable is None else f"; so many could have shown a difference of {detectable:.3g}{unit}"
    if few or p is None:
        found.append(
            f"too few cases to promote: expected {rule.min_cases} patients whose validation cases both scored, two of each "
            f"class, got {primary.difference.n_patients}{could}"
        )
    elif p > ALPHA:
        wanted = f"better by more than {rule.margin:g}{unit}" if rule.margin else "better"
        found.append(
            f"not shown to be {wanted} than {contest.against} in {primary}; expected p of at most {ALPHA:g} over "
            f"{contest.verdict['challengers']} challengers, got {p:.2g}{could}"
        )
    for each in contest.guards:
        margin, guard = rule.guard_margins.get(each.metric.name, 0.0), each.difference
        if guard.identical and guard.n:
            continue
        if guard.p is None:
            found.append(f"guarded metric {each} has too few cases to be tested")
        elif guard.p > ALPHA:
            found.append(
                f"guarded metric {each}: may be worse by more than the margin of {margin:g}{each.metric.after}"
            )
    return found


def _objections_by_mean(rule: Promotion, contest: Contest) -> list[str]:
    """What the means say against the challenger, in a demo."""
    primary = contest.primary
    assert primary is not None
    found = _lost(contest)
    if primary.difference.mean is None or primary.difference.mean >= -rule.margin:
        found.append(f"no better mean than {contest.against} in {primary}")
    for each in contest.guards:
        margin, mean = rule.guard_margins.get(each.metric.name, 0.0), each.difference.mean
        if mean is None or mean > margin:
            found.append(f"guarded metric {each}: worse by more than the margin of {margin:g}{each.metric.after}")
    return found


def _verdict(
    ws: Workspace,
    program_name: str,
    rule: Promotion,
    row: Mapping[str, Any],
    reference: Judged | None,
    cases: Sequence[Mapping[str, Any]],
    challengers: int,
) -> Contest:
    """Labels and numbers of one of so many challengers, and what speaks against its promotion whatever its numbers."""
    chosen, objections = program.get(program_name), []
    verdict: dict[str, Any] = {
        "program": program_name,
        "challenger": row["experiment"],
        "checkpoint": row["checkpoint"],
        "reference": reference.experiment if reference else None,
        "reference_checkpoint": reference.checkpoint if reference else None,
        "dataset_version": dataset_version(ws.lake.rows("dataset", program_name)),
        **dict.fromkeys(("promoted", "refused", "recommended", "improved", "regressed", "matches_reference"), False),
        **dict.fromkeys(("reason", "mean", "low", "high", "p", "p_adjusted", "detectable", "guards")),
        "n": 0,
        "n_patients": 0,
        "challengers": challengers,
    }
    try:
        ours = judged(ws, program_name, row, cases)
    except ArtifactMissing as missing:  # it says nothing of the others
        return Contest(verdict, [str(missing)])
    newest = ws.lake.rows("checkpoints", f"{program_name}/{row['experiment']}")
    if [one["checkpoint"] for one in newest] != [row["checkpoint"]]:
        objections.append(
            f"the evaluation is of {row['checkpoint']}, which is no longer the experiment's checkpoint; "
            f"run `med-assets evaluate {program_name}/{row['experiment']}`"
        )
    elif changed := configuration_changed(ws, program_name, row):
        objections.append(
            f"{changed}, so that nobody could train this checkpoint again; restore it, or train and evaluate it anew"
        )
    synthetic = {one["case_id"] for one in ws.lake.rows("raw_cases", program_name) if one["synthetic"]}
    taught, asked = len(synthetic & ours.learned), sum(case["synthetic"] for case in cases)
    if ws.purpose == "production" and (taught or asked):
        objections.append(
            f"{taught} of its training cases and {asked} of the validation cases are synthetic; withdraw them and train "
            "again, or set MED_ASSETS_PURPOSE=demo for a home without patients"
        )
    if reference is None:
        return Contest(verdict, objections)
    against = _named(reference, row["experiment"])
    if ours.weights_sha256 == reference.weights_sha256:
        verdict["matches_reference"] = True
        objections.append(f"its weights are those of {against}; there is nothing to promote")
    primary = compare(ours, reference, cases, chosen.primary_metric, rule.margin, challengers)
    guards = tuple(
        compare(ours, reference, cases, metric, -rule.guard_margins.get(metric.name, 0.0))
        for metric in chosen.guarded_metrics
    )
    found = primary.difference
    if found.mean is not None:
        verdict |= {"improved": found.mean < -rule.tolerance, "regressed": found.mean > rule.tolerance}
    verdict |= {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n, "n_patients": found.n_patients}
    verdict |= {"p": found.p, "detectable": found.detectable, "guards": "; ".join(map(str, guards))}
    verdict |= {"reason": f"better than {against} in {primary}"}
    return Contest(verdict, objections, against, primary, guards)


def _named(reference: Judged, challenger: str) -> str:
    """What the reference is called: an experiment that was trained anew stands against its own earlier checkpoint."""
    if reference.experiment != challenger:
        return reference.experiment
    return f"its own earlier checkpoint {reference.checkpoint}"


def decide(ws: Workspace, program_name: str, named: str | None = None) -> list[dict[str, Any]]:
    """Put every evaluated experiment before the gate; the verdicts, best first by validation.

    A challenger is promoted if, on the validation cases of the present dataset that neither model was trained on, it is shown
    to be better than the champion (before the first promotion, than the baseline) by the margin, with p adjusted over all
    challengers, not inferior in any guarded metric, no synthetic case is involved in production, and its weights differ. The
    best one that passes is promoted; if none does, the best is refused, unless the champion is better than all of them. With
    `named` only that experiment stands, and it may be one that was rolled back; p is adjusted over all nevertheless, so that
    naming one after the other gains nothing.
    """
    chosen, policy = program.get(program_name), policies.of(program_name)
    rule, by_mean = policy.promotion, ws.purpose == "demo" and bool(policy.demo and policy.demo.promote_by_mean)
    rows, holder = candidates(ws, program_name), current(ws, program_name)
    if named is not None and named not in [row["experiment"] for row in rows]:
        raise ConfigurationError(
            f"expected an evaluated experiment of {program_name} other than the baseline "
            f"({[row['experiment'] for row in rows]}), got {named!r}"
        )
    base = ws.lake.rows("checkpoints", f"{program_name}/{chosen.baseline}") if chosen.baseline else []
    reference_row = holder or next(iter(base), None)
    cases = [case for case in cases_of(ws, program_name) if case["split"] == SPLIT]
    reference = judged(ws, program_name, reference_row, cases) if reference_row and rows else None
    back = taken_back(ws, program_name)
    verdicts: list[dict[str, Any]] = []
    standing: list[tuple[dict[str, Any], list[str]]] = []
    champion_leads = False
    held = holder["checkpoint"] if holder else None
    n_challengers = sum(row["checkpoint"] != held for row in rows)
    contests = {
        row["experiment"]: _verdict(ws, program_name, rule, row, reference, cases, n_challengers)
        for row in rows
        if row["checkpoint"] != held
    }
    _weigh(list(contests.values()), rule, by_mean)
    for row in rows:
        contest = contests.get(row["experiment"]) or _verdict(ws, program_name, rule, row, None, cases, n_challengers)
        verdict, objections = contest.verdict, contest.objections
        verdicts.append(verdict)
        if reference is None and chosen.baseline:
            objections.append(f"expected the baseline {chosen.baseline} trained, to compare with; train it first")
        passed = verdict["reason"] or f"{row['experiment']} is the first, and the program has no baseline to beat"
        verdict["reason"] = "; ".join(objections) or passed
        if holder and row["checkpoint"] == holder["checkpoint"]:
            verdict |= {
                "reason": f"{row['experiment']} is the champion",
                "recommended": True,
                "matches_reference": False,
            }
            champion_leads = not standing
        elif named is None and row["checkpoint"] in back:
            taken = back[row["checkpoint"]]
            verdict["reason"] = (
                f"rolled back {taken['promoted_at']}: {taken['reason']}; `med-assets promote {program_name} "
                f"--experiment {row['experiment']}` puts it before the gate again"
            )
        elif named in (None, row["experiment"]):
            standing.append((verdict, objections))
    winner = next((verdict for verdict, objections in standing if not objections), None)
    if winner is not None:
        for verdict in verdicts:
            verdict["recommended"] = verdict is winner
        winner["promoted"] = True
    elif standing and (named or not champion_leads):
        standing[0][0]["refused"] = True
    return verdicts


def stood(verdicts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The verdict that a decision is about: who was promoted or refused, else the champion that stayed."""
    for wanted in ("promoted", "refused", "recommended"):
        found = next((verdict for verdict in verdicts if verdict[wanted]), None)
        if found is not None:
            return found
    return None


def decisions(ws: Workspace, program_name: str) -> list[Verdict]:
    """The newest recorded verdict of every experiment, those of the last decision, best first by validation."""
    newest = {row.challenger: row for row in Catalog(ws, program_name).rows(Verdict)}
    return [newest[row.experiment] for row in candidates(ws, program_name) if row.experiment in newest]


def _crown(ws: Workspace, program_name: str, row: Mapping[str, Any], action: str, reason: str) -> None:
    promoted = {"promoted_at": _now(), "action": action, "reason": reason}
    Catalog(ws, program_name).append(Champion, [Champion.of({**row, **promoted})])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@versioned("3")
def champion(ws: Workspace, program_name: str, named: str | None = None) -> StageResult:
    """Promote the best challenger, or the named one, if the gate lets it; every verdict that is new is kept."""
    with alone(ws, f"champion-{program_name}"):
        verdicts = decide(ws, program_name, named)
        history = ws.lake.rows("promotions", program_name)
        newest = {row["challenger"]: {**row, "decided_at": None} for row in history}
        changed = [one for one in verdicts if {**one, "decided_at": None} != newest.get(one["challenger"])]
        if changed or not history:
            ws.lake.write("promotions", program_name, [*history, *(one | {"decided_at": _now()} for one in changed)])
        decision = stood(verdicts)
        promoted = decision is not None and bool(decision["promoted"])
        if decision is not None and promoted:
            record = ws.lake.rows("checkpoints", f"{program_name}/{decision['challenger']}")[0]
            judged = record | {"checkpoint": decision["checkpoint"]}
            _crown(ws, program_name, judged, BY_NAME if named else PROMOTED, decision["reason"])
    now = current(ws, program_name)
    return StageResult(
        data_version=version(ws, program_name),
        counts={"promoted": int(promoted), "evaluated": len(verdicts)},
        summary={
            "champion": now["experiment"] if now else None,
            "checkpoint": now["checkpoint"] if now else None,
            "decision": decision or {"reason": _nothing_to_decide(ws, program_name)},
        },
        tables={"history": ws.lake.read("champions", program_name), "decisions": decision_table(verdicts)},
    )


def _nothing_to_decide(ws: Workspace, program_name: str) -> str:
    """Why no experiment stood before the gate."""
    baseline = program.get(program_name).baseline
    if baseline and ws.lake.rows("evaluation", f"{program_name}/{baseline}"):
        return f"only the baseline {baseline} is evaluated, which others are compared with; train and evaluate another experiment"
    return "no experiment has a validation score yet"


def decision_table(verdicts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Verdicts for people: an experiment a row, its labels in words."""
    labels = ("recommended", "promoted", "refused", "improved", "regressed", "matches_reference")
    rows = [
        {
            "experiment": verdict["challenger"],
            "labels": ", ".join(name.replace("_", " ") for name in labels if verdict[name]),
            "against": verdict["reference"] or "",
            "difference": _difference(verdict),
            "n": verdict["n"],
            "p": _rounded(verdict["p"]),
            "adjusted p": _rounded(verdict["p_adjusted"]),
            "detectable": _rounded(verdict["detectable"]),
            "reason": verdict["reason"],
            "checkpoint": verdict["checkpoint"],
        }
        for verdict in verdicts
    ]
    return pd.DataFrame(rows, columns=DECISION_COLUMNS)


def _difference(verdict: Mapping[str, Any]) -> str:
    if verdict["mean"] is None:
        return ""
    ends = "" if verdict["low"] is None else f" [{verdict['low']:+.3f}, {verdict['high']:+.3f}]"
    return f"{verdict['mean']:+.3f}{ends}"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def rollback(ws: Workspace, program_name: str, reason: str, to: str | None = None) -> Champion:
    """Make an earlier champion the champion again, as a new row of the history; returns that row.

    Without `to` it is the one before the present champion, those aside that were rolled back themselves. What is rolled
    back stays in the store and in the history, and is not promoted again by itself. Raises ConfigurationError when there is
    no such champion, or no reason; ArtifactCorrupt when its bytes changed.
    """
    if not reason.strip():
        raise ConfigurationError("expected a reason for the rollback, got none; it is kept with the history")
    with alone(ws, f"champion-{program_name}"):
        rows, back = Catalog(ws, program_name).champions(), taken_back(ws, program_name)
        now = rows[-1]["checkpoint"] if rows else None
        earlier = [row for row in rows if row["checkpoint"] != now]
        allowed = [row for row in earlier if (row["checkpoint"] == to if to else row["checkpoint"] not in back)]
        if not allowed:
            known = list(dict.fromkeys(row["checkpoint"] for row in earlier))
            wanted = f"the checkpoint of an earlier champion, got {to}" if to else "an earlier champion, found none"
            raise ConfigurationError(
                f"expected {wanted}; the champion is {now}, "
                + (
                    f"those promoted before are {known}, name one with --to"
                    if known
                    else "and none was promoted before it"
                )
            )
        chosen = allowed[-1]
        if not ws.store.has(chosen["checkpoint"]):
            raise ConfigurationError(
                f"expected {chosen['checkpoint']} in the store, got nothing; restore it from a backup, or name another with --to"
            )
        ws.store.verify(chosen["checkpoint"])
        _crown(ws, program_name, chosen, ROLLED_BACK, reason.strip())
    return Catalog(ws, program_name).champions()[-1]
