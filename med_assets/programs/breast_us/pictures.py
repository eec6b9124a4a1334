"""Pictures: outlines on the image, galleries, features of many images, and where a student and its teacher differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med_assets.reporting.isolines import isolines
from med_assets.reporting.style import INK, MUTED, colour, figure

TRUE_COLOUR, PREDICTED_COLOUR = "#3DF59B", "#FF8AE2"
MARKERS = "os^Dvx*"


def _plain(axis: Any, title: str = "") -> None:
    axis.grid(False)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, color=INK, fontsize=8.5, fontweight="normal")


def _outlined(axis: Any, image: NDArray[Any], truth: NDArray[Any] | None, prediction: NDArray[Any]) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    for mask, tone, style in ((truth, TRUE_COLOUR, "solid"), (prediction, PREDICTED_COLOUR, "dashed")):
        if mask is not None and np.any(mask):
            # A border of zeros closes outlines that the picture's edge cuts.
            edge = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
            isolines(axis, *edge, np.pad(mask, 1), [0.5], [tone], 1.2, style)
    axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def side_by_side(path: Path, images: Mapping[str, NDArray[Any]]) -> Path:
    """Plot images beside each other, each under its title; return `path`."""
    with figure(path, 3.4 * len(images), 3.4) as fig:
        for axis, (title, image) in zip(np.atleast_1d(fig.subplots(1, len(images))), images.items(), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            _plain(axis, title)
    return path


def case_picture(
    path: Path, image: NDArray[Any], truth: NDArray[Any] | None, prediction: NDArray[Any], probability: NDArray[Any], features: NDArray[Any], title: str
) -> Path:  # fmt: skip
    """Plot an image with both outlines, the probability of a lesion, and how strong the network's features are at each place."""
    with figure(path, 9.6, 3.5) as fig:
        outlines, chances, strength = fig.subplots(1, 3)
        _outlined(outlines, image, truth, prediction)
        _plain(outlines, f"{title}\n{'' if truth is None else 'true: solid, '}predicted: dashed")
        chances.imshow(probability, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        _plain(chances, "probability of a lesion")
        strength.imshow(features, cmap="magma", aspect="auto")
        _plain(strength, "strength of the features")
    return path


def class_picture(
    path: Path, image: NDArray[Any], truth: NDArray[Any] | None, called: NDArray[Any], chances: NDArray[Any], classes: Sequence[str]
) -> Path:  # fmt: skip
    """Plot an image with the class called at each pixel (rows, columns) and the true outline, and the probability of each class."""
    with figure(path, 3.2 * (1 + len(classes)), 3.5) as fig:
        axes = fig.subplots(1, 1 + len(classes))
        axes[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        if truth is not None and np.any(truth):
            edge = np.arange(-1, truth.shape[1] + 1), np.arange(-1, truth.shape[0] + 1)
            isolines(axes[0], *edge, np.pad(np.asarray(truth) > 0, 1), [0.5], [TRUE_COLOUR], 1.2)
        for number, name in enumerate(classes, start=1):
            where = np.ma.masked_where(called != number, np.ones(called.shape))
            axes[0].imshow(where, cmap=single_colour(number - 1), vmin=0, vmax=1, alpha=0.55)
            axes[number].imshow(chances[number], cmap="viridis", vmin=0, vmax=1)
            _plain(axes[number], f"probability of {name}")
        axes[0].set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        present = [name for number, name in enumerate(classes, start=1) if (called == number).any()]
        _plain(axes[0], f"{'' if truth is None else 'true: outline, '}called: {', '.join(present) or 'nothing'}")
    return path


def single_colour(number: int) -> Any:
    """A colour map of one colour."""
    from matplotlib.colors import ListedColormap

    return ListedColormap([colour(number)])


def confusion_picture(path: Path, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Path:
    """Plot how many images of each true class (rows) are called each class (columns), of pairs of true and called class."""
    counts = np.array([[pairs.count((true, called)) for called in classes] for true in classes])
    with figure(path, 1.6 + 1.1 * len(classes), 1.4 + 0.9 * len(classes)) as fig:
        axis = fig.subplots()
        axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1.4)
        for (row, column), count in np.ndenumerate(counts):
            axis.text(column, row, str(count), ha="center", va="center", color=INK)
        axis.grid(False)
        axis.set(xticks=range(len(classes)), yticks=range(len(classes)), xticklabels=classes, yticklabels=classes)
        axis.set(xlabel="called", ylabel="true")
    return path


def gallery(path: Path, rows: Mapping[str, Sequence[tuple[str, Mapping[str, NDArray[Any]]]]]) -> Path:
    """Plot a row of outlined images for each title, each image with its caption; entries hold image, truth, prediction."""
    most = max(len(entries) for entries in rows.values())
    with figure(path, 2.1 * most, 2.2 * len(rows)) as fig:
        axes = fig.subplots(len(rows), most, squeeze=False)
        for line, (title, entries) in zip(axes, rows.items(), strict=True):
            for axis in line:
                _plain(axis)
            for axis, (caption, arrays) in zip(line, entries, strict=False):
                _outlined(axis, arrays["image"], arrays["truth"], arrays["prediction"])
                _plain(axis, caption)
            line[0].set_ylabel(title, color=MUTED)
    return path


def feature_plane(path: Path, features: NDArray[Any], labels: Sequence[str], datasets: Sequence[str]) -> Path:
    """Plot features (n, channels) of n images in the plane of their first two principal components.

    The colour is the label, the marker the data set.
    """
    plane, share = principal_plane(features)
    axes = f"first component ({share[0]:.0%} of the variance)", f"second component ({share[1]:.0%})"
    return scatter(path, plane, labels, datasets, "Features of the images", axes)


def principal_plane(features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first two principal components (n, 2) of features (n, channels), and the share of the variance of each component."""
    centred = np.asarray(features, np.float64) - np.mean(features, axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return (u * s)[:, :2], s**2 / max(float((s**2).sum()), 1e-12)


def scatter(
    path: Path,
    plane: NDArray[Any],
    labels: Sequence[str],
    datasets: Sequence[str],
    title: str,
    axes: tuple[str, str],
) -> Path:
    """Plot a point (n, 2) for each of n images: the colour is the label, the marker the data set."""
    kinds, sets = sorted(set(labels)), sorted(set(datasets))
    with figure(path, 5.6, 4.2) as fig:
        axis = fig.subplots()
        for number, kind in enumerate(kinds):
            for index, name in enumerate(sets):
                chosen = [label == kind and dataset == name for label, dataset in zip(labels, datasets, strict=True)]
                if any(chosen):
                    shown = kind if len(sets) == 1 else f"{kind}, {name}"
                    axis.scatter(
                        plane[chosen, 0],
                        plane[chosen, 1],
                        color=colour(number),
                        marker=MARKERS[index % len(MARKERS)],
                        s=22,
                        label=shown,
                    )
        axis.set(title=title, xlabel=axes[0], ylabel=axes[1])
        axis.legend(fontsize=8)
    return path


def disagreement(path: Path, entries: Sequence[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]]) -> Path:
    """Plot for each (caption, image, student, teacher) both probabilities and their difference, those that differ most first."""
    with figure(path, 8.4, 2.2 * len(entries)) as fig:
        for line, (caption, image, student, teacher) in zip(
            fig.subplots(len(entries), 4, squeeze=False), entries, strict=True
        ):
            line[0].imshow(image, cmap="gray", vmin=0, vmax=255, aspect="auto")
            for axis, shown, title in ((line[1], teacher, "teacher"), (line[2], student, "student")):
                axis.imshow(shown, cmap="viridis", vmin=0, vmax=1, aspect="auto")
                _plain(axis, title)
            line[3].imshow(student - teacher, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
            _plain(line[0], caption)
            _plain(line[3], "student minus teacher")
    return path
