"""Readings: how messages become the answer, as a ruleset states it under ``readout``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Reading(BaseModel):
    """What every reading has: a kind, by which rulesets choose it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputReading(Reading):
    """Relevance at the inputs, summed over the hidden axis of embeddings.

    ``score``: the relevance x g, or the ``gradient`` g (sensitivity). ``reduce``: how the features of a token become
    one number: ``sum``, ``l1`` (sum of absolute values), ``squared`` (sum of squares, ||.||^2). ``channels``: whether
    float inputs of images [batch, channels, height, width] keep their channels or are reduced over them as well.
    """

    kind: Literal["input"] = "input"
    score: Literal["relevance", "gradient"] = "relevance"
    reduce: Literal["sum", "l1", "squared"] = "sum"
    channels: Literal["keep", "reduce"] = "keep"


class AttentionReading(Reading):
    """A row of a product of attention maps, one matrix [tokens, tokens] a layer.

    The matrix of a layer is the mean over heads of ``weights`` A, of their ``relevance`` R_A, or of either times the
    gradient of A in the unmodified model (``gradient``: grad A * A, ``gradient_relevance``: grad A * R_A), first
    clamped at 0 if ``positive``. ``heads``: ``each`` keeps heads apart until the end and sums them. ``identity`` adds
    the identity (the residual connection), ``normalise`` then divides rows by their sums. Layers from
    ``start_layer`` (negative: from the end) are multiplied, the last leftmost. ``row`` is the token that is read.
    ``row_token``: what its own entry becomes: ``drop``, ``keep``, ``zero`` or ``minimum`` (of its row).
    """

    kind: Literal["attention"] = "attention"
    matrix: Literal["weights", "relevance", "gradient", "gradient_relevance"] = "weights"
    positive: bool = False
    heads: Literal["mean", "each", "gradient_mean"] = "mean"
    identity: bool = True
    normalise: bool = False
    start_layer: int = 0
    row: int = 0
    row_token: Literal["drop", "keep", "zero", "minimum"] = "keep"
    rescale: bool = False


AnyReading = Annotated[InputReading | AttentionReading, Field(discriminator="kind")]
