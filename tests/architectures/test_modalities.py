"""Image and text attributed together: two towers that meet in a product, and images written among the tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fxlrp
from benchmarks.architectures import Architecture
from benchmarks.examples import example

TOWERS, EMBEDDED = "zero-shot image classification", "image-text to text"
MODELS = {"clip": TOWERS, "siglip": TOWERS, "llava": EMBEDDED, "qwen2_vl": EMBEDDED}

SLOW = pytest.param("qwen2_vl", marks=pytest.mark.slow)  # llava writes images among the tokens as well


@cache
def converted(name: str) -> tuple[fxlrp.ConvertedModel, dict[str, Any]]:
    torch.manual_seed(0)
    model = Architecture(MODELS[name], name).build()
    return fxlrp.convert(model, "conservative"), example(model)


def of_sample(relevance: Tensor, index: int) -> Tensor:
    """One of two samples, also where the patches of all images lie one behind the other."""
    return relevance.unflatten(0, (2, -1))[index]


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("name", [SLOW if name == "qwen2_vl" else name for name in MODELS])
def test_image_and_text_share_the_explained_value(name: str) -> None:
    lrp, inputs = converted(name)
    found = lrp.attribute(inputs, ledger=True)
    assert found.ledger is not None
    # Some of these models compute in float32 inside.
    assert (found.ledger.gap.abs() <= 1e-4 * found.explained.abs()).all()
    entries = {entry.source: entry.amount for entry in found.ledger.entries}
    for modality in ("pixel_values", "input_ids"):
        relevance = found.inputs[modality]
        assert relevance.abs().sum() > 0.01 * found.explained.abs().sum()
        # Sums over both samples: the text that an image of two is told by may be the other's.
        assert float(relevance.sum()) == pytest.approx(float(entries[modality].sum()), rel=1e-4, abs=1e-6)


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("name", ["llava", SLOW])
def test_placeholders_of_images_carry_nothing_of_the_text(name: str) -> None:
    lrp, inputs = converted(name)
    found = lrp.attribute(inputs).inputs["input_ids"]
    image = inputs["input_ids"] == lrp.model.config.image_token_id
    assert image.any()
    assert (found[image] == 0).all()
    assert (found[~image] != 0).any()


@pytest.mark.parametrize("name", ["siglip", "llava"])
def test_another_image_beside_it_changes_nothing(name: str) -> None:
    lrp, inputs = converted(name)
    if MODELS[name] == TOWERS:  # the first text for the first image, not the sum over both
        target: Any = lambda outputs: outputs.logits_per_image.diagonal()  # noqa: E731
    else:
        target = None
    images = inputs["pixel_values"].clone()
    images[1] = images[1].flip(-1) + 0.5
    before = lrp.attribute(inputs, target=target).inputs
    after = lrp.attribute({**inputs, "pixel_values": images}, target=target).inputs
    for modality in before:
        torch.testing.assert_close(of_sample(after[modality], 0), of_sample(before[modality], 0), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(of_sample(after["pixel_values"], 1), of_sample(before["pixel_values"], 1), rtol=1e-2)
