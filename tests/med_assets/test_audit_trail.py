"""The audit trail says what was done and by whom, once, and shows which entry is not as it was written."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from med_assets import program as programs
from med_assets.cli import stages
from med_assets.cli.trail import show
from med_assets.deidentification import audit_trail
from med_assets.deidentification.audit_trail import Kind, entries, record, verify
from med_assets.deidentification.chain import FOLDER, HEAD
from med_assets.deidentification.tally import totals
from med_assets.promotion.champions import PROMOTED, crown
from med_assets.records import Checkpoint
from med_assets.settings import Workspace
from tests.code import Code
from tests.invented import ingest
from tests.shared_phantoms import write_phantoms


def paths(ws: Workspace) -> list[Path]:
    return sorted((ws.home / FOLDER).glob("0*.json"))


def filled(ws: Workspace, n: int = 4) -> Workspace:
    """A home with entries of batches 1 to n."""
    for number in range(1, n + 1):
        record(ws, Kind.BATCH, "rt_dose", f"batch-{number}", {"cases": {}, "profile": "5", "ocr": "off"})
    return ws


def reasons(ws: Workspace) -> list[tuple[int, str]]:
    return [(broken.number, broken.reason) for broken in verify(ws)]


def test_entries_follow_each_other_and_are_verified(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(filled(workspace)) == []
    found = list(entries(workspace))
    assert [entry.number for entry in found] == [1, 2, 3, 4]
    assert [entry.previous for entry in found[1:]] == [entry.hash for entry in found[:-1]]
    assert show(workspace, elements=False) == 0
    assert "4 entries" in capsys.readouterr().out


def test_the_same_again_records_nothing_and_a_change_back_is_recorded(workspace: Workspace) -> None:
    for policy in ("off", "off", "blank", "off"):
        record(workspace, Kind.BATCH, "rt_dose", "batch", {"ocr": policy})
    assert [entry.content["ocr"] for entry in entries(workspace)] == ["off", "blank", "off"]


def test_a_changed_entry_is_named(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    second = paths(filled(workspace))[1]
    second.write_text(second.read_text().replace('"off"', '"blank"'))
    assert [number for number, _ in reasons(workspace)] == [2]
    assert show(workspace, elements=False) == 1
    assert "entry 2" in capsys.readouterr().out


def test_an_entry_that_was_changed_with_its_hash_lacks_the_signature(workspace: Workspace) -> None:
    second = paths(filled(workspace))[1]
    entry = audit_trail.Entry(**{**json.loads(second.read_text()), "person": "somebody else"})
    second.write_text(json.dumps({**asdict(entry), "hash": entry.expected_hash()}))
    assert [number for number, _ in reasons(workspace)] == [2, 3]
    assert "not signed" in reasons(workspace)[0][1]


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_a_missing_entry_is_named_also_the_last(lost: int, workspace: Workspace) -> None:
    paths(filled(workspace))[lost - 1].unlink()
    assert lost in [number for number, reason in reasons(workspace) if reason == "it is missing"]


def test_entries_in_another_order_are_named(workspace: Workspace) -> None:
    _, second, third, _ = paths(filled(workspace))
    content = second.read_text(), third.read_text()
    second.write_text(content[1])
    third.write_text(content[0])
    assert {2, 3} <= {number for number, _ in reasons(workspace)}


def test_a_file_that_is_no_entry_stops_no_work_and_is_named(workspace: Workspace) -> None:
    last = paths(filled(workspace))[-1]
    last.write_text("{")
    record(workspace, Kind.BATCH, "rt_dose", "batch-5", {"ocr": "off"})
    assert [number for number, _ in reasons(workspace)] == [4]


def test_another_key_verifies_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(workspace, 1)
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "8d1f0c7be3a94452917d60ab5e2fc318")
    assert verify(Workspace.from_env()) != []


def test_a_crash_between_an_entry_and_the_head_is_no_damage(workspace: Workspace) -> None:
    head = filled(workspace, 2).home / FOLDER / HEAD
    before = head.read_bytes()
    record(workspace, Kind.BATCH, "rt_dose", "batch-3", {"ocr": "off"})
    head.write_bytes(before)
    assert verify(workspace) == []
    record(workspace, Kind.BATCH, "rt_dose", "batch-4", {"ocr": "off"})
    assert verify(workspace) == []


WRITER = """
import sys
from med_assets.deidentification.audit_trail import Kind, record
from med_assets.settings import Workspace
ws = Workspace.from_env()
for number in range(1000):
    record(ws, Kind.BATCH, "rt_dose", f"{sys.argv[1]}-{number}", {"ocr": "off"})
