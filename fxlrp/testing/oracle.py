"""A second, slow propagation that shares no code with the fast one: relevance itself, carried backwards node by node.

In: a converted model, inputs, a target. Out: the relevance of each input. The canonical graph is run in
float64 with every value kept; then each node hands its relevance R to its operands by the *reference* of the
rule that the plan chose for it (the paper's own R-form in plain loops), or, where the plan keeps the plain
gradient, by R_x = x * J^T (R_y / y). No surrogate, no kernel, no rewritten graph takes part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture import Program
from fxlrp.engine.outputs import Scored
from fxlrp.engine.targets import Target, named, resolve
from fxlrp.errors import InputError
from fxlrp.explain.model import ConvertedModel
from fxlrp.graph.axes import samples_axis
from fxlrp.graph.nodes import run
from fxlrp.graph.operators import is_continuous, nodes_in, operator_of
from fxlrp.planning.plan import Decision, Plan
from fxlrp.readout.passes import Task
from fxlrp.rules import Conserves, Post, take_apart
from fxlrp.rules.operation import IDENTITY
from fxlrp.rules.primitives import ratio
from fxlrp.spec.lines import Scope
from fxlrp.spec.readings import InputReading

#: Two numbers that agree but for rounding: relative to the largest relevance.
AGREEMENT = 1e-8


def propagate(lrp: ConvertedModel, inputs: Any, target: Target = None) -> dict[str, Tensor]:
    """The relevance of every attributed input: [batch, tokens] for ids, the input's shape for floats.

    target: an int, one int per sample, a position or None, as in :meth:`ConvertedModel.attribute` (not a
    callable). To compare: ``lrp.attribute(inputs, target=target).inputs`` agrees to about 1e-8 of the largest
    entry.

    Where a value is exactly 0 its relevance x * g is 0 whatever g is. That changes nothing where the operation's
    contributions vanish with its value (products, ReLU, masks, maxima); it supposes that no sum of nonzero terms is
    exactly 0, true of random weights. Raises :class:`fxlrp.InputError` for what it does not follow: a ruleset that
    reads out something else than relevance at the inputs (:func:`at_inputs` is the ruleset that does), compares with
    a reference or treats several operations as one; :class:`fxlrp.FxlrpError` for whatever attribution refuses.
    """
    prepared = lrp.conversion.prepare(inputs)
    given, captured = prepared.given, prepared.captured
    plan = lrp.plan
    if reason := not_propagated(plan):
        raise InputError(reason)
    values = in_double(lrp, captured.program, given)
    arrived: dict[tuple[fx.Node, int], Tensor] = {}
    returned: Any = plan.program.graph.output_node().args[0]
    for node, relevance in zip(returned, _seed(lrp, plan, values, given, target), strict=True):
        if relevance is not None and isinstance(node, fx.Node):
            _arrive(arrived, node, 0, relevance)
    attributed = {each.node for each in plan.structure.attributed}
    for node in reversed(plan.program.graph.nodes):
        if node in plan.forks and (node, 0) in arrived:
            arrived[node, 0] = _at_fork(plan.forks[node], values[node], arrived[node, 0])
        if node.op == "call_function" and node in plan.carrying and node not in attributed:
            _step(plan, node, values, arrived)
    result: dict[str, Tensor] = {}
    task = Task(lrp.conversion, prepared, target)
    for each in plan.structure.attributed:
        whole = arrived.get((each.node, 0), torch.zeros_like(values[each.node]))
        for name, share in task.by_entry(each, whole):
            value = share.sum(-1) if each.lookup else share
            result[name] = result[name] + value if name in result else value
    return result


def not_propagated(plan: Plan) -> str:
    """Why the slow propagation does not follow a plan; empty where it does."""
    rules = plan.ruleset
    if rules.readout != InputReading():
        return (
            f"'{rules.name}' reads out {rules.readout.reads} in a way of its own, and the second opinion is plain "
            f"relevance at the inputs. Compare under fxlrp.testing.at_inputs('{rules.name}')."
        )
    if plan.compares:
        return f"'{rules.name}' compares with a reference, and the second opinion propagates the values of one run."
    for decision in (*plan.decisions.values(), *plan.forks.values()):
        if decision.scope is not Scope.OPERATION:
            return (
                f"'{rules.name}' takes a whole {decision.scope.value} for one operation ('{decision.rule.name}' at "
                f"'{decision.label}'), and the second opinion goes operation by operation."
            )
        if not decision.rule.references:
            return (
                f"Rule '{decision.rule.name}' of '{rules.name}' has no slow reference to compare with: register one "
                f"with @{decision.rule.name}.reference."
            )
    return ""


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest deviation between two answers, relative to the largest entry; NaN if either holds one."""
    size = max(float(value.abs().max()) for value in expected.values())
    errors = [float((found[name].double() - value.double()).abs().max()) for name, value in expected.items()]
    return math.nan if any(map(math.isnan, errors)) else max(errors) / (size or 1.0)


