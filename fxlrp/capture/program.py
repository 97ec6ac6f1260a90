"""A captured model: its canonical graph, where its weights live, and how to pack and unpack its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

import fxlrp.capture.expansions  # noqa: F401  (fills the table of replacements)
from fxlrp.capture.canonical import Fused, canonicalise
from fxlrp.capture.export import export, quiet


@dataclass(frozen=True)
class Program:
    """A model as a graph. Placeholders are weights (by their path in the model), lifted constants, then the
    user's inputs.

    ``fused`` tells, for the exit node of each expanded operator, which operator it was. ``guards`` are the
    conditions on input shapes under which the graph stands for the model; :meth:`accepts` evaluates them.
    """

    graph: fx.Graph
    weights: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: Mapping[str, str]
    input_leaves: tuple[str, ...]
    output_spec: pytree.TreeSpec
    fused: Mapping[fx.Node, Fused]
    guards: tuple[str, ...]
    shapes: Mapping[str, tuple[int | None, ...]]

    def accepts(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the graph stands for the model on inputs of these shapes."""
        for name, shape in self.shapes.items():
            # An axis that was free and long may not be assumed to mean the same at length one; only the batch axis may.
            for axis, (traced, size) in enumerate(zip(shape, inputs[name].shape, strict=True)):
                if (traced is not None and traced != size) or (traced is None and axis > 0 and size == 1):
                    return False
        scope = {"L": inputs, "torch": torch}
        return all(eval(code, scope) for code in self._compiled_guards)  # the expressions are torch.export's own

    @cached_property
    def _compiled_guards(self) -> tuple[Any, ...]:
        return tuple(compile(code, "<guard>", "eval") for code in self.guards)

    @cached_property
    def placeholders(self) -> dict[str, fx.Node]:
        """The graph's placeholders by name, in order."""
        return {str(node.target): node for node in self.graph.nodes if node.op == "placeholder"}

    def unpack(self, values: tuple[Any, ...]) -> Any:
        """The model's own output object from the flat outputs of the graph."""
        return pytree.tree_unflatten(list(values), self.output_spec)


def capture(model: nn.Module, inputs: Mapping[str, Any]) -> Program:
    """Export ``model`` on ``inputs`` and bring the graph into canonical form. The model is left as it was."""
    exported = export(model, inputs)
    signature = exported.graph_signature
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        exported = _without_mutations(exported)
        signature = exported.graph_signature
    with quiet():
        graph, fused = canonicalise(exported)
    weights, constants, user = {}, {}, []
    for spec in signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            user.append(name)
        elif spec.target in exported.constants:
            constants[name] = exported.constants[spec.target]
        elif spec.target is not None:
            weights[name] = spec.target
    paths = [path for path, _ in pytree.tree_flatten_with_path(dict(inputs))[0]]
    leaves = tuple(_leaf_name(path) for path in paths)
    names = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    used = {placeholder: leaf for placeholder, leaf in zip(user, leaves, strict=True) if placeholder in names}
    return Program(
        graph=graph,
        weights={name: target for name, target in weights.items() if name in names},
        constants={name: value for name, value in constants.items() if name in names},
        inputs=used,
        input_leaves=leaves,
        output_spec=exported.call_spec.out_spec,
        fused=fused,
        guards=tuple(getattr(exported, "_guards_code", None) or ()),
        shapes={
            leaf: tuple(size if isinstance(size, int) else None for size in names[placeholder].meta["val"].shape)
            for placeholder, leaf in used.items()
            if isinstance(names[placeholder].meta.get("val"), Tensor) and "." not in leaf
        },
    )


def _leaf_name(path: tuple[Any, ...]) -> str:
    """``inputs["a"]`` is ``a``; a tensor inside a nested input is ``a.0.b``."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)


def _without_mutations(exported: Any) -> Any:
    """Buffers that a forward pass updates are computed, not written: the graph's user outputs alone are kept."""
    mutated = [s for s in exported.graph_signature.output_specs if s.kind is not OutputKind.USER_OUTPUT]
    output = exported.graph.output_node()
    output.args = (tuple(output.args[0])[len(mutated) :],)
    return exported


def flatten(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of the (possibly nested) inputs by the names of :class:`Program`."""
    return {_leaf_name(path): leaf for path, leaf in pytree.tree_flatten_with_path(dict(inputs))[0]}
