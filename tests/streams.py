"""Compressed forms of an image that pydicom has no encoder for."""

import struct

import numpy as np

CATEGORIES = 17
"""Differences of lossless JPEG have 0 to 16 bits."""


def segment(marker: int, body: bytes) -> bytes:
    """A marker segment of JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def lossless_jpeg(image: np.ndarray, precision: int = 16) -> bytes:
    """A JPEG of process 14, selection value 1, of unsigned (rows, columns); codes of five bits name the size of a difference."""
    rows, columns = image.shape
    pixels = image.astype(np.int64)
    before = np.empty_like(pixels)
    before[:, 1:], before[1:, 0], before[0, 0] = pixels[:, :-1], pixels[:-1, 0], 1 << precision - 1
    bits = []
    for difference in ((pixels - before + 32768) % 65536 - 32768).ravel().tolist():
        size = abs(difference).bit_length()
        low = difference if difference > 0 else difference + (1 << size) - 1
        bits.append(f"{size:05b}" + (f"{low:0{size}b}" if 0 < size < 16 else ""))
    text = "".join(bits)
    data = int(text + "1" * (-len(text) % 8), 2).to_bytes(-(-len(text) // 8)).replace(b"\xff", b"\xff\0")
    table = bytes([0, 0, 0, 0, 0, CATEGORIES, *[0] * 11, *range(CATEGORIES)])
    frame = struct.pack(">BHHBBBB", precision, rows, columns, 1, 1, 0x11, 0)
    scan = bytes([1, 1, 0, 1, 0, 0])
    parts = (segment(0xC3, frame), segment(0xC4, table), segment(0xDA, scan), data)
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"
