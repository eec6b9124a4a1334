"""Drift: whether the facts of new cases are distributed as those of the cases that the champion was trained on."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from med_assets import program
from med_assets.catalog import Catalog, FactValue, accepted
from med_assets.evaluation.subgroups import subgroups
from med_assets.experiments import policies
from med_assets.experiments.policies import Monitoring
from med_assets.metrics.bootstrap import SEED
from med_assets.metrics.multiple import holm
from med_assets.records import Drift
from med_assets.settings import Settings
from med_assets.storage.provenance import cases_used_by

POOLED = "since_training"
"""Name, in place of a batch, of all cases together that came in batches after the champion's newest training case."""

KS = "two-sample Kolmogorov-Smirnov: largest difference of the distribution functions"
SHARES = "total variation distance of the shares, permutation test"
PERMUTATIONS = 4999
"""Permutations of the test of shares: the least p it can give is 1 in 5000, below 0.05 / 100 facts."""


def _facts(catalog: Catalog) -> pd.DataFrame:
    """Facts of every accepted case that nobody withdrew or excluded, in its newest version, with the batches that hold it and its first."""
    good = {(case.batch, case.case_id) for case in accepted(catalog.admitted())}
    left_out = catalog.left_out()
    frame = catalog.facts_frame().sort_values("batch", kind="stable")
    kept = [
        (batch, case) in good and case not in left_out
        for batch, case in zip(frame["batch"], frame["case_id"], strict=True)
    ]
    frame = frame[np.array(kept, bool)]
    first = frame.groupby("case_id")["batch"].transform("min")
    return frame.assign(first_batch=first).drop_duplicates("case_id", keep="last")


@dataclass(frozen=True)
class Sides:
    """Facts of the training cases of a checkpoint, and of the new cases that are compared with them, a row per case."""

    reference: pd.DataFrame
    new: pd.DataFrame

    def of(self, cases: Collection[str]) -> "Sides":
        """Those of these cases."""
        return Sides(*(side[side["case_id"].isin(cases)] for side in (self.reference, self.new)))


def _sides(ws: Settings, program_name: str, checkpoint: str, batch: str) -> Sides:
    frame = _facts(Catalog(ws, program_name))
    trained = {case.case_id for case in cases_used_by(ws.store, checkpoint) if case.split == "train"}
    known = frame["case_id"].isin(trained)
    reference = frame[known]
    if batch == POOLED:
        new = frame[frame["first_batch"] > max(reference["first_batch"], default="")]
    else:
        new = frame[~known & (frame["batch"] == batch)]
    return Sides(reference, new)


def drift_rows(ws: Settings, program_name: str, checkpoint: str, batch: str) -> list[Drift]:
    """Compare a batch, or with POOLED all cases since training, with the training cases of a checkpoint; a row per fact.

    Cases of the batch that were trained on are left out. Numbers are compared by the Kolmogorov-Smirnov distance (exact p
    for small samples, conservative where values repeat), booleans and words by their shares. p is adjusted over the
    facts of the comparison by Holm's method. `drifted` is true where the adjusted p is below `drift_alpha` and the distance
    at least `drift_distance`, and undefined, as are distance and p, with fewer than `drift_min_cases` values on a side. Facts
    whose values are of one case each, such as hashes, and words that are the same in all cases are left out.
    """
    return _adjusted(program_name, _rows(program_name, checkpoint, batch, _sides(ws, program_name, checkpoint, batch)))


def subgroup_drift_rows(ws: Settings, program_name: str, checkpoint: str) -> list[Drift]:
    """Compare, within each declared subgroup, all cases since training with the training cases of a checkpoint.

    As `drift_rows` does; the fact that declares a subgroup is left out of it, and so are subgroups of which a side has fewer than
    `drift_min_cases` cases. p is adjusted over all facts of all subgroups together.
    """
    least, sides = policies.of(program_name).monitoring.drift_min_cases, _sides(ws, program_name, checkpoint, POOLED)
    facts = {
        str(row["case_id"]): {str(name): value for name, value in row.items()}
        for side in (sides.reference, sides.new)
        for row in side.to_dict("records")
    }
    rows: list[Drift] = []
    for subgroup, members in subgroups(program_name, facts).items():
        own = sides.of(members)
        if min(len(own.reference), len(own.new)) >= least:
            found = _rows(program_name, checkpoint, POOLED, own)
            rows += [replace(row, subgroup=str(subgroup)) for row in found if row.fact != subgroup.fact]
    return _adjusted(program_name, rows)


def _rows(program_name: str, checkpoint: str, batch: str, both: Sides) -> list[Drift]:
    """A row per fact, with its own p."""
    rule, rows = policies.of(program_name).monitoring, []
    for name, fact in program.get(program_name).facts.items():
        if fact.of_one_case:
            continue
        number = fact.type in (float, int)
        sides = [[value for value in side[name] if not _missing(value)] for side in (both.reference, both.new)]
        if fact.type is str and sides[0] and len({value for side in sides for value in side}) == 1:
            continue
        enough = min(map(len, sides)) >= rule.drift_min_cases
        distance, p = (ks if number else shares)(*sides) if enough else (None, None)
        rows.append(
            Drift(
                program=program_name,
                batch=batch,
                checkpoint=checkpoint,
                subgroup=None,
                fact=name,
                unit=fact.unit,
                convention=KS if number else SHARES,
                reference=_summary(sides[0], number),
                found=_summary(sides[1], number),
                n_reference=len(sides[0]),
                n=len(sides[1]),
                distance=distance,
                p=p,
                p_adjusted=None,
                drifted=None,
            )
        )
    return rows


