"""Whether conf/ still says what a checkpoint was trained with."""

import shlex

from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment, from_json, load, names
from med_assets.launch.training import Model, of_workspace, stored_checkpoint
from med_assets.records import TrainingRun
from med_assets.settings import Settings


def composed_as(ws: Settings, program_name: str, name: str, profile: str, overrides: str) -> Experiment:
    """The experiment as conf/ has it now, with the profile and the overrides (a line of shell words) of a run.

    Raises ConfigurationError where it can't be composed.
    """
    given = [*of_workspace(ws, program_name), *shlex.split(overrides)]
    return load(program_name, name, given, profile=profile)


def configuration_changed(ws: Settings, program_name: str, model: Model) -> str | None:
    """What changed in the configuration since a checkpoint was trained and so since its evaluation; None where nothing did.

    The checkpoint's own copy of its experiment is compared with what conf/ gives now for the same profile and overrides, by
    their hashes under the present code: an upgrade alone changes neither.
    """
    name = model.experiment
    if name not in names(program_name):
        return f"conf/{program_name}/{name}.yaml is gone"
    folder = stored_checkpoint(ws, program_name, model)
    try:
        then = from_json(program_name, (folder / "experiment.json").read_text(encoding="utf-8"))
        runs = Catalog(ws, program_name).rows(TrainingRun, name, model.checkpoint)
        now = composed_as(ws, program_name, name, then.profile or ws.profile, (runs[0].overrides or "") if runs else "")
    except ConfigurationError:
        return f"the configuration of {name} can't be composed any more"
    return (
        None
        if then.hash() == now.hash()
        else f"conf/{program_name} and the settings give {name} another configuration now"
    )
