"""How messages become the answer: the readers of every kind of reading that a ruleset can ask for."""

from fxlrp.readout import attention, difference, inputs, paths, positions, streams
from fxlrp.readout.answer import READERS, Answer, read

__all__ = ["READERS", "Answer", "attention", "difference", "inputs", "paths", "positions", "read", "streams"]
