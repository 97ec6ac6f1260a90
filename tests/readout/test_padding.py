"""Padding changes no reading of attention, however a model is told of it: by the graph, not by a name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.errors import ReadingError
from tests.readout.test_rollout import equal

BERT_ALL_LAYERS = fxlrp.ruleset("chefer2021-bert").override(readout={"start_layer": 0})
SCALED = fxlrp.ruleset("rollout").override(readout={"rescale": True, "row_token": "minimum"})
EACH_HEAD = fxlrp.ruleset("attn-gradcam-bert").override(readout={"start_layer": 0, "identity": True, "rescale": True})
#: Every reading that takes a mean, a minimum or a maximum over tokens, over one layer and over several.
NORMALISED: dict[str, str | fxlrp.Ruleset] = {
    "attn-gradcam": "attn-gradcam",
    "attn-gradcam-bert": "attn-gradcam-bert",
    "chefer2021-bert": "chefer2021-bert",
    "chefer2021-bert, all layers": BERT_ALL_LAYERS,
    "rollout, scaled": SCALED,
    "attn-gradcam-bert, all layers": EACH_HEAD,
}
LENGTH, PADDED = 4, 7


def soft(scores: Tensor, hide: Tensor) -> Tensor:
    """Weights that are multiplied and divided after the softmax."""
    weights = torch.softmax(scores, -1) * (~hide)
    return weights / weights.sum(-1, keepdim=True)


def added(amount: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda scores, hide: torch.softmax(scores + amount * hide.to(scores), -1)


#: How a model hides keys: scores [batch, heads, queries, keys] and where they hide, to weights.
SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "filled": lambda scores, hide: torch.softmax(scores.masked_fill(hide, float("-inf")), -1),
    "added": added(-1e9),
    "added, a little": added(-1e4),
    "added, less": added(-100.0),
    "chosen": lambda scores, hide: torch.softmax(torch.where(hide, torch.finfo(scores.dtype).min, scores), -1),
    "multiplied": lambda scores, hide: torch.softmax(scores * (~hide) - 1e9 * hide.to(scores), -1),
    "after the softmax": soft,
}


def of_lengths(sizes: Tensor, count: int) -> Tensor:
    """[batch, 1, 1, tokens], True at what is hidden."""
    return (torch.arange(count, device=sizes.device) >= sizes[:, None])[:, None, None]


#: How a model is told of padding: what it is given of bool [batch, tokens] (True at padding), and what it makes of it.
TOLD: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "by True at padding": (lambda pad: pad, lambda given, _: given[:, None, None]),
    "by 1 at tokens": (lambda pad: (~pad).double(), lambda given, _: (given < 0.5)[:, None, None]),
    "by a 3-D mask": (lambda pad: pad[:, None].expand(-1, pad.shape[1], -1), lambda given, _: given[:, None]),
    "by a 4-D bias": (
        lambda pad: torch.zeros(pad.shape, dtype=torch.float64).masked_fill(pad, -1e9)[:, None, None],
        lambda given, _: given < 0,
    ),
    "by lengths": (lambda pad: (~pad).sum(1), of_lengths),
}


class Encoder(nn.Module):
    """Two layers of attention over ids, told of padding by ``told``, hiding keys by ``spelling``; the logits are made
    of the real token of number ``pool``, or of the mean of all.
    """

    def __init__(self, told: str, spelling: str = "filled", pool: int | None = None, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.told, self.spelling, self.pool, self.causal = told, spelling, pool, causal
        self.embed = nn.Embedding(13, 8)
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, told: Tensor) -> Tensor:
        x = self.embed(ids)
        hide = TOLD[self.told][1](told, ids.shape[1])
        real = ~hide[:, 0, -1]
        if self.causal:
            hide = hide | torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        for layer in self.qkv:
            q, k, v = layer(F.layer_norm(x, (8,))).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            x = x + (SPELLINGS[self.spelling](q @ k.mT, hide) @ v).transpose(1, 2).flatten(2)
        count = real.cumsum(-1) * real
        wanted = real if self.pool is None else count == self.pool
        kept = wanted[..., None].to(x)
        return self.head((x * kept).sum(1) / kept.sum(1))  # type: ignore[no-any-return]


def batch(left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids [2, 7] and where they are padding: the second text has four tokens."""
    ids = torch.randint(1, 13, (2, PADDED), generator=torch.Generator().manual_seed(3))
    pad = torch.zeros(2, PADDED, dtype=torch.bool)
    pad[1, : PADDED - LENGTH] = True
    pad = pad if left else pad.flip(1)
    return ids.masked_fill(pad, 0), pad


@functools.cache
def converted(*options: Any) -> fxlrp.ConvertedModel:
    return fxlrp.convert(Encoder(*options).double().eval())


