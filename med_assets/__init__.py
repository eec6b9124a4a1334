"""The imaging library of med_assets: everything the asset graph does, usable without Dagster."""

import os

from med_assets.storage import lean_monai, lean_torchmetrics

__version__ = "0.2.0"

# MLflow reports its use to its makers as soon as it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

lean_monai.import_lazily()
lean_torchmetrics.import_lazily()
