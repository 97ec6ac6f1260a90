"""Generated tokens explained from one forward pass, against one attribution per token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxlrp
from fxlrp.engine.conversion import Conversion
from fxlrp.errors import FxlrpError, InputError, RulesetError, TargetError
from fxlrp.readout import many_targets
from tests.support import zoo
from tests.support.small_models import converted, relative

BEGIN = 0
FAMILIES = ("llama", "gpt2", "qwen3_moe", *(pytest.param(n, marks=pytest.mark.slow) for n in ("t5", "mamba", "bart")))


def _lrp(name: str, ruleset: str = "attnlrp") -> fxlrp.ConvertedModel:
    if name in ("llama", "gpt2", "bert"):
        return converted(name).with_ruleset(ruleset)
    return zoo.converted(name).with_ruleset(ruleset)


def _draw(batch: int, count: int, seed: int) -> Tensor:
    return torch.randint(4, 50, (batch, count), generator=torch.Generator().manual_seed(seed))


def _one_by_one(
    lrp: fxlrp.ConvertedModel, inputs: dict[str, Tensor], generated: Tensor, contrast: Tensor | None = None
) -> list[fxlrp.Attribution]:
    columns = []
    for k in range(generated.shape[1]):
        before = generated[:, :k]
        if lrp.model.config.is_encoder_decoder:  # type: ignore[union-attr]
            given = inputs | {"decoder_input_ids": torch.cat((torch.full((len(before), 1), BEGIN), before), 1)}
        else:
            given = inputs | {"input_ids": torch.cat((inputs["input_ids"], before), 1)}
        other = None if contrast is None else contrast[:, k]
        columns.append(lrp.attribute(given, target=generated[:, k], contrast=other))
    return columns


def _largest_difference(result: fxlrp.GenerationAttribution, columns: list[fxlrp.Attribution]) -> float:
    return max(
        relative(result[k].inputs[name], column.inputs[name])
        for k, column in enumerate(columns)
        for name in column.inputs
        if column.inputs[name].any()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_column_is_the_attribution_of_its_token(name: str) -> None:
    lrp, ids, generated = _lrp(name), _draw(2, 5, 0), _draw(2, 3, 1)
    lrp.model.generation_config.decoder_start_token_id = BEGIN  # type: ignore[union-attr]
    result = lrp.attribute_generation({"input_ids": ids}, generated=generated)
    columns = _one_by_one(lrp, {"input_ids": ids}, generated)
    assert result.relevance.shape == ((2, 5, 3) if result.stream == "decoder_input_ids" else (2, 7, 3))
    assert _largest_difference(result, columns) < 1e-9
    assert torch.allclose(result.explained, torch.stack([c.explained for c in columns], 1), rtol=1e-9)


RULESETS = (
    "conservative-residual",
    "cp-lrp",
    "clrp",
    "pa-lrp",
    "epsilon",
    "wu-ong2020",
    "full-lrp",
    "chefer2021-generic",
)


@pytest.mark.parametrize("ruleset", RULESETS)
def test_every_ruleset_of_one_pass_gives_what_it_gives_for_each_token(ruleset: str) -> None:
    """Among them messages in relevance, sums over whole samples, seeds of all classes and attention with gradients."""
    lrp, ids, generated = _lrp("llama", ruleset), _draw(2, 5, 0), _draw(2, 3, 1)
    result = lrp.attribute_generation({"input_ids": ids}, generated=generated)
    assert _largest_difference(result, _one_by_one(lrp, {"input_ids": ids}, generated)) < 1e-9


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_nothing_but_memory(chunk: int) -> None:
    lrp, ids, generated = _lrp("llama"), _draw(2, 5, 0), _draw(2, 4, 1)
    whole = lrp.attribute_generation({"input_ids": ids}, generated=generated)
    assert (
        relative(
            lrp.attribute_generation({"input_ids": ids}, generated=generated, chunk=chunk).relevance, whole.relevance
        )
        < 1e-12
    )


def test_what_cannot_be_batched_goes_back_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("Batching rule not implemented")

    lrp, ids, generated = _lrp("llama"), _draw(2, 5, 0), _draw(2, 3, 1)
    expected = lrp.attribute_generation({"input_ids": ids}, generated=generated).relevance
    monkeypatch.setattr(torch, "vmap", lambda _: refuse)
    got = lrp.attribute_generation({"input_ids": ids}, generated=generated).relevance
    assert relative(got, expected) < 1e-12


def test_there_is_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    lrp, count = _lrp("gpt2"), 0
    run = Conversion.run

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        return run(self, *arguments)

    monkeypatch.setattr(Conversion, "run", counted)
    lrp.attribute_generation({"input_ids": _draw(1, 4, 0)}, generated=_draw(1, 6, 1), chunk=2)
    assert count == 1


def test_left_padded_prompts_are_explained_as_they_are_alone() -> None:
    for name in ("llama", "gpt2"):
        lrp, ids, generated = _lrp(name), _draw(2, 5, 0), _draw(2, 3, 1)
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
        result = lrp.attribute_generation({"input_ids": ids, "attention_mask": mask}, generated=generated)
        for row, start in ((0, 0), (1, 2)):
            alone = lrp.attribute_generation(
                {"input_ids": ids[row : row + 1, start:]}, generated=generated[row : row + 1]
            )
            assert relative(result.relevance[row, start:], alone.relevance[0]) < 1e-9
        assert not result.relevance[1, :2].any()


def test_generation_is_the_models_own_and_stops_at_its_end_token() -> None:
    lrp, ids = _lrp("llama"), _draw(2, 5, 0)
    model: Any = lrp.model
    config = model.generation_config
    free = lrp.attribute_generation({"input_ids": ids}, 6)
    end = int(free.generated_ids[0, 1])
    before = config.eos_token_id, config.pad_token_id
    try:
        config.eos_token_id, config.pad_token_id = end, 3
        result = lrp.attribute_generation({"input_ids": ids}, 6)
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[:, 5:]
    finally:
        config.eos_token_id, config.pad_token_id = before
    assert torch.equal(result.generated_ids, expected)
    first = result.generated_ids[0].tolist().index(end)
    assert result.padding[0].tolist() == [k > first for k in range(result.generated_ids.shape[1])]
    assert not result.relevance[0][:, result.padding[0]].any()
    assert relative(result.relevance[0, : 5 + first, : first + 1], free.relevance[0, : 5 + first, : first + 1]) < 1e-9


def test_contrast_is_the_difference_of_two_attributions() -> None:
    lrp, ids, generated, other = _lrp("llama"), {"input_ids": _draw(2, 5, 0)}, _draw(2, 3, 1), _draw(2, 3, 2)
    own, less, both = (
        lrp.attribute_generation(ids, generated=generated),
        _one_by_one(lrp, ids, generated, other),
        lrp.attribute_generation(ids, generated=generated, contrast=other),
    )
    assert _largest_difference(both, less) < 1e-9
    assert relative(both.relevance, own.relevance) > 1e-2
    assert both.contrast_ids is not None
    assert torch.equal(both.contrast_ids, other)
    same = lrp.attribute_generation(ids, generated=generated, contrast=7)
    assert same.contrast_ids is not None
    assert bool((same.contrast_ids == 7).all())


def test_the_runner_up_is_the_best_of_the_other_tokens() -> None:
    lrp, ids = _lrp("llama"), _draw(1, 5, 0)
    result = lrp.attribute_generation({"input_ids": ids}, 3, contrast="runner-up")
    model: Any = lrp.model
    with torch.no_grad():
        logits = model(torch.cat((ids, result.generated_ids[:, :-1]), 1)).logits[:, 4:]
    assert result.contrast_ids is not None
    assert torch.equal(result.contrast_ids, logits.topk(2).indices[..., 1])
    assert bool((result.explained >= 0).all())


def _shifted(self: many_targets.Steps, lrp: Any, index: int | None = None) -> Any:
    moved = many_targets.Steps(tuple(p - 1 for p in self.places), self.chosen, self.contrast)
    return EXPLAINED(moved, lrp, index)


EXPLAINED = many_targets.Steps.explained


def test_targets_shifted_by_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lrp, ids, generated = _lrp("llama"), _draw(2, 5, 0), _draw(2, 3, 1)
    columns = _one_by_one(lrp, {"input_ids": ids}, generated)
    monkeypatch.setattr(many_targets.Steps, "explained", _shifted)
    result = lrp.attribute_generation({"input_ids": ids}, generated=generated)
    assert _largest_difference(result, columns) > 1e-2


def test_a_model_whose_tokens_see_later_ones_is_refused() -> None:
    lrp = _lrp("llama")
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.float64)  # in four dimensions it stands as it is: nothing is hidden
    with pytest.raises(InputError, match="see those that come after"):
        fxlrp.explain.generation._check_causal(lrp, lrp_matrix(lrp, mask), 5)


def test_later_tokens_are_noticed_where_their_relevance_is_not_asked_for() -> None:
    lrp, ids = _lrp("llama"), _draw(1, 7, 0)
    hidden, seen = (lrp.model(ids, attention_mask=mask) for mask in (None, torch.zeros(1, 1, 7, 7).double()))
    fxlrp.explain.generation._check_alone(lrp.conversion, {"input_ids": ids[:, :5]}, hidden, 5)
    with pytest.raises(InputError, match="see those that come after"):
        fxlrp.explain.generation._check_alone(lrp.conversion, {"input_ids": ids[:, :5]}, seen, 5)


@pytest.mark.parametrize("options", [{"exclude": "decoder_input_ids"}, {"inputs": ["decoder_input_ids"]}])
def test_inputs_are_chosen_as_in_attribute(options: dict[str, Any], tmp_path: Path) -> None:
    """What is left out is a constant: of products with what is explained it takes no share."""
    lrp, ids, generated = _lrp("t5"), _draw(2, 5, 0), _draw(2, 3, 1)
    lrp.model.generation_config.decoder_start_token_id = BEGIN  # type: ignore[union-attr]
    result = lrp.attribute_generation({"input_ids": ids}, generated=generated, **options)
    every = lrp.attribute_generation({"input_ids": ids}, generated=generated)
    (name,) = result.inputs
    assert name == ("decoder_input_ids" if "inputs" in options else "input_ids")
    assert relative(result.inputs[name], every.inputs[name]) > 1e-3
    for k in range(3):
        before = torch.cat((torch.full((2, 1), BEGIN), generated[:, :k]), 1)
        given = {"input_ids": ids, "decoder_input_ids": before}
        alone = lrp.attribute(given, target=generated[:, k], **options)
        assert relative(result[k].inputs[name], alone.inputs[name]) < 1e-9
    result.save(tmp_path / "made.safetensors")
    assert torch.equal(fxlrp.GenerationAttribution.load(tmp_path / "made.safetensors").relevance, result.relevance)


def test_inputs_that_cannot_be_chosen_are_refused() -> None:
    lrp, ids = _lrp("llama"), _draw(1, 4, 0)
    for options, said in (({"exclude": "input_ids"}, "Nothing is left"), ({"inputs": "pixels"}, "no input 'pixels'")):
        with pytest.raises(InputError, match=said):
            lrp.attribute_generation({"input_ids": ids}, 2, **options)  # type: ignore[arg-type]
    named, bare = lrp.attribute_generation(inputs=ids, max_new_tokens=2), lrp.attribute_generation(ids, 2)
    assert torch.equal(named.relevance, bare.relevance)


def lrp_matrix(lrp: fxlrp.ConvertedModel, mask: Tensor) -> Tensor:
    ids = _draw(1, 7, 0)
    columns = [lrp.attribute({"input_ids": ids, "attention_mask": mask}, target=(4 + k, 3)).relevance for k in range(3)]
    return torch.stack(columns, -1)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    class Spelled:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"t{i}" for i in ids]

    lrp = _lrp("llama")
    result = lrp.attribute_generation({"input_ids": _draw(2, 4, 0)}, 3, contrast="runner-up", tokenizer=Spelled())
    result.save(tmp_path / "made.safetensors")
    loaded = fxlrp.GenerationAttribution.load(tmp_path / "made.safetensors")
    assert torch.equal(loaded.relevance, result.relevance)
    assert torch.equal(loaded.padding, result.padding)
    assert loaded.tokens == result.tokens
    assert result.contrast_ids is not None
    assert loaded.label(1, 2) == f"'t{int(result.generated_ids[1, 2])}' minus 't{int(result.contrast_ids[1, 2])}'"
    assert loaded.ruleset == result.ruleset
    assert loaded[2].tokens == [row[:6] for row in result.tokens or []]
    with pytest.raises(FxlrpError, match="not an attribution of generated tokens"):
        fxlrp.GenerationAttribution.load(__file__)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, InputError, "max_new_tokens must be at least 1, not None"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": 2, "generated": torch.ones(1, 2).long()}, InputError, "or generated="),
        ({"generated": torch.ones(3, 2).long()}, InputError, r"shape \[1, tokens\]"),
        ({"generated": torch.tensor([[999]])}, TargetError, "outside 0 to 49"),
        ({"generated": torch.tensor([[5]]), "contrast": "second"}, TargetError, "runner-up"),
        ({"generated": torch.tensor([[5]]), "contrast": [[5, 6]]}, InputError, "contrast="),
        ({"generated": torch.tensor([[5]]), "chunk": 0}, InputError, "chunk must be at least 1, or None, not 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _lrp("llama").attribute_generation({"input_ids": _draw(1, 4, 0)}, **options)


def test_what_cannot_be_explained_from_one_pass_is_refused() -> None:
    ids, generated = {"input_ids": _draw(1, 4, 0)}, _draw(1, 2, 1)
    with pytest.raises(InputError, match="does not generate"):
        _lrp("bert").attribute_generation(ids, generated=generated)
    with pytest.raises(InputError, match="padded on the right"):
        _lrp("llama").attribute_generation(ids | {"attention_mask": torch.tensor([[1, 1, 1, 0]])}, generated=generated)
    for ruleset in ("smoothgrad", "integrated-gradients", "deeplift-rescale"):
        with pytest.raises(InputError, match="passes at other inputs"):
            _lrp("llama", ruleset).attribute_generation(ids, generated=generated)
    with pytest.raises(RulesetError, match="jacobian_shares"):
        _lrp("llama", "wu-ong2020-jacobian").attribute_generation(ids, generated=generated)
    turned = fxlrp.ruleset("rollout").override(readout={"kind": "attention", "row": -1})
    with pytest.raises(RulesetError, match="row -1"):
        converted("llama").with_ruleset(turned).attribute_generation(ids, generated=generated)
