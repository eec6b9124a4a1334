"""The report page: one file, safe text, honest gaps."""

import re
from pathlib import Path

import pandas as pd
import pytest

from med_assets.reporting.html import Highlight, Section, model_card, render_report

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c626001000000ffff03000006000557bfabd40000000049454e44ae426082"
)


def render(tmp_path: Path, *sections: Section, **options: object) -> str:
    page = render_report(tmp_path / "r.html", "Report", sections, {"dataset": "abc"}, **options)  # type: ignore[arg-type]  # the variety is the point of the test
    return page.read_text()


def test_the_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    image = tmp_path / "dose.png"
    image.write_bytes(PIXEL)
    text = render(tmp_path, Section("Case", images=[image], captions=["planned"]))
    assert "data:image/png;base64," in text
    assert "planned" in text
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
    assert "<script" not in text


def test_text_from_data_cannot_inject_markup(tmp_path: Path) -> None:
    table = pd.DataFrame({"<b>name": ["<script>alert(1)</script>"]})
    text = render(tmp_path, Section("<i>x", text="<u>y", table=table), subtitle="<s>z")
    assert not re.search(r"<script|<b>|<i>|<u>|<s>", text)


def test_undefined_values_show_as_a_dash_and_never_as_zero(tmp_path: Path) -> None:
    table = pd.DataFrame({"MAE": [None, float("nan"), 1.23456], "n": pd.array([1, None, 3], dtype="Int64")})
    text = render(tmp_path, Section("Scores", table=table))
    assert text.count('undefined">–<') == 3
    assert ">1.235<" in text
    assert ">0<" not in text


def test_verdicts_are_marked_in_columns_about_passing_only(tmp_path: Path) -> None:
    table = pd.DataFrame({"passed": pd.array([True, False, None], dtype="boolean"), "champion": [True, False, False]})
    text = render(tmp_path, Section("Limits", table=table))
    assert text.count('class="pill yes"') == text.count('class="pill no"') == 1


def test_an_empty_table_says_so(tmp_path: Path) -> None:
    assert "no rows" in render(tmp_path, Section("Limits", table=pd.DataFrame({"a": []})))


def test_provenance_warning_and_highlights_are_on_the_page(tmp_path: Path) -> None:
    text = render(tmp_path, Section("A"), warning="synthetic data", highlights=[Highlight("MAE", "2.9 Gy", "n = 12")])
    for part in ("<dt>dataset</dt><dd>abc</dd>", "synthetic data", "2.9 Gy", "n = 12"):
        assert part in text


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    section = Section("A", text="one\n\ntwo", table=pd.DataFrame({"x": [1.5]}), links={"case c1": "cases/c1.html"})
    assert render(tmp_path, section) == render(tmp_path, section)


def test_a_model_card_states_use_data_and_limitations(tmp_path: Path) -> None:
    card = model_card(
        intended_use="research", not_for="treatment", training_data="30 cases", evaluation_data="6 cases",
        metrics="MAE", limitations=["one site"], owners=["rt"],
    )  # fmt: skip
    text = render(tmp_path, card)
    for part in ("Model card", "research", "treatment", "30 cases", "6 cases", "one site", "rt"):
        assert part in text


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a picture"):
        render(tmp_path, Section("A", images=[tmp_path / "a.tiff"]))
