"""How far work on many cases is: for whoever follows it, as a bar on the terminal or as lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

LINE_EVERY_S = 30.0
"""Seconds between two lines of a log."""


@dataclass(frozen=True)
class Progress:
    """So much of the work is done, `elapsed_s` seconds after it began; `unit` are its parts, such as "cases"."""

    doing: str
    unit: str
    done: int
    total: int
    elapsed_s: float

    def __str__(self) -> str:
        """As in "12 of 40 cases, 3.0 a minute, 9 min left"; without rate and time as long as nothing is done."""
        text = f"{self.done} of {self.total} {self.unit}"
        if not (0 < self.done < self.total and self.elapsed_s > 0):
            return text
        a_minute, left_s = 60 * self.done / self.elapsed_s, self.elapsed_s / self.done * (self.total - self.done)
        return f"{text}, {a_minute:.{1 if a_minute < 10 else 0}f} a minute, {duration(left_s)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "9 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


Follower = Callable[[Progress], None]

_follower: ContextVar[Follower | None] = ContextVar("follower", default=None)


def report(progress: Progress) -> None:
    """Let whoever follows know; nobody may."""
    if (follower := _follower.get()) is not None:
        follower(progress)


@contextmanager
def followed_by(follower: Follower) -> Iterator[None]:
    """What is reported in the block goes to this function."""
    token = _follower.set(follower)
    try:
        yield
    finally:
        _follower.reset(token)


def lines(log: Callable[[str], object], every_s: float) -> Follower:
    """A follower that logs a line every so many seconds, none of work that takes less."""
    logged_at: dict[str, float] = {}

    def follow(progress: Progress) -> None:
        now = time.monotonic()
        begun = now - progress.elapsed_s
        if now - max(begun, logged_at.get(progress.doing, begun)) >= every_s:
            log(f"{progress.doing}: {progress}")
            logged_at[progress.doing] = now

    return follow


def bar(doing: str, unit: str, total: int, *, shown: bool = True) -> Any:
    """A bar of tqdm on the stderr of the process if that is a terminal: it moves the cursor, which what commands print may not."""
    from tqdm import tqdm

    return tqdm(total=total, desc=doing, unit=unit, file=sys.__stderr__, disable=None if shown else True)


@contextmanager
def bars() -> Iterator[None]:
    """Show what is reported in the block as bars on the terminal, one after the other; without a terminal nothing is shown."""
    if sys.__stderr__ is None or not sys.__stderr__.isatty():
        yield
        return
    current: list[tuple[str, Any]] = []

    def follow(progress: Progress) -> None:
        if current and current[0][0] != progress.doing:
            current.pop()[1].close()
        if not current:
            current.append((progress.doing, bar(progress.doing, f" {progress.unit}", progress.total)))
        shown = current[0][1]
        shown.update(progress.done - shown.n)
        shown.refresh()
        if progress.done == progress.total:
            current.pop()[1].close()

    try:
        with followed_by(follow):
            yield
    finally:
        for _, shown in current:
            shown.close()
