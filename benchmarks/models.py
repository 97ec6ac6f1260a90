"""The models that are measured: Llama-like and BERT-like, with random weights, as transformers makes them; two have the
shapes of real networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

VOCABULARY = 8192


@dataclass(frozen=True)
class Case:
    """A model family at one size and length of input."""

    family: str
    length: int
    hidden: int = 512
    layers: int = 8

    def __str__(self) -> str:
        return f"{self.family}, {self.length} tokens"

    def model(self) -> nn.Module:
        """The model, the same on every call."""
        torch.manual_seed(0)
        made: nn.Module = FAMILIES[self.family](self)
        return made.eval()

    def inputs(self) -> Tensor:
        """Embeddings of random tokens, [1, length, hidden]."""
        return torch.randn(1, self.length, self.hidden, generator=torch.Generator().manual_seed(1))


def llama_config(case: Case, **options: Any) -> LlamaConfig:
    """A Llama with grouped queries, two heads to one key unless ``options`` say otherwise."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": case.hidden, "intermediate_size": case.hidden * 11 // 4}
    heads = {"num_hidden_layers": case.layers, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaConfig(**sizes | heads | options)


def _smollm2(case: Case) -> nn.Module:
    """A model of the shape of SmolLM2-135M: three queries to a key, and a large vocabulary."""
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    sizes = {"vocab_size": 49152, "intermediate_size": case.hidden * 8 // 3}
    config = llama_config(case, **sizes, **heads, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def _bert(case: Case, heads: int = 8) -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=case.hidden,
        intermediate_size=4 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
    )
    return BertForSequenceClassification(config)


FAMILIES = {
    "Llama": lambda case: LlamaForCausalLM(llama_config(case)),
    "BERT": _bert,
    "SmolLM2": _smollm2,
    "MiniLM": lambda case: _bert(case, heads=12),
}


def best_logit(outputs: object) -> Tensor:
    """The arg-max logit, of the last position for a language model: what fxlrp explains by default."""
    logits: Tensor = outputs.logits  # type: ignore[attr-defined]
    return (logits[0, -1] if logits.ndim == 3 else logits[0]).max()


def gradient_times_input(model: nn.Module, embeddings: Tensor) -> Tensor:
    """Forward pass, plain gradient at the embeddings, product summed over features: [1, length]."""
    x = embeddings.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(best_logit(model(inputs_embeds=x)), x)
    return (x.detach() * gradient).sum(-1)
