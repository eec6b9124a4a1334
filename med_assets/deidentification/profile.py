"""The strict confidentiality profile: which DICOM elements may stay, and what is done to each. Data, no code that touches
a dataset. What the profile `research` keeps beyond it is in `research`.

It is an allow-list, stricter than the Basic Application Level Confidentiality Profile of DICOM PS3.15 (table
E.1-1), which lists what to remove and lets everything else through. Here an element that is not named is
removed, at every depth. What is named is either a number, an enumerated code string, a UID (remapped), a date
(shifted), or text from a closed vocabulary; free text, person names, private elements, curves and overlays have
no way in. Held against table E.1-1 of edition 2026c (as dicom-anonymizer 2.1 has it): each element that both name
is remapped, shifted, emptied, replaced, or a sequence of references whose items are treated by these rules.
"""

from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import MappingProxyType

from pydicom import uid
from pydicom.datadict import dictionary_VR, tag_for_keyword

from med_assets.deidentification.terms import TERMS
from med_assets.dicom.sop_classes import MODALITIES, SUPPORTED_CLASSES
from med_assets.dicom.undecoded import tag_of
from med_assets.storage.versions import version_of, versioned


class Action(Enum):
    """What happens to an allowed element."""

    KEEP = "kept when its value has the form that its VR demands"
    UID = "replaced by a keyed UID, except UIDs that the DICOM standard registers"
    DATE = "shifted by the patient's number of days; the time of day is dropped"
    EMPTY = "emptied (a type 2 element: it must be there, its value need not); a sequence keeps no item"
    PSEUDONYM = "replaced by the keyed pseudonym of the patient"
    VOCABULARY = "kept when the value is in KNOWN_VALUES or one of the program's own, otherwise emptied"
    OWN_VOCABULARY = "kept when the value is one of the program's or the profile's own, otherwise removed"
    STRUCTURE = "kept when it is in the structure vocabulary, otherwise UNRECOGNISED_<k>"
    FIXED = "replaced by the text in FIXED_VALUES"
    STAND_IN = "removed; where a multi-frame object needs it, the text in REQUIRED_TEXTS stands for it"
    NESTED = "kept, each item treated by these same rules"
    PIXELS = "rebuilt at the top level of an image (pixel_data.py), removed elsewhere"
    SOURCE_VALUE = "kept when it is in the form of SOURCE_VALUE, otherwise removed"
    AGE = "kept in whole years, of ages.AGE_CAP for all ages from there on; removed where it is no age"
    ROUNDED = "rounded and capped as research.ROUNDED says; removed where no person has such a value"
    WORDS = (
        "its clinical words are kept (clinical_words.py) that are no name of a person of the case; all else is dropped"
    )
    CODED = "kept when its code is in the standard's own dictionaries, with the dictionary's meaning"


REMOVED = "REMOVED"
"""Stands in a multi-valued code string for a component that did not qualify, so that positions do not move."""

