"""Decisions of machines that share a home: one after the other, each on what was there, and none lost."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from med_assets.catalog import Catalog, decided_anew
from med_assets.cli import stages
from med_assets.deidentification.audit_trail import verify
from med_assets.deidentification.audited_rows import unmatched
from med_assets.errors import Conflict, LockLost
from med_assets.promotion.champions import PROMOTED, crown, current, rollback
from med_assets.records import Champion, Checkpoint, SplitAssignment, Verdict
from med_assets.settings import Workspace
from med_assets.storage.locks import alone
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lease import Holder, Leases
from tests.code import Code
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, constant, model

SHORT_S = 2.0
FEW = VAL[:10]

PAUSED = """
import sys
from pathlib import Path
from med_assets.errors import MedAssetsError
from med_assets.settings import Workspace
from tests.conftest import settings_of
from tests.med_assets.s3.test_shared_promotion import machine, promote
home = Path(sys.argv[1])
ws = machine(Workspace.from_env(settings_of(home)), home, sys.argv[2])
def pause():
    print("decided", flush=True)
    sys.stdin.readline()
try:
    promote(ws, "paused", pause)
    print("promoted", flush=True)
except MedAssetsError as error:
    print(type(error).__name__, flush=True)
"""


def machine(workspace: Workspace, home: Path, bucket: str) -> Workspace:
    """A machine of a shared home, whose locks are taken over after SHORT_S."""
    found = replace(workspace, home=home, store_location=Location(bucket, "site"))
    found.__dict__["leases"] = Leases(Location(bucket, "site"), SHORT_S)
    return found


@pytest.fixture
def machines(workspace: Workspace, faults: Faults, name: str, tmp_path: Path) -> tuple[Workspace, Workspace]:
    one, two = (machine(workspace, tmp_path / each, name) for each in ("one", "two"))
    return one, two


def checkpoint(name: str) -> Checkpoint:
    return Checkpoint(
        program=P, experiment=name, checkpoint=f"checkpoint/{name}", experiment_hash="", dataset_version="", n_train=1,
        n_val=1, synthetic=True, weights_sha256="", git_commit=None,
    )  # fmt: skip


def promote(ws: Workspace, name: str, pause: Callable[[], None] = lambda: None) -> None:
    """Promote as the stage does, with a pause between the decision and its row."""
    with alone(ws, f"champion-{P}"):
        decided_on = Catalog(ws, P).stamp(Champion)
        pause()
        crown(ws, checkpoint(name), PROMOTED, "better", decided_on)


def history(ws: Workspace) -> list[str]:
    ws.lake.refresh()
    return [row.experiment for row in Catalog(ws, P).champions()]


def test_machines_that_promote_at_once_leave_one_order_in_which_each_verdict_knows_the_one_before(
    machines: tuple[Workspace, Workspace],
) -> None:
    one, two = machines
    cases(one, {"train": TRAIN, "val": FEW})
    model(one, "mean_dose", constant(5.0, FEW, step=0.02))
    model(one, "baseline", constant(4.0, FEW))
    model(one, "dvh_aware", constant(3.0, FEW))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda each: stages.champion(each[0], P, each[1]), [(one, "baseline"), (two, "dvh_aware")]))
    found = history(one)
    assert found in (["baseline", "dvh_aware"], ["dvh_aware"])
    assert found == history(two)
    promoted = {row.challenger: row.reference for row in Catalog(two, P).rows(Verdict) if row.promoted}
    assert promoted == (
        {"baseline": "mean_dose", "dvh_aware": "baseline"} if len(found) == 2 else {"dvh_aware": "mean_dose"}
    )
    for ws in machines:
        assert unmatched(ws) == []
        assert verify(ws) == []


def test_a_promotion_decided_on_an_earlier_history_is_refused(machines: tuple[Workspace, Workspace]) -> None:
    one, two = machines
    decided_on = Catalog(one, P).stamp(Champion)
    promote(two, "first")
    with pytest.raises(Conflict, match="decide anew"):
        crown(one, checkpoint("second"), PROMOTED, "better", decided_on)
    assert history(one) == history(two) == ["first"]
    promote(one, "second")
    with one.store.create("checkpoint/first") as folder:
        (folder / "weights.pt").write_bytes(b"first")
    assert rollback(two, P, "worse").experiment == "first"
    assert history(one) == ["first", "second", "first"]
    assert unmatched(one) == []
    assert verify(two) == []


def test_a_promotion_whose_process_was_paused_until_another_machine_promoted_is_refused(
    machines: tuple[Workspace, Workspace], name: str, tmp_path: Path
) -> None:
    process = Code(PAUSED, str(tmp_path / "paused"), name)
    assert process.stdout.readline() == "decided\n"
    process.send_signal(signal.SIGSTOP)
    promote(machines[0], "first")
    process.send_signal(signal.SIGCONT)
    assert process.communicate("on\n", timeout=60) in ("Conflict\n", "LockLost\n")
    assert history(machines[1]) == ["first"]
    assert current(machines[1], P) == Catalog(machines[0], P).champions()[0]
    assert unmatched(machines[1]) == []
    assert verify(machines[0]) == []


def test_what_is_made_of_rows_that_another_machine_replaced_is_made_again(
    machines: tuple[Workspace, Workspace],
) -> None:
    one, two = machines
    catalog, seen = Catalog(one, P), list[list[str]]()

    def assignment(patient: str) -> SplitAssignment:
        return SplitAssignment(program=P, patient_id=patient, split="train", fold=0, assigned_by="test")

    def add() -> str:
        stamp, earlier = catalog.stamp(SplitAssignment), catalog.rows(SplitAssignment)
        seen.append([row.patient_id for row in earlier])
        if len(seen) == 1:
            Catalog(two, P).replace(SplitAssignment, [assignment("theirs")])
        catalog.replace(SplitAssignment, [*earlier, assignment("ours")], expected=stamp)
        return "done"

    assert decided_anew(one, add) == "done"
    assert seen == [[], ["theirs"]]
    two.lake.refresh()
    assert [row.patient_id for row in Catalog(two, P).rows(SplitAssignment)] == ["theirs", "ours"]


def test_what_a_lost_lock_guards_is_not_written(machines: tuple[Workspace, Workspace]) -> None:
    one, two = machines
    with alone(one, f"dataset-{P}"):
        assert one.leases is not None
        # As another machine does when this one stood still for too long; as long as it does not, it may renew its lease in between.
        while (held := one.leases.holder(f"dataset-{P}")) is not None:
            if one.leases.write(f"dataset-{P}", Holder.new("another machine"), held[1]) is not None:
                break
        assert held is not None
        time.sleep(SHORT_S / 3)
        with pytest.raises(LockLost, match="another machine holds it since"):
            Catalog(one, P).replace(SplitAssignment, [])
    two.lake.refresh()
    assert not Catalog(two, P).has(SplitAssignment)
