"""What is looked up in tables belongs to the very entries of the input that were looked up."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from tests.support.calls import Calls

RULESETS = ("conservative", "gradient", "attnlrp")
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 8, 7]])


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Embedding, nn.Linear]:
    """A table of ten rows and a linear head, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Embedding(10, 4).double(), nn.Linear(4, 2).double()


def rolled_where(x: Tensor) -> Tensor:
    """Large ids as they are, small ones from the other end."""
    return torch.where(x > 4, x, x.flip(1))


#: Ids of six positions to the numbers that are looked up, and by hand the positions that each is made of (-1: none).
WAYS: dict[str, tuple[Callable[[Tensor], Tensor], list[list[int]]]] = {
    "as they are": (lambda x: x, [[0], [1], [2], [3], [4], [5]]),
    "slice": (lambda x: x[:, 2:5], [[2], [3], [4]]),
    "every second": (lambda x: x[:, ::2], [[0], [2], [4]]),
    "column": (lambda x: x[:, 3:4], [[3]]),
    "shift with padding of its own": (lambda x: F.pad(x[:, :-1], (1, 0), value=7), [[], [0], [1], [2], [3], [4]]),
    "flip": (lambda x: x.flip(1), [[5], [4], [3], [2], [1], [0]]),
    "roll": (lambda x: x.roll(2, 1), [[4], [5], [0], [1], [2], [3]]),
    "reshape": (lambda x: x.reshape(-1, 3, 2).transpose(1, 2).flatten(1), [[0], [2], [4], [1], [3], [5]]),
    "gather": (lambda x: x.gather(1, torch.tensor([[5, 5, 0]]).expand(len(x), -1)), [[5], [5], [0]]),
    "list of positions": (lambda x: x[:, [1, 1, 4]], [[1], [1], [4]]),
    "stack": (lambda x: torch.stack([x[:, :2], x[:, 4:]], 1).flatten(1), [[0], [1], [4], [5]]),
    "prefix of its own": (lambda x: torch.cat([torch.full_like(x[:, :1], 2), x], 1), [[], *([i] for i in range(6))]),
    "arithmetic": (lambda x: (x * 3 + 1) % 10, [[0], [1], [2], [3], [4], [5]]),
    "arithmetic of a slice": (lambda x: (x[:, 1:3] + 2).clamp(max=9), [[1], [2]]),
    "pairs": (lambda x: (x[:, 1:] * 3 + x[:, :-1]) % 10, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]),
    "hash of windows": (
        lambda x: (x.unfold(1, 3, 3) * torch.tensor([1, 3, 7])).sum(-1) % 10,
        [[0, 1, 2], [3, 4, 5]],
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::fxlrp.SharedRelevanceWarning")
def test_relevance_goes_to_the_entries_that_were_looked_up(way: str, parts: tuple[nn.Embedding, nn.Linear]) -> None:
    """y = sum over rows p of (p + 1) w e(ids_p) + b: the row's term, shared evenly among what its number is made of."""
    move, positions = WAYS[way]
    table, head = parts
    scale = torch.arange(1.0, len(positions) + 1, dtype=torch.float64)
    model = Calls(lambda x: head((table(move(x)) * scale[:, None]).sum(1)), table, head)
    by_hand = torch.zeros(IDS.shape, dtype=torch.float64)
    terms = (table(move(IDS)) @ head.weight[1]).detach() * scale
    for row, entries in enumerate(positions):
        for entry in entries:
            by_hand[:, entry] += terms[:, row] / len(entries)
    for ruleset in RULESETS:
        result = fxlrp.convert(model, ruleset).attribute(IDS, target=1, ledger=True)
        assert torch.allclose(result.relevance, by_hand, atol=1e-12)
        assert result.ledger is not None
        assert result.ledger.gap.abs().max() < 1e-12
        assert torch.allclose(
            result.ledger.by_kind()["input"], by_hand.sum(1), atol=1e-12
        )  # the model's own rows apart


def test_what_entries_share_is_said(parts: tuple[nn.Embedding, nn.Linear]) -> None:
    table, head = parts
    pairs = WAYS["pairs"][0]
    with pytest.warns(fxlrp.SharedRelevanceWarning, match="shared among them evenly"):
        fxlrp.convert(Calls(lambda x: head(table(pairs(x)).sum(1)), table, head)).attribute(IDS, target=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxlrp.SharedRelevanceWarning)
        fxlrp.convert(Calls(lambda x: head(table(x.flip(1)).sum(1)), table, head)).attribute(IDS, target=1)


def test_a_choice_between_entries_is_followed(parts: tuple[nn.Embedding, nn.Linear]) -> None:
    table, head = parts
    model = Calls(lambda x: head(table(rolled_where(x)).sum(1)), table, head)
    found = fxlrp.convert(model).attribute(IDS, target=1).relevance
    terms = (table(rolled_where(IDS)) @ head.weight[1]).detach()
    by_hand = torch.where(IDS > 4, terms, 0) + torch.where(IDS > 4, 0, terms).flip(1)
    assert torch.allclose(found, by_hand, atol=1e-12)


def test_what_cannot_be_told_is_refused(parts: tuple[nn.Embedding, nn.Linear]) -> None:
    table, head = parts
    model = Calls(lambda x: head(table(x.sort(1).values).sum(1)), table, head)
    with pytest.raises(fxlrp.InputError, match=r"cannot be followed back to single ids.*exclude="):
        fxlrp.convert(model).attribute(IDS, target=1)


@pytest.mark.parametrize("ruleset", RULESETS)
def test_each_column_has_the_relevance_of_its_own_table(ruleset: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second, head = nn.Embedding(4, 3), nn.Embedding(5, 2), nn.Linear(5, 2)
    columns = torch.tensor([[0, 4], [3, 1], [2, 2]])
    model = Calls(
        lambda c: head(torch.cat([first(c[:, 0]), second(c[:, 1])], -1)), first.double(), second.double(), head.double()
    )
    result = fxlrp.convert(model, ruleset).attribute(columns, target=1)
    w = head.weight[1]
    by_hand = torch.stack([first(columns[:, 0]) @ w[:3], second(columns[:, 1]) @ w[3:]], 1)
    assert torch.allclose(result.relevance, by_hand.detach(), atol=1e-12)
    assert result.features.shape == (3, 2, 5)  # of tables of other widths side by side


#: Other spellings of the sum of a table's rows, by the table's weight [10, 4].
SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bag": lambda w, x: F.embedding_bag(x, w, mode="sum"),
    "bag of means": lambda w, x: F.embedding_bag(x, w, mode="mean") * x.shape[1],
    "bag by offsets": lambda w, x: F.embedding_bag(x.flatten(), w, torch.tensor([0, 6]), mode="sum"),
    "bag with weights": lambda w, x: F.embedding_bag(x, w, mode="sum", per_sample_weights=torch.ones(x.shape).to(w)),
    "indexed": lambda w, x: w[x].sum(1),
    "selected": lambda w, x: w.index_select(0, x.flatten()).view(*x.shape, 4).sum(1),
    "table made of another": lambda w, x: F.embedding(x, (w * 2).T.T).sum(1) / 2,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_table_is_looked_up_however_it_is_spelled(spelling: str, parts: tuple[nn.Embedding, nn.Linear]) -> None:
    table, head = parts
    rows = SPELLINGS[spelling]
    result = fxlrp.convert(Calls(lambda x: head(rows(table.weight, x)), table, head)).attribute(
        IDS, target=1, ledger=True
    )
    assert torch.allclose(result.relevance, (table(IDS) @ head.weight[1]).detach(), atol=1e-12)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12


#: Sums of a table's rows [10, 4] by ids that are written out as rows of ones and zeros.
WRITTEN_OUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one-hot": lambda w, x: (F.one_hot(x, 10).to(w) @ w).sum(1),
    "linear": lambda w, x: F.linear(F.one_hot(x, 10).to(w), w.T).sum(1),
    "einsum": lambda w, x: torch.einsum("bnv,vd->bd", F.one_hot(x, 10).to(w), w),
    "identity": lambda w, x: (torch.eye(10).to(w)[x] @ w).sum(1),
    "scattered": lambda w, x: (torch.zeros(*x.shape, 10).to(w).scatter(2, x[..., None], 1.0) @ w).sum(1),
    "compared": lambda w, x: ((x[..., None] == torch.arange(10)).to(w) @ w).sum(1),
    "counted": lambda w, x: F.one_hot(x, 10).to(w).sum(1) @ w,
    "of rolled ids": lambda w, x: (F.one_hot(x.roll(2, 1).roll(-2, 1), 10).to(w) @ w).sum(1),
    "along the last axis": lambda w, x: w.T[:, x].sum(-1).T,
}


@pytest.mark.parametrize("spelling", WRITTEN_OUT)
def test_ids_written_out_are_looked_up(spelling: str, parts: tuple[nn.Embedding, nn.Linear]) -> None:
    """R_p = w e(ids_p). Of a product a row is looked up whole, so that rules of signs say nothing of the table."""
    table, head = parts
    rows = WRITTEN_OUT[spelling]
    model = Calls(lambda x: head(rows(table.weight, x)), table, head)
    signs = () if spelling in ("compared", "counted") else ("epsilon-plus",)
    for ruleset in (*RULESETS, *signs):
        found = fxlrp.convert(model, ruleset).attribute(IDS, target=1, ledger=True)
        looked_up = Calls(lambda x: head(table(x).sum(1)), table, head)
        expected = (table(IDS) @ head.weight[1]).detach()
        if ruleset in signs:
            expected = fxlrp.convert(looked_up, ruleset).attribute(IDS, target=1).relevance
        assert torch.allclose(found.relevance, expected, atol=1e-12)
        assert found.ledger is not None
        assert found.ledger.gap.abs().max() < 1e-12


def test_ids_that_choose_among_inputs_are_no_look_up() -> None:
    """One-hot rows that meet what is explained only choose: all relevance is that of the rows chosen."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2, bias=False)

        def forward(self, values: Tensor, places: Tensor) -> Tensor:
            """[batch, 2] of values [batch, 10, 4]."""
            out: Tensor = self.head((F.one_hot(places, 10).to(values) @ values).sum(1))
            return out

    model = Chosen().double().eval()
    values = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0)).double()
    found = fxlrp.convert(model).attribute({"values": values, "places": IDS}, target=1)
    assert set(found.inputs) == {"values"}
    counts = F.one_hot(IDS, 10).sum(1)
    expected = counts * (values @ model.head.weight[1]).detach()
    assert torch.allclose(found.inputs["values"].sum(-1), expected)


#: Numbers that are looked up in a table of one axis, [10], however that is spelled.
VECTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "indexed": lambda b, x: b[x],
    "taken": lambda b, x: b.take(x),
    "selected": lambda b, x: b.index_select(0, x.flatten()).view(x.shape),
    "column of a table": lambda b, x: torch.stack([b, b + 1], 1)[:, 0][x],
    "from the end": lambda b, x: b.roll(5)[x.where(x < 5, x - 10) - 5],
}


@pytest.mark.parametrize("spelling", VECTORS)
def test_a_table_of_one_axis(spelling: str) -> None:
    """y = w . b[ids], without a bias: R_p = w_p b[ids_p]."""
    rng = torch.Generator().manual_seed(0)
    head, b = nn.Linear(6, 2, bias=False).double(), nn.Embedding(10, 1).double()
    with torch.no_grad():
        b.weight.copy_(torch.randn(10, 1, generator=rng))
    model = Calls(lambda x: head(VECTORS[spelling](b.weight[:, 0], x)), head, b)
    for ruleset in RULESETS:
        found = fxlrp.convert(model, ruleset).attribute(IDS, target=1, ledger=True)
        assert torch.allclose(found.relevance, (head.weight[1] * b(IDS)[..., 0]).detach(), atol=1e-12)
        assert found.ledger is not None
        assert found.ledger.gap.abs().max() < 1e-12


def test_what_is_no_look_up_is_named_with_its_line() -> None:
    head, b = nn.Linear(6, 2).double(), nn.Embedding(10, 1).double()
    model = Calls(lambda x: head(b.weight.T.expand(len(x), -1).gather(1, x)), head, b)
    with pytest.raises(fxlrp.InputError, match=r"as indices, by 'gather' at .*calls\.py:\d+"):
        fxlrp.convert(model).attribute(IDS, target=1)


@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("ids", [IDS, torch.tensor([[5, 5, 5], [5, 2, 2]])])
def test_a_bag_and_its_padding(ids: Tensor, mode: str, padding: int | None) -> None:
    """R = w e for what a bag takes of each row, which torch's own derivative by copies of the rows tells."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bag, head = nn.EmbeddingBag(10, 4, mode=mode, padding_idx=padding).double(), nn.Linear(4, 2).double()
        with torch.no_grad():
            bag.weight.copy_(torch.randn(10, 4))  # the row of padding too
    model = nn.Sequential(bag, head).eval()
    found = fxlrp.convert(model, "gradient").attribute(ids, target=1, ledger=True)
    rows = bag.weight.detach()[ids].requires_grad_()
    numbers = torch.arange(ids.numel()).view(ids.shape)
    copies = rows.flatten(0, 1)
    if mode == "max":  # of equal rows each has an even share, where torch's bag gives it to the first
        kept = rows if padding is None else rows.masked_fill((ids == padding)[..., None], -torch.inf)
        bags = kept.amax(1).masked_fill(kept.amax(1).isinf(), 0)
    else:
        kept = torch.ones_like(ids) if padding is None else (ids != padding).long()
        divisor = kept.sum(1, keepdim=True).clamp(min=1) if mode == "mean" else torch.ones(len(ids), 1)
        bags = F.embedding_bag(numbers, copies, mode="sum", per_sample_weights=(kept / divisor).double())
    assert torch.allclose(head(bags), model(ids))
    (gradient,) = torch.autograd.grad(head(bags)[:, 1].sum(), rows)
    assert torch.allclose(found.relevance, (rows * gradient.nan_to_num()).sum(-1).detach(), atol=1e-12)
    assert found.ledger is not None
    assert found.ledger.gap.abs().max() < 1e-12


def test_an_id_of_two_inputs_is_shared_by_both(parts: tuple[nn.Embedding, nn.Linear]) -> None:
    table, head = parts

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = table, head

        def forward(self, prompt: Tensor, ids: Tensor) -> Tensor:
            """[batch, 2]."""
            return self.head(self.table(torch.cat([prompt, ids], 1)).sum(1))

    result = fxlrp.convert(Joined().eval()).attribute({"prompt": IDS[:, :2], "ids": IDS[:, 2:]}, target=1)
    terms = (table(IDS) @ head.weight[1]).detach()
    assert torch.allclose(result.inputs["prompt"], terms[:, :2], atol=1e-12)
    assert torch.allclose(result.inputs["ids"], terms[:, 2:], atol=1e-12)


class Adapted(nn.Module):
    """An embedding with a low-rank adapter beside it, as PEFT writes it: e(x) + B A[:, x] s."""

    def __init__(self, base: nn.Embedding, rank: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.num_embeddings, generator=rng).double())
        self.b = nn.Parameter(torch.randn(base.embedding_dim, rank, generator=rng).double())
        self.eval()

    @property
    def weight(self) -> Tensor:
        """What the model names its input embedding."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, tokens, hidden]."""
        return self.base(ids) + F.embedding(ids, self.a.T) @ self.b.T * 0.5

    def merged(self) -> nn.Embedding:
        """The same as one table."""
        return nn.Embedding.from_pretrained((self.base.weight + self.a.T @ self.b.T * 0.5).detach())


