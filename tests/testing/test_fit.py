"""Whether a ruleset fits a model is answered with a sentence, and a check that does not apply refuses with the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.errors import InputError
from fxlrp.rules import RULES, Cite, Conserves, Operation, rule
from fxlrp.testing import at_inputs, check_conservation, fits, largest_difference, propagate, realistic


class Residual(nn.Module):
    """x + f(x) of [batch, tokens, features], read at all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second, self.head = (
            nn.LayerNorm(6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.second(torch.tanh(self.first(self.norm(x))))).mean(1))


MLP = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
X = torch.linspace(-2, 2, 2 * 4 * 6, dtype=torch.float64).sin().reshape(2, 4, 6)


@pytest.fixture(scope="module")
def mlp() -> fxlrp.ConvertedModel:
    return fxlrp.convert(realistic(MLP.double().eval()), example_inputs=X[:, 0])


def test_what_fits_is_true_and_without_a_reason(mlp: fxlrp.ConvertedModel) -> None:
    fit = fits(mlp, "attnlrp", X[:, 0], propagate)
    assert fit
    assert fit.reason == ""
    assert str(fit) == "'attnlrp' fits."


def test_a_plain_module_is_taken_too() -> None:
    assert fits(realistic(MLP.double().eval()), "conservative", X[:, 0], check_conservation)


@pytest.mark.parametrize(
    ("ruleset", "reason"),
    [
        ("rollout", "'rollout' reads attention maps, and the model has no attention that fxlrp recognises"),
        ("chefer2021-generic", "'chefer2021-generic' reads attention maps"),
        ("pa-lrp", "'pa-lrp' scores tokens, and the model's inputs are no token ids"),
    ],
)
def test_a_ruleset_that_needs_what_the_model_lacks(mlp: fxlrp.ConvertedModel, ruleset: str, reason: str) -> None:
    fit = fits(mlp, ruleset, X[:, 0])
    assert not fit
    assert fit.reason.startswith(reason)


def test_a_promise_that_a_ruleset_does_not_make(mlp: fxlrp.ConvertedModel) -> None:
    assert fits(mlp, "deeplift-rescale", X[:, 0])
    fit = fits(mlp, "deeplift-rescale", X[:, 0], check_conservation)
    assert "conserves differences, not values: its rule 'rescale'" in fit.reason
    with pytest.raises(InputError) as refused:
        check_conservation(mlp, "deeplift-rescale", X[:, 0])
    assert str(refused.value) == fit.reason


@pytest.mark.parametrize(
    ("ruleset", "reads"),
    [
        ("smoothgrad", "an average over noisy inputs"),
        ("integrated-gradients", "an average over the path from a reference"),
        ("relp", "the effect of a difference from a reference"),
        ("gradient-sensitivity", "a score of the inputs"),
        ("rollout", "attention maps"),
    ],
)
def test_the_second_opinion_names_what_it_does_not_read(mlp: fxlrp.ConvertedModel, ruleset: str, reads: str) -> None:
    with pytest.raises(InputError, match=rf"'{ruleset}' reads out {reads}.*at_inputs\('{ruleset}'\)"):
        propagate(mlp.with_ruleset(ruleset), X[:, 0], 1)


def test_the_second_opinion_compares_with_nothing(mlp: fxlrp.ConvertedModel) -> None:
    with pytest.raises(InputError, match="'deeplift-rescale' compares with a reference"):
        propagate(mlp.with_ruleset(at_inputs("deeplift-rescale")), X[:, 0], 1)


def test_the_second_opinion_takes_one_operation_at_a_time() -> None:
    model = realistic(Residual().double().eval())
    fit = fits(model, "wu-ong2020", X, propagate)
    assert "'wu-ong2020' takes a whole sublayer for one operation ('vjp' at 'residual')" in fit.reason
    assert fits(model, "wu-ong2020", X, check_conservation)


def test_a_rule_without_a_reference_is_named(mlp: fxlrp.ConvertedModel) -> None:
    @rule("linear", conserves=Conserves.EXACTLY, source=Cite("none"))
    def unreferenced(op: Operation, *operands: Tensor) -> Tensor:
        """R_x = x g_x.  x: any shape."""
        result: Tensor = op(*operands)
        return result

    try:
        rules = fxlrp.ruleset("conservative").override(linear="unreferenced")
        assert "'unreferenced' of 'conservative' has no slow reference" in fits(mlp, rules, X[:, 0], propagate).reason
    finally:
        del RULES["unreferenced"]


@pytest.mark.parametrize("over", ["features", "matrix", "sample"])
@pytest.mark.parametrize(
    "posts",
    [
        [{"kind": "abs"}],
        [{"kind": "clamp"}],
        [{"kind": "match_sum", "epsilon": 1e-3}],
        [{"kind": "abs"}, {"kind": "match_abs_sum", "epsilon": 1e-3}],
    ],
    ids=lambda posts: "+".join(post["kind"] for post in posts),
)
def test_the_second_opinion_follows_post_operations(posts: list[dict[str, object]], over: str) -> None:
    model = realistic(Residual().double().eval())
    for post in posts:
        if "match" in str(post["kind"]):
            post["over"] = over
    rules = fxlrp.ruleset("conservative").override(linear={"rule": "epsilon", "post": posts})
    lrp = fxlrp.convert(model, rules)
    found = lrp.attribute(X, target=1).inputs
    assert largest_difference(found, propagate(lrp, X, 1)) < 1e-8
    plain = fxlrp.convert(model, fxlrp.ruleset("conservative").override(linear="epsilon"))
    assert largest_difference(found, propagate(plain, X, 1)) > 1e-3


@pytest.mark.parametrize("seed", ["logit", "one", "probability", "contrastive"])
@pytest.mark.parametrize("message", ["gradient", "relevance"])
def test_the_second_opinion_begins_as_every_seed_does(mlp: fxlrp.ConvertedModel, seed: str, message: str) -> None:
    lrp = mlp.with_ruleset(fxlrp.ruleset("conservative").override(seed=seed, message=message))
    found = lrp.attribute(X[:, 0], target=1).inputs
    assert largest_difference(found, propagate(lrp, X[:, 0], 1)) < 1e-8


def test_gamma_at_an_input_of_zero_has_a_finite_reference() -> None:
    model = realistic(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval())
    rules = fxlrp.ruleset("conservative").override(linear={"rule": "gamma", "bridge": 0.0})
    lrp = fxlrp.convert(model, rules)
    assert largest_difference(lrp.attribute(X[:, 0], target=1).inputs, propagate(lrp, X[:, 0], 1)) < 1e-8
