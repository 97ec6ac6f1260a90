"""Exports a model with torch.export: a transformers model through its own exporter, any other module directly.

In: a module in eval mode and a dictionary of keyword inputs. Out: an ``ExportedProgram`` whose batch and
sequence axes are symbolic wherever the model allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fxlrp.capture import torch_private as private
from fxlrp.capture.calling import Form, Signature, by_name
from fxlrp.capture.elsewhere import with_stand_ins
from fxlrp.capture.guards import hold
from fxlrp.capture.packed import unrolled_packing
from fxlrp.capture.process import quiet
from fxlrp.capture.twin import twin
from fxlrp.errors import CaptureError, FxlrpError, InputError


def export(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[ExportedProgram, Form]:
    """The exported program of ``model`` on ``inputs``, and the form of its outputs: dynamic axes first, the inputs' own
    shapes where that fails.

    Raises :class:`InputError` if the model itself cannot run on the inputs, :class:`CaptureError` if it runs
    but cannot be exported (a branch on data, an operator without a fake implementation ...).
    """
    # One sample is shown as two: torch.export would specialise an axis of length one.
    # Copies, since a tensor that is given twice would be one input.
    given = private.pytree.tree_map(copied, dict(inputs))
    attempts = [(_two_samples(given), True), (given, True), (given, False)]
    failure: Exception | None = None
    for example, dynamic in attempts:
        try:
            exported, form = _export_once(model, dict(example), dynamic)
            if example is given or _stands_for(exported, inputs):
                return exported, form
        except FxlrpError:
            raise
        except Exception as error:  # torch.export has no common base class of its own
            if failure is None:
                check_runs(model, inputs)
            failure = failure or error
    assert failure is not None
    raise _explain(model, failure) from failure


def check_runs(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The model's own outputs. Raises :class:`InputError` with the model's own words if it fails on the inputs.

    What the model writes to itself and to its inputs is written to copies.
    """
    given = private.pytree.tree_map(copied, dict(inputs))
    try:
        with torch.no_grad():
            return Signature.of(model).call(twin(model), given)
    except Exception as error:
        name = type(model).__name__
        raise InputError(f"The model {name} itself fails on these inputs: {type(error).__name__}: {error}") from error


def _export_once(model: nn.Module, inputs: dict[str, Any], dynamic: bool) -> tuple[ExportedProgram, Form]:
    shapes = private.pytree.tree_map(dynamic_axes if dynamic else static_axes, inputs)
    with quiet(), torch.no_grad(), steady(model, inputs) as (traced, form):
        if private.is_pretrained(traced):
            return private.export_pretrained(traced, inputs, dynamic, shapes), form
        args, kwargs = Signature.of(traced).split(inputs)
        return torch.export.export(traced, args, kwargs, dynamic_shapes=shapes, strict=False), form


def dynamic_axes(value: Any) -> Any:
    """The batch axis, and the sequence axis of [batch, sequence] and [batch, sequence, features], as free as
    the model allows.
    """
    if not isinstance(value, Tensor):
        return None
    free = 2 if value.ndim in (2, 3) else 1
    return tuple(Dim.AUTO if axis < free and size > 1 else Dim.STATIC for axis, size in enumerate(value.shape))


def static_axes(value: Any) -> Any:
    """No axis free: the graph stands for tensors of exactly these sizes."""
    return (Dim.STATIC,) * value.ndim if isinstance(value, Tensor) else None


def _two_samples(inputs: Mapping[str, Any]) -> dict[str, Any]:
    tensors = [leaf for leaf in private.pytree.tree_leaves(dict(inputs)) if isinstance(leaf, Tensor)]
    if not tensors or any(leaf.ndim == 0 or len(leaf) != 1 for leaf in tensors):
        return dict(inputs)
    doubled: dict[str, Any] = private.pytree.tree_map(_twice, dict(inputs))
    return doubled


def copied(value: Any) -> Any:
    """A copy of a tensor, which no gradient leads through; any other value as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _twice(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) else value


def _stands_for(exported: ExportedProgram, inputs: Mapping[str, Any]) -> bool:
    """Whether the graph holds for ``inputs``: a model may have fixed the batch that it was shown."""
    shown = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    values = [shown[name] for name in exported.graph_signature.user_inputs if isinstance(name, str)]
    pairs = list(zip(values, private.pytree.tree_leaves(dict(inputs)), strict=False))
    sizes = [
        pair for value, leaf in pairs if isinstance(value, Tensor) for pair in zip(value.shape, leaf.shape, strict=True)
    ]
    fits = all(not isinstance(fixed, int) or fixed == size for fixed, size in sizes)
    return fits and hold(private.guards_of(exported), inputs)


@contextmanager
def steady(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[tuple[nn.Module, Form]]:
    """The model as it can be traced, its twin: called by name, plain kernels, packed sequences unrolled.

    With it comes the form of what it returns, known once it was called.
    """
    private.know_caches(model)
    traced = with_stand_ins(twin(model))
    form = by_name(traced, inputs)
    for module in traced.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # whether a mask allows it is data
    with unrolled_packing(traced):
        yield traced, form


def _explain(model: nn.Module, failure: Exception) -> FxlrpError:
    text = str(failure)
    returned = re.search(r"Found <class '([^']+)'> in output", text)
    if returned is not None:
        return CaptureError(
            f"{type(model).__name__} returns a {returned[1]}, whose values have no name or order: return tensors, or "
            "tuples, lists, dicts or dataclasses of tensors."
        )
    places = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    own = [place for place in places if "/torch/" not in place[0]]
    where = "".join(f" at {file}:{line} (in {function})" for file, line, function in own[-1:])
    branch = "data-dependent" in text or "GuardOnDataDependent" in type(failure).__name__
    packed = "PackedParams" in text or "quantized nyi" in text
    remedy = (
        "It holds torch.ao's quantised tensors, which cannot be traced. Keep weights as integers with a scale, as "
        "torchao and PT2E quantisation do (F.linear(x, weight.to(x.dtype) * scale)), or explain the model before "
        "quantisation."
        if packed
        else "Its control flow depends on the values of tensors. Replace the branch by torch.where or torch.cond, or "
        "pass the choice as a Python value."
        if branch
        else "Try torch.export.export(model, (), inputs, strict=False) on its own: it must succeed before fxlrp can "
        "explain the model."
    )
    first = next((line for line in text.splitlines() if line.strip()), type(failure).__name__)
    return CaptureError(f"{type(model).__name__} cannot be exported{where}: {first.strip()}\n{remedy}")
