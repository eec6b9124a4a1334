"""Cases are scored by several processes with the scores of one; a case that ends its process has no score, and the others have."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from med_assets.evaluation import scoring
from med_assets.evaluation.scoring import ENDED, recorded_scores, score_cases, scores_of
from med_assets.experiments import policies
from med_assets.intake.reader import Readers
from med_assets.settings import Workspace
from med_assets.storage.files import folder_hashes
from med_assets.storage.progress import Progress, followed_by
from med_assets.training.predict import run
from tests.med_assets.evaluation.untrained import P, case, checkpoint
from tests.med_assets.stages.models import TRAIN, VAL, cases, configure, constant, model


@pytest.fixture
def at_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of two workers, which score the first case."""
    monkeypatch.setattr(scoring, "STARTING_S", 0.0)
    return replace(workspace, workers=2)


def predicted(ws: Workspace, n: int) -> tuple[str, list[str]]:
    """An untrained model and the keys of its predictions for so many cases, in their order."""
    model = checkpoint(ws)
    made = scoring.predict_unscored(ws, P, model, [case(ws, number) for number in range(n)], run)
    return model, [made.keys[case(ws, number).artifact] for number in range(n)]


def test_scores_failures_and_bytes_are_those_of_one_process(at_once: Workspace, tmp_path: Path) -> None:
    found, reported = [], list[Progress]()
    for ws in (at_once, replace(at_once, home=tmp_path / "one", workers=1)):
        model, predictions = predicted(ws, 5)
        (ws.store.fetch(predictions[3]) / "prediction_gy.npy").write_bytes(b"no array")
        cases = [case(ws, number) for number in range(5)]
        with followed_by(reported.append):
            scores, counts, failures = score_cases(ws, P, model, cases, run)
        assert (list(scores), list(failures)) == (["c0", "c1", "c2", "c4"], ["c3"])
        assert counts == {"new": 4, "reused": 0}
        hashes = {
            path: sha
            for path, sha in folder_hashes(ws.home / "store").items()
            if path.startswith(("score/", "prepared/"))
        }
        found.append((scores, failures, hashes))
        assert score_cases(ws, P, model, cases[:3], run)[1] == {"new": 0, "reused": 3}
    assert found[0] == found[1]
    assert {one.doing for one in reported} == {"scoring"}, "of several processes alone"
    assert (reported[-1].done, reported[-1].total) == (5, 5)


def test_a_case_that_ends_its_process_has_no_score_after_one_retry_alone(
    at_once: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, predictions = predicted(at_once, 4)
    prediction = at_once.store.fetch(predictions[1]) / "prediction_gy.npy"
    prediction.unlink()
    os.mkfifo(prediction)
    called: list[tuple[bool, str]] = []
    call = Readers.call

    def end_while_it_reads(readers: Readers) -> None:
        with prediction.open("wb"):  # which waits until the process opens it
            assert readers._process is not None
            readers._process.process.kill()

    def kept(self: Readers, work: Callable[[], None], key: str, limit_s: float | None = None) -> None:
        called.append((self.alone, key))
        if key == "case c1":
            threading.Thread(target=end_while_it_reads, args=(self,)).start()
        call(self, work, key, limit_s)

    monkeypatch.setattr(Readers, "call", kept)
    scores, _, failures = score_cases(at_once, P, model, [case(at_once, number) for number in range(4)], run)
    assert (set(scores), failures) == ({"c0", "c2", "c3"}, {"c1": ENDED})
    assert sorted(called) == [*((False, f"case c{number}") for number in range(4)), (True, "case c1")]


def test_the_test_split_is_opened_for_a_champion_alone_where_the_policy_says_so(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert policies.of("retinal_oct").evaluation.test == "champion"
    cases(workspace, {"train": TRAIN, "val": VAL, "test": ("x0", "x1")})
    scored = model(workspace, "baseline", constant(4.0, (*VAL, "x0", "x1")))
    assert {row.split for row in scores_of(workspace, P, "baseline", scored)[0]} == {"val", "test"}
    configure(tmp_path, monkeypatch, evaluation={"test": "champion"})
    assert {row.split for row in scores_of(workspace, P, "baseline", scored)[0]} == {"val"}
    assert {row.split for row in recorded_scores(workspace, P, "baseline", scored).rows} == {"val"}
    champions = recorded_scores(workspace, P, "baseline", scored, champion=True).rows
    assert {row.split for row in champions} == {"val", "test"}
