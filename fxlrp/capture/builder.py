"""Appends operators to a graph as a model would have called them: with values, module path and source line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from fxlrp.capture import torch_private as private


class Builder(GraphAppendingTracer):
    """Appends nodes with the meta of the node being replaced and the fake value of their own."""

    def __init__(self, graph: fx.Graph, mode: private.FakeTensorMode | None) -> None:
        super().__init__(graph)
        self.mode = mode
        self.origin: Mapping[str, Any] = {}

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """The appended node."""
        node: Any = super().create_node(*args, **kwargs)
        node.meta.update({key: self.origin[key] for key in ("nn_module_stack", "stack_trace") if key in self.origin})
        if self.mode is not None:
            values = fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
            with self.mode, torch.no_grad(), private.enable_python_dispatcher():  # whose kernels take free sizes
                node.meta["val"] = node.target(*values[0], **values[1])
        else:
            node.meta["val"] = None
        return node

    def copied(self, node: fx.Node, values: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """A node of another graph, with the ``values`` that stand for its arguments here."""
        self.origin = node.meta
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        return self.create_node(node.op, node.target, args, kwargs)
