"""Disk space is counted by kind and experiment, and what nothing current refers to is removed, and nothing else."""

import fcntl
import json
import os
import time
from pathlib import Path

import psutil
import pytest

from med_assets.catalog import Catalog
from med_assets.cli import main as cli
from med_assets.evaluation.scoring import score_key
from med_assets.launch.local import PROCESS, started_s
from med_assets.operations import integrity, pruning
from med_assets.records import Champion, Checkpoint
from med_assets.settings import Workspace
from med_assets.storage.files import digest, write_json, write_text
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import VAL, artifact, cases, constant, model

FEW = VAL[:3]
OLD_S = time.time() - 30 * 86400


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """A home with a few cases, whose prepared arrays are in the store."""
    cases(workspace, {"train": ["t0"], "val": FEW})
    for case in ("t0", *FEW):
        for key in (artifact(case), "raw/" + digest(case)):
            with workspace.store.create(key) as folder:
                write_text(folder / "case.json", "{}")
    return workspace


def trained(ws: Workspace, experiment: str, seed: float, initial: str | None = None) -> str:
    """An evaluated checkpoint of an experiment, which is its present one."""
    return model(ws, experiment, constant(seed, FEW), train=["t0"], initial=initial)


def promoted(ws: Workspace, experiment: str, checkpoint: str) -> None:
    keys = {"program": P, "experiment": experiment, "checkpoint": checkpoint, "dataset_version": "d", "n_train": 1}
    catalog = Catalog(ws, P)
    row = Champion.of(keys | {"promoted_at": "2026-01-01", "action": "promoted", "reason": "a test"})
    catalog.replace(Champion, [*catalog.champions(), row])


def job(ws: Workspace, name: str, files: dict[str, str]) -> Path:
    folder = ws.jobs / name
    for file, text in {"program": P, "experiment.json": '{"name": "baseline"}', "log.txt": "log", **files}.items():
        write_text(folder / file, text)
    return folder


def age(ws: Workspace) -> None:
    """Make all that there is a month old."""
    for path in sorted((ws.home).rglob("*"), reverse=True):
        os.utime(path, (OLD_S, OLD_S))


def names(found: list[pruning.Stored]) -> set[str]:
    return {one.name for one in found if not one.kept}


def test_earlier_checkpoints_go_with_what_they_made_and_what_anything_current_needs_stays(ws: Workspace) -> None:
    base = trained(ws, "grad_loss", 9.0)  # an earlier one, from which the present baseline started
    trained(ws, "grad_loss", 8.0)
    former = trained(ws, "baseline", 7.0)
    promoted(ws, "baseline", former)
    earlier = trained(ws, "baseline", 6.0)
    present = trained(ws, "baseline", 5.0, initial=base)
    stray = "prediction/" + digest("of a version before")
    with ws.store.create(stray) as folder:
        write_text(folder / "dose", "1")
    age(ws)
    found = pruning.examine(ws, 7)
    gone = names(found)
    assert gone == {earlier, stray} | {score_key(ws, P, earlier, artifact(case)) for case in FEW}
    (total,) = [one for one in pruning.totals(found) if (one.kind, one.owner) == ("checkpoint", f"{P}/baseline")]
    assert (total.n, total.removable_n) == (3, 1)
    assert 0 < total.removable_bytes < total.bytes
    pruning.remove(ws, found)
    assert names(pruning.examine(ws, 7)) == set()
    for kept in (base, former, present, artifact("t0"), score_key(ws, P, former, artifact(FEW[0]))):
        assert ws.store.has(kept)
    assert integrity.examine(ws) == []
    assert Catalog(ws, P).checkpoint("baseline") is not None


def test_nothing_goes_without_yes_and_nothing_that_is_new(ws: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = trained(ws, "baseline", 6.0)
    trained(ws, "baseline", 5.0)
    assert cli.main(["gc", "--yes"]) == 0
    assert ws.store.has(earlier), "a week has not passed"
    age(ws)
    assert cli.main(["gc", "--list"]) == 0
    shown = capsys.readouterr().out
    assert earlier in shown
    assert "nothing was removed" in shown
    assert ws.store.has(earlier)
    assert cli.main(["gc", "--yes"]) == 0
    assert not ws.store.has(earlier)


def test_finished_jobs_go_with_their_logs_and_unfinished_ones_only_when_asked_for(ws: Workspace) -> None:
    present = trained(ws, "baseline", 5.0)
    finished = job(ws, present.split("/")[1], {"result.json": "{}"})
    needed = "prepared/" + digest("of an interrupted job")
    with ws.store.create(needed) as folder:
        write_text(folder / "case.json", "{}")
    interrupted = job(ws, digest("interrupted"), {"last.ckpt": "c", "cases.json": json.dumps([{"version": needed}])})
    age(ws)
    assert names(pruning.examine(ws, 7)) == {finished.name}
    assert names(pruning.examine(ws, 7, interrupted=True)) == {finished.name, interrupted.name, needed}
    with (finished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(finished / "lock", (OLD_S, OLD_S))
        os.utime(finished, (OLD_S, OLD_S))
        assert pruning.remove(ws, pruning.examine(ws, 7)) == [], "somebody holds it"
    removed = pruning.remove(ws, pruning.examine(ws, 7))
    assert [one.name for one in removed] == [finished.name]
    assert not finished.exists()
    assert interrupted.is_dir()
    write_json(interrupted / PROCESS, {"pid": os.getpid(), "started_s": started_s(psutil.Process())})
    assert names(pruning.examine(ws, 0, interrupted=True)) == set(), "this process runs it"


def test_a_home_whose_tables_are_lost_loses_nothing_more(ws: Workspace) -> None:
    checkpoint = trained(ws, "baseline", 5.0)
    age(ws)
    Catalog(ws, P).replace(Checkpoint, [], "baseline")
    for table in ("evaluation_cases", "evaluation", "training_history"):
        ws.lake.remove(table, f"{P}/baseline")
    assert cli.main(["gc", "--yes"]) == 1
    assert ws.store.has(checkpoint)
