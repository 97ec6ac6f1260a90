"""Parameters at a trained model's scale: takes a freshly initialised module, redraws its parameters in place.

With the default std of 0.02 attention is uniform and every norm is the identity, so wrong rules pass a test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Redraw = Callable[[Tensor, nn.Module, Tensor], Tensor]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def _fan_in(weight: Tensor, owner: nn.Module) -> int:
    if weight.ndim == 0:
        return 1
    if type(owner).__name__ == "Conv1D":  # GPT-2 stores its weight transposed
        return weight.shape[0]
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return math.prod(weight.shape[1:])
    return weight.shape[-1]  # also stacked experts: [experts, out, in]


def _matrix(weight: Tensor, owner: nn.Module, noise: Tensor) -> Tensor:
    return noise / math.sqrt(_fan_in(weight, owner))


def _norm_weight(weight: Tensor, owner: nn.Module, noise: Tensor) -> Tensor:
    # Gemma stores w - 1: the value before tells which of the two a norm does.
    return weight.mean().gt(0.5).double() + 0.3 * noise


def _around(centre: float, spread: float) -> Redraw:
    return lambda weight, owner, noise: centre + spread * noise


def _decay(weight: Tensor, owner: nn.Module, noise: Tensor) -> Tensor:
    return torch.arange(1, weight.shape[-1] + 1).double().log() + 0.1 * noise


# First match wins; searched for in "<module path>.<parameter>:<class of the module>".
SCALES: tuple[tuple[str, Redraw], ...] = (
    (r"A_log:", _decay),
    (r"\.D:Mamba", _around(1.0, 0.3)),
    (r"dt_proj\.bias:", _around(-2.0, 0.5)),
    (r"running_mean:", _around(0.0, 0.2)),
    (r"layer_scale|lambda_?\d|gamma_\d", _around(0.6, 0.2)),
    (r"relative_(position|attention)_bias|bias_table|sinks:", _around(0.0, 0.5)),
    (r"(cls|mask|register)_tokens?:|position_embeddings:", _around(0.0, 0.5)),
    (r"bias:|_bias:", _around(0.0, 0.2)),
    (r"weight:\w*Norm|norm_weight:", _norm_weight),
    (r"weight:\w*Embedding", _around(0.0, 0.7)),
    (r"", _matrix),
)


@torch.no_grad()
def realistic(model: AnyModule, seed: int = 0) -> AnyModule:
    """Redraw all parameters and batch-norm statistics at a trained model's scale, in place; return the model.

    Matrices have std 1/sqrt(fan_in), norms lie around 1 but not at it (around 0 where a norm multiplies by
    1 + w), biases and additive constants are not zero.  Equal seeds give equal parameters, in any dtype up to
    rounding.
    """
    rng = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    for path, owner in model.named_modules():
        for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is None or id(tensor) in seen:  # a tied weight is drawn once, for its first owner
                continue
            seen.add(id(tensor))
            if name == "running_var":
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng, dtype=torch.float64))
            elif isinstance(tensor, nn.Parameter) or name == "running_mean":
                key = f"{path}.{name}:{type(owner).__name__}"
                redraw = next(scale for pattern, scale in SCALES if re.search(pattern, key))
                noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
                tensor.copy_(redraw(tensor, owner, noise))
    return model
