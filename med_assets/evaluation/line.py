"""One model of the leaderboard."""

from dataclasses import dataclass, field

from med_assets.evaluation.aggregates import Estimate


@dataclass(frozen=True)
class Line:
    """One model of the leaderboard: its deciding scores by split and metric, and the further ones that its program shows, by split, metric and
    subject.
    """

    experiment: str
    checkpoint: str
    scores: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    further: dict[tuple[str, str, str], Estimate] = field(default_factory=dict)

    def columns(self) -> dict[str, str | float | int | None]:
        """The line as a row of the CSV file."""
        found: dict[str, str | float | int | None] = {"experiment": self.experiment, "checkpoint": self.checkpoint}
        named = {f"{split} {metric}": one for (split, metric), one in self.scores.items()}
        named |= {further_name(*key): one for key, one in self.further.items()}
        for score, one in named.items():
            values = {"mean": one.mean, "low": one.low, "high": one.high, "n": one.n}
            found |= {f"{score} {name}": value for name, value in values.items()}
        return found


def further_name(split: str, metric: str, subject: str) -> str:
    """The name of a further score in the leaderboard, without the subject where that is all of a case."""
    return f"{split} {metric}" if subject == "all" else f"{split} {metric} {subject}"
