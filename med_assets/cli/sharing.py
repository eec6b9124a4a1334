"""What is done around each stage: lines of its log name it, and machines of a shared home see each other's reports."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from med_assets.settings import Settings
from med_assets.storage import logs, names
from med_assets.storage.s3 import machines, shared_files

READ_NO_REPORTS = frozenset(
    (
        "accept_batch", "correct", "dataset", "debug", "intake", "plan_qa", "predict", "predict_edited", "predict_folder", "predictions",
        "prepare", "record", "splits", "train", "withdraw",
    )
)  # fmt: skip
"""Stages that read nothing from the folder of reports: on a node of a cluster, which begins empty, they need not wait for it."""


@cache
def sharing(name: str, stage: Callable[..., Any]) -> Callable[..., Any]:
    """The stage, which in a shared home finds the reports of other machines, and after which they have its own."""

    @wraps(stage)
    def run(*arguments: Any, **options: Any) -> Any:
        ws, program, batch = (*arguments, None, None, None)[:3]
        if not isinstance(ws, Settings) or not isinstance(program, str):
            return stage(*arguments, **options)
        with logs.stage(stage.__name__, program, batch if names.BATCH.fits(batch) else None):
            machines.begin(ws)
            with shared_files.sharing(ws, program, reads=name not in READ_NO_REPORTS):
                return stage(*arguments, **options)

    return run
