"""The leaderboard has the further scores of a program after those that decide, and orders by none of them."""

from dataclasses import asdict

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.evaluation.aggregates import Aggregate
from med_assets.evaluation.leaderboard import board
from med_assets.programs.retinal_oct.score import CLASS_NAMES
from med_assets.records import AggregateScore, Checkpoint
from med_assets.settings import Workspace

Q = "retinal_oct"


def evaluated(ws: Workspace, experiment: str, values: dict[tuple[str, str], float]) -> None:
    made = {"program": Q, "experiment": experiment, "checkpoint": f"checkpoint/{experiment}", "dataset_version": "d"}
    rows = [
        AggregateScore.of(
            made
            | asdict(Aggregate("val", *key, value, value - 0.1, value + 0.1, 20, "1", "c", "i"))
            | {"code_version": "1", "git_commit": "g"}
        )
        for key, value in values.items()
    ]
    Catalog(ws, Q).replace(AggregateScore, rows, experiment)


def test_all_metrics_of_a_program_are_columns_and_the_deciding_one_orders_the_lines(workspace: Workspace) -> None:
    further = program.get(Q).further_metrics
    assert {subject for metric, subject in further if metric == "f1"} == set(CLASS_NAMES)
    evaluated(workspace, "scratch", {("balanced_accuracy", "all"): 0.5, **dict.fromkeys(further, 0.9)})
    evaluated(workspace, "random_probe", {("balanced_accuracy", "all"): 0.6, ("weighted_kappa", "all"): -0.2})
    found = board(workspace, Q)
    assert [line.experiment for line in found.lines] == ["random_probe", "scratch"]
    table = found.tables["leaderboard"].set_index("experiment")
    assert table.loc["scratch", "val f1 oral_medication"] == "0.90 [0.80, 1.00] (n = 20)"
    assert table.loc["random_probe", "val weighted_kappa"] == "-0.20 [-0.30, -0.10] (n = 20)"
    assert table.loc["random_probe", "val brier"] == ""
    assert next(iter(table)) == "val balanced_accuracy"
    assert found.rows[1]["val calibration_error mean"] == 0.9


def test_the_path_of_the_figure_of_all_cases_is_in_the_leaderboard_whether_or_not_the_record_is_written(
    workspace: Workspace,
) -> None:
    evaluated(workspace, "scratch", {("balanced_accuracy", "all"): 0.5})
    assert "all cases" not in board(workspace, Q).tables["leaderboard"], "without a checkpoint there is no record"
    made = {
        "program": Q,
        "experiment": "scratch",
        "checkpoint": "checkpoint/scratch",
        "experiment_hash": "h",
        "dataset_version": "d",
    }
    counted = {"n_train": 1, "n_val": 1, "synthetic": True, "weights_sha256": "w", "git_commit": None}
    Catalog(workspace, Q).replace(Checkpoint, [Checkpoint.of(made | counted)], "scratch")
    name = f"{Q}/experiments/scratch/figures/all_cases_val.png"
    before = board(workspace, Q)
    assert before.tables["leaderboard"]["all cases"].tolist() == [name]
    (workspace.reports / name).parent.mkdir(parents=True)
    (workspace.reports / name).write_bytes(b"")
    assert board(workspace, Q).tables["leaderboard"].equals(before.tables["leaderboard"])
