"""What a result records of the code and of the machine that made it."""

import json
import platform
import subprocess
from pathlib import Path

from med_assets.storage.provenance import DIRTY, GIT_STATE, state_of
from med_assets.training.hardware import hardware, processor


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_tree_is_dirty_when_a_file_differs_or_code_was_never_added(tmp_path: Path) -> None:
    assert state_of(tmp_path) == "unknown"
    (tmp_path / GIT_STATE).write_text("1234abcd\n")
    assert state_of(tmp_path) == "1234abcd", "an image has no checkout, and says what it was built from"
    (tmp_path / GIT_STATE).unlink()
    git(tmp_path, "init", "--quiet")
    (tmp_path / "conf").mkdir()
    for name in ("notes.md", "conf/known.yaml"):
        (tmp_path / name).write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "other.txt").write_text("of no result\n")
    assert state_of(tmp_path) == commit
    (tmp_path / "conf" / "new.yaml").write_text("lr: 1\n")
    assert state_of(tmp_path) == commit + DIRTY
    (tmp_path / "conf" / "new.yaml").unlink()
    (tmp_path / "notes.md").write_text("two\n")
    assert state_of(tmp_path) == commit + DIRTY


def test_hardware_is_named_and_the_machine_is_not(tmp_path: Path) -> None:
    found = hardware("cpu")
    assert found["cores"] >= 1
    assert found["memory_gb"] >= 1
    assert found["accelerator"] is None
    assert platform.node() not in json.dumps(found)
    described = tmp_path / "cpuinfo"
    described.write_text("vendor_id : x\nmodel name\t: Some  CPU @ 3 GHz\n")
    assert processor(described) == "Some CPU @ 3 GHz"
    assert processor(tmp_path / "absent")
