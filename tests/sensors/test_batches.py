"""Which batches intake gave other cases than were prepared, read batch by batch or from whole tables."""

from dataclasses import replace

import pytest

from med_assets.catalog import Catalog
from med_assets.records import CaseVersion, PreparedCase, Status
from med_assets.settings import Workspace
from sensors import batches
from tests.med_assets.stages.models import cases

P = "rt_dose"
SAME, OTHER_VERSION, REFUSED, NOT_PREPARED = (f"2026-01-0{day}T00-00-00_00000{day}" for day in (1, 2, 3, 4))


@pytest.mark.parametrize("many", [1, 1000])
def test_a_batch_has_other_cases_when_ids_or_versions_differ_and_refused_ones_do_not_count(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(batches, "MANY", many)
    catalog = Catalog(workspace, P)
    for batch in (SAME, OTHER_VERSION, REFUSED, NOT_PREPARED):
        cases(workspace, {"train": [f"a-{batch}", f"b-{batch}"]}, batch=batch)
    known = [SAME, OTHER_VERSION, REFUSED, NOT_PREPARED]
    assert batches._with_other_cases(workspace, P, known) == set()

    first, *others = catalog.case_versions(OTHER_VERSION)
    catalog.replace(CaseVersion, [replace(first, version="another"), *others], OTHER_VERSION)
    first, *others = catalog.case_versions(REFUSED)
    refused = replace(first, case_id="refused", status=Status.QUARANTINED)
    catalog.replace(CaseVersion, [first, *others, refused], REFUSED)
    catalog.replace(PreparedCase, [], NOT_PREPARED)
    assert batches._with_other_cases(workspace, P, known) == {OTHER_VERSION, NOT_PREPARED}
    assert batches._with_other_cases(workspace, P, []) == set()
