"""Mutants of the passes: capture, patterns, plan, rewriting, ledger, targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from operator import getitem
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import fxlrp.capture.lengths
import fxlrp.engine.conversion
import fxlrp.engine.graphs
import fxlrp.engine.ledger
import fxlrp.engine.samples
import fxlrp.engine.targets
import fxlrp.graph.nodes
import fxlrp.patterns.structure
import fxlrp.planning.plan
from fxlrp.capture.canonical import REPLACEMENTS
from fxlrp.capture.program import Program
from fxlrp.engine.graphs import Captured
from fxlrp.engine.ledger import Ledger
from fxlrp.engine.samples import Along, Arrived
from fxlrp.engine.targets import Selection
from fxlrp.graph.operators import OPERATORS, is_movement, packet
from fxlrp.patterns import attempt
from fxlrp.rules.rule import Message
from tests.capture import test_lengths
from tests.engine import test_conversion, test_samples
from tests.mutants.graphs import ledgers, rewritten, unused_leaves, without_detach, without_weights
from tests.mutants.mutant import Mutant, Patch, agrees, attribute, closes, computes, entry, found
from tests.patterns import test_structure
from tests.properties import test_regressions

aten = torch.ops.aten


def _attention(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    original: Any = REPLACEMENTS[aten.scaled_dot_product_attention],
) -> Patch:
    def mutant(
        q: Any,
        k: Any,
        v: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Any:
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
    return [(n, n.args[0]) for n in graph.nodes if packet(n.target) is aten.add]


def _same_root(a: Any, b: Any) -> bool:
    return _moved_from(a) is _moved_from(b)


def _moved_from(value: Any) -> Any:
    while isinstance(value, fx.Node) and is_movement(value):
        value = value.args[0]
    return value


def _first_program(self: Any, inputs: Any, original: Any = fxlrp.engine.conversion.Conversion.captured) -> Any:
    if self.last is not None:
        return self.last
    return original(self, inputs)


PASS_MUTANTS = (
    Mutant(
        "subtraction from a number swapped",
        entry(REPLACEMENTS, aten.rsub, lambda a, b, alpha=1: aten.sub.Tensor(a, b)),
        computes("subtract_from_scalar"),
    ),
    Mutant(
        "scale of attention dropped",
        _attention(lambda given: {**given, "scale": 1.0}),
        computes("sdpa_scale"),
    ),
    Mutant(
        "causal flag dropped",
        _attention(lambda given: {**given, "is_causal": False}),
        computes("sdpa_causal"),
    ),
    Mutant("causal mask off by one", _late_diagonal, computes("sdpa_causal")),
    Mutant(
        "products match in one order only",
        entry(OPERATORS, aten.mul, replace(OPERATORS[aten.mul], commutative=False)),
        test_structure.test_the_operands_of_a_sum_may_stand_in_either_order,
    ),
    Mutant(
        "two slices of one value are the same",
        attribute(attempt, "same_entries", _same_root),
        test_structure.test_entries_that_are_scaled_by_others_are_no_norm,
    ),
    Mutant(
        "every sum is a skip connection",
        attribute(fxlrp.patterns.structure, "skip_connections", _every_add),
        lambda: test_structure.test_skip_connections("v1 = linear(x)\nv2 = linear(y)\nv3 = add(v1, v2)", 0),
    ),
    Mutant(
        "no sum is a skip connection",
        attribute(fxlrp.patterns.structure, "skip_connections", lambda graph, inside: []),
        lambda: test_structure.test_skip_connections("v1 = residual(x)\nv2 = residual(v1)", 2),
    ),
    Mutant(
        "one program for every call",
        attribute(fxlrp.engine.conversion.Conversion, "captured", _first_program),
        test_conversion.test_one_conversion_serves_calls_with_and_without_a_mask,
    ),
    Mutant(
        "a program accepts any shape",
        attribute(Program, "accepts", lambda self, model, inputs: True),
        test_conversion.test_a_branch_on_the_length_is_captured_anew,
    ),
)


def _of_a_value(detached: fx.Node, attributed: tuple[fx.Node, ...]) -> bool:
    return detached.args[0] not in attributed


def _of_an_input(detached: fx.Node, attributed: tuple[fx.Node, ...]) -> bool:
    return detached.args[0] in attributed


def _of_one_of_several(detached: fx.Node, attributed: tuple[fx.Node, ...]) -> bool:
    return detached.args[0].target is getitem  # type: ignore[union-attr]


def _with_infinities(kind: Message, value: Tensor, message: Tensor) -> Tensor:
    return value.detach() * message if kind is Message.GRADIENT else message


def _along_the_first_axis(*arguments: Any, original: Any = fxlrp.engine.samples.arrived) -> Any:
    for part in original(*arguments):
        first = {key: Along(0) for key, m in part.messages.items() if m.ndim and len(m) % len(part.samples) == 0}
        yield part if part.owners is None else replace(part, owners={**part.owners, **first})


def _with_no_rest(*arguments: Any, original: Any = fxlrp.engine.samples.of_degree_one) -> Tensor:
    found: Tensor | None = original(*arguments)
    return torch.zeros(arguments[-1], dtype=torch.float64) if found is None else found


def _never_mixed(scalars: Tensor, watched: Any, original: Any = fxlrp.engine.samples.arrived) -> Any:
    for part in original(scalars.sum()[None], watched):
        yield Arrived(range(len(scalars)), part.messages, {key: Along(0) for key in part.messages})


def _next_class(*arguments: Any, original: Any = fxlrp.engine.targets.resolve) -> Any:
    chosen = original(*arguments)
    return Selection(tuple((*place[:-1], place[-1] - 1) for place in chosen.index))


def _first_value(graph: fx.Graph, among: Any, original: Any = fxlrp.graph.nodes.module_outputs) -> Any:
    paths = original(graph, among)
    inside = {
        path: [n for n in graph.nodes if path in [p for p, _ in fxlrp.graph.nodes.module_stack(n)]] for path in paths
    }
    given = next(n for n in graph.nodes if n.op == "placeholder" and n.target == "x")
    return {path: (inside[path][0],) for path in paths} | {"v2": paths["v1"], "v1": (given,)}


def _logit_for_probability(
    self: Selection, outputs: Any, scores: Any = None, original: Any = Selection.__call__
) -> Tensor:
    return original(self, outputs)


def _nothing_held(ledger: Ledger) -> Ledger:
    return replace(ledger, entries=tuple(e for e in ledger.entries if e.kind != "value held constant"))


READ_OUT_MUTANTS = (
    Mutant(
        "cut branches not detached",
        without_detach(_of_a_value),
        closes("v1 = linear(x)\nv2 = linear(v1, seed=1)\nv3 = gate(v1, v2)", "cp-lrp"),
    ),
    Mutant(
        "cut inputs not detached",
        without_detach(_of_an_input),
        found("queries cut off in cross attention"),
    ),
    Mutant(
        "cut halves of a split not detached",
        without_detach(_of_one_of_several),
        found("split with one output cut off"),
    ),
    Mutant(
        "weights are no sources",
        rewritten(without_weights),
        closes("v1 = linear(x)"),
    ),
    Mutant(
        "leaves stand unused",
        rewritten(unused_leaves),
        closes("v1 = add_scalar(x)"),
    ),
    Mutant(
        "infinite masks count",
        attribute(fxlrp.engine.ledger, "relevance_of", _with_infinities),
        test_regressions.test_infinite_mask,
    ),
    Mutant(
        "samples lie along the first axis of every value",
        attribute(fxlrp.engine.ledger, "arrived", _along_the_first_axis),
        lambda: test_samples.batch_is_its_samples("time first", "attnlrp"),
    ),
    Mutant(
        "samples that a model mixes are taken for apart",
        attribute(fxlrp.engine.ledger, "arrived", _never_mixed),
        test_samples.test_samples_that_are_mixed_have_a_pass_each,
    ),
    Mutant(
        "what a stabiliser adds is no one's",
        attribute(fxlrp.engine.samples, "of_degree_one", _with_no_rest),
        lambda: test_samples.test_amounts_of_relevance_in_denominators_are_those_of_samples(1),
    ),
    Mutant(
        "a length that two recordings leave free is not looked at",
        attribute(Captured, "is_checked", lambda captured, sizes: True),
        lambda: test_lengths.test_what_grows_otherwise_is_recorded_anew("a square"),
    ),
    Mutant(
        "a list of another length is the list that was read",
        attribute(fxlrp.capture.lengths, "as_long", lambda values, size: values.repeat(size)[:size]),
        test_lengths.test_a_list_that_is_read_is_longer_by_its_last_entry,
    ),
    Mutant(
        "recordings are not joined",
        attribute(fxlrp.engine.graphs, "joined", lambda one, other: None),
        lambda: test_lengths.test_two_lengths_serve_all("a causal mask"),
    ),
    Mutant(
        "a constant output has no entry",
        ledgers(_nothing_held),
        found("output held constant"),
    ),
    Mutant(
        "the wrong class is explained",
        attribute(import_module("fxlrp.engine.explained"), "resolve", _next_class),
        agrees("v1 = mlp(x)"),
    ),
    Mutant(
        "padding is explained",
        attribute(fxlrp.engine.targets, "last_position", lambda mask, sample, length: length - 1),
        test_conversion.test_the_last_word_is_explained_not_the_padding_behind_it,
    ),
    Mutant(
        "a logit for a probability",
        attribute(Selection, "__call__", _logit_for_probability),
        test_conversion.test_a_probability_is_explained_where_the_ruleset_says_so,
    ),
    Mutant(
        "a tap at a module's input",
        attribute(fxlrp.engine.conversion, "module_outputs", _first_value),
        test_conversion.test_relevance_at_a_module_is_that_of_its_output,
    ),
)
