"""One model of the leaderboard."""

from dataclasses import dataclass, field

from med_assets.evaluation.aggregates import Estimate


@dataclass(frozen=True)
class Line:
    """One model of the leaderboard: its deciding scores by split and metric."""

    experiment: str
    checkpoint: str
    scores: dict[tuple[str, str], Estimate] = field(default_factory=dict)

    def columns(self) -> dict[str, str | float | int | None]:
        """The line as a row of the CSV file."""
        found: dict[str, str | float | int | None] = {"experiment": self.experiment, "checkpoint": self.checkpoint}
        for (split, metric), one in self.scores.items():
            values = {"mean": one.mean, "low": one.low, "high": one.high, "n": one.n}
            found |= {f"{split} {metric} {name}": value for name, value in values.items()}
        return found
