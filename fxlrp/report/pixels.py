"""Relevance as a picture: in goes an array of signed values, out comes a small PNG as a ``data:`` address.

Colour carries the sign and opacity the magnitude, so one picture suits light and dark pages alike. Written by
hand because a PNG is 30 lines and an imaging library is a dependency.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

POSITIVE = (226, 92, 58)
NEGATIVE = (62, 134, 190)
LARGEST_SIDE = 256


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _shrink(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum blocks of pixels until neither side is longer than ``LARGEST_SIDE``: relevance adds up, so its sum
    is kept.
    """
    factor = -(-max(values.shape) // LARGEST_SIDE)
    if factor == 1:
        return values
    padded = np.pad(values, [(0, -size % factor) for size in values.shape])
    height, width = (size // factor for size in padded.shape)
    blocks: npt.NDArray[np.float64] = padded.reshape(height, factor, width, factor).sum(axis=(1, 3))
    return blocks


def png_data_uri(values: npt.NDArray[np.float64]) -> str:
    """Return ``values`` ``[height, width]`` as a PNG: red above zero, blue below, opacity ``|value| /
    max|value|``.
    """
    values = _shrink(values)
    height, width = values.shape
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    picture = np.empty((height, width, 4), dtype=np.uint8)
    picture[..., :3] = np.where((values < 0)[..., None], NEGATIVE, POSITIVE)
    picture[..., 3] = np.round(255 * np.abs(values) / largest)
    rows = b"".join(b"\0" + row.tobytes() for row in picture)  # each row is preceded by its filter, 0 = none
    png = b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(rows, 9)),
            _chunk(b"IEND", b""),
        )
    )
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
