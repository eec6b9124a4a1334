"""`med-assets doctor s3` says in words what is wrong, and what to do."""

import pytest

from med_assets.cli.main import main
from med_assets.settings import Workspace
from tests.med_assets.s3.faults import Faults


@pytest.fixture
def checked(
    workspace: Workspace, faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Runs the command, and returns its status and what it says."""
    monkeypatch.setenv("MED_ASSETS_LANDING", f"s3://{name}/landing")
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/store")

    def run() -> tuple[int, str]:
        status = main(["doctor", "s3"])
        return status, capsys.readouterr().out

    return run


def test_a_good_bucket_is_good_and_nothing_is_left_in_it(checked, good, name: str) -> None:
    status, text = checked()
    assert status == 0
    assert "can be listed, and is empty" in text
    assert "can be written" in text
    assert "Contents" not in good.list_objects_v2(Bucket=name)


def test_without_endpoint_or_credentials_it_names_the_variables(checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    status, text = checked()
    assert status == 1
    assert "no AWS_SECRET_ACCESS_KEY" in text
    monkeypatch.delenv("S3_ENDPOINT_URL")
    assert "S3_ENDPOINT_URL" in checked()[1]


def test_a_bucket_that_is_not_there_and_an_endpoint_where_nothing_answers(
    checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_LANDING", "s3://no-such-bucket/landing")
    assert "there is no such bucket" in checked()[1]
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    status, text = checked()
    assert status == 1
    assert "nothing answers at the endpoint" in text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, "InvalidAccessKeyId"), "access key is not known"),
        ((403, "SignatureDoesNotMatch"), "secret key does not belong"),
        ((403, "RequestTimeTooSkewed"), "clocks of this machine and of the server differ"),
        ((403, "AccessDenied"), "ask the owner of the bucket"),
    ],
)
def test_each_refusal_is_explained(checked, faults: Faults, answer: tuple[int, str], words: str) -> None:
    faults.always = answer
    status, text = checked()
    assert status == 1
    assert words in text


def test_a_clock_that_is_wrong_is_named_with_its_difference(checked, faults: Faults) -> None:
    faults.shifted_date = "Wed, 01 Jan 2020 00:00:00 GMT"
    assert "s ahead of the S3 server" in checked()[1]


def test_a_bucket_that_can_be_read_and_not_written(checked, faults: Faults) -> None:
    faults.read_only = True
    status, text = checked()
    assert status == 1
    assert "/store can't be written: AccessDenied" in text


def test_with_no_bucket_configured_it_says_how_to(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "s3"]) == 0
    assert "MED_ASSETS_STORE" in capsys.readouterr().out


def test_a_server_that_ignores_conditions_of_writes_is_bad_for_a_store(checked, faults: Faults) -> None:
    faults.ignored_headers = {"If-None-Match"}
    status, text = checked()
    assert status == 1
    assert "although the condition If-None-Match does not hold" in " ".join(text.split())
