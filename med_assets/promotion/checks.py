"""The gate of the champion, and what the gate of promotion answered last."""

from med_assets.catalog import Catalog
from med_assets.errors import ArtifactMissing
from med_assets.promotion.gate import deciding_verdict, decisions
from med_assets.promotion.regression import regressions
from med_assets.settings import Settings
from med_assets.storage.result import CheckOutcome


def champion_regression(ws: Settings, program_name: str) -> CheckOutcome:
    """Fail when the champion, scored anew on the present dataset by the present code, is worse than when it was promoted."""
    champion = Catalog(ws, program_name).champion()
    if champion is None:
        return CheckOutcome(True, "no champion yet")
    try:
        found = regressions(ws, champion)
    except ArtifactMissing as missing:
        return CheckOutcome(False, f"the champion can't be scored: {missing}")
    if not found:
        return CheckOutcome(False, "no scores of its promotion are kept; materialize the champion again", "warn")
    metadata: dict[str, object] = {
        "champion": champion.experiment,
        **{
            f"{each.metric.name} {when}": value
            for each in found
            for when, value in (("promoted", each.promoted.mean), ("present", each.present.mean), ("n", each.present.n))
        },
    }
    if objections := [text for each in found for text in each.objections]:
        return CheckOutcome(
            False,
            f"the champion {champion.experiment} is worse than when it was promoted: {'; '.join(objections)}. Roll it back, train "
            f"and promote another, or `med-assets accept-scores {program_name} --reason TEXT`",
            metadata=metadata,
        )
    n = min(each.n_same for each in found)
    return CheckOutcome(
        True, f"the champion is as good as when it was promoted; {n} cases are as they were", metadata=metadata
    )


def challenger_accepted(ws: Settings, program_name: str) -> CheckOutcome:
    """Show whether the gate refused the last challenger."""
    last = deciding_verdict(decisions(ws, program_name))
    if last is None:
        return CheckOutcome(True, "no challenger yet")
    names = (
        "challenger",
        "reference",
        "improved",
        "regressed",
        "matches_reference",
        "mean",
        "low",
        "high",
        "n",
        "n_patients",
        "p",
        "p_adjusted",
        "challengers",
        "detectable",
        "guards",
    )
    values = last.row()
    return CheckOutcome(not last.refused, str(last.reason), "warn", {name: values[name] for name in names})