@pytest.mark.parametrize("ruleset", ["attnlrp", "conservative", "gradient", "cp-lrp"])
def test_an_adapter_on_the_embedding_is_explained_as_the_merged_table(ruleset: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **sizes))
    adapted = model.eval().double()
    merged = copy.deepcopy(adapted)
    adapter = Adapted(adapted.model.embed_tokens, 2)
    adapted.model.embed_tokens, merged.model.embed_tokens = adapter, adapter.merged().eval()
    found, expected = (
        fxlrp.convert(each, ruleset).attribute({"input_ids": IDS}, target=3).relevance for each in (adapted, merged)
    )
    assert (found - expected).abs().max() < 1e-7 * expected.abs().max()  # float32 inside the norms


@pytest.mark.parametrize("longest", [0.5, 2.0])
def test_rows_scaled_to_a_norm_are_explained_and_the_table_stays(longest: float) -> None:
    """torch scales rows longer than `max_norm` in place, without gradient: R = w e max_norm / |e|."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        table, head = nn.Embedding(10, 4, max_norm=longest).double(), nn.Linear(4, 2).double()
    before = table.weight.detach().clone()
    result = fxlrp.convert(Calls(lambda x: head(table(x).sum(1)), table, head)).attribute(IDS, target=1, ledger=True)
    assert torch.equal(table.weight, before)
    length = before.norm(dim=1, keepdim=True)
    scaled = before * torch.where(length > longest, longest / (length + 1e-7), 1.0)
    assert (length > longest).any()
    assert torch.allclose(result.relevance, (scaled[IDS] @ head.weight[1]).detach(), atol=1e-12)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12


class Trained(nn.Module):
    """A table some rows of which are others, as adapters of single tokens have it."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table, self.rows = table, nn.Parameter(torch.randn(2, table.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """[..., features]."""
        weight = self.table.weight.index_copy(0, torch.tensor([1, 2]), self.rows)
        return nn.functional.embedding(ids, weight)


def test_a_table_that_is_made_of_the_models_own() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = Trained(nn.Embedding(5, 4)), nn.Linear(4, 2, bias=False)

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.embed(ids).sum(1))
            return out

    model, ids = Model().eval(), torch.tensor([[1, 3, 2]])
    found = fxlrp.convert(model, "epsilon").attribute(ids, target=1)
    rows = torch.stack([model.embed.rows[0], model.embed.table.weight[3], model.embed.rows[1]])
    torch.testing.assert_close(found.relevance[0], (rows @ model.head.weight[1]).detach())
