"""A machine of a site: a process that does steps of the plan until none is left, in a home of its own and one bucket with the others.

What happens here happens on a real machine by commands or by Dagster: stages are called with nothing but the settings of the environment, or
run by Dagster where that names a DAGSTER_HOME. What machines agree on beside the bucket (which steps are done) belongs to the test alone, and is a folder of marks.
"""

import fcntl
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from botocore.retries.standard import ExponentialBackoff

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.errors import (
    ConfigurationError,
    Conflict,
    LandingUnreadable,
    LockHeld,
    LockLost,
    RemoteFailed,
    TrainingStopped,
)
from med_assets.intake.checks import residual_phi
from med_assets.landing import batches
from med_assets.promotion.champions import rollback
from med_assets.records import CaseVersion, ReaderDecision, Status, Withdrawal
from med_assets.review.decisions import decide
from med_assets.settings import Workspace
from med_assets.storage.s3 import bucket
from med_assets.storage.s3.lease import Leases
from tests.med_assets.site import runs
from tests.med_assets.site.plan import BY_ONE, EXCLUDE, MONITOR, ONCE, PEOPLE, ROLLBACK, WITHDRAW, P, Plan, Step

BACK_OFF = "BACK_OFF_S"
"""Variable with the seconds of boto3's first wait for a server that asks for fewer requests."""

LEASE_S = 4.0
"""A lock of a machine that was killed is taken over after so long; all that share a home have the same."""

MAY_HAPPEN = (RemoteFailed, LandingUnreadable, LockLost, LockHeld, Conflict, TrainingStopped)
"""Errors that say "give the same command again": the bucket failed for longer than requests are repeated, or another machine was first."""

AGAIN = 0.05
"""How often a machine does something again that is done, or early."""


def workspace() -> Workspace:
    """The workspace that the environment describes, with locks that are taken over sooner."""
    ws = Workspace.from_env()
    if ws.store_location is not None:
        ws.__dict__["leases"] = Leases(ws.store_location, LEASE_S)
    return ws


