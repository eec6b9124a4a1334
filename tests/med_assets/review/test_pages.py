"""The pages of the review: what they show of a case, and that they ship with the package."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from med_assets import program
from med_assets.records import Status
from med_assets.settings import Workspace
from tests.conftest import REPOSITORY
from tests.med_assets.review.builders import CaseRow, add_cases, client


def test_the_landing_page_has_all_programs_with_their_counts(workspace: Workspace) -> None:
    add_cases(workspace, "rt_dose", [CaseRow("a1"), CaseRow("a2"), CaseRow("b1", Status.QUARANTINED, "no dose")])
    page = client(workspace).get("/").text
    assert all(f'href="/{name}/"' in page for name in program.registered())
    assert '<td class="number">2</td><td class="number">1</td>' in page


@pytest.mark.parametrize("name", program.registered())
def test_the_page_of_a_case_shows_facts_history_split_and_provenance(workspace: Workspace, name: str) -> None:
    add_cases(
        workspace, name, [CaseRow("a1", warnings="spacing differs"), CaseRow("b1", Status.QUARANTINED, "no image")]
    )
    browser = client(workspace)
    page = browser.get(f"/{name}/cases/a1").text
    assert "in the dataset" in page
    assert "spacing differs" in page
    assert all(fact in page for fact in program.get(name).facts)
    assert "in the dataset as version va1" in page
    assert "raw/a1" in page
    refused = browser.get(f"/{name}/cases/b1").text
    assert "not in the dataset" in refused
    assert "no image" in refused
    assert browser.get(f"/{name}/cases/a").status_code == 404


def test_no_page_has_a_script_or_style_of_its_own() -> None:
    for path in (REPOSITORY / "med_assets/review/templates").glob("*.html"):
        text = path.read_text()
        assert "<style" not in text, path.name
        assert " style=" not in text, path.name
        assert not re.search(r"<[^>{]*\son\w+=", text), path.name
        assert text.count("<script") == text.count("<script src=") + text.count('<script type="module" src='), path.name
        assert "://" not in text, path.name


@pytest.mark.slow
def test_the_built_wheel_has_templates_scripts_and_styles(tmp_path: Path) -> None:
    source, built = tmp_path / "source", tmp_path / "built"  # a copy, in which no earlier build is
    for name in ("med_assets", "assets", "resources", "sensors"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("definitions.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(built)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        held = set(packed.namelist())
    folder = REPOSITORY / "med_assets/review"
    shipped = [path for name in ("templates", "static") for path in (folder / name).rglob("*") if path.is_file()]
    assert len(shipped) > 5
    assert {path.relative_to(REPOSITORY).as_posix() for path in shipped} <= held
