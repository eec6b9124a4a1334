"""Plots: every one is a readable PNG, the same input gives the same bytes, and gaps are shown as gaps."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from PIL import Image

from med_assets.metrics.gamma_settings import GammaSettings
from med_assets.reporting import gamma_plots, style
from med_assets.reporting.gamma_plots import plot_gamma
from med_assets.reporting.plots import plot_cases, plot_dose, plot_dvh, plot_leaderboard, plot_training, plot_trend
from med_assets.reporting.style import figure, publication
from med_assets.storage.memo import Memo

as_users_get_it = pytest.mark.usefixtures("full_resolution")

SHAPE = (10, 14, 16)


@pytest.fixture
def quick_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are not laid out, which takes most of the time of a picture, where a test is about its pixels."""
    monkeypatch.setattr(style, "LAYOUT", None)


def doses() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    z, y, x = np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij")
    truth = (70 * np.exp(-(z**2 + y**2 + x**2) / 20)).astype(np.float32)
    return truth, truth * np.float32(0.95), {"PTV70": truth > 60, "Bowel": np.zeros(SHAPE, bool)}


def is_picture(path: Path) -> bool:
    pixels = imread(path)
    return bool(pixels.ndim == 3 and min(pixels.shape[:2]) > 150 and pixels.std() > 0.01)


@as_users_get_it
def test_a_dose_wash_is_plotted_and_repeats_byte_for_byte(tmp_path: Path) -> None:
    truth, prediction, masks = doses()
    ct = np.zeros(SHAPE, np.int16)
    first, second = (
        plot_dose(tmp_path / name, ct, truth, prediction, (4.0, 5.0, 5.0), 70.0, outlines=masks, title="case c1")
        for name in ("a.png", "b.png")
    )
    assert is_picture(first)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.usefixtures("quick_layout")
def test_a_prediction_without_any_dose_is_still_plotted(tmp_path: Path) -> None:
    truth, _, masks = doses()
    air = np.full(SHAPE, -1000, np.int16)
    assert is_picture(
        plot_dose(tmp_path / "zero.png", air, truth, np.zeros_like(truth), (4.0, 5.0, 5.0), 70.0, outlines=masks)
    )


@pytest.mark.usefixtures("quick_layout")
def test_where_no_dose_was_calculated_is_hatched_and_not_shown_as_0_gy(tmp_path: Path) -> None:
    truth, prediction, _ = doses()
    calculated = np.ones(SHAPE, bool)
    calculated[:4] = False  # the lower slices

    def plotted(name: str, there_gy: float, where: np.ndarray | None) -> np.ndarray:
        """The picture of a plan with this dose in the lower slices."""
        planned, ct = np.where(calculated, truth, np.float32(there_gy)), np.zeros(SHAPE, np.int16)
        path, spacing = tmp_path / f"{name}.png", (4.0, 5.0, 5.0)
        return imread(plot_dose(path, ct, planned, prediction, spacing, 70.0, calculated=where))

    hatched = plotted("hatched", 0, calculated)
    assert (hatched == plotted("other", 100, calculated)).all(), "what stands in the array there is not shown"
    zero = plotted("zero", 0, None)
    assert hatched.shape != zero.shape or (hatched != zero).any()
    assert (plotted("all", 0, np.ones(SHAPE, bool)) == zero).all()


def test_arrays_of_different_grids_are_refused(tmp_path: Path) -> None:
    truth, prediction, _ = doses()
    with pytest.raises(ValueError, match="on one grid"):
        plot_dose(tmp_path / "x.png", np.zeros((2, 2, 2)), truth, prediction, (1.0, 1.0, 1.0), 70.0)


@as_users_get_it
def test_a_dvh_is_plotted_without_the_structures_that_are_absent(tmp_path: Path) -> None:
    truth, prediction, masks = doses()
    assert is_picture(plot_dvh(tmp_path / "dvh.png", truth, prediction, masks))


@as_users_get_it
def test_training_curves_leave_out_missing_columns_and_epochs(tmp_path: Path) -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3], "train/loss": [3.0, 2.0, 1.0], "val/mae_gy": [4.0, None, 2.0]})
    panels = {"Loss": ["train/loss"], "MAE (Gy)": ["val/mae_gy"], "none": ["val/other"]}
    assert is_picture(plot_training(tmp_path / "t.png", history, panels, best=3))
    with pytest.raises(ValueError, match="expected columns"):
        plot_training(tmp_path / "t.png", history, {"none": ["val/other"]})


@as_users_get_it
def test_a_leaderboard_shows_rows_without_interval_or_mean(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "experiment": ["a", "b", "c"],
            "mean": [1.0, 2.0, None],
            "low": [0.5, None, None],
            "high": [1.5, None, None],
            "n": [5, 1, 0],
        }
    )
    assert is_picture(plot_leaderboard(tmp_path / "l.png", table, metric="MAE", unit="Gy", champion="a"))
    with pytest.raises(ValueError, match="empty leaderboard"):
        plot_leaderboard(tmp_path / "l.png", table.iloc[:0])


