"""Models whose weights are kept elsewhere: the numbers of the whole model, and a fraction of its weights at a time."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import fxlrp
from fxlrp.evaluate import ParameterRandomisation
from fxlrp.evaluate.hashing import fingerprint
from fxlrp.graph.handles import Elsewhere
from tests.support.small_models import grouped_llama, without_stretches

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[dev]'")

IDS = torch.tensor([[3, 9, 27, 5, 14, 2], [5, 5, 1, 30, 8, 3]])
RULESETS = ("attnlrp", "epsilon", "attnlrp-relevance", "gradient")


def _llama(layers: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    return grouped_llama(hidden_size=32, intermediate_size=48, num_hidden_layers=layers).to(dtype)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)).eval()


def _map(model: nn.Module) -> dict[str, str]:
    """Layers on the disk, the rest on the CPU."""
    names = [name for name, _ in model.model.named_children() if name != "layers"]
    layers = {f"model.layers.{index}": "disk" for index in range(len(model.model.layers))}
    return {**{f"model.{name}": "cpu" for name in names}, **layers, "lm_head": "cpu"}


OFFLOADED: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "cpu": lambda model, folder: accelerate.cpu_offload(model, execution_device="cpu"),
    "cpu, buffers too": lambda model, folder: accelerate.cpu_offload(model, "cpu", offload_buffers=True),
    "disk": lambda model, folder: accelerate.disk_offload(model, str(folder), execution_device="cpu"),
    "in part": lambda model, folder: accelerate.dispatch_model(
        model, _map(model), main_device="cpu", offload_dir=str(folder)
    ),
}


@pytest.mark.parametrize("kind", OFFLOADED)
def test_an_offloaded_model_has_the_relevance_of_the_whole(kind: str, tmp_path: Path) -> None:
    whole = _llama()
    model = OFFLOADED[kind](copy.deepcopy(whole), tmp_path)
    assert any(each.is_meta for each in model.parameters())
    found, expected = fxlrp.convert(model, "attnlrp"), fxlrp.convert(whole, "attnlrp")
    for ruleset in RULESETS:
        ours, theirs = (lrp.with_ruleset(ruleset).attribute(IDS, target=7, ledger=True) for lrp in (found, expected))
        torch.testing.assert_close(ours.relevance, theirs.relevance)
        torch.testing.assert_close(ours.outputs.logits, theirs.outputs.logits)
        assert ours.ledger is not None
        assert float(ours.ledger.gap.abs().max()) < 1e-5
    assert found.captures == 1  # weights that come and go are no change
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, whole(IDS).logits)


class Held:
    """The bytes of weights that were brought in and are alive, and the most of them at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak = 0
        self.alive: list[tuple[StorageWeakRef, int]] = []
        fetch = Elsewhere.fetch

        def counted(handle: Elsewhere) -> Tensor:
            made = fetch(handle).clone()  # of a weight in memory it is no copy
            self.alive = [(ref, size) for ref, size in self.alive if not ref.expired()]
            self.alive.append((StorageWeakRef(made.untyped_storage()), made.nbytes))
            self.peak = max(self.peak, sum(size for _, size in self.alive))
            return made

        monkeypatch.setattr(Elsewhere, "fetch", counted)


@pytest.mark.parametrize(
    ("ruleset", "dtype"),
    [("attnlrp", torch.float32), ("attnlrp-relevance", torch.float32), ("attnlrp", torch.bfloat16)],
)
def test_at_most_a_quarter_of_the_weights_is_held_at_a_time(
    ruleset: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _llama(4 if dtype is torch.float32 else 6, dtype)  # half precision is held in float32
    size = sum(each.nbytes for each in whole.parameters())
    model = accelerate.cpu_offload(copy.deepcopy(whole), execution_device="cpu")
    lrp, held = fxlrp.convert(model, ruleset), Held(monkeypatch)
    for _ in range(2):  # capturing with its check, then a call alone
        held.peak = 0
        gc.collect()
        found = lrp.attribute(IDS, target=7).relevance
        assert 0 < held.peak <= size / 4
    assert 0.7 < lrp.memory(IDS).weights / held.peak < 1.5
    with without_stretches():  # in which attention is fused; in blocks that bring weights in it is spelled out
        wanted = fxlrp.convert(whole, ruleset).attribute(IDS, target=7).relevance
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    lrp.attribute(IDS, target=7, ledger=True)  # which keeps every value, so that the measure finds it out
    assert held.peak > size / 2


def test_what_else_is_asked_of_an_offloaded_model(tmp_path: Path) -> None:
    whole = _llama()
    model = accelerate.disk_offload(copy.deepcopy(whole), str(tmp_path), execution_device="cpu")
    found, expected = fxlrp.convert(model, "attnlrp"), fxlrp.convert(whole, "attnlrp")
    for given in ({"at": "model.layers.*"}, {"checkpoint": "blocks"}, {"outputs": False}, {"contrast": 3}):
        ours, theirs = (lrp.attribute(IDS, target=7, **given) for lrp in (found, expected))  # type: ignore[arg-type]
        torch.testing.assert_close(ours.relevance, theirs.relevance)
        for path, value in theirs.at.items():
            torch.testing.assert_close(ours.at[path], value)
    ours, theirs = (lrp.attribute_generation(IDS[:1], max_new_tokens=2) for lrp in (found, expected))
    torch.testing.assert_close(ours.relevance, theirs.relevance)
    assert found.memory(IDS).values == expected.memory(IDS).values
    assert found.device == torch.device("cpu")
    for ruleset in ("rollout", "integrated-gradients", "deeplift-rescale"):
        ours, theirs = (lrp.with_ruleset(ruleset).attribute(IDS, target=7) for lrp in (found, expected))
        torch.testing.assert_close(ours.relevance, theirs.relevance)
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: found.attribute(IDS, target=7).relevance, range(4)))
    assert all(torch.equal(each, several[0]) for each in several)
    assert all(each.is_meta for each in model.parameters())  # nothing was left behind


