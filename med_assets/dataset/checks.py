"""The gates: questions about what is in the lake and the store, each with an answer a person can act on."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from med_assets import program
from med_assets.capabilities import Doubts, HeldOutWarnings
from med_assets.catalog import Catalog, usable
from med_assets.dataset.stage import finding_pictures, findings
from med_assets.deidentification.scan import identity_left
from med_assets.evaluation.finetuning import recorded
from med_assets.evaluation.stage import NO_CASE
from med_assets.experiments import policies
from med_assets.records import CaseScore, EpochMetric, SplitAssignment
from med_assets.settings import Workspace


@dataclass(frozen=True)
class CheckOutcome:
    """Answer of a gate."""

    passed: bool
    reason: str
    severity: Literal["error", "warn"] = "error"
    metadata: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)


def residual_phi(ws: Workspace, program_name: str, batch: str) -> CheckOutcome:
    """Scan every stored file of the batch for anything that could identify a patient; the same bytes only once."""
    found: dict[str, int] = defaultdict(int)
    cases = usable(Catalog(ws, program_name).case_versions(batch))
    for case in cases:
        for finding in identity_left(ws, program_name, case.artifact):
            found[finding] += 1
    scanned = sum(case.n_instances for case in cases)
    reason = (
        f"{scanned} files scanned, nothing found"
        if not found
        else f"identity may remain in {sum(found.values())} elements; the cases are kept out of the dataset"
    )
    return CheckOutcome(not found, reason, metadata={"files": scanned, "findings": dict(found)})


def audit(ws: Workspace, program_name: str, batch: str) -> CheckOutcome:
    """Fail when more of the batch was quarantined than the policy allows; warn of a small batch with such a share, and of facts.

    The failure keeps the batch out of the dataset until it is taken in again with fewer refused, or a person accepts it.
    """
    catalog = Catalog(ws, program_name)
    found = catalog.audit(batch)
    if found is None:
        return CheckOutcome(False, f"batch {batch} was not audited; materialize prepared_cases of this batch")
    codes = Counter(row.reason_code for row in catalog.quarantined(batch))
    warned = {case.case_id: "; ".join(case.warning_lines) for case in catalog.prepared(batch) if case.warnings}
    metadata: dict[str, Any] = {
        "cases": found.n_cases,
        "quarantined": found.n_quarantined,
        "quarantined_share": round(found.quarantined_share, 4),
        "allowed_share": found.max_quarantined_share,
        "reasons": dict(codes.most_common()),
        "warnings": warned,
    }
    counted = f"{found.n_quarantined} of {found.n_cases} cases quarantined ({', '.join(f'{code}: {n}' for code, n in codes.most_common(3))})"
    if found.held_back:
        return CheckOutcome(
            False,
            f"{counted}, expected a share of at most {found.max_quarantined_share:g}: the batch is kept out of the dataset; "
            f"mend its export and send it again, or `med-assets accept-batch {program_name} {batch} --reason TEXT`",
            metadata=metadata,
        )
    if found.accepted_because:
        return CheckOutcome(True, f"{counted}, accepted by a person: {found.accepted_because}", metadata=metadata)
    if found.quarantined_share > found.max_quarantined_share:
        text = f"{counted}; a batch of fewer than {found.min_cases} cases is not held back"
        return CheckOutcome(False, text, "warn", metadata)
    if warned:
        first = "; ".join(f"{case_id}: {text}" for case_id, text in list(warned.items())[:3])
        return CheckOutcome(False, f"{len(warned)} accepted cases have warnings: {first}", "warn", metadata)
    return CheckOutcome(True, counted if codes else f"{found.n_cases} cases, none quarantined", metadata=metadata)


def patient_leakage(ws: Workspace, program_name: str) -> CheckOutcome:
    """No patient and no image content in two splits, and every accepted case in one."""
    catalog, splits, contents = Catalog(ws, program_name), defaultdict(set), defaultdict(set)
    placed = catalog.cases()
    for case in placed:
        splits[case.patient_id].add(case.split)
        contents[case.content_hash].add(case.split)
    for assignment in catalog.rows(SplitAssignment):
        splits[assignment.patient_id].add(assignment.split)
    leaks = sorted(patient for patient, found in splits.items() if len(found) > 1)
    copies = sum(len(found) > 1 for found in contents.values())
    unplaced = len(catalog.dataset()) - len(placed)
    metadata = {"patients": len(splits), "patients_in_two_splits": leaks, "unassigned_cases": unplaced}
    if leaks or copies:
        return CheckOutcome(
            False, f"{len(leaks)} patients and {copies} image contents are in two splits", metadata=metadata
        )
    if unplaced:
        return CheckOutcome(
            False, f"{unplaced} cases have no split; see the asset's metadata for why", "warn", metadata
        )
    return CheckOutcome(True, f"{len(splits)} patients, each in one split", metadata=metadata)


def between_cases(ws: Workspace, program_name: str) -> CheckOutcome:
    """Nothing is wrong between cases or with the splits as a whole, such as one picture in two splits, or a class missing in one."""
    found = findings(ws, program_name)
    blocking = [finding for finding in found if finding.blocking]
    metadata = {"blocking": len(blocking), "findings": [finding.text for finding in found]}
    images = finding_pictures(ws, program_name, found)
    if blocking:
        first = "; ".join(finding.text for finding in blocking[:3])
        more = f"; and {len(blocking) - 3} more" if len(blocking) > 3 else ""
        return CheckOutcome(False, first + more, metadata=metadata, images=images)
    if found:
        return CheckOutcome(
            False, f"worth a look: {len(found)} findings, none of which blocks", "warn", metadata, images
        )
    return CheckOutcome(True, "nothing found between cases", metadata=metadata)


def doubts(ws: Workspace, program_name: str, name: str) -> CheckOutcome:
    """Warn where a program knows that the scores of an experiment mean less than they seem to."""
    catalog = Catalog(ws, program_name)
    scores, history = catalog.rows(CaseScore, name), catalog.rows(EpochMetric, name)
    chosen = program.get(program_name)
    reasons = chosen.doubts(scores, history) if isinstance(chosen, Doubts) else []
    reasons = reasons if scores else [NO_CASE]
    return CheckOutcome(
        not reasons, "; ".join(reasons) or "nothing known makes these scores doubtful", "warn", {"doubts": reasons}
    )


def held_out(ws: Workspace, program_name: str) -> CheckOutcome:
    """Warn where a program knows that scores of its held-out cases mean less than they seem to."""
    chosen = program.get(program_name)
    described = Catalog(ws, program_name).described
    warnings = chosen.held_out_warnings(described()) if isinstance(chosen, HeldOutWarnings) else []
    reason = "; ".join(warnings) or "nothing known makes scores of held-out cases doubtful"
    return CheckOutcome(not warnings, reason, "warn", {"warnings": warnings})


def synthetic_data(ws: Workspace, program_name: str) -> CheckOutcome:
    """No synthetic case in a production dataset."""
    dataset = Catalog(ws, program_name).dataset()
    n = len(dataset.synthetic)
    passed = n == 0 or ws.purpose == "demo"
    reason = f"{n} of {len(dataset)} cases are synthetic; purpose is {ws.purpose}"
    if not passed:
        reason += "; withdraw them, or set MED_ASSETS_PURPOSE=demo for a home without patients"
    return CheckOutcome(passed, reason, metadata={"synthetic": n, "cases": len(dataset)})


def synthetic_report(ws: Workspace, program_name: str) -> CheckOutcome:
    """No synthetic case among what the report was made of, or the report says so and is of a demo."""
    from med_assets.reporting.stage import MARK, report_path, synthetic_parts

    parts = synthetic_parts(ws, program_name)
    path = report_path(ws, program_name)
    marked = path.is_file() and MARK in path.read_text(encoding="utf-8")
    counts = ", ".join(f"{name}: {n}" for name, n in parts.items()) or "nothing synthetic"
    reason = f"{counts}; the report is {'' if marked else 'not '}marked; purpose is {ws.purpose}"
    return CheckOutcome(not parts or (marked and ws.purpose == "demo"), reason, metadata={"synthetic": parts})


def champion_regression(ws: Workspace, program_name: str) -> CheckOutcome:
    """The last challenger was not refused by the gate."""
    from med_assets.promotion.gate import deciding_verdict, decisions

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


def in_control(ws: Workspace, program_name: str) -> CheckOutcome:
    """None of the newest batches lies outside its control limits; those that do are named with metric, value and limits."""
    from med_assets.monitoring.stage import LIMITS_RULE, deciding_metrics, trend

    units = {metric.name: metric.unit for metric in deciding_metrics(program_name)}
    lines, newest = trend(ws, program_name), policies.of(program_name).monitoring.alert_batches
    alerts, n_limited = [], 0
    for name, points in lines.items():
        n_limited += sum(point.lower is not None for point in points)
        alerts += [
            f"batch {point.batch}: {name} {point.mean:.3f} {units[name]} (n = {point.n}), "
            f"limits {point.lower:.3f} to {point.upper:.3f}"
            for point in points[-newest:]
            if point.beyond
        ]
    metadata = {"batches": max(map(len, lines.values()), default=0), "judged": n_limited, "rule": LIMITS_RULE}
    if alerts:
        return CheckOutcome(False, "; ".join(alerts), "warn", metadata)
    if not n_limited:
        return CheckOutcome(
            True, "no batch to judge yet: too few cases that the champion has not seen", "warn", metadata
        )
    return CheckOutcome(True, f"{n_limited} means of batches lie within their control limits", "warn", metadata)


def drift(ws: Workspace, program_name: str) -> CheckOutcome:
    """Neither the newest batch nor the cases since training drift from the champion's training set in any fact."""
    from med_assets.monitoring.drift import newest

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
            f"{row.batch}: {row.fact} {row.found} {row.unit} (n = {row.n}), in training {row.reference} "
            f"(n = {row.n_reference}), distance {row.distance:.2f}, adjusted p {row.p_adjusted:.2g}"
            for row in drifted
        )
        return CheckOutcome(False, text, "warn", metadata)
    if not compared:
        return CheckOutcome(True, "undefined: too few new cases to compare with the training set", "warn", metadata)
    return CheckOutcome(
        True, f"{len(compared)} comparisons of facts with the training set, none drifted", "warn", metadata
    )


def fine_tuning(ws: Workspace, program_name: str, name: str) -> CheckOutcome:
    """Whether an experiment is better than what it began with, and reaches what others reached with its recipe."""
    record = recorded(ws, program_name, name)
    if record is None:
        return CheckOutcome(True, "it began with random weights, so there is nothing to hold it against")
    reasons = [
        f"expected {check.field} of at least {check.expected_at_least:g}, got {'none' if check.got is None else format(check.got, '.4g')}"
        for check in record.checks
        if not check.passed
    ]
    measured, found = "what it began with can't be scored here", record.improvement
    if found is not None:
        ends = "" if found.low is None or found.high is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
        measured = f"formal improvement {found.mean:+.4f}{ends}, n = {found.n}"
        if record.same_weights:
            reasons.append("no epoch was better than what it began with: its weights are those")
        elif record.recommended != record.checkpoint:
            reasons.append(f"not better than what it began with: {measured}")
    if record.every_epoch_worse:
        reasons.append("every epoch of training was worse than what it began with")
    return CheckOutcome(not reasons, "; ".join(reasons) or measured, "warn", dict(record.output))
