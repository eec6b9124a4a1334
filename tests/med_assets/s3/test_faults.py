"""The faults that other tests rely on happen: what they show would be nothing if a proxy let everything pass."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from med_assets.errors import RemoteFailed
from med_assets.storage.s3 import bucket, local
from med_assets.storage.s3.bucket import in_words
from tests.code import Code
from tests.med_assets.s3.faults import Faults
from tests.med_assets.s3.lagging import Lag, Listed


@pytest.fixture
def once(faults: Faults) -> Any:
    """A client that sees the faults and tries nothing again."""
    return bucket.client(retries={"mode": "standard", "total_max_attempts": 1})


def keys(client: Any, name: str, prefix: str = "") -> list[str]:
    return [one["Key"] for one in client.list_objects_v2(Bucket=name, Prefix=prefix).get("Contents", [])]


def test_a_reply_is_lost_after_the_request_was_carried_out(once: Any, good: Any, faults: Faults, name: str) -> None:
    faults.closing = 1.0
    with pytest.raises(ConnectionClosedError):
        once.put_object(Bucket=name, Key="written", Body=b"content", IfNoneMatch="*")
    assert good.get_object(Bucket=name, Key="written")["Body"].read() == b"content"
    with pytest.raises(ConnectionClosedError):
        once.delete_object(Bucket=name, Key="written")
    assert keys(good, name) == []
    assert faults.done["closing"] == 2


def test_a_listing_shows_what_was_there_while_an_object_by_its_key_is_as_it_is(
    once: Any, good: Any, faults: Faults, name: str
) -> None:
    faults.lag_s = 0.8
    for key in ("kept", "gone", "changed"):
        good.put_object(Bucket=name, Key=key, Body=b"one")
    once.put_object(Bucket=name, Key="new", Body=b"two")
    once.put_object(Bucket=name, Key="changed", Body=b"longer")
    once.delete_object(Bucket=name, Key="gone")
    late = once.list_objects_v2(Bucket=name)
    assert [(one["Key"], one["Size"]) for one in late["Contents"]] == [("changed", 3), ("gone", 3), ("kept", 3)]
    assert late["KeyCount"] == 3
    assert keys(once, name, "ne") == []
    assert once.get_object(Bucket=name, Key="new")["Body"].read() == b"two"
    assert keys(good, name) == ["changed", "kept", "new"]
    time.sleep(0.9)
    assert keys(once, name) == ["changed", "kept", "new"]


def test_pages_of_a_late_listing_hold_what_lies_between_their_ends() -> None:
    item = "<Contents><Key>{}</Key><Size>1</Size></Contents>"
    page = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>'
        + "".join(map(item.format, ("d", "f")))
        + "</ListBucketResult>"
    ).encode()
    lag = Lag(10.0)
    for key in ("a", "e", "g"):
        lag.changed("one", key, Listed('"etag"', 1, "2026-01-01T00:00:00.000Z"))
    lag.changed("other", "d", None)
    first, _ = lag.listing("one", "list-type=2", page)
    second, _ = lag.listing("one", "list-type=2&continuation-token=x", page)
    assert [text.split("<")[0] for text in first.decode().split("<Key>")[1:]] == ["a", "d", "e", "f"]
    assert [text.split("<")[0] for text in second.decode().split("<Key>")[1:]] == ["d", "e", "f"]


def test_beyond_a_rate_requests_are_refused_in_both_ways_and_a_client_waits_until_it_gets_through(
    faults: Faults, name: str
) -> None:
    answers = set[int]()
    faults.rate_per_s = 20.0
    hasty = bucket.client(retries={"mode": "standard", "total_max_attempts": 1})
    hasty.meta.events.register(
        "response-received.s3", lambda response_dict, **_: answers.add(response_dict["status_code"])
    )
    for _ in range(60):
        with suppress(ClientError):
            hasty.get_object(Bucket=name, Key="x")
    assert answers == {404, 429, 503}
    patient, refused = bucket.client(), faults.done["throttled"]
    for number in range(12):
        patient.put_object(Bucket=name, Key=f"{number}", Body=b"x")
        patient.head_object(Bucket=name, Key=f"{number}")
    assert faults.done["throttled"] > refused


def test_requests_are_repeated_however_many_failed_before(faults: Faults, good: Any) -> None:
    good.create_bucket(Bucket="asked-often")  # which fail depends on the name
    faults.failing = 0.3
    client, quota = bucket.client(), 500 / 14
    for number in range(120):
        with pytest.raises(ClientError, match="404"):
            client.head_object(Bucket="asked-often", Key=f"absent-{number}")
    assert faults.done["failing"] > quota, "more than boto3 repeats"


def test_a_server_that_always_asks_for_fewer_requests_is_quoted_with_what_to_do(
    once: Any, faults: Faults, name: str
) -> None:
    faults.always = (429, "TooManyRequests")
    for request in (once.get_object, once.head_object):  # the reply to the second has no body that says why
        with pytest.raises(RemoteFailed, match="SlowDown: the server asks for fewer requests"), in_words("reading"):
            request(Bucket=name, Key="x")


SERVED = 'import runpy; runpy.run_module("tests.med_assets.s3.faults", run_name="__main__", alter_sys=True)'
"""What `python -m tests.med_assets.s3.faults` does."""


def test_faults_are_the_same_in_every_run_and_are_served_to_other_processes() -> None:
    found = []
    for _ in range(2):
        server = Code(SERVED, "--failing", "0.5", "--seed", "3")
        served = json.loads(server.stdout.readline())
        client = bucket.client({"S3_ENDPOINT_URL": served["bad"]} | local.PUBLIC, retries={"total_max_attempts": 1})
        answers = []
        for number in range(8):
            try:
                client.put_object(Bucket=served["bucket"], Key=f"{number}", Body=b"x")
                answers.append(200)
            except ClientError as error:
                answers.append(error.response["ResponseMetadata"]["HTTPStatusCode"] // 100 * 100)
        found.append(answers)
        server.stdin.write("\n")
        server.stdin.flush()
        assert json.loads(server.stdout.readline())["failing"] == answers.count(500)
        server.communicate()
        assert server.poll() == 0
    assert found[0] == found[1]
    assert set(found[0]) == {200, 500}
