"""Where relevance enters a graph: the values of a captured program that are attributed.

In: a captured program and its model. Out: float inputs, and the look-ups of integer ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxlrp.capture.program import Program, weight
from fxlrp.errors import InputError
from fxlrp.graph.operators import is_float, packet

aten = torch.ops.aten


@dataclass(frozen=True)
class Attributed:
    """A value whose relevance is wanted: ``node`` is a float placeholder or the look-up of an integer input."""

    name: str
    node: fx.Node
    lookup: bool


def attributed_values(program: Program, model: nn.Module) -> tuple[Attributed, ...]:
    """The attributed values: every float input that is no mask, and every look-up of token ids in the input embedding.

    For a model that names its input embedding (``get_input_embeddings``) other tables, of positions or token types, are
    additive constants; for any other module each table indexed by an integer input counts.
    Raises :class:`InputError` if nothing is left to explain.
    """
    found: list[Attributed] = []
    for placeholder, name in program.inputs.items():
        node = program.placeholders[placeholder]
        if is_float(node) and "mask" not in name and node.users:
            found.append(Attributed(name, node, lookup=False))
    tables = _input_tables(model)
    for node in program.graph.nodes:
        if packet(node.target) is not aten.embedding:
            continue
        weight, ids = node.args[0], node.args[1]
        target = program.weights.get(str(weight.target), "")
        if tables and not any(_same(model, target, table) for table in tables):
            continue
        behind = _input_behind(ids, program)
        if behind is not None:
            found.append(Attributed(behind, node, lookup=True))
    if not found:
        given = ", ".join(program.inputs.values())
        if any(is_float(program.placeholders[name]) for name in program.inputs):
            raise InputError(
                f"Nothing to explain: no operator of {type(model).__name__} uses its inputs ({given}). What "
                "is computed outside torch (numpy, .item()) carries no relevance: use torch operators."
            )
        raise InputError(
            f"Nothing to explain: {type(model).__name__} was given only integer inputs ({given}) and they are not "
            "looked up in an embedding. Pass a float tensor, or embed the ids with nn.Embedding."
        )
    return tuple(found)


def _input_tables(model: nn.Module) -> list[Tensor]:
    """The weights of the model's input embedding, and of an encoder's and decoder's where each has its own."""
    tables: list[Tensor] = []
    for module in model.modules():
        getter = getattr(module, "get_input_embeddings", None)
        try:
            embedding = getter() if callable(getter) else None
        except NotImplementedError:
            embedding = None
        weight = getattr(embedding, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and not any(weight is table for table in tables):
            tables.append(weight)
    return tables


def _same(model: nn.Module, target: str, table: Tensor) -> bool:
    return bool(target) and weight(model, target) is table


def _input_behind(ids: fx.Node, program: Program) -> str | None:
    """The integer input that ``ids`` are made of (shifted, padded or reshaped)."""
    queue, seen = [ids], set()
    while queue:
        node = queue.pop(0)
        if node in seen or not isinstance(node, fx.Node):
            continue
        seen.add(node)
        if node.op == "placeholder":
            value = node.meta.get("val")
            if node.target in program.inputs and isinstance(value, Tensor) and not value.is_floating_point():
                name = program.inputs[str(node.target)]
                if "mask" not in name and "position" not in name and "type" not in name:
                    return name
        elif packet(node.target) not in (aten.sym_size, aten.cumsum, aten.arange):
            queue.extend(node.all_input_nodes)
    return None
