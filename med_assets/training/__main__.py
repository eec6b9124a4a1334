"""`python -m med_assets.training JOB [--resume auto|must|never]`."""

import argparse
import os
import sys
from pathlib import Path

from med_assets.errors import AcceleratorFailed, MedAssetsError, OutOfMemory, TrainingStopped
from med_assets.launch.jobs import Kind, kind
from med_assets.storage.files import keep_private
from med_assets.storage.preloaded import end_with
from med_assets.training import status
from med_assets.training.supervisor import Supervisor

RESUME = ("auto", "must", "never")
"""auto goes on if there is a checkpoint, must refuses if there is none, never starts over."""

STATUSES = (
    f"exit status: {status.DONE} done; {status.FAILED} can't be run as given, or failed; {status.OUT_OF_MEMORY} out of "
    f"memory; {status.ACCELERATOR} the accelerator failed; {status.HUNG} hung; {status.REQUEUE} asked to stop (SIGTERM) "
    f"and saved: requeue; {status.SIGNALLED}+n ended by signal n"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one job folder; returns one of the exit statuses of `status`."""
    parser = argparse.ArgumentParser(
        prog="python -m med_assets.training",
        description="Run one job folder, which trains or predicts, to its end.",
        epilog=STATUSES,
    )
    parser.add_argument(
        "job", type=Path, help="folder with program, experiment.json and cases.json, and checkpoint to predict"
    )
    parser.add_argument(
        "--resume",
        choices=RESUME,
        default="auto",
        help="go on from the last checkpoint: if there is one, or must, or never",
    )
    parser.add_argument(
        "--unsupervised",
        action="store_true",
        help="run it in this process, which ends with its parent: nothing restarts it when it hangs or dies",
    )
    options = parser.parse_args(arguments)
    keep_private()
    try:
        if not options.job.is_dir():
            parser.error(f"expected a job folder, found none at {options.job}")
        if not options.unsupervised:
            return Supervisor(options.job, options.resume).run()
        end_with(os.getppid())
        return _run(options.job, options.resume)
    except MedAssetsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return status.FAILED


def _run(job: Path, resume: str) -> int:
    try:
        if kind(job) is Kind.PREDICTION:
            _predict(job)
        else:
            _train(job, resume)
    except OutOfMemory as error:
        print(f"out of memory: {error}", file=sys.stderr)
        return status.OUT_OF_MEMORY
    except AcceleratorFailed as error:
        print(f"accelerator failed: {error}", file=sys.stderr)
        return status.ACCELERATOR
    except TrainingStopped as error:
        print(error, file=sys.stderr)
        return status.REQUEUE
    return status.DONE


def _predict(job: Path) -> None:
    from med_assets.training.predict import run

    result = run(job)
    print(f"{result['status']}: {len(result['failed'])} cases failed")


def _train(job: Path, resume: str) -> None:
    from med_assets.training.job import run

    if result := run(job, resume):
        value, epoch = result["best_value"], result["best_epoch"]
        best = f"best {result['monitor']} {value:.4f} at epoch {epoch}"
        print(f"{result['status']}: {best if value is not None else 'the weights as they came, validated on no case'}")


if __name__ == "__main__":
    sys.exit(main())
