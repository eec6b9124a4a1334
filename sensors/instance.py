"""The Dagster instance of a tick, opened once for all ticks of a process.

Dagster opens it anew for each tick whose sensor asks for `context.instance` or for any resource, and reads all migrations of
its databases each time: 25 ms of CPU, several times what an idle tick does itself.
"""

import dagster as dg
from dagster._core.instance.ref import InstanceRef

_opened: list[tuple[InstanceRef, dg.DagsterInstance]] = []
"""The instance opened last, with what it was opened by."""


def instance_of(context: dg.SensorEvaluationContext) -> dg.DagsterInstance:
    """The instance of a sensor's context; a test hands over its own."""
    ref = context.instance_ref
    if ref is None:
        return context.instance
    if not _opened or _opened[-1][0] != ref:
        from assets.pools import make_pools

        _opened[:] = [(ref, dg.DagsterInstance.from_ref(ref))]
        make_pools(_opened[-1][1])
    return _opened[-1][1]
