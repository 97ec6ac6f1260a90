"""A capture and the process around it: threads, streams, logs, flags and random states are as they were."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import fxlrp
from fxlrp.capture.process import quiet, unmoved
from fxlrp.capture.torch_private import LOCK
from tests.repository.sources import ROOT

THREADS = 8
#: Seconds that eight first captures may take on a busy machine.
PATIENCE = 300


def mlp(width: int = 8) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)).eval()


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes)).eval()


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent().eval()


class Recurrent(nn.Module):
    """An LSTM and a linear head.  x: [batch, steps, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2]."""
        return self.head(self.cell(x)[0][:, -1])


def given(model: nn.Module, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    if isinstance(model, nn.Sequential):
        return {"input": torch.randn(2, 4, generator=rng)}
    if isinstance(model, Recurrent):
        return {"x": torch.randn(2, 3, 4, generator=rng)}
    return {"input_ids": torch.randint(20, (2, 5), generator=rng)}


def state() -> list[Any]:
    """What belongs to the process, each by identity or value."""
    return [
        sys.stdout,
        sys.stderr,
        warnings.filters,
        list(warnings.filters),
        warnings.showwarning,
        logging.root.manager.disable,
        [list(logging.getLogger(name).filters) for name in ("torch", "torch.export._trace", "transformers")],
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        nn.Module.__call__,
        nn.Module.__getattr__,
        nn.LSTM.forward,
        nn.functional.scaled_dot_product_attention,
    ]


def at_once(calls: list[Callable[[], Tensor]]) -> list[Tensor]:
    """What the calls give, all of them started together, each in a thread of its own."""
    start, found, failed = threading.Barrier(len(calls)), {}, []

    def run(place: int, call: Callable[[], Tensor]) -> None:
        start.wait(PATIENCE)
        try:
            found[place] = call()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert not failed, failed
    return [found[place] for place in range(len(calls))]


def gradient(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """x * df/dx of a model of floats, by autograd on the model itself."""
    (x,) = (v.clone().requires_grad_() for v in inputs.values())
    (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    return (x * g).detach()


@pytest.mark.parametrize("build", [mlp, recurrent], ids=["mlp", "lstm"])
def test_eight_first_calls_on_one_model(build: Callable[[], nn.Module]) -> None:
    model, before = build(), state()
    inputs = [given(model, seed) for seed in range(THREADS)]
    expected = [gradient(model, each) for each in inputs]
    lrp = fxlrp.convert(model, "gradient")
    results = at_once([lambda each=each: lrp.attribute(each, target=1).relevance for each in inputs])
    for found, right in zip(results, expected, strict=True):
        assert torch.allclose(found, right, atol=1e-6)
    assert lrp.captures == 1
    assert state() == before


def test_eight_first_calls_on_different_models() -> None:
    models = [mlp(3), mlp(5), bert(), recurrent(), mlp(7), bert(), mlp(9), recurrent()]
    before, inputs = state(), [given(model, seed) for seed, model in enumerate(models)]
    pairs = list(zip(models, inputs, strict=True))
    results = at_once([lambda m=m, x=x: fxlrp.convert(m, "attnlrp").attribute(x, target=1).relevance for m, x in pairs])
    assert state() == before
    for (model, each), found in zip(pairs, results, strict=True):
        assert torch.equal(found, fxlrp.convert(model, "attnlrp").attribute(each, target=1).relevance)


def test_the_model_can_be_called_while_it_is_captured() -> None:
    """A thread inside the model's own forward holds the capture; another calls the model and sees real weights."""
    inside, go_on, main = threading.Event(), threading.Event(), threading.get_ident()

    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if threading.get_ident() != main:
                inside.set()
                go_on.wait(PATIENCE)
            return self.layer(x)

    model, x = Waiting().eval(), torch.ones(2, 4)
    expected = model(x)
    worker = threading.Thread(target=lambda: fxlrp.convert(model, "gradient").attribute(x, target=0), daemon=True)
    worker.start()
    assert inside.wait(PATIENCE)
    try:
        assert torch.equal(model(x), expected)
        assert all(type(p) is nn.Parameter and not p.is_meta for p in model.parameters())
    finally:
        go_on.set()
        worker.join(PATIENCE)
    assert not worker.is_alive()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_what_breaks_off_a_capture_leaves_nothing(kind: type[BaseException]) -> None:
    class Breaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.layer(x)
            raise kind("no further")

    model, before = Breaking().eval(), state()
    attributes, weights = dict(vars(model)), list(model.parameters())
    with pytest.raises((fxlrp.FxlrpError, KeyboardInterrupt)):
        fxlrp.convert(model, "gradient").attribute(torch.ones(2, 4), target=0)
    assert state() == before
    assert vars(model) == attributes
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    taken = at_once([lambda: torch.tensor(LOCK.acquire(timeout=PATIENCE)) and (LOCK.release() or torch.ones(()))])
    assert taken == [1]
    assert fxlrp.convert(mlp(), "gradient").attribute(torch.ones(2, 4), target=0).relevance.isfinite().all()


def test_other_threads_write_warn_and_log_during_a_capture(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch.export._trace")
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]

    def speak(who: str) -> Tensor:
        print(f"out {who}")
        print(f"err {who}", file=sys.stderr)
        logger.warning("log %s", who)
        warnings.warn(f"warning {who}", UserWarning, stacklevel=1)
        return torch.ones(())

    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with quiet():
                speak("here")
                at_once([lambda: speak("there")])
            speak("after")
    finally:
        logger.removeHandler(handler)
    written = capsys.readouterr()
    assert written.out == "out here\nout there\nout after\n"  # what the model itself prints is its own
    assert written.err.startswith("err there\n")
    assert "err here" not in written.err
    assert [m for m in messages if m.startswith("log")] == ["log there", "log after"]
    assert [str(w.message) for w in caught] == ["warning there", "warning after"]


def test_what_an_exporter_says_of_itself_is_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * 2) if x.sum() > 0 else self.layer(x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fxlrp.convert(Branching().eval(), "gradient").attribute(torch.ones(2, 4), target=0)
        fxlrp.convert(bert(), "gradient").attribute(given(bert(), 0), target=0)
        fxlrp.convert(recurrent(), "gradient").attribute(given(recurrent(), 0), target=0)
    assert [warning.category for warning in caught] == [fxlrp.RetraceWarning]
    written = capfd.readouterr()
    assert written.out == ""
    assert written.err == ""


def test_random_states_are_put_back() -> None:
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())

    def draw() -> None:
        with unmoved():
            torch.rand(3), random.random(), np.random.rand(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


FRESH = """
import random, sys
import numpy as np, torch
from torch import nn
{load}
from transformers import BertConfig, BertForSequenceClassification
class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        random.random(), np.random.rand(3), torch.rand(3)
        return self.layer(x)
plain, drawing = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2)).eval(), Drawing().eval()
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
bert, ids = BertForSequenceClassification(BertConfig(**sizes)).eval(), torch.ones(2, 5, dtype=torch.int64)
x = torch.ones(2, 4)
torch.manual_seed(5), np.random.seed(5), random.seed(5)
for model, given in ((plain, x), (drawing, x), (bert, ids), (plain, x)):
    {explain}
print(torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
"""


def test_the_first_conversions_of_a_process_draw_no_random_numbers() -> None:
    explained = FRESH.format(
        load="import fxlrp", explain="fxlrp.convert(model, 'attnlrp').attribute(given, target=1, ledger=True)"
    )
    plain = FRESH.format(load="", explain="pass")
    outputs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for code in (explained, plain)
    ]
    assert outputs[0] == outputs[1]
    assert "0." in outputs[0]
