"""Warnings of the audit about an accepted case: counted by `cases` and `ingest`, written out with the measured value by `explain`."""

import numpy as np
import pytest

from med_assets.cli.main import main
from med_assets.records import PreparedCase
from med_assets.settings import Workspace
from tests.conftest import settings_of
from tests.invented import Study, ct, ingest, volume_seg, write


def oblique_chest(degrees: float) -> list[object]:
    angle, study = np.radians(degrees), Study("oblique")
    slices = ct(study, iop=(1, 0, 0, 0, np.cos(angle), np.sin(angle)), n=33)
    mask = np.zeros((33, 64, 64), bool)
    mask[12:18, 30:38, 20:28] = True
    return [*slices, volume_seg(study, slices, [("lung tumor", mask)])]


def test_an_accepted_case_keeps_its_warnings_with_the_measured_value(workspace: Workspace) -> None:
    write(oblique_chest(20.0), workspace.landing / "lung_ct" / "a")
    _, (row,) = ingest(workspace, "lung_ct")
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert (row["status"], row["reason"]) == ("ok", None)
    (tilted,) = [text for text in PreparedCase.of(row).warning_lines if "oblique_deg" in text]
    assert (
        tilted == f"expected slices along the axes of the patient, got oblique_deg = {facts['oblique_deg']:g} degrees"
    )


def test_the_command_line_counts_warnings_and_explains_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in settings_of(workspace.home).items():
        monkeypatch.setenv(name, value)
    write(oblique_chest(20.0), workspace.landing / "lung_ct" / "a")
    assert main(["ingest", "lung_ct", "--now"]) == 0
    taken_in = capsys.readouterr().out
    assert "accepted with audit warnings: 1" in taken_in
    assert "got oblique_deg = 20 degrees" in taken_in
    (row,) = workspace.lake.rows("prepared_cases", "lung_ct")
    assert main(["cases", "lung_ct"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert dict(zip(head.split(), line.split(), strict=False))["warnings"] == str(
        len(PreparedCase.of(row).warning_lines)
    )
    assert main(["explain", row["case_id"]]) == 0
    assert capsys.readouterr().out.count("audit warning: expected") == len(PreparedCase.of(row).warning_lines)
