"""Objects arrive whole and right or are reported, whatever the network does; and none is fetched twice."""

import os
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from med_assets.storage.s3 import body, bucket, index, staging
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.index import listed
from med_assets.storage.s3.staging import Staging, Wanted
from tests.med_assets.s3.faults import Faults

PART = 64 * 1024


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, and short pauses between tries."""
    monkeypatch.setattr(staging, "PART_BYTES", PART)
    monkeypatch.setattr(body, "LONGEST_PAUSE_S", 0.05)


def fill(good: Any, name: str, sizes: dict[str, int]) -> dict[str, bytes]:
    """Random objects of these sizes."""
    contents = {key: os.urandom(size) for key, size in sizes.items()}
    for key, content in contents.items():
        good.put_object(Bucket=name, Key=key, Body=content)
    return contents


def cache(name: str, root: Path, limit_bytes: float = 1e9) -> Staging:
    """A cache as a new process has it."""
    return Staging(bucket.client(), name, root, limit_bytes)


def wanted(*keys: str) -> list[Wanted]:
    return [Wanted(f"participant of {key}", key) for key in keys]


def test_with_failing_truncated_and_hanging_requests_all_bytes_are_right_and_the_missing_object_is_a_row(
    faults: Faults, good: Any, name: str, tmp_path: Path
) -> None:
    contents = fill(
        good, name, {f"case/{number}": 500 + number for number in range(60)} | {"case/large": 10 * PART + 7}
    )
    faults.failing, faults.truncated, faults.hanging = 0.1, 0.05, 0.02
    faults.missing = {"case/3"}
    paths, failures = cache(name, tmp_path / "cache").fetch(wanted(*contents), tmp_path / "into")
    assert {key: path.read_bytes() for key, path in paths.items()} == {
        key: content for key, content in contents.items() if key != "case/3"
    }
    (row,) = failures
    assert (row.participant_id, row.key) == ("participant of case/3", "case/3")
    assert row.exception == "NoSuchKey: there is no such object"
    assert min(faults.done[kind] for kind in ("failing", "truncated", "hanging")) > 0


@pytest.mark.parametrize("size", [1000, 5 * PART + 3])
@pytest.mark.parametrize("kind", ["corrupt", "lies_about_length"])
def test_wrong_bytes_under_a_right_header_are_noticed_by_length_or_etag(
    faults: Faults, good: Any, name: str, tmp_path: Path, kind: str, size: int
) -> None:
    contents = fill(good, name, {"a": size})
    faults.corrupt, faults.truncated, faults.lies_about_length = (
        (1.0, 0.0, False) if kind == "corrupt" else (0, 1.0, True)
    )
    paths, (row,) = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into")
    assert not paths
    assert row.exception.split(":")[0] == ("Corrupt" if kind == "corrupt" else "Truncated")
    assert not list((tmp_path / "cache" / "objects").glob("*/*"))
    faults.corrupt = faults.truncated = 0.0
    paths, failures = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into")
    assert (paths["a"].read_bytes(), failures) == (contents["a"], [])


def test_an_object_uploaded_in_parts_is_checked_by_the_parts(
    faults: Faults, good: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PART_BYTES", 2**20)
    content = os.urandom(5 * 2**20 + 1000)
    upload = good.create_multipart_upload(Bucket=name, Key="a")["UploadId"]
    pieces = [content[: 5 * 2**20], content[5 * 2**20 :]]
    tags = [
        good.upload_part(Bucket=name, Key="a", UploadId=upload, PartNumber=number, Body=piece)["ETag"]
        for number, piece in enumerate(pieces, start=1)
    ]
    parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, start=1)]
    good.complete_multipart_upload(Bucket=name, Key="a", UploadId=upload, MultipartUpload={"Parts": parts})
    assert good.head_object(Bucket=name, Key="a")["ETag"].endswith('-2"')
    faults.corrupt = 0.1  # of its six ranges one, in some tries
    paths, failures = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into")
    assert faults.done["corrupt"] > 0
    assert not failures
    assert paths["a"].read_bytes() == content


def test_a_large_object_goes_on_where_it_stopped(faults: Faults, good: Any, name: str, tmp_path: Path) -> None:
    contents = fill(good, name, {"a": 20 * PART})
    faults.always, faults.always_after = (403, "ExpiredToken"), 7
    _, (row,) = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into")
    assert row.exception.startswith("ExpiredToken: the session token has expired")
    sent = sum(size for _, size in faults.bodies)
    assert 0 < sent < 20 * PART
    faults.always, faults.bodies = None, []
    paths, failures = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into")
    assert not failures
    assert paths["a"].read_bytes() == contents["a"]
    assert sum(size for _, size in faults.bodies) == 20 * PART - sent
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_a_part_that_is_not_what_the_log_says_comes_again(faults: Faults, good: Any, name: str, tmp_path: Path) -> None:
    contents = fill(good, name, {"a": 6 * PART})
    faults.always, faults.always_after = (403, "ExpiredToken"), 3
    cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into")
    (partial,) = (path for path in (tmp_path / "cache" / "partial").iterdir() if path.suffix != ".parts")
    partial.write_bytes(b"")  # what a power cut may leave of what was not synced
    faults.always = None
    paths, _ = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into")
    assert paths["a"].read_bytes() == contents["a"]


def test_nothing_that_is_here_comes_again_and_a_new_version_does(
    faults: Faults, good: Any, name: str, tmp_path: Path
) -> None:
    fill(good, name, {"a": 100, "b": 3 * PART})
    cache(name, tmp_path / "cache").fetch(wanted("a", "b"), tmp_path / "first")
    faults.bodies = []
    cache(name, tmp_path / "cache").fetch(wanted("a", "b"), tmp_path / "second")
    assert faults.bodies == []
    content = fill(good, name, {"a": 100})["a"]
    paths, _ = cache(name, tmp_path / "cache").fetch(wanted("a", "b"), tmp_path / "third")
    assert [key for key, _ in faults.bodies] == ["a"]
    assert paths["a"].read_bytes() == content


def test_a_cached_file_that_rotted_comes_again(faults: Faults, good: Any, name: str, tmp_path: Path) -> None:
    contents = fill(good, name, {"a": 100})
    cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "first")
    (kept,) = (tmp_path / "cache" / "objects").glob("*/*")
    kept.chmod(0o600)
    kept.write_bytes(bytes(100))
    paths, failures = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "second")
    assert not failures
    assert paths["a"].read_bytes() == contents["a"]


def test_beyond_its_limit_the_cache_drops_what_was_used_longest_ago_and_readers_keep_their_files(
    faults: Faults, good: Any, name: str, tmp_path: Path
) -> None:
    contents = fill(good, name, dict.fromkeys("abc", 1000))
    kept = cache(name, tmp_path / "cache", limit_bytes=2500)
    first, _ = kept.fetch(wanted("a"), tmp_path / "first")
    kept.fetch(wanted("b"), tmp_path / "second")
    kept.fetch(wanted("a"), tmp_path / "again")
    kept.fetch(wanted("c"), tmp_path / "third")
    assert len(list((tmp_path / "cache" / "objects").glob("*/*"))) == 2
    assert first["a"].read_bytes() == contents["a"]
    faults.bodies = []
    kept.fetch(wanted("a", "c"), tmp_path / "fourth")
    assert faults.bodies == []
    kept.fetch(wanted("b"), tmp_path / "fifth")
    assert [key for key, _ in faults.bodies] == ["b"]


def test_an_object_that_changed_since_it_was_listed_is_told_and_not_mixed(
    faults: Faults, good: Any, name: str, tmp_path: Path
) -> None:
    fill(good, name, {"a": 100})
    found = listed(bucket.client(), Location(name, ""), "", tmp_path / "index", 60)
    fill(good, name, {"a": 100})
    _, (row,) = cache(name, tmp_path / "cache").fetch(wanted("a"), tmp_path / "into", found)
    assert row.exception.startswith("Changed")


def test_the_index_has_all_pages_and_is_listed_anew_only_when_it_is_old(
    faults: Faults, good: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "PAGE_KEYS", 10)
    fill(good, name, {f"under/{number:04d}": 1 for number in range(13)} | {"beside": 1, "under/mark/": 0})
    location, client = Location(name, ""), bucket.client()
    found = listed(client, location, "under/", tmp_path, max_age_s=60, now=100.0)
    assert len(found) == 13
    assert faults.done["GET bucket"] == 2
    good.put_object(Bucket=name, Key="under/new", Body=b"")
    assert listed(client, location, "under/", tmp_path, max_age_s=60, now=159.0) == found
    assert faults.done["GET bucket"] == 2
    assert "under/new" in listed(client, location, "under/", tmp_path, max_age_s=60, now=161.0)


def test_another_thread_ends_a_fetch_and_the_next_one_goes_on(
    faults: Faults, good: Any, name: str, tmp_path: Path
) -> None:
    contents = fill(good, name, {f"case/{number}": 100 for number in range(200)})
    staged = cache(name, tmp_path / "cache")
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(staged.fetch, wanted(*contents), tmp_path / "into")
        while not faults.bodies:
            time.sleep(0.001)
        staged.end_fetches()
        with pytest.raises(CancelledError):
            fetching.result()
    n_fetched = len({key for key, _ in faults.bodies})
    assert n_fetched < len(contents)
    paths, failures = staged.fetch(wanted(*contents), tmp_path / "again")
    assert (len(paths), failures) == (len(contents), [])
