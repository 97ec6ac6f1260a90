"""Which rows of attention are read: the explained position's, those that are pooled; and what has no rows of tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.errors import ReadingError
from fxlrp.readout.attentions import attention_maps
from fxlrp.readout.passes import Task
from tests.readout.test_rollout import ALL, equal, read
from tests.support.zoo import ZOO, converted

READERS = tuple(dict.fromkeys((*ALL, "lat")))


# --- by hand --------------------------------------------------------------------------------------------------------


def by_hand(weights: list[Tensor], ruleset: str) -> Tensor:
    """All rows [batch, tokens, tokens] of three readings, from attention weights [batch, heads, tokens, tokens]."""
    eye = torch.eye(weights[0].shape[-1], dtype=torch.float64)
    if ruleset == "raw-attention":
        return weights[-1].mean(1)
    if ruleset == "rollout":
        product = eye
        for each in weights:
            product = (each.mean(1) + eye) / 2 @ product
        return product
    product = eye.expand_as(weights[0])
    for each in weights:  # lat: head by head
        product = each @ product
    return product.sum(1)


def eager(name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        found = ZOO[name].build(attention="eager")(**inputs, output_attentions=True).attentions
    return [each.double() for each in found]


@pytest.mark.parametrize("ruleset", ["raw-attention", "rollout", "lat"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_causal_model_is_read_at_the_explained_position(name: str, ruleset: str) -> None:
    inputs = ZOO[name].inputs(padding=None)
    rows = by_hand(eager(name, inputs), ruleset)
    for target, places in (((3, 1), [3, 3]), (1, [6, 6]), (None, [6, 6]), ([(2, 5), (4, 5)], [2, 4])):
        found = read(name, ruleset, inputs, target=target).relevance
        equal(found, torch.stack([rows[i, place] for i, place in enumerate(places)]), 1e-5)


@pytest.mark.parametrize("ruleset", READERS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_on_the_left_changes_nothing(name: str, ruleset: str) -> None:
    ids = ZOO[name].inputs(padding=None, batch=1, length=5)["input_ids"]
    alone = read(name, ruleset, {"input_ids": ids}, target=4).relevance[0]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    padded = torch.cat([torch.ones(1, 2, dtype=torch.long), ids], 1)
    both = {
        "input_ids": torch.cat([padded, padded.flip(1)]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    found = read(name, ruleset, both, target=4).relevance[0]
    assert alone.abs().max() > 0 or "gradcam" in ruleset  # which clamps whole rows
    equal(found[2:], alone, 1e-9)
    assert (found[:2] == 0).all()


class Reader(nn.Module):
    """Attention over ids, written out; the logits are made of the first row, of the last, or of the mean of all real
    ones. ``attention_mask`` hides keys.
    """

    main_input_name = "input_ids"

    def __init__(self, pool: str = "mean", layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.pool = pool
        self.embed = nn.Embedding(13, 8)
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(layers))
        self.head = nn.Linear(8, 3)

    def run(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        x, maps, states = self.embed(input_ids), [], []
        for layer in self.qkv:
            q, k, v = layer(F.layer_norm(x, (8,))).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            scores = (q @ k.mT).masked_fill(attention_mask[:, None, None] == 0, float("-inf"))
            maps.append(torch.softmax(scores, -1))
            x = x + (maps[-1] @ v).transpose(1, 2).flatten(2)
            states.append(x)
        mask = attention_mask[..., None].to(x)
        pooled = {"mean": (x * mask).sum(1) / mask.sum(1), "first": x[:, 0], "last": x[:, -1]}[self.pool]
        return self.head(pooled), maps, states

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits, _, states = self.run(input_ids, attention_mask)
        return {"logits": logits, "first": states[0], "embedded": self.embed(input_ids)}


@cache
def reader(pool: str) -> fxlrp.ConvertedModel:
    """One capture for all readings."""
    return fxlrp.convert(Reader(pool).double().eval(), "rollout")


def given(mask: list[list[int]] | None = None) -> dict[str, Tensor]:
    ids = torch.randint(0, 13, (2, 6), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.tensor(mask or [[1] * 6, [1, 1, 1, 1, 0, 0]])}


@pytest.mark.parametrize("ruleset", ["raw-attention", "rollout", "lat"])
@pytest.mark.parametrize("mask", [[[1] * 6, [1, 1, 1, 1, 0, 0]], [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]])
def test_of_a_pooled_mean_the_mean_of_the_pooled_rows(ruleset: str, mask: list[list[int]]) -> None:
    lrp, inputs = reader("mean"), given(mask)
    with torch.no_grad():
        rows = by_hand(lrp.model.run(**inputs)[1], ruleset)
    expected = torch.stack([row[kept.bool()].mean(0) for row, kept in zip(rows, inputs["attention_mask"], strict=True)])
    found = lrp.with_ruleset(ruleset).attribute(inputs, target=1)
    equal(found.relevance, expected)
    assert (found.relevance[inputs["attention_mask"] == 0] == 0).all()


@pytest.mark.parametrize("ruleset", READERS)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_batches_and_padding_change_nothing_of_any_reading(pool: str, ruleset: str) -> None:
    lrp = reader(pool).with_ruleset(ruleset)
    inputs = given([[1] * 6, [0, 0, 1, 1, 1, 1]])
    together = lrp.attribute(inputs, target=2).relevance
    alone = lrp.attribute({name: value[1:, 2:] for name, value in inputs.items()}, target=2).relevance
    equal(together[1:, 2:], alone, 1e-9)
    assert (together[1, :2] == 0).all()


def test_each_of_several_rows_loses_its_own_entry_before_the_mean() -> None:
    model, inputs = Reader().double().eval(), given([[1] * 6, [1] * 6])
    with torch.no_grad():
        weights = model.run(**inputs)[1][-1].mean(1)
    for entry, own in (("zero", torch.zeros(2, 6, 1)), ("minimum", weights.amin(-1, keepdim=True))):
        rules = fxlrp.ruleset("raw-attention").override(readout={"row_token": entry})
        diagonal = torch.eye(6, dtype=torch.bool)
        expected = weights.where(~diagonal, own.to(weights)).mean(1)
        equal(fxlrp.convert(model, rules).attribute(inputs, target=1).relevance, expected)


def test_a_row_by_number_is_read_as_before() -> None:
    model, inputs = Reader("last").double().eval(), given()
    with torch.no_grad():
        weights = model.run(**inputs)[1][-1].mean(1)
    rules = fxlrp.ruleset("raw-attention").override(readout={"row": 0})
    equal(fxlrp.convert(model, rules).attribute(inputs, target=1).relevance, weights[:, 0])


# --- which attention ------------------------------------------------------------------------------------------------


def test_the_last_attention_is_the_last_that_the_explained_output_depends_on() -> None:
    model, inputs = Reader().double().eval(), given([[1] * 6, [1] * 6])
    with torch.no_grad():
        weights = model.run(**inputs)[1]

    def second(outputs: Any) -> Tensor:
        return outputs["first"][:, 2].square().sum(-1)

    found = fxlrp.convert(model, "raw-attention").attribute(inputs, target=second)
    equal(found.relevance, weights[0].mean(1)[:, 2])

    def before_all(outputs: Any) -> Tensor:
        return outputs["embedded"][:, 2].square().sum(-1)

    with pytest.raises(ReadingError, match="depends on no attention"):
        fxlrp.convert(model, "raw-attention").attribute(inputs, target=before_all)


def test_a_dead_output_says_that_no_row_is_read() -> None:
    class Dead(Reader):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return F.relu(super().forward(input_ids, attention_mask)["logits"] - 100) + 1

    with pytest.warns(UserWarning, match=r"sample 0, 1 has no gradient .* no row"):
        found = fxlrp.convert(Dead().double().eval(), "rollout").attribute(given(), target=1)
    assert (found.relevance == 0).all()


@pytest.mark.parametrize("ruleset", ["rollout", "raw-attention"])
def test_weights_alone_need_no_backward_pass_through_attention(ruleset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, met = torch.autograd.grad, set[str]()

    def watched(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        stack = [each.grad_fn for each in outputs]
        while stack:
            if (node := stack.pop()) is not None:
                met.add(node.name())
                stack.extend(behind for behind, _ in node.next_functions)
        return original(outputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    read("bert", ruleset)
    assert met
    assert not any("Softmax" in name for name in met)
    read("bert", "chefer2021-bert")
    assert any("Softmax" in name for name in met)


def test_the_rows_are_those_of_the_gradient_through_the_whole_model() -> None:
    """The short way back gives the last attention the same gradient as the backward pass of the model as it is."""
    lrp = converted("bert").conversion
    task = Task(lrp, lrp.prepare(ZOO["bert"].inputs()), target=1)
    short, long = (attention_maps(task, relevance=False, gradient=whole, reached=True) for whole in (False, True))
    assert short.maps[0].gradient is None
    assert short.last is not None
    assert short.last.gradient is not None
    assert long.last is not None
    assert long.last.gradient is not None
    torch.testing.assert_close(short.last.gradient, long.last.gradient)
    assert long.maps[-1].gradient is not None
    assert torch.equal(long.maps[-1].gradient, long.last.gradient)


def test_weights_that_a_ruleset_holds_constant_have_no_relevance() -> None:
    """No message goes back to them, nor to anything else that is read: zeros, as of any value that is cut off."""
    lrp = converted("bert").with_ruleset("ali2022").conversion
    found = attention_maps(Task(lrp, lrp.prepare(ZOO["bert"].inputs()), target=1), relevance=True, gradient=True)
    for each in found.maps:
        assert each.relevance is not None
        assert each.gradient is not None
        assert not each.relevance.any()
        assert each.gradient.any()


def test_no_pass_goes_further_back_than_to_the_attentions_that_are_read() -> None:
    """Of the last of several layers the rules before it never run; of all layers those of the first do."""
    x = ZOO["bert"].inputs()
    counts = []
    for start in (-1, 0):
        lrp = converted("bert").with_ruleset(fxlrp.ruleset("chefer2021-bert").override(readout={"start_layer": start}))
        lrp.attribute(x, target=1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            lrp.attribute(x, target=1, outputs=False)
        counts.append(sum(each.count for each in seen.key_averages() if each.key == "aten::mm"))
    assert counts[0] < 0.7 * counts[1]


# --- what has no rows of tokens -------------------------------------------------------------------------------------


class Channels(nn.Module):
    """Cross-covariance attention over x [batch, 6, 8]: features attend to features. ``spelling`` says how."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.spelling = spelling
        self.qkv = nn.Linear(8, 24)
        self.conv = nn.Conv1d(8, 24, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "convolution":
            q, k, v = self.conv(x.mT).unflatten(1, (3, 2, 4)).unbind(1)
        else:
            q, k, v = (each.permute(0, 2, 3, 1) for each in self.qkv(x).unflatten(-1, (3, 2, 4)).unbind(2))
        if self.spelling == "normalised":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        mixed = torch.softmax(q @ k.mT, -1) @ v
        return self.head(x.mT.add(mixed.flatten(1, 2)).mT.mean(1))


@pytest.mark.parametrize("spelling", ["linear", "normalised", "convolution"])
@pytest.mark.parametrize("ruleset", ["rollout", "chefer2021-generic"])
def test_attention_among_channels_is_refused(spelling: str, ruleset: str) -> None:
    x = torch.randn(2, 6, 8)
    with pytest.raises(ReadingError, match=r"among features \(channels\), not among tokens"):
        fxlrp.convert(Channels(spelling).eval(), ruleset).attribute(x, target=1)


class Towers(nn.Module):
    """Two texts of one length, each read by itself, or one by the other."""

    def __init__(self, cross: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.cross = cross
        self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

    def attend(self, x: Tensor, y: Tensor, first: int) -> Tensor:
        q, k, v = self.maps[first](x), self.maps[first + 1](y), self.maps[first + 2](y)
        return x + torch.softmax(q @ k.mT, -1) @ v

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a = self.attend(a, a, 0)
        b = self.attend(b, a if self.cross else b, 3)
        return torch.cat([a, b], -1).mean(1)


@pytest.mark.parametrize("cross", [True, False])
def test_streams_of_one_length_are_not_multiplied(cross: bool) -> None:
    inputs = {name: torch.randn(2, 5, 8) for name in "ab"}
    lrp = fxlrp.convert(Towers(cross).eval(), "rollout")
    with pytest.raises(ReadingError, match="not of the same tokens"):
        lrp.attribute(inputs, target=9)
    assert lrp.with_ruleset("chefer2021-generic").attribute(inputs, target=9).inputs["b"].any()


# --- gradients ------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    """A LayerNorm right behind the embedding: the gradient at each embedding sums to zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8, elementwise_affine=False)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(self.norm(self.embed(ids))).mean(1)


@pytest.mark.parametrize("ruleset", ["smoothgrad", "guided-backprop", "deconvnet"])
def test_a_gradient_at_ids_is_read_by_its_length(ruleset: str) -> None:
    ids = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    found = fxlrp.convert(Normed().double().eval(), ruleset).attribute(ids, target=1)
    assert found.features.sum(-1).abs().max() < 1e-12 * found.features.abs().max()
    torch.testing.assert_close(found.relevance, torch.linalg.vector_norm(found.features, dim=-1))


def test_guided_backpropagation_at_ids_by_hand() -> None:
    model, ids = Normed().double().eval(), torch.tensor([[1, 2, 3]])
    x = model.embed(ids).detach().requires_grad_()
    model.net[1].register_full_backward_hook(lambda module, grads, _: (grads[0].clamp(min=0),))
    model.net(model.norm(x)).mean(1)[:, 1].sum().backward()
    model.net[1]._backward_hooks.clear()
    assert x.grad is not None
    found = fxlrp.convert(model, "guided-backprop").attribute(ids, target=1)
    torch.testing.assert_close(found.relevance, x.grad.norm(dim=-1))


@pytest.mark.parametrize("ruleset", ["smoothgrad", "guided-backprop", "deconvnet"])
def test_a_gradient_at_pixels_keeps_its_sign(ruleset: str) -> None:
    found = converted("cnn").with_ruleset(ruleset).attribute(ZOO["cnn"].inputs(), target=1)
    assert (found.relevance < 0).any()
    assert torch.equal(found.relevance, found.features)
