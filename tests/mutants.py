"""Mutants of rules and passes: each breaks one thing in fxlrp's own objects, and names the test that must notice.

A mutant patches through :class:`pytest.MonkeyPatch`, which puts everything back. ``tests/test_mutants.py`` runs each test with and
without its mutant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from importlib import import_module
from typing import Any

import pytest
import test_invariances
import test_properties
import test_regressions
import test_structure
import torch
from rules import test_rules
from testing import test_oracle
from torch import Tensor

import fxlrp.ledger
import fxlrp.model
import fxlrp.plan
import fxlrp.targets
from fxlrp.capture.canonical import REPLACEMENTS
from fxlrp.capture.program import Program
from fxlrp.graph.elementwise import SLOPES
from fxlrp.patterns import matcher
from fxlrp.rewrite import graph as rewriting
from fxlrp.rewrite import kernels
from fxlrp.rules import RULES, elementary, linear, primitives, product
from fxlrp.targets import Selection
from fxlrp.testing import RandomGraph

aten = torch.ops.aten
Patch = Callable[[pytest.MonkeyPatch], None]
Test = Callable[[], None]


@dataclass(frozen=True)
class Mutant:
    """``patch`` breaks one thing; ``test``, a test of this suite applied to fitting arguments, must then fail."""

    name: str
    patch: Patch
    test: Test


def changed_rule(name: str, **changes: Any) -> Patch:
    """The registered rule with some fields replaced."""
    if "surrogate" in changes:  # keeps signature and docstring, or the change would be noticed by those
        changes["surrogate"] = wraps(RULES[name].surrogate)(changes["surrogate"])
    return lambda patch: patch.setitem(RULES, name, replace(RULES[name], **changes))


def attribute(owner: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(owner, name, value)


def entry(table: dict[Any, Any], key: Any, value: Any) -> Patch:
    return lambda patch: patch.setitem(table, key, value)


def rule(name: str, **parameters: Any) -> Test:
    if parameters:
        return lambda: test_rules.test_rule_keeps_its_promises_with_other_parameters(name, parameters)
    return lambda: test_rules.test_rule_keeps_its_promises(RULES[name])


def on(test: Any, code: str, *others: Any) -> Test:
    """A property test on one graph."""
    return lambda: test.hypothesis.inner_test(RandomGraph.parse(code), *others)


def closes(code: str, ruleset: str = "conservative") -> Test:
    return on(test_properties.test_values_stay_and_the_ledger_closes, code, ruleset)


def agrees(code: str, ruleset: str = "conservative") -> Test:
    return on(test_oracle.test_random_graphs, code, ruleset)


def kernel(kind: str, ruleset: str) -> Test:
    return lambda: test_properties.test_kernels_equal_their_definitions(kind, ruleset)


def found(name: str) -> Test:
    return lambda: test_regressions.test_found(name)


def spelled(name: str, ruleset: str) -> Test:
    return lambda: test_invariances.test_spellings_explain_alike(test_invariances.SPELLINGS[name], ruleset)


# --- rules ------------------------------------------------------------------------------------------------------------------


def _six_tenths(op: Any, *operands: Tensor, first: float) -> Any:
    return op(*(primitives.scale_message(x, 0.6) for x in operands[: op.factors]), *operands[op.factors :])


def _plain(op: Any, *operands: Any, **parameters: Any) -> Any:
    return op(*operands)


def _epsilon_flipped(op: Any, *operands: Any, epsilon: float, original: Any = RULES["epsilon"].surrogate) -> Any:
    return original(op, *operands, epsilon=-epsilon)


def _shared_denominator(
    op: Any, x: Any, weight: Any, bias: Any, alpha: float, beta: float, *options: Any, original: Any = linear._alphabeta_expression, **named: Any
) -> Any:
    gain = original(op, x, weight, bias, 1.0, 0.0, *options, **named)
    return (alpha - 0.5 * beta) * gain + 0.5 * beta * original(op, x, weight, bias, 0.0, -1.0, *options, **named)


def _without_sign(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    factor = primitives.ratio(a + b, a.abs() + b.abs())
    return factor, factor


def _zero_leak(op: Any, y: Tensor, g: Tensor, *operands: Any, **parameters: Any) -> Tensor:
    return torch.zeros_like(y)


def _swap_signs(patch: pytest.MonkeyPatch) -> None:
    up, down = linear.positive, linear.negative
    patch.setattr(linear, "positive", down)
    patch.setattr(linear, "negative", up)


def _swap_quotient(op: Any, a: Tensor, b: Tensor) -> Any:
    return op(a.detach(), b)


def _old_quotient_leak(op: Any, y: Tensor, g: Tensor, *operands: Any) -> Tensor:
    return (1 - op.live[0] + op.live[1]) * y * g


def _double_scale(x: Tensor, factor: Any, original: Any = primitives.scale_message) -> Tensor:
    return original(x, 2 * factor)


def _over_the_batch(relevance: Tensor) -> Tensor:
    return relevance.sum()


RULE_MUTANTS = (
    Mutant("split hands out six tenths twice", changed_rule("split", surrogate=_six_tenths), rule("split", first=0.8)),
    Mutant("message of a factor doubled", attribute(product, "scale_message", _double_scale), rule("split")),
    Mutant("secant uses the derivative", changed_rule("secant", surrogate=_plain), rule("secant", epsilon=0.01)),
    Mutant("offset of a sigmoid forgotten", changed_rule("secant", leak=_zero_leak), rule("secant")),
    Mutant("slope of GELU is that of quick GELU", entry(SLOPES, aten.gelu, lambda x, approximate="none": torch.sigmoid(1.702 * x)), rule("secant")),
    Mutant("normalised add without sign", attribute(product, "balance", _without_sign), rule("normalised_add")),
    Mutant("epsilon with the wrong sign", changed_rule("epsilon", surrogate=_epsilon_flipped), rule("epsilon", epsilon=0.5)),
    Mutant("gamma favours the other sign", _swap_signs, rule("gamma", gamma=2.0)),
    Mutant("alpha and beta share a denominator", attribute(linear, "_alphabeta_expression", _shared_denominator), rule("alphabeta", alpha=2.0)),
    Mutant("distribution of the bias unbounded", attribute(linear, "_bounded_factor", lambda y, z, epsilon, bound: y / z), rule("distribute", bound=1.0)),
    Mutant("softmax expansion without x", changed_rule("taylor", leak=lambda op, s, g, *x: s * g), rule("taylor")),
    Mutant("softmax always over the last axis", attribute(elementary, "_axis", lambda op: -1), rule("taylor")),
    Mutant("constant still connected", changed_rule("constant", surrogate=_plain), rule("constant")),
    Mutant("all to the gate, not the signal", changed_rule("take_all", surrogate=lambda op, a, b, signal: op(a.detach(), b) if signal == 0 else op(a, b.detach())), rule("take_all", signal=1)),
    Mutant("numerator held constant", changed_rule("detach_denominator", surrogate=_swap_quotient), rule("detach_denominator")),
    Mutant("leak of a constant over a value", changed_rule("gradient", leak=_old_quotient_leak), test_rules.test_a_constant_over_a_value_leaks_twice_what_arrives),
    Mutant("leak of the gradient forgotten", changed_rule("gradient", leak=_zero_leak), closes("v1 = layer_norm(x)", "gradient")),
    Mutant("value taken from the surrogate", attribute(linear, "same_value", lambda y, surrogate: surrogate), rule("gamma")),
    Mutant("balance over the whole batch", attribute(product, "_per_sample", _over_the_batch), on(test_properties.test_samples_are_independent, "v1 = residual(x)", "conservative-residual")),
)  # fmt: skip


# --- kernels ------------------------------------------------------------------------------------------------------------------


_CONSTANT_SCALE = kernels._ConstantScaleNorm.forward


class _ForgetsMean(kernels._ConstantScaleNorm):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float, keep_mean: bool) -> Tensor:
        return _CONSTANT_SCALE(ctx, x, shape, weight, bias, eps, False)


def _weights(drop: str, original: Any = kernels._weights_transposed) -> Any:
    def mutant(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float, g: Tensor) -> Tensor:
        return original(
            q,
            k.flip(-3) if drop == "groups" else k,
            None if drop == "mask" else mask,
            causal and drop != "causal",
            1.0 if drop == "scale" else scale,
            g,
        )

    return mutant


KERNEL_MUTANTS = (
    Mutant("norm kernel forgets the mean", attribute(kernels, "_ConstantScaleNorm", _ForgetsMean), kernel("layer_norm", "ali2022")),
    Mutant("attention kernel mixes up grouped heads", attribute(kernels, "_weights_transposed", _weights("groups")), kernel("sdpa_grouped", "cp-lrp")),
    Mutant("attention kernel forgets the mask", attribute(kernels, "_weights_transposed", _weights("mask")), kernel("sdpa_mask", "cp-lrp")),
    Mutant("attention kernel forgets the causal flag", attribute(kernels, "_weights_transposed", _weights("causal")), kernel("sdpa_causal", "ali2022")),
    Mutant("attention kernel forgets the scale", attribute(kernels, "_weights_transposed", _weights("scale")), kernel("sdpa_scale", "ali2022-ah")),
    Mutant("attention kernel scales nothing", attribute(kernels, "_shares", lambda region, part: (1.0, 1.0)), kernel("sdpa", "attnlrp")),
)  # fmt: skip


# --- capture, patterns, plan --------------------------------------------------------------------------------------------------


def _attention(change: Callable[[dict[str, Any]], dict[str, Any]], original: Any = REPLACEMENTS[aten.scaled_dot_product_attention]) -> Patch:
    def mutant(q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **options: Any) -> Any:
        return original(q, k, v, **change({"attn_mask": attn_mask, "is_causal": is_causal, **options}))

    return entry(REPLACEMENTS, aten.scaled_dot_product_attention, mutant)


def _late_diagonal(patch: pytest.MonkeyPatch) -> None:
    tril = aten.tril.default

    class Shifted:
        default = staticmethod(lambda everything: tril(everything, 1))

    class Operators:
        tril = Shifted

        def __getattr__(self, name: str) -> Any:
            return getattr(aten, name)

    from fxlrp.capture import expansions

    patch.setattr(expansions, "aten", Operators())


def _every_add(graph: Any, inside: Any) -> Any:
    return [n for n in graph.nodes if matcher.packet(n.target) is aten.add]


def _same_root(a: Any, b: Any) -> bool:
    return matcher._steps(a)[0] is matcher._steps(b)[0]


def _first_program(self: Any, inputs: Any, original: Any = fxlrp.model.ConvertedModel.captured) -> Any:
    if self._last is not None:
        return self._last
    return original(self, inputs)


PASS_MUTANTS = (
    Mutant("subtraction from a number swapped", entry(REPLACEMENTS, aten.rsub, lambda a, b, alpha=1: aten.sub.Tensor(a, b)), closes("v1 = subtract_from_scalar(x)")),
    Mutant("scale of attention dropped", _attention(lambda given: {**given, "scale": 1.0}), kernel("sdpa_scale", "attnlrp")),
    Mutant("causal flag dropped", _attention(lambda given: {**given, "is_causal": False}), kernel("sdpa_causal", "attnlrp")),
    Mutant("causal mask off by one", _late_diagonal, kernel("sdpa_causal", "attnlrp")),
    Mutant("sums match in one order only", attribute(matcher, "COMMUTATIVE", set()), test_structure.test_the_operands_of_a_sum_may_stand_in_either_order),
    Mutant("two slices of one value are the same", attribute(matcher, "_same_entries", _same_root), found("halves of a gate")),
    Mutant("every sum is a skip connection", attribute(fxlrp.plan, "skip_connections", _every_add), lambda: test_structure.test_skip_connections("v1 = linear(x)\nv2 = linear(y)\nv3 = add(v1, v2)", 0)),
    Mutant("no sum is a skip connection", attribute(fxlrp.plan, "skip_connections", lambda graph, inside: []), lambda: test_structure.test_skip_connections("v1 = residual(x)\nv2 = residual(v1)", 2)),
    Mutant("one program for every call", attribute(fxlrp.model.ConvertedModel, "captured", _first_program), test_structure.test_one_conversion_serves_calls_with_and_without_a_mask),
    Mutant("a program accepts any shape", attribute(Program, "accepts", lambda self, inputs: True), test_structure.test_a_branch_on_the_length_is_captured_anew),
)  # fmt: skip


# --- rewriting, ledger, targets -------------------------------------------------------------------------------------------------


def _no_tuple_detach(self: Any, node: Any, original: Any = rewriting._Rewriting._emit) -> Any:
    made = original(self, node)
    cut = node not in self.plan.carrying and made.target is aten.detach.default
    return made.args[0] if cut else made


def _attributes_nothing(self: Any, *arguments: Any, original: Any = rewriting._Rewriting.__init__) -> None:
    original(self, *arguments)
    self.attributed = set()


def _no_leaf_for_weights(self: Any, user: Any, value: Any, like: Any, original: Any = rewriting._Rewriting._leaf) -> Any:
    if hasattr(value, "op") and value.op == "placeholder":
        return self.values[value]
    return original(self, user, value, like)


def _unused_leaf(self: Any, user: Any, value: Any, like: Any, original: Any = rewriting._Rewriting._leaf) -> Any:
    original(self, user, value, like)
    return self.values[value] if hasattr(value, "op") else value


def _with_infinities(value: Tensor, message: Tensor | None) -> Tensor:
    return torch.zeros((), dtype=torch.float64) if message is None else (value * message).detach().double().sum()


def _next_class(*arguments: Any, original: Any = fxlrp.targets.resolve) -> Any:
    chosen = original(*arguments)
    return Selection(tuple((*place[:-1], place[-1] - 1) for place in chosen.index))


def _first_value(program: Any, original: Any = fxlrp.model.module_outputs) -> Any:
    paths = original(program)
    inside = {path: [n for n in program.graph.nodes if path in [p for p, _ in fxlrp.model.module_stack(n)]] for path in paths}
    return {path: inside[path][0] for path in paths} | {"v2": paths["v1"], "v1": program.placeholders["x"]}


def _logit_for_probability(self: Selection, outputs: Any, seed: str, original: Any = Selection.__call__) -> Tensor:
    return original(self, outputs, "logit")


def _nothing_held(outputs: Any, constant: Any, explain: Any, original: Any = fxlrp.ledger._not_carried) -> Any:
    held, rest = original(outputs, constant, explain)
    return torch.zeros_like(held), rest


READ_OUT_MUTANTS = (
    Mutant("cut branches not detached", attribute(rewriting._Rewriting, "_constant", lambda self, node: self.values[node] if hasattr(node, "op") else node), closes("v1 = linear(x)\nv2 = linear(v1, seed=1)\nv3 = gate(v1, v2)", "cp-lrp")),
    Mutant("cut inputs not detached", attribute(rewriting._Rewriting, "__init__", _attributes_nothing), found("queries cut off in cross attention")),
    Mutant("cut halves of a split not detached", attribute(rewriting._Rewriting, "_emit", _no_tuple_detach), found("split with one output cut off")),
    Mutant("weights are no sources", attribute(rewriting._Rewriting, "_leaf", _no_leaf_for_weights), closes("v1 = linear(x)")),
    Mutant("leaves stand unused", attribute(rewriting._Rewriting, "_leaf", _unused_leaf), closes("v1 = add_scalar(x)")),
    Mutant("infinite masks count", attribute(fxlrp.ledger, "product_sum", _with_infinities), test_regressions.test_infinite_mask),
    Mutant("a constant output has no entry", attribute(fxlrp.ledger, "_not_carried", _nothing_held), found("output held constant")),
    Mutant("the wrong class is explained", attribute(import_module("fxlrp.attribute"), "resolve", _next_class), agrees("v1 = mlp(x)")),
    Mutant("padding is explained", attribute(fxlrp.targets, "last_position", lambda mask, sample, length: length - 1), lambda: test_invariances.test_padding_changes_nothing_and_receives_nothing("gpt2", "right")),
    Mutant("a logit for a probability", attribute(Selection, "__call__", _logit_for_probability), test_structure.test_a_probability_is_explained_where_the_ruleset_says_so),
    Mutant("a tap at a module's input", attribute(fxlrp.model, "module_outputs", _first_value), test_structure.test_relevance_at_a_module_is_that_of_its_output),
)  # fmt: skip

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant for table in (RULE_MUTANTS, KERNEL_MUTANTS, PASS_MUTANTS, READ_OUT_MUTANTS) for mutant in table
}
