"""Processes that use the clients of MLflow and W&B, as words of `python -m tests.med_assets.training.clients`.

`track JOB WORDS KEY` is `python -m med_assets.training.track JOB` with these words on its input and this key of W&B, if any, `read ADDRESS` prints the runs of a server,
database or folder, `serve STORE` is MLflow's tracking server over a database, which prints its port.
"""

import io
import json
import os
import sys

PRELOADED = ("mlflow", "mlflow.entities", "wandb", "med_assets.training.track")
"""What all of them import, which takes seconds."""


def track(job: str, words: str, key: str) -> None:
    """Send the epochs of a job, as the process beside a training does."""
    from med_assets.training.track import main

    if key:
        os.environ["WANDB_API_KEY"] = key
    sys.stdin = io.TextIOWrapper(io.BytesIO(words.encode()))
    sys.exit(main([job]))


def read(address: str) -> None:
    """Print the runs that are there."""
    from mlflow import MlflowClient

    client = MlflowClient(address)
    runs = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            losses = [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, "loss")]
            runs.append(
                {
                    "project": experiment.name,
                    "status": run.info.status,
                    "user": run.info.user_id,
                    "losses": losses,
                    "params": run.data.params,
                    "tags": run.data.tags,
                    "metrics": run.data.metrics,
                }
            )
    print(json.dumps(runs))


def serve(store: str) -> None:
    """Serve a database, without the helpers of `mlflow server` for jobs that nothing here uses."""
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = store
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
    from mlflow.server import app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, app)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    {"track": track, "read": read, "serve": serve}[sys.argv[1]](*sys.argv[2:])
