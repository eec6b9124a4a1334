"""VISTA3D's answer to class prompts by a second writing of its formulas: He et al. 2024 (arXiv 2406.05285), Myronenko 2018 (arXiv 1810.11654)."""

import numpy as np
import torch

from med_assets.programs.lung_ct.experiment import Network
from med_assets.programs.lung_ct.network import build_network, class_logits
from tests import reference_layers as reference

torch.set_num_threads(1)

SMALL = Network(kind="small", channels=8, blocks_down=(1, 1, 1))
EPS = 1e-5
SIDE = 8
CLASSES = [23, 115]
LOGITS = (5.501029, 33.339226, 11.808538, 4.469619)
"""Of class 23 at voxels (4, 4, 0), (4, 4, 2), (4, 4, 4) and (4, 4, 6)."""


def conv3d(x: np.ndarray, weights: reference.Weights, name: str, stride: int = 1) -> np.ndarray:
    """(channels, x, y, z) to (out, ...) with an odd kernel, a border of zeros and no bias."""
    kernel = weights[f"{name}.weight"]
    reach = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), *[(reach, reach)] * 3))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(1, 2, 3))
    return np.einsum("ocijk,cxyzijk->oxyz", kernel, windows[:, ::stride, ::stride, ::stride], optimize=True)


def doubled(x: np.ndarray, weights: reference.Weights, name: str) -> np.ndarray:
    """Transposed convolution of 3 voxels and a stride of 2: each voxel adds its kernel around twice its place; what falls outside is cut."""
    kernel = weights[f"{name}.weight"]
    sides = x.shape[1:]
    found = np.zeros((kernel.shape[1], *(2 * n + 2 for n in sides)))
    for place in np.ndindex(*kernel.shape[2:]):
        spread = np.einsum("cxyz,co->oxyz", x, kernel[(slice(None), slice(None), *place)])
        found[(slice(None), *(slice(i, i + 2 * n, 2) for i, n in zip(place, sides, strict=True)))] += spread
    return found[(slice(None), *(slice(1, 1 + 2 * n) for n in sides))]


def instance_norm(x: np.ndarray, weights: reference.Weights, name: str = "") -> np.ndarray:
    """Each channel to mean 0 and variance 1 over its voxels; without a name it has no weights."""
    centred = x - x.mean((1, 2, 3), keepdims=True)
    found = centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + EPS)
    if not name:
        return found
    return found * weights[f"{name}.weight"][:, None, None, None] + weights[f"{name}.bias"][:, None, None, None]


def block(x: np.ndarray, weights: reference.Weights, name: str) -> np.ndarray:
    """Block of SegResNet: norm, ReLU, convolution, twice, and its input added."""
    y = x
    for number in (1, 2):
        y = conv3d(np.maximum(instance_norm(y, weights, f"{name}.norm{number}"), 0), weights, f"{name}.conv{number}")
    return x + y


def mapped(x: np.ndarray, weights: reference.Weights, name: str) -> np.ndarray:
    """Residual block of UNETR: convolution, norm, leaky ReLU, convolution, norm, its input added, leaky ReLU of slope 0.01."""
    y = instance_norm(conv3d(x, weights, f"{name}.conv1.conv"), weights)
    y = instance_norm(conv3d(np.where(y > 0, y, 0.01 * y), weights, f"{name}.conv2.conv"), weights) + x
    return np.where(y > 0, y, 0.01 * y)


def features(image: np.ndarray, weights: reference.Weights) -> np.ndarray:
    """What the encoder's branch for class prompts gives of (1, x, y, z): three levels down, two up, sums across, a 1x1x1 convolution."""
    x, levels = conv3d(image, weights, "image_encoder.encoder.conv_init"), []
    for level in range(3):
        start = f"image_encoder.encoder.layers.{level}"
        x = block(x, weights, f"{start}.blocks.0")
        levels.append(x)
        if level < 2:
            x = conv3d(x, weights, f"{start}.downsample", stride=2)
    for level in range(2):
        start = f"image_encoder.up_layers_auto.{level}"
        x = block(doubled(x, weights, f"{start}.upsample.deconv") + levels[1 - level], weights, f"{start}.blocks.0")
    head = "image_encoder.up_layers_auto.1.head"
    return conv3d(x, weights, head) + weights[f"{head}.bias"][:, None, None, None]


def answer(image: np.ndarray, weights: reference.Weights, classes: list[int]) -> np.ndarray:
    """Logits (classes, x, y, z): the class's embedding through two layers, normalised between, times the mapped features."""
    x = features(image, weights)
    for number in range(2):
        x = mapped(x, weights, f"class_head.image_post_mapping.{number}.layer")
    asked = reference.linear(weights["class_head.class_embeddings.weight"][classes], weights, "class_head.mlp.0")
    centred = asked - asked.mean(-1, keepdims=True)
    asked = reference.gelu(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS))
    return np.einsum("nc,cxyz->nxyz", reference.linear(asked, weights, "class_head.mlp.3"), x)


def test_the_answer_to_class_prompts_is_what_the_formulas_say() -> None:
    """Weights: `reference.recipe(0)` of the small network. Image: numpy.random.default_rng(3).uniform(size=(8, 8, 8))."""
    network = build_network(SMALL).eval()
    own = network.state_dict()
    weights = reference.recipe({name: one.shape for name, one in own.items()})
    network.load_state_dict(
        {name: torch.from_numpy(one).to(own[name].dtype) for name, one in weights.items()}, strict=True
    )
    image = np.random.default_rng(3).uniform(size=(SIDE,) * 3)
    with torch.inference_mode():
        found = class_logits(network, torch.from_numpy(image).float()[None, None], CLASSES)[0].numpy()
    wanted = answer(image[None], weights, CLASSES)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(wanted[0, 4, 4, ::2], LOGITS, atol=1e-4)
