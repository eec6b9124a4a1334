"""The profile `research` keeps what is declared to stay in coarse form, and nothing that identifies; the strict one is as it was."""

import hashlib
import warnings
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from med_assets.deidentification.clinical_words import CLINICAL_WORDS, clinical
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.profile import Action
from med_assets.deidentification.profiles import PROFILES, RESEARCH, STRICT, Profile
from med_assets.deidentification.research import DESCRIPTIONS, ROUNDED, whole_years
from med_assets.deidentification.residual import identifying_values, residual_phi
from med_assets.deidentification.tally import Tally
from med_assets.dicom.encoded import to_bytes

KEY = b"a key of the tests, thirty-two b"
KNOWN = ["Quimby", "MRN778899", "19470611"]


def original() -> Dataset:
    """A CT with values of a patient and of an examination, and identity in the descriptions."""
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Quimby^Zelda", "MRN778899", "19470611"
    ds.PatientSex, ds.PatientAge, ds.PatientSize, ds.PatientWeight = "F", "094Y", "1.73", "183.4"
    ds.EthnicGroup, ds.SmokingStatus, ds.PregnancyStatus, ds.Occupation = "Inventian", "NO", 4, "astronaut"
    ds.StudyDescription = "CT Thorax/Abdomen with contrast, Zelda Quimby 19470611 ward B7"
    ds.SeriesDescription, ds.ProtocolName = "T2w TSE axial (Dr. Quimby's favourite) 3.5", "Quimby-Chest_HRCT"
    ds.ConvolutionKernel, ds.ManufacturerModelName, ds.StudyDate = "Br40d", "SOMATOM Force", "20240115"
    return ds


def stored(profile: Profile, ds: Dataset | None = None) -> Dataset:
    """What is stored, as it is read again."""
    from io import BytesIO

    return dcmread(BytesIO(to_bytes(Deidentifier(KEY, profile=profile).apply(original() if ds is None else ds))))


def test_research_keeps_characteristics_in_coarse_form() -> None:
    ds = stored(RESEARCH)
    assert (ds.PatientSex, ds.PatientAge, str(ds.PatientSize), str(ds.PatientWeight)) == ("F", "090Y", "1.75", "150")
    assert (ds.SmokingStatus, ds.ConvolutionKernel, ds.ManufacturerModelName) == ("NO", "Br40d", "SOMATOM Force")
    for keyword in ("EthnicGroup", "PregnancyStatus", "Occupation"):
        assert keyword not in ds


def test_research_keeps_the_clinical_words_of_descriptions() -> None:
    ds = stored(RESEARCH)
    assert ds.StudyDescription == "CT THORAX ABDOMEN WITH CONTRAST"
    assert (ds.SeriesDescription, ds.ProtocolName) == ("T2W TSE AXIAL", "CHEST HRCT")


def test_a_clinical_word_that_is_a_name_of_a_person_of_the_case_is_dropped() -> None:
    ds = original()
    ds.PatientName, ds.OperatorsName, ds.StudyDescription = "Head^Zelda", "Foot", "CT HEAD FOOT HAND"
    deidentifier = Deidentifier(KEY, profile=RESEARCH)
    clean = deidentifier.apply(ds)
    assert clean.StudyDescription == "CT HAND"
    deidentifier.without_identifiers(clean, ["Hand"])  # of another object of the case
    assert clean.StudyDescription == "CT"


def test_strict_keeps_none_of_it_and_writes_the_bytes_that_it_did() -> None:
    ds = stored(STRICT)
    for keyword in ("PatientAge", "PatientSize", "PatientWeight", "SmokingStatus", "ConvolutionKernel", *DESCRIPTIONS):
        assert keyword not in ds
    assert (ds.PatientSex, ds.ManufacturerModelName) == ("", "")
    assert Deidentifier(KEY).profile is STRICT
    # Of the profile before there was another: a change raises its version, and this hash with it.
    assert hashlib.sha256(to_bytes(Deidentifier(KEY).apply(original()))).hexdigest() == STRICT_SHA256


STRICT_SHA256 = "cc0a9b233483832833e2d1cd52f6ed72ad0a37665e64db327a2cae9a8fd9977d"


def test_both_profiles_shift_dates_by_the_same_keyed_number_of_days() -> None:
    assert stored(STRICT).StudyDate == stored(RESEARCH).StudyDate != "20240115"
    days = {Deidentifier(key, profile=RESEARCH).days("MRN778899") for key in (KEY, b"another key of the tests, secret")}
    assert len(days) == 2


def test_an_object_declares_its_profile_and_the_options_of_the_standard() -> None:
    codes = {
        profile.name: [item.CodeValue for item in stored(profile).DeidentificationMethodCodeSequence]
        for profile in PROFILES.values()
    }
    assert codes == {"strict": ["113100", "113105", "113107"], "research": ["113100", "113105", "113107", "113108"]}
    ds = stored(RESEARCH)
    assert ds.DeidentificationMethod == f"med_assets research profile {RESEARCH.version}"
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_residual_scan_knows_each_profile_and_finds_the_other(profile: Profile) -> None:
    ds, other = stored(profile), next(each for each in PROFILES.values() if each is not profile)
    known = identifying_values(original())
    assert residual_phi([ds], known=known, profile=profile) == residual_phi([ds], known=known) == []
    assert "(0012,0063)" in {finding.tag for finding in residual_phi([ds], profile=other)}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientAge", "094Y"), ("PatientAge", "047M"), ("PatientSize", "1.73"), ("PatientWeight", "183"), ("PatientSex", "QUIMBY"),
        ("StudyDescription", "CT Quimby"), ("SeriesDescription", "ct thorax"), ("ProtocolName", "CHEST B7"), ("SmokingStatus", "QUIMBY"),
        ("EthnicGroup", "Inventian"), ("ConvolutionKernel", "Quimby"), ("PatientComments", "CHEST"),
    ],
)  # fmt: skip
def test_the_residual_scan_finds_what_research_would_not_have_let_through(keyword: str, value: str) -> None:
    ds = stored(RESEARCH)
    setattr(ds, keyword, value)
    findings = residual_phi([ds], known=KNOWN)
    assert {finding.tag for finding in findings} == {str(ds[keyword].tag)}
    assert not any("quimby" in finding.reason.lower() for finding in findings)


