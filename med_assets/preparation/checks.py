"""The gate of preparation: whether too much of a batch was quarantined."""

from collections import Counter

from med_assets.catalog import Catalog
from med_assets.settings import Settings
from med_assets.storage.result import CheckOutcome


def audit(ws: Settings, program_name: str, batch: str) -> CheckOutcome:
    """Fail when more of the batch was quarantined than the policy allows; warn of a small batch with such a share, and of facts.

    The failure keeps the batch out of the dataset until it is taken in again with fewer refused, or a person accepts it.
    """
    catalog = Catalog(ws, program_name)
    found = catalog.audit(batch)
    if found is None:
        return CheckOutcome(False, f"batch {batch} was not audited; materialize prepared_cases of this batch")
    codes = Counter(row.reason_code for row in catalog.quarantined(batch))
    warned = {case.case_id: "; ".join(case.warning_lines) for case in catalog.prepared(batch) if case.warnings}
    metadata: dict[str, object] = {
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
