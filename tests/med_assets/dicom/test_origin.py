"""The machine that made the images of a stored case."""

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from med_assets.catalog import Catalog
from med_assets.dicom.origin import Origin, origin_of
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, ingest


def write(path: Path, modality: str, **elements: str) -> None:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, generate_uid(), modality
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)


def test_the_origin_is_that_of_the_first_image_and_not_of_what_was_drawn_on_it(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", "RTSTRUCT", Manufacturer="Varian Medical Systems")
    write(tmp_path / "b.dcm", "CT", Manufacturer="SIEMENS", ManufacturerModelName="med_assets phantom")
    write(tmp_path / "c.dcm", "CT", Manufacturer="GE MEDICAL SYSTEMS")
    assert origin_of(tmp_path) == Origin("SIEMENS", "med_assets phantom")


def test_sex_and_age_are_those_of_the_first_image_in_whole_years(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", "SEG", PatientSex="M")
    write(tmp_path / "b.dcm", "CT", PatientSex="F", PatientAge="007Y")
    assert origin_of(tmp_path) == Origin(sex="F", age_years=7)


@pytest.mark.parametrize(
    "elements", [{}, {"Manufacturer": "", "ManufacturerModelName": "REMOVED", "PatientSex": "", "PatientAge": ""}]
)
def test_what_is_not_stated_or_was_not_kept_is_unknown(tmp_path: Path, elements: dict[str, str]) -> None:
    write(tmp_path / "a.dcm", "CT", **elements)
    assert origin_of(tmp_path) == Origin()


def test_the_manufacturer_is_a_fact_of_every_case_and_is_read_once(workspace: Workspace) -> None:
    drop(workspace, 1)
    ingest(workspace)
    [row] = Catalog(workspace, P).facts()
    assert row.values["manufacturer"] == "med_assets"
    assert len(workspace.store.keys("origin")) == 1
