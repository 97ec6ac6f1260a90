"""Functions as modules, for models that a test writes down in a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp


class Calls(nn.Module):
    """Calls ``code`` on its input; ``parts`` are modules that the code uses."""

    def __init__(self, code: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.code, self.parts = code, nn.ModuleList(parts)
        self.eval()

    def forward(self, x: Any) -> Any:
        """What the code makes of x."""
        return self.code(x)


def with_forward(net: nn.Module, forward: Callable[..., Any], *others: nn.Module) -> Any:
    """A module with this forward pass, in eval mode, which finds modules as ``self.net`` and ``self.others``."""
    model: Any = type("Made", (nn.Module,), {"forward": forward})()
    model.net, model.others = net, nn.ModuleList(others)
    return model.eval()


LINEAR = nn.Linear(4, 2)
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def attributed(forward: Callable[..., Any], x: Any = X, net: nn.Module = LINEAR, **options: Any) -> fxlrp.Attribution:
    """Class 1 of a module with this forward pass around ``net``, under 'epsilon'."""
    return fxlrp.convert(with_forward(net, forward), "epsilon").attribute(x, **{"target": 1, **options})


def of_linear() -> Tensor:
    """The relevance of X to class 1 of LINEAR alone."""
    return X * LINEAR.weight[1].detach()
