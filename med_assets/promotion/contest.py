"""One challenger before the promotion gate: its numbers against the reference, and what speaks against it."""

from dataclasses import dataclass

from med_assets.evaluation.comparison import Comparison
from med_assets.experiments.policies import Promotion
from med_assets.promotion.subgroup_guard import SubgroupGuard
from med_assets.records import Verdict


@dataclass(frozen=True)
class Contest:
    """One challenger of a decision: its verdict, what speaks against it, what the reference is called, and the comparisons.

    Where there is no reference, `primary` is None. The verdict's p is adjusted over all challengers when rules see it.
    """

    verdict: Verdict
    objections: tuple[str, ...]
    against: str = ""
    primary: Comparison | None = None
    guards: tuple[Comparison, ...] = ()
    subgroups: tuple[SubgroupGuard, ...] = ()

    def too_few(self, policy: Promotion) -> bool:
        """Whether fewer patients than the policy asks for have a case that both models scored."""
        return self.primary is None or self.primary.difference.n_patients < policy.min_cases
