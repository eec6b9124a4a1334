"""What a program can do beside the contract of `med_assets.program`: a small protocol for each ability.

A program has one by having its methods. The common code asks with `isinstance(program, FixedSplits)`, and does without where it
has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.catalog import Case
    from med_assets.dicom.label_rows import LabelRow
    from med_assets.evaluation.analysis import Analysis
    from med_assets.evaluation.points import Points, Uncorrected
    from med_assets.evaluation.prompts import Prompts
    from med_assets.experiments.bundles import BundleConfiguration, ReadBundle
    from med_assets.experiments.configuration import Experiment
    from med_assets.landing.bucket import RemoteFiles
    from med_assets.metrics.score import Score
    from med_assets.program import Finding, Predicted, ReportTable
    from med_assets.records import CaseScore, CaseVersion, EpochMetric, PreparedCase
    from med_assets.review.viewing.contract import View
    from med_assets.screening.contract import Screening
    from med_assets.settings import Settings


# -- cases and their files


@runtime_checkable
class RemoteKeys(Protocol):
    """Says which objects of an S3 landing zone make which entry, where a folder is not an entry."""

    def remote_keys(self, remote: "RemoteFiles") -> list[tuple[str, str]]:
        """Pairs of an entry and a name relative to the landing zone's prefix.

        The entry is the participant where the data have some; failures are reported by it, and it never leaves the landing
        zone. A name need not be listed: an object that is missing is reported. Called at every listing of the landing zone, so it
        must be quick.
        """


@runtime_checkable
class PlainImages(Protocol):
    """Predicts image files that are no DICOM, such as NIfTI or PNG, which say nothing but the image itself."""

    plain_suffixes: tuple[str, ...]
    """How names of such files end, in lower case."""

    def write_plain_image(self, image: Path, folder: Path, patient_id: str) -> None:
        """Write an image as the DICOM of a case without label, of a patient of that id. Raises CaseRejected."""


@runtime_checkable
class ConfigurationErrors(Protocol):
    """Has configuration files of its own, which `doctor` checks."""

    def configuration_errors(self) -> list[str]:
        """What is wrong with them, each naming file and key."""


@runtime_checkable
class LabelRows(Protocol):
    """Tells the labels of a case from its arrays; a program without keeps them as it prepares (`write_rows`)."""

    def label_rows(self, prepared: Path) -> "list[LabelRow]":
        """The labels of a prepared case as its source has them, and what each counts as."""


@runtime_checkable
class LabelMeanings(Protocol):
    """Reads labels by their names."""

    def label_meaning(self, name: str) -> str:
        """What a segment or ROI of this name counts as; empty for one that means nothing."""


@runtime_checkable
class RequiredStructures(Protocol):
    """Expects structures of every case, and proposes what ROI names that mean nothing here may be."""

    required_missing: str
    """Fact that names the structures which every case should have and this one lacks."""

    def roi_proposals(self, ws: "Settings", names: Sequence[str]) -> list[tuple[str, str]]:
        """Of ROI names as senders wrote them those that mean nothing here, each with what it may be."""


@runtime_checkable
class DataTables(Protocol):
    """Has tables of its own about its data."""

    def data_tables(
        self, cases: Sequence["Case"], refused: "Sequence[CaseVersion | PreparedCase]"
    ) -> "list[ReportTable]":
        """The tables, from the cases of the dataset with split, fold and facts, and from what was quarantined."""


@runtime_checkable
class AuditSections(Protocol):
    """Says which of its facts the audit of a dataset states in the record of a fine-tuning."""

    audit_sections: Mapping[str, tuple[str, ...]]
    """Names of facts by section, such as spacing."""


@runtime_checkable
class DatasetFindings(Protocol):
    """Looks for what is wrong between cases or with the splits as a whole, such as one picture twice."""

    def dataset_findings(self, ws: "Settings", cases: Sequence["Case"]) -> "Sequence[Finding]":
        """What is wrong, from the cases of the dataset with split, fold and facts."""


@runtime_checkable
class HeldOutWarnings(Protocol):
    """Knows what makes the scores of held-out cases doubtful, whatever the model."""

    def held_out_warnings(self, cases: Sequence["Case"]) -> list[str]:
        """The warnings, from the cases of the dataset with split, fold and facts."""


@runtime_checkable
class FixedSplits(Protocol):
    """Has split and fold of known patients for the policy "fixed", beside the policy's own list."""

    def fixed_splits(self, ws: "Settings") -> Mapping[str, tuple[str, int]]:
        """Split and fold by patient pseudonym."""


# -- experiments and models


@runtime_checkable
class ExperimentOverrides(Protocol):
    """Sets something in every experiment by the workspace, as rt_dose does its site."""

    def experiment_overrides(self, ws: "Settings") -> tuple[str, ...]:
        """Hydra overrides that every experiment of this workspace gets."""


