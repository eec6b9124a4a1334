"""The program contract, and the registry of programs.

A program is one clinical question: it says how to recognise its cases among files, how to prepare and audit one, how to
train and predict, and how to score. Everything else is common. A new program is a folder under `programs/`, one line in
`REGISTRY` and its `conf/`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError
from med_assets.metrics.ranges import Range
from med_assets.storage import names, versions
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import read_yaml

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.catalog import Case
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.structure_names import Vocabulary
    from med_assets.experiments.configuration import Experiment
    from med_assets.intake.reasons import Reason
    from med_assets.metrics.score import Score
    from med_assets.preparation.expectations import Expectation
    from med_assets.settings import Settings, Workspace
    from med_assets.training.task import ClosedForm, Task, TrainingCase

REGISTRY = {
    "breast_us": "med_assets.programs.breast_us:BreastUs",
    "lumbar_mr": "med_assets.programs.lumbar_mr:LumbarMr",
    "lung_ct": "med_assets.programs.lung_ct:LungCt",
    "retinal_oct": "med_assets.programs.retinal_oct:RetinalOct",
    "rt_dose": "med_assets.programs.rt_dose:RtDose",
}
"""Module and class of each program; imported when first asked for."""

OTHER_TASK = "other"
"""The Hub's word for a task that it has no word for."""

FACT_KEYS = {"program": str, "batch": str, "case_id": str, "version": str}


@dataclass(frozen=True)
class Fact:
    """One measured fact of a case: its type (str, float, int or bool), unit and meaning."""

    type: type
    unit: str
    meaning: str
    of_one_case: bool = False
    """Whether its values say something of one case only, as hashes and lists of reasons do: drift does not compare them."""

    def written(self, value: Any) -> str:
        """A value for people, with the unit; "undefined" for None and NaN."""
        if value is None or value != value:
            return "undefined"
        number = f"{value:.4g}" if isinstance(value, float) else str(value)
        return f"{number} {self.unit}" if self.unit not in ("", "1", "count") else number


COMMON_FACTS = {
    "lossy": Fact(bool, "", "whether an image was compressed with loss, as its header, transfer syntax or stream says"),
    "lossy_ratio": Fact(float, "1", "greatest ratio of a compression with loss that an image states"),
    "manufacturer": Fact(
        str, "", "manufacturer of the device that made the images, of a closed list, where it is stated"
    ),
    "manufacturer_model": Fact(str, "", "model of that device, of a closed list, where it is stated"),
    "sex": Fact(
        str, "", "sex of the patient, M, F or O, where it is stated and the profile of de-identification keeps it"
    ),
    "age_years": Fact(
        int,
        "years",
        "age of the patient, 90 for 90 and older, where it is stated and the profile of de-identification keeps it",
    ),
}
"""Facts that every program has; the preparation stage measures them, and holds them against its own expectations."""


@dataclass(frozen=True)
class Metric:
    """A metric that decides: its name and subject in the evaluation tables, and whether lower is better."""

    name: str
    subject: str
    unit: str
    lower_is_better: bool
    meaning: str
    range: Range = field(kw_only=True)
    """What values it can have, in its unit: intervals end there."""
    by_class: bool = False
    """Whether it is averaged within each true class (`truth` of the score) first, and then over the classes that are there."""

    @property
    def shown_unit(self) -> str:
        """The unit for people: nothing where it is 1."""
        return "" if self.unit == "1" else self.unit

    @property
    def after(self) -> str:
        """What follows a value of it: a blank and the unit, or nothing."""
        return f" {self.shown_unit}".rstrip()

    @property
    def label(self) -> str:
        """Its name with the unit in brackets, if there is one."""
        return f"{self.name} ({self.shown_unit})" if self.shown_unit else self.name


@dataclass(frozen=True)
class ReportTable:
    """One table of a program's own in the report: heading, what it shows and how it was computed, its rows, and pictures."""

    title: str
    text: str
    rows: "pd.DataFrame"
    images: tuple[Path, ...] = ()
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawCase:
    """Files that together are one case: the raw patient id, the UID that identifies the case, and the instances."""

    patient_id: str
    identity_uid: str
    instances: tuple["Instance", ...]


