"""A decision has its row and its entry in the audit trail or neither, wherever the process is killed."""

import signal
from collections.abc import Callable

import pytest

from med_assets.catalog import Catalog
from med_assets.cli.trail import show
from med_assets.deidentification import audited_rows
from med_assets.deidentification.audit_trail import Kind, entries, record, verify
from med_assets.deidentification.audited_rows import COMPLETED, append_waiting, complete, unmatched, write_row
from med_assets.deidentification.chain import FOLDER, WAITING
from med_assets.errors import ConfigurationError
from med_assets.records import BatchAudit, Champion, ReaderDecision, Withdrawal
from med_assets.settings import Settings, Workspace
from med_assets.storage.record import Record
from tests.code import Code

DECISION = ReaderDecision(
    program="lumbar_mr",
    case_id="case1",
    version="v1",
    decision="normal",
    note="a note",
    read_at="2026-11-29T10:00:00+00:00",
    reader="reader one",
)
PROMOTION = Champion(
    program="rt_dose", experiment="unet", checkpoint="checkpoint/1", dataset_version="d", n_train=3,
    promoted_at="2026-11-29T10:00:00+00:00", action="promoted", reason="better",
)  # fmt: skip
WITHDRAWAL = Withdrawal(program="lung_ct", case_id="case2", reason="consent")
ACCEPTED = BatchAudit(
    program="lung_ct", batch="batch", n_cases=2, n_quarantined=2, max_quarantined_share=0.5, min_cases=1, held_back=False,
    accepted_because="a test",
)  # fmt: skip
ROWS = {Kind.DECISION: DECISION, Kind.CHAMPION: PROMOTION, Kind.WITHDRAWAL: WITHDRAWAL, Kind.ACCEPTED: ACCEPTED}

KILLED = """
import os, signal, sys
from med_assets.deidentification import audit_trail, audited_rows
from med_assets.deidentification.chain import WAITING
from med_assets.settings import Workspace
from tests.med_assets.test_audited_rows import ROWS
kind, point = audit_trail.Kind(sys.argv[1]), int(sys.argv[2])
replaced, write = 0, os.replace
def step(event, args):
    # Each file that is put in its place: the waiting entry, the row, the entry, the head; then the removal.
    global replaced
    if event == "os.rename" or (event == "os.remove" and str(args[0]).endswith(WAITING)):
        if replaced == point:
            os.kill(os.getpid(), signal.SIGKILL)
        replaced += 1
ws = Workspace.from_env()
sys.addaudithook(step)
audited_rows.write_row(ws, kind, ROWS[kind])
"""


def rows(ws: Workspace, row: Record) -> list[Record]:
    return Catalog(ws, row.program).rows(type(row))


@pytest.mark.parametrize(
    ("kind", "point"),
    [(Kind.DECISION, point) for point in range(5)] + [(kind, 2) for kind in ROWS if kind is not Kind.DECISION],
)
def test_a_kill_at_any_step_leaves_row_and_entry_or_neither_after_the_next_record(
    kind: Kind, point: int, workspace: Workspace
) -> None:
    killed = Code(KILLED, kind, str(point))
    killed.communicate(timeout=60)
    assert killed.poll() == -signal.SIGKILL
    row = ROWS[kind]
    written = rows(workspace, row)
    assert len(written) == (point >= 2)
    record(workspace, Kind.BATCH, "rt_dose", "later", {"ocr": "off"})
    append_waiting(workspace)
    found = [entry for entry in entries(workspace) if entry.kind == kind]
    assert len(found) == len(written)
    assert not (workspace.home / FOLDER / WAITING).exists()
    assert (verify(workspace), unmatched(workspace)) == ([], [])
    write_row(workspace, kind, row)  # the same command again
    assert rows(workspace, row)[-1] == row
    assert (verify(workspace), unmatched(workspace)) == ([], [])


