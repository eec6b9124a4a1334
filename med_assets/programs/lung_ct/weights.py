"""The released weights: a file of others, taken whole or not at all."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch
from med_assets.training.tensors import Fit, demand_fit

WRAPPERS = ("model", "state_dict", "network")
"""Keys under which a file may hold its state dict."""

PREFIX = "module."
"""What data-parallel training puts before each name."""


def load_released(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a file: bare, or within a dict under one of WRAPPERS; without the prefix `module.`.

    Nothing but tensors is loaded. Raises CheckpointMismatch for a file that holds something else.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointMismatch(
            f"expected a file of tensors that torch.load(weights_only=True) reads, got none ({type(error).__name__}); "
            "download the weights again"
        ) from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    strange = [] if isinstance(content, Mapping) else [type(content).__name__]
    if not strange:
        strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        raise CheckpointMismatch(
            f"expected a state dict, bare or under {', '.join(WRAPPERS)}; got {strange[:5] or 'nothing'} in it; "
            "give the file of the weights themselves"
        )
    return {str(name).removeprefix(PREFIX): tensor for name, tensor in content.items()}


def fit_released(network: nn.Module, found: Mapping[str, Tensor]) -> Fit:
    """Put weights into a network and return which tensors matched: all, or CheckpointMismatch is raised and none is taken."""
    fit = demand_fit(
        network.state_dict(), found, "the released weights",
        "network.kind=vista3d132 is what they were released for; a partial fit would leave the rest random",
    )  # fmt: skip
    network.load_state_dict(dict(found), strict=True)
    return fit
