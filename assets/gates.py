"""Gates: checks that travel inside the asset they guard, so that no materialization is ever left unchecked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from assets.show import picture, value
from med_assets.reporting.escaping import inert

if TYPE_CHECKING:
    from med_assets.dataset.checks import CheckOutcome
    from med_assets.settings import Workspace


@dataclass(frozen=True)
class Gate:
    """One check: its name, what it guards against, and the check itself of (workspace, batch or None)."""

    name: str
    description: str
    check: Callable[["Workspace", str | None], "CheckOutcome"]
    blocking: bool = True
    """Whether its failure with severity "error" stops what comes after; what is only told to people blocks nothing."""

    def spec(self, asset: dg.AssetKey) -> dg.AssetCheckSpec:
        """The check as Dagster declares it."""
        return dg.AssetCheckSpec(self.name, asset=asset, description=self.description, blocking=self.blocking)

    def result(self, asset: dg.AssetKey, ws: "Workspace", batch: str | None) -> dg.AssetCheckResult:
        """Run the check; a failure of severity "warn" is shown and blocks nothing."""
        outcome = self.check(ws, batch)
        severity = dg.AssetCheckSeverity.WARN if outcome.severity == "warn" else dg.AssetCheckSeverity.ERROR
        return dg.AssetCheckResult(
            passed=bool(outcome.passed),
            asset_key=asset,
            check_name=self.name,
            severity=severity,
            description=inert(outcome.reason),
            metadata={name: value(content) for name, content in outcome.metadata.items()}
            | {f"plot/{number}": picture(path, name) for number, (name, path) in enumerate(outcome.images.items())},
        )
