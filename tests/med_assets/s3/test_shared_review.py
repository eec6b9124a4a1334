"""What a reader decides on the review page of one machine is on the page of another, with its entry in the audit trail of both."""

import time
from dataclasses import replace
from pathlib import Path

from starlette.testclient import TestClient

from med_assets.deidentification.audit_trail import entries
from med_assets.deidentification.audited_rows import unmatched
from med_assets.review.access import Access
from med_assets.screening.contract import RANK, RISK
from med_assets.screening.stage import TABLE, folder_of
from med_assets.settings import Workspace
from med_assets.storage.files import write_text
from med_assets.storage.s3 import shared_files
from med_assets.storage.s3.bucket import Location
from tests.med_assets.review.builders import CaseRow, add_cases, client, token_of
from tests.med_assets.s3.faults import Faults

P = "rt_dose"
SEEN_S = 3.0
"""What one machine wrote is seen on the page of another within this time, s; asked for: half a second and a request."""


def decide(browser: TestClient, case: str, decision: str) -> None:
    headers = {"x-review-token": token_of(browser), "x-partial": "true"}
    data = {"decision": decision, "note": "motion"}
    assert browser.post(f"/{P}/cases/{case}/decisions", data=data, headers=headers).status_code == 204


def shows(browser: TestClient, text: str) -> bool:
    """Whether the worklist shows a text before long."""
    until = time.monotonic() + SEEN_S
    while time.monotonic() < until:
        page = browser.get(f"/{P}/?why=all", headers={"x-partial": "true"}).text
        print(page[:1500])
        if text in page:
            return True
        time.sleep(0.1)
    return False


def test_decisions_of_two_readers_on_two_machines_are_on_both_pages(
    workspace: Workspace, faults: Faults, name: str, tmp_path: Path
) -> None:
    a, b = (replace(workspace, home=tmp_path / each, store_location=Location(name, "site")) for each in ("a", "b"))
    add_cases(a, P, [CaseRow(case) for case in ("a1", "a2", "a3")])
    one, two = client(a, Access(reader="reader one")), client(b, Access(reader="reader two"))
    assert shows(two, "0 of 3 read")
    decide(one, "a1", "exclude")
    decide(two, "a2", "accept")
    for browser, case, reader in ((one, "a2", "reader two"), (two, "a1", "reader one")):
        assert shows(browser, f"{reader}, ")
        assert reader in browser.get(f"/{P}/cases/{case}").text
    for ws in (a, b):
        assert [(entry.subject, entry.person) for entry in entries(ws)] == [("a1", "reader one"), ("a2", "reader two")]
        assert unmatched(ws) == []


def test_the_screening_of_one_machine_is_on_the_worklist_of_another(
    workspace: Workspace, faults: Faults, name: str, tmp_path: Path
) -> None:
    a, b = (replace(workspace, home=tmp_path / each, store_location=Location(name, "site")) for each in ("a", "b"))
    add_cases(a, P, [CaseRow(case) for case in ("a1", "a2")])
    write_text(folder_of(a, P) / TABLE, f"case_id,{RANK},{RISK}\na2,1,high\na1,2,low\n")
    shared_files.push(a, P)
    assert shows(client(b), "rank 1 of 2, risk high")
