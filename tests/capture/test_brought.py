"""Forward passes that write to what is around them, and what tracers do not take: right and put back, or a sentence."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from tests.support.calls import LINEAR, X, attributed, of_linear, with_forward


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("sizes", [(2,), (2, 3, 1)])
def test_what_is_written_to_around_a_forward_pass_is_put_back(sizes: tuple[int, ...]) -> None:
    counted, seen, by_size = torch.zeros(1), list[Tensor](), dict[int, Tensor]()

    def forward(self: Any, x: Tensor) -> Tensor:
        counted.add_(1)
        seen.append(x)
        by_size[len(x)] = x * 2
        return self.net(x)  # type: ignore[no-any-return]

    lrp = fxlrp.convert(with_forward(LINEAR, forward), "epsilon")
    for size in sizes:
        x = torch.randn(size, 4)
        found = lrp.attribute(x, target=1)
        assert torch.allclose(found.relevance, x * LINEAR.weight[1].detach(), atol=1e-6)
    assert float(counted) == 0
    assert not seen
    assert not by_size


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_an_input_that_is_turned_in_place_stays_as_it_was() -> None:
    x = X.clone()
    found = attributed(lambda self, x: self.net(x.t_().t()), x)
    assert x.shape == X.shape
    assert torch.allclose(found.relevance, of_linear(), atol=1e-6)


def test_what_tracers_raise_of_their_own_is_a_sentence() -> None:
    out = torch.zeros(2, 4)
    with pytest.raises(fxlrp.CaptureError, match="cannot be captured"):
        attributed(lambda self, x: self.net(torch.mul(x, 2, out=out)))


def test_a_generator_of_its_own_is_refused_with_a_remedy() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.net(x + torch.randn(4, generator=torch.Generator().manual_seed(0)))  # type: ignore[no-any-return]

    with pytest.raises(fxlrp.CaptureError, match="random_seed"):
        attributed(forward)


def test_torchscript_inside_a_model_is_named() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), LINEAR).eval()
    with pytest.raises(fxlrp.CaptureError, match=r"module '0'\) is TorchScript"):
        fxlrp.convert(model, "epsilon")


@pytest.mark.parametrize("given", [{"a.b": X, "a": {"b": X}}, {0: X, "0": X}], ids=["dots", "numbers"])
def test_inputs_of_one_name_are_told_apart_or_refused(given: dict[Any, Any]) -> None:
    def forward(self: Any, batch: Any) -> Tensor:
        return self.net(next(iter(batch.values())))  # type: ignore[no-any-return]

    with pytest.raises(fxlrp.InputError, match="Two inputs are called 'batch"):
        attributed(forward, {"batch": given})


def test_a_single_number_is_an_input() -> None:
    x = torch.tensor(1.5)
    found = attributed(lambda self, x: self.net(x.expand(1, 4)), x)
    assert torch.allclose(found.relevance, x * LINEAR.weight[1].detach().sum(), atol=1e-6)


@pytest.mark.parametrize("returned", [lambda y: {y}, lambda y: iter([y]), lambda y: (y, {1})])
def test_outputs_without_order_are_named(returned: Any) -> None:
    with pytest.raises(fxlrp.CaptureError, match=r"returns a \w+, whose values have no name or order: return tensors"):
        attributed(lambda self, x: returned(self.net(x)))


def test_a_list_of_modules_has_no_mode() -> None:
    """A slice of a list of layers is a new list, which is in training mode whatever its layers are in."""
    model = with_forward(LINEAR, lambda self, x: self.some[0](x))
    model.some = nn.ModuleList([LINEAR, LINEAR])[:1]
    assert model.some.training
    torch.testing.assert_close(fxlrp.convert(model, "epsilon").attribute(X, target=1).relevance, of_linear())
    model.some = nn.ModuleList([nn.Dropout()])
    with pytest.raises(fxlrp.TrainingModeError, match=r"some\.0"):
        fxlrp.convert(model, "epsilon")


def test_eight_bit_floats_are_named() -> None:
    with pytest.raises(fxlrp.InputError, match=r"float8_e4m3fn, which nothing is computed in"):
        attributed(lambda self, x: self.net(x), X.to(torch.float8_e4m3fn))


def test_an_exported_program_is_taken_by_its_module() -> None:
    program: Any = torch.export.export(LINEAR, (X,))
    with pytest.raises(fxlrp.InputError, match=r"pass program\.module\(\)"):
        fxlrp.convert(program)
    found = fxlrp.convert(program.module(), "epsilon").attribute(X, target=1).relevance
    torch.testing.assert_close(found, of_linear())


def test_a_plan_is_copied_as_itself_and_its_text_is_what_can_be_kept() -> None:
    lrp = fxlrp.convert(LINEAR.eval(), "epsilon")
    lrp.attribute(X, target=1)
    assert copy.deepcopy(lrp.plan) is lrp.plan
    with pytest.raises(fxlrp.InputError, match=r"keep its text, str\(plan\)"):
        pickle.dumps(lrp.plan)


def test_inputs_that_take_a_gradient_are_exported_as_others() -> None:
    x = X.clone().requires_grad_()
    lrp = fxlrp.convert(with_forward(LINEAR, lambda self, x: self.net(x)), "gradient")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lrp(x * 1)[:, 1].sum().backward()
        lrp(x)
    assert x.grad is not None
    torch.testing.assert_close(x.detach() * x.grad, of_linear())
    assert lrp.captures == 1
