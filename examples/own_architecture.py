"""Test an architecture of your own: does relevance add up under every ruleset, and does a second opinion agree?

Change MyModel and INPUTS. In float64, with weights at a trained model's scale, whatever is not rounding is a mistake.
The same as pytest tests: "Test your architecture" in the manual.
"""

import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.testing import at_inputs, check_conservation, fits, largest_difference, propagate, realistic


class MyModel(nn.Module):
    """A gated block with a skip connection on token ids [batch, tokens]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 8), nn.RMSNorm(8)
        self.gate, self.up, self.down, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [batch, 3]."""
        x = self.embed(input_ids)
        h = self.norm(x)
        x = x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))
        return self.head(x.mean(1))


INPUTS = {"input_ids": torch.arange(10).reshape(2, 5)}

lrp = fxlrp.convert(realistic(MyModel().double().eval()), example_inputs=INPUTS)
for name in fxlrp.rulesets():
    if not (fit := fits(lrp, name, INPUTS, check_conservation)):
        print(f"{name:28}skipped: {fit.reason}")
        continue
    report = check_conservation(lrp, name, INPUTS, target=1)
    report.raise_if_failed()
    if fits(lrp, name, INPUTS, propagate):
        read = lrp.with_ruleset(at_inputs(name))
        found = read.attribute(INPUTS, target=1).inputs
        difference = largest_difference(found, propagate(read, INPUTS, target=1))
        assert difference < 1e-8, f"{name}: the two opinions differ by {difference:.0e} of the largest relevance"
        print(f"{name:28}gap {report.gap:.0e}, second opinion {difference:.0e}")
    else:
        print(f"{name:28}gap {report.gap:.0e}")
