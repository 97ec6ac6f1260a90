"""From a converted model, inputs and a target to an :class:`Attribution`: one forward and one backward pass."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError, InputError
from fxlrp.ledger import Entry, Ledger, compute_ledger
from fxlrp.rewrite.call import widened
from fxlrp.targets import Selection, Target, call_target, label, resolve

if TYPE_CHECKING:
    from fxlrp.model import ConvertedModel
    from fxlrp.rulesets import Ruleset


@dataclass(frozen=True)
class RulesetInfo:
    """What produced an attribution: name, version and hash of the ruleset, and whom to cite."""

    name: str
    version: str
    hash: str
    title: str = ""
    citation: str = ""
    url: str | None = None

    @staticmethod
    def of(rules: Ruleset) -> RulesetInfo:
        """The identity of a ruleset."""
        cite = rules.citation
        return RulesetInfo(
            rules.name, rules.version, rules.hash, rules.title, str(cite or ""), cite.url if cite else None
        )


class Viewed:
    """The views that an attribution and a comparison share; each calls into :mod:`fxlrp.report`."""

    @property
    def _content(self) -> Attribution | Comparison:
        return cast("Attribution | Comparison", self)

    def show(self) -> None:
        """Print a heat map in the terminal."""
        from fxlrp.report import show

        show(self._content)

    def to_html(self, path: str | Path | None = None) -> str:
        """A self-contained HTML report; written to ``path`` if one is given."""
        from fxlrp.report import to_html

        return to_html(self._content, path)

    def plot(self) -> Any:
        """A matplotlib figure (extra 'plot')."""
        from fxlrp.report import plot

        return plot(self._content)

    def to_dataframe(self) -> Any:
        """One row per token or feature, as a pandas DataFrame (extra 'data')."""
        from fxlrp.report import to_dataframe

        return to_dataframe(self._content)

    def _repr_html_(self) -> str:
        from fxlrp.report import to_notebook

        return to_notebook(self._content)


@dataclass(frozen=True)
class Attribution(Viewed):
    """Relevance of the inputs to one output per sample.

    ``relevance`` is that of the main input: [batch, tokens] for ids, the input's shape for floats; ``inputs``
    holds every attributed input. ``features`` is unsummed ([batch, tokens, hidden] for ids). ``explained``
    [batch] is the scalar that was explained. Relevance has the unit of the explained output.
    """

    relevance: Tensor
    inputs: dict[str, Tensor]
    features: Tensor
    outputs: Any
    target: Any
    explained: Tensor
    ruleset: RulesetInfo
    label: list[str]
    tokens: list[list[str]] | None = None
    at: dict[str, Tensor] = field(default_factory=dict)
    ledger: Ledger | None = None
    attention_mask: Tensor | None = None

    def save(self, path: str | Path) -> None:
        """Write everything but the model's output object to one safetensors file."""
        from safetensors.torch import save_file

        tensors = {"relevance": self.relevance, "features": self.features, "explained": self.explained}
        tensors |= {f"inputs/{name}": value for name, value in self.inputs.items()}
        tensors |= {f"at/{name}": value for name, value in self.at.items()}
        if self.attention_mask is not None:
            tensors["attention_mask"] = self.attention_mask
        if self.ledger is not None:
            tensors["ledger/explained"] = self.ledger.explained
            tensors |= {f"ledger/{i}": entry.amount for i, entry in enumerate(self.ledger.entries)}
        about = {
            "ruleset": {f.name: getattr(self.ruleset, f.name) for f in fields(self.ruleset)},
            "target": self.target if isinstance(self.target, (int, list, type(None))) else str(self.target),
            "label": self.label,
            "tokens": self.tokens,
            "entries": [[e.source, e.kind, e.leak] for e in self.ledger.entries] if self.ledger else None,
        }
        # Clones: two names may not share memory in the file.
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            str(path),
            {"fxlrp": json.dumps(about)},
        )

    @staticmethod
    def load(path: str | Path) -> Attribution:
        """Read what :meth:`save` wrote; ``outputs`` is None. Raises :class:`fxlrp.FxlrpError` for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {})["fxlrp"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, KeyError, OSError) as error:
            raise FxlrpError(f"'{path}' is not an attribution saved by fxlrp: {error}.") from error
        ledger = None
        if about["entries"] is not None:
            entries = tuple(
                Entry(s, k, tensors[f"ledger/{i}"], bool(leak)) for i, (s, k, leak) in enumerate(about["entries"])
            )
            ledger = Ledger(entries, tensors["ledger/explained"])
        return Attribution(
            relevance=tensors["relevance"],
            inputs={k.removeprefix("inputs/"): v for k, v in tensors.items() if k.startswith("inputs/")},
            features=tensors["features"],
            outputs=None,
            target=about["target"],
            explained=tensors["explained"],
            ruleset=RulesetInfo(**about["ruleset"]),
            label=about["label"],
            tokens=about["tokens"],
            at={k.removeprefix("at/"): v for k, v in tensors.items() if k.startswith("at/")},
            ledger=ledger,
            attention_mask=tensors.get("attention_mask"),
        )


@dataclass(frozen=True)
class Comparison(Viewed):
    """The same inputs under several rulesets."""

    attributions: dict[str, Attribution]

    def __getitem__(self, name: str) -> Attribution:
        return self.attributions[name]


def as_inputs(lrp: ConvertedModel, inputs: Any) -> dict[str, Any]:
    """Inputs as keyword arguments: a mapping as it is, one tensor as the model's first argument."""
    if isinstance(inputs, Tensor):
        import inspect

        name: Any = getattr(lrp.model, "main_input_name", None)
        parameters = inspect.signature(lrp.model.forward).parameters
        return {str(name) if name in parameters else next(iter(parameters)): inputs}
    if isinstance(inputs, Mapping):
        return dict(inputs)
    raise InputError(f"Inputs are a dict of tensors, a BatchEncoding or one tensor, not {type(inputs).__name__}.")


