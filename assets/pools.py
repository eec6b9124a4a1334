"""The pool of trainings, where several machines share Dagster's record."""

import dagster as dg

from assets import keys
from resources import alive


def make_pool(instance: dg.DagsterInstance) -> None:
    """Give the pool a limit of its own, that of the settings, where the record is a database and the pool has none yet.

    Runs do so from the settings' default, with an insert and, where that fails, an update in the same transaction, which PostgreSQL
    refuses: of two runs that use the pool first, one would fail, and after a change of the default each would.
    """
    if not alive.shared(instance):
        return
    log = instance.event_log_storage
    if not any(pool.name == keys.POOL and not pool.from_default for pool in log.get_pool_limits()):
        log.set_concurrency_slots(keys.POOL, instance.global_op_concurrency_default_limit or 1)