@runtime_checkable
class TrainingWarnings(Protocol):
    """Looks at the cases before an experiment is trained on them."""

    def training_warnings(self, experiment: "Experiment", prepared: Sequence[Path]) -> list[str]:
        """What a user should know. Raises ConfigurationError where it can't be trained on them as it is meant."""


@runtime_checkable
class ExportsModel(Protocol):
    """Writes networks for other runtimes."""

    def export_model(self, checkpoint: Path, out: Path) -> list[Path]:
        """Write a checkpoint's network; returns the paths. Raises ConfigurationError where there is no way."""


@runtime_checkable
class ReadsBundles(Protocol):
    """Reads MONAI bundles of its task into experiments."""

    def read_bundle(self, configuration: "BundleConfiguration", metadata: Mapping[str, Any]) -> "ReadBundle":
        """The fields of an experiment, and what came of each entry. Raises ConfigurationError for a bundle of another task."""


@runtime_checkable
class WritesBundles(Protocol):
    """Writes its models as bundles that MONAI runs."""

    def write_bundle(self, ws: "Settings", model: str, checkpoint: Path, out: Path) -> list[Path]:
        """Write the checkpoint in a folder, known by the key `model`, as a bundle; returns the paths."""


@runtime_checkable
class ExportsPipeline(Protocol):
    """Writes networks together with what stands before and after them, and measures what it wrote."""

    def export_pipeline(
        self, ws: "Settings", checkpoint: Path, out: Path, cases: Sequence["Case"], quantise: bool
    ) -> tuple[list[Path], list[dict[str, str]]]:
        """Write a checkpoint's pipeline, in 8 bits too if asked, and measure it on cases; returns paths and a table.

        Raises ConfigurationError where there is no way.
        """


@runtime_checkable
class PlotsFeatures(Protocol):
    """Shows what layers of a network make of many cases."""

    def plot_features(
        self,
        ws: "Settings",
        checkpoint: Path,
        cases: Sequence["Case"],
        layers: Sequence[str],
        methods: Sequence[Literal["pca", "tsne", "umap"]],
        out: Path,
    ) -> list[Path]:
        """Write pictures and coordinates of the cases, with their facts, for each layer and method; returns the paths."""


@runtime_checkable
class Prompted(Protocol):
    """Predicts an image from what a person shows in it."""

    def outline(
        self, ws: "Settings", checkpoint: Path, raw: Path, prepared: Path, prompts: "Prompts", out: Path, model: str
    ) -> list[Path]:
        """Write the files of the prediction; returns the paths. Raises ConfigurationError for a model or a point that can't be used."""


@runtime_checkable
class PredictsLoops(Protocol):
    """Predicts the frames of a cine loop, one after another."""

    def predict_loop(self, ws: "Settings", checkpoint: Path, loop: Path, out: Path, masks: bool) -> list[Path]:
        """Write what is measured of each frame, and with `masks` the mask of each; returns the paths. Raises CaseRejected."""


@runtime_checkable
class ModelCosts(Protocol):
    """Measures what a model costs."""

    def checkpoint_facts(self, ws: "Settings", checkpoint: Path) -> Mapping[str, float]:
        """Costs by name with unit, such as parameters; measured once per checkpoint."""


@runtime_checkable
class CorrectsByPoints(Protocol):
    """Corrects what a model predicts of one case by points that a person sets."""

    def correct(self, ws: "Settings", prediction: "Uncorrected", points: "Points", out: Path) -> list[Path]:
        """Write the files of the corrected prediction; returns the paths. Raises ConfigurationError for a point or a model that can't be used."""


# -- scores


@runtime_checkable
class PooledScores(Protocol):
    """Has scores that are defined over all cases of a split at once."""

    def pooled(self, scores: Sequence["CaseScore"]) -> list["Score"]:
        """Such scores, from those of each case of a split; those with an interval of their own are PooledScores."""


@runtime_checkable
class PredictionTable(Protocol):
    """Has a table of predictions for people's own tools."""

    def prediction_table(self, scores: Sequence["CaseScore"]) -> "pd.DataFrame":
        """A row per case, from the scores of a split."""


@runtime_checkable
class Doubts(Protocol):
    """Knows what makes the scores of an experiment doubtful, such as a collapse."""

    def doubts(self, scores: Sequence["CaseScore"], history: Sequence["EpochMetric"]) -> list[str]:
        """The doubts, from the scores of held-out cases and the history of the training."""


@runtime_checkable
class PredictionFacts(Protocol):
    """Sums up a prediction in a few numbers."""

    def prediction_facts(self, ws: "Settings", prepared: Path, predicted: Path) -> Mapping[str, float | str | None]:
        """What a prediction says and how sure it is, by name with unit."""


EDITED = "constraints.json"
"""File beside a prediction with the constraints that were edited, in their own units."""


@runtime_checkable
class EditsConstraints(Protocol):
    """Predicts under planning constraints that a person edits."""

    def edit_constraints(self, ws: "Settings", prepared: Path, out: Path, edits: Sequence[str]) -> None:
        """Fill `out`, an empty folder, with a prepared case whose constraints are as texts NAME=VALUE say, and EDITED. Raises ConfigurationError."""


