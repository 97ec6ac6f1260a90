"""The rulesets that read attention: conservation of their relevance, independence of samples and padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.graph.operator_classes import ADD, CONVOLUTION
from fxlrp.report.panels import Layout, digest
from fxlrp.rules import RULES
from fxlrp.rules.choices import Stabiliser
from fxlrp.rules.product import balance
from fxlrp.rules.rule import Message
from fxlrp.testing.operations import OPERATIONS
from tests.support.zoo import ZOO, converted

FAMILY = ("chefer2021-vit", "chefer2021-bert", "partial-lrp", "attn-gradcam", "attn-gradcam-bert", "raw-attention")
ALL = (*FAMILY, "rollout", "chefer2021-generic")
IMAGES = ("vit", "deit", "dinov2")
ORIGINAL = {"denominators": "separate", "residual": {"rule": "epsilon", "epsilon": 1e-9, "stabiliser": "masked"}}


def read(name: str, ruleset: str | fxlrp.Ruleset, inputs: dict[str, Tensor] | None = None, **k: Any) -> Any:
    return converted(name).with_ruleset(ruleset).attribute(inputs or ZOO[name].inputs(), **({"target": 1} | k))


def equal(a: Tensor, b: Tensor, relative: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=relative * float(b.abs().max()))


# --- relevance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit"])
def test_t06_relevance_sums_to_one_after_every_block(name: str) -> None:
    layers = {"bert": "bert.encoder.layer.*", "distilbert": "distilbert.transformer.layer.*", "vit": "vit.layers.*"}
    found = read(name, "chefer2021-vit", at=[layers[name]], ledger=True)
    assert len(found.at) == 2
    for relevance in found.at.values():
        torch.testing.assert_close(relevance.flatten(1).sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (found.ledger.gap.abs() < 1e-9).all()


def test_t06_original_lrp_doubles_in_every_linear_layer() -> None:
    head = ["bert.pooler"]
    ours = read("bert", "partial-lrp", at=head).at["bert.pooler"].sum(1)
    theirs = read("bert", fxlrp.ruleset("partial-lrp").override(**ORIGINAL), at=head).at["bert.pooler"].sum(1)
    torch.testing.assert_close(ours, torch.ones_like(ours), atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs, 2 * ours, atol=1e-6, rtol=0)


def test_t07_the_add_as_factors_is_the_add_of_relevance() -> None:
    """T7: g times lambda_a, lambda_b is the published division, and the two branches sum exactly to what arrived."""
    sample = OPERATIONS[ADD][0]
    operation, (a, b) = sample.draw(3)
    message = torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = a + b
    parts = RULES["normalised_add"].references[0](
        operation, y * message, a, b, whole_batch=False, epsilon=0.0, stabiliser=Stabiliser.MASKED
    )
    axes = tuple(range(1, a.ndim))
    factors = balance((a * message).sum(axes, keepdim=True), (b * message).sum(axes, keepdim=True))
    for part, x, factor in zip(parts, (a, b), factors, strict=True):
        torch.testing.assert_close(x * factor * message, part)
    torch.testing.assert_close((parts[0] + parts[1]).sum(axes), (y * message).sum(axes))


def test_the_bounds_of_z_box_are_those_of_each_sample() -> None:
    operation, (x, weight, *rest) = next(s for s in OPERATIONS[CONVOLUTION]).draw(0)
    options = {**RULES["z_box"].bind({}), "epsilon": 0.0}

    def relevance(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        y = RULES["z_box"].apply(Message.RELEVANCE, operation, leaf, weight, *rest, **options)
        return torch.autograd.grad(y, leaf, torch.ones_like(y))[0]

    alone, other = relevance(x), x.detach().clone()
    other[1] *= 5
    assert torch.equal(relevance(other)[0], alone[0])
    torch.testing.assert_close(alone.sum(), torch.ones_like(operation(x, weight, *rest)).sum())


# --- samples and padding --------------------------------------------------------------------------------------------


PADDED = [("bert", each) for each in (*ALL, "full-lrp")] + [
    pytest.param(name, each, marks=pytest.mark.slow)
    for name in ("roberta", "distilbert")
    for each in ("chefer2021-bert", "chefer2021-generic")
]


@pytest.mark.parametrize(("name", "ruleset"), PADDED)
def test_t13_padding_and_other_samples_change_nothing(name: str, ruleset: str) -> None:
    inputs = ZOO[name].inputs()
    kept = int(inputs["attention_mask"][1].sum())
    assert kept < inputs["attention_mask"].shape[1]
    together = read(name, ruleset).relevance[1]
    alone = read(name, ruleset, {key: value[1:, :kept] for key, value in inputs.items()}).relevance[0]
    equal(together[:kept], alone, 1e-9)
    assert (together[kept:] == 0).all()


def test_t13_sums_over_the_whole_batch_make_samples_depend_on_each_other() -> None:
    rules = fxlrp.ruleset("chefer2021-bert")
    inputs = ZOO["bert"].inputs(padding=None)
    for switch in (False, True):
        chosen = rules.override(whole_batch=switch)
        together = read("bert", chosen, inputs).relevance[0]
        alone = read("bert", chosen, {key: value[:1] for key, value in inputs.items()}).relevance[0]
        assert torch.allclose(together, alone, rtol=1e-9) is not switch


def test_the_smallest_entry_is_not_that_of_padding() -> None:
    found = read("bert", "chefer2021-bert")
    real = found.attention_mask.bool()
    for row, mask in zip(found.relevance, real, strict=True):
        assert row[0] == row[mask].min() > 0


# --- rollout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_t14_rollout_without_division_is_a_power_of_two_larger(name: str) -> None:
    rules = fxlrp.ruleset("rollout")
    divided = read(name, rules).relevance
    plain = read(name, rules.override(readout={"normalise": False})).relevance
    equal(plain, 2**2 * divided, 1e-6)  # eager softmax in float32
    torch.testing.assert_close(divided.sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(plain.argsort(1), divided.argsort(1))


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_rollout_is_the_product_of_the_models_own_attentions(name: str) -> None:
    inputs = ZOO[name].inputs()
    with torch.no_grad():
        attentions = ZOO[name].build(attention="eager")(**inputs, output_attentions=True).attentions
    product = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    for weights in attentions:
        product = (weights.mean(1) + torch.eye(weights.shape[-1])) / 2 @ product
    equal(read(name, "rollout").relevance, product[:, 0], 1e-6)


@pytest.mark.parametrize("name", ["rollout", "raw-attention"])
def test_a_given_row_of_weights_needs_no_backward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ruleset = fxlrp.ruleset(name).override(readout={"row": 0})
    expected = read("bert", ruleset)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    found = read("bert", ruleset)
    assert torch.equal(found.relevance, expected.relevance)
    assert not found.relevance.requires_grad
    with pytest.raises(AssertionError, match="a backward pass"):
        read("bert", "chefer2021-bert")


def test_the_explained_value_is_that_of_a_pass_with_gradients() -> None:
    def first(outputs: Any) -> Tensor:
        return outputs.logits[:, 2]  # type: ignore[no-any-return]

    for target in (None, 2, [0, 1], first):
        forward, backward = (read("bert", name, target=target) for name in ("rollout", "gradient"))
        torch.testing.assert_close(forward.explained, backward.explained)
        assert target is first or forward.target == backward.target


# --- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ruleset", ALL)
def test_images_are_told_by_patch_and_texts_by_token(ruleset: str) -> None:
    for name in IMAGES:
        found = read(name, ruleset)
        tokens = ruleset in ("rollout", "chefer2021-bert")
        assert found.relevance.shape == (2, 16 + tokens * (2 if name == "deit" else 1))
        assert found.relevance.isfinite().all()
        if not tokens:
            assert found.map(32).shape == (2, 32, 32)
    found = read("bert", ruleset)
    assert found.relevance.shape == (2, 7)
    assert set(found.inputs) == {"input_ids"}


def test_full_lrp_is_told_by_pixel() -> None:
    found = read("vit", "full-lrp", ledger=True)
    assert found.relevance.shape == (2, 32, 32)
    assert found.map(16).shape == (2, 16, 16)
    assert found.grid == (32, 32)
    assert digest(found)[0].panels[0].layout is Layout.IMAGE
    assert (found.ledger.gap.abs() < 1e-9).all()


def test_gradcam_in_its_two_forms() -> None:
    """Of the last layer: the weight of a head is the mean gradient of the row's patches, or of the whole matrix."""
    for name, form in (("vit", "attn-gradcam"), ("bert", "attn-gradcam-bert")):
        inputs = ZOO[name].inputs(padding=None)
        outputs = ZOO[name].build(attention="eager")(**inputs, output_attentions=True)
        weights = outputs.attentions[-1]
        (gradient,) = torch.autograd.grad(outputs.logits[:, 1].sum(), weights)
        if name == "vit":
            row = (weights[:, :, 0, 1:] * gradient[:, :, 0, 1:].mean(-1, keepdim=True)).mean(1).clamp(min=0)
            low, high = row.amin(1, keepdim=True), row.amax(1, keepdim=True)
            row = (row - low) / (high - low)
        else:
            row = (weights[:, :, 0] * gradient.mean((2, 3))[:, :, None]).mean(1).clamp(min=0)
            row[:, 0] = 0
        assert (row > 0).any()
        equal(read(name, form, inputs).relevance, row.detach(), 1e-5)


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit"])
def test_fused_attention_is_reached_as_eager_attention_is(name: str) -> None:
    """Eager attention takes its softmax in float32."""
    ruleset = "chefer2021-vit"
    fused, eager = (
        converted(name, kind).with_ruleset(ruleset).attribute(ZOO[name].inputs(), target=1) for kind in (None, "eager")
    )
    equal(fused.relevance, eager.relevance, 1e-4)