_KEEP = """
    SpecificCharacterSet ImageType FrameType Modality PatientPosition BodyPartExamined Laterality ImageLaterality
    FrameLaterality PatientIdentityRemoved LongitudinalTemporalInformationModified BurnedInAnnotation
    RecognizableVisualFeatures SyntheticData QualityControlImage PresentationIntentType ConversionType
    LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod PixelPresentation
    VolumetricProperties VolumeBasedCalculationTechnique ComplexImageComponent AcquisitionContrast
    SpatialLocationsPreserved PatientOrientation ApprovalStatus

    SeriesNumber InstanceNumber AcquisitionNumber ItemNumber ImagesInAcquisition ImagePositionPatient
    ImageOrientationPatient SliceLocation SliceThickness SpacingBetweenSlices PixelSpacing PixelAspectRatio
    PixelSpacingCalibrationType ImagerPixelSpacing NominalScannedPixelSpacing ReconstructionDiameter
    DataCollectionDiameter GantryDetectorTilt TableHeight TemporalPositionIdentifier NumberOfTemporalPositions
    TemporalResolution TemporalPositionIndex TriggerTime NominalCardiacTriggerDelayTime

    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames FrameIncrementPointer Rows Columns
    BitsAllocated BitsStored HighBit PixelRepresentation SmallestImagePixelValue LargestImagePixelValue
    PixelPaddingValue PixelPaddingRangeLimit WindowCenter WindowWidth VOILUTFunction RescaleIntercept RescaleSlope
    PixelIntensityRelationship PixelIntensityRelationshipSign

    KVP ExposureTime XRayTubeCurrent Exposure ExposureInuAs FocalSpots GeneratorPower RotationDirection
    SpiralPitchFactor SingleCollimationWidth TotalCollimationWidth TableSpeed TableFeedPerRotation CTDIvol
    RevolutionTime DistanceSourceToDetector DistanceSourceToPatient ExposureModulationType ScanOptions
    MagneticFieldStrength ScanningSequence SequenceVariant MRAcquisitionType AngioFlag RepetitionTime EchoTime
    InversionTime NumberOfAverages ImagingFrequency EchoNumbers NumberOfPhaseEncodingSteps EchoTrainLength
    PercentSampling PercentPhaseFieldOfView PixelBandwidth AcquisitionMatrix InPlanePhaseEncodingDirection FlipAngle
    VariableFlipAngleFlag SAR dBdt EffectiveEchoTime DiffusionBValue DiffusionGradientOrientation
    RegionSpatialFormat RegionDataType RegionFlags RegionLocationMinX0 RegionLocationMinY0 RegionLocationMaxX1
    RegionLocationMaxY1 ReferencePixelX0 ReferencePixelY0 PhysicalUnitsXDirection PhysicalUnitsYDirection
    PhysicalDeltaX PhysicalDeltaY TransducerFrequency AxialLengthOfTheEye HorizontalFieldOfView
    IlluminationWaveLength OphthalmicAxialLength FrameTime CineRate ReferenceCoordinates OphthalmicImageOrientation
    DetectorType PupilDilated IntraOcularPressure EmmetropicMagnification AcquisitionDuration FrameAcquisitionDuration
    PresentationLUTShape

    FrameAcquisitionNumber DimensionIndexValues DimensionIndexPointer FunctionalGroupPointer InStackPositionNumber
    DimensionOrganizationType InConcatenationNumber InConcatenationTotalNumber ConcatenationFrameOffsetNumber
    ReferencedFrameNumber SegmentNumber ReferencedSegmentNumber SegmentationType SegmentAlgorithmType
    SegmentationFractionalType MaximumFractionalValue SegmentsOverlap RecommendedDisplayCIELabValue

    ROINumber ReferencedROINumber ROIDisplayColor ROIVolume ROIGenerationAlgorithm RTROIRelationship
    RTROIInterpretedType ObservationNumber ROIPhysicalProperty ROIPhysicalPropertyValue
    ROIElementalCompositionAtomicNumber ROIElementalCompositionAtomicMassFraction ContourNumber ContourGeometricType
    NumberOfContourPoints ContourData ContourSlabThickness ContourOffsetVector AttachedContours
    FrameOfReferenceTransformationMatrix FrameOfReferenceTransformationMatrixType

    DoseUnits DoseType DoseSummationType SpatialTransformOfDose NormalizationPoint GridFrameOffsetVector
    DoseGridScaling TissueHeterogeneityCorrection DVHType DVHNormalizationPoint DVHNormalizationDoseValue
    DVHDoseScaling DVHVolumeUnits DVHNumberOfBins DVHData DVHROIContributionType DVHMinimumDose DVHMaximumDose
    DVHMeanDose

    PlanIntent RTPlanGeometry RTPlanRelationship DoseReferenceNumber DoseReferenceStructureType
    DoseReferencePointCoordinates DoseReferenceType NominalPriorDose ConstraintWeight DeliveryWarningDose
    DeliveryMaximumDose TargetMinimumDose TargetPrescriptionDose TargetMaximumDose TargetUnderdoseVolumeFraction
    OrganAtRiskFullVolumeDose OrganAtRiskLimitDose OrganAtRiskMaximumDose OrganAtRiskOverdoseVolumeFraction
    FractionGroupNumber NumberOfFractionsPlanned NumberOfFractionPatternDigitsPerDay RepeatFractionCycleLength
    NumberOfBeams BeamDose BeamMeterset BeamDoseMeaning BeamDosePointDepth BeamDoseSpecificationPoint
    NumberOfBrachyApplicationSetups BeamNumber BeamType RadiationType HighDoseTechniqueType TreatmentDeliveryType
    PrimaryDosimeterUnit SourceAxisDistance RTBeamLimitingDeviceType SourceToBeamLimitingDeviceDistance
    NumberOfLeafJawPairs LeafPositionBoundaries LeafJawPositions NumberOfWedges NumberOfCompensators NumberOfBoli
    NumberOfBlocks FinalCumulativeMetersetWeight NumberOfControlPoints ControlPointIndex NominalBeamEnergy
    DoseRateSet GantryAngle GantryRotationDirection BeamLimitingDeviceAngle BeamLimitingDeviceRotationDirection
    PatientSupportAngle PatientSupportRotationDirection TableTopEccentricAngle TableTopEccentricRotationDirection
    TableTopVerticalPosition TableTopLongitudinalPosition TableTopLateralPosition TableTopPitchAngle
    TableTopPitchRotationDirection TableTopRollAngle TableTopRollRotationDirection IsocenterPosition
    SourceToSurfaceDistance CumulativeMetersetWeight CumulativeDoseReferenceCoefficient FluenceMode
    PatientSetupNumber SetupTechnique ReferencedBeamNumber ReferencedFractionGroupNumber
    ReferencedDoseReferenceNumber ReferencedPatientSetupNumber ReferencedBrachyApplicationSetupNumber
    ReferencedControlPointIndex StartCumulativeMetersetWeight EndCumulativeMetersetWeight
"""

