"""What a run has measured so far, in a folder: one file a batch, named after all that its numbers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Measurement
from fxlrp.explain.model import ConvertedModel


@dataclass(frozen=True)
class Memory:
    """Remembers measured batches in ``folder``; without one, nothing."""

    folder: Path | None
    about: str

    @staticmethod
    def of(folder: str | Path | None, protocol: Measurement, lrp: ConvertedModel) -> Memory:
        """The memory of one protocol on one conversion."""
        if folder is None:
            return Memory(None, "")
        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FxlrpError(f"resume='{folder}' cannot be a folder for finished batches: {error}.") from error
        return Memory(
            place,
            "|".join(
                (
                    type(protocol).__name__,
                    *map(fingerprint, (vars(protocol), lrp)),
                )
            ),
        )

    def recall(self, batch: Batch) -> dict[str, Tensor] | None:
        """The numbers of a batch that was measured before."""
        path = self._path(batch)
        if path is None or not path.is_file():
            return None
        from safetensors.torch import load_file

        return load_file(path)

    def keep(self, batch: Batch, measured: Mapping[str, Tensor]) -> None:
        """Write the numbers of a batch; a file is there whole or not at all."""
        path = self._path(batch)
        if path is None:
            return
        from safetensors.torch import save_file

        part = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in measured.items()}, part)
        part.replace(path)

    def _path(self, batch: Batch) -> Path | None:
        if self.folder is None:
            return None
        key = hashlib.sha256()
        for text in (self.about, fingerprint(vars(batch))):
            key.update(text.encode())
        return self.folder / f"{key.hexdigest()[:32]}.safetensors"


def drawing(batch: Batch, seed: int) -> torch.Generator:
    """Random numbers for one batch: they depend on its contents and the seed alone, so that a run which goes on where
    it stopped draws what an uninterrupted one does.
    """
    digest = hashlib.sha256(f"{seed}|{fingerprint(vars(batch))}".encode()).hexdigest()
    return torch.Generator().manual_seed(int(digest[:15], 16))


def fingerprint(value: Any) -> str:
    """A hash of tensors and what holds them: equal for equal contents."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for name in value:
            digest.update(str(name).encode())
            _feed(digest, value[name])
    elif isinstance(value, (tuple, list)):
        for each in value:
            _feed(digest, each)
    elif isinstance(value, nn.Module):
        digest.update(f"{type(value).__name__} {getattr(getattr(value, 'ruleset', None), 'hash', '')}".encode())
        _feed(digest, value.state_dict())
    else:
        digest.update(repr(value).encode())
