"""Relevance that attention moves between streams of tokens: encoder and decoder, two modalities, towers apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxlrp
from fxlrp.readout import attentions, streams
from fxlrp.readout.passes import Task
from fxlrp.testing.weights import realistic
from tests.readout.test_rollout import equal, read
from tests.support.zoo import ZOO


def bar(weights: Tensor, gradient: Tensor) -> Tensor:
    return (weights * gradient).clamp(min=0).mean(1).detach()


def bars(score: Tensor, weights: tuple[Tensor, ...]) -> list[Tensor]:
    return [bar(a, g) for a, g in zip(weights, torch.autograd.grad(score, weights, retain_graph=True), strict=True)]


def eye(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype).expand(len(matrix), -1, -1)


def spread(relevance: Tensor) -> Tensor:
    rest = relevance - eye(relevance)
    return torch.nan_to_num(rest / rest.sum(-1, keepdim=True)) + eye(relevance)


@pytest.mark.parametrize(("name", "row"), [("bert", 0), ("vit", 0), ("llama", 3), ("gpt2", 3)])
def test_self_attention_alone_is_a_product(name: str, row: int) -> None:
    inputs = ZOO[name].inputs(padding=None)
    outputs = ZOO[name].build(attention="eager")(**inputs, output_attentions=True)
    scores = outputs.logits[:, 1] if outputs.logits.ndim == 2 else outputs.logits[:, row, 1]
    product = None
    for matrix in bars(scores.sum(), outputs.attentions):
        product = eye(matrix) if product is None else product
        product = product + matrix @ product
    assert product is not None
    target = 1 if outputs.logits.ndim == 2 else (row, 1)
    found = read(name, "chefer2021-generic", inputs, target=target).relevance
    expected = product[:, row, 1:] if name == "vit" else product[:, row]
    equal(found, expected, 1e-5)
    if name == "vit":
        everything = fxlrp.ruleset("chefer2021-generic").override(readout={"tokens": "all"})
        equal(read(name, everything, inputs).relevance, product[:, row], 1e-5)


def check_encoder_decoder(name: str) -> None:
    inputs = ZOO[name].inputs(padding=None)
    outputs = ZOO[name].build(attention="eager")(**inputs, output_attentions=True)
    score = outputs.logits[:, 3, 1].sum()
    encoder, decoder, cross = (
        bars(score, weights)
        for weights in (outputs.encoder_attentions, outputs.decoder_attentions, outputs.cross_attentions)
    )
    of_encoder, of_decoder = eye(encoder[0]), eye(decoder[0])
    between = torch.zeros_like(cross[0])
    for matrix in encoder:
        of_encoder = of_encoder + matrix @ of_encoder
    for own, other in zip(decoder, cross, strict=True):
        of_decoder, between = of_decoder + own @ of_decoder, between + own @ between
        between = between + spread(of_decoder).mT @ other @ spread(of_encoder)
    found = read(name, "chefer2021-generic", inputs, target=(3, 1))
    equal(found.inputs["decoder_input_ids"], of_decoder[:, 3], 1e-5)
    equal(found.inputs["input_ids"], between[:, 3], 1e-5)
    assert (found.inputs["decoder_input_ids"][:, 4:] == 0).all()


@pytest.mark.parametrize("name", [pytest.param("t5", marks=pytest.mark.slow), "bart"])
def test_encoder_and_decoder(name: str) -> None:
    check_encoder_decoder(name)


class Pair(nn.Module):
    """Text and image of as many tokens each, which attend to themselves, then to each other; read at the first word."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(3)
        names = ("text", "image", "text_to_image", "image_to_text")
        self.layers = nn.ModuleList(nn.ModuleDict({n: nn.Linear(8, 24) for n in names}) for _ in range(layers))
        self.head = nn.Linear(8, 3)

    def attend(self, layer: nn.Linear, x: Tensor, other: Tensor, maps: list[Tensor]) -> Tensor:
        q = layer(x).unflatten(-1, (3, 2, 4))[:, :, 0].transpose(1, 2)
        k, v = layer(other).unflatten(-1, (3, 2, 4))[:, :, 1:].permute(2, 0, 3, 1, 4)
        maps.append(torch.softmax(q @ k.mT / 2, -1))
        return x + (maps[-1] @ v).transpose(1, 2).flatten(2)

    def run(self, text: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []
        for layer in self.layers:
            text = self.attend(layer["text"], text, text, maps)
            image = self.attend(layer["image"], image, image, maps)
            text, image = (
                self.attend(layer["text_to_image"], text, image, maps),
                self.attend(layer["image_to_text"], image, text, maps),
            )
        return self.head(text[:, 0]), maps

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.run(text, image)[0]


def check_two_modalities() -> None:
    """Both directions of cross-attention take the matrices from before either."""
    rng = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(2, 5, 8, dtype=torch.float64, generator=rng) for name in ("text", "image")}
    model = Pair().double().eval()
    logits, weights = model.run(**inputs)
    # What the last layer does to the image is never read: its attention has no gradient.
    grads = torch.autograd.grad(logits[:, 1].sum(), weights, allow_unused=True)
    steps = [bar(a, torch.zeros_like(a) if g is None else g) for a, g in zip(weights, grads, strict=True)]
    tt, ii = eye(steps[0]), eye(steps[0])
    ti, it = torch.zeros_like(tt), torch.zeros_like(tt)
    for layer in range(2):
        a_tt, a_ii, a_ti, a_it = steps[4 * layer : 4 * layer + 4]
        tt, ti = tt + a_tt @ tt, ti + a_tt @ ti
        ii, it = ii + a_ii @ ii, it + a_ii @ it
        tt, ti, ii, it = (
            tt + a_ti @ it,
            ti + spread(tt).mT @ a_ti @ spread(ii),
            ii + a_it @ ti,
            it + spread(ii).mT @ a_it @ spread(tt),
        )
    found = fxlrp.convert(model, "chefer2021-generic").attribute(inputs, target=1)
    equal(found.inputs["text"], tt[:, 0])
    equal(found.inputs["image"], ti[:, 0])


