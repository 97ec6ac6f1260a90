"""The same model under other names: of its modules, parameters, buffers and of the inputs that it takes."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

#: Words that mean something to a reader, and must mean nothing to the engine.
WORDS = (
    *("mask", "attention_mask", "masked_image", "position_ids", "position_embeddings", "token_type_ids", "cls_token"),
    *("bias", "norm", "input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids", "room_type", "pad", "weird"),
)
#: Modules that look their parts up otherwise than as attributes.
KEPT = (nn.RNNBase, nn.ModuleList, nn.ModuleDict, nn.MultiheadAttention)


@dataclass(frozen=True)
class Renamed:
    """A model with other names: ``names`` leads from its inputs' names to the new ones."""

    model: nn.Module
    names: Mapping[str, str]

    def inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs under their new names, in the same order."""
        return {self.names[name]: value for name, value in given.items()}


def renamed(model: nn.Module, seed: int) -> Renamed:
    """A copy of a plain module in which every module, parameter, buffer and input has another name, drawn from words
    that mislead. The model's own code finds them under the old names all the same.
    """
    rng = random.Random(seed)
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if not isinstance(module, KEPT):
            _rename(module, rng)
    parameters = list(inspect.signature(model.forward).parameters)
    names = dict(zip(parameters, rng.sample(WORDS, len(parameters)), strict=True))
    return Renamed(_wrapper(model, names), names)


def _rename(module: nn.Module, rng: random.Random) -> None:
    aliases: dict[str, str] = {}
    for registry in (module._modules, module._parameters, module._buffers):
        kept: list[tuple[str, Any]] = list(registry.items())
        registry.clear()
        for old, value in kept:
            aliases[old] = f"{rng.choice(WORDS)}_{len(aliases)}"
            registry[aliases[old]] = value
    kind = type(module)

    def find(self: nn.Module, name: str) -> Any:
        return kind.__getattr__(self, aliases.get(name, name))

    module.__class__ = type(rng.choice(("LayerNorm", "Embedding", "Block")), (kind,), {"__getattr__": find})


def _wrapper(model: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """A module whose forward takes the new names, generated as text so that its signature is one like any other."""
    passed = ", ".join(f"{old}={new}" for old, new in names.items())
    code = (
        "class Wrapper(nn.Module):\n"
        "    def __init__(self, inner):\n"
        "        super().__init__()\n"
        "        self.inner = inner\n"
        f"    def forward(self, {', '.join(names.values())}):\n"
        f"        return self.inner({passed})\n"
    )
    scope: dict[str, Any] = {"nn": nn}
    exec(code, scope)
    made: nn.Module = scope["Wrapper"](model)
    return made.eval()