def test_a_plain_network_with_buffers(tmp_path: Path) -> None:
    whole, x = _net(), torch.randn(4, 6)
    model = accelerate.cpu_offload(copy.deepcopy(whole), "cpu", offload_buffers=True)
    for ruleset in ("epsilon", "attnlrp", "epsilon-plus"):
        ours, theirs = (fxlrp.convert(each, ruleset).attribute(x, target=1) for each in (model, whole))
        torch.testing.assert_close(ours.relevance, theirs.relevance)


def test_a_model_without_its_weights_is_refused() -> None:
    with torch.device("meta"):
        model = _llama()
    with pytest.raises(fxlrp.InputError, match="was never loaded"):
        fxlrp.convert(model, "attnlrp").attribute(IDS, target=7)


class Doubling(accelerate.hooks.ModelHook):  # type: ignore[misc]
    """A hook that changes what its module returns."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output * 2


def test_a_hook_that_does_something_else_is_no_hook_of_weights() -> None:
    x, plain = torch.randn(4, 6), _net()
    plain[0].register_forward_hook(lambda module, args, out: out * 2)
    expected = fxlrp.convert(plain, "epsilon").attribute(x, target=1).relevance
    model = _net()
    accelerate.hooks.add_hook_to_module(model[0], Doubling())
    torch.testing.assert_close(fxlrp.convert(model, "epsilon").attribute(x, target=1).relevance, expected)
    model = accelerate.cpu_offload(_net(), "cpu")
    accelerate.hooks.add_hook_to_module(model[0], Doubling(), append=True)
    with pytest.raises(fxlrp.InputError, match="has a Doubling as well"):
        fxlrp.convert(model, "epsilon").attribute(x, target=1)


class Choosing(nn.Module):
    """A network that decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3]."""
        y: Tensor = self.net(x)
        return y * 2 if float(y.sum()) > 0 else y.tanh()


def test_what_needs_all_weights_says_so() -> None:
    model = accelerate.cpu_offload(Choosing().eval(), "cpu")
    with pytest.raises(fxlrp.CaptureError, match="Load the model whole"):
        fxlrp.convert(model, "epsilon").attribute(torch.randn(4, 6), target=1)
    lrp = fxlrp.convert(accelerate.cpu_offload(_net(), "cpu"), "epsilon")
    with pytest.raises(fxlrp.CaptureError, match="randomising its weights"):
        ParameterRandomisation().start(lrp)


def test_functions_of_outputs_and_hashes_meet_the_weights() -> None:
    whole, x = _net(), torch.randn(4, 6)
    model = accelerate.cpu_offload(copy.deepcopy(whole), "cpu")

    def wanted(output: Tensor) -> Tensor:
        return output[:, 0].tanh() - output[:, 1]

    ours, theirs = (fxlrp.convert(each, "epsilon").attribute(x, target=wanted) for each in (model, whole))
    torch.testing.assert_close(ours.relevance, theirs.relevance)
    before = fingerprint(fxlrp.convert(model, "epsilon"))
    assert before == fingerprint(fxlrp.convert(model, "epsilon"))
    model[0]._hf_hook.weights_map["weight"].mul_(2)
    assert before != fingerprint(fxlrp.convert(model, "epsilon"))


class Scoring:
    """A target that runs a layer of the model once more."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, output: Tensor) -> Tensor:
        own: Tensor = self.model[3](torch.ones(len(output), self.model[3].in_features))
        return own[:, 0] * output[:, 0]


@pytest.mark.parametrize("written", ["as a function", "with a default", "as an object", "as a method"])
def test_a_target_that_runs_the_model_leaves_its_weights_where_they_are(written: str) -> None:
    whole, x = _net(), torch.randn(4, 6)
    model = accelerate.cpu_offload(copy.deepcopy(whole), "cpu")

    def attributed(each: nn.Module) -> Tensor:
        scoring = Scoring(each)
        targets: dict[str, Any] = {
            "as a function": lambda output: scoring(output),
            "with a default": lambda output, by=scoring: by(output),
            "as an object": scoring,
            "as a method": scoring.__call__,
        }
        return fxlrp.convert(each, "gradient").attribute(x, target=targets[written]).relevance

    with pytest.warns(UserWarning, match="keeps weights elsewhere until its modules run"):
        found = attributed(model)
    torch.testing.assert_close(found, attributed(whole))
    assert all(weight.is_meta and type(weight) is nn.Parameter for weight in model.parameters())
    torch.testing.assert_close(model(x), whole(x))
