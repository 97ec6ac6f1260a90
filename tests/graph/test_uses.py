"""What an input is follows from what the graph does with it, whatever it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KEPT = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.float64)
HOT = nn.functional.one_hot(IDS, 10)[..., :8].double()
OTHER = X.flip(0) + 0.5


class Two(nn.Module):
    """A function of two inputs, with layers that it may use."""

    def __init__(self, function: Callable[[Any, Any, Any], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.words, self.others = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.linear, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.double().eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(self, a, b)


def attention(m: Any, x: Tensor, added: Tensor) -> Tensor:
    q = m.linear(x)
    return m.head(((q @ q.mT + added).softmax(-1) @ q).mean(1))


USES: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], Tensor, Tensor, list[str]]] = {
    "rows of layers": (lambda m, a, b: m.head((m.linear(a) * b[..., None]).sum(1)), X, KEPT, ["a"]),
    "rows of look-ups": (
        lambda m, a, b: m.head((m.words(a) * b[..., None]).sum(1) / b.sum(1, keepdim=True)),
        IDS,
        KEPT,
        ["a"],
    ),
    "spread rows": (
        lambda m, a, b: m.head((m.words(a) * b[..., None].expand(2, 5, 8)).sum(1) / b.sum(1, keepdim=True)),
        IDS,
        KEPT,
        ["a"],
    ),
    "hidden keys": (lambda m, a, b: attention(m, m.words(a), (1 - b)[:, None] * -1e9), IDS, KEPT, ["a"]),
    "bias on scores": (lambda m, a, b: attention(m, a, b), X, torch.randn(2, 5, 5).double(), ["a"]),
    "condition": (lambda m, a, b: m.head(m.linear(a).masked_fill((b < 0.5)[..., None], 0.0).sum(1)), X, KEPT, ["a"]),
    "cast to bool": (lambda m, a, b: m.head(torch.where(b.bool()[..., None], a, 0.0).sum(1)), X, KEPT, ["a"]),
    "hidden from a maximum": (
        lambda m, a, b: m.head((m.words(a) + ((1 - b) * -1e9)[..., None]).amax(1)),
        IDS,
        KEPT,
        ["a"],
    ),
    "observed": (
        lambda m, a, b: m.head((a * b).sum(1) / b.sum(1).clamp(min=1)),
        X,
        (OTHER > 0).double(),
        ["a"],
    ),
    "gate": (lambda m, a, b: m.head((a * b).mean(1)), X, OTHER, ["a", "b"]),
    "sum": (lambda m, a, b: m.head(m.linear(b).mean(1) + a.mean(1)), X, OTHER, ["a", "b"]),
    "mapped by a layer": (lambda m, a, b: m.head(a.mean(1) + m.linear(b)), X, X[:, 0], ["a", "b"]),
    "prior": (lambda m, a, b: (m.head(a.mean(1)) + b).softmax(-1), X, torch.randn(2, 3).double(), ["a", "b"]),
    "softmax of a sum": (
        lambda m, a, b: ((a + b).softmax(-1) @ m.head.weight.T).mean(1),
        X,
        OTHER,
        ["a", "b"],
    ),
    "divisor": (lambda m, a, b: m.head(a.mean(1) / b), X, torch.tensor([[1.5], [2.0]]).double(), ["a", "b"]),
    "outer product": (lambda m, a, b: m.head((a[..., None] * b[:, :, None]).mean((1, 2))), X, OTHER, ["a", "b"]),
    "two tables": (lambda m, a, b: m.head((m.words(a) + m.others(b)).mean(1)), IDS, IDS.flip(1), ["a", "b"]),
    "indices": (lambda m, a, b: m.head(a.index_select(1, b).mean(1)), X, torch.tensor([0, 2, 2]), ["a"]),
    "edges": (lambda m, a, b: m.head(torch.zeros_like(a).index_add(1, b[1], a[:, b[0]]).mean(1)), X, IDS % 5, ["a"]),
    "counted": (
        lambda m, a, b: m.head((m.words(a) + m.others(b.cumsum(1))).mean(1)),
        IDS,
        KEPT.long(),
        ["a"],
    ),
    "one hot": (
        lambda m, a, b: m.head(m.linear(a).mean(1) + a.mean(1)),
        nn.functional.one_hot(IDS, 8 + 2)[..., :8].double(),
        X,
        ["a"],
    ),
}


@pytest.mark.parametrize("name", USES)
def test_what_is_attributed_follows_from_use(name: str) -> None:
    function, a, b, expected = USES[name]
    found = fxlrp.convert(Two(function), "gradient").attribute({"a": a, "b": b}, target=1)
    assert list(found.inputs) == expected


class MaskedImage(nn.Module):
    """A float input that is called a mask and is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 3)
        self.double().eval()

    def forward(self, masked_image: Tensor) -> Tensor:
        return self.head(masked_image.mean(1))


