"""Ids that come as floats, beside numbers or alone: what is cut to integers and looked up belongs to its entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from tests.capture.test_lookups import IDS, WAYS
from tests.support.calls import Calls

Parts = tuple[nn.Embedding, nn.Linear]
#: A column of ids, and three of numbers.
TABULAR = torch.tensor([[3.0, 0.5, -1.0, 2.0], [7.0, -0.25, 4.0, 1.5]], dtype=torch.float64)


@pytest.fixture(scope="module")
def parts() -> Parts:
    """A table of ten rows and a head of seven features, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Embedding(10, 4).double(), nn.Linear(7, 2).double()


@pytest.mark.parametrize("cut", [lambda ids: ids.long(), lambda ids: (ids + 0.4).round().int()])
@pytest.mark.parametrize("ruleset", ["epsilon", "gradient", "attnlrp", "attnlrp-relevance"])
def test_a_column_of_ids_is_explained_by_its_row(ruleset: str, cut: Callable[[Tensor], Tensor], parts: Parts) -> None:
    """y = w (e(x_0), x_1, x_2, x_3) + b: x_0 has the share of e(x_0), each other column that of itself."""
    table, head = parts
    model = Calls(lambda x: head(torch.cat([table(cut(x[:, 0])), x[:, 1:]], 1)), table, head)
    found = fxlrp.convert(model, ruleset).attribute(TABULAR, target=1, ledger=True)
    weight = head.weight[1].detach()
    looked_up = table.weight.detach()[TABULAR[:, 0].long()] @ weight[:4]
    by_hand = torch.cat([looked_up[:, None], TABULAR[:, 1:] * weight[4:]], 1)
    torch.testing.assert_close(found.relevance, by_hand, atol=1e-7, rtol=1e-7)  # stabilisers of 1e-9
    assert found.ledger is not None
    assert float(found.ledger.gap.abs().max()) < 1e-12


def test_an_entry_that_is_looked_up_and_computed_with_has_both(parts: Parts) -> None:
    table, _ = parts
    head = nn.Linear(4, 2, bias=False).double()
    model = Calls(lambda x: head(table(x.long()).mean(1) + x), table, head)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    found = fxlrp.convert(model, "gradient").attribute(x, target=1).relevance
    weight = head.weight[1].detach()
    torch.testing.assert_close(found, x * weight + (table.weight.detach()[x.long()] @ weight) / 4)


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("pairs", "hash of windows")])
def test_ids_alone_are_explained_as_integers_are(way: str, parts: Parts) -> None:
    move, (table, head) = WAYS[way][0], parts
    model = Calls(lambda x: F.linear(table(move(x.long())).mean(1), head.weight[:, :4]), table, head)
    lrp = fxlrp.convert(model, "epsilon")
    found: Tensor = lrp.attribute(IDS.double(), target=1).relevance
    torch.testing.assert_close(found, lrp.attribute(IDS, target=1).relevance)
    assert bool(found.any())
