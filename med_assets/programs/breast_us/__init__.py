"""Segmentation of breast lesions in ultrasound, small models taught by large ones: the program's side of the contract."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError
from med_assets.metrics.ranges import SHARE
from med_assets.program import CasePredictor, Fact, Finding, Metric, Predicted, Program, RawCase, Refusal, ReportTable
from med_assets.programs.breast_us.reasons import REASONS
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.catalog import Case
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.structure_names import Vocabulary
    from med_assets.evaluation.prompts import Prompts
    from med_assets.experiments.configuration import Experiment
    from med_assets.metrics.score import Score
    from med_assets.preparation.expectations import Expectation
    from med_assets.programs.breast_us.feature_planes import Method
    from med_assets.records import CaseScore, CaseVersion, PreparedCase
    from med_assets.review.viewing.contract import View
    from med_assets.settings import Settings
    from med_assets.training.task import ClosedForm, Task, TrainingCase


class BreastUs(Program):
    """An ultrasound image and its mask, which may be empty, are one case."""

    name = "breast_us"
    title = "Breast lesion segmentation"
    description = (
        "Segments lesions in breast ultrasound; a small network learns from a large one, and is as cheap as it can be."
    )
    owners = ("team:breast",)
    modalities = ("US", "SEG")
    inputs = ("case.json", "image.npy")
    primary_metric = Metric(
        "dice", "lesion", "1", False, "Dice of the lesion, over the images that have one", range=SHARE
    )
    # Dice says nothing of images without a lesion, and an alarm on each of them would not lower it.
    guarded_metrics = (
        Metric(
            "image_correct",
            "lesion",
            "1",
            False,
            "share of images called with or without a lesion rightly",
            range=SHARE,
        ),
    )
    training_metric = Metric(
        "val_dice", "lesion", "1", False, "Dice on the network's image, over those with a lesion", range=SHARE
    )
    baseline = "tinyusfm"
    class_fact = "label"
    reasons = REASONS
    hub_task = "image-segmentation"
    intended_use = (
        "Research on outlining lesions in breast ultrasound, and proposals for outlines that a person corrects."
    )
    not_for = (
        "Diagnosis, screening, or telling benign from malignant. An image without an outline is not thereby normal."
    )
    limitations = (
        "sees single images that a person chose and froze, not the examination",
        "public sets of breast ultrasound hold the same patient and the same picture several times; what ids do not tell, pictures may not either",
        "was trained on the machines of its data sets; another machine, depth or preset is another picture",
        "the teacher's mistakes are taught to the student",
    )
    channel, label_name, file_ending = "ultrasound", "lesion", ".png"
    plain_suffixes = (".png",)
    facts = {  # noqa: RUF012 - read only
        "rows": Fact(int, "count", "rows of what shows tissue"),
        "columns": Fact(int, "count", "columns of what shows tissue"),
        "pixel_mm": Fact(float, "mm", "width of a pixel, where the image is calibrated"),
        "label": Fact(
            str, "", "benign, malignant, normal, or lesion where the source says no more; organs where it names organs"
        ),
        "dataset": Fact(str, "", "data set that the image comes from"),
        "lesion_pixels": Fact(int, "count", "pixels of all masks of the image, united"),
        "lesion_share": Fact(float, "1", "share of the picture that they cover"),
        "lesion_mm2": Fact(float, "mm2", "area of the lesion, where the image is calibrated"),
        "lesion_components": Fact(int, "count", "parts of the mask that do not touch, corners included"),
        "lesion_at_edge": Fact(bool, "", "whether the mask reaches the border of the picture"),
        "mean_grey": Fact(float, "1", "mean grey value, 0 to 255"),
        "dhash": Fact(
            str, "", "difference hash of the picture, 64 bits, by which near duplicates are found", of_one_case=True
        ),
    }

    def group(self, instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
        from med_assets.programs.breast_us.grouping import group

        return group(instances)

    @versioned("3")
    def verify(self, case: RawCase) -> bool:
        from med_assets.dicom.discover import load
        from med_assets.dicom.segmentation_2d import read_segments_2d
        from med_assets.dicom.ultrasound import read_us_image

        # Pixels are read once before anything is stored, so that broken files are refused at intake.
        for one in case.instances:
            ds = load(one)
            if one.modality == "US":
                read_us_image(ds)
            else:
                read_segments_2d(ds)
        return any(one.modality != "US" for one in case.instances)

    def write_plain_image(self, image: Path, folder: Path, patient_id: str) -> None:
        from med_assets.programs.breast_us.importer import write_image

        write_image(folder, image, patient_id)

    def roi_vocabulary(self, ws: "Settings") -> "Vocabulary":
        from med_assets.programs.breast_us.vocabulary import vocabulary

        return vocabulary()

    def settings(self, ws: "Settings") -> dict[str, Any]:
        from med_assets.programs.breast_us.datasets import organ_names

        names = sorted(organ_names())
        return {"organs": names} if names else {}

    @versioned("4")
    def prepare(self, ws: "Settings", case_id: str, raw: Path, out: Path) -> dict[str, Any]:
        from med_assets.programs.breast_us.prepare import prepare_case

        return prepare_case(case_id, raw, out, self.settings(ws))

    def expectations(self, ws: "Settings") -> Sequence["Expectation"]:
        from med_assets.programs.breast_us.expectations import expectations

        return expectations()

    def data_tables(
        self, cases: Sequence["Case"], refused: "Sequence[CaseVersion | PreparedCase]"
    ) -> list[ReportTable]:
        from med_assets.programs.breast_us.audit import tables

        return tables(cases, refused)

    def dataset_findings(self, ws: "Settings", cases: Sequence["Case"]) -> Sequence[Finding]:
        from med_assets.programs.breast_us.audit import duplicates

        return duplicates(cases, ws.store.fetch)

    def held_out_warnings(self, cases: Sequence["Case"]) -> list[str]:
        from med_assets.programs.breast_us.audit import warnings

        return warnings(cases)

    def evaluation_settings(self, ws: "Settings") -> dict[str, Any]:
        from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings

        return EvaluationSettings.for_profile(ws.profile).model_dump(mode="json")

    def pooled(self, scores: Sequence["CaseScore"]) -> list["Score"]:
        from med_assets.programs.breast_us.score import pooled

        return pooled(scores)

    @versioned("2")
    def task(self, experiment: "Experiment", cases: Sequence["TrainingCase"], **given: Any) -> "Task | ClosedForm":
        from med_assets.programs.breast_us.lit import task

        return task(experiment, cases, **given)

    @versioned("1")
    def predictor(self, checkpoint: Path, cache: Path) -> CasePredictor:
        from med_assets.programs.breast_us.scorer import LesionPredictor

        return LesionPredictor(checkpoint)

    @versioned("2")
    def score(self, ws: "Settings", prepared: Path, predicted: Path) -> list["Score"]:
        from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
        from med_assets.programs.breast_us.scorer import score

        return score(prepared, predicted, EvaluationSettings.for_profile(ws.profile))

    def checkpoint_facts(self, ws: "Settings", checkpoint: Path) -> Mapping[str, float]:
        from med_assets.programs.breast_us.cost import costs

        return costs(checkpoint)

    def export_model(self, checkpoint: Path, out: Path) -> list[Path]:
        from med_assets.programs.breast_us.export import export_network

        return export_network(checkpoint, out)

    confidence_definition = "mean probability of the pixels inside the predicted lesion; where none is predicted 1 - the highest probability of all"

    @versioned("1")
    def confidence(self, prepared: Path, predicted: Path) -> float | None:
        from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
        from med_assets.programs.breast_us.scorer import confidence

        return confidence(predicted, EvaluationSettings().threshold)

    def export_pipeline(
        self, ws: "Settings", checkpoint: Path, out: Path, cases: Sequence["Case"], quantise: bool
    ) -> tuple[list[Path], list[dict[str, str]]]:
        from med_assets.programs.breast_us.pipeline import export_pipeline

        prepared = [(case.patient_id, ws.store.fetch(case.artifact)) for case in cases]
        return export_pipeline(checkpoint, out, prepared, quantise)

    def outline(
        self, ws: "Settings", checkpoint: Path, raw: Path, prepared: Path, prompts: "Prompts", out: Path, model: str
    ) -> list[Path]:
        from med_assets.programs.breast_us.prompted import outline

        return outline(checkpoint, raw, prepared, prompts, out, model)

    def predict_loop(self, ws: "Settings", checkpoint: Path, loop: Path, out: Path, masks: bool) -> list[Path]:
        from med_assets.programs.breast_us.loop import predict_loop

        return predict_loop(checkpoint, loop, out, self._threshold(ws), masks)

    def plot_features(
        self,
        ws: "Settings",
        checkpoint: Path,
        cases: Sequence["Case"],
        layers: Sequence[str],
        methods: "Sequence[Method]",
        out: Path,
    ) -> list[Path]:
        from med_assets.programs.breast_us.feature_planes import Image, plot_features

        images = [
            Image(
                case.case_id,
                str(case.facts.get("label") or "no label"),
                str(case.facts.get("dataset") or "unknown"),
                ws.store.fetch(case.artifact),
            )
            for case in cases
        ]
        return plot_features(checkpoint, images, layers, methods, out)

    def prediction_facts(self, ws: "Settings", prepared: Path, predicted: Path) -> Mapping[str, float | str | None]:
        from med_assets.programs.breast_us.scorer import facts

        return facts(prepared, predicted, self._threshold(ws))

    def report_images(self, ws: "Settings", prepared: Path, predicted: Path, out: Path) -> list[Path]:
        from med_assets.programs.breast_us.scorer import plot

        return plot(prepared, predicted, out, self._threshold(ws))

    def model_images(self, ws: "Settings", cases: Sequence[Predicted], out: Path) -> list[tuple[Path, str]]:
        from med_assets.programs.breast_us.scorer import model_images

        return model_images(cases, out, self.primary_metric.name, self._threshold(ws))

    def report_tables(self, rows: "pd.DataFrame") -> list[ReportTable]:
        from med_assets.programs.breast_us.tables import tables

        return tables(rows)

    def views(self, ws: "Settings", prepared: Path, predicted: Path | None) -> "Sequence[View]":
        from med_assets.programs.breast_us.views import views

        return views(prepared, predicted, self._threshold(ws))

    def write_prediction(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
        from med_assets.programs.breast_us.export import write_prediction

        return write_prediction(raw, prepared, predicted, out, model, EvaluationSettings().threshold)

    def write_image_and_label(self, prepared: Path, image: Path, label: Path | None) -> None:
        from med_assets.programs.breast_us.exchange import write_image_and_label

        write_image_and_label(prepared, image, label)

    def keep_mask(self, prepared: Path, mask: Path, out: Path) -> None:
        from med_assets.programs.breast_us.exchange import keep_mask

        keep_mask(prepared, mask, out)

    def write_measurements(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.breast_us.export import write_measurements

        return write_measurements(raw, prepared, out, model)

    def write_phantoms(self, folder: Path, n: int, seed: int) -> None:
        from med_assets.programs.breast_us.phantom import write_case

        if n < 1:
            raise ConfigurationError(f"expected at least one phantom, got {n}")
        for number in range(seed, seed + n):
            write_case(folder / f"phantom-{number:04d}", number)

    def _threshold(self, ws: "Settings") -> float:
        return float(self.evaluation_settings(ws)["threshold"])
