"""Weights that are kept elsewhere until their module runs, on a disk or in another memory, as accelerate offloads them.

In: a model whose modules bring their weights in by hooks. Out: handles in the place of the weights. A graph is made of
stand-ins that have their sizes and hold no numbers; as it runs, each operation that takes a weight brings it in and
lets it go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxlrp.errors import CaptureError, InputError
from fxlrp.graph.handles import Elsewhere


def elsewhere(model: nn.Module, path: str) -> Elsewhere | None:
    """The handle of the parameter or buffer at a path, None if no module brings it in."""
    owner, _, name = path.rpartition(".")
    weight = getattr(model.get_submodule(owner), name)
    parts = owner.split(".") if owner else []
    for depth in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        for hook in _bringing(module):
            if depth == len(parts) or hook.place_submodules:
                within = ".".join([*parts[depth:], name])
                return Elsewhere(hook.weights_map, within, _device(hook), weight.shape, weight.dtype)
    return None


def home_of(model: nn.Module) -> torch.device | None:
    """Where the weights of a model are brought to, None if none are."""
    return next((_device(hook) for module in model.modules() for hook in _bringing(module)), None)


def is_placing(value: Any) -> bool:
    """Whether an object is a hook that puts values, and maybe weights, where a module runs, and changes none."""
    return (type(value).__module__, type(value).__qualname__) == ("accelerate.hooks", "AlignDevicesHook")


def is_bringing(value: Any) -> bool:
    """Whether an object is a hook by which a module brings its weights in."""
    return is_placing(value) and bool(value.offload) and value.weights_map is not None


def with_stand_ins(model: nn.Module) -> nn.Module:
    """A twin in which stand-ins are where weights would be brought in, and nothing brings them. Changes it in place."""
    if home_of(model) is None:
        return model
    handles = {path: elsewhere(model, path) for path, each in model.named_parameters() if each.is_meta}
    handles |= {path: elsewhere(model, path) for path, each in model.named_buffers() if each.is_meta}
    for path, module in model.named_modules():
        if "_hf_hook" not in vars(module):
            continue
        others = [hook for hook in _hooks(module) if not is_placing(hook)]
        if others:
            raise InputError(
                f"The module '{path}' brings its weights in, and has a {type(others[0]).__qualname__} as well, which "
                "may change what it computes. Take one of the two off (accelerate.hooks.remove_hook_from_module)."
            )
        forward = module._old_forward
        del module._hf_hook, module._old_forward
        vars(module).pop("forward")
        if getattr(forward, "__func__", None) is not type(module).forward:
            vars(module)["forward"] = forward
    for path, handle in handles.items():
        if handle is not None:
            owner, _, name = path.rpartition(".")
            layer = model.get_submodule(owner)
            stand_in = handle.stand_in()
            if name in layer._parameters:
                layer._parameters[name] = nn.Parameter(stand_in, requires_grad=False)
            else:
                layer._buffers[name] = stand_in
    return model


def check_here(model: nn.Module, what: str) -> None:
    """Raise :class:`CaptureError` for a model whose weights are kept elsewhere, of which something needs the values."""
    if home_of(model) is not None:
        raise CaptureError(
            f"{type(model).__name__} keeps weights elsewhere until its modules run (accelerate's offload), and {what} "
            "needs them all. Load the model whole."
        )


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = vars(module).get("_hf_hook")
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _bringing(module: nn.Module) -> Iterator[Any]:
    return filter(is_bringing, _hooks(module))


def _device(hook: Any) -> torch.device:
    return torch.device(hook.execution_device)
