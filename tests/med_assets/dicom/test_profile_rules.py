"""What may stay by the rules of either profile: numbers, and text of lists that can be read through; held over all rules."""

import re

import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset

from med_assets import program
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.profile import CODE_TERMS, KNOWN_VALUES, Action
from med_assets.deidentification.profiles import PROFILES, RESEARCH, Profile
from med_assets.settings import Workspace

NUMBERS = {"DS", "IS", "FL", "FD", "US", "SS", "UL", "SL", "US or SS", "AT"}
"""VRs that hold no text."""

CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}\Z")
"""The form of a code string (PS3.5, table 6.2-1)."""

LONGER = {"CLOSED_PLANAR_XOR", "INTERPOLATED_PLANAR", "RESPIRATORY_GATED"}
"""Terms that planning systems and scanners write although they are longer than a code string may be."""

LISTED = {Action.VOCABULARY, Action.OWN_VOCABULARY}

both = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


def rules(profile: Profile) -> dict[str, tuple[Action, str]]:
    """Action and VR by keyword."""
    return {keyword_for_tag(tag): (action, dictionary_VR(tag)) for tag, action in profile.actions.items()}


@both
def test_every_code_string_that_may_stay_has_a_list_of_terms(profile: Profile) -> None:
    open_lists = [
        keyword
        for keyword, (action, vr) in rules(profile).items()
        if vr == "CS"
        and not (
            (action is Action.KEEP and CODE_TERMS.get(keyword))
            or (action in LISTED and (keyword in KNOWN_VALUES or profile.texts.get(keyword)))
            or action in (Action.EMPTY, Action.FIXED)
        )
    ]
    assert open_lists == []


@both
def test_every_term_has_the_form_of_a_code_string(profile: Profile) -> None:
    found = rules(profile)
    terms = {**CODE_TERMS, **{keyword: of for keyword, of in profile.texts.items() if found[keyword][1] == "CS"}}
    found_terms = {term for of in terms.values() for term in of}
    assert {term for term in found_terms if not CODE_STRING.match(term) or term != term.strip()} == LONGER


@both
def test_what_is_kept_as_it_is_is_a_number_or_a_code_string(profile: Profile) -> None:
    kept = {keyword: vr for keyword, (action, vr) in rules(profile).items() if action is Action.KEEP}
    assert {keyword: vr for keyword, vr in kept.items() if vr not in {*NUMBERS, "CS"}} == {}


@both
def test_what_is_kept_of_a_list_is_a_text_or_a_code_string_with_a_list(profile: Profile) -> None:
    listed = {keyword for keyword, (action, _) in rules(profile).items() if action in LISTED}
    assert [keyword for keyword in listed if keyword not in KNOWN_VALUES and keyword not in profile.texts] == []
    assert RESEARCH.closed.keys() >= RESEARCH.texts.keys()


@both
@pytest.mark.parametrize("name", program.registered())
def test_no_name_stays_in_a_code_string_of_any_program(profile: Profile, name: str, workspace: Workspace) -> None:
    """A name has the form of a code string: none that is no term stays, in any place of any that may."""
    keys = Deidentifier(b"a key of the tests, thirty-two b", program.get(name).roi_vocabulary(workspace), profile)
    for keyword, (action, vr) in rules(profile).items():
        if vr != "CS" or action is Action.FIXED:
            continue
        ds = Dataset()
        ds.PatientID, ds.PatientName, ds.SOPInstanceUID = "MRN778899", "Quimby^Zelda", "1.2.3"
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
        if keyword not in ("SpecificCharacterSet", "ConversionType", "BurnedInAnnotation"):
            first = next(iter(sorted(CODE_TERMS.get(keyword, ["A"]))))
            setattr(ds, keyword, [first, "QUIMBY", "MEIER"])
        kept = keys.apply(ds)
        assert not {"QUIMBY", "MEIER"} & set(re.split(r"[\\', \[\]]+", str(kept.get(keyword, "")))), keyword
