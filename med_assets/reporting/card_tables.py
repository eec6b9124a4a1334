"""The tables of a data card: what a home holds of a dataset, without anything that identifies a patient."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.preparation.labels import label_rows
from med_assets.program import Fact
from med_assets.reporting.card_words import DatasetWords
from med_assets.settings import Settings

QUARTILES_FROM = 10
"""Cases with a value from which the quartiles of a fact are published: those of fewer would nearly be values of single cases."""


@dataclass(frozen=True)
class CardField:
    """A column of a table: its name, type (str, float, int or bool) and what it holds."""

    name: str
    type: type
    description: str


@dataclass(frozen=True)
class CardTable:
    """A table of a data card, one CSV file and one record set."""

    name: str
    description: str
    fields: tuple[CardField, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows; whole numbers stay whole where some are missing."""
        names = [field.name for field in self.fields]
        found = pd.DataFrame(list(self.rows), columns=names, dtype=object)
        kinds = {int: "Int64", bool: "boolean", float: "Float64", str: "object"}
        return found.astype({field.name: kinds[field.type] for field in self.fields})


def card_tables(ws: Settings, program_name: str, words: DatasetWords) -> list[CardTable]:
    """The tables of the present dataset; those with a row per case only as far as the site's words say. Raises ArtifactMissing."""
    catalog = Catalog(ws, program_name)
    cases = sorted(catalog.described(), key=lambda case: case.artifact)
    found = [_splits(cases), _facts(program_name, cases), _labels(ws, program_name, cases), _refused(catalog)]
    if words.cases != "counts":
        found += [_cases(program_name, cases, words), _files(ws, program_name, cases, words)]
    return [table for table in found if table.rows]


def _splits(cases: Sequence[Case]) -> CardTable:
    frame = pd.DataFrame(
        [(case.split or "unassigned", case.case_id, case.patient_id, case.synthetic) for case in cases],
        columns=["split", "case", "patient", "synthetic"],
    )
    rows = [
        (str(split), int(part["case"].nunique()), int(part["patient"].nunique()), int(part["synthetic"].sum()))
        for split, part in frame.groupby("split")
    ]
    return CardTable(
        "splits",
        "Cases and patients by split. A patient is in one split alone.",
        (
            CardField("split", str, "train, val, test, external, or unassigned"),
            CardField("cases", int, "cases"),
            CardField("patients", int, "patients of these cases"),
            CardField("synthetic", int, "synthetic cases among them"),
        ),
        tuple(rows),
    )


def _facts(program_name: str, cases: Sequence[Case]) -> CardTable:
    rows = []
    for name, fact in program.get(program_name).facts.items():
        values = [value for case in cases if (value := case.facts.get(name)) is not None and value == value]
        rows.append((name, fact.type.__name__, fact.unit, fact.meaning, len(values), *_quartiles(fact, values)))
    return CardTable(
        "facts",
        f"The facts that are measured of each case, over all cases. Quartiles are given from {QUARTILES_FROM} cases on.",
        (
            CardField("fact", str, "name of the fact"),
            CardField("type", str, "str, float, int or bool"),
            CardField("unit", str, "unit; 1 or empty where there is none"),
            CardField("meaning", str, "what is measured"),
            CardField("cases", int, "cases in which it is defined"),
            CardField("lower_quartile", float, "lower quartile, of numbers"),
            CardField("median", float, "median, of numbers"),
            CardField("upper_quartile", float, "upper quartile, of numbers"),
        ),
        tuple(rows),
    )


def _quartiles(fact: Fact, values: Sequence[Any]) -> tuple[float | None, float | None, float | None]:
    if fact.type not in (int, float) or fact.of_one_case or len(values) < QUARTILES_FROM:
        return None, None, None
    low, middle, high = pd.Series(values, dtype=float).quantile([0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def _labels(ws: Settings, program_name: str, cases: Sequence[Case]) -> CardTable:
    """Labels by name and meaning with the cases that have them; a value that is a word, such as a class, is part of the name."""
    counted: Counter[tuple[str, str]] = Counter()
    for case in cases:
        rows = label_rows(program_name, ws.store.fetch(case.artifact))
        counted.update(
            {
                (f"{row.name}: {row.value}" if isinstance(row.value, str) else row.name, row.maps_to)
                for row in rows
                if row.voxels is None or row.voxels
            }
        )
    return CardTable(
        "labels",
        "Labels of the cases, made by people unless the limitations say otherwise, and what they count as.",
        (
            CardField("label", str, "name of the label, with its value where that is a word"),
            CardField("counts_as", str, "what it counts as here; empty for nothing"),
            CardField("cases", int, "cases that have it"),
        ),
        tuple((*label, n) for label, n in sorted(counted.items())),
    )


def _refused(catalog: Catalog) -> CardTable:
    counted = Counter(row.reason_code or "unknown" for row in catalog.quarantined())
    return CardTable(
        "refused",
        "What arrived and is not in the dataset, by reason.",
        (
            CardField("reason_code", str, "code of the reason"),
            CardField("cases", int, "cases, or groups of files that made no case"),
        ),
        tuple(sorted(counted.items())),
    )


def _cases(program_name: str, cases: Sequence[Case], words: DatasetWords) -> CardTable:
    facts = program.get(program_name).facts
    named = words.cases == "pseudonyms"
    fields = [
        CardField("artifact", str, "key of the prepared arrays: the hash of what they were made of"),
        CardField("split", str, "split of the patient"),
        CardField("fold", int, "cross-validation fold of the patient"),
        CardField("synthetic", bool, "whether it is marked as synthetic"),
    ]
    if named:
        fields += [
            CardField("case", str, "pseudonym of the case, keyed"),
            CardField("patient", str, "pseudonym of the patient, keyed"),
        ]
    fields += [CardField(name, facts[name].type, _meaning(facts[name])) for name in words.facts]
    rows = [
        (
            case.artifact,
            case.split,
            case.fold,
            case.synthetic,
            *((case.case_id, case.patient_id) if named else ()),
            *(case.facts.get(name) for name in words.facts),
        )
        for case in cases
    ]
    return CardTable("cases", "The cases, in the order of their artifacts.", tuple(fields), tuple(rows))


def _meaning(fact: Fact) -> str:
    return f"{fact.meaning} ({fact.unit})" if fact.unit not in ("", "1") else fact.meaning


def _files(ws: Settings, program_name: str, cases: Sequence[Case], words: DatasetWords) -> CardTable:
    """The files of the arrays with their hashes: of what a model sees, unless the site wants all.

    A label such as a study group, or the pseudonym in `case.json`, has so few possible values that its hash tells it to who tries them all.
    """
    seen = {name for name in program.get(program_name).inputs if not name.endswith(".json")}
    rows = [
        (case.artifact, name, sha256)
        for case in cases
        for name, sha256 in sorted(ws.store.file_hashes(case.artifact).items())
        if words.files == "all" or name in seen
    ]
    which = "All files of the prepared arrays" if words.files == "all" else "The prepared arrays that a model sees"
    return CardTable(
        "files",
        f"{which}, by which a copy of the data is checked.",
        (
            CardField("artifact", str, "key of the prepared arrays"),
            CardField("file", str, "name of the file"),
            CardField("sha256", str, "SHA-256 of its bytes"),
        ),
        tuple(rows),
    )
