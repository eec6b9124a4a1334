"""The rules of a profile as they are printed: all of them, and every value that may stay."""

import csv as reader
import io

import pytest

from med_assets.cli.main import main
from med_assets.deidentification.clinical_words import CLINICAL_WORDS
from med_assets.deidentification.profiles import PROFILES, RESEARCH, STRICT, Profile
from med_assets.deidentification.rules import beyond_strict, rules


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_each_element_that_may_stay_has_a_rule(profile: Profile) -> None:
    found = list(rules(profile))
    assert len(found) == len(profile.actions)
    assert len({rule.tag for rule in found}) == len(found)


def test_beyond_the_strict_profile_are_the_rules_of_research_alone() -> None:
    found = {rule.keyword: rule for rule in beyond_strict(RESEARCH)}
    assert found.keys() >= {*RESEARCH.texts, "PatientAge", "StudyDescription", "DeidentificationMethod"}
    assert set(found["StudyDescription"].values) == CLINICAL_WORDS
    assert (found["PatientAge"].values[0], found["PatientAge"].values[-1]) == ("000Y", "090Y")
    assert beyond_strict(STRICT) == []


def test_the_command_lists_rules_and_as_csv_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deid-rules", "research", "--more"]) == 0
    shown = capsys.readouterr().out
    assert "F|M|O" in shown
    assert f"profile {RESEARCH.label}" in shown
    assert main(["deid-rules", "research", "--csv"]) == 0
    rows = {row["element"]: row for row in reader.DictReader(io.StringIO(capsys.readouterr().out))}
    assert len(rows) == len(RESEARCH.actions)
    assert rows["PatientWeight"]["values"].split("|")[0] == "10"
    with pytest.raises(SystemExit):
        main(["deid-rules", "none"])
