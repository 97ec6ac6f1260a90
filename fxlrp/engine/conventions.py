"""What a family of models agrees on beside its graph: main input, masks of a stream, whether it generates text.

In: a model and its inputs. Out: :class:`Conventions`, asked by everything that names an input itself. Names of inputs
mean something only where the model itself says so: by ``main_input_name``, which every model of transformers has, it
declares that it takes that library's inputs. Of any other module no name is read: its padding is unknown, as a mask
may mark what counts or what does not, so the default target is the largest logit of all positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxlrp.capture.calling import Signature


@dataclass(frozen=True)
class Conventions:
    """``preferred`` is the input that the model itself calls its main one; ``signature`` is that of its forward pass.

    A module of one's own declares transformers' conventions by an attribute ``main_input_name``: then its
    ``attention_mask`` is 1 at tokens and 0 at padding. Without it no name of an input means anything.
    """

    preferred: str | None
    signature: Signature
    generates: bool

    @staticmethod
    def of(model: nn.Module) -> Conventions:
        """Those of a model."""
        preferred: Any = getattr(model, "main_input_name", None)
        can_generate: Any = getattr(model, "can_generate", None)
        return Conventions(
            preferred=preferred if isinstance(preferred, str) else None,
            signature=Signature.of(model),
            generates=bool(can_generate and can_generate()),
        )

    @property
    def first_input(self) -> str | None:
        """The input that a single tensor stands for; None if it is the first of any number of arguments."""
        if self.preferred is not None and self.signature.takes(self.preferred):
            return self.preferred
        return next(iter(self.signature.names), None)

    def main_input(self, attributed: Iterable[str], given: Iterable[str]) -> str:
        """The input whose relevance is the answer: the model's own choice, else the first that is attributed."""
        explained = {*attributed}
        known = () if self.preferred is None else (self.preferred, "inputs_embeds")
        return next(name for name in (*known, *given) if name in explained)

    def masks(self, given: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The masks of a model's tokens, 1 where there is one: of its (encoder's) input and of its decoder's."""
        if self.preferred is None:
            return None, None
        found = (given.get(name) for name in ("attention_mask", "decoder_attention_mask"))
        first, second = (mask if isinstance(mask, Tensor) else None for mask in found)
        return first, second

    def mask_of_outputs(self, given: Mapping[str, Any]) -> Tensor | None:
        """The mask of the tokens that logits belong to: of an encoder-decoder the decoder's."""
        mask, decoder = self.masks(given)
        return decoder if decoder is not None or "decoder_input_ids" in given else mask


def block_names(model: nn.Module) -> list[str]:
    """Return the module paths of the model's blocks: the children of its longest ``ModuleList``, in order."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        return []
    longest = max(lists, key=lambda name: len(lists[name]))
    return [f"{longest}.{index}" for index in range(len(lists[longest]))]
