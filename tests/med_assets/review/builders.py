"""A home with cases of a program in its tables, as intake and preparation write them, without their images."""

from dataclasses import dataclass, replace

from starlette.testclient import TestClient

from med_assets import program
from med_assets.catalog import CaseFacts, Catalog
from med_assets.dataset.stage import dataset, splits
from med_assets.records import CaseVersion, PreparedCase, Status
from med_assets.review.access import Access
from med_assets.review.app import application
from med_assets.settings import Settings

BATCH = "2026-01-31T09-30-00_0a1b2c"

LOCAL = "http://127.0.0.1"


@dataclass(frozen=True)
class CaseRow:
    """A case of a test: its id, and what intake and preparation found."""

    case_id: str
    status: Status = Status.OK
    reason: str | None = None
    warnings: str | None = None


def add_cases(ws: Settings, program_name: str, cases: list[CaseRow], batch: str = BATCH) -> None:
    """Write the tables of one batch and what follows from them; each case is of a patient of its own."""
    catalog = Catalog(ws, program_name)
    versions = [
        CaseVersion.of(
            {
                "program": program_name,
                "batch": batch,
                "case_id": case.case_id,
                "patient_id": f"p{case.case_id}",
                "version": f"v{case.case_id}",
                "content_hash": f"c{case.case_id}",
                "images_hash": f"i{case.case_id}",
                "artifact": "" if case.status == Status.QUARANTINED else f"raw/{case.case_id}",
                "given_split": None,
                "n_instances": 12,
                "synthetic": True,
                "status": case.status,
                "reason_code": "geometry" if case.reason else None,
                "reason": case.reason,
                "deidentified_by": "strict",
            }
        )
        for case in cases
    ]
    catalog.replace(CaseVersion, versions, batch)
    for version in versions:
        if version.artifact and not ws.store.has(version.artifact):
            with ws.store.create(version.artifact):  # without files, in which the scan finds nothing
                pass
    usable = [(version, case) for version, case in zip(versions, cases, strict=True) if version.artifact]
    prepared = [
        PreparedCase.of({**version.row(), "artifact": f"prepared/{case.case_id}", "warnings": case.warnings})
        for version, case in usable
    ]
    catalog.replace(PreparedCase, prepared, batch)
    facts = program.get(program_name).facts
    values = {name: "x" if fact.type is str else fact.type(1) for name, fact in facts.items()}
    catalog.replace_facts([CaseFacts(batch, row.case_id, row.version, values) for row in prepared], batch)
    dataset(ws, program_name)
    splits(ws, program_name)


def send_again(ws: Settings, program_name: str, case_id: str, batch: str, *, same_images: bool) -> None:
    """Write a batch in which a case came again, with other labels, or with other images too."""
    catalog = Catalog(ws, program_name)
    old = next(row for row in catalog.case_versions() if row.case_id == case_id)
    images = old.images_hash if same_images else f"{old.images_hash}2"
    new = replace(old, batch=batch, version=f"{old.version}2", content_hash=f"{old.content_hash}2", images_hash=images)
    catalog.replace(CaseVersion, [new], batch)
    catalog.replace(PreparedCase, [PreparedCase.of({**new.row(), "artifact": f"prepared/{case_id}2"})], batch)
    dataset(ws, program_name)
    splits(ws, program_name)


def client(ws: Settings, access: Access | None = None, address: str = "127.0.0.1") -> TestClient:
    """A browser on the review page of a home, by default that of the one reader of this machine."""
    app = application(ws, access or Access(reader="reader one"))
    return TestClient(app, LOCAL, follow_redirects=False, client=(address, 50000))


def token_of(browser: TestClient, path: str = "/") -> str:
    """The token of a browser's session, from a page."""
    return browser.get(path).text.partition('name="review-token" content="')[2].partition('"')[0]
