"""Exports a model with torch.export: a transformers model through its own exporter, any other module directly.

In: a module in eval mode and a dictionary of keyword inputs. Out: an ``ExportedProgram`` whose batch and
sequence axes are symbolic wherever the model allows it.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel
from transformers.exporters.configs import DynamoConfig
from transformers.exporters.exporter_dynamo import DynamoExporter

from fxlrp.capture.packed import unrolled_packing
from fxlrp.errors import CaptureError, FxlrpError, InputError


@torch.compiler.disable
def export(model: nn.Module, inputs: Mapping[str, Any]) -> ExportedProgram:
    """The exported program of ``model`` on ``inputs``: dynamic axes first, the inputs' own shapes where that fails.

    Raises :class:`InputError` if the model itself cannot run on the inputs, :class:`CaptureError` if it runs
    but cannot be exported (a branch on data, an operator without a fake implementation ...).
    """
    # One sample is shown as two: torch.export would specialise an axis of length one.
    attempts = [(_two_samples(inputs), True), (inputs, True), (inputs, False)]
    failure: Exception | None = None
    for example, dynamic in attempts:
        try:
            exported = _export_once(model, dict(example), dynamic)
            if example is inputs or _stands_for(exported, inputs):
                return exported
        except FxlrpError:
            raise
        except Exception as error:  # torch.export has no common base class of its own
            if failure is None:
                check_runs(model, inputs)
            failure = failure or error
    assert failure is not None
    raise _explain(model, failure) from failure


def check_runs(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The model's own outputs. Raises :class:`InputError` with the model's own words if it fails on the inputs."""
    try:
        with torch.no_grad():
            return model(**inputs)
    except Exception as error:
        name = type(model).__name__
        raise InputError(f"The model {name} itself fails on these inputs: {type(error).__name__}: {error}") from error


def _export_once(model: nn.Module, inputs: dict[str, Any], dynamic: bool) -> ExportedProgram:
    shapes = pytree.tree_map(_dynamic_axes if dynamic else _static_axes, inputs)
    with quiet(), torch.no_grad(), steady(model):
        if isinstance(model, PreTrainedModel):
            config = DynamoConfig(dynamic=dynamic, dynamic_shapes=shapes)
            return DynamoExporter().export(model, inputs, config=config).program
        return torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)


def _dynamic_axes(value: Any) -> Any:
    """The batch axis, and the sequence axis of [batch, sequence] and [batch, sequence, features], as free as
    the model allows.
    """
    if not isinstance(value, Tensor):
        return None
    free = 2 if value.ndim in (2, 3) else 1
    return tuple(Dim.AUTO if axis < free and size > 1 else None for axis, size in enumerate(value.shape))


def _static_axes(value: Any) -> Any:
    return (None,) * value.ndim if isinstance(value, Tensor) else None


def _two_samples(inputs: Mapping[str, Any]) -> dict[str, Any]:
    tensors = [leaf for leaf in pytree.tree_leaves(dict(inputs)) if isinstance(leaf, Tensor)]
    if not tensors or any(leaf.ndim == 0 or len(leaf) != 1 for leaf in tensors):
        return dict(inputs)
    doubled: dict[str, Any] = pytree.tree_map(lambda v: torch.cat([v, v]) if isinstance(v, Tensor) else v, dict(inputs))
    return doubled


def _stands_for(exported: ExportedProgram, inputs: Mapping[str, Any]) -> bool:
    """Whether the graph holds for ``inputs``: a model may have fixed the batch that it was shown."""
    shown = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    values = [shown[name] for name in exported.graph_signature.user_inputs if isinstance(name, str)]
    pairs = list(zip(values, pytree.tree_leaves(dict(inputs)), strict=False))
    sizes = [
        pair for value, leaf in pairs if isinstance(value, Tensor) for pair in zip(value.shape, leaf.shape, strict=True)
    ]
    fits = all(not isinstance(fixed, int) or fixed == size for fixed, size in sizes)
    return fits and hold(getattr(exported, "_guards_code", None) or (), inputs)


def hold(guards: Iterable[Any], inputs: Mapping[str, Any]) -> bool:
    """Whether torch.export's conditions on its inputs, Python expressions of its own making, are true of these."""
    scope = {"L": inputs, "torch": torch, "math": math}
    return all(eval(guard, scope) for guard in guards)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what the exporters print and log about themselves; errors still rise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def steady(model: nn.Module) -> Iterator[None]:
    """What a trace needs of torch and of the model, reversible: plain kernels, no autocast, sequences unrolled."""
    with _plain_attention(), _without_autocast(), _own_forward(model), unrolled_packing():
        yield


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """The exporter puts the model's forward back as an attribute of the instance; it goes if it was none before."""
    before = "forward" in vars(model)
    try:
        yield
    finally:
        if not before:
            vars(model).pop("forward", None)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keeps ``nn.MultiheadAttention`` off its fused inference kernel, which hides the operators inside."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """The graph is captured in the weights' own types; autocast then acts on it as on the model."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _explain(model: nn.Module, failure: Exception) -> FxlrpError:
    text = str(failure)
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
