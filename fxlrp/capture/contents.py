"""What tensors and code hold, in a few letters that are the same in every process.

In: a tensor, code, or bytes. Out: a hash, a description, or whether two tensors are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn


def layout(tensor: Tensor | None) -> str:
    """What a tensor is but for its values."""
    if tensor is None:
        return "None"
    return f"{type(tensor).__qualname__} {tuple(tensor.shape)} {tensor.dtype} {tensor.device.type} {tensor.layout}"


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be looked at: those of a subclass, such as a fake tensor, are its own affair."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.layout is torch.strided


def content(tensor: Tensor) -> str:
    """A hash of a tensor's values."""
    if not has_values(tensor):
        return ""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return short([bytes(flat.view(torch.uint8).numpy())] if flat.numel() else [])


def equal(now: Tensor, then: Tensor) -> bool:
    """Whether two tensors have the same type, shape, place and values, NaN among them."""
    if now.shape != then.shape or now.dtype != then.dtype or now.device != then.device:
        return False
    return not has_values(now) or torch.equal(now, then) or bool((now != now).any() and content(now) == content(then))


def code_hash(code: CodeType) -> str:
    """A hash of what a function does."""
    inner = map(_constant, code.co_consts)
    return short([code.co_code, *(text.encode() for text in (*inner, *code.co_names, *code.co_freevars))])


def _constant(value: Any) -> str:
    """A constant of a function as text. The order in which a set shows what it holds is another in each process."""
    if isinstance(value, CodeType):
        return code_hash(value)
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    return repr(tuple(map(_constant, value)) if isinstance(value, tuple) else value)


def hashed(parts: Iterable[bytes]) -> bytes:
    """A hash of parts in their order, each with its length, so that none runs into the next."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()


def short(parts: Iterable[bytes]) -> str:
    """The beginning of a hash, as text."""
    return hashed(parts).hex()[:16]
