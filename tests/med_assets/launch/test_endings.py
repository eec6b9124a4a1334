"""What outlives the folder of a training job: its exit status and the end of its log."""

from pathlib import Path

from med_assets.launch import jobs
from med_assets.launch.endings import Ending
from med_assets.storage.files import write_text


def test_the_end_of_the_log_names_the_home_by_its_variable_and_the_status_is_that_of_the_process(
    tmp_path: Path,
) -> None:
    job, checkpoint = tmp_path / "jobs" / "1", tmp_path / "checkpoint"
    job.mkdir(parents=True)
    checkpoint.mkdir()
    lines = [f"line {number}" for number in range(jobs.TAIL_LINES + 5)]
    write_text(job / jobs.LOG, "\n".join([*lines, f"wrote {tmp_path}/jobs/1/weights.pt"]) + "\n")
    write_text(job / jobs.EXIT_STATUS, "137\n")
    Ending.of(job, tmp_path).write(checkpoint)
    kept = Ending.read(checkpoint)
    assert kept.return_code == 137
    assert kept.log_tail[-1] == "wrote $MED_ASSETS_HOME/jobs/1/weights.pt"
    assert len(kept.log_tail) == jobs.TAIL_LINES


def test_of_a_job_without_supervisor_and_of_a_checkpoint_of_earlier_versions_nothing_is_known(tmp_path: Path) -> None:
    assert Ending.of(tmp_path, tmp_path) == Ending.read(tmp_path) == Ending(None, ())
