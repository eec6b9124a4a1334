"""The promotion gate: what a challenger must show on the validation cases before it becomes the champion."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.errors import ArtifactMissing, ConfigurationError
from med_assets.evaluation.comparison import SPLIT, ScoredModel, compare, scored_model
from med_assets.evaluation.segmentation_files import IMPORTED
from med_assets.evaluation.subgroups import Subgroup, subgroups
from med_assets.experiments import policies
from med_assets.experiments.configured import configuration_changed
from med_assets.experiments.policies import Promotion
from med_assets.metrics.multiple import holm
from med_assets.promotion.champions import candidates, rolled_back
from med_assets.promotion.contest import Contest
from med_assets.promotion.rules import BY_MEAN, RULES, TOO_FEW
from med_assets.promotion.subgroup_guard import subgroup_guards
from med_assets.records import AggregateScore, Verdict
from med_assets.settings import Settings

DECISION_COLUMNS = [
    "experiment", "labels", "against", "difference", "n", "p", "adjusted p", "detectable", "reason", "checkpoint",
]  # fmt: skip


def _weigh(contests: Sequence[Contest], policy: Promotion, by_mean: bool) -> list[Contest]:
    """Add to each contest what its numbers say, with p adjusted over all challengers of the decision."""
    adjusted = holm([each.primary.difference.p if each.primary else None for each in contests])
    return [_weighed(contest, p, policy, by_mean) for contest, p in zip(contests, adjusted, strict=True)]


def _weighed(contest: Contest, p_adjusted: float | None, policy: Promotion, by_mean: bool) -> Contest:
    primary = contest.primary
    if primary is None:
        return contest
    contest = replace(contest, verdict=replace(contest.verdict, p_adjusted=p_adjusted))
    rules = RULES
    if by_mean and contest.too_few(policy):
        rules = BY_MEAN
        reason = (
            f"{TOO_FEW}: {primary.difference.n_patients} patients of at least {policy.min_cases}; this demo promotes by the "
            f"mean alone, which shows nothing; better mean than {contest.against} in {primary}"
        )
        contest = replace(contest, verdict=replace(contest.verdict, reason=reason))
    found = [objection for rule in rules for objection in rule(policy, contest)]
    return replace(contest, objections=(*contest.objections, *found))


def _contest(
    ws: Settings,
    program_name: str,
    rule: Promotion,
    row: AggregateScore,
    reference: ScoredModel | None,
    cases: Sequence[Case],
    groups: Mapping[Subgroup, Sequence[Case]],
    challengers: int,
) -> Contest:
    """Labels and numbers of one of so many challengers, and what speaks against its promotion whatever its numbers."""
    chosen, catalog, objections = program.get(program_name), Catalog(ws, program_name), []
    verdict = Verdict(
        program=program_name,
        challenger=row.experiment,
        checkpoint=row.checkpoint,
        reference=reference.experiment if reference else None,
        reference_checkpoint=reference.checkpoint if reference else None,
        dataset_version=catalog.dataset().version,
        promoted=False,
        refused=False,
        recommended=False,
        improved=False,
        regressed=False,
        matches_reference=False,
        reason=None,
        mean=None,
        low=None,
        high=None,
        n=0,
        n_patients=0,
        p=None,
        p_adjusted=None,
        challengers=challengers,
        detectable=None,
        guards=None,
        decided_at=None,
    )
    try:
        ours = scored_model(ws, program_name, row, cases)
    except ArtifactMissing as missing:  # it says nothing of the others
        return Contest(verdict, (str(missing),))
    newest = catalog.checkpoint(row.experiment)
    if newest is None or newest.checkpoint != row.checkpoint:
        objections.append(
            f"the evaluation is of {row.checkpoint}, which is no longer the experiment's checkpoint; "
            f"run `med-assets evaluate {program_name}/{row.experiment}`"
        )
    elif changed := configuration_changed(ws, program_name, row):
        objections.append(
            f"{changed}, so that nobody could train this checkpoint again; restore it, or train and evaluate it anew"
        )
    synthetic = {case.case_id for case in catalog.case_versions() if case.synthetic}
    taught, asked = len(synthetic & ours.learned), sum(case.synthetic for case in cases)
    if ws.purpose == "production" and (taught or asked):
        objections.append(
            f"{taught} of its training cases and {asked} of the validation cases are synthetic; withdraw them and train "
            "again, or set MED_ASSETS_PURPOSE=demo for a home without patients"
        )
    if reference is None:
        return Contest(verdict, tuple(objections))
    against = _named(reference, row.experiment)
    same = ours.weights_sha256 == reference.weights_sha256
    if same:
        objections.append(f"its weights are those of {against}; there is nothing to promote")
    primary = compare(ours, reference, cases, chosen.primary_metric, rule.margin, challengers)
    guards = tuple(
        compare(ours, reference, cases, metric, -rule.guard_margins.get(metric.name, 0.0))
        for metric in chosen.guarded_metrics
    )
    by_subgroup = subgroup_guards(program_name, rule.worst_subgroup, ours, reference, groups)
    found = primary.difference
    verdict = replace(
        verdict,
        improved=found.mean is not None and found.mean < -rule.tolerance,
        regressed=found.mean is not None and found.mean > rule.tolerance,
        matches_reference=same,
        reason="; ".join([f"better than {against} in {primary}", *map(str, by_subgroup)]),
        mean=found.mean,
        low=found.low,
        high=found.high,
        n=found.n,
        n_patients=found.n_patients,
        p=found.p,
        detectable=found.detectable,
        guards="; ".join(map(str, (*guards, *by_subgroup))),
    )
    return Contest(verdict, tuple(objections), against, primary, guards, by_subgroup)


def _by_subgroup(catalog: Catalog, cases: Sequence[Case]) -> dict[Subgroup, list[Case]]:
    """The deciding cases by declared subgroup."""
    facts = {case.case_id: case.facts for case in catalog.described()}
    members = subgroups(catalog.program, {case.case_id: facts.get(case.case_id, {}) for case in cases})
    return {group: [case for case in cases if case.case_id in ids] for group, ids in members.items()}


def _named(reference: ScoredModel, challenger: str) -> str:
    """What the reference is called: an experiment that was trained anew is compared with its own earlier checkpoint."""
    if reference.experiment != challenger:
        return reference.experiment
    return f"its own earlier checkpoint {reference.checkpoint}"


def decide(ws: Settings, program_name: str, named: str | None = None) -> list[Verdict]:
    """Put every evaluated experiment before the gate; the verdicts, best first by validation.

    A challenger is promoted if, on the validation cases of the present dataset that neither model was trained on, it is shown
    to be better than the champion (before the first promotion, than the baseline) by the margin, with p adjusted over all
    challengers, not inferior in any guarded metric, no synthetic case is involved in production, and its weights differ. The
    best one that passes is promoted; if none does, the best is refused, unless the champion is better than all of them. With
    `named` only that experiment can be promoted, and it may be one that was rolled back; p is adjusted over all nevertheless, so that
    naming one after the other gains nothing.
    """
    chosen, policy, catalog = program.get(program_name), policies.of(program_name), Catalog(ws, program_name)
    rule, by_mean = policy.promotion, ws.purpose == "demo" and bool(policy.demo and policy.demo.promote_by_mean)
    rows, champion = candidates(ws, program_name), catalog.champion()
    if named is not None and any(row.checkpoint.startswith(IMPORTED) for row in catalog.rows(AggregateScore, named)):
        raise ConfigurationError(
            f"expected an experiment with a model, got {named}, whose predictions were imported: there is nothing to promote"
        )
    if named is not None and named not in [row.experiment for row in rows]:
        raise ConfigurationError(
            f"expected an evaluated experiment of {program_name} other than the baseline "
            f"({[row.experiment for row in rows]}), got {named!r}"
        )
    base = catalog.checkpoint(chosen.baseline) if chosen.baseline else None
    against, cases = champion or base, catalog.cases(SPLIT)
    reference = scored_model(ws, program_name, against, cases) if against and rows else None
    back, held = rolled_back(ws, program_name), champion.checkpoint if champion else None
    challengers = [row for row in rows if row.checkpoint != held]
    n = len(challengers)
    groups = _by_subgroup(catalog, cases) if rule.worst_subgroup and reference else {}
    asked = [_contest(ws, program_name, rule, row, reference, cases, groups, n) for row in challengers]
    weighed = _weigh(asked, rule, by_mean)
    contests = {contest.verdict.challenger: contest for contest in weighed}
    verdicts: list[Verdict] = []
    eligible: list[tuple[int, bool]] = []
    """Places among the verdicts of those that can be promoted, and whether nothing speaks against them."""
    champion_leads = False
    for index, row in enumerate(rows):
        contest = contests.get(row.experiment) or _contest(ws, program_name, rule, row, None, cases, {}, n)
        verdict, objections = contest.verdict, list(contest.objections)
        if reference is None and chosen.baseline:
            objections.append(f"expected the baseline {chosen.baseline} trained, to compare with; train it first")
        passed = verdict.reason or f"{row.experiment} is the first, and the program has no baseline to beat"
        verdict = replace(verdict, reason="; ".join(objections) or passed)
        if row.checkpoint == held:
            reason = f"{row.experiment} is the champion"
            verdict = replace(verdict, reason=reason, recommended=True, matches_reference=False)
            champion_leads = not eligible
        elif named is None and row.checkpoint in back:
            rollback = back[row.checkpoint]
            reason = (
                f"rolled back {rollback.promoted_at}: {rollback.reason}; `med-assets promote {program_name} "
                f"--experiment {row.experiment}` puts it before the gate again"
            )
            verdict = replace(verdict, reason=reason)
        elif named in (None, row.experiment):
            eligible.append((index, not objections))
        verdicts.append(verdict)
    winner = next((index for index, passes in eligible if passes), None)
    if winner is not None:
        verdicts = [replace(verdict, recommended=index == winner) for index, verdict in enumerate(verdicts)]
        verdicts[winner] = replace(verdicts[winner], promoted=True)
    elif eligible and (named or not champion_leads):
        best = eligible[0][0]
        verdicts[best] = replace(verdicts[best], refused=True)
    return verdicts


def deciding_verdict(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that a decision is about: who was promoted or refused, else the champion that stayed."""
    decided = [verdict for verdict in verdicts if verdict.promoted or verdict.refused or verdict.recommended]
    return min(decided, key=lambda verdict: (not verdict.promoted, not verdict.refused), default=None)


