"""Shows a Dagster instance what the home holds already, such as one made anew after DAGSTER_HOME was lost.

Everything but trainings is run again, which computes nothing where the store has it. A training is reported without a run,
since running its asset could start one when the dataset has changed since.
"""

import dagster as dg

from assets import keys, versions
from med_assets.catalog import Catalog
from med_assets.settings import Workspace

EXPLANATION = "Trained before this Dagster instance knew of it; reported from the home."


def report_checkpoints(instance: dg.DagsterInstance, ws: Workspace, program: str) -> list[str]:
    """Report the checkpoints that the home holds and the instance has never seen; returns their experiments."""
    from med_assets.launch.training import checkpoint_version, usable

    reported, catalog = [], Catalog(ws, program)
    for name, configured in usable(ws, program).items():
        key = keys.experiment_key(program, name, "checkpoint")
        trained = catalog.checkpoint(name)
        if trained is None or not ws.store.has(trained.checkpoint) or instance.get_latest_materialization_event(key):
            continue
        same = trained.experiment_hash == configured.hash()
        tags = {
            "dagster/data_version": checkpoint_version(ws, trained.checkpoint),
            "dagster/code_version": versions.of_training(program, configured) if same else "of an earlier experiment",
        }
        shown = {"checkpoint": trained.checkpoint}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key=key, description=EXPLANATION, metadata=shown, tags=tags)
        )
        reported.append(name)
    return reported
