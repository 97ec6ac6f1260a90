"""Adapters of PEFT give the relevance of the merged model, which knows no adapter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from tests.support.small_models import grouped_llama

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}
# Every kind of adapter that can be merged; they add to a weight, scale it or turn it.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", LORA),
    "lora on all layers": ("LoraConfig", LORA | {"target_modules": LINEAR}),
    "lora by the root of its rank": ("LoraConfig", LORA | {"use_rslora": True}),
    "dora": ("LoraConfig", LORA | {"use_dora": True}),
    "lora on embeddings": ("LoraConfig", LORA | {"target_modules": ["embed_tokens", "q_proj"]}),
    "lora on the head": ("LoraConfig", LORA | {"target_modules": ["lm_head", "q_proj"]}),
    "trainable rows": ("LoraConfig", LORA | {"trainable_token_indices": [3, 5]}),
    "adalora": ("AdaLoraConfig", LORA | {"total_step": 10, "init_r": 2, "target_r": 2}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "loha": ("LoHaConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_weights": False}),
    "lokr": ("LoKrConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_weights": False}),
    "oft": ("OFTConfig", {"r": 2, "oft_block_size": 0, "target_modules": ["q_proj", "v_proj"]}),
    "vera": ("VeraConfig", {"r": 4, "target_modules": ["q_proj", "o_proj"], "init_weights": False}),
    "fourier": ("FourierFTConfig", {"n_frequency": 20, "target_modules": ["q_proj", "v_proj"]}),
    "householder": ("HRAConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_weights": False}),
}
RULESETS = ("attnlrp", "epsilon", "gradient")
IDS = torch.tensor([[3, 9, 27, 5, 14, 2], [5, 5, 1, 30, 8, 3]])


def _base() -> nn.Module:
    return grouped_llama(tie_word_embeddings=False)  # type: ignore[no-any-return]


def _adapted(kind: str) -> Any:
    """The model with an adapter of this kind, whose own weights are drawn, in float64."""
    name, options = KINDS[kind]
    model = peft.get_peft_model(_base(), getattr(peft, name)(task_type="CAUSAL_LM", **options)).double().eval()
    return _drawn(model)


def _drawn(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _merged(model: Any) -> Any:
    return copy.deepcopy(model).merge_and_unload()


def _relevance(lrp: fxlrp.ConvertedModel) -> Tensor:
    result = lrp.attribute({"input_ids": IDS}, target=7, ledger=True)
    assert result.ledger is not None
    # Llama's norms compute in float32.
    assert float(result.ledger.gap.abs().max()) < 1e-5 * float(result.explained.abs().max())
    return result.relevance


def _two() -> Any:
    """A model with two adapters, of which the first is on."""
    model = peft.get_peft_model(_base(), peft.LoraConfig(task_type="CAUSAL_LM", **LORA), adapter_name="first")
    model.add_adapter("second", peft.LoraConfig(task_type="CAUSAL_LM", **LORA | {"r": 3, "lora_alpha": 3}))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return _drawn(model.double().eval())


def _same(one: Tensor, other: Tensor) -> None:
    # Llama's norms compute in float32, and a merged weight is rounded once more.
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_has_the_relevance_of_the_merged_model(kind: str) -> None:
    model = _adapted(kind)
    merged = _merged(model)
    with torch.no_grad(), model.disable_adapter():
        assert float((model(IDS).logits - merged(IDS).logits).abs().max()) > 1e-3  # the adapter does something
    adapted, expected = (fxlrp.convert(each, "attnlrp") for each in (model, merged))
    for ruleset in RULESETS:
        _same(_relevance(adapted.with_ruleset(ruleset)), _relevance(expected.with_ruleset(ruleset)))


def test_adapters_that_are_switched_after_conversion_are_followed() -> None:
    model = _two()
    lrp = fxlrp.convert(model, "attnlrp")
    expected = {}
    for name in ("first", "second"):
        model.set_adapter(name)
        expected[name] = _relevance(fxlrp.convert(_merged(model), "attnlrp"))
    assert float((expected["first"] - expected["second"]).abs().max()) > 1e-3
    model.set_adapter("first")
    _same(_relevance(lrp), expected["first"])
    model.set_adapter("second")
    with pytest.warns(fxlrp.RetraceWarning, match="has changed"):
        _same(_relevance(lrp), expected["second"])
    made = lrp.captures
    model.set_adapter("first")
    _same(_relevance(lrp), expected["first"])
    assert lrp.captures == made  # what it was before is known
    with model.disable_adapter(), pytest.warns(fxlrp.RetraceWarning, match="has changed"):
        _same(_relevance(lrp), _relevance(fxlrp.convert(_base().double().eval(), "attnlrp")))


def test_several_adapters_at_once_are_their_sum() -> None:
    model = _two()
    model.base_model.set_adapter(["first", "second"])
    merged = _merged(model)
    _same(_relevance(fxlrp.convert(model, "epsilon")), _relevance(fxlrp.convert(merged, "epsilon")))


VIRTUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "encoded prompt": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 8}),
}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_keep_their_share_and_words_have_their_gradient(kind: str) -> None:
    name, options = VIRTUAL[kind]
    model = peft.get_peft_model(_base(), getattr(peft, name)(task_type="CAUSAL_LM", **options))
    model = _drawn(model.double().eval())
    lrp = fxlrp.convert(model, "gradient")
    found = _relevance(lrp)
    assert found.shape == IDS.shape
    rows: list[Tensor] = []

    def kept(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        rows.append(out.detach().requires_grad_())
        return rows[-1]

    hook = model.get_base_model().get_input_embeddings().register_forward_hook(kept)
    model(input_ids=IDS).logits[:, -1, 7].sum().backward()
    hook.remove()
    (words,) = rows
    assert words.grad is not None
    _same(found, (words * words.grad).sum(-1))
    _relevance(lrp.with_ruleset("attnlrp"))
