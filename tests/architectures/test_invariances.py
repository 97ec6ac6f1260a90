"""An explanation does not depend on padding, on the attention implementation, or on how a model is spelled;
models stay unchanged.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fxlrp
from fxlrp.testing import largest_difference, spellings
from tests.support import zoo
from tests.support.zoo import ZOO

PADDED = ["bert", "llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "bart"))]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral", "t5")]
ATTENTION = ["bert", "gpt2", "vit", pytest.param("llama", marks=pytest.mark.slow)]
ROUNDED = {"llama", "mistral"}  # norms in float32
#: Spellings that are alike only as a whole: a softmax of exponentials is no softmax to a ruleset.
UNLIKE = {"softmax": {"conservative", "attnlrp", "cp-lrp"}}
SPELLINGS = {pair.name: pair for pair in spellings()}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", PADDED)
def test_padding_changes_nothing_and_receives_nothing(name: str, side: Any) -> None:
    case = ZOO[name]
    if side == "left" and case.family != "decoder":
        pytest.skip("absolute positions count from the left: padding there moves the words")
    inputs = case.inputs(batch=3, length=7, padding=side)
    lrp = zoo.converted(name).with_ruleset("attnlrp")
    mask = inputs["attention_mask"].bool()
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if side == "left" else {}
    target = 3 if case.family != "seq2seq" else (2, 3)
    padded = lrp.attribute({**inputs, **positions}, target=target).inputs["input_ids"]
    bound = (1e-5 if name in ROUNDED else 1e-9) * float(padded.abs().max())
    assert padded[~mask].abs().max() == 0
    for sample, kept in enumerate(mask):
        own = {
            key: value[sample : sample + 1, kept] if value.shape[1] == len(kept) else value[sample : sample + 1]
            for key, value in inputs.items()
            if key != "attention_mask"
        }
        alone = lrp.attribute(own, target=target).inputs["input_ids"]
        assert (alone[0] - padded[sample][kept]).abs().max() < bound


@pytest.mark.parametrize("name", ATTENTION)
def test_eager_and_fused_attention_explain_alike(name: str) -> None:
    inputs = ZOO[name].inputs(padding="right")
    eager, fused = (zoo.converted(name, kind) for kind in ("eager", None))
    for ruleset in ("attnlrp", "cp-lrp", "conservative", "gradient"):
        first, second = (lrp.with_ruleset(ruleset).attribute(inputs, target=1).inputs for lrp in (eager, fused))
        # Eager attention rounds its softmax to float32 in several of these models.
        assert largest_difference(first, second) < 1e-5, ruleset


@pytest.mark.parametrize("ruleset", ["gradient", "conservative", "attnlrp", "cp-lrp"])
@pytest.mark.parametrize("pair", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_explain_alike(pair: Any, ruleset: str) -> None:
    first, second = (lrp.with_ruleset(ruleset).attribute(pair.inputs, target=1).inputs for lrp in _converted(pair.name))
    difference = largest_difference(first, second)
    if ruleset in UNLIKE.get(pair.name, ()):
        assert difference > 1e-3, "these two are alike now: take them off the list"
    else:
        assert difference < 1e-9


@cache
def _converted(name: str) -> tuple[fxlrp.ConvertedModel, fxlrp.ConvertedModel]:
    pair = SPELLINGS[name]
    return fxlrp.convert(pair.first, "gradient"), fxlrp.convert(pair.second, "gradient")


def _fingerprint(model: nn.Module) -> Any:
    state = {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict(keep_vars=True).items()}
    modules = {
        name: (
            module.training,
            *(len(getattr(module, hooks)) for hooks in vars(module) if hooks.endswith("_hooks")),
        )
        for name, module in model.named_modules()
    }
    grads = {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return state, modules, grads, attributes


def _classes() -> dict[Any, dict[str, int]]:
    """The members of every class of transformers that is loaded, by identity: a patch would show."""
    modules = [m for n, m in sorted(__import__("sys").modules.items()) if n.startswith("transformers.models.")]
    classes = {c for m in modules for c in list(vars(m).values()) if inspect.isclass(c) and issubclass(c, nn.Module)}
    return {c: {name: id(value) for name, value in vars(c).items() if not name.startswith("__")} for c in classes}


@pytest.mark.parametrize("name", ["bert", "llama", "transformer_encoder", *SLOW])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, inputs = ZOO[name].build(), ZOO[name].inputs()
    model.train(False)
    before, classes = _fingerprint(model), _classes()
    attention = dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    fxlrp.convert(model, "attnlrp").attribute(inputs, target=(0, 1) if name == "t5" else 1, ledger=True)
    after = _fingerprint(model)
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(v, after[0][k][0]) and p == after[0][k][1] for k, (v, p) in before[0].items())
    now = _classes()
    assert all(now[c] == members for c, members in classes.items())
    assert dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping) == attention
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
