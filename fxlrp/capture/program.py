"""A captured model: its canonical graph, where its weights live, and how to pack and unpack its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.capture import torch_private as private
from fxlrp.capture.calling import Form
from fxlrp.capture.canonical import Fused
from fxlrp.capture.decisions import Decisions
from fxlrp.capture.dense import dense
from fxlrp.capture.elsewhere import elsewhere, home_of
from fxlrp.capture.guards import hold
from fxlrp.errors import InputError
from fxlrp.graph.handles import Elsewhere
from fxlrp.graph.operators import is_random


@dataclass(frozen=True)
class Program:
    """A model as a graph. Placeholders are weights (by their path in the model), lifted constants, then the
    user's inputs.

    ``fused`` tells, for the exit node of each expanded operator, which operator it was. ``guards`` are the
    conditions on input shapes under which the graph stands for the model; :meth:`accepts` evaluates them. A
    model that decides by values was ``recorded`` on these leaves: its graph stands for inputs of these sizes, but for
    the ``free`` axes (name, axis), which have one length, on which it decides the same. The last ``functions`` of
    the graph's outputs are values of functions of the model's output, and no part of it. A ``wide`` graph takes what is
    in half precision in float32 (see :mod:`fxlrp.capture.precision`).
    """

    graph: fx.Graph
    weights: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: Mapping[str, str]
    input_leaves: tuple[str, ...]
    output_spec: private.pytree.TreeSpec
    form: Form
    fused: Mapping[fx.Node, Fused]
    guards: tuple[str, ...]
    shapes: Mapping[str, tuple[int | None, ...]]
    recorded: Mapping[str, Any] | None = None
    decisions: Decisions | None = None
    """What a recorded model decided by values."""
    replayed: bool = False
    """Whether torch.export follows the model, but for the branches that are taken on the recorded inputs."""
    functions: int = 0
    wide: bool = False
    free: tuple[tuple[str, int], ...] = ()

    def taken(self, value: Any) -> Any:
        """A weight, constant or input as the graph takes it."""
        return widened(value) if self.wide else value

    def accepts(self, model: nn.Module, inputs: Mapping[str, Any]) -> bool:
        """Whether the graph stands for the model on these inputs."""
        leaves = flatten(inputs)
        if self.recorded is not None and self.decisions is not None:
            if len({leaves[name].shape[axis] for name, axis in self.free}) > 1:
                return False
            if not all(_is_alike(leaves[name], leaf, self.shapes.get(name)) for name, leaf in self.recorded.items()):
                return False
            weights = {name: weight(model, target) for name, target in self.decisions.weights.items()}
            return self.decisions.hold(weights, [leaves[name] for name in self.input_leaves], device_of(model))
        for name, shape in self.shapes.items():
            # An axis that was free and long may not be assumed to mean the same at length one; only the batch axis may.
            for axis, (traced, size) in enumerate(zip(shape, leaves[name].shape, strict=True)):
                if (traced is not None and traced != size) or (traced is None and axis > 0 and size == 1):
                    return False
        return hold(self.guards, inputs)

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
    def placeholders(self) -> dict[str, fx.Node]:
        """The graph's placeholders by name, in order."""
        return {str(node.target): node for node in self.graph.nodes if node.op == "placeholder"}

    @cached_property
    def random(self) -> tuple[fx.Node, ...]:
        """What draws random numbers."""
        return tuple(node for node in self.graph.nodes if is_random(node))

    def arguments(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each placeholder: a weight of ``model``, a constant on its device, or a leaf of ``inputs``."""
        device, leaves = device_of(model), flatten(inputs)
        return {
            name: self.taken(
                weight(model, self.weights[name])
                if name in self.weights
                else self.constants[name].to(device)
                if name in self.constants
                else leaves[self.inputs[name]]
            )
            for name in self.placeholders
        }

    def unpack(self, values: tuple[Any, ...]) -> Any:
        """The model's own output object from the flat outputs of the graph."""
        values = values[: len(values) - self.functions]
        outputs = private.pytree.tree_unflatten(list(values), self.output_spec)
        for layer in _layers_of_caches(outputs):
            _cut_to_window(layer)
        return self.form.whole(outputs)


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


def _is_alike(given: Any, recorded: Any, fixed: tuple[int | None, ...] | None) -> bool:
    """Whether a leaf has the sizes and the type of another, but where a size is free; what is no tensor, its value."""
    if isinstance(given, Tensor) and isinstance(recorded, Tensor):
        sizes = fixed or tuple(recorded.shape)
        alike = all(size in (None, here) for size, here in zip(sizes, given.shape, strict=True))
        return alike and given.dtype == recorded.dtype
    return bool(given == recorded)


def leaf_name(path: tuple[Any, ...]) -> str:
    """``inputs["a"]`` is ``a``; a tensor inside a nested input is ``a.0.b``."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)


def widened(x: Any) -> Any:
    """A half precision tensor in float32, so that products of small values and messages do not vanish."""
    if not isinstance(x, (Tensor, Elsewhere)):
        return x
    if x.dtype is torch.complex32:
        return x.to(torch.complex64)
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of ``model`` are when it runs; the CPU if it has none."""
    held = next((p.device for p in model.parameters()), torch.device("cpu"))
    return (home_of(model) or held) if held.type == "meta" else held


def weight(model: nn.Module, target: str) -> Any:
    """The parameter or buffer of ``model`` at a path; of one that is packed the matrix that it stands for, of one that
    is kept elsewhere its handle.
    """
    owner, _, name = target.rpartition(".")
    return weight_of(model.get_submodule(owner), name, model, target)


def weight_of(layer: nn.Module, name: str, model: nn.Module, target: str) -> Any:
    """The same, of a layer that was found before."""
    held = dense(layer, name, model)
    return (elsewhere(model, target) or held) if held.is_meta else held


def cut(value: Any, ends: bool = False) -> Any:
    """A weight that no gradient leads through, or (if it ``ends``) that a backward pass ends at."""
    if isinstance(value, Elsewhere):
        return replace(value, ends=ends)
    made = value.detach()
    return made.requires_grad_() if ends else made


def ordinary(value: Any) -> Any:
    """A tensor that autograd follows, where one was made in inference mode; any other value as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def flatten(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of the (possibly nested) inputs by the names of :class:`Program`.

    Raises :class:`InputError` where two have one name.
    """
    pairs = [(leaf_name(path), leaf) for path, leaf in private.pytree.tree_flatten_with_path(dict(inputs))[0]]
    leaves = dict(pairs)
    if len(leaves) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"Two inputs are called '{twice}', so their relevance could not be told apart: rename a key of the nested "
            "input (keys that hold a dot, or a number and its text, run into each other)."
        )
    return leaves
