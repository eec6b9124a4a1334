"""Every metric says what values it can have, and no interval leaves them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from med_assets import program
from med_assets.errors import ConfigurationError
from med_assets.metrics.bootstrap import mean_with_interval, paired_difference
from med_assets.metrics.power_law import PowerLaw, fit
from med_assets.metrics.ranges import ANY, PERCENT, POSITIVE, SHARE, Range, range_of
from med_assets.program import Metric
from med_assets.programs.lumbar_mr.measures import MEASURES
from med_assets.programs.retinal_oct.score import CONVENTIONS

PACKAGE = Path(program.__file__).parent


def declared() -> list[Metric]:
    """The metrics by which something is decided, of all programs."""
    chosen = [program.get(name) for name in program.registered()]
    return [metric for one in chosen for metric in (one.primary_metric, *one.guarded_metrics, one.training_metric)]


def scored() -> Iterator[str]:
    """Names of the metrics that are scored: the first argument of every Score, parts that vary as `x`; names by module constants."""
    yield from (*MEASURES, *CONVENTIONS)
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            if node.func.id not in ("Score", "PooledScore"):
                continue
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)
            elif isinstance(name, ast.Name) and name.id in constants:
                yield str(constants[name.id])
            elif isinstance(name, ast.JoinedStr):
                parts = [one.value if isinstance(one, ast.Constant) else None for one in name.values]
                known = [
                    str(constants.get(one.value.id, "x"))
                    if isinstance(one, ast.FormattedValue) and isinstance(one.value, ast.Name)
                    else "x"
                    for one in name.values
                ]
                yield "".join(
                    str(part) if part is not None else other for part, other in zip(parts, known, strict=True)
                )


def test_every_metric_of_every_program_states_its_range() -> None:
    names = set(scored())
    assert names >= {"dice", "limits_agreement", "openkbp_dvh_x", "dvh_x", "auroc", "entropy", "volume_error"}
    # In the unit of an image, and of lumbar_mr and of gamma, which give names in other ways.
    others = {"hd95_mm", "hd95_px", "gamma_3pct_3mm", "within_5mm", "localisation_error_3d", "found"}
    for name in (names - {"hd95_x"}) | others:
        range_of(name)
    with pytest.raises(ConfigurationError, match="RANGES"):
        range_of("brilliance")


def test_a_metric_that_decides_has_the_range_of_its_scores() -> None:
    for metric in declared():
        assert metric.range in (SHARE, PERCENT, POSITIVE, ANY)
        if not metric.name.startswith("val_"):
            assert metric.range == range_of(metric.name)


@pytest.mark.parametrize("bounds", [SHARE, PERCENT, POSITIVE, ANY])
def test_no_interval_leaves_the_range_of_a_metric(bounds: Range) -> None:
    rng = np.random.default_rng(3)
    top = bounds.high or 50.0
    far = 0
    for seed in range(12):
        first = top * rng.choice([0.0, 0.02, 1.0], 7, p=[0.1, 0.1, 0.8])
        second = top * rng.choice([0.0, 1.0], 7, p=[0.9, 0.1])
        found = paired_difference(first.tolist(), second.tolist(), seed, bounds=bounds)
        for end, free in zip((found.low, found.high), _ends(first, second, seed), strict=True):
            if end is not None:
                assert end == bounds.of_differences().cut(free)
                far += end != free
        mean = mean_with_interval(first.tolist(), seed)
        assert (mean.low, mean.high) == (bounds.cut(mean.low), bounds.cut(mean.high))
    assert bool(far) == (bounds.of_differences() != ANY)


def _ends(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    found = paired_difference(first.tolist(), second.tolist(), seed)
    return found.low, found.high


def test_a_score_that_a_power_law_predicts_is_one_that_the_metric_can_have() -> None:
    values = np.array([[[0.9], [0.5], [0.05]], [[0.8], [0.3], [0.02]], [[0.95], [0.6], [0.1]]])
    law = fit(values, [2, 4, 8], ["a", "b", "c"], 0, best=1.0, bounds=SHARE)
    free = fit(values, [2, 4, 8], ["a", "b", "c"], 0, best=1.0)
    assert isinstance(law, PowerLaw)
    assert isinstance(free, PowerLaw)
    assert free.score.mean is not None
    assert free.score.mean < 0
    assert law.score.mean == 0
