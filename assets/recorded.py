"""Shows a Dagster instance what the home holds already, such as one made anew after DAGSTER_HOME was lost.

Everything but trainings is run again, which computes nothing where the store has it. A training is reported without a run,
since running its asset could start one when the dataset has changed since.
"""

import dagster as dg

from assets import keys, versions
from med_assets.catalog import Catalog
from med_assets.records import Checkpoint
from med_assets.settings import Workspace

EXPLANATION = "Trained before this Dagster instance knew of it; reported from the home."


def report_checkpoints(instance: dg.DagsterInstance, ws: Workspace, program: str) -> list[str]:
    """Report the checkpoints that the home holds and the instance has never seen; returns their experiments."""
    from med_assets.launch.training import checkpoint_version, usable

    reported, catalog = [], Catalog(ws, program)
    trained_here = {name: keys.experiment_key(program, name, "checkpoint") for (name,) in catalog.keys(Checkpoint)}
    seen = (
        {
            record.asset_entry.asset_key
            for record in instance.get_asset_records([*trained_here.values()])
            if record.asset_entry.last_materialization_record
        }
        if trained_here
        else set()
    )
    unseen = {name: key for name, key in trained_here.items() if key not in seen}
    if not unseen:
        return []
    for name, configured in usable(ws, program).items():
        trained = catalog.checkpoint(name) if name in unseen else None
        if trained is None or not ws.store.has(trained.checkpoint):
            continue
        key = unseen[name]
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
