"""Probes beside the linear and MLP heads: attention over cells of tokens, and nearest neighbours."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments.configuration import result_fields
from med_assets.programs.retinal_oct.embeddings import FOLDER, EmbeddingCache
from med_assets.programs.retinal_oct.experiment import Attention
from med_assets.programs.retinal_oct.kept import PREDICTION
from med_assets.programs.retinal_oct.neighbours import vote
from med_assets.programs.retinal_oct.network import AttentionPool, build_encoder, embed, embed_cells, tokens
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.scorer import load_predictor
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.training.job import run
from tests.med_assets.programs.retinal_oct.builders import TINY, write_job, write_prepared
from tests.med_assets.programs.retinal_oct.experiments import tiny

torch.set_num_threads(1)

FROZEN = (*TINY, "learning.unfreeze_at=null")
CELLS = ("head.attention.cells=[1,2,1]", "head.attention.heads=2")
TRIED = "learning.neighbours.tried=[1,2,3,50]"


def predicted(job: Path, tmp_path: Path, number: int = 0) -> dict[str, float]:
    """Logits of a case of a job by its checkpoint."""
    (out := tmp_path / f"out{number}").mkdir()
    load_predictor(job, tmp_path / FOLDER).predict(job / "cases" / f"case{number}", out)
    found: dict[str, float] = json.loads((out / PREDICTION).read_text())["logits"]
    return found


def test_cells_are_the_means_of_the_tokens_in_them_and_their_mean_is_the_mean_token(tmp_path: Path) -> None:
    experiment = tiny()
    encoder, volumes = build_encoder(experiment.network), torch.randn(2, 1, 4, 16, 16)
    grid = experiment.network.grid
    with torch.inference_mode():
        found = embed_cells(encoder, volumes, grid, (2, 1, 2))
        whole = tokens(encoder, volumes).reshape(2, *grid, -1)
        assert grid == (2, 2, 2)
        assert torch.allclose(found[:, 0], whole[:, 0, :, 0].mean(dim=1), atol=1e-6)
        assert torch.allclose(found[:, 3], whole[:, 1, :, 1].mean(dim=1), atol=1e-6)
        assert torch.allclose(found.mean(dim=1), embed(encoder, volumes), atol=1e-6)
    case = PreparedCase.open(write_prepared(tmp_path / "case", 1))
    cache, attention = EmbeddingCache(tmp_path / "cache"), Attention(cells=(2, 1, 2), heads=2)
    first = cache.of(encoder, experiment.network, [case], 1, attention)
    assert first.shape == (1, 4, 16)
    assert cache.of(encoder, experiment.network, [case], 1).shape == (1, 16)
    assert torch.equal(cache.of(encoder, experiment.network, [case], 1, attention), first)
    assert (cache.computed, cache.reused) == (2, 1)


def test_attention_learns_which_cell_matters_where_a_mean_can_not() -> None:
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    cells = torch.randn(64, 4, 8) * 0.1
    # The sign of one feature in the cell that another feature marks; the other cells cancel it in the mean.
    marked = torch.randint(0, 4, (64,))
    sign = labels * 2.0 - 1
    cells[..., 0] -= sign[:, None] / 3
    cells[torch.arange(64), marked, 0] = sign
    cells[torch.arange(64), marked, 1] = 3
    pool, out = AttentionPool(8, 2), torch.nn.Linear(8, 2)
    optimiser = torch.optim.Adam([*pool.parameters(), *out.parameters()], lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(out(pool(cells)), labels)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1
    assert float(cells[..., 0].mean(dim=1).abs().max()) < 0.2


def test_an_attentive_probe_is_trained_on_kept_cells_and_predicts(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "attentive_multi_domain", [*FROZEN, *CELLS])
    run(job)
    weights = torch.load(job / "weights.pt", weights_only=True)
    assert weights["head.pool.query"].shape == (1, 1, 16)
    files = sorted((tmp_path / FOLDER).rglob("*.npy"))
    assert {np.load(file).shape for file in files} == {(2, 16)}
    torch.manual_seed(tiny().seed)
    logits = predicted(job, tmp_path)
    assert set(logits) == set(CLASSES)
    assert all(math.isfinite(value) for value in logits.values())
    assert sorted((tmp_path / FOLDER).rglob("*.npy")) == files, (
        "a prediction takes the cells that training has computed"
    )


def test_cells_and_heads_must_divide_and_neighbours_train_nothing() -> None:
    for overrides, message in (
        (("head.attention.cells=[3,2,1]", "head.attention.heads=2"), "divide the grid of tokens"),
        (("head.attention.cells=[1,2,1]", "head.attention.heads=3"), "divide network.hidden"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            tiny("attentive_multi_domain", "learning.unfreeze_at=null", *overrides)
    with pytest.raises(ConfigurationError, match="which trains nothing"):
        tiny("neighbours_multi_domain", "learning.unfreeze_at=1")


def test_probes_that_came_later_leave_the_hashes_of_the_others() -> None:
    fields = result_fields(tiny("random_probe"))
    assert "attention" not in fields["head"]
    assert "neighbours" not in fields["learning"]


def test_votes_are_those_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    weights = {
        "bank": bank, "labels": torch.tensor([0, 1, 2, 0]), "mean": torch.zeros(2), "std": torch.ones(2),
        "class_weights": torch.tensor([1.0, 2.0, 1.0, 1.0]), "k": torch.tensor(3),
    }  # fmt: skip
    temperature = 0.5
    (found,) = vote(torch.tensor([[2.0, 0.0]]), weights, temperature).exp().tolist()
    similar = {0: 1.0, 3: 2**-0.5, 1: 0.0}  # the opposite one is the fourth
    votes = [0.0] * 4
    for place, cosine in similar.items():
        label = int(weights["labels"][place])
        votes[label] += math.exp(cosine / temperature) * float(weights["class_weights"][label])
    expected = [(3 * one / sum(votes) + 1) / 7 for one in votes]
    assert found == pytest.approx(expected)
    assert sum(found) == pytest.approx(1)
    (one,) = vote(torch.tensor([[2.0, 0.0]]), weights | {"k": torch.tensor(1)}, 1e-4).exp().tolist()
    assert one == pytest.approx([2 / 5, 1 / 5, 1 / 5, 1 / 5])


def test_validation_picks_the_number_of_neighbours_among_those_there_are(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "neighbours_multi_domain", [*FROZEN, TRIED], cases=9)
    rows = json.loads((job / "cases.json").read_text())
    for row in rows[-4:]:
        row["split"] = "val"
    (job / "cases.json").write_text(json.dumps(rows))
    result = run(job)
    weights = torch.load(job / "weights.pt", weights_only=True)
    assert weights["bank"].shape == (5, 16)
    k = int(weights["k"])
    assert k in (1, 2, 3)
    assert result["best_metrics"]["neighbours"] == k
    assert sorted(result["used"]) == sorted(row["case_id"] for row in rows), "it was chosen on the validation cases"
    assert (result["n_train"], result["n_val"]) == (5, 4)
    # A training case is its own nearest neighbour, at least when one votes.
    single = weights | {"k": torch.tensor(1)}
    logits = vote(weights["bank"], single, 0.07)
    assert logits.argmax(dim=1).tolist() == weights["labels"].tolist()
    right = [
        max(found, key=lambda name: found[name]) == CLASSES[number % 4]
        for number in range(5, 9)
        for found in [predicted(job, tmp_path, number)]
    ]
    assert np.mean(right) == pytest.approx(result["best_metrics"]["val_accuracy"])
    (job / "weights.pt").unlink()
    torch.save({name: tensor for name, tensor in weights.items() if name != "bank"}, job / "weights.pt")
    with pytest.raises(CheckpointMismatch, match="bank"):
        load_predictor(job, tmp_path / FOLDER)


def test_neighbours_start_from_the_encoder_of_a_pretraining(tmp_path: Path) -> None:
    first = write_job(tmp_path / "pretrain", "pretrain_multi_domain", [*TINY, "schedule.val_every=1"])
    run(first)
    job = write_job(tmp_path / "job", "neighbours_multi_domain", [*FROZEN, TRIED, "initial=pretrain_multi_domain"])
    (job / "initial.pt").write_bytes((first / "weights.pt").read_bytes())
    run(job)
    before, after = (torch.load(folder / "weights.pt", weights_only=True) for folder in (first, job))
    assert torch.equal(after["encoder.norm.weight"], before["context_encoder.norm.weight"])
    assert len(after["labels"]) == 4
