"""How often the gate promotes a model that is no better, and how often it finds one that is: `python -m bench.gate_power`.

Differences of a challenger to the reference are drawn with mean 0 (no challenger is better: any promotion is false) and with
one challenger better by 0.5 or 1 SD beside others that are not. p comes from `metrics.paired_test` and is adjusted by Holm's method
over the challengers, as `stages.promotion` does. One core, 10 to 25 minutes. `--write` puts the table into docs/promotion.md.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.common import show
from med_assets.metrics.paired_test import ALPHA, Design, Resamples, one_sided_p

SIZES, CHALLENGERS, EFFECTS = (10, 20, 40, 80), (1, 4, 8), (0.5, 1.0)
SIMULATIONS, SEED = 10_000, 20260101
RESAMPLES = {10: 19_999, 20: 19_999, 40: 9_999, 80: 9_999}
"""By patients: as many as the gate draws where its least p would else decide."""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "promotion.md"
BEGIN, END = "<!-- made by python -m bench.gate_power --write -->", "<!-- end of the table -->"

Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


def normal(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Standard normal differences."""
    return generator.standard_normal(shape)


def exponential(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Most cases a little better, few much worse; skewness 2."""
    return generator.exponential(size=shape) - 1


def log_normal(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """The same with a longer tail; skewness 6.2."""
    return (generator.lognormal(size=shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def student(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Student's t with 3 degrees of freedom, of SD 1."""
    return generator.standard_t(3, size=shape) / np.sqrt(3)


def changed(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Right or wrong: one case in five changes, to the better as often as to the worse; of SD 1."""
    return generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=shape) / np.sqrt(0.2)


def alone(n: int) -> Design:
    """One case a patient."""
    return Design.of(range(n), None)


def by_class(n: int) -> Design:
    """Three patients in ten are of the second class; the mean is that of both classes."""
    return Design.of(range(n), [place >= round(0.7 * n) for place in range(n)])


def clustered(n: int) -> Design:
    """Patients with one, two and three cases in turn."""
    return Design.of(np.repeat(np.arange(n), 1 + np.arange(n) % 3).tolist(), None)


KINDS: tuple[tuple[str, Draw, Callable[[int], Design]], ...] = (
    ("normal", normal, alone),
    ("skewed (exponential)", exponential, alone),
    ("skewed (log-normal)", log_normal, alone),
    ("heavy tails (t, 3)", student, alone),
    ("right or wrong", changed, alone),
    ("by class, normal", normal, by_class),
    ("by class, log-normal", log_normal, by_class),
    ("patient clusters, normal", normal, clustered),
    ("patient clusters, log-normal", log_normal, clustered),
)


def differences(draw: Draw, design: Design, rows: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Differences (row, case) of SD 1 and mean 0; half the variance is the patient's where there are clusters."""
    cases = len(design.patients)
    if design.n_patients == cases:
        return draw(generator, (rows, cases)).astype(np.float32)
    shared = draw(generator, (rows, design.n_patients))[:, design.patients]
    return ((shared + draw(generator, (rows, cases))) / np.sqrt(2)).astype(np.float32)


def rejected(p: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Whether Holm's method rejects each hypothesis, (decision, challenger)."""
    order = np.argsort(p, axis=1)
    left = p.shape[1] - np.arange(p.shape[1])
    adjusted = np.maximum.accumulate(np.take_along_axis(p, order, axis=1) * left, axis=1)
    found = np.empty(p.shape, dtype=bool)
    np.put_along_axis(found, order, adjusted <= ALPHA, axis=1)
    return found


def simulate(draw: Draw, design: Design, simulations: int, seed: int) -> dict[int, list[float]]:
    """By number of challengers: share of decisions with a false promotion, then the power at each effect."""
    generator, most = np.random.default_rng(seed), max(CHALLENGERS)
    resamples = Resamples.of(design, seed, RESAMPLES[design.n_patients])
    null = differences(draw, design, simulations * most, generator)
    p = one_sided_p(null, design, resamples).reshape(simulations, most)
    first = null.reshape(simulations, most, -1)[:, 0]
    better = [one_sided_p(first - np.float32(effect), design, resamples) for effect in EFFECTS]
    found = {}
    for number in CHALLENGERS:
        shares = [float(rejected(p[:, :number]).any(axis=1).mean())]
        for own in better:
            others = np.column_stack([own, p[:, 1:number]])
            shares.append(float(rejected(others)[:, 0].mean()))
        found[number] = shares
    return found


def table(simulations: int) -> list[list[str]]:
    """A row per kind and n."""
    rows = []
    for number, (name, draw, design_of) in enumerate(KINDS):
        for n in SIZES:
            found = simulate(draw, design_of(n), simulations, SEED + number)
            cells = [" / ".join(f"{100 * found[m][column]:.1f}" for m in CHALLENGERS) for column in range(3)]
            rows.append([name, str(n), *cells])
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Simulate, print and, if asked, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=SIMULATIONS)
    parser.add_argument("--write", action="store_true", help="put the table into docs/promotion.md")
    options = parser.parse_args()
    started = time.perf_counter()
    header = ["differences", "patients", "false promotions, %", "power at 0.5 SD, %", "power at 1 SD, %"]
    rows = table(options.simulations)
    show(f"The gate, {options.simulations} decisions a row, {time.perf_counter() - started:.0f} s", header, rows)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
        before, _, rest = text.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
