"""Each case is of one patient and one study, whatever the program, and what stands beside the images is a note."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from med_assets import program
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.discover import describe
from med_assets.intake.grouping import group_by_patient
from med_assets.review.explain import explain_case
from med_assets.settings import Workspace
from tests.invented import Study, ct, ingest, item, mr, plan_case, rtstruct, segmentation_2d, uid, us, volume_seg, write

LOBE = np.zeros((25, 64, 64), bool)
LOBE[8:14, 30:38, 20:28] = True
OPT_SOP = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
RELABELLED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "IssuerOfPatientID")
"""What is changed at random in the objects of several studies."""


def own(st: Study, slices: list[Dataset]) -> list[Dataset]:
    """Slices with pixels that no other case has."""
    for one in slices:
        one.PixelData = st.tag.encode().ljust(16, b"\1") + one.PixelData[16:]
    return slices


def opt(st: Study) -> Dataset:
    return st.base(OPT_SOP, "OPT", uid(st.tag, "opt"), uid(st.tag, "opt", 1), NumberOfFrames=3)


def study_of(program_name: str, tag: str, **kw: Any) -> list[Dataset]:
    """A usable case of each program, as datasets."""
    st = Study(tag, **kw)
    if program_name == "rt_dose":
        return plan_case(tag, ct_kw={"n": 4, "size": (8, 8)}, st=st, dose_kw={"n": 3, "size": (8, 8)})
    if program_name == "lung_ct":
        slices = ct(st, n=4, size=(8, 8))
        return [*slices, volume_seg(st, slices, [("lung tumor", np.ones((4, 8, 8), bool))])]
    if program_name == "lumbar_mr":
        slices = mr(st, n=4, size=(8, 8))
        return [*slices, rtstruct(st, slices, [])]
    if program_name == "breast_us":
        image = us(st, np.zeros((8, 8), np.uint8))
        return [image, segmentation_2d(st, image, np.ones((8, 8), bool))]
    if program_name == "retinal_oct":
        return [opt(st)]
    with TemporaryDirectory() as folder:
        program.get(program_name).write_phantoms(Path(folder), 1, int(tag.removeprefix(program_name)))
        return [dcmread(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def statuses(rows: list[dict[str, Any]]) -> list[tuple[str, str | None, int]]:
    return sorted((row["status"], row["reason_code"], row["n_instances"]) for row in rows)


def test_a_series_whose_slices_carry_two_patients_is_refused(workspace: Workspace) -> None:
    st = Study("mixed")
    slices = mr(st)
    for one in slices[6:]:
        one.PatientID = "PAT-other"
    write(slices, workspace.landing / "lumbar_mr" / "mixed")
    rows, _ = ingest(workspace, "lumbar_mr")
    assert statuses(rows) == [("quarantined", "wrong_patient", 12)]


def test_two_patients_with_one_study_uid_are_two_cases_each_under_its_own_pseudonym(workspace: Workspace) -> None:
    first = Study("a")
    second = Study("b", study=first.study)
    both = own(first, mr(first)) + own(second, mr(second, n=13, series=uid("b", "series")))
    write(both, workspace.landing / "lumbar_mr" / "both")
    rows, _ = ingest(workspace, "lumbar_mr")
    assert statuses(rows) == [("to predict", None, 12), ("to predict", None, 13)]
    assert len({row["patient_id"] for row in rows}) == 2
    for row in rows:
        stored = [dcmread(path) for path in workspace.store.fetch(row["artifact"]).glob("*.dcm")]
        assert {ds.PatientID for ds in stored} == {row["patient_id"]}


@pytest.mark.parametrize("name", program.registered())
def test_shuffled_merged_and_relabelled_studies_never_give_a_case_of_two_patients(name: str) -> None:
    keys = Deidentifier(b"key of this test")
    taken = refused = 0
    pool = [study_of(name, f"{name}{k}") for k in range(4)]
    for seed in range(60):
        rng = random.Random(seed)
        studies = rng.sample(pool, rng.randint(1, 4))
        everything = [ds for one in studies for ds in one]
        before = [(ds, {keyword: ds.get(keyword) for keyword in RELABELLED}) for ds in everything]
        patients = [str(one[0].PatientID) for one in studies] + ["", "PAT\t", "PAT"]
        for keyword in rng.sample(RELABELLED, 2):
            donors = patients if keyword == "PatientID" else ["A", "B", ""]
            if keyword.endswith("UID"):
                donors = [str(ds.get(keyword, "1.2")) for ds in everything]
            for ds in rng.sample(everything, rng.randint(0, min(3, len(everything)))):
                setattr(ds, keyword, rng.choice(donors))
        if rng.random() < 0.3:  # two patients that share a study
            for ds in everything:
                ds.StudyInstanceUID = everything[0].StudyInstanceUID
        rng.shuffle(everything)
        instances = [describe(ds, Path(str(k))) for k, ds in enumerate(everything)]
        cases, refusals = group_by_patient(program.get(name), instances)
        count = sum(len(case.instances) for case in cases) + sum(one.n_instances for one in refusals)
        assert count >= len(everything), "each object is accounted for; a label of two series counts with both"
        for case in cases:
            own_objects = [everything[int(str(one.path))] for one in case.instances]
            assert {keys.pseudonym(ds.PatientID) for ds in own_objects} == {keys.pseudonym(case.patient_id)}
            assert len({ds.StudyInstanceUID for ds in own_objects}) == 1
            assert len({ds.get("IssuerOfPatientID", "") for ds in own_objects} - {""}) <= 1
        taken += len(cases)
        refused += sum(one.code in ("wrong_patient", "wrong_study", "missing_patient_id") for one in refusals)
        for ds, values in before:
            for keyword, value in values.items():
                if value is not None:
                    setattr(ds, keyword, value)
                elif keyword in ds:
                    delattr(ds, keyword)
    assert taken > 20
    assert refused > 5


def test_a_label_of_another_patient_on_these_images_is_refused_as_a_whole() -> None:
    for name in ("rt_dose", "lung_ct", "lumbar_mr", "breast_us"):
        datasets = study_of(name, f"label-{name}")
        datasets[-1].PatientID = "SOMEBODY-ELSE"
        cases, refusals = group_by_patient(program.get(name), [describe(ds) for ds in datasets])
        assert (cases, [(one.code, one.n_instances) for one in refusals]) == ([], [("wrong_patient", len(datasets))])


def test_a_plan_of_another_study_is_refused_with_the_study_as_reason() -> None:
    datasets = study_of("rt_dose", "two-studies")
    datasets[-1].StudyInstanceUID = uid("another study")
    cases, refusals = group_by_patient(program.get("rt_dose"), [describe(ds) for ds in datasets])
    assert (cases, [one.code for one in refusals]) == ([], ["wrong_study"])


def test_one_patient_id_of_two_issuers_is_two_patients() -> None:
    first, second = study_of("lumbar_mr", "one"), study_of("lumbar_mr", "two")
    for issuer, datasets in (("A", first), ("B", second)):
        for ds in datasets:
            ds.PatientID, ds.StudyInstanceUID, ds.IssuerOfPatientID = "1", first[0].StudyInstanceUID, issuer
    cases, refusals = group_by_patient(program.get("lumbar_mr"), [describe(ds) for ds in [*first, *second]])
    assert ([len(case.instances) for case in cases], refusals) == ([5, 5], [])


def beside(st: Study) -> dict[str, Dataset]:
    """Objects that a scanner or archive sends with a CT, by the code that they are counted under."""
    scout = ct(st, iop=(0, 1, 0, 0, 0, -1), n=1, series=uid(st.tag, "scout"))[0]
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    unmarked = ct(st, iop=(1, 0, 0, 0, 0, -1), n=1, series=uid(st.tag, "unmarked"))[0]
    captured = ct(st, n=1, series=uid(st.tag, "screen"))[0]
    captured.SOPClassUID, captured.ImageType = "1.2.840.10008.5.1.4.1.1.7", ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    mpr = ct(st, n=2, series=uid(st.tag, "csa"))
    for one in mpr:
        one.ImageType = ["DERIVED", "SECONDARY", "OTHER", "CSA 3D EDITOR"]
    report = st.base("1.2.840.10008.5.1.4.1.1.88.67", "SR", uid(st.tag, "sr"), uid(st.tag, "sr", 1))
    shown = st.base("1.2.840.10008.5.1.4.1.1.11.1", "PR", uid(st.tag, "pr"), uid(st.tag, "pr", 1))
    raw = st.base("1.2.840.10008.5.1.4.1.1.66", "CT", uid(st.tag, "raw"), uid(st.tag, "raw", 1))
    return {
        "localizer": [scout, unmarked],
        "screen_capture": [captured, *mpr],
        "not_an_image": [report, shown, raw],
    }


@pytest.mark.parametrize("name", ["rt_dose", "lung_ct", "lumbar_mr"])
def test_localizers_captures_and_reports_beside_a_case_are_notes(workspace: Workspace, name: str) -> None:
    st = Study("beside")
    others = beside(st)
    if name == "rt_dose":
        case = plan_case("beside", st=st)
    elif name == "lung_ct":
        slices = ct(st)
        case = [*slices, volume_seg(st, slices, [("lung tumor", LOBE)])]
    else:
        case = mr(st)
    write([*case, *(ds for found in others.values() for ds in found)], workspace.landing / name / "beside")
    rows, prepared = ingest(workspace, name)
    assert statuses(rows) == [
        ("note", "localizer", 2),
        ("note", "not_an_image", 3),
        ("note", "screen_capture", 3),
        ("to predict" if name == "lumbar_mr" else "ok", None, len(case)),
    ]
    assert {row["patient_id"] for row in rows} == {prepared[0]["patient_id"]}
    story = explain_case(workspace, prepared[0]["case_id"])
    assert all(f"note ({code})" in story for code in others)


def test_a_localizer_alone_is_refused_since_nothing_else_came(workspace: Workspace) -> None:
    write(beside(Study("alone"))["localizer"][:1], workspace.landing / "rt_dose" / "alone")
    write(beside(Study("report"))["not_an_image"][:1], workspace.landing / "rt_dose" / "report")
    rows, _ = ingest(workspace, "rt_dose")
    assert statuses(rows) == [("quarantined", "no_rtstruct", 1), ("quarantined", "not_an_image", 1)]


def test_images_that_a_label_refers_to_are_kept_whatever_their_type_says() -> None:
    st = Study("kept")
    slices = ct(st, n=4, size=(8, 8))
    for one in slices:
        one.ImageType = ["DERIVED", "SECONDARY", "OTHER", "CSA RESAMPLED"]
    other = ct(st, n=4, size=(8, 8), series=uid("kept", "other"))
    label = volume_seg(st, slices, [("lung tumor", np.ones((4, 8, 8), bool))])
    cases, refusals = group_by_patient(program.get("lung_ct"), [describe(ds) for ds in [*slices, *other, label]])
    assert sorted(len(case.instances) for case in cases) == [4, 5]  # the other series is to be predicted
    assert not refusals


def test_the_text_of_a_modality_is_not_repeated() -> None:
    stray = item(
        Modality="DOE JANE", SOPInstanceUID="1.2", SeriesInstanceUID="1.3", StudyInstanceUID="1.4", PatientID="1"
    )
    stray.SOPClassUID = OPT_SOP
    for name in program.registered():
        _, refusals = group_by_patient(program.get(name), [describe(stray)])
        assert "DOE" not in refusals[0].message


def test_a_label_of_slices_that_lie_in_two_series_is_in_the_case_of_most_of_them() -> None:
    st = Study("moved")
    slices = ct(st, n=6, size=(8, 8))
    label = volume_seg(st, slices, [("lung tumor", np.ones((6, 8, 8), bool))])
    slices[2].SeriesInstanceUID = uid("moved", "another")
    cases, refusals = group_by_patient(program.get("lung_ct"), [describe(ds) for ds in [*slices, label]])
    assert sorted(sorted(one.modality for one in case.instances) for case in cases) == [["CT"], ["CT"] * 5 + ["SEG"]]
    assert not refusals
