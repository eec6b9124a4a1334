"""From `conf/<program>/<experiment>.yaml` to a validated, frozen configuration and its hash.

`composition` composes the file, its `defaults:` list, the profile and `key=value` overrides. The program's own module
`med_assets.programs.<program>.experiment` holds the model that validates the result, a subclass of `Experiment`.
"""

import functools
import hashlib
import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, BaseModel, Field, ValidationError, model_validator

from med_assets.errors import ConfigurationError
from med_assets.experiments.composition import FORMER_NAMES, PRESENT_NAMES, compose, states_of
from med_assets.experiments.parts import (
    CAME_LATER,
    NO_EFFECT,
    Prediction,
    Published,
    Settings,
    Targets,
    Thermal,
    Tracking,
)
from med_assets.launch.configuration import Launch
from med_assets.storage.conf import conf_folder
from med_assets.storage.names import EXPERIMENT

INITIAL_WEIGHTS = ("random", "champion")
"""Initial weights that are no other experiment and no released file."""

RELEASED = "released/"
"""Prefix of an `initial` that names weights which others released."""


class Optimiser(Settings):
    """AdamW with a cosine schedule over the epochs."""

    lr: float = Field(gt=0, description="first learning rate, per step")
    min_lr: float = Field(ge=0, description="learning rate that the cosine ends at, per step")
    weight_decay: float = Field(ge=0, description="decoupled weight decay of AdamW, dimensionless")
    clip: float = Field(gt=0, description="largest norm of the gradient, dimensionless")
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay per step of the moving average of the weights that is validated and saved; 0 is without",
    )


def _either(name: str) -> AliasChoices:
    """The names under which a field of FORMER_NAMES is read."""
    return AliasChoices(name, FORMER_NAMES[name])


class MemoryPlan(Settings):
    """One way to fit a training into memory. The batch of a step stays `schedule.batch`, taken in several pieces."""

    batch: int = Field(ge=1, description="items at a time on one device, a divisor of schedule.batch / devices, count")
    patch: tuple[int, ...] | None = Field(
        default=None,
        description="patch in place of the experiment's, voxels along (z, y, x); such a plan changes results",
    )


class Schedule(Settings):
    """How long to train and when to validate."""

    epochs: int = Field(
        ge=0, description="most epochs to train, count; 0, with validate_first, publishes the initial weights"
    )
    batch: int = Field(ge=1, description="patches per step, over all devices and pieces, count")
    val_every: int = Field(ge=1, description="validate after each so many epochs, count")
    patience: int = Field(ge=1, description="stop after so many validations without improvement, count")
    min_delta: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="improvement is a fall of the monitored value by more than this since the last improvement, unit of that value; the "
        "lowest value is published all the same",
        json_schema_extra=CAME_LATER,
    )
    fallbacks: tuple[MemoryPlan, ...] = Field(
        default=(),
        description="memory plans to try, in this order, when the whole batch at once does not fit into memory",
        validation_alias=_either("fallbacks"),
    )
    validate_first: bool = Field(
        default=False,
        description="validate the initial weights, as epoch 0: they may turn out to be the best",
    )
    reference: dict[str, float] = Field(
        default_factory=dict,
        description="by validation metric of epoch 0: the value below which training does not start, unit of that metric",
    )

    @model_validator(mode="after")
    def _validates_the_initial_weights(self) -> Self:
        if not self.validate_first and (self.epochs == 0 or self.reference):
            raise ValueError("epochs of 0 and reference are about epoch 0: set validate_first to true")
        return self

    @model_validator(mode="after")
    def _validates_an_epoch(self) -> Self:
        if not self.validate_first and self.epochs < self.val_every:
            raise ValueError(
                f"expected val_every of at most the {self.epochs} epochs, got {self.val_every}: no epoch would be validated, and none kept"
            )
        return self