_UID = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ReferencedFrameOfReferenceUID
    RelatedFrameOfReferenceUID ReferencedSOPClassUID ReferencedSOPInstanceUID SynchronizationFrameOfReferenceUID
    DimensionOrganizationUID ConcatenationUID SOPInstanceUIDOfConcatenationSource TrackingUID DoseReferenceUID
    ReferencedDoseReferenceUID ConceptualVolumeUID SourceFrameOfReferenceUID
"""

_DATE = """
    StudyDate SeriesDate AcquisitionDate ContentDate InstanceCreationDate StructureSetDate RTPlanDate
    AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime
"""

_EMPTY = """
    PatientBirthDate PatientSex ReferringPhysicianName AccessionNumber StudyID StudyTime ContentTime
    StructureSetTime RTPlanTime OperatorsName PositionReferenceIndicator ROIInterpreter TreatmentMachineName
    SourceApplicatorID ContentDescription ClinicalTrialProtocolName ClinicalTrialCoordinatingCenterName
    AcquisitionContextSequence RefractiveStateSequence LightPathFilterTypeStackCodeSequence
"""

_NESTED = """
    ReferencedFrameOfReferenceSequence FrameOfReferenceRelationshipSequence RTReferencedStudySequence
    RTReferencedSeriesSequence ContourImageSequence PredecessorStructureSetSequence StructureSetROISequence
    RTRelatedROISequence ROIContourSequence ContourSequence RTROIObservationsSequence
    RelatedRTROIObservationsSequence ROIPhysicalPropertiesSequence ROIElementalCompositionSequence
    SourcePixelPlanesCharacteristicsSequence SourceSeriesSequence ReferencedRTPlanSequence
    ReferencedStructureSetSequence ReferencedDoseSequence ReferencedFractionGroupSequence ReferencedBeamSequence
    ReferencedControlPointSequence DVHSequence DVHReferencedROISequence DoseReferenceSequence FractionGroupSequence
    BeamSequence BeamLimitingDeviceSequence BeamLimitingDevicePositionSequence ControlPointSequence
    ReferencedDoseReferenceSequence PatientSetupSequence PrimaryFluenceModeSequence
    ReferencedBrachyApplicationSetupSequence ReferencedImageSequence SourceImageSequence ReferencedSeriesSequence
    ReferencedInstanceSequence ReferencedSOPSequence StudiesContainingOtherReferencedInstancesSequence
    DerivationImageSequence SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence PlaneOrientationSequence
    FrameContentSequence FrameVOILUTSequence PixelValueTransformationSequence CTImageFrameTypeSequence
    MRImageFrameTypeSequence MRTimingAndRelatedParametersSequence CardiacSynchronizationSequence
    UnassignedSharedConvertedAttributesSequence UnassignedPerFrameConvertedAttributesSequence MREchoSequence MRDiffusionSequence DiffusionGradientDirectionSequence
    FrameAnatomySequence DimensionOrganizationSequence DimensionIndexSequence SegmentSequence
    SegmentIdentificationSequence OphthalmicFrameLocationSequence SequenceOfUltrasoundRegions
