"""Commands of operations: backup, restore, share, locks, metrics."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from med_assets.cli.commands import Section, Value, table
from med_assets.errors import ConfigurationError
from med_assets.storage import names
from med_assets.storage.exposition import text

if TYPE_CHECKING:
    from med_assets.settings import Settings

SECTION = Section("Operations")


def _home() -> "Settings":
    """The home that the environment names; none of these commands needs its key."""
    from med_assets.settings import Settings

    return Settings.from_env()


BACKUP = Value("NAME", names.BACKUP.check)


def place(help: str, metavar: str) -> Callable[..., Any]:
    """The argument of a place of backups."""
    return click.argument("place", type=Value(metavar), help=help)


@SECTION.command()
@place("folder outside of the home, or s3://bucket/prefix", "TO")
@click.option("--verify", is_flag=True, help="make none, but read all backups there back")
@click.option(
    "--keep", type=Value("N", int), help="afterwards remove all backups there but the last N, and what only they need"
)
@click.option("--without-dagster", is_flag=True, help="leave out Dagster's records")
def backup(place: str, verify: bool, keep: int | None, without_dagster: bool) -> int:
    """Copy the home to another place while work goes on: tables, artifacts, audit trail, reports, predictions and Dagster's records.

    Only what no backup there has yet is copied. The secret key and logins are in no backup. Fails when something of the home is damaged.
    """
    from med_assets.operations import backup as backups
    from med_assets.operations.destination import destination

    if keep is not None and keep < 1:
        raise ConfigurationError(f"expected --keep of 1 or more, got {keep}")
    to = destination(place, "TO")
    if verify:
        found, losses = backups.verify(to)
        for loss in losses:
            print(f"damaged: {loss.part} of {', '.join(loss.backups)}")
        if losses:
            print("the next backup writes again what the home still has")
            return 1
        print(f"all {len(found)} backups can be read back as they were written; the last is {found[-1].name}")
        return 0
    made = backups.make(_home(), to, with_dagster=not without_dagster)
    one = made.backup
    print(
        f"backup {one.name}: {one.n_artifacts} artifacts and {one.n_files} files, {one.bytes / 1e6:.1f} MB; copied {made.n_copied}, "
        f"{made.copied_bytes / 1e6:.1f} MB"
    )
    for what in made.left_out:
        print(f"not part of it: {what}")
    print(
        "not part of it: MED_ASSETS_PSEUDONYM_KEY and other secrets; keep them elsewhere, a home is of little use without its key"
    )
    for key in one.damaged:
        print(f"damaged in the home, and so not part of it: {key}; `med-assets verify` says how to get it back")
    for key in one.missing:
        print(f"missing in the home: {key}; `med-assets verify` says how to get it back")
    if keep is not None:
        going, n = backups.forget(_home(), to, keep)
        print(f"removed {len(going)} earlier backups with {n} objects")
    return int(bool(one.damaged or one.missing))


@SECTION.command()
@place("folder or s3://bucket/prefix with backups", "FROM")
@click.option("--backup", type=BACKUP, help="this one; the last by default")
@click.option("--list", "listed", is_flag=True, help="list the backups there, and restore nothing")
def restore(place: str, backup: str | None, listed: bool) -> None:
    """Restore a backup into an empty home, which then gives the same answers; a restore that was killed goes on."""
    from med_assets.operations import backup as backups
    from med_assets.operations.destination import destination
    from med_assets.operations.restore import restore as restore_home

    source = destination(place, "FROM")
    if listed:
        found = [backups.read_backup(source, name) for name in source.names()]
        rows = [
            {"backup": one.name, "artifacts": one.n_artifacts, "files": one.n_files, "MB": round(one.bytes / 1e6, 1)}
            | {"damaged or missing": len(one.damaged) + len(one.missing), "of version": one.version}
            for one in found
        ]
        print(table(rows))
        return
    restored = restore_home(_home(), source, backup)
    one = restored.backup
    print(f"restored {one.name}: {one.n_artifacts} artifacts and {one.n_files} files, {one.bytes / 1e6:.1f} MB")
    if restored.dump is not None:
        print(
            f"Dagster's PostgreSQL: make an empty database, then `pg_restore --no-owner --dbname=NAME {restored.dump}`"
        )
    print(
        "set MED_ASSETS_PSEUDONYM_KEY to the key of that home, then run `med-assets verify` and `med-assets audit-trail`"
    )


@SECTION.command()
@click.option("--yes", is_flag=True, help="copy; without this nothing is")
def share(yes: bool) -> None:
    """Copy this home to the empty bucket that MED_ASSETS_STORE names, so that several machines share it: artifacts, tables, audit trail, reports and exported predictions. Manifests of batches go to the landing zone.

    Nothing of this home changes. A copy that was stopped goes on with what is missing.
    """
    from med_assets.operations import sharing

    ws = _home()
    parts = sharing.share(ws, dry_run=not yes)
    rows = [
        {
            "part": one.what,
            "n": one.n,
            "in the bucket": one.n_there if not yes else one.n,
            "copied" if yes else "to copy": one.n - one.n_there,
        }
        | {"MB": round(one.bytes / 1e6, 1)}
        for one in parts
    ]
    print(table(rows))
    if yes:
        print(f"{ws.store_location} holds this home now; give the same MED_ASSETS_STORE on each machine")
    else:
        print("nothing was copied; --yes copies it")


@SECTION.command()
def locks() -> None:
    """List who holds the locks of a shared home, and the trainings that any of its machines can go on with.

    A lock whose holder died is taken over by whoever waits for it, after 30 s; nobody needs to remove one.
    """
    from med_assets.storage.s3.states import states
    from med_assets.storage.s3.store import S3Store

    ws = _home()
    if ws.leases is None or not isinstance(ws.store, S3Store):
        raise ConfigurationError(
            "expected a shared home, whose MED_ASSETS_STORE names a bucket, got that of one machine, whose locks end with their process"
        )
    held = [{"lock": name, "since": one.since, "held by": one.by} for name, one in ws.leases.held().items()]
    print(table(held) if held else "no lock is held")
    saved = [
        {"job": name, "training": one.title, "step": one.step, "saved": one.at, "by": one.by}
        for name, one in states(ws.store).items()
    ]
    if saved:
        print(table(saved))


@SECTION.command()
@click.option("--host", type=Value("HOST"), default="127.0.0.1", help="address to bind to")
@click.option("--port", type=Value("PORT", int), default=9464, help="0 for any that is free")
@click.option(
    "--dagster",
    type=Value("URL"),
    default="http://127.0.0.1:3000",
    help="Dagster's webserver, asked for its runs; '' for none",
)
@click.option("--once", is_flag=True, help="print the metrics, and end")
def metrics(host: str, port: int, dagster: str, once: bool) -> None:
    """Answer GET /metrics in the text format of Prometheus: batches, cases, quarantine, trainings, disks, GPUs and runs of Dagster.

    Labels are names of programs, experiments, reasons and states, and none that identifies a person.
    """
    from med_assets.operations.metrics import Collector

    collector = Collector(_home(), dagster)
    if once:
        print(text(collector.families()), end="")
        return
    from med_assets.operations.metrics_server import serve

    serve(collector, host, port)
