"""The text format of Prometheus (exposition format 0.0.4), which every /metrics of ours answers with."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Kind(StrEnum):
    """What the values of a family are."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Sample:
    """A value with its labels; `suffix` follows the name of the family, such as `_bucket` of a histogram."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True)
class Family:
    """Samples of one name: what they mean, with their unit in the name."""

    name: str
    meaning: str
    samples: tuple[Sample, ...]
    kind: Kind = Kind.GAUGE


def gauge(name: str, meaning: str, value: float) -> Family:
    """A family of one value without labels."""
    return Family(name, meaning, (Sample(value),))


def text(families: Iterable[Family]) -> str:
    """Families as text; a family without samples is left out."""
    return "".join(f"{line}\n" for family in families if family.samples for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    meaning = family.meaning.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {family.name} {meaning}"
    yield f"# TYPE {family.name} {family.kind}"
    for sample in family.samples:
        pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in sample.labels.items())
        yield f"{family.name}{sample.suffix}{f'{{{pairs}}}' if pairs else ''} {_number(sample.value)}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    """All digits of a number: a count of bytes has more than six."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