def attribute(
    lrp: ConvertedModel,
    inputs: Any,
    target: Target,
    contrast: Target,
    at: Sequence[str],
    ledger: bool,
    tokenizer: Any,
) -> Attribution:
    """One forward and one backward pass of the rewritten model (and, for a ledger, one more backward pass per
    sample).
    """
    given = lrp.bind((), as_inputs(lrp, inputs))
    captured = lrp.captured(given)
    program = captured.program
    taps = lrp.taps(captured, at) if at else {}
    plan, rewritten = lrp._rewrite(captured, tuple(taps.values()), ledger=False)
    with torch.enable_grad():
        fresh = {e.name: _leaf(given[e.name]) for e in captured.structure.entrances if not e.lookup and e.name in given}
        flat, values, tapped = lrp.run(rewritten, lrp.arguments(program, rewritten, given, fresh), given)
        outputs = program.unpack(flat)
        explain = _Explained(lrp, given, target, contrast, outputs)
        scalars = explain(outputs)
    wanted = (*values, *tapped)
    grads = (
        torch.autograd.grad(scalars.sum(), wanted, allow_unused=True)
        if scalars.requires_grad
        else (None,) * len(wanted)
    )
    unsummed = [_relevance(value, grad) for value, grad in zip(wanted, grads, strict=True)]
    features: dict[str, Tensor] = {}
    summed: dict[str, Tensor] = {}
    for entrance, relevance in zip(captured.structure.entrances, unsummed, strict=False):
        features[entrance.name] = features[entrance.name] + relevance if entrance.name in features else relevance
        total = relevance.sum(-1) if entrance.lookup else relevance
        summed[entrance.name] = summed[entrance.name] + total if entrance.name in summed else total
    main = _main_input(lrp, list(given), list(summed))
    book = None
    if ledger:
        plan, accounted = lrp._rewrite(captured, (), ledger=True)
        arguments = lrp.arguments(program, accounted, given, {name: _leaf(given[name]) for name in fresh})
        book = compute_ledger(plan, accounted, arguments, lambda values: explain(program.unpack(values)))
    mask = given.get("attention_mask")
    return Attribution(
        relevance=summed[main],
        inputs=summed,
        features=features[main],
        outputs=_detached(outputs),
        target=explain.resolved,
        explained=scalars.detach(),
        ruleset=RulesetInfo.of(lrp.ruleset),
        label=explain.labels(tokenizer or _encoding_tokenizer(inputs)),
        tokens=_tokens(inputs, given.get(main), tokenizer),
        at=dict(zip(taps, unsummed[len(values) :], strict=True)),
        ledger=book,
        attention_mask=mask.detach() if isinstance(mask, Tensor) and mask.ndim == 2 else None,
    )


