"""Work of a site, planned by a seed: what people deliver and decide in each phase, and the steps that this asks of the machines.

A step is ready when those before it are done. Within a phase machines choose among the ready ones at random, and do some again that are done;
the next phase begins when all steps of the one before are done. So what is trained and promoted is the same whatever machine did what and when.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

P = "breast_us"
EXPERIMENTS = ("tinyusfm", "fast")
"""The baseline, and what is promoted where it is better."""

EXCLUDE, ACCEPT, WITHDRAW = "exclude", "accept", "withdraw"
PEOPLE = (EXCLUDE, ACCEPT, WITHDRAW)

ROLLBACK, MONITOR = "rollback", "monitor"
BY_ONE = (*PEOPLE, ROLLBACK)
"""Steps that are a decision of a person, who has one machine: two who roll back at the same moment go back twice."""

ONCE = (*BY_ONE, "champion", "champion-again")
"""Steps that are not done a second time at random: each time they count."""


@dataclass(frozen=True)
class Step:
    """A call of a stage, or a decision of a person. `about` is a drop, an experiment, or the rank of a case among those known before."""

    phase: int
    name: str
    about: str = ""
    after: tuple[str, ...] = ()
    """Names of the steps that must be done before."""

    @property
    def key(self) -> str:
        """Name of the step in its phase."""
        return f"{self.name}-{self.about}" if self.about else self.name

    @property
    def mark(self) -> str:
        """Name of the file that says that it is done."""
        return f"{self.phase:03d}-{self.key}"


@dataclass(frozen=True)
class Drop:
    """Cases that arrive together: an entry of the landing zone for each seed of a phantom."""

    name: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Phases of work."""

    drops: tuple[tuple[Drop, ...], ...]
    steps: tuple[tuple[Step, ...], ...]

    def drop(self, name: str) -> Drop:
        """A drop by its name."""
        return next(each for phase in self.drops for each in phase if each.name == name)


def plan(seed: int, phases: int, cases: int = 3, *, models: bool = True) -> Plan:
    """The plan of a seed; without `models` it ends with the splits, which takes seconds."""
    chance = random.Random(seed)
    drops, number = list[tuple[Drop, ...]](), 0
    for phase in range(phases):
        found = []
        for _ in range(2):
            seeds = [number + place for place in range(cases if phase else 2 * cases)]
            number += len(seeds)
            if phase and chance.random() < 0.5:  # a case that was sent before comes again
                seeds[-1] = chance.randrange(number - len(seeds))
            found.append(Drop(f"drop{phase:03d}{'ab'[len(found)]}", tuple(seeds)))
        drops.append(tuple(found))
    return Plan(tuple(drops), tuple(tuple(_steps(phase, each, chance, models)) for phase, each in enumerate(drops)))


def _steps(phase: int, drops: tuple[Drop, ...], chance: random.Random, models: bool) -> Iterator[Step]:
    before: tuple[str, ...] = ()
    for drop in drops:  # one is taken after the other, so that each is a batch of its own and they have one order
        yield Step(phase, "take", drop.name, before)
        yield Step(phase, "intake", drop.name, (f"take-{drop.name}",))
        yield Step(phase, "prepare", drop.name, (f"intake-{drop.name}",))
        before = (f"take-{drop.name}",)
    decided = list[Step]()
    for name in PEOPLE:  # one after the other: two may be about the same case, and the later one counts
        if phase and chance.random() < 0.6:
            decided.append(Step(phase, name, str(chance.randrange(1000)), tuple(step.key for step in decided[-1:])))
    yield from decided
    yield Step(phase, "dataset", "", (*(f"prepare-{drop.name}" for drop in drops), *(step.key for step in decided)))
    yield Step(phase, "splits", "", ("dataset",))
    if models:
        yield from _models(phase, chance)


def _models(phase: int, chance: random.Random) -> Iterator[Step]:
    for name in EXPERIMENTS:
        yield Step(phase, "train", name, ("splits",))
        yield Step(phase, "evaluate", name, (f"train-{name}",))
    evaluated = tuple(f"evaluate-{name}" for name in EXPERIMENTS)
    yield Step(phase, "leaderboard", "", evaluated)
    yield Step(phase, "champion", "", evaluated)
    yield Step(phase, MONITOR, "", ("champion",))
    last = (MONITOR, "leaderboard")
    if phase and chance.random() < 0.5:
        yield Step(phase, ROLLBACK, "", last)
        yield Step(phase, "champion-again", "", (ROLLBACK,))
        last = ("champion-again",)
    yield Step(phase, "report", "", last)
