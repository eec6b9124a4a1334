"""The base of every part of an experiment, and the parts that no program and no training step reads: targets, pauses, trackers."""

import itertools
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from med_assets.experiments.composition import FORMER_NAMES

NO_EFFECT: JsonDict = {"affects_result": False}
"""`json_schema_extra` of a field that changes no number of the result and so stays out of the hash."""

CAME_LATER: JsonDict = {"came_later": True}
"""`json_schema_extra` of a field whose default is what was done before it was there: at it, an experiment keeps its hash."""


class Settings(BaseModel):
    """Base of every part of an experiment: frozen, and refusing keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _has_one_name(cls, content: Any) -> Any:
        """Refuse a field under its present and its former name, as when a file of one's own extends a shipped one."""
        given = set(content) if isinstance(content, dict) else set()
        both = [f"{former} to {name}" for name, former in FORMER_NAMES.items() if {name, former} <= given]
        if both:
            raise ValueError(f"expected one name of a field, got two: rename {both[0]} in your files under conf/")
        return content


class Target(Settings):
    """What the mean of a score over held-out cases is to reach, and the values on the way there that are marked."""

    metric: str = Field(description="metric of the evaluation, such as mae")
    subject: str = Field(description="its subject, such as body")
    least: float | None = Field(default=None, description="reached from this value up, unit of the metric")
    most: float | None = Field(default=None, description="reached from this value down, unit of the metric")
    milestones: tuple[float, ...] = Field(
        default=(), description="values on the way to it, the one to be reached first first, unit of the metric"
    )

    @property
    def goal(self) -> float:
        """The value to reach."""
        return next(value for value in (self.least, self.most) if value is not None)

    def reaches(self, value: float, mark: float) -> bool:
        """Whether a value is as good as a goal or milestone."""
        return value >= mark if self.least is not None else value <= mark

    @model_validator(mode="after")
    def _has_one_goal_and_milestones_before_it(self) -> Self:
        if (self.least is None) == (self.most is None):
            raise ValueError(
                f"expected least or most of {self.metric}, got {'both' if self.least is not None else 'none'}"
            )
        marks = (*self.milestones, self.goal)
        if any(self.reaches(early, late) for early, late in itertools.pairwise(marks)):
            raise ValueError(
                f"expected milestones of {self.metric} that lead to {self.goal:g}, each nearer, got {self.milestones}"
            )
        return self


class Targets(Settings):
    """When an experiment is a success: what its scores are to reach, and what its training may take."""

    scores: tuple[Target, ...] = Field(default=(), description="what scores are to reach")
    training_hours: float | None = Field(default=None, gt=0, description="most time of a training, all pieces, h")
    accelerator_gib: float | None = Field(default=None, gt=0, description="most memory of the accelerator, GiB")
    host_gib: float | None = Field(default=None, gt=0, description="most memory of the training process, GiB")


class Published(Settings):
    """What others measured with this recipe, to stand beside our own numbers; nothing is refused by it."""

    source: str = Field(description="where the numbers are from")
    per_epoch: tuple[float, ...] = Field(
        default=(),
        description="the program's training metric of each epoch, from that of the initial weights on, its unit",
    )
    best_epoch: int | None = Field(default=None, ge=0, description="the best epoch, 0 for the initial weights")
    peak_gpu_mb: float | None = Field(default=None, gt=0, description="most memory of the accelerator, MiB")


class Prediction(Settings):
    """How cases are predicted."""

    augmentations: tuple[Literal["flip_x", "flip_y", "flip_z"], ...] = Field(
        default=(),
        description="changed copies of a case that are predicted beside it, changed back and averaged: the patient or the image mirrored "
        "left to right (flip_x), front to back or along the depth (flip_y), head to feet or along the frames (flip_z); none unless given",
    )


class Thermal(Settings):
    """Pauses for a machine with weak cooling: by the clock, by the temperature of its GPUs, or both."""

    every_s: float | None = Field(
        default=None, gt=0, description="work between two pauses, s; none by the clock unless given"
    )
    above_c: float | None = Field(
        default=None,
        gt=0,
        le=120,
        description="temperature of the hottest GPU in use from which pauses are made until it is lower, deg C; none unless given",
    )
    pause_s: float = Field(gt=0, description="length of a pause, s")

    @model_validator(mode="after")
    def _has_a_reason(self) -> Self:
        if self.every_s is None and self.above_c is None:
            raise ValueError("expected `every_s` or `above_c`, got neither: say when to pause, or leave `thermal` out")
        return self


class Tracking(Settings):
    """Where the epochs of a training are sent beside its own history and TensorBoard; what was trained before is sent nowhere.

    Keys and passwords are those that the clients read from the environment of the training, and never stand here.
    """

    mlflow: str | None = Field(
        default=None,
        description="MLflow server, database or folder: http://HOST:PORT, https://HOST, sqlite:////ABSOLUTE/mlflow.db or file:///ABSOLUTE",
    )
    wandb: Literal["offline", "online"] | None = Field(
        default=None, description="Weights & Biases: offline writes files for `wandb sync`, online sends"
    )
    wandb_server: str | None = Field(
        default=None, description="https://HOST of a W&B server of one's own; wandb.ai unless given"
    )
    wandb_entity: str | None = Field(default=None, description="user or team of W&B; that of the key unless given")
    project: str | None = Field(
        default=None, description="project of W&B and experiment of MLflow; med-assets-PROGRAM unless given"
    )
    wait_s: float = Field(
        default=30.0, ge=0, description="most time that the end of a training waits until all is sent, s"
    )

    def services(self) -> tuple[str, ...]:
        """Return the names of the services that are asked for."""
        return tuple(name for name in ("mlflow", "wandb") if getattr(self, name) is not None)

    @field_validator("mlflow", "wandb_server")
    @classmethod
    def _has_no_password(cls, address: str | None) -> str | None:
        if address is not None and "@" in address.split("://")[-1].split("/")[0]:
            raise ValueError(
                "expected an address without a user or password, which the clients read from the environment"
            )
        return address

    @field_validator("mlflow")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        if address is not None and not address.startswith(("http://", "https://", "sqlite:////", "file:///")):
            raise ValueError(
                f"expected http://, https://, sqlite:////ABSOLUTE/FILE or file:///ABSOLUTE/FOLDER, got {address!r}"
            )
        return address
