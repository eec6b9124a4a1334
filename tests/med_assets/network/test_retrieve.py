"""`med-assets retrieve` from a real Orthanc, by DICOMweb, C-MOVE and C-GET; DCMTK's findscu is asked the same."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from med_assets.cli.main import main
from med_assets.settings import Workspace
from tests.peers import (
    CALLED,
    CALLING,
    Orthanc,
    describe_network,
    free_port,
    landed,
    no_open_sockets,
    orthanc_of,
    run_dcmtk,
    small_study,
)

DAYS = {"early": "20240110", "middle": "20240120", "late": "20240220"}


@pytest.fixture(scope="module")
def own_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, own_port: int) -> Iterator[Orthanc]:
    """An Orthanc with three studies of CT, each of three instances."""
    with orthanc_of(tmp_path_factory.mktemp("orthanc"), {"us": (CALLED, own_port)}) as running:
        for name, day in DAYS.items():
            study = small_study(name, 3, StudyDescription=f"Chest {name}", ModalitiesInStudy="CT", AccessionNumber=name)
            for ds in study:
                ds.StudyDate = day
                del ds.ModalitiesInStudy
            running.upload(study)
        yield running


@pytest.fixture
def home(workspace: Workspace, orthanc: Orthanc, own_port: int) -> Iterator[Path]:
    describe_network(workspace.home, nodes={"pacs": orthanc.node()}, port=own_port)
    with no_open_sockets():
        yield workspace.home
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("pydicom", "pynetdicom")]:
        logging.getLogger(name).disabled = False  # the command is a process of its own elsewhere


def retrieve(*words: str) -> int:
    return main(["retrieve", "lung_ct", "--from", "pacs", *words])


def sops(*tags: str) -> list[str]:
    return sorted(ds.SOPInstanceUID for tag in tags for ds in small_study(tag, 3))


JANUARY = ("--since", "2024-01-01", "--until", "2024-01-31")


@pytest.mark.parametrize("way", ["web", "move", "get"])
def test_studies_of_a_range_of_dates_come_once_and_are_those_of_the_node(
    home: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    assert retrieve(*JANUARY, "--by", way, "--dry-run") == 0
    listing = capsys.readouterr().out
    assert len(re.findall(r"^ *[0-9a-f]{8} +CT +1 +3 +0$", listing, re.MULTILINE)) == 2
    assert landed(home) == []

    assert retrieve(*JANUARY, "--by", way) == 0
    assert "retrieved 6 instances, 2 series whole; 0 instances did not come" in capsys.readouterr().out
    assert sorted(path.stem for path in landed(home)) == sops("early", "middle")
    sent = {ds.SOPInstanceUID: ds for tag in DAYS for ds in small_study(tag, 3)}
    for path in landed(home):
        assert pydicom.dcmread(path).PixelData == sent[path.stem].PixelData

    assert retrieve(*JANUARY, "--by", way) == 0
    assert "retrieved 0 instances" in capsys.readouterr().out

    # What was interrupted goes on: one instance and one whole study are asked for, and no other.
    landed(home)[0].unlink()
    (home / "network" / "retrieved" / "lung_ct.jsonl").unlink()
    assert retrieve("--modality", "CT", "--by", way, "--per-minute", "6000") == 0
    assert "retrieved 4 instances, 2 series whole" in capsys.readouterr().out
    assert sorted(path.stem for path in landed(home)) == sops(*DAYS)


def test_each_way_of_asking_finds_what_findscu_finds(
    home: Path, orthanc: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        (("--description", "Chest mid"), "StudyDescription=*Chest mid*", 1),
        (("--description", "t mid"), "StudyDescription=*t mid*", 1),
        (("--description", "Chest e"), "StudyDescription=*Chest e*", 1),
        (("--accession", "late"), "AccessionNumber=late", 1),
        (("--since", "2024-01-15"), "StudyDate=20240115-", 2),
        (("--modality", "MR"), "ModalitiesInStudy=MR", 0),
    ]
    for words, key, n_expected in asked:
        answers = tmp_path / f"answers-{words[1]}"
        answers.mkdir()
        found = run_dcmtk(
            "findscu", "-v", "-S", "-aet", CALLING, "-aec", "ORTHANC", "-X", "-od", answers,
            "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID", "-k", key, "127.0.0.1", orthanc.dicom_port,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        n_findscu = len(list(answers.glob("rsp*.dcm")))
        assert n_findscu == n_expected, found.stdout + found.stderr
        for way in ("web", "move"):
            assert retrieve(*words, "--by", way, "--dry-run") == 0
            listing = capsys.readouterr().out
            assert len(re.findall(r"^ *[0-9a-f]{8} ", listing, re.MULTILINE)) == n_findscu, (words, way, listing)


def test_the_journal_holds_hashes_alone_and_what_was_moved_away_is_not_asked_for_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrieve("--accession", "early") == 0
    text = (home / "network" / "retrieved" / "lung_ct.jsonl").read_text()
    (row,) = map(json.loads, text.splitlines())
    assert set(row) == {"at", "node", "way", "study", "series", "asked", "failed"}
    assert (row["node"], row["way"], row["asked"], row["failed"]) == ("pacs", "web", 3, 0)
    study = small_study("early", 3)[0]
    for secret in (study.StudyInstanceUID, study.SeriesInstanceUID, study.SOPInstanceUID, study.PatientID, "early"):
        assert secret not in text
    shutil.rmtree(home / "landing" / "lung_ct")
    capsys.readouterr()
    assert retrieve("--accession", "early") == 0
    assert "retrieved 0 instances" in capsys.readouterr().out
    assert retrieve("--accession", "early", "--again") == 0
    assert "retrieved 3 instances" in capsys.readouterr().out


def test_without_a_question_or_a_node_the_message_says_what_is_missing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrieve() == 1
    assert "--since" in capsys.readouterr().err
    assert main(["retrieve", "lung_ct", "--from", "nobody", "--modality", "CT"]) == 1
    assert "pacs" in capsys.readouterr().err
    (home / "network.yaml").write_text(
        (home / "network.yaml").read_text().replace("min_free_gb: 0", "min_free_gb: 9000000")
    )
    assert retrieve("--accession", "early") == 1
    assert "free some space" in capsys.readouterr().err
