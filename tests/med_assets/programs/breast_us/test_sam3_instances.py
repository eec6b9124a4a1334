"""SAM3 by instances: the match of queries, the terms of the loss by hand, and a training by them."""

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.lit import BreastModule
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.sam3_losses import (
    ALPHA,
    WEIGHTS,
    boxes_of,
    instances,
    iou,
    matched,
    native_loss,
    united,
)
from med_assets.training.job import run
from tests.med_assets.programs.breast_us.builders import P, write_job

SMALL = ("input_px=32",)


def demo(*overrides: str) -> BreastExperiment:
    found = load(P, "sam3_instances", [*SMALL, *overrides], profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def two_lesions() -> torch.Tensor:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 2:6, 2:4] = 1
    mask[..., 10:14, 8:16] = 1
    return mask


def outputs(boxes: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor, presence: float = 0.0) -> SimpleNamespace:
    """Outputs of Sam3Model for one image."""
    return SimpleNamespace(
        pred_boxes=boxes[None].clone().requires_grad_(), pred_logits=logits[None].clone().requires_grad_(),
        pred_masks=masks[None].clone().requires_grad_(), presence_logits=torch.tensor([[presence]], requires_grad=True),
    )  # fmt: skip


def test_instances_are_the_parts_that_do_not_touch_and_have_their_boxes() -> None:
    parts = instances(two_lesions()[0, 0])
    assert parts.sum((1, 2)).tolist() == [8, 32]
    assert boxes_of(parts).tolist() == [[2 / 16, 2 / 16, 4 / 16, 6 / 16], [8 / 16, 10 / 16, 1, 14 / 16]]
    assert instances(torch.zeros(4, 4)).shape == (0, 4, 4)
    diagonal = torch.eye(4)
    assert len(instances(diagonal)) == 1


def test_queries_are_matched_one_to_one_at_the_least_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(7, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    boxes, wanted = corners[:5], corners[5:] + 0.01
    scores = torch.randn(5, generator=generator)
    p = scores.sigmoid()

    def cost(query: int, of: int) -> float:
        score = ALPHA * (1 - p[query]) ** 2 * -p[query].log() - (1 - ALPHA) * p[query] ** 2 * -(1 - p[query]).log()
        a, b = boxes[query], wanted[of]
        middle = [(torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])) for box in (a, b)]
        whole = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
        both = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
        union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both
        giou = both / union - (whole - union) / whole
        return float(2 * score + 5 * (middle[0] - middle[1]).abs().sum() - 2 * giou)

    best = min(permutations(range(5), 2), key=lambda pair: cost(pair[0], 0) + cost(pair[1], 1))
    queries, of = matched(scores, boxes, wanted)
    assert {int(o): int(q) for q, o in zip(queries, of, strict=True)} == dict(enumerate(best))


def test_the_terms_are_those_by_hand() -> None:
    mask = two_lesions()
    parts = instances(mask[0, 0])
    right = boxes_of(parts)
    shifted = right + torch.tensor([0.0, 0.0625, 0.0, 0.0625])
    boxes = torch.cat([torch.tensor([[0.4, 0.4, 0.5, 0.5]]), shifted])
    logits = torch.tensor([-3.0, 2.0, 1.0])
    drawn = torch.cat([torch.full((1, 16, 16), -5.0), 10 * parts - 5])
    found = outputs(boxes, logits, drawn, presence=1.5)
    with torch.no_grad():
        total, terms = native_loss(found, mask)
    assert float(terms["l1"]) == pytest.approx(2 * 0.0625 / 2, rel=1e-4)
    overlaps = iou(shifted, right)
    assert overlaps.tolist() == pytest.approx([3 / 5, 3 / 5], rel=1e-4)
    assert float(terms["giou"]) == pytest.approx(1 - 3 / 5, rel=1e-4)
    p = torch.sigmoid(torch.tensor([2.0, 1.0]))
    asked = p**0.25 * overlaps**0.75
    positive = 10 * functional.binary_cross_entropy_with_logits(logits[1:], asked, reduction="sum")
    negative = functional.softplus(logits[0]) * logits[0].sigmoid() ** 2
    assert float(terms["score"]) == pytest.approx(float(positive + negative) / 200, rel=1e-4)
    assert float(terms["presence"]) == pytest.approx(0.5 * float(functional.softplus(torch.tensor(-1.5))), rel=1e-4)
    assert float(terms["mask"]) < 1e-3
    assert float(terms["dice"]) == pytest.approx(float(sum(
        1 - (2 * part.sum() * sure + 1) / (part.sum() * sure + (256 - part.sum()) * (1 - sure) + part.sum() + 1)
        for part in parts for sure in (torch.sigmoid(torch.tensor(5.0)),)
    )) / 2, rel=1e-3)  # fmt: skip
    assert float(total) == pytest.approx(sum(WEIGHTS[name] * float(one) for name, one in terms.items()), rel=1e-5)


def test_an_image_without_a_lesion_teaches_its_absence_alone_and_gives_every_output_a_gradient() -> None:
    found = outputs(torch.rand(3, 4), torch.zeros(3), torch.zeros(3, 16, 16), presence=2.0)
    total, terms = native_loss(found, torch.zeros(1, 1, 16, 16))
    assert {name for name, one in terms.items() if one.detach().any()} == {"presence"}
    total.backward()
    assert float(found.presence_logits.grad) > 0
    assert all(one.grad is not None and not one.grad.any() for one in (found.pred_boxes, found.pred_masks))


def test_the_lesion_is_what_the_surest_query_says_of_each_place() -> None:
    masks = torch.full((2, 4, 4), -20.0)
    masks[0, :2], masks[1, 2:] = 20, 20
    found = outputs(torch.rand(2, 4), torch.tensor([3.0, -3.0]), masks, presence=20.0)
    probability = united(found).sigmoid()[0, 0]
    assert probability[0].tolist() == pytest.approx([0.9526] * 4, abs=1e-3)
    assert probability[3].tolist() == pytest.approx([0.0474] * 4, abs=1e-3)


def test_what_the_instances_can_not_do_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="learns pixels"):
        demo("teacher=sam_lora", "++distil={task:0.5,logit:0.5,feature:0,attention:0,temperature:4}")
    semantic = load(P, "sam3", [*SMALL], profile="demo")
    assert "answers by semantic" in (demo().objection_to(semantic) or "")
    assert semantic.hash() == load(P, "sam3", [*SMALL, "++network.answer=semantic"], profile="demo").hash()


def test_all_of_the_detector_is_trained_by_its_own_loss_and_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = BreastModule(demo(), 1)
    assert isinstance(module.network, Segmenter)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 6:24] = 1
    batch = {"image": 0.2 + 0.6 * mask, "mask": mask}
    trained = [one for one in module.network.parameters() if one.requires_grad]
    adam, losses = torch.optim.AdamW(trained, 2e-3), []
    for _ in range(25):
        adam.zero_grad()
        loss, terms = module.losses(batch)
        assert set(terms) == set(WEIGHTS)
        loss.backward()
        losses.append(float(loss.detach()))
        adam.step()
    without = [name for name, one in module.network.named_parameters() if one.requires_grad and one.grad is None]
    assert not without
    assert losses[-1] < 0.6 * losses[0]
    job = write_job(tmp_path / "job", "sam3_instances", (*SMALL, "data.per_epoch=2", "schedule.epochs=1"))
    run(job)
    assert list(job.rglob("weights.pt"))
