"""Damaged sources of every importer cost their own case alone, and what was found by them stays mended."""

import json
import os
from pathlib import Path

import pytest

from med_assets.cli.main import main
from med_assets.settings import Workspace
from tests.fuzz.import_sources import FORMS
from tests.fuzz.imports import once

QUICK = [name for name, form in FORMS.items() if form.kind != "openkbp"]
"""A patient of OpenKBP is 128 slices, which takes seconds."""


@pytest.mark.parametrize("name", QUICK)
def test_a_damaged_source_is_imported_or_refused_and_the_case_beside_it_imported(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    assert [line for seed in (1, 202) for line in once(name, seed, tmp_path / "sources").failures] == []


def datalist(src: Path, edit) -> Path:
    FORMS["datalist"].write(src)
    content = json.loads((src / "list.json").read_text())
    edit(content)
    (src / "list.json").write_text(json.dumps(content))
    return src / "list.json"


@pytest.mark.parametrize("path", ["x" * 300 + ".nii", "a\0b.nii", "\ud800.nii"])
def test_a_path_that_no_file_can_have_costs_its_entry_alone(tmp_path: Path, capsys, path: str) -> None:
    file = datalist(tmp_path / "src", lambda content: content["training"][1].update(image=path))
    assert main(["import", "datalist", str(file), str(tmp_path / "out")]) == 1
    output = capsys.readouterr().out
    assert "imported 1 cases" in output
    assert "bad_entry" in output


@pytest.mark.parametrize("labels", [{"²": "a"}, {"9" * 5000: "a"}])
def test_label_values_that_are_no_numbers_end_in_one_line(tmp_path: Path, capsys, labels: dict[str, str]) -> None:
    file = datalist(tmp_path / "src", lambda content: content.update(labels=labels))
    assert main(["import", "datalist", str(file), str(tmp_path / "out")]) == 1
    assert "expected labels as" in capsys.readouterr().err


@pytest.mark.parametrize("edit", [
    lambda content: content["training"][1].update(fold="ZZSMITH^MRN"),
    lambda content: content.update({"ZZSMITH^MRN": [{"image": "a"}]}),
])  # fmt: skip
def test_what_a_list_says_is_not_quoted(tmp_path: Path, capsys, edit) -> None:
    assert main(["import", "datalist", str(datalist(tmp_path / "src", edit)), str(tmp_path / "out")]) == 1
    assert "ZZSMITH" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("name", "file", "code"), [
    ("lumbar-t2", "case2.npz", "missing_file"),
    ("busi", "malignant/malignant (1).png", "missing_file"),
    ("folder", "Benign/2 Benign Image.bmp", "missing_file"),
    ("rsna-lumbar", "train_images/22/220/0000.dcm", "missing_file"),
])  # fmt: skip
@pytest.mark.parametrize("replace", [os.mkfifo, lambda path: path.symlink_to(path.name)], ids=["pipe", "loop"])
def test_a_pipe_or_a_link_to_itself_costs_its_case_alone(
    tmp_path: Path, capsys, name: str, file: str, code: str, replace
) -> None:
    src = tmp_path / "src"
    FORMS[name].write(src)
    path = src / file if (src / file).exists() else next(src.glob(file.replace("0000", "*")))
    path.unlink()
    replace(path)
    assert main(["import", FORMS[name].kind, str(src), str(tmp_path / "out"), *FORMS[name].options]) == 0
    output = capsys.readouterr().out
    assert "imported 1 cases" in output
    assert code in output


def test_skipped_participants_are_in_the_list_of_errors_with_their_reason(tmp_path: Path, capsys) -> None:
    src = tmp_path / "src"
    FORMS["ai-readi"].write(src)
    next(path for path in src.rglob("*_0001.dcm")).write_bytes(b"no image")
    assert main(["import", "ai-readi", str(src), str(tmp_path / "out")]) == 1
    assert "not_dicom" in (tmp_path / "out" / ".ai_readi" / "data_errors.csv").read_text()


def test_a_manifest_names_no_file_outside_its_data_set(tmp_path: Path) -> None:
    src = tmp_path / "src"
    FORMS["ai-readi"].write(src)
    scan = next(path for path in src.rglob("*_0001.dcm"))
    scan.rename(tmp_path / scan.name)
    manifest = src / "manifest.tsv"
    manifest.write_text(manifest.read_text().replace(
        "/" + scan.relative_to(src).as_posix(), f"/heidelberg_spectralis/../../{scan.name}"
    ))  # fmt: skip
    (src / "heidelberg_spectralis").mkdir()
    main(["import", "ai-readi", str(src), str(tmp_path / "out")])
    assert len([path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]) == 1


def test_entries_without_a_path_cost_themselves_alone(tmp_path: Path, capsys) -> None:
    file = datalist(tmp_path / "src", lambda content: content["training"].extend([{"image": ""}, {"image": []}]))
    assert main(["import", "datalist", str(file), str(tmp_path / "out")]) == 1
    output = capsys.readouterr().out
    assert "imported 2 cases" in output
    assert output.count("bad_entry") == 2
