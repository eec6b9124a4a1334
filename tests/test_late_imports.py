"""What is imported late, in functions: heavy libraries, and modules of ours that import one of them, alone."""

import sys

from tests.import_graph import imports, loaded_by, modules

HEAVY = {
    # computing
    "numpy", "scipy", "pandas", "pyarrow", "duckdb", "skimage", "sklearn", "torch", "lightning", "monai", "transformers", "tokenizers",
    "safetensors", "onnx", "onnxruntime", "pymedphys", "numba",
    # files and pictures
    "pydicom", "pynetdicom", "cryptography", "rapidocr", "highdicom", "nibabel", "nrrd", "rle", "PIL", "matplotlib", "jinja2", "nbformat", "nbclient", "jupyter_client",
    # the world outside
    "tqdm", "boto3", "botocore", "s3transfer", "moto", "werkzeug", "great_expectations", "huggingface_hub", "mlcroissant", "umap", "mlflow", "wandb", "kubernetes", "urllib3", "sqlalchemy", "alembic",
    # what `med-assets --help` does without
    "click", "pydantic", "yaml", "hydra", "omegaconf", "psutil", "dagster",
}  # fmt: skip
"""Libraries that cost time to import, so that a process does without those that it does not use."""


def test_only_what_is_heavy_is_imported_late() -> None:
    light = sorted(
        f"{modules()[each.module].name}: {each.module}, line {each.line}: {each.loads}"
        for module in modules()
        for each in imports(module)[1]
        if not (each.loads in HEAVY or (each.loads in modules() and loaded_by(each.loads) & HEAVY))
    )
    assert light == []


def test_the_heavy_libraries_are_none_of_pythons_own() -> None:
    assert not HEAVY & set(sys.stdlib_module_names)


def test_reading_files_of_the_landing_zone_loads_no_library_that_only_preparation_uses() -> None:
    reading = (
        "med_assets.intake.reader", "med_assets.deidentification.residual", "med_assets.dicom.discover", "med_assets.dicom.write",
        "med_assets.dicom.geometry", "med_assets.dicom.references", "med_assets.dicom.rtstruct", "med_assets.dicom.rtdose",
        "med_assets.dicom.seg", "med_assets.programs.lung_ct", "med_assets.programs.rt_dose",
    )  # fmt: skip
    assert {
        name: sorted(loaded_by(name) & {"scipy", "torch", "monai", "pandas", "skimage", "psutil"}) for name in reading
    } == {name: [] for name in reading}
    assert "pydantic" not in loaded_by("med_assets.intake.reader")  # experiments need it, and some programs


def test_the_definitions_load_no_library_of_databases() -> None:
    assert not {"sqlalchemy", "alembic"} & loaded_by("definitions")
