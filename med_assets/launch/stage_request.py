"""Which stage of the graph is asked for: its name, what it takes, and by what a process elsewhere knows that it would do the same."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import med_assets
from med_assets import program
from med_assets.errors import ConfigurationError
from med_assets.launch.runs import variables
from med_assets.launch.stages import Stage
from med_assets.storage import names
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import digest

if TYPE_CHECKING:
    from med_assets.settings import Settings


@dataclass(frozen=True)
class Takes:
    """What a stage takes beside its program: names of a kind, at least `least` and at most `most`, and overrides of an experiment."""

    kind: names.Kind
    least: int = 1
    most: int | None = 1
    overrides: bool = False


TAKES: Mapping[Stage, Takes] = {
    Stage.INTAKE: Takes(names.BATCH, most=None),
    Stage.PREPARE: Takes(names.BATCH, most=None),
    Stage.MONITORING: Takes(names.BATCH, least=0, most=None),
    Stage.PREDICTIONS: Takes(names.BATCH, least=0, most=None),
    Stage.TRAIN: Takes(names.EXPERIMENT, overrides=True),
    Stage.EVALUATE: Takes(names.EXPERIMENT),
    Stage.LEARNING_CURVE: Takes(names.EXPERIMENT, overrides=True),
    Stage.ANALYSE: Takes(names.ANALYSIS),
}
"""Stages that take more than a program."""

ID = re.compile(r"[0-9a-f]{16}")
"""Form of the id of a stage that runs, and of the token of one of its submissions."""


@dataclass(frozen=True)
class Basis:
    """What a result depends on beside the home: where two machines differ in it, they would not do the same."""

    version: str
    """Of med_assets."""
    code: str
    """Hash of the code versions of the program."""
    configuration: str
    """Hash of the program's folder in `conf/`."""
    settings: Mapping[str, str]
    """Variables that a result depends on, as in `runs.variables`."""

    @classmethod
    def of(cls, ws: "Settings", program_name: str) -> Self:
        """The basis of this process."""
        return cls(
            med_assets.__version__,
            digest(dict(program.get(program_name).code_versions)),
            _content(conf_folder(program_name)),
            variables(ws, program_name),
        )

    def demand(self, here: "Basis") -> None:
        """Raise ConfigurationError that says in what this machine differs from the one that asked."""
        asked, found = asdict(self), asdict(here)
        for name, what in (("version", "version of med_assets"), ("code", "code"), ("configuration", "conf/")):
            if asked[name] != found[name]:
                raise ConfigurationError(
                    f"expected the {what} of the machine that asked for this stage ({asked[name]}), got {found[name]}; install the same "
                    "release, with the same conf/, on both"
                )
        if asked["settings"] != found["settings"]:
            differ = sorted(dict(asked["settings"].items() ^ found["settings"].items()))
            raise ConfigurationError(
                f"expected the settings of the machine that asked for this stage, got others for {', '.join(differ)}; set them alike where "
                "this stage runs"
            )


def _content(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*.yaml") if path.is_file())
    return digest({path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files})


@dataclass(frozen=True)
class Request:
    """A stage of a program, with what it takes. Raises ConfigurationError for what it does not take."""

    stage: Stage
    program: str
    names: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        program.get(self.program)
        takes = TAKES.get(self.stage)
        if takes is None:
            if self.names or self.overrides:
                given = names.escaped(" ".join([*self.names, *self.overrides]))
                raise ConfigurationError(f"expected nothing beside a program for the stage {self.stage}, got {given}")
            return
        for name in self.names:
            takes.kind.check(name)
        if len(self.names) < takes.least or (takes.most is not None and len(self.names) > takes.most):
            raise ConfigurationError(
                f"expected the name of {takes.kind.noun} for the stage {self.stage}, got {len(self.names)} names; {takes.kind.remedy}"
            )
        if self.overrides and not takes.overrides:
            raise ConfigurationError(f"expected no overrides for the stage {self.stage}, got {self.overrides[0]!a}")

    @property
    def title(self) -> str:
        """Name for people."""
        return " ".join([self.stage.value, self.program, *self.names[:1], *(["..."] if len(self.names) > 1 else [])])

    @property
    def experiment(self) -> str | None:
        """The experiment that it is of, None for a stage of none."""
        takes = TAKES.get(self.stage)
        return self.names[0] if takes and takes.kind is names.EXPERIMENT else None

    def id(self, ws: "Settings", basis: Basis) -> str:
        """What it is found by while it runs: the same wherever it is asked for in one home, another in another home."""
        home = str(ws.store_location or ws.home)
        return digest(home, self.stage, self.program, self.names, self.overrides, asdict(basis))

    def words(self) -> list[str]:
        """The words of the command after `med-assets run`."""
        return [self.stage.value, self.program, *self.names, *self.overrides]


def parse(stage: str, program_name: str, words: Sequence[str]) -> Request:
    """The request that words of a command mean: those with `=` are overrides. Raises ConfigurationError."""
    if stage not in set(Stage):
        raise ConfigurationError(f"expected a stage of {', '.join(Stage)}, got {names.escaped(stage)}")
    overrides = tuple(word for word in words if "=" in word)
    return Request(Stage(stage), program_name, tuple(word for word in words if "=" not in word), overrides)


@dataclass(frozen=True)
class Asked:
    """A request as it was submitted once. `token` is of this submission; its log and its result are found by it."""

    request: Request
    id: str
    token: str
    basis: Basis
    inputs: str = ""
    """Version of what it reads, as whoever asked knows it; empty where nobody knows."""
    through_bucket: bool = False
    """Whether log and result go through the bucket of the home, or lie in the folder that both sides see."""

    @property
    def name(self) -> str:
        """Name of this submission, for `med-assets run --to`."""
        return f"{self.id}/{self.token}"

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The reverse of `row`. Raises ConfigurationError."""
        try:
            asked = row["request"]
            request = Request(Stage(asked["stage"]), asked["program"], tuple(asked["names"]), tuple(asked["overrides"]))
            return cls(
                request, row["id"], row["token"], Basis(**row["basis"]), row["inputs"], bool(row["through_bucket"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                "expected the request of a stage as this version writes it, got another; ask for the stage again"
            ) from error


def split_name(text: str) -> tuple[str, str]:
    """Id and token of the name of a submission. Raises ConfigurationError."""
    run_id, _, token = text.partition("/")
    if not (ID.fullmatch(run_id) and ID.fullmatch(token)):
        raise ConfigurationError(
            f"expected ID/TOKEN of a stage that was asked for, of 16 hexadecimal digits each, got {names.escaped(text)}"
        )
    return run_id, token
