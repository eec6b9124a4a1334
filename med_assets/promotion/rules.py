"""The rules of the promotion gate. To add one, write a function that yields what speaks against a challenger, and add it to RULES."""

from collections.abc import Callable, Iterable

from med_assets.experiments.policies import Promotion
from med_assets.metrics.paired_test import ALPHA
from med_assets.promotion.contest import Contest

TOO_FEW = "too few cases to promote"
"""How the reason of a promotion by the mean alone begins, in a demo with fewer patients than the gate asks for."""


def cases_scored(policy: Promotion, contest: Contest) -> Iterable[str]:
    """The challenger has a score of every case that the reference has."""
    for each in (contest.primary, *contest.guards):
        if each and each.n_lost:
            yield (
                f"{each.n_lost} validation cases have {each.metric.name} for {contest.against} only; "
                "evaluate the challenger again and see its failures"
            )


def shown_better(policy: Promotion, contest: Contest) -> Iterable[str]:
    """It is shown to be better than the reference by more than the margin, on enough patients."""
    primary, p = contest.primary, contest.verdict.p_adjusted
    if primary is None:
        return
    unit, detectable = primary.metric.after, primary.difference.detectable
    could = "" if detectable is None else f"; so many could have shown a difference of {detectable:.3g}{unit}"
    if contest.too_few(policy) or p is None:
        yield (
            f"too few cases to promote: expected {policy.min_cases} patients whose validation cases both scored, two of each "
            f"class, got {primary.difference.n_patients}{could}"
        )
    elif p > ALPHA:
        wanted = f"better by more than {policy.margin:g}{unit}" if policy.margin else "better"
        yield (
            f"not shown to be {wanted} than {contest.against} in {primary}; expected p of at most {ALPHA:g} over "
            f"{contest.verdict.challengers} challengers, got {p:.2g}{could}"
        )


def guards_kept(policy: Promotion, contest: Contest) -> Iterable[str]:
    """It is shown to be worse in no guarded metric by the margin of that."""
    for each in contest.guards:
        margin, guard = policy.guard_margins.get(each.metric.name, 0.0), each.difference
        if guard.identical and guard.n:
            continue
        if guard.p is None:
            yield f"guarded metric {each} has too few cases to be tested"
        elif guard.p > ALPHA:
            yield f"guarded metric {each}: may be worse by more than the margin of {margin:g}{each.metric.after}"


def subgroups_kept(policy: Promotion, contest: Contest) -> Iterable[str]:
    """It is shown in every declared subgroup of enough patients to be worse by less than the margin."""
    for each in contest.subgroups:
        after = each.metric.after
        if (worst := each.least_shown) is None:
            yield (
                f"{each.metric.name} is guarded in the worst subgroup of at least {each.min_patients} patients, and none has as many; "
                "declare larger ones, or lower promotion.worst_subgroup.min_patients"
            )
            continue
        found = worst.comparison.difference
        if found.identical and found.n:
            continue
        if found.p is None:
            yield f"worst subgroup {worst} has too few cases to be tested"
        elif found.p > ALPHA:
            yield f"worst subgroup {worst}: may be worse by more than the margin of {each.margin:g}{after}"


def subgroup_means_kept(policy: Promotion, contest: Contest) -> Iterable[str]:
    """Its mean is in no declared subgroup of enough patients worse by more than the margin."""
    for each in contest.subgroups:
        worst = each.worst_mean
        mean = worst.comparison.difference.mean if worst else None
        if worst and (mean is None or mean > each.margin):
            yield f"worst subgroup {worst}: worse by more than the margin of {each.margin:g}{each.metric.after}"


def better_mean(policy: Promotion, contest: Contest) -> Iterable[str]:
    """Its mean is better by more than the margin."""
    primary = contest.primary
    if primary and (primary.difference.mean is None or primary.difference.mean >= -policy.margin):
        yield f"no better mean than {contest.against} in {primary}"


def guard_means_kept(policy: Promotion, contest: Contest) -> Iterable[str]:
    """The mean of no guarded metric is worse by more than the margin of that."""
    for each in contest.guards:
        margin, mean = policy.guard_margins.get(each.metric.name, 0.0), each.difference.mean
        if mean is None or mean > margin:
            yield f"guarded metric {each}: worse by more than the margin of {margin:g}{each.metric.after}"


Rule = Callable[[Promotion, Contest], Iterable[str]]
"""Yields what speaks against the promotion of a challenger by the policy of its program; nothing where it passes."""

RULES: tuple[Rule, ...] = (
    cases_scored,
    shown_better,
    guards_kept,
    subgroups_kept,
)
"""What a challenger must pass, in the order in which its objections are listed."""

BY_MEAN: tuple[Rule, ...] = (
    cases_scored,
    better_mean,
    guard_means_kept,
    subgroup_means_kept,
)
"""The same in a demo with fewer patients than the policy asks for."""
