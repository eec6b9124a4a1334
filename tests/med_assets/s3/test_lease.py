"""Locks that machines share, on a real S3 endpoint: one holder at a time, taken over from the dead, found out by the paused."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from med_assets.errors import ArtifactCorrupt, ConfigurationError, LockHeld, LockLost, RemoteFailed
from med_assets.settings import Settings
from med_assets.storage.locks import alone, alone_here, demand_locks
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lease import LEASE_S, Leases
from tests.code import Code
from tests.med_assets.s3.faults import Faults

SHORT_S = 1.0

HOLDER = """
import sys
from med_assets.errors import LockLost
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lease import Leases
bucket, lease_s = sys.argv[1], float(sys.argv[2])
with Leases(Location(bucket, "home"), lease_s).hold("x") as lease:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.check()
        print("still", flush=True)
    except LockLost as error:
        print("lost", error, flush=True)
"""


@pytest.fixture
def leases(faults: Faults, name: str) -> Leases:
    return Leases(Location(name, "home"), SHORT_S)


def other(leases: Leases, lease_s: float = SHORT_S) -> Leases:
    """The locks as another machine sees them."""
    return Leases(leases.location, lease_s)


@pytest.fixture
def holder(leases: Leases) -> Iterator[Code]:
    """Another process that holds the lock x, and checks it when a line comes."""
    process = Code(HOLDER, leases.location.bucket, str(leases.lease_s))
    assert process.stdout.readline() == "held\n"
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.communicate()


def test_one_holds_a_lock_and_the_next_has_it_after_the_release(leases: Leases) -> None:
    with leases.hold("x") as lease:
        with pytest.raises(LockHeld, match=f"process {os.getpid()} since 20"), other(leases).hold("x", wait=False):
            pass
        with other(leases).hold("y", wait=False):  # another lock
            pass
        lease.check()
        assert not lease.lost
    with other(leases).hold("x", wait=False):
        pass
    with leases.hold("x", wait=False):  # the ETag that is remembered is not the present one
        pass


def test_of_many_that_add_to_a_number_none_is_lost(leases: Leases, good: Any) -> None:
    bucket = leases.location.bucket
    good.put_object(Bucket=bucket, Key="number", Body=b"0")

    def add(_: int) -> None:
        with other(leases, LEASE_S).hold("x"):
            number = int(good.get_object(Bucket=bucket, Key="number")["Body"].read())
            time.sleep(0.01)
            good.put_object(Bucket=bucket, Key="number", Body=str(number + 1).encode())

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(24)))
    assert good.get_object(Bucket=bucket, Key="number")["Body"].read() == b"24"


def test_a_lock_that_is_held_for_long_is_renewed(leases: Leases) -> None:
    with leases.hold("x") as lease:
        first = leases.holder("x")
        with pytest.raises(LockHeld):
            wait_for(leases, 2.2 * SHORT_S)
        assert leases.holder("x") != first
        lease.check()


def wait_for(leases: Leases, seconds: float) -> None:
    """Try to take the lock x for so long."""
    taken = threading.Event()

    def take() -> None:
        with other(leases).hold("x"):
            taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    if not taken.wait(seconds):
        raise LockHeld("not within the time")
    thread.join()


def test_a_dead_holder_s_lock_is_taken_over_after_a_while(leases: Leases, holder: Code) -> None:
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with leases.hold("x"):
        assert SHORT_S <= time.monotonic() - began < 3 * SHORT_S


def test_of_several_that_wait_for_a_dead_holder_one_takes_the_lock_over(leases: Leases, holder: Code) -> None:
    holder.kill()
    at_once, most, lock = 0, 0, threading.Lock()

    def take(_: int) -> None:
        nonlocal at_once, most
        with other(leases).hold("x"):
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.05)
            with lock:
                at_once -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(4)))
    assert most == 1


def test_a_paused_holder_finds_that_its_lock_is_gone(leases: Leases, holder: Code) -> None:
    holder.send_signal(signal.SIGSTOP)
    with leases.hold("x"):
        holder.send_signal(signal.SIGCONT)
        holder.stdin.write("check\n")
        holder.stdin.flush()
        answer = holder.stdout.readline()
        assert answer.startswith("lost expected to hold the lock x still")
        assert f"process {os.getpid()} holds it since 20" in answer


def test_a_paused_holder_whose_lock_nobody_wanted_has_it_still(leases: Leases, holder: Code) -> None:
    holder.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * SHORT_S)
    holder.send_signal(signal.SIGCONT)
    holder.stdin.write("check\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "still\n"


def test_without_the_network_a_holder_does_not_claim_its_lock(leases: Leases, faults: Faults) -> None:
    with leases.hold("x") as lease:
        faults.always = (503, "SlowDown")
        time.sleep(0.9 * SHORT_S)
        with pytest.raises(LockLost, match="nothing was written"):
            lease.check()
        faults.always = None
        lease.check()  # nobody took it over meanwhile


@pytest.mark.parametrize("kind", ["failing", "truncated", "lost", "corrupt"])
def test_a_bad_network_changes_nothing(leases: Leases, faults: Faults, good: Any, kind: str) -> None:
    setattr(faults, kind, 0.2)
    bucket = leases.location.bucket
    good.put_object(Bucket=bucket, Key="number", Body=b"0")

    def add(_: int) -> None:
        with other(leases, LEASE_S).hold("x") as lease:
            number = int(good.get_object(Bucket=bucket, Key="number")["Body"].read())
            lease.check()
            good.put_object(Bucket=bucket, Key="number", Body=str(number + 1).encode())

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(add, range(9)))
    assert good.get_object(Bucket=bucket, Key="number")["Body"].read() == b"9"
    assert faults.done[kind]


def test_a_refusal_is_an_error_at_once(leases: Leases, faults: Faults) -> None:
    faults.always = (403, "AccessDenied")
    with pytest.raises(RemoteFailed, match="AccessDenied"), leases.hold("x"):
        pass
    assert faults.seen.total() == 1


def test_a_server_without_conditional_writes_is_refused(leases: Leases, faults: Faults) -> None:
    faults.ignored_headers = {"If-Match", "If-None-Match"}
    with pytest.raises(ConfigurationError, match="writes under a condition"), leases.hold("x"):
        pass


def test_a_long_wait_says_who_holds_the_lock(
    leases: Leases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("med_assets.storage.s3.lease.MESSAGE_S", 0.1)
    with leases.hold("x"), pytest.raises(LockHeld):
        wait_for(leases, 0.6)
    assert "waiting for the lock x, which " in caplog.text
    assert f"process {os.getpid()} holds since 20" in caplog.text


def test_an_object_that_is_no_lock_says_so(leases: Leases, good: Any) -> None:
    good.put_object(Bucket=leases.location.bucket, Key="home/locks/x.json", Body=b"[1]")
    with pytest.raises(ArtifactCorrupt, match=r"home/locks/x.json, got something else"), leases.hold("x"):
        pass


def _machine(home: Path, bucket: str | None) -> Settings:
    return Settings(home=home, landing=home / "landing", store_location=Location(bucket, "home") if bucket else None)


def test_two_machines_of_a_shared_home_exclude_each_other_and_two_homes_do_not(
    faults: Faults, name: str, tmp_path: Path
) -> None:
    with alone(_machine(tmp_path / "1", name), "champion"):
        with pytest.raises(LockHeld), alone(_machine(tmp_path / "2", name), "champion", wait=False):
            pass
        with pytest.raises(LockHeld), alone(_machine(tmp_path / "1", None), "champion", wait=False):
            pass
        with alone_here(_machine(tmp_path / "2", name), "champion", wait=False):
            pass
        with alone(_machine(tmp_path / "3", None), "champion", wait=False):
            pass


KILLED = """
import sys
from pathlib import Path
from med_assets.storage.locks import alone
from tests.med_assets.s3.test_lease import _machine
with alone(_machine(Path(sys.argv[1]), sys.argv[2]), "x"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_next_process_of_the_same_machine_need_not_wait_for_one_that_died(
    faults: Faults, name: str, tmp_path: Path
) -> None:
    process = Code(KILLED, str(tmp_path / "1"), name)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    with pytest.raises(LockHeld), alone(_machine(tmp_path / "2", name), "x", wait=False):
        pass
    with alone(_machine(tmp_path / "1", name), "x", wait=False):
        pass


def test_a_lock_that_was_taken_over_stops_what_it_guards(
    faults: Faults, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = _machine(tmp_path / "1", name)
    home.__dict__["leases"] = Leases(Location(name, "home"), SHORT_S)
    with alone(home, "champion"):
        demand_locks()
        faults.always = (503, "SlowDown")
        time.sleep(0.9 * SHORT_S)
        with pytest.raises(LockLost):
            demand_locks()
        faults.always = None
    demand_locks()  # none is held