class Spelled(nn.Module):
    """Two blocks of attention over x [batch, tokens, 16], fused or written out, and a head on the first token."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused = fused
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
            if self.fused:
                mixed = F.scaled_dot_product_attention(q, k, v)
            else:
                mixed = torch.softmax(q @ k.mT / math.sqrt(4), -1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(2))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


def test_fused_and_eager_attention_to_rounding() -> None:
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fused, eager = (fxlrp.convert(Spelled(kind).double().eval(), "chefer2021-vit") for kind in (True, False))
    for name in ALL:  # epsilon has the unit of the scores, which fused attention scales before their product
        rules = fxlrp.ruleset(name).override(epsilon=0.0)
        found = [lrp.with_ruleset(rules).attribute(x, target=1).relevance for lrp in (fused, eager)]
        equal(found[0], found[1], 1e-9)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ruleset", ["chefer2021-vit", "rollout", "chefer2021-generic"])
def test_a_model_without_attention(ruleset: str) -> None:
    with pytest.raises(fxlrp.InputError, match=r"MLP has no attention .*'attnlrp'"):
        fxlrp.convert(ZOO["mlp"].build(), ruleset).attribute(ZOO["mlp"].inputs(), target=1)


def test_attention_within_windows() -> None:
    with pytest.raises(fxlrp.InputError, match=r"swin\.encoder\S* has the shape .* parts of a sample"):
        read("swin", "rollout")


def test_attention_that_is_not_square() -> None:
    with pytest.raises(fxlrp.InputError, match=r"is 5 x 5, .* 7 x 7: .*'chefer2021-generic'"):
        read("bart", "rollout", target=(3, 1))
    with pytest.raises(fxlrp.InputError, match="is 6 x 3, "):
        fxlrp.convert(Pooled().eval(), "rollout").attribute(torch.randn(2, 6, 8), target=1)


@pytest.mark.parametrize("layer", [2, -3, 11])
@pytest.mark.parametrize("ruleset", ["chefer2021-bert", "rollout", "chefer2021-generic"])
def test_layers_out_of_range(ruleset: str, layer: int) -> None:
    with pytest.raises(fxlrp.InputError, match=f"start_layer={layer} is out of range: .* 2 layers"):
        read("bert", fxlrp.ruleset(ruleset).override(readout={"start_layer": layer}))


def test_no_layers_and_no_row() -> None:
    rules = fxlrp.ruleset("rollout")
    with pytest.raises(fxlrp.InputError, match="leave none of 2 layers"):
        read("bert", rules.override(readout={"start_layer": 1, "end_layer": 1}))
    with pytest.raises(fxlrp.InputError, match=r"row=7 is out of range: .* has 7 rows"):
        read("bert", rules.override(readout={"row": 7}))


class Pooled(nn.Module):
    """Queries of every token, keys of every second."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.softmax(self.q(x) @ self.k(x[:, ::2]).mT, -1) @ self.v(x[:, ::2])).mean(1)


def test_keys_that_are_fewer_than_the_queries_they_come_from() -> None:
    x = torch.randn(2, 6, 8)
    with pytest.raises(fxlrp.InputError, match="made of the same input"):
        fxlrp.convert(Pooled().eval(), "chefer2021-generic").attribute(x, target=1)


def test_a_text_is_no_image(tmp_path: Any) -> None:
    text = read("bert", "rollout", ZOO["bert"].inputs(length=9))
    assert text.relevance.shape[1] == 9  # a square number, and yet no patches
    with pytest.raises(fxlrp.InputError, match="is not an image"):
        text.map(9)
    with pytest.raises(fxlrp.InputError, match="no other token"):
        read("vit", "rollout").map(32)
    image = read("vit", "chefer2021-vit")
    image.save(tmp_path / "image")
    assert torch.equal(fxlrp.Attribution.load(tmp_path / "image").map(32), image.map(32))