"""


def test_several_writers_that_are_killed_leave_a_whole_chain(workspace: Workspace) -> None:
    writers = [Code(WRITER, name) for name in ("a", "b")]
    try:
        while len(paths(workspace)) < 20:
            assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert verify(workspace) == []
    assert [entry.number for entry in entries(workspace)] == list(range(1, len(paths(workspace)) + 1))
    record(workspace, Kind.BATCH, "rt_dose", "after", {"ocr": "off"})
    assert verify(workspace) == []


def test_a_batch_is_recorded_once_by_case_and_rule_without_a_value(workspace: Workspace) -> None:
    programs.get("breast_us").write_phantoms(workspace.landing / "breast_us", 1, 1)
    raw, _ = ingest(workspace, "breast_us")
    stages.intake(workspace, "breast_us", raw[0]["batch"])
    (entry,) = entries(workspace)
    assert (entry.kind, entry.subject) == ("batch", raw[0]["batch"])
    (case,) = entry.content["cases"].values()
    assert case["elements"]["pseudonym"]["changed"] == {"PatientID": 2, "PatientName": 2}
    assert case["elements"]["uid"]["kept"]["SOPClassUID"] == 2
    assert case["elements"]["pixels"] == {"changed": {"PixelData": 1}, "kept": {"PixelData": 1}}
    assert all(totals(case["elements"])[outcome] > 0 for outcome in ("kept", "changed", "added"))
    assert "BREAST-PHANTOM" not in paths(workspace)[0].read_text()


def test_a_promotion_and_a_rollback_are_recorded_with_their_person(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_PERSON", "physicist one")
    for name in ("first", "second"):
        with workspace.store.create(f"train/{name}") as folder:
            (folder / "weights").write_text(name)
        model = Checkpoint(
            program="rt_dose", experiment=name, checkpoint=f"train/{name}", experiment_hash="", dataset_version="", n_train=1,
            n_val=1, synthetic=True, weights_sha256="", git_commit=None,
        )  # fmt: skip
        crown(workspace, model, PROMOTED, "better")
    stages.rollback(workspace, "rt_dose", "worse on the newest batch")
    assert [(entry.subject, entry.content["action"], entry.person) for entry in entries(workspace)] == [
        ("train/first", "promoted", "physicist one"),
        ("train/second", "promoted", "physicist one"),
        ("train/first", "rolled back", "physicist one"),
    ]
    assert verify(workspace) == []


def test_what_people_decide_is_recorded_with_their_name(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_PERSON", "reader one")
    write_phantoms("lumbar_mr", workspace.landing / "lumbar_mr", 1, 1)
    raw, _ = ingest(workspace, "lumbar_mr")
    stages.dataset(workspace, "lumbar_mr")
    case, decision = raw[0]["case_id"], next(iter(stages.decisions_of("lumbar_mr")))
    (tmp_path / "queue.csv").write_text(f"case_id,decision\n{case},{decision}\n")
    stages.record(workspace, "lumbar_mr", tmp_path / "queue.csv")
    stages.withdraw(workspace, "lumbar_mr", case, "sent by mistake")
    assert [(entry.kind, entry.subject, entry.person) for entry in entries(workspace)][1:3] == [
        ("reader decision", case, "reader one"),
        ("withdrawal", case, "reader one"),
    ]
    assert verify(workspace) == []
