"""A real S3 endpoint over HTTP for the tests, and one that fails in front of it."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff

from med_assets.storage.s3 import bucket, local
from tests import s3_servers
from tests.med_assets.s3.faults import Faults, proxy

SECRET = "a-secret-that-must-never-be-shown"
ACCESS = "ACCESSKEYTHATMUSTNEVERBESHOWN"


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """URL of an endpoint without faults."""
    with s3_servers.endpoint() as variables:
        yield variables["S3_ENDPOINT_URL"]


@pytest.fixture
def short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that asks for fewer requests, as many of the faults do, is asked again after a twentieth of boto3's second, doubled each time."""
    scales = ExponentialBackoff._DEFAULT_BACKOFF_CONFIG
    monkeypatch.setitem(scales, "throttling_base_scale", scales["throttling_base_scale"] / 20)
    monkeypatch.setattr(bucket, "BACK_OFF_S", bucket.BACK_OFF_S / 20)


@pytest.fixture
def faults(endpoint: str, short_back_off: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Faults of the endpoint that the environment names; none until a test sets some."""
    found = Faults()
    with proxy(endpoint, found) as url:
        monkeypatch.setenv("S3_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("MED_ASSETS_S3_TIMEOUT_S", "1")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield found


@pytest.fixture
def good(endpoint: str) -> Any:
    """A client that sees no faults."""
    return bucket.client({"S3_ENDPOINT_URL": endpoint} | local.PUBLIC)


@pytest.fixture
def name(good: Any) -> str:
    """Name of an empty bucket."""
    made = f"bucket-{secrets.token_hex(4)}"
    good.create_bucket(Bucket=made)
    return made
