"""Diabetes status from macular OCT by pretrained encoders: the program's side of the contract, and its facts."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError
from med_assets.metrics.ranges import POSITIVE, SHARE
from med_assets.program import CasePredictor, Fact, Finding, Metric, Program, RawCase, Refusal, ReportTable
from med_assets.programs.retinal_oct.reasons import REASONS
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.catalog import Case
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.label_rows import LabelRow
    from med_assets.dicom.structure_names import Vocabulary
    from med_assets.experiments.configuration import Experiment
    from med_assets.metrics.score import Score
    from med_assets.preparation.expectations import Expectation
    from med_assets.records import CaseScore, CaseVersion, EpochMetric, PreparedCase
    from med_assets.review.viewing.contract import View
    from med_assets.settings import Settings
    from med_assets.training.task import ClosedForm, Task, TrainingCase


OVERFIT_BELOW = 0.05
"""Cross entropy up to which eight overfitted cases count as learned by heart."""


PHANTOM_DEVICES = 2
"""Devices of the synthetic participants: the one that is classified, and one that is pretrained on alone."""


class RetinalOct(Program):
    """Each OPT volume is a case, known by its patient and its series; one protocol is classified, others are pretrained on."""

    name = "retinal_oct"
    title = "Diabetes status from retinal OCT"
    description = "Classifies diabetes status in four groups from macular OCT, to compare encoders that were pretrained on OCT volumes."
    owners = ("team:eye",)
    modalities = ("OPT",)
    inputs = ("case.json", "image.npy")
    primary_metric = Metric(
        "balanced_accuracy",
        "all",
        "1",
        False,
        "mean over the four classes of the share predicted right in each",
        by_class=True,
        range=SHARE,
    )
    guarded_metrics = (
        Metric(
            "log_loss",
            "all",
            "1",
            True,
            "-ln of the probability given to the true class: a confident mistake costs most",
            range=POSITIVE,
        ),
    )
    further_metrics = (
        *((name, "all") for name in ("accuracy", "macro_f1", "weighted_f1", "auroc")),
        *((name, "all") for name in ("weighted_kappa", "calibration_error", "brier")),
        *(("f1", name) for name in ("healthy", "prediabetes", "oral_medication", "insulin")),
    )
    training_metric = Metric(
        "val_balanced_accuracy", "all", "1", False, "balanced accuracy on validation, epoch by epoch", range=SHARE
    )
    baseline = "random_probe"
    class_fact = "study_group"
    reasons = REASONS
    hub_task = "image-classification"
    intended_use = (
        "Research on what pretrained OCT encoders know: a comparison of encoders under the same data and splits."
    )
    not_for = "Diagnosis or screening of diabetes. The groups are of treatment, not of retinal findings."
    limitations = (
        "learns from one protocol of one device; another device is another domain",
        "the classes follow from treatment, so age and duration of disease may be what is seen: facts_alone is what age, site and eye say without the volume",
        "a participant has one labelled scan, of one eye",
    )
    facts = {  # noqa: RUF012 - read only
        "frames": Fact(int, "count", "B-scans of the volume"),
        "rows": Fact(int, "count", "pixels into the depth"),
        "columns": Fact(int, "count", "pixels along a B-scan"),
        "frame_mm": Fact(float, "mm", "distance of neighbouring B-scans"),
        "depth_mm": Fact(float, "mm", "pixel spacing into the depth"),
        "lateral_mm": Fact(float, "mm", "pixel spacing along a B-scan"),
        "frames_from": Fact(str, "", "what the distance of B-scans was read from: positions, spacing or thickness"),
        "raster": Fact(
            bool, "", "whether the frames state parallel lines on the fundus; nothing where they state none"
        ),
        "laterality": Fact(str, "", "the eye, R or L"),
        "device": Fact(str, "", "model of the device"),
        "study_group": Fact(str, "", "class of the participant"),
        "site": Fact(str, "", "clinical site"),
        "protocol": Fact(str, "", "protocol of the scan"),
        "intensity_low": Fact(float, "1", "0.1 percentile of the intensities as stored"),
        "intensity_median": Fact(float, "1", "median of the intensities as stored"),
        "intensity_high": Fact(float, "1", "99.9 percentile of the intensities as stored"),
        "resized_std": Fact(
            float,
            "1",
            "standard deviation that the resize left of 1, before the volume was normalised again; low for fine speckle",
        ),
        "network_mean": Fact(float, "1", "mean of the network's input, 0"),
        "network_std": Fact(float, "1", "standard deviation of the network's input, 1"),
    }

    def group(self, instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
        from med_assets.programs.retinal_oct.grouping import group

        return group(instances)

    @versioned("3")
    def verify(self, case: RawCase) -> bool:
        from med_assets.dicom.discover import load
        from med_assets.dicom.opt import read_opt
        from med_assets.programs.retinal_oct.prepare import read_labels

        # Pixels are read once before anything is stored, so that broken files are refused at intake.
        (one,) = case.instances
        ds = load(one)
        read_opt(ds)
        return bool(read_labels(ds)["study_group"])

    def roi_vocabulary(self, ws: "Settings") -> "Vocabulary":
        from med_assets.programs.retinal_oct.vocabulary import vocabulary

        return vocabulary()

    def size(self, ws: "Settings") -> tuple[int, int, int]:
        """The network's input in this workspace's profile."""
        from med_assets.programs.retinal_oct.network_inputs import SIZES

        if ws.profile not in SIZES:
            raise ConfigurationError(f"expected MED_ASSETS_PROFILE among {list(SIZES)}, got {ws.profile!r}")
        return SIZES[ws.profile]

    def settings(self, ws: "Settings") -> dict[str, Any]:
        return {"size": list(self.size(ws))}

    @versioned("5")
    def prepare(self, ws: "Settings", case_id: str, raw: Path, out: Path) -> dict[str, Any]:
        from med_assets.programs.retinal_oct.prepare import prepare_case

        return prepare_case(case_id, raw, out, self.size(ws))

    def expectations(self, ws: "Settings") -> Sequence["Expectation"]:
        from med_assets.programs.retinal_oct.expectations import expectations

        return expectations()

    def data_tables(
        self, cases: Sequence["Case"], refused: "Sequence[CaseVersion | PreparedCase]"
    ) -> list[ReportTable]:
        from med_assets.programs.retinal_oct.audit import tables
        from med_assets.programs.retinal_oct.cohort import cohort

        return tables(cases, refused, cohort())

    def dataset_findings(self, ws: "Settings", cases: Sequence["Case"]) -> Sequence[Finding]:
        from med_assets.programs.retinal_oct.cohort import COHORTS, cohort, objections

        chosen = ws.option(self.name, "cohort", "whole" if ws.profile == "full" else "partial")
        if chosen not in COHORTS:
            raise ConfigurationError(f"expected MED_ASSETS_RETINAL_OCT_COHORT to be one of {COHORTS}, got {chosen!r}")
        return [
            Finding("cohort", message, (), True) for message in objections(cases, cohort(), whole=chosen == "whole")
        ]

    def evaluation_settings(self, ws: "Settings") -> dict[str, Any]:
        return {"size": list(self.size(ws))}

    def pooled(self, scores: Sequence["CaseScore"]) -> list["Score"]:
        from med_assets.programs.retinal_oct.score import pooled

        return list(pooled(scores))

    def prediction_table(self, scores: Sequence["CaseScore"]) -> "pd.DataFrame":
        from med_assets.programs.retinal_oct.score import wide

        return wide(scores)

    def doubts(self, scores: Sequence["CaseScore"], history: Sequence["EpochMetric"]) -> list[str]:
        from med_assets.programs.retinal_oct.score import doubts

        return doubts(scores, history, OVERFIT_BELOW)

    def label_rows(self, prepared: Path) -> "list[LabelRow]":
        from med_assets.dicom.label_rows import LabelRow
        from med_assets.programs.retinal_oct.prepared import PreparedCase
        from med_assets.programs.retinal_oct.vocabulary import CLASSES

        case = PreparedCase.open(prepared)
        if case.stated_label is None:
            return []
        group = CLASSES[case.stated_label]
        of_volume = {"eye": case.laterality, "protocol": case.protocol}
        return [
            LabelRow(group, "study group", maps_to=f"class {case.stated_label} of {len(CLASSES)}", measured=of_volume),
            LabelRow(case.site, "site", measured=of_volume),
        ]

    @versioned("2")
    def task(self, experiment: "Experiment", cases: Sequence["TrainingCase"], **given: Any) -> "Task | ClosedForm":
        from med_assets.programs.retinal_oct.lit import task

        return task(experiment, cases, **given)

    @versioned("1")
    def predictor(self, checkpoint: Path, cache: Path) -> CasePredictor:
        from med_assets.programs.retinal_oct.embeddings import FOLDER
        from med_assets.programs.retinal_oct.scorer import load_predictor

        return load_predictor(checkpoint, cache / FOLDER)

    @versioned("3")
    def score(self, ws: "Settings", prepared: Path, predicted: Path) -> list["Score"]:
        from med_assets.programs.retinal_oct.scorer import score

        return score(prepared, predicted)

    confidence_definition = "highest probability of a class (softmax)"

    @versioned("1")
    def confidence(self, prepared: Path, predicted: Path) -> float | None:
        from med_assets.programs.retinal_oct.scorer import confidence

        return confidence(predicted)

    def prediction_facts(self, ws: "Settings", prepared: Path, predicted: Path) -> Mapping[str, float | str | None]:
        from med_assets.programs.retinal_oct.scorer import facts

        return facts(predicted)

    def report_images(self, ws: "Settings", prepared: Path, predicted: Path, out: Path) -> list[Path]:
        from med_assets.programs.retinal_oct.pictures import plot

        return plot(prepared, predicted, out)

    def report_tables(self, rows: "pd.DataFrame") -> list[ReportTable]:
        from med_assets.programs.retinal_oct.tables import tables

        return tables(rows)

    def split_plot(self, scores: "Sequence[CaseScore]", split: str, path: Path) -> str | None:
        from med_assets.programs.retinal_oct.pictures import plot_confusion

        return plot_confusion(scores, split, path)

    def views(self, ws: "Settings", prepared: Path, predicted: Path | None) -> "Sequence[View]":
        from med_assets.programs.retinal_oct.views import views

        return views(prepared, predicted)

    def write_prediction(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.retinal_oct.export import write_prediction

        return write_prediction(prepared, predicted, out, model)

    def write_phantoms(self, folder: Path, n: int, seed: int) -> None:

        from med_assets.programs.retinal_oct.importer import import_participants
        from med_assets.programs.retinal_oct.phantom import SCANNERS, people, write_dataset

        if n < 1:
            raise ConfigurationError(f"expected at least one phantom, got {n}")
        folder.mkdir(parents=True, exist_ok=True)
        # In the layout of the data set first, so that phantoms come the way that real scans do.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".phantoms-") as scratch:
            source = Path(scratch) / "data"
            write_dataset(source, people(n, seed), SCANNERS[:PHANTOM_DEVICES])
            import_participants(source, folder)
