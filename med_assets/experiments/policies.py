"""The written policies of a program: when a batch is kept out, when a model is promoted, when training starts, how its champion is watched.

They stand in `conf/<program>/_program.yaml`, one section each; an unknown field or a value that can't be used is refused.
"""

from datetime import time
from math import isfinite
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from med_assets import program
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import names
from med_assets.experiments.parts import Settings
from med_assets.launch.configuration import StageLaunch
from med_assets.launch.stages import Stage
from med_assets.preparation.audit import AuditPolicy


class WorstSubgroup(Settings):
    """What a challenger must show in the declared subgroup where it shows least; see `promotion.subgroup_guard`."""

    min_patients: int = Field(
        default=10,
        ge=6,
        description="least patients of a subgroup with a validation case that both models scored, count; smaller ones guard nothing",
    )
    margins: dict[str, float] = Field(
        min_length=1,
        description="by deciding metric: in every subgroup it must be shown to be worse by less than this, unit of that metric",
    )

    @field_validator("margins")
    @classmethod
    def _no_margin_is_negative(cls, margins: dict[str, float]) -> dict[str, float]:
        return _margins(margins)


class Promotion(Settings):
    """What a challenger must show on the validation cases before it becomes the champion.

    A paired difference is challenger minus reference, case by case, turned so that above 0 is worse; it is tested by
    `metrics.paired_test`.
    """

    min_cases: int = Field(
        default=10, ge=10, description="least patients with a validation case that both models scored, count"
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        description="the paired difference must be shown to be better by more than this, unit of the primary metric",
    )
    guard_margins: dict[str, float] = Field(
        default_factory=dict,
        description="by guarded metric: it must be shown to be worse by less than this, unit of that metric; "
        "0 where none is given, so that the metric must be shown to be better, or be the same in every case",
    )
    tolerance: float = Field(
        default=0.001,
        ge=0,
        description="mean difference up to which a model is called neither improved nor regressed, unit of the primary metric",
    )
    worst_subgroup: WorstSubgroup | None = Field(
        default=None,
        description="what it must show in each subgroup of `subgroups.facts`; null: subgroups guard nothing",
    )

    @field_validator("guard_margins")
    @classmethod
    def _no_margin_is_negative(cls, margins: dict[str, float]) -> dict[str, float]:
        return _margins(margins)


def _margins(margins: dict[str, float]) -> dict[str, float]:
    if wrong := {name: margin for name, margin in margins.items() if not 0 <= margin < float("inf")}:
        raise ValueError(f"expected margins of at least 0, got {wrong}")
    return margins


class Subgroups(Settings):
    """Which facts of a case declare subgroups, whose scores are reported separately. Cases without the fact are a group of their own."""

    min_patients: int = Field(
        default=5,
        ge=2,
        description="fewer patients than this have a number and no score: it would be noise, and tell of single patients; count",
    )
    facts: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="by fact: of a number the limits of its bands, unit of the fact, where a band holds its lower limit; [] for words",
    )

    @field_validator("facts")
    @classmethod
    def _limits_ascend(cls, facts: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, limits in facts.items():
            if list(limits) != sorted(set(limits)) or not all(map(isfinite, limits)):
                raise ValueError(f"{name}: expected different limits in ascending order, got {list(limits)}")
        return facts


class Evaluation(Settings):
    """What is scored for whom."""

    test: Literal["every", "champion"] = Field(
        default="every",
        description="whose test and external cases are scored: those of every experiment, or of a champion alone, once it was "
        "selected on validation",
    )


class Retraining(Settings):
    """When training starts by itself. New cases are training cases that no checkpoint of the program has seen."""

    min_new_cases: int = Field(default=10, ge=1, description="least new training cases, count")
    min_growth: float = Field(default=0.0, ge=0, description="least new training cases, fraction of those seen before")
    max_age_days: float | None = Field(
        default=None,
        gt=0,
        description="train on any new case once the newest checkpoint is older than this, days; null: never",
    )
    on_drift: bool = Field(
        default=False, description="train on any new case once the new cases drift from the training set"
    )
    cool_down_hours: float = Field(default=6.0, ge=0, description="least time between two starts, h")
    quiet_hours: str | None = Field(
        default=None,
        description="local time window in which nothing starts, 'HH:MM-HH:MM', over midnight too; null: none",
    )

    @field_validator("quiet_hours")
    @classmethod
    def _is_a_window(cls, text: str | None) -> str | None:
        if text is not None:
            start, end = _window(text)
            if start == end:
                raise ValueError(f"expected a window that ends at another time than it starts, got {text!r}")
        return text

    def quiet(self, now: time) -> bool:
        """Whether nothing may start at this local time."""
        if self.quiet_hours is None:
            return False
        start, end = _window(self.quiet_hours)
        return start <= now < end if start < end else now >= start or now < end


class Confidence(Settings):
    """When a prediction is not to be trusted: how sure the model is of the case, and how far the case is from those it was trained on."""

    acceptable: float | None = Field(
        default=None,
        description="value of the primary metric from which a prediction is acceptable, unit of that metric; null: confidence is not calibrated",
    )
    min_cases: int = Field(
        default=20, ge=10, description="fewer validation cases than this leave confidence uncalibrated, count"
    )
    flag_below: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="calibrated probability of being acceptable below which a prediction is flagged, 0 to 1",
    )
    facts: tuple[str, ...] = Field(
        default=(),
        description="numbers of the image, known without a label, that tell how far a case is from the training cases",
    )
    flag_share: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="share of cases like those of training that are flagged as far from them, 0 to 0.5",
    )


