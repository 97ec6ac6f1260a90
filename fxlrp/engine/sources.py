"""What the entries of a ledger are called: where an additive constant comes from, and what it is to the model.

In: a plan, the values of its inputs and of the constants. Out: a module path (or input name) and a kind. Both follow
from the graph and from values: what is added where, made of what; names of parameters and inputs are shown, never read.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.graph.nodes import ancestors, module_path, tensor_value
from fxlrp.graph.operator_classes import (
    ACTIVATION,
    ADD,
    CONVOLUTION,
    LINEAR,
    MATMUL,
    PRODUCT,
    QUOTIENT,
    RECTIFIER,
    OperatorClass,
)
from fxlrp.graph.operator_table import NORMS, ROOTS
from fxlrp.graph.operators import Move, is_movement, nodes_in, operator_of, packet
from fxlrp.graph.uses import hides, is_counted, is_mask, made_of, uses_of
from fxlrp.planning.plan import Plan
from fxlrp.rewrite.graph import Leak, Source

POSITION = "position embedding"
_MAPS = (LINEAR, MATMUL, CONVOLUTION)
_ENTRYWISE = (ACTIVATION, ADD, PRODUCT, RECTIFIER)
_NEAR = 64  # how many values behind a constant are looked at to name it


class Naming:
    """Names for the sources and leaks of one plan. ``given`` are the values of the program's inputs by placeholder."""

    def __init__(self, plan: Plan, given: Mapping[str, Any]) -> None:
        self.plan, self.given = plan, given
        program = plan.program
        self.inputs = [program.placeholders[name] for name in program.inputs]
        self.masks: dict[fx.Node, bool] = {}
        self.shifts = {n for f in program.fused.values() if packet(f.target) in NORMS for n in f.members}

    def source(self, source: Source, value: Tensor) -> tuple[str, str]:
        """Where an additive constant comes from, and its kind in the field's words; ``value`` is what it is."""
        node, user = source.value, source.user
        if not isinstance(node, fx.Node):
            return module_path(user) or user.name, "scalar"
        weights = self._weights_behind(node)
        path = ", ".join(weights[:2]) or module_path(node) or module_path(user) or node.name
        if node in self.plan.states:
            return path, "initial state"
        kind = self._kind(node, user, value)
        if kind in ("embedding", "other input"):
            names = [self.plan.program.inputs[str(n.target)] for n in self._inputs_behind(node)]
            path = ": ".join([", ".join(names), *([path] if weights else [])]) if names else path
        return path, kind

    def leak(self, leak: Leak) -> tuple[str, str]:
        """Where a rule keeps relevance, and what that is called: a plain gradient by what it goes through."""
        node, kind = leak.node, leak.call.rule.leak_kind or "not passed on"
        if kind == "plain gradient":
            labels = self.plan.structure.labels.get(node, ())
            pattern = next((label.split(".")[0] for label in labels if label != "residual"), "")
            decision = self.plan.decisions.get(node)
            kind = f"{pattern or decision.category} gradient" if decision else "not passed on"
        return module_path(node) or node.name, kind

    def is_position(self, source: Source, value: Tensor) -> bool:
        """Whether an additive constant tells tokens by their place."""
        return self.source(source, value)[1] == POSITION

    def _kind(self, node: fx.Node, user: fx.Node, value: Tensor) -> str:
        behind, labels = list(ancestors(node, sources=_valued)), self.plan.structure.labels.get(user, ())
        given = any(n in self.inputs for n in behind)
        if any(n in self.plan.carrying for n in behind):
            return "value held constant"
        operator = operator_of(user)
        if not given and ("norm.shift" in labels or user in self.shifts):
            return "norm shift"
        added = operator is not None and operator.factors and node in nodes_in(user, operator.terms)
        if added and not given and self._weights_behind(node):
            return "bias"
        if not given and any(label.startswith("norm") for label in labels):
            return "norm constant"
        joined = operator is not None and (operator.category == ADD or operator.masks)
        if joined and hides(user, self.plan.carrying):
            return self._of_scores(node, value)
        chosen = self._chosen(node)
        if chosen and any(self._places(ids) for ids in chosen):
            return POSITION
        if given:
            return "embedding" if chosen else self._of_inputs(node)
        return self._constant(node, user, value, bool(chosen))

    def _of_scores(self, node: fx.Node, value: Tensor) -> str:
        """What is added to the scores of an attention: a mask, or a bias that differs by position."""
        if is_counted(node) or self._chosen(node):
            return "position bias"
        return "position bias" if self._weights_behind(node) and not _hiding(value) else "mask"

    def _of_inputs(self, node: fx.Node) -> str:
        """What is computed from inputs that are not attributed, otherwise than by looking them up."""
        made = made_of(node)
        if is_counted(node) and not any(n in self.inputs for n in made):
            return POSITION
        return "mask" if all(self._masks(n) for n in made if n in self.inputs) else "other input"

    def _masks(self, placeholder: fx.Node) -> bool:
        if placeholder not in self.masks:
            self.masks[placeholder] = is_mask(uses_of(placeholder.graph, self.inputs, placeholder))
        return self.masks[placeholder]

    def _constant(self, node: fx.Node, user: fx.Node, value: Tensor, chosen: bool) -> str:
        """What is made of parameters, buffers and numbers alone."""
        operator = operator_of(user)
        learnt = bool(self._weights_behind(node))
        kind = "parameter" if learnt else "constant"
        adds = operator is not None and operator.category == ADD
        joins = operator is not None and operator.move is Move.JOINS
        if joins and not _last_axis(user):
            return "class token" if learnt else "constant"
        if (adds or joins) and _by_place(user, value, self.plan.carrying):
            return POSITION
        if chosen:
            return "embedding"
        if adds and learnt:
            return "norm shift" if self._standardises(user) else "bias"
        return kind

    def _standardises(self, user: fx.Node) -> bool:
        """Whether a sum shifts a value that is divided by a constant deviation, before or after."""
        beside = [n for n in user.all_input_nodes if n in self.plan.carrying]
        for product in (*beside, *user.users):
            operator = operator_of(product)
            if operator is not None and operator.category in (PRODUCT, QUOTIENT):
                factors = [n for n in product.all_input_nodes if n not in self.plan.carrying]
                if any(packet(n.target) in ROOTS for factor in factors for n in ancestors(factor)):
                    return True
        return False

    def _chosen(self, node: fx.Node) -> list[fx.Node]:
        """The integers by which rows of tables are chosen for a constant."""
        pairs = ((n, _indices(n)) for n in made_of(node))
        return [ids for n, ids in pairs if ids is not None and self._weights_behind(n)]

    def _places(self, ids: fx.Node) -> bool:
        """Whether rows of a table are chosen by counting: by the graph, or because given ids count."""
        if is_counted(ids):
            return True
        behind = [self.given.get(str(n.target)) for n in made_of(ids) if n in self.inputs]
        return bool(behind) and all(isinstance(value, Tensor) and counts(value) for value in behind)

    def _inputs_behind(self, node: fx.Node) -> list[fx.Node]:
        """The inputs that a constant is made of, or whose rows of a table it is."""
        made = made_of(node)
        chosen = [n for ids in self._chosen(node) for n in made_of(ids)]
        return [n for n in dict.fromkeys([*made, *chosen]) if n in self.inputs]

    def _weights_behind(self, node: fx.Node) -> list[str]:
        """The parameters and buffers that a constant is made of, nearest first."""
        weights = self.plan.program.weights
        near = islice(made_of(node, self.plan.carrying), _NEAR)
        return [weights[str(n.target)] for n in near if n.op == "placeholder" and n.target in weights]


