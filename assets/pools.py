"""The pools of the graph: their limits, and that no slot of one has two holders."""

import dagster as dg
from dagster._core.storage.event_log import SqlEventLogStorage
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from assets import keys
from med_assets.errors import ConfigurationError
from resources import alive

INTAKE_LIMIT = 4
"""Batches of all programs that a site takes in or prepares at once, unless its pool is set otherwise; on one machine, one after the other."""

GUARD = "med_assets_one_holder"
"""The trigger by which a slot that a step holds is given to no other step before it is free."""

HELD = "OLD.step_key IS NOT NULL AND NEW.step_key IS NOT NULL AND (OLD.run_id <> NEW.run_id OR OLD.step_key <> NEW.step_key)"

GUARDS = {
    "sqlite": (
        f"""CREATE TRIGGER IF NOT EXISTS {GUARD} BEFORE UPDATE ON concurrency_slots WHEN {HELD}
        BEGIN SELECT RAISE(IGNORE); END""",
    ),
    "postgresql": (
        "LOCK TABLE concurrency_slots IN SHARE ROW EXCLUSIVE MODE",  # two machines may make it at once
        f"CREATE OR REPLACE FUNCTION {GUARD}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        f"CREATE OR REPLACE TRIGGER {GUARD} BEFORE UPDATE ON concurrency_slots FOR EACH ROW WHEN ({HELD}) EXECUTE FUNCTION {GUARD}()",
    ),
}
"""What makes it in a database. An update that it stops changes no row, which Dagster takes for a slot that is not free, and asks again."""

PRESENT = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = :name",
    "postgresql": "SELECT 1 FROM pg_trigger WHERE tgname = :name AND tgrelid = CAST('concurrency_slots' AS regclass)",
}


def make_pools(instance: dg.DagsterInstance) -> None:
    """See to it that pools hold: a slot has one holder at a time, and each pool a limit of its own where several machines share the record."""
    _guard_slots(instance)
    _limit_pools(instance)


def _guard_slots(instance: dg.DagsterInstance) -> None:
    """Let no two steps hold one slot.

    Dagster 1.13 looks for a free slot and takes it in two statements without a lock between them, so that of two steps which ask at the
    same moment both began: 18 of 60 pairs in SQLite, 5 of 60 in PostgreSQL.
    """
    log = instance.event_log_storage
    if not isinstance(log, SqlEventLogStorage) or not instance.is_persistent:
        return
    with log.index_transaction() as connection:
        kind = connection.dialect.name
        if kind in GUARDS and connection.execute(text(PRESENT[kind]), {"name": GUARD}).first() is None:
            try:
                for statement in GUARDS[kind]:
                    connection.execute(text(statement))
            except ProgrammingError as error:
                raise ConfigurationError(
                    f"expected that the user of Dagster's database may make the trigger {GUARD} on its table concurrency_slots, without which "
                    f"two steps may begin in a pool of one; PostgreSQL's answer: {str(error.orig).strip()}. Let the user that owns the tables "
                    "run `python -m assets.run` or a daemon once, or grant this one the right (GRANT TRIGGER ON concurrency_slots); see docs/postgresql.md"
                ) from None


def _limit_pools(instance: dg.DagsterInstance) -> None:
    """Give each pool a limit of its own, where the record is a database and the pool has none yet: for `gpu` that of the settings.

    Runs do so from the settings' default, with an insert and, where that fails, an update in the same transaction, which PostgreSQL
    refuses: of two runs that use the pool first, one would fail, and after a change of the default each would.
    """
    if not alive.shared(instance):
        return
    log = instance.event_log_storage
    own = {pool.name for pool in log.get_pool_limits() if not pool.from_default}
    limits = {keys.POOL: instance.global_op_concurrency_default_limit or 1, keys.INTAKE_POOL: INTAKE_LIMIT}
    for name, limit in limits.items():
        if name not in own:
            log.set_concurrency_slots(name, limit)