def padding_changes_nothing(
    lrp: fxlrp.ConvertedModel, rules: Any, told: Callable[[Tensor], Tensor], left: bool = False, target: int = 1
) -> None:
    """A batch of texts of two lengths gives each text the numbers that it has alone, and padding none."""
    lrp, (ids, pad) = lrp.with_ruleset(rules), batch(left)
    together = lrp.attribute((ids, told(pad)), target=target).relevance
    assert (together[pad].abs() < 1e-30).all()  # a mask of -100 leaves 4e-44
    for row, own, hidden in zip(together, ids, pad, strict=True):
        alone = lrp.attribute((own[None, ~hidden], told(hidden[None, ~hidden])), target=target).relevance
        assert alone.abs().max() > 0
        equal(row[None, ~hidden], alone, 1e-9)


@pytest.mark.parametrize("told", TOLD)
def test_padding_changes_nothing_however_it_is_told(told: str) -> None:
    for rules in NORMALISED.values():
        for left in (False, True)[: 1 if told == "by lengths" else 2]:
            padding_changes_nothing(converted(told), rules, TOLD[told][0], left)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_padding_changes_nothing_however_it_is_hidden(spelling: str) -> None:
    told = "by True at padding"
    for rules in (*NORMALISED.values(), "raw-attention", "partial-lrp", "chefer2021-generic", "lat"):
        padding_changes_nothing(converted(told, spelling, 1), rules, TOLD[told][0])


def test_of_a_causal_model_what_comes_behind_the_explained_token_changes_nothing() -> None:
    """Padding on both sides, and text behind: all of it is hidden from the row that is read."""
    lrp = converted("by True at padding", "chosen", 3, True)
    ids, pad = batch(left=True)
    for rules in NORMALISED.values():
        found = lrp.with_ruleset(rules).attribute((ids, pad), target=1).relevance
        first = PADDED - LENGTH
        alone = lrp.with_ruleset(rules).attribute((ids[1:, first:], pad[1:, first:]), target=1).relevance
        shorter = (ids[1:, first : first + 3], pad[1:, first : first + 3])
        equal(lrp.with_ruleset(rules).attribute(shorter, target=1).relevance, alone[:, :3], 1e-9)
        equal(found[1:, first:], alone, 1e-9)


class Told(nn.Module):
    """torch's own encoder, told of padding by True at padding; the mean over real tokens is classified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(13, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, pad: Tensor) -> Tensor:
        x = self.encoder(self.embed(ids), src_key_padding_mask=pad)
        kept = (~pad)[..., None].to(x)
        return self.head((x * kept).sum(1) / kept.sum(1))  # type: ignore[no-any-return]


def test_padding_changes_nothing_of_torchs_own_encoder() -> None:
    lrp = fxlrp.convert(Told().double().eval())
    for rules in NORMALISED.values():
        for left in (False, True):
            padding_changes_nothing(lrp, rules, lambda pad: pad, left, 2)


class Chooser(nn.Module):
    """Attention that keeps the two largest scores of a row, by a threshold or by their places."""

    def __init__(self, by: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.by, self.qkv, self.head = by, nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT
        most = scores.topk(2, -1)
        if self.by == "threshold":
            scores = scores.masked_fill(scores < most.values[..., -1:], float("-inf"))
        else:
            bias = torch.full_like(scores, float("-inf")).scatter(-1, most.indices, 0.0)
            scores = scores + bias
        return self.head((torch.softmax(scores, -1) @ v)[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("by", ["threshold", "places"])
def test_a_mask_that_the_scores_decide_is_refused_where_tokens_are_counted(by: str) -> None:
    lrp, x = fxlrp.convert(Chooser(by).eval()), torch.randn(2, 5, 6)
    for rules in NORMALISED.values():
        with pytest.raises(ReadingError, match="hides depends on its scores"):
            lrp.with_ruleset(rules).attribute(x, target=1)
    assert lrp.with_ruleset("raw-attention").attribute(x, target=1).relevance.abs().max() > 0


@pytest.mark.filterwarnings("ignore:All relevance")
def test_weights_that_vanish_by_their_scores_are_no_padding() -> None:
    """Scores 800 apart: exactly 0 beside 1, and yet the smallest entry of the row, as without any mask."""

    class Sharp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (torch.softmax(800.0 * (x @ x.mT), -1) @ x)[:, 0]

    x = torch.eye(3, dtype=torch.float64)[None]
    rules = fxlrp.ruleset("raw-attention").override(readout={"row_token": "minimum"})
    assert (fxlrp.convert(Sharp().eval(), rules).attribute(x, target=0).relevance == 0).all()
