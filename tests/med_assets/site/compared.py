"""A site whose machines are killed and whose bucket fails, compared with one undisturbed machine."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from med_assets.settings import Workspace
from tests.med_assets.site.harness import Site, configuration, served
from tests.med_assets.site.plan import Plan
from tests.med_assets.site.state import differences

SEED = int(os.environ.get("SEED", "0"))
MACHINES = tuple("abcdefgh"[: int(os.environ.get("MACHINES", "2"))])

FAULTS = {"failing": 0.1, "truncated": 0.05, "lost": 0.01, "closing": 0.01, "lag_s": 1.0, "rate_per_s": 100.0}

Opened = Callable[[Site, str], Workspace]


def compare(
    opened: Opened,
    folder: Path,
    chosen: Plan,
    kills: int,
    faults: Mapping[str, float],
    timeout_s: float,
    database: Mapping[str, str] | None = None,
    back_off_s: float = 1.0,
) -> tuple[Site, list[str]]:
    """Let one machine do the plan undisturbed, and a site with kills and faults beside it; returns the site, and what differs.

    With a `database` the site's stages are runs of Dagster, whose record is there.
    """
    conf = configuration(folder)
    one = Site(folder / "one", chosen, SEED, conf, names=("a",))
    settle_s = 2.0 + 2 * faults["lag_s"]  # an entry is taken when its listing no longer lags
    with ThreadPoolExecutor(1) as beside, served(SEED, **faults) as server:
        undisturbed = beside.submit(one.work, timeout_s=2 * timeout_s)
        site = Site(
            folder / "site", chosen, SEED, conf, names=MACHINES, settle_s=settle_s, server=server, database=database,
            back_off_s=back_off_s,
        )  # fmt: skip
        site.work(kills, timeout_s=2 * timeout_s)
        site.counts.update(server.counts())
        undisturbed.result()
        return site, list(differences(opened(one, "a"), opened(site, "another")))
