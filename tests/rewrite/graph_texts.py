"""What rewriting does, as text: small models before and after, each under a ruleset that changes something in it.

``make graphs`` writes ``tests/rewrite/texts``; the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.rewrite import rewrite
from tests.rewrite.text import graph_text

FOLDER = Path(__file__).parent / "texts"


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(1))


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.fused = nn.Linear(4, 12), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)[:, 0]
        return (torch.softmax(q @ k.mT / 2, -1) @ v)[:, 0]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.inner(x).relu())


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.map(x)).relu().mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.cell(x)
        return self.head(h)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(8, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.words(ids) + self.places(torch.arange(ids.shape[1]))).mean(1))


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(-1)


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


def _rms() -> nn.Module:
    return nn.Sequential(transformers.models.llama.modeling_llama.LlamaRMSNorm(4), nn.Linear(4, 2))


def _floats(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(2, *shape, dtype=torch.float64),)


@dataclass(frozen=True)
class Case:
    """A model with its inputs, and a ruleset; ``ledger``: the graph that accounts for constants as well."""

    model: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    ruleset: str
    ledger: bool = False

    def text(self) -> str:
        model = self.model().double().eval()
        lrp = fxlrp.convert(model, self.ruleset)
        with torch.no_grad():
            lrp(*self.inputs())
        after = rewrite(lrp.plan, ledger=self.ledger).module.graph
        kind = "ledger graph" if self.ledger else "after"
        return f"before\n\n{graph_text(lrp.plan.program.graph)}\n{kind}, {self.ruleset}\n\n{graph_text(after)}"


CASES = {
    "linear": Case(lambda: nn.Linear(3, 2), _floats(3), "epsilon"),
    "linear, in a ledger": Case(lambda: nn.Linear(3, 2), _floats(3), "attnlrp", ledger=True),
    "layer norm": Case(Norm, _floats(3, 4), "ali2022"),
    "layer norm, in relevance": Case(Norm, _floats(3, 4), "chefer2021-vit"),
    "rms norm": Case(_rms, _floats(4), "attnlrp"),
    "attention": Case(lambda: Attention(fused=False), _floats(3, 4), "attnlrp"),
    "attention, weights constant": Case(lambda: Attention(fused=False), _floats(3, 4), "ali2022"),
    "attention, fused": Case(lambda: Attention(fused=True), _floats(3, 4), "ali2022"),
    "gated": Case(Gated, _floats(4), "attnlrp"),
    "residual": Case(Residual, _floats(4), "conservative-residual"),
    "convolution with batch norm": Case(Convolution, _floats(3, 5, 5), "epsilon-plus"),
    "lstm cell": Case(Recurrent, _floats(3), "arras2017"),
    "words and positions": Case(Words, lambda: (torch.zeros(2, 5, dtype=torch.long),), "attnlrp"),
    "product": Case(Product, lambda: (*_floats(3)(), *_floats(3)()), "attnlrp"),
    "product, compared": Case(Product, lambda: (*_floats(3)(), *_floats(3)()), "deeplift-rescale"),
    "softmax": Case(Softmax, _floats(3), "attnlrp"),
}


def path_of(name: str) -> Path:
    return FOLDER / f"{name.replace(', ', '-').replace(' ', '_')}.txt"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.txt"):
        path.unlink()
    for name, case in CASES.items():
        path_of(name).write_text(case.text())