class Board:
    """The marks of what is done, and of which machine does something: of the test, not of the site."""

    def __init__(self, folder: Path, plan: Plan, names: Sequence[str]) -> None:
        self.folder, self.plan, self.names = folder, plan, names
        for name in ("done", "busy"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def done(self, step: Step) -> bool:
        """Whether a step is done."""
        return (self.folder / "done" / step.mark).exists()

    def finish(self, step: Step) -> None:
        """Mark a step as done."""
        (self.folder / "done" / step.mark).touch()

    def phase(self) -> int:
        """The first phase that is not done, the number of phases when all are."""
        return next(
            (number for number, steps in enumerate(self.plan.steps) if not all(map(self.done, steps))),
            len(self.plan.steps),
        )

    def share_done(self) -> float:
        """Share of all steps that are done."""
        return len(list((self.folder / "done").iterdir())) / sum(map(len, self.plan.steps))

    def choose(self, machine: str, chance: random.Random) -> Step | None:
        """Choose a step and be busy with it; None where there is nothing to do at this moment."""
        with self._alone():
            phase = self.phase()
            others = [path.read_text().split() for path in (self.folder / "busy").iterdir() if path.name != machine]
            if phase == len(self.plan.steps) or any(int(number) != phase for number, _ in others):
                return None  # some machine is still busy in the phase before
            steps = self.plan.steps[phase]
            finished = {step.key for step in steps if self.done(step)}
            ready = [step for step in steps if step.key not in finished and finished.issuperset(step.after)]
            # What is monitored is predicted by the champion of the moment, so none monitors while one is rolled back.
            if any(key == MONITOR for _, key in others):
                ready = [step for step in ready if step.name != ROLLBACK]
            rolled_back = ROLLBACK in {step.name for step in steps} and "champion-again" not in finished
            # A person's decision is theirs alone: one machine does it.
            ready = [step for step in ready if step.name not in BY_ONE or self.owner(step) == machine]
            again = [step for step in steps if step.key in finished and step.name not in ONCE]
            again = [step for step in again if step.name != MONITOR or not rolled_back]
            early = [] if "dataset" in finished else [Step(phase, "dataset"), Step(phase, "splits")]
            if (
                len(self.names) > 1 and again + early and chance.random() < AGAIN
            ):  # the one machine does what is planned
                chosen = chance.choice(again + early)
            elif ready:
                chosen = chance.choice(ready)
            else:
                return None
            (self.folder / "busy" / machine).write_text(f"{phase} {chosen.key}")
            return chosen

    def owner(self, step: Step) -> str:
        """The machine at which a person decides."""
        return self.names[(step.phase + BY_ONE.index(step.name)) % len(self.names)]

    def ready(self, step: Step) -> bool:
        """Whether all steps that a step needs are done, so that its end counts."""
        keys = {each.key: each for each in self.plan.steps[step.phase]}
        return step.key in keys and all(self.done(keys[name]) for name in keys[step.key].after)

    def rest(self, machine: str) -> None:
        """No longer be busy; also for a machine that died."""
        with self._alone():  # others read it
            (self.folder / "busy" / machine).unlink(missing_ok=True)


def batch_of(ws: Workspace, drop: str) -> str | None:
    """Name of the batch that a drop was taken as, None for one that was not taken."""
    for batch in batches.known(ws, P):
        if any(name.startswith(drop) for name in batches.manifest(ws, P, batch)):
            return batch
    return None


def do(ws: Workspace, plan: Plan, step: Step, machine: str) -> bool:
    """Do a step; False where it has to wait, such as for files that did not settle."""
    batch = batch_of(ws, step.about) if step.name in ("intake", "prepare") else None
    if batch is None and step.name in ("intake", "prepare"):
        return False  # another machine took it less than a moment ago, which this one will see
    if "DAGSTER_HOME" in os.environ and step.name in runs.JOBS:
        runs.run(ws, step, batch, machine, MAY_HAPPEN)
        return True
    match step.name:
        case "take":
            return _take(ws, plan, step.about)
        case "intake":
            assert batch is not None
            stages.intake(ws, P, batch)
            residual_phi(ws, P, batch)  # the gate of intake, which a run of Dagster asks too
        case "prepare":
            assert batch is not None
            stages.prepare(ws, P, batch)
        case "train" | "evaluate":
            getattr(stages, step.name)(ws, P, step.about)
        case "champion-again":
            stages.champion(ws, P)
        case "rollback":
            _rollback(ws, f"phase {step.phase}")
        case _ if step.name in PEOPLE:
            _decide(ws, plan, step)
        case _:
            getattr(stages, step.name)(ws, P)
    return True


def _take(ws: Workspace, plan: Plan, drop: str) -> bool:
    if batch_of(ws, drop) is not None:
        return True
    zone = ws.landing_zone(P)
    zone.refresh()
    chosen = [entry for entry in batches.settled(ws, P, time.time()) if entry.name.startswith(drop)]
    if len(chosen) < len(plan.drop(drop).seeds):
        return batch_of(ws, drop) is not None
    batches.take(ws, P, chosen, time.time())
    return True


def _decide(ws: Workspace, plan: Plan, step: Step) -> None:
    """Exclude, accept or withdraw a case of the phases before, unless this was done before the machine died."""
    catalog = Catalog(ws, P)
    before = {batch_of(ws, drop.name) for drops in plan.drops[: step.phase] for drop in drops}
    cases = sorted(
        {row.case_id for row in catalog.rows(CaseVersion) if row.batch in before and row.status == Status.OK}
    )
    case_id, reader = cases[int(step.about) % len(cases)], f"reader of phase {step.phase}"
    if step.name == WITHDRAW:
        if not any(row.case_id == case_id for row in catalog.rows(Withdrawal)):
            stages.withdraw(ws, P, case_id, reader)
        return
    known = [row for row in catalog.rows(ReaderDecision, case_id) if row.reader == reader and row.decision == step.name]
    if not known:
        decide(ws, P, case_id, step.name, "decided at random" if step.name == EXCLUDE else "", reader)


def _rollback(ws: Workspace, reason: str) -> None:
    champions = Catalog(ws, P).champions()
    if any(row.reason == reason for row in champions):
        return
    try:
        rollback(ws, P, reason)
    except ConfigurationError:
        if len({row.checkpoint for row in champions}) > 2:
            raise


def run(environ: dict[str, str], name: str, life: int, board: Board, seed: int) -> None:
    """Work until all phases are done; each step and each error is a line of the machine's log."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environ)
    scales = ExponentialBackoff._DEFAULT_BACKOFF_CONFIG
    bucket.BACK_OFF_S = scales["throttling_base_scale"] = float(environ.get(BACK_OFF, bucket.BACK_OFF_S))
    plan, folder, chance = board.plan, board.folder, random.Random(f"{seed} {name} {life}")
    log = (folder / f"log-{name}.jsonl").open("a", buffering=1)

    def note(event: str, step: Step | None = None, **more: object) -> None:
        log.write(
            json.dumps({"at": time.time(), "life": life, "event": event, "step": step.mark if step else "", **more})
            + "\n"
        )

    for stream in (1, 2):
        os.dup2(os.open(folder / f"out-{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    note("start")
    ws = workspace()
    while board.phase() < len(plan.steps):
        step = board.choose(name, chance)
        if step is None:
            board.rest(name)
            time.sleep(0.1)
            continue
        counts = board.ready(step)
        note("begin", step)
        begun = time.monotonic()
        try:
            if chance.random() < 0.1:
                ws = workspace()  # as another command
            complete = do(ws, plan, step, name)
            if complete and counts:
                board.finish(step)
            note("end" if complete else "wait", step, s=round(time.monotonic() - begun, 3), counts=counts)
            if not complete:
                time.sleep(0.3)
        except MAY_HAPPEN as error:
            note("failed", step, error=type(error).__name__, message=str(error))
        except BaseException as error:
            note("broken", step, error=type(error).__name__, message=str(error), trace=traceback.format_exc())
            raise
        finally:
            board.rest(name)
    note("finished")
