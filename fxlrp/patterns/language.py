"""The language in which patterns are written: ordinary torch code plus four markers.

``part(x, "name")`` labels a value, ``either(a, b)`` offers spellings of one value, ``chain(x)`` stands for x after
any scaling, masking, adding of a bias, casting and moving, and ``any_axis(x)`` lets the operator that x is made by act
along any axis. A pattern is captured as a model is, so it reads like the model code it looks for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture import torch_private as private
from fxlrp.capture.code import capture_code
from fxlrp.errors import PatternError, warn
from fxlrp.graph.operators import is_movement


@torch.library.custom_op("fxlrp::part", mutates_args=())
def _part(x: Tensor, name: str) -> Tensor:
    return x.clone()


@torch.library.custom_op("fxlrp::either", mutates_args=())
def _either(options: list[Tensor]) -> Tensor:
    return options[0].clone()


@torch.library.custom_op("fxlrp::chain", mutates_args=())
def _chain(x: Tensor, adding: bool) -> Tensor:
    return x.clone()


@torch.library.custom_op("fxlrp::any_axis", mutates_args=())
def _any_axis(x: Tensor, name: str) -> Tensor:
    return x.clone()


for _marker in (_part, _chain, _any_axis):
    _marker.register_fake(lambda x, _: torch.empty_like(x))
_either.register_fake(lambda options: torch.empty_like(options[0]))

PART, EITHER, CHAIN, ANY_AXIS = (
    torch.ops.fxlrp.part.default,
    torch.ops.fxlrp.either.default,
    torch.ops.fxlrp.chain.default,
    torch.ops.fxlrp.any_axis.default,
)
MARKERS = frozenset({PART, EITHER, CHAIN, ANY_AXIS})


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


def any_axis(x: Tensor, name: str = "") -> Tensor:
    """``x``, whose operator (a mean, a softmax) may act along any axes; along the same wherever ``name`` is given."""
    return _any_axis(x, name)


@dataclass(frozen=True, eq=False)
class Pattern:
    """A named sub-structure of a graph.

    ``code`` is torch code over example tensors; ``examples`` gives them (by parameter name: a shape, or ``()`` for a
    number that may be anything); those in ``dependent`` must depend on the model's inputs, so that
    a product with a weight is no gate. ``carried`` are inputs that go from step to step. ``slope`` makes the
    pattern an activation: a function of one tensor with ``f(x)/x`` in closed form. ``check`` is asked of every match
    (a :class:`fxlrp.patterns.Match`): None or True if it holds, else a sentence that says why not.
    """

    name: str
    code: Callable[..., Tensor]
    examples: Mapping[str, tuple[int, ...]]
    doc: str = ""
    dependent: frozenset[str] = frozenset()
    slope: Callable[..., Tensor] | None = None
    carried: tuple[str, ...] = ()
    check: Callable[[Any], str | bool | None] | None = None

    @property
    def spelled(self) -> str:
        """The name, and that of the function where it is another."""
        return f"'{self.name}'" + ("" if self.code.__name__ == self.name else f" ({self.code.__name__})")

    @property
    def packaged(self) -> bool:
        """Whether it comes with fxlrp: a model need not have what it looks for."""
        return self.code.__module__.startswith("fxlrp.")

    @property
    def written(self) -> fx.Graph:
        """The canonical graph of the code as it is written, with no activation folded.

        A number that follows from the examples' sizes, as the scale of an attention does, may be any number: it is
        a placeholder. Raises :class:`PatternError` for code that cannot be traced so.
        """
        with private.LOCK:  # before the lock of a cached property: one order of locks for all threads
            return self._written

    @cached_property
    def _written(self) -> fx.Graph:
        try:
            graph = capture_code(self.code, self._tensors(1))
        except Exception as error:  # whatever the pattern's own code does
            raise PatternError(
                f"The pattern {self.spelled} cannot be traced: {type(error).__name__}: {error}"
            ) from error
        if self.slope is None and any(_numbers(graph)):  # an activation is the same at every size
            try:
                larger = capture_code(self.code, self._tensors(2))
            except Exception:  # code for the examples' sizes alone: its numbers are meant as they stand
                return graph
            _set_free(graph, larger)
        return graph

    def _tensors(self, scale: int) -> dict[str, Tensor]:
        """Examples of all parameters, with every axis longer than one that many times as long."""
        draw = torch.Generator().manual_seed(0)  # the global one is the user's
        sizes = {name: [n * scale if n > 1 else n for n in shape] for name, shape in self.examples.items()}
        return {name: torch.rand(size, dtype=torch.float64, generator=draw) + 0.5 for name, size in sizes.items()}

    @cached_property
    def parts(self) -> frozenset[str]:
        """The labels of its parts."""
        return frozenset(str(node.args[1]) for node in self.written.nodes if node.target is PART)


def _numbers(graph: fx.Graph) -> Iterator[tuple[fx.Node, int, Any]]:
    """The numbers among the arguments of operators that calculate, with their places."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target not in MARKERS and not is_movement(node):
            for index, value in enumerate(node.args):
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    yield node, index, value


def _set_free(graph: fx.Graph, larger: fx.Graph) -> None:
    """Put placeholders in the place of numbers that are others in a graph of the same code for larger examples."""
    here, there = list(_numbers(graph)), list(_numbers(larger))
    if [(node.target, index) for node, index, _ in here] != [(node.target, index) for node, index, _ in there]:
        return
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for (node, index, value), (_, _, other) in zip(here, there, strict=True):
        if value != other:
            with graph.inserting_after(last):
                node.update_arg(index, graph.placeholder(f"size_{node.name}"))


PATTERNS: dict[str, list[Pattern]] = {}


def registered() -> tuple[Pattern, ...]:
    """All patterns in the order in which they were registered, name by name: what a match depends on."""
    return tuple(each for group in PATTERNS.values() for each in group)


def pattern(
    name: str,
    *,
    slope: Callable[..., Tensor] | None = None,
    dependent: tuple[str, ...] = (),
    carried: tuple[str, ...] = (),
    check: Callable[[Any], str | bool | None] | None = None,
    **examples: tuple[int, ...],
) -> Callable[..., Pattern]:
    """Register torch code as a pattern: ``@pattern("norm", x=(2, 3), eps=())``.

    Several functions may share one name when their structures have nothing in common; one of the same name as an
    earlier one replaces it, and a warning says so. ``check`` gets each match and returns None or True if it holds, or
    a sentence that says why not. Conversions made before see the pattern from their next call on. Raises
    :class:`PatternError` if the examples are not the parameters of the function, or its code cannot be traced.
    """

    def register(code: Callable[..., Tensor]) -> Pattern:
        if list(inspect.signature(code).parameters) != list(examples):
            raise PatternError(
                f"The pattern '{name}' has the parameters {', '.join(inspect.signature(code).parameters)} but examples "
                f"of {', '.join(examples)}: give one of each, in this order."
            )
        doc = (code.__doc__ or "").strip()
        made = Pattern(name, code, examples, doc, frozenset(dependent), slope, carried, check)
        if not made.packaged:  # those are traced when they are first needed; a faulty one is to fail here
            _ = made.written
        group = PATTERNS.setdefault(name, [])
        earlier = next((i for i, each in enumerate(group) if each.code.__name__ == code.__name__), None)
        if earlier is None:
            group.append(made)
        else:
            group[earlier] = made
            warn(f"The pattern {made.spelled} replaces the one registered before.")
        return made

    return register
