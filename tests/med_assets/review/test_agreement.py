"""Agreement between readers: newest answers about the same images, on the page and in the command."""

import pytest

from med_assets.catalog import Catalog
from med_assets.cli.main import main
from med_assets.metrics.agreement import COHEN, FLEISS
from med_assets.review.agreement import FINDING, USE, agreements, readings
from med_assets.review.decisions import decide
from med_assets.settings import Workspace
from tests.med_assets.review.builders import CaseRow, add_cases, client, send_again

P = "lumbar_mr"


def test_every_two_readers_and_all_of_them_are_compared_on_each_question(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    add_cases(workspace, P, [CaseRow(f"a{n}") for n in range(4)])
    given = {"Ana": "nsns", "Ben": "nsnn", "Eve": "nn"}
    names = {"n": "normal", "s": "sacralised"}
    for reader, answers in given.items():
        for n, letter in enumerate(answers):
            decide(workspace, P, f"a{n}", names[letter], "", reader)
    decide(workspace, P, "a3", "normal", "", "Ana")
    decide(workspace, P, "a0", "exclude", "motion", "Ana")
    decide(workspace, P, "a0", "accept", "", "Ben")
    decide(workspace, P, "a0", "comment", "see a1", "Eve")
    found = {(one.question, one.readers): one.agreement for one in agreements(readings(Catalog(workspace, P)))}
    assert set(found) == {
        (FINDING, ("Ana", "Ben")), (FINDING, ("Ana", "Eve")), (FINDING, ("Ben", "Eve")), (FINDING, ("Ana", "Ben", "Eve")),
        (USE, ("Ana", "Ben")),
    }  # fmt: skip
    pair = found[FINDING, ("Ana", "Ben")]
    assert (pair.statistic, pair.n, pair.value) == (COHEN, 4, pytest.approx(1.0)), "the newest answer counts"
    three = found[FINDING, ("Ana", "Ben", "Eve")]
    assert (three.statistic, three.n) == (FLEISS, 2)
    assert found[USE, ("Ana", "Ben")].observed == 0.0
    page = client(workspace).get(f"/{P}/agreement").text
    assert "Fleiss&#39; kappa" in page
    assert "Ana: exclude; Ben: accept" in page
    assert main(["agreement", P]) == 0
    assert "Ana, Ben, Eve" in capsys.readouterr().out


def test_answers_about_other_images_are_not_compared(workspace: Workspace) -> None:
    add_cases(workspace, P, [CaseRow("a0"), CaseRow("a1")])
    decide(workspace, P, "a0", "normal", "", "Ana")
    send_again(workspace, P, "a0", "2026-02-01T09-30-00_0a1b2c", same_images=False)
    decide(workspace, P, "a0", "sacralised", "", "Ben")
    assert agreements(readings(Catalog(workspace, P))) == []
    assert "No case was read by two readers yet" in client(workspace).get(f"/{P}/agreement").text
