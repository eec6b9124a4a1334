"""Radiotherapy dose prediction from CT and contours: the program's side of the contract, and its facts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.dicom.tolerances import TiltPolicy
from med_assets.errors import ConfigurationError
from med_assets.intake.grouping import Others, Picked, around_series, referring
from med_assets.metrics.ranges import POSITIVE
from med_assets.metrics.score import Score
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
from med_assets.programs.rt_dose.site import Site, load_site, site_names
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    import pandas as pd
    from pydicom.dataset import Dataset

    from med_assets.capabilities import ModelOfPage
    from med_assets.catalog import Case
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.structure_names import Vocabulary
    from med_assets.evaluation.analysis import Analysis
    from med_assets.experiments.configuration import Experiment
    from med_assets.metrics.score import Score
    from med_assets.preparation.expectations import Expectation
    from med_assets.records import CaseScore, CaseVersion, PreparedCase
    from med_assets.review.viewing.contract import View
    from med_assets.settings import Settings
    from med_assets.training.task import ClosedForm, Task, TrainingCase

PARTS = {"RTSTRUCT": "no_rtstruct", "RTPLAN": "no_rtplan", "RTDOSE": "no_rtdose"}
PHANTOM_SHAPE, PHANTOM_MM = (32, 48, 48), (6.0, 6.5, 6.5)
"""Grid of synthetic cases (z, y, x): coarse, so that a small network learns them on a CPU within a minute."""

SCORED_BY = frozenset({"limits", "criteria", "gamma"})
"""Fields of a site that scores depend on, and preparing does not."""

AUDITED_BY = frozenset({"target_mean_ratio", "dose_max_ratio"})
"""Fields of a site that the audit depends on alone."""

SEVERAL = {"RTSTRUCT": "several_structure_sets", "RTPLAN": "several_plans"}


def _parts(slices: list["Instance"], others: Others, alone: bool) -> Picked:
    """Structure set, plan and dose of one CT series, each by its reference to the one before.

    A series without a dose is to be predicted, with a plan or without one.
    """
    targets, frame = {one.sop_instance_uid for one in slices}, slices[0].frame_of_reference_uid
    parts: list[Instance] = []
    code = text = ""
    for modality in PARTS:
        linked = referring(others.get(modality, ()), targets, frame, alone)
        if (modality == "RTDOSE" and len(linked) == 1) or (modality != "RTDOSE" and linked):
            targets = {one.sop_instance_uid for one in linked}
        parts += linked
        if not linked and not code and (modality == "RTSTRUCT" or others.get("RTDOSE")):
            code = PARTS[modality]
            text = (
                f"expected one {modality} for the CT series of {len(slices)} slices, got none; export it with the plan"
            )
        elif len(linked) > 1 and not code and modality != "RTDOSE":  # of several doses it is seen as they are read
            code = SEVERAL[modality]
            text = f"expected one {modality} for the CT series, got {len(linked)}; send the one that was treated"
    return parts, code, text


class RtDose(Program):
    """CT, RTSTRUCT, RTPLAN and RTDOSE of one plan are one case, known by its patient and its CT series; to predict without RTDOSE."""

    name = "rt_dose"
    title = "Radiotherapy dose prediction"
    description = "Predicts the dose of a radiotherapy plan from the planning CT and its contours."
    owners = ("team:radiotherapy",)
    modalities = ("CT", "RTSTRUCT", "RTPLAN", "RTDOSE")
    inputs = ("case.json", "ct.npy", "masks.npy", "sdf.npy", "body.npy", "beams.npy")
    primary_metric = Metric(
        "openkbp_dose_score",
        "body",
        "Gy",
        True,
        "mean absolute dose error over the region that may get dose",
        range=POSITIVE,
    )
    guarded_metrics = (
        Metric(
            "openkbp_dvh_score", "all", "Gy", True, "mean absolute error of the OpenKBP DVH criteria", range=POSITIVE
        ),
    )
    training_metric = Metric(
        "val_mae_gy", "body", "Gy", True, "mean absolute error in the body while training", range=POSITIVE
    )
    baseline = "mean_dose"
    required_missing = "structures_expected_missing"
    hub_task = "image-to-image"
    intended_use = "Research on dose prediction, and a second opinion in plan quality assurance: what dose comparable plans reached."
    not_for = "Treating patients. A predicted dose is no plan, and no machine may be able to deliver it."
    limitations = (
        "learns the planning style of the centre whose plans it saw, trade-offs and errors included",
        "knows neither beams nor machine, so the prediction need not be deliverable",
        "was scored on the same kind of plans as it was trained on",
        "volumes of structures of a few voxels are uncertain by as much as a voxel",
    )
    facts = {  # noqa: RUF012 - read only
        "slices": Fact(int, "count", "slices of the CT series"),
        "spacing_z_mm": Fact(float, "mm", "distance of neighbouring slice positions"),
        "spacing_xy_mm": Fact(float, "mm", "pixel spacing"),
        **CT_FACTS,
        "hu_min": Fact(float, "HU", "lowest CT number"),
        "hu_max": Fact(float, "HU", "highest CT number"),
        "body_ml": Fact(float, "ml", "volume of the body, or of the region that may get dose where one was drawn"),
        "target_ml": Fact(float, "ml", "volume of the target with the highest dose"),
        "structures_present": Fact(int, "count", "structures of the site that have voxels"),
        "rois_unmatched": Fact(int, "count", "ROIs that match no structure of the site"),
        "structures_missing": Fact(str, "", "structures of the site without voxels"),
        "structures_expected_missing": Fact(str, "", "of these, those that the site expects of every case"),
        "rois_passed_over": Fact(
            str, "", "ROIs that fit a structure beside the one that was preferred, by number", of_one_case=True
        ),
        "structures_excluded": Fact(
            str, "", "structures that are drawn and can't be used, with the reason", of_one_case=True
        ),
        "contours_left_out": Fact(
            int, "count", "contour items that enclose nothing, such as points, lines and empty ones"
        ),
        "contour_overlaps": Fact(
            int, "count", "contours that overlap others of their ROI without nesting; they are united"
        ),
        "contour_outside_share": Fact(float, "1", "largest share of an ROI's area that lies beyond the CT and is cut"),
        "contour_volume_ratios": Fact(
            str, "", "volume of voxels / that of contours, of each structure", of_one_case=True
        ),
        "contour_volumes_off": Fact(
            str, "", "structures whose two volumes differ by more than voxels and slices explain", of_one_case=True
        ),
        "rois_unusable": Fact(
            str, "", "ROIs whose contours can't be assigned, by number, with the reason", of_one_case=True
        ),
        "dose_coverage": Fact(
            float, "1", "share of the body that the dose grid covers; elsewhere no dose was calculated"
        ),
        "prescription_gy": Fact(float, "Gy", "prescription used for normalising"),
        "prescription_in_plan": Fact(bool, "", "whether the plan states it (else the site's default)"),
        "fractions": Fact(int, "count", "fractions planned"),
        "constraints_stated": Fact(
            int, "count", "planning constraints that the plan states itself, which come before those of the site"
        ),
        "beams": Fact(int, "count", "treatment beams of the plan, arcs among them"),
        "arcs": Fact(int, "count", "beams whose gantry turns"),
        "gantry_deg": Fact(
            str, "deg", "gantry angle of each beam, of an arc start, stop and direction", of_one_case=True
        ),
        "collimator_deg": Fact(str, "deg", "collimator angle of each beam where it starts", of_one_case=True),
        "couch_deg": Fact(str, "deg", "couch angle of each beam where it starts", of_one_case=True),
        "energy": Fact(str, "", "nominal energies of the beams"),
        "control_points": Fact(int, "count", "control points of all beams"),
        "meterset_mu": Fact(float, "MU", "monitor units of a fraction, all beams"),
        "mu_per_gy": Fact(float, "MU/Gy", "monitor units of a fraction / its prescribed dose"),
        "mlc_leaf_pairs": Fact(int, "count", "leaf pairs of the collimator"),
        "mean_aperture_cm2": Fact(
            float, "cm2", "area that leaves and jaws leave open, in the isocentre plane, mean over the monitor units"
        ),
        "dose_max_gy": Fact(float, "Gy", "highest dose"),
        "dose_max_ratio": Fact(float, "1", "highest dose / prescription"),
        "target_mean_ratio": Fact(float, "1", "mean dose of the main target / prescription"),
        "target_d95_gy": Fact(float, "Gy", "dose that 95% of the main target gets at least"),
        "target_d95_ratio": Fact(float, "1", "that dose / prescription"),
        "dose_outside_ratio": Fact(float, "1", "mean dose in the body outside targets / mean dose of the main target"),
        "sdf_sign_agreement": Fact(float, "1", "least share of voxels whose signed distance agrees with the mask"),
    }

    def site(self, ws: "Settings") -> Site:
        """The treatment site that this workspace is set to (MED_ASSETS_RT_DOSE_SITE)."""
        return load_site(ws.option(self.name, "site", "prostate_sib"))

    def configuration_errors(self) -> list[str]:
        found = []
        for name in site_names():
            try:
                load_site(name)
            except ConfigurationError as error:
                found.append(str(error))
        return found

    def roi_proposals(self, ws: "Settings", names: Sequence[str]) -> list[tuple[str, str]]:
        return self.site(ws).proposals(names)

    def experiment_overrides(self, ws: "Settings") -> tuple[str, ...]:
        """Overrides that every experiment of this workspace gets: the site."""
        return (f"site={ws.option(self.name, 'site', 'prostate_sib')}",)

    def roi_vocabulary(self, ws: "Settings") -> "Vocabulary":
        return self.site(ws).vocabulary()

    def group(self, instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
        return around_series(instances, "CT", PARTS, _parts, "CT, RTSTRUCT, RTPLAN and RTDOSE")

    @versioned("4")
    def verify(self, case: RawCase) -> bool:
        from med_assets.dicom.discover import describe, load
        from med_assets.dicom.geometry import check_ct_series
        from med_assets.dicom.plan_dose import read_plan_dose
        from med_assets.dicom.references import verify_chain

        first: dict[str, Dataset] = {}
        doses: list[Dataset] = []
        for instance in case.instances:
            if instance.modality == "RTDOSE":
                doses.append(load(instance))
            elif instance.modality != "CT":
                first[instance.modality] = load(instance)
        slices = [one for one in case.instances if one.modality == "CT"]
        # Pixels are read once before anything is stored, so that broken files are refused at intake; the CT comes first,
        # since a lost slice also breaks the chain, and that it is lost is the better answer. Whether a tilted one is used, preparation says.
        images, structures = [load(one) for one in slices], first["RTSTRUCT"]
        check_ct_series(images, describe(structures).referenced_sops, TiltPolicy(resample=True), structures)
        for dose in doses:
            verify_chain(first.get("RTPLAN"), first["RTSTRUCT"], dose, slices)
        if not doses:
            verify_chain(first.get("RTPLAN"), first["RTSTRUCT"], None, slices)
        if doses:
            read_plan_dose(doses, first.get("RTPLAN"))
        return bool(doses)

    def settings(self, ws: "Settings") -> dict[str, Any]:
        site = self.site(ws).model_dump(mode="json", exclude={"title", *SCORED_BY, *AUDITED_BY})
        return site | {"resample_tilt": tilt_policy(ws, self.name).resample}

    @versioned("7")
    def prepare(self, ws: "Settings", case_id: str, raw: Path, out: Path) -> dict[str, Any]:
        from med_assets.programs.rt_dose.prepare import prepare_case

        return prepare_case(case_id, raw, out, self.site(ws), tilt_policy(ws, self.name))

    def expectations(self, ws: "Settings") -> Sequence["Expectation"]:
        from med_assets.programs.rt_dose.expectations import expectations

        return expectations(self.site(ws))

    def evaluation_settings(self, ws: "Settings") -> dict[str, Any]:
        from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings

        return {
            "scores": EvaluationSettings.for_profile(ws.profile, self.site(ws)).model_dump(mode="json"),
            **self.site(ws).model_dump(mode="json", include={*SCORED_BY} - {"gamma"}),
        }

    def pooled(self, scores: Sequence["CaseScore"]) -> list["Score"]:
        from med_assets.metrics.dose import openkbp_dvh_score
        from med_assets.programs.rt_dose.score import OPENKBP_TERM

        terms = [one.value for one in scores if one.metric.startswith(OPENKBP_TERM) and one.subject != "all"]
        convention = (
            "OpenKBP DVH score: mean of |predicted - planned| over all patients, structures and criteria pooled"
        )
        return [
            Score(
                "openkbp_dvh_score_pooled",
                "all",
                openkbp_dvh_score(terms),
                "Gy",
                convention,
                n=len([t for t in terms if t is not None]),
            )
        ]

    @versioned("3")
    def task(self, experiment: "Experiment", cases: Sequence["TrainingCase"], **given: Any) -> "Task | ClosedForm":
        from med_assets.programs.rt_dose.lit import task

        return task(experiment, cases, **given)

    @versioned("1")
    def predictor(self, checkpoint: Path, cache: Path) -> CasePredictor:
        from med_assets.programs.rt_dose.scorer import DosePredictor

        return DosePredictor(checkpoint)

    @versioned("3")
    def score(self, ws: "Settings", prepared: Path, predicted: Path) -> list["Score"]:
        from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
        from med_assets.programs.rt_dose.scorer import score

        return score(prepared, predicted, self.site(ws), EvaluationSettings.for_profile(ws.profile, self.site(ws)))

    confidence_definition = (
        "1 - relative distance of the mean predicted dose of the main target from the prescription, since every plan gives it that; "
        "undefined without the target"
    )

    @versioned("1")
    def confidence(self, prepared: Path, predicted: Path) -> float | None:
        from med_assets.programs.rt_dose.scorer import confidence

        return confidence(prepared, predicted)

    def prediction_facts(self, ws: "Settings", prepared: Path, predicted: Path) -> Mapping[str, float | str | None]:
        from med_assets.programs.rt_dose.scorer import facts

        return facts(prepared, predicted)

    def report_images(self, ws: "Settings", prepared: Path, predicted: Path, out: Path) -> list[Path]:
        from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
        from med_assets.programs.rt_dose.scorer import plot

        return plot(prepared, predicted, out, EvaluationSettings.for_profile(ws.profile, self.site(ws)))

    def edit_constraints(self, ws: "Settings", prepared: Path, out: Path, edits: Sequence[str]) -> None:
        from med_assets.programs.rt_dose.edited import edit_constraints

        edit_constraints(prepared, out, self.site(ws), edits)

    def plan_page(
        self,
        ws: "Settings",
        prepared: Path,
        predicted: Path,
        scores: Sequence["Score"],
        model: "ModelOfPage",
        page: Path,
    ) -> Mapping[str, float | str | None]:
        from med_assets.programs.rt_dose.plan_page import write_page

        return write_page(prepared, predicted, scores, self.site(ws), model, page)

    def views(self, ws: "Settings", prepared: Path, predicted: Path | None) -> "Sequence[View]":
        from med_assets.programs.rt_dose.views import views

        return views(prepared, predicted)

    def write_prediction(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.rt_dose.export import write_prediction

        return write_prediction(raw, prepared, predicted, out, model)

    def data_tables(
        self, cases: Sequence["Case"], refused: Sequence["CaseVersion | PreparedCase"]
    ) -> list[ReportTable]:
        from med_assets.programs.rt_dose.tables import beams

        return beams(cases)

    def report_tables(self, rows: "pd.DataFrame") -> list[ReportTable]:
        from med_assets.programs.rt_dose.tables import dvh_errors, falloff, gamma_rates, limits

        return [limits(rows), dvh_errors(rows), gamma_rates(rows), falloff(rows)]

    def analyses(self) -> "Sequence[Analysis]":
        from med_assets.programs.rt_dose.analyses import ANALYSES

        return ANALYSES

    def write_measurements(self, raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
        from med_assets.programs.rt_dose.export import write_measurements

        return write_measurements(raw, prepared, predicted, out, model)

    def write_phantoms(self, folder: Path, n: int, seed: int) -> None:
        from med_assets.programs.rt_dose.phantom import write_case

        if n < 1:
            raise ConfigurationError(f"expected at least one phantom, got {n}")
        for number in range(n):
            write_case(
                folder / f"phantom-{seed + number:04d}", seed + number, shape=PHANTOM_SHAPE, spacing_mm=PHANTOM_MM
            )
