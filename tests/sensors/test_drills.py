"""A landing zone that can't be read: the sensor says so in words, takes the rest, and loses nothing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from med_assets.landing import batches
from med_assets.settings import Workspace
from tests.sensors.builders import intake

P = "rt_dose"


def drop(ws: Workspace, name: str) -> Path:
    folder = ws.landing / P / name
    folder.mkdir(parents=True)
    (folder / "1.dcm").write_bytes(name.encode())
    return folder


def tick() -> dg.SensorResult:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance)
        found = intake(P)(context)
    assert isinstance(found, dg.SensorResult)
    return found


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Refuse to list a folder, as the kernel does to a user without permission; root, who runs some tests, has it always."""
    for name in ("scandir", "listdir"):
        asked: Callable[..., Any] = getattr(os, name)

        def refusing(path: Any = ".", asked: Callable[..., Any] = asked) -> Any:
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return asked(path)

        monkeypatch.setattr(os, name, refusing)


def test_an_entry_without_permission_is_said_without_its_name_and_the_others_go_on(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = drop(workspace, "SMITH^JOHN")
    drop(workspace, "b")
    with monkeypatch.context() as denied:
        forbid(denied, hidden)
        assert len(tick().run_requests or ()) == 1
        (batch,) = batches.known(workspace, P)
        assert list(batches.manifest(workspace, P, batch)) == ["b"]
        message = batches.waiting(workspace, P, 0.0)
        assert "1 entries are not taken" in message
        assert "Permission denied" in message
        assert "SMITH" not in message
    tick()
    assert list(batches.manifest(workspace, P, batches.known(workspace, P)[1])) == ["SMITH^JOHN"]


def test_a_landing_folder_without_permission_is_said_and_taken_when_it_can_be_read(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(workspace, "a")
    with monkeypatch.context() as denied:
        forbid(denied, workspace.landing / P)
        found = tick()
        assert not found.run_requests
        assert "can't be read (Permission denied)" in str(found.skip_reason)
        assert "nothing of it is lost" in str(found.skip_reason)
    assert len(tick().run_requests or ()) == 1


def test_a_landing_zone_that_vanished_is_said_and_its_return_starts_nothing_twice(workspace: Workspace) -> None:
    drop(workspace, "a")
    tick()
    (batch,) = batches.known(workspace, P)
    workspace.lake.write("raw_cases", f"{P}/{batch}", [])
    elsewhere = workspace.home / "unmounted"
    shutil.move(workspace.landing, elsewhere)
    found = tick()
    assert not found.run_requests
    assert "is not there, though cases came from it before; is it mounted?" in str(found.skip_reason)
    shutil.move(elsewhere, workspace.landing)
    (request,) = tick().run_requests or ()
    assert request.partition_key == batch
    assert batches.known(workspace, P) == [batch]
