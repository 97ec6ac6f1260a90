"""Agreement of explanations, randomised parameters and conservation: against scipy and numpy, on known relevance."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.evaluate import Batch, Conservation, ParameterRandomisation, RankCorrelation, Robustness, sanity
from fxlrp.evaluate.concordance import rank_agreement
from fxlrp.evaluate.memory import drawing
from fxlrp.evaluate.sanity import by_stage, stages
from fxlrp.evaluate.units import units_of
from tests.evaluate.test_perturbation import IDS, UNK, Votes

spearmanr = pytest.importorskip("scipy.stats", reason="the reference: pip install 'fxlrp[evaluate]'").spearmanr


class Net(nn.Module):
    """Two layers with biases, and a head, on float inputs x [batch, 6]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.head = (nn.Linear(*sizes).double() for sizes in ((6, 12), (12, 12), (12, 3)))
        self.head.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Blocks(nn.Module):
    """A parameter of the model's own, an embedding, a list of blocks within a module, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))
        self.enter = nn.Linear(2, 2)
        self.body = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(11))})
        self.body.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)


X = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()


def relevance(model: nn.Module, target: Tensor, x: Tensor = X) -> np.ndarray:
    """Gradient times input, by autograd."""
    x = x.clone().requires_grad_()
    model(x)[range(len(x)), target].sum().backward()
    return (x * x.grad).detach().numpy()


def rhos(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]


@pytest.fixture(scope="module")
def net() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Net(0).eval(), "gradient")


@pytest.fixture(scope="module")
def votes() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Votes().eval(), "gradient")


def test_rank_correlation_across_seeds_is_what_scipy_computes(net: fxlrp.ConvertedModel, tmp_path: Path) -> None:
    other = Net(1).eval()
    protocol = RankCorrelation({"seed 1": fxlrp.convert(other, "gradient"), "itself": net})
    found = protocol.run(net, [{"x": X[:4]}, {"x": X[4:]}])
    target = net.model(X).argmax(1)
    expected = rhos(relevance(net.model, target), relevance(other, target))
    assert found.measured["seed 1"].tolist() == pytest.approx(expected)
    assert found.statistics == pytest.approx({"seed 1": sum(expected) / 6, "itself": 1.0})


def test_another_class_for_the_other_is_noticed(net: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    explain = fxlrp.evaluate.agreement.explain
    monkeypatch.setattr(fxlrp.evaluate.agreement, "explain", lambda lrp, batch, target: explain(lrp, batch, 2))
    with pytest.raises(AssertionError):
        test_rank_correlation_across_seeds_is_what_scipy_computes(net, Path())


def test_others_are_told_apart_by_what_is_remembered(net: fxlrp.ConvertedModel, tmp_path: Path) -> None:
    for seed in (1, 2):
        protocol = RankCorrelation({"other": fxlrp.convert(Net(seed).eval(), "gradient")})
        expected = protocol.run(net, X)["other"]
        assert protocol.run(net, X, resume=tmp_path)["other"] == expected
        assert protocol.run(net, X, resume=tmp_path)["other"] == expected
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_robustness_of_tokens_leaves_their_place_out(votes: fxlrp.ConvertedModel) -> None:
    """The votes of other tokens stay, so that rho is 1, whichever token went; a tie of all others has none."""
    found = Robustness(UNK, draws=4, of="label").run(votes, [(IDS, [1, 1])])
    assert found["spearman"] == pytest.approx(1)
    assert 0 < found["kept"] <= 1


def test_a_place_left_in_is_noticed(votes: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rho = fxlrp.evaluate.agreement.rank_correlation
    monkeypatch.setattr(fxlrp.evaluate.agreement, "rank_correlation", lambda ours, theirs, present: rho(ours, theirs))
    with pytest.raises(AssertionError):
        test_robustness_of_tokens_leaves_their_place_out(votes)


def test_robustness_to_noise_is_what_scipy_computes(net: fxlrp.ConvertedModel) -> None:
    found = Robustness(noise=2.0, draws=3).run(net, X)
    generator = drawing(Batch(X), 0)
    target = net.model(X).argmax(1)
    rows, kept = [], []
    for _ in range(3):
        near = X + 2 * X.std(1, keepdim=True) * torch.randn(X.shape, generator=generator, dtype=torch.float64)
        rows.append(rhos(relevance(net.model, target), relevance(net.model, target, near)))
        kept.append((net.model(near).argmax(1) == target).tolist())
    expected = np.nanmean(np.where(kept, rows, np.nan), 0)
    assert found.measured["spearman"].numpy() == pytest.approx(expected, nan_ok=True)
    assert found.measured["kept"].numpy() == pytest.approx(np.mean(kept, 0))
    assert 0 < found["kept"] < 1
    assert Robustness(noise=1e-9).run(net, X).statistics == pytest.approx({"spearman": 1, "kept": 1})


@pytest.mark.parametrize("cascade", [True, False])
def test_randomised_parameters_are_what_autograd_sees(net: fxlrp.ConvertedModel, cascade: bool) -> None:
    found = ParameterRandomisation(cascade, seed=3).run(net, [X])
    assert sorted(found.measured) == ["00 head", "01 second", "02 first"]
    drawn = sanity._Randomised(net, cascade, 3).drawn
    target = net.model(X).argmax(1)
    original = relevance(net.model, target)
    model = Net(0).eval()
    for column, module in enumerate(("head", "second", "first")):
        if not cascade:
            model = Net(0).eval()
        model.load_state_dict({k: drawn[k] if k.startswith(module) else v for k, v in model.state_dict().items()})
        other = relevance(model, target)
        rows = by_stage(found.measured)[:, column]
        assert rows[:, 0].tolist() == pytest.approx(rhos(original, other))
        assert rows[:, 1].tolist() == pytest.approx(rhos(abs(original), abs(other)))
    assert abs(found["last"]) < 0.6
    assert torch.equal(net.model.first.weight, Net(0).first.weight)


def test_one_conversion_follows_weights_that_change() -> None:
    """Also where a ruleset folds batch norm into weights: what is kept must be the graph, not its values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    model[1].running_mean.normal_()
    model[1].weight.data.normal_()
    model.eval()
    x = torch.randn(2, 2, 6, 6).double()
    for name in ("epsilon-plus", "epsilon-gamma-box"):
        lrp = fxlrp.convert(model, name)
        randomised = sanity._Randomised(lrp, True, 0)
        for _, conversion in randomised.stages():
            fresh = fxlrp.convert(copy.deepcopy(conversion.model), name)
            assert torch.allclose(conversion.attribute(x, target=1).relevance, fresh.attribute(x, target=1).relevance)


