"""Printed numbers: sign, rounding, decimals shared within a table."""

import math

import pytest

from fxlrp.report.numbers import share, signed


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        (0.5, None, "+0.500"),
        (-0.5, None, "−0.500"),
        (0.0123, 1.0, "+0.01"),
        (0.001, 1.0, "0.00"),
        (-0.001, 1.0, "0.00"),
        (0.4, 143.0, "+0.40"),
        (-2.5e-12, None, "−2.50e-12"),
        (1234567.0, None, "+1.23e+06"),
        (0.0, None, "0"),
        (math.nan, None, "nan"),
        (math.inf, 1.0, "inf"),
    ],
)
def test_signed(value: float, scale: float | None, text: str) -> None:
    assert signed(value, scale) == text


@pytest.mark.parametrize(
    ("value", "whole", "text"),
    [
        (1, 4, "25 %"),
        (-1, 40, "−2.5 %"),
        (1, -4, "−25 %"),
        (1, 0, "–"),
        (-1e-9, 1, "0 %"),
        (math.nan, 1, "–"),
    ],
)
def test_share(value: float, whole: float, text: str) -> None:
    assert share(value, whole) == text.replace(" ", "\u202f")
