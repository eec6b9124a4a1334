"""The picture of one case: its middle B-scan beside the probabilities of the classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.records import CaseScore


def plot(prepared: Path, predicted: Path, out: Path) -> list[Path]:
    """Plot one case as a PNG file under `out`."""
    from med_assets.programs.retinal_oct.kept import PREDICTION
    from med_assets.reporting.style import COLOURS, INK, figure

    case = PreparedCase.open(prepared)
    kept = predicted / PREDICTION
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if "probabilities" not in found:
        return []
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{case.case_id}.png"
    with figure(path, 8.0, 2.8) as fig:
        image, bars = fig.subplots(1, 2, width_ratios=(1.4, 1))
        image.grid(False)
        image.set(xticks=[], yticks=[])
        height, width = (n * step for n, step in zip(case.bscan.shape, case.spacing_mm[1:], strict=True))
        image.imshow(np.asarray(case.bscan), cmap="gray", extent=(0, width, height, 0), aspect="auto", vmin=0, vmax=255)
        image.set_title(
            f"middle B-scan, {width:.1f} x {height:.1f} mm, {case.protocol or 'no protocol'}",
            fontweight="normal",
            fontsize=8,
        )
        chances = [found["probabilities"][name] for name in CLASSES]
        true_class = None if case.stated_label is None else CLASSES[case.stated_label]
        colours = [COLOURS[1] if name == true_class else COLOURS[0] for name in CLASSES]
        bars.barh(range(len(CLASSES)), chances, color=colours)
        bars.set(yticks=range(len(CLASSES)), yticklabels=list(CLASSES), xlim=(0, 1))
        bars.invert_yaxis()
        bars.set_title(f"probability; true class: {true_class or 'unknown'}", fontweight="normal", fontsize=8)
        synthetic = ", synthetic" if case.synthetic else ""
        fig.suptitle(f"case {case.case_id}{synthetic}", x=0.01, ha="left", fontsize=10.5, color=INK)
    return [path]


def plot_confusion(scores: Sequence[CaseScore], split: str, path: Path) -> str | None:
    """Plot the confusion matrix of a split as counts, coloured by the share of the true class; returns its caption, None without a case."""
    from med_assets.metrics.classification import confusion
    from med_assets.programs.retinal_oct.score import wide
    from med_assets.reporting.style import INK, figure

    table = wide(scores)
    if table.empty:
        return None
    counts = confusion(table["y_true"].to_numpy(), table["y_pred"].to_numpy(), len(CLASSES))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [name.replace(" ", "\n") for name in CLASSES]
    with figure(path, 4.8, 4.2) as fig:
        axis = fig.subplots()
        axis.grid(False)
        image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            tone = "white" if share[row, column] > 0.6 else INK
            axis.text(column, row, f"{count:.0f}", ha="center", va="center", color=tone)
        axis.set(
            xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names, xlabel="predicted",
            ylabel="true class", title=f"{len(table)} cases of {split}",
        )  # fmt: skip
        fig.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    return f"Confusion matrix of {len(table)} cases of {split}: counts, coloured by the share of the true class."
