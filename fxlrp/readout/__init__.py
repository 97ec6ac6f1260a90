"""How messages become the answer: the readers of every kind of reading that a ruleset can ask for."""

from fxlrp.readout import attention, inputs, streams
from fxlrp.readout.answer import READERS, Answer, read

__all__ = ["READERS", "Answer", "attention", "inputs", "read", "streams"]
