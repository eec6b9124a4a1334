"""The page `docs/add-a-report-section.md`, done in a copy of the source: a module and a line, and the report has the section."""

from pathlib import Path

from med_assets.settings import Workspace
from tests.docs_tree import Tree
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import cases


def test_a_section_of_the_page_is_in_the_report(workspace: Workspace, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "source", "add-a-report-section.md")
    tree.follow()
    (lines,) = [block.text for block in tree.blocks if block.language == "text"]
    imported, entry = lines.splitlines(keepends=True)
    registry, before = tree.folder / "med_assets" / "reporting" / "sections.py", "    data_sections.cases,\n"
    text = registry.read_text()
    assert text.count(before) == 1
    registry.write_text(
        text.replace("from collections", f"{imported}from collections", 1).replace(before, before + entry)
    )
    assert tree.changed() == {
        "med_assets/reporting/batch_section.py": "added",
        "med_assets/reporting/sections.py": "edited",
    }
    cases(workspace, {"train": ["t0", "t1"]})
    tree.med_assets(f"med-assets report {P}")
    report = (workspace.reports / P / "report.html").read_text()
    assert report.index(">Cases<") < report.index(">Batches<")
    assert "b1" in report