class Rooms(nn.Module):
    """Ids whose names hold the words type and position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rooms, self.works, self.head = nn.Embedding(20, 8), nn.Embedding(20, 8), nn.Linear(8, 3)
        self.double().eval()

    def forward(self, room_type: Tensor, composition_ids: Tensor) -> Tensor:
        return self.head((self.rooms(room_type) + self.works(composition_ids)).mean(1))


def test_a_float_input_that_is_called_a_mask_is_explained() -> None:
    model = MaskedImage()
    found = fxlrp.convert(model, "gradient").attribute({"masked_image": X}, target=1)
    assert torch.allclose(found.inputs["masked_image"], X * model.head.weight[1] / 5)


def test_ids_are_explained_whatever_they_are_called() -> None:
    model = Rooms()
    other = IDS.flip(1)
    found = fxlrp.convert(model, "gradient").attribute({"room_type": IDS, "composition_ids": other}, target=1)
    assert torch.allclose(found.inputs["room_type"], model.rooms(IDS) @ model.head.weight[1] / 5)
    assert torch.allclose(found.inputs["composition_ids"], model.works(other) @ model.head.weight[1] / 5)


@pytest.mark.parametrize(
    ("function", "a", "b", "said"),
    [
        (
            lambda m, a, b: m.head(m.linear.bias.expand(len(a), -1).gather(1, a).mean(1, True).expand(-1, 8) * b.sum()),
            IDS % 5,
            torch.tensor([1, 2]),
            "'a' (as indices, by 'gather' at ",
        ),
        (
            lambda m, a, b: m.head(torch.where((a > 0)[..., None], m.linear.bias, m.linear.weight[0]).mean(1)),
            X[..., 0],
            IDS,
            "'a' (as a mask (a condition)), 'b' (by no operator)",
        ),
        (
            lambda m, a, b: m.head(m.linear.bias.expand(a.shape[0], 8)) + b.shape[1],
            IDS,
            IDS.flip(1),
            "'a' (for its size alone)",
        ),
    ],
    ids=["indices", "condition", "size"],
)
def test_the_error_says_how_each_input_is_used(
    function: Callable[[Any, Tensor, Tensor], Tensor], a: Tensor, b: Tensor, said: str
) -> None:
    with pytest.raises(fxlrp.InputError) as raised:
        fxlrp.convert(Two(function), "gradient").attribute({"a": a, "b": b}, target=1)
    assert said in str(raised.value)


class Tagger(nn.Module):
    """Three classes for every token, by a plain module with a mask that no convention explains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(x * attention_mask[..., None] + x)


class Renamed(Tagger):
    """The same with another name for the mask."""

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        return super().forward(x, kept)


def test_the_default_target_of_a_plain_module_does_not_depend_on_names() -> None:
    largest = Tagger()(X, 1 - KEPT).flatten(1).argmax(1)
    expected = [(int(i) // 3, int(i) % 3) for i in largest]
    assert any(KEPT[row, place] == 1 for row, (place, _) in enumerate(expected))
    for model, name in ((Tagger(), "attention_mask"), (Renamed(), "kept")):
        found = fxlrp.convert(model, "gradient").attribute({"x": X, name: 1 - KEPT})
        assert found.target == expected
