"""A configuration that was drawn: the model that is built from it, what it is fed, and what padding does to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from fxlrp.testing import realistic
from tests.support.zoo import HEADS_OF

Side = Literal["right", "left"]
Inputs = dict[str, Tensor]

BATCH, LENGTH, PAD, FIRST_WORD, LABELS = 3, 7, 1, 4, 3
#: How many tokens each sample has where samples are padded.
FULL, KEPT = (7, 7, 7), (7, 4, 4)

HEADS: dict[str, Any] = {**HEADS_OF, "tokens": transformers.AutoModelForTokenClassification}


@dataclass(frozen=True)
class Drawn:
    """A configuration: the family, its ``head`` (what outputs mean), and what was drawn for it."""

    family: str
    seed: int
    head: str
    config: dict[str, Any]
    attention: str
    sides: tuple[Side, ...] = ("right", "left")
    positions: bool = False
    token_types: bool = False
    #: Whether attention that is spelled out takes its softmax in float32, whatever the type of the model.
    casts: bool = True

    @property
    def generates(self) -> bool:
        """Whether the outputs are of a next token."""
        return self.head in ("decoder", "seq2seq")

    @property
    def is_image(self) -> bool:
        """Whether the model sees pixels."""
        return self.head == "vision"

    @property
    def switches(self) -> set[tuple[str, object]]:
        """What the configuration chooses, not how large it is: its texts and its yes and no, with their names."""
        given = self.config | self.config.get("rope_parameters", {}) | {"head": self.head, "attention": self.attention}
        entries = [(name, e) for name, value in given.items() for e in (value if isinstance(value, list) else [value])]
        return {(name, entry) for name, entry in entries if isinstance(entry, bool | str)}

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model in eval mode, weights at a trained model's scale: neither attention nor gates are uniform."""
        config = transformers.AutoConfig.for_model(self.family, **self.config)
        config.architectures = []
        auto = HEADS[self.head]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: nn.Module = auto.from_config(
                config, attn_implementation=None if self.attention == "none" else self.attention
            )
        return realistic(model.double().eval(), self.seed).to(dtype)

    def inputs(self, dtype: torch.dtype = torch.float64, padding: Side | None = None) -> Inputs:
        """Three samples, of 7 tokens each or the second and third cut short; mask and positions are always given, so
        that one capture serves all.
        """
        rng = torch.Generator().manual_seed(self.seed)
        if self.is_image:
            size = self.config["image_size"]
            return {"pixel_values": torch.randn(BATCH, 3, size, size, generator=rng, dtype=torch.float64).to(dtype)}
        vocabulary = self.config["vocab_size"]
        ids = torch.randint(FIRST_WORD, vocabulary, (BATCH, LENGTH), generator=rng)
        mask = (torch.arange(LENGTH) < torch.tensor(FULL if padding is None else KEPT)[:, None]).long()
        mask = mask.flip(1) if padding == "left" else mask
        found = {"input_ids": ids.where(mask.bool(), torch.tensor(PAD)), "attention_mask": mask}
        if self.positions:
            found["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if self.token_types:
            found["token_type_ids"] = torch.randint(0, 2, (BATCH, LENGTH), generator=rng)
        if self.head == "seq2seq":
            found["decoder_input_ids"] = torch.randint(FIRST_WORD, vocabulary, (BATCH, 4), generator=rng)
        return found

    def alone(self, side: Side) -> list[Inputs]:
        """The samples of a padded batch, each by itself without its padding."""
        given = self.inputs(padding=side)
        rows = given["attention_mask"].bool()
        return [{n: cut(v[i : i + 1], row) for n, v in given.items()} for i, row in enumerate(rows)]

    @property
    def _sees_nothing(self) -> bool:
        return self.head == "decoder" and self.attention == "eager" and self.casts

    def own(self, side: Side, dtype: torch.dtype) -> str:
        """Why padding on this side changes the untouched model, if it does: fxlrp is asked nothing there."""
        rope = self.config.get("rope_parameters", {})
        limits = {
            "dynamic": self.config.get("max_position_embeddings"),
            "longrope": rope.get("original_max_position_embeddings"),
        }
        limit = limits.get(rope.get("rope_type"))
        if limit is not None and limit < LENGTH:
            return "a scaling of rotations by length follows the longest sample of the batch"
        if side == "left" and self._sees_nothing and dtype == torch.float64:
            return (
                "a padded query sees no token: float64's lowest number overflows in the softmax's float32, and what "
                "comes back through it, or reads it in the next layer, is NaN"
            )
        if side == "left" and self.config.get("conv_kernel") and self.config["use_bias"]:
            return "the bias of a projection reaches the first tokens through the convolution that follows"
        return ""


def cut(value: Tensor, kept: Tensor) -> Tensor:
    """One sample's tokens that are ``kept``, of a value that has an entry for each."""
    return value[:, kept] if value.ndim > 1 and value.shape[1] == len(kept) else value
