"""Records a model that torch.export refuses: the operators that run on the given inputs, in the order they run.

Whatever the model decides from values (branches, loops, sizes) is decided as on these inputs, so that the
recording stands for the model where these decisions come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx import traceback as fx_traceback

from fxlrp.capture import torch_private as private
from fxlrp.capture.calling import Signature
from fxlrp.capture.canonical import INLINED, mutates, unknown
from fxlrp.capture.decisions import Decisions, Watched
from fxlrp.capture.export import copied
from fxlrp.capture.foreign import introduce
from fxlrp.capture.process import attention_spelled_out
from fxlrp.capture.program import device_of, weight
from fxlrp.capture.traced import Traced, with_values
from fxlrp.errors import CaptureError


def record(model: nn.Module, inputs: Mapping[str, Any]) -> Traced:
    """The operators that ``model``, a twin, runs on ``inputs``, in-place ones replaced by their functional forms.

    First they are recorded as they are, on copies of what the model may write to; what writes is then replayed.
    """
    given, spec = private.pytree.tree_flatten(dict(inputs))
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    outputs: list[private.pytree.TreeSpec] = []
    signature = Signature.of(model)

    def arguments() -> tuple[dict[str, Tensor], list[Any]]:
        return held | {name: buffer.clone() for name, buffer in model.named_buffers()}, list(map(copied, given))

    def run(weights: dict[str, Tensor], leaves: list[Any]) -> list[Any]:
        with Watched():
            result = functional_call(model, weights, *signature.split(private.pytree.tree_unflatten(leaves, spec)))
        flat, form = private.pytree.tree_flatten(result)
        outputs.append(form)
        return flat

    table = _decompositions()
    with attention_spelled_out(), torch.no_grad():
        _mark_module_paths(model)
        module = _traced(run, table, *arguments())
        if mutates(module.graph):
            replay = fx.Interpreter(module)
            with fx_traceback.preserve_node_meta():
                module = _traced(functionalize(lambda *values: replay.run(*values)), table, *arguments())
    introduce(module.graph)
    holders = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    constants = _lifted(module)
    with_values(module.graph)
    weights, places = dict(zip(holders, held, strict=False)), tuple(holders[len(held) :])
    values = [*(each.detach() for each in held.values()), *map(copied, given)]
    recorded = constants | dict(zip(holders, values, strict=True))
    return Traced(
        module=module,
        weights=weights,
        constants=constants,
        inputs=places,
        output_spec=outputs[-1],
        recorded=tuple(map(copied, given)),
        decisions=Decisions.of(module, recorded, weights, places),
    )


def replayed(model: nn.Module, traced: Traced, inputs: Mapping[str, Any]) -> Traced:
    """A traced model with its branches (torch.cond) taken and its loops run as on ``inputs``, for which alone it then
    stands.
    """
    leaves = list(map(copied, private.pytree.tree_leaves(dict(inputs))))
    held = {
        **{name: weight(model, target).detach() for name, target in traced.weights.items()},
        **{name: value.to(device_of(model)) for name, value in traced.constants.items()},
        **dict(zip(traced.inputs, leaves, strict=True)),
    }
    names = [str(node.target) for node in traced.module.graph.nodes if node.op == "placeholder"]
    replay = _Replay(traced.module)
    with attention_spelled_out(), torch.no_grad(), fx_traceback.preserve_node_meta():
        values = [held[name] for name in names]
        module = _traced(functionalize(lambda *given: replay.run(*given)), _decompositions(), *values)
    introduce(module.graph)
    made = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    renamed = dict(zip(names, made, strict=True))
    constants = {renamed[name]: value for name, value in traced.constants.items()} | _lifted(module)
    with_values(module.graph)
    weights = {renamed[name]: target for name, target in traced.weights.items()}
    places = tuple(renamed[name] for name in traced.inputs)
    arguments = constants | {renamed[name]: value for name, value in held.items()}
    return Traced(
        module=module,
        weights=weights,
        constants=constants,
        inputs=places,
        output_spec=traced.output_spec,
        recorded=tuple(leaves),
        replayed=True,
        decisions=Decisions.of(module, arguments, weights, places),
    )


class _Replay(fx.Interpreter):
    """Runs a graph; of what decides by values, the part that these values choose."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of one node."""
        if not isinstance(target, private.HigherOrderOperator):
            return super().call_function(target, args, kwargs)
        taken = _TAKEN.get(str(target))
        if taken is not None:
            return taken(*args, **kwargs)
        place = INLINED.get(str(target))
        if place is None:
            raise CaptureError(f"fxlrp cannot look into '{target}'. Express it with ordinary operators.")
        return _run(args[place], *args[place + 1 :])


