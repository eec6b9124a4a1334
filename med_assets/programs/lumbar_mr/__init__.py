"""Lumbar levels in sagittal T2 MR, and transitional vertebrae found by uncertainty: the program's side of the contract."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError
from med_assets.metrics.ranges import POSITIVE, SHARE
from med_assets.program import CasePredictor, Fact, Metric, Program, RawCase, Refusal, ReportTable
from med_assets.programs.lumbar_mr.reasons import REASONS
from med_assets.storage.files import digest
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.catalog import Case
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.structure_names import Vocabulary
    from med_assets.evaluation.analysis import Analysis
    from med_assets.experiments.configuration import Experiment
    from med_assets.metrics.score import Score
    from med_assets.preparation.expectations import Expectation
    from med_assets.records import CaseVersion, PreparedCase
    from med_assets.review.viewing.contract import View
    from med_assets.screening.contract import Screening
    from med_assets.settings import Settings
    from med_assets.training.task import ClosedForm, Task, TrainingCase


PHANTOM_SHAPE, PHANTOM_MM = (11, 160, 160), (5.0, 1.75, 1.75)
"""Grid of synthetic cases (s, y, x)."""

PHANTOM_ANATOMIES = ("normal", "normal", "sacralised", "normal", "normal", "lumbarised")
"""Anatomy of synthetic cases in the order of their seeds, over and over: two thirds are normal."""


class LumbarMr(Program):
    """The sagittal T2 series of a study is a case, with the points of its levels where somebody set them; known by patient and study."""

    name = "lumbar_mr"
    title = "Lumbar levels and transitional vertebrae"
    description = "Locates the lumbar discs in sagittal T2 MR, and finds transitional vertebrae (LSTV) by the model's uncertainty."
    owners = ("team:spine",)
    modalities = ("MR", "RTSTRUCT")
    inputs = ("case.json", "volume.npy", "input.npy")
    primary_metric = Metric(
        "localisation_error",
        "all",
        "mm",
        True,
        "distance of predicted and marked points in the sagittal plane, all levels",
        range=POSITIVE,
    )
    guarded_metrics = (Metric("found", "all", "1", False, "share of the marked levels that were found", range=SHARE),)
    training_metric = Metric(
        "val_error_mm",
        "all",
        "mm",
        True,
        "localisation error on validation cases, with a penalty for a level not found",
        range=POSITIVE,
    )
    baseline = "mean_position"
    class_fact = "lstv"
    reasons = REASONS
    hub_task = "keypoint-detection"
    intended_use = (
        "Research on finding lumbosacral transitional vertebrae, and a queue of studies that a radiologist reads first."
    )
    not_for = "Numbering vertebrae for surgery or injection, or ruling a transition out: what is not flagged is not thereby normal."
    limitations = (
        "counts levels by what a field of view shows; without the ribs or the whole spine a count can be off by one",
        "uncertainty also rises for artefacts, implants, scoliosis and a cut field of view, not for transitions alone",
        "learns where its annotators set the points, which differ by some millimetres",
    )
    plain_suffixes = (".nii.gz", ".nii", ".nrrd")
    facts = {  # noqa: RUF012 - read only
        "slices": Fact(int, "count", "slices of the series"),
        "rows": Fact(int, "count", "rows of a slice"),
        "columns": Fact(int, "count", "columns of a slice"),
        "slice_mm": Fact(float, "mm", "distance of neighbouring slice positions"),
        "pixel_mm": Fact(float, "mm", "pixel spacing, the greater of two"),
        "height_mm": Fact(float, "mm", "field of view from head to feet"),
        "orientation": Fact(str, "", "where stored slices (in order of their normal), rows and columns run to, in LPS"),
        "intensity_low": Fact(float, "1", "0.1 percentile of the intensities as stored"),
        "intensity_high": Fact(float, "1", "99.9 percentile of the intensities as stored"),
        "echo_time_ms": Fact(float, "ms", "EchoTime of the series, where it is stated"),
        "repetition_time_ms": Fact(float, "ms", "RepetitionTime of the series, where it is stated"),
        "levels": Fact(int, "count", "levels with a point, 0 for a series without points"),
        "points_without_level": Fact(int, "count", "points whose names mean nothing here; they are left out"),
        "points_left_out": Fact(
            str, "", "level points that can't be used, by level or ROI number, with the reason", of_one_case=True
        ),
        "points_outside": Fact(int, "count", "levels whose point is outside the volume"),
        "levels_in_order": Fact(bool, "", "whether the points follow each other from head to feet"),
        "level_gap_min_mm": Fact(float, "mm", "least distance of neighbouring levels"),
        "level_gap_max_mm": Fact(float, "mm", "greatest distance of neighbouring levels"),
        "level_slices": Fact(float, "slices", "how many slices apart the points are at most"),
        "lstv": Fact(str, "", "anatomy that the points state: normal, sacralised or lumbarised, else unknown"),
    }

    def group(self, instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
        from med_assets.programs.lumbar_mr.grouping import group

        return group(instances)

    @versioned("3")
    def verify(self, case: RawCase) -> bool:
        from med_assets.dicom.discover import load
        from med_assets.dicom.enhanced import is_multi_frame
        from med_assets.dicom.geometry import SAGITTAL, check_mr_series
        from med_assets.dicom.references import verify_label
        from med_assets.programs.lumbar_mr.grouping import sagittal_t2
        from med_assets.programs.lumbar_mr.prepare import read_levels

        slices = [one for one in case.instances if one.modality == "MR"]
        # Pixels are read once before anything is stored, so that broken files are refused at intake; the series comes
        # first, since a lost slice also breaks references, and that it is lost is the better answer.
        images = [load(one) for one in slices]
        several = any(is_multi_frame(one) for one in images)
        label = next((load(one) for one in case.instances if several and one.modality != "MR"), None)
        check_mr_series(images, sagittal_t2, label, SAGITTAL)
        for points in (one for one in case.instances if one.modality != "MR"):
            verify_label(points, slices, "MR series")
            read_levels(load(points), slices[0].frame_of_reference_uid)
        return len(slices) < len(case.instances)

    def write_plain_image(self, image: Path, folder: Path, patient_id: str) -> None:
        from med_assets.programs.lumbar_mr.importer import write_image

        write_image(folder, image, patient_id)

    def roi_vocabulary(self, ws: "Settings") -> "Vocabulary":
        from med_assets.programs.lumbar_mr.levels import vocabulary

        return vocabulary()

    def settings(self, ws: "Settings") -> dict[str, Any]:
        from med_assets.programs.lumbar_mr.levels import ANATOMY_ROIS, ROI_NAMES
        from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS, PERCENTILES

        return {
            "percentiles": list(PERCENTILES),
            "input_pixels": INPUT_PIXELS,
            "points": digest(ROI_NAMES, ANATOMY_ROIS),
        }

    @versioned("5")
    def prepare(self, ws: "Settings", case_id: str, raw: Path, out: Path) -> dict[str, Any]:
        from med_assets.programs.lumbar_mr.prepare import prepare_case

        return prepare_case(case_id, raw, out, self.settings(ws))

    def expectations(self, ws: "Settings") -> Sequence["Expectation"]:
        from med_assets.programs.lumbar_mr.expectations import expectations

        return expectations()

    def data_tables(
        self, cases: Sequence["Case"], refused: "Sequence[CaseVersion | PreparedCase]"
    ) -> list[ReportTable]:
        from med_assets.programs.lumbar_mr.audit import tables

        return tables(cases, refused, {name: fact.unit for name, fact in self.facts.items()})

    def screening(self) -> "Screening":
        from med_assets.programs.lumbar_mr.screening import LumbarScreening

        return LumbarScreening()

    def evaluation_settings(self, ws: "Settings") -> dict[str, Any]:
        from med_assets.programs.lumbar_mr.evaluation_settings import EvaluationSettings

        return EvaluationSettings.for_profile(ws.profile).model_dump(mode="json")

    @versioned("1")
    def task(self, experiment: "Experiment", cases: Sequence["TrainingCase"], **given: Any) -> "Task | ClosedForm":
        from med_assets.programs.lumbar_mr.lit import task

        return task(experiment, cases, **given)

    @versioned("2")
    def predictor(self, checkpoint: Path, cache: Path) -> CasePredictor:
        from med_assets.programs.lumbar_mr.scorer import LevelPredictor

        return LevelPredictor(checkpoint)

    @versioned("2")
    def score(self, ws: "Settings", prepared: Path, predicted: Path) -> list["Score"]:
        from med_assets.programs.lumbar_mr.evaluation_settings import EvaluationSettings
        from med_assets.programs.lumbar_mr.scorer import score

        return score(prepared, predicted, EvaluationSettings.for_profile(ws.profile))

    confidence_definition = (
        "highest probability of the heat map of the least certain level; 0 where a level is not found"
    )

    @versioned("1")
    def confidence(self, prepared: Path, predicted: Path) -> float | None:
        from med_assets.programs.lumbar_mr.scorer import confidence

        return confidence(predicted)

    def prediction_facts(self, ws: "Settings", prepared: Path, predicted: Path) -> Mapping[str, float | str | None]:
        from med_assets.programs.lumbar_mr.scorer import facts

        return facts(predicted)

    def report_images(self, ws: "Settings", prepared: Path, predicted: Path, out: Path) -> list[Path]:
        from med_assets.programs.lumbar_mr.pictures import plot

        return plot(prepared, predicted, out)

    def debug_images(self, ws: "Settings", checkpoint: Path, prepared: Path, predicted: Path, out: Path) -> list[Path]:
        from med_assets.programs.lumbar_mr.debug import plot_steps

        return plot_steps(checkpoint, prepared, predicted, out)

    def crossval_tables(self, ws: "Settings", rows: "pd.DataFrame") -> list[ReportTable]:
        from med_assets.programs.lumbar_mr.screening import risk
        from med_assets.programs.lumbar_mr.studies import false_alarms
        from med_assets.programs.lumbar_mr.tables import separation, tables

        return [*tables(rows), separation(rows), false_alarms(rows, risk(ws))]

    def analyses(self) -> "Sequence[Analysis]":
        from med_assets.programs.lumbar_mr.analyses import ANALYSES

        return ANALYSES

    def report_tables(self, rows: "pd.DataFrame") -> list[ReportTable]:
        from med_assets.programs.lumbar_mr.tables import tables

        return tables(rows)

    def views(self, ws: "Settings", prepared: Path, predicted: Path | None) -> "Sequence[View]":
        from med_assets.programs.lumbar_mr.views import views

        return views(prepared, predicted)

    def write_prediction(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.lumbar_mr.export import write_prediction

        return write_prediction(raw, prepared, predicted, out, model)

    def write_measurements(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.lumbar_mr.export import write_measurements

        return write_measurements(raw, prepared, predicted, out, model)

    def write_phantoms(self, folder: Path, n: int, seed: int) -> None:
        from med_assets.programs.lumbar_mr.phantom import write_case

        if n < 1:
            raise ConfigurationError(f"expected at least one phantom, got {n}")
        for number in range(seed, seed + n):
            anatomy = PHANTOM_ANATOMIES[number % len(PHANTOM_ANATOMIES)]
            write_case(
                folder / f"phantom-{number:04d}", number, anatomy=anatomy, shape=PHANTOM_SHAPE, spacing_mm=PHANTOM_MM
            )
