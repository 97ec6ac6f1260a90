"""Readings: how messages become the answer, as a ruleset states it under ``readout``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from fxlrp.errors import RulesetError, nearest

#: The readings that rulesets can ask for, by their kinds.
READINGS: dict[str, type[Reading]] = {}


class Reading(BaseModel):
    """What every reading has: a kind, by which rulesets choose it, and what it can do.

    A subclass whose ``kind`` has a default is known to rulesets from its definition on; what reads it out is registered
    with :func:`fxlrp.readout.reader`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Whether it compares the inputs with a reference input.
    compares: ClassVar[bool] = False
    #: Whether its answer is the account of one pass from f(x), which a ledger can hold.
    accounts: ClassVar[bool] = True
    #: Whether it says the relevance of inner modules.
    taps: ClassVar[bool] = True
    #: Whether it reads passes at the given inputs alone, so that one forward pass can serve many targets.
    at_given: ClassVar[bool] = True
    #: Whether it reads attention weights, which the model must have.
    of_attention: ClassVar[bool] = False
    #: Whether it scores tokens, so that the main input must be token ids.
    of_tokens: ClassVar[bool] = False
    #: What it reads out, as an error message says it.
    reads: ClassVar[str] = "a score of the inputs"

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Make the reading known by its kinds."""
        super().__pydantic_init_subclass__(**kwargs)
        annotation = cls.model_fields["kind"].annotation
        for kind in get_args(annotation):
            READINGS[kind] = cls


class FeatureReading(Reading):
    """A score of every feature of the inputs, reduced over the hidden axis of embeddings.

    ``reduce``: how the features of a token become one number: ``sum``, ``l1`` (sum of absolute values), ``squared``
    (sum of squares, ||.||^2), ``norm`` (||.||, of token ids alone: a float input keeps its entries and their signs).
    Relevance is summed. A gradient by itself is not: behind a LayerNorm the sum over the hidden axis is zero but for
    rounding, and elsewhere it depends on the basis of the embedding, as the norm does not. ``channels``: whether
    float inputs of images [batch, channels, height, width] keep their channels or are reduced over them as well.
    """

    reduce: Literal["sum", "l1", "squared", "norm"] = "sum"
    channels: Literal["keep", "reduce"] = "keep"


class InputReading(FeatureReading):
    """Relevance at the inputs.

    ``at``: token ids are explained at their look-up (``inputs``), or at the output of the module that embeds them
    (``embeddings``), where positions and types are added and normalised: a float input is explained as it is.
    ``score``: the relevance x g, or the ``gradient`` g (sensitivity).
    """

    kind: Literal["input"] = "input"
    at: Literal["inputs", "embeddings"] = "inputs"
    score: Literal["relevance", "gradient"] = "relevance"


class DifferenceReading(FeatureReading):
    """``difference``: (x - x_ref) g(x), what the difference from a reference input does; zeros are the reference unless
    one is given. ``patching``: (x_ref - x) g(x), what it would do to put the value of a reference run in x's place, at
    the inputs and at every module asked for; it needs a reference.
    """

    compares: ClassVar[bool] = True
    accounts: ClassVar[bool] = False
    at_given: ClassVar[bool] = False
    reads: ClassVar[str] = "the effect of a difference from a reference"
    kind: Literal["difference", "patching"] = "difference"


class IntegratedReading(FeatureReading):
    """(x - x_ref) times the mean of g over the straight path from x_ref to x, by Gauss-Legendre at ``steps`` places.

    In the gradient message of a plain gradient these are integrated gradients.
    """

    compares: ClassVar[bool] = True
    accounts: ClassVar[bool] = False
    taps: ClassVar[bool] = False
    at_given: ClassVar[bool] = False
    reads: ClassVar[str] = "an average over the path from a reference"
    kind: Literal["integrated"] = "integrated"
    steps: int = Field(default=32, ge=1)


class SmoothReading(FeatureReading):
    """The mean of a score over ``samples`` inputs with normal noise, drawn from ``seed``.

    ``sigma`` is the noise's standard deviation in units of each sample's range, maximum - minimum. ``score``: of each
    noisy input x + n the relevance (x + n) g, or the ``gradient`` g.
    """

    accounts: ClassVar[bool] = False
    at_given: ClassVar[bool] = False
    reads: ClassVar[str] = "an average over noisy inputs"
    kind: Literal["smooth"] = "smooth"
    samples: int = Field(default=50, ge=1)
    sigma: float = Field(default=0.15, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    score: Literal["relevance", "gradient"] = "relevance"


class AttentionReading(Reading):
    """A row of a product of attention maps, one matrix [tokens, tokens] a layer.

    The matrix of a layer is the mean over heads of ``weights`` A, of their ``relevance`` R_A, or of either times the
    gradient of A in the unmodified model (``gradient``: grad A * A, ``gradient_relevance``: grad A * R_A), first
    clamped at 0 if ``positive``. ``heads``: ``each`` keeps heads apart until the end and sums them; ``gradient_row``
    and ``gradient_matrix`` weigh each head with the mean of its gradient over the row that is read (the entries of the
    tokens that are given) or over all entries, and clamp the mean. ``identity`` adds the identity (the residual
    connection), ``normalise`` then divides rows by their sums. Layers from ``start_layer`` up to, not including,
    ``end_layer`` (negative: from the end; null: all) are multiplied, the last leftmost.

    ``row`` is the token that is read; ``target`` stands for those that the explained output is computed from (a
    position of generated text, a class token, all that are pooled), averaged: the rows of the last attention at which
    the explained output has a gradient. ``tokens``: ``all``, or those that the
    ``input`` is made into, so that class tokens and registers beside the patches of an image are left out.
    ``row_token``: what the entry of the row's own token becomes: ``keep``, ``zero`` or the ``minimum`` of its row, in
    each of several rows before these are averaged.
    ``rescale`` maps the smallest entry to 0, the largest to 1. What the row that is read does not see, through all
    layers, counts for neither minimum, maximum nor mean: padding, and what comes behind the position of a causal model.
    It is found by the weights that the graph makes of equal scores; a mask that the scores decide is refused.
    """

    of_attention: ClassVar[bool] = True
    reads: ClassVar[str] = "attention maps"
    kind: Literal["attention"] = "attention"
    matrix: Literal["weights", "relevance", "gradient", "gradient_relevance"] = "weights"
    positive: bool = False
    heads: Literal["mean", "each", "gradient_row", "gradient_matrix"] = "mean"
    identity: bool = True
    normalise: bool = False
    start_layer: int = 0
    end_layer: int | None = None
    row: int | Literal["target"] = "target"
    tokens: Literal["all", "input"] = "all"
    row_token: Literal["keep", "zero", "minimum"] = "keep"
    rescale: bool = False


class StreamsReading(Reading):
    """Relevance that self- and cross-attention move between streams of tokens, one matrix a pair of streams.

    Attention of stream s to itself: R_st += M R_st for every stream t. Of s to another stream q: R_sq += N(R_ss)^T M
    N(R_qq) and R_st += M R_qt for every t but q, where N(R) is the identity and R less the identity, rows divided by
    their sums (``normalise``; else R itself). M is the mean over heads of (grad A * A)+ (``matrix: gradient``) or of
    (grad A * R_A)+ (``gradient_relevance``), with the gradient of the unmodified model. R_ss begins as the identity,
    R_st at 0. ``start_layer`` (negative: from the end) counts the attentions of each stream.

    ``row`` and ``tokens`` are those of :class:`AttentionReading`; the row is one of the stream that the output is
    computed from.
    """

    of_attention: ClassVar[bool] = True
    reads: ClassVar[str] = "attention maps"
    kind: Literal["streams"] = "streams"
    matrix: Literal["gradient", "gradient_relevance"] = "gradient"
    normalise: bool = True
    start_layer: int = 0
    row: int | Literal["target"] = "target"
    tokens: Literal["all", "input"] = "input"


class PositionReading(FeatureReading):
    """Relevance of tokens with that of their positions: additive position embeddings, and factors that depend on the
    position (rotary tables) to which the rule 'sink' gives a share.

    To the sum over features of each token are added, for every position embedding and every module's tables, the
    absolute values of that token's sum (signed without ``absolute``).
    """

    of_tokens: ClassVar[bool] = True
    reads: ClassVar[str] = "tokens together with their positions"
    kind: Literal["position"] = "position"
    absolute: bool = True


def reading_of(content: Mapping[str, Any]) -> Reading:
    """The reading that a mapping asks for, by its ``kind``.

    Raises :class:`RulesetError` for an unknown kind, pydantic's ``ValidationError`` for anything else that is wrong.
    """
    kind = content.get("kind")
    if kind not in READINGS:
        raise RulesetError(f"There is no reading '{kind}'.{nearest(str(kind), READINGS)}")
    return READINGS[kind].model_validate(content)
