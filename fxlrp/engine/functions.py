"""Callable targets as part of the graph: a function of a model's outputs is captured and appended to its program.

In: a captured program, the flat outputs in the model's own precision on the inputs at hand, functions of the output
object. Out: a program whose last outputs are the values of these functions, so that rules stand in them as in the
model, which is not captured anew.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from types import CellType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.capture import Program, capture
from fxlrp.capture import torch_private as private
from fxlrp.capture.builder import Builder
from fxlrp.capture.elsewhere import check_here
from fxlrp.capture.precision import in_float32, is_narrow
from fxlrp.capture.process import quiet
from fxlrp.capture.reads import is_library
from fxlrp.capture.torch_private import LOCK
from fxlrp.engine.graphs import Captured
from fxlrp.errors import CaptureError
from fxlrp.graph.nodes import run
from fxlrp.patterns.fold_activations import fold_activations
from fxlrp.patterns.structure import Structure

Function = Callable[[Any], Tensor]

#: How many functions of one program are kept: a function that is written anew for every call is captured for each.
KEPT = 8


@dataclass(frozen=True, eq=False)
class WithFunctions(Captured):
    """A program whose last outputs are the values of ``functions``, each of which was a program of its own: all else is
    what it was captured as. ``own`` is the model's alone, without them.
    """

    functions: tuple[Program, ...] = ()


class _OfOutputs(nn.Module):
    """A function of an output object as a module over the tensors among its flat values, ``output_i``."""

    def __init__(self, function: Function, program: Program, flat: Sequence[Any]) -> None:
        super().__init__()
        others = [None if isinstance(value, Tensor) else value for value in flat]
        tensors = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]

        def forward(**outputs: Tensor) -> Tensor:
            return function(program.unpack(tuple(outputs.get(_name(i), value) for i, value in enumerate(others))))

        kind = inspect.Parameter.KEYWORD_ONLY
        named = inspect.Signature([inspect.Parameter(_name(i), kind) for i in tensors])
        forward.__signature__ = named  # type: ignore[attr-defined]
        self.forward = forward
        device = flat[tensors[0]].device if tensors else None
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)  # where constants are


def _name(index: int) -> str:
    return f"output_{index}"


def with_functions(captured: Captured, functions: Sequence[Function], flat: Sequence[Any]) -> Captured:
    """``captured`` with the values of ``functions`` as its last outputs; ``flat`` are the model's on these inputs.

    Functions take what the model gives; where its graph computes in a wider type than the model, so do theirs. It is
    kept with the program, and taken as long as it gives what the functions give. Raises :class:`CaptureError` for
    a function that cannot be captured.
    """
    for function in functions:
        for module in _modules_of(function):
            check_here(module, "a callable target that runs it")
    given = {_name(i): value.detach() for i, value in enumerate(flat) if isinstance(value, Tensor)}
    modules = [_OfOutputs(function, captured.program, flat).eval() for function in functions]
    key: Any = ("function", *functions)
    kept = captured.forms.get(key)
    if isinstance(kept, WithFunctions) and _stands(kept, modules, given):
        return kept
    try:
        with quiet():  # recorded again for other values, which is quickly done
            programs = tuple(capture(module, given) for module in modules)
        taken = tuple(fold_activations(_as_wide(program, captured.program)) for program in programs)
        held = [program.arguments(module, given) for program, module in zip(taken, modules, strict=True)]
        made = replace(_joined(captured, taken, held), functions=programs)
    except CaptureError:
        raise
    except Exception as error:  # whatever the user's own code does under a tracer
        raise CaptureError(f"{type(error).__name__}: {error}") from error
    with LOCK:
        others = [name for name, each in captured.forms.items() if isinstance(each, WithFunctions)]
        for old in others[: max(0, len(others) - KEPT + 1)]:
            captured.forms.pop(old, None)
        captured.forms[key] = made
    return made


def _modules_of(function: Any) -> Iterator[nn.Module]:
    """The modules that a function, or an object that is called, has at hand by its own names or in what these name."""
    queue, seen = deque([function]), set[int]()
    while queue:
        value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, partial):
            queue.extend((value.func, *value.args, *value.keywords.values()))
        elif inspect.ismethod(value):
            queue.extend((value.__self__, value.__func__))
        elif inspect.isfunction(value) and not is_library(value):
            cells = (cell.cell_contents for cell in value.__closure__ or () if cell != CellType())
            named = (value.__globals__.get(name) for name in value.__code__.co_names)
            queue.extend(chain(cells, named, value.__defaults__ or (), (value.__kwdefaults__ or {}).values()))
        elif not isinstance(value, (type, ModuleType)) and not is_library(value):
            queue.extend(getattr(value, "__dict__", {}).values())


def _as_wide(function: Program, model: Program) -> Program:
    """The program of a function in float32, where the model's graph gives it that in the place of half precision."""
    return in_float32(function) if model.wide and is_narrow(function) else function


def _stands(kept: WithFunctions, modules: Sequence[nn.Module], given: Mapping[str, Tensor]) -> bool:
    """Whether the appended programs give what the functions give now: what a function holds may have changed."""
    for module, program in zip(modules, kept.functions, strict=True):
        if not program.accepts(module, given):
            return False
        returned: Any = program.graph.output_node().args[0]
        with torch.no_grad():
            expected = module(**given)
        found = run(program.graph, program.arguments(module, given), [returned[0]])[returned[0]]
        if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-4, atol=0, equal_nan=True):
            return False
    return True


def _joined(captured: Captured, functions: tuple[Program, ...], held: Sequence[Mapping[str, Any]]) -> WithFunctions:
    """The program with those of the functions behind it, whose nodes get fake values with the sizes of the model's;
    ``held`` are the functions' arguments, of which those that are no outputs of the model become constants.
    """
    program = captured.program
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    outputs: Any = graph.graph_copy(program.graph, values)
    mode = next(filter(None, (private.fake_mode_of(node.meta.get("val")) for node in graph.nodes)), None)
    builder = Builder(graph, mode)
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    constants, fused = dict(program.constants), {}
    for exit_node, region in program.fused.items():
        if exit_node in values:
            fused[values[exit_node]] = region.moved(values)
    added = []
    for number, function in enumerate(functions):
        own = dict[fx.Node, fx.Node]()
        for node in function.graph.nodes:
            if node.op == "output":
                added.append(own[node.args[0][0]])
            elif node.op == "placeholder" and str(node.target) in function.inputs:
                own[node] = outputs[int(function.inputs[str(node.target)].removeprefix(_name(0)[:-1]))]
            elif node.op == "placeholder":
                with graph.inserting_after(last):
                    last = own[node] = graph.placeholder(f"function_{number}_{node.target}")
                constants[str(last.target)] = value = held[number][str(node.target)].detach()
                last.meta["val"] = value if mode is None else mode.from_tensor(value)
            else:
                own[node] = builder.copied(node, own)
        fused |= {own[exit_node]: region.moved(own) for exit_node, region in function.fused.items()}
    graph.output((*outputs, *added))
    attributed = tuple(replace(each, node=values[each.node]) for each in captured.structure.attributed)
    made = replace(program, graph=graph, constants=constants, fused=fused, functions=len(added))
    kept = {each.name: getattr(captured, each.name) for each in fields(Captured)}
    changed = {"program": made, "structure": Structure.of(made, attributed), "forms": {}}
    return WithFunctions(**{**kept, **changed})
