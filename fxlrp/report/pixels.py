"""Relevance as a picture: in goes an array of signed values, out comes a small PNG as a ``data:`` address.

Colour carries the sign and opacity the magnitude, so one picture suits light and dark pages alike.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt

POSITIVE = (226, 92, 58)
NEGATIVE = (62, 134, 190)
LARGEST_SIDE = 256
STRIPES = 7
"""Of so many pixels of a diagonal two are white where relevance is negative."""
PALE = 0.45
"""What black becomes below relevance."""


def _block(values: npt.NDArray[np.float64]) -> int:
    """How many pixels of a side become one."""
    return -(-max(values.shape) // LARGEST_SIDE)


def _shrink(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum blocks of pixels until neither side is longer than ``LARGEST_SIDE``: relevance adds up, so its sum
    is kept.
    """
    factor = _block(values)
    if factor == 1:
        return values
    padded = np.pad(values, [(0, -size % factor) for size in values.shape])
    height, width = (size // factor for size in padded.shape)
    blocks: npt.NDArray[np.float64] = padded.reshape(height, factor, width, factor).sum(axis=(1, 3))
    return blocks


def _enlarge(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Repeat pixels while both sides stay within ``LARGEST_SIDE``."""
    factor = max(1, LARGEST_SIDE // max(values.shape))
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def png_data_uri(values: npt.NDArray[np.float64]) -> str:
    """Return ``values`` ``[height, width]`` as a PNG: red above zero, blue below, opacity ``|value| /
    max|value|``.
    """
    values = _shrink(values)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    picture = np.empty((*values.shape, 4), dtype=np.uint8)
    picture[..., :3] = np.where((values < 0)[..., None], NEGATIVE, POSITIVE)
    picture[..., 3] = np.round(255 * np.abs(values) / largest)
    return _data_uri(picture)


def overlay_data_uri(values: npt.NDArray[np.float64], grey: npt.NDArray[np.float64]) -> str:
    """Return ``values`` ``[height, width]`` over a picture ``grey`` (0 black .. 1 white) of the same shape.

    Red above zero, blue with stripes below (so that it is told from red without colours as well), opacity
    ``|value| / max|value|``; the picture is drawn pale, so that colours stand out.
    """
    grey = _enlarge(_shrink(grey) / _block(grey) ** 2)
    values = _enlarge(_shrink(values))
    rows, columns = np.indices(values.shape)
    striped = (values < 0) & ((rows + columns) % STRIPES >= STRIPES - 2)
    colour = np.where((values < 0)[..., None], NEGATIVE, POSITIVE).astype(np.float64)
    colour[striped] = 255.0
    opacity = 0.9 * (np.abs(values) / (float(np.abs(values).max(initial=0.0)) or 1.0))[..., None]
    pale = 255 * (PALE + (1 - PALE) * grey)[..., None]
    picture = np.full((*values.shape, 4), 255, dtype=np.uint8)
    picture[..., :3] = np.round(pale + opacity * (colour - pale))
    return _data_uri(picture)


def _data_uri(picture: npt.NDArray[np.uint8]) -> str:
    """A PNG of pixels ``[height, width, 4]``: red, green, blue, opacity."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
