"""Codes that may stay in de-identified objects."""

import subprocess
import sys

from med_assets.deidentification.codes import standard_codes, standard_meaning
from med_assets.deidentification.profile import CLEAN_PIXELS, METHODS


def test_the_codes_of_every_deidentified_object_have_the_meaning_of_the_dictionaries() -> None:
    for value, _ in (*METHODS, CLEAN_PIXELS):
        assert standard_meaning("DCM", value) == standard_codes()["DCM", value]


def test_another_code_has_the_meaning_of_the_dictionaries_or_none() -> None:
    assert standard_meaning("SCT", "39607008") == standard_codes()["SCT", "39607008"]
    assert standard_meaning("99LOCAL", "113100") is None


def test_the_codes_of_every_deidentified_object_are_known_without_loading_the_dictionaries() -> None:
    code = (
        "import sys; from med_assets.deidentification.codes import standard_meaning; "
        "assert standard_meaning('DCM', '113100'); print('pydicom.sr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
