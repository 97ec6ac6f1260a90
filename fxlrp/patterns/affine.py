"""Merges scales and shifts by constants into the linear map before them, so that rules meet one map.

In: a program. Out: a program of equal values (to rounding) in which a linear layer or convolution followed by one
number a channel to multiply with and one to add, as a batch norm in eval mode is, has these in its weight and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Proxy

from fxlrp.capture import Program
from fxlrp.capture.canonical import Builder, Fused
from fxlrp.graph.live import dependent
from fxlrp.graph.operators import is_float, packet

aten = torch.ops.aten
#: Linear maps with arguments (x, weight, bias, ...): the axis of the output that the first axis of the weight becomes,
#: from its end, as a function of the weight's rank.
MAPS: dict[Any, Callable[[int], int]] = {
    aten.linear: lambda rank: -1,
    aten.conv1d: lambda rank: 1 - rank,
    aten.conv2d: lambda rank: 1 - rank,
    aten.conv3d: lambda rank: 1 - rank,
}
#: y a + b after one more step with a constant c: (a, b, c) to the new a and b, for y as first and as second operand.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]
STEPS: dict[Any, tuple[Step, Step | None]] = {
    aten.add: (lambda a, b, c: (a, b + c), lambda a, b, c: (a, b + c)),
    aten.sub: (lambda a, b, c: (a, b - c), lambda a, b, c: (-a, c - b)),
    aten.mul: (lambda a, b, c: (a * c, b * c), lambda a, b, c: (a * c, b * c)),
    aten.div: (lambda a, b, c: (a / c, b / c), None),
}
