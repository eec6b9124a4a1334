"""Reports and exported predictions that one machine makes are seen from all."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.cli.sharing import READ_NO_REPORTS
from med_assets.errors import RemoteFailed
from med_assets.operations import pruning
from med_assets.settings import Workspace
from med_assets.storage.files import canonical_json, write_text
from med_assets.storage.s3 import shared_files
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.shared_files import predictions, pull, pull_predictions, push, reports, sharing
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P

Machines = tuple[Workspace, Workspace]


@pytest.fixture
def machines(workspace: Workspace, faults: Faults, name: str, tmp_path: Path) -> Machines:
    """Two machines that share a home."""
    first, second = (
        replace(workspace, home=tmp_path / each, store_location=Location(name, "site")) for each in ("a", "b")
    )
    return first, second


def texts(folder: Path) -> dict[str, str]:
    """Content of the files below a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_one_machine_reports_another_reads_and_nothing_comes_twice(machines: Machines, faults: Faults) -> None:
    a, b = machines
    write_text(a.reports / "README.md", "all programs")
    write_text(a.reports / P / "report.html", "a report")
    write_text(a.reports / P / "plots" / "one.svg", "a plot")
    push(a, P)
    pull(b, P)
    assert texts(b.reports) == texts(a.reports) != {}
    faults.done.clear()
    push(a, P)
    push(b, P)
    pull(b, P)
    assert faults.done["PUT object"] == 0
    assert faults.done["GET object"] == 2  # the indexes
    assert not list((a.home / "tmp").rglob("*.svg"))


def test_a_newer_report_takes_the_place_of_the_older_one_in_both_directions(machines: Machines) -> None:
    a, b = machines
    write_text(a.reports / P / "report.html", "first")
    write_text(a.reports / P / "other.html", "other")
    push(a, P)
    pull(b, P)
    write_text(b.reports / P / "report.html", "second")
    push(b, P)
    pull(a, P)
    assert texts(a.reports / P) == {"report.html": "second", "other.html": "other"}


def test_what_was_written_here_and_not_pushed_yet_stays(machines: Machines) -> None:
    a, b = machines
    write_text(a.reports / P / "queue.csv", "case,decision")
    push(a, P)
    pull(b, P)
    write_text(b.reports / P / "queue.csv", "case,decision\n1,normal")
    write_text(a.reports / P / "queue.csv", "case,decision\n2,")
    push(a, P)
    pull(b, P)
    assert texts(b.reports / P) == {"queue.csv": "case,decision\n1,normal"}
    push(b, P)
    pull(a, P)
    assert texts(a.reports / P) == {"queue.csv": "case,decision\n1,normal"}


def test_deleting_here_deletes_nothing_in_the_bucket_and_a_deleted_home_gets_all_back(machines: Machines) -> None:
    a, b = machines
    write_text(a.reports / P / "report.html", "a report")
    push(a, P)
    shutil.rmtree(a.home)
    push(a, P)
    pull(b, P)
    pull(a, P)
    assert texts(a.reports / P) == texts(b.reports / P) == {"report.html": "a report"}
    shutil.rmtree(a.home / "tmp")  # the record is lost
    pull(a, P)
    assert texts(a.reports / P) == {"report.html": "a report"}


def test_machines_that_push_at_the_same_time_lose_nothing(machines: Machines) -> None:
    def push_some(number: int) -> None:
        ws = replace(machines[0], home=machines[0].home.with_name(f"machine{number}"))
        for each in range(3):
            write_text(ws.reports / P / f"{number}-{each}.md", f"{number} {each}")
            push(ws, P)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(push_some, range(4)))
    pull(machines[1], P)
    assert texts(machines[1].reports / P) == {f"{n}-{m}.md": f"{n} {m}" for n in range(4) for m in range(3)}


def test_faults_of_the_bucket_change_nothing(
    machines: Machines, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_files, "SMALL_BYTES", 100)
    faults.failing, faults.truncated, faults.corrupt = 0.1, 0.05, 0.05
    for number in range(12):
        write_text(machines[0].reports / P / f"{number}.svg", f"{number}" * (10 if number % 2 else 1000))
    push(machines[0], P)
    pull(machines[1], P)
    assert texts(machines[1].reports) == texts(machines[0].reports)
    assert len(texts(machines[1].reports)) == 12