"""

_CODED = """
    AnatomicRegionSequence AnatomicRegionModifierSequence PrimaryAnatomicStructureSequence
    RTROIIdentificationCodeSequence SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence
    SegmentedPropertyTypeModifierCodeSequence DeidentificationMethodCodeSequence DerivationCodeSequence
    PurposeOfReferenceCodeSequence ViewCodeSequence PatientOrientationCodeSequence AcquisitionDeviceTypeCodeSequence
"""

KNOWN_VALUES: dict[str, frozenset[str]] = {
    "Manufacturer": frozenset({
        "SIEMENS", "Siemens", "Siemens Healthineers", "Siemens HealthCare GmbH", "GE MEDICAL SYSTEMS", "TOSHIBA",
        "Philips", "Philips Medical Systems", "Canon Medical Systems", "CANON_MEC", "Varian Medical Systems", "ELEKTA",
        "Elekta", "RaySearch Laboratories", "Accuray", "med_assets",
    }),
    "ManufacturerModelName": frozenset({"med_assets phantom", "med_assets"}),
    "SoftwareVersions": frozenset({"med_assets phantom", "med_assets"}),
    "ImagedNucleus": frozenset({"1H"}),
    "RescaleType": frozenset({"HU", "US", "HU_MOD", "MGML", "Z_EFF", "ED", "EDW"}),
    "ClinicalTrialProtocolID": frozenset(),
    "ClinicalTrialSponsorName": frozenset(),
    "StackID": frozenset(map(str, range(1, 65))),
    "ClinicalTrialSiteID": frozenset({"train", "validation", "test", "external"}),
    "ClinicalTrialSiteName": frozenset(),
    "ClinicalTrialSeriesID": frozenset(),
    "AdmittingDiagnosesDescription": frozenset(),
    "PatientAge": frozenset(),
}  # fmt: skip
"""Text elements that may stay, with every value that may in every program; a program has more in `Vocabulary.texts`. The trial
elements carry a published data set's own split, site and protocol, the diagnosis its study group: of a closed list, never free text. An age
stays in programs that have a use for it alone, and up to ages.AGE_CAP."""

OWN_ALONE = frozenset({"PatientAge"})
"""Of these the ones that are removed in a program which has no values of its own for them, where the others are emptied."""

REQUIRED_TEXTS: dict[str, str] = {
    "ContentTime": "000000", "Manufacturer": REMOVED, "ManufacturerModelName": REMOVED, "DeviceSerialNumber": REMOVED,
    "SoftwareVersions": REMOVED,
}  # fmt: skip
"""Elements that are required with a value in multi-frame objects (PS3.3 C.7.5.2, C.7.6.16), and what stands for one that goes."""

ENUMERATED: dict[str, frozenset[str]] = {
    "Modality": frozenset(MODALITIES),
    "PatientPosition": frozenset({
        "HFS", "HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL", "LFP", "LFS", "RFP", "RFS", "AFDR", "AFDL", "PFDR",
        "PFDL",
    }),
    "DoseUnits": frozenset({"GY", "RELATIVE"}),
    "DoseType": frozenset({"PHYSICAL", "EFFECTIVE", "ERROR"}),
    "DoseSummationType": frozenset({
        "PLAN", "MULTI_PLAN", "PLAN_OVERVIEW", "FRACTION", "BEAM", "BRACHY", "FRACTION_SESSION", "BEAM_SESSION",
        "BRACHY_SESSION", "CONTROL_POINT", "RECORD",
    }),
    "ContourGeometricType": frozenset({
        "POINT", "OPEN_PLANAR", "OPEN_NONPLANAR", "CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR",
        "INTERPOLATED_PLANAR",
    }),
    "SegmentationType": frozenset({"BINARY", "FRACTIONAL", "LABELMAP"}),
    "SegmentsOverlap": frozenset({"YES", "NO", "UNDEFINED"}),
    "ApprovalStatus": frozenset({"APPROVED", "UNAPPROVED", "REJECTED"}),
    "SpecificCharacterSet": frozenset({"ISO_IR 192"}),
}  # fmt: skip
"""Code strings that readers decide by: with any other term the element goes."""

CODE_TERMS = {**TERMS, **ENUMERATED}
"""Terms of every code string that is kept; they stay even where a patient is called so, and no others do."""

SENDER_NUMBERS = frozenset({"SeriesNumber", "AcquisitionNumber", "InstanceNumber", "ItemNumber"})
"""Numbers that a sender may take from an id. One that equals an identifier is emptied; other numbers are counts and measures."""

FILE_META = frozenset({
    "FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID",
    "MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID",
    "ImplementationVersionName",
})  # fmt: skip
"""File meta elements that a stored file has."""


def known_value(keyword: str, text: str, more: Mapping[str, frozenset[str]] = MappingProxyType({})) -> str:
    """The value of KNOWN_VALUES, or of a program's own, `more`, that `text` is, compared without case and surrounding blanks; empty for any other."""
    terms = KNOWN_VALUES.get(keyword, frozenset()) | more.get(keyword, frozenset())
    return text if text in terms else _spellings(terms).get(text.strip().casefold(), "")


