"""The layers of the released networks written a second time, in NumPy and double precision, from their published formulas.

Tests compare the networks with them. Weights go in as a mapping from a tensor's name in the released file to an array, so that
names are checked with the numbers; `recipe` fills them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import erf

Weights = Mapping[str, np.ndarray]


def recipe(shapes: Mapping[str, Sequence[int]], seed: int = 0, scale: float = 0.2) -> dict[str, np.ndarray]:
    """Arrays by name from one seed: the names sorted, each drawn from N(0, scale) in C order; weights of norms from N(1, scale),
    running variances are their squares plus 0.5, whole-number counters 0."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in sorted(shapes):
        drawn = rng.normal(0, scale, tuple(shapes[name]))
        if name.endswith("num_batches_tracked"):
            drawn = np.zeros(tuple(shapes[name]))
        elif name.endswith("running_var"):
            drawn = drawn**2 + 0.5
        elif name.endswith("weight") and len(shapes[name]) == 1:
            drawn = drawn + 1
        found[name] = drawn.astype(np.float32).astype(float)
    return found


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """(..., in) to (..., out); without a bias in the weights there is none."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def layer_norm(x: np.ndarray, weights: Weights, name: str, eps: float) -> np.ndarray:
    """Over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact one, by the error function."""
    return x * (1 + erf(x / math.sqrt(2))) / 2


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def heads_of(x: np.ndarray, heads: int) -> np.ndarray:
    """(n, dim) to (heads, n, dim / heads)."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """(n, dim) each to (n, dim); `bias` (heads, n, n) is added to the scaled products."""
    q, k, v = (heads_of(one, heads) for one in (q, k, v))
    mixed = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + bias) @ v
    return mixed.transpose(1, 0, 2).reshape(mixed.shape[1], -1)


def vit_block(x: np.ndarray, weights: Weights, name: str, heads: int, eps: float) -> np.ndarray:
    """A transformer block that is normalised first, in timm's names: (n, dim) to (n, dim)."""
    normed = layer_norm(x, weights, f"{name}.norm1", eps)
    q, k, v = np.split(linear(normed, weights, f"{name}.attn.qkv"), 3, axis=-1)
    x = x + linear(attention(q, k, v, heads), weights, f"{name}.attn.proj")
    normed = layer_norm(x, weights, f"{name}.norm2", eps)
    return x + linear(gelu(linear(normed, weights, f"{name}.mlp.fc1")), weights, f"{name}.mlp.fc2")


def patches(image: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """(channels, ...) to (tokens, channels * patch): blocks in C order, each flattened in C order, channels first."""
    channels, *sides = image.shape
    grid = [n // step for n, step in zip(sides, patch, strict=True)]
    split = image.reshape(channels, *(n for pair in zip(grid, patch, strict=True) for n in pair))
    axes = [1 + 2 * i for i in range(len(grid))]
    within = [2 + 2 * i for i in range(len(grid))]
    return split.transpose(*axes, 0, *within).reshape(math.prod(grid), -1)


def embed_patches(image: np.ndarray, weights: Weights, name: str, patch: Sequence[int]) -> np.ndarray:
    """Tokens (n, dim) by a convolution whose stride is its size."""
    kernel = weights[f"{name}.weight"]
    return patches(image, patch) @ kernel.reshape(len(kernel), -1).T + weights[f"{name}.bias"]


def conv2d(image: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """(channels, h, w) to (out, h, w) with an odd kernel and a border of zeros."""
    kernel = weights[f"{name}.weight"]
    reach = kernel.shape[-1] // 2
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[-2:], axis=(1, 2))
    bias = weights.get(f"{name}.bias", np.zeros(len(kernel)))
    return np.tensordot(kernel, windows, ([1, 2, 3], [0, 3, 4])) + bias[:, None, None]


def batch_norm(image: np.ndarray, weights: Weights, name: str, eps: float = 1e-5) -> np.ndarray:
    """(channels, h, w) by the running statistics, as in evaluation."""
    mean, variance, weight, bias = (
        weights[f"{name}.{one}"][:, None, None] for one in ("running_mean", "running_var", "weight", "bias")
    )
    return (image - mean) / np.sqrt(variance + eps) * weight + bias


def along(n: int, wanted: int) -> np.ndarray:
    """Matrix (wanted, n) of linear interpolation with aligned edges, not corners, and no filter before it."""
    places = np.clip((np.arange(wanted) + 0.5) * n / wanted - 0.5, 0, n - 1)
    low = np.floor(places).astype(int)
    found = np.zeros((wanted, n))
    found[np.arange(wanted), low] += 1 - (places - low)
    found[np.arange(wanted), np.minimum(low + 1, n - 1)] += places - low
    return found


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(channels, h, w) to (channels, *size), bilinear."""
    return along(image.shape[1], size[0]) @ image @ along(image.shape[2], size[1]).T
