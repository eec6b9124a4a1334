"""The page `docs/add-a-modality.md`, done in a copy of the source: PET goes through discovery, grouping, de-identification and its reader."""

import json
from pathlib import Path

from med_assets.settings import Workspace
from tests.docs_tree import Tree

THROUGH = """
import json, sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.encoded import to_bytes
from med_assets.deidentification.residual import residual_phi
from med_assets.dicom.discover import describe, load
from med_assets.dicom.geometry import Volume
from med_assets.dicom.pet import read_pet_series, write_pet
from med_assets.errors import CaseRejected
from med_assets.intake.grouping import around_series, one_label
from med_assets.intake.reasons import reasons
from med_assets.programs.phantoms import centred_geometry, identity_of_phantom

folder, identity = Path(sys.argv[1]), identity_of_phantom("pet", 1)
volume = Volume(np.random.default_rng(0).uniform(0, 20, (5, 6, 7)).astype(np.float32), centred_geometry((5, 6, 7), (3.0, 4.0, 4.0)))
write_pet(folder, volume, identity, identity.uid("PET series"))
paths = sorted(folder.iterdir())
instances = [describe(load(path), path) for path in paths]
cases, refusals = around_series(instances, "PT", ("SEG",), one_label(("SEG",)), "PET")
originals = [load(one.path) for one in cases[0].instances]
originals[0].PatientWeight, originals[0].Units = 71.0, "GML "
keys = Deidentifier(b"any key")
clean = [pydicom.dcmread(BytesIO(to_bytes(keys.apply(one)))) for one in originals]
read = read_pet_series(clean)
clean[0].Units = "BQML"
try:
    read_pet_series(clean)
    code = ""
except CaseRejected as rejected:
    code = rejected.code
clean[0].Units = "GML"
print(json.dumps({
    "cases": len(cases), "refusals": len(refusals), "instances": len(cases[0].instances),
    "error": float(np.abs(read.array - volume.array).max()), "same grid": read.geometry.same_grid(volume.geometry),
    "findings": [str(one) for one in residual_phi(clean, known=["PHANTOM-0001"])],
    "weight": "PatientWeight" in clean[0], "units": clean[1].Units, "series": list(clean[1].SeriesType),
    "code": code, "remedy": reasons()[code].remedy,
}))
"""


def test_pet_of_the_page_is_grouped_de_identified_and_read(workspace: Workspace, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "source", "add-a-modality.md")
    tree.follow()
    assert tree.changed().keys() == tree.listed()
    done = tree.python(THROUGH, str(tmp_path / "pet"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("error") <= 0.0005 + 1e-6
    assert found == {
        "cases": 1, "refusals": 0, "instances": 5, "same grid": True, "findings": [], "weight": False, "units": "GML",
        "series": ["STATIC", "IMAGE"], "code": "not_uptake", "remedy": "export the series in SUV",
    }  # fmt: skip