def counts(ids: Tensor) -> bool:
    """Whether integers count along their last axis: by one from each to the next, in one row at least from end to end;
    the others may be padded, on either side, with one value throughout.
    """
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim == 0 or ids.shape[-1] < 2:
        return False
    steps = ids.reshape(-1, ids.shape[-1]).diff(dim=-1).tolist()
    return any(all(step == 1 for step in row) for row in steps) and all(map(_counts_but_for_padding, steps))


def _counts_but_for_padding(steps: list[int]) -> bool:
    def padded(way: list[int]) -> bool:
        run = next((i for i, step in enumerate(way) if step != 1), len(way))
        return not any(way[run + 1 :])

    return padded(steps) or padded(steps[::-1])


def _valued(node: fx.Node) -> list[fx.Node]:
    """What a node's value depends on, conditions and indices too, but nothing by its size alone."""
    operator = operator_of(node)
    return [] if operator is not None and operator.sized else node.all_input_nodes


def _indices(node: fx.Node) -> fx.Node | None:
    """The integers by which a node chooses rows of a table; None if it chooses none."""
    operator = operator_of(node)
    if operator is None or not operator.indexed:
        return None
    others = [n for n in node.all_input_nodes if n not in nodes_in(node, operator.terms)]
    values = ((n, tensor_value(n)) for n in others)
    return next((n for n, v in values if v is not None and not v.is_floating_point() and v.dtype != torch.bool), None)


