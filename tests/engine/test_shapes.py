"""One graph for every batch and length: no retrace where the model allows it, one warning where it does not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.capture import export
from fxlrp.engine.targets import logits_of
from fxlrp.errors import RetraceWarning
from tests.support import zoo

LONG = {"max_position_embeddings": 256}
CASES = {
    case.name: case
    for case in (
        zoo._case("bert", "encoder", zoo.WORDS | LONG),
        zoo._case("deberta-v2", "encoder", zoo.WORDS | LONG, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        zoo._case("llama", "decoder", zoo.GROUPED | LONG),
        zoo._case("mistral", "decoder", zoo.GROUPED | LONG, sliding_window=64),
        zoo._case("gpt2", "decoder", zoo.SPECIAL, n_embd=32, n_layer=2, n_head=4, n_positions=256),
        zoo._case("t5", "seq2seq", zoo.SPECIAL, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
        zoo.ZOO["transformer_encoder"],
    )
}
CASTS = {"llama", "mistral", "t5"}  # a norm in float32 inside a float64 model
SHAPES = [
    (2, 7, "right"),
    (8, 3, "right"),
    (1, 64, None),
    (8, 64, "right"),
    (3, 200, "right"),
    (1, 3, None),
    (1, 200, None),
]


def attribute(lrp: fxlrp.ConvertedModel, given: dict[str, Tensor]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RetraceWarning)
        return lrp.attribute(given)


@pytest.mark.parametrize("name", [n if n == "llama" else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_one_graph_serves_every_batch_and_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    model = case.build()
    lrp = fxlrp.convert(model, "attnlrp")
    for batch, length, padding in SHAPES:
        given = case.inputs(batch, length, padding=padding)
        with torch.no_grad():
            expected = logits_of(model(**given))
        result = attribute(lrp, given)
        assert (logits_of(result.outputs) - expected).abs().max() <= (1e-6 if name in CASTS else 1e-12)
        if (batch, length) in ((1, 3), (8, 64)):
            with monkeypatch.context() as fixed:
                fixed.setattr(export, "dynamic_axes", export.static_axes)
                static = fxlrp.convert(model, "attnlrp").attribute(given)
            error = (result.relevance - static.relevance).abs().max() / static.relevance.abs().max()
            assert error < (1e-5 if name in CASTS else 1e-9), (batch, length)
    assert lrp.captures <= 2  # with a mask and without


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_one_graph_serves_every_batch_of_images(name: str) -> None:
    case = zoo.ZOO[name]
    model = case.build()
    lrp = fxlrp.convert(model, "attnlrp")
    for batch in (1, 8, 3):
        given = case.inputs(batch)
        error = logits_of(attribute(lrp, given).outputs) - logits_of(model(**given))
        assert error.abs().max() < 1e-12
    assert lrp.captures == 1


class Unrolled(nn.Module):
    """A recurrent module: its steps are the graph's, so the length is fixed.  x: [batch, steps, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 2]."""
        return self.head(self.cell(x)[0].mean(1))


def test_a_fixed_length_is_traced_anew_and_said_once() -> None:
    model = Unrolled().eval()
    lrp = fxlrp.convert(model, "attnlrp")
    assert lrp.captures == 0
    attribute(lrp, {"x": torch.randn(2, 4, 3)})
    attribute(lrp, {"x": torch.randn(8, 4, 3)})
    attribute(lrp, {"x": torch.randn(1, 4, 3)})
    assert lrp.captures == 1
    with pytest.warns(RetraceWarning, match="Unrolled has fixed axis 1 of 'x' at 4"):
        lrp.attribute(torch.randn(2, 6, 3))
    attribute(lrp, {"x": torch.randn(2, 5, 3)})
    attribute(lrp.with_ruleset("conservative"), {"x": torch.randn(2, 4, 3)})
    assert lrp.captures == 3


class FixedBatch(nn.Module):
    """Code that makes a Python number of the batch.  x: [batch, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 2]."""
        return torch.stack([self.head(x[row]) for row in range(int(x.shape[0]))])


def test_a_batch_that_the_model_fixes_is_the_given_one() -> None:
    """A sample alone is traced as two: that graph must not stand for one where the model counts its samples."""
    model = FixedBatch().eval()
    lrp = fxlrp.convert(model, "conservative")
    x = torch.randn(3, 3)
    assert torch.equal(lrp.attribute(x[:1]).outputs, model(x[:1]))
    with pytest.warns(RetraceWarning, match="axis 0 of 'x' at 1"):
        assert torch.equal(lrp.attribute(x).outputs, model(x))
    assert lrp.captures == 2
