"""What holds on moto's server holds on one of another maker, whose conditions are not checked by this repository."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from med_assets.storage.s3 import bucket
from tests import s3_servers
from tests.conftest import REPOSITORY

HERE = Path(__file__).parent
FILES = (
    "test_lake_contract",
    "test_log",
    "test_lease",
    "test_store",
    "test_shared_tables",
    "test_grouped_commits",
    "test_landing",
)
WRITERS, OBJECTS = 6, 40


@pytest.mark.drill
@pytest.mark.timeout(0)
def test_tables_locks_store_and_landing_zone_work_on_seaweedfs() -> None:
    s3_servers.program()
    files = [HERE / f"{name}.py" for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, files)],
        cwd=REPOSITORY, env=os.environ | {s3_servers.CHOICE: "seaweedfs"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.drill
def test_of_several_that_write_one_object_under_a_condition_one_does() -> None:
    """Not so on moto's own server, whose writes this package puts one after the other."""
    with s3_servers.seaweedfs() as variables:
        bucket.client(variables).create_bucket(Bucket="race")

        def write(writer: int) -> set[int]:
            client, won = bucket.client(variables), set[int]()
            for number in range(OBJECTS):
                try:
                    client.put_object(Bucket="race", Key=str(number), Body=str(writer).encode(), IfNoneMatch="*")
                    won.add(number)
                except ClientError as error:
                    if bucket.status_of(error) not in (409, 412):
                        raise
            return won

        with ThreadPoolExecutor(WRITERS) as threads:
            won = list(threads.map(write, range(WRITERS)))
        assert sorted(number for one in won for number in one) == list(range(OBJECTS))
        client = bucket.client(variables)
        for number in range(OBJECTS):
            (writer,) = [writer for writer, numbers in enumerate(won) if number in numbers]
            assert client.get_object(Bucket="race", Key=str(number))["Body"].read() == str(writer).encode()