class Runtime(Settings):
    """What a machine decides and no result depends on."""

    accelerator: str = Field(description="Lightning accelerator: auto, cpu, gpu or mps", json_schema_extra=NO_EFFECT)
    workers: int = Field(ge=0, description="processes that read patches, count", json_schema_extra=NO_EFFECT)
    prefetch: int = Field(
        default=2,
        ge=1,
        description="batches that each process of workers reads ahead, count; each takes the memory of a batch on the host",
        json_schema_extra=NO_EFFECT,
    )
    threads: int = Field(
        ge=0, description="CPU threads of torch, count; 0 leaves torch's own choice", json_schema_extra=NO_EFFECT
    )
    hang_after_s: float = Field(
        gt=0,
        description="when no step ended for so long, write all stacks to the log, end the process and resume, s",
        json_schema_extra=NO_EFFECT,
    )
    restarts: int = Field(
        default=3,
        ge=0,
        description="most times that a hung, killed or failed process is resumed before the command gives up, count",
        json_schema_extra=NO_EFFECT,
    )
    keep: int = Field(default=2, ge=1, description="checkpoints kept for resuming, count", json_schema_extra=NO_EFFECT)
    save_every_s: float = Field(
        default=600.0,
        ge=0,
        description="longest work between two checkpoints within an epoch, s; each epoch's end has one anyway",
        json_schema_extra=NO_EFFECT,
    )
    thermal: Thermal | None = Field(
        default=None,
        description="pauses for a machine with weak cooling; none unless given",
        json_schema_extra=NO_EFFECT,
    )
    devices: int = Field(
        default=1,
        ge=1,
        description="devices, or on a CPU processes, that share each batch, count; or a list of the numbers of GPUs, such as [0, 2]",
        json_schema_extra=NO_EFFECT,
    )
    device_ids: tuple[int, ...] = Field(
        default=(),
        description="numbers of the GPUs to use, among those that CUDA_VISIBLE_DEVICES leaves visible, as many as `devices`; those with "
        "most free memory unless given",
        json_schema_extra=NO_EFFECT,
    )
    compile: bool = Field(
        default=False, description="compile the network on a GPU, where the program can", json_schema_extra=NO_EFFECT
    )
    profile_steps: int = Field(
        default=0,
        ge=0,
        description="training steps whose profile is written to profile.txt of the job, count",
        json_schema_extra=NO_EFFECT,
    )
    piece_s: float | None = Field(
        default=None,
        gt=0,
        description="work after which a training saves itself and stops, to be gone on with by the same command, s",
        json_schema_extra=NO_EFFECT,
    )
    memory_plan: int | None = Field(
        default=None,
        ge=0,
        description="memory plan to use: 0 for the whole batch at once, 1 for the first of schedule.fallbacks; chosen from free memory "
        "unless given",
        validation_alias=_either("memory_plan"),
        json_schema_extra=NO_EFFECT,
    )
    tracking: Tracking = Field(
        default=Tracking(),
        description="where epochs are sent beside the history of the job: MLflow, W&B, both or none",
        json_schema_extra=NO_EFFECT,
    )

    @model_validator(mode="before")
    @classmethod
    def _counts_listed_devices(cls, content: Any) -> Any:
        """Take a list as `devices` for the numbers of the GPUs, and their count."""
        if isinstance(content, dict) and isinstance(content.get("devices"), list | tuple):
            return {**content, "devices": len(content["devices"]), "device_ids": content["devices"]}
        return content

    @model_validator(mode="after")
    def _lists_each_device_once(self) -> Self:
        ids = self.device_ids
        if ids and (len(set(ids)) != len(ids) or min(ids) < 0 or len(ids) != self.devices):
            raise ValueError(f"expected {self.devices} different numbers of GPUs from 0 on in devices, got {list(ids)}")
        return self


