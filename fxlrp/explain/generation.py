"""From a converted model, a prompt and the tokens generated after it to a :class:`GenerationAttribution`: every
generated token is explained from one forward pass over all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fxlrp.engine.conversion import Conversion
from fxlrp.engine.targets import logits_of
from fxlrp.errors import InputError, RulesetError, TargetError
from fxlrp.explain.attribute import _are_ids, _tokens
from fxlrp.explain.selection import selected
from fxlrp.readout import read
from fxlrp.readout.many_targets import OneOfMany, Passes, Steps
from fxlrp.readout.passes import Task
from fxlrp.readout.soundness import check
from fxlrp.results.generation import GenerationAttribution

Contrast = int | Sequence[Any] | Tensor | Literal["runner-up"] | None
#: The largest entry, as a share of all entries' largest, that a token which comes later may have by rounding.
UNSEEN = 1e-4


@dataclass(frozen=True)
class Prompt:
    """What a model is given before it generates: ``inputs`` for its generate method, and the ``ids`` [batch, tokens] of
    its input ``stream`` that generated tokens are appended to.
    """

    inputs: dict[str, Any]
    stream: str
    ids: Tensor

    @staticmethod
    def of(lrp: Conversion, inputs: Any) -> Prompt:
        """Raises :class:`InputError` for a model that does not generate and a prompt that it cannot continue."""
        model: Any = lrp.model
        if not lrp.conventions.generates:
            raise InputError(
                f"{type(model).__name__} does not generate tokens: attribute_generation explains causal and "
                "encoder-decoder language models of transformers. Explain this model's output with attribute."
            )
        given = lrp.given(inputs)
        if model.config.is_encoder_decoder:
            started = given.get("decoder_input_ids")
            return Prompt(given, "decoder_input_ids", _start(model, given) if started is None else started)
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor) or not _are_ids(ids):
            raise InputError("A causal language model continues a prompt of token ids: give input_ids [batch, tokens].")
        mask = given.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise InputError(
                "The prompts are padded on the right, where generated tokens would follow the padding. Pad on the "
                "left: tokenizer.padding_side = 'left'."
            )
        return Prompt(given, "input_ids", ids)

    @property
    def mask_name(self) -> str:
        """The mask of the stream."""
        return "attention_mask" if self.stream == "input_ids" else "decoder_attention_mask"

    def mask(self) -> Tensor:
        """The stream's mask, ones where none was given."""
        mask: Tensor | None = self.inputs.get(self.mask_name)
        return torch.ones_like(self.ids) if mask is None else mask

    def generate(self, model: Any, count: int) -> Tensor:
        """Up to ``count`` tokens that the model itself appends, [batch, tokens]: greedily, obeying its end tokens."""
        options: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "num_beams": 1}
        pad, end = model.generation_config.pad_token_id, model.generation_config.eos_token_id
        if pad is None and end is not None:
            options["pad_token_id"] = end[0] if isinstance(end, list) else end
        inputs = dict(self.inputs)
        if "input_ids" in inputs:
            inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        with torch.no_grad():
            ids: Tensor = model.generate(**inputs, **options)
        return ids[:, self.ids.shape[1] :]

    def continued(self, lrp: Conversion, generated: Tensor, padding: Tensor) -> dict[str, Any]:
        """The inputs of the forward pass that every generated token [batch, tokens] is read from."""
        before = generated[:, :-1]
        inputs = {**self.inputs, self.stream: torch.cat((self.ids, before), 1)}
        mask = self.mask()
        if self.mask_name in inputs or bool(padding.any()):
            inputs[self.mask_name] = torch.cat((mask, (~padding[:, :-1]).to(mask)), 1)
        positions = _positions(lrp, self.inputs, mask) if self.stream == "input_ids" else None
        if positions is not None:
            more = torch.arange(1, generated.shape[1], device=positions.device)
            inputs["position_ids"] = torch.cat((positions, positions[:, -1:] + more), 1)
        if isinstance(types := inputs.get("token_type_ids"), Tensor) and self.stream == "input_ids":
            inputs["token_type_ids"] = torch.cat((types, types[:, -1:].expand(-1, before.shape[1])), 1)
        return inputs


def _start(model: Any, given: Mapping[str, Any]) -> Tensor:
    start = model.generation_config.decoder_start_token_id
    start = model.generation_config.bos_token_id if start is None else start
    if not isinstance(start, int):
        raise InputError(
            f"{type(model).__name__} does not say which token its decoder begins with: set "
            "model.generation_config.decoder_start_token_id, or give decoder_input_ids."
        )
    like = next(v for v in given.values() if isinstance(v, Tensor) and v.ndim)
    return torch.full((len(like), 1), start, dtype=torch.long, device=like.device)


def _positions(lrp: Conversion, inputs: Mapping[str, Any], mask: Tensor) -> Tensor | None:
    """Positions [batch, tokens] as given, or counted from each prompt's first token where some are padded."""
    if isinstance(given := inputs.get("position_ids"), Tensor):
        return given
    if bool(mask.all()) or "position_ids" not in inspect.signature(lrp.model.forward).parameters:
        return None
    return (mask.cumsum(-1) - 1).clamp(min=0)


