"""SAM without prompts a second time, in NumPy and double precision, by the names of its original release, with SAMed's adapters.

Kirillov et al. 2023; relative positions as in Li et al. 2022 (MViTv2); adapters as in Hu et al. 2021. See reference_layers.
"""

import math
from dataclasses import dataclass

import numpy as np

from tests.reference_layers import (
    Weights,
    attention,
    conv2d,
    embed_patches,
    gelu,
    heads_of,
    layer_norm,
    linear,
    resize,
)


@dataclass(frozen=True)
class Sizes:
    """What the arrays do not tell. `window` is in tokens; `whole` are the blocks that see the whole image."""

    patch: int
    depth: int
    heads: int
    window: int
    whole: tuple[int, ...]
    decoder_heads: int


def relative(n: int, table: np.ndarray) -> np.ndarray:
    """(n, n, channels): the entry of a table of differences for each query and key along an axis."""
    assert len(table) == 2 * n - 1
    return table[np.arange(n)[:, None] - np.arange(n)[None, :] + n - 1]


def attend(x: np.ndarray, weights: Weights, adapters: Weights, block: int, heads: int) -> np.ndarray:
    """Attention with relative positions within one window (h, w, dim); `adapters` are SAMed's."""
    h, w, dim = x.shape
    name, flat = f"image_encoder.blocks.{block}.attn", x.reshape(h * w, dim)
    q, k, v = np.split(linear(flat, weights, f"{name}.qkv"), 3, axis=-1)
    if adapters:
        q = q + flat @ adapters[f"w_a_{2 * block:03d}"].T @ adapters[f"w_b_{2 * block:03d}"].T
        v = v + flat @ adapters[f"w_a_{2 * block + 1:03d}"].T @ adapters[f"w_b_{2 * block + 1:03d}"].T
    grid = heads_of(q, heads).reshape(heads, h, w, -1)
    rows = np.einsum("ahwc,hkc->ahwk", grid, relative(h, weights[f"{name}.rel_pos_h"]))
    columns = np.einsum("ahwc,wkc->ahwk", grid, relative(w, weights[f"{name}.rel_pos_w"]))
    bias = (rows[..., :, None] + columns[..., None, :]).reshape(heads, h * w, h * w)
    return linear(attention(q, k, v, heads, bias), weights, f"{name}.proj").reshape(h, w, dim)


def windowed(x: np.ndarray, weights: Weights, adapters: Weights, block: int, sizes: Sizes) -> np.ndarray:
    """The same in windows side by side, the last of them padded with zeros."""
    h, w, _ = x.shape
    side = sizes.window
    padded = np.pad(x, ((0, -h % side), (0, -w % side), (0, 0)))
    found = np.zeros_like(padded)
    for top in range(0, padded.shape[0], side):
        for left in range(0, padded.shape[1], side):
            part = (slice(top, top + side), slice(left, left + side))
            found[part] = attend(padded[part], weights, adapters, block, sizes.heads)
    return found[:h, :w]


