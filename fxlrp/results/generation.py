"""What an attribution of generated tokens is: a matrix of tokens before by tokens generated; saved, loaded, shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.results.attribution import Attribution
from fxlrp.results.files import read_tensors, understood, write_tensors
from fxlrp.results.views import Viewed
from fxlrp.spec.citation import RulesetInfo


@dataclass(frozen=True)
class GenerationAttribution(Viewed):
    """Relevance of every token before to each generated token.

    Tokens before are the prompt and all generated tokens but the last; of an encoder-decoder, the encoder's tokens.
    Column k has the unit of ``explained[:, k]``; it is 0 at tokens that come later and where ``padding`` fills up a
    text that ended early. ``result[k]`` is the :class:`Attribution` of generated token k, ``len(result)`` how many
    there are.

    Attributes:
        relevance: that of the model's main input: [batch, tokens before, generated tokens] for ids, [batch, ...,
            generated tokens] for a float input.
        inputs: the same for every attributed input, by its name; of an encoder-decoder ``decoder_input_ids`` too.
        generated_ids: the ids of the generated tokens, [batch, generated tokens].
        padding: where a text had ended and is filled up, [batch, generated tokens], boolean.
        explained: the logit of each generated token, less that of ``contrast_ids``, [batch, generated tokens].
        ruleset: name, version and hash of the ruleset that made it, with its citation.
        main: the name of the main input.
        stream: the name of the input that generated tokens are appended to.
        start: the place in ``stream`` of the first generated token.
        contrast_ids: the tokens whose logits were subtracted, [batch, generated tokens].
        names: the tokenizer's spelling of the tokens before, by input name, per sample.
        generated_tokens: the tokenizer's spelling of the generated tokens, per sample.
        contrast_tokens: that of ``contrast_ids``.
        attention_mask: [batch, tokens before], 1 at tokens and 0 at padding, where the inputs have one.
    """

    relevance: Tensor
    inputs: dict[str, Tensor]
    generated_ids: Tensor
    padding: Tensor
    explained: Tensor
    ruleset: RulesetInfo
    main: str
    stream: str
    start: int
    contrast_ids: Tensor | None = None
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    generated_tokens: list[list[str]] | None = None
    contrast_tokens: list[list[str]] | None = None
    attention_mask: Tensor | None = None

    @property
    def tokens(self) -> list[list[str]] | None:
        """The spellings of the tokens before, per sample."""
        return self.names.get(self.main)

    def __len__(self) -> int:
        return self.generated_ids.shape[1]

    def __getitem__(self, k: int) -> Attribution:
        return self.column(k)

    def column(self, k: int) -> Attribution:
        """The attribution of generated token k alone, over the tokens that it sees. Raises :class:`InputError` for a
        token that there is not.
        """
        if not -len(self) <= k < len(self):
            raise InputError(f"There is no generated token {k}: there are {len(self)} (0 to {len(self) - 1}).")
        k %= len(self)
        end = self.start + k
        inputs = {
            name: value[:, :end, k] if name == self.stream else value[..., k] for name, value in self.inputs.items()
        }
        mask = self.attention_mask
        if mask is not None and self.main == self.stream:
            mask = mask[:, :end]
        ids = self.main in self.names or self.inputs[self.main].ndim == 3
        return Attribution(
            relevance=inputs[self.main],
            inputs=inputs,
            features=inputs[self.main],
            outputs=None,
            target=[(end - 1, int(i)) for i in self.generated_ids[:, k]],
            explained=self.explained[:, k],
            ruleset=self.ruleset,
            label=[self.label(sample, k) for sample in range(len(self.generated_ids))],
            tokens=None if self.tokens is None else [row[: inputs[self.main].shape[1]] for row in self.tokens],
            attention_mask=mask,
            of_ids=ids,
        )

    def label(self, sample: int, k: int) -> str:
        """What a report calls generated token k of a sample."""
        pairs = ((self.generated_ids, self.generated_tokens), (self.contrast_ids, self.contrast_tokens))
        return " minus ".join(
            f"token {int(ids[sample, k])}" if spelled is None else f"'{spelled[sample][k]}'"
            for ids, spelled in pairs
            if ids is not None
        )

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file.

        Raises :class:`fxlrp.errors.FileError` where that cannot be written; an old file is then as it was.
        """
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        tensors |= {f"inputs/{name}": value for name, value in self.inputs.items()}
        about = {name: getattr(self, name) for name in _About.model_fields} | {"ruleset": asdict(self.ruleset)}
        write_tensors(path, _FORMAT, about, tensors)

    @staticmethod
    def load(path: str | Path) -> GenerationAttribution:
        """Read what :meth:`save` wrote. Raises :class:`fxlrp.FxlrpError` for any other file."""
        content, tensors = read_tensors(path, _FORMAT, _WHAT)
        with understood(path, _WHAT):
            about = _About.model_validate(content)
            given: dict[str, Any] = {name: tensors.get(name) for name in _TENSORS}
            given |= {name: tensors[name] for name in _NEEDED}
            inputs = {k.removeprefix("inputs/"): v for k, v in tensors.items() if k.startswith("inputs/")}
            if about.main not in inputs:
                raise ValueError(f"it has no relevance of '{about.main}'")
            shape = given["generated_ids"].shape
            if len(shape) != 2 or any(given[name].shape != shape for name in ("padding", "explained")):
                raise ValueError("its generated tokens, padding and explained outputs are not of the same samples")
            return GenerationAttribution(inputs=inputs, **given, **{n: getattr(about, n) for n in _About.model_fields})


_FORMAT = "fxlrp-generation"
_WHAT = "an attribution of generated tokens"
_NEEDED = ("relevance", "generated_ids", "padding", "explained")
_TENSORS = (*_NEEDED, "contrast_ids", "attention_mask")


class _About(BaseModel):
    """What a saved attribution of generated tokens says besides its tensors."""

    ruleset: RulesetInfo
    main: str
    stream: str
    start: int
    names: dict[str, list[list[str]]]
    generated_tokens: list[list[str]] | None
    contrast_tokens: list[list[str]] | None
