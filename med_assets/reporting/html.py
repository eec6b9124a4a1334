"""Reports as one HTML file: nothing is fetched when it is opened, so it can be mailed, archived and read offline."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets.storage.files import write_text

UNDEFINED = "–"
"""What a table shows where a value is undefined."""

LONG_TEXT = 60
"""Characters above which a cell is a sentence, whose column is kept wide enough to read."""

SHORT_TEXT = 10
"""Characters up to which a cell is never broken over lines."""

_MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Section:
    """One section of a report: heading, paragraphs (separated by a blank line), table, pictures and links.

    `captions` belong to `images` in order and may be fewer. `links` maps a label to an address relative to the report.
    A `folded` section starts closed. The pictures of one that is `shown_with_run` go to Dagster's run too.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    images: Sequence[Path] = ()
    captions: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    folded: bool = False
    shown_with_run: bool = False


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads somewhere: its text, and an address relative to the report."""

    text: str
    target: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Highlight:
    """One number at the top of a report. `tone` is good, bad, warn or plain."""

    label: str
    value: str
    note: str = ""
    tone: str = "plain"


def render_report(
    path: Path,
    title: str,
    sections: Sequence[Section],
    provenance: Mapping[str, object],
    *,
    subtitle: str = "",
    highlights: Sequence[Highlight] = (),
    warning: str = "",
) -> Path:
    """Write a report to `path` atomically and return it.

    Images are inlined. All text is escaped, so a structure name cannot inject markup. `provenance` (dataset version,
    checkpoint hash, code version, ...) closes the page; `warning` is a banner, for synthetic data or a demo profile.
    The same input gives the same bytes. Raises ValueError for an image that is neither PNG, JPEG nor SVG.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("med_assets.reporting", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        warning=warning,
        highlights=highlights,
        sections=[_context(number, section) for number, section in enumerate(sections, start=1)],
        provenance={key: _text(value) for key, value in provenance.items()},
    )
    write_text(path, page)
    return path


def model_card(
    *,
    intended_use: str,
    not_for: str,
    training_data: str,
    evaluation_data: str,
    metrics: str,
    limitations: Iterable[str],
    owners: Iterable[str] = (),
    title: str = "Model card",
) -> Section:
    """Return the model card as a section: what the model is for, what it was made of and where it fails.

    Source of the headings: Mitchell et al., Model Cards for Model Reporting (2019).
    """
    rows = {
        "Intended use": intended_use,
        "Not for": not_for,
        "Training data": training_data,
        "Evaluation data": evaluation_data,
        "Metrics": metrics,
        "Known limitations": "; ".join(limitations) or "none recorded",
        "Owners": ", ".join(owners) or "none recorded",
    }
    return Section(title, table=pd.DataFrame({"": list(rows), "Statement": list(rows.values())}))


def _context(number: int, section: Section) -> dict[str, object]:
    captions = [*section.captions, *[""] * (len(section.images) - len(section.captions))]
    return {
        "id": f"s{number}",
        "title": section.title,
        "paragraphs": [part.strip() for part in section.text.split("\n\n") if part.strip()],
        "table": None if section.table is None else _table(section.table),
        "images": [
            {"source": _inline(image), "caption": caption}
            for image, caption in zip(section.images, captions, strict=True)
        ],
        "links": dict(section.links),
        "folded": section.folded,
    }


def _table(table: pd.DataFrame) -> dict[str, object]:
    numeric = [pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype) for dtype in table.dtypes]
    columns = [str(name) for name in table.columns]
    rows = [
        [_cell(name, value) for name, value in zip(columns, row, strict=True)]
        for row in table.itertuples(index=False, name=None)
    ]
    return {"columns": columns, "numeric": numeric, "rows": rows}


def _cell(column: str, value: Any) -> dict[str, str]:
    """Return text and kind of a cell: verdicts, in columns named after passing, are coloured, and links have a target."""
    if isinstance(value, Link):
        return {"text": value.text, "kind": "link", "target": value.target}
    text = _text(value)
    is_verdict = "pass" in column.lower() and text in ("yes", "no")
    kind = (
        "undefined"
        if text == UNDEFINED
        else "long"
        if len(text) > LONG_TEXT
        else "short"
        if len(text) <= SHORT_TEXT
        else ""
    )
    return {"text": text, "kind": text if is_verdict else kind}


def _text(value: Any) -> str:
    """Return a value as people read it: 4 significant digits, yes and no, and a dash where it is undefined."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or UNDEFINED
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return ", ".join(_text(item) for item in items) or UNDEFINED
    if value is None or pd.isna(value):
        return UNDEFINED
    if pd.api.types.is_bool(value):
        return "yes" if value else "no"
    if pd.api.types.is_float(value):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() or abs(number) >= 1000 else f"{number:.4g}"
    return str(value)


def _inline(image: Path) -> str:
    media = _MEDIA.get(image.suffix.lower())
    if media is None:
        raise ValueError(f"expected a picture as {', '.join(_MEDIA)}, got {image.suffix or 'no suffix'}")
    return f"data:{media};base64,{base64.b64encode(image.read_bytes()).decode('ascii')}"
