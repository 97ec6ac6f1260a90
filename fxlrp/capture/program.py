"""A captured model: its canonical graph, where its weights live, and how to pack and unpack its arguments."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxlrp.capture.expansions
import fxlrp.capture.quantised  # noqa: F401  (both fill the table of replacements)
from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import Fused, canonicalise
from fxlrp.capture.export import export, hold, steady
from fxlrp.capture.process import quiet
from fxlrp.capture.record import record
from fxlrp.capture.traced import Traced
from fxlrp.errors import CaptureError, RetraceWarning, VersionError


@dataclass(frozen=True)
class Program:
    """A model as a graph. Placeholders are weights (by their path in the model), lifted constants, then the
    user's inputs.

    ``fused`` tells, for the exit node of each expanded operator, which operator it was. ``guards`` are the
    conditions on input shapes under which the graph stands for the model; :meth:`accepts` evaluates them. A
    model that decides by values was ``recorded``: its graph stands for these inputs alone.
    """

    graph: fx.Graph
    weights: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: Mapping[str, str]
    input_leaves: tuple[str, ...]
    output_spec: private.pytree.TreeSpec
    fused: Mapping[fx.Node, Fused]
    guards: tuple[str, ...]
    shapes: Mapping[str, tuple[int | None, ...]]
    recorded: Mapping[str, Any] | None = None

    def accepts(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the graph stands for the model on these inputs."""
        if self.recorded is not None:
            return all(_same(inputs[name], leaf) for name, leaf in self.recorded.items())
        for name, shape in self.shapes.items():
            # An axis that was free and long may not be assumed to mean the same at length one; only the batch axis may.
            for axis, (traced, size) in enumerate(zip(shape, inputs[name].shape, strict=True)):
                if (traced is not None and traced != size) or (traced is None and axis > 0 and size == 1):
                    return False
        return hold(self._compiled_guards, inputs)

    def fixed(self, inputs: Mapping[str, Any]) -> tuple[str, ...]:
        """The axes whose sizes were fixed when the model was traced and are others in ``inputs``, in words."""
        sizes = {
            (name, axis): size
            for name, shape in self.shapes.items()
            for axis, size in enumerate(shape)
            if size is not None
        }
        equalities = (re.fullmatch(r"L\['(\w+)'\]\.size\(\)\[(\d+)\] == (\d+)", code) for code in self.guards)
        sizes |= {(found[1], int(found[2])): int(found[3]) for found in equalities if found}
        return tuple(
            f"axis {axis} of '{name}' at {size}"
            for (name, axis), size in sizes.items()
            if name in inputs and inputs[name].shape[axis] != size
        )

    @cached_property
    def _compiled_guards(self) -> tuple[Any, ...]:
        return tuple(compile(code, "<guard>", "eval") for code in self.guards)

    @cached_property
    def placeholders(self) -> dict[str, fx.Node]:
        """The graph's placeholders by name, in order."""
        return {str(node.target): node for node in self.graph.nodes if node.op == "placeholder"}

    def arguments(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each placeholder: a weight of ``model``, a constant on its device, or a leaf of ``inputs``."""
        device, leaves = device_of(model), flatten(inputs)
        return {
            name: weight(model, self.weights[name])
            if name in self.weights
            else self.constants[name].to(device)
            if name in self.constants
            else leaves[self.inputs[name]]
            for name in self.placeholders
        }

    def unpack(self, values: tuple[Any, ...]) -> Any:
        """The model's own output object from the flat outputs of the graph."""
        outputs = private.pytree.tree_unflatten(list(values), self.output_spec)
        for layer in _layers_of_caches(outputs):
            _cut_to_window(layer)
        return outputs


def _layers_of_caches(outputs: Any) -> Iterator[Any]:
    """The layers of every cache in an output object, those of an encoder-decoder's two caches as well."""
    for value in outputs.values() if isinstance(outputs, Mapping) else ():
        for cache in (value, getattr(value, "self_attention_cache", None)):
            yield from getattr(cache, "layers", ()) if private.is_cache(cache) else ()


def _cut_to_window(layer: Any) -> None:
    """A cache of sliding attention holds the last window of keys; transformers exports it whole."""
    if private.is_sliding(layer) and layer.keys is not None and layer.values is not None:
        layer.cumulative_length = layer.keys.shape[-2]
        kept = slice(-layer.sliding_window + 1, None)
        layer.keys, layer.values = layer.keys[..., kept, :], layer.values[..., kept, :]


def capture(model: nn.Module, inputs: Mapping[str, Any], *, record_only: bool = False) -> Program:
    """Trace ``model`` on ``inputs`` and bring the graph into canonical form. The model is left as it was.

    What torch.export refuses is recorded as it runs on these very inputs; the program then stands for no others.
    ``record_only`` does so at once, for a model known to be refused.
    """
    traced = _recorded(model, inputs) if record_only else _traced(model, inputs)
    with quiet():
        graph, fused = canonicalise(traced.module)
    paths = [path for path, _ in private.pytree.tree_flatten_with_path(dict(inputs))[0]]
    leaves = tuple(_leaf_name(path) for path in paths)
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
        warnings.warn(note, RetraceWarning, stacklevel=6)
        return recorded


def _recorded(model: nn.Module, inputs: Mapping[str, Any]) -> Traced:
    with quiet(), steady(model) as traced:
        return record(traced, inputs)


def _same(given: Any, recorded: Any) -> bool:
    if isinstance(given, Tensor) and isinstance(recorded, Tensor):
        return torch.equal(given, recorded)
    return bool(given == recorded)


def _leaf_name(path: tuple[Any, ...]) -> str:
    """``inputs["a"]`` is ``a``; a tensor inside a nested input is ``a.0.b``."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of ``model`` are; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def weight(model: nn.Module, target: str) -> Tensor:
    """The parameter or buffer of ``model`` at a path."""
    owner, _, name = target.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), name)
    return found


def flatten(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of the (possibly nested) inputs by the names of :class:`Program`."""
    return {_leaf_name(path): leaf for path, leaf in private.pytree.tree_flatten_with_path(dict(inputs))[0]}
