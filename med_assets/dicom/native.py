"""What slices of a series share in how their pixels lie: found out once for elements that are stored the same."""

from functools import lru_cache

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from med_assets.dicom.elements import decoded, quietly, text
from med_assets.dicom.undecoded import Facts, anywhere, is_short, tag_of

_PIXEL_DATA = 0x7FE00010
_DESCRIBING_GROUPS = (0x0028, 0x7FE0)
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)

image_size = Facts(lambda ds: (ds.get("Rows"), ds.get("Columns")), "Rows", "Columns")
"""Rows and columns of an image, None for what is absent."""


def require_decodable(dataset: Dataset, shape: tuple[int, ...]) -> None:
    """Raise what `decoded` does. Native pixels are decoded only where none before were described by the same elements."""
    if _shape(dataset) != shape:
        decoded(dataset, shape)


def _shape(dataset: Dataset) -> tuple[int, ...] | None:
    """The shape to which native pixels are decoded whatever their values are; None of all others, and where `decoded` has to say why not."""
    if type(dataset) is not FileDataset or text(dataset.file_meta, "TransferSyntaxUID") not in _NATIVE:
        return None
    elements = dict(dataset.items())
    pixels = elements.pop(tag_of(_PIXEL_DATA), None)
    described = [stored for tag, stored in elements.items() if tag >> 16 in _DESCRIBING_GROUPS]
    short = [anywhere(stored) for stored in described if is_short(stored)]
    if not isinstance(pixels, RawDataElement) or not pixels.value or len(short) < len(described):
        return None
    return _decoded_shape(tuple(short), pixels.VR, len(pixels.value), bool(pixels.is_implicit_VR))


@lru_cache(64)
def _decoded_shape(
    described: tuple[RawDataElement, ...], representation: str | None, n_bytes: int, implicit: bool
) -> tuple[int, ...] | None:
    """The shape to which zeros are decoded."""
    zeros = RawDataElement(tag_of(_PIXEL_DATA), representation, n_bytes, bytes(n_bytes), 0, implicit, True)
    ds = FileDataset("", {stored.tag: stored for stored in (*described, zeros)}, is_implicit_VR=implicit)
    ds.set_original_encoding(implicit, True, "iso8859")
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    try:
        with quietly():
            return tuple(ds.pixel_array.shape)
    except MemoryError:
        raise
    except Exception:  # the decoder is asked again, about the pixels themselves, for the reason
        return None