def test_an_entry_that_waited_has_the_person_and_time_of_the_decision(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_PERSON", "reader one")
    monkeypatch.setattr(audited_rows, "append", _fails)
    with pytest.raises(OSError, match="no space"):
        write_row(workspace, Kind.DECISION, DECISION)
    monkeypatch.undo()
    monkeypatch.setenv("MED_ASSETS_PERSON", "somebody else")
    write_row(workspace, Kind.WITHDRAWAL, WITHDRAWAL)
    assert [(entry.kind, entry.person) for entry in entries(workspace)] == [
        (Kind.DECISION, "reader one"),
        (Kind.WITHDRAWAL, "somebody else"),
    ]


def _fails(*_: object) -> None:
    raise OSError("no space")


def test_what_waits_without_a_signature_of_this_home_gets_no_entry(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audited_rows, "append", _fails)
    with pytest.raises(OSError, match="no space"):
        write_row(workspace, Kind.DECISION, DECISION)
    monkeypatch.undo()
    path = workspace.home / FOLDER / WAITING
    path.write_text(path.read_text().replace("normal", "wrong"))
    assert not append_waiting(workspace)
    assert list(entries(workspace)) == []
    assert [(each.subject, each.number) for each in unmatched(workspace)] == [("case1", None)]


def test_the_trail_names_a_row_without_entry_and_completes_it_when_asked(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    Catalog(workspace, "lumbar_mr").append(ReaderDecision, [DECISION], "case1")
    assert show(workspace, elements=False) == 1
    assert "row without entry: reader decision lumbar_mr case1" in capsys.readouterr().out
    assert show(workspace, elements=False, completed=True) == 0
    assert show(workspace, elements=False) == 0
    (entry,) = entries(workspace)
    assert COMPLETED in entry.content
    assert complete(workspace) == []
    assert len(list(entries(workspace))) == 1


def _removed(ws: Workspace) -> None:
    Catalog(ws, "lumbar_mr").file(ReaderDecision, "case1").unlink()


def _changed(ws: Workspace) -> None:
    row = ReaderDecision.of(DECISION.row() | {"decision": "other"})
    Catalog(ws, "lumbar_mr").replace(ReaderDecision, [row], "case1")


@pytest.mark.parametrize(("damage", "without_entry"), [(_removed, 0), (_changed, 1)])
def test_the_trail_names_an_entry_whose_row_is_gone_or_changed(
    damage: Callable[[Workspace], None],
    without_entry: int,
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_row(workspace, Kind.DECISION, DECISION)
    damage(workspace)
    assert show(workspace, elements=False) == 1
    out = capsys.readouterr().out
    assert "entry without row: entry 1: reader decision lumbar_mr case1" in out
    assert out.count("row without entry") == without_entry


def test_only_the_last_withdrawal_of_a_case_counts(workspace: Workspace) -> None:
    write_row(workspace, Kind.WITHDRAWAL, WITHDRAWAL)
    write_row(workspace, Kind.WITHDRAWAL, Withdrawal.of(WITHDRAWAL.row() | {"reason": "sent by mistake"}))
    assert unmatched(workspace) == []
    assert len(list(entries(workspace))) == 2


def test_a_batch_that_nobody_accepted_has_no_entry_of_that(workspace: Workspace) -> None:
    row = BatchAudit.of(ACCEPTED.row() | {"accepted_because": None})
    Catalog(workspace, "lung_ct").replace(BatchAudit, [row], "batch")
    assert unmatched(workspace) == []
    with pytest.raises(ConfigurationError, match="accepted_because"):
        write_row(workspace, Kind.ACCEPTED, row)


def test_without_a_key_neither_row_nor_entry_is_written(workspace: Workspace) -> None:
    settings = Settings(home=workspace.home, landing=workspace.landing)
    with pytest.raises(ConfigurationError, match="key"):
        write_row(settings, Kind.DECISION, DECISION)
    assert rows(workspace, DECISION) == []
