"""The terminal view: colour follows the sign, and the numbers are there without colour, too."""

import io

import pytest
import torch
from rich.console import Console

from fxlrp.report import render_terminal
from fxlrp.report.terminal import NEGATIVE, POSITIVE
from tests.report.samples import SENTENCE, float_attribution, text_attribution


def shown(attributions: list, *, colour: bool = False, width: int = 100) -> str:
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        highlight=False,
    )
    render_terminal(attributions, console)
    return file.getvalue()


def test_numbers_and_ledger_are_printed_without_colour() -> None:
    attribution = text_attribution([SENTENCE], with_ledger=True)
    text = shown([attribution])
    assert "\x1b" not in text
    for line, value in zip(SENTENCE, attribution.relevance[0].tolist(), strict=True):
        assert f"{line} " in text
        assert f"{abs(value):.2f}" in text
    for word in ("softmax expansion (leak)", "position embedding", "total", "explained", "gap"):
        assert word in text


def test_colour_follows_the_sign() -> None:
    tokens = ["good", "bad", "neither"]
    attribution = text_attribution([tokens])
    attribution.relevance[0] = torch.tensor([2.0, -2.0, 0.0])
    (heat,) = [line for line in shown([attribution], colour=True).splitlines() if "good" in line and "bad" in line]
    red, blue = (";".join(map(str, colour)) for colour in (POSITIVE, NEGATIVE))
    assert f"48;2;{red}mgood" in heat
    assert f"48;2;{blue}mbad" in heat
    assert "mneither" not in heat


def test_markup_in_tokens_is_text() -> None:
    assert "[bold red]" in shown([text_attribution([["[bold red]", "[/]"]], label="[link=x]")])


@pytest.mark.parametrize("width", [20, 40, 200])
def test_long_texts_wrap(width: int) -> None:
    text = shown([text_attribution([["word"] * 300])], width=width)
    assert max(map(len, text.splitlines())) <= width


def test_layers_name_their_strongest_token() -> None:
    attribution = text_attribution([["[CLS]", "good", "film"]])
    attribution.at["block.0"] = torch.tensor([[[0.1], [-0.2], [0.0]]])
    attribution.at["block.1"] = torch.tensor([[[50.0], [0.0], [0.0]]])
    lines = shown([attribution]).splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("at block.*")]
    assert lines[start + 1].split() == ["0", "good", "−0.200"]
    assert lines[start + 2].split() == ["1", "[CLS]", "+50.00"]


def test_images_and_features() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, 1, 2, 3] = -5.0
    assert "4 x 4 pixels, ΣR −5.00, largest −5.00 at row 2, column 3" in shown([float_attribution(image)])
    assert "the 24 largest of 50" in shown([float_attribution(torch.randn(1, 50))])
