"""How many steps and samples a diffusion model needs, and how much its samples differ: an analysis on the validation cases."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from med_assets.catalog import Case, Catalog
from med_assets.experiments import configuration as experiments
from med_assets.program import ReportTable
from med_assets.programs.rt_dose.analyses import diffusion_sampling
from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
from med_assets.programs.rt_dose.experiment import Ablation, DoseExperiment
from med_assets.programs.rt_dose.tables import with_interval
from med_assets.records import Checkpoint
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.versions import version_of

if TYPE_CHECKING:
    from med_assets.programs.rt_dose.predict import Predictor
    from med_assets.settings import Settings

PROGRAM = "rt_dose"


def ablation(ws: "Settings", out: Path) -> list[ReportTable]:
    """Compare the samplings of `diffusion.ablation` for each trained diffusion model; pictures are written under `out`.

    Each case is sampled once for each number of steps, with as many samples as the largest ensemble; what is in the store is
    reused. Without a diffusion model there are no tables.
    """
    from med_assets.launch.training import usable

    rows = [row for name in usable(ws, PROGRAM) for row in _of_experiment(ws, name)]
    if not rows:
        return []
    measured = pd.DataFrame(rows)
    picture = _plot(measured, out / "diffusion_ablation.png")
    return [_sampling(measured, picture), *_variability(measured)]


def _of_experiment(ws: "Settings", name: str) -> Iterator[dict[str, Any]]:
    from med_assets.launch.training import experiment

    catalog = Catalog(ws, PROGRAM)
    for checkpoint in (row.checkpoint for row in catalog.rows(Checkpoint, name)):
        folder = ws.store.fetch(checkpoint)
        trained = experiments.from_json(PROGRAM, (folder / "experiment.json").read_text(encoding="utf-8"))
        assert isinstance(trained, DoseExperiment)
        if trained.network.kind != "ddpm":
            continue
        # What is compared may have changed since the training, which does not depend on it.
        now = experiment(ws, PROGRAM, name)
        assert isinstance(now, DoseExperiment)
        learned = {
            case["case_id"] for case in read_json(folder / "provenance.json")["cases"] if case["split"] == "train"
        }
        cases = [case for case in catalog.cases("val") if case.case_id not in learned]
        for found in measure(ws, checkpoint, cases, now.diffusion.ablation):
            yield {"experiment": name, **found}


def measure(ws: "Settings", checkpoint: str, cases: Sequence[Case], wanted: Ablation) -> Iterator[dict[str, Any]]:
    """Yield a row per case, steps, and ensemble size (`error_gy`, in the body) or region (`sd_gy`), from the store if there.

    `sd_gy` is the mean over the voxels of a region of the standard deviation over the samples (n - 1), None for one sample or
    an empty region.
    """
    predictor: Predictor | None = None
    margin_mm = EvaluationSettings().ptv_margin_mm
    for case in cases:
        for steps in wanted.steps:
            settings = {"steps": steps, "ensembles": sorted(wanted.ensembles), "ptv_margin_mm": margin_mm}
            key = "ablation/" + digest(checkpoint, case.artifact, settings, version_of(diffusion_sampling))
            if not ws.store.has(key):
                from med_assets.programs.rt_dose.predict import load_predictor
                from med_assets.training.accelerator import inference_device

                ws.store.verify(checkpoint)
                predictor = predictor or load_predictor(ws.store.fetch(checkpoint), inference_device())
                with ws.store.create(key) as folder:
                    found = _measured(predictor, ws.store.fetch(case.artifact), steps, wanted.ensembles, margin_mm)
                    write_json(folder / "rows.json", found)
            same = {"case_id": case.case_id, "patient_id": case.patient_id, "steps": steps}
            for row in read_json(ws.store.fetch(key) / "rows.json"):
                yield same | row


def _measured(
    predictor: "Predictor", folder: Path, steps: int, ensembles: Sequence[int], margin_mm: float
) -> list[dict[str, Any]]:
    import numpy as np

    from med_assets.metrics.dose import mean_absolute_error
    from med_assets.programs.rt_dose.diffusion import samples
    from med_assets.programs.rt_dose.prepared import PreparedCase
    from med_assets.programs.rt_dose.score import gamma_regions

    case, experiment = PreparedCase.open(folder), predictor.experiment
    assert predictor.network is not None
    found = samples(predictor.network, case, experiment, steps, max(ensembles))
    gy = np.stack(found) * np.float32(case.prescription_gy)
    body, masks = np.asarray(case.body), {name: case.mask(name) for name in case.structures}
    rows: list[dict[str, Any]] = []
    for size in sorted(ensembles):
        error = mean_absolute_error(gy[:size].mean(axis=0), np.asarray(case.dose), body)
        rows.append({"samples": size, "error_gy": error})
    spread = gy.std(axis=0, ddof=1) if len(gy) > 1 else None
    for region, mask in gamma_regions(body, masks, case.spacing_mm, experiment.site, margin_mm).items():
        value = None if spread is None or not mask.any() else float(spread[mask].mean(dtype=np.float64))
        rows.append({"samples": len(gy), "region": region, "sd_gy": value})
    return rows


def _sampling(measured: pd.DataFrame, picture: Path) -> ReportTable:
    errors = measured[measured["error_gy"].notna()]
    table = [
        {
            "experiment": name,
            "steps": steps,
            "samples averaged": samples,
            "network passes per window": int(group["steps"].iloc[0]) * int(group["samples"].iloc[0]),
        }
        | {"dose score, Gy": with_interval(group.assign(value=group["error_gy"])), "cases": len(group)}
        for (name, steps, samples), group in errors.groupby(["experiment", "steps", "samples"], sort=True)
    ]
    text = (
        "Mean absolute dose error in the body of the mean of the samples, over the validation cases, in brackets its 95 % "
        "bootstrap interval over patients. A case starts from the same noise whatever the number of steps."
    )
    caption = "Dose score by steps of a sample, one line for each number of samples averaged."
    return ReportTable("Sampling of the diffusion model", text, pd.DataFrame(table), (picture,), (caption,))


def _variability(measured: pd.DataFrame) -> list[ReportTable]:
    if "sd_gy" not in measured or not measured["sd_gy"].notna().any():
        return []
    spreads = measured[measured["sd_gy"].notna()]
    table = [
        {"experiment": name, "steps": steps, "region": region, "samples": int(group["samples"].iloc[0])}
        | {"SD, Gy": with_interval(group.assign(value=group["sd_gy"])), "cases": len(group)}
        for (name, steps, region), group in spreads.groupby(["experiment", "steps", "region"], sort=False)
    ]
    text = (
        "Standard deviation over the samples of one case (n - 1), mean over the voxels of the region, then over the validation "
        "cases, in brackets its 95 % bootstrap interval over patients. Near 0 the samples are one prediction; it says nothing "
        "about how far that is from the plan."
    )
    return [ReportTable("Variability of samples", text, pd.DataFrame(table))]


def _plot(measured: pd.DataFrame, path: Path) -> Path:
    from med_assets.reporting.style import colour, figure

    errors = measured[measured["error_gy"].notna()]
    with figure(path, 6.5, 3.6) as drawn:
        axis = drawn.subplots()
        groups = errors.groupby(["experiment", "samples"], sort=True)
        several = errors["experiment"].nunique() > 1
        for number, ((name, _), group) in enumerate(groups):
            samples = int(group["samples"].iloc[0])
            line = group.groupby("steps")["error_gy"].mean()
            label = f"{samples} sample{'s' if samples > 1 else ''}" + (f", {name}" if several else "")
            axis.plot(line.index, line.to_numpy(), marker="o", color=colour(number), label=label)
        axis.set(
            xlabel="steps of a sample", ylabel="dose score, Gy", xscale="log", xticks=sorted(errors["steps"].unique())
        )
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.minorticks_off()
        axis.legend()
    return path
