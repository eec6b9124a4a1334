"""An entry of the landing zone that several processes read: which parts of it are left, and who takes the next one."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition

from med_assets.intake.parts import CASES, Part
from med_assets.intake.reading import Task
from med_assets.records import CaseVersion

HELP_S = 0.3
"""Work that must be left of an entry for another process to help with it: to start one takes as long."""


def worth_help(cost_s: float) -> bool:
    """Whether work is so much that another process is worth its start."""
    return cost_s >= HELP_S


@dataclass
class Division:
    """The parts of an entry, all of one kind at a time: who reads it takes the first of them, who helps the last.

    `changed` is held while anything is read or changed here. `results` are of cases by the key of their part, also of earlier
    attempts at the entry: those are not worked on again.
    """

    changed: Condition
    results: dict[str, CaseVersion]
    call_help: Callable[[], None] = lambda: None
    """Called when there is so much work that others can help."""

    needless: Callable[[], bool] = lambda: False
    """Whether no case is to be read after all; asked, and perhaps waited for, before the first one is."""

    task: Task | None = None
    kind: str = ""
    parts: Sequence[Part] = ()
    left: deque[int] = field(default_factory=deque)
    helped_with: int = 0
    """Parts that helpers work on now."""

    undone: int = 0
    """Cases to be read again, alone."""

    error: BaseException | None = None
    """What ended a helper."""

    closed: bool = False

    def begin(self, kind: str, parts: Sequence[Part]) -> int | None:
        """Divide the next work; returns the number of the first part, which is for who reads the entry."""
        if kind == CASES and self.needless():
            parts = ()
        with self.changed:
            self.kind, self.parts = kind, parts
            places = sorted(range(len(parts)), key=lambda n: parts[n].place)
            self.left = deque(n for n in places if kind != CASES or parts[n].key not in self.results)
            help_wanted = self.wants_help()
            first = self.next()
        if help_wanted:
            self.call_help()
        return first

    def next(self) -> int | None:
        """The next part for who reads the entry; none when all are done, of which others may do the last: that is waited for."""
        with self.changed:
            first = self.left.popleft() if self.left and self.error is None else None
            self.changed.notify_all()
            if first is None:
                self.changed.wait_for(lambda: not self.helped_with)
            if self.error is not None:
                raise self.error
            return first

    def wants_help(self) -> bool:
        """Whether there are several parts left, and so much that they are worth help."""
        return not self.over() and len(self.left) > 1 and worth_help(sum(self.parts[n].cost_s for n in self.left))

    def last(self, stay: Callable[[], bool]) -> tuple[str, int] | None:
        """A part for who helps, by kind and number, which is then `done`; none when nothing is left.

        While who reads the entry may yet divide more, it is waited for as long as `stay` holds.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.left or self.over() or self.kind == CASES or not stay())
            if self.over() or not self.left:
                return None
            self.helped_with += 1
            return self.kind, self.left.pop()

    def over(self) -> bool:
        """Whether nothing more is to do."""
        return self.closed or self.error is not None

    def done(self) -> None:
        """A helper has done its part."""
        with self.changed:
            self.helped_with -= 1
            self.changed.notify_all()

    def failed(self, error: BaseException) -> None:
        """A helper can't go on, and neither can who reads the entry."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def close(self) -> None:
        """Let no helper begin anything more."""
        with self.changed:
            self.closed = True
            self.left.clear()
            self.changed.notify_all()

    def again(self) -> None:
        """A case is to be read again, alone."""
        with self.changed:
            self.undone += 1

    def keep(self, number: int, row: CaseVersion) -> None:
        """Keep what came of a case."""
        with self.changed:
            self.results[self.parts[number].key] = row

    def cases(self) -> list[CaseVersion]:
        """What came of all cases, in their order."""
        return [self.results[part.key] for part in self.parts] if self.kind == CASES else []
