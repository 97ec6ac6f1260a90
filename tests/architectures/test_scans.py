"""Selective state spaces, step by step and by chunks: MambaLRP makes both linear in the signal, so they agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp

WIDTH, STATE, CHUNK = 6, 4, 4


class Scan(nn.Module):
    """h_t = exp(dt_t a) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t, mean over t.  x: [batch, 12 steps, 6]."""

    def __init__(self, chunked: bool) -> None:
        super().__init__()
        self.chunked = chunked
        self.dt, self.b, self.c = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, STATE), nn.Linear(WIDTH, STATE)
        self.rate = nn.Parameter(torch.randn(WIDTH))
        self.held = False

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Step sizes [batch, step, width], log decays alike, input and read matrices [batch, step, state]."""
        dt = F.softplus(self.dt(x))
        parts = (dt, dt * -self.rate.exp(), self.b(x), self.c(x))
        return tuple(part.detach() for part in parts) if self.held else parts

    def forward(self, x: Tensor) -> Tensor:
        scanned = self.by_chunks(x) if self.chunked else self.by_steps(x)
        return scanned.mean(1)

    def by_steps(self, x: Tensor) -> Tensor:
        dt, rate, b, c = self.parts(x)
        state = x.new_zeros(len(x), WIDTH, STATE)
        outputs = []
        for t in range(x.shape[1]):
            gain = dt[:, t, :, None] * b[:, t, None, :]
            state = torch.exp(rate[:, t, :, None]) * state + gain * x[:, t, :, None]
            outputs.append((state @ c[:, t, :, None])[..., 0])
        return torch.stack(outputs, 1)

    def by_chunks(self, x: Tensor) -> Tensor:
        dt, rate, b, c = (part.unflatten(1, (-1, CHUNK)) for part in self.parts(x))  # [batch, chunk, step, ...]
        signal = x.unflatten(1, (-1, CHUNK)) * dt
        run = rate.cumsum(2)
        lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()[:, :, None]
        within = (run[:, :, :, None] - run[:, :, None]).masked_fill(~lower, -torch.inf).exp()  # [batch, chunk, t, s, w]
        kernel = (c[:, :, :, None] * b[:, :, None]).sum(-1)[..., None] * within
        inside = (kernel * signal[:, :, None]).sum(3)
        decay = (run[:, :, -1:] - run).exp()
        states = ((b[:, :, :, None] * decay[..., None]) * signal[..., None]).sum(2)  # [batch, chunk, w, state]
        state, before = torch.zeros_like(states[:, 0]), []
        for k in range(states.shape[1]):
            before.append(state)
            state = run[:, k, -1].exp()[..., None] * state + states[:, k]
        carried = (c[:, :, :, None] * torch.stack(before, 1)[:, :, None]).sum(-1) * run.exp()
        return (inside + carried).flatten(1, 2)