def channel_norm(image: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """Layer norm over the channels of (channels, h, w)."""
    return layer_norm(image.transpose(1, 2, 0), weights, name, 1e-6).transpose(2, 0, 1)


def encode(image: np.ndarray, weights: Weights, adapters: Weights, sizes: Sizes) -> np.ndarray:
    """(3, side, side) to image embeddings (channels, tokens, tokens)."""
    side = image.shape[1] // sizes.patch
    x = embed_patches(image, weights, "image_encoder.patch_embed.proj", (sizes.patch, sizes.patch))
    x = x.reshape(side, side, -1) + weights["image_encoder.pos_embed"][0]
    for block in range(sizes.depth):
        name = f"image_encoder.blocks.{block}"
        normed = layer_norm(x, weights, f"{name}.norm1", 1e-6)
        if block in sizes.whole:
            x = x + attend(normed, weights, adapters, block, sizes.heads)
        else:
            x = x + windowed(normed, weights, adapters, block, sizes)
        normed = layer_norm(x, weights, f"{name}.norm2", 1e-6)
        x = x + linear(gelu(linear(normed, weights, f"{name}.mlp.lin1")), weights, f"{name}.mlp.lin2")
    found = channel_norm(conv2d(x.transpose(2, 0, 1), weights, "image_encoder.neck.0"), weights, "image_encoder.neck.1")
    return channel_norm(conv2d(found, weights, "image_encoder.neck.2"), weights, "image_encoder.neck.3")


def mixed(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, weights: Weights, name: str, heads: int, added: Weights
) -> np.ndarray:
    """Attention of the decoder; `added` holds the thin matrices qa, qb, va and vb, or nothing."""
    queries, keys, values = (
        linear(one, weights, f"{name}.{kind}_proj") for one, kind in ((q, "q"), (k, "k"), (v, "v"))
    )
    if added:
        queries = queries + q @ added["qa"].T @ added["qb"].T
        values = values + v @ added["va"].T @ added["vb"].T
    return linear(attention(queries, keys, values, heads), weights, f"{name}.out_proj")


def thin(adapters: Weights, kind: str, layer: int) -> dict[str, np.ndarray]:
    """The adapters of one attention of the decoder, or none."""
    numbers = {"q": 2 * layer, "v": 2 * layer + 1}
    names = {f"{one}{side}": f"{kind}_{side}_{number:03d}" for one, number in numbers.items() for side in "ab"}
    return {key: adapters[name] for key, name in names.items() if name in adapters}


def perceptron(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """Three layers with ReLU between them."""
    for layer in range(3):
        x = linear(x, weights, f"{name}.layers.{layer}")
        x = np.maximum(x, 0) if layer < 2 else x
    return x


def doubled(image: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """A transposed convolution of kernel and stride 2: (in, h, w) to (out, 2 h, 2 w)."""
    kernel = weights[f"{name}.weight"]
    spread = np.einsum("ihw,ioab->ohawb", image, kernel)
    out, h, _, w, _ = spread.shape
    return spread.reshape(out, 2 * h, 2 * w) + weights[f"{name}.bias"][:, None, None]


def masks(embeddings: np.ndarray, weights: Weights, adapters: Weights, sizes: Sizes) -> np.ndarray:
    """Image embeddings to the masks of all tokens, (masks, 4 tokens, 4 tokens)."""
    channels, h, w = embeddings.shape
    places = 2 * np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1).reshape(-1, 2) - 1
    turned = 2 * math.pi * places @ weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    key_place = np.concatenate([np.sin(turned), np.cos(turned)], -1)
    keys = embeddings.reshape(channels, -1).T + weights["prompt_encoder.no_mask_embed.weight"]
    place = np.concatenate([weights["mask_decoder.iou_token.weight"], weights["mask_decoder.mask_tokens.weight"]])
    queries, heads, start = place, sizes.decoder_heads, "mask_decoder.transformer"
    for layer in range(2):
        name = f"{start}.layers.{layer}"
        asked = queries if layer == 0 else queries + place
        answer = mixed(asked, asked, queries, weights, f"{name}.self_attn", heads, thin(adapters, "sa", layer))
        queries = layer_norm(answer if layer == 0 else queries + answer, weights, f"{name}.norm1", 1e-5)
        answer = mixed(
            queries + place,
            keys + key_place,
            keys,
            weights,
            f"{name}.cross_attn_token_to_image",
            heads,
            thin(adapters, "cti", layer),
        )
        queries = layer_norm(queries + answer, weights, f"{name}.norm2", 1e-5)
        hidden = np.maximum(linear(queries, weights, f"{name}.mlp.lin1"), 0)
        queries = layer_norm(queries + linear(hidden, weights, f"{name}.mlp.lin2"), weights, f"{name}.norm3", 1e-5)
        answer = mixed(
            keys + key_place,
            queries + place,
            queries,
            weights,
            f"{name}.cross_attn_image_to_token",
            heads,
            thin(adapters, "cit", layer),
        )
        keys = layer_norm(keys + answer, weights, f"{name}.norm4", 1e-5)
    last = {key: adapters[f"fati_{key}"] for key in ("qa", "qb", "va", "vb") if f"fati_{key}" in adapters}
    answer = mixed(queries + place, keys + key_place, keys, weights, f"{start}.final_attn_token_to_image", heads, last)
    queries = layer_norm(queries + answer, weights, f"{start}.norm_final_attn", 1e-5)
    up = doubled(keys.T.reshape(channels, h, w), weights, "mask_decoder.output_upscaling.0")
    up = gelu(channel_norm(up, weights, "mask_decoder.output_upscaling.1"))
    up = gelu(doubled(up, weights, "mask_decoder.output_upscaling.3"))
    names = [f"mask_decoder.output_hypernetworks_mlps.{number}" for number in range(len(place) - 1)]
    hyper = np.stack([perceptron(queries[1 + number], weights, name) for number, name in enumerate(names)])
    return np.einsum("mc,chw->mhw", hyper, up)


def sam(image: np.ndarray, weights: Weights, adapters: Weights, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """(3, side, side) to the logits of all masks at that size, (masks, side, side), and to image embeddings."""
    embeddings = encode(image, weights, adapters, sizes)
    return resize(masks(embeddings, weights, adapters, sizes), image.shape[1:]), embeddings
