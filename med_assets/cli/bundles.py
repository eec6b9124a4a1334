"""Commands of MONAI bundles, among those of experiments."""

from pathlib import Path

import click

from med_assets.capabilities import WritesBundles
from med_assets.cli.commands import PROGRAM_OR_EXPERIMENT, Several, Value, program, table, workspace
from med_assets.cli.experiments import SECTION
from med_assets.errors import ConfigurationError
from med_assets.storage import names
from med_assets.storage.escaping import csv

CONFIGS = ("configs/train.json", "configs/train_continual.json")
"""The files of a fine-tuning of VISTA3D, in their order."""


@SECTION.command("import-bundle")
@program
@click.argument("bundle", type=Value("BUNDLE", Path), help="folder of the bundle, which has configs/metadata.json")
@click.argument("name", type=Value("NAME", names.EXPERIMENT.check), help="name of the new experiment")
@click.option(
    "--config",
    "files",
    type=Value("FILE"),
    cls=Several,
    multiple=True,
    help=f"configuration in the bundle, a later one over an earlier one; {' '.join(CONFIGS)} by default",
)
@click.option("--csv", "as_csv", is_flag=True, help="print the entries as CSV")
def import_bundle(program: str, bundle: Path, name: str, files: tuple[str, ...], as_csv: bool) -> None:
    """Read the configuration of a MONAI bundle into a new experiment, and list what can't be mapped.

    Nothing of the bundle is executed: an entry that is an expression is listed as not mapped.
    """
    import pandas as pd

    from med_assets.experiments.bundles import adopt_bundle

    path, found = adopt_bundle(program, name, bundle, files or CONFIGS)
    rows = [
        {"reading": str(line.reading), "entry": line.key, "value": line.value, "field or reason": line.note}
        for line in sorted(found.lines, key=lambda line: line.reading)
    ]
    print(csv(pd.DataFrame(rows)) if as_csv else table(rows))
    if not as_csv:
        print(f"{path.parent.parent.name}/{program}/{path.name}")


@SECTION.command("export-bundle")
@click.argument(
    "model", type=PROGRAM_OR_EXPERIMENT, help="the champion of this program, or the model of this experiment"
)
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
def export_bundle(model: tuple[str, str | None], out: Path) -> None:
    """Write the champion, or the model of an experiment, as a MONAI bundle that `python -m monai.bundle run` executes."""
    from med_assets import program
    from med_assets.evaluation.prediction import model_of
    from med_assets.launch.training import stored_checkpoint

    ws, (name, experiment) = workspace(), model
    writes = program.get(name)
    if not isinstance(writes, WritesBundles):
        raise ConfigurationError(
            f"expected a program whose models are written as MONAI bundles, got {name}, which has none"
        )
    chosen = model_of(ws, name, experiment)
    folder = stored_checkpoint(ws, name, chosen)
    ws.store.verify(chosen.checkpoint)
    for written in writes.write_bundle(ws, chosen.checkpoint, folder, out):
        print(written)
