"""What an attribution of generated tokens is: a matrix of tokens before by tokens generated; saved, loaded, shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fxlrp.errors import FxlrpError, InputError
from fxlrp.results.attribution import Attribution
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
        """Write everything to one safetensors file."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        tensors |= {f"inputs/{name}": value for name, value in self.inputs.items()}
        about = {name: getattr(self, name) for name in _ABOUT} | {"ruleset": asdict(self.ruleset)}
        # Clones: two names may not share memory in the file.
        cloned = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(cloned, str(path), {_FORMAT: json.dumps(about)})

    @staticmethod
    def load(path: str | Path) -> GenerationAttribution:
        """Read what :meth:`save` wrote. Raises :class:`fxlrp.FxlrpError` for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {})[_FORMAT])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, KeyError, OSError) as error:
            raise FxlrpError(f"'{path}' is not an attribution of generated tokens saved by fxlrp: {error}.") from error
        about["ruleset"] = RulesetInfo(**about["ruleset"])
        inputs = {k.removeprefix("inputs/"): v for k, v in tensors.items() if k.startswith("inputs/")}
        given: dict[str, Any] = {name: tensors.get(name) for name in _TENSORS}
        return GenerationAttribution(inputs=inputs, **given, **about)


_FORMAT = "fxlrp-generation"
_TENSORS = ("relevance", "generated_ids", "padding", "explained", "contrast_ids", "attention_mask")
_ABOUT = ("main", "stream", "start", "names", "generated_tokens", "contrast_tokens")
