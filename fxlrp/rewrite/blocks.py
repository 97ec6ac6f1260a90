"""Blocks of a rewritten graph that keep nothing for the backward pass but what enters them, and run again there.

A block ends where one value alone leads on: the residual stream between two sub-layers, a dominator of what follows.
What does not depend on the explained values (masks, tables of angles) may cross a border as well, since nothing is
kept for it twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from fxlrp.capture.canonical import Fused
from fxlrp.capture.process import attention_spelled_out
from fxlrp.graph.axes import known_size
from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operators import Move, operator_of
from fxlrp.rewrite.parts import as_one_call, asked, attributed, carrying, within
from fxlrp.rewrite.stretches import in_stretches


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a rewritten graph as one call, which the backward pass repeats with the same random numbers."""

    module: fx.GraphModule

    __name__ = "block"

    def __call__(self, *values: Any) -> Any:
        """The values that leave the block."""
        if not torch.is_grad_enabled():
            return self.module(*values)
        fused = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
        run = self.module if fused else self._spelled_out  # in the second run as in the first
        return checkpoint(run, *values, use_reentrant=False)

    def _spelled_out(self, *values: Any) -> Any:
        with attention_spelled_out():
            return self.module(*values)


def in_blocks(module: fx.GraphModule, fused: Mapping[fx.Node, Fused], lean: bool = True) -> fx.GraphModule:
    """A rewritten module with every stretch between two borders as a :class:`Block`; itself where there is no border.

    What lies before the first border and behind the last stays as it is: the end of a graph is needed first in the
    backward pass. ``lean``: a block that runs again keeps no more than its stretches do.
    """
    graph = module.graph
    nodes = _in_order(graph)
    found, fixed = carrying(graph.nodes, attributed(graph)), asked(graph)
    last = dict(_between_borders(nodes, found))
    if not last:
        return module
    made = fx.Graph()
    values: dict[fx.Node, fx.Node] = {node: made.node_copy(node) for node in graph.nodes if node.op == "placeholder"}

    def making(own: fx.Graph, inner: Mapping[fx.Node, fx.Node], leaving: Sequence[fx.Node]) -> Block:
        if not lean:
            return Block(fx.GraphModule({}, own))
        begins = [image for node, image in inner.items() if node in found and image.op == "placeholder"]
        kept = [image for node, image in inner.items() if node in fixed]
        own = in_stretches(own, begins, kept, within(fused, inner))
        return Block(fx.GraphModule({}, own))

    index = 0
    while index < len(nodes):
        if index in last:
            as_one_call(made, values, nodes[index : last[index]], making)
        else:
            values[nodes[index]] = made.node_copy(nodes[index], values.__getitem__)
        index = last.get(index, index + 1)
    made.output(fx.map_arg(graph.output_node().args[0], values.__getitem__))
    made.lint()
    return fx.GraphModule({}, made)


def _in_order(graph: fx.Graph) -> list[fx.Node]:
    """The operations of a graph, those that only the output uses straight behind what they are made of."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    place: dict[fx.Node, float] = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        if all(user.op == "output" for user in node.users):
            place[node] = max((place.get(source, -1.0) for source in node.all_input_nodes), default=-1.0)
    return sorted(nodes, key=lambda node: place[node])  # a stable sort: what is made stands before its conversion


def _between_borders(nodes: Sequence[fx.Node], found: set[fx.Node]) -> list[tuple[int, int]]:
    """Where blocks begin and end: ranges of ``nodes`` between two places that one carrying value alone crosses.

    Of all borders those are chosen between which the blocks hold the least at once: the values at the borders, kept
    throughout, and the largest block, alive when it runs again.
    """
    borders = list(_borders(nodes, found))
    sizes = [_bytes(node) if node in found else 0 for node in nodes]
    limits = {sum(sizes[first:last]) for first, last in pairwise(borders)}
    packings = [_packed(borders, sizes, limit * 2**k) for limit in ([max(limits)] if limits else []) for k in range(8)]
    return min(packings, key=lambda blocks: _held(blocks, sizes), default=[])


def _borders(nodes: Sequence[fx.Node], carrying: set[fx.Node]) -> Iterator[int]:
    """The places behind which only what one value carries leads on."""
    place = {node: i for i, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users if user in place), default=-1) for node in carrying}
    ends: dict[int, list[fx.Node]] = {}
    for node, index in last.items():
        ends.setdefault(index, []).append(node)
    crossing = {node for node in carrying if node.op == "placeholder" and last[node] >= 0}
    for index, node in enumerate(nodes):
        if node in carrying and last[node] > index:
            crossing.add(node)
        crossing.difference_update(ends.get(index, ()))
        if crossing == {node}:
            yield index + 1


def _packed(borders: Sequence[int], sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Blocks from border to border, each as long as it holds no more than ``limit`` bytes, or one stretch."""
    blocks: list[tuple[int, int]] = []
    held = 0
    for first, last in pairwise(borders):
        size = sum(sizes[first:last])
        if blocks and held + size <= limit:
            blocks[-1], held = (blocks[-1][0], last), held + size
        else:
            blocks.append((first, last))
            held = size
    return blocks


def _held(blocks: Sequence[tuple[int, int]], sizes: Sequence[int]) -> int:
    """The bytes alive at once: what enters every block, and what the largest one holds."""
    return sum(sizes[first - 1] for first, _ in blocks) + max(sum(sizes[first:last]) for first, last in blocks)


def _bytes(node: fx.Node) -> int:
    """The bytes of a value on the inputs that the graph was captured with; 0 of a view of another value."""
    value, operator = tensor_value(node), operator_of(node)
    if value is None or (operator is not None and operator.move in _VIEWS):
        return 0
    return prod(known_size(size) or 1 for size in value.shape) * value.element_size()


_VIEWS = {Move.STAYS, Move.ITEM, Move.CUTS, Move.EXCHANGES}
