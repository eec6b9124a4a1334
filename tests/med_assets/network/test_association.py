"""The thread of an association takes no answer from whoever asked."""

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from med_assets.network.association import keep_answers

REQUESTS = 3000


@pytest.fixture(autouse=True)
def _threads_alternate_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_while_a_request_waits_for_its_answer_the_thread_takes_no_message() -> None:
    assoc = SimpleNamespace(_is_paused=False, _reactor_checkpoint=threading.Event(), _kill=False)
    assoc._reactor_checkpoint.set()
    keep_answers(cast(Any, assoc))
    asking, taken = False, 0

    def react() -> None:
        """What the thread of an association does, in the order of pynetdicom."""
        nonlocal taken
        while not assoc._kill:
            assoc._is_paused = True
            assoc._reactor_checkpoint.wait()
            assoc._is_paused = False
            taken += asking

    thread = threading.Thread(target=react)
    thread.start()
    for _ in range(REQUESTS):
        assoc._reactor_checkpoint.clear()
        while not assoc._is_paused:
            pass
        asking = True
        for _ in range(20):
            pass
        asking = False
        assoc._reactor_checkpoint.set()
    assoc._kill = True
    thread.join(20)
    assert not taken
