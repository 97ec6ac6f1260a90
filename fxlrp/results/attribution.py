"""What an attribution is: relevance by input, what was explained, where it went; saved, loaded and shown."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor
from torch.nn import functional as F

from fxlrp.engine.ledger import Entry, Ledger
from fxlrp.errors import InputError
from fxlrp.results.files import read_tensors, understood, write_tensors
from fxlrp.results.views import Viewed
from fxlrp.spec.citation import RulesetInfo


@dataclass(frozen=True)
class Attribution(Viewed):
    """Relevance of the inputs to one output per sample. Relevance has the unit of the explained output.

    Attributes:
        relevance: that of the main input: [batch, tokens] for ids, the input's shape for floats; of a ruleset that
            reads attention [batch, tokens], or [batch, patches] of an image.
        inputs: the same for every attributed input (``decoder_input_ids``, ``pixel_values`` ...), by its name.
        features: relevance of the main input before sums over features: [batch, tokens, hidden] for ids.
        outputs: the model's output object, detached; None where the result was loaded from a file.
        target: what was explained, one entry a sample: a class, or (position, class); a callable as it was given.
        explained: the scalar that was explained, [batch]: a logit (a probability, a difference of logits), as the
            ruleset's seed and ``contrast`` have it.
        ruleset: name, version and hash of the ruleset that made it, with its citation.
        label: what a report calls the explained output of each sample, such as ``"positive minus negative"``.
        tokens: the spelling of every token, per sample, where a tokenizer was at hand.
        at: relevance at the modules that were asked for by ``at=``, by module path, in the shape of their output.
        ledger: where every unit of relevance went, with ``ledger=True``.
        attention_mask: [batch, tokens], 1 at tokens and 0 at padding, where the inputs have one.
        image_size: height and width in pixels where the main input is an image [batch, channels, height, width].
        of_ids: whether the main input is token ids.
        picture: the image itself, [batch, channels, height, width], which reports draw below its relevance.
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
    image_size: tuple[int, int] | None = None
    of_ids: bool = False
    picture: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image where relevance is by patch, [batch, patches], or by pixel without channels,
        [batch, height, width]; None elsewhere.
        """
        if self.image_size is None or self.relevance.ndim not in (2, 3):
            return None
        if self.relevance.ndim == 3:
            return self.image_size if tuple(self.relevance.shape[1:]) == self.image_size else None
        height, width = self.image_size
        rows = round((self.relevance.shape[1] * height / width) ** 0.5)
        columns = round(rows * width / height)
        return (rows, columns) if rows * columns == self.relevance.shape[1] else None

    def map(self, size: int | tuple[int, int]) -> Tensor:
        """The relevance of an image as a map [batch, height, width] of the wanted size, patches enlarged bilinearly.

        Takes relevance by patch [batch, patches] of a grid with the proportions of the image, by pixel [batch, height,
        width], or by channel and pixel, which are summed over channels. Raises :class:`InputError` for anything else.
        """
        relevance = self.relevance
        if relevance.ndim == 4:
            relevance = relevance.sum(1)
        if relevance.ndim == 2 and self.grid is not None:
            relevance = relevance.unflatten(1, self.grid)
        if relevance.ndim != 3:
            raise InputError(
                f"Relevance of shape {tuple(self.relevance.shape)} is not an image: a map needs an image as input, and "
                "relevance by patch (all patches of a grid and no other token, which readings of attention give with "
                "override(readout={'tokens': 'input'})), by pixel [batch, height, width] or by channel "
                "[batch, channels, height, width]."
            )
        wanted = (size, size) if isinstance(size, int) else tuple(size)
        return F.interpolate(relevance[:, None], size=wanted, mode="bilinear", align_corners=False)[:, 0]

    def save(self, path: str | Path) -> None:
        """Write everything but the model's output object to one safetensors file; of a callable target, its name.

        Raises :class:`fxlrp.errors.FileError` where that cannot be written; an old file is then as it was.
        """
        tensors = {"relevance": self.relevance, "features": self.features, "explained": self.explained}
        tensors |= {f"inputs/{name}": value for name, value in self.inputs.items()}
        tensors |= {f"at/{name}": value for name, value in self.at.items()}
        if self.attention_mask is not None:
            tensors["attention_mask"] = self.attention_mask
        if self.picture is not None:
            tensors["picture"] = self.picture
        if self.ledger is not None:
            tensors["ledger/explained"] = self.ledger.explained
            tensors |= {f"ledger/{i}": entry.amount for i, entry in enumerate(self.ledger.entries)}
        about = {
            "ruleset": {f.name: getattr(self.ruleset, f.name) for f in fields(self.ruleset)},
            "target": self.target if isinstance(self.target, (int, list, type(None))) else _spelled(self.target),
            "label": self.label,
            "tokens": self.tokens,
            "image_size": self.image_size,
            "of_ids": self.of_ids,
            "entries": [[e.source, e.kind, e.leak] for e in self.ledger.entries] if self.ledger else None,
        }
        write_tensors(path, _FORMAT, about, tensors)

    @staticmethod
    def load(path: str | Path) -> Attribution:
        """Read what :meth:`save` wrote; ``outputs`` is None. Raises :class:`fxlrp.FxlrpError` for any other file."""
        content, tensors = read_tensors(path, _FORMAT, _WHAT)
        with understood(path, _WHAT):
            about = _About.model_validate(content)
            explained = tensors["explained"]
            if explained.ndim != 1 or not len(explained) == len(about.label) == len(tensors["relevance"]):
                raise ValueError("its relevance, labels and explained outputs are not of the same samples")
            ledger = None
            if about.entries is not None:
                entries = tuple(
                    Entry(s, k, tensors[f"ledger/{i}"], leak) for i, (s, k, leak) in enumerate(about.entries)
                )
                ledger = Ledger(entries, tensors["ledger/explained"])
            return Attribution(
                relevance=tensors["relevance"],
                inputs={k.removeprefix("inputs/"): v for k, v in tensors.items() if k.startswith("inputs/")},
                features=tensors["features"],
                outputs=None,
                target=about.target,
                explained=explained,
                ruleset=about.ruleset,
                label=about.label,
                tokens=about.tokens,
                at={k.removeprefix("at/"): v for k, v in tensors.items() if k.startswith("at/")},
                ledger=ledger,
                attention_mask=tensors.get("attention_mask"),
                image_size=about.image_size,
                of_ids=about.of_ids,
                picture=tensors.get("picture"),
            )


_FORMAT = "fxlrp"
_WHAT = "an attribution"


class _About(BaseModel):
    """What a saved attribution says besides its tensors."""

    ruleset: RulesetInfo
    target: int | list[Any] | str | None
    label: list[str]
    tokens: list[list[str]] | None
    entries: list[tuple[str, str, bool]] | None
    image_size: tuple[int, int] | None = None
    of_ids: bool = False


def _spelled(target: Any) -> str:
    """A target that no file can hold, in words: a function by its name, which is the same in every process."""
    if not callable(target):
        return str(target)
    inner = target
    while isinstance(inner, partial):
        inner = inner.func
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"a function `{named.__module__}.{named.__qualname__}`"
