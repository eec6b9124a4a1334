"""A marker in every place of DICOM files, in the names of files, folders and archives, and in what is no case: none of it is in
the home, in Dagster's own or in any output, after the command line with --debug, a run of Dagster, and SIGKILL.
"""

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, HTJ2KLossless, JPEGBaseline8Bit, JPEGLosslessSV1

import resources
from assets import build_program, keys, run
from med_assets.cli.main import main
from med_assets.landing import batches
from med_assets.programs.breast_us.phantom import write_case
from med_assets.settings import Workspace
from med_assets.storage import preloaded
from tests.fuzz.seeds import compressed
from tests.planted import MARKER, PERSON, PLANTS, RAW, found_in, is_planted, planted_stream, read
from tests.shared_phantoms import write_phantoms

PROGRAMS = ("rt_dose", "lung_ct", "lumbar_mr", "breast_us", "retinal_oct")
PROFILES = ("strict", "research")
"""One for the command line and one for Dagster, for the next program the other way round: each case is de-identified by one of both."""

P = "breast_us"
NAME = f"{MARKER} {'^'.join(PERSON)}"
KILLED_BEFORE_S = 30
MOMENTS = ("reader", "unpacked", "stored")
"""When intake is killed: its reader has begun, originals lie unpacked in the home, a first case is stored."""


def plant_all(folder: Path, patient: str) -> None:
    """Plant the marker in each object of the folder, and give it and its file that name; other files keep theirs."""
    with disable_value_validation():
        for number, (path, ds) in enumerate(read(folder).items()):
            for plant in PLANTS:
                plant(ds)
            ds.PatientID, ds.PatientName = patient, "^".join(PERSON)
            path.unlink()
            ds.save_as(path.with_name(f"{NAME}-{number}.dcm"), enforce_file_format=True)


def drop(ws: Workspace, program: str, patient: str, seed: int, *, packed: bool) -> None:
    """A phantom's case as a folder or an archive, beside files that are no case, all under names that identify."""
    away = ws.home.parent / f"away-{seed}" / NAME
    write_phantoms(program, away, 1, seed)
    plant_all(away, patient)
    (away / f"{NAME}.txt").write_text(NAME)
    (away / f"{NAME}.dcm").write_bytes(b"\0" * 128 + b"DICM" + RAW)
    landing = ws.landing / program / f"{NAME} {seed}"
    landing.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        shutil.make_archive(str(landing), "zip", away.parent)
    else:
        away.rename(landing)


def left(ws: Workspace) -> list[str]:
    """Files of the home outside of the landing zone with a planted name; folders too, by their names."""
    paths = [path for path in ws.home.rglob("*") if not path.is_relative_to(ws.landing)]
    folders = [str(path) for path in paths if path.is_dir() and is_planted(os.fsencode(path))]
    return folders + found_in(path for path in paths if path.is_file())


def everything_printed(capture: pytest.CaptureFixture[str]) -> str:
    """What was written to standard output and error, which has no planted name."""
    shown = "".join(capture.readouterr())
    assert not is_planted(shown.encode(errors="surrogateescape"))
    return shown


@contextmanager
def dagster(ws: Workspace, program: str) -> Iterator[dg.DagsterInstance]:
    with run.instance_of(ws) as instance:
        instance.add_dynamic_partitions(keys.batches_of(program).name or "", batches.known(ws, program))
        yield instance