def _adjusted(program_name: str, rows: Sequence[Drift]) -> list[Drift]:
    """The rows of one comparison with p adjusted over them, and whether each drifted."""
    rule = policies.of(program_name).monitoring
    return [_with_finding(row, p, rule) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]


def _with_finding(row: Drift, p_adjusted: float | None, rule: Monitoring) -> Drift:
    small = row.distance is not None and row.distance < rule.drift_distance
    drifted = None if p_adjusted is None else p_adjusted < rule.drift_alpha and not small
    return replace(row, p_adjusted=p_adjusted, drifted=drifted)


def _missing(value: FactValue) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def ks(reference: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of two samples, 0 to 1, and its two-sided p."""
    from scipy.stats import ks_2samp

    found = ks_2samp(np.asarray(reference, float), np.asarray(new, float), method="auto")
    return float(found.statistic), float(found.pvalue)


def shares(reference: Sequence[FactValue], new: Sequence[FactValue]) -> tuple[float, float]:
    """Total variation distance of the shares of each value, 0 to 1, and the p of its permutation test."""
    values = sorted({str(value) for value in (*reference, *new)})
    if len(values) == 1:
        return 0.0, 1.0
    counts = [np.array([list(map(str, side)).count(value) for value in values]) for side in (reference, new)]
    total, n_new, n = counts[0] + counts[1], len(new), len(reference) + len(new)

    def distance(drawn: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(drawn / n_new - (total - drawn) / (n - n_new)).sum(axis=-1) / 2)

    # Only counts matter, so a permutation is a draw of the new cases from all of them without putting back.
    generator = np.random.default_rng(SEED)
    drawn = generator.multivariate_hypergeometric(total, n_new, size=PERMUTATIONS, method="marginals")
    found = float(distance(counts[1]))
    beyond = int((distance(drawn) >= found - 1e-12).sum())
    return found, (beyond + 1) / (PERMUTATIONS + 1)


def _summary(values: Sequence[FactValue], number: bool) -> str:
    """Median and quartiles of numbers, or the shares of values, for people; empty for none."""
    if not values:
        return ""
    if number:
        low, middle, high = np.percentile(np.asarray(values, float), [25, 50, 75])
        return f"{middle:.4g} ({low:.4g} to {high:.4g})"
    return ", ".join(
        f"{value}: {count / len(values):.0%}" for value, count in sorted(Counter(map(str, values)).items())
    )


def newest(catalog: Catalog, checkpoint: str) -> list[Drift]:
    """Recorded drift of the newest monitored batch and of all cases since training, of this checkpoint."""
    rows = [row for row in catalog.rows(Drift) if row.checkpoint == checkpoint]
    last = max((row.batch for row in rows if row.batch != POOLED), default=None)
    return [row for row in rows if row.batch in (POOLED, last)]


def drift_table(ws: Settings, program_name: str) -> pd.DataFrame:
    """Drift for people, of the champion: all cases since its training and the newest batch, the least likely first."""
    catalog = Catalog(ws, program_name)
    champion = catalog.champion()
    rows = newest(catalog, champion.checkpoint) if champion else []
    rows.sort(
        key=lambda row: (
            row.batch != POOLED,
            row.subgroup or "",
            row.p_adjusted is None,
            row.p_adjusted or 0.0,
            row.fact,
        )
    )
    table = [
        {
            "cases": row.batch.replace("_", " ") if row.batch == POOLED else row.batch,
            "subgroup": row.subgroup or "all",
            "fact": f"{row.fact} ({row.unit})" if row.unit else row.fact,
            "training": f"{row.reference} n = {row.n_reference}".strip(),
            "new": f"{row.found} n = {row.n}".strip(),
            "distance": "undefined" if row.distance is None else f"{row.distance:.2f}",
            "p, adjusted": "undefined" if row.p_adjusted is None else f"{row.p_adjusted:.3g}",
            "drifted": "undefined" if row.drifted is None else "yes" if row.drifted else "no",
        }
        for row in rows
    ]
    return pd.DataFrame(
        table, columns=["cases", "subgroup", "fact", "training", "new", "distance", "p, adjusted", "drifted"]
    )


def drifted_facts(ws: Settings, program_name: str) -> tuple[str, ...]:
    """Facts in which all cases since the champion's training drift from its training set, computed now; none without one."""
    champion = Catalog(ws, program_name).champion()
    rows = drift_rows(ws, program_name, champion.checkpoint, POOLED) if champion else []
    return tuple(row.fact for row in rows if row.drifted)
