"""Mutants of rules and of the fused kernels that stand for them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from fxlrp.graph.operator_table import ATTENTION
from fxlrp.graph.operators import OPERATORS
from fxlrp.rewrite import kernels, stretches
from fxlrp.rewrite.call import RuleCall
from fxlrp.rules import RULES, choices, elementary, gamma, linear, primitives, product, shares
from fxlrp.rules.rule import twin
from tests.mutants.mutant import Mutant, attribute, changed_rule, changed_shares, closes, entry, kernel, on, rule
from tests.properties import test_properties
from tests.rewrite import test_constant_weights, test_stretches
from tests.rules import test_rules

aten = torch.ops.aten


def _six_tenths(op: Any, *operands: Tensor, first: float, **options: Any) -> Any:
    return op(*(primitives.scale_message(x, 0.6) for x in operands[: op.factors]), *operands[op.factors :])


def _quick_gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return torch.sigmoid(1.702 * x)


def _plain(op: Any, *operands: Any, **parameters: Any) -> Any:
    return op(*operands)


def _one_denominator(*arguments: Any, original: Any = linear.alphabeta.shares, **options: Any) -> Any:
    found = original(*arguments, **options)
    return [(numerator, found[0][1]) for numerator, _ in found]


def _without_sign(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    factor = primitives.ratio(a + b, a.abs() + b.abs())
    return factor, factor


def _other_signal(op: Any, a: Tensor, b: Tensor, *rest: Any, signal: int) -> Any:
    return op(a.detach(), b, *rest) if signal == 0 else op(a, b.detach(), *rest)


def _zero_leak(op: Any, y: Tensor, g: Tensor, *operands: Any, **parameters: Any) -> Tensor:
    return torch.zeros_like(y)


def _swap_signs(patch: pytest.MonkeyPatch) -> None:
    up, down = linear.positive, linear.negative
    patch.setattr(gamma, "positive", down)
    patch.setattr(gamma, "negative", up)


def _swap_quotient(op: Any, a: Tensor, b: Tensor) -> Any:
    return op(a.detach(), b)


def _old_quotient_leak(op: Any, y: Tensor, g: Tensor, *operands: Any) -> Tensor:
    return (1 - op.live[0] + op.live[1]) * y * g


def _double_scale(x: Tensor, factor: Any, original: Any = primitives.scale_message) -> Tensor:
    return original(x, 2 * factor)


def _unbounded(original: Any) -> Any:
    return lambda *values, **options: original(*values, **{**options, "bound": 1e9})


def _divided_by_value(op: Any, *operands: Any, **options: Any) -> Tensor:
    """The twin without the stabiliser."""
    return twin(RULES["epsilon"].surrogate, op, *operands, **{**options, "epsilon": 0.0})


def _unstabilised(op: Any, *operands: Any, **options: Any) -> Tensor:
    return twin(RULES["split"].surrogate, op, *operands, **{**options, "epsilon": 0.0})


METHODS = test_properties.METHODS
OVER_THE_BATCH = METHODS["conservative-residual"].override(residual={"rule": "normalised_add", "whole_batch": True})

RULE_MUTANTS = (
    Mutant(
        "split hands out six tenths twice",
        changed_rule("split", surrogate=_six_tenths),
        rule("split", first=0.8),
    ),
    Mutant("message of a factor doubled", attribute(product, "scale_message", _double_scale), rule("split")),
    Mutant("secant uses the derivative", changed_rule("secant", surrogate=_plain), rule("secant", epsilon=0.01)),
    Mutant("offset of a sigmoid forgotten", changed_rule("secant", leak=_zero_leak), rule("secant")),
    Mutant(
        "slope of GELU is that of quick GELU",
        entry(OPERATORS, aten.gelu, replace(OPERATORS[aten.gelu], slope=_quick_gelu)),
        rule("secant"),
    ),
    Mutant("normalised add without sign", attribute(product, "balance", _without_sign), rule("normalised_add")),
    Mutant(
        "epsilon with the wrong sign",
        entry(choices.FORMS, choices.Stabiliser.SIGNED, lambda z, epsilon: choices.away_from_zero(z, -epsilon)),
        test_rules.test_stabilisers,
    ),
    Mutant(
        "a masked stabiliser does not mask",
        entry(choices.FORMS, choices.Stabiliser.MASKED, lambda z, epsilon: z + epsilon),
        test_rules.test_stabilisers,
    ),
    Mutant(
        "shares of relevance unstabilised",
        changed_rule("epsilon", relevances=[_divided_by_value]),
        rule("epsilon", epsilon=0.5),
    ),
    Mutant(
        "products of relevance unstabilised",
        changed_rule("split", relevances=[_unstabilised]),
        rule("split", epsilon=0.1),
    ),
    Mutant(
        "relevance moves through a scale times its factor",
        changed_rule("gradient", relevances=[_plain]),
        rule("gradient"),
    ),
    Mutant(
        "a twin forgets to divide",
        attribute(importlib.import_module("fxlrp.rules.rule"), "as_gradient", lambda y: y),
        rule("secant", epsilon=0.01),
    ),
    Mutant(
        "a twin forgets to multiply",
        attribute(importlib.import_module("fxlrp.rules.rule"), "as_relevance", lambda x: x),
        rule("distribute"),
    ),
    Mutant("gamma favours the other sign", _swap_signs, rule("gamma", gamma=2.0)),
    Mutant(
        "alpha and beta share a denominator",
        changed_shares("alphabeta", _one_denominator),
        rule("alphabeta", alpha=2.0),
    ),
    Mutant(
        "distribution of the bias unbounded",
        changed_rule(
            "distribute",
            surrogate=_unbounded(RULES["distribute"].surrogate),
            leak=_unbounded(RULES["distribute"].leak),
        ),
        rule("distribute", bound=1.0),
    ),
    Mutant("softmax expansion without x", changed_rule("taylor", leak=lambda op, s, g, *x: s * g), rule("taylor")),
    Mutant("softmax always over the last axis", attribute(elementary, "axis_of", lambda op: -1), rule("taylor")),
    Mutant("constant still connected", changed_rule("constant", surrogate=_plain), rule("constant")),
    Mutant(
        "all to the gate, not the signal",
        changed_rule("take_all", surrogate=_other_signal),
        rule("take_all", signal=1),
    ),
    Mutant(
        "numerator held constant",
        changed_rule("detach_denominator", surrogate=_swap_quotient),
        rule("detach_denominator"),
    ),
    Mutant(
        "leak of a constant over a value",
        changed_rule("gradient", leak=_old_quotient_leak),
        test_rules.test_a_constant_over_a_value_leaks_twice_what_arrives,
    ),
    Mutant(
        "leak of the gradient forgotten",
        changed_rule("gradient", leak=_zero_leak),
        closes("v1 = layer_norm(x)", "gradient"),
    ),
    Mutant(
        "value taken from the surrogate",
        attribute(shares, "same_value", lambda y, surrogate: surrogate),
        rule("gamma"),
    ),
    Mutant(
        "balance over the whole batch",
        entry(METHODS, "conservative-residual", OVER_THE_BATCH),
        on(test_properties.test_samples_are_independent, "v1 = residual(x)", "conservative-residual"),
    ),
)


def _without_mean(region: kernels.Region, original: Any = kernels.KERNELS[aten.layer_norm]) -> Any:
    made = original(region)

    def mutant(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any) -> Tensor:
        scale = torch.rsqrt(x.var(-1, correction=0, keepdim=True) + eps).detach()
        return primitives.same_value(made(x, shape, weight, bias, eps, *rest), x * scale * weight)

    return made and mutant


def _attention(drop: str, original: Any = kernels.constant_weights_attention) -> Any:
    """The kernel with the right value, and the backward pass of attention with one of its arguments dropped."""

    def mutant(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *rest: Any, **options: Any) -> Tensor:
        y = original(q, k, v, attn_mask, *rest, **options)
        mask, causal = attn_mask if isinstance(attn_mask, tuple) else (attn_mask, False)
        changed: dict[str, Any] = {"causal": {"is_causal": False}, "scale": {"scale": 1.0}}.get(drop, {})
        other = original(
            q,
            k.flip(-3) if drop == "groups" else k,
            v,
            (None if drop == "mask" else mask, causal and drop != "causal"),
            **{**options, **changed},
        )
        return primitives.same_value(y, other)

    return attribute(kernels, "constant_weights_attention", mutant)


def _gradients(module: fx.GraphModule) -> fx.GraphModule:
    """A second run that forgets the rules."""
    graph, images = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(module.graph, images))
    for image in images.values():
        if isinstance(image.target, RuleCall):
            image.target = replace(image.target, rule=RULES["gradient"], params={})
    return fx.GraphModule({}, graph)


def _short_attention(*given: Any, original: Any = kernels.plain_attention, **options: Any) -> Tensor:
    found: Tensor = 0.999 * original(*given, **options)
    return found


KERNEL_MUTANTS = (
    Mutant(
        "a stretch runs another operator on the way forward",
        entry(kernels.PLAIN, ATTENTION, _short_attention),
        partial(test_stretches.agrees, "bert", "attnlrp-relevance"),
    ),
    Mutant(
        "a row that sees nothing is NaN in the kernel of constant weights",
        attribute(kernels, "softmax_of_some", torch.softmax),
        partial(test_constant_weights.test_constant_weights_by_rows, 610, 610, 2, 2, "bools"),
    ),
    Mutant(
        "a stretch gives one value for two",
        attribute(stretches, "apart", tuple),
        partial(test_stretches.agrees, "bert", "arras2017"),
    ),
    Mutant(
        "a stretch forgets its rules on the way back",
        attribute(stretches, "for_messages", _gradients),
        partial(test_stretches.agrees, "bert", "full-lrp"),
    ),
    Mutant(
        "rules in relevance keep what they are made of",
        attribute(stretches.Parts, "keeps_much", lambda parts, node: False),
        test_stretches.test_little_is_kept_for_a_rule_in_relevance,
    ),
    Mutant(
        "norm kernel forgets the mean",
        entry(kernels.KERNELS, aten.layer_norm, _without_mean),
        kernel("layer_norm", "ali2022"),
    ),
    Mutant(
        "attention kernel mixes up grouped heads",
        _attention("groups"),
        kernel("sdpa_grouped", "cp-lrp"),
    ),
    Mutant(
        "attention kernel forgets the mask",
        _attention("mask"),
        kernel("sdpa_mask", "cp-lrp"),
    ),
    Mutant(
        "attention kernel forgets the causal flag",
        _attention("causal"),
        kernel("sdpa_causal", "ali2022"),
    ),
    Mutant(
        "attention kernel forgets the scale",
        _attention("scale"),
        kernel("sdpa_scale", "ali2022-ah"),
    ),
    Mutant(
        "attention kernel scales nothing",
        attribute(kernels.Region, "scales", lambda region, part: (1.0, 1.0)),
        kernel("sdpa", "attnlrp"),
    ),
)
