"""How a network is used that is not being trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inferring(network: nn.Module) -> Iterator[torch.device]:
    """Within it the network is in evaluation mode and keeps no gradients; afterwards in the mode that it was in. Yields its device."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield next(network.parameters()).device
    finally:
        network.train(was_training)
