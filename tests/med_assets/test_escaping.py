"""Text from outside has no power where it is shown: pages, notebooks, Markdown, Dagster, spreadsheets, the terminal."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from assets import checks, metadata
from med_assets.cli import stages
from med_assets.cli.commands import table
from med_assets.cli.main import main
from med_assets.reporting.html import Highlight, Section, render_report
from med_assets.reporting.notebooks import stop_kernel
from med_assets.settings import Workspace
from med_assets.storage import escaping
from med_assets.storage.escaping import markdown
from med_assets.storage.result import CheckOutcome
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, configure, constant, model

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</td></table><script>alert(1)</script>",
    "[a](javascript:alert(1))",
    "![a](https://example.org/x.png)",
    "a | b | c",
    "`x` and ```y",
    "x`<b>y</b>`z",
    "**bold** ~~struck~~",
    "[a]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "&lt;b&gt; &#x3c;i&#x3e;",
    "line\n# heading\n<script>",
    '" onmouseover="alert(1)',
    "'><svg onload=alert(1)>",
    "\\[a](javascript:alert(1))",
    "\\",
)


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def harmless(self) -> bool:
        names = {tag for tag, _ in self.elements}
        events = [name for _, attributes in self.elements for name in attributes if name.startswith("on")]
        addresses = [attributes.get(name) or "" for _, attributes in self.elements for name in ("href", "src")]
        outside = [one for one in addresses if ":" in one and not one.startswith("data:image/png;base64,")]
        return (
            not (names & {"script", "svg", "iframe", "object", "b", "i", "strong", "s"}) and not events and not outside
        )


def rendered(text: str) -> Page:
    """Markdown as a viewer shows it, with HTML passed through."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    for around in ("{}", "# {}", "- {}.", "![{}](figures/a.png)", "Status: {}."):
        page = rendered(around.format(escaping.inline(text)))
        assert page.harmless(), page.elements
        if not around.startswith("!"):
            assert " ".join(text.split()) in " ".join(page.text.split())
    assert rendered(f"a {escaping.code(text)} b").harmless()
    assert rendered(escaping.fenced(text, "yaml") + "\n\nafter").harmless()
    page = rendered(markdown(pd.DataFrame({text: [text, "`<b>`"], "n": [1, 2]})))
    assert page.harmless()
    assert [tag for tag, _ in page.elements].count("td") == 4


@pytest.mark.parametrize("text", HOSTILE)
def test_dagster_shows_text_as_it_is(text: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    shown = str(metadata.picture(tmp_path / "a.png", text).value)
    page = rendered(shown)
    assert page.harmless()
    assert [tag for tag, _ in page.elements if tag == "img"] == ["img"]
    outcome = CheckOutcome(False, text, metadata={"name": text})

    description = checks.result("g", outcome).description
    assert not [tag for tag, _ in rendered(description or "").elements if tag in ("script", "img", "svg", "b", "a")]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_report_shows_text_as_it_is(text: str, tmp_path: Path) -> None:
    rows = pd.DataFrame({text: [text], "structure": [text]})
    path = render_report(
        tmp_path / "r.html", text, [Section(text, text, rows)], {text: text}, subtitle=text,
        highlights=[Highlight(text, text, text)], warning=text,
    )  # fmt: skip
    page = Page(path.read_text())
    plain = Page(render_report(tmp_path / "p.html", "x", [Section("x", "x", rows.set_axis(["x", "structure"], axis=1))], {"x": "x"}, subtitle="x", highlights=[Highlight("x", "x", "x")], warning="x").read_text())  # fmt: skip
    allowed = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in page.elements} <= allowed
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert " ".join(text.split()) in " ".join(page.text.split())


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3+cmd", "@SUM(A1)", "\t=1", "\n=1", "=HYPERLINK(1)"]
)
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    frame = pd.read_csv(io.StringIO(escaping.csv(pd.DataFrame({text: [text, "-1.5", "ok"], "value": [-1.5, 2, 3]}))))
    assert frame.columns[0].startswith("'")
    assert frame.iloc[:, 0].tolist() == ["'" + escaping.visible(text), "-1.5", "ok"]
    assert frame["value"].tolist() == [-1.5, 2.0, 3.0]


def test_control_characters_are_written_out_in_a_terminal(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egpj\r\x08"
    workspace.lake.write("withdrawals", "rt_dose", [{"program": "rt_dose", "case_id": hostile, "reason": hostile}])
    for form in ("table", "csv", "json"):
        assert main(["query", "select * from withdrawals", "--format", form]) == 0
        assert not escaping.CONTROL.search(capsys.readouterr().out)
    assert main(["predict", "rt_dose", hostile, "--out", "x"]) == 1
    with pytest.raises(SystemExit) as ended:
        main(["train", f"rt_dose/{hostile}"])
    assert ended.value.code == 2
    assert not escaping.CONTROL.search(capsys.readouterr().err)
    assert "\\x1b[2J" in escaping.visible(table([{"a": hostile}]))


def test_what_a_terminal_can_not_encode_is_written_out() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    escaping.VisibleText(stream).write("é \udcff \U0001f600")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9 \\udcff \\U0001f600"  # type: ignore[attr-defined]  # BytesIO


def test_the_pages_and_the_notebook_of_a_hostile_experiment_show_its_text_as_it_is(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = " ".join(HOSTILE).replace("\n", " ") + " $\\href{javascript:x}{y}$"
    configure(tmp_path, monkeypatch)
    file = tmp_path / "conf" / P / "baseline.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"title": hostile, "description": hostile}))
    cases(workspace, {"train": TRAIN, "val": VAL})
    workspace.lake.write(
        "failures", P, [{"program": P, "stage": hostile, "experiment": hostile, "case_id": hostile, "error": hostile}]
    )
    model(workspace, "mean_dose", constant(9.0, step=0.02))
    model(workspace, "baseline", constant(2.5), history=(4.0, 3.0))
    stages.champion(workspace, P)
    stages.rollback(workspace, P, hostile) if len(workspace.lake.rows("champions", P)) > 1 else None
    result = stages.record_experiment(workspace, P, "baseline")
    stop_kernel()
    stages.index(workspace, P)
    stages.leaderboard(workspace, P)
    notebook = json.loads((workspace.home / result.summary["notebook"]).read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            page = rendered("".join(cell["source"]))
            assert not [
                tag for tag, _ in page.elements if tag in ("script", "svg", "b", "i", "a")
            ] or "figures/" in str(page.elements)
            assert not [one for _, attributes in page.elements for one in attributes if one.startswith("on")]
    assert hostile.split("$")[0].strip() in " ".join(rendered("".join(notebook["cells"][0]["source"])).text.split())
    for path in workspace.reports.rglob("*.html"):
        page = Page(path.read_text())
        assert not [tag for tag, _ in page.elements if tag in ("script", "svg", "img", "b")]
        assert not [one for _, attributes in page.elements for one in attributes if one.startswith("on")]
    for path in workspace.reports.rglob("*.md"):
        assert rendered(path.read_text()).harmless(), path
