"""The page `docs/add-a-report-section.md`, done in a copy of the package: a function and a line, and the report has the section."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from med_assets.settings import Workspace
from tests.conftest import REPOSITORY
from tests.docs_blocks import blocks
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import cases


def test_a_section_of_the_page_is_in_the_report(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("med_assets", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    page = blocks(REPOSITORY / "docs" / "add-a-report-section.md")
    (module,) = [block.text for block in page if block.language == "python"]
    (lines,) = [block.text for block in page if block.language == "text"]
    imported, entry = lines.splitlines(keepends=True)
    (source / "med_assets" / "reporting" / "batch_section.py").write_text(module)
    registry = source / "med_assets" / "reporting" / "sections.py"
    text, at = registry.read_text(), "    data_sections.cases,\n"
    assert text.count(at) == 1
    registry.write_text(text.replace("from collections", f"{imported}from collections", 1).replace(at, at + entry))
    cases(workspace, {"train": ["t0", "t1"]})
    done = subprocess.run(
        [sys.executable, "-m", "med_assets.cli", "report", P],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = (workspace.reports / P / "report.html").read_text()
    cases_at, batches_at = (report.index(f">{title}<") for title in ("Cases", "Batches"))
    assert cases_at < batches_at
    assert "b1" in report
