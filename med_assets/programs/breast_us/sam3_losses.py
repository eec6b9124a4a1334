"""SAM3's own losses of its detector: queries matched to instances, and what is asked of boxes, scores, presence and masks.

As in the authors' training code (`Boxes`, `IABCEMdetr` and `Masks` of facebookresearch/sam3, with the weights of its configurations).
Instances are the parts of a mask that do not touch. Not here: the second branch of queries with several matches to an instance, and the
losses of the decoder's earlier layers, which transformers' Sam3Model does not return.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

WEIGHTS = {"l1": 5.0, "giou": 2.0, "score": 20.0, "presence": 20.0, "mask": 200.0, "dice": 10.0}
"""Weight of each term."""

COSTS = {"score": 2.0, "l1": 5.0, "giou": 2.0}
"""Weights of what a match of a query and an instance costs."""

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal cost and of the focal loss of masks; ALPHA is also the share of the score in what a matched query is to score."""

POSITIVE_WEIGHT = 10.0
"""Weight of matched queries in the loss of scores."""

PRESENCE_ALPHA, PRESENCE_GAMMA = 0.5, 0.0

QUERIES = 200
"""Queries that the loss of scores is a mean over where a network has fewer."""

LEAST_SCORE = 0.01
"""The least that a matched query is asked to score."""


def instances(mask: Tensor) -> Tensor:
    """Return the parts of a mask (side, side) that do not touch, corners included, as float32 (n, side, side)."""
    from scipy.ndimage import label

    numbered, n = label(mask.cpu().numpy() > 0.5, np.ones((3, 3)))
    found = torch.from_numpy(numbered == np.arange(1, n + 1)[:, None, None])
    return found.to(mask.device, torch.float32)


def boxes_of(masks: Tensor) -> Tensor:
    """Return the boxes (n, 4) of masks (n, rows, columns) as x, y, x, y of their corners, in shares of the image."""
    rows, columns = masks.shape[-2:]
    found = []
    for mask in masks > 0.5:
        y, x = torch.nonzero(mask, as_tuple=True)
        found.append([x.min() / columns, y.min() / rows, (x.max() + 1) / columns, (y.max() + 1) / rows])
    return torch.tensor(found, device=masks.device).reshape(-1, 4)


def _centred(boxes: Tensor) -> Tensor:
    """Corners as middle, width and height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


@torch.no_grad()
def matched(scores: Tensor, boxes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and the instances that they are matched to, one to one at the least cost.

    `scores` are logits (queries,), `boxes` (queries, 4) and `wanted` (n, 4) corners.
    """
    from scipy.optimize import linear_sum_assignment
    from transformers.loss.loss_for_object_detection import generalized_box_iou

    p = scores.float().sigmoid()[:, None]
    focal = ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log() - (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
    boxes, wanted = boxes.float(), wanted.float()
    cost = COSTS["score"] * focal + COSTS["l1"] * torch.cdist(_centred(boxes), _centred(wanted), p=1)
    cost = cost - COSTS["giou"] * generalized_box_iou(boxes, wanted)
    queries, of = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(queries, device=scores.device), torch.as_tensor(of, device=scores.device)


def native_loss(found: Any, masks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms, and the terms, of outputs of Sam3Model and masks (b, 1, side, side)."""
    from transformers.loss.loss_for_object_detection import dice_loss, generalized_box_iou, sigmoid_focal_loss

    logits, boxes, presence = (one.float() for one in (found.pred_logits, found.pred_boxes, found.presence_logits))
    parts = [instances(mask[0]) for mask in masks]
    n = max(1, sum(map(len, parts)))
    # Each output has a part in the loss of every batch, also of one without a lesion: several devices must have the same gradients.
    nothing = (boxes.sum() + logits.sum() + found.pred_masks.float().sum()) * 0
    terms = dict.fromkeys(WEIGHTS, nothing)
    target, is_matched = torch.zeros_like(logits), torch.zeros_like(logits)
    for image, part in enumerate(parts):
        if not len(part):
            continue
        wanted = boxes_of(part)
        queries, of = matched(logits[image], boxes[image], wanted)
        mine, theirs = boxes[image, queries], wanted[of]
        overlap = generalized_box_iou(mine, theirs).diagonal()
        terms["l1"] = terms["l1"] + (_centred(mine) - _centred(theirs)).abs().sum() / n
        terms["giou"] = terms["giou"] + (1 - overlap).sum() / n
        drawn = functional.interpolate(
            found.pred_masks[image, queries][:, None].float(), part.shape[-2:], mode="bilinear"
        )
        flat, true = drawn[:, 0].flatten(1), part[of].flatten(1)
        terms["mask"] = terms["mask"] + sigmoid_focal_loss(flat, true, n, ALPHA, GAMMA)
        terms["dice"] = terms["dice"] + dice_loss(flat, true, n)
        with torch.no_grad():
            asked = logits[image, queries].sigmoid() ** ALPHA * iou(mine, theirs) ** (1 - ALPHA)
            target[image, queries] = asked.clamp(min=LEAST_SCORE)
            is_matched[image, queries] = 1
    positive = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * is_matched
    negative = functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    negative = negative * (1 - is_matched) * logits.sigmoid() ** GAMMA
    # Scores are learnt from images with an instance alone; whether there is one is asked of the presence.
    there = torch.tensor([[float(len(part) > 0)] for part in parts], device=logits.device)
    scored = (POSITIVE_WEIGHT * positive + negative) * there
    terms["score"] = scored.sum() / (len(logits) * max(logits.shape[1], QUERIES))
    terms["presence"] = sigmoid_focal_loss(
        presence.reshape(there.shape), there, len(there), PRESENCE_ALPHA, PRESENCE_GAMMA
    )
    return torch.stack([WEIGHTS[name] * value for name, value in terms.items()]).sum(), terms


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Return |A and B| / |A or B| of pairs of boxes (n, 4), corners."""
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    sizes = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (one, other)]
    return both / (sizes[0] + sizes[1] - both).clamp(min=1e-9)


def united(found: Any) -> Tensor:
    """Return the logit of a lesion (b, 1, height, width) of outputs of Sam3Model: of the query that is surest of each place.

    A query's probability of a place is that of its mask times its score times the presence, as the authors score instances.
    """
    score = found.pred_logits.float().sigmoid() * found.presence_logits.float().sigmoid().reshape(-1, 1)
    probability = (score[:, :, None, None] * found.pred_masks.float().sigmoid()).amax(1, keepdim=True)
    return torch.logit(probability, eps=1e-6)
