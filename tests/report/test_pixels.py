"""The hand-written PNG is a PNG, with the right colours, and shrinking keeps the sum."""

import base64
import io

import numpy as np
import pytest

from fxlrp.report.pixels import LARGEST_SIDE, NEGATIVE, POSITIVE, _shrink, png_data_uri


def decoded(values: np.ndarray) -> np.ndarray:
    image = pytest.importorskip("PIL.Image", reason="Pillow, an independent reader of PNG, is not installed")
    raw = base64.b64decode(png_data_uri(values).removeprefix("data:image/png;base64,"))
    return np.asarray(image.open(io.BytesIO(raw)))


def test_sign_is_colour_and_magnitude_is_opacity() -> None:
    picture = decoded(np.array([[2.0, -1.0, 0.0], [0.5, -2.0, 1.0]]))
    assert picture.shape == (2, 3, 4)
    assert tuple(picture[0, 0]) == (*POSITIVE, 255)
    assert tuple(picture[0, 1]) == (*NEGATIVE, 128)
    assert picture[0, 2, 3] == 0
    assert tuple(picture[1, 1]) == (*NEGATIVE, 255)


def test_large_images_are_shrunk_without_losing_relevance() -> None:
    values = np.random.default_rng(0).normal(size=(600, 511))
    small = _shrink(values)
    assert max(small.shape) <= LARGEST_SIDE
    assert small.sum() == pytest.approx(values.sum())
    assert small[0, 0] == pytest.approx(values[:3, :3].sum())
