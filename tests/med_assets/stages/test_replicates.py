"""The leaderboard keeps the champion's row, and shows the seeds of one experiment side by side."""

import numpy as np
import pytest

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.evaluation.leaderboard import board
from med_assets.evaluation.replicates import replicates, spread
from med_assets.evaluation.scoring import scores_of
from med_assets.launch import runs
from med_assets.settings import Workspace
from tests.conftest import MadeOnce
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import VAL, aggregates, constant, make_baseline, model


@pytest.fixture
def ws(made_once: MadeOnce) -> Workspace:
    return made_once(make_baseline)


def test_a_champion_whose_experiment_was_trained_again_keeps_its_row(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(4.0))
    stages.champion(ws, P)
    noise = np.random.default_rng(1).normal(0, 1, len(VAL))
    second = model(ws, "baseline", {name: 4.0 + noise[place] for place, name in enumerate(VAL)})
    tables = board(ws, P, Catalog(ws, P).champion()).tables
    checkpoints = dict(zip(tables["leaderboard"]["experiment"], tables["leaderboard"]["checkpoint"], strict=True))
    assert checkpoints["baseline (champion)"] == first
    assert checkpoints["baseline"] == second
    pairs = {frozenset(pair) for pair in tables["pairwise"][["first", "second"]].itertuples(index=False, name=None)}
    assert frozenset({"baseline", "baseline (champion)"}) in pairs


def test_seeds_of_one_experiment_are_replicates_and_other_settings_are_not(ws: Workspace) -> None:
    for value, overrides in ((4.0, ["seed=1"]), (4.4, ["seed=2"]), (9.0, ["seed=2", "optimiser.lr=0.5"])):
        checkpoint = model(ws, "baseline", constant(value), overrides=overrides)
        version = Catalog(ws, P).dataset().version
        rows, _, _ = scores_of(ws, P, "baseline", checkpoint)
        runs.record_scores(ws, P, "baseline", checkpoint, aggregates("baseline", checkpoint, rows, version))
    found = replicates(ws, P)
    assert sorted(one.seed for one in found) == [1, 2]
    over = spread(P, found).iloc[0]
    assert (over["experiment"], over["seeds"]) == ("baseline", "1, 2")
    assert float(over["mean over seeds"]) == pytest.approx(4.2 + 0.145, abs=1e-3)
    assert float(over["SD between seeds"]) == pytest.approx(0.4 / 2**0.5, abs=1e-3)
    tables = board(ws, P, Catalog(ws, P).champion()).tables
    names = set(tables["leaderboard"]["experiment"])
    assert {"baseline", "baseline (seed 1)", "baseline (seed 2)"} <= names
    assert len(tables["replicates"]) == 2
