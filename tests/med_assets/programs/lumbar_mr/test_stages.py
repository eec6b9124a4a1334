"""The data stages over landed spine MR: what is accepted, what is quarantined and why."""

import pytest

from med_assets import program
from med_assets.cli import stages
from med_assets.landing import batches
from med_assets.programs.lumbar_mr import LumbarMr
from med_assets.programs.lumbar_mr.phantom import write_case
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.settings import Workspace
from tests.med_assets.programs.lumbar_mr.series_builders import P, identity, write_series

SHAPE, SPACING_MM = (7, 96, 96), (6.0, 2.8, 2.8)


@pytest.mark.slow
def test_phantoms_are_accepted_and_bad_studies_beside_them_are_quarantined_with_their_reasons(
    workspace: Workspace,
) -> None:
    landing = workspace.landing / P
    for seed, anatomy in ((1, "normal"), (2, "sacralised"), (3, "lumbarised")):
        write_case(landing / f"good-{seed}", seed, anatomy=anatomy, shape=SHAPE, spacing_mm=SPACING_MM)
    write_case(landing / "bare", 4, shape=SHAPE, spacing_mm=SPACING_MM, points=False)
    write_case(landing / "again", 1, shape=SHAPE, spacing_mm=SPACING_MM, patient_id="SOMEBODY-ELSE")
    write_series(landing / "t1", identity(1), description="Sagittal T1", times_ms=(10, 500), at=None)
    write_series(landing / "holes", identity(2))
    (landing / "holes" / "t2" / "0003.dcm").unlink()
    write_series(landing / "coarse", identity(3))
    batch = batches.take(workspace, P, batches.untaken(workspace, P), 0.0)
    stages.intake(workspace, P, batch)
    stages.prepare(workspace, P, batch)

    rows = [*workspace.lake.rows("raw_cases", P), *workspace.lake.rows("prepared_cases", P)]
    refused = sorted((row["reason_code"], row["reason"]) for row in rows if row["reason_code"])
    assert {code for code, _ in refused} == {"duplicate_case", "no_sagittal_t2", "missing_slice", "audit_failed"}
    (audited,) = [reason for code, reason in refused if code == "audit_failed"]
    assert audited.startswith("expected 0.2 to 3 mm pixels, got pixel_mm = ")
    accepted = [row for row in workspace.lake.rows("prepared_cases", P) if row["status"] == "ok"]
    cases = [PreparedCase.open(workspace.store.fetch(row["artifact"])) for row in accepted]
    assert sorted(case.lstv for case in cases) == ["lumbarised", "normal", "sacralised"]
    (bare,) = [row for row in workspace.lake.rows("prepared_cases", P) if row["status"] == "to predict"]
    assert PreparedCase.open(workspace.store.fetch(bare["artifact"])).lstv == "unknown"
    assert all(case.synthetic for case in cases)
    facts = workspace.lake.rows(program.fact_table(P), P)
    assert {row["levels"] for row in facts if row["case_id"] in {case.case_id for case in cases}} == {5}
    seen = "".join(map(str, rows + facts))
    assert "Spine" not in seen
    assert "PHANTOM-" not in seen


def test_phantoms_of_the_program_are_of_all_anatomies_and_mostly_normal(tmp_path, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(
        "med_assets.programs.lumbar_mr.phantom.write_case", lambda folder, seed, **how: made.append((seed, how))
    )
    LumbarMr().write_phantoms(tmp_path, 12, 10)
    assert [seed for seed, _ in made] == list(range(10, 22))
    anatomies = [how["anatomy"] for _, how in made]
    assert {name: anatomies.count(name) for name in set(anatomies)} == {"normal": 8, "sacralised": 2, "lumbarised": 2}
