"""The kinds of object that are read here, by SOP class."""

from pydicom import uid

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage, which pydicom 3.0 does not know yet."""

_SLICE_CLASSES = (
    uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage, uid.MRImageStorage,
    uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage, uid.SegmentationStorage,
    LABELMAP_STORAGE, uid.RTStructureSetStorage, uid.RTDoseStorage, uid.RTPlanStorage, uid.OphthalmicTomographyImageStorage,
)  # fmt: skip
_LABELLED_CLASSES = (uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage)

SUPPORTED_CLASSES = frozenset(map(str, (*_SLICE_CLASSES, *_LABELLED_CLASSES)))
"""Kinds of object that are read, and that the confidentiality profile was written for. Others (reports, screenshots, documents) can
say anything anywhere."""

PIXEL_CLASSES = SUPPORTED_CLASSES - {uid.RTStructureSetStorage, uid.RTPlanStorage}
"""Kinds of object that have pixels."""

USUALLY_BURNED_IN = frozenset(map(str, _LABELLED_CLASSES))
"""Kinds whose devices write names into the pixels: they need BurnedInAnnotation NO, not just its absence."""
