"""Predictions of a shared home: what a machine finished others have, also when it dies in the middle."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from med_assets.errors import TrainingStopped
from med_assets.evaluation.predicting import predict_cases
from med_assets.launch import jobs
from med_assets.launch.launcher import Phase
from med_assets.launch.local import LocalLauncher
from med_assets.settings import Workspace, without_secrets
from med_assets.storage.s3.bucket import Location
from med_assets.training.predict import run
from tests.med_assets.evaluation.test_predicting import SLOW, Counting
from tests.med_assets.evaluation.untrained import P, case, checkpoint
from tests.med_assets.s3.faults import Faults


@pytest.fixture
def machines(workspace: Workspace, faults: Faults, name: str, tmp_path: Path) -> tuple[Workspace, Workspace]:
    one, two = (
        replace(workspace, home=tmp_path / each, store_location=Location(name, "site")) for each in ("one", "two")
    )
    return one, two


def dead_once_others_have_two(ws: Workspace, job: Path) -> None:
    """Launch a job and kill it, as soon as another machine has two of its predictions."""
    launcher = LocalLauncher()
    handle = launcher.submit(job, jobs.command(job), without_secrets(os.environ))
    while len(ws.store.keys("prediction")) < 2:
        assert launcher.state(handle).phase is Phase.RUNNING, jobs.tail(job)
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # it was faster than the look at the bucket
        os.kill(int(handle.id), signal.SIGKILL)
    while launcher.state(handle).phase is Phase.RUNNING:
        time.sleep(0.01)
    raise TrainingStopped(launcher.state(handle).message)


@pytest.mark.drill
def test_another_machine_predicts_only_what_one_that_died_had_not_finished(
    machines: tuple[Workspace, Workspace],
) -> None:
    one, two = machines
    model = checkpoint(one)
    cases = [case(one, 0), case(one, 1), *(case(one, number, SLOW) for number in range(2, 10))]
    with pytest.raises(TrainingStopped):
        predict_cases(one, P, model, cases, partial(dead_once_others_have_two, two))
    had = len(two.store.keys("prediction"))
    launch = Counting(run)
    made = predict_cases(two, P, model, cases, launch)
    assert len(made.keys) == len(cases)
    assert made.failures == {}
    assert launch.jobs == ([len(cases) - had] if had < len(cases) else [])


def test_machines_that_are_asked_for_the_same_cases_predict_them_once_and_others_side_by_side(
    machines: tuple[Workspace, Workspace],
) -> None:
    one, two = machines
    model = checkpoint(one)
    cases = [case(one, 0), case(one, 1)]
    launches = [Counting(run), Counting(run)]

    def predict(number: int) -> int:
        return len(predict_cases(machines[number], P, model, cases, launches[number]).keys)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(predict, range(2))) == [2, 2]
    assert sorted(launch.jobs for launch in launches) == [[], [2]]

    def meanwhile(job: Path) -> None:
        """On another machine, other cases of the same checkpoint."""
        assert len(predict_cases(two, P, model, [case(two, 3)], Counting(run)).new) == 1
        run(job)

    assert len(predict_cases(one, P, model, [case(one, 2)], meanwhile).new) == 1