class Monitoring(Settings):
    """How the champion and the cases that reach it are watched, batch by batch."""

    control_cases: int = Field(
        default=10, ge=3, description="cases of the earliest batches that the control limits are made of, count"
    )
    control_alpha: float = Field(
        default=0.0027,
        gt=0,
        lt=1,
        description="share of batches beyond the limits when nothing changed, 0 to 1; 0.0027 is 3 sigma",
    )
    alert_batches: int = Field(
        default=5, ge=1, description="newest batches that raise the alert beyond their limits, count"
    )
    drift_min_cases: int = Field(
        default=5, ge=2, description="fewer cases than this on a side leave drift undefined, count"
    )
    drift_alpha: float = Field(
        default=0.05, gt=0, lt=1, description="chance of any false drift in one comparison of all facts (Holm), 0 to 1"
    )
    drift_distance: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="distance of the distributions below which a difference does not matter, 0 to 1",
    )


class LearningCurve(Settings):
    """Which experiment is trained on ever more patients, and on how many; it is costly, so that a person starts it."""

    experiment: str = Field(description="experiment with any initial weights but those of the champion")
    sizes: tuple[int, ...] = Field(
        min_length=2, description="training patients, count; those above the present number wait for more patients"
    )
    repeats: int = Field(default=1, ge=1, description="orders of the patients, each a training per size, count")

    @field_validator("sizes")
    @classmethod
    def _sizes_are_counts(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(f"expected different sizes of 1 or more, got {list(sizes)}")
        return sizes


class Hosted(Settings):
    """Where a file is published, for `med-assets fetch`."""

    host: Literal["kaggle_dataset", "kaggle_competition", "hugging_face"] = Field(description="who publishes it")
    repository: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$",
        description="OWNER/NAME of a data set or model, or the name of a competition",
    )
    file: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$",
        description="path of the file there; none takes all files as one archive",
    )

    @model_validator(mode="after")
    def _fits_its_host(self) -> Self:
        competition = self.host == "kaggle_competition"
        if competition == ("/" in self.repository):
            raise ValueError(
                f"expected {'the name' if competition else 'OWNER/NAME'} of a {self.host}, got {self.repository!r}"
            )
        if self.host == "hugging_face" and self.file is None:
            raise ValueError("expected a file of a repository of hugging_face, got none")
        return self


class Release(Settings):
    """One file that others published: weights, or data."""

    file: str = Field(description="path under MED_ASSETS_HOME/weights, or of data under MED_ASSETS_HOME/downloads")
    source: str = Field(description="where a person gets it, and under which licence")
    sha256: str | None = Field(default=None, description="64 hex digits of the file, where its publisher tells them")
    hosted: Hosted | None = Field(
        default=None, description="where `med-assets fetch` finds it; none where a person must"
    )


class Cohort(Settings):
    """The demo's synthetic patients."""

    first_seed: int = Field(ge=0, description="seed of the first; with the demo's key it decides who is in which split")
    cases: int = Field(ge=1, description="synthetic patients, one case each, count")
    minutes: float = Field(
        default=1.0, gt=0, description="about how long the demo takes beside another program; the longest go first"
    )
    bucket: bool = Field(
        default=False,
        description="whether they arrive in a bucket, which the demo serves while it runs, or in a folder",
    )
    promote_by_mean: bool = Field(
        default=False,
        description="whether a home of purpose demo with fewer patients than promotion.min_cases promotes by the mean alone, "
        "and says so: it shows promotion at work and is no evidence",
    )
    experiments: tuple[str, ...] = Field(
        default=(), description="what the demo trains, with those they need; all experiments unless given"
    )


