"""Every reason for which a file or case is not used: its code, what it means and what to do. Those of one program are in its folder.

`med-assets explain` shows the remedy, docs/intake.md holds the table (`make docs` writes it), and a test compares the codes
that the source raises with this table.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from med_assets import program

Stage = Literal[
    "archive", "file", "case", "geometry", "structures", "dose", "segmentation", "program", "identity", "import"
]

TITLES: dict[Stage, str] = {
    "archive": "Archives and entries of the landing zone",
    "file": "Files",
    "case": "Files that should make one case",
    "geometry": "Images and their geometry",
    "structures": "Structure sets",
    "dose": "Dose and plan",
    "segmentation": "Segmentations",
    "program": "Requirements of one program, and the audit",
    "identity": "Identity",
    "import": "Import of other layouts (`med-assets import`, the command lists them; nothing is written)",
}


@dataclass(frozen=True)
class Reason:
    """Why something is not used: a code to count by, where it arises, what it means, and what a person can do."""

    code: str
    stage: Stage
    meaning: str
    remedy: str


_SEND_AGAIN = "export the object from its source again"
_RECEIVED = "send the file again; it was damaged on its way or at its source"

_ALL = (
    # Archives and entries
    Reason("archive_corrupt", "archive", "the archive is cut or damaged", "pack and send it again"),
    Reason("archive_device", "archive", "the archive holds a device, pipe or socket", "pack plain files and folders"),
    Reason("archive_encrypted", "archive", "the archive has a password", "pack it without a password"),
    Reason(
        "archive_in_parts",
        "archive",
        "the file is one part of an archive in several parts",
        "join the parts, or pack it in one",
    ),
    Reason("archive_link", "archive", "the archive holds a symbolic or hard link", "pack the files themselves"),
    Reason(
        "archive_too_large",
        "archive",
        "the archive unpacks to more bytes than are allowed, or to far more than its own size",
        "split it, or compress it less",
    ),
    Reason("archive_too_many_files", "archive", "the archive holds more files than are allowed", "split it"),
    Reason(
        "archive_traversal",
        "archive",
        "a member's name leads outside the archive's own folder",
        "pack it again with relative names",
    ),
    Reason("not_archive", "archive", "what looked like an archive holds no files", "pack it again"),
    Reason(
        "entry_changed",
        "archive",
        "files changed or vanished while the entry was being read",
        "nothing: what is there now comes in a later batch",
    ),
    Reason("no_dicom", "archive", "the entry holds no DICOM object", "check the export"),
    Reason(
        "not_fetched",
        "archive",
        "objects of the entry are missing in the bucket, or could not be fetched",
        "see the S3 page; then take the batch in again",
    ),
    Reason("file_link", "archive", "a symbolic link to a file, which is not followed", "copy the file itself"),
    Reason("folder_link", "archive", "a symbolic link to a folder, which is not followed", "copy the folder itself"),
    Reason("not_plain_file", "archive", "a pipe, socket or device", "remove it"),
    # Files
    Reason(
        "nested_archive", "file", "the file is an archive within an archive, which stays packed", "unpack the inner one"
    ),
    Reason(
        "trailing_bytes",
        "file",
        "files have bytes behind their dataset, which are stored nowhere; a note",
        "nothing to do: the objects are read without",
    ),
    Reason(
        "pixels_too_large",
        "file",
        "compressed pixels of more than 2^25 samples a frame or 4 GiB, or of more than their stream can hold",
        "export the object again, or in parts",
    ),
    Reason("not_dicom", "file", "the file is no DICOM object", "leave it out, or send the original file"),
    Reason("truncated_file", "file", "the file ends before its dataset or its pixels do", _RECEIVED),
    Reason(
        "malformed_element",
        "file",
        "an element of the dataset is not what its type allows, or the dataset is nested or inflates beyond what is read",
        _SEND_AGAIN,
    ),
    Reason("missing_uid", "file", "a UID that every object must have is absent", _SEND_AGAIN),
    Reason(
        "directory_file", "file", "a DICOMDIR, which only lists other files", "nothing: the files are read directly"
    ),
    Reason(
        "duplicate_instance",
        "file",
        "a SOPInstanceUID occurs twice",
        "send each object once; if the images differ, correct the UIDs at the source",
    ),
    Reason(
        "unreadable",
        "file",
        "the system could not read the file, or reading failed unexpectedly; it is tried again in every run",
        "check permissions; if it stays, report the code that follows",
    ),
    Reason(
        "reader_crashed",
        "file",
        "the process that read the file or case was ended by it, as decoders crash on damaged bytes; all beside it went through",
        "export it again, uncompressed; read it again with `med-assets ingest PROGRAM --batch BATCH`",
    ),
    Reason(
        "reader_time_limit",
        "file",
        "the file or case took longer to read than `MED_ASSETS_INTAKE_FILE_S` allows; all beside it went through",
        "export it again, or allow more time and read it again with `med-assets ingest PROGRAM --batch BATCH`",
    ),
    Reason(
        "out_of_memory",
        "file",
        "reading the file or case takes more memory than `MED_ASSETS_INTAKE_MEMORY_GB` allows",
        "allow more and read it again with `med-assets ingest PROGRAM --batch BATCH`, or export it in parts",
    ),
    Reason(
        "path_too_long",
        "file",
        "folders are nested so deep that the path to what is in them is longer than the system reads",
        "move it up; what is less deep in the same entry went through",
    ),
    Reason(
        "undecodable_pixels",
        "file",
        "the pixels can't be decoded, or are not what the header says",
        "export the images uncompressed",
    ),
    Reason("unsupported_sop_class", "file", "an object of a kind that is not stored", "leave it out"),
    # Cases
    Reason(
        "no_case_to_correct",
        "case",
        "a segmentation or structure set came alone and refers to no stored image of its patient",
        "send it with its images, or draw it on the images that are stored",
    ),
    Reason(
        "other_profile",
        "case",
        "a segmentation or structure set came alone, and its case is stored with another profile of de-identification",
        "send it with its images",
    ),
    Reason(
        "several_cases_corrected",
        "case",
        "a segmentation or structure set came alone and refers to several stored cases alike",
        "send it with its images",
    ),
    Reason("mismatch", "file", "an instance is another one than the request that sent it names", "send it again"),
    Reason("too_large", "file", "a loop has too many frames, or too large ones", "send a part of the loop"),
    Reason("no_ct", "case", "there is no CT series", "send the CT with the other objects"),
    Reason("zero_slices", "case", "a series has no slices", "send the whole series"),
    Reason("single_slice", "case", "a series has one slice, so its spacing is unknown", "send the whole series"),
    Reason(
        "wrong_modality",
        "case",
        "an object that the program has no use for",
        "send the modalities that the program's page names",
    ),
    Reason(
        "several_acquisitions",
        "case",
        "a series holds several acquisitions, echoes, phases or b-values, and nothing says which counts",
        "send one of them, or a label that refers to its images",
    ),
    Reason("no_rtstruct", "case", "there is no structure set for the CT series", "send the RTSTRUCT"),
    Reason("no_rtplan", "case", "there is no plan for the structure set", "send the RTPLAN"),
    Reason("no_rtdose", "case", "there is no dose for the plan", "send the RTDOSE"),
    Reason(
        "several_structure_sets", "case", "several structure sets fit; none is guessed", "send the approved one alone"
    ),
    Reason("several_plans", "case", "several plans fit; none is guessed", "send the approved one alone"),
    Reason("several_doses", "case", "several doses fit; none is guessed", "send the dose of the plan alone"),
    Reason("several_labels", "case", "several labels fit; none is guessed", "send the one that counts"),
    Reason("several_volumes", "case", "an OPT series holds several volumes", "send the one that counts"),
    Reason(
        "missing_patient_id",
        "case",
        "an object has no PatientID, so patients can't be distinguished",
        "export with an id or a pseudonym",
    ),
    Reason(
        "wrong_patient",
        "case",
        "objects of several patients in what should be one case",
        "send each patient's objects in a folder of their own",
    ),
    Reason(
        "wrong_study",
        "case",
        "objects of several studies in what should be one case",
        "export the objects from the study that they were made in",
    ),
    Reason(
        "localizer",
        "case",
        "localizer images beside the series; a note where the study has a case",
        "nothing, unless it is all that came",
    ),
    Reason(
        "screen_capture",
        "case",
        "screen captures or images made by a viewer; a note where the study has a case",
        "nothing, unless it is all that came",
    ),
    Reason(
        "not_an_image",
        "case",
        "reports, presentation states or raw data; a note where the study has a case",
        "nothing, unless it is all that came",
    ),
    Reason(
        "broken_uid_chain",
        "case",
        "plan, structures, dose or label do not reference each other and the images",
        "export them together",
    ),
    Reason(
        "frame_of_reference_mismatch",
        "case",
        "objects lie in different frames of reference",
        "export them from one registration",
    ),
    Reason(
        "duplicate_case",
        "case",
        "the same images are there under another patient or study",
        "keep one, or correct the ids at the source",
    ),
    Reason(
        "repeated_case",
        "case",
        "a case lies several times in one batch, with the same content; a note",
        "nothing to do: it is taken in once",
    ),
    Reason(
        "two_versions", "case", "a case lies twice in one batch, with different content", "send the one that counts"
    ),
    # Geometry
    Reason("mixed_series", "geometry", "slices of several series, studies or frames of reference", "send one series"),
    Reason(
        "missing_geometry",
        "geometry",
        "position, orientation or spacing is absent; none is made up",
        "export the original images",
    ),
    Reason(
        "inconsistent_geometry",
        "geometry",
        "slices do not form one volume: sizes, orientations or positions contradict each other",
        "send the slices of one stack",
    ),
    Reason("duplicate_slice", "geometry", "several slices lie at one position", "send one reconstruction, once"),
    Reason("missing_slice", "geometry", "slice positions have a gap; nothing is interpolated", "send the whole series"),
    Reason(
        "nonuniform_spacing",
        "geometry",
        "slices do not lie where a regular stack has them",
        "send one series with one slice spacing",
    ),
    Reason(
        "gantry_tilt",
        "geometry",
        "the gantry was tilted, so that slices shift against each other; this needs resampling",
        "send a series reconstructed without tilt, or set MED_ASSETS_<PROGRAM>_GANTRY_TILT=resample",
    ),
    Reason("not_axial", "geometry", "the volume is turned against the axial axes", "export an axial series"),
    Reason("not_sagittal", "geometry", "the volume is turned against the sagittal axes", "export a sagittal series"),
    Reason(
        "missing_rescale",
        "geometry",
        "RescaleSlope or RescaleIntercept is absent, so values are not HU",
        "export the original images",
    ),
    Reason("single_frame", "geometry", "a volume of fewer than two frames", "send the volume scan"),
    Reason("not_raster", "geometry", "B-scans of a ring or radial scan", "send the raster scan"),
    Reason(
        "several_frames",
        "geometry",
        "a cine loop where one image was expected",
        "send the frame that counts as an image",
    ),
    Reason(
        "unusual_pixels", "geometry", "pixels of a kind that is not read, such as a palette", "export 8-bit grey or RGB"
    ),
    # Structures
    Reason(
        "missing_rois",
        "structures",
        "the structure set has no ROIs, or none with contours",
        "send the contoured structure set",
    ),
    Reason("ambiguous_roi", "structures", "several ROIs fit one structure", "rename or remove those that do not count"),
    Reason("contour_not_axial", "structures", "a contour crosses slices", "draw it in the planes of the slices"),
    Reason(
        "contour_outside_image",
        "structures",
        "a structure reaches beyond the image",
        "send the image that was contoured, whole",
    ),
    Reason(
        "no_ptv",
        "structures",
        "a structure that the site requires was not found",
        "add a synonym to the site's configuration, or correct the name",
    ),
    Reason(
        "missing_structure",
        "structures",
        "a structure that the site expects of every case is missing, and the site refuses such cases",
        "draw it, add its name to the site's synonyms, or set `expected_missing: exclude`",
    ),
    Reason("empty_target", "structures", "a target encloses no voxel centre", "check its contours"),
    Reason("no_body", "structures", "the CT shows no body", "check RescaleIntercept and modality"),
    # Dose
    Reason(
        "dose_grid_too_small",
        "dose",
        "a target reaches beyond the dose grid, where no dose was calculated",
        "calculate the dose on a larger grid",
    ),
    Reason("relative_dose", "dose", "the dose is relative", "export it in Gy"),
    Reason("dose_not_plan_sum", "dose", "the dose is of a beam or fraction", "export the dose of the whole plan"),
    Reason(
        "not_physical_dose",
        "dose",
        "the dose is not physical, such as a biologically effective one",
        "export the physical dose",
    ),
    Reason("nan_dose", "dose", "the dose holds values that are no numbers", _SEND_AGAIN),
    Reason("negative_dose", "dose", "the dose holds negative values", "export the dose of the plan, not a difference"),
    Reason("empty_dose", "dose", "the dose is zero everywhere", "export the calculated dose"),
    Reason("missing_dose_scaling", "dose", "DoseGridScaling is absent or not above zero", _SEND_AGAIN),
    Reason("bad_prescription", "dose", "the prescription is no plausible dose in Gy", "correct the plan"),
    Reason(
        "no_prescription",
        "dose",
        "neither the plan nor the site states a prescription",
        "export the plan with it, or add a default to the site",
    ),
    # Segmentations
    Reason(
        "fractional_segmentation",
        "segmentation",
        "a SEG with values between 0 and the greatest, which no threshold turns into labels here",
        "export it as a binary segmentation",
    ),
    Reason("missing_segments", "segmentation", "the SEG has no numbered segment with a label", _SEND_AGAIN),
    Reason(
        "duplicate_segment", "segmentation", "a segment number, or a value of the label file, occurs twice", _SEND_AGAIN
    ),
    Reason("too_many_labels", "segmentation", "its labels overlap in more ways than can be kept", "send fewer labels"),
    Reason(
        "grid_mismatch",
        "segmentation",
        "the label does not lie on the image's voxels; labels are not resampled",
        "send the label that was drawn on this image",
    ),
    Reason(
        "label_grid_mismatch",
        "segmentation",
        "the label does not lie on the image's voxels; labels are not resampled",
        "send the label that was drawn on this image",
    ),
    Reason(
        "not_a_mask",
        "segmentation",
        "a predicted label of another framework has other values than 0 and 1",
        "write the class of the exported dataset as 1, and all else as 0",
    ),
    Reason(
        "unreadable_mask",
        "segmentation",
        "a predicted label of another framework can't be read",
        "write it again in the format of the exported labels",
    ),
    # Programs and audit
    Reason(
        "audit_failed",
        "program",
        "measured facts are not those of an acceptable case",
        "the reason names each fact, its value and what was expected",
    ),
    Reason(
        "preparation_failed",
        "program",
        "preparing the case failed unexpectedly",
        "report the place in the code that the reason names",
    ),
    Reason(
        "raw_missing",
        "program",
        "the case's stored DICOM is no longer in the store",
        "`med-assets verify` says how to get it back",
    ),
    Reason("no_contrast", "program", "all values of the image are nearly the same", "export the image again"),
    Reason("no_image", "program", "a mask without the image that it was drawn on", "send them together"),
    Reason("no_mask", "program", "an image without a mask", "send its SEG"),
    Reason("two_labels", "program", "one image has two labels", "send the one that counts"),
    Reason(
        "mask_size_mismatch",
        "program",
        "mask and image differ in size; masks are not resized",
        "send the mask that was drawn on this image",
    ),
    Reason(
        "region_outside_image",
        "program",
        "a region of tissue lies outside the image, or ends before it begins",
        "correct SequenceOfUltrasoundRegions, or export the image again",
    ),
    Reason(
        "no_given_split",
        "program",
        "the split policy is `given`, and the case brings no split",
        "import it with one, or change the policy",
    ),
    Reason("two_given_splits", "program", "cases of one patient bring different splits", "correct them at the source"),
    # Identity
    Reason(
        "residual_phi",
        "identity",
        "something identifying was left after de-identification; nothing was stored",
        "report the tags that the reason names",
    ),
    Reason(
        "burned_in_annotation",
        "identity",
        "the object declares text burnt into its pixels",
        "export the image without annotations",
    ),
    Reason(
        "text_found_in_pixels",
        "identity",
        "with `MED_ASSETS_OCR=quarantine`, what looks like text was found in the pixels",
        "see the picture beside the batch's manifest; mask the text and send the image again, or take it in with `MED_ASSETS_OCR=blank`",
    ),
    Reason(
        "overlay_in_pixels",
        "identity",
        "an overlay shares bits with the values of the pixels, so that neither can be distinguished from the other",
        "export the image without overlays",
    ),
    Reason(
        "unsafe_pixel_stream",
        "identity",
        "a compressed image holds a part of which it is not known that it carries no text",
        "export the image uncompressed, or compress it again",
    ),
    # Import
    Reason(
        "not_relinked",
        "import",
        "the original files of a prediction are not there as they were read",
        "unpack archives, and predict the folder again",
    ),
    Reason("bad_label_name", "import", "a label's name can't be written as a segment label", "rename it"),
    Reason("bad_entry", "import", "an entry of a list does not name one image and one label", "correct the entry"),
    Reason(
        "contradictory_affine",
        "import",
        "sform, qform and pixdim of a NIfTI file contradict each other",
        "write the volume again with one geometry",
    ),
    Reason(
        "import_failed",
        "import",
        "reading the case failed unexpectedly",
        "check its files, and report the type of error",
    ),
    Reason(
        "label_shape_mismatch",
        "import",
        "label and image differ in shape; labels are not resampled",
        "export the label that was drawn on this image",
    ),
    Reason(
        "name_taken", "import", "a case from another source has this name", "rename the source, or remove the folder"
    ),
    Reason("bad_point", "import", "a point lies outside its image or is no number", "correct the table"),
    Reason("missing_body", "import", "a vertebral body between others is missing", "complete the labels"),
    Reason("missing_file", "import", "a file of the case is absent", "complete the folder"),
    Reason("missing_images", "import", "the images that a table names are absent", "complete the folder"),
    Reason("missing_label", "import", "the image has no label", "add it, or leave the image out"),
    Reason("no_endplate", "import", "an endplate can't be found in the label", "correct the label"),
    Reason("no_labels", "import", "the label holds no labelled voxel", "correct the label"),
    Reason(
        "no_table_row", "import", "the data set's table has no row of the image", "add the row, or remove the image"
    ),
    Reason("no_target", "import", "the case has no target structure", "complete the folder"),
    Reason("not_a_volume", "import", "the file holds no three-dimensional array", "export a volume"),
    Reason("not_hounsfield", "import", "values are not HU", "export the CT in HU"),
    Reason("not_integer_labels", "import", "the label holds values that are no whole numbers", "export integer labels"),
    Reason(
        "other_patient", "import", "the volume is of another participant than its folder says", "correct the source"
    ),
    Reason(
        "sheared_affine",
        "import",
        "the grid's axes are not perpendicular, which DICOM slices can't hold",
        "resample the volume at the source",
    ),
    Reason("two_images", "import", "several images have the same key", "make `key` tell them apart, or remove one"),
    Reason(
        "unclear_mask",
        "import",
        "a mask has grey values that nobody named",
        "name them in `values` of the data set's file",
    ),
    Reason(
        "unknown_file",
        "import",
        "files match the pattern of neither image nor mask",
        "correct the patterns of the data set's file, or name them in `ignored`",
    ),
    Reason("unreadable_csv", "import", "a table can't be read", "export it again"),
    Reason("unreadable_image", "import", "a picture can't be read", "export it again"),
    Reason(
        "volume_too_large",
        "import",
        "a volume has more than 2^30 voxels, or more than its file can hold",
        "check the file, or export it in parts",
    ),
    Reason("unreadable_volume", "import", "a volume can't be read", "export it again"),
    Reason("values_out_of_range", "import", "values lie outside what the layout allows", "export the original values"),
)


def reasons(*programs: str) -> dict[str, Reason]:
    """Reasons by code: those that programs share, and those of the named ones, or of all."""
    own = [reason for name in programs or program.REGISTRY for reason in program.get(name).reasons]
    return {reason.code: reason for reason in (*_ALL, *own)}


def remedy(program_name: str, code: str | None) -> str:
    """What a person can do about a case of a program quarantined with this code; empty for a code of an earlier version."""
    found = reasons(program_name).get(code or "")
    return found.remedy if found else ""


def table() -> str:
    """Markdown of all reasons, grouped by where they arise."""
    parts = []
    for stage, title in TITLES.items():
        rows = sorted(
            (reason for reason in reasons().values() if reason.stage == stage), key=lambda reason: reason.code
        )
        lines = [f"| `{reason.code}` | {reason.meaning} | {reason.remedy} |" for reason in rows]
        parts.append("\n".join([f"### {title}\n", "| code | what it means | what to do |", "|---|---|---|", *lines]))
    return "\n\n".join(parts)


BEGIN, END = "<!-- reasons -->", "<!-- end of reasons -->"
"""What stands around the table in a page."""


def with_table(page: str) -> str:
    """The text of a page with the table of all reasons between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text()))
