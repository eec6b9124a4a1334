"""What the report shows of reader decisions."""

import re

from med_assets.dataset.stage import dataset, splits
from med_assets.reporting.report_facts import gather, report_path
from med_assets.reporting.review_sections import agreement, reader_decisions
from med_assets.reporting.stage import report
from med_assets.review.decisions import decide
from med_assets.settings import Workspace
from tests.med_assets.review.builders import CaseRow, add_cases

P = "rt_dose"


def test_the_report_names_the_cases_that_left_or_entered_by_whom_when_and_why(workspace: Workspace) -> None:
    add_cases(workspace, P, [CaseRow(f"a{n}") for n in range(4)])
    assert list(reader_decisions(gather(workspace, P))) == []
    decide(workspace, P, "a1", "exclude", "motion <b>", "Ana")
    decide(workspace, P, "a1", "exclude", "still", "Ben")
    decide(workspace, P, "a2", "exclude", "noise", "Ana")
    decide(workspace, P, "a2", "accept", "", "Ben")
    decide(workspace, P, "a3", "accept", "", "Ben")
    decide(workspace, P, "a3", "comment", "fine", "Ana")
    dataset(workspace, P)
    splits(workspace, P)
    (section,) = reader_decisions(gather(workspace, P))
    assert section.table is not None
    moved = section.table.sort_values(["case", "what happened"], ascending=[True, False])
    assert moved[["case", "what happened", "decision", "reader", "reason"]].to_numpy().tolist() == [
        ["a1", "left the dataset", "exclude", "Ana", "motion <b>"],
        ["a2", "left the dataset", "exclude", "Ana", "noise"],
        ["a2", "entered it again", "accept", "Ben", ""],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT.*", at) for at in moved["time"])
    assert "5 decisions on 3 cases by 2 readers" in section.text
    assert "Excluded now: 1;" in section.text
    (agreed,) = agreement(gather(workspace, P))
    assert agreed.table is not None
    assert agreed.table["readers"].tolist() == ["Ana, Ben"]
    report(workspace, P)
    page = report_path(workspace, P).read_text()
    assert "<h2>Reader decisions</h2>" in page
    assert "motion &lt;b&gt;" in page
    assert f'href="http://127.0.0.1:3001/{P}/"' in page
