"""Models that torch.export refuses because they decide by values: recorded on each input, right on each, said once."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.capture.program import Program
from fxlrp.engine.graphs import Captured
from fxlrp.testing import KINDS, RandomGraph, check_conservation
from fxlrp.testing.graphs import Step

RULESETS = ("conservative", "attnlrp", "ali2022")


class Branch(nn.Module):
    """One of two layers, by the sign of the input's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).relu() if x.sum() > 0 else self.down(x).tanh()
        return self.head(hidden)


class Loop(nn.Module):
    """A mixture of experts as a loop over those that some token chose, with in-place sums."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6)) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        mixed = torch.zeros_like(flat)
        for expert in chosen.unique():
            rows, place = torch.where(chosen == expert)
            mixed.index_add_(0, rows, self.experts[int(expert)](flat[rows]) * weights[rows, place, None])
        return self.head(mixed.view_as(x).mean(1))


class Kept(nn.Module):
    """Only the positive entries are summed: how many there are depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.head(row[row[:, 0] > 0]).sum(0) for row in x]
        return torch.stack(rows)


class Padded(nn.Module):
    """Rows of lengths that the data decides, padded by an operator that writes to a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        rows = [row[: 2 + int(given[0, 0] > 0)] for row, given in zip(hidden, x, strict=True)]
        return self.head(nn.utils.rnn.pad_sequence(rows, batch_first=True).sum(1))


class Indexed(nn.Module):
    """Entries at places that are listed as tensors of one number each, found in the data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = zip(*(x[0] > 0.5).nonzero(), strict=True)
        kept = torch.ones_like(x[0])
        kept[rows, columns] = 0.0
        return self.head((x * kept).sum(1) + x[:, list(rows)].sum(1) + x[:, rows[0], columns[0]][:, None])


class Mapped(nn.Module):
    """A mask by a function of one place, mapped over all places: torch.export keeps the steps of the mapping."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        limits = (x[:, :, 0] > 0).sum(1)
        keep = torch.vmap(torch.vmap(lambda limit, place: place <= limit, (None, 0)), (0, None))(limits, places)
        return (x * keep[..., None]).sum(1)


class Counting(nn.Module):
    """Adds how often it was called, of which a graph knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.head = itertools.count(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + 10.0 ** next(self.calls)


MODELS = {
    "branch": (Branch, (2, 3)),
    "loop": (Loop, (2, 5, 6)),
    "kept": (Kept, (2, 7, 5)),
    "padded": (Padded, (2, 5, 4)),
    "indexed": (Indexed, (2, 5, 4)),
    "mapped": (Mapped, (2, 5, 4)),
}


def build(name: str) -> tuple[nn.Module, list[Tensor]]:
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    model = kind().double().eval()
    draws = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    # The second input takes other ways than the first: the opposite branch, other experts, other entries.
    return model, [draws[0], -draws[0], draws[1]]


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("name", MODELS)
def test_each_input_is_explained_by_what_the_model_does_with_it(name: str) -> None:
    model, inputs = build(name)
    lrp = fxlrp.convert(model, "gradient")
    for x in [*inputs, inputs[0]]:
        leaf = x.clone().requires_grad_()
        expected = model(leaf)
        explained = expected.max(-1).values
        (gradient,) = torch.autograd.grad(explained.sum(), leaf)
        found = lrp.attribute(x)
        torch.testing.assert_close(found.outputs, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.relevance, x * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("name", MODELS)
def test_ledger_closes(name: str) -> None:
    model, inputs = build(name)
    first = fxlrp.convert(model)
    for x in inputs:
        for rules in RULESETS:
            ledger = first.with_ruleset(rules).attribute(x, ledger=True).ledger
            assert ledger is not None
            assert float((ledger.gap / ledger.explained).abs().max()) < 1e-12, rules


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_a_recording_that_took_any_input_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (first, second, _) = build("branch")
    monkeypatch.setattr(Program, "accepts", lambda self, model, inputs: True)
    monkeypatch.setattr(Captured, "is_checked", lambda self, sizes: True)
    lrp = fxlrp.convert(model, "gradient")
    lrp(first)
    assert not torch.allclose(lrp(second), model(second))


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_equal_inputs_share_a_recording_and_others_have_their_own() -> None:
    model, (first, second, _) = build("loop")
    lrp = fxlrp.convert(model, "attnlrp")
    for x in (first, first.clone(), second, second):
        lrp(x)
    assert lrp.captures == 2
    assert sum(map(len, lrp.conversion.graphs.programs.values())) == 2
    assert len(lrp.conversion._made.rewrites) == 2


def test_the_reason_is_told_once_with_the_line_of_the_model() -> None:
    model, inputs = build("branch")
    lrp = fxlrp.convert(model, "attnlrp")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for x in inputs:
            lrp(x)
    said = [str(w.message) for w in seen if issubclass(w.category, fxlrp.RetraceWarning)]
    assert len(said) == 1
    assert "test_record.py" in said[0]
    assert "torch.where" in said[0]


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_modules_of_a_recording_have_their_names() -> None:
    model, (x, *_) = build("branch")
    side = "up" if x.sum() > 0 else "down"
    result = fxlrp.convert(model, "conservative").attribute(x, at=["up", "down"][side == "down" : 1 + (side == "down")])
    assert list(result.at) == [side]
    assert result.at[side].shape == (2, 4)


def test_a_padded_recording_has_the_lines_and_modules_of_the_model() -> None:
    model, (x, *_) = build("padded")
    with pytest.warns(fxlrp.RetraceWarning):
        program = fxlrp.convert(model, "conservative").conversion.captured({"x": x}).program
    writes = [node for node in program.graph.nodes if "scatter" in str(node.target)]
    assert writes
    assert all("pad_sequence" in node.meta["stack_trace"] for node in writes)
    layers = [node for node in program.graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert {list(node.meta["nn_module_stack"].values())[-1][0] for node in layers} == {"inner", "head"}


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_a_model_that_no_graph_follows_is_refused() -> None:
    with pytest.raises(fxlrp.CaptureError, match="keep state from one call to the next"):
        fxlrp.attribute(Counting().double().eval(), torch.randn(2, 4, dtype=torch.float64), ruleset="conservative")


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("start", range(0, len(KINDS), 24))
def test_every_kind_can_be_recorded(start: int) -> None:
    """A recording spells operators otherwise than an export: 24 kinds at a time beside one that cannot be exported."""
    beside = [Step(kind, ("x", "x")[: KINDS[kind].arity]) for kind in list(KINDS)[start : start + 24]]
    graph = RandomGraph((Step("checked", ("x",)), *beside))
    check_conservation(graph.module(), "conservative", graph.inputs(), target=1).raise_if_failed()
