"""What a run has measured so far, in a folder: one file a batch, named after all that its numbers depend on."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError, warn
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Measurement
from fxlrp.evaluate.hashing import fingerprint
from fxlrp.explain.model import ConvertedModel
from fxlrp.results.files import read_tensors, write_tensors


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
        kind = type(protocol)
        return Memory(place, fingerprint((kind.__module__, kind.__qualname__, vars(protocol), lrp)))

    def recall(self, batch: Batch) -> dict[str, Tensor] | None:
        """The numbers of a batch that was measured before.

        A part says which batch it is of and what its numbers hash to. One that does not say so, or not the truth (a
        file that was cut off, changed or put there by something else, a folder) is set aside under another name with a
        warning, and the batch is measured again.
        """
        path = self._path(batch)
        if path is None or not path.exists():
            return None
        try:
            about, tensors = read_tensors(path, _FORMAT, "a finished batch")
            if about != _about(path, tensors):
                raise FxlrpError(f"'{path}' holds other numbers than were measured.")
        except FxlrpError as error:
            _set_aside(path, error)
            return None
        return tensors

    def keep(self, batch: Batch, measured: Mapping[str, Tensor]) -> None:
        """Write the numbers of a batch; a file is there whole or not at all, whoever else writes it as well."""
        path = self._path(batch)
        if path is not None:
            write_tensors(path, _FORMAT, _about(path, measured), measured)

    def _path(self, batch: Batch) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{fingerprint((self.about, vars(batch)))[:32]}.safetensors"


def drawing(batch: Batch, seed: int) -> torch.Generator:
    """Random numbers for one batch: they depend on its contents and the seed alone, so that a run which goes on where
    it stopped draws what an uninterrupted one does.

    Published numbers rest on these draws, so that what is hashed stays as it is. It need not tell all batches apart:
    two of one hash draw the same numbers, which does no harm.
    """
    contents = hashlib.sha256()
    _feed(contents, vars(batch))
    digest = hashlib.sha256(f"{seed}|{contents.hexdigest()}".encode()).hexdigest()
    return torch.Generator().manual_seed(int(digest[:15], 16))


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
    else:
        digest.update(repr(value).encode())


_FORMAT = "fxlrp-batch"


def _about(path: Path, measured: Mapping[str, Tensor]) -> dict[str, str]:
    """What a part says of itself: the key of its batch, and the hash of its numbers."""
    return {"key": path.stem, "numbers": fingerprint(measured)}


def _set_aside(path: Path, error: FxlrpError) -> None:
    aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another process was faster
        return
    except OSError as reason:
        raise FxlrpError(
            f"resume= holds something else in the place of a finished batch, which cannot be moved away ({reason}): "
            f"remove '{path}'."
        ) from reason
    warn(f"{error} It is measured again; what was there is now '{aside.name}'.")
