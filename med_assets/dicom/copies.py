"""Datasets that are like another one but for their elements: pydicom's constructors look the name of each attribute up in the dictionary."""

from collections.abc import MutableMapping
from typing import TypeVar

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

D = TypeVar("D", bound=Dataset)

Elements = MutableMapping[BaseTag, DataElement | RawDataElement]


def with_elements(model: D, elements: Elements) -> D:
    """A dataset of the kind and encoding of `model`, whose elements are these and nothing of which was decoded to pixels.

    Both share the file meta.
    """
    made = object.__new__(type(model))
    state = vars(made)
    state.update(vars(model))
    encoding = model.original_character_set
    state["_dict"] = elements
    state["_read_charset"] = encoding if isinstance(encoding, str) else [*encoding]
    state["_private_blocks"], state["_pixel_id"] = {}, {}
    state.pop("_pixel_rep", None)
    state["_pixel_array"], state["_pixel_array_opts"] = None, {"use_pdh": False}
    return made
