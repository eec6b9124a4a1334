"""What an upload is, by its first bytes alone: names and types that a client states count for nothing."""

import zlib

HEAD_BYTES = 1024
"""First bytes of an upload that decide what it is."""

NIFTI_MAGIC = ((344, b"n+1\0"), (4, b"n+2\0\r\n\x1a\n"))
"""Place and value of the mark of a NIfTI-1 and of a NIfTI-2 file."""

GZIP, PNG, NRRD, ZIP = b"\x1f\x8b", b"\x89PNG\r\n\x1a\n", b"NRRD000", b"PK"


def suffix_of(head: bytes) -> str:
    """How the name of a file should end whose first bytes are `head`, HEAD_BYTES or all of it; `.dcm` where nothing else is known.

    Whether it is what it seems is for those to find who read it.
    """
    if head.startswith(GZIP):
        try:
            inner = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD_BYTES)
        except zlib.error:
            inner = b""
        return ".nii.gz" if _is_nifti(inner) else ".tar.gz"
    for mark, suffix in ((PNG, ".png"), (NRRD, ".nrrd"), (ZIP, ".zip")):
        if head.startswith(mark):
            return suffix
    return ".nii" if _is_nifti(head) else ".dcm"


def _is_nifti(head: bytes) -> bool:
    return any(head[at : at + len(mark)] == mark for at, mark in NIFTI_MAGIC)
