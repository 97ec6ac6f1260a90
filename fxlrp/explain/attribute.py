"""From a converted model, inputs and a target to an :class:`Attribution`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxlrp.capture import torch_private as private
from fxlrp.engine.conversion import Conversion
from fxlrp.engine.explained import Explained
from fxlrp.engine.ledger import Ledger, compute_ledger
from fxlrp.engine.targets import Handed, Target
from fxlrp.errors import InputError, TargetError
from fxlrp.explain.selection import selected
from fxlrp.readout import read
from fxlrp.readout.passes import Task
from fxlrp.readout.soundness import check, check_ledger
from fxlrp.results.attribution import Attribution


def attribute(
    lrp: Conversion,
    inputs: Any,
    target: Target,
    contrast: Target,
    at: Sequence[str],
    ledger: bool,
    tokenizer: Any,
    reference: Any = None,
    relevance: Tensor | None = None,
    only: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
) -> Attribution:
    """The passes that the ruleset's reading asks for (and, for a ledger, one more backward pass per sample)."""
    if relevance is not None and not (target is None and contrast is None):
        raise TargetError("relevance= says what is explained, so there is no target or contrast beside it.")
    prepared = selected(lrp.prepare(inputs), only, exclude)
    given = prepared.given
    other = None if reference is None else _reference(lrp, reference)
    names = tokenizer or getattr(inputs, "tokenizer", None)
    explained = target if relevance is None else Handed(relevance)
    task = Task(lrp, prepared, explained, contrast, other, names)
    if ledger:
        _check_ledger(task)
    if at:
        _check_taps(lrp)
        task.tap(at)
    answer = read(task, lrp.ruleset.readout)
    propagated, main = answer.propagated, task.main_input
    value = task.values[main]
    assert task.explain is not None
    check(task, propagated, answer.summed)
    wanted = lrp.passing.outputs
    own = lrp.own_outputs(task.captured, given) if wanted else None
    mask, _ = lrp.conventions.masks(given)
    tokens = _tokens(inputs, value, tokenizer)
    tapped = zip(task.tapped, propagated.taps, strict=False)
    return Attribution(
        relevance=answer.summed[main],
        inputs=dict(answer.summed),
        features=answer.features[main],
        outputs=_detached(propagated.outputs if own is None else task.captured.narrowest.program.unpack(own))
        if wanted
        else None,
        target=task.explain.resolved,
        explained=propagated.explained,
        ruleset=lrp.ruleset.info,
        label=task.explain.labels(len(propagated.explained), names, tokens),
        tokens=tokens,
        at=dict(answer.at) or {name: carried.relevance for name, carried in tapped},
        ledger=_ledger(task, task.explain) if ledger else None,
        attention_mask=mask.detach() if mask is not None and mask.ndim == 2 else None,
        image_size=_image_size(value),
        of_ids=_are_ids(value),
        picture=None if _image_size(value) is None else value.detach(),
    )


def _detached(outputs: Any) -> Any:
    return private.pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, outputs)


def _reference(lrp: Conversion, reference: Any) -> dict[str, Any]:
    """The reference inputs by name. Raises :class:`InputError` for a ruleset that compares nothing."""
    if not lrp.ruleset.compares:
        raise InputError(
            f"'{lrp.ruleset.name}' compares with no reference, so reference= would change nothing: leave it out, or "
            "use a ruleset that does (deeplift-rescale, relp, integrated-gradients)."
        )
    return lrp.given(reference)


def _check_ledger(task: Task) -> None:
    """Raise :class:`InputError` where the answer is no account of one backward pass from f(x)."""
    rules = task.lrp.ruleset
    if rules.readout.accounts and not rules.compares:
        return
    compares = task.lrp.rewritten(task.captured)[0].compares
    remedy = (
        "That the differences add up is result.relevance.sum() == result.explained."
        if compares
        else "Override readout with {'kind': 'input'} to see the account of one pass."
    )
    raise InputError(
        f"A ledger accounts for f(x) as x g of one pass, which is not what '{rules.name}' reads out. {remedy}"
    )


def _check_taps(lrp: Conversion) -> None:
    """Raise :class:`InputError` where the reading has no answer for modules."""
    reading = lrp.ruleset.readout
    if not reading.taps:
        raise InputError(
            f"'{lrp.ruleset.name}' has no relevance of modules: its reading '{reading.kind}' says nothing of modules "
            "(at=). Leave at= out, or override readout with {'kind': 'input'}."
        )


def _ledger(task: Task, explain: Explained) -> Ledger:
    lrp, program = task.lrp, task.captured.program
    plan, accounted = lrp.rewritten(task.captured, (), ledger=True)
    arguments = lrp.arguments(program, accounted, task.given, task.leaves())

    def relevance(values: tuple[Any, ...]) -> Tensor:
        return explain.relevance(program.unpack(values), task.computed(values))

    with lrp.drawing():
        made = compute_ledger(plan, accounted, arguments, relevance)
    check_ledger(task, made)
    return made


def _image_size(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 4:
        return None
    return value.shape[-2], value.shape[-1]


def _are_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 2


def _tokens(inputs: Any, ids: Any, tokenizer: Any) -> list[list[str]] | None:
    if not _are_ids(ids):
        return None
    if tokenizer is not None:
        return [list(tokenizer.convert_ids_to_tokens(row.tolist())) for row in ids]
    encodings = getattr(inputs, "encodings", None)
    if encodings:
        return [list(encoding.tokens) for encoding in encodings]
    return None
