"""Thresholds of the uncertainty measures, fitted on accepted normal spines to a stated false-alarm rate.

They are a record with the cases, the data version and the checkpoint they came from, and no constant anywhere. The rate is
promised by the split-conformal quantile: of new normal cases that are like those of the fit, at most that share is flagged.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.experiments.parts import Settings
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.measures import ALL, MEASURES, TRANSITIONAL, Table
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import digest, read_yaml, write_text

if TYPE_CHECKING:
    import pandas as pd

CONF = "_risk.yaml"

Risk = Literal["High", "Medium", "Low", "Not found", "Unknown"]
"""Not found: the level or its measure is missing, which is never normal. Unknown: too few normal cases for a threshold."""

SUBJECTS = (*LEVELS, ALL)


FORMER = "unjudged"
"""Former name of the field `unlabelled`. It is still read, and it stands for the field in records of thresholds and their hashes."""


class RiskSettings(Settings):
    """Which share of normal spines may be flagged, and by what."""

    high_rate: float = Field(gt=0, lt=1, description="false-alarm rate of High among normal spines, 0 to 1")
    medium_rate: float = Field(gt=0, lt=1, description="false-alarm rate of Medium and High together, 0 to 1")
    measure: str = Field(description="uncertainty measure that the risk of a case is read from")
    level: str = Field(description="level that it is read at, or all: that of the least certain level")
    unlabelled: Literal["left out", "normal"] = Field(
        default="left out",
        validation_alias=AliasChoices("unlabelled", FORMER),
        serialization_alias=FORMER,
        description="cases whose anatomy has no reader label: no part of a fit, or taken for normal where transitions are rare; the "
        "transitional ones among them raise the thresholds",
    )

    @model_validator(mode="after")
    def _names_and_order(self) -> Self:
        if self.high_rate > self.medium_rate:
            raise ValueError(f"high_rate ({self.high_rate:g}) must not be above medium_rate ({self.medium_rate:g})")
        if self.measure not in MEASURES or self.level not in SUBJECTS:
            raise ValueError(
                f"expected a measure of {list(MEASURES)} and a level of {list(SUBJECTS)}, got {self.measure!r} and {self.level!r}"
            )
        return self


def risk_settings(unlabelled: str = "") -> RiskSettings:
    """Read `conf/lumbar_mr/_risk.yaml`; `unlabelled` replaces that field. Raises ConfigurationError that names file and field."""
    path = conf_folder("lumbar_mr") / CONF
    try:
        content = {"unlabelled" if name == FORMER else name: value for name, value in read_yaml(path).items()}
        return RiskSettings.model_validate(content | ({"unlabelled": unlabelled} if unlabelled else {}))
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise ConfigurationError(f"conf/lumbar_mr/{CONF}: {error}") from error


class Threshold(BaseModel):
    """One threshold of one measure at one level."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
    level: str
    rate: float = Field(description="false-alarm rate asked for")
    value: float | None = Field(description="a case is flagged beyond it; None where the rate can't be promised")
    promised_rate: float | None = Field(
        description="expected share of new normal cases beyond the value, at most `rate`"
    )
    left_out_rate: float | None = Field(
        description="share of the normal cases flagged by a threshold fitted on the others"
    )
    n: int = Field(description="normal cases of the fit; those without a value count as flagged")
    undefined: int = Field(description="of these, without a value")

    def flags(self, value: float | None) -> bool | None:
        """Say whether a value is beyond the threshold; a missing one is. None where there is no threshold."""
        if self.value is None:
            return None
        return value is None or _unsure(self.measure, value) > _unsure(self.measure, self.value)


