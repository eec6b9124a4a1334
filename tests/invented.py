"""Invented DICOM cases, built with pydicom alone and no code of the package, and what intake and preparation make of them.

The geometry and the values are analytic and have no symmetry, so that a flip, a shift or a scale shows.
"""

import hashlib
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from med_assets.catalog import Case, FactValue
from med_assets.cli import stages
from med_assets.landing import batches
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.settings import Workspace

CT_SOP = "1.2.840.10008.5.1.4.1.1.2"
MR_SOP = "1.2.840.10008.5.1.4.1.1.4"
RS_SOP = "1.2.840.10008.5.1.4.1.1.481.3"
RP_SOP = "1.2.840.10008.5.1.4.1.1.481.5"
RD_SOP = "1.2.840.10008.5.1.4.1.1.481.2"
SEG_SOP = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP_SOP = "1.2.840.10008.5.1.4.1.1.66.7"
US_SOP = "1.2.840.10008.5.1.4.1.1.6.1"
HFS = (1, 0, 0, 0, 1, 0)


def uid(*parts):
    return str(generate_uid(entropy_srcs=["invented", *map(str, parts)]))


def item(**kw):
    """A sequence item, also with values that pydicom warns about."""
    ds = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, v in kw.items():
            setattr(ds, k, v)
    return ds


def hu_at(p):
    """Analytic HU of the phantom at LPS points (..., 3): no symmetry, so that a flip or a shift shows."""
    p = np.asarray(p, float)
    x, y, z = p[..., 0], p[..., 1], p[..., 2]
    body = (x / 130) ** 2 + (y / 100) ** 2 < 1
    v = np.where(body, 40 + 0.5 * x + 0.2 * y + 0.3 * z, -1000.0)
    v = np.where((x + 60) ** 2 + (y - 40) ** 2 < 20**2, 700.0, v)  # bone, right-posterior
    v = np.where(body & (np.abs(x) < 12) & (y < -70), 250.0, v)  # marker, anterior
    return np.round(v)


def dose_at(p):
    """Analytic dose in Gy: 70 in the PTV70 box + 10 mm, 56 in the PTV56 box + 10 mm, a slope elsewhere."""
    p = np.asarray(p, float)
    out = 12 + 0.02 * p[..., 0] + 0.01 * p[..., 2]
    for half, gy in ((40, 56.0), (30, 70.0)):
        out = np.where((np.abs(p) < half).all(-1), gy, out)
    return out


class Study:
    def __init__(self, tag, patient=None, study=None, frame=None):
        self.tag = tag
        self.patient = patient or f"PAT-{tag}"
        self.study = study or uid(tag, "study")
        self.frame = frame or uid(tag, "frame")

    def base(self, sop_class, modality, series, sop, **kw):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, sop
        ds.StudyDate, ds.StudyTime = "20240115", "101500"
        ds.AccessionNumber = ""
        ds.Modality, ds.Manufacturer = modality, "INVENTED"
        ds.ReferringPhysicianName = ""
        ds.PatientName, ds.PatientID = f"Invented^{self.tag}", self.patient
        ds.PatientBirthDate, ds.PatientSex = "", ""
        ds.StudyInstanceUID, ds.SeriesInstanceUID = self.study, series
        ds.StudyID, ds.SeriesNumber = "", 1
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = self.frame, ""
        for k, v in kw.items():
            setattr(ds, k, v)
        return ds


def ds_text(v):
    return f"{float(v):.9f}".rstrip("0").rstrip(".")[:16]


def slice_image(st, sop_class, modality, series, sop, number, iop, ipp, spacing, pixels, slope=1, intercept=-1024):
    ds = st.base(sop_class, modality, series, sop, InstanceNumber=number)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientPosition = "HFS"
    ds.ImageOrientationPatient = [ds_text(v) for v in iop]
    ds.ImagePositionPatient = [ds_text(v) for v in ipp]
    ds.PixelSpacing = [ds_text(v) for v in spacing]
    ds.SliceThickness = "3"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleIntercept, ds.RescaleSlope = str(intercept), str(slope)
    if modality == "CT":
        ds.RescaleType, ds.KVP, ds.AcquisitionNumber = "HU", "120", 1
    ds.PixelData = np.ascontiguousarray(pixels.astype("<u2")).tobytes()
    return ds