def attribute_generation(
    lrp: Conversion,
    inputs: Any,
    max_new_tokens: int | None,
    generated: Tensor | None,
    contrast: Contrast,
    tokenizer: Any,
    chunk: int | None,
    only: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
) -> GenerationAttribution:
    """See :meth:`fxlrp.ConvertedModel.attribute_generation`."""
    _check_reading(lrp)
    if chunk is not None and chunk < 1:
        raise InputError(
            f"chunk must be at least 1, or None, not {chunk}: it is how many generated tokens one backward pass takes."
        )
    prompt = Prompt.of(lrp, inputs)
    ids = _generated(lrp, prompt, max_new_tokens, generated)
    padding = _padding(lrp.model, ids)
    prepared = selected(lrp.prepare(prompt.continued(lrp, ids, padding)), only, exclude)
    given = prepared.given
    start, count = prompt.ids.shape[1], ids.shape[1]
    places = tuple(start - 1 + k for k in range(count))

    def steps(outputs: Any) -> Steps:
        logits = logits_of(outputs).detach()
        _check_ids(ids, logits.shape[-1], "generated")
        return Steps(places, ids, _contrast(contrast, ids, logits[:, start - 1 :]))

    task = Task(lrp, prepared)
    _check_rules(task)
    passes = Passes(task, steps, given[prompt.stream].shape[1], chunk)
    tokenizer = tokenizer or getattr(inputs, "tokenizer", None)
    columns: list[Mapping[str, Tensor]] = []
    explained: list[Tensor] = []
    for k in range(count):
        one = OneOfMany(passes, k, _seen(given, prompt, start + k))
        answer = read(one, lrp.ruleset.readout)
        check(one, answer.propagated, answer.summed)
        columns.append(answer.summed)
        explained.append(answer.propagated.explained)
    stacked = {name: torch.stack([column[name] for column in columns], -1) for name in columns[0]}
    if prompt.stream in stacked:
        _check_causal(lrp, stacked[prompt.stream], start)
    else:  # nothing tells of the relevance of later tokens
        _check_alone(lrp, prompt.continued(lrp, ids[:, :1], padding[:, :1]), answer.propagated.outputs, start)
    seen = {
        name: _seen_alone(value, padding, start if name == prompt.stream else None) for name, value in stacked.items()
    }
    assert passes.steps is not None
    contrast_ids = passes.steps.contrast
    mask = given.get("attention_mask")
    tokens = {name: _tokens({}, given.get(name), tokenizer) for name in seen}
    return GenerationAttribution(
        relevance=seen[task.main_input],
        inputs=seen,
        generated_ids=ids,
        padding=padding,
        explained=torch.stack(explained, -1).masked_fill(padding, 0.0),
        ruleset=lrp.ruleset.info,
        main=task.main_input,
        stream=prompt.stream,
        start=start,
        contrast_ids=contrast_ids,
        names={name: texts for name, texts in tokens.items() if texts is not None},
        generated_tokens=_tokens({}, ids, tokenizer),
        contrast_tokens=_tokens({}, contrast_ids, tokenizer),
        attention_mask=mask.detach() if isinstance(mask, Tensor) and mask.ndim == 2 else None,
    )


def _check_reading(lrp: Conversion) -> None:
    rules = lrp.ruleset
    if not rules.readout.at_given:
        raise InputError(
            f"'{rules.name}' reads '{rules.readout.kind}', passes at other inputs than those given, of its own for "
            "every generated token: one forward pass cannot serve it. Take a ruleset that reads one pass, such as "
            "'attnlrp', or call attribute once per token."
        )
    row = getattr(lrp.ruleset.readout, "row", None)
    if isinstance(row, int) and row < 0:
        raise RulesetError(
            f"'{lrp.ruleset.name}' reads row {row} of attention, counted from the end of the text, which is another "
            "token for every generated one. Override readout with row: target, the token that each is predicted at."
        )


def _check_rules(task: Task) -> None:
    decisions = task.lrp.rewritten(task.captured)[0].decisions.values()
    name = next((decision.rule.name for decision in decisions if decision.rule.among_outputs), None)
    if name is not None:
        raise RulesetError(
            f"Rule '{name}' of '{task.lrp.ruleset.name}' compares all values that a token reaches, those of later "
            "tokens as well, so one pass cannot stand for one pass per token. Call attribute once per token."
        )


def _generated(lrp: Conversion, prompt: Prompt, count: int | None, given: Tensor | None) -> Tensor:
    """The tokens to explain, [batch, tokens]: those ``given``, else what the model generates."""
    if given is None:
        if count is None or count < 1:
            raise InputError(
                f"max_new_tokens must be at least 1, not {count}. To explain given tokens, pass their ids as "
                "generated=."
            )
        ids = prompt.generate(lrp.model, count)
        if ids.shape[1] == 0:
            raise InputError(f"{type(lrp.model).__name__} generated no token after this prompt.")
        return ids
    if count is not None:
        raise InputError("Give max_new_tokens, to let the model generate, or generated=, to explain given tokens.")
    return _of_batch(given, prompt.ids, "generated", None)


