"""Several processes that work on the cases of a batch side by side, with the results of one, in the order of the cases."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TypeVar

from med_assets.intake.division import Division
from med_assets.intake.reader import EntryResult, Keep, Readers, RetryAlone, end_idle
from med_assets.intake.reading import Task
from med_assets.records import CaseVersion
from med_assets.settings import Settings
from med_assets.storage.memory import free_host
from med_assets.storage.progress import Progress, report
from med_assets.storage.scratch import scratch

CASE_GB = 2.0
"""Memory that a process is expected to take at its peak, as measured: a CT of 160 slices of 512 x 512 takes 0.8 GB in intake, with
its dose and structures 1.9 GB in preparation. It decides about the number of processes alone: what takes more than its share is
done again with all memory."""

LEAST_GB = 0.5
"""Memory that a process needs to start with."""

TICK_S = 1.0
"""Seconds between two reports of progress, also while no case ends."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def number(asked: int | None, cores: int, free_gb: float, limit_gb: float) -> int:
    """How many processes work side by side: as many as asked for, or one for each core as far as memory goes.

    All of them together take `limit_gb`; each must have what it needs to start with.
    """
    if asked is not None:
        return max(1, min(asked, int(limit_gb / LEAST_GB)))
    return max(1, min(cores, int(min(free_gb, limit_gb) / CASE_GB)))


def workers_of(ws: Settings) -> int:
    """How many processes may work side by side in this home now."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return number(ws.workers, cores, free_host() / 1e9, ws.intake_memory_gb)


class Workers:
    """Processes that work side by side, each lent to one thread at a time."""

    def __init__(self, readers: Sequence[Readers]) -> None:
        self._readers, self.stopped = readers, False
        self._free, self._waiting = list(readers), 0
        self._changed = threading.Condition()

    @contextmanager
    def borrow(self) -> Iterator[Readers]:
        """Wait for a process, and have it for the block. Raises RetryAlone once all were stopped."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._free or self.stopped)
            self._waiting -= 1
            if self.stopped:
                raise RetryAlone
            mine = self._free.pop()
        try:
            yield mine
        finally:
            self._put_back(mine)

    def _put_back(self, readers: Readers) -> None:
        with self._changed:
            self._free.append(readers)
            self._changed.notify_all()

    def read(
        self, task: Task, keep: Keep, results: dict[str, CaseVersion], needless: Callable[[], bool] = lambda: False
    ) -> EntryResult:
        """Read an entry with one process, and parts of it with those that nobody waits for; see `Readers.read`.

        `results` are of its cases by a key of their files; they are not read again, and those that are read are added. Where it is
        `needless`, which is asked once headers are read, no case is read.
        """

        def call_help() -> None:
            for each in helpers:
                if each.ident is None:
                    each.start()

        division = Division(self._changed, results, call_help, needless)
        helpers = [
            threading.Thread(target=self._help, args=(keep, division), name="helps a reader") for _ in self._readers[1:]
        ]
        with self.borrow() as readers:
            try:
                return readers.read(replace(task, shared=bool(helpers)), keep, division)
            finally:
                division.close()
                for each in helpers:
                    if each.ident is not None:
                        each.join()

    def _help(self, keep: Keep, division: Division) -> None:
        """Help with an entry whenever there is a process that nobody waits for."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self.stopped or division.over() or (self._free and not self._waiting and division.wants_help())
                    )
                )
                if self.stopped or division.over():
                    return
                mine = self._free.pop()
            try:
                mine.help(keep, division, lambda: not (self._waiting or self.stopped))
            finally:
                self._put_back(mine)

    def stop(self) -> None:
        """End all processes, whatever they do."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
        for each in self._readers:
            each.stop()


def side_by_side(
    ws: Settings,
    items: Sequence[Item],
    work: Callable[[Workers, Item], Result],
    doing: str,
    unit: str = "cases",
    size: Callable[[Item], int] = lambda item: 0,
    end: Callable[[], None] = lambda: None,
    shared: bool = False,
) -> list[Result]:
    """What `work` makes of each item, in their order; the largest begin first, so that none of them is left at the end.

    Calls run in threads, one more than there are processes for them to borrow, so that what comes before and after the work of a
    process, such as a transfer and the writing of an artifact, keeps none waiting.

    The processes share the memory that reading may take. What ends its process, or may have lacked memory, is done again when
    all others are done, with nothing beside it and all memory: only then is it refused. Whatever else `work` raises ends all
    processes and is raised; `end` ends what calls of `work` wait for beside their processes. An item of `shared` work may occupy
    several processes.
    """
    if not items:
        return []
    results: dict[int, Result] = {}
    again: list[int] = []
    begun = time.monotonic()

    def show_progress() -> None:
        report(Progress(doing, unit, len(results), len(items), time.monotonic() - begun))

    n = workers_of(ws) if shared else min(workers_of(ws), len(items))
    scratch(ws.home)  # made once, before threads ask for it
    with ExitStack() as stack:
        readers = [stack.enter_context(Readers(ws, ws.intake_memory_gb / n, alone=False)) for _ in range(n)]
        workers = Workers(readers)

        def one(place: int) -> None:
            try:
                results[place] = work(workers, items[place])
            except RetryAlone:
                again.append(place)

        threads = stack.enter_context(
            ThreadPoolExecutor(min(n, len(items)) + 1, thread_name_prefix="works with a reader")
        )
        try:
            show_progress()
            largest_first = sorted(range(len(items)), key=lambda place: -size(items[place]))
            waiting = {threads.submit(one, place) for place in largest_first}
            while waiting:
                done, waiting = wait(waiting, TICK_S, FIRST_COMPLETED)
                for future in done:
                    future.result()
                show_progress()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            workers.stop()
            end()
            raise
    if again:
        end_idle()  # the memory that they hold is for the one
        with Readers(ws) as alone:
            for place in sorted(again):
                results[place] = work(Workers([alone]), items[place])
                show_progress()
    return [results[place] for place in range(len(items))]
