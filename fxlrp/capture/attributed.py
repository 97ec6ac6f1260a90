"""Where relevance enters a graph: the values of a captured program that are attributed.

In: a captured program and its model. Out: float inputs that are no masks, and the look-ups of integer ids. What an
input is follows from its use in the graph, never from its name.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxlrp.capture.program import Program, weight
from fxlrp.errors import InputError
from fxlrp.graph.operators import is_float, operator_of
from fxlrp.graph.uses import Use, is_mask, made_of, uses_of


@dataclass(frozen=True)
class Attributed:
    """A value whose relevance is wanted: ``node`` is a float placeholder or the look-up of an integer input."""

    name: str
    node: fx.Node
    lookup: bool


def attributed_values(program: Program, model: nn.Module) -> tuple[Attributed, ...]:
    """The attributed values: every float input that is no mask, and every look-up of ids in the input embedding.

    What is a mask follows from how the graph uses it (:func:`fxlrp.graph.uses.is_mask`). For a model that names its
    input embedding (``get_input_embeddings``) other tables, of positions or token types, are additive constants; for
    any other module each table that an integer input is looked up in counts.
    Raises :class:`InputError` if nothing is left to explain.
    """
    found: list[Attributed] = []
    nodes = [program.placeholders[placeholder] for placeholder in program.inputs]
    for placeholder, name in program.inputs.items():
        node = program.placeholders[placeholder]
        if is_float(node) and node.users and not is_mask(uses_of(program.graph, nodes, node)):
            found.append(Attributed(name, node, lookup=False))
    tables = _input_tables(model)
    for node in program.graph.nodes:
        operator = operator_of(node)
        if operator is None or not operator.looks_up:
            continue
        weight, ids = node.args[0], node.args[1]
        target = program.weights.get(str(weight.target), "")
        if tables and not any(_same(model, target, table) for table in tables):
            continue
        behind = _input_behind(ids, program)
        if behind is not None:
            found.append(Attributed(behind, node, lookup=True))
    if not found:
        raise InputError(_nothing(program, model))
    return tuple(found)


def _nothing(program: Program, model: nn.Module) -> str:
    """Why nothing is left to explain: what each input is used for, and what to do."""
    nodes = [program.placeholders[placeholder] for placeholder in program.inputs]
    parts = []
    for node, name in zip(nodes, program.inputs.values(), strict=True):
        uses = uses_of(program.graph, nodes, node)
        words = " and ".join(use.value for use in Use if use in uses) or "by no operator"
        parts.append(f"'{name}' ({words})")
    parts += [f"'{name}' (by no operator)" for name in program.input_leaves if name not in program.inputs.values()]
    kind = type(model).__name__
    said = f"Nothing to explain: {kind} computes with no float input and looks no ids up. Its inputs are used so: "
    said += ", ".join(parts)
    if any(is_float(node) for node in nodes):
        return (
            f"{said}. What is computed outside torch (numpy, .item()) and what only decides between values carry no "
            "relevance: use torch operators, and pass a float tensor whose numbers are computed with."
        )
    return f"{said}. Pass a float tensor, or embed the ids with nn.Embedding."


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
    """The integer input whose entries ``ids`` are (shifted, padded, hashed or reshaped), not merely counted along."""
    for node in made_of(ids):
        value = node.meta.get("val")
        given = node.op == "placeholder" and node.target in program.inputs
        if given and isinstance(value, Tensor) and not value.is_floating_point():
            return program.inputs[str(node.target)]
    return None
