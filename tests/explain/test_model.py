"""ConvertedModel and Attribution as a user meets them: calls, targets, taps, inputs of every kind, moves, saving."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxlrp
from tests.support.zoo import ZOO, converted


@pytest.fixture(scope="module")
def bert() -> fxlrp.ConvertedModel:
    return converted("bert").with_ruleset("attnlrp")


@pytest.fixture(scope="module")
def llama() -> fxlrp.ConvertedModel:
    return converted("llama").with_ruleset("attnlrp")


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("bert", "gpt2", "opt", "t5", "roberta", "transformer_encoder")
]


@pytest.mark.parametrize("name", ["vit", "cnn", *SLOW])
def test_one_conversion_serves_other_lengths_batches_and_paddings(name: str) -> None:
    case = ZOO[name]
    model = case.build()
    lrp = fxlrp.convert(model, "attnlrp")
    for batch, length, padding in [
        (2, 7, "right"),
        (3, 9, "right"),
        (1, 9, None),
        (1, 1, None),
        (4, 12, "left"),
        (2, 30, None),
    ]:
        if padding is not None and padding not in case.paddings:
            continue
        inputs = case.inputs(batch=batch, length=length, padding=padding)
        with torch.no_grad():
            expected = fxlrp.engine.targets.logits_of(model(**inputs))
        result = lrp.attribute(inputs)
        assert torch.allclose(fxlrp.engine.targets.logits_of(result.outputs), expected, rtol=0, atol=1e-12)
        if length in (1, 12):
            fresh = fxlrp.convert(model, "attnlrp").attribute(inputs)
            assert torch.allclose(result.relevance, fresh.relevance, rtol=0, atol=1e-10)
    # With a mask, without one, and a sequence of one token: three graphs at most.
    assert sum(len(programs) for programs in lrp.conversion.graphs.programs.values()) <= 3


def test_weights_are_shared_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).eval()
    lrp = fxlrp.convert(model)
    x = torch.randn(2, 3)
    before = lrp.attribute(x, target=0).relevance
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert torch.allclose(lrp.attribute(x, target=0).relevance, 2 * before)


def test_the_raw_path(llama: fxlrp.ConvertedModel) -> None:
    inputs = ZOO["llama"].inputs()
    embeds = llama.model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    outputs = llama(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    assert type(outputs) is type(llama.model(**inputs))
    outputs.logits[:, -1].max(-1).values.sum().backward()
    by_hand = (embeds * embeds.grad).sum(-1)
    target = [(6, int(i)) for i in outputs.logits[:, -1].argmax(-1)]
    assert torch.allclose(by_hand, llama.attribute(inputs, target=target).relevance, rtol=0, atol=1e-12)


def test_ids_are_connected_for_a_backward_pass(bert: fxlrp.ConvertedModel) -> None:
    assert bert(**ZOO["bert"].inputs()).logits.requires_grad


def test_float_inputs(bert: fxlrp.ConvertedModel) -> None:
    lrp, inputs = bert, ZOO["bert"].inputs()
    embeds = lrp.model.get_input_embeddings()(inputs["input_ids"]).detach()
    by_embeds = lrp.attribute({"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}, target=1)
    by_ids = lrp.attribute(inputs, target=1)
    assert by_embeds.relevance.shape == embeds.shape
    assert torch.allclose(by_embeds.relevance.sum(-1), by_ids.relevance, rtol=0, atol=1e-12)
    assert torch.allclose(by_ids.features, by_embeds.relevance, rtol=0, atol=1e-12)
    pixels = ZOO["vit"].inputs()["pixel_values"]
    assert converted("vit").with_ruleset("attnlrp").attribute(pixels).relevance.shape == pixels.shape


def test_both_sides_of_an_encoder_decoder_are_attributed() -> None:
    result = converted("t5").with_ruleset("conservative").attribute(ZOO["t5"].inputs(), ledger=True)
    assert set(result.inputs) == {"input_ids", "decoder_input_ids"}
    assert all(float(r.abs().sum()) > 1e-6 for r in result.inputs.values())
    assert result.relevance is result.inputs["input_ids"]


def test_targets(bert: fxlrp.ConvertedModel, llama: fxlrp.ConvertedModel) -> None:
    inputs = ZOO["bert"].inputs()
    logits = bert.attribute(inputs).outputs.logits
    best = logits.argmax(-1).tolist()
    assert bert.attribute(inputs).target == best
    assert torch.equal(bert.attribute(inputs, target=2).explained, logits[:, 2])
    assert torch.equal(bert.attribute(inputs, target=[1, 3]).explained, logits[[0, 1], [1, 3]])
    assert torch.equal(bert.attribute(inputs, target=torch.tensor([1, 3])).explained, logits[[0, 1], [1, 3]])
    assert torch.equal(bert.attribute(inputs, target=-1).explained, logits[:, -1])
    squared = bert.attribute(inputs, target=lambda o: o.logits[:, 0] ** 2, ledger=True)
    assert torch.equal(squared.explained, logits[:, 0] ** 2)
    assert squared.ledger is not None
    assert squared.ledger.gap.abs().max() < 1e-12
    words = ZOO["llama"].inputs()
    chosen = llama.attribute(words)
    last = words["attention_mask"].sum(1) - 1
    rows = chosen.outputs.logits[torch.arange(2), last]
    assert chosen.target == [(int(p), int(c)) for p, c in zip(last, rows.argmax(-1), strict=True)]
    assert torch.equal(llama.attribute(words, target=(2, 5)).explained, chosen.outputs.logits[:, 2, 5])
    assert torch.equal(
        llama.attribute(words, target=[(2, 5), (1, 4)]).explained, chosen.outputs.logits[[0, 1], [2, 1], [5, 4]]
    )
    assert torch.equal(llama.attribute(words, target=5).explained, rows[:, 5])


def test_the_last_position_that_is_not_padding_is_explained_on_either_side() -> None:
    lrp = converted("gpt2")
    for side in ("left", "right"):
        inputs = ZOO["gpt2"].inputs(padding=side)
        places = [place for place, _ in lrp.attribute(inputs).target]
        mask = inputs["attention_mask"]
        assert places == [int(row.nonzero()[-1]) for row in mask]


def test_contrast(bert: fxlrp.ConvertedModel) -> None:
    inputs = ZOO["bert"].inputs()
    both = bert.attribute(inputs, target=1, contrast=3)
    one, other = bert.attribute(inputs, target=1), bert.attribute(inputs, target=3)
    assert torch.allclose(both.explained, one.explained - other.explained, rtol=0, atol=1e-12)
    assert torch.allclose(both.relevance, one.relevance - other.relevance, rtol=0, atol=1e-12)


def test_taps(bert: fxlrp.ConvertedModel) -> None:
    result = bert.with_ruleset("conservative").attribute(ZOO["bert"].inputs(), at=["bert.encoder.layer.*", "*.self"])
    assert list(result.at) == ["bert.encoder.layer.0", "bert.encoder.layer.1"] + [
        f"bert.encoder.layer.{i}.attention.self" for i in (0, 1)
    ]
    assert all(value.shape == (2, 7, 32) for value in result.at.values())
    # The relevance above a tapped layer is conserved but for biases: not the same at every layer, never zero.
    assert all(float(value.abs().sum()) > 1e-6 for value in result.at.values())


def test_batches_agree_with_single_samples(llama: fxlrp.ConvertedModel) -> None:
    inputs = ZOO["llama"].inputs(batch=3, length=9)
    whole = llama.attribute(inputs)
    for row in range(3):
        kept = int(inputs["attention_mask"][row].sum())
        alone = llama.attribute({"input_ids": inputs["input_ids"][row : row + 1, :kept]})
        assert torch.allclose(
            whole.relevance[row, :kept], alone.relevance[0], rtol=0, atol=1e-7
        )  # float32 norms inside
        assert not whole.relevance[row, kept:].any()


def test_save_and_load(bert: fxlrp.ConvertedModel, tmp_path: Path) -> None:
    result = bert.attribute(ZOO["bert"].inputs(), ledger=True, at=["bert.encoder.layer.*"])
    result.save(tmp_path / "a.safetensors")
    back = fxlrp.Attribution.load(tmp_path / "a.safetensors")
    assert torch.equal(back.relevance, result.relevance)
    assert torch.equal(back.features, result.features)
    assert back.ruleset == result.ruleset
    assert back.label == result.label
    assert list(back.at) == list(result.at)
    assert back.ledger is not None
    assert result.ledger is not None
    assert torch.equal(back.ledger.gap, result.ledger.gap)
    (tmp_path / "b").write_text("nothing")
    with pytest.raises(fxlrp.FxlrpError, match="not an attribution"):
        fxlrp.Attribution.load(tmp_path / "b")


def test_moves_leave_the_original_where_it_was() -> None:
    model = ZOO["bert"].build()
    lrp = fxlrp.convert(model).to(torch.float32)
    assert lrp.dtype == torch.float32
    assert next(model.parameters()).dtype == torch.float64
    assert lrp.attribute(ZOO["bert"].inputs()).relevance.dtype == torch.float32


def test_a_conversion_in_use_can_be_copied(bert: fxlrp.ConvertedModel) -> None:
    inputs = ZOO["bert"].inputs()
    used = bert.attribute(inputs, target=1)
    assert torch.equal(copy.deepcopy(bert).attribute(inputs, target=1).relevance, used.relevance)


def test_conversions_live_side_by_side() -> None:
    model, inputs = ZOO["attention"].build(), ZOO["attention"].inputs()
    first = {name: fxlrp.convert(model, name).attribute(inputs).relevance for name in fxlrp.rulesets()[:10:3]}
    again = fxlrp.compare(model, inputs, rulesets=list(first))
    assert all(torch.equal(again[name].relevance, relevance) for name, relevance in first.items())


def test_under_autocast(bert: fxlrp.ConvertedModel) -> None:
    lrp = copy.deepcopy(bert).to(torch.float32)
    inputs = ZOO["bert"].inputs()
    plain = lrp.attribute(inputs, target=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = lrp.attribute(inputs, target=1)
    assert cast.outputs.logits.dtype == torch.bfloat16
    assert torch.allclose(cast.relevance, plain.relevance, rtol=0.2, atol=0.2 * float(plain.relevance.abs().max()))


def test_under_gradient_checkpointing(llama: fxlrp.ConvertedModel) -> None:
    inputs = ZOO["llama"].inputs()
    embeds = llama.model.get_input_embeddings()(inputs["input_ids"]).detach()

    def explained(x: Tensor) -> Tensor:
        return llama(inputs_embeds=x).logits[:, -1, 3].sum()  # type: ignore[no-any-return]

    grads = []
    for run in (explained, lambda x: checkpoint(explained, x, use_reentrant=False)):
        x = embeds.clone().requires_grad_()
        grads.append(torch.autograd.grad(run(x), x)[0])
    assert torch.equal(grads[0], grads[1])


def test_under_compile() -> None:
    lrp = fxlrp.convert(ZOO["mlp"].build(), "epsilon")
    (x,) = ZOO["mlp"].inputs().values()
    results = []
    for run in (lrp, torch.compile(lrp, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(run(leaf)[:, 1].sum(), leaf)[0])
    assert torch.allclose(results[0], results[1], rtol=0, atol=1e-14)


class Outside(nn.Module):
    """Computes outside torch, where no relevance can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.from_numpy(np.sin(x.detach().numpy())))  # type: ignore[no-any-return]


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(self.layer(x)[:, :, None] * x[:, None, :]).sum(-1)