def test_two_modalities_that_attend_to_each_other() -> None:
    check_two_modalities()


def test_a_model_of_two_modalities_by_its_own_graph() -> None:
    config = transformers.LxmertConfig(
        vocab_size=50,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        l_layers=1,
        x_layers=2,
        r_layers=1,
        visual_feat_dim=8,
        num_qa_labels=4,
    )
    torch.manual_seed(0)
    model = realistic(transformers.LxmertForQuestionAnswering(config).double().eval(), 0)
    inputs = {
        "input_ids": torch.randint(3, 50, (2, 7)),
        "visual_feats": torch.randn(2, 5, 8, dtype=torch.float64),
        "visual_pos": torch.rand(2, 5, 4, dtype=torch.float64),
    }
    found = fxlrp.convert(model, "chefer2021-generic").attribute(inputs, target=1)
    assert found.relevance.shape == (2, 7)
    assert found.inputs["visual_feats"].shape == (2, 5)
    assert (found.inputs["visual_feats"] > 0).any()


class Queries(nn.Module):
    """Learnt queries that attend to one another before they attend to x [batch, tokens, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.queries = nn.Parameter(torch.randn(3, 8))
        self.self, self.cross = (nn.Linear(8, 24) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.queries.expand(len(x), -1, -1)
        for layer, other in ((self.self, None), (self.cross, x)):
            source = tokens if other is None else other
            q, k, v = layer(tokens)[..., :8], layer(source)[..., 8:16], layer(source)[..., 16:]
            tokens = tokens + torch.softmax(q @ k.mT, -1) @ v
        return tokens[:, 0]


def test_attention_among_parameters_has_its_gradient_too() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    lrp = fxlrp.convert(Queries().double().eval(), "chefer2021-generic")
    first, second = attentions.attention_maps(
        Task(lrp.conversion, lrp.conversion.prepare({"x": x}), 1, None), relevance=False, gradient=True
    ).maps
    assert first.gradient is not None
    assert (first.gradient[:, :, 0] != 0).all()  # read at the first query
    assert second.gradient is not None
    assert lrp.attribute(x, target=1).relevance.shape == (2, 5)


def test_the_ledger_closes_behind_values_that_come_as_several() -> None:
    found = read("attention", "chefer2021-vit", ledger=True)
    assert (found.ledger.gap.abs() < 1e-9).all()


def test_pooled_rows_are_averaged() -> None:
    inputs = ZOO["transformer_encoder"].inputs()
    rules = fxlrp.ruleset("chefer2021-generic")
    pooled = read("transformer_encoder", rules, inputs).relevance
    rows = [
        read("transformer_encoder", rules.override(readout={"row": i}), inputs).relevance
        for i in range(inputs["x"].shape[1])
    ]
    equal(pooled, torch.stack(rows).mean(0))


def test_towers_have_rows_of_their_own() -> None:
    """CLIP: two streams that meet in a product, without cross-attention."""
    from tests.architectures.test_modalities import converted as tower

    lrp, inputs = tower("clip")
    rules = fxlrp.ruleset("chefer2021-generic").override(readout={"start_layer": -1})
    for each in (rules, rules.override(readout={"matrix": "gradient_relevance"})):
        found = lrp.with_ruleset(each).attribute(inputs, target=lambda o: o.logits_per_image.diagonal()).inputs
        assert found["pixel_values"].shape == (2, 16)
        assert found["input_ids"].shape == inputs["input_ids"].shape
        assert all((relevance.abs().sum(1) > 0).all() for relevance in found.values())


def _forgets_what_was_before(self: Any, stream: Any, behind: Any) -> Any:
    return self.last(stream)


STREAM_MUTANTS: dict[str, tuple[Any, str, Any, Any]] = {
    "cross-attention one after the other": (
        streams.StreamRelevance,
        "before",
        _forgets_what_was_before,
        check_two_modalities,
    ),
    "no normalisation": (streams, "normalised", lambda r: r, partial(check_encoder_decoder, "t5")),
    "all tokens are one stream": (
        streams.Stream,
        "holds",
        lambda self, roots, size, attributed: True,
        check_two_modalities,
    ),
    "the first row always": (
        attentions,
        "rows_read",
        lambda found, row: torch.eye(found.weights.shape[-2], dtype=torch.float64)[:1],
        partial(test_self_attention_alone_is_a_product, "gpt2", 3),
    ),
}


@pytest.mark.parametrize("name", STREAM_MUTANTS)
def test_mutants_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, broken, check = STREAM_MUTANTS[name]
    monkeypatch.setattr(owner, attribute, broken)
    if attribute == "rows_read":
        monkeypatch.setattr(streams, attribute, broken)
    with pytest.raises(AssertionError):
        check()
