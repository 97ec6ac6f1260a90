"""What a family of models agrees on beside its graph: main input, masks of a stream, whether it generates text.

In: a model and its inputs. Out: :class:`Conventions`, asked by everything that names an input itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Conventions:
    """``preferred`` is the input that the model itself calls its main one; ``parameters`` are those of its forward."""

    preferred: str | None
    parameters: tuple[str, ...]
    generates: bool

    @staticmethod
    def of(model: nn.Module) -> Conventions:
        """Those of a model."""
        preferred: Any = getattr(model, "main_input_name", None)
        can_generate: Any = getattr(model, "can_generate", None)
        return Conventions(
            preferred=preferred if isinstance(preferred, str) else None,
            parameters=tuple(inspect.signature(model.forward).parameters),
            generates=bool(can_generate and can_generate()),
        )

    @property
    def first_input(self) -> str:
        """The input that a single tensor stands for."""
        return self.preferred if self.preferred in self.parameters else self.parameters[0]

    def main_input(self, attributed: Iterable[str], given: Iterable[str]) -> str:
        """The input whose relevance is the answer: the model's own choice, else the first that is attributed."""
        explained = {*attributed}
        return next(name for name in (self.preferred, "inputs_embeds", *given) if name in explained)

    @staticmethod
    def mask_of_outputs(given: Mapping[str, Any]) -> Tensor | None:
        """The mask of the tokens that logits belong to: of an encoder-decoder the decoder's."""
        decoder = given.get("decoder_attention_mask")
        return decoder if decoder is not None or "decoder_input_ids" in given else given.get("attention_mask")

    @staticmethod
    def batch(given: Mapping[str, Any]) -> int:
        """How many samples the inputs hold."""
        return next(len(value) for value in given.values() if isinstance(value, Tensor) and value.ndim)


def block_names(model: nn.Module) -> list[str]:
    """Return the module paths of the model's blocks: the children of its longest ``ModuleList``, in order."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        return []
    longest = max(lists, key=lambda name: len(lists[name]))
    return [f"{longest}.{index}" for index in range(len(lists[longest]))]