class Cast(nn.Linear):
    """Takes integers as numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def linear() -> nn.Module:
    return nn.Linear(3, 2).eval()


IDS = torch.randint(0, 2, (2, 3))
ERRORS: dict[str, tuple[Any, type[fxlrp.FxlrpError], str]] = {
    "unknown ruleset": (lambda b, x: fxlrp.convert(b.model, "atnlrp"), fxlrp.RulesetError, "Did you mean 'attnlrp'"),
    "no module": (lambda b, x: fxlrp.convert("bert"), fxlrp.InputError, "takes a torch.nn.Module"),
    "training": (lambda b, x: fxlrp.convert(nn.Sequential(nn.Dropout())), fxlrp.TrainingModeError, r"model.eval\(\)"),
    "later training": (lambda b, x: fxlrp.convert(linear()).train(), fxlrp.TrainingModeError, "original model"),
    "outside torch": (
        lambda b, x: fxlrp.convert(Outside().eval()).attribute(torch.randn(2, 3)),
        fxlrp.InputError,
        "outside torch",
    ),
    "uncovered": (
        lambda b, x: fxlrp.convert(Unknown().eval()).attribute(torch.randn(2, 3)),
        fxlrp.UncoveredOperatorError,
        r"matrix_exp.*test_model.py",
    ),
    "no rule": (
        lambda b, x: fxlrp.convert(b.model, {"name": "mine", "rules": []}).attribute(x),
        fxlrp.UncoveredOperatorError,
        "bert.embeddings.*override",
    ),
    "target range": (lambda b, x: b.attribute(x, target=7), fxlrp.TargetError, "there are 5"),
    "target shape": (lambda b, x: b.attribute(x, target=(1, 2)), fxlrp.TargetError, r"\(2, 5\)"),
    "target count": (
        lambda b, x: b.attribute(x, target=[1, 2, 3]),
        fxlrp.TargetError,
        "3 targets for 2",
    ),
    "target type": (lambda b, x: b.attribute(x, target="good"), fxlrp.TargetError, "not str"),
    "callable": (
        lambda b, x: b.attribute(x, target=lambda o: o.logits.sum()),
        fxlrp.TargetError,
        "one scalar per sample",
    ),
    "integers": (lambda b, x: fxlrp.convert(Cast(3, 2).eval()).attribute(IDS), fxlrp.InputError, "embed"),
    "integers the model refuses": (
        lambda b, x: fxlrp.convert(linear()).attribute(IDS),
        fxlrp.InputError,
        "itself fails on these inputs.*same dtype",
    ),
    "nan": (lambda b, x: fxlrp.convert(linear()).attribute(torch.full((2, 3), torch.nan)), fxlrp.InputError, "NaN"),
    "name": (lambda b, x: b.attribute({"input_id": IDS}), fxlrp.InputError, "Did you mean 'input_ids'"),
    "missing": (lambda b, x: b.attribute({"attention_mask": IDS}), fxlrp.InputError, "input_ids"),
    "list": (lambda b, x: b.attribute([1, 2]), fxlrp.InputError, "torch.tensor"),
    "devices": (
        lambda b, x: fxlrp.convert(linear()).attribute(torch.empty(2, 3, device="meta")),
        fxlrp.InputError,
        "meta",
    ),
    "width": (lambda b, x: fxlrp.convert(linear()).attribute(torch.randn(2, 4)), fxlrp.InputError, "2x4"),
    "dtype": (lambda b, x: fxlrp.convert(linear()).attribute(torch.randn(2, 3).double()), fxlrp.InputError, "dtype"),
    "empty": (lambda b, x: fxlrp.convert(linear()).attribute(torch.randn(0, 3)), fxlrp.InputError, "no sample"),
    "vocabulary": (
        lambda b, x: b.attribute({"input_ids": IDS + 999}),
        fxlrp.InputError,
        "index out of range",
    ),
    "tap": (lambda b, x: b.attribute(x, at=["bert.encodr"]), fxlrp.InputError, "bert.encoder"),
    "no plan yet": (lambda b, x: fxlrp.convert(b.model).plan, fxlrp.InputError, "example_inputs"),
}


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_where_and_what_to_do(name: str, bert: fxlrp.ConvertedModel) -> None:
    act, kind, message = ERRORS[name]
    with pytest.raises(kind, match=f"(?s){message}"):
        act(bert, ZOO["bert"].inputs())


def test_without_strict_the_fallback_is_shown_in_the_plan() -> None:
    model, inputs = ZOO["attention"].build(), ZOO["attention"].inputs()
    lrp = fxlrp.convert(model, {"name": "mine", "rules": []}, strict=False)
    result = lrp.attribute(inputs, ledger=True)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12
    assert any("fallback" in row.note for row in lrp.plan.rows)
    assert torch.allclose(result.relevance, fxlrp.attribute(model, inputs, ruleset="gradient").relevance, atol=1e-12)