class Thresholds(BaseModel):
    """All thresholds fitted at once, and all that they came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    settings: RiskSettings
    checkpoint: str = Field(description="key of the checkpoint whose uncertainty it is")
    dataset_version: str = Field(description="data version of the cases")
    synthetic: bool = Field(description="whether any of the cases is synthetic: then it holds for no patient")
    case_ids: tuple[str, ...] = Field(description="normal cases of the fit, sorted")
    presumed: int = Field(default=0, description="of these, whose anatomy has no reader label")
    thresholds: tuple[Threshold, ...]

    @property
    def version(self) -> str:
        """Hash of the whole record: 64 hex digits."""
        return digest(self.model_dump(mode="json", by_alias=True))

    @property
    def achievable_rate(self) -> float:
        """The lowest false-alarm rate that so many normal cases can promise: 1 / (n + 1)."""
        return 1 / (len(self.case_ids) + 1)

    def at(self, measure: str, level: str, rate: float) -> Threshold:
        """Return one threshold. Raises ConfigurationError for one that was not fitted."""
        for one in self.thresholds:
            if (one.measure, one.level, one.rate) == (measure, level, rate):
                return one
        raise ConfigurationError(f"no threshold of {measure} at {level} for a rate of {rate:g} was fitted; fit it")

    def risk(self, table: Table, measure: str | None = None, level: str | None = None) -> Risk:
        """Return the risk of a case from its measures by level and name, at the settings' measure and level unless given."""
        name, place = measure or self.settings.measure, level or self.settings.level
        value = table[place][name]
        if value is None:
            return "Not found"
        high, medium = (
            self.at(name, place, rate).flags(value) for rate in (self.settings.high_rate, self.settings.medium_rate)
        )
        if high:
            return "High"
        if medium:
            return "Medium"
        return "Unknown" if medium is None else "Low"

    def save(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1, by_alias=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises ArtifactCorrupt when it is not such a record."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactCorrupt(f"thresholds: expected a record of format 1, got {error}; fit them again") from error


def _unsure(measure: str, value: float) -> float:
    """A value so that higher is less certain."""
    return value if MEASURES[measure].high_is_unsure else -value


def fit_threshold(measure: str, level: str, values: Sequence[float | None], rate: float) -> Threshold:
    """Fit one threshold on the values of normal cases.

    It is the ceil((n + 1) (1 - rate))-th of the n values from the certain to the unsure end, so that a new normal case, if
    exchangeable with them, is beyond it with a probability of at most `rate`. With fewer than 1 / rate - 1 cases there is no
    such value. Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005), section 2.2.
    """
    amounts = [math.inf if value is None else _unsure(measure, value) for value in values]
    place = _quantile(amounts, rate)
    value = None if place is None else place if MEASURES[measure].high_is_unsure else -place
    rank = _rank(len(amounts), rate)
    others = [_quantile([*amounts[:index], *amounts[index + 1 :]], rate) for index in range(len(amounts))]
    beyond = [own > other for own, other in zip(amounts, others, strict=True) if other is not None]
    return Threshold(
        measure=measure,
        level=level,
        rate=rate,
        value=value,
        promised_rate=None if value is None else (len(amounts) + 1 - rank) / (len(amounts) + 1),
        left_out_rate=sum(beyond) / len(beyond) if beyond and len(beyond) == len(amounts) else None,
        n=len(amounts),
        undefined=sum(value is None for value in values),
    )


def _rank(n: int, rate: float) -> int:
    # (n + 1) * 0.95 may be a hair above the whole number that it is.
    return math.ceil((n + 1) * (1 - rate) - 1e-9)


def _quantile(amounts: Sequence[float], rate: float) -> float | None:
    rank = _rank(len(amounts), rate)
    if rank > len(amounts):
        return None
    found = sorted(amounts)[max(rank, 1) - 1]
    return None if math.isinf(found) else found


def fit(
    normals: Mapping[str, Table],
    patients: Mapping[str, str],
    settings: RiskSettings,
    *,
    checkpoint: str,
    dataset_version: str,
    trained_on: Collection[str],
    synthetic: bool,
    presumed: Collection[str] = (),
) -> Thresholds:
    """Fit all measures at all levels on the uncertainty tables of accepted normal cases, one case of each patient.

    `patients` gives the patient of each case; of several cases of one the first by id counts, since they are not
    independent. `trained_on` are the patients that the checkpoint was trained on: a model is surer of them than of others.
    `presumed` are cases that are taken for normal without a reader label. Raises ConfigurationError where one of these is among the normals, and where there is no normal case.
    """
    if known := {patients[case] for case in normals} & set(trained_on):
        raise ConfigurationError(
            f"expected normal cases that the model was not trained on, got {len(known)} patients of its training among "
            f"{len(normals)} cases; fit thresholds on held-out cases"
        )
    first: dict[str, str] = {}
    for case_id in sorted(normals):
        first.setdefault(patients[case_id], case_id)
    cases = tuple(sorted(first.values()))
    if not cases:
        raise ConfigurationError("expected at least one accepted case of normal anatomy to fit thresholds on, got none")
    rates = sorted({settings.high_rate, settings.medium_rate})
    fitted = tuple(
        fit_threshold(measure, level, [normals[case][level][measure] for case in cases], rate)
        for measure in MEASURES
        for level in SUBJECTS
        for rate in rates
    )
    return Thresholds(
        settings=settings,
        checkpoint=checkpoint,
        dataset_version=dataset_version,
        synthetic=synthetic,
        case_ids=cases,
        presumed=len(set(cases) & set(presumed)),
        thresholds=fitted,
    )


def tables_of(rows: "pd.DataFrame") -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the uncertainty table of each case, by level (and all) and measure, from rows of scores with `case_id`."""
    import pandas as pd

    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in rows[rows["metric"].isin(list(MEASURES))].to_dict("records"):
        value: Any = row["value"]
        table = found.setdefault(str(row["case_id"]), {subject: dict.fromkeys(MEASURES) for subject in SUBJECTS})
        table[str(row["subject"])][str(row["metric"])] = None if pd.isna(value) else float(value)
    return found


def normal_cases(rows: "pd.DataFrame", settings: RiskSettings) -> tuple[list[str], list[str]]:
    """Return the ids of the cases that count as normal, sorted, and of those of them that have no reader label."""
    transitional = rows[rows["metric"] == TRANSITIONAL]
    presumed = sorted({str(case) for case in transitional.loc[transitional["value"].isna(), "case_id"]})
    presumed = presumed if settings.unlabelled == "normal" else []
    return sorted({*with_anatomy(rows, False), *presumed}), presumed


def with_anatomy(rows: "pd.DataFrame", transitional: bool) -> list[str]:
    """Return the ids of the cases whose anatomy is known to be transitional, or known to be normal, sorted."""
    known = rows[(rows["metric"] == TRANSITIONAL) & (rows["value"] == float(transitional))]
    return sorted({str(case) for case in known["case_id"]})