class Experiment(Settings):
    """What every experiment of every program says. A program adds its own fields in a subclass."""

    program: str = Field(description="program that the experiment belongs to")
    name: str = Field(description="name of the experiment, the name of its file")
    title: str = Field(description="name for people", json_schema_extra=NO_EFFECT)
    description: str = Field(description="what is tried and why", json_schema_extra=NO_EFFECT)
    profile: str = Field(
        description="full for results, demo for a run of seconds on a CPU", json_schema_extra=NO_EFFECT
    )
    seed: int = Field(ge=0, description="seed of the weights and of the order and place of patches")
    precision: str = Field(description="Lightning precision on an accelerator; a CPU always trains in 32-true")
    initial: str = Field(
        default="random",
        description="initial weights: random, champion (while there is one), another experiment of the program, or "
        "released/NAME, a file that conf/<program>/_program.yaml names; they are part of the checkpoint's key",
        json_schema_extra=NO_EFFECT,
    )
    teacher: str | None = Field(
        default=None,
        description="another experiment of the program whose checkpoint this one is distilled from; it is part of the checkpoint's key",
        json_schema_extra=NO_EFFECT,
    )
    members: tuple[str, ...] = Field(
        default=(),
        description="other experiments of the program whose predictions are averaged in place of a training; of the other fields of such an "
        "ensemble `prediction` alone has an effect",
        json_schema_extra=CAME_LATER,
    )
    prediction: Prediction = Field(
        default=Prediction(), description="how an ensemble predicts cases", json_schema_extra=CAME_LATER
    )
    expected: dict[str, float] = Field(
        default_factory=dict,
        description="by field of the fine-tuning record: the least value that others reached with this recipe, unit of the field",
        json_schema_extra=NO_EFFECT,
    )
    published: Published | None = Field(
        default=None,
        description="what others measured with this recipe, beside ours in the fine-tuning record; nothing unless given",
        json_schema_extra=NO_EFFECT,
    )
    targets: Targets = Field(
        default=Targets(),
        description="what scores, time and memory are held against in record and report; nothing is refused by them",
        json_schema_extra=NO_EFFECT,
    )
    optimiser: Optimiser = Field(description="optimiser and its schedule")
    schedule: Schedule = Field(description="length of training")
    runtime: Runtime = Field(description="what the machine decides", json_schema_extra=NO_EFFECT)
    launch: Launch = Field(
        default=Launch(), description="where it runs and what it asks a cluster for", json_schema_extra=NO_EFFECT
    )

    def needs(self) -> tuple[str, ...]:
        """Return the names of the experiments whose checkpoints this one is made from."""
        given = self.initial in INITIAL_WEIGHTS or self.initial.startswith(RELEASED)
        needed = [] if given else [self.initial]
        return tuple(dict.fromkeys([*needed, *([self.teacher] if self.teacher else []), *self.members]))

    @model_validator(mode="after")
    def _is_trained_or_has_members(self) -> Self:
        if self.prediction.augmentations and not self.members:
            raise ValueError(
                "expected members with prediction.augmentations, got none: name the trained experiment, even if it is one"
            )
        if self.members and (self.teacher or self.initial != "random" or len(set(self.members)) < len(self.members)):
            raise ValueError(
                f"expected different members, no teacher and initial of random, as nothing is trained; got {list(self.members)}, "
                f"{self.teacher!r} and {self.initial!r}"
            )
        return self

    def objection_to_member(self, member: "Experiment") -> str | None:
        """Return why predictions of another experiment of the program can't be averaged, None if they can; a program may have reasons."""
        return None

    def objection_to_augmentation(self, augmentation: str) -> str | None:
        """Return why it can't predict cases that are changed so, None if it can; a program says which changes keep the sense of a case."""
        return f"{self.program} predicts no changed cases"

    def objection_to(self, before: "Experiment") -> str | None:
        """Return why this experiment can't start from the weights of another one of its program, though all tensors fit; None if it can.

        Programs name here what a function depends on besides its tensors, such as how inputs are scaled.
        """
        return None

    def released_files(self) -> tuple[str, ...]:
        """Return the names of the released files that training reads beside the initial weights; none unless given."""
        return ()

    @property
    def untrained(self) -> bool:
        """Whether it publishes its initial weights: cases can validate them, and none is needed."""
        return self.initial != "random" and self.schedule.epochs == 0

    def learns(self) -> bool:
        """Whether what is published depends on the learning cases; a program overrides it where weights are computed of them without epochs."""
        return not self.untrained

    def fine_tunes(self) -> bool:
        """Whether training changes weights that were trained before."""
        return self.initial != "random" and self.schedule.epochs > 0

    def fixed_steps(self) -> bool:
        """Whether an epoch has as many steps however many training cases there are."""
        return False

    def patch(self) -> list[int] | None:
        """Return the training patch, voxels along each axis, or None in a program that has none."""
        return None

    def at(self, plan: MemoryPlan) -> Self:
        """Return the experiment as one device runs it with a memory plan. Raises ConfigurationError for a patch where none is."""
        if plan.patch is not None:
            raise ConfigurationError(
                f"program {self.program} has no patches, so no plan of schedule.fallbacks can have one"
            )
        return self.model_copy(update={"schedule": self.schedule.model_copy(update={"batch": plan.batch})})

    def probe(self) -> Self:
        """Return the experiment small enough to measure what a step needs: a batch of one, and a small patch if any."""
        return self.at(MemoryPlan(batch=1))

    def items(self) -> int:
        """Return what the memory of a step grows in proportion to: the batch times the voxels of a patch."""
        return self.schedule.batch * math.prod(self.patch() or [1])

    def hash(self) -> str:
        """Return 64 hex digits over every field that can change the result: not titles, workers or the device."""
        text = json.dumps(
            result_fields(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the whole experiment as stable, readable JSON that `from_json` reads."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=True) + "\n"


class PatchExperiment(Experiment):
    """An experiment that trains on patches of volumes, so that a memory plan can have another patch."""

    patches: Any = Field(description="size of a patch, in the field `size`, and where patches are taken")

    def fixed_steps(self) -> bool:
        return getattr(self.patches, "per_epoch", None) is not None

    def patch(self) -> list[int]:
        return list(self.patches.size)

    def at(self, plan: MemoryPlan) -> Self:
        changed: dict[str, Any] = {"schedule": self.schedule.model_copy(update={"batch": plan.batch})}
        if plan.patch is not None:
            changed["patches"] = type(self.patches).model_validate({**self.patches.model_dump(), "size": plan.patch})
        return self.model_copy(update=changed)


_NO_VALUE = object()


def result_fields(model: BaseModel) -> dict[str, Any]:
    """Return the fields of a model that can change a result, as JSON-able values, nested models alike.

    A field of FORMER_NAMES has its former name here.
    """
    return {
        written: _jsonable(value)
        for name, written, unless in _fields_of_results(type(model))
        if (value := getattr(model, name)) != unless
    }


@functools.cache
def _fields_of_results(model: type[BaseModel]) -> tuple[tuple[str, str, Any], ...]:
    """Name, name in results, and the value with which it is left out, of each field that can change a result."""
    fields = []
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        if extra.get("affects_result") is not False:
            unless = info.get_default() if extra.get("came_later") else _NO_VALUE
            fields.append((name, FORMER_NAMES.get(name, name), unless))
    return tuple(fields)


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return result_fields(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def with_present_names(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a training, a `result.json` that may be of an earlier version, with the present names of fields."""
    return {PRESENT_NAMES.get(name, name): value for name, value in result.items()}


def names(program: str, conf_root: Path | None = None) -> tuple[str, ...]:
    """Return the names of the experiment files of a program, sorted; files that start with '_' are shared parts."""
    files = conf_folder(program, conf_root).glob("*.yaml")
    return tuple(sorted(path.stem for path in files if not path.name.startswith("_")))


@functools.cache
def model_of(program: str) -> type[Experiment]:
    """Return the model of the experiments of a program, named EXPERIMENT in its `experiment` module."""
    module = f"med_assets.programs.{program}.experiment"
    try:
        found: type[Experiment] = importlib.import_module(module).EXPERIMENT
    except ModuleNotFoundError as error:
        if error.name not in {module, f"med_assets.programs.{program}"}:
            raise
        raise ConfigurationError(f"program {program!r} has no experiments: there is no module {module}") from error
    return found


def from_json(program: str, text: str | bytes) -> Experiment:
    """Read an experiment that `to_json` wrote. Raises ConfigurationError when it does not fit this version's model."""
    return _validate(program, model_of(program), "experiment.json", json.loads(text))


def load(
    program: str,
    name: str,
    overrides: Sequence[str] = (),
    profile: str | None = None,
    conf_root: Path | None = None,
) -> Experiment:
    """Compose, check and freeze the experiment `conf/<program>/<name>.yaml`.

    `overrides` are Hydra's `key=value`; `profile` picks one of `conf/<program>/profiles`. Raises ConfigurationError
    for a name, key or value that can't be used, naming it.
    """
    folder = conf_folder(program, conf_root)
    known = names(program, conf_root)
    if EXPERIMENT.check(name) not in known:
        raise ConfigurationError(f"program {program} has no experiment {name!r}; known: {', '.join(known) or 'none'}")
    return _load(program, folder, known, states_of(folder)(name), name, overrides, profile)


def load_all(
    program: str, overrides: Sequence[str] = (), profile: str | None = None
) -> dict[str, Experiment | ConfigurationError]:
    """Every experiment of a program as `load` gives it, or why it can't be used, by name."""
    folder, known = conf_folder(program), names(program)
    state_of = states_of(folder)
    found: dict[str, Experiment | ConfigurationError] = {}
    for name in known:
        try:
            found[name] = _load(program, folder, known, state_of(name), EXPERIMENT.check(name), overrides, profile)
        except ConfigurationError as error:
            found[name] = error
    return found


def _load(
    program: str,
    folder: Path,
    known: Sequence[str],
    state: str,
    name: str,
    overrides: Sequence[str],
    profile: str | None,
) -> Experiment:
    chosen = () if profile is None else (f"profile={profile}",)
    others = tuple(other for other in known if other != name)
    return _loaded(program, model_of(program), folder, name, others, (*chosen, *overrides), state)


@functools.lru_cache(maxsize=1024)
def _loaded(
    program: str,
    model: type[Experiment],
    folder: Path,
    name: str,
    others: tuple[str, ...],
    overrides: tuple[str, ...],
    state: str,
) -> Experiment:
    """Compose and check an experiment once per process and `state` of its files: each graph asks for all several times."""
    composed = compose(folder, name, overrides, state)
    found = _validate(program, model, f"conf/{program}/{name}.yaml", {**composed, "name": name})
    if found.initial not in (*INITIAL_WEIGHTS, *others) and not found.initial.startswith(RELEASED):
        raise ConfigurationError(
            f"{program}/{name}: expected initial to be {', '.join(INITIAL_WEIGHTS)}, {RELEASED}NAME or another experiment "
            f"({', '.join(others) or 'there is none'}), got {found.initial!r}"
        )
    if unknown := sorted(set(found.members) - set(others)):
        raise ConfigurationError(
            f"{program}/{name}: expected members to be other experiments ({', '.join(others) or 'there is none'}), got {unknown}"
        )
    if found.teacher is not None and found.teacher not in others:
        raise ConfigurationError(
            f"{program}/{name}: expected teacher to be another experiment ({', '.join(others) or 'there is none'}), got "
            f"{found.teacher!r}"
        )
    return found


def _validate(program: str, model: type[Experiment], where: str, content: Any) -> Experiment:
    try:
        experiment = model.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    if experiment.program != program:
        raise ConfigurationError(f"{where}: expected program {program!r}, found {experiment.program!r}")
    return experiment
