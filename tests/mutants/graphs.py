"""Patches that change rewritten graphs: what a pass would have made, had it forgotten one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import fx

from fxlrp.engine import conversion
from fxlrp.engine.ledger import Ledger
from fxlrp.planning.plan import Plan
from fxlrp.rewrite import Rewritten
from fxlrp.rewrite.call import source_leaf
from tests.mutants.mutant import Patch, attribute

explaining = import_module("fxlrp.explain.attribute")


def rewritten(change: Callable[[Plan, Rewritten], Rewritten | None]) -> Patch:
    """Every rewritten graph after ``change``, which may edit it in place."""

    def mutant(plan: Plan, *arguments: Any, original: Any = conversion.rewrite, **options: Any) -> Rewritten:
        made: Rewritten = original(plan, *arguments, **options)
        changed = change(plan, made) or made
        changed.module.graph.lint()
        changed.module.recompile()
        return changed

    return attribute(conversion, "rewrite", mutant)


def without_detach(chosen: Callable[[fx.Node, tuple[fx.Node, ...]], bool]) -> Patch:
    """Graphs in which the cut edges that ``chosen`` picks, given the attributed values, are connected."""

    def change(plan: Plan, made: Rewritten) -> None:
        for node in list(made.module.graph.nodes):
            if node.target is torch.detach and chosen(node, attributed(made)):
                node.replace_all_uses_with(node.args[0])

    return rewritten(change)


def attributed(made: Rewritten) -> tuple[fx.Node, ...]:
    """The attributed values as they stand in the rewritten graph."""
    output: Any = made.module.graph.output_node().args[0]
    return tuple(output[1])


def unused_leaves(plan: Plan, made: Rewritten) -> None:
    """The leaves of additive constants stand there, and the constants are used in their place."""
    output = made.module.graph.output_node()
    for leaf in [node for node in made.module.graph.nodes if node.target is source_leaf]:
        value = leaf.args[0]
        if isinstance(value, fx.Node):
            leaf.replace_all_uses_with(value, delete_user_cb=lambda user: user is not output)
        else:
            leaf.args = (0.5 * value, *leaf.args[1:])  # a number has no node: the leaf stands for another


def without_weights(plan: Plan, made: Rewritten) -> Rewritten:
    """Weights that are added have no leaf."""
    output = made.module.graph.output_node()
    found: Any = output.args[0]
    if len(found) < 4:
        return made
    kept = [i for i, (leaf, _) in enumerate(found[3]) if getattr(leaf.args[0], "op", "") != "placeholder"]
    for i, (leaf, _) in enumerate(found[3]):
        if i not in kept:
            leaf.replace_all_uses_with(leaf.args[0], delete_user_cb=lambda user: user is not output)
    output.args = ((*found[:3], tuple(found[3][i] for i in kept), *found[4:]),)
    return replace(made, sources=tuple(made.sources[i] for i in kept))


def reference_is_input(plan: Plan, made: Rewritten) -> None:
    """What is compared with is the input itself."""
    here = dict(zip((each.node for each in plan.structure.attributed), attributed(made), strict=True))
    given = {str(node.target): node for node in made.module.graph.nodes if node.op == "placeholder"}
    for name, node in made.references.items():
        value = here.get(node) or given[str(node.target)]
        with made.module.graph.inserting_after(value):
            held = made.module.graph.call_function(torch.detach, (value,))
        for later in [*made.module.graph.nodes]:
            if given[name] in later.all_input_nodes and later is not held:
                later.replace_input_with(given[name], held)
    _in_order(made.module.graph)


def _in_order(graph: fx.Graph) -> None:
    """Put every operation behind its operands: what used an argument may now use a value made later."""
    place = graph.output_node()
    seen: set[fx.Node] = set()

    def after(node: fx.Node) -> None:
        if node in seen or node.op != "call_function":
            return
        seen.add(node)
        for operand in node.all_input_nodes:
            after(operand)
        place.prepend(node)

    for node in [n for n in graph.nodes if n.op == "call_function"]:
        after(node)


def ledgers(change: Callable[[Ledger], Ledger]) -> Patch:
    """Every ledger after ``change``."""

    def mutant(*arguments: Any, original: Any = explaining.compute_ledger) -> Ledger:
        return change(original(*arguments))

    return attribute(explaining, "compute_ledger", mutant)
