"""Figures of one experiment for print, by the same code for every program: PNG at 300 dpi and PDF.

A program says no more than what a picture of one case is (`Program.report_images`); curves and terms of the loss come from
the history that every training writes.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import SplitPlots, split_figure
from med_assets.catalog import Catalog
from med_assets.evaluation.scoring import HELD_OUT
from med_assets.launch.training import curve_panels
from med_assets.program import Program
from med_assets.records import CaseScore, EpochMetric
from med_assets.reporting.pictures import plot_typical_cases, typical_cases
from med_assets.settings import Settings
from med_assets.storage.files import digest, file_sha256, read_json, write_json
from med_assets.storage.versions import version_of, versioned

RECORD = "figures.json"
"""File beside the figures: what they were made of, their captions, and the hash of each."""

LABEL = "median"
"""Which held-out case is shown, by the primary metric."""


@dataclass(frozen=True)
class Figures:
    """The figures of an experiment: caption by name of the PNG, hash by name of each file, and whether any is new."""

    captions: Mapping[str, str]
    hashes: Mapping[str, str]
    fresh: bool


def folder_of(ws: Settings, program_name: str, name: str) -> Path:
    """Where the figures of an experiment are."""
    return ws.reports / program_name / "experiments" / name / "figures"


def history_of(ws: Settings, program_name: str, name: str) -> pd.DataFrame:
    """The training history of an experiment, an epoch a row and a metric a column."""
    rows = Catalog(ws, program_name).frame(EpochMetric, name)
    wide = rows.pivot_table(index="epoch", columns="metric", values="value", sort=True)
    return wide.reset_index().rename_axis(columns=None)


@versioned("2")
def plot_figures(ws: Settings, program_name: str, name: str, checkpoint: str, best: int | None = None) -> Figures:
    """Plot the figures of an experiment's checkpoint, unless what they show is as it was; `best` is the epoch that was kept."""
    out = folder_of(ws, program_name, name)
    chosen, history = program.get(program_name), history_of(ws, program_name, name)
    scores = Catalog(ws, program_name).rows(CaseScore, name)
    shown = typical_cases(scores, chosen.primary_metric, [LABEL])
    case = [[score.case_id, score.split, score.value] for score in shown.values()]
    code = [version_of(plot_figures), chosen.code_versions["evaluate"], chosen.evaluation_settings(ws)]
    key = digest(code, checkpoint, best, history.to_csv(index=False), case, *_of_all_cases(chosen, scores))
    kept = read_json(out / RECORD) if (out / RECORD).is_file() else {}
    if kept.get("key") == key and all((out / file).is_file() for file in kept["files"]):
        return Figures(dict(kept["captions"]), kept["files"], fresh=False)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ws.home / "tmp" if (ws.home / "tmp").is_dir() else None) as folder:
        captions = _all(ws, program_name, name, checkpoint, scores, history, best, Path(folder))
        made = sorted(path for path in Path(folder).iterdir() if path.suffix in (".png", ".pdf"))
        for old in out.iterdir():
            if old.name not in {path.name for path in made}:
                old.unlink()
        for path in made:
            shutil.move(path, out / path.name)
    hashes = {path.name: file_sha256(out / path.name) for path in made}
    write_json(
        out / RECORD, {"key": key, "checkpoint": checkpoint, "captions": list(captions.items()), "files": hashes}
    )
    return Figures(captions, hashes, fresh=True)


def _of_all_cases(chosen: Program, scores: Sequence[CaseScore]) -> list[list[tuple[str, str, str, float | None]]]:
    """What the figure of a split depends on, of a program that has one; empty in the others."""
    if not isinstance(chosen, SplitPlots):
        return []
    return [sorted((one.case_id, one.metric, one.subject, one.prediction) for one in scores)]


def _splits(chosen: Program, scores: Sequence[CaseScore], out: Path) -> dict[str, str]:
    """Plot all cases of each held-out split, in a program that has such a figure."""
    if not isinstance(chosen, SplitPlots):
        return {}
    plotted = {
        split_figure(split): chosen.split_plot(
            [one for one in scores if one.split == split], split, out / split_figure(split)
        )
        for split in HELD_OUT
    }
    return {name: caption for name, caption in plotted.items() if caption}


def _all(
    ws: Settings,
    program_name: str,
    name: str,
    checkpoint: str,
    scores: Sequence[CaseScore],
    history: pd.DataFrame,
    best: int | None,
    out: Path,
) -> dict[str, str]:
    from med_assets.reporting.plots import plot_training
    from med_assets.reporting.style import publication

    captions: dict[str, str] = {}
    with publication():
        if len(history) > 1 and (panels := curve_panels(program_name, history)):
            plot_training(out / "training_curves.png", history, panels, best=best, title=name)
            captions["training_curves.png"] = "Loss and validation over the epochs; dotted: the epoch that was kept."
        if len(history) > 1 and (terms := terms_of(history)):
            plot_training(
                out / "loss_components.png", history, {"terms of the loss, before their weights": terms}, best=best,
                title=name, logarithmic=True,
            )  # fmt: skip
            captions["loss_components.png"] = (
                "Each term of the loss over the epochs, mean over batches, before its weight."
            )
        captions |= _splits(program.get(program_name), scores, out)
        captions |= _case(ws, program_name, checkpoint, scores, out)
    return captions


def terms_of(history: pd.DataFrame) -> list[str]:
    """The columns of a history that are terms of the loss; none where the loss has one part only."""
    return [name for name in history.columns if name.startswith("train_") and name != "train_loss"]


def _case(ws: Settings, program_name: str, checkpoint: str, scores: Sequence[CaseScore], out: Path) -> dict[str, str]:
    """Plot the case under names that do not change with it."""
    captions: dict[str, str] = {}
    shown = typical_cases(scores, program.get(program_name).primary_metric, [LABEL]).get(LABEL)
    for image, caption in plot_typical_cases(ws, program_name, checkpoint, scores, [LABEL], out):
        what = image.stem.replace(shown.case_id if shown else "", "").strip("_") or "case"
        for suffix in (".png", ".pdf"):
            image.with_suffix(suffix).rename(out / f"{LABEL}_{what}{suffix}")
        captions[f"{LABEL}_{what}.png"] = f"{caption}."
    return captions
