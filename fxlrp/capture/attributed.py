"""Where relevance enters a graph: the values of a captured program that are attributed.

In: a captured program and its model. Out: float inputs that are no masks, and the look-ups of integer ids. What an
input is follows from its use in the graph, never from its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from fxlrp.capture.program import Program
from fxlrp.errors import InputError
from fxlrp.graph.entries import Entries, entries_of, numbers_of, sources_of
from fxlrp.graph.live import dependent, reached
from fxlrp.graph.nodes import module_path, source_line
from fxlrp.graph.one_hot import meets_stored, written_out
from fxlrp.graph.operators import is_float, packet
from fxlrp.graph.uses import Use, is_mask, made_of, uses_of

#: Uses of a float input that leave nothing of it to be explained at the input itself.
_UNUSED = frozenset({Use.IDS, Use.SIZE})


@dataclass(frozen=True)
class Attributed:
    """A value whose relevance is wanted: ``node`` is a float placeholder or the look-up of an integer input."""

    name: str
    node: fx.Node
    lookup: bool


def attributed_values(program: Program, model: nn.Module) -> tuple[Attributed, ...]:
    """The attributed values: every float input that is no mask, and every look-up of ids.

    What is a mask follows from how the graph uses it (:func:`fxlrp.graph.uses.is_mask`). For a model that names its
    input embedding (``get_input_embeddings``) the ids are the inputs that are looked up there, and each other table
    that these are looked up in counts as well (an adapter's, one of n-grams); tables of positions or token types are
    additive constants. For any other module each table that an integer input is looked up in counts.
    Raises :class:`InputError` if nothing is left to explain.
    """
    found: list[Attributed] = []
    nodes = [program.placeholders[placeholder] for placeholder in program.inputs]
    for placeholder, name in program.inputs.items():
        node = program.placeholders[placeholder]
        uses = uses_of(program.graph, nodes, node) if is_float(node) and node.users else _UNUSED
        if not (uses <= _UNUSED or is_mask(uses)):
            found.append(Attributed(name, node, lookup=False))
    lookups = [(node, behind) for node in program.graph.nodes if (behind := _looked_up(node, program)) is not None]
    tabled = (node for node, _ in lookups if node.target is not written_out)
    others = reached(program.graph, [*(each.node for each in found), *tabled])
    lookups = [each for each in lookups if each[0].target is not written_out or meets_stored(each[0], others)]
    tables = _input_tables(model)
    named = [behind for node, behind in lookups if any(_reads(node, program, model, table) for table in tables)]
    found += [Attributed(behind, node, lookup=True) for node, behind in lookups if not tables or behind in named]
    if not found:
        raise InputError(_nothing(program, model))
    return tuple(found)


def entries_by_lookup(
    program: Program, attributed: Iterable[Attributed], arguments: Callable[[], Mapping[str, Any]]
) -> dict[fx.Node, Entries | None]:
    """For every look-up which entries of the inputs its rows belong to, given the graph's arguments; None where each
    stands in the place of its own.
    """
    inputs = [program.placeholders[placeholder] for placeholder in program.inputs]
    return {each.node: entries_of(each.node, inputs, arguments) for each in attributed if each.lookup}


def _nothing(program: Program, model: nn.Module) -> str:
    """Why nothing is left to explain: what each input is used for, and what to do."""
    nodes = [program.placeholders[placeholder] for placeholder in program.inputs]
    parts = []
    for node, name in zip(nodes, program.inputs.values(), strict=True):
        uses = uses_of(program.graph, nodes, node)
        words = " and ".join(use.value for use in Use if use in uses) or "by no operator"
        where = "" if uses <= {Use.SIZE} else _where_floats_begin(program.graph, node)
        parts.append(f"'{name}' ({words}{where})")
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


def _where_floats_begin(graph: fx.Graph, node: fx.Node) -> str:
    """Which operation makes float values of an integer input, and on which line; nothing of a float one."""
    made = dependent(graph, [node]) - {node}
    first = next((n for n in graph.nodes if n in made and is_float(n)), None)
    if first is None or is_float(node):
        return ""
    where = source_line(first) or f"module '{module_path(first)}'"
    return f", by '{str(packet(first.target)).removeprefix('aten.')}' at {where}"


def _input_tables(model: nn.Module) -> list[Tensor]:
    """The weights of the model's input embedding, and of an encoder's and decoder's where each has its own; of one that
    makes its table of several, all of these.
    """
    tables: list[Tensor] = []
    for module in model.modules():
        getter = getattr(module, "get_input_embeddings", None)
        try:
            embedding = getter() if callable(getter) else None
        except NotImplementedError:
            embedding = None
        held = embedding.parameters() if isinstance(embedding, nn.Module) else ()
        for table in (getattr(embedding, "weight", None), *held):
            if isinstance(table, Tensor) and table.ndim == 2 and not any(table is known for known in tables):
                tables.append(table)
    return tables


def _looked_up(node: fx.Node, program: Program) -> str | None:
    """The integer input whose entries a node looks up (shifted, padded, hashed or reshaped); None for a node that looks
    nothing up, or what is merely counted along an input.
    """
    ids = numbers_of(node)
    # The table of ids that are written out is what they are multiplied with.
    if ids is None or not is_float(node) or not (node.target is written_out or _stored(node.args[0], program)):
        return None
    inputs = [program.placeholders[placeholder] for placeholder in program.inputs]
    behind = next(iter(sources_of(ids, inputs)), None)
    return None if behind is None else program.inputs[str(behind.target)]


def _stored(table: Any, program: Program) -> bool:
    """Whether a table is made of parameters and buffers alone, not of what the model computes, or looks up, from its
    inputs.
    """
    made = list(made_of(table))
    holders = [n for n in made if n.op == "placeholder"]
    inputs = [program.placeholders[placeholder] for placeholder in program.inputs]
    chosen = (numbers_of(n) for n in made)
    computed = any(n in inputs for n in holders) or any(ids is not None and sources_of(ids, inputs) for ids in chosen)
    return not computed and any(n.target in program.weights for n in holders)


def _reads(node: fx.Node, program: Program, model: nn.Module, table: Tensor) -> bool:
    """Whether a look-up reads the rows of this weight, or of a table that is made of it."""
    made = made_of(node.args[0]) if isinstance(node.args[0], fx.Node) else ()
    targets = (program.weights.get(str(n.target)) for n in made if n.op == "placeholder")
    return any(target is not None and attrgetter(target)(model) is table for target in targets)
