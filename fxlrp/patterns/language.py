"""The language in which patterns are written: ordinary torch code plus three markers.

``part(x, "name")`` labels a value, ``either(a, b)`` offers spellings of one value, and ``chain(x)`` stands for
x after any scaling, masking, adding of a bias, casting and moving. A pattern is traced with the same operators
as a captured model, so it reads like the model code it looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxlrp.capture.canonical import canonical_function


@torch.library.custom_op("fxlrp::part", mutates_args=())
def _part(x: Tensor, name: str) -> Tensor:
    return x.clone()


@torch.library.custom_op("fxlrp::either", mutates_args=())
def _either(options: list[Tensor]) -> Tensor:
    return options[0].clone()


@torch.library.custom_op("fxlrp::chain", mutates_args=())
def _chain(x: Tensor, adding: bool) -> Tensor:
    return x.clone()


PART, EITHER, CHAIN = (
    torch.ops.fxlrp.part.default,
    torch.ops.fxlrp.either.default,
    torch.ops.fxlrp.chain.default,
)


def part(x: Tensor, name: str) -> Tensor:
    """Label ``x``: rulesets address it as ``pattern.name``."""
    return _part(x, name)


def either(*options: Tensor) -> Tensor:
    """One value in several spellings (of equal shape); the first that matches is taken."""
    shape = torch.broadcast_shapes(*(option.shape for option in options))
    return _either([option.expand(shape) if option.shape != shape else option for option in options])


def chain(x: Tensor, *, adding: bool = True) -> Tensor:
    """``x`` after any number of scalings, masks, casts, movements and, unless ``adding`` is False, added values."""
    return _chain(x, adding)


@dataclass(frozen=True, eq=False)
class Pattern:
    """A named sub-structure of a graph.

    ``code`` is torch code over example tensors; ``examples`` gives them (by parameter name: a shape, or a
    number for a scalar that may be anything); those in ``dependent`` must depend on the model's inputs, so that
    a product with a weight is no gate. ``carried`` are inputs that go from step to step. ``slope`` makes the
    pattern an activation: a function of one tensor with ``f(x)/x`` in closed form.
    """

    name: str
    code: Callable[..., Tensor]
    examples: Mapping[str, tuple[int, ...]]
    doc: str = ""
    dependent: frozenset[str] = frozenset()
    slope: Callable[..., Tensor] | None = None
    carried: tuple[str, ...] = ()

    @cached_property
    def graph(self) -> fx.Graph:
        """The canonical graph of the pattern's code."""
        tensors = [torch.rand(shape, dtype=torch.float64) + 0.5 for shape in self.examples.values()]
        return canonical_function(make_fx(self.code, pre_dispatch=True)(*tensors))

    @cached_property
    def root(self) -> fx.Node:
        """The node whose value the pattern computes; matching is anchored there."""
        result: Any = self.graph.output_node().args[0]
        return result

    @cached_property
    def size(self) -> int:
        """How many operators its shortest spelling has."""
        return len(_shortest(self.root))

    @cached_property
    def must_depend(self) -> frozenset[fx.Node]:
        """The pattern's inputs that must depend on the model's inputs."""
        return frozenset(p for p, name in zip(self.parameters, self.examples, strict=True) if name in self.dependent)

    @cached_property
    def parameters(self) -> tuple[fx.Node, ...]:
        """The pattern's inputs, in the order of its signature."""
        return tuple(node for node in self.graph.nodes if node.op == "placeholder")


def _shortest(node: Any) -> frozenset[fx.Node]:
    """The operators of the shortest spelling of a pattern value (markers and inputs are no evidence of a match)."""
    if not isinstance(node, fx.Node) or node.op == "placeholder":
        return frozenset()
    if node.target is EITHER:
        options: Any = node.args[0]
        return min((_shortest(option) for option in options), key=len)
    own = frozenset[fx.Node]() if node.target in (PART, CHAIN) else frozenset({node})
    return own.union(*(_shortest(argument) for argument in node.all_input_nodes))


PATTERNS: dict[str, list[Pattern]] = {}


def pattern(
    name: str,
    *,
    slope: Callable[..., Tensor] | None = None,
    dependent: tuple[str, ...] = (),
    carried: tuple[str, ...] = (),
    **examples: tuple[int, ...],
) -> Callable[..., Pattern]:
    """Register torch code as a pattern: ``@pattern("norm", x=(2, 3), eps=())``.

    Several functions may share one name when their structures have nothing in common.
    """

    def register(code: Callable[..., Tensor]) -> Pattern:
        made = Pattern(name, code, examples, (code.__doc__ or "").strip(), frozenset(dependent), slope, carried)
        PATTERNS.setdefault(name, []).append(made)
        return made

    return register
