"""A graph as text, one value a line: of a captured program or of what a plan made of it.

    takes %x a x 5 x 3, %weight 4 x 3, %bias 4
    %linear = linear(%x, %weight, %bias) by epsilon(epsilon=0.001)   # a x 5 x 4
    return %linear

Names are counted within the text and free sizes are letters, so that equal graphs read alike.
"""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from torch import fx

from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operators import packet
from fxlrp.rewrite.call import RuleCall, SumCall
from fxlrp.rules.operation import fill
from fxlrp.rules.rule import Message

_WIDTH = 80
_GLUE = "\0"  # where a line may not be broken


def graph_text(graph: fx.Graph) -> str:
    """``graph`` as text: its arguments, its operations with the rule that each is under, and what it returns.

    A rule is spelled ``by name(parameters)``, with those parameters that are not its defaults, and with ``: R`` where
    it takes and gives relevance instead of gradients (``: R to g`` where only the one). Operations that nothing reads
    are left out, as are arguments.
    """
    return str(_Text(graph))


class _Text:
    def __init__(self, graph: fx.Graph) -> None:
        self.names: dict[fx.Node, str] = {}
        self.counts: dict[str, int] = {}
        self.sizes: dict[str, str] = {}
        self.given: list[str] = []
        self.lines: list[tuple[str, str]] = []
        for node in graph.nodes:
            if node.op == "output":
                self.lines.append((f"return {', '.join(self.value(v) for v in _returned(node.args[0]))}", ""))
            elif node.op == "placeholder" and node.users:
                self.given.append(" ".join(filter(None, (self.name(node), self.shape(node)))))
            elif node.users:
                spelled = self.spelled(node)
                self.lines.append((f"{self.name(node)} = {spelled}", self.shape(node)))

    def __str__(self) -> str:
        width = min(_WIDTH, max(len(line) for line, _ in self.lines))
        taken = textwrap.wrap(f"takes {', '.join(each.replace(' ', _GLUE) for each in self.given)}", _WIDTH)
        taken = [line.replace(_GLUE, " ") for line in taken]
        body = [f"{line.ljust(width)}  # {shape}" if shape else line for line, shape in self.lines]
        return "\n".join([*taken, *body]) + "\n"

    def name(self, node: fx.Node) -> str:
        base = str(node.target).removeprefix("p_") if node.op == "placeholder" else _operation(node.target)
        count = self.counts[base] = self.counts.get(base, 0) + 1
        self.names[node] = f"%{base}" if count == 1 else f"%{base}_{count}"
        return self.names[node]

    def spelled(self, node: fx.Node) -> str:
        operation = _operation(node.target)
        if isinstance(node.target, RuleCall):
            call = node.target
            count = len(call.operation.live)
            given = node.args[: len(node.args) // 2] if call.rule.compares else node.args
            values = fill((call.operation.args, call.operation.kwargs), given[:count], given[count:])
            other = ", compared" if call.rule.compares else ""
            return f"{operation}({self.arguments(*values)}) by {_rule(call)}{other}"
        by = f" by {_rule(node.target)}" if isinstance(node.target, SumCall) else ""
        return f"{operation}({self.arguments(node.args, node.kwargs)}){by}"

    def arguments(self, args: Any, kwargs: Any) -> str:
        return ", ".join([*map(self.value, args), *(f"{name}={self.value(value)}" for name, value in kwargs.items())])

    def value(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.value, value))}]"
        if isinstance(value, slice):
            return ":".join("" if part is None else self.value(part) for part in (value.start, value.stop, value.step))
        return f"{value:g}" if isinstance(value, float) else str(value)

    def shape(self, node: fx.Node) -> str:
        value = tensor_value(node)
        if value is None:
            return ""
        sizes = " x ".join(self.size(size) for size in value.shape) or "scalar"
        usual = value.dtype == torch.get_default_dtype() or value.dtype == torch.float64
        return sizes if usual else f"{sizes}, {str(value.dtype).removeprefix('torch.')}"

    def size(self, size: Any) -> str:
        if isinstance(size, int):
            return str(size)
        spelled = str(size)
        if spelled.isidentifier():
            return self.sizes.setdefault(spelled, chr(ord("a") + len(self.sizes)))
        return spelled if spelled.isdigit() else "?"  # a size that turned out to be fixed, one computed of others


def _operation(target: Any) -> str:
    if isinstance(target, RuleCall):
        return _operation(target.operation.target)
    if isinstance(target, SumCall):
        return "affine"
    found = packet(target)
    return str(getattr(found, "__name__", type(found).__name__)).strip("_")


def _rule(call: RuleCall | SumCall) -> str:
    """The rule at a call, what follows it, and the messages unless they are gradients."""
    posts = call.post if isinstance(call, RuleCall) else ()
    spelled = ", ".join([call.rule.spelled(call.params), *map(str, posts)])
    takes = call.takes
    gives = call.gives if isinstance(call, RuleCall) else Message.GRADIENT
    if takes is gives is Message.GRADIENT:
        return spelled
    return f"{spelled}: {takes.symbol}" if takes is gives else f"{spelled}: {takes.symbol} to {gives.symbol}"


def _returned(outputs: Any) -> list[Any]:
    """The values that a graph returns, those of groups (outputs, inputs, taps, leaves, leaks) one by one."""
    if isinstance(outputs, (list, tuple)):
        return [value for item in outputs for value in _returned(item)]
    return [outputs] if isinstance(outputs, fx.Node) else []