def _hiding(value: Tensor) -> bool:
    """Whether, added to scores, a value takes all weight from some entry of each row."""
    below = value.double() - value.double().amax(-1, keepdim=True)
    return bool((below.exp() < torch.finfo(value.dtype).eps).any())


def _last_axis(user: fx.Node) -> bool:
    """Whether values are joined along the last axis, that of features."""
    axis: Any = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
    value = tensor_value(user)
    return value is not None and axis in (-1, value.ndim - 1)


def _by_place(user: fx.Node, value: Tensor, carrying: Container[fx.Node]) -> bool:
    """Whether a constant differs along an axis of tokens, or pixels, of the value that it joins.

    What differs along two axes at least does, unless these are the features of the linear map before it, split into
    heads; along one alone, if that is the middle one of [batch, tokens, features].
    """
    joined = tensor_value(user)
    if joined is None:
        return False
    spread = joined.ndim - value.ndim
    axes = [a for a in range(value.ndim) if bool((value != value.narrow(a, 0, 1)).any())]
    before = _map_before(user, carrying)
    if len(axes) != 1:
        return len(axes) > 1 and math.prod(value.shape[a] for a in axes) != _features(before)
    convolved = before is not None and _category(before) == CONVOLUTION
    return joined.ndim == 3 and axes[0] + spread not in (0, 1 if convolved else 2)


def _map_before(user: fx.Node, carrying: Container[fx.Node]) -> fx.Node | None:
    """The linear map that the other part of a sum is made by, moved or changed entry by entry since."""
    node = user
    for _ in range(_NEAR):
        if _category(node) in _MAPS:
            return node
        entrywise = _category(node) in _ENTRYWISE
        live = [n for n in node.all_input_nodes if n in carrying]
        if not live or not (entrywise or is_movement(node)):
            return None
        node = live[0]
    return None


def _features(mapped: fx.Node | None) -> int | None:
    """How many features a linear map makes of those along the last axis of its operand, by the size of its weights."""
    operator = operator_of(mapped) if mapped is not None else None
    if mapped is None or operator is None:
        return None
    values = [tensor_value(n) for n in nodes_in(mapped, operator.factors)]
    sizes = [math.prod(v.shape) if v is not None and _fixed(v) else None for v in values]
    taken = values[0].shape[-1] if values and values[0] is not None else None
    weights = next((size for size in reversed(sizes) if size is not None), None)
    return weights // taken if weights is not None and isinstance(taken, int) and taken else None


def _fixed(value: Tensor) -> bool:
    return all(isinstance(size, int) for size in value.shape)


def _category(node: fx.Node) -> OperatorClass | None:
    operator = operator_of(node)
    return operator.category if operator is not None else None
