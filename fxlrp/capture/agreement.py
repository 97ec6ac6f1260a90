"""Whether a graph gives what its model gives: to rounding, and nothing more.

In: a model, a program and inputs. Out: yes or no. Where a difference may be rounding or not, both are run once more in
a wider type, in which rounding is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fxlrp.capture import torch_private as private
from fxlrp.capture.calling import Form, Signature
from fxlrp.capture.elsewhere import home_of
from fxlrp.capture.export import check_runs, copied, steady
from fxlrp.capture.precision import in_float32, is_narrow
from fxlrp.capture.process import attention_spelled_out, unmoved
from fxlrp.capture.program import Program, device_of, widened
from fxlrp.graph.nodes import run

#: Differences, as shares of the largest entry of an output, up to which operators of equal values in another order go.
ROUNDING = 1e-4
#: What no rounding explains, in any type: bfloat16 keeps 8 bits, and a deep model loses some of them.
APART = 0.1
#: Up to how many weights a model is run in a wider type to settle what is rounding.
SETTLED = 2**29
#: How many times its graph's rounding, and how many eps besides, that of a model may be: kernels differ in what they
#: keep, and of a few outputs it may be small by chance. Measured on the tests' architectures: 2.3 times, or 0.9 eps.
MORE, BESIDES = 3.0, 2.0


def agree(model: nn.Module, program: Program, inputs: Mapping[str, Any]) -> bool:
    """Whether a program gives what the model gives on these inputs, in shapes and, but for rounding, in values."""
    if device_of(model).type == "meta":
        return True
    # The kernel that spells attention out is the one whose values the graph has, whatever the types of masks.
    with torch.no_grad(), attention_spelled_out():
        with unmoved():  # a model that draws numbers in eval mode and its graph draw the same ones
            expected = _floats(check_runs(model, inputs))
        found = _outputs(program, program.arguments(model, inputs))
        apart = _distance(expected, found)
        if ROUNDING < apart <= APART:
            settled = _settled(model, program, inputs)
            if settled is None and is_narrow(program):
                return _both_round(model, program, inputs, expected, found)
            apart = _tolerated(apart, expected) if settled is None else settled
    return apart <= ROUNDING


def _outputs(program: Program, arguments: Mapping[str, Any]) -> list[Tensor]:
    returned: Any = program.graph.output_node()
    values = run(program.graph, arguments, returned.all_input_nodes)
    return _floats(program.unpack(fx.map_arg(returned.args[0], values.__getitem__)))


def _floats(outputs: Any) -> list[Tensor]:
    leaves = private.pytree.tree_leaves(Form().apart(outputs))
    return [t for t in leaves if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())]


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference as a share of the largest entry of its output; infinite for other shapes."""
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    return max((_apart(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _apart(a: Tensor, b: Tensor) -> float:
    a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    same = (a == b) | ((a != a) & (b != b))  # infinities and NaN in the same places are equal
    if bool(same.all()):
        return 0.0
    apart, size = (
        (a - b)[~same].abs().max(),
        a[torch.isfinite(a)].abs().max() if bool(torch.isfinite(a).any()) else a.new_ones(()),
    )
    found = float(apart / size.clamp_min(torch.finfo(torch.float32).tiny))
    return found if found == found else float("inf")


def _settled(model: nn.Module, program: Program, inputs: Mapping[str, Any]) -> float | None:
    """The distance where model and program compute in a wider type, float32 in the place of half precision and float64
    in that of float32; None where the model is large, is not all here, or cannot.
    """
    if home_of(model) is not None or sum(p.numel() for p in model.parameters()) > SETTLED:
        return None
    narrow = is_narrow(program)
    wide = widened if narrow else _doubled
    program = in_float32(program) if narrow else program
    given = private.pytree.tree_map(lambda leaf: wide(copied(leaf)), dict(inputs))
    try:
        with steady(model, given) as (twin, _), unmoved():
            held = dict(twin.named_parameters()) | dict(twin.named_buffers())
            weights = {name: wide(each.detach()) for name, each in held.items()}
            expected = _floats(functional_call(twin, weights, *Signature.of(twin).split(given)))
        arguments = {name: wide(value) for name, value in program.arguments(model, inputs).items()}
        return _distance(expected, _outputs(program, arguments))
    except Exception:  # a type that the model's own code insists on
        return None


def _both_round(
    model: nn.Module, program: Program, inputs: Mapping[str, Any], expected: Sequence[Tensor], found: Sequence[Tensor]
) -> bool:
    """Whether a model in half precision is as far from its graph in float32, in which rounding is nothing, as the graph
    in its own type is: then both differ from it by rounding alone. Means of squares tell, as there are many entries.
    """
    wide = in_float32(program)
    exact = _outputs(wide, wide.arguments(model, inputs))
    for true, a, b in zip(exact, expected, found, strict=True):
        if _spread(true, a) > MORE * _spread(true, b) + BESIDES * torch.finfo(a.dtype).eps:
            return False
    return True


def _spread(true: Tensor, value: Tensor) -> float:
    """The root mean square of a difference as a share of that of what is finite of the ``true`` values."""
    true, value = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (true, value))
    known = torch.isfinite(true) & torch.isfinite(value)
    size = true[known].abs().square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return float((true - value)[known].abs().square().mean().sqrt() / size) if bool(known.any()) else 0.0


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _tolerated(apart: float, outputs: Sequence[Tensor]) -> float:
    """A distance that could not be settled: nothing if the type of the outputs explains it."""
    coarsest = max(torch.finfo(t.dtype).eps for t in outputs)
    return 0.0 if apart <= max(16 * coarsest, coarsest**0.5 if coarsest < 1e-4 else 0.0) else apart
