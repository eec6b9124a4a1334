"""Features of chosen layers of a network, of many images, in a plane: by principal components, t-SNE or UMAP."""

import csv
import difflib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from med_assets.errors import ConfigurationError
from med_assets.programs.breast_us.pictures import principal_plane, scatter
from med_assets.programs.breast_us.predict import Predictor, load_predictor
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.storage.files import replacing
from med_assets.training.accelerator import inference_device

Method = Literal["pca", "tsne", "umap"]

FEATURES = "features"
"""Name of what every network gives beside its logits, which distillation and reports look at."""

SEED = 0
"""Seed of t-SNE and UMAP: the same features give the same plane."""

LEAST_CASES = 5
"""Fewer images than this are no plane: t-SNE and UMAP look at neighbours."""

PERPLEXITY, NEIGHBOURS = 30.0, 15
"""Those of van der Maaten and Hinton 2008 and of McInnes et al. 2018, lowered where there are few images."""

SHOWN = 8
"""Names of layers that a message proposes."""

INSTALL = "pip install 'med-assets[umap]'"

TITLES = {"pca": "Principal components", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class Image:
    """One image of a plane: its case, what colours it, and where its arrays are."""

    case_id: str
    label: str
    dataset: str
    prepared: Path


def plot_features(
    checkpoint: Path, images: Sequence[Image], layers: Sequence[str], methods: Sequence[Method], out: Path
) -> list[Path]:
    """Write a picture and a CSV of coordinates for each layer and method; returns their paths.

    Raises ConfigurationError for a layer that the network has not or whose output is no map, for too few images, and where UMAP is
    not installed.
    """
    if len(images) < LEAST_CASES:
        raise ConfigurationError(f"expected {LEAST_CASES} images or more, got {len(images)}; choose another --split")
    predictor = load_predictor(checkpoint, inference_device())
    features = features_of(predictor, [image.prepared for image in images], layers)
    out.mkdir(parents=True, exist_ok=True)
    labels, datasets = [image.label for image in images], [image.dataset for image in images]
    written = []
    for layer, values in features.items():
        for method in methods:
            plane = project(values, method)
            name = f"{re.sub(r'[^A-Za-z0-9]+', '_', layer)}_{method}"
            title = f"{layer}, {TITLES[method]}"
            written.append(scatter(out / f"{name}.png", plane, labels, datasets, title, ("first axis", "second axis")))
            written.append(_table(out / f"{name}.csv", images, plane))
    return written


def features_of(predictor: Predictor, prepared: Sequence[Path], layers: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return by layer the mean of each channel over the image, float32 (n, channels).

    A layer is the name of a module of the network, or FEATURES.
    """
    modules = dict(predictor.network.named_modules())
    for layer in layers:
        if layer != FEATURES and layer not in modules:
            near = difflib.get_close_matches(layer, modules, SHOWN, 0.3) or sorted(modules)[1 : SHOWN + 1]
            raise ConfigurationError(
                f"expected {FEATURES} or a module of the network as --layer, got {layer!a}; such as {', '.join(near)}"
            )
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def keep(layer: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            current.setdefault(layer, output)  # a module that is used twice is shown as it was first

        return hook

    handles = [modules[layer].register_forward_hook(keep(layer)) for layer in layers if layer != FEATURES]
    try:
        for path in prepared:
            current: dict[str, Any] = {}
            _, features = predictor.both(PreparedCase.open(path).image)
            current[FEATURES] = features[None]
            for layer in layers:
                if layer not in current:
                    raise ConfigurationError(f"expected a layer that the network uses, {layer} is not; choose another")
                found[layer].append(channel_means(current[layer], layer))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.stack(values).numpy() for layer, values in found.items()}


def channel_means(output: Any, layer: str) -> Tensor:
    """Return the mean of each channel of a layer's output for one image, float32 (channels,).

    Tokens (b, n, c) have channels last. A map's are where its two equal sides are not, since images are square here; windows and
    crops along the first axis are averaged. Raises ConfigurationError for any other output.
    """
    while not isinstance(output, Tensor) and isinstance(output, list | tuple | dict) and len(output):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    if isinstance(output, Tensor):
        shape = output.shape
        if output.ndim == 3:
            return output.float().mean((0, 1)).cpu()
        if output.ndim == 4 and shape[2] == shape[3] != shape[1]:
            return output.float().mean((0, 2, 3)).cpu()
        if output.ndim == 4 and shape[1] == shape[2] != shape[3]:
            return output.float().mean((0, 1, 2)).cpu()
    got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ConfigurationError(
        f"expected a layer that gives tokens or a square map with as many channels as tell its sides apart, {layer} gives {got}; "
        "choose the layer before or after it"
    )


def project(features: NDArray[Any], method: Method) -> NDArray[Any]:
    """Return the places (n, 2) of features (n, channels) in a plane; each channel is scaled to unit deviation for t-SNE and UMAP."""
    if method == "pca":
        return principal_plane(features)[0]
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(scaled) - 1) / 3)
        return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(scaled))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # of networks that it could have with TensorFlow
            import umap
    except ImportError as error:
        raise ConfigurationError(
            f"expected umap-learn for --method umap, which is not installed; run {INSTALL}, or take tsne"
        ) from error
    neighbours = min(NEIGHBOURS, len(scaled) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, random_state=SEED, n_jobs=1, init="random")
    return np.asarray(reducer.fit_transform(scaled))


def _table(path: Path, images: Sequence[Image], plane: NDArray[Any]) -> Path:
    with replacing(path) as temporary, temporary.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("case_id", "label", "dataset", "x", "y"))
        table.writerows(
            (image.case_id, image.label, image.dataset, float(x), float(y))
            for image, (x, y) in zip(images, plane, strict=True)
        )
    return path
