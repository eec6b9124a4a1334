"""What follows from an experiment's numbers: each sentence by a rule that is written here, none by opinion."""

from med_assets import program
from med_assets.experiments import policies
from med_assets.metrics.bootstrap import Interval
from med_assets.program import Metric
from med_assets.records import AggregateScore, RunScore
from med_assets.reporting.experiment_facts import Facts
from med_assets.storage.escaping import inline

FEW_CASES = 20
"""Validation cases below which an interval is called wide for its number: a bootstrap of fewer is too narrow by itself."""

OVERFIT = 0.5
"""Share of the epochs after the kept one, from which on training is called longer than it was of use."""


def difference(metric: Metric, found: Interval, other: str) -> str:
    """A paired difference for people."""
    if found.mean is None:
        return f"{metric.name} against {other}: undefined, no validation case has both"
    ends = "no interval" if found.low is None or found.high is None else f"[{found.low:+.3f}, {found.high:+.3f}]"
    better = "below" if metric.lower_is_better else "above"
    return f"{metric.name} against {other}: {found.mean:+.3f} {ends}{metric.after} ({better} 0 is better), n = {found.n}, paired, validation"


def of_split(facts: Facts, split: str) -> RunScore | AggregateScore | None:
    """The aggregated primary metric of a split."""
    metric = program.get(facts.program).primary_metric
    wanted = (split, metric.name, metric.subject)
    return next((row for row in facts.scores if (row.split, row.metric, row.subject) == wanted), None)


def analysis(facts: Facts) -> list[str]:
    """What is to be seen in the numbers."""
    chosen, metric = program.get(facts.program), program.get(facts.program).primary_metric
    found = [f"{difference(metric, paired, other)}." for other, paired in facts.differences.items()]
    val, test = of_split(facts, "val"), of_split(facts, "test")
    if val and test and val.mean is not None and test.mean is not None:
        inside = val.low is not None and val.high is not None and val.low <= test.mean <= val.high
        where = "lies within" if inside else "lies outside"
        found.append(
            f"The test mean of {metric.name}, {test.mean:.3f}{metric.after} (n = {test.n}), {where} the validation interval."
        )
    elif val and not test:
        found.append("The test cases are not opened for this checkpoint, or there are none.")
    run = facts.run
    if facts.last_epoch and run.best_epoch is not None:
        ended = "; it stopped early" if run.stopped_early else ""
        found.append(f"The epoch that was kept is {run.best_epoch} of {facts.last_epoch}{ended}.")
    if facts.worst and val and val.mean is not None:
        worst = facts.worst[0]
        found.append(f"Its worst held-out case, {worst.case_id} ({worst.split}), has {worst.value:.3f}{metric.after}.")
    if (gain := facts.gained) is not None:
        interval = "" if gain.low is None or gain.high is None else f" [{gain.low:+.3f}, {gain.high:+.3f}]"
        found.append(
            f"It gained {gain.mean:+.3f}{interval}{metric.after} over its initial weights (above 0 is better), n = {gain.n}."
        )
    if facts.crossval:
        found.append(f"It was cross-validated on {facts.crossval} cases; the report has the folds.")
    found += [f"Doubtful: {inline(doubt)}." for doubt in facts.doubts]
    found += [f"Changed since it was trained: {inline(reason)}." for reason in facts.status.stale]
    return [*found, f"Limitations of every model of this program: {'; '.join(chosen.limitations)}."]


def conclusions(facts: Facts) -> list[str]:
    """What the gate decided, and what the paired differences show."""
    metric, found = program.get(facts.program).primary_metric, []
    if facts.name == program.get(facts.program).baseline:
        found.append("It is the baseline, which others are held against; it is never put before the gate.")
    elif facts.verdict is None:
        found.append("The gate has not been asked about this checkpoint.")
    else:
        named = ("promoted", "refused", "recommended", "improved", "regressed", "matches_reference")
        labels = ", ".join(name.replace("_", " ") for name in named if getattr(facts.verdict, name)) or "no label"
        found.append(f"The gate's verdict is: {labels}. {inline(facts.verdict.reason)}.")
    for other, paired in facts.differences.items():
        found.append(f"It is {_against(metric, paired)} {other} on the validation cases.")
    if measured := [one for one in facts.targets if one.reached is not None]:
        missed = [f"{one.what}, {one.shown} ({one.goal_text})" for one in measured if not one.reached]
        found.append(
            f"It reaches {len(measured) - len(missed)} of the {len(measured)} targets that could be measured"
            + (f"; it misses {inline('; '.join(missed))}." if missed else ".")
        )
    if facts.run.synthetic:
        found.append("Synthetic cases had a part in it, so that nothing is concluded about patients.")
    return found


def _against(metric: Metric, found: Interval) -> str:
    if found.low is None or found.high is None:
        return "not comparable with an interval to"
    low, high = (found.low, found.high) if metric.lower_is_better else (-found.high, -found.low)
    if high < 0:
        return "better beyond doubt than"
    return "worse beyond doubt than" if low > 0 else "not shown to differ from"


def next_steps(facts: Facts) -> list[str]:
    """What would tell more, or do better, by rule."""
    run, found = facts.run, []
    name = f"{facts.program}/{facts.name}"
    if facts.status.stale:
        found.append(f"Train it again: {inline('; '.join(facts.status.stale))} (`med-assets train {name}`).")
    if run.dirty:
        found.append("Commit the working tree and train it again, so that the commit gives the result.")
    if run.profile != "full":
        found.append(f"Train it with the profile full; {run.profile} is made for runs of minutes.")
    if run.synthetic:
        found.append("Train it on real cases.")
    epochs, best = facts.last_epoch, run.best_epoch
    if epochs and best is not None:
        if best == epochs and not run.stopped_early:
            found.append(f"Train longer: the best epoch was the last of {epochs} (raise `schedule.epochs`).")
        elif (epochs - best) / epochs >= OVERFIT:
            found.append(
                f"It was best at epoch {best} of {epochs}: try stronger regularisation, or a lower `optimiser.lr`."
            )
    val = of_split(facts, "val")
    if val and val.n < max(FEW_CASES, policies.of(facts.program).promotion.min_cases):
        found.append(f"Take in more cases: {val.n} validation cases give an interval that says little.")
    metric = program.get(facts.program).primary_metric
    for other, paired in facts.differences.items():
        if paired.low is not None and paired.high is not None and paired.low <= 0 <= paired.high:
            found.append(
                f"The interval of the difference in {metric.name} to {other} holds 0: more cases, or more seeds, would decide."
            )
    if facts.doubts:
        found.append("Settle the doubts above before its scores are used.")
    return found or ["No rule asks for anything."]
