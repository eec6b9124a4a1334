"""Small files that are written often: seen whole or not at all, and for their owner alone."""

from pathlib import Path

import pytest

from med_assets.storage.files import write_bytes


def test_bytes_replace_what_was_there_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    for content in (b"first", b"second, and longer"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]


def test_a_write_that_fails_leaves_what_was_there_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_bytes(path, b"content")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
    assert (path / "inside").is_dir()
