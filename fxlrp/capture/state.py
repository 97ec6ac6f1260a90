"""What a model does beside the values of its weights: its modules, hooks, flags, numbers and code, as they are now.

In: a model. Out: its :class:`State`, which a captured graph holds for. :meth:`State.stands` tells at the cost of a look
at every attribute whether anything was replaced since; only then is the model described anew and compared by value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import nn

from fxlrp.capture.contents import equal, short
from fxlrp.capture.held import Held
from fxlrp.capture.reads import package_of
from fxlrp.capture.walk import Told, Walk


class State:
    """Everything that a model's forward pass may read but the values of its parameters and buffers.

    ``told`` describes it by path. Weights are told by shape, type and which of them are one.
    """

    def __init__(self, model: nn.Module) -> None:
        walk = Walk({package_of(base) for each in model.modules() for base in type(each).__mro__})
        walk.visit("", model)
        walk.told["torch.get_default_dtype()"] = Told(str(torch.get_default_dtype()))
        walk.held.append(Held.of(lambda: ((), (torch.get_default_dtype(),))))
        walk.done()
        self.told: dict[str, Told] = walk.told
        self._held = walk.held
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in walk.tensors]
        self._containers = [(each, each.copy()) for each in walk.containers]

    def stands(self) -> bool:
        """Whether every attribute is the very object that it was, and tensors that are no weights have their values."""
        return all(held.stands() for held in self._held) and all(equal(now, then) for now, then in self._tensors)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Lists, dicts, sets and tensors that are no weights are afterwards what they are now, on every way out: a
        forward pass may write to those that it finds around it, in its file or in what it closes over.
        """
        try:
            yield
        finally:
            for tensor, then in self._tensors:
                if not tensor.is_meta and not equal(tensor, then):
                    tensor.data = then.clone() if tensor.shape != then.shape else tensor.data.copy_(then)
            for container, before in self._containers:
                if not _same(container, before):
                    container.clear()
                    (container.extend if isinstance(container, (list, deque)) else container.update)(before)

    def difference(self, other: State) -> str | None:
        """The path of the first thing that differs, None if nothing does."""
        paths = dict.fromkeys((*self.told, *other.told))
        return next((path for path in paths if self.told.get(path) != other.told.get(path)), None)

    @property
    def digest(self) -> str:
        """A hash that is equal in every process for models that compute alike."""
        return short(f"{path}={told.text}".encode() for path, told in sorted(self.told.items()))


def described(value: Any) -> tuple[tuple[str, Told], ...]:
    """A value that is no tensor, such as an argument of a model, as something that can be compared and hashed."""
    walk = Walk()
    walk.visit("", value)
    walk.done()
    return tuple(walk.told.items())


def _same(container: Any, before: Any) -> bool:
    """Whether a container holds the very objects that it held."""
    if isinstance(container, set):
        return bool(container == before)
    pairs = [(container, before)]
    pairs += [(container.values(), before.values())] if isinstance(container, dict) else []
    return all(len(now) == len(then) and all(map(is_, now, then)) for now, then in pairs)
