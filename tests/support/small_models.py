"""Small transformers in float64, with inputs, converted once for all tests of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxlrp
from fxlrp.rewrite import Rewritten
from fxlrp.rewrite.stretches import Stretch

VOCABULARY = 50
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, **SIZES)
    )


def grouped_llama(**options: Any) -> Any:
    """A Llama of one layer whose heads share keys, of the same weights at every call; ``options`` of its config."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | heads | options)).eval()


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def _bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, num_labels=3, **SIZES)
    return transformers.BertForSequenceClassification(config)


def _vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {"llama": _llama, "gpt2": _gpt2, "bert": _bert, "vit": _vit}


class PureNorm(nn.Module):
    """RMSNorm without a detour through float32, which would bound every comparison by its rounding."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


@lru_cache(maxsize=8)
def converted(name: str) -> fxlrp.ConvertedModel:
    """The model under 'gradient'; ``with_ruleset`` takes its graph over."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = model.double()
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            owner, _, attribute = path.rpartition(".")
            eps: Any = module.variance_epsilon
            setattr(model.get_submodule(owner), attribute, PureNorm(module.weight.detach(), eps))
    return fxlrp.convert(model.eval(), "gradient")


def inputs(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Two samples."""
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)}
    return {"input_ids": torch.randint(0, VOCABULARY, (2, 6), generator=generator)}


def runs_alike(
    model: str,
    rules: str,
    otherwise: Callable[[fxlrp.ConvertedModel, dict[str, Tensor]], fxlrp.Attribution],
    *,
    rtol: float,
    atol: float,
    logits: float,
) -> tuple[fxlrp.Attribution, fxlrp.Attribution]:
    """Another way to run a conversion gives what the usual one gives, in float64: relevance within ``rtol`` and
    ``atol``, outputs within ``logits``. Returns both.
    """
    lrp, given = converted(model).with_ruleset(rules), inputs(model)
    try:
        usual = lrp.attribute(given)
    except fxlrp.FxlrpError as error:
        pytest.skip(f"{rules} does not fit {model}: {error}")
    other = otherwise(lrp, given)
    torch.testing.assert_close(other.relevance, usual.relevance, rtol=rtol, atol=atol)
    torch.testing.assert_close(other.outputs.logits, usual.outputs.logits, rtol=0, atol=logits)
    return usual, other


def stretches(model: str, rules: str) -> list[Stretch]:
    """What of the rewritten graph runs again in the backward pass."""
    lrp = converted(model).with_ruleset(rules)
    lrp.attribute(inputs(model))
    captured = lrp.conversion.last
    assert captured is not None
    _, rewritten = lrp.conversion.rewritten(captured.folded(lrp.ruleset.fold))
    return [node.target for node in rewritten.stretches.graph.nodes if isinstance(node.target, Stretch)]


@contextmanager
def without_stretches() -> Iterator[None]:
    """Rewritten graphs run as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rewritten, "on", lambda self, arguments, form="whole": self.module)
        yield


def relative(got: Tensor, wanted: Tensor) -> float:
    """The largest difference in units of the largest entry."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def by_sample(x: Tensor) -> Tensor:
    """The sum of everything in each sample, [batch]."""
    return x.reshape(len(x), -1).sum(1)
