"""Captures a model: traces it, brings the graph into canonical form and makes sure that it stands for the model.

In: a model and inputs. Out: a :class:`~fxlrp.capture.program.Program` that was run once beside its model. What
torch.export refuses, or follows along another branch than the model takes, is recorded as it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxlrp.capture.expansions
import fxlrp.capture.quantised  # noqa: F401  (both fill the table of replacements)
from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import canonicalise
from fxlrp.capture.export import check_runs, export, steady
from fxlrp.capture.process import attention_spelled_out, quiet, unmoved
from fxlrp.capture.program import Program, device_of, leaf_name
from fxlrp.capture.record import record
from fxlrp.capture.traced import Traced
from fxlrp.errors import CaptureError, RetraceWarning, VersionError
from fxlrp.graph.nodes import run

_OTHER_BRANCH = (
    "decides by the values of its inputs, and its exported graph decides otherwise than the model does on these. It is "
    "recorded as it runs, anew on each input, which takes its time."
)

_NOT_FOLLOWED = (
    "gives other values than the graph that was made of it, also where its operators were recorded as they ran. It may "
    "keep state from one call to the next, or change tensors in a way that leaves no trace: make its forward a "
    "function of its inputs."
)

#: How many calls lie between a user's own and a warning of :func:`capture`.
_DEPTH = 9


def capture(model: nn.Module, inputs: Mapping[str, Any], *, record_only: bool = False) -> Program:
    """The program that stands for ``model`` on ``inputs``. The model is left as it was.

    What torch.export refuses is recorded as it runs on these very inputs; the program then stands for no others.
    ``record_only`` does so at once, for a model known to be refused. Raises :class:`CaptureError` for a model that
    gives other values than any graph that was made of it.
    """
    program = _program(_recorded(model, inputs) if record_only else _traced(model, inputs), inputs)
    agrees = _agrees(model, program, inputs)
    if not agrees and program.recorded is None:
        warnings.warn(f"{type(model).__name__} {_OTHER_BRANCH}", RetraceWarning, stacklevel=_DEPTH)
        program = _program(_recorded(model, inputs), inputs)
        agrees = _agrees(model, program, inputs)
    if not agrees:
        raise CaptureError(f"{type(model).__name__} {_NOT_FOLLOWED}")
    return program


def _program(traced: Traced, inputs: Mapping[str, Any]) -> Program:
    """A traced model in canonical form."""
    with quiet():
        graph, fused = canonicalise(traced.module)
    paths = [path for path, _ in private.pytree.tree_flatten_with_path(dict(inputs))[0]]
    leaves = tuple(leaf_name(path) for path in paths)
    names = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    used = {placeholder: leaf for placeholder, leaf in zip(traced.inputs, leaves, strict=True) if placeholder in names}
    return Program(
        graph=graph,
        weights={name: target for name, target in traced.weights.items() if name in names},
        constants={name: value for name, value in traced.constants.items() if name in names},
        inputs=used,
        input_leaves=leaves,
        output_spec=traced.output_spec,
        fused=fused,
        guards=traced.guards,
        shapes={
            leaf: tuple(size if isinstance(size, int) else None for size in names[placeholder].meta["val"].shape)
            for placeholder, leaf in used.items()
            if isinstance(names[placeholder].meta.get("val"), Tensor) and "." not in leaf
        },
        recorded=None if traced.recorded is None else dict(zip(leaves, traced.recorded, strict=True)),
    )


def _traced(model: nn.Module, inputs: Mapping[str, Any]) -> Traced:
    """The exported model; where torch.export refuses it but it can be recorded, the recorded one.

    Raises :class:`CaptureError` with torch.export's own reason if it can be neither.
    """
    try:
        with quiet():
            return Traced.of(export(model, inputs))
    except CaptureError as refusal:
        try:
            recorded = _recorded(model, inputs)
        except VersionError:
            raise
        except Exception:  # whatever the model's own code does under another tracer
            raise refusal from None
        note = f"{refusal}\nUntil then it is recorded anew on each input, which takes its time."
        warnings.warn(note, RetraceWarning, stacklevel=_DEPTH + 1)
        return recorded


def _recorded(model: nn.Module, inputs: Mapping[str, Any]) -> Traced:
    with quiet(), steady(model) as traced:
        return record(traced, inputs)


def _agrees(model: nn.Module, program: Program, inputs: Mapping[str, Any]) -> bool:
    """Whether a new graph gives what the model gives on the inputs that it was captured on."""
    if device_of(model).type == "meta":
        return True
    arguments = program.arguments(model, inputs)
    returned: Any = program.graph.output_node()
    # The kernel that spells attention out is the one whose values the graph has, whatever the types of masks.
    with torch.no_grad(), attention_spelled_out():
        with unmoved():  # a model that draws numbers in eval mode and its graph draw the same ones
            expected = check_runs(model, inputs)
        values = run(program.graph, arguments, returned.all_input_nodes)
        outputs: Any = returned.args[0]
        found = program.unpack(fx.map_arg(outputs, values.__getitem__))
    return _same_outputs(expected, found)


def _same_outputs(expected: Any, found: Any) -> bool:
    """Whether two output objects hold float tensors of equal shapes and, but for rounding of any type, equal values."""
    ours, theirs = (
        [t for t in private.pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
        for outputs in (expected, found)
    )
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0.1, atol=0.1 * _size(a), equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _size(x: Tensor) -> float:
    finite = x[torch.isfinite(x)]
    return float(finite.abs().max()) if finite.numel() else 0.0
