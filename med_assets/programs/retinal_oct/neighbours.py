"""Classes by the votes of nearest neighbours among the embeddings of the training cases."""

from collections.abc import Mapping

import torch
from torch import Tensor

from med_assets.programs.retinal_oct.vocabulary import CLASSES


def vote(embeddings: Tensor, weights: Mapping[str, Tensor], temperature: float) -> Tensor:
    """Return logits (case, class) of embeddings (case, hidden): logarithms of the classes' shares of the votes of the k nearest.

    `weights` are those of a checkpoint: `bank` (n, hidden) and `labels` (n) of the training cases, `mean` and `std` by which features are scaled,
    `class_weights` and `k`. A neighbour votes with exp(cosine similarity / temperature) times the weight of its class. The share of a
    class is that of its votes among k, by Laplace's rule of succession, so that none is 0: (k * votes + 1) / (k + classes).
    Source of the votes: Wu et al., Unsupervised feature learning via non-parametric instance discrimination (2018), section 3.4.
    """
    k = int(weights["k"])
    scaled = [
        torch.nn.functional.normalize((rows - weights["mean"]) / weights["std"], dim=1)
        for rows in (embeddings.double(), weights["bank"].double())
    ]
    alike = scaled[0] @ scaled[1].T
    nearest, which = alike.topk(k, dim=1)
    labels = weights["labels"][which]
    # Of the differences alone, so that a low temperature does not overflow.
    strength = torch.exp((nearest - nearest[:, :1]) / temperature) * weights["class_weights"].double()[labels]
    votes = torch.zeros(len(embeddings), len(CLASSES), dtype=torch.float64).scatter_add_(1, labels, strength)
    share = votes / votes.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.log((k * share + 1) / (k + len(CLASSES)))