def _of_batch(ids: Any, like: Tensor, name: str, count: int | None) -> Tensor:
    """Token ids [batch, tokens], or [tokens] for every sample. Raises :class:`InputError` for anything else."""
    found = torch.as_tensor(ids, device=like.device)
    if found.ndim == 1:
        found = found.expand(len(like), -1)
    wanted = f"[{len(like)}, {'tokens' if count is None else count}]"
    fits = found.ndim == 2 and len(found) == len(like) and found.shape[1] >= 1
    if not fits or found.is_floating_point() or (count is not None and found.shape[1] != count):
        raise InputError(
            f"{name}= must be integer token ids of shape {wanted}, one row per prompt; it is "
            f"{found.dtype} of shape {list(found.shape)}."
        )
    return found.long()


def _check_ids(ids: Tensor, classes: int, name: str) -> None:
    if bool(((ids < 0) | (ids >= classes)).any()):
        raise TargetError(f"{name}= holds token ids outside 0 to {classes - 1}, the tokens that the model has.")


def _contrast(wanted: Contrast, ids: Tensor, logits: Tensor) -> Tensor | None:
    """The alternative to each token, [batch, tokens]; ``runner-up`` is the best of the others."""
    if wanted is None:
        return None
    if isinstance(wanted, str):
        if wanted != "runner-up":
            raise TargetError(f"contrast='{wanted}' is not known: give a token id, ids [batch, tokens] or 'runner-up'.")
        return logits.scatter(-1, ids[..., None], -torch.inf).argmax(-1)
    other = (
        torch.full_like(ids, wanted) if isinstance(wanted, int) else _of_batch(wanted, ids, "contrast", ids.shape[1])
    )
    _check_ids(other, logits.shape[-1], "contrast")
    return other


def _padding(model: Any, ids: Tensor) -> Tensor:
    """What stands behind a text that has ended, bool [batch, tokens]: nothing but fillers after an end token."""
    config = model.generation_config
    ends = torch.as_tensor([] if config.eos_token_id is None else config.eos_token_id, device=ids.device).flatten()
    fillers = ends[:1] if config.pad_token_id is None else ends.new_tensor([config.pad_token_id])
    ended = torch.isin(ids, ends).cumsum(1).roll(1, 1)
    ended[:, 0] = 0
    filling = torch.isin(ids, fillers).flip(1).cumprod(1).flip(1)
    return (ended > 0) & (filling > 0)


def _seen(given: Mapping[str, Any], prompt: Prompt, count: int) -> dict[str, Any]:
    """The inputs with a mask that hides all but the first ``count`` tokens of the stream."""
    length = given[prompt.stream].shape[1]
    mask = given.get(prompt.mask_name)
    mask = torch.ones_like(given[prompt.stream]) if mask is None else mask
    visible = torch.arange(length, device=mask.device) < count
    return {**given, prompt.mask_name: mask * visible.to(mask)}


def _check_causal(lrp: Conversion, relevance: Tensor, start: int) -> None:
    """Raise :class:`InputError` where tokens that come later have relevance: then one pass is not that of each."""
    later = relevance.masked_fill(_visible(relevance, start), 0.0).abs().amax()
    if bool(later > UNSEEN * relevance.abs().amax()):
        raise _sees_later(lrp, f"relevance up to {float(later):.2g} there")


def _sees_later(lrp: Conversion, why: str) -> InputError:
    return InputError(
        f"{type(lrp.model).__name__} lets tokens see those that come after them ({why}), so one pass cannot stand for "
        "one pass per token. Call attribute once per token."
    )


def _check_alone(lrp: Conversion, alone: Mapping[str, Any], outputs: Any, start: int) -> None:
    """Raise :class:`InputError` where the first token is predicted otherwise than it is ``alone``, before all others.

    By 1 % of the largest logit, more than rounding in half precision is.
    """
    with torch.no_grad():
        first = logits_of(lrp.model(**alone))[:, start - 1].float()
        apart = (logits_of(outputs)[:, start - 1].float() - first).abs().amax()
    if bool(apart > 1e-2 * first.abs().amax()):
        raise _sees_later(lrp, f"the first one's logits change by up to {float(apart):.2g} with them")


def _visible(relevance: Tensor, start: int) -> Tensor:
    """Which tokens each generated one can see, bool [tokens before, generated tokens]."""
    before, count = relevance.shape[1:]
    tokens = torch.arange(before, device=relevance.device)
    return tokens[:, None] < start + torch.arange(count, device=relevance.device)


def _seen_alone(relevance: Tensor, padding: Tensor, start: int | None) -> Tensor:
    """Relevance [batch, ..., generated tokens] with 0 in columns of padding and at tokens that are not seen."""
    hidden = padding.reshape(len(padding), *(1,) * (relevance.ndim - 2), -1)
    if start is not None:
        hidden = hidden | ~_visible(relevance, start)
    return relevance.masked_fill(hidden, 0.0)
