"""Torch code as a canonical graph, on the way that models take: a pattern is written as the model code it looks for.

In: a function of tensors and examples of these. Out: its graph in the operators of a captured model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxlrp.capture.quantised
import fxlrp.capture.spellings  # noqa: F401  (both fill the table of replacements)
from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import canonicalise, mutates, unknown
from fxlrp.capture.process import quiet
from fxlrp.capture.traced import Traced, with_values
from fxlrp.errors import CaptureError
from fxlrp.graph.nodes import drop_unused


def capture_code(code: Callable[..., Tensor], examples: Mapping[str, Tensor]) -> fx.Graph:
    """The canonical graph of ``code``, whose output is one value; its placeholders are named after the examples.

    The operators are those that torch.export records of a model. Code that writes to its tensors, or that has
    operators which models are taken apart into, is exported as a model is. Raises :class:`CaptureError` for code that
    holds tensors of its own.
    """

    def run(*tensors: Tensor) -> Tensor:
        return code(**dict(zip(examples, tensors, strict=True)))

    module = private.make_fx(run, pre_dispatch=True)(*(x.clone() for x in examples.values()))
    if mutates(module.graph) or any(unknown(node.target) for node in module.graph.nodes if _is_aten(node)):
        with quiet():
            exported = torch.export.export(_Module(code), (), {k: x.clone() for k, x in examples.items()}, strict=False)
            module = Traced.of(exported).module
    else:
        with_values(module.graph)
    if any(node.op == "get_attr" for node in module.graph.nodes) or _count(module.graph) != len(examples):
        raise CaptureError(
            f"{getattr(code, '__name__', 'The code')} makes a tensor of its own: write numbers as numbers, and make "
            "arguments of tensors that may be any."
        )
    graph, _ = canonicalise(module)
    output: Any = graph.output_node()
    if isinstance(output.args[0], (tuple, list)):  # behind what was written to, of code that was exported
        output.args = (output.args[0][-1],)
        drop_unused(graph)
    for node, name in zip([n for n in graph.nodes if n.op == "placeholder"], examples, strict=True):
        node.target = name
    return graph


class _Module(nn.Module):
    def __init__(self, code: Callable[..., Tensor]) -> None:
        super().__init__()
        self.code = code

    def forward(self, **examples: Tensor) -> Tensor:
        return self.code(**examples)


def _is_aten(node: fx.Node) -> bool:
    return isinstance(node.target, private.OpOverload) and node.target.namespace == "aten"


def _count(graph: fx.Graph) -> int:
    return sum(node.op == "placeholder" for node in graph.nodes)
