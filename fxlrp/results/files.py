"""Files that are there whole or not at all: written beside, flushed, put in place in one step; read with a sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from fxlrp.errors import FileError, FxlrpError, shortened


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Make ``content`` (text in UTF-8) the file at ``path``; what stood there is kept until all of it is written.

    The content is written to a file of a name of its own in the same folder, flushed to the disk, and renamed. A new
    file gets the mode that the umask says, an old one keeps its own, and a link stays a link. A device or a pipe, which
    nothing can be renamed to, is written directly. Raises :class:`fxlrp.errors.FileError`, which is an ``OSError``,
    where any of this fails; nothing is left behind then.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    try:
        place = Path(os.path.realpath(path))
        mode = place.stat().st_mode if place.exists() else None
        if mode is not None and not os.access(place, os.W_OK):  # a rename would not ask
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if mode is None or stat.S_ISREG(mode):
            _replace(place, data, mode)
        else:
            with place.open("wb", buffering=0) as device:
                _write_all(device, data)
    except (OSError, ValueError) as error:  # a ValueError for a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"'{shortened(path)}' cannot be written: {reason}. A file that stood there is as it was."
        ) from error


def _replace(place: Path, data: bytes, mode: int | None) -> None:
    beside = place.with_name(f".fxlrp-{secrets.token_hex(8)}.part")
    # Not by tempfile, whose files are the owner's alone: the umask decides.
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _write_all(file, data)
            os.fsync(file.fileno())
        if mode is not None:
            beside.chmod(stat.S_IMODE(mode))
        beside.replace(place)
    except BaseException:  # Ctrl-C as well
        beside.unlink(missing_ok=True)
        raise
    _flush_folder(place.parent)


def _write_all(file: IO[bytes], data: bytes) -> None:
    """A raw file may take a part at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _flush_folder(folder: Path) -> None:
    """Make the new name last; where a system has no such thing, its file system sees to it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_tensors(path: str | Path, kind: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of this ``kind``: tensors, and what else there is to say as JSON. See
    :func:`write_whole`.
    """
    from safetensors.torch import save

    # Clones: two names may not share memory in the file.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_whole(path, save(copies, {kind: json.dumps(about)}))


def read_tensors(path: str | Path, kind: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_tensors` wrote. Raises :class:`fxlrp.FxlrpError` for any other file: not ``what``."""
    from safetensors import SafetensorError, safe_open

    with understood(path, what, SafetensorError):
        with safe_open(os.fspath(path), "pt") as file:
            about = json.loads((file.metadata() or {})[kind])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if not isinstance(about, dict):
            raise TypeError(f"its description is no mapping but {type(about).__name__}")
        return about, tensors


@contextlib.contextmanager
def understood(path: str | Path, what: str, *more: type[Exception]) -> Iterator[None]:
    """Says in a sentence that a file is not ``what``, where reading it fails in whatever way."""
    malformed: tuple[type[Exception], ...] = (OSError, LookupError, TypeError, ValueError, AttributeError)
    malformed += (RecursionError, OverflowError, *more)
    try:
        yield
    except FxlrpError:
        raise
    except malformed as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip() or type(error).__name__
        raise FxlrpError(f"'{shortened(path)}' is not {what} saved by fxlrp: {shortened(missing)}.") from error
