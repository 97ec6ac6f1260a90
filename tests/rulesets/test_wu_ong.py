"""What Wu and Ong's methods promise of any classifier: sums by token, heads that trace all they get, samples apart.

And their parts, each against a hand-written form: post-operations, a whole sub-layer, a whole pattern, the reading at
the module that embeds. Every law has a mutant here that it catches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.readout import inputs, rollout
from fxlrp.rewrite import composite
from fxlrp.rules import Post
from fxlrp.rules import post as posts
from fxlrp.rules.post import posted
from tests.mutants.mutant import Mutant, Patch, attribute, entry

SMALL = {"vocab_size": 31, "max_position_embeddings": 16, "pad_token_id": 0}
BLOCKS = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 16}
MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("Bert", BLOCKS, "bert.embeddings", "bert.encoder.layer.1"),
    "roberta": ("Roberta", BLOCKS, "roberta.embeddings", "roberta.encoder.layer.1"),
    "electra": ("Electra", {**BLOCKS, "embedding_size": 8}, "electra.embeddings", "electra.encoder.layer.1"),
    "distilbert": (
        "DistilBert",
        {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 16},
        "distilbert.embeddings",
        "distilbert.transformer.layer.1",
    ),
}
RULES = ["wu-ong2020", "wu-ong2020-alphabeta", "gradient-sensitivity", "gradient-x-input", "lat"]


@cache
def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, options, _, _ = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**SMALL, **options, num_labels=3)
    made: nn.Module = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


@cache
def captured(name: str) -> fxlrp.ConvertedModel:
    return fxlrp.convert(model(name), "gradient", example_inputs=batch())


def converted(name: str, rules: Any) -> fxlrp.ConvertedModel:
    """A fresh conversion of one capture."""
    return captured(name).with_ruleset(rules)


def batch() -> dict[str, Tensor]:
    """Two sentences, the second of five tokens and two of padding."""
    ids = torch.tensor([[3, 7, 9, 4, 11, 5, 8], [3, 8, 6, 12, 5, 0, 0]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}


def samples_are_apart(name: str, rules: str) -> None:
    lrp = converted(name, rules)
    together = lrp.attribute(batch(), target=[0, 2])
    for sample, (target, length) in enumerate(((0, 7), (2, 5))):
        alone = {key: value[sample : sample + 1, :length] for key, value in batch().items()}
        expected = lrp.attribute(alone, target=target)
        assert torch.allclose(together.features[sample, :length], expected.features[0], rtol=1e-6, atol=1e-12)
        assert torch.allclose(together.relevance[sample, :length], expected.relevance[0], rtol=1e-6, atol=1e-12)
        assert not together.features[sample, length:].abs().gt(1e-12).any()
        assert together.relevance[sample, :length].abs().sum() > 1e-6


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_samples_are_apart_and_padding_counts_for_nothing(name: str, rules: str) -> None:
    samples_are_apart(name, rules)


def linear_layers_keep_each_tokens_sum(rules: str) -> None:
    pairs = [("bert.pooler", "classifier"), ("bert.encoder", "bert.pooler.dense")]
    for place in ("bert.encoder.layer.0", "bert.encoder.layer.1"):
        pairs += [
            (f"{place}.intermediate", f"{place}.output.dense"),
            (f"{place}.attention.self", f"{place}.attention.output.dense"),
        ]
    names = [name for pair in pairs for name in pair]
    at = converted("bert", rules).attribute(batch(), target=1, at=names).at
    for place, (operand, value) in enumerate(pairs):
        handed_on, arrived = at[operand], at[value].sum(-1)
        handed_on = handed_on[:, 0] if value == "bert.pooler.dense" else handed_on
        sums = handed_on.sum(-1, keepdim=True)
        assert torch.allclose(sums[..., 0], arrived, rtol=1e-6, atol=2e-7)
        assert (handed_on * sums >= 0).all()
        # Behind a norm the sum is zero, whatever arrives there: norms do not see a shift of all features.
        assert (arrived.abs() > 1e-3).all() if place < 2 else (arrived.abs() < 1e-12).all()


@pytest.mark.parametrize("rules", ["wu-ong2020", "wu-ong2020-alphabeta"])
def test_t09_linear_layers_keep_each_tokens_sum_with_one_sign(rules: str) -> None:
    linear_layers_keep_each_tokens_sum(rules)


@pytest.mark.slow
def test_under_compile() -> None:
    lrp = converted("bert", "wu-ong2020")
    embedding = model("bert").get_input_embeddings()(batch()["input_ids"]).detach()  # type: ignore[operator]
    found = []
    for run in (lrp, torch.compile(lrp, backend="aot_eager")):
        given = embedding.clone().requires_grad_()
        logits = run(inputs_embeds=given, attention_mask=batch()["attention_mask"]).logits
        found.append(torch.autograd.grad(logits[:, 1].sum(), given)[0])
    assert torch.allclose(*found, rtol=1e-9, atol=1e-14)
    assert found[0].abs().max() > 1e-4


def test_the_split_of_the_original_rule_is_another() -> None:
    first, second = (converted("bert", name).attribute(batch(), target=1).relevance for name in RULES[:2])
    assert not torch.allclose(first, second, rtol=0.01)


def traces_all_heads(name: str) -> None:
    traced = converted(name, "lat").attribute(batch(), target=0).relevance
    assert torch.allclose(traced.sum(-1), torch.full((2,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_t16_tracing_keeps_what_begins_at_every_head(name: str) -> None:
    traces_all_heads(name)


def reads_where_the_embedding_ends(name: str, rules: str = "wu-ong2020") -> None:
    place = MODELS[name][2]
    result = converted(name, rules).attribute(batch(), target=0, at=[place])
    assert torch.equal(result.features, result.at[place])


@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_read_where_the_embedding_ends(name: str) -> None:
    reads_where_the_embedding_ends(name)


def test_without_blocks_ids_are_explained_at_their_look_up() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(31, 6), nn.Linear(6, 3)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.embedding(input_ids).mean(1))  # type: ignore[no-any-return]

    ids = batch()["input_ids"]
    result = fxlrp.convert(Bag().double().eval(), "wu-ong2020").attribute(ids, target=0)
    assert result.features.shape == (*ids.shape, 6)


# --- the parts, by hand -------------------------------------------------------------------------------------


class Block(nn.Module):
    """y = x + V gelu(W x), read at a head."""

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.w, self.v, self.head = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.swapped = swapped

    def branch(self, x: Tensor) -> Tensor:
        return self.v(F.gelu(self.w(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return self.head(branch + x if self.swapped else x + branch)  # type: ignore[no-any-return]


def sublayer_is_one_operation(swapped: bool = False) -> None:
    block, x = Block(swapped).double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    rules = {
        "name": "total",
        "message": "relevance",
        "rules": [{"match": "residual", "rule": "vjp", "scope": "sublayer"}, {"match": "any", "rule": "vjp"}],
    }
    result = fxlrp.convert(block, rules).attribute(x, target=(1, 2), ledger=True)
    logits = block(x)
    seed = torch.zeros_like(logits)
    seed[:, 1, 2] = logits[:, 1, 2]
    arrived = seed @ block.head.weight
    leaf = x.clone().requires_grad_()
    (by_branch,) = torch.autograd.grad(block.branch(leaf), leaf, arrived)
    assert torch.allclose(result.relevance, arrived + 2 * by_branch)
    assert result.ledger is not None
    assert torch.allclose(result.ledger.gap, torch.zeros(2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sublayer_is_one_operation_of_its_input_beside_its_branch(swapped: bool) -> None:
    sublayer_is_one_operation(swapped)


def test_a_mask_that_every_layer_adds_is_no_skip_connection() -> None:
    assert len(captured("bert").plan.structure.skips) == 4


def post_operations_do_what_they_say() -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    arrived = torch.randn(2, 3, 5, dtype=torch.float64)

    def received(*chain: Post) -> Tensor:
        leaf = x.clone().requires_grad_()
        y = posted(chain, (True, False), lambda a, w: a @ w.mT, (leaf, weight))
        return torch.autograd.grad(y, leaf, arrived)[0]

    plain = arrived @ weight
    assert torch.equal(received(Post(kind="abs")), plain.abs())
    assert torch.equal(received(Post(kind="clamp")), plain.clamp(min=0))
    for over, axes in (("features", (-1,)), ("sample", (1, 2))):
        total = arrived.sum(axes, keepdim=True)
        matched = received(Post(kind="abs"), Post(kind="match_sum", over=over))
        assert torch.allclose(matched.sum(axes, keepdim=True), total)
        assert torch.allclose(matched, plain.abs() * total / plain.abs().sum(axes, keepdim=True))
        sized = received(Post(kind="match_abs_sum", over=over))
        assert torch.allclose(sized.abs().sum(axes), arrived.abs().sum(axes))
        assert torch.equal(sized.sign(), plain.sign())
    with_epsilon = received(Post(kind="match_sum", epsilon=0.5))
    sums = arrived.sum(-1, keepdim=True), plain.sum(-1, keepdim=True)
    assert torch.allclose(with_epsilon, plain * (sums[0] + 0.5) / (sums[1] + 0.5))


def test_post_operations_do_what_they_say() -> None:
    post_operations_do_what_they_say()


def test_several_operands_are_matched_together() -> None:
    a, b = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    arrived = torch.randn(2, 3, dtype=torch.float64)
    y = posted((Post(kind="match_sum"),), (True, True), lambda p, q: 2 * p + 3 * q, (a, b))
    first, second = torch.autograd.grad(y, (a, b), arrived)
    assert torch.allclose(first, 0.4 * arrived)
    assert torch.allclose(second, 0.6 * arrived)


def test_where_tokens_are_not_shared_each_sample_is_matched() -> None:
    convolution = nn.Conv1d(4, 2, 3, stride=2).double()
    x = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    y = posted((Post(kind="abs"), Post(kind="match_sum")), (True,), convolution, (x,))
    arrived = torch.randn_like(y)
    (given,) = torch.autograd.grad(y, x, arrived)
    assert torch.allclose(given.sum((1, 2)), arrived.sum((1, 2)))
    with pytest.raises(fxlrp.RulesetError, match="axis of samples"):
        posted((Post(kind="match_sum"),), (True,), lambda v: v.sum(0), (x,))


def test_post_operations_turn_gradients_into_relevance() -> None:
    block, x = Block().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    shares = {"match": "linear", "rule": "epsilon", "post": [{"kind": "abs"}]}
    found = []
    for message in ("gradient", "relevance"):
        rules = {"name": "a", "message": message, "extends": "conservative", "rules": [shares]}
        lrp = fxlrp.convert(block, rules)
        found.append(lrp.attribute(x, target=(1, 2)).relevance)
        assert lrp.message == "relevance"
    assert torch.allclose(*found)
    assert "epsilon, abs" in str(lrp.plan)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"match": "linear", "rule": "vjp", "scope": "sublayer"}, "'sublayer' is for 'residual', not 'linear'"),
        ({"match": "attention", "rule": "vjp", "scope": "pattern"}, r"attention\.output"),
        ({"match": "linear", "rule": "vjp", "post": [{"kind": "absolute"}]}, "post"),
    ],
)
def test_what_does_not_fit_is_refused(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(fxlrp.RulesetError, match=text):
        fxlrp.ruleset({"name": "a", "rules": [spec]})


def test_a_pattern_ends_in_its_last_value() -> None:
    rules = {"name": "a", "message": "relevance", "extends": "wu-ong2020"}
    rules["rules"] = [{"match": "attention.scores", "rule": "vjp", "scope": "pattern"}]  # type: ignore[assignment]
    with pytest.raises(fxlrp.RulesetError, match="not the value that its pattern ends in"):
        converted("bert", rules).attribute(batch(), target=0)


def a_pattern_is_one_operation() -> None:
    """The plain gradient through attention is the same operator by operator and as a whole."""
    rules = fxlrp.ruleset("wu-ong2020").override(linear="vjp")
    whole = rules.override(**{"attention.output": {"rule": "vjp", "scope": "pattern"}})
    by_operators, as_one = (converted("bert", each) for each in (rules, whole))
    first, second = (lrp.attribute(batch(), target=1).features for lrp in (by_operators, as_one))
    assert torch.allclose(first, second, rtol=1e-9, atol=1e-14)
    assert "vjp of the whole pattern" in str(as_one.plan)


def test_a_pattern_is_one_operation_of_its_inputs() -> None:
    a_pattern_is_one_operation()


# --- each law can fail --------------------------------------------------------------------------------------


def _over_everything(relevance: Tensor, over: str, samples: int) -> Tensor:
    axes = posts.summed_axes(relevance.ndim, over, samples)
    return relevance.sum().expand([1 if axis in axes else size for axis, size in enumerate(relevance.shape)])


def _with_identity(patch: pytest.MonkeyPatch, original: Any = rollout.layer_matrix) -> None:
    def mutant(*arguments: Any) -> Tensor:
        matrix: Tensor = original(*arguments)
        return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype)

    patch.setattr(rollout, "layer_matrix", mutant)


def _one_input_less(values: Any, inside: Any, original: Callable[..., Any] = composite.moved_along) -> Any:
    return original(values, inside)[1:]


def _mutant(name: str, patch: Patch, test: Callable[[], None]) -> Any:
    return pytest.param(Mutant(name, patch, test), id=name)


MUTANTS = [
    _mutant(
        "signs kept", entry(posts.ENTRYWISE, "abs", lambda r: r), lambda: linear_layers_keep_each_tokens_sum(RULES[0])
    ),
    _mutant(
        "sums not matched",
        attribute(posts, "matched", lambda post, received, tally, over, samples: received),
        lambda: linear_layers_keep_each_tokens_sum(RULES[0]),
    ),
    _mutant(
        "sums over the whole batch",
        attribute(posts, "summed", _over_everything),
        lambda: samples_are_apart("bert", RULES[0]),
    ),
    _mutant("size taken for sum", entry(posts.MATCHING, "match_sum", torch.abs), post_operations_do_what_they_say),
    _mutant(
        "the skip connection forgets the sub-layer",
        attribute(composite, "send_twice", lambda y, other: y + 0 * other),
        sublayer_is_one_operation,
    ),
    _mutant(
        "the branch forgotten",
        attribute(composite, "send_twice", lambda y, other: other),
        sublayer_is_one_operation,
    ),
    _mutant("queries held constant", attribute(composite, "moved_along", _one_input_less), a_pattern_is_one_operation),
    _mutant(
        "read at the look-up",
        attribute(inputs, "embedding_module", lambda lookup, blocks: None),
        lambda: reads_where_the_embedding_ends("bert"),
    ),
    _mutant("a residual connection is traced", _with_identity, lambda: traces_all_heads("bert")),
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_noticed(mutant: Mutant) -> None:
    mutant.check()
