"""An analysis: one question of a program to all of its cases or models at once, answered by tables and plots of the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets import program
from med_assets.capabilities import Analyses
from med_assets.errors import ConfigurationError
from med_assets.storage import names
from med_assets.storage.versions import version_of

if TYPE_CHECKING:
    from med_assets.program import ReportTable
    from med_assets.settings import Settings

OF_PROGRAM = ("dataset", "splits", "leaderboard", "champion")
OF_EXPERIMENT = ("checkpoint", "evaluation")
"""Stages that an analysis can read: those that a program has once, and those that each of its experiments has."""


def no_settings(ws: "Settings") -> Mapping[str, object]:
    """The settings of an analysis that has none."""
    return {}


@dataclass(frozen=True)
class Analysis:
    """What a program wants to know of all cases or models at once; it becomes the asset `P/<name>` and a part of the report.

    `reads` names the stages it is made of: "dataset", "splits", "leaderboard" or "champion"; "evaluation" or "checkpoint" of
    one experiment as "evaluation/baseline", or of all, which the leaderboard brings together. It runs again when one of them has other content, when `settings`
    have, or when the version of `run` has changed.

    `run`, a function with `@versioned`, writes its pictures under the folder it is given and returns tables that name them; no table where there is nothing
    to say yet. It imports heavy libraries when it runs, not before. An `expensive` one is never started by itself, and waits for the accelerator.
    """

    name: str
    title: str
    description: str
    reads: tuple[str, ...]
    run: "Callable[[Settings, Path], Sequence[ReportTable]]"
    settings: "Callable[[Settings], Mapping[str, object]]" = no_settings
    expensive: bool = False

    @property
    def version(self) -> str:
        """Version of the code of `run`."""
        return version_of(self.run)

    def inputs(self, experiments: Sequence[str]) -> list[tuple[str, ...]]:
        """Parts of the keys, after the program, of all assets it reads. Raises ConfigurationError for what can't be read."""
        found: list[tuple[str, ...]] = []
        for read in self.reads:
            stage, _, experiment = read.partition("/")
            if stage in OF_PROGRAM and not experiment:
                found.append((stage,))
            elif stage in OF_EXPERIMENT and (not experiment or experiment in experiments):
                found.append((stage, experiment) if experiment else ("leaderboard",))
            else:
                raise ConfigurationError(
                    f"analysis {self.name}: expected it to read some of {', '.join(OF_PROGRAM)}, or {' or '.join(OF_EXPERIMENT)} of "
                    f"all experiments or of one of {', '.join(experiments) or 'none'}, got {read!r}"
                )
        return list(dict.fromkeys(found))


def of(program_name: str) -> dict[str, Analysis]:
    """The analyses of a program by name, in its order."""
    chosen = program.get(program_name)
    return {one.name: one for one in chosen.analyses()} if isinstance(chosen, Analyses) else {}


def find(program_name: str, name: str) -> Analysis:
    """One analysis of a program; raises ConfigurationError that lists those there are."""
    known = of(program_name)
    if name not in known:
        names.ANALYSIS.check(name)
        raise ConfigurationError(
            f"expected an analysis of {program_name} ({', '.join(known) or 'it has none'}), got {name!r}"
        )
    return known[name]
