"""Conditions of torch.export are data: they mean what Python would make of them, and no text becomes code."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from fxlrp.capture import torch_private as private
from fxlrp.capture.guards import hold, read
from fxlrp.errors import CaptureError

INPUTS: dict[str, Any] = {
    "x": torch.zeros(3, 8, 2),
    "mask": torch.zeros(3, 8),
    "n": 3,
    "nested": {"a": (torch.zeros(4), None), "b'c\"]": torch.zeros(5)},
    "record": SimpleNamespace(field=torch.zeros(6)),
}

CONDITIONS = (
    "L['x'].size()[1] <= 64",
    "L['x'].size()[1] == L['mask'].size()[1]",
    "L['x'].size()[1] == L['x'].size()[0]",
    "L['x'].size(1) != 8",
    "L['x'].shape[-1] == 2",
    "2 <= L['x'].size()[0] and L['x'].size()[0] <= 9 or False",
    "2 <= L['x'].size()[0] < 3 <= 4",
    "not (L['x'].size()[1] // 4) % 2 == 0",
    "-L['x'].size()[1] + 2 * 4 ** 1 - 1 > -1",
    "L['x'].size()[1] / 3 > 2.5",
    "max(1, L['x'].size()[0], 2) == min(L['n'], 7)",
    "math.floor(L['x'].size()[1] / 3) == 2",
    "torch.sym_max(L['x'].size()[1], 3) == 8",
    "L['x'].stride()[0] == 16 and L['x'].storage_offset() == 0 and L['x'].dim() == 3",
    "L['n'] == 3 and L['n'] is not None",
    "L['nested']['a'][0].size()[0] == 4 and L['nested']['a'][1] is None",
    "L['nested']['b\\'c\"]'].numel() == 5",
    "L['record'].field.size()[0] == 6",
    "(L['x'].size()[0], 1) == (3, 1) and [1] == [1]",
    "(1 if L['n'] > 2 else 0) == 1",
    "len(L['x'].size()) == 3",
)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_means_what_python_makes_of_it(condition: str) -> None:
    wanted = eval(condition, {"L": INPUTS, "torch": torch, "math": math})
    assert read(condition)(INPUTS) == wanted
    assert hold([condition], INPUTS) is bool(wanted)


@pytest.mark.parametrize(
    "code",
    [
        "__import__('pathlib').Path('{place}').touch() or True",
        "(lambda: open('{place}', 'w'))()",
        "[open('{place}', 'w') for _ in (1,)] and True",
        "L['x'].__class__.__init__.__globals__['sys'].exit()",
        "L['x']._typed_storage()",
        "L['x'].sum()",
        "torch.save(1, '{place}')",
        "eval('1')",
        "getattr(L, 'x')",
        "f'{{L}}'",
        "x",
        "L['x'].size()[0] ==",
        "max(L['x'].size(), key=print)",
        "(" * 5000,
    ],
)
def test_no_text_becomes_code(code: str, tmp_path: Path) -> None:
    place = tmp_path / "made"
    with pytest.raises(CaptureError, match="states a condition on the inputs that fxlrp cannot read"):
        hold([code.format(place=place)], INPUTS)
    assert not place.exists()


class Sized(nn.Module):
    """What makes torch.export state conditions on sizes."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] % 2 == 0
        return x.reshape(x.shape[0], x.shape[1] // 2, 2).sum(-1) + y


def test_conditions_of_torch_export_are_read() -> None:
    given = {"x": torch.zeros(3, 8), "y": torch.zeros(3, 4)}
    shapes = {"x": {0: Dim.AUTO, 1: Dim.AUTO}, "y": {0: Dim.AUTO, 1: Dim.AUTO}}
    guards = private.guards_of(torch.export.export(Sized(), (), given, dynamic_shapes=shapes, strict=False))
    assert guards
    assert hold(guards, given)
    assert hold(guards, {"x": torch.zeros(5, 6), "y": torch.zeros(5, 3)})
    assert not hold(guards, {"x": torch.zeros(5, 6), "y": torch.zeros(4, 3)})
    assert not hold(guards, {"x": torch.zeros(5, 7), "y": torch.zeros(5, 3)})