def test_drawn_parameters_have_the_moments_of_the_original(net: fxlrp.ConvertedModel) -> None:
    torch.manual_seed(0)
    wide = torch.randn(200, 200).double() * 3 + 2
    drawn = sanity.redrawn(wide, torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(2, abs=0.05)
    assert float(drawn.std()) == pytest.approx(3, abs=0.05)
    assert abs(float(torch.corrcoef(torch.stack([wide.flatten(), drawn.flatten()]))[0, 1])) < 0.02
    assert torch.equal(sanity.redrawn(torch.ones(5), torch.Generator()), torch.ones(5))


def test_parameters_that_stay_are_noticed(net: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanity, "redrawn", lambda value, generator: value)
    with pytest.raises(AssertionError):
        test_randomised_parameters_are_what_autograd_sees(net, True)


def test_stages_from_the_output_down() -> None:
    found = stages(Blocks())
    layers = [f"body.layers.{i}" for i in range(10, -1, -1)]
    assert list(found) == ["head", "body.norm", *layers, "enter", "(model)"]
    assert found["body.layers.1"] == ["body.layers.1.weight", "body.layers.1.bias"]
    assert found["(model)"] == ["shift"]
    with pytest.raises(fxlrp.InputError, match="no parameters"):
        stages(nn.ReLU())


def test_conservation_is_what_numpy_computes(net: fxlrp.ConvertedModel) -> None:
    """The gap of gradient times input is what the biases keep."""
    found = Conservation(of="label", ledger=True).run(net, [(X[:3], [0, 1, 2]), (X[3:], [0, 1, 2])])
    target = torch.tensor([0, 1, 2] * 2)
    total, logit = relevance(net.model, target).sum(1), net.model(X)[range(6), target].detach().numpy()
    gap = abs(logit - total) / abs(logit)
    assert found["correlation"] == pytest.approx(np.corrcoef(total, logit)[0, 1])
    assert found["|gap| median"] == pytest.approx(np.median(gap))
    assert found["|gap| 95 %"] == pytest.approx(np.percentile(gap, 95))
    assert gap.max() > 0.01
    assert found["|ledger gap| 95 %"] < 1e-9
    assert "|ledger gap| median" not in Conservation().run(net, X).statistics


@pytest.mark.parametrize("seed", ["one", "probability"])
def test_the_gap_is_that_of_what_relevance_begins_with(net: fxlrp.ConvertedModel, seed: str) -> None:
    """Relevance is linear in what it begins with, and so the relative gap is that of the logit."""
    lrp = net.with_ruleset(fxlrp.ruleset("epsilon-plus").override(seed="logit"))
    logit = Conservation().run(lrp, X).measured
    seeded = Conservation().run(lrp.with_ruleset(lrp.ruleset.override(seed=seed)), X).measured
    assert not torch.allclose(seeded["total"], logit["total"])
    assert seeded["gap"].abs().tolist() == pytest.approx(logit["gap"].abs().tolist())


def test_a_sum_that_loses_an_input_is_noticed(net: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute = fxlrp.ConvertedModel.attribute

    def lossy(self: fxlrp.ConvertedModel, *args: object, **options: object) -> fxlrp.Attribution:
        result = attribute(self, *args, **options)
        result.inputs["x"][:, 0] = 0
        return result

    monkeypatch.setattr(fxlrp.ConvertedModel, "attribute", lossy)
    with pytest.raises(AssertionError):
        test_conservation_is_what_numpy_computes(net)


def test_errors(net: fxlrp.ConvertedModel, votes: fxlrp.ConvertedModel) -> None:
    with pytest.raises(fxlrp.InputError, match="needs others"):
        RankCorrelation({})
    with pytest.raises(fxlrp.InputError, match="draws must be at least 1, not 0"):
        Robustness(draws=0)
    with pytest.raises(fxlrp.InputError, match="Did you mean 'predicted'"):
        Conservation(of="predict")  # type: ignore[arg-type]
    with pytest.raises(fxlrp.InputError, match="Tokens need a token to be replaced with"):
        Robustness().run(votes, IDS)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_relevance_that_is_no_number_is_refused(number: float) -> None:
    """As a file may hold it, or a result made by hand: no order is made of it, and so no figure."""
    model = nn.Linear(3, 2).eval()
    result = fxlrp.convert(model, "epsilon").attribute(torch.ones(2, 3), target=1)
    spoilt = torch.full_like(result.relevance, number)
    broken = dataclasses.replace(result, relevance=spoilt, inputs={"input": spoilt})
    with pytest.raises(fxlrp.FxlrpError, match="'epsilon' gave holds NaN or infinity"):
        rank_agreement([result, broken])
    with pytest.raises(fxlrp.FxlrpError, match="'epsilon' gave holds NaN or infinity"):
        units_of({"input": torch.ones(2, 3)}, broken)