def decisions(ws: Settings, program_name: str) -> list[Verdict]:
    """The newest recorded verdict of every experiment, those of the last decision, best first by validation."""
    newest = {row.challenger: row for row in Catalog(ws, program_name).rows(Verdict)}
    return [newest[row.experiment] for row in candidates(ws, program_name) if row.experiment in newest]


def decision_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Verdicts for people: an experiment a row, its labels in words."""
    rows = [
        {
            "experiment": verdict.challenger,
            "labels": ", ".join(_labels(verdict)),
            "against": verdict.reference or "",
            "difference": _difference(verdict),
            "n": verdict.n,
            "p": _rounded(verdict.p),
            "adjusted p": _rounded(verdict.p_adjusted),
            "detectable": _rounded(verdict.detectable),
            "reason": verdict.reason,
            "checkpoint": verdict.checkpoint,
        }
        for verdict in verdicts
    ]
    return pd.DataFrame(rows, columns=DECISION_COLUMNS)


def _labels(verdict: Verdict) -> list[str]:
    labels = {
        "recommended": verdict.recommended,
        "promoted": verdict.promoted,
        "refused": verdict.refused,
        "improved": verdict.improved,
        "regressed": verdict.regressed,
        "matches reference": verdict.matches_reference,
    }
    return [label for label, given in labels.items() if given]


def _difference(verdict: Verdict) -> str:
    if verdict.mean is None:
        return ""
    ends = "" if verdict.low is None or verdict.high is None else f" [{verdict.low:+.3f}, {verdict.high:+.3f}]"
    return f"{verdict.mean:+.3f}{ends}"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
