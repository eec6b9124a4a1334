"""What monitoring warns of: metrics out of control, and drift."""

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.experiments import policies
from med_assets.monitoring.drift import newest
from med_assets.monitoring.stage import LIMITS_RULE, trend
from med_assets.settings import Settings
from med_assets.storage.result import CheckOutcome


def in_control(ws: Settings, program_name: str) -> CheckOutcome:
    """None of the newest batches lies outside its control limits; those that do are named with metric, value and limits."""
    units = {metric.name: metric.unit for metric in program.get(program_name).deciding_metrics}
    lines, alert_batches = trend(ws, program_name), policies.of(program_name).monitoring.alert_batches
    alerts, n_limited = [], 0
    for name, points in lines.items():
        n_limited += sum(point.lower is not None for point in points)
        alerts += [
            f"batch {point.batch}: {name} {point.mean:.3f} {units[name]} (n = {point.n}), "
            f"limits {point.lower:.3f} to {point.upper:.3f}"
            for point in points[-alert_batches:]
            if point.beyond
        ]
    metadata = {"batches": max(map(len, lines.values()), default=0), "compared": n_limited, "rule": LIMITS_RULE}
    if alerts:
        return CheckOutcome(False, "; ".join(alerts), "warn", metadata)
    if not n_limited:
        return CheckOutcome(
            True, "no batch to compare yet: too few cases that the champion has not seen", "warn", metadata
        )
    return CheckOutcome(True, f"{n_limited} means of batches lie within their control limits", "warn", metadata)


def drift(ws: Settings, program_name: str) -> CheckOutcome:
    """Neither the newest batch nor the cases since training, or a declared subgroup of these, drift from the champion's training set in any fact."""
    catalog = Catalog(ws, program_name)
    champion = catalog.champion()
    rows = newest(catalog, champion.checkpoint) if champion else []
    compared = [row for row in rows if row.drifted is not None]
    drifted = [row for row in compared if row.drifted]
    metadata = {
        "compared": len(compared),
        "undefined": len(rows) - len(compared),
        "drifted": sorted({row.fact for row in drifted}),
    }
    if drifted:
        text = "; ".join(
            f"{row.batch}{f', {row.subgroup}' if row.subgroup else ''}: {row.fact} {row.found} {row.unit} (n = {row.n}), in training {row.reference} "
            f"(n = {row.n_reference}), distance {row.distance:.2f}, adjusted p {row.p_adjusted:.2g}"
            for row in drifted
        )
        return CheckOutcome(False, text, "warn", metadata)
    if not compared:
        return CheckOutcome(True, "undefined: too few new cases to compare with the training set", "warn", metadata)
    return CheckOutcome(
        True, f"{len(compared)} comparisons of facts with the training set, none drifted", "warn", metadata
    )
