"""What every command has: the values it takes, its class, the parameters that several share, and tables for people.

A command is a function with its options beside it and imports its libraries itself, so that help and completion come at once.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.launch.names import LAUNCHERS
from med_assets.storage import names
from med_assets.storage.progress import bars

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.launch.training import Launch
    from med_assets.settings import Settings, Workspace
    from med_assets.storage.result import StageResult


def workspace() -> "Workspace":
    """The home that the environment names; raises ConfigurationError."""
    from med_assets.settings import Workspace

    return Workspace.from_env()


class Value(click.ParamType[Any]):
    """A value of the command line: how help shows it, the function that reads it, and those there are, where they are known."""

    def __init__(self, name: str, read: Callable[[str], Any] = str, known: Callable[[], Iterable[str]] = tuple) -> None:
        self.name, self.read, self.known = name, read, known

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = self.read(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)
        except ValueError:
            self.fail(f"expected a {'whole ' * (self.read is int)}number, got {names.escaped(value)}", param, ctx)
        known = tuple(self.known())
        if known and found not in known:
            near = perhaps(value, known)
            self.fail(f"expected one of {', '.join(known)}, got {names.escaped(value)}{near}", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if self.read is Path:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in self.known() if name.startswith(incomplete)]


def perhaps(given: str, known: Iterable[str]) -> str:
    """What was probably meant, as the end of a message; nothing where no known word is close."""
    near = get_close_matches(given, known, n=1)
    return f"; perhaps {near[0]} is meant" if near else ""


def one_of(*known: str) -> Value:
    """One of these words."""
    return Value("|".join(known), known=lambda: known)


def _experiment(text: str) -> tuple[str, str]:
    name, slash, experiment = text.partition("/")
    if not (name and slash and experiment):
        raise ConfigurationError(
            f"expected PROGRAM/EXPERIMENT such as rt_dose/baseline, got {names.escaped(text)}; {names.EXPERIMENT.remedy}"
        )
    return names.PROGRAM.check(name), names.EXPERIMENT.check(experiment)


def _programs() -> tuple[str, ...]:
    from med_assets.program import registered

    return registered()


PROGRAM = Value("PROGRAM", names.PROGRAM.check, _programs)
EXPERIMENT = Value("PROGRAM/EXPERIMENT", _experiment)
PROGRAM_OR_EXPERIMENT = Value(
    "PROGRAM[/EXPERIMENT]", lambda text: _experiment(text) if "/" in text else (names.PROGRAM.check(text), None)
)
OVERRIDE = Value("KEY=VALUE")

program = click.argument("program", type=PROGRAM, help="program, such as rt_dose")
experiment = click.argument("experiment", type=EXPERIMENT, help="such as rt_dose/baseline")
overrides = click.argument("overrides", type=OVERRIDE, nargs=-1, help="change fields, such as schedule.epochs=2")
reason = click.option(
    "--reason", type=Value("TEXT"), required=True, help="why, on record; nothing that identifies a person"
)


def case(help: str = "case id, or its first characters") -> Callable[..., Any]:
    """The argument of a case."""
    return click.argument("case", type=Value("CASE", names.CASE.check), help=help)


def model(default: str = "the champion") -> Callable[..., Any]:
    """The option of the experiment whose model is used."""
    kind = Value("EXPERIMENT", names.EXPERIMENT.check)
    return click.option("--model", type=kind, help=f"model of this experiment; {default} by default")


def _launchers() -> tuple[str, ...]:
    return tuple(LAUNCHERS)


launcher = click.option(
    "--launcher",
    type=Value("LAUNCHER", known=_launchers),
    help="launcher of trainings and predictions, such as local or slurm; by default launch.launcher of the experiment, else MED_ASSETS_LAUNCHER",
)


def launch(ws: "Settings", launcher: str | None, resume: str = "auto") -> "Launch":
    """How the command line runs a job: to its end, with its progress on stderr."""
    from med_assets.launch.follow import finish

    return partial(finish, default=ws.launcher, asked=launcher, resume=resume)


class Several(click.Option):
    """An option of many values that takes all words up to the next option: `--sizes 8 16`."""

    def make_metavar(self, ctx: click.Context) -> str:
        return f"{super().make_metavar(ctx)}..."


class Command(click.Command):
    """A command that reports all words it can't use, and begins when the context's object, a function, has prepared the process."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        # A word with a blank is no option, such as SQL that starts with a comment.
        ctx.ignore_unknown_options = any(" " in word.partition("=")[0] for word in args if word.startswith("-"))
        left = super().parse_args(ctx, self._one_by_one(args))
        if left and not ctx.resilient_parsing:
            text = f"expected no more than it takes, got {names.escaped(' '.join(left))} too"
            raise click.BadArgumentUsage(text, ctx)
        return left

    def _one_by_one(self, args: list[str]) -> list[str]:
        """The words with an option of several values before each of them, as click reads it: `--sizes 8 --sizes 16`."""
        several = {name for param in self.params if isinstance(param, Several) for name in param.opts}
        words: list[str] = []
        option = ""
        for place, word in enumerate(args):
            if word == "--":
                return words + args[place:]
            if word.startswith("-"):
                option = word if word in several else ""
            elif option and words[-1] != option:
                words.append(option)
            words.append(word)
        return words

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.obj is not None:
            ctx.obj()
        with bars():
            return super().invoke(ctx)


class Section(click.Group):
    """Commands that stand under one heading of the help, in the order in which they are defined."""

    command_class = Command


def table(rows: "pd.DataFrame | Iterable[Mapping[str, Any]]") -> str:
    """Rows as aligned text, or a dash when there are none; a last column of text, such as a reason, is never cut."""
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if frame.empty:
        return "-"
    *first, last = frame.columns
    lines = frame.to_string(index=False, na_rep="-", max_colwidth=100, columns=first).splitlines() if first else []
    if not first or frame[last].map(lambda value: isinstance(value, str)).sum() == 0:
        return str(frame.to_string(index=False, na_rep="-", max_colwidth=100))
    ends = [last, *("-" if pd.isna(value) else str(value) for value in frame[last])]
    return "\n".join(f"{line} {end}".rstrip() for line, end in zip(lines, ends, strict=True))


def show(title: str, result: "StageResult") -> None:
    """Print what one stage did: counts, then what was quarantined and why, and what the audit warns of."""
    counts = ", ".join(f"{number} {label}" for label, number in result.counts.items())
    print(f"{title}: {counts}" if counts else title)
    for name, value in result.summary.items():
        print(f"  {name}: {value}")
    for name in ("quarantine", "warnings"):
        if len(rows := result.tables.get(name, ())):
            print(table(rows))


def show_dataset(ws: "Workspace", program: str, *, splits: bool = False) -> None:
    """Make the dataset anew, and the splits if asked, show both, and write the copy of the tables for DuckDB clients."""
    from med_assets.catalog import export_tables

    show("dataset", stages.dataset(ws, program))
    if splits:
        show("splits", stages.splits(ws, program))
    export_tables(ws)


def show_tables(tables: "Mapping[str, pd.DataFrame]", *, titled: bool = True) -> None:
    """Print tables, each under its name unless `titled` is false."""
    for name, rows in tables.items():
        print(f"{name}\n{table(rows)}" if titled else table(rows))
