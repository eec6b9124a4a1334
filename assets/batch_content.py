"""The content of an asset by batch, as one version, for the assets that read all of its batches.

Dagster records no version of 100 and more partitions, and calls the same case in another batch another version. The version
here is that of the home's tables. An asset records it when it begins to read, and the update sensor compares it with the
present one. A table is read once for as long as its file is the same.
"""

from collections.abc import Callable, Mapping
from functools import partial

from med_assets.catalog import Catalog, usable
from med_assets.records import BatchAudit, MonitoredScore, PreparedCase, Withdrawal
from med_assets.settings import Settings
from med_assets.storage.files import digest
from med_assets.storage.memo import Memo

TAG = "med_assets/read."
"""Tag of a materialization, followed by a stage, with the version of what was read of the stage's batches."""

_cases: Memo[dict[str, list[object]]] = Memo()
_scores: Memo[str] = Memo()


def prepared_cases(catalog: Catalog) -> str:
    """Version of the newest usable version of every case that nobody withdrew or excluded, without batches that are held back."""
    newest: dict[str, list[object]] = {}
    audits = catalog.stamps(BatchAudit)
    for (batch,), stamp in catalog.stamps(PreparedCase).items():
        key = catalog.ws.home, catalog.program, batch, stamp, audits.get((batch,))
        newest |= _cases.get(key, partial(_cases_of, catalog, batch))
    changes = catalog.exclusion_changes()
    left_out = {case_id for (case_id,) in catalog.keys(Withdrawal)} | {
        case_id for case_id, n in changes.items() if n % 2
    }
    found = sorted(item for item in newest.items() if item[0] not in left_out)
    # A case that is let in again makes the cases what they once were; a run for that is another than the one that was.
    return digest(found, sorted(changes.items())) if changes else digest(found)


def _cases_of(catalog: Catalog, batch: str) -> dict[str, list[object]]:
    """Of each usable case of a batch what a dataset is made of."""
    return {
        case.case_id: [case.version, case.artifact, case.status, case.patient_id, case.given_split, case.synthetic]
        for case in usable(catalog.admitted(batch))
    }


def monitoring(catalog: Catalog) -> str:
    """Version of the champion's scores on all batches."""
    found = []
    for (batch,), stamp in catalog.stamps(MonitoredScore).items():
        key = catalog.ws.home, catalog.program, batch, stamp
        found.append([batch, _scores.get(key, partial(catalog.content, MonitoredScore, batch))])
    return digest(found)


VERSIONS: Mapping[str, Callable[[Catalog], str]] = {"prepared_cases": prepared_cases, "monitoring": monitoring}
"""By stage that is kept by batch."""


def version(ws: Settings, program: str, stage: str) -> str:
    """The present version of all batches of a stage of `VERSIONS`."""
    return VERSIONS[stage](Catalog(ws, program))


def read(ws: Settings, program: str, stage: str) -> dict[str, str]:
    """The tag with that version, for `assets.factory.materialized`; to be asked for before the batches are read."""
    return {TAG + stage: version(ws, program, stage)}
