"""The pools of the graph, where several machines share Dagster's record."""

import dagster as dg

from assets import keys
from resources import alive

INTAKE_LIMIT = 4
"""Batches of all programs that a site takes in or prepares at once, unless its pool is set otherwise; on one machine, one after the other."""


def make_pools(instance: dg.DagsterInstance) -> None:
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
