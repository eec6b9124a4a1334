"""`med-assets doctor` says what machines that share a home need, and which of them run another code."""

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from med_assets.cli import doctor_site, stages
from med_assets.cli.doctor import BAD, GOOD, WARN, Finding
from med_assets.settings import Workspace
from med_assets.storage.files import write_text
from med_assets.storage.s3 import machines
from med_assets.storage.s3.bucket import Location
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P


@pytest.fixture
def findings(
    workspace: Workspace, faults: Faults, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Finding]]:
    """Findings by subject of a machine whose code and variables are these."""
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(machines, "git_state", lambda: "c" * 40)

    def found(machine: str = "one", **variables: str) -> dict[str, Finding]:
        for key, value in {
            "MED_ASSETS_STORE": f"s3://{name}/site",
            "MED_ASSETS_LANDING": str(tmp_path / "mounted"),
            machines.MACHINE: machine,
            **variables,
        }.items():
            monkeypatch.setenv(key, value)
        return {each.subject: each for each in doctor_site.examine(Workspace.from_env())}

    return found


def test_a_home_that_is_shared_well_has_good_findings(findings: Callable[..., dict[str, Finding]]) -> None:
    found = findings()
    assert {each.state for each in found.values()} == {GOOD}
    assert found.keys() == {"machines", "versioning", "manifests of batches"}
    assert "not needed" in found["versioning"].found


def test_the_home_of_one_machine_has_none(workspace: Workspace) -> None:
    assert list(doctor_site.examine(workspace)) == []


def test_a_machine_with_another_code_is_named(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings("one")
    monkeypatch.setattr(machines, "git_state", lambda: "d" * 40)
    found = findings("two")["machines"]
    assert found.state == WARN
    assert "cccccccccccc" in found.found
    assert "dddddddddddd" in found.found
    assert "install the same code on one" in found.advice
    monkeypatch.setattr(machines, "git_state", lambda: "c" * 40)
    assert findings("two")["machines"].state == GOOD


def test_a_machine_that_was_not_seen_for_a_week_is_forgotten(
    findings: Callable[..., dict[str, Finding]], good: Any, name: str
) -> None:
    old = {"gone": {"version": "0.1", "commit": "a" * 40, "seen_at": "2020-01-01T00:00:00+00:00"}}
    good.put_object(Bucket=name, Key="site/machines.json", Body=json.dumps(old).encode())
    assert findings()["machines"].state == GOOD
    assert set(machines.read_machines(good, Location(name, "site"))) == {"one"}


def test_a_stage_warns_once_of_a_machine_with_another_code(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    findings("one")
    monkeypatch.setattr(machines, "git_state", lambda: "d" * 40)
    monkeypatch.setenv(machines.MACHINE, "two")
    with caplog.at_level(logging.WARNING, "med_assets"):
        for _ in range(2):
            stages.index(Workspace.from_env(), P)
    assert len([record for record in caplog.records if "machine one ran" in record.message]) == 1


def test_manifests_that_can_not_be_written_are_bad_in_a_bucket_and_in_a_folder(
    findings: Callable[..., dict[str, Finding]], faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings()
    faults.read_only = True
    found = findings(MED_ASSETS_LANDING=f"s3://{name}/landing")["manifests of batches"]
    assert found.state == BAD
    assert f"allow s3:GetObject and s3:PutObject below s3://{name}/landing/.batches" in found.advice
    faults.read_only = False
    assert findings(MED_ASSETS_LANDING=f"s3://{name}/landing")["manifests of batches"].state == GOOD

    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert findings()["manifests of batches"].state == BAD


def test_a_landing_folder_within_the_home_is_of_this_machine_alone(
    findings: Callable[..., dict[str, Finding]], workspace: Workspace
) -> None:
    found = findings(MED_ASSETS_LANDING=str(workspace.home / "landing"))["landing folder"]
    assert (found.state, "this machine alone" in found.found) == (WARN, True)


def test_what_this_machine_has_for_itself_is_named(
    findings: Callable[..., dict[str, Finding]], workspace: Workspace
) -> None:
    write_text(workspace.home / "review_logins", "")
    write_text(workspace.home / "network.yaml", "")
    found = findings()
    assert "logins of the review page" in found["review page"].found
    assert "inbox and its queue" in found["network"].found


def test_a_bucket_that_does_not_answer_is_one_finding(
    findings: Callable[..., dict[str, Finding]], faults: Faults
) -> None:
    faults.always = (403, "AccessDenied")
    assert [(each.subject, each.state) for each in findings().values()] == [("shared home", BAD)]
