"""The imaging library of med_assets: everything the asset graph does, usable without Dagster."""

import os

__version__ = "0.2.0"

# MLflow reports its use to its makers as soon as it is imported, and MONAI imports it wherever it is installed.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
