"""Arithmetic on values of a graph and on numbers alike, in canonical operators, for passes that rewrite a graph.

In: proxies of a :class:`~fxlrp.capture.canonical.Builder`, or Python numbers. Out: the same; a number where all
operands are numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.proxy import Proxy

aten = torch.ops.aten


def plus(a: Any, b: Any) -> Any:
    """a + b."""
    a, b = (b, a) if isinstance(b, Proxy) else (a, b)
    return aten.add.Tensor(a, b) if isinstance(a, Proxy) else a + b


def times(a: Any, b: Any) -> Any:
    """a b."""
    a, b = (b, a) if isinstance(b, Proxy) else (a, b)
    return aten.mul.Tensor(a, b) if isinstance(a, Proxy) else a * b


def over(a: Any, b: Any) -> Any:
    """a / b."""
    return times(a, aten.reciprocal.default(b) if isinstance(b, Proxy) else 1 / b)


def matrix_product(a: Proxy, b: Proxy) -> Proxy:
    """a b, of matrices."""
    made: Any = aten.matmul.default(a, b)
    return made


def layer(x: Proxy, weight: Proxy, bias: Proxy | None) -> Proxy:
    """x W^T + b, of rows."""
    made: Any = aten.linear.default(x, weight, bias)
    return made


def transposed(a: Proxy) -> Proxy:
    """a^T, of a matrix."""
    made: Any = aten.transpose.int(a, 0, 1)
    return made


def reshaped(a: Any, shape: list[Any]) -> Any:
    """``a`` in another shape; a number as it is."""
    return aten.reshape.default(a, shape) if isinstance(a, Proxy) else a


def entries(a: Any, count: Any, like: Proxy) -> Proxy:
    """``a``, one number or one entry, ``count`` times, with the type and device of ``like``."""
    made: Any = aten.expand.default(a, [count]) if isinstance(a, Proxy) else aten.new_full.default(like, [count], a)
    return made


def cast(a: Proxy, dtype: torch.dtype) -> Proxy:
    """``a`` in this type."""
    made: Any = a if a.node.meta["val"].dtype == dtype else aten._to_copy.default(a, dtype=dtype)
    return made
