"""Finished batches: taken over only where they are what was measured, whoever else writes in the folder."""

from __future__ import annotations

import copy
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxlrp
from fxlrp.evaluate import Conservation
from fxlrp.evaluate.evaluation import Evaluation

X = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def _lrp() -> fxlrp.ConvertedModel:
    torch.manual_seed(0)
    return fxlrp.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), "epsilon")


def _run(folder: Path | None) -> Evaluation:
    return Conservation().run(_lrp(), X, resume=folder)


def _same(found: Evaluation, wanted: Evaluation) -> bool:
    return found.measured.keys() == wanted.measured.keys() and all(
        torch.equal(found.measured[name], wanted.measured[name]) for name in wanted.measured
    )


def _changed(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Other tensors under the description that the part had."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(change(load_file(path)), path, about)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _poisoned(value: Tensor) -> Tensor:
    spoilt = value.clone()
    spoilt[0] = torch.nan
    return spoilt


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda part: part.write_bytes(b""),
    "cut off": lambda part: part.write_bytes(part.read_bytes()[:-5]),
    "random": lambda part: part.write_bytes(bytes(range(256)) * 4),
    "one bit": lambda part: part.write_bytes(part.read_bytes()[:-1] + bytes([part.read_bytes()[-1] ^ 1])),
    "foreign tensors": lambda part: save_file({"other": torch.zeros(7)}, part),
    "foreign tensors under its name": lambda part: _changed(part, lambda _: {"other": torch.zeros(7)}),
    "NaN": lambda part: _changed(part, lambda kept: {name: _poisoned(value) for name, value in kept.items()}),
    "more samples": lambda part: _changed(part, lambda kept: {n: torch.cat([v, v]) for n, v in kept.items()}),
    "another dtype": lambda part: _changed(part, lambda kept: {n: v.half() for n, v in kept.items()}),
    "other names": lambda part: _changed(part, lambda kept: {n + "x": v for n, v in kept.items()}),
    "another batch": lambda part: part.write_bytes(max(part.parent.iterdir()).read_bytes()),
    "a folder": _folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_finished_batch_is_set_aside_and_measured_again(damage: str, tmp_path: Path) -> None:
    whole = _run(tmp_path)
    part = min(tmp_path.iterdir())
    DAMAGE[damage](part)
    with pytest.warns(UserWarning, match="It is measured again; what was there is now '.*damaged-") as told:
        assert _same(_run(tmp_path), whole)
    assert len(told) == 1
    assert len([path for path in tmp_path.iterdir() if ".damaged-" in path.name]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _same(_run(tmp_path), whole)  # the new part is taken over


def test_a_part_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _run(tmp_path)
    monkeypatch.setattr(Conservation, "start", lambda *_: 1 / 0)
    assert _same(_run(tmp_path), whole)


def _worker(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    save_file(dict(_run(folder).measured), folder.parent / name)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    whole, folder = _run(None), tmp_path / "parts"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(folder, str(i))) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for i in range(3):
        found = load_file(tmp_path / str(i))
        assert all(torch.equal(found[name], whole.measured[name]) for name in whole.measured)
    assert len(os.listdir(folder)) == len(X)  # nothing half-written is left


BEHAVIOURS: dict[str, Callable[[nn.Module], Any]] = {
    "activation": lambda m: m.__setitem__(1, nn.GELU().eval()),
    "number": lambda m: setattr(m[1], "negative_slope", 0.5),
    "hook": lambda m: m[0].register_forward_hook(lambda module, args, out: out * 2),
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_model_of_the_same_weights_that_computes_otherwise_is_measured_anew(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 2)).eval(), torch.randn(3, 4)
    other = copy.deepcopy(model)
    BEHAVIOURS[name](other)

    def measured(model: nn.Module, folder: Path | None) -> Evaluation:
        return Conservation().run(fxlrp.convert(model, "epsilon"), [x], resume=folder)

    before = measured(model, tmp_path)
    assert _same(measured(copy.deepcopy(model), tmp_path), before)
    assert len([*tmp_path.iterdir()]) == 1
    assert _same(measured(other, tmp_path), measured(other, None))
    assert len([*tmp_path.iterdir()]) == 2
