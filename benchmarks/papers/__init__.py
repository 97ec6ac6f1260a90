"""The orderings of the papers' headline tables, reproduced on the models that come with fxlrp: ``make papers``."""
