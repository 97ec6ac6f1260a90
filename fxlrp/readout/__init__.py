"""How messages become the answer: the readers of every kind of reading that a ruleset can ask for."""

from fxlrp.readout import difference, inputs, paths, positions, rollout, streams
from fxlrp.readout.readers import READERS, Answer, read, reader

__all__ = ["READERS", "Answer", "difference", "inputs", "paths", "positions", "read", "reader", "rollout", "streams"]
