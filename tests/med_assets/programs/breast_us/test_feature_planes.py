"""Planes of features: any layer, principal components, t-SNE and UMAP, the same for the same features."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.programs.breast_us.feature_planes import (
    FEATURES,
    Image,
    channel_means,
    features_of,
    plot_features,
    project,
)
from med_assets.programs.breast_us.predict import load_predictor
from tests.med_assets.programs.breast_us.builders import TINY, write_prepared
from tests.med_assets.programs.breast_us.test_pipeline import checkpoint

GROUPS = np.repeat([0, 1], 8)


@pytest.fixture
def clusters() -> np.ndarray:
    """Two groups of eight images, far apart in six channels."""
    return (np.random.default_rng(0).normal(0, 0.1, (16, 6)) + 5 * GROUPS[:, None]).astype(np.float32)


# UMAP is compiled by numba when it is first used, which takes a minute.
@pytest.mark.parametrize("method", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.drill)])
def test_every_method_keeps_groups_apart_and_repeats_itself(clusters: np.ndarray, method: str) -> None:
    plane = project(clusters, method)  # type: ignore[arg-type]  # one of the three names
    assert plane.shape == (16, 2)
    apart = np.linalg.norm(plane[GROUPS == 0].mean(0) - plane[GROUPS == 1].mean(0))
    within = max(np.linalg.norm(plane[g == GROUPS] - plane[g == GROUPS].mean(0), axis=1).mean() for g in (0, 1))
    assert apart > 2 * within
    assert np.array_equal(plane, project(clusters, method))  # type: ignore[arg-type]  # one of the three names


def test_the_layers_that_are_named_are_drawn_and_tabled(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", "tinyusfm", *TINY)
    kinds = ("benign", "malignant", "normal", "benign", "malignant", "normal")
    images = [
        Image(f"c{seed}", kind, "BUSI", write_prepared(tmp_path / f"c{seed}", seed, kind=kind))
        for seed, kind in enumerate(kinds)
    ]
    layer = "net.backbone.blocks.1"
    written = plot_features(folder, images, [FEATURES, layer], ["pca", "tsne"], tmp_path / "out")
    assert [path.name for path in written[-2:]] == ["net_backbone_blocks_1_tsne.png", "net_backbone_blocks_1_tsne.csv"]
    assert len(written) == 8
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert [(row["case_id"], row["label"]) for row in rows] == [(image.case_id, image.label) for image in images]
    features = features_of(load_predictor(folder), [image.prepared for image in images], [layer])
    assert features[layer].shape == (6, 8)


def test_channels_are_found_in_tokens_and_in_maps_of_either_order() -> None:
    values = torch.arange(3.0)
    for output in (
        values.expand(1, 7, 3),
        values[:, None, None].expand(1, 3, 4, 4),
        values.expand(1, 4, 4, 3),
        (values.expand(1, 7, 3), None),
    ):
        assert channel_means(output, "x").tolist() == [0.0, 1.0, 2.0]
    for unclear in (torch.zeros(1, 4, 4, 4), torch.zeros(3), None):
        with pytest.raises(ConfigurationError, match="x gives"):
            channel_means(unclear, "x")


def test_a_layer_that_is_not_there_is_refused_with_those_that_are_near(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", "tinyusfm", *TINY)
    prepared = [write_prepared(tmp_path / "c", 1)]
    with pytest.raises(ConfigurationError, match=r"net\.backbone\.blocks\.3"):
        features_of(load_predictor(folder), prepared, ["net.backbone.blocks.9"])
    with pytest.raises(ConfigurationError, match="5 images or more, got 1"):
        plot_features(folder, [Image("c", "benign", "BUSI", prepared[0])], [FEATURES], ["pca"], tmp_path / "out")


def test_umap_names_the_extra_that_brings_it(clusters: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'med-assets\[umap\]'"):
        project(clusters, "umap")
