"""What a model decided by values while it was recorded: each number, branch or size that it made of a tensor.

In: the graph of a recording and what it was recorded on. Out: :class:`Decisions`, a graph of its own from the inputs to
these values, and what they were. Where they come out the same, the model goes the same way, and the recording stands
for it; where integers alone decide, as grids of pictures and places of tokens do, that costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from fxlrp.capture import torch_private as private
from fxlrp.capture.process import unmoved
from fxlrp.graph.nodes import drop_unused, module_path, source_line, tensor_value
from fxlrp.graph.operators import packet

aten = torch.ops.aten
#: Whose values Python reads past the operators that a recording sees.
READERS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
#: Operators that take the entries which a mask chooses, and the place of the mask among their arguments.
_CHOOSING = {aten.index: 1, aten.index_put: 1, aten.index_put_: 1, aten.masked_select: 1}


@dataclass(frozen=True, eq=False)
class Decisions:
    """What decides: ``module`` computes it, ``values`` are what it was, numbers and sizes. Its arguments are
    ``weights`` by their path in the model, ``constants``, and ``inputs`` by their place among the leaves.
    """

    module: fx.GraphModule
    values: tuple[Any, ...]
    weights: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: Mapping[str, int]
    said: tuple[str, ...]

    @staticmethod
    def of(
        module: fx.GraphModule, arguments: Mapping[str, Any], weights: Mapping[str, str], inputs: Sequence[str]
    ) -> Decisions:
        """Those of a recording: ``arguments`` by placeholder are what it was recorded on."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(module.graph, copies)
        nodes = [copies[node] for node in module.graph.nodes if node in copies]
        decisive = [each for node in nodes for each in _deciding(node)]
        asked = list(dict.fromkeys(_asked(node, graph) for node in decisive))
        graph.output(tuple(asked))
        drop_unused(graph)
        for node in [n for n in graph.nodes if n.op == "placeholder" and not n.users]:
            graph.erase_node(node)
        names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
        made = fx.GraphModule({}, graph)
        with torch.no_grad():
            values = tuple(map(_value, made(*(arguments[name] for name in names))))
        others = {name for name in names if name not in weights and name not in inputs}
        return Decisions(
            made,
            values,
            {name: target for name, target in weights.items() if name in names},
            {name: arguments[name] for name in others},
            {name: index for index, name in enumerate(inputs) if name in names},
            tuple(dict.fromkeys(map(_said, decisive))),
        )

    def hold(self, weights: Mapping[str, Tensor], leaves: Sequence[Any], device: torch.device) -> bool:
        """Whether the model decides as it was recorded, by its weights now and the leaves of other inputs."""
        if not self.values:
            return True
        arguments = {
            **weights,
            **{name: value.to(device) for name, value in self.constants.items()},
            **{name: leaves[index] for name, index in self.inputs.items()},
        }
        with torch.no_grad(), unmoved():
            return _Look(self).holds(*(arguments[name] for name in self._names))

    @cached_property
    def by_integers(self) -> bool:
        """Whether no float decides, so that the look costs next to nothing."""
        values = (tensor_value(n) for n in self.module.graph.nodes if n.op == "placeholder")
        return not self.weights and not any(v is not None and v.is_floating_point() for v in values)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(str(node.target) for node in self.module.graph.nodes if node.op == "placeholder")


class _Look(fx.Interpreter):
    """Runs a graph of decisions up to the first that comes out otherwise."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__(decisions.module)
        asked: Any = decisions.module.graph.output_node().args[0]
        self.then = dict(zip(asked, decisions.values, strict=True))
        self.extra_traceback = False

    def holds(self, *arguments: Any) -> bool:
        """Whether all come out as they were; a value of other sizes on the way is another decision."""
        try:
            self.run(*arguments)
        except (_Otherwise, RuntimeError, IndexError, ValueError):
            return False
        return True

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node. Raises :class:`_Otherwise` where it decides, and otherwise than it did."""
        value = super().run_node(n)
        if n in self.then and not _is_same(_value(value), self.then[n]):
            raise _Otherwise
        return value


class _Otherwise(Exception):
    """A decision came out otherwise than it did."""


class Watched(TorchFunctionMode):
    """Makes operators of what Python reads of tensors past them: lists and arrays that a tensor is turned into."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``; of what is read the values are compared, which a recording sees."""
        if func in READERS:
            read = args[0].detach()
            torch.equal(read, torch.tensor(read.tolist(), dtype=read.dtype, device=read.device))
        return func(*args, **(kwargs or {}))


def _deciding(node: fx.Node) -> Iterator[fx.Node]:
    """The node itself if its number or its sizes depend on values; the masks by which it chooses."""
    if node.op != "call_function" or not isinstance(node.target, private.OpOverload):
        return
    masks = list(_masks(node))
    if masks:
        yield from masks
    elif torch.Tag.data_dependent_output in node.target.tags or _is_sized(node):
        yield node


def _masks(node: fx.Node) -> Iterator[fx.Node]:
    place = _CHOOSING.get(packet(node.target))
    if place is None:
        return
    given: Any = node.args[place]
    for each in given if isinstance(given, (tuple, list)) else [given]:
        value = tensor_value(each) if isinstance(each, fx.Node) else None
        if value is not None and value.dtype in (torch.bool, torch.uint8):
            yield each


def _asked(node: fx.Node, graph: fx.Graph) -> fx.Node:
    """What is asked of a value: of a mask how many it chooses."""
    value = tensor_value(node)
    if value is None or value.dtype not in (torch.bool, torch.uint8) or _is_sized(node):
        return node
    with graph.inserting_after(node):
        counted = graph.call_function(aten.sum.default, (node,))
    with graph.inserting_after(counted):
        return graph.call_function(aten._local_scalar_dense.default, (counted,))


def _is_sized(node: fx.Node) -> bool:
    """Whether the sizes of a value depend on values, other than on how many entries a mask chooses."""
    target: Any = node.target
    sized = torch.Tag.dynamic_output_shape in getattr(target, "tags", ())
    return sized and packet(target) not in _CHOOSING


def _said(node: fx.Node) -> str:
    """What decides, and where."""
    where = source_line(node) or f"module '{module_path(node) or 'the top level'}'"
    name = str(packet(node.target)).removeprefix("aten.") if node.op == "call_function" else str(node.target)
    return f"{'a number' if name == '_local_scalar_dense' else name} at {where}"


def _value(found: Any) -> Any:
    """A number as it is, a tensor by its sizes."""
    if isinstance(found, (tuple, list)):
        return tuple(map(_value, found))
    return tuple(found.shape) if isinstance(found, Tensor) else found


def _is_same(now: Any, then: Any) -> bool:
    return bool(now == then) or (now != now and then != then)