class _Explained:
    """The explained scalars of an output, for the first forward pass and again for the ledger's."""

    def __init__(
        self, lrp: ConvertedModel, given: Mapping[str, Any], target: Target, contrast: Target, outputs: Any
    ) -> None:
        self.lrp = lrp
        self.batch = next(len(v) for v in given.values() if isinstance(v, Tensor) and v.ndim)
        self.seed = lrp.ruleset.seed
        decoder = given.get("decoder_attention_mask")
        mask = (
            decoder
            if isinstance(decoder, Tensor)
            else None
            if "decoder_input_ids" in given
            else given.get("attention_mask")
        )
        self.terms: list[tuple[float, Any]] = []
        for sign, wanted in ((1.0, target), (-1.0, contrast)):
            if sign > 0 or wanted is not None:
                chosen = wanted if callable(wanted) else resolve(wanted, outputs, mask, self._generates())
                self.terms.append((sign, chosen))

    def _generates(self) -> bool:
        can = getattr(self.lrp.model, "can_generate", None)
        return bool(can()) if callable(can) else False

    def __call__(self, outputs: Any) -> Tensor:
        parts = [
            sign
            * (
                chosen(outputs, self.seed)
                if isinstance(chosen, Selection)
                else call_target(chosen, outputs, self.batch)
            )
            for sign, chosen in self.terms
        ]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @property
    def resolved(self) -> Any:
        chosen = self.terms[0][1]
        if not isinstance(chosen, Selection):
            return chosen
        return [place[0] if len(place) == 1 else tuple(place) for place in chosen.index]

    def labels(self, tokenizer: Any) -> list[str]:
        names = getattr(self.lrp.config, "id2label", None)
        texts = []
        first = self.terms[0][1]
        for sample in range(len(first.index) if isinstance(first, Selection) else self.batch):
            parts = [
                label(chosen.index[sample], names, tokenizer)
                if isinstance(chosen, Selection)
                else getattr(chosen, "__name__", "target")
                for _, chosen in self.terms
            ]
            texts.append(" minus ".join(parts))
        return texts


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _relevance(value: Tensor, message: Tensor | None) -> Tensor:
    """value x message; half precision is widened first, as sums over hundreds of features follow."""
    value = widened(value.detach())
    return torch.zeros_like(value) if message is None else value * widened(message)


def _detached(outputs: Any) -> Any:
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, outputs)


def _main_input(lrp: ConvertedModel, given: list[str], attributed: list[str]) -> str:
    preferred = getattr(lrp.model, "main_input_name", None)
    order = [preferred, "inputs_embeds", *given]
    return next(name for name in order if name in attributed)


def _encoding_tokenizer(inputs: Any) -> Any:
    return getattr(inputs, "tokenizer", None)


def _tokens(inputs: Any, ids: Any, tokenizer: Any) -> list[list[str]] | None:
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return None
    if tokenizer is not None:
        return [list(tokenizer.convert_ids_to_tokens(row.tolist())) for row in ids]
    encodings = getattr(inputs, "encodings", None)
    if encodings:
        return [list(encoding.tokens) for encoding in encodings]
    return None