@cache
def _spellings(terms: frozenset[str]) -> dict[str, str]:
    return {term.casefold(): term for term in sorted(terms)}


def registered(text: str) -> bool:
    """Whether a UID is one that the standard registers (a class, a transfer syntax), and so says nothing of anyone."""
    return bool(uid.UID(text).type) or text in SUPPORTED_CLASSES


@versioned("5")
def profile() -> dict[int, Action]:
    """Return what happens to each allowed element, by tag. Its version is part of what makes an intake's result."""
    groups = [
        (" ".join(dict.fromkeys([*_KEEP.split(), *CODE_TERMS])), Action.KEEP), (_UID, Action.UID), (_DATE, Action.DATE), (_EMPTY, Action.EMPTY),
        (_NESTED, Action.NESTED), (_CODED, Action.CODED), (" ".join(sorted(KNOWN_VALUES.keys() - OWN_ALONE)), Action.VOCABULARY),
        (" ".join(sorted(OWN_ALONE)), Action.OWN_VOCABULARY),
        (" ".join(FIXED_VALUES), Action.FIXED), ("PixelData", Action.PIXELS),
        ("PatientID PatientName ClinicalTrialSubjectID", Action.PSEUDONYM), ("ROIName SegmentLabel", Action.STRUCTURE),
        ("SegmentDescription", Action.SOURCE_VALUE), ("DeviceSerialNumber", Action.STAND_IN),
    ]  # fmt: skip
    table: dict[int, Action] = {}
    for keywords, action in groups:
        for keyword in keywords.split():
            tag = tag_for_keyword(keyword)
            if tag is None or tag in table:
                raise ValueError(f"expected each keyword once and in the DICOM dictionary, got {keyword}")
            if action is Action.KEEP and dictionary_VR(tag) == "CS" and keyword not in CODE_TERMS:
                raise ValueError(f"expected the terms of each code string that is kept, got none for {keyword}")
            table[tag] = action
    return table


def code_term(keyword: str, text: str) -> str | None:
    """The term of a code string that `text` is, compared without case and surrounding blanks; None for any other."""
    term = text.strip(" \0").upper()
    return term if not term or term in CODE_TERMS[keyword] else None


METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113105", "Clean Descriptors Option"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)
"""DeidentificationMethodCodeSequence, context group 7050 of PS3.16."""

CLEAN_PIXELS = ("113101", "Clean Pixel Data Option")
"""The same of an image in which text was found and blanked, or all outside of the regions of tissue of ultrasound was."""

FIXED_VALUES = {
    "StructureSetLabel": "STRUCTURES",
    "RTPlanLabel": "PLAN",
    "ContentLabel": "CONTENT",
    "SegmentAlgorithmName": "ALGORITHM",
    "DeidentificationMethod": f"med_assets allow-list {version_of(profile)}",
}
"""Labels that the standard requires (type 1), which planners fill with names and diagnoses."""

ALLOWED: dict[int, Action] = {tag_of(tag): action for tag, action in profile().items()}
"""Tag -> action, for every element that may be in a stored object. Everything else is removed."""