def grid_points(iop, ipp, spacing, shape):
    iop = np.asarray(iop, float)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(ipp, float) + cols[..., None] * spacing[1] * iop[:3] + rows[..., None] * spacing[0] * iop[3:]


def ct(
    st,
    iop=HFS,
    n=25,
    dz=5.0,
    px=5.0,
    size=(64, 64),
    positions=None,
    centre=(0, 0, 0),
    series=None,
    hu=hu_at,
    origins=None,
):
    """CT slices centred on `centre`; `positions` are distances along the normal (mm), `origins` overrides IPPs."""
    iop = np.asarray(iop, float)
    normal = np.cross(iop[:3], iop[3:])
    if positions is None:
        positions = (np.arange(n) - (n - 1) / 2) * dz
    series = series or uid(st.tag, "ct")
    half = (size[1] - 1) / 2 * px * iop[:3] + (size[0] - 1) / 2 * px * iop[3:]
    out = []
    for k, along in enumerate(positions):
        ipp = np.asarray(centre, float) - half + along * normal if origins is None else np.asarray(origins[k], float)
        pts = grid_points(iop, ipp, (px, px), size)
        stored = np.clip(hu(pts) + 1024, 0, 65535)
        stored[0, :8] = list(hashlib.sha256(st.tag.encode()).digest()[:8])  # no two cases have the same pixels
        out.append(
            slice_image(st, CT_SOP, "CT", series, uid(st.tag, series, "ct", k), k + 1, iop, ipp, (px, px), stored)
        )
    return out


def square(half, z, centre=(0, 0), step=None):
    """A closed square contour in the plane z, corners at +-half around the centre."""
    cx, cy = centre
    return np.array(
        [(cx - half, cy - half, z), (cx + half, cy - half, z), (cx + half, cy + half, z), (cx - half, cy + half, z)],
        float,
    )


def box_contours(half, zs, centre=(0, 0, 0)):
    return [square(half, z, centre[:2]) for z in zs if abs(z - centre[2]) <= half]


def rtstruct(
    st, slices, rois, name_charset=None, sop=None, reference=True, contour_images=True, ref_only=None, label="STRUCT"
):
    """rois: list of (name, [contours]) or (name, [(contour, type)])."""
    ds = st.base(RS_SOP, "RTSTRUCT", uid(st.tag, "rs-series", label), sop or uid(st.tag, "rs", label))
    ds.StructureSetLabel, ds.StructureSetDate, ds.StructureSetTime = label, "20240115", "101500"
    ds.ApprovalStatus = "UNAPPROVED"
    images = [
        item(ReferencedSOPClassUID=s.SOPClassUID, ReferencedSOPInstanceUID=s.SOPInstanceUID)
        for s in (ref_only or slices)
    ]
    if reference:
        ds.ReferencedFrameOfReferenceSequence = [
            item(
                FrameOfReferenceUID=st.frame,
                RTReferencedStudySequence=[
                    item(
                        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
                        ReferencedSOPInstanceUID=st.study,
                        RTReferencedSeriesSequence=[
                            item(SeriesInstanceUID=slices[0].SeriesInstanceUID, ContourImageSequence=images)
                        ],
                    )
                ],
            )
        ]
    del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    zs = np.array([float(s.ImagePositionPatient[2]) for s in slices])
    for number, (name, contours) in enumerate(rois, start=1):
        ds.StructureSetROISequence.append(
            item(
                ROINumber=number, ReferencedFrameOfReferenceUID=st.frame, ROIName=name, ROIGenerationAlgorithm="MANUAL"
            )
        )
        ds.RTROIObservationsSequence.append(
            item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter="")
        )
        if contours is None:
            continue
        seq = []
        for c in contours:
            pts, kind = c if isinstance(c, tuple) else (c, "CLOSED_PLANAR")
            pts = np.asarray(pts, float).reshape(-1, 3)
            one = item(
                ContourGeometricType=kind, NumberOfContourPoints=len(pts), ContourData=[ds_text(v) for v in pts.ravel()]
            )
            if contour_images:
                near = slices[int(np.abs(zs - pts[:, 2].mean()).argmin())]
                one.ContourImageSequence = [
                    item(ReferencedSOPClassUID=near.SOPClassUID, ReferencedSOPInstanceUID=near.SOPInstanceUID)
                ]
            seq.append(one)
        ds.ROIContourSequence.append(item(ROIDisplayColor=[255, 0, 0], ReferencedROINumber=number, ContourSequence=seq))
    return ds


