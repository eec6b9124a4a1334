"""The registry of launchers, the `launch` section of an experiment, and the choice of the launcher of a job."""

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from med_assets.errors import ConfigurationError, LaunchFailed
from med_assets.launch.launcher import Configuration, Handle, Launcher
from med_assets.launch.names import IN_PROCESS, LAUNCHERS
from med_assets.storage.files import read_json


@cache
def launcher_class(name: str) -> type[Launcher]:
    """Return a registered launcher. Raises ConfigurationError for a name that is not registered."""
    if name not in LAUNCHERS:
        raise ConfigurationError(f"expected a launcher of {', '.join(LAUNCHERS)}, got {name!r}")
    module, _, cls = LAUNCHERS[name].partition(":")
    found: type[Launcher] = getattr(importlib.import_module(module), cls)
    return found


@cache
def _adapter() -> TypeAdapter[Configuration]:
    """The configurations of all launchers as one type, distinguished by their field `launcher`."""
    models = tuple(launcher_class(name).configuration_type for name in LAUNCHERS)
    union: Any = Annotated[Union[models], Field(discriminator="launcher")]  # noqa: UP007 - a union of a tuple
    return TypeAdapter(union)


class Launch(BaseModel):
    """Where a job runs and what it asks for. It changes no result, so another partition is the same training.

    The fields beside `launcher` are those of the launchers' configurations; a launcher takes its own and leaves the others, so that an
    experiment which asks a cluster for a partition may also run on this machine. What is None is not asked for.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    launcher: str | None = Field(
        default=None, description="name of the launcher, such as local or slurm; none takes MED_ASSETS_LAUNCHER"
    )

    @field_validator("launcher")
    @classmethod
    def _is_registered(cls, name: str | None) -> str | None:
        if name is not None and name not in (known := cls.known()):
            raise ValueError(f"expected a launcher of {', '.join(known)}, got {name!r}")
        return name

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """Names that `launcher` may have."""
        return tuple(LAUNCHERS)

    @model_validator(mode="before")
    @classmethod
    def _can_be_asked_for(cls, content: Any) -> Any:
        """Check the fields of each launcher and fill in its defaults; one that misses a required field is checked when it is named."""
        if not isinstance(content, dict):
            return content
        given = {name: value for name, value in content.items() if name != "launcher" and value is not None}
        known = {name: launcher_class(name).configuration_type.model_fields for name in LAUNCHERS}
        if unknown := sorted(set(content) - {"launcher"}.union(*known.values())):
            raise ValueError(
                f"launch.{unknown[0]}: Extra inputs are not permitted; no registered launcher has this field"
            )
        checked = dict(given)
        for name, fields in known.items():
            required = {key for key, field in fields.items() if field.is_required()}
            if name == content.get("launcher") or required <= set(given):
                checked |= _configuration(name, given).model_dump(exclude={"launcher"})
        return {"launcher": content.get("launcher"), **checked}

    def configuration(self, name: str) -> Configuration:
        """Return what a launcher takes of this section. Raises ConfigurationError, naming the field, where that can't be."""
        try:
            return _configuration(name, self.model_extra or {})
        except ValueError as error:
            raise ConfigurationError(str(error)) from error


class StageLaunch(Launch):
    """Where a stage of the graph runs and what it asks for: `stages.STAGE.launch` of `_program.yaml`. It changes no result either."""

    launcher: str | None = Field(
        default=None,
        description="name of the launcher, or in_process; none takes MED_ASSETS_STAGE_LAUNCHER",
    )

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return (IN_PROCESS, *LAUNCHERS)


def _configuration(name: str, given: Mapping[str, Any]) -> Configuration:
    """What a launcher takes of given fields. Raises ValueError that names the field."""
    fields = launcher_class(name).configuration_type.model_fields
    own = {key: value for key, value in given.items() if key in fields and value is not None}
    try:
        return _adapter().validate_python({**own, "launcher": name})
    except ValidationError as error:
        wrong = error.errors()[0]
        field_path = ".".join(["launch", *map(str, wrong["loc"][1:])])
        raise ValueError(f"{field_path}: {wrong['msg'].removeprefix('Value error, ')}") from error


def launch_of(job: Path) -> Launch:
    """The `launch` section of a job's experiment; the defaults for one that has none."""
    path = job / "experiment.json"
    content: dict[str, Any] = read_json(path).get("launch", {}) if path.is_file() else {}
    return Launch.model_validate(content)


def build(name: str, job: Path) -> Launcher:
    """The launcher of this name, configured as a job asks for it. Raises ConfigurationError."""
    return configured(name, launch_of(job))


def configured(name: str, launch: Launch) -> Launcher:
    """The launcher of this name, configured by a section. Raises ConfigurationError."""
    return launcher_class(name)(launch.configuration(name))


def running(job: Path, launch: Launch) -> tuple[Launcher, Handle] | None:
    """The launcher by whose record in its folder a job runs, and the job; None where there is none. Raises LaunchFailed where it can't be known."""
    for name in LAUNCHERS:
        if (job / launcher_class(name).record).is_file():
            launcher = configured(name, launch)
            if (handle := launcher.find(job)) is not None:
                return launcher, handle
    return None


def choose(job: Path, default: str, asked: str | None = None) -> Launcher:
    """The launcher of a job: the one where it runs already, else `asked`, else its experiment's, else `default`.

    Raises ConfigurationError for a name that is not registered or whose jobs see no folder of this machine, and LaunchFailed where it
    can't be known whether the job runs.
    """
    launch = launch_of(job)
    if (there := running(job, launch)) is not None:
        return there[0]
    name = asked or launch.launcher or default
    launcher = configured(name, launch)
    if not launcher.shares_folder:
        raise ConfigurationError(
            f"expected a launcher whose jobs see the folders of this machine, got {name}, which runs whole stages: set "
            f"MED_ASSETS_STAGE_LAUNCHER={name}, or use `med-assets run STAGE ... --launcher {name}`"
        )
    return launcher


def runs(job: Path) -> bool:
    """Whether any launcher runs the job, or it can't be known."""
    try:
        return running(job, launch_of(job)) is not None
    except (LaunchFailed, ConfigurationError):
        return True
