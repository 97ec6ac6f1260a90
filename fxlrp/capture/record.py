"""Records a model that torch.export refuses: the operators that run on the given inputs, in the order they run.

Whatever the model decides from values (branches, loops, sizes) is decided as on these inputs, so that the
recording stands for the model on exactly these inputs and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx import traceback as fx_traceback

from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import mutates, unknown
from fxlrp.capture.foreign import introduce
from fxlrp.capture.process import attention_spelled_out
from fxlrp.capture.traced import Traced, with_values


def record(model: nn.Module, inputs: Mapping[str, Any]) -> Traced:
    """The operators that ``model``, a twin, runs on ``inputs``, in-place ones replaced by their functional forms.

    First they are recorded as they are, on copies of what the model may write to; what writes is then replayed.
    """
    given, spec = private.pytree.tree_flatten(dict(inputs))
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    outputs: list[private.pytree.TreeSpec] = []

    def arguments() -> tuple[dict[str, Tensor], list[Any]]:
        return held | {name: buffer.clone() for name, buffer in model.named_buffers()}, _copied(given)

    def run(weights: dict[str, Tensor], leaves: list[Any]) -> list[Any]:
        result = functional_call(model, weights, (), private.pytree.tree_unflatten(leaves, spec))
        flat, form = private.pytree.tree_flatten(result)
        outputs.append(form)
        return flat

    decompositions = torch.export.default_decompositions()
    table: dict[Any, Any] = {target: decompositions[target] for target in decompositions if unknown(target)}
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
    return Traced(
        module=module,
        weights=dict(zip(holders, held, strict=False)),
        constants=constants,
        inputs=tuple(holders[len(held) :]),
        output_spec=outputs[-1],
        recorded=tuple(_copied(given)),
    )


def _copied(leaves: list[Any]) -> list[Any]:
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


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
