"""Read-only questions about a captured graph: where a node stands in the model, and how the graph hangs together."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxlrp.graph.handles import fetched

if TYPE_CHECKING:
    import networkx as nx


def module_stack(node: fx.Node) -> tuple[tuple[str, str], ...]:
    """The (module path, class name) pairs that enclose ``node``, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    pairs = []
    for path, kind in stack.values():
        name = kind if isinstance(kind, str) else kind.__qualname__
        pairs.append((_plain_path(path), name.rsplit(".", 1)[-1]))
    return tuple(pairs)


def _plain_path(path: str) -> str:
    """``L['self'].a.b`` and ``a.b@1`` (a module's second call) both become ``a.b``."""
    path = re.sub(r"^L\['self'\]\.?", "", path)
    return re.sub(r"@\d+", "", path)


def module_path(node: fx.Node) -> str:
    """The innermost module path of ``node`` ('' at the top)."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def source_line(node: fx.Node) -> str:
    """``file:line`` of the model's code that produced ``node``, or '' when the capture recorded none."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{places[-1][0]}:{places[-1][1]}" if places else ""


def all_inputs(node: fx.Node) -> Iterable[fx.Node]:
    """Every node among the arguments of ``node``."""
    return node.all_input_nodes


def ancestors(
    node: fx.Node,
    beyond: Container[fx.Node] = (),
    sources: Callable[[fx.Node], Iterable[fx.Node]] = all_inputs,
) -> Iterator[fx.Node]:
    """``node`` and what it is computed from, nearest first; nodes in ``beyond`` are neither given nor passed.

    ``sources`` says which arguments of a node are followed.
    """
    queue, seen = deque([node]), set[fx.Node]()
    while queue:
        current = queue.popleft()
        if current not in seen and current not in beyond:
            seen.add(current)
            yield current
            queue.extend(sources(current))


def _as_it_is(node: fx.Node, value: Any) -> Any:
    return value


def run(
    graph: fx.Graph,
    arguments: Mapping[str, Any],
    wanted: Iterable[fx.Node] | None = None,
    each: Callable[[fx.Node, Any], Any] = _as_it_is,
    recorded: bool = False,
    known: Mapping[fx.Node, Any] = MappingProxyType({}),
) -> dict[fx.Node, Any]:
    """The values of the nodes ``wanted`` (None: of all), without gradients unless they are to be ``recorded``.

    Only what they are computed from is run, and a value is let go once nothing needs it any more. ``arguments`` are the
    values of placeholders by name, ``known`` those of nodes that are not run; ``each`` makes of a node's value what
    other nodes, and the answer, get in its place.
    """
    kept = {*graph.nodes} if wanted is None else {*wanted}
    needed = {*kept}
    users: dict[fx.Node, fx.Node] = {}  # by node the last one that takes its value
    for node in reversed(graph.nodes):
        if node in needed and node not in known and node.op != "output":
            needed.update(node.all_input_nodes)
            for source in node.all_input_nodes:
                users.setdefault(source, node)
    values: dict[fx.Node, Any] = {}
    with torch.set_grad_enabled(recorded):
        for node in graph.nodes:
            if node not in needed or node.op == "output":
                continue
            if node in known:
                value = known[node]
            elif node.op == "placeholder":
                value = arguments[str(node.target)]
            else:
                function: Any = node.target
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda each: fetched(values[each]))
                value = function(*args, **kwargs)
            values[node] = each(node, value)
            for source in node.all_input_nodes:
                if users.get(source) is node and source not in kept:
                    del values[source]
    return values


def drop_unused(graph: fx.Graph) -> None:
    """Take away every operation that nothing reads; arguments stay."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def tensor_value(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that stands for the node's value, None if it is not a single tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def module_outputs(graph: fx.Graph, among: Container[fx.Node]) -> dict[str, tuple[fx.Node, ...]]:
    """The float values that leave each module, in order, by module path: its outputs; those ``among`` given nodes.

    What only leaves the model as well, such as a cache of keys, is no output of a module that has others, unless it is
    made of these: by a later call.
    """
    outputs: dict[str, tuple[fx.Node, ...]] = {}
    inside: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        for path, _ in module_stack(node):
            if path:
                inside.setdefault(path, []).append(node)
    for path, nodes in inside.items():
        members = set(nodes)
        users = {n: [u for u in n.users if u not in members] for n in nodes if n in among and _is_of_floats(n)}
        used = {n for n, outside in users.items() if any(user.op != "output" for user in outside)}
        last = {n for n in users if users[n] and n not in used and not (used and used.isdisjoint(ancestors(n)))}
        leaving = [n for n in nodes if n in used or n in last]
        if leaving:
            outputs[path] = tuple(leaving)
    return outputs


def _is_of_floats(node: fx.Node) -> bool:
    value = tensor_value(node)
    return value is not None and value.is_floating_point()


def to_networkx(nodes: Iterable[fx.Node]) -> nx.DiGraph[fx.Node]:
    """These nodes as a networkx digraph, from each to those that take its value: for cuts, dominators and paths."""
    import networkx as nx  # a fifth of a second, which whoever draws no graph is spared

    drawn: nx.DiGraph[fx.Node] = nx.DiGraph()
    drawn.add_nodes_from(nodes)
    drawn.add_edges_from([(source, node) for node in drawn for source in node.all_input_nodes if source in drawn])
    return drawn


def is_one(size: Any) -> bool:
    """Whether a size is one in every call, not free to vary."""
    return isinstance(size, int) and size == 1