class Delta(nn.Module):
    """A gated delta net by chunks of 4, mean over t: h_t = a_t h_{t-1} + k_t b_t (v_t - a_t h_{t-1} k_t)^T, y_t = q_t
    h_t.  x: [batch, 12 steps, 6]. ``solved``: with a triangular solve, otherwise with the inverse made row by row.
    """

    def __init__(self, solved: bool) -> None:
        super().__init__()
        self.solved, self.held = solved, False
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.rate, self.learning = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries and keys [batch, step, width], log decays [batch, step], rates of learning [batch, step, 1]."""
        parts = (
            F.normalize(self.q(x), dim=-1),
            F.normalize(self.k(x), dim=-1),
            -F.softplus(self.rate(x))[..., 0],
            torch.sigmoid(self.learning(x)),
        )
        return tuple(part.detach() for part in parts) if self.held else parts

    def forward(self, x: Tensor) -> Tensor:
        q, k, rate, learning = (part.unflatten(1, (-1, CHUNK)) for part in self.parts(x))
        v = self.v(x).unflatten(1, (-1, CHUNK)) * learning
        keys = k * learning
        run = rate.cumsum(-1)
        upper = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
        within = (run[..., :, None] - run[..., None, :]).masked_fill(upper, -torch.inf).exp()
        system = (keys @ k.transpose(-1, -2)) * within
        scores = (q @ k.transpose(-1, -2)) * within
        asked = keys * run.exp()[..., None]
        if self.solved:
            v, asked = (torch.linalg.solve_triangular(system, y, upper=False, unitriangular=True) for y in (v, asked))
        else:
            inverse = -system.tril(-1)
            for t in range(1, CHUNK):
                row = inverse[..., t, :t].clone()
                inverse[..., t, :t] = row + (row[..., None] * inverse[..., :t, :t].clone()).sum(-2)
            inverse = inverse + torch.eye(CHUNK, dtype=x.dtype)
            v, asked = inverse @ v, inverse @ asked
        q = q * run.exp()[..., None]
        k = k * (run[..., -1:] - run).exp()[..., None]
        state, outputs = x.new_zeros(len(x), WIDTH, WIDTH), []
        for c in range(x.shape[1] // CHUNK):
            new = v[:, c] - asked[:, c] @ state
            outputs.append(q[:, c] @ state + scores[:, c] @ new)
            state = state * run[:, c, -1].exp()[:, None, None] + k[:, c].transpose(-1, -2) @ new
        return torch.cat(outputs, 1).mean(1)


MODELS: dict[str, Callable[[], Scan | Delta]] = {
    "steps": lambda: Scan(chunked=False),
    "chunks": lambda: Scan(chunked=True),
    "delta rule, inverted": lambda: Delta(solved=False),
    "delta rule, solved": lambda: Delta(solved=True),
}


def build(name: str) -> Scan | Delta:
    torch.manual_seed(0)
    return MODELS[name]().double().eval()


def steps() -> Tensor:
    return torch.randn(2, 12, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_mambalrp_is_the_gradient_of_the_scan_with_its_matrices_held(name: str) -> None:
    x = steps().requires_grad_()
    held = build(name)
    held.held = True
    (gradient,) = torch.autograd.grad(held(x)[:, 2].sum(), x)
    model = build(name)
    found = fxlrp.attribute(model, x.detach(), ruleset="mambalrp", target=2)
    torch.testing.assert_close(found.outputs, model(x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.relevance, (x * gradient).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.relevance.sum((1, 2)), found.explained, rtol=1e-10, atol=1e-12)


def test_both_scans_compute_the_same() -> None:
    x = steps()
    torch.testing.assert_close(build("chunks")(x), build("steps")(x), rtol=1e-12, atol=1e-12)
    relevance = [
        fxlrp.attribute(build(name), x, ruleset="mambalrp", target=2).relevance for name in ("chunks", "steps")
    ]
    torch.testing.assert_close(*relevance, rtol=1e-9, atol=1e-12)


def test_another_rule_for_the_decay_is_seen() -> None:
    rules = fxlrp.ruleset("mambalrp").override(**{"recurrence.decay": "gradient"})
    relevance = [fxlrp.attribute(build("chunks"), steps(), ruleset=r, target=2).relevance for r in ("mambalrp", rules)]
    assert not torch.allclose(*relevance, rtol=1e-3)


def test_a_delta_rule_by_chunks_is_the_one_by_steps() -> None:
    model, x = build("delta rule, solved"), steps()
    q, k, rate, learning = model.parts(x)
    v, state, outputs = model.v(x), x.new_zeros(len(x), WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        state = rate[:, t].exp()[:, None, None] * state
        fed = learning[:, t] * (v[:, t] - torch.einsum("bk,bkv->bv", k[:, t], state))
        state = state + torch.einsum("bk,bv->bkv", k[:, t], fed)
        outputs.append(torch.einsum("bk,bkv->bv", q[:, t], state))
    torch.testing.assert_close(model(x), torch.stack(outputs, 1).mean(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(build("delta rule, inverted")(x), model(x), rtol=1e-10, atol=1e-12)
