"""Decisions of readers: what they do to the dataset, and that none is ever lost."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from assets.batch_content import prepared_cases
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.dataset.stage import dataset, splits, unlabelled, up_to_date, withdraw
from med_assets.deidentification import audit_trail
from med_assets.deidentification.audited_rows import unmatched
from med_assets.errors import ConfigurationError
from med_assets.promotion.champions import rollback
from med_assets.records import CaseVersion, Champion, ReaderDecision, Status
from med_assets.review import decisions
from med_assets.review.decisions import MAX_NOTE_CHARS, decide, record_correction
from med_assets.review.explain import explain_case
from med_assets.settings import Workspace
from tests.med_assets.review.builders import BATCH, CaseRow, add_cases, client, send_again, token_of

P, OTHER = "rt_dose", "lumbar_mr"
LATER = "2026-02-01T09-30-00_0a1b2c"


def cases_of(ws: Workspace, program: str = P) -> list[str]:
    return [case.case_id for case in Catalog(ws, program).dataset().cases]


def made(ws: Workspace, program: str = P) -> list[tuple[str, str, str | None]]:
    return [(row.case_id, row.decision, row.reader) for row in Catalog(ws, program).rows(ReaderDecision)]


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    add_cases(
        workspace,
        P,
        [CaseRow("a1"), CaseRow("a2"), CaseRow("b1", Status.QUARANTINED, "no dose"), CaseRow("t1", Status.TO_PREDICT)],
    )
    return workspace


def test_an_exclusion_changes_the_dataset_and_what_depends_on_it_and_an_acceptance_restores_it(ws: Workspace) -> None:
    add_cases(ws, OTHER, [CaseRow("o1")])
    before, other = Catalog(ws, P).dataset(), Catalog(ws, OTHER).dataset().cases
    content = prepared_cases(Catalog(ws, P))
    assert not decide(ws, P, "a1", "comment", "a clip").changes_dataset
    assert not decide(ws, P, "a2", "accept").changes_dataset
    assert up_to_date(ws, P)
    assert prepared_cases(Catalog(ws, P)) == content, "what changes no dataset starts no run"
    recorded = decide(ws, P, "a1", "exclude", "motion", "reader two")
    assert recorded.changes_dataset
    assert not up_to_date(ws, P)
    assert prepared_cases(Catalog(ws, P)) != content
    result = dataset(ws, P)
    splits(ws, P)
    assert cases_of(ws) == ["a2"]
    assert "excluded by reader two at " in explain_case(ws, "a1")
    assert result.counts["excluded"] == 1
    assert result.data_version != before.version
    assert Catalog(ws, OTHER).dataset().cases == other
    assert not decide(ws, P, "a1", "exclude", "motion, again").changes_dataset
    assert decide(ws, P, "a1", "accept").changes_dataset
    assert dataset(ws, P).data_version == before.version
    assert prepared_cases(Catalog(ws, P)) != content, "the run that made this dataset once is not that of now"
    assert {row.patient_id for row in Catalog(ws, P).assignments().values()} >= {"pa1", "pa2"}


def test_a_decision_of_a_machine_whose_clock_is_late_counts(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Late":
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(decisions, "datetime", Late)
    for decision in ("exclude", "accept"):
        decide(ws, P, "a1", decision, "motion")
        assert not up_to_date(ws, P)
        dataset(ws, P)
        splits(ws, P)
        assert up_to_date(ws, P)
    assert cases_of(ws) == ["a1", "a2"]


def test_a_case_to_predict_that_is_excluded_is_not_predicted(ws: Workspace) -> None:
    assert [case.case_id for case in unlabelled(ws, P)] == ["t1"]
    decide(ws, P, "t1", "exclude", "not a plan")
    assert unlabelled(ws, P) == []
    decide(ws, P, "t1", "accept")
    assert [case.case_id for case in unlabelled(ws, P)] == ["t1"]


@pytest.mark.parametrize(
    ("case", "decision", "note", "message"),
    [
        ("a1", "exclude", "  ", "expected a reason"),
        ("a1", "comment", "", "expected a text"),
        ("a1", "sacralised", "", "expected a decision of accept, exclude, comment"),
        ("nobody", "accept", "", "unknown"),
        ("b1", "exclude", "x", "quarantined"),
        ("a1", "comment", "x" * (MAX_NOTE_CHARS + 1), "at most 2000"),
    ],
)
def test_what_can_not_be_decided_is_refused_and_records_nothing(
    ws: Workspace, case: str, decision: str, note: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        decide(ws, P, case, decision, note)
    assert made(ws) == []


def test_every_decision_is_kept_with_its_reader_and_is_in_the_audit_trail(ws: Workspace) -> None:
    decide(ws, P, "a1", "exclude", "motion", "Ana")
    decide(ws, P, "a1", "accept", "", "Ben")
    decide(ws, P, "b1", "comment", "ask the sender", "Ana")
    assert made(ws) == [("a1", "exclude", "Ana"), ("a1", "accept", "Ben"), ("b1", "comment", "Ana")]
    entries = [entry for entry in audit_trail.entries(ws) if entry.kind == audit_trail.Kind.DECISION]
    assert [(entry.person, entry.subject, entry.content["decision"]) for entry in entries] == [
        ("Ana", "a1", "exclude"), ("Ben", "a1", "accept"), ("Ana", "b1", "comment"),
    ]  # fmt: skip
    assert audit_trail.verify(ws) == []
    assert unmatched(ws) == []


def test_decisions_of_readers_who_write_at_once_are_all_there(ws: Workspace) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(
            threads.map(lambda n: decide(ws, P, f"a{n % 2 + 1}", "comment", f"note {n}", f"reader {n % 3}"), range(12))
        )
    notes = sorted(row.note for row in Catalog(ws, P).rows(ReaderDecision))
    assert notes == sorted(f"note {n}" for n in range(12))
    assert audit_trail.verify(ws) == []
    assert unmatched(ws) == []


@pytest.mark.parametrize("same_images", [True, False])
def test_a_decision_survives_a_case_that_is_sent_again(ws: Workspace, same_images: bool) -> None:
    decide(ws, P, "a1", "exclude", "motion")
    dataset(ws, P)
    send_again(ws, P, "a1", LATER, same_images=same_images)
    assert cases_of(ws) == ["a2"], "it stays out until a reader accepts it"
    add_cases(ws, P, [CaseRow("a1"), CaseRow("a2")], BATCH)
    assert cases_of(ws) == ["a2"], "nor does a batch that is taken in once more bring it in"
    decide(ws, P, "a1", "accept")
    dataset(ws, P)
    assert {case.case_id: case.version for case in Catalog(ws, P).dataset().cases} == {"a1": "va12", "a2": "va2"}


def test_a_decision_survives_a_rollback(ws: Workspace) -> None:
    decide(ws, P, "a1", "exclude", "motion")
    dataset(ws, P)
    champions = [
        Champion.of({
            "program": P, "experiment": name, "checkpoint": f"checkpoint/{name}", "dataset_version": "0", "n_train": 1,
            "promoted_at": f"2026-01-0{day}T00:00:00+00:00", "action": "promoted", "reason": "better",
        })
        for day, name in ((1, "first"), (2, "second"))
    ]  # fmt: skip
    Catalog(ws, P).replace(Champion, champions)
    for row in champions:
        with ws.store.create(row.checkpoint):
            pass
    rollback(ws, P, "worse in practice")
    dataset(ws, P)
    assert cases_of(ws) == ["a2"]
    assert made(ws)[0][:2] == ("a1", "exclude")


def test_what_was_withdrawn_does_not_come_in_by_an_acceptance(ws: Workspace) -> None:
    withdraw(ws, P, "a1", "consent")
    decide(ws, P, "a1", "accept")
    dataset(ws, P)
    assert cases_of(ws) == ["a2"]


def test_a_decision_of_an_earlier_version_has_no_reader_and_counts(ws: Workspace) -> None:
    row = {
        "program": P,
        "case_id": "a1",
        "version": "va1",
        "decision": "exclude",
        "note": "",
        "read_at": "2025-01-01T00:00:00+00:00",
    }
    ws.lake.write("reads", f"{P}/a1", [row])
    assert made(ws) == [("a1", "exclude", None)]
    assert Catalog(ws, P).excluded() == {"a1"}
    decide(ws, P, "a1", "accept", "", "Ana")
    assert made(ws) == [("a1", "exclude", None), ("a1", "accept", "Ana")]


def test_a_browser_decides_and_the_dataset_follows(ws: Workspace) -> None:
    with client(ws) as browser:
        token = token_of(browser)
        path = f"/{P}/cases/a1/decisions"
        query = {"query": "why=all&text=a1"}
        answer = browser.post(path, data={"token": token, "decision": "exclude", "note": "<i>motion</i>", **query})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/{P}/cases/a1?why=all&text=a1")
        page = browser.get(f"/{P}/cases/a1").text
        assert "&lt;i&gt;motion" in page
        assert "<i>motion" not in page
        script = {"x-review-token": token, "x-partial": "true"}
        assert browser.post(path, data={"decision": "accept"}, headers=script).status_code == 204
        assert browser.post(path, data={"decision": "correct", "note": "x"}, headers=script).status_code == 422
        answer = browser.post(path, data={"decision": "exclude", "note": " "}, headers=script)
        assert (answer.status_code, answer.text) == (422, "expected a reason with exclude, got none")
        assert (
            browser.post(f"/{P}/cases/..%2fa1/decisions", data={"decision": "accept"}, headers=script).status_code
            == 404
        )
        assert browser.post(path, data={"decision": "exclude", "note": "noise"}, headers=script).status_code == 204
    assert cases_of(ws) == ["a2"], "the dataset is written before the server ends"
    assert [one[1:] for one in made(ws)] == [(each, "reader one") for each in ("exclude", "accept", "exclude")]


def test_the_same_images_are_needed_for_an_answer_and_not_for_an_exclusion(
    workspace: Workspace, tmp_path: Path
) -> None:
    from med_assets.dataset.reader_decisions import decided

    add_cases(workspace, OTHER, [CaseRow("a1"), CaseRow("a2")])
    decide(workspace, OTHER, "a1", "sacralised", "", "Ana")
    decide(workspace, OTHER, "a1", "comment", "sure", "Ana")
    decide(workspace, OTHER, "a1", "accept", "", "Ben")
    record_correction(workspace, OTHER, "a1", "label of L4", "Ben")
    assert decided(workspace, OTHER) == {"a1": "sacralised"}
    path = tmp_path / "queue.csv"
    path.write_text("case_id,decision,note\na2,normal,\n")
    stages.record(workspace, OTHER, path, "Ben")
    assert made(workspace, OTHER)[-1] == ("a2", "normal", "Ben")
    send_again(workspace, OTHER, "a1", LATER, same_images=False)
    assert decided(workspace, OTHER) == {"a2": "normal"}
    assert [row.status for row in Catalog(workspace, OTHER).rows(CaseVersion, LATER)] == ["ok"]