def materialized(ws: Workspace, program: str, batch: str) -> None:
    """Intake and preparation of a batch, then the dataset, by Dagster, whose console says everything."""
    stages = ("raw_cases", "prepared_cases"), ("dataset", "splits")
    with dagster(ws, program) as instance:
        for chosen, partition in zip(stages, (batch, None), strict=True):
            done = dg.materialize(
                build_program(program),
                selection=[keys.key(program, stage) for stage in chosen],
                partition_key=partition,
                instance=instance,
                resources=resources.build(),
                run_config={"loggers": {"console": {"config": {"log_level": "DEBUG"}}}},
                raise_on_error=False,
            )
            assert done.success or chosen == stages[1]  # two cases are too few for splits that some programs demand
            assert not any(is_planted(str(event).encode()) for event in done.all_events)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("program", "profiles"),
    [(name, PROFILES[::-1] if place % 2 else PROFILES) for place, name in enumerate(PROGRAMS)],
)
def test_nothing_planted_is_left_by_the_command_line_with_debug_and_by_dagster(
    program: str,
    profiles: tuple[str, str],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(workspace.home / "dagster"))
    monkeypatch.setenv("MED_ASSETS_DEIDENTIFICATION", profiles[0])
    drop(workspace, program, f"{MARKER}-A", 3, packed=False)
    assert main(["--debug", "ingest", program, "--now"]) == 0
    first = workspace.lake.rows("raw_cases", program)
    monkeypatch.setenv("MED_ASSETS_DEIDENTIFICATION", profiles[1])
    workspace = Workspace.from_env()
    drop(workspace, program, f"{MARKER}-B", 4, packed=True)
    (entry,) = batches.untaken(workspace, program)
    batch = batches.take(workspace, program, [entry], time.time())
    materialized(workspace, program, batch)
    for command in (["cases", program], ["batches", program], ["report", program], ["verify"]):
        main(["--debug", *command])
    rows = workspace.lake.rows("raw_cases", program)
    before, after = _accepted_under(first), _accepted_under(rows)
    n = before[profiles[0]]
    assert n > 0
    assert (before, after) == ({profiles[0]: n}, dict.fromkeys(profiles, n)), rows
    assert {row["status"] for row in workspace.lake.rows("prepared_cases", program)} == {"ok"}
    assert not any(is_planted(str(row).encode()) for row in rows)
    everything_printed(capfd)
    assert left(workspace) == []


def _accepted_under(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Accepted cases by the profile of their de-identification."""
    return Counter(row["deidentified_by"].partition(" ")[0] for row in rows if row["status"] == "ok")


def reached(ws: Workspace, moment: str) -> bool:
    scratch = ws.home / "tmp"
    if moment == "reader":
        return any(path.is_dir() for path in scratch.glob("scratch-*/*"))
    if moment == "unpacked":
        return any(path.is_file() for path in scratch.glob("scratch-*/*/unpacked/*/*"))
    return any(path.suffix == ".dcm" for path in (ws.home / "store").rglob("*"))


def test_nothing_planted_is_left_by_an_intake_that_was_killed(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, moment in enumerate(MOMENTS):
        drop(workspace, P, f"{MARKER}-{number}", 10 + number, packed=moment != "stored")
        command = [sys.executable, "-m", "med_assets.cli", "--debug", "ingest", P, "--now"]
        process = preloaded.start(command, os.environ, tied=True)
        end = time.monotonic() + KILLED_BEFORE_S
        while not reached(workspace, moment) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL, moment
        assert main(["--debug", "batches", P]) == 0
        assert left(workspace) == [], moment
    assert main(["--debug", "ingest", P, "--now"]) == 0
    assert sum(row["status"] == "ok" for row in workspace.lake.rows("raw_cases", P)) == len(MOMENTS)
    assert left(workspace) == []
    assert "Traceback" not in everything_printed(capfd)


def streamed(ds: Dataset, syntax: UID) -> None:
    """Compress the pixels, with the marker wherever a stream has space beside them."""
    compressed(ds, syntax)
    frames = list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1)))
    ds.PixelData = encapsulate([planted_stream(frame) for frame in frames])
    ds["PixelData"].is_undefined_length = True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, HTJ2KLossless])
def test_nothing_planted_in_a_stream_of_jpeg_is_left(syntax: UID, workspace: Workspace) -> None:
    folder = workspace.landing / P / "one"
    write_case(folder, 2)
    for path, ds in read(folder).items():
        if ds.Modality == "US":
            streamed(ds, syntax)
            ds.save_as(path, enforce_file_format=True)
            assert is_planted(path.read_bytes())
    assert main(["ingest", P, "--now"]) == 0
    (row,) = workspace.lake.rows("raw_cases", P)
    assert (row["status"], row["reason"]) == ("ok", None)
    assert left(workspace) == []
