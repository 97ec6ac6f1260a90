"""Write a pattern of your own, so that rulesets can speak of a structure that fxlrp does not know by name.

Change ``size_norm`` to the torch code of your norm, gate or attention, as its author has it, and give the parts that
rules are for a name. Shapes are examples. ``lrp.plan`` names where it was found, or how near a miss was.
"""

import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.patterns import part, pattern


class SizeNorm(nn.Module):
    """x / mean(|x|) * w, a norm of an architecture of your own.  x: [..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the mean size of the features."""
        return x / (x.abs().mean(-1, keepdim=True) + 1e-6) * self.weight


@pattern("size_norm", x=(2, 3), eps=())
def size_norm(x: Tensor, eps: Tensor) -> Tensor:
    """x / (mean(|x|) + eps)."""
    return x / part(x.abs().mean(-1, keepdim=True) + eps, "scale")


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), SizeNorm(8), nn.Linear(8, 3)).double().eval()
x = torch.randn(2, 6, dtype=torch.float64)

RULES = [{"match": "size_norm.scale", "rule": "constant"}]  # the scale is held constant, as LRP does in other norms
rules = fxlrp.ruleset({"name": "with-size-norm", "extends": "conservative", "rules": RULES})
lrp = fxlrp.convert(model, rules, example_inputs=x)
print(lrp.plan)
print("largest gap of the ledger:", f"{float(lrp.attribute(x, ledger=True).ledger.gap.abs().max()):.0e}")