def test_the_residual_scan_finds_a_clinical_word_that_is_known_to_identify_and_a_nested_description() -> None:
    ds = stored(RESEARCH)
    assert [finding.reason for finding in residual_phi([ds], known=["Thorax"])] == [
        "contains a known identifying string"
    ]
    ds.ReferencedSeriesSequence = [Dataset()]
    ds.ReferencedSeriesSequence[0].SeriesDescription = "CHEST"
    assert [finding.reason for finding in residual_phi([ds])] == ["not on the allow-list"]


def test_descriptions_in_items_do_not_stay() -> None:
    ds = original()
    ds.ReferencedSeriesSequence = [Dataset()]
    ds.ReferencedSeriesSequence[0].SeriesDescription = "CHEST"
    assert "SeriesDescription" not in stored(RESEARCH, ds).ReferencedSeriesSequence[0]


@pytest.mark.parametrize(
    ("age", "kept"),
    [
        ("047Y", "047Y"), ("089Y", "089Y"), ("090Y", "090Y"), ("101Y", "090Y"), ("018M", "001Y"), ("011M", "000Y"), ("003W", "000Y"),
        ("900D", "002Y"), ("47Y", ""), ("47", ""), ("", ""), ("0x7Y", ""), ("047 years", ""),
    ],
)  # fmt: skip
def test_an_age_is_kept_in_whole_years_and_capped(age: str, kept: str) -> None:
    assert whole_years(age) == kept


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("PatientSize", 1.62, "1.60"), ("PatientSize", 2.31, "2.00"), ("PatientSize", 0.3, "0.40"), ("PatientSize", 173, ""), ("PatientSize", 0, ""),
        ("PatientWeight", 72.6, "75"), ("PatientWeight", 3.2, "5"), ("PatientWeight", 214, "150"), ("PatientWeight", -1, ""),
    ],
)  # fmt: skip
def test_height_and_weight_are_rounded_and_capped_and_what_nobody_has_goes(
    keyword: str, value: float, kept: str
) -> None:
    assert ROUNDED[keyword].rounded(value) == kept
    assert not kept or kept in ROUNDED[keyword].values()


def test_values_of_no_form_are_removed_and_a_sex_that_is_none_is_emptied() -> None:
    ds = original()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.PatientAge, ds.PatientSex, ds.SmokingStatus, ds.ConvolutionKernel = "Q47Y", "FEMALE", "PIPE", "Quimby"
    ds.PatientSize = None
    clean = stored(RESEARCH, ds)
    assert (clean.PatientSex, clean.get("ConvolutionKernel")) == ("", "")
    for keyword in ("PatientAge", "SmokingStatus", "PatientSize"):
        assert keyword not in clean


def test_no_clinical_word_is_a_letter_or_a_number() -> None:
    assert not {word for word in CLINICAL_WORDS if len(word) < 2 or word.isdigit() or word != word.upper()}
    assert clinical("Zelda, 42 y, 1947") == ""


def test_research_differs_from_strict_in_declared_elements_alone() -> None:
    """What is not in this list is treated as in the strict profile; a new one needs a line in docs/deidentification.md."""
    from pydicom.datadict import keyword_for_tag

    differs = {
        keyword_for_tag(tag)
        for tag, action in RESEARCH.actions.items()
        if STRICT.actions.get(tag) is not action or keyword_for_tag(tag) in RESEARCH.texts
    }
    documented = (Path(__file__).parents[3] / "docs" / "deidentification.md").read_text()
    assert {"PatientSex", "PatientAge", "PatientSize", "PatientWeight", *DESCRIPTIONS} <= differs
    assert [keyword for keyword in differs if keyword not in documented] == []
    assert Action.KEEP not in {RESEARCH.actions[tag] for tag in RESEARCH.actions.keys() - STRICT.actions.keys()}
    assert RESEARCH.actions.keys() >= STRICT.actions.keys()


def test_the_counts_of_a_case_name_the_rules_of_its_profile() -> None:
    counts = {}
    for profile in PROFILES.values():
        tally, before = Tally(profile), original()
        tally.add(before, Deidentifier(KEY, profile=profile).apply(before))
        counts[profile.name] = tally.counts()
    assert counts["research"]["age"] == {"changed": {"PatientAge": 1}}
    assert counts["research"]["words"]["changed"].keys() == set(DESCRIPTIONS)
    assert counts["strict"]["not on the allow-list"]["removed"]["StudyDescription"] == 1
    assert "EthnicGroup" in counts["research"]["not on the allow-list"]["removed"]