def rtplan(st, rs, gy=70.0, fractions=35):
    ds = st.base(RP_SOP, "RTPLAN", uid(st.tag, "rp-series"), uid(st.tag, "rp"))
    ds.RTPlanLabel, ds.RTPlanDate, ds.RTPlanTime, ds.RTPlanGeometry = "PLAN", "20240115", "101500", "PATIENT"
    ds.DoseReferenceSequence = [
        item(
            DoseReferenceNumber=1,
            DoseReferenceStructureType="SITE",
            DoseReferenceType="TARGET",
            TargetPrescriptionDose=str(gy),
        )
    ]
    ds.FractionGroupSequence = [
        item(
            FractionGroupNumber=1,
            NumberOfFractionsPlanned=fractions,
            NumberOfBeams=0,
            NumberOfBrachyApplicationSetups=0,
        )
    ]
    ds.ReferencedStructureSetSequence = [item(ReferencedSOPClassUID=RS_SOP, ReferencedSOPInstanceUID=rs.SOPInstanceUID)]
    return ds


def rtdose(
    st,
    rp,
    iop=HFS,
    n=31,
    dz=4.0,
    px=4.0,
    size=(60, 68),
    centre=(0, 0, 0),
    offsets=None,
    scaling=1e-3,
    units="GY",
    summation="PLAN",
    dose=dose_at,
    tag="",
    start_offset=0.0,
    rounded=None,
):
    iop = np.asarray(iop, float)
    normal = np.cross(iop[:3], iop[3:])
    rel = np.arange(n) * dz if offsets is None else np.asarray(offsets, float)
    half = (size[1] - 1) / 2 * px * iop[:3] + (size[0] - 1) / 2 * px * iop[3:]
    ipp = np.asarray(centre, float) - half - (rel[-1] - rel[0]) / 2 * normal
    frames = np.stack([dose(grid_points(iop, ipp + o * normal, (px, px), size)) for o in (rel - rel[0])])
    ds = st.base(RD_SOP, "RTDOSE", uid(st.tag, "rd-series", tag), uid(st.tag, "rd", tag))
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [ds_text(v) for v in iop], [ds_text(v) for v in ipp]
    ds.PixelSpacing = [ds_text(px)] * 2
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.NumberOfFrames, ds.FrameIncrementPointer = len(rel), 0x3004000C
    ds.Rows, ds.Columns = size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 32, 32, 31, 0
    ds.DoseUnits, ds.DoseType, ds.DoseSummationType = units, "PHYSICAL", summation
    ds.GridFrameOffsetVector = [ds_text(v if rounded is None else round(v, rounded)) for v in rel + start_offset]
    ds.DoseGridScaling = str(scaling)
    ds.PixelData = np.rint(frames / scaling).astype("<u4").tobytes()
    if rp is not None:
        ds.ReferencedRTPlanSequence = [item(ReferencedSOPClassUID=RP_SOP, ReferencedSOPInstanceUID=rp.SOPInstanceUID)]
    return ds


