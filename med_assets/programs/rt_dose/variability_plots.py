"""Plots of natural variability, from the tables of `variability_tables`."""

from pathlib import Path

import pandas as pd

CAPTIONS = (
    "Planned dose against the distance to the nearest target: mean of the patients' means and their central 90 % range.",
    "Elsewhere in the body: root mean squared error of each model, and the natural SD (dashed) that it is compared with.",
)
"""Captions of the plots of `plots_of`, in their order."""


def plots_of(profile: pd.DataFrame, by_distance: pd.DataFrame, out: Path) -> tuple[Path, ...]:
    """The band of planned doses, and the errors of models beside natural variation if there are models."""
    from med_assets.reporting.analysis_plots import plot_bands, plot_lines

    bands = {
        str(region): rows.rename(columns={"5 %": "low", "95 %": "high"}).assign(distance=_middle(rows))
        for region, rows in profile.groupby("region", sort=False)
        if len(rows) > 1  # inside of targets is one bin
    }
    label = "distance to the nearest target, mm"
    found = [plot_bands(out / "dose_along_distance.png", bands, x="distance", label=label, unit="planned dose, Gy")]
    free = by_distance[by_distance["region"] == "elsewhere"] if len(by_distance) else by_distance
    if len(free):
        lines = {
            str(name): pd.DataFrame({"x": _middle(rows), "y": rows["RMSE"]})
            for name, rows in free.groupby("experiment", sort=False)
        }
        first = free[free["experiment"] == free["experiment"].iloc[0]]
        reference = pd.DataFrame({"x": _middle(first), "y": first["natural SD"]})
        found.append(
            plot_lines(
                out / "errors_along_distance.png",
                lines,
                reference=("natural SD", reference),
                label=label,
                unit="Gy",
                title="Elsewhere",
            )
        )
    return tuple(found)


def _middle(rows: pd.DataFrame) -> pd.Series:
    """Middle of each distance bin, mm; an open bin is drawn at 10 mm past its end."""
    low, high = rows["from, mm"].astype(float), rows["to, mm"].astype(float)
    return ((low.fillna(high - 20) + high.fillna(low + 20)) / 2).astype(float)
