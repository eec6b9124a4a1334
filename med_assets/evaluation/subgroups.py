"""Scores by subgroup: cases that share a value of a declared fact, such as a device, or whose value lies in the same band.

`subgroups` of `conf/<program>/_program.yaml` declares them. A case without the fact is in the subgroup `unknown` of it, so that
the subgroups of a fact hold every case.
"""

from bisect import bisect_right
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pandas as pd

from med_assets import program
from med_assets.catalog import FactValue
from med_assets.evaluation.aggregates import Aggregate, aggregate, cell
from med_assets.experiments import policies
from med_assets.program import Fact
from med_assets.records import CaseScore, SubgroupScore
from med_assets.storage.versions import versioned

UNKNOWN = "unknown"
"""Label of the subgroup of cases without the fact."""

Id = TypeVar("Id", bound=Hashable)
Facts = Mapping[str, FactValue]


@dataclass(frozen=True)
class Subgroup:
    """The cases that share a value, or a band of values, of a fact."""

    fact: str
    label: str

    def __str__(self) -> str:
        return f"{self.fact} = {self.label}"


@dataclass(frozen=True)
class SubgroupAggregate(Aggregate):
    """A metric over the cases of a split and subgroup. For fewer patients than the policy asks for mean and ends are None, and `note` says so."""

    fact: str
    subgroup: str
    n_cases: int
    n_patients: int
    note: str | None


def label_of(fact: Fact, limits: Sequence[float], value: FactValue) -> str:
    """Label of the subgroup of a value: the value, or the band between `limits`, which holds its lower limit."""
    if value is None or value != value or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    place, unit = bisect_right(limits, value), f" {fact.unit}" if fact.unit not in ("", "1", "count") else ""
    if place == 0:
        return f"below {limits[0]:g}{unit}"
    if place == len(limits):
        return f"{limits[-1]:g}{unit} or more"
    return f"{limits[place - 1]:g} to below {limits[place]:g}{unit}"


def subgroups(program_name: str, facts: Mapping[Id, Facts]) -> dict[Subgroup, frozenset[Id]]:
    """Members by declared subgroup that has any: facts as they are declared, bands ascending, words sorted, `unknown` last.

    `facts` are those of each case by whatever names it.
    """
    known = program.get(program_name).facts
    found: dict[Subgroup, frozenset[Id]] = {}
    for name, limits in policies.of(program_name).subgroups.facts.items():
        members: dict[str, set[Id]] = {}
        for one, values in facts.items():
            members.setdefault(label_of(known[name], limits, values.get(name)), set()).add(one)
        bands = [label_of(known[name], limits, value) for value in _one_of_each_band(limits)]
        order = [*bands, *sorted(members.keys() - {*bands, UNKNOWN}), UNKNOWN]
        found |= {Subgroup(name, label): frozenset(members[label]) for label in order if label in members}
    return found


def _one_of_each_band(limits: Sequence[float]) -> list[float]:
    return [limits[0] - 1, *limits] if limits else []


def reported_metrics(program_name: str) -> list[tuple[str, str]]:
    """Metric and subject of the scores that are reported by subgroup: those that decide, then what the leaderboard shows beside."""
    chosen = program.get(program_name)
    return [*((metric.name, metric.subject) for metric in chosen.deciding_metrics), *chosen.further_metrics]


@versioned("1")
def subgroup_scores(
    program_name: str, scores: Sequence[CaseScore], facts: Mapping[str, Facts]
) -> list[SubgroupAggregate]:
    """Scores by split and declared subgroup, aggregated as those of all cases are; `facts` by case id.

    A subgroup of fewer than `subgroups.min_patients` patients with a value has its numbers of cases and patients and no score.
    """
    least = policies.of(program_name).subgroups.min_patients
    cases = {score.case_id: facts.get(score.case_id, {}) for score in scores}
    wanted = reported_metrics(program_name)
    found = []
    for subgroup, members in subgroups(program_name, cases).items():
        own = [score for score in scores if score.case_id in members]
        for one in sorted(aggregate(program_name, own, wanted), key=lambda one: (one.split, _place(wanted, one))):
            n_cases = len({score.case_id for score in own if score.split == one.split})
            patients = _patients(own, one)
            few = len(patients) < least
            found.append(
                SubgroupAggregate(
                    **vars(replace(one, mean=None, low=None, high=None) if few else one),
                    fact=subgroup.fact,
                    subgroup=subgroup.label,
                    n_cases=n_cases,
                    n_patients=len(patients),
                    note=f"too few: {len(patients)} of at least {least} patients" if few else None,
                )
            )
    return found


def _place(wanted: Sequence[tuple[str, str]], one: Aggregate) -> int:
    return wanted.index((one.metric, one.subject))


def _patients(scores: Sequence[CaseScore], one: Aggregate) -> Collection[str]:
    """Patients of a split with a value of a metric; of one that is pooled over cases, all of the split."""
    key = (one.split, one.metric, one.subject)
    own = [score for score in scores if (score.split, score.metric, score.subject) == key]
    if own:
        return {score.patient_id for score in own if score.value is not None}
    return {score.patient_id for score in scores if score.split == one.split}


def subgroup_table(
    rows: Sequence[SubgroupAggregate | SubgroupScore], only: Collection[tuple[str, str]] | None = None
) -> pd.DataFrame:
    """Scores by subgroup for people: a row per split, fact and subgroup, and a column per metric, those of `only` with their subjects if given."""
    rows = [row for row in rows if only is None or (row.metric, row.subject) in only]
    subjects: dict[str, set[str]] = {}
    for row in rows:
        subjects.setdefault(row.metric, set()).add(row.subject)
    entries: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row.split != "test"):
        key = (row.split, row.fact, row.subgroup)
        entry = entries.setdefault(
            key, {"split": row.split, "fact": row.fact, "subgroup": row.subgroup, "cases": str(row.n_cases)}
        )
        name = row.metric if len(subjects[row.metric]) == 1 else f"{row.metric} {row.subject}"
        unit = f" ({row.unit})" if row.unit not in ("", "1") else ""
        entry[f"{name}{unit}"] = row.note or cell(row) or "undefined"
    return pd.DataFrame(list(entries.values())).fillna("")