class StagePolicy(Settings):
    """How one stage of the graph runs."""

    launch: StageLaunch = Field(default_factory=StageLaunch, description="where it runs and what it asks for")


class Policies(Settings):
    """All sections of `_program.yaml`. Splits are read with the dataset."""

    audit: AuditPolicy = Field(default_factory=AuditPolicy, description="when a batch is kept out of the dataset")
    promotion: Promotion = Field(default_factory=Promotion, description="when a model is promoted")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="what is scored for whom")
    retraining: Retraining = Field(default_factory=Retraining, description="when training starts by itself")
    subgroups: Subgroups = Field(default_factory=Subgroups, description="whose scores are reported separately")
    confidence: Confidence = Field(default_factory=Confidence, description="when a prediction is not to be trusted")
    monitoring: Monitoring = Field(default_factory=Monitoring, description="how the champion is watched")
    splits: Any = Field(default=None, description="how patients are split")
    released: dict[str, Release] = Field(default_factory=dict, description="weights that others released, by name")
    data: dict[str, Release] = Field(default_factory=dict, description="data that others published, by name")
    learning_curve: LearningCurve | None = Field(
        default=None, description="the learning curve that is an asset of the program; none unless given"
    )
    demo: Cohort | None = Field(default=None, description="the synthetic patients of `make demo`")
    stages: dict[Stage, StagePolicy] = Field(
        default_factory=dict, description="how stages of the graph run, by stage; as the settings say unless given"
    )


def _window(text: str) -> tuple[time, time]:
    start, dash, end = text.partition("-")
    try:
        found = time.fromisoformat(start.strip()), time.fromisoformat(end.strip())
    except ValueError:
        dash = ""
    if not dash:
        raise ValueError(f"expected a window such as '22:00-06:00', got {text!r}")
    return found


def of(program_name: str) -> Policies:
    """Policies of a program. Raises ConfigurationError that names the file and the field."""
    where = f"conf/{program_name}/_program.yaml"
    try:
        found = Policies.model_validate(program.config(program_name))
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    guarded = {metric.name for metric in program.get(program_name).guarded_metrics}
    if unknown := sorted(found.promotion.guard_margins.keys() - guarded):
        raise ConfigurationError(
            f"{where}: promotion.guard_margins: expected guarded metrics of {program_name} ({sorted(guarded)}), got {unknown}"
        )
    _check_subgroups(program_name, found, where)
    facts = program.get(program_name).facts
    numbers = sorted(name for name, fact in facts.items() if fact.type in (int, float) and not fact.of_one_case)
    if unknown := sorted(set(found.confidence.facts) - set(numbers)):
        raise ConfigurationError(
            f"{where}: confidence.facts: expected numbers among the facts ({', '.join(numbers)}), got {unknown}"
        )
    return found


def _check_subgroups(program_name: str, found: Policies, where: str) -> None:
    """Raise ConfigurationError for subgroups that the facts of the program cannot have, and for a guard without any."""
    chosen, declared = program.get(program_name), found.subgroups.facts
    known = {name: fact for name, fact in chosen.facts.items() if not fact.of_one_case}
    if unknown := sorted(declared.keys() - known):
        raise ConfigurationError(
            f"{where}: subgroups.facts: expected facts that cases share ({', '.join(sorted(known))}), got {unknown}"
        )
    for name, limits in declared.items():
        if (known[name].type in (int, float)) != bool(limits):
            wanted = "[] for words" if limits else f"limits of its bands, {known[name].unit}"
            raise ConfigurationError(f"{where}: subgroups.facts.{name}: expected {wanted}, got {list(limits)}")
    if (guard := found.promotion.worst_subgroup) is None:
        return
    deciding = {metric.name for metric in chosen.deciding_metrics}
    if unknown := sorted(guard.margins.keys() - deciding):
        raise ConfigurationError(
            f"{where}: promotion.worst_subgroup.margins: expected deciding metrics of {program_name} ({sorted(deciding)}), got {unknown}"
        )
    if not declared:
        raise ConfigurationError(
            f"{where}: promotion.worst_subgroup: expected subgroups.facts that it guards, got none"
        )


def learning_curve_of(program_name: str) -> str | None:
    """The experiment whose learning curve `_program.yaml` asks for, None where for none."""
    written = of(program_name).learning_curve
    if written and written.experiment not in names(program_name):
        raise ConfigurationError(
            f"conf/{program_name}/_program.yaml: learning_curve: expected an experiment of {', '.join(names(program_name))}, got "
            f"{written.experiment!r}"
        )
    return written.experiment if written else None