def structures(zs):
    """ROIs of the invented plan on slices at these heights: name and contours."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return [
        ("BODY", [np.array([(125 * np.cos(a), 95 * np.sin(a), z) for a in angles]) for z in zs]),
        ("PTV70", box_contours(22.5, zs)),
        ("PTV56", box_contours(32.5, zs)),
        ("Rectum", box_contours(22.5, zs, (0, 50, 0))),
        ("Bladder", box_contours(22.5, zs, (0, -50, 0))),
    ]


def plan_case(tag, rois=None, ct_kw=None, dose_kw=None, slices=None, st=None, rs_kw=None, gy=70.0):
    """CT, RTSTRUCT, RTPLAN, RTDOSE of an invented prostate plan, as lists of datasets."""
    st = st or Study(tag)
    slices = slices or ct(st, **(ct_kw or {}))
    zs = [float(s.ImagePositionPatient[2]) for s in slices]
    rs = rtstruct(st, slices, rois if rois is not None else structures(zs), **(rs_kw or {}))
    rp = rtplan(st, rs, gy)
    rd = rtdose(st, rp, **(dose_kw or {}))
    return [*slices, rs, rp, rd]


def chest_case(tag, rois, ct_kw=None, slices=None, st=None, rs_kw=None):
    """CT and RTSTRUCT for lung_ct."""
    st = st or Study(tag)
    slices = slices or ct(st, **(ct_kw or {}))
    return [*slices, rtstruct(st, slices, rois, **(rs_kw or {}))]


def mr(
    st,
    n=12,
    dz=4.0,
    px=2.5,
    size=(96, 96),
    iop=(0, 1, 0, 0, 0, -1),
    description="T2 SAG",
    positions=None,
    te="100",
    tr="3500",
    series=None,
    value=None,
):
    iop = np.asarray(iop, float)
    normal = np.cross(iop[:3], iop[3:])
    positions = (np.arange(n) - (n - 1) / 2) * dz if positions is None else positions
    half = (size[1] - 1) / 2 * px * iop[:3] + (size[0] - 1) / 2 * px * iop[3:]
    series = series or uid(st.tag, "mr")
    value = value or (lambda p: np.clip(400 + p[..., 0] + 0.7 * p[..., 1] + 1.3 * p[..., 2], 0, 4000))
    out = []
    for k, a in enumerate(positions):
        ipp = -half + a * normal
        pts = grid_points(iop, ipp, (px, px), size)
        ds = slice_image(
            st, MR_SOP, "MR", series, uid(st.tag, series, "mr", k), k + 1, iop, ipp, (px, px), value(pts), 1, 0
        )
        del ds.RescaleIntercept, ds.RescaleSlope
        ds.SeriesDescription, ds.EchoTime, ds.RepetitionTime, ds.ScanningSequence = description, te, tr, "SE"
        out.append(ds)
    return out


def us(st, pixels, sop="us", bia=None, region=None, photometric="MONOCHROME2"):
    """One ultrasound image, uint8 grey (rows, columns) or RGB (rows, columns, 3); region is (x0, y0, x1, y1)."""
    ds = st.base(US_SOP, "US", uid(st.tag, "us"), uid(st.tag, sop), InstanceNumber=1)
    del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator
    ds.ImageType, ds.PatientOrientation = ["ORIGINAL", "PRIMARY"], ""
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    ds.PhotometricInterpretation = photometric
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    if bia:
        ds.BurnedInAnnotation = bia
    if region:
        ds.SequenceOfUltrasoundRegions = [
            item(
                RegionSpatialFormat=1,
                RegionDataType=1,
                RegionFlags=0,
                RegionLocationMinX0=region[0],
                RegionLocationMinY0=region[1],
                RegionLocationMaxX1=region[2],
                RegionLocationMaxY1=region[3],
                PhysicalUnitsXDirection=3,
                PhysicalUnitsYDirection=3,
                PhysicalDeltaX=0.01,
                PhysicalDeltaY=0.01,
            )
        ]
    ds.PixelData = np.ascontiguousarray(pixels.astype(np.uint8)).tobytes()
    return ds


def segmentation_2d(st, image, mask, label="malignant", sop="seg"):
    ds = st.base(SEG_SOP, "SEG", uid(st.tag, "segseries", sop), uid(st.tag, sop), InstanceNumber=1)
    del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator
    ds.ImageType, ds.SegmentationType = ["DERIVED", "PRIMARY"], "BINARY"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.NumberOfFrames = *mask.shape, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 1, 0, 0
    ds.SegmentSequence = [item(SegmentNumber=1, SegmentLabel=label, SegmentAlgorithmType="MANUAL")]
    ref = item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)
    ds.ReferencedSeriesSequence = [item(SeriesInstanceUID=image.SeriesInstanceUID, ReferencedInstanceSequence=[ref])]
    ds.SharedFunctionalGroupsSequence = [item()]
    ds.PerFrameFunctionalGroupsSequence = [item(SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)])]
    data = np.packbits(mask.ravel().astype(np.uint8), bitorder="little").tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    return ds


def volume_seg(
    st, slices, masks, kind="BINARY", order=None, spacing="declared", iop=None, keep_empty=False, sop="seg", dz=None
):
    """masks: list of (label, bool (n, rows, cols)) on `slices`. One frame per segment and non-empty slice; of a LABELMAP one per slice."""
    ds = st.base(SEG_SOP, "SEG", uid(st.tag, "segseries", sop), uid(st.tag, sop), InstanceNumber=1)
    ds.ImageType, ds.SegmentationType = ["DERIVED", "PRIMARY"], kind
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = slices[0].Rows, slices[0].Columns
    ds.SegmentSequence = [
        item(SegmentNumber=k, SegmentLabel=label, SegmentAlgorithmType="MANUAL")
        for k, (label, _) in enumerate(masks, 1)
    ]
    refs = [item(ReferencedSOPClassUID=s.SOPClassUID, ReferencedSOPInstanceUID=s.SOPInstanceUID) for s in slices]
    ds.ReferencedSeriesSequence = [item(SeriesInstanceUID=slices[0].SeriesInstanceUID, ReferencedInstanceSequence=refs)]
    measures = item(PixelSpacing=slices[0].PixelSpacing, SliceThickness="3")
    if spacing == "declared":
        gap = np.linalg.norm(
            np.array(slices[1].ImagePositionPatient, float) - np.array(slices[0].ImagePositionPatient, float)
        )
        measures.SpacingBetweenSlices = ds_text(gap)
    elif spacing is not None:
        measures.SpacingBetweenSlices = spacing
    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[item(ImageOrientationPatient=iop or slices[0].ImageOrientationPatient)],
        )
    ]
    if kind == "LABELMAP":
        values = np.max([k * m.astype(np.uint8) for k, (_, m) in enumerate(masks, 1)], axis=0)
        frames = [(None, i, plane) for i, plane in enumerate(values) if keep_empty or plane.any()]
    else:
        frames = [
            (k, i, m[i]) for k, (_, m) in enumerate(masks, 1) for i in range(len(slices)) if keep_empty or m[i].any()
        ]
    if order is not None:
        frames = [frames[j] for j in order(len(frames))]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=slices[i].ImagePositionPatient)],
            **({"SegmentIdentificationSequence": [item(ReferencedSegmentNumber=k)]} if k else {}),
        )
        for k, i, _ in frames
    ]
    ds.NumberOfFrames = len(frames)
    bits = np.concatenate([f.ravel() for _, _, f in frames]).astype(np.uint8)
    if kind == "BINARY":
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 1, 0, 0
        data = np.packbits(bits, bitorder="little").tobytes()
    else:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        if kind == "FRACTIONAL":
            ds.SegmentationFractionalType, ds.MaximumFractionalValue = "PROBABILITY", 255
        else:
            ds.SOPClassUID = LABELMAP_SOP
        data = (bits * (255 if kind == "FRACTIONAL" else 1)).astype(np.uint8).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    return ds


def write(datasets, folder, names=None, **kw):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for k, ds in enumerate(datasets):
        name = names[k] if names else f"{k:04d}.dcm"
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.save_as(folder / name, enforce_file_format=True)
    return folder


def ingest(ws: Workspace, program: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Take in and prepare all that lies in the landing zone; rows of `raw_cases` and of `prepared_cases` of that batch."""
    time.sleep(0.01)
    batch = batches.take(ws, program, batches.untaken(ws, program), time.time())
    stages.intake(ws, program, batch)
    stages.prepare(ws, program, batch)
    partition = f"{program}/{batch}"
    return ws.lake.rows("raw_cases", partition), ws.lake.rows("prepared_cases", partition)


def rt_dose_voxels(ws: Workspace, row: dict[str, Any]) -> dict[str, int]:
    """Voxels of each structure of an accepted plan, from a row of `prepared_cases`."""
    case = PreparedCase.open(ws.store.fetch(row["artifact"]))
    return {name: int((case.masks >> bit & 1).sum()) for bit, name in enumerate(case.structures)}


def case_with(
    case_id: str = "c", *, patient_id: str = "p", split: str | None = None, artifact: str = "", **facts: FactValue
) -> Case:
    """A case of the dataset, as a program gets it, with these facts."""
    return Case(
        program="", case_id=case_id, patient_id=patient_id, version="", content_hash="", artifact=artifact,
        given_split=None, synthetic=True, split=split, facts=facts,
    )  # fmt: skip