@as_users_get_it
def test_cases_are_plotted_as_dots_and_undefined_ones_left_out(tmp_path: Path) -> None:
    assert is_picture(plot_cases(tmp_path / "c.png", {"a": [1.0, 2.0, None], "b": [None]}, unit="Gy"))


@as_users_get_it
def test_a_trend_shows_baseline_limits_and_what_lies_beyond(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "batch": [f"2026-11-0{number}T09-30-00_a1b2c3" for number in (1, 2, 3)],
            "mean": [2.0, 2.2, 9.0],
            "low": [1.5, None, 8.0],
            "high": [2.5, None, 10.0],
            "n": [5, 1, 5],
            "lower": [None, 1.0, 1.2],
            "upper": [None, 3.0, 2.8],
            "beyond": [False, False, True],
        }
    )
    drawn = plot_trend(tmp_path / "a.png", table, metric="MAE", unit="Gy")
    assert is_picture(drawn)
    inside = plot_trend(tmp_path / "b.png", table.assign(beyond=False), metric="MAE", unit="Gy")
    assert drawn.read_bytes() != inside.read_bytes()
    assert is_picture(plot_trend(tmp_path / "c.png", table.iloc[:1], metric="MAE"))
    with pytest.raises(ValueError, match="at least one batch"):
        plot_trend(tmp_path / "d.png", table.iloc[:0])


@as_users_get_it
def test_a_figure_for_print_has_text_of_12_points_or_more_300_dpi_and_a_pdf_with_its_fonts(tmp_path: Path) -> None:
    written = []
    for name in ("a.png", "b.png"):
        with publication(), figure(tmp_path / name, 4, 3) as fig:
            axis = fig.subplots()
            axis.plot([0, 1], label="line")
            axis.set_title("small", fontsize=7)
            axis.tick_params(axis="x", labelsize=7.5)
            axis.legend(fontsize=8)
            fig.suptitle("larger", fontsize=10.5)
        written.append([(tmp_path / name).with_suffix(suffix).read_bytes() for suffix in (".png", ".pdf")])
    sizes = [text.get_fontsize() for text in fig.findobj(Text) if text.get_text()]
    assert len(sizes) > 10
    assert min(sizes) == 12
    assert max(sizes) > 12, "what was larger stays larger"
    assert written[0] == written[1]
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    pdf = written[0][1]
    assert pdf.startswith(b"%PDF-")
    assert b"/CIDFontType2" in pdf
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"/CreationDate" not in pdf
    with figure(tmp_path / "screen.png", 4, 3):
        pass
    assert not (tmp_path / "screen.pdf").exists()


@as_users_get_it
def test_a_gamma_map_is_plotted_also_where_only_some_voxels_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, prediction, masks = doses()
    ct, body = np.zeros(SHAPE, np.int16), np.ones(SHAPE, bool)
    settings = GammaSettings(lower_cutoff_percent=1)
    args = (ct, truth, prediction, (4.0, 5.0, 5.0), body, settings)
    assert is_picture(plot_gamma(tmp_path / "every.png", *args, outlines=masks, title="case c1"))
    monkeypatch.setattr(gamma_plots, "MAX_POINTS", 40)
    assert is_picture(plot_gamma(tmp_path / "some.png", *args))
    assert is_picture(plot_gamma(tmp_path / "none.png", *args[:4], np.zeros(SHAPE, bool), settings))


def test_the_map_of_the_same_doses_is_computed_once_and_another_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_computed: list[int] = []
    gamma_index = gamma_plots.gamma_index

    def counted(*given: Any, **named: Any) -> Any:
        n_computed.append(int(given[3].sum()))
        return gamma_index(*given, **named)

    monkeypatch.setattr(gamma_plots, "gamma_index", counted)
    monkeypatch.setattr(gamma_plots, "_indices", Memo(2))
    truth, prediction, masks = doses()
    settings, body = GammaSettings(lower_cutoff_percent=1), np.ones(SHAPE, bool)

    def picture(name: str, predicted: np.ndarray, chosen: GammaSettings, outlines: Any = None) -> bytes:
        path = tmp_path / name
        plot_gamma(path, np.zeros(SHAPE, np.int16), truth, predicted, (4.0, 5.0, 5.0), body, chosen, outlines=outlines)
        return path.read_bytes()

    first = picture("first.png", prediction, settings)
    assert picture("again.png", prediction.copy(), settings) == first
    assert picture("outlined.png", prediction, settings, masks) != first
    assert len(n_computed) == 1
    assert picture("other.png", prediction * np.float32(0.9), settings) != first
    stricter = settings.model_copy(update={"dose_percent_threshold": settings.dose_percent_threshold / 2})
    assert picture("stricter.png", prediction, stricter) != first
    assert len(n_computed) == 3
    assert picture("begun anew.png", prediction, settings) == first
    assert len(n_computed) == 4, "a memo of two began anew with the third"
