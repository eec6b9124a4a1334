"""A predicted case as files for other tools."""

import json
from pathlib import Path

import numpy as np

from med_assets.errors import MedAssetsError
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.storage.files import write_json


def write_prediction(prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write `prediction.json`, class and probabilities with the model's key, and `input.nii.gz`, the volume as the network saw it.

    A class is no image, so there is nothing that DICOM viewers would show. Raises MedAssetsError for a case that the model
    does not classify.
    """
    from med_assets.programs.retinal_oct.kept import PREDICTION

    case = PreparedCase.open(prepared)
    path = predicted / PREDICTION
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "probabilities" not in found:
        raise MedAssetsError(
            f"case {case.case_id} is of {case.protocol}, which this model does not classify; choose a case of its protocols"
        )
    import nibabel

    out.mkdir(parents=True, exist_ok=True)
    text = "predicted, not for clinical use" + ("; the case is synthetic" if case.synthetic else "")
    if not case.protocol:
        text += f"; the volume states no protocol, and the model was trained on {', '.join(found['trained_on'])}"
    write_json(out / "prediction.json", found | {"model": model, "case": case.case_id, "note": text})
    volume = nibabel.Nifti1Image(case.volume(), np.eye(4))
    # In the order of the array, frame, depth, width, and without a place in the patient, which OPT does not state.
    volume.header["descrip"] = b"frame, depth, width; normalised; no patient position"
    nibabel.save(volume, out / "input.nii.gz")
    return [out / "prediction.json", out / "input.nii.gz"]
