"""The shipped models do what their cards say, and the canvases' truth is where the digit is."""

from __future__ import annotations

import copy
import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxlrp
from fxlrp import shipped
from fxlrp.shipped import canvases
from fxlrp.shipped.canvases import NOISE, THRESHOLD

FOLDER = Path(shipped.__file__).parent
DEV = Path(__file__).resolve().parents[3] / "shared/data/sst2/dev.tsv"
needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::fxlrp.errors.RetraceWarning")


@pytest.mark.parametrize("name", ["digits_vit", "sst2_bilstm"])
def test_each_is_small_and_has_a_card(name: str) -> None:
    files = {file.name: file.stat().st_size for file in (FOLDER / name).iterdir()}
    assert {"config.json", "model.safetensors", "MODEL_CARD.md"} <= set(files)
    assert sum(files.values()) <= 4 * 2**20
    assert "$" not in (FOLDER / name / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_missing_model_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "__init__.py"))
    for loader in (shipped.digits_vit, shipped.sentiment_bilstm):
        with pytest.raises(fxlrp.FxlrpError, match=r"missing from this installation.*examples/train_"):
            loader()


# --- canvases ---------------------------------------------------------------------------------------------------


@needs_sklearn
def test_canvases_are_those_of_their_seed_and_split() -> None:
    first, same = shipped.digits(40, 3), shipped.digits(40, 3)
    assert all(torch.equal(getattr(first, name), getattr(same, name)) for name in ("images", "masks", "labels"))
    assert first.images.shape == (40, 1, 32, 32)
    assert first.images.dtype == torch.float32
    assert first.masks.shape == (40, 32, 32)
    assert first.masks.dtype == torch.bool
    assert set(first.labels.tolist()) <= set(range(10))
    for other in (shipped.digits(40, 4), shipped.digits(40, 3, "train")):
        assert not torch.equal(first.images, other.images)


@needs_sklearn
@pytest.mark.parametrize("given", [(0, 0, "test"), (5, 0, "dev")])
def test_what_cannot_be_drawn_is_refused(given: tuple[int, int, str]) -> None:
    with pytest.raises(fxlrp.FxlrpError, match=r"at least 1|no split 'dev'"):
        shipped.digits(*given)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(canvases, "scanned_digits", canvases.scanned_digits.__wrapped__)
    with pytest.raises(fxlrp.MissingExtraError, match=r"fxlrp\[evaluate\]"):
        shipped.digits(1, 0)


def ring_of(masks: Tensor) -> Tensor:
    """The pixels next to a mask."""
    near = torch.nn.functional.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
    return near & ~masks


def truth_holds(images: Tensor, masks: Tensor) -> bool:
    """All of the mask is bright, and what surrounds it is not (clutter keeps a distance), up to the noise."""
    canvas, slack = images[:, 0], 5 * NOISE
    inside, around = canvas[masks], canvas[ring_of(masks)]
    return bool(inside.min() > THRESHOLD - slack and around.max() < THRESHOLD + slack)


@needs_sklearn
def test_the_mask_is_where_the_digit_is_and_anywhere() -> None:
    drawn = shipped.digits(500, 0)
    assert truth_holds(drawn.images, drawn.masks)
    assert not truth_holds(drawn.images, drawn.masks.roll(1, dims=2))
    assert not truth_holds(drawn.images, drawn.masks.roll(1, dims=0))
    share = drawn.masks.float().mean((1, 2))
    assert share.min() > 0.03
    assert share.max() < 0.25
    bright = (drawn.images[:, 0] > THRESHOLD) & ~drawn.masks
    assert bright.float().mean() > share.mean()  # more clutter than digit: brightness does not tell
    often = drawn.masks.float().mean(0)
    assert often.max() < 0.5  # no pixel is the digit's on every second canvas


# --- models -----------------------------------------------------------------------------------------------------


@needs_sklearn
def test_the_transformer_names_digits_it_has_not_seen() -> None:
    model, drawn = shipped.digits_vit(), shipped.digits(200, 11)
    assert not model.training
    assert model.dtype == torch.float32
    with torch.no_grad():
        named = model(drawn.images).logits.argmax(-1)
    assert (named == drawn.labels).float().mean() > 0.9


@needs_sklearn
@pytest.mark.parametrize("name", ["ali2022", "conservative"])
def test_the_transformer_s_relevance_is_accounted_for(name: str) -> None:
    drawn = shipped.digits(4, 0)
    result = fxlrp.convert(shipped.digits_vit().double(), name).attribute(
        {"pixel_values": drawn.images.double()}, target=drawn.labels, ledger=True
    )
    assert result.label == [str(label) for label in drawn.labels.tolist()]
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-10 * result.explained.abs().max()


@pytest.fixture(scope="module")
def sentiment() -> tuple[Any, Any]:
    return shipped.sentiment_bilstm()


@pytest.mark.training
def test_the_lstm_tells_reviews_apart(sentiment: tuple[Any, Any]) -> None:
    if not DEV.exists():
        pytest.skip("the SST-2 dev set is not in ../shared/data/sst2")
    model, tokenizer = sentiment
    with DEV.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    encoded = tokenizer([row["sentence"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model(**encoded).argmax(-1)
    assert (found == torch.tensor([int(row["label"]) for row in rows])).float().mean() > 0.8


def test_both_sentiment_models_share_their_labels(sentiment: tuple[Any, Any]) -> None:
    model, _ = sentiment
    bert, _ = shipped.sentiment_bert()
    assert model.config.id2label == bert.config.id2label == {0: "negative", 1: "positive"}


def test_ordinary_writing_has_the_words_of_the_treebank(sentiment: tuple[Any, Any]) -> None:
    _, tokenizer = sentiment
    assert tokenizer.tokenize("It isn't (too) good.") == ["it", "is", "n't", "(", "too", ")", "good", "."]
    assert tokenizer("It isn't good.").input_ids == tokenizer("it is n't good .").input_ids
    assert tokenizer.convert_ids_to_tokens(tokenizer("zxqv film").input_ids) == ["[UNK]", "film"]


@pytest.fixture(scope="module")
def lrp(sentiment: tuple[Any, Any]) -> fxlrp.ConvertedModel:
    model = copy.deepcopy(sentiment[0]).double()
    return fxlrp.convert(model, fxlrp.ruleset("arras2017").override(bias_factor=1.0))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_review_is_explained_as_if_it_stood_alone(
    lrp: fxlrp.ConvertedModel, sentiment: tuple[Any, Any], side: str
) -> None:
    texts = ["a gripping film", "dull and far too long"]
    batch = sentiment[1](texts, return_tensors="pt", padding=True, padding_side=side)
    ids, words = batch["input_ids"], batch["attention_mask"] == 1
    result = lrp.attribute(batch, target=1, ledger=True)
    assert result.label == ["positive", "positive"]
    assert result.relevance[~words].abs().max() == 0
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12
    kinds = result.ledger.by_kind()
    assert (kinds["input"] + kinds["initial state"] - result.explained).abs().max() < 1e-12
    assert (result.relevance.sum(1) - kinds["input"]).abs().max() < 1e-12
    for sample, row in enumerate(words):
        alone = lrp.attribute({"input_ids": ids[sample, row][None]}, target=1)
        assert (alone.relevance[0] - result.relevance[sample, row]).abs().max() < 1e-12
    # The mutant: without its mask padding counts as words.
    unmasked = lrp.attribute({"input_ids": ids}, target=1)
    assert (unmasked.relevance - result.relevance)[0].abs().max() > 1e-3
