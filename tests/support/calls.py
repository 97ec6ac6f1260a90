"""A function as a module, for models that a test writes down in a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Calls(nn.Module):
    """Calls ``code`` on its input; ``parts`` are modules that the code uses."""

    def __init__(self, code: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.code, self.parts = code, nn.ModuleList(parts)
        self.eval()

    def forward(self, x: Any) -> Any:
        """What the code makes of x."""
        return self.code(x)
