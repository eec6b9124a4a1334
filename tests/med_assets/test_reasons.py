"""The table of reasons is complete, its page is current, and the audit states what it measured."""

import ast
import re
from functools import cache
from pathlib import Path

import pandas as pd

import med_assets
from med_assets.cli.commands import table
from med_assets.intake.reasons import TITLES, reasons, remedy, with_table
from med_assets.settings import Workspace
from tests.invented import Study, ct, ingest, plan_case, write

PACKAGE = Path(med_assets.__file__).parent
REASONS = reasons()
RAISES = {"CaseRejected", "ArchiveRejected", "Refusal"}


@cache
def _calls() -> list[tuple[str, ast.Call]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                found.append((name, node))
    return found


def test_each_code_that_the_source_raises_is_in_the_table() -> None:
    raised = {
        call.args[0].value
        for name, call in _calls()
        if name in RAISES and call.args and isinstance(call.args[0], ast.Constant)
    }
    assert len(raised) > 60
    assert raised - REASONS.keys() == set()


def test_each_code_of_the_table_stands_in_the_source() -> None:
    source = " ".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "reasons.py")
    assert REASONS.keys() - set(re.findall(r"\w+", source)) == set()


def test_each_reason_has_a_meaning_and_a_remedy_of_its_own() -> None:
    for reason in REASONS.values():
        assert reason.stage in TITLES
        assert len(reason.meaning) > 10, reason.code
        assert len(reason.remedy) > 5, reason.code
        assert "|" not in reason.meaning + reason.remedy
    assert remedy("rt_dose", "a code of an earlier version") == ""
    assert remedy("lung_ct", "no_tissue")
    assert not remedy("rt_dose", "no_tissue")


def test_the_page_of_intake_holds_the_table() -> None:
    page = PACKAGE.parent / "docs" / "intake.md"
    assert page.read_text() == with_table(page.read_text()), "docs/intake.md is out of date; run `make docs`"


def test_a_failed_audit_states_the_fact_its_value_and_what_was_expected(workspace: Workspace) -> None:
    slices = ct(Study("thick"), n=8, dz=12.0)
    write(plan_case("thick", slices=slices, st=Study("thick")), workspace.landing / "rt_dose" / "thick")
    _, (row,) = ingest(workspace, "rt_dose")
    assert row["reason_code"] == "audit_failed"
    assert "got spacing_z_mm = 12 mm" in row["reason"]


def test_a_reason_is_never_cut_in_a_table() -> None:
    reason = "expected one thing, got another; " * 10
    lines = table(
        pd.DataFrame([{"case_id": "a", "n": 1, "reason": reason.strip()}, {"case_id": "bcd", "n": 22, "reason": ""}])
    )
    assert reason.strip() in lines
    assert len(lines.splitlines()) == 3


def test_each_rejection_reads_forwards_expected_got_and_what_to_do() -> None:
    texts = [
        "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}"
            for part in (node.values if isinstance(node, ast.JoinedStr) else [node])
        )
        for name, call in _calls()
        if name == "CaseRejected" and len(call.args) > 1
        for node in call.args[1:2]
        if isinstance(node, ast.Constant | ast.JoinedStr)
    ]
    written = [
        text for text in texts if re.match("[a-z]", text, re.IGNORECASE)
    ]  # the others pass the text of a cause on
    assert len(written) > 150
    assert [text for text in written if not re.match(r"expected (\{\}|.* got )", text, re.IGNORECASE | re.DOTALL)] == []