@dataclass(frozen=True)
class UsualError:
    """How far a model is from the reference in one metric and subject: the mean of the absolute values over n validation cases."""

    mean_absolute: float
    n: int


@dataclass(frozen=True)
class ModelOfPage:
    """The model whose prediction a plan is compared with: its experiment, the key of its checkpoint, whether it was trained on the
    case, and its usual errors by metric and subject; empty before its evaluation."""

    experiment: str
    checkpoint: str
    trained_on_case: bool
    usual: Mapping[tuple[str, str], UsualError]


@runtime_checkable
class PlanPages(Protocol):
    """Compares a plan with what a model predicts for its patient, on one page."""

    def plan_page(
        self,
        ws: "Settings",
        prepared: Path,
        predicted: Path,
        scores: Sequence["Score"],
        model: ModelOfPage,
        page: Path,
    ) -> Mapping[str, float | str | None]:
        """Write `page`, a PDF, of one case and its scores; returns what a table of all cases says of it, by name with unit."""


@runtime_checkable
class PredictionConfidence(Protocol):
    """Says how sure a stored prediction is of its case as a whole; nothing is predicted again."""

    confidence_definition: str
    """What the measure is; a higher value is surer."""

    def confidence(self, prepared: Path, predicted: Path) -> float | None:
        """The measure, None where it is undefined. Its version is that of what is measured."""


@runtime_checkable
class Measurements(Protocol):
    """Writes what it measures of a prediction as a DICOM structured report."""

    def write_measurements(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        """Write a report under `out`, beside what `write_prediction` wrote there, and return its path.

        Empty where nothing can be measured, such as an area on pixels that nobody calibrated.
        """


@runtime_checkable
class SegmentationTask(Protocol):
    """Segments one structure, and exchanges images and masks with other frameworks as files."""

    channel: str
    """Name of the image's channel, such as CT, by which nnU-Net chooses how to normalise."""
    label_name: str
    """Name of the label, whose value is 1."""
    file_ending: str
    """Ending of image and label files."""

    def write_image_and_label(self, prepared: Path, image: Path, label: Path | None) -> None:
        """Write image, and label unless that is None, of a prepared case on the grid that is scored."""

    def keep_mask(self, prepared: Path, mask: Path, out: Path) -> None:
        """Keep a label file under `out` as this program's `CasePredictor` keeps a prediction.

        Raises CaseRejected for one that is not on the grid of the case, or that has other values than 0 and 1.
        """


# -- pages


@runtime_checkable
class Viewable(Protocol):
    """Shows its cases in the browser."""

    def views(self, ws: "Settings", prepared: Path, predicted: Path | None) -> "Sequence[View]":
        """Pictures of a prepared case that can be scrolled through, with what a model predicted of it where there is a prediction.

        Arrays are memory maps, or computed when a layer is first read. Raises ArtifactCorrupt.
        """


# -- reports


@runtime_checkable
class ReportTables(Protocol):
    """Has tables of its own in the report."""

    def report_tables(self, rows: "pd.DataFrame") -> "list[ReportTable]":
        """The tables, from the per-case scores of one model on one split."""


@runtime_checkable
class SplitPlots(Protocol):
    """Has a figure of all cases of a split, which the record of each evaluated checkpoint holds."""

    def split_plot(self, scores: "Sequence[CaseScore]", split: str, path: Path) -> str | None:
        """Plot to `path`, a PNG, what one model scored on the cases of a split; returns a caption, None where there is nothing to show."""


def split_figure(split: str) -> str:
    """File name of the figure of all cases of a split, of `SplitPlots`."""
    return f"all_cases_{split}.png"


@runtime_checkable
class CrossvalTables(Protocol):
    """Has other tables of a cross-validation than of a split."""

    def crossval_tables(self, ws: "Settings", rows: "pd.DataFrame") -> "list[ReportTable]":
        """The tables, from the scores of all cases, each by the model of its fold."""


@runtime_checkable
class ModelImages(Protocol):
    """Plots one model over all its held-out cases."""

    def model_images(self, ws: "Settings", cases: Sequence["Predicted"], out: Path) -> list[tuple[Path, str]]:
        """Plots written under `out`, each with a caption."""


@runtime_checkable
class DebugImages(Protocol):
    """Plots every step from a prepared case to its scores."""

    def debug_images(self, ws: "Settings", checkpoint: Path, prepared: Path, predicted: Path, out: Path) -> list[Path]:
        """The steps, as files under `out`."""


# -- questions to all cases or models


@runtime_checkable
class Analyses(Protocol):
    """Wants to know something of all its cases or models at once."""

    def analyses(self) -> "Sequence[Analysis]":
        """The analyses, an asset each."""


@runtime_checkable
class Screens(Protocol):
    """Looks for unusual cases."""

    def screening(self) -> "Screening":
        """How they are found."""