def in_double(lrp: ConvertedModel, program: Program, given: Mapping[str, Any]) -> dict[fx.Node, Any]:
    """The value of every node, floats as float64 (after any rounding that a cast in the graph asks for)."""
    return run(program.graph, program.arguments(lrp.model, given), each=lambda node, value: _double(value))


def _double(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_double(item) for item in value)
    if not isinstance(value, Tensor):
        return value
    if value.is_complex():
        return value.detach().to(torch.complex128)
    return value.detach().double() if value.is_floating_point() else value


def _real(value: Tensor) -> Tensor:
    """A complex number as its two parts, each of which carries relevance of its own."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _seed(
    lrp: ConvertedModel, plan: Plan, values: Mapping[fx.Node, Any], given: Mapping[str, Any], target: Target
) -> list[Tensor | None]:
    """R = y de/dy of each flat output y, for the explained scalar e, times what the ruleset begins with over e."""
    returned: Any = plan.program.graph.output_node().args[0]
    flat = [values[node] if isinstance(node, fx.Node) else node for node in returned]
    cut = [y.clone().requires_grad_() if isinstance(y, Tensor) and y.is_floating_point() else y for y in flat]
    outputs = plan.program.unpack(tuple(cut))
    conventions = lrp.conversion.conventions
    scored = Scored.of(outputs, named(target)[0], lrp.config, conventions, given, None)
    chosen = resolve(target, outputs, conventions.mask_of_outputs(given), scored)
    leaves = [y for y in cut if isinstance(y, Tensor) and y.requires_grad]
    rules = lrp.ruleset
    with torch.enable_grad():
        explained = chosen(outputs, rules.explained)
    begun = (chosen(outputs, rules.begun) / explained).detach()
    grads = iter(torch.autograd.grad((begun * explained).sum(), leaves, allow_unused=True))
    seeds: list[Tensor | None] = []
    for y in cut:
        message = next(grads) if isinstance(y, Tensor) and y.requires_grad else None
        seeds.append(None if message is None else y.detach() * message)
    return seeds


def _at_fork(decision: Decision, value: Tensor, relevance: Tensor) -> Tensor:
    """What the rule for both ways of a skip connection leaves of what arrives from them."""
    with torch.no_grad():
        slow: Any = decision.rule.references[0](IDENTITY, relevance, value, **decision.params)
    left: Tensor = slow[0] if isinstance(slow, tuple) else slow
    return left


def _arrive(arrived: dict[tuple[fx.Node, int], Tensor], node: fx.Node, index: int, relevance: Tensor) -> None:
    key = (node, index)
    arrived[key] = arrived[key] + relevance if key in arrived else relevance


def _step(plan: Plan, node: fx.Node, values: Mapping[fx.Node, Any], arrived: dict[tuple[fx.Node, int], Tensor]) -> None:
    """Hand on what arrived at ``node`` to those of its operands that carry relevance."""
    decision = plan.decisions.get(node)
    parts = values[node] if isinstance(values[node], (tuple, list)) else [values[node]]
    relevance = [arrived.get((node, index)) for index in range(len(parts))]
    if all(r is None for r in relevance) or (decision and decision.rule.conserves is Conserves.NOTHING):
        return
    if decision is None or decision.rule.plain:
        shares = _by_gradient(plan, node, values, relevance)
    else:
        shares = _by_reference(plan, node, decision, values, relevance[0])
    received = list(shares.values())
    first = [0 if relevance[0] is None else samples_axis(node), *(samples_axis(source) for source, _ in shares)]
    for post in decision.post if decision else ():
        received = _after(post, relevance[0], received, first)
    for (operand, index), share in zip(shares, received, strict=True):
        _arrive(arrived, operand, index, share)


def _by_reference(
    plan: Plan, node: fx.Node, decision: Decision, values: Mapping[fx.Node, Any], relevance: Tensor | None
) -> dict[tuple[fx.Node, int], Tensor]:
    """What the rule's slow reference hands to each operand that carries relevance."""
    site = take_apart(node, plan.carrying.__contains__)
    operands = [values[operand] if isinstance(operand, fx.Node) else operand for operand in site.operands]
    operation = site.operation.bind([values[extra] for extra in site.extras])
    with torch.no_grad():
        slow = decision.rule.references[0](operation, relevance, *operands, **decision.params)
    shares: dict[tuple[fx.Node, int], Tensor] = {}
    for index, share in enumerate(slow if isinstance(slow, tuple) else (slow,)):
        if site.operation.live[index]:
            x = operands[index]
            _arrive(shares, site.operands[index], 0, _finite(x, share.sum_to_size(x.shape)))
    return shares


