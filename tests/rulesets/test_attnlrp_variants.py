"""Variants of AttnLRP: its relevance form, its vision composite, contrastive and probability seeds, positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxlrp
from fxlrp.errors import InputError, TargetError
from tests.support.small_models import MODELS, by_sample, converted, inputs, relative

MESSAGES = ("gradient", "relevance")
TEXTS = ("llama", "gpt2", "bert")


def with_stabilisers(scale: float) -> fxlrp.Ruleset:
    """'attnlrp-relevance' with every stabiliser multiplied."""
    content = fxlrp.ruleset("attnlrp-relevance").model_dump(by_alias=True)
    for entry in content["rules"]:
        if "epsilon" in entry["params"] and entry["rule"] != "secant":
            entry["params"]["epsilon"] *= scale
    return fxlrp.ruleset(content)


@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_input_times_gradient_message(name: str) -> None:
    """R = x g: the relevance form of AttnLRP is its gradient form, exactly without stabilisers."""
    gradients = converted(name).with_ruleset("attnlrp")
    relevances = gradients.with_ruleset(fxlrp.ruleset("attnlrp").override(message="relevance"))
    expected = gradients.attribute(inputs(name), target=1).features
    assert relative(relevances.attribute(inputs(name), target=1).features, expected) < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_stabilisers_alter_relevance_in_proportion_to_their_size(name: str) -> None:
    """kappa = z / (z + epsilon) = 1 - epsilon / z + ...: a tenth of every epsilon, a tenth of the difference."""
    gradients = converted(name).with_ruleset("attnlrp")
    expected = gradients.attribute(inputs(name), target=1).features
    errors = []
    for scale in (0.1, 0.01):
        result = gradients.with_ruleset(with_stabilisers(scale)).attribute(inputs(name), target=1, ledger=True)
        errors.append(relative(result.features, expected))
        assert result.ledger is not None
        assert result.ledger.gap.abs().max() < 1e-12
    assert errors[0] < 1e-3
    assert 8 < errors[0] / errors[1] < 12


def test_the_vision_composite_is_gamma_outside_attention() -> None:
    rules = fxlrp.ruleset("cp-lrp")
    for place in ("*.mlp.*", "classifier"):
        rules = rules.override(linear={"rule": "gamma", "gamma": 0.05}, where=place)
    rules = rules.override(convolution={"rule": "gamma", "gamma": 0.25})
    spelled = converted("vit").with_ruleset(rules).attribute(inputs("vit"), target=1)
    packaged = converted("vit").with_ruleset("attnlrp-vit").attribute(inputs("vit"), target=1, ledger=True)
    plain = converted("vit").with_ruleset("cp-lrp").attribute(inputs("vit"), target=1)
    assert torch.equal(packaged.relevance, spelled.relevance)
    assert relative(packaged.relevance, plain.relevance) > 1e-3
    assert packaged.ledger is not None
    assert packaged.ledger.gap.abs().max() < 1e-12


@pytest.mark.parametrize("message", MESSAGES)
def test_contrastive_relevance_is_the_targets_less_the_mean_of_the_others(message: str) -> None:
    """Relevance is linear in the explained output: R(z_c - mean z_k) = R(z_c) - mean R(z_k)."""
    rules = fxlrp.ruleset("attnlrp").override(message=message)
    lrp = converted("bert").with_ruleset(rules)
    of = [lrp.attribute(inputs("bert"), target=k).relevance for k in range(3)]
    result = lrp.with_ruleset(rules.override(seed="contrastive")).attribute(inputs("bert"), target=1, ledger=True)
    logits = result.outputs.logits
    assert relative(result.relevance, of[1] - (of[0] + of[2]) / 2) < 1e-12
    assert torch.allclose(result.explained, logits[:, 1] - (logits[:, 0] + logits[:, 2]) / 2)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12


def test_contrastive_lrp_is_packaged() -> None:
    packaged = converted("bert").with_ruleset("clrp").attribute(inputs("bert"), target=1)
    spelled = converted("bert").with_ruleset(fxlrp.ruleset("attnlrp").override(seed="contrastive"))
    assert torch.equal(packaged.relevance, spelled.attribute(inputs("bert"), target=1).relevance)


def test_contrast_needs_another_class() -> None:
    model = torch.nn.Linear(3, 1).double().eval()
    with pytest.raises(TargetError, match="at least two classes"):
        fxlrp.attribute(model, torch.ones(2, 3).double(), ruleset="clrp")


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_probability_seed_is_the_softmax_of_scaled_logits(temperature: float) -> None:
    """dp_c / dz_k = p_c (1[c = k] - p_k) / T, so R(p_c) = sum_k of that times R(z_k)."""
    rules = fxlrp.ruleset("attnlrp").override(seed="probability", temperature=temperature)
    lrp = converted("bert").with_ruleset("attnlrp")
    of = [lrp.attribute(inputs("bert"), target=k).relevance for k in range(3)]
    result = lrp.with_ruleset(rules).attribute(inputs("bert"), target=1, ledger=True)
    p = torch.softmax(result.outputs.logits / temperature, -1)
    slopes = [p[:, 1] * (float(k == 1) - p[:, k]) / temperature for k in range(3)]
    expected = torch.stack([slope[:, None] * r for slope, r in zip(slopes, of, strict=True)]).sum(0)
    assert relative(result.relevance, expected) < 1e-12
    assert torch.allclose(result.explained, p[:, 1])
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_relevance_messages_begin_with_the_probability_itself(temperature: float) -> None:
    """In relevance the target's logit is handed p_c: R = p_c / z_c times that of the logit."""
    rules = fxlrp.ruleset("attnlrp").override(seed="probability", temperature=temperature, message="relevance")
    lrp = converted("bert").with_ruleset(rules)
    result = lrp.attribute(inputs("bert"), target=1, ledger=True)
    plain = lrp.with_ruleset(rules.override(seed="logit")).attribute(inputs("bert"), target=1)
    logits = result.outputs.logits
    share = torch.softmax(logits / temperature, -1)[:, 1] / logits[:, 1]
    assert relative(result.relevance, share[:, None] * plain.relevance) < 1e-12
    assert result.ledger is not None
    assert torch.allclose(result.ledger.total, torch.softmax(logits / temperature, -1)[:, 1])


