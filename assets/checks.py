"""Asset checks in Dagster's terms. They are evaluated inside the asset they guard, so that no materialization is left unchecked."""

from typing import TYPE_CHECKING

import dagster as dg

from assets.metadata import picture, value
from med_assets.storage.escaping import inert

if TYPE_CHECKING:
    from med_assets.storage.result import CheckOutcome


def blocking(name: str, asset: dg.AssetKey, description: str) -> dg.AssetCheckSpec:
    """Declare a check whose failure with severity error stops what comes after the asset."""
    return dg.AssetCheckSpec(name, asset=asset, description=description, blocking=True)


def informing(name: str, asset: dg.AssetKey, description: str) -> dg.AssetCheckSpec:
    """Declare a check that people see and that stops nothing."""
    return dg.AssetCheckSpec(name, asset=asset, description=description)


def result(name: str, outcome: "CheckOutcome") -> dg.AssetCheckResult:
    """What a check found; a failure of severity "warn" is shown and blocks nothing."""
    severity = dg.AssetCheckSeverity.WARN if outcome.severity == "warn" else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        passed=bool(outcome.passed),
        check_name=name,
        severity=severity,
        description=inert(outcome.reason),
        metadata={name: value(content) for name, content in outcome.metadata.items()}
        | {f"plot/{number}": picture(path, name) for number, (name, path) in enumerate(outcome.images.items())},
    )
