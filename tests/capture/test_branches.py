"""What torch's tracers leave as graphs inside graphs: casts of autocast, branches, loops; and complex assignments."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import map as map_
from torch._higher_order_ops import scan, while_loop

import fxlrp
from tests.support.calls import with_forward

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
X = torch.randn(2, 4)
made = partial(with_forward, NET)


def gradient(model: nn.Module, x: Tensor = X) -> Tensor:
    """x times the gradient of class 1, by plain autograd."""
    leaf = x.clone().requires_grad_()
    model(leaf)[:, 1].sum().backward()
    assert leaf.grad is not None
    return x * leaf.grad


def _cond(self: Any, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda a: self.net(a), lambda a: self.net(-2 * a), (x,))  # type: ignore[no-any-return]


def _while(self: Any, x: Tensor) -> Tensor:
    out: Tensor = while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, self.net[0](a)), (torch.tensor(0), x))[1]
    return self.net(out)  # type: ignore[no-any-return]


def _map(self: Any, x: Tensor) -> Tensor:
    return map_(lambda row: self.net(row), x)  # type: ignore[no-any-return]


def _scan(self: Any, x: Tensor) -> Tensor:
    steps = scan(lambda c, row: (c + self.net[0](row), c * 1), torch.zeros(4), x)[1]
    return self.net(steps + x)  # type: ignore[no-any-return]


def _unrolled(self: Any, x: Tensor) -> Tensor:
    carried, steps = torch.zeros(4), []
    for row in x:
        steps.append(carried)
        carried = carried + self.net[0](row)
    return self.net(torch.stack(steps) + x)  # type: ignore[no-any-return]


CASES: dict[str, tuple[Any, Any]] = {
    "cond": (_cond, lambda self, x: self.net(x) if x.sum() > 0 else self.net(-2 * x)),
    "while_loop": (_while, lambda self, x: self.net(self.net[0](self.net[0](self.net[0](x))))),
    "map": (_map, lambda self, x: self.net(x)),
    "scan": (_scan, _unrolled),
}


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("name", CASES)
def test_branches_and_loops_are_followed_as_on_the_inputs(name: str) -> None:
    model, plain = made(CASES[name][0]), made(CASES[name][1])
    lrp = fxlrp.convert(model, "gradient")
    for x in (X, -X, X[:1]):
        found = lrp.attribute(x, target=1, ledger=True)
        torch.testing.assert_close(found.relevance, gradient(plain, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_inside_a_forward_pass(dtype: torch.dtype) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            h = self.net[0](x)
        return self.net[2](self.net[1](h.float()))  # type: ignore[no-any-return]

    model = made(forward)
    lrp = fxlrp.convert(model, "gradient")
    for x in (X, torch.randn(3, 4)):
        found = lrp.attribute(x, target=1)
        torch.testing.assert_close(found.outputs, model(x))
        torch.testing.assert_close(
            found.relevance, gradient(made(lambda self, x: self.net(x)), x), rtol=0.05, atol=0.01
        )
    assert lrp.captures == 1


def _placed(self: Any, x: Tensor) -> Tensor:
    spectrum = torch.zeros(len(x), 2, dtype=torch.complex64)
    spectrum[:, :2] = torch.fft.rfft(x)[:, :2]
    return self.net(torch.view_as_real(spectrum).flatten(1))  # type: ignore[no-any-return]


def _chosen(self: Any, x: Tensor) -> Tensor:
    spectrum = torch.zeros(len(x), 2, dtype=torch.complex64)
    spectrum[:, -1] = torch.fft.rfft(x)[:, 1]
    return self.net(torch.view_as_real(spectrum).flatten(1))  # type: ignore[no-any-return]


def _diagonal(self: Any, x: Tensor) -> Tensor:
    spectrum = torch.zeros(len(x), 2, 2, dtype=torch.complex64)
    torch.diagonal(spectrum, 0, -2, -1).copy_(torch.fft.rfft(x)[:, :2])
    return self.net(torch.view_as_real(spectrum).sum(-1).flatten(1))  # type: ignore[no-any-return]


def _strided(self: Any, x: Tensor) -> Tensor:
    spectrum = torch.zeros(len(x), 4, dtype=torch.complex64)
    spectrum[:, ::2] = torch.fft.rfft(x)[:, :2]
    spectrum[..., 1] += 2
    return self.net(torch.view_as_real(spectrum).sum(-1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [_placed, _chosen, _diagonal, _strided])
def test_assignments_to_parts_of_complex_values(forward: Any) -> None:
    model = made(forward)
    found = fxlrp.convert(model, "gradient").attribute(X, target=1)
    torch.testing.assert_close(found.relevance, gradient(model))
