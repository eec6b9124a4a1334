"""Coded concepts that may stay in a de-identified object: those of the standard's own dictionaries, and no others."""

from functools import lru_cache

from pydicom.dataset import Dataset

from med_assets.deidentification.profile import CLEAN_PIXELS, METHODS
from med_assets.dicom.objects import code_item

CODE_ELEMENTS = frozenset({"CodeValue", "CodingSchemeDesignator", "CodeMeaning"})
"""The three elements that an item of a code sequence keeps."""

MEANING_CHARS = 64
"""Longest CodeMeaning, since its VR is LO."""


_METHODS = {("DCM", value): meaning for value, meaning in (*METHODS, CLEAN_PIXELS)}
"""What each de-identified object has. Most images have no other code, and are read without the dictionaries, which take 0.1 s to load."""


def standard_meaning(scheme: str, value: str) -> str | None:
    """The dictionary's meaning of a code; None for private and unknown codes."""
    return _METHODS.get((scheme, value)) or standard_codes().get((scheme, value))


@lru_cache(maxsize=1)
def standard_codes() -> dict[tuple[str, str], str]:
    """(scheme, code value) -> meaning, of each concept in the context groups of PS3.16 that pydicom carries."""
    from pydicom.sr.codedict import codes

    schemes = (codes.DCM, codes.SCT, codes.UCUM, codes.FMA)
    return {
        (code.scheme_designator, code.value): code.meaning[:MEANING_CHARS]
        for scheme in schemes
        for code in scheme.concepts.values()
    }


def standard_code(item: Dataset) -> Dataset | None:
    """The code with the dictionary's meaning; None for private and unknown codes, whose text could say anything."""
    value, scheme = (str(item.get(keyword, "")).strip() for keyword in ("CodeValue", "CodingSchemeDesignator"))
    meaning = standard_meaning(scheme, value)
    return code_item(value, scheme, meaning) if meaning is not None else None
