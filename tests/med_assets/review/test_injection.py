"""Text from outside on every page: facts, reasons, warnings, comments, names of readers, tables of screening. None of it is markup."""

import logging
from html.parser import HTMLParser

import pandas as pd
import pytest

from med_assets import program
from med_assets.catalog import CaseFacts, Catalog
from med_assets.records import Status
from med_assets.review.access import Access, HashedPassword
from med_assets.review.decisions import decide
from med_assets.screening.stage import TABLE, folder_of
from med_assets.settings import Workspace
from med_assets.storage.files import write_text
from tests.med_assets.review.builders import BATCH, CaseRow, add_cases, client, token_of

P = "lumbar_mr"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(2)><a href=javascript:alert(3)>{{ 7 * 7 }}</a></title>"


class Elements(HTMLParser):
    """The tags of a page and the names and values of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def check(page: str) -> None:
    assert "alert(1)" in page, "the text is shown"
    assert "{{ 7 * 7 }}" in page
    for tag, attributes in Elements(page).tags:
        assert tag != "img"
        assert tag != "script" or str(attributes.get("src")).startswith("/static/")
        assert not [name for name in attributes if name.startswith("on")]
        assert "javascript:" not in (attributes.get("href") or "")


def test_no_text_of_a_case_or_of_a_reader_is_markup_on_any_page(workspace: Workspace) -> None:
    add_cases(workspace, P, [CaseRow("a1", warnings=MARKUP), CaseRow("b1", Status.QUARANTINED, MARKUP)])
    facts = program.get(P).facts
    values = {name: MARKUP if fact.type is str else fact.type(1) for name, fact in facts.items()}
    Catalog(workspace, P).replace_facts([CaseFacts(BATCH, "a1", "va1", values)], BATCH)
    table = pd.DataFrame({"case_id": ["a1"], "rank": [1], "risk": [MARKUP]})
    write_text(folder_of(workspace, P) / TABLE, table.to_csv(index=False))
    reader = MARKUP.replace(":", "")[:64]
    decide(workspace, P, "a1", "normal", MARKUP, reader)
    decide(workspace, P, "a1", "sacralised", "", "Ben")
    decide(workspace, P, "b1", "comment", MARKUP, "Ben")
    browser = client(workspace, Access(reader=reader))
    for path in (f"/{P}/?why=all", f"/{P}/cases/a1", f"/{P}/cases/b1"):
        check(browser.get(path).text)
    agreement = browser.get(f"/{P}/agreement").text
    assert "&lt;script&gt;" in agreement
    assert "<script>" not in agreement
    assert "<script>" not in browser.get("/").text
    message = browser.post(
        f"/{P}/cases/a1/decisions", data={"token": token_of(browser), "decision": MARKUP, "note": MARKUP}
    )
    assert message.status_code == 422
    assert "<script>" not in message.text
    assert "<script>" not in browser.get("/<script>alert(1)</script>/").text


def test_a_password_is_in_no_log_and_no_page(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    password = "a long secret word"
    browser = client(workspace, Access(logins={"Ana": HashedPassword.of(password)}))
    with caplog.at_level(logging.DEBUG):
        for given in (f"{password} wrong", password):
            login = {"token": token_of(browser, "/login"), "reader": "Ana", "password": given}
            answer = browser.post("/login", data=login)
            assert password not in answer.text
    assert answer.status_code == 303
    assert password not in caplog.text
