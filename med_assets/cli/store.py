"""Commands of the home and the machine: query, verify, doctor."""

import click

from med_assets.cli.commands import Section, Value, one_of, table, workspace
from med_assets.storage.escaping import csv

SECTION = Section("Home and machine")


@SECTION.command()
@click.argument("sql", type=Value("SQL"), help="such as: select * from raw_cases")
@click.option("--format", type=one_of("table", "csv", "json"), default="table", help="how to print rows")
def query(sql: str, format: str) -> None:
    """Run SQL over the tables of the lake."""
    from med_assets.catalog import query_tables

    rows = query_tables(workspace(), sql)
    match format:
        case "csv":
            print(csv(rows), end="")
        case "json":
            print(rows.to_json(orient="records", indent=1))
        case _:
            print(table(rows))


@SECTION.command()
@click.option("--repair", is_flag=True, help="remove what can be computed again, and name the command that does it")
def verify(repair: bool) -> int:
    """Read every stored artifact back, and list what is damaged or lost with the way to restore it.

    Fails when anything is.
    """
    from med_assets.cli import integrity

    ws = workspace()
    damages = integrity.examine(ws)
    removed = integrity.remove_damaged(ws, damages) if repair else []
    for damage in damages:
        print(f"{'removed' if damage in removed else damage.state:8} {damage.key}")
    for remedy in sorted({damage.remedy for damage in damages}):
        print(f"  -> {remedy}")
    if damages and not repair and any(damage.again and damage.state == "corrupt" for damage in damages):
        print("corrupt artifacts stand in the way of that: give `med-assets verify --repair` first")
    if not damages:
        print("all artifacts are as they were written")
    return int(len(damages) > len(removed))


@SECTION.command()
@click.argument(
    "part", type=one_of("s3"), required=False, help="only the buckets of landing zone and store, up to a write"
)
def doctor(part: str | None) -> int:
    """Check installation, configuration, disk and accelerator, and say what to do.

    Fails when a check does.
    """
    from med_assets.cli.doctor import BAD, examine, examine_s3

    findings = examine() if part is None else examine_s3()
    for finding in findings:
        print(f"{finding.state:4}  {finding.subject}: {finding.found}")
        if finding.advice:
            print(f"      -> {finding.advice}")
    return int(any(finding.state == BAD for finding in findings))