@dataclass(frozen=True)
class Refusal:
    """A group of files that is no usable case: a code to count by, a message for a person, and how many files.

    A `note` is about files that a case does not need, such as a localizer: nobody has to do anything.
    """

    code: str
    message: str
    n_instances: int
    patient_id: str = ""
    identity_uid: str = ""
    note: bool = False


@dataclass(frozen=True)
class Finding:
    """Something about several cases at once that a person should see, such as one picture that is in two splits.

    `plot` writes a PNG that shows it to a path and returns that. What is `blocking` stops training until it is settled.
    """

    code: str
    text: str
    cases: tuple[str, ...]
    blocking: bool
    plot: Callable[[Path], Path] | None = None


@dataclass(frozen=True)
class Predicted:
    """One case with a model's prediction: the case with split and facts, its folders, its scores by name, and the teacher's folder.

    `scores` are those of the primary metric's subject. `teacher` is where the prediction of the model lies that this one was
    distilled from, None where there is none.
    """

    row: "Case"
    prepared: Path
    predicted: Path
    scores: Mapping[str, float | None]
    teacher: Path | None = None


class Program(ABC):
    """What is special to one clinical question: what every program has; `med_assets.capabilities` is what it may have beside.

    Implementations import torch and its like inside methods only.
    """

    name: str
    title: str
    description: str
    owners: tuple[str, ...]
    modalities: tuple[str, ...]
    code_versions: Mapping[str, str]
    """Version of the code of each stage (intake, prepare, train, predict, evaluate), as the methods in versions.METHODS say."""
    inputs: tuple[str, ...]
    """Files of a prepared case that a prediction depends on; its reader labels are in others."""
    facts: Mapping[str, Fact]
    primary_metric: Metric
    guarded_metrics: tuple[Metric, ...]
    further_metrics: tuple[tuple[str, str], ...] = ()
    """Metric and subject of further aggregated scores that the leaderboard shows after those that decide; none decides anything."""
    training_metric: Metric
    """The metric of the training history that people follow; it is measured by training itself, on the grid of training."""
    baseline: str | None
    """Name of the experiment that any champion must beat, if there is one."""
    class_fact: str = ""
    """Fact that states the class of a case, by which folds can be balanced; empty where cases have none."""
    reasons: "tuple[Reason, ...]" = ()
    """Reasons of its own for which a case is not used, beside those in intake/reasons.py."""
    hub_task: str = OTHER_TASK
    """Task of its models in the words of the Hugging Face Hub, such as image-segmentation, for their cards."""
    intended_use: str
    not_for: str
    limitations: tuple[str, ...]
    """These three are the words of the model card that hold for every model of the program."""

    @property
    def deciding_metrics(self) -> tuple[Metric, ...]:
        """The metrics that promotion, monitoring and the leaderboard use: the primary one, then those guarded."""
        return (self.primary_metric, *self.guarded_metrics)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "facts" in cls.__dict__:
            cls.facts = {**cls.facts, **COMMON_FACTS}
        cls.code_versions = versions.of_program(cls)

    @abstractmethod
    def group(self, instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
        """Group the DICOM instances of one patient and one study into cases; what makes no case is refused with a reason.

        Intake calls it through `grouping.group_by_patient`, which sees to it that all instances are of one patient and study.
        """

    @abstractmethod
    def roi_vocabulary(self, ws: "Settings") -> "Vocabulary":
        """Names of structures that mean something here and may pass de-identification, compared as preparation does."""

    @abstractmethod
    def settings(self, ws: "Settings") -> dict[str, Any]:
        """All configuration that preparing depends on; part of every prepared case's key."""

    @abstractmethod
    def verify(self, case: RawCase) -> bool:
        """Check that the files of a case belong together; raises CaseRejected.

        Returns whether it has the reader labels that models learn; a case without them is to be predicted.
        """

    @abstractmethod
    def prepare(self, ws: "Workspace", case_id: str, raw: Path, out: Path) -> dict[str, Any]:
        """Convert de-identified DICOM under `raw` to arrays under `out`; returns the facts. Raises CaseRejected.

        A case that came without labels has no facts about them.
        """

    @abstractmethod
    def expectations(self, ws: "Settings") -> Sequence["Expectation"]:
        """What the facts of an acceptable case look like."""

    @abstractmethod
    def evaluation_settings(self, ws: "Settings") -> dict[str, Any]:
        """All configuration that scores depend on; part of every score's key."""

    @abstractmethod
    def task(self, experiment: "Experiment", cases: Sequence["TrainingCase"], **given: Any) -> "Task | ClosedForm":
        """What the training process runs for an experiment: a training by Lightning, or weights that need none.

        `given` has `teacher`, a Teacher, for an experiment with one, and `files`, paths by name, for one with `released_files`.
        Raises ConfigurationError, and CheckpointMismatch for a file that does not fit.
        """

    @abstractmethod
    def predictor(self, checkpoint: Path, cache: Path) -> "CasePredictor":
        """Load a checkpoint once, to predict many cases; `cache` is a folder for what can be computed again. Raises CheckpointMismatch."""

    @abstractmethod
    def score(self, ws: "Settings", prepared: Path, predicted: Path) -> list["Score"]:
        """Score what `CasePredictor.predict` kept of a case. Raises NoTruth for a case to predict."""

    @abstractmethod
    def report_images(self, ws: "Settings", prepared: Path, predicted: Path, out: Path) -> list[Path]:
        """Plots of one case for people, written under `out`."""

    @abstractmethod
    def write_prediction(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        """Write what `CasePredictor.predict` kept under `predicted` as files for other tools (DICOM, NIfTI); returns the paths.

        `model` is the key of the checkpoint, which the files name.
        """

    @abstractmethod
    def write_phantoms(self, folder: Path, n: int, seed: int) -> None:
        """Write `n` synthetic cases, as real DICOM files, marked synthetic in the data."""


class CasePredictor(ABC):
    """A loaded checkpoint."""

    @abstractmethod
    def predict(self, prepared: Path, out: Path) -> None:
        """Predict one prepared case, and keep under `out` what its scores, its report and its files for others need.

        Only the program's `inputs` are read.
        """


PROGRAMS_VARIABLE = "MED_ASSETS_PROGRAMS"
"""Environment variable with the programs that a site uses, by comma; all unless set."""


def registered() -> tuple[str, ...]:
    """Names of the programs in use, sorted. Raises ConfigurationError for one that there is not."""
    wanted = {name.strip() for name in os.environ.get(PROGRAMS_VARIABLE, "").split(",")} - {""}
    if unknown := sorted(wanted - set(REGISTRY)):
        raise ConfigurationError(f"{PROGRAMS_VARIABLE}: expected programs among {sorted(REGISTRY)}, got {unknown}")
    return tuple(sorted(wanted or REGISTRY))


@cache
def get(name: str) -> Program:
    """The program of that name; raises ConfigurationError listing those there are."""
    if names.PROGRAM.check(name) not in REGISTRY:
        raise ConfigurationError(f"expected one of the programs {sorted(REGISTRY)}, got {name!r}")
    module, _, attribute = REGISTRY[name].partition(":")
    program: Program = getattr(import_module(module), attribute)()
    return program


def config(name: str) -> dict[str, Any]:
    """Content of `conf/<program>/_program.yaml`: what holds for all experiments of a program. Raises ConfigurationError."""
    path = conf_folder(name) / "_program.yaml"
    content = read_yaml(path) if path.is_file() else None
    if content is not None and not isinstance(content, dict):
        raise ConfigurationError(
            f"conf/{name}/_program.yaml: expected fields with values, got {type(content).__name__}"
        )
    return content or {}


def fact_table(name: str) -> str:
    """Lake table with the facts of a program's cases."""
    return f"{name}_facts"


def fact_tables() -> dict[str, Mapping[str, type]]:
    """Schemas of the fact tables of all programs."""
    return {
        fact_table(name): FACT_KEYS | {fact: spec.type for fact, spec in get(name).facts.items()}
        for name in registered()
    }
