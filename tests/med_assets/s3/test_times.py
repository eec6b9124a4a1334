"""Times of S3's answers are those that boto3 reads."""

from datetime import UTC, datetime

import pytest
from botocore.utils import parse_timestamp, parse_to_aware_datetime

from med_assets.storage.s3.bucket import aware_time_of, time_of

TIMES = (
    "2026-11-30T16:28:22.000Z",
    "2026-11-30T16:28:22Z",
    "2026-11-30T16:28:22.123456Z",
    "Mon, 30 Nov 2026 16:28:22 GMT",
    "Monday, 30-Nov-26 16:28:22 GMT",
    "2026-11-30 16:28:22+02:00",
    "2026-11-30T16:28:22",
    "1700000000",
    1700000000.5,
)


@pytest.mark.parametrize("value", TIMES)
def test_a_time_is_the_one_that_boto3_reads(value: str | float) -> None:
    assert time_of(value) == parse_timestamp(value)
    assert aware_time_of(value) == parse_to_aware_datetime(value)
    assert aware_time_of(value).tzinfo is not None


def test_a_time_that_is_one_already_is_kept_and_without_a_zone_it_is_utc() -> None:
    assert aware_time_of(datetime(2026, 11, 30, 16)) == datetime(2026, 11, 30, 16, tzinfo=UTC)
    assert aware_time_of(datetime(2026, 11, 30, tzinfo=UTC)) == datetime(2026, 11, 30, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "yesterday Z", "nobody knows GMT"])
def test_a_text_that_is_no_time_is_refused_as_by_boto3(text: str) -> None:
    with pytest.raises(ValueError, match="Invalid timestamp"):
        parse_timestamp(text)
    with pytest.raises(ValueError, match="Invalid timestamp"):
        time_of(text)
