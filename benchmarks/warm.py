"""Imported by the server that the census's processes are forked from: what a first conversion imports and caches."""

import torch
from torch import nn

import fxlrp
from benchmarks import examine  # noqa: F401  (its imports, too)
from fxlrp.capture.process import quiet

torch.set_num_threads(1)  # a pool of threads would not survive the fork
with quiet():
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    lrp = fxlrp.convert(nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2)).eval())
    lrp.attribute(torch.randn(2, 3, 8), ledger=True)
