"""Scores of a large vocabulary are made for the explained rows alone, with the same relevance and outputs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import fxlrp
from benchmarks.measure import peak
from fxlrp.readout import rows

WORDS = 5000  # more than rows.MANY
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@lru_cache
def _model(name: str) -> fxlrp.ConvertedModel:
    torch.manual_seed(0)
    model: Any
    if name == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, **LLAMA))
    elif name == "gemma2":  # caps its logits
        config = transformers.Gemma2Config(
            vocab_size=WORDS, head_dim=8, num_key_value_heads=1, final_logit_softcapping=3.0, **LLAMA
        )
        model = transformers.Gemma2ForCausalLM(config)
    else:
        config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, **LLAMA)
        model = transformers.BertForMaskedLM(config)
    return fxlrp.convert(model.double().eval(), "gradient")


def _inputs() -> dict[str, Tensor]:
    ids = torch.randint(0, WORDS, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


TARGETS: dict[str, dict[str, Any]] = {
    "largest": {},
    "token": {"target": 4999},
    "place": {"target": (2, 17)},
    "by sample": {"target": [(1, 3), (4, 4321)]},
    "contrast": {"target": (3, 5), "contrast": (4, 6)},
}


#: Every target under two rulesets, one in gradients and one in relevance; every ruleset with one target.
TRIED = [(rules, asked) for rules in ("attnlrp", "epsilon") for asked in TARGETS] + [
    (rules, "contrast") for rules in ("attnlrp-relevance", "chefer2021-bert", "cp-lrp", "deeplift-rescale", "clrp")
]


@pytest.mark.parametrize(("rules", "asked"), TRIED)
@pytest.mark.parametrize("model", ["llama", "gemma2", "bert"])
def test_rows_give_the_same_relevance(model: str, rules: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if model == "bert" and asked == "token":
        pytest.skip("a masked model wants a position")
    lrp, given = _model(model).with_ruleset(rules), _inputs()
    found = {wanted: lrp.attribute(given, outputs=wanted, **TARGETS[asked]) for wanted in (True, False)}
    monkeypatch.setattr(rows, "MANY", 10**9)
    whole = lrp.attribute(given, **TARGETS[asked])
    for result in found.values():
        assert result.target == whole.target
        assert result.label == whole.label
        # Matrices of one row are multiplied in another order than those of many: rounding of float64, no more.
        torch.testing.assert_close(result.explained, whole.explained, rtol=1e-9, atol=0)
        largest = float(whole.relevance.abs().max())
        torch.testing.assert_close(result.relevance, whole.relevance, rtol=0, atol=1e-8 * largest)
    torch.testing.assert_close(found[True].outputs.logits, whole.outputs.logits, rtol=1e-9, atol=1e-12)
    assert found[False].outputs is None


def test_memory_without_outputs_does_not_hold_the_vocabulary() -> None:
    lrp = _model("llama").with_ruleset("epsilon")
    given = {"input_ids": torch.randint(0, WORDS, (1, 64))}
    run = {wanted: (lambda wanted=wanted: lrp.attribute(given, outputs=wanted)) for wanted in (True, False)}
    scores = 64 * WORDS * 8  # bytes in float64
    for _ in range(4):  # a graph is compared with its model on the first inputs, which takes memory of its own
        for each in run.values():
            each()
    assert scores < peak(run[True]) < 2 * scores
    assert peak(run[False]) < 0.5 * scores


def test_outputs_are_left_out_of_small_models_too() -> None:
    lrp = fxlrp.convert(torch.nn.Linear(3, 2).eval(), "epsilon")
    x = torch.randn(2, 3)
    found = lrp.attribute(x, target=1, outputs=False)
    assert found.outputs is None
    assert torch.equal(found.relevance, lrp.attribute(x, target=1).relevance)


def test_another_output_than_the_scores_is_explained_as_a_whole() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=WORDS, output_hidden_states=True, **LLAMA)
    lrp = fxlrp.convert(transformers.LlamaForCausalLM(config).eval(), "attnlrp")
    given = {"input_ids": torch.randint(0, WORDS, (1, 5))}
    name = "hidden_states.1"
    found = lrp.attribute(given, target=(name, (2, 3)))
    assert float(found.explained) == float(found.outputs.hidden_states[1][0, 2, 3])


def test_a_rule_of_ones_own_in_the_head_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    lrp = _model("llama").with_ruleset(fxlrp.ruleset("epsilon").override(epsilon=0.5))
    given = _inputs()
    found = lrp.attribute(given)
    monkeypatch.setattr(rows, "MANY", 10**9)
    whole = lrp.attribute(given)
    torch.testing.assert_close(found.relevance, whole.relevance)
    plain = _model("llama").with_ruleset("epsilon").attribute(given)
    assert not torch.allclose(found.relevance, plain.relevance, rtol=1e-3)
