"""Dagster's lines about a run in the form of our own: each line of a process is JSON, and none quotes what was read."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest

import resources
from assets import keys
from med_assets.storage import logs
from resources import json_log
from resources.json_log import QUOTED
from tests import fresh
from tests.conftest import REPOSITORY, settings_of
from tests.med_assets.stages.builders import P

NAME = "SMITH^JOHN"

RUN = f"""
import dagster as dg
from assets import jobs, keys
from definitions import defs

with dg.DagsterInstance.get() as instance:
    job = defs.resolve_job_def(keys.job("{P}", keys.INTAKE))
    print(jobs.execute(job, instance, [keys.key("{P}", "dataset")]).run_id)
"""


def test_each_line_of_a_run_is_json_where_logs_are_and_says_what_it_is_about(tmp_path: Path) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copyfile(Path(resources.__file__).parent / "dagster.yaml", home / "dagster.yaml")
    own = {"DAGSTER_HOME": str(home), "MED_ASSETS_PROGRAMS": P, logs.VARIABLE: "json"}
    done = fresh.run(REPOSITORY, RUN, **settings_of(tmp_path / "home"), **own)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    of_dagster = [line for line in lines if line["logger"] == "dagster"]
    assert {(line["program"], line["job"], line["run"]) for line in of_dagster} == {
        (P, keys.job(P, keys.INTAKE), done.stdout.strip())
    }
    ended = [line for line in of_dagster if line.get("event") == "STEP_SUCCESS"]
    assert [(line["level"], line["step"]) for line in ended] == [("debug", f"{P}__dataset")]
    ours = [line for line in lines if line["logger"] == "med_assets"]
    assert [(line["stage"], line["run"]) for line in ours] == [("dataset", done.stdout.strip())] * len(ours)
    assert ours


def test_lines_of_a_job_and_words_of_an_error_stay_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> None:
        context.log.warning("the disk is nearly full")
        context.log.info(f"{NAME}: a line of its job", extra={QUOTED: True})
        raise ValueError(NAME)

    monkeypatch.setattr("dagster._loggers.colored_console_logger", None)  # which is put back afterwards
    with json_log.install():
        dg.materialize([checkpoint], raise_on_error=False)
    found = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert NAME not in str(found)
    assert [(line["level"], line["message"]) for line in found if "event" not in line][:2] == [
        ("warning", "the disk is nearly full"),
        ("info", logs.WITHHELD),
    ]
    assert [line["error"] for line in found if line.get("event") == "STEP_FAILURE"] == ["ValueError"]
