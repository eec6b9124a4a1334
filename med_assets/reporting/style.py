"""One look for all figures: colours that stay apart for colour-blind readers, quiet axes, files written atomically.

Within `publication()` the same plots are made for print: larger, with text of 12 pt or more, as PNG at 300 dpi and as PDF.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from med_assets.storage.files import replacing

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


PUBLICATION_DPI, PUBLICATION_PT = 300, 12.0

PUBLICATION_SCALE = 1.35
"""How much larger a figure for print is, in both directions: about as much as its text, so that nothing collides."""

PDF_RASTER_DPI = 150
"""Resolution of images within a PDF; lines and text are vectors."""

A4_INCHES = (8.27, 11.69)
"""Width and height of an upright page."""

LAYOUT: Literal["constrained"] | None = "constrained"
"""How matplotlib makes space for texts; it draws each figure twice for it."""

PDF_FONTS = 42
"""TrueType, which journals ask for and other programs can edit; 3 is for readers only, and made faster."""

COMPRESSION = 3
"""Effort of zlib for print: the most is three times slower for a tenth of the size."""

_PUBLICATION_RC: dict[str, Any] = _RC | {
    "font.size": PUBLICATION_PT,
    "axes.titlesize": 13.0,
    "pdf.compression": COMPRESSION,
}

_for_print: ContextVar[bool] = ContextVar("for_print", default=False)


@contextmanager
def publication() -> Iterator[None]:
    """Plot every figure made within for print: a PNG at 300 dpi, and beside it a PDF of the same name."""
    token = _for_print.set(True)
    try:
        yield
    finally:
        _for_print.reset(token)


def colour(index: int) -> str:
    """Return the palette's colour of a series, repeating after the tenth."""
    return COLOURS[index % len(COLOURS)]


@contextmanager
def figure(path: Path, width: float, height: float, *, print_scale: float = PUBLICATION_SCALE) -> Iterator["Figure"]:
    """Yield an empty figure of `width` x `height` inches; on leaving it is written to `path` as PNG, atomically.

    Within `publication()` it is `print_scale` times larger, and written as PDF too. The figure belongs to no pyplot state, so that plots can be
    drawn from several threads and none stays open.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for_print = _for_print.get()
    scale, dpi = (print_scale, PUBLICATION_DPI) if for_print else (1.0, DPI)
    with mpl.rc_context(dict[Any, Any](_PUBLICATION_RC if for_print else _RC) | {"pdf.fonttype": PDF_FONTS}):
        drawn = Figure(figsize=(width * scale, height * scale), dpi=dpi, layout=LAYOUT)
        FigureCanvasAgg(drawn)
        yield drawn
        if for_print:
            _enlarge(drawn)
        with replacing(path) as temporary:
            effort = {"compress_level": COMPRESSION} if for_print else {}
            drawn.savefig(temporary, format="png", metadata={"Software": None}, pil_kwargs=effort)
        if for_print:
            drawn.set_layout_engine("none")  # what was laid out for the PNG holds; doing it again takes a second
            with replacing(path.with_suffix(".pdf")) as temporary:
                drawn.savefig(temporary, format="pdf", dpi=PDF_RASTER_DPI, metadata={"CreationDate": None})


def _enlarge(drawn: "Figure") -> None:
    """Scale text whose size a plot gave in points of the screen, so that none is smaller than PUBLICATION_PT."""
    from matplotlib.text import Text

    def size(points: float) -> float:
        return points if points >= PUBLICATION_PT else max(PUBLICATION_PT, points * PUBLICATION_PT / _RC["font.size"])

    for text in drawn.findobj(Text):
        text.set_fontsize(size(float(text.get_fontsize())))
    for axes in drawn.axes:
        for axis in (axes.xaxis, axes.yaxis):
            given = axis.get_tick_params().get("labelsize")  # of the ticks that are made while drawing
            if isinstance(given, int | float):
                axis.set_tick_params(labelsize=size(given))


@contextmanager
def page(path: Path) -> Iterator["Figure"]:
    """Yield an empty upright page of A4; on leaving it is written to `path` as PDF with its fonts, atomically."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(dict[Any, Any](_RC | {"pdf.fonttype": PDF_FONTS, "pdf.compression": COMPRESSION})):
        plotted = Figure(figsize=A4_INCHES)
        yield plotted
        with replacing(path) as temporary:
            plotted.savefig(temporary, format="pdf", dpi=PUBLICATION_DPI, metadata={"CreationDate": None})
