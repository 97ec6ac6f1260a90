"""Every text of the report is readable on its ground: WCAG contrast of 4.5 or more, in light and dark."""

import re
from pathlib import Path

import pytest

import fxlrp.report

CSS = (Path(fxlrp.report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")


def palette(scheme: str) -> dict[str, tuple[float, ...]]:
    """The custom properties of one colour scheme, as rgb."""
    light, dark = (block for block in re.findall(r"\.fxlrp \{([^}]*--ink[^}]*)\}", CSS))
    colours = {}
    for name, value in re.findall(r"--(\w+): ([^;]+);", light if scheme == "light" else dark):
        if value.startswith("#"):
            digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
            colours[name] = tuple(int(digits[n : n + 2], 16) for n in (0, 2, 4))
        else:
            colours[name] = tuple(int(part) for part in value.split())
    return colours


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 3294.6 if c <= 10.3 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_formula() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("ink", "paper"),
        ("soft", "paper"),
        ("link", "paper"),
        ("alarm", "paper"),
        ("ink", "pos"),
        ("ink", "neg"),
    ],
)
def test_text_is_readable(scheme: str, text: str, ground: str) -> None:
    colours = palette(scheme)
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):  # a token's colour lies between the page's and the full one
        mixed = tuple(
            page + strength * (full - page) for page, full in zip(colours["paper"], colours[ground], strict=True)
        )
        assert contrast(colours[text], mixed) >= 4.5