def _run(graph: fx.GraphModule, *values: Any) -> Any:
    return _Replay(graph).run(*values)


def _branch(condition: Any, yes: fx.GraphModule, no: fx.GraphModule, operands: Sequence[Any] = ()) -> Any:
    return _run(yes if bool(condition) else no, *operands)


def _loop(goes_on: fx.GraphModule, body: fx.GraphModule, carried: Sequence[Any], others: Sequence[Any] = ()) -> Any:
    values = tuple(carried)
    while bool(_run(goes_on, *values, *others)):
        values = tuple(_run(body, *values, *others))
    return values


def _mapped(body: fx.GraphModule, over: Sequence[Any], others: Sequence[Any] = ()) -> Any:
    rows = [_run(body, *(each[i] for each in over), *others) for i in range(len(over[0]))]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _scanned(body: fx.GraphModule, first: Sequence[Any], over: Sequence[Any], others: Sequence[Any] = ()) -> Any:
    carried, rows = tuple(first), []
    for i in range(len(over[0])):
        given = _run(body, *carried, *(each[i] for each in over), *others)
        carried, row = tuple(given[: len(carried)]), given[len(carried) :]
        rows.append(row)
    return (*carried, *(torch.stack(column) for column in zip(*rows, strict=True)))


#: What torch calls its branches and loops, and how each is run on values.
_TAKEN: dict[str, Callable[..., Any]] = {
    "cond": _branch,
    "while_loop": _loop,
    "map_impl": _mapped,
    "scan": _scanned,
}


def _decompositions() -> dict[Any, Any]:
    table = torch.export.default_decompositions()
    return {target: table[target] for target in table if unknown(target)}


def _traced(run: Callable[..., Any], table: dict[Any, Any], *arguments: Any) -> fx.GraphModule:
    return private.make_fx(
        run,
        decomposition_table=table,
        _allow_non_fake_inputs=True,
        _error_on_data_dependent_ops=False,
        record_stack_traces=True,
    )(*arguments)


def _lifted(module: fx.GraphModule) -> dict[str, Tensor]:
    """Constants that the model makes on its way become placeholders, as torch.export has them."""
    holders: dict[str, fx.Node] = {}
    first = next(iter(module.graph.nodes))
    for node in [n for n in module.graph.nodes if n.op == "get_attr"]:
        name = f"c_{node.target}"
        if name not in holders:
            with module.graph.inserting_before(first):
                holders[name] = module.graph.placeholder(name)
            holders[name].meta["val"] = getattr(module, str(node.target)).detach()
        node.replace_all_uses_with(holders[name])
        module.graph.erase_node(node)
    return {name: holder.meta["val"] for name, holder in holders.items()}


def _mark_module_paths(model: nn.Module) -> None:
    """Hooks that write to each recorded node which modules it ran in, as torch.export does. ``model`` is a twin."""
    paths = {id(module): path for path, module in model.named_modules()}
    stack: list[tuple[str, str]] = []

    def mark() -> None:
        mode = private.get_proxy_mode()
        for node in reversed(mode.tracer.graph.nodes) if mode is not None else ():
            if "nn_module_stack" in node.meta:
                break
            node.meta["nn_module_stack"] = {str(depth): place for depth, place in enumerate(stack)}

    def enter(module: nn.Module, _: Any) -> None:
        mark()
        stack.append((paths.get(id(module), stack[-1][0] if stack else ""), type(module).__qualname__))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        mark()
        stack.pop()

    for module in model.modules():
        module.register_forward_pre_hook(enter, prepend=True)
        module.register_forward_hook(leave, prepend=True)
