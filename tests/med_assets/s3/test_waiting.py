"""Whose turn it is to commit for all that wait on a machine."""

import fcntl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from med_assets.storage.s3.table_state import ENTRY_BYTES, Part
from med_assets.storage.s3.waiting import TURNS, WAITED_S, Planned, Request, Waiting
from tests.code import Code


def request(token: str, partition: str = "", after: int = 0, held: str = "") -> Request:
    return Request(token, after, (Planned("notes", partition or token, Part("0" * 64, "", 3, ()), held=held),))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path)


def test_a_request_comes_back_as_it_was(waiting: Waiting) -> None:
    part = Part("0" * 64, "token", 3, ())
    changes = (
        Planned("notes", "p", part, ((1, 2),), "aGVsZA=="),
        Planned("notes", "q", None, (None,)),
        Planned("notes", "r", None),
    )
    asked = Request("one", 7, changes)
    assert Request.of("one", asked.content()) == asked
    with waiting.queued(asked):
        assert waiting.together_with(request("own"), {}, 0) == [request("own"), asked]
    assert not waiting.waits("one")


def test_requests_of_one_commit_change_different_partitions_and_fit_into_it(waiting: Waiting) -> None:
    large = "x" * (ENTRY_BYTES // 2)
    queued = [
        request("a", "p"), request("b", "p"), request("c", "q", after=3), request("d", "r", held=large), request("e", "s", held=large),
        request("f", "own"),
    ]  # fmt: skip
    with ExitStack() as stack:
        for each in queued:
            stack.enter_context(waiting.queued(each))
        own = request("own", held="x")
        assert [each.token for each in waiting.together_with(own, {}, 0)] == ["own", "a", "c", "d"]
        assert [each.token for each in waiting.together_with(own, {}, 1)] == ["own", "c"], (
            "others may be committed already"
        )


def test_what_nobody_waits_for_and_what_waited_too_long_is_no_part_of_a_commit(
    waiting: Waiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with waiting.queued(request("a")):
        Path(waiting.path("dead")).write_bytes(request("dead").content())
        Path(waiting.path("half")).write_bytes(b"{")
        with Path(waiting.path("half")).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            assert [each.token for each in waiting.together_with(request("own"), {}, 0)] == ["own", "a"]
        assert waiting.tokens() == ["a", "half"]
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + WAITED_S + 1)
        assert waiting.together_with(request("own"), {}, 0) == [request("own")]
        assert waiting.waits("a")


def test_a_turn_ends_for_all_at_once_and_whoever_was_not_among_it_has_the_next(waiting: Waiting) -> None:
    done: list[str] = []

    def wait(token: str) -> str:
        with waiting.queued(request(token)):
            turn = waiting.turn(token)
            if turn is None:
                return "committed by another"
            with turn:
                done.append(token)
            return "its turn"

    with ThreadPoolExecutor(6) as threads:
        with waiting.queued(request("first")):
            turn = waiting.turn("first")
            assert turn is not None
            with turn:
                tasks = {token: threads.submit(wait, token) for token in ("a", "b", "c", "late")}
                wait_for(lambda: len(waiting.tokens()) == 5)
                assert not any(task.done() for task in tasks.values())
                for token in ("a", "b", "c"):
                    waiting.end(token, None)
        assert {token: task.result() for token, task in tasks.items()} == {
            "a": "committed by another", "b": "committed by another", "c": "committed by another", "late": "its turn",
        }  # fmt: skip
    assert done == ["late"]


def test_those_of_an_ended_turn_get_by_while_the_next_one_lasts(waiting: Waiting) -> None:
    for _ in range(2 * TURNS):
        with ThreadPoolExecutor(1) as threads, waiting.queued(request("next")), waiting.queued(request("done")):
            turn = waiting.turn("done")
            assert turn is not None
            with waiting.queued(request("follower")):
                follower = threads.submit(waiting.turn, "follower")
                with turn:
                    waiting.end("follower", None)
                later = waiting.turn("next")
                assert later is not None
                with later:
                    assert follower.result(timeout=60) is None


KILLED = """
import sys, time
from pathlib import Path
from med_assets.storage.s3.waiting import Request, Waiting
waiting = Waiting(Path(sys.argv[1]))
with waiting.queued(Request("killed", 0, ())):
    turn = waiting.turn("killed")
    print("has it", flush=True)
    time.sleep(300)
"""


def test_the_turn_of_a_process_that_is_killed_is_that_of_the_next(waiting: Waiting, tmp_path: Path) -> None:
    process = Code(KILLED, str(tmp_path))
    assert process.stdout.readline() == "has it\n"
    with ThreadPoolExecutor(2) as threads, waiting.queued(request("a")), waiting.queued(request("b")):
        tasks = [threads.submit(waiting.turn, token) for token in ("a", "b")]
        time.sleep(0.05)
        assert not any(task.done() for task in tasks)
        process.kill()
        process.communicate()
        wait_for(lambda: any(task.done() for task in tasks))
        (turn,) = [task.result() for task in tasks if task.done()]
        assert turn is not None
        with turn:
            for token in ("a", "b"):
                waiting.end(token, None)
    assert sum(task.result() is None for task in tasks) == 1


def test_the_folder_may_be_deleted_at_any_time(waiting: Waiting, tmp_path: Path) -> None:
    for _ in range(2):
        with waiting.queued(request("a")):
            turn = waiting.turn("a")
            assert turn is not None
            with turn:
                for path in sorted(tmp_path.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
        assert waiting.tokens() == []
        assert not waiting.waits("a")
