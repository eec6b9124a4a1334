"""The guard of subgroups: a challenger compared with the reference in each declared subgroup that is large enough.

It must be shown in every one of them to be worse by less than the margin, each at the error rate of a single test: as all must pass, the
chance that a challenger passes that is worse in any is no greater than that (intersection-union test, Berger 1982).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from med_assets import program
from med_assets.catalog import Case
from med_assets.evaluation.comparison import Comparison, ScoredModel, compare
from med_assets.evaluation.subgroups import Subgroup
from med_assets.experiments.policies import WorstSubgroup
from med_assets.program import Metric


@dataclass(frozen=True)
class SubgroupComparison:
    """Paired difference in one metric over the cases of a subgroup."""

    subgroup: Subgroup
    comparison: Comparison

    def __str__(self) -> str:
        return f"{self.subgroup}: {self.comparison}"


@dataclass(frozen=True)
class SubgroupGuard:
    """One guarded metric over all subgroups: comparisons in those of at least `min_patients` patients, and how many were smaller."""

    metric: Metric
    margin: float
    min_patients: int
    compared: tuple[SubgroupComparison, ...]
    n_smaller: int

    @property
    def least_shown(self) -> SubgroupComparison | None:
        """The subgroup in which it is least shown that the challenger is worse by less than the margin: that of the greatest p."""
        return max(self.compared, key=_by_p, default=None)

    @property
    def worst_mean(self) -> SubgroupComparison | None:
        """The subgroup in which the challenger is worst against the reference by its mean."""
        return max(self.compared, key=_by_mean, default=None)

    def __str__(self) -> str:
        if (worst := self.least_shown) is None:
            return f"{self.metric.name} by subgroup: none has {self.min_patients} patients"
        return f"worst subgroup of {len(self.compared)} with at least {self.min_patients} patients, {worst}"


def _by_p(one: SubgroupComparison) -> tuple[bool, bool, float, float]:
    found = one.comparison.difference
    return not found.identical, found.p is None, found.p or 0.0, found.mean or 0.0


def _by_mean(one: SubgroupComparison) -> tuple[bool, float]:
    mean = one.comparison.difference.mean
    return mean is None, mean or 0.0


def subgroup_guards(
    program_name: str,
    policy: WorstSubgroup | None,
    ours: ScoredModel,
    theirs: ScoredModel,
    groups: Mapping[Subgroup, Sequence[Case]],
) -> tuple[SubgroupGuard, ...]:
    """Compare two models in each subgroup of validation cases, for every metric that the policy guards."""
    found = []
    for metric in program.get(program_name).deciding_metrics if policy else ():
        if policy is None or (margin := policy.margins.get(metric.name)) is None:
            continue
        all_of = [
            SubgroupComparison(subgroup, compare(ours, theirs, cases, metric, -margin))
            for subgroup, cases in groups.items()
        ]
        compared = tuple(one for one in all_of if one.comparison.difference.n_patients >= policy.min_patients)
        found.append(SubgroupGuard(metric, margin, policy.min_patients, compared, len(all_of) - len(compared)))
    return tuple(found)
