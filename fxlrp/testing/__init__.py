"""Property tests for explanations: random graphs, pairs of spellings, and parameters at a realistic scale."""

from fxlrp.testing.blocks import Block, Kind
from fxlrp.testing.graphs import RandomGraph, Step, graphs
from fxlrp.testing.kinds import KINDS
from fxlrp.testing.spellings import Spelling, spellings
from fxlrp.testing.weights import realistic

__all__ = ["KINDS", "Block", "Kind", "RandomGraph", "Spelling", "Step", "graphs", "realistic", "spellings"]
