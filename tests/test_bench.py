"""The page of bench results keeps one section of each bench, the last; what benches count is counted here at small sizes."""

from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from bench import incremental, intake, rescan, scale
from bench.results import page, section, sections
from med_assets.storage.lake import Lake
from med_assets.storage.s3 import bucket, local


def test_a_section_is_replaced_and_the_others_stay() -> None:
    first = {
        name: section(name, f"\n## Table of {name}\n\n| a |\n|---|\n| 1 |\n", "abc") for name in ("ticks", "intake")
    }
    text = page(first)
    assert sections(text) == first
    found = sections(text) | {"intake": section("intake", "## Other\n\n| 2 |", "def")}
    assert sections(page(found)) == found
    assert "Table of ticks" in page(found)
    assert "Table of intake" not in page(found)
    assert page(found).index("bench.intake") < page(found).index("bench.ticks")


def test_what_is_printed_before_the_first_table_is_not_kept() -> None:
    tables = "## One\n\n| 1 |\n\n## Two\n\n| 2 |\n"
    assert section("latency", f"report in SOME/FOLDER\n{tables}", "abc") == section("latency", tables, "abc")


@pytest.mark.parametrize("n", [10, 200])
def test_a_listing_in_which_nothing_changed_opens_no_file_of_the_landing_zone(n: int) -> None:
    files, _, _, _, opened = rescan.measure(n)
    assert (files, opened) == (n, 0)


def test_each_frame_of_a_file_counts_as_an_image_and_a_file_without_frames_as_one(tmp_path: Path) -> None:
    for name, frames in (("seg", 7), ("slice", None)):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = SegmentationStorage, f"1.2.3.{frames or 1}"
        if frames:
            ds.NumberOfFrames = frames
        ds.save_as(tmp_path / name, enforce_file_format=True)
    assert intake.images_of(sorted(tmp_path.iterdir())) == 8


def test_requests_to_a_bucket_are_counted_with_the_bytes_of_bodies_and_answers() -> None:
    with local.endpoint() as variables, scale.counted_requests() as found:
        client = bucket.client(variables)
        client.create_bucket(Bucket="bench")
        before = found.copy()
        client.put_object(Bucket="bench", Key="k", Body=b"x" * 1000)
        assert client.get_object(Bucket="bench", Key="k")["Body"].read() == b"x" * 1000
        since = found.since(before)
    assert since.counts == {"PutObject": 1, "GetObject": 1}
    assert (since.sent, since.received) == (1000, 1000)


def test_a_request_without_an_answer_is_counted_and_no_client_made_later_is() -> None:
    nowhere = {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with scale.counted_requests() as found, pytest.raises(EndpointConnectionError):
        bucket.client(nowhere, retries={"total_max_attempts": 1}).list_buckets()
    assert (found.counts, found.received) == ({"ListBuckets": 1}, 0)
    with pytest.raises(EndpointConnectionError):
        bucket.client(nowhere | {"AWS_ACCESS_KEY_ID": "c"}, retries={"total_max_attempts": 1}).list_buckets()
    assert found.counts == {"ListBuckets": 1}


def test_files_of_tables_that_are_read_and_written_are_counted(tmp_path: Path) -> None:
    tables = Lake(tmp_path, {"scores": {"case_id": str, "value": float}})
    with incremental.counted() as files:
        tables.write("scores", "p/one", [{"case_id": "a", "value": 1.0}])
    assert files == {"read": 0, "written": 1}
    with incremental.counted() as files:
        assert len(tables.read("scores", "p")) == 1
    assert files == {"read": 1, "written": 0}
