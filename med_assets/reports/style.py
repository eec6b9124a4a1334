"""One look for all figures: colours that stay apart for colour-blind readers, quiet axes, PNG written atomically."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D5D5D", "#8C6D1F", "#7A4FBF", "#B8A900")
"""Okabe and Ito's palette (Color Universal Design, 2008), its yellow and black replaced by tones that read on white."""

INK, MUTED, RULE = "#1f2933", "#66727f", "#d8dee4"

DPI = 130

_RC: dict[str, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#edf0f3",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def colour(index: int) -> str:
    """Return the palette's colour of a series, repeating after the tenth."""
    return COLOURS[index % len(COLOURS)]


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """Yield an empty figure of `width` x `height` inches; on leaving it is written to `path` as PNG, atomically.

    The figure belongs to no pyplot state, so that plots can be drawn from several threads and none stays open.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(dict[Any, Any](_RC)):
        drawn = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        with replacing(path) as temporary:
            drawn.savefig(temporary, format="png", metadata={"Software": None})
