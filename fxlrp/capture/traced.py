"""A traced model, exported or recorded, before it is brought into canonical form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import decomposed
from fxlrp.capture.decisions import Decisions
from fxlrp.capture.foreign import introduce
from fxlrp.errors import CaptureError
from fxlrp.graph.nodes import source_line


@dataclass(frozen=True)
class Traced:
    """A graph of operators whose placeholders are weights, lifted constants, then the leaves of the inputs.

    ``weights`` and ``constants`` are by placeholder, ``inputs`` are the placeholders of the leaves in order.
    ``guards`` are conditions on the inputs' sizes; ``recorded``, where the model decided by values, are the very
    leaves that the graph was made on, and ``decisions`` what was decided on them.
    """

    module: fx.GraphModule
    weights: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    output_spec: private.pytree.TreeSpec
    guards: tuple[str, ...] = ()
    recorded: tuple[Any, ...] | None = None
    replayed: bool = False
    decisions: Decisions | None = None

    @staticmethod
    def of(exported: ExportedProgram) -> Traced:
        """What torch.export captured, without updates of buffers, in operators that fxlrp knows.

        Raises :class:`CaptureError` where the graph holds the steps of a ``torch.vmap`` instead of their result.
        """
        for node in exported.graph.nodes:
            if private.is_vmap_step(node.target):
                raise CaptureError(
                    f"torch.export leaves a torch.vmap unresolved in the graph, at {source_line(node)}. Write the loop "
                    "or the batch axis out."
                )
        introduce(exported.graph)
        exported = decomposed(exported)
        _drop_mutations(exported)  # what was written in place is an output only now
        specs = exported.graph_signature.input_specs
        held = [s for s in specs if s.kind is not InputKind.USER_INPUT and s.target is not None]
        return Traced(
            module=exported.graph_module,
            weights={s.arg.name: str(s.target) for s in held if s.target not in exported.constants},
            constants={s.arg.name: exported.constants[s.target] for s in held if s.target in exported.constants},
            inputs=tuple(s.arg.name for s in specs if s.kind is InputKind.USER_INPUT),
            output_spec=exported.call_spec.out_spec,
            guards=private.guards_of(exported),
        )


def _drop_mutations(exported: ExportedProgram) -> None:
    """Buffers that a forward pass updates are computed, not written: the graph's user outputs alone are kept."""
    mutated = [s for s in exported.graph_signature.output_specs if s.kind is not OutputKind.USER_OUTPUT]
    output: Any = exported.graph.output_node()
    output.args = (tuple(output.args[0])[len(mutated) :],)


def with_values(graph: fx.Graph) -> None:
    """Replace the values of a trace by fake ones of a single mode: shapes and types without data."""
    mode = private.FakeTensorMode()

    def fake(value: Any) -> Any:
        if isinstance(value, Tensor):
            return mode.from_tensor(torch.empty_strided(value.shape, value.stride(), dtype=value.dtype))
        return type(value)(map(fake, value)) if isinstance(value, (tuple, list)) else value

    for node in graph.nodes:
        node.meta["val"] = fake(node.meta.get("val"))
