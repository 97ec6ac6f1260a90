"""Answers that have not the input's shape (rows of attention, images without channels) are shown as what they are."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

import fxlrp
from fxlrp.evaluate.comparison import Comparison
from fxlrp.report import as_plain, render_terminal
from fxlrp.report.panels import Layout, digest
from fxlrp.results.attribution import Attribution
from tests.report.samples import text_attribution

ROLLOUT = {
    "name": "rollout-for-tests",
    "extends": "conservative",
    "readout": {"kind": "attention", "matrix": "weights", "tokens": "input"},
}
CHANNELS = {**ROLLOUT, "name": "pixels-for-tests", "readout": {"kind": "input", "channels": "reduce"}}


@pytest.fixture(scope="module")
def vision() -> fxlrp.ConvertedModel:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=(32, 48), patch_size=16, num_labels=2, **size)
    return fxlrp.convert(transformers.ViTForImageClassification(config).eval(), "conservative")


@pytest.fixture(scope="module")
def image(vision: fxlrp.ConvertedModel) -> Attribution:
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    return vision.with_ruleset(ROLLOUT).attribute(pixels, ledger=True, at=["vit.layers.*"])


@pytest.fixture(scope="module")
def text() -> fxlrp.ConvertedModel:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **size)
    return fxlrp.convert(transformers.BertForSequenceClassification(config).eval(), ROLLOUT)


class Letters:
    """A tokenizer that knows ids only."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [chr(97 + each) for each in ids]


IDS = {
    "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


def shown(*attributions: Attribution) -> str:
    out = io.StringIO()
    render_terminal(attributions, Console(file=out, width=100, force_terminal=True, color_system="truecolor"))
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


def test_patches_are_an_image_in_the_form_of_the_input(image: Attribution) -> None:
    assert image.relevance.shape == (2, 6)
    assert image.relevance.unique().numel() > 6
    assert image.grid == (2, 3)
    (panel,) = digest(image)[1].panels
    assert panel.layout is Layout.IMAGE
    assert panel.values.tolist() == image.relevance[1].view(2, 3).tolist()
    assert panel.picture.shape == (170, 255)
    assert panel.picture == pytest.approx(image.map((170, 255))[1].numpy())
    assert image.map((32, 48)).shape == (2, 32, 48)


def test_every_view_shows_patches(image: Attribution) -> None:
    printed = shown(image)
    assert "2 x 3 patches, ΣR" in printed
    assert "at vit.layers.*" in printed
    page = image.to_html()
    assert "by 3 patches, red for" in page
    assert page.count('alt="Relevance of') == page.count('alt="The image that is explained') == 2
    assert "Layers × tokens" in page  # seven tokens, though there are six patches
    assert as_plain(image)["samples"][0]["inputs"]["pixel_values"]["layout"] == "image"
    frame = pytest.importorskip("pandas") and image.to_dataframe()
    assert list(frame.position)[:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert list(frame.relevance)[:6] == pytest.approx(image.relevance[0].tolist())


def test_patches_are_drawn_smoothly(image: Attribution) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    grey, _, drawn = image.plot().axes[0].images
    assert grey.get_array().shape == drawn.get_array().shape[:2] == (170, 255)


def test_a_grid_survives_saving(image: Attribution, tmp_path: Path) -> None:
    image.save(tmp_path / "image.safetensors")
    again = Attribution.load(tmp_path / "image.safetensors")
    assert again.grid == (2, 3)
    assert again.map(8).equal(image.map(8))
    assert again.to_html() == image.to_html()


def test_pixels_without_channels_are_an_image(vision: fxlrp.ConvertedModel) -> None:
    pixels = torch.rand(1, 3, 32, 48)
    whole, reduced = vision.attribute(pixels), vision.with_ruleset(CHANNELS).attribute(pixels)
    assert reduced.relevance.shape == (1, 32, 48)
    assert reduced.grid == (32, 48)
    one, other = digest(whole)[0].panels[0], digest(reduced)[0].panels[0]
    assert other.layout is Layout.IMAGE
    assert other.values == pytest.approx(one.values, abs=1e-6)
    assert "32 x 48 pixels" in shown(reduced)


def test_what_fits_no_grid_is_numbered(vision: fxlrp.ConvertedModel) -> None:
    kept = fxlrp.ruleset(ROLLOUT).override(readout={"tokens": "all"})
    result = vision.with_ruleset(kept).attribute(torch.rand(1, 3, 32, 48))
    assert result.relevance.shape == (1, 7)  # the class token among the patches
    assert result.grid is None
    assert digest(result)[0].panels[0].layout is Layout.FEATURES
    assert 'class="bars"' in result.to_html()


def test_rows_over_token_ids_are_tokens_without_padding(text: fxlrp.ConvertedModel, tmp_path: Path) -> None:
    result = text.attribute(IDS, tokenizer=Letters())
    assert result.relevance.shape == (2, 4)
    (panel,) = digest(result)[1].panels
    assert panel.layout is Layout.TOKENS
    assert [piece.raw for piece in panel.pieces] == ["f", "g", "h"]
    result.save(tmp_path / "text.safetensors")
    assert Attribution.load(tmp_path / "text.safetensors").of_ids


def test_ids_without_a_tokenizer_are_tokens(text: fxlrp.ConvertedModel) -> None:
    result = text.attribute(IDS)
    (panel,) = digest(result)[1].panels
    assert panel.layout is Layout.TOKENS
    assert [piece.raw for piece in panel.pieces] == ["0", "1", "2"]
    (panel,) = digest(replace(result, of_ids=False))[1].panels
    assert panel.layout is Layout.FEATURES


def test_rulesets_are_compared_place_by_place(text: fxlrp.ConvertedModel) -> None:
    whole, row = (text.with_ruleset(r).attribute(IDS, tokenizer=Letters()) for r in ("conservative", ROLLOUT))
    later = replace(row, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]))
    both = Comparison({"conservative": whole, "rollout": later})
    rows = re.findall(r"<tr><td>(\d)</td><th scope=\"row\">(\w)</th>(.*?)</tr>", both.to_html())
    assert [(place, token) for place, token, _ in rows[:4]] == [("0", "b"), ("1", "c"), ("2", "d"), ("3", "e")]
    assert [cells.count("<data") for _, _, cells in rows[:4]] == [1, 2, 2, 2]
    values = re.findall(r'<data value="([^"]+)"', rows[2][2])
    assert float(values[0]) == pytest.approx(float(whole.relevance[0, 2]))
    assert float(values[1]) == pytest.approx(float(row.relevance[0, 2]))
    assert re.search(r"\nb +[+−]\S+ +· *\n", shown(*both.attributions.values()))
    frame = pytest.importorskip("pandas") and both.to_dataframe()
    assert list(frame[frame.ruleset == "rollout-for-tests"].position) == [1, 2, 3, 0, 1, 2]


def test_a_comparison_without_shared_columns_is_not_put_into_one_table(
    vision: fxlrp.ConvertedModel, image: Attribution
) -> None:
    numbered = vision.with_ruleset(ROLLOUT | {"readout": {**ROLLOUT["readout"], "tokens": "all"}})
    both = shown(image, numbered.attribute(torch.rand(2, 3, 32, 48)))
    assert "2 x 3 patches" in both
    assert "feature" in both


def test_hand_made_attributions_need_neither() -> None:
    made = text_attribution([["a", "b"]])
    assert (made.image_size, made.grid) == (None, None)
    assert digest(made)[0].panels[0].places == (0, 1)
