"""Failure drills: what breaks in a night is found, said in words, and mended by the same command."""

import json
import shutil
from pathlib import Path

import pytest

from med_assets import stages
from med_assets.cli import main
from med_assets.files import folder_hashes
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, ingest


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def stored(ws: Workspace) -> dict[str, str]:
    """Hashes of all artifacts; what lies in scratch is none."""
    found = folder_hashes(ws.home / "store")
    return {name: value for name, value in found.items() if not name.startswith("tmp/")}


def damaged_file(ws: Workspace, kind: str) -> Path:
    """A file with content of the first artifact of one kind."""
    folder = ws.store.fetch(ws.store.keys(kind)[0])
    return max((path for path in folder.rglob("*") if path.name != "manifest.json"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("kind", ["raw", "prepared", "intake", "manifest"])
def test_a_flipped_byte_is_found_and_what_it_hit_is_made_again_bit_equal(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    drop(workspace, 1)
    batch = ingest(workspace)
    before = stored(workspace)
    assert main(["verify"]) == 0
    key = workspace.store.keys("prepared" if kind == "manifest" else kind)[0]
    if kind == "manifest":
        (workspace.store.fetch(key) / "manifest.json").write_text('{"cut off')
    else:
        flip(damaged_file(workspace, kind))
    broken = stored(workspace)
    capsys.readouterr()
    assert main(["verify"]) == 1
    told = capsys.readouterr().out
    assert f"corrupt  {key}" in told
    assert "verify --repair" in told
    assert stored(workspace) == broken
    assert main(["verify", "--repair"]) == 0
    told = capsys.readouterr().out
    assert f"removed  {key}" in told
    if kind != "intake":
        assert f"med-assets ingest {P} --batch {batch}" in told
    assert not workspace.store.has(key)
    assert main(["ingest", P, "--batch", batch]) == 0
    assert stored(workspace) == before
    assert main(["verify"]) == 0


def test_corrupt_dicom_is_kept_when_the_landing_zone_no_longer_has_its_files(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = drop(workspace, 1)
    ingest(workspace)
    shutil.rmtree(folder)
    flip(damaged_file(workspace, "raw"))
    (key,) = workspace.store.keys("raw")
    capsys.readouterr()
    assert main(["verify", "--repair"]) == 1
    assert "restore it from a backup" in capsys.readouterr().out
    assert workspace.store.has(key)


def test_an_artifact_that_was_lost_is_found_and_said_and_comes_back(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(workspace, 1)
    batch = ingest(workspace)
    before = stored(workspace)
    for kind in ("raw", "prepared"):
        (workspace.store.fetch(workspace.store.keys(kind)[0]) / "manifest.json").unlink()
    capsys.readouterr()
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.count("missing ") == 2
    quarantined = stages.prepare(workspace, P, batch).tables["quarantine"]
    assert "raw_missing" in json.dumps(quarantined.to_dict("records"))
    assert main(["ingest", P, "--batch", batch]) == 0
    assert stored(workspace) == before
