"""Metrics are what the tables, the jobs and the machine say, in a form that Prometheus parses, and identify nobody."""

import os
import shutil
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from med_assets.catalog import Catalog
from med_assets.cli.main import main
from med_assets.operations.metrics import Collector
from med_assets.operations.metrics_server import application
from med_assets.records import CaseVersion, Champion
from med_assets.serving.binding import bound
from med_assets.settings import Workspace
from med_assets.storage.exposition import Family, Kind, Sample, text
from med_assets.storage.files import write_json, write_text
from tests.med_assets.homes.unpacked import unpack

P = "rt_dose"
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """A home of two phantoms and a model."""
    unpack("0.2.0", workspace.home)
    return workspace


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application in a thread; yields its address."""
    listener = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def parsed(exposition: str) -> Values:
    """Samples by name and labels, as Prometheus' own parser reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def value(found: Values, name: str, **labels: str) -> float:
    return found[f"med_assets_{name}", tuple(sorted(labels.items()))]


def quarantine(ws: Workspace, reason: str) -> None:
    catalog = Catalog(ws, P)
    (batch,) = catalog.batches()
    first, *others = catalog.case_versions(batch)
    refused = CaseVersion.of(first.row() | {"status": "quarantined", "reason_code": reason, "reason": "PATIENT NAME"})
    catalog.replace(CaseVersion, [refused, *others], batch)


def test_counts_are_those_of_the_tables_and_follow_them(ws: Workspace) -> None:
    collector = Collector(ws)
    with served(application(collector)) as url:

        def scrape() -> Values:
            with urllib.request.urlopen(f"{url}/metrics") as reply:
                assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
                return parsed(reply.read().decode())

        before = scrape()
        assert value(before, "cases", program=P, stage="preparation", status="ok") == 2
        assert value(before, "dataset_cases", program=P, split="val") == 1
        assert value(before, "batches", program=P, state="prepared") == 1
        assert value(before, "last_batch_seconds", program=P, stage="preparation") > 0
        assert 0 < value(before, "disk_free_bytes", folder="home") <= value(before, "disk_size_bytes", folder="home")
        assert not [key for key in before if "quarantined" in key[0]]
        time.sleep(0.01)
        quarantine(ws, "no_dose")
        after = scrape()
        assert value(after, "quarantined_cases", program=P, stage="intake", reason="no_dose") == 1
        assert value(after, "cases", program=P, stage="intake", status="ok") == 1


def test_a_scrape_reads_tables_only_where_they_were_written(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(ws)
    first = text(collector.families())
    monkeypatch.setattr(Catalog, "frame", lambda *_, **__: pytest.fail("the table was read again"))
    monkeypatch.setattr(Catalog, "rows", lambda *_, **__: pytest.fail("the table was read again"))
    names = {name for name, _ in parsed(text(collector.families()))}
    assert names == {name for name, _ in parsed(first)}


def test_the_champion_trainings_and_gpus_are_there(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "program": P, "experiment": "mean_dose", "checkpoint": "checkpoint/0", "dataset_version": "d", "n_train": 1,
        "promoted_at": "2026-01-02T03:04:05+00:00", "action": "promoted", "reason": "a test",
    }  # fmt: skip
    Catalog(ws, P).replace(Champion, [Champion.of(row)])
    for name, done in (("running", False), ("finished", True)):
        job = ws.jobs / name
        write_text(job / "program", P)
        write_json(job / "experiment.json", {"name": "baseline"})
        write_json(job / "heartbeat.json", {"time": 1234.5, "epoch": 1})
        if done:
            write_json(job / "result.json", {})
    program = tmp_path / "bin" / "nvidia-smi"
    write_text(program, '#!/bin/sh\necho "0, 1024, 143771, 41, 50"\necho "1, [N/A], 143771, [N/A], 0"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    found = parsed(text(Collector(ws).families()))
    assert value(found, "champion_promoted_timestamp_seconds", program=P, experiment="mean_dose") == 1767323045
    assert value(found, "unfinished_trainings") == 1
    labels = {"program": P, "experiment": "baseline", "job": "running"}
    assert value(found, "training_heartbeat_timestamp_seconds", **labels) == 1234.5
    assert value(found, "gpu_memory_used_bytes", gpu="0") == 1024 * 2**20
    assert value(found, "gpu_temperature_celsius", gpu="0") == 41
    assert value(found, "gpu_utilization_ratio", gpu="0") == 0.5
    assert not [key for key in found if key[0].endswith("temperature_celsius") and ("gpu", "1") in key[1]]


def test_runs_are_those_that_dagsters_webserver_counts(ws: Workspace) -> None:
    import dagster as dg
    from dagster._core.test_utils import instance_for_test
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import EmptyWorkspaceTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    states = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS]
    with instance_for_test() as instance:
        for state in states:
            instance.add_run(dg.DagsterRun(job_name="job", status=state))
        with (
            WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as context,
            served(create_app_from_workspace_process_context(context)) as url,
        ):
            found = parsed(text(Collector(ws, url).families()))
    assert value(found, "dagster_up") == 1
    assert value(found, "dagster_runs", state="started") == 2
    assert value(found, "dagster_runs", state="queued") == 0
    found = parsed(text(Collector(ws, url).families()))
    assert value(found, "dagster_up") == 0


def test_the_command_prints_them_once_and_none_identifies_anybody(
    ws: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MED_ASSETS_PSEUDONYM_KEY")
    quarantine(ws, "no_dose")
    patients = {case.patient_id for case in Catalog(ws, P).case_versions()}
    assert main(["metrics", "--once", "--dagster", ""]) == 0
    shown = capsys.readouterr().out
    assert value(parsed(shown), "quarantined_cases", program=P, stage="intake", reason="no_dose") == 1
    for secret in ("PATIENT", str(ws.home), *patients):
        assert secret not in shown


def test_a_home_without_anything_has_metrics(workspace: Workspace) -> None:
    shutil.rmtree(workspace.home, ignore_errors=True)
    assert value(parsed(text(Collector(workspace).families())), "unfinished_trainings") == 0


def test_text_is_escaped_and_numbers_keep_their_digits() -> None:
    label = 'a "quoted" \\ and\na line'
    families = [
        Family("one_bytes", "bytes \\ of\none", (Sample(1234567890123, {"label": label}), Sample(0.1))),
        Family("two_total", "counted", (Sample(3),), Kind.COUNTER),
    ]
    found = parsed(text(families))
    assert found["one_bytes", (("label", label),)] == 1234567890123
    assert found["one_bytes", ()] == 0.1
    assert found["two_total", ()] == 3