def test_where_a_file_does_not_come_nothing_is_changed(machines: Machines, faults: Faults) -> None:
    a, b = machines
    write_text(a.reports / P / "report.html", "first")
    push(a, P)
    pull(b, P)
    write_text(a.reports / P / "report.html", "second")
    write_text(a.reports / P / "plot.svg", "a plot")
    push(a, P)
    faults.always, faults.always_after = (403, "AccessDenied"), faults.done["GET object"] + 2
    with pytest.raises(RemoteFailed):
        pull(b, P)
    assert texts(b.reports / P) == {"report.html": "first"}
    faults.always = None
    pull(b, P)
    assert texts(b.reports / P) == texts(a.reports / P)


def test_a_file_that_the_bucket_lost_or_damaged_stops_nothing_and_is_named(
    machines: Machines, good: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = machines
    for each in ("lost", "damaged", "whole"):
        write_text(a.reports / P / f"{each}.md", each)
    push(a, P)
    files = reports(a)
    assert files is not None
    keys = {each: f"site/shared/reports/{content.object}" for each, content in files.index(P).items()}
    good.delete_object(Bucket=name, Key=keys[f"{P}/lost.md"])
    good.put_object(Bucket=name, Key=keys[f"{P}/damaged.md"], Body=b"other bytes")
    pull(b, P)
    assert texts(b.reports / P) == {"whole.md": "whole"}
    assert "2 files of" in caplog.text
    for each in ("lost", "damaged"):
        write_text(a.reports / P / f"{each}.md", f"{each} and made again")
    push(a, P)
    pull(b, P)
    assert texts(b.reports / P) == texts(a.reports / P)


def test_a_lost_record_lets_nothing_old_go_over_what_is_newer(machines: Machines) -> None:
    a, b = machines
    write_text(a.reports / P / "report.html", "first")
    push(a, P)
    pull(b, P)
    write_text(b.reports / P / "report.html", "second")
    push(b, P)
    shutil.rmtree(a.home / "tmp" / "shared")
    push(a, P)
    assert texts(a.reports / P) == {"report.html": "first"}
    pull(a, P)
    assert texts(a.reports / P) == {"report.html": "second"}


def test_what_a_stage_wrote_is_not_overwritten_by_a_pull_before_it_is_pushed(machines: Machines) -> None:
    a, b = machines
    write_text(a.predictions / P / "case1" / "dose.txt", "1 Gy")
    push(a, P)
    with sharing(b, P, reads=False):
        write_text(b.predictions / P / "case1" / "dose.txt", "2 Gy")
        pull_predictions(b, P, ["case1"])
    pull_predictions(a, P, ["case1"])
    assert texts(a.predictions) == texts(b.predictions) == {f"{P}/case1/dose.txt": "2 Gy"}


def test_objects_of_earlier_reports_are_removed_and_what_is_named_again_is_written_again(
    machines: Machines, good: Any, name: str
) -> None:
    a, b = machines
    for text in ("first", "second"):
        write_text(a.reports / P / "report.html", text)
        push(a, P)
    files = reports(a)
    assert files is not None
    assert files.unused(older_than_s=3600) == []
    (old,) = files.unused(older_than_s=-3600)
    write_text(a.reports / P / "report.html", "first")
    push(a, P)
    assert files.remove(old.key, older_than_s=3600) is False
    (old,) = files.unused(older_than_s=-3600)
    assert files.remove(old.key, older_than_s=-3600) is True
    assert files.unused(older_than_s=-3600) == []
    pull(b, P)
    assert texts(b.reports / P) == {"report.html": "first"}


@pytest.mark.parametrize("listed", ["../../evil.sh", "/etc/evil", f"{P}/../../evil.sh"])
def test_an_index_can_not_write_outside_its_folder(machines: Machines, good: Any, name: str, listed: str) -> None:
    content = canonical_json({"files": {listed: ["0" * 64, 1]}}).encode()
    good.put_object(Bucket=name, Key=f"site/shared/reports/index/{P}.json", Body=content)
    with pytest.raises(RemoteFailed, match="remove that object"):
        pull(machines[1], P)


def test_the_prediction_of_a_case_is_whole_and_its_files_of_before_go(machines: Machines) -> None:
    a, b = machines
    for case in ("case1", "case2"):
        write_text(a.predictions / P / case / "old.nii", f"old {case}")
    push(a, P)
    pull_predictions(b, P, ["case1"])
    assert texts(b.predictions) == {f"{P}/case1/old.nii": "old case1"}
    (a.predictions / P / "case1" / "old.nii").unlink()
    write_text(a.predictions / P / "case1" / "new.nii", "new")
    push(a, P)
    pull_predictions(b, P, ["case1"])
    assert texts(b.predictions) == {f"{P}/case1/new.nii": "new"}
    files = predictions(b)
    assert files is not None
    assert list(files.index(f"{P}/case2")) == [f"{P}/case2/old.nii"]


def test_what_a_stage_removes_is_removed_for_all_and_what_a_person_removes_is_not(machines: Machines) -> None:
    a, b = machines
    for each in ("record.json", "kept.md", "rewritten.md", "of_a_person.md"):
        write_text(a.reports / P / each, each)
    push(a, P)
    (a.reports / P / "of_a_person.md").unlink()
    with sharing(a, P, reads=True):
        (a.reports / P / "record.json").unlink()
        (a.reports / P / "rewritten.md").unlink()
        pull(b, P)
        write_text(b.reports / P / "rewritten.md", "by another machine meanwhile")
        push(b, P)
    for ws in machines:
        shutil.rmtree(ws.reports)
        pull(ws, P)
        assert texts(ws.reports / P) == {
            "kept.md": "kept.md",
            "rewritten.md": "by another machine meanwhile",
            "of_a_person.md": "of_a_person.md",
        }
    with sharing(a, P, reads=False):
        shutil.rmtree(a.reports)
    pull(a, P)
    assert len(texts(a.reports / P)) == 3


def test_a_stage_that_reads_no_reports_fetches_none_and_leaves_its_own(machines: Machines) -> None:
    a, b = machines
    write_text(a.reports / P / "report.html", "a report")
    write_text(a.reports / P / "plot.svg", "of the first machine")
    push(a, P)
    with sharing(b, P, reads=False):
        write_text(b.reports / P / "plot.svg", "of the second machine")
    assert texts(b.reports / P) == {"plot.svg": "of the second machine"}
    pull(a, P)
    assert texts(a.reports / P) == {"report.html": "a report", "plot.svg": "of the second machine"}


def test_stages_that_read_no_reports_are_stages() -> None:
    assert stages.MODULES.keys() > READ_NO_REPORTS


def test_the_home_of_one_machine_shares_nothing(workspace: Workspace) -> None:
    write_text(workspace.reports / P / "report.html", "a report")
    push(workspace, P)
    pull(workspace, P)
    pull_predictions(workspace, P, ["case1"])
    assert not (workspace.home / "tmp").exists()


def test_a_stage_finds_the_reports_of_another_machine_and_leaves_its_own_for_it(
    machines: Machines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    write_text(a.reports / P / "experiments" / "unet" / "note.md", "of the first machine")
    stages.index(a, P)
    stages.index(b, P)
    assert texts(b.reports)[f"{P}/experiments/unet/note.md"] == "of the first machine"
    assert texts(b.reports).keys() == texts(a.reports).keys()
    monkeypatch.setenv("MED_ASSETS_HOME", str(b.home))
    monkeypatch.setenv("MED_ASSETS_STORE", str(b.store_location))
    write_text(a.predictions / P / "0123456789abcdef" / "dose.txt", "1 Gy")
    stages.index(a, P)
    assert main(["pull", P, "0123456789abcdef"]) == 0
    assert f"{b.predictions / P / '0123456789abcdef'}: 1 files" in capsys.readouterr().out
    assert texts(b.predictions) == {f"{P}/0123456789abcdef/dose.txt": "1 Gy"}
    monkeypatch.delenv("MED_ASSETS_STORE")
    assert main(["pull", P]) == 1
    assert "MED_ASSETS_STORE shares it" in capsys.readouterr().err


def test_prune_lists_and_removes_earlier_versions_that_are_old_enough(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = machines
    monkeypatch.setenv("MED_ASSETS_HOME", str(a.home))
    monkeypatch.setenv("MED_ASSETS_STORE", str(a.store_location))
    for text in ("first", "second"):
        write_text(a.reports / P / "report.html", text)
        push(a, P)
    assert main(["prune", "--days", "0", "--yes"]) == 0
    assert "removed 0" in capsys.readouterr().out
    monkeypatch.setattr(pruning, "SHORTEST_DAYS", -1.0)
    assert main(["prune", "--days", "0"]) == 0
    assert "earlier file" in capsys.readouterr().out
    assert main(["prune", "--days", "0", "--yes"]) == 0
    assert "removed 1" in capsys.readouterr().out
    pull(a, P)
    assert texts(a.reports / P) == {"report.html": "second"}
