"""Segmentation of lung tumours in chest CT by a foundation model: the program's side of the contract, and its facts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.dicom.label_rows import LabelRow
from med_assets.dicom.tolerances import TiltPolicy
from med_assets.errors import ConfigurationError
from med_assets.intake.grouping import around_series, one_label
from med_assets.metrics.ranges import POSITIVE, SHARE
from med_assets.program import (
    CasePredictor,
    Fact,
    Metric,
    Program,
    RawCase,
    Refusal,
    ReportTable,
)
from med_assets.programs.ct import CT_FACTS, tilt_policy
from med_assets.programs.lung_ct.reasons import REASONS
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import digest, read_yaml
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.catalog import Case
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.structure_names import Vocabulary
    from med_assets.evaluation.points import Points, Uncorrected
    from med_assets.experiments.bundles import BundleConfiguration, ReadBundle
    from med_assets.experiments.configuration import Experiment
    from med_assets.metrics.score import Score
    from med_assets.preparation.expectations import Expectation
    from med_assets.records import CaseScore, CaseVersion, PreparedCase
    from med_assets.review.viewing.contract import View
    from med_assets.settings import Settings, Workspace
    from med_assets.training.task import ClosedForm, Task, TrainingCase

LABEL_KINDS = ("SEG", "RTSTRUCT")
PREPARATION = "_preparation.yaml"

PHANTOM_SHAPE, PHANTOM_MM = (48, 64, 64), (5.0, 5.0, 5.0)
"""Grid of synthetic cases (z, y, x): coarse, so that a small network learns them on a CPU within a minute."""


class LungCt(Program):
    """A chest CT series and one segmentation of it are one case, known by its patient and its CT series."""

    name = "lung_ct"
    title = "Lung tumour segmentation"
    description = "Segments lung tumours, or another target, in chest CT by fine-tuning the foundation model VISTA3D."
    owners = ("team:thorax",)
    modalities = ("CT", *LABEL_KINDS)
    inputs = ("case.json", "ct.npy", "image.npy")
    primary_metric = Metric(
        "dice", "target", "1", False, "formal Dice of the target, on the scanner's own grid", range=SHARE
    )
    # Dice hardly falls when a small lesion is missed, or a small false one is added, so both are guarded. HD95 is not: it is undefined where nothing was
    # predicted, and a guard would pass over the worst cases.
    guarded_metrics = (
        Metric("lesion_sensitivity", "target", "1", False, "share of lesions that the prediction finds", range=SHARE),
        Metric(
            "false_positives_per_scan",
            "target",
            "1",
            True,
            "predicted components that touch no lesion that is found",
            range=POSITIVE,
        ),
    )
    training_metric = Metric(
        "val_dice", "target", "1", False, "Dice on the grid of training, by whole volumes", range=SHARE
    )
    baseline = "foundation"
    reasons = REASONS
    hub_task = "image-segmentation"
    intended_use = (
        "Research on segmentation of lung tumours in chest CT, and proposals for contours that a person corrects."
    )
    not_for = "Diagnosis, staging, or measuring response without a person's check. What is not outlined is not thereby benign."
    limitations = (
        "learns how the annotators of its training cases drew tumours, their size and margin included",
        "was trained on scans that have a tumour, so false positives in healthy patients are not known",
        "the foundation model has seen public data sets: scores on cases it has seen are too high",
        "lesions of a few voxels can vanish on the network's grid",
    )
    channel, label_name, file_ending = "CT", "target", ".nii.gz"
    plain_suffixes = (".nii.gz", ".nii", ".nrrd")
    facts = {  # noqa: RUF012 - read only
        "slices": Fact(int, "count", "slices of the CT series"),
        "spacing_z_mm": Fact(float, "mm", "distance of neighbouring slice positions"),
        "spacing_xy_mm": Fact(float, "mm", "pixel spacing"),
        **CT_FACTS,
        "orientation": Fact(str, "", "where stored columns, rows and slice normal run to, as in LPS"),
        "hu_min": Fact(float, "HU", "lowest CT number"),
        "hu_max": Fact(float, "HU", "highest CT number"),
        "label_kind": Fact(str, "", "SEG or RTSTRUCT"),
        "label_drift_mm": Fact(float, "mm", "how far a voxel of the label lies from the image's at most, harmonised"),
        "rois_left_out": Fact(
            str, "", "ROIs and contours that can't be used, by ROI number, with the reason", of_one_case=True
        ),
        "labels": Fact(int, "count", "segments or ROIs"),
        "labels_without_class": Fact(int, "count", "of these, with a name that has no class; they are left out"),
        "classes": Fact(int, "count", "classes that have voxels"),
        "overlap_voxels": Fact(int, "count", "voxels labelled with two classes; the target wins, then the first"),
        "target_present": Fact(bool, "", "whether the target has voxels"),
        "target_ml": Fact(float, "ml", "volume of the target"),
        "target_components": Fact(int, "count", "parts of the target that do not touch, corners included"),
        "target_hu_median": Fact(float, "HU", "median CT number in the target"),
        "target_contrast_hu": Fact(float, "HU", "difference of the means in the target and in one voxel around it"),
        "target_better_at": Fact(
            str, "", "where the contrast of the label is clearly higher: a slice beside, or mirrored; else as drawn"
        ),
        "target_network_voxels": Fact(int, "count", "voxels of the target on the network's grid"),
        "exposure": Fact(str, "", "what the foundation model has seen of the case: unseen, selected or trained"),
    }

    audit_sections = {  # noqa: RUF012 - read only
        "label_coverage": (
            "target_present", "classes", "labels_without_class", "target_ml", "target_components", "target_network_voxels",
            "overlap_voxels",
        ),
        "spacing": ("spacing_xy_mm", "spacing_z_mm"),
        "orientation": ("orientation", "label_drift_mm"),
        "intensity": ("hu_min", "hu_max", "target_hu_median"),
    }  # fmt: skip

    def group(self, instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
        return around_series(instances, "CT", LABEL_KINDS, one_label(LABEL_KINDS), "CT with a SEG or RTSTRUCT")

    @versioned("3")
    def verify(self, case: RawCase) -> bool:
        from med_assets.dicom.discover import load
        from med_assets.dicom.enhanced import is_multi_frame
        from med_assets.dicom.geometry import check_ct_series
        from med_assets.dicom.references import verify_label
        from med_assets.dicom.rtstruct import read_rois
        from med_assets.dicom.seg import read_segments

        slices = [one for one in case.instances if one.modality == "CT"]
        labels = [one for one in case.instances if one.modality != "CT"]
        # Pixels are read once before anything is stored, so that broken files are refused at intake; the CT comes first,
        # since a lost slice also breaks references, and that it is lost is the better answer. Whether a tilted one is used, preparation says.
        images = [load(one) for one in slices]
        numbered = load(labels[0]) if labels and any(is_multi_frame(one) for one in images) else None
        referenced = [uid for one in labels for uid in one.referenced_sops]
        check_ct_series(images, referenced, TiltPolicy(resample=True), numbered)
        for label in labels:
            verify_label(label, slices)
            (read_segments if label.modality == "SEG" else read_rois)(load(label))
        return bool(labels)

    def target(self, ws: "Settings") -> int:
        """Class that this workspace is after (MED_ASSETS_LUNG_CT_TARGET, by name). Raises ConfigurationError."""
        from med_assets.programs.lung_ct.labels import resolve

        return resolve(ws.option(self.name, "target", "lung tumor"))

    def spacing_mm(self, ws: "Settings") -> tuple[float, float, float]:
        """Voxel spacing (x, y, z) that the network sees in the workspace's profile. Raises ConfigurationError."""
        where = f"conf/{self.name}/{PREPARATION}"
        spacings = read_yaml(conf_folder(self.name) / PREPARATION)["spacing_mm"]
        if ws.profile not in spacings:
            raise ConfigurationError(f"{where}: expected one of the profiles {sorted(spacings)}, got {ws.profile!r}")
        try:
            x, y, z = (float(step) for step in spacings[ws.profile])
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{where}: spacing_mm.{ws.profile}: expected three numbers: {error}") from error
        if min(x, y, z) <= 0:
            raise ConfigurationError(f"{where}: spacing_mm.{ws.profile}: expected spacings above 0 mm, got {(x, y, z)}")
        return x, y, z

    def write_plain_image(self, image: Path, folder: Path, patient_id: str) -> None:
        from med_assets.landing.importing.volumes import write_image

        write_image(folder, image, patient_id)

    def roi_vocabulary(self, ws: "Settings") -> "Vocabulary":
        from med_assets.programs.lung_ct.labels import vocabulary

        return vocabulary()

    def label_meaning(self, name: str) -> str:
        from med_assets.programs.lung_ct.labels import class_of, meaning

        return meaning(class_of(name))

    def label_rows(self, prepared: Path) -> list[LabelRow]:
        from med_assets.programs.lung_ct.labels import meaning
        from med_assets.programs.lung_ct.prepared import PreparedCase

        return [
            LabelRow(one.value, one.name, one.voxels, one.ml, meaning(one.class_id))
            for one in PreparedCase.open(prepared).labels
        ]

    def training_warnings(self, experiment: "Experiment", prepared: Sequence[Path]) -> list[str]:
        from med_assets.programs.lung_ct.classes import check_mapping
        from med_assets.programs.lung_ct.experiment import LungExperiment
        from med_assets.programs.lung_ct.prepared import PreparedCase

        assert isinstance(experiment, LungExperiment)
        if experiment.labels.mode != "mapping":
            return []
        return check_mapping([PreparedCase.open(folder) for folder in prepared], experiment.labels)

    def settings(self, ws: "Settings") -> dict[str, Any]:
        from med_assets.programs.lung_ct import exposure, labels

        return {
            "target": labels.name_of(self.target(ws)),
            "spacing_mm": list(self.spacing_mm(ws)),
            "resample_tilt": tilt_policy(ws, self.name).resample,
            "labels": digest(labels.table().model_dump(mode="json")),
            "exposure": digest(exposure.TRAINED, exposure.SELECTED, exposure.PATIENT_PREFIX),
        }

    @versioned("4")
    def prepare(self, ws: "Workspace", case_id: str, raw: Path, out: Path) -> dict[str, Any]:
        from med_assets.programs.lung_ct.prepare import prepare_case

        return prepare_case(
            case_id,
            raw,
            out,
            key=ws.key,
            spacing_mm=self.spacing_mm(ws),
            target=self.target(ws),
            settings=self.settings(ws),
            tilt=tilt_policy(ws, self.name),
        )

    def expectations(self, ws: "Settings") -> Sequence["Expectation"]:
        from med_assets.programs.lung_ct.expectations import expectations
        from med_assets.programs.lung_ct.labels import name_of

        return expectations(self.target(ws), name_of(self.target(ws)))

    def data_tables(
        self, cases: Sequence["Case"], refused: "Sequence[CaseVersion | PreparedCase]"
    ) -> list[ReportTable]:
        from med_assets.programs.lung_ct.audit import tables

        return tables(cases, refused, {name: fact.unit for name, fact in self.facts.items()})

    def held_out_warnings(self, cases: Sequence["Case"]) -> list[str]:
        from med_assets.programs.lung_ct.audit import warnings

        return warnings(cases)

    def fixed_splits(self, ws: "Workspace") -> Mapping[str, tuple[str, int]]:
        from med_assets.programs.lung_ct.exposure import task06_splits

        return task06_splits(ws.key)

    def evaluation_settings(self, ws: "Settings") -> dict[str, Any]:
        from med_assets.programs.lung_ct.evaluation_settings import EvaluationSettings

        return EvaluationSettings.for_profile(ws.profile).model_dump(mode="json")

    @versioned("2")
    def task(self, experiment: "Experiment", cases: Sequence["TrainingCase"], **given: Any) -> "Task | ClosedForm":
        from med_assets.programs.lung_ct.lit import task

        return task(experiment, cases, **given)

    @versioned("1")
    def predictor(self, checkpoint: Path, cache: Path) -> CasePredictor:
        from med_assets.programs.lung_ct.scorer import TargetPredictor

        return TargetPredictor(checkpoint)

    @versioned("3")
    def score(self, ws: "Settings", prepared: Path, predicted: Path) -> list["Score"]:
        from med_assets.programs.lung_ct.evaluation_settings import EvaluationSettings
        from med_assets.programs.lung_ct.scorer import score

        return score(prepared, predicted, EvaluationSettings.for_profile(ws.profile))

    def pooled(self, scores: Sequence["CaseScore"]) -> list["Score"]:
        from med_assets.programs.lung_ct.lesion_sizes import pooled

        return pooled(scores)

    confidence_definition = "mean probability of the voxels inside the predicted target; where none is predicted 1 - the highest probability of all"

    @versioned("1")
    def confidence(self, prepared: Path, predicted: Path) -> float | None:
        from med_assets.programs.lung_ct.scorer import confidence

        return confidence(predicted)

    def prediction_facts(self, ws: "Settings", prepared: Path, predicted: Path) -> Mapping[str, float | str | None]:
        from med_assets.programs.lung_ct.scorer import facts

        return facts(predicted)

    def report_images(self, ws: "Settings", prepared: Path, predicted: Path, out: Path) -> list[Path]:
        from med_assets.programs.lung_ct.scorer import plot

        return plot(prepared, predicted, out)

    def views(self, ws: "Settings", prepared: Path, predicted: Path | None) -> "Sequence[View]":
        from med_assets.programs.lung_ct.views import views

        return views(prepared, predicted)

    def report_tables(self, rows: "pd.DataFrame") -> list[ReportTable]:
        from med_assets.programs.lung_ct.tables import tables

        return tables(rows)

    def write_prediction(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.lung_ct.export import write_prediction

        return write_prediction(raw, prepared, predicted, out, model)

    def correct(self, ws: "Settings", prediction: "Uncorrected", points: "Points", out: Path) -> list[Path]:
        from med_assets.programs.lung_ct.correction import write_corrected
        from med_assets.programs.lung_ct.labels import resolve

        class_id = self.target(ws) if points.class_name is None else resolve(points.class_name)
        return write_corrected(ws, prediction, points, class_id, out)

    def write_bundle(self, ws: "Settings", model: str, checkpoint: Path, out: Path) -> list[Path]:
        from med_assets.programs.lung_ct.bundle_out import About, write_bundle
        from med_assets.programs.lung_ct.labels import name_of

        target = self.target(ws)
        about = About(self.title, self.intended_use, self.not_for, model, name_of(target))
        return write_bundle(checkpoint, out, self.spacing_mm(ws), target, about)

    def read_bundle(self, configuration: "BundleConfiguration", metadata: Mapping[str, Any]) -> "ReadBundle":
        from med_assets.programs.lung_ct.bundle_in import read_bundle

        return read_bundle(
            configuration, metadata, read_yaml(conf_folder(self.name) / PREPARATION)["spacing_mm"]["full"]
        )

    def write_image_and_label(self, prepared: Path, image: Path, label: Path | None) -> None:
        from med_assets.programs.lung_ct.exchange import write_image_and_label

        write_image_and_label(prepared, image, label)

    def keep_mask(self, prepared: Path, mask: Path, out: Path) -> None:
        from med_assets.programs.lung_ct.exchange import keep_mask

        keep_mask(prepared, mask, out)

    def write_measurements(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.lung_ct.export import write_measurements

        return write_measurements(raw, prepared, predicted, out, model)

    def write_phantoms(self, folder: Path, n: int, seed: int) -> None:
        from med_assets.programs.lung_ct.phantom import write_case

        if n < 1:
            raise ConfigurationError(f"expected at least one phantom, got {n}")
        for number in range(n):
            write_case(
                folder / f"phantom-{seed + number:04d}", seed + number, shape=PHANTOM_SHAPE, spacing_mm=PHANTOM_MM
            )
