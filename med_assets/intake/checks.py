"""The gate of intake: whether anything that may identify a patient is left in what it stored."""

from collections import defaultdict

from med_assets.catalog import Catalog, usable
from med_assets.deidentification.scan import Scan
from med_assets.settings import Settings
from med_assets.storage.result import CheckOutcome


def residual_phi(ws: Settings, program_name: str, batch: str) -> CheckOutcome:
    """Scan every stored file of the batch for anything that could identify a patient; the same bytes only once."""
    found: dict[str, int] = defaultdict(int)
    cases = usable(Catalog(ws, program_name).case_versions(batch))
    findings = Scan(ws, program_name).findings([(batch, case.artifact) for case in cases])
    for case in cases:
        for finding in findings.get(case.artifact, ()):
            found[finding] += 1
    scanned = sum(case.n_instances for case in cases)
    reason = (
        f"{scanned} files scanned, nothing found"
        if not found
        else f"identity may remain in {sum(found.values())} elements; the cases are kept out of the dataset"
    )
    return CheckOutcome(not found, reason, metadata={"files": scanned, "findings": dict(found)})
