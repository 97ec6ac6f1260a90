"""One spelling per operation: a table of operator -> replacement and one walk over the exported graph.

Replacements are written in ATen operators on proxies, as a model would write them. Weights are shared and the
order of the graph is kept; each new node inherits module path and source line of the node it replaces.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.proxy import Proxy

from fxlrp.capture import torch_private as private
from fxlrp.capture.builder import Builder
from fxlrp.capture.integers import carry_through_grids
from fxlrp.capture.one_hot import look_up_one_hot
from fxlrp.errors import CaptureError
from fxlrp.graph.nodes import drop_unused, module_path, source_line
from fxlrp.graph.operators import OPERATORS, packet

aten = torch.ops.aten

#: Operators replaced by other operators: functions of the same arguments, given as proxies. ``None`` keeps the node.
REPLACEMENTS: dict[Any, Callable[..., Any]] = {}
#: Those among them that are one fused operation worth recovering as a whole.
FUSED: set[Any] = set()


def replaces(*packets: Any, fused: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a replacement for operators; ``fused`` remembers the operation so that rewriting can use it whole."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for key in packets:
            REPLACEMENTS[key] = function
            if fused:
                FUSED.add(key)
        return function

    return register


@dataclass(frozen=True)
class Fused:
    """An operator that was expanded: what it was, its arguments in the canonical graph, and the nodes it became."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    members: tuple[fx.Node, ...]

    @property
    def arguments(self) -> list[fx.Node]:
        """The values that it is computed from."""
        found: list[fx.Node] = []
        fx.map_arg((self.args, dict(self.kwargs)), found.append)
        return found

    def moved(self, values: Mapping[fx.Node, fx.Node]) -> Fused:
        """The same in another graph, whose nodes ``values`` gives."""
        args, kwargs = fx.map_arg((self.args, dict(self.kwargs)), values.__getitem__)
        return Fused(self.target, args, kwargs, tuple(values[node] for node in self.members))


_DROPPED = {
    aten._assert_tensor_metadata,
    aten._assert_scalar,
    aten._assert_async,
    aten.sym_constrain_range,
    aten.sym_constrain_range_for_size,
}
#: Wrappers whose inner graph takes their place, by which of their arguments that is.
INLINED = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
#: How often what an operator is taken apart into is taken apart itself: a cross entropy needs four.
DEPTH = 8
_AUTOCAST = "wrap_with_autocast"


def decomposed(exported: ExportedProgram) -> ExportedProgram:
    """Without in-place operators, casts of torch.autocast written out, and operators that no table knows taken apart
    into ones that it does.
    """
    known = torch.export.default_decompositions()
    for _ in range(DEPTH):
        strange = {node.target for node in exported.graph.nodes if unknown(node.target)}
        table = {target: known[target] for target in strange if target in known}
        if not table and not mutates(exported.graph) and not any(map(_casts, exported.graph.nodes)):
            break
        exported = exported.run_decompositions(table)
    return exported


def canonicalise(module: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, Fused]]:
    """The canonical graph of a traced module, and the fused operators it once had, by their exit node."""
    graph = fx.Graph()
    values = [node.meta.get("val") for node in module.graph.nodes]
    mode = next(filter(None, map(private.fake_mode_of, values)), None)
    walk = _Walk(graph, Builder(graph, mode))
    result = walk.copy(module, {})
    graph.output(result)
    carry_through_grids(graph, walk.builder)
    look_up_one_hot(graph, walk.builder)
    drop_unused(graph)
    graph.lint()
    alive = set(graph.nodes)
    return graph, {exit_node: fused for exit_node, fused in walk.fused.items() if exit_node in alive}


def _casts(node: fx.Node) -> bool:
    """Whether what a node runs is cast by torch.autocast."""
    return is_higher_order(node) and str(node.target) == _AUTOCAST and bool(node.args[2])


def is_higher_order(node: fx.Node) -> bool:
    """Whether a node runs graphs of its own."""
    return isinstance(node.target, private.HigherOrderOperator)


def is_branch(node: fx.Node) -> bool:
    """Whether the values of tensors decide what a node runs, or how often: a branch, a loop."""
    return is_higher_order(node) and str(node.target) not in INLINED


def mutates(graph: fx.Graph) -> bool:
    """Whether an operator writes to its arguments, of those that are not dropped or replaced anyway."""
    return any(
        isinstance(node.target, private.OpOverload)
        and node.target._schema.is_mutable
        and packet(node.target) not in _DROPPED
        and packet(node.target) not in REPLACEMENTS
        for node in graph.nodes
    )


def unknown(target: Any) -> bool:
    """Whether neither the table of operators nor that of replacements has an operator."""
    known = (OPERATORS, REPLACEMENTS, _DROPPED)
    return isinstance(target, private.OpOverload) and all(packet(target) not in table for table in known)


class _Walk:
    """The single pass that copies, drops, inlines or replaces each node."""

    def __init__(self, graph: fx.Graph, builder: Builder) -> None:
        self.graph = graph
        self.builder = builder
        self.fused: dict[fx.Node, Fused] = {}

    def copy(self, module: fx.GraphModule, values: dict[fx.Node, Any]) -> Any:
        """Append ``module``'s graph, whose placeholders may stand in ``values`` already; returns its output."""
        for node in module.graph.nodes:
            if node.op == "output":
                return fx.map_arg(node.args[0], lambda n: values[n])
            if node.op == "get_attr" or node in values or packet(node.target) in _DROPPED:
                continue
            values[node] = self._one(module, node, values)
        return None

    def _one(self, module: fx.GraphModule, node: fx.Node, values: dict[Any, Any]) -> Any:
        if is_higher_order(node):
            return self._inline(module, node, values)
        if node.target is operator.getitem and not isinstance(values[node.args[0]], fx.Node):
            return values[node.args[0]][node.args[1]]
        replacement = REPLACEMENTS.get(packet(node.target))
        if node.op != "call_function" or replacement is None:
            return self.graph.node_copy(node, lambda n: values[n])
        self.builder.origin = node.meta
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        before = next(iter(reversed(self.graph.nodes)), None)
        wrapped: Any = fx.map_arg((args, kwargs), self._proxy)
        made = replacement(*wrapped[0], **wrapped[1])
        if made is NotImplemented:
            return self.graph.node_copy(node, lambda n: values[n])
        made = _unwrap(made)
        if packet(node.target) in FUSED and isinstance(made, fx.Node):
            self.fused[made] = Fused(node.target, args, kwargs, _since(self.graph, before))
        return made

    def _proxy(self, node: fx.Node) -> Any:
        return Proxy(node, self.builder)

    def _inline(self, module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        place = INLINED.get(str(node.target))
        if place is None or _casts(node):
            raise CaptureError(
                f"The model uses '{node.target}' in module '{module_path(node)}' ({source_line(node)}), which fxlrp "
                "cannot look into. Express it with ordinary operators."
            )
        inner = getattr(module, str(node.args[place].target))  # type: ignore[union-attr]
        holders = [n for n in inner.graph.nodes if n.op == "placeholder"]
        given = [values[a] if isinstance(a, fx.Node) else a for a in node.args[place + 1 :]]
        return self.copy(inner, dict(zip(holders, given, strict=True)))


def _since(graph: fx.Graph, before: fx.Node | None) -> tuple[fx.Node, ...]:
    members = []
    for node in reversed(graph.nodes):
        if node is before:
            break
        members.append(node)
    return tuple(reversed(members))


def _unwrap(value: Any) -> Any:
    if isinstance(value, Proxy):
        return value.node
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrap(item) for item in value)
    return value
