"""Images that declare text in their pixels, which may name the patient."""

from pydicom.dataset import Dataset

from med_assets.dicom.element_values import values
from med_assets.errors import CaseRejected


def declares_text(ds: Dataset) -> bool:
    """Whether BurnedInAnnotation is there and anything but NO."""
    return bool(terms(ds, "BurnedInAnnotation") - {"", "NO"})


def text_in_pixels(detail: str) -> CaseRejected:
    """The refusal of an image that declares text in its pixels; `detail` says how, where not by BurnedInAnnotation alone."""
    return CaseRejected(
        "burned_in_annotation",
        f"expected pixels without text, got an image that declares text in them {detail or '(BurnedInAnnotation)'}; leave it out, "
        "or mask the text in the pixels and export with BurnedInAnnotation NO",
    )


def terms(ds: Dataset, keyword: str) -> set[str]:
    """Values of a code string in upper case, with single blanks for separators."""
    return {" ".join(str(value).upper().replace("_", " ").split()) for value in values(ds.get(keyword))}
