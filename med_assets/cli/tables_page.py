"""`python -m med_assets.cli.tables_page docs/tables.md`: the page of all tables, made from the records and the programs' facts."""

import sys
from collections.abc import Iterable
from pathlib import Path

from med_assets import program
from med_assets.records import RECORDS
from med_assets.storage.files import write_text
from med_assets.storage.lake import arrow_type
from med_assets.storage.record import Record

BEGIN = """# Tables

Every table is made of Parquet files under `lake/TABLE` of the home, one a partition, and is replaced a partition at a time.
`med-assets query` runs SQL over them; `catalog.duckdb` in the home holds a copy for other clients. In Python, `med_assets.catalog.Catalog`
reads them as the frozen dataclasses of `med_assets/records.py`, from which this page is made
(`python -m med_assets.cli.tables_page docs/tables.md`).

A column that can be empty says so. A time is in UTC, as ISO 8601.
"""


def page() -> str:
    """The page as Markdown."""
    sections = [_section(each) for each in RECORDS]
    sections += [_facts(name) for name in sorted(program.REGISTRY)]
    return "\n".join([BEGIN, *sections])


def _section(of: type[Record]) -> str:
    where = ", ".join(f"`{name}`" for name in ("program", *of.PARTITION))
    rows = [(each.name, str(arrow_type(each.type)), each.unit, each.nullable, each.meaning) for each in of.columns()]
    about = (of.__doc__ or "").strip()
    return f"## `{of.TABLE}`: {of.__name__}\n\n{about} Partition: {where}.\n\n{_table(rows)}"


def _facts(name: str) -> str:
    facts = program.get(name).facts
    rows = [(fact, str(arrow_type(spec.type)), spec.unit, True, spec.meaning) for fact, spec in facts.items()]
    keys = "`program`, `batch`, `case_id` and `version`"
    return f"## `{name}_facts`: facts of {name}\n\nBeside {keys}. Partition: `program`, `batch`.\n\n{_table(rows)}"


def _table(rows: Iterable[tuple[str, str, str, bool, str]]) -> str:
    lines = ["| column | type | unit | empty | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{name}` | {kind} | {unit} | {'can be' if nullable else ''} | {meaning.replace('|', chr(92) + '|')} |"
        for name, kind, unit, nullable, meaning in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), page())
