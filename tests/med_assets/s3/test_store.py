"""Artifacts in a bucket: seen whole or not at all, the same on every machine, and read once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from med_assets.errors import ArtifactCorrupt, ArtifactMissing, RemoteFailed
from med_assets.settings import Workspace
from med_assets.storage.artifacts import LocalStore
from med_assets.storage.s3 import bucket
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.store import S3Store
from tests.med_assets.s3.faults import Faults

KEY = "prepared/0123456789abcdef"


@pytest.fixture
def machine(faults: Faults, name: str, tmp_path: Path) -> Callable[[str], S3Store]:
    """The same store as each machine has it."""
    return lambda of: S3Store(Location(name, "store"), LocalStore(tmp_path / of))


def write(store: S3Store | LocalStore, text: str = "content", key: str = KEY) -> None:
    with store.create(key) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "b.txt").write_text(text * 100)
        (folder / "a.txt").write_text(text)


def test_what_one_machine_makes_another_has_with_the_same_hash_also_with_faults(
    machine: Callable[[str], S3Store], faults: Faults, tmp_path: Path
) -> None:
    faults.failing, faults.truncated = 0.1, 0.2
    for number in range(4):
        write(machine("one"), f"content {number}", f"prepared/{number:016d}")
    two, plain = machine("two"), LocalStore(tmp_path / "plain")
    assert two.keys("prepared") == [f"prepared/{number:016d}" for number in range(4)]
    for number, key in enumerate(two.keys("prepared")):
        write(plain, f"content {number}", key)
        assert two.has(key)
        assert two.content_hash(key) == plain.content_hash(key)
        assert (two.fetch(key) / "below" / "b.txt").read_text() == f"content {number}" * 100
        two.verify(key)
    assert faults.done["truncated"] > 0
    faults.bodies = []
    two.fetch(two.keys("prepared")[0])
    assert faults.bodies == []
    with pytest.raises(ArtifactMissing, match="prepared/ffffffffffffffff"):
        two.fetch("prepared/ffffffffffffffff")


def test_a_writer_that_dies_before_the_manifest_leaves_nothing_that_is_seen(
    machine: Callable[[str], S3Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> bool:
        raise KeyboardInterrupt

    one = machine("one")
    with monkeypatch.context() as patched:
        patched.setattr(S3Store, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            write(one)
    for of in ("one", "two"):
        assert not machine(of).has(KEY)
        assert machine(of).keys("prepared") == []
    write(machine("one"))
    assert machine("two").has(KEY)


def test_when_the_bucket_refuses_nothing_is_kept_here_either_and_the_error_says_what_to_do(
    machine: Callable[[str], S3Store], faults: Faults
) -> None:
    faults.always = (403, "AccessDenied")
    with pytest.raises(RemoteFailed, match=r"may not do this.*doctor s3"):
        write(machine("one"))
    faults.always = None
    assert not machine("one").has(KEY)


def test_of_two_writers_of_one_key_the_first_counts_for_both_and_files_are_never_mixed(
    machine: Callable[[str], S3Store], good: Any, name: str
) -> None:
    one, two = machine("one"), machine("two")
    with one.create(KEY) as folder:
        (folder / "a.txt").write_text("one")
        write(two, "two")
    for of in ("one", "two", "three"):
        assert (machine(of).fetch(KEY) / "a.txt").read_text() == "two"
        machine(of).verify(KEY)
    left = good.list_objects_v2(Bucket=name, Prefix="store/files/")["Contents"]
    assert len(left) == 2, "the loser's files are cleared"


def test_damage_in_the_bucket_is_found_and_a_removed_artifact_is_gone_everywhere(
    machine: Callable[[str], S3Store], good: Any, name: str
) -> None:
    write(machine("one"))
    found = good.list_objects_v2(Bucket=name, Prefix="store/files/")["Contents"]
    good.put_object(Bucket=name, Key=found[0]["Key"], Body=b"other")
    with pytest.raises(ArtifactCorrupt, match="not those that were written"):
        machine("two").fetch(KEY)
    assert not LocalStore(machine("two").local.root).has(KEY)
    with pytest.raises(ArtifactCorrupt):
        machine("one").verify(KEY)
    machine("one").remove(KEY)
    assert not machine("one").has(KEY)
    assert "Contents" not in good.list_objects_v2(Bucket=name)


def test_the_workspace_opens_the_store_that_the_environment_names(
    workspace: Workspace, faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/shared/store")
    store = Workspace.from_env().store
    assert isinstance(store, S3Store)
    write(store)
    assert LocalStore(workspace.home / "store").has(KEY)


def test_what_works_in_one_environment_shares_a_client_and_a_forked_process_has_its_own(
    machine: Callable[[str], S3Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = machine("one"), machine("two")
    assert one.client is two.client
    assert bucket.client(read_timeout=3.0) is not one.client
    child = os.fork()
    if not child:
        os._exit(int(bucket.client() is one.client))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert machine("three").client is not one.client


def test_a_small_body_is_sent_at_once_and_a_large_one_when_the_server_has_seen_the_headers(
    good: Any, name: str
) -> None:
    seen: dict[str, Any] = {}

    def record(request: Any, **_: Any) -> None:
        if request.method == "PUT":
            seen[request.url.rsplit("/", 1)[-1]] = request.headers.get("Expect")

    good.meta.events.register("before-send.s3", record)
    try:
        for key, size in (("small", 10), ("large", bucket.SMALL_BYTES + 1)):
            good.put_object(Bucket=name, Key=key, Body=bytes(size))
            assert good.head_object(Bucket=name, Key=key)["ContentLength"] == size
    finally:
        good.meta.events.unregister("before-send.s3", record)
    assert seen == {"small": None, "large": b"100-continue"}