def positions(name: str, **reading: Any) -> fxlrp.Attribution:
    rules = fxlrp.ruleset("pa-lrp").override(readout={"kind": "position", **reading})
    ledger = not reading.get("absolute", True)
    return converted(name).with_ruleset(rules).attribute(inputs(name), target=1, ledger=ledger)


@pytest.mark.parametrize("name", TEXTS)
def test_tokens_and_positions_are_what_the_ledger_says_they_are(name: str) -> None:
    """sum tokens + sum positions + biases + softmax expansion = f_c."""
    signed = positions(name, absolute=False)
    assert signed.ledger is not None
    kinds = signed.ledger.by_kind()
    places = [amount for kind, amount in kinds.items() if "position" in kind]
    assert places
    assert min(float(amount.abs().max()) for amount in places) > 1e-3
    assert signed.ledger.gap.abs().max() < 1e-12
    expected = kinds["input"] + torch.stack(places).sum(0)
    assert (by_sample(signed.relevance) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", TEXTS)
def test_positions_add_their_absolute_relevance(name: str) -> None:
    """A score is never below the token's own relevance, and further from it than the signed sum."""
    score, signed = positions(name), positions(name, absolute=False)
    own = score.features.sum(-1)
    assert bool((score.relevance - own >= -1e-15).all())
    assert bool(((score.relevance - own) >= (signed.relevance - own).abs() - 1e-12).all())
    assert relative(score.relevance, signed.relevance) > 1e-3


def test_rotary_tables_take_half_of_what_arrives_at_each_product() -> None:
    """The uniform rule of x cos: each product keeps one half, so the query's and key's own relevance is halved."""
    values, queries = "model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.q_proj"
    plain, sunk = (
        converted("llama").with_ruleset(r).attribute(inputs("llama"), target=1, at=[values, queries]).at
        for r in ("attnlrp", "pa-lrp")
    )
    assert torch.equal(plain[values], sunk[values])
    assert torch.allclose(by_sample(sunk[queries]), 0.5 * by_sample(plain[queries]))


def test_images_have_no_tokens_to_score() -> None:
    with pytest.raises(InputError, match="does not hold token ids"):
        converted("vit").with_ruleset("pa-lrp").attribute(inputs("vit"))