#: The axes that a post-operation's sums keep apart, for the axes that it sums over, where samples lie along the first.
_KEPT: dict[str, Callable[[Tensor], torch.Size]] = {
    "features": lambda r: r.shape[:-1],
    "matrix": lambda r: r.shape[:-2] if r.ndim > 2 else r.shape[:1],
    "sample": lambda r: r.shape[:1],
}


def _after(post: Post, arrived: Tensor | None, received: Sequence[Tensor], samples: Sequence[int]) -> list[Tensor]:
    """What a post-operation makes of the relevance that an operation's operands receive, sum by sum in plain loops."""
    assert arrived is not None
    arrived, *received = (r.movedim(axis, 0) for r, axis in zip((arrived, *received), samples, strict=True))
    return [r.movedim(0, axis) for r, axis in zip(_by_sample(post, arrived, received), samples[1:], strict=True)]


def _by_sample(post: Post, arrived: Tensor, received: Sequence[Tensor]) -> list[Tensor]:
    """The same where samples lie along the first axis of each."""
    if post.kind == "abs":
        return [r.abs() for r in received]
    if post.kind == "clamp":
        return [r * (r > 0) for r in received]
    size = torch.abs if post.kind == "match_abs_sum" else torch.clone
    added = 0.0 if post.kind == "match_abs_sum" else post.epsilon
    kept = next(k for k in (_KEPT[post.over], _KEPT["sample"]) if all(k(arrived) == k(r) for r in received))
    result = [r.clone() for r in received]
    for place in product(*map(range, kept(arrived))):
        total = sum(float(size(r[place]).sum()) for r in received) + post.epsilon
        wanted = float(size(arrived[place]).sum()) + added
        for r in result:
            r[place] *= wanted / total if total else 0.0
    return result


def _by_gradient(
    plan: Plan,
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    relevance: list[Tensor | None],
) -> dict[tuple[fx.Node, int], Tensor]:
    """R_x = x * J^T (R_y / y) with the Jacobian of this one operation; entries that only move take theirs along."""
    operator = operator_of(node)
    assert operator is not None
    copies = operator.copies
    live = [n for n in dict.fromkeys(nodes_in(node, operator.factors + operator.terms)) if n in plan.carrying]
    leaves: dict[tuple[fx.Node, int], Tensor] = {}
    replaced = dict(values)
    for operand in live:
        whole = values[operand]
        parts = list(whole) if isinstance(whole, (tuple, list)) else [whole]
        for index, part in enumerate(parts):
            if is_continuous(part):
                leaf = leaves[operand, index] = _real(part).clone().requires_grad_()
                parts[index] = torch.view_as_complex(leaf) if part.is_complex() else leaf
        replaced[operand] = type(whole)(parts) if isinstance(whole, (tuple, list)) else parts[0]
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), replaced.__getitem__)
    with torch.enable_grad():
        made = node.target(*args, **kwargs)  # type: ignore[operator]
    pairs = [
        (y, _finite(y.detach(), r if copies else ratio(r, y.detach().double())).to(y.dtype))
        for y, r in (
            (_real(y), r)
            for y, r in zip(made if isinstance(made, (tuple, list)) else [made], relevance, strict=True)
            if r is not None and isinstance(y, Tensor) and y.requires_grad
        )
    ]
    shares: dict[tuple[fx.Node, int], Tensor] = {}
    if not pairs:
        return shares
    outputs, messages = zip(*pairs, strict=True)
    grads = torch.autograd.grad(outputs, list(leaves.values()), messages, allow_unused=True)
    for (operand, index), grad in zip(leaves, grads, strict=True):
        if grad is not None:
            x = leaves[operand, index].detach()
            _arrive(shares, operand, index, _finite(x, grad if copies else x * grad))
    return shares


def _finite(x: Tensor, amount: Tensor) -> Tensor:
    """A mask of -inf carries nothing."""
    return torch.where(torch.isfinite(x), amount, torch.zeros_like(amount))
