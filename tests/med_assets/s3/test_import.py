"""AI-READI from a bucket: the tables say which objects are wanted, and one that is missing is a row."""

import csv
from pathlib import Path
from typing import Any

import pytest

from med_assets.cli import main as cli
from med_assets.programs.retinal_oct.phantom import SCANNERS, people, write_dataset
from med_assets.storage.s3 import local
from med_assets.storage.s3.bucket import Location
from tests.med_assets.s3.faults import Faults


def test_participants_come_from_a_bucket_as_from_a_folder_but_for_one_whose_object_is_missing(
    faults: Faults, good: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path / "home"))
    write_dataset(tmp_path / "data", people(13, 0), SCANNERS[:1])
    location = Location(name, "ai-readi/dataset")
    local.upload(tmp_path / "data", location, good)
    lost = sorted((tmp_path / "data").rglob("*.dcm"))[0].relative_to(tmp_path / "data").as_posix()
    good.delete_object(Bucket=name, Key=location.key(lost))
    faults.failing, faults.truncated = 0.1, 0.05
    # 12 of 13 are fewer than 99 %: the command says so after it imported them.
    assert cli.main(["import", "ai-readi", str(location), str(tmp_path / "remote")]) != 0
    assert cli.main(["import", "ai-readi", str(tmp_path / "data"), str(tmp_path / "local")]) == 0
    with (tmp_path / "remote" / ".ai_readi" / "data_errors.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["key"] for row in rows] == [lost]
    whole, part = (
        {path.relative_to(tmp_path / side): path.read_bytes() for path in (tmp_path / side).rglob("*.dcm")}
        for side in ("local", "remote")
    )
    assert len(whole) == 13
    assert len(part) == 12
    assert all(whole[path] == content for path, content in part.items())
