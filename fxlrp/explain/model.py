"""The converted model: the original's signature, outputs and weights, with a backward pass that carries relevance.

In: a model and a ruleset. Out: :class:`ConvertedModel`, a module around a :class:`~fxlrp.engine.conversion.Conversion`.
Capture is lazy and cached by input signature; graphs are shared between conversions of one model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture.calling import check_weights, unwrapped
from fxlrp.capture.process import plainly
from fxlrp.engine.conversion import Conversion
from fxlrp.engine.passing import Checkpoint, Passing
from fxlrp.engine.targets import Target
from fxlrp.errors import InputError, TrainingModeError
from fxlrp.explain.attribute import attribute
from fxlrp.explain.generation import Contrast, attribute_generation
from fxlrp.explain.memory import Memory, memory_of
from fxlrp.planning.plan import Plan
from fxlrp.readout.inputs_at import point_of
from fxlrp.results.attribution import Attribution
from fxlrp.results.generation import GenerationAttribution
from fxlrp.rules.primitives import same_value
from fxlrp.spec.ruleset import Ruleset
from fxlrp.spec.ruleset import ruleset as load


class ConvertedModel(nn.Module):
    """The model with a backward pass that computes relevance.

    Call it like the original; ``(x * x.grad).sum(-1)`` after an ordinary backward pass is the relevance of a
    float input x (``x.grad.sum(-1)`` where :attr:`message` is ``"relevance"``). :meth:`attribute` does that and more.
    """

    def __init__(self, conversion: Conversion) -> None:
        super().__init__()
        self.model = conversion.model
        self.conversion = conversion
        self.training = False

    @property
    def ruleset(self) -> Ruleset:
        """The ruleset that the model is converted under."""
        return self.conversion.ruleset

    @property
    def config(self) -> Any:
        """The original model's configuration, None if it has none."""
        return self.conversion.config

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        return self.conversion.dtype

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.conversion.device

    @property
    def message(self) -> str:
        """What ``x.grad`` holds at the inputs: ``"gradient"`` (relevance is x * x.grad) or ``"relevance"`` itself.

        Before the first call, when it is not known which rules the model needs, it is what the ruleset declares.
        """
        return self.ruleset.message if self.conversion.last is None else self.plan.message.value

    @property
    def captures(self) -> int:
        """How many graphs of the model have been traced so far, by this conversion and those that share its graphs.

        One graph serves every batch and length where the model allows it; see :class:`fxlrp.errors.RetraceWarning`.
        """
        return self.conversion.graphs.traced

    @property
    def plan(self) -> Plan:
        """The rules chosen for the graph captured last. Needs a first call, or ``example_inputs`` at conversion."""
        return self.conversion.plan

    def memory(self, given: Any = None, /, **inputs: Any) -> Memory:
        """How much memory explaining inputs of these sizes takes, estimated without running the model.

        What is asked for are sizes alone, so that ``torch.zeros(1, 4096, dtype=torch.long)`` serves as a text of 4,096
        tokens. Only a model that was never called, or needs another graph at that size, is captured first. Raises
        :class:`fxlrp.InputError` where sizes follow from values.
        """
        with plainly():
            return memory_of(self.conversion, inputs if given is None else given)

    def with_ruleset(self, rules: str | Path | Mapping[str, Any] | Ruleset) -> ConvertedModel:
        """The same model under another ruleset, without capturing it again."""
        return ConvertedModel(self.conversion.with_ruleset(rules))

    def train(self, mode: bool = True) -> ConvertedModel:
        """Relevance is defined in eval mode only: ``train()`` is an error."""
        if mode:
            raise TrainingModeError("A converted model has no training mode; train the original model.")
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConvertedModel:
        # Moving the conversion must not move the user's model, whose weights it shares until then.
        self.model = copy.deepcopy(self.model)
        self.conversion = Conversion(self.model, self.ruleset, self.conversion.strict)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's output, connected for a backward pass that carries relevance."""
        conversion = self.conversion
        inputs = conversion.bind(args, kwargs)
        captured = conversion.captured(inputs)
        _, rewritten = conversion.rewritten(captured)
        named = point_of(conversion, captured, inputs).zeros().arguments(rewritten) if rewritten.references else {}
        arguments = conversion.arguments(captured.program, rewritten, inputs, named=named)
        flat = conversion.run(rewritten, arguments, inputs)[0]
        own = conversion.own_outputs(captured, inputs)
        return captured.program.unpack(flat if own is None else tuple(map(_in_place_of, own, flat)))

    def attribute(
        self,
        given: Any = None,
        /,
        *,
        target: Target = None,
        contrast: Target = None,
        at: Sequence[str] = (),
        ledger: bool = False,
        tokenizer: Any = None,
        reference: Any = None,
        random_seed: int | None = None,
        relevance: Tensor | None = None,
        inputs: Any = None,
        exclude: str | Sequence[str] = (),
        outputs: bool = True,
        checkpoint: Checkpoint = None,
    ) -> Attribution:
        """The relevance of every input to one output per sample.

        Args:
            given: the inputs as the model takes them: a dict, a BatchEncoding, or one tensor, the main input. They may
                also be passed by the name ``inputs``.
            target: what is explained:

                - ``None``: the largest logit; of a model that generates text, the largest at the last position that
                  is not padding; of one that fills in mask tokens, the largest there (given a tokenizer);
                - an int: this class in every sample; of a model that generates text, this token at the last position;
                - ``(position, class)``: where logits are [batch, positions, classes];
                - ``("end_logits", 7)``: a name first, of an output that is not the logits;
                - a list, or a tensor: one of the two above per sample;
                - a function of the output object that returns one differentiable scalar per sample, [batch]: it is
                  captured with the model, so that the ruleset's rules stand in it; where that cannot be done, the plain
                  gradient is taken through it, and a warning says what share of the value that loses.
            contrast: a second target, in the same forms; target - contrast is explained.
            at: a glob of module paths, or several, whose outputs' relevance is wanted as well (``"model.layers.*"``).
            ledger: whether to account for every unit of relevance, which takes another pass a sample.
            tokenizer: names the tokens of integer inputs.
            reference: inputs to compare with, for rulesets that do (``deeplift-rescale``, ``relp``,
                ``integrated-gradients``): like ``given``, what is left out being the same; one sample may stand for
                all.
            random_seed: of a model that draws random numbers in eval mode too, which draw is explained.
            relevance: relevance R of the logits, in their shape, that is propagated in the place of a target: R = y g
                begins at the logits y, whatever the ruleset's seed, and ``explained`` is its sum by sample.
            inputs: the name of the input to explain, or several; None: all that can carry relevance.
            exclude: the name of an input to leave out, or several: an adjacency matrix, say. Inputs that are left out
                count as constants.
            outputs: whether the model's outputs are wanted in the result. Without, of scores over a large vocabulary
                [batch, positions, classes] only the explained positions are computed.
            checkpoint: what is kept from the forward to the backward pass. ``None``: every value that it needs;
                ``"blocks"``: what enters each block (a sub-layer of a transformer), which is computed again on the way
                back, for about a third more time; ``"auto"``: blocks where the values would take more than half of
                the free memory. Relevance is the same to rounding; a ledger keeps every value all the same.

        Returns:
            Relevance by input, with the unit of the explained output, in the input's shape: [batch, tokens] for ids,
            [batch, columns] where each column is looked up in a table of its own.

        Raises:
            TargetError: a target that is out of range or has the wrong form for the logits.
            InputError: inputs, module paths or a reference that do not fit the model or the ruleset.
            UncoveredOperatorError: an operation that no rule covers, unless converted with ``strict=False``.
            CaptureError: a model that cannot be captured as a graph.
        """
        if given is None:
            given, inputs = inputs, None
        globs = (at,) if isinstance(at, str) else tuple(at)
        with plainly():
            return attribute(
                self.conversion.running(Passing(random_seed, checkpoint, outputs)),
                given,
                target,
                contrast,
                globs,
                ledger,
                tokenizer,
                reference,
                relevance,
                inputs,
                exclude,
            )

    def attribute_generation(
        self,
        given: Any = None,
        /,
        max_new_tokens: int | None = None,
        *,
        generated: Tensor | None = None,
        contrast: Contrast = None,
        tokenizer: Any = None,
        chunk: int | None = None,
        inputs: Any = None,
        exclude: str | Sequence[str] = (),
    ) -> GenerationAttribution:
        """The relevance of every token before to each of the tokens that a language model generates.

        One forward pass over prompt and generated tokens serves them all; column k is what :meth:`attribute` gives for
        the k-th generated token after the prompt and the generated tokens before it. given: the prompt (of an
        encoder-decoder the encoder's inputs), padded on the left, which may also be passed by the name ``inputs``.
        max_new_tokens: how many tokens the original model generates, greedily. generated: token ids [batch, tokens] to
        explain instead. contrast: another token whose logit is subtracted, an id, ids [batch, tokens] or
        ``"runner-up"``, the best of the other tokens at each step. chunk: how many tokens go back in one pass, at most;
        memory grows with it. inputs and exclude are those of :meth:`attribute`: which inputs are explained. Raises
        :class:`fxlrp.FxlrpError` for a model that generates nothing, prompts padded on the right, and rulesets that
        need passes at other inputs.
        """
        if given is None:
            given, inputs = inputs, None
        with plainly():
            return attribute_generation(
                self.conversion,
                given,
                max_new_tokens,
                generated,
                contrast,
                tokenizer,
                chunk,
                inputs,
                exclude,
            )


def _in_place_of(own: Any, wide: Any) -> Any:
    """An output in the model's own precision, whose message goes where the one in float32 came from."""
    connected = isinstance(wide, Tensor) and wide.requires_grad
    return same_value(own, wide.to(own.dtype)) if connected else own


def convert(
    model: nn.Module,
    ruleset: str | Path | Mapping[str, Any] | Ruleset = "attnlrp",
    *,
    example_inputs: Any = None,
    strict: bool = True,
) -> ConvertedModel:
    """``model`` with a backward pass that computes relevance under ``ruleset``.

    The model stays as it is; weights are shared. Capture happens at the first call, or now on
    ``example_inputs``. With ``strict=False`` an operation that no rule covers takes the ruleset's fallback, and
    the plan says so. Raises :class:`fxlrp.FxlrpError`: unknown ruleset, training mode, a model that cannot be
    exported, an uncovered operation.
    """
    if not isinstance(model, nn.Module):
        remedy = "pass program.module()" if isinstance(model, torch.export.ExportedProgram) else "load the model first"
        raise InputError(f"convert takes a torch.nn.Module, not {type(model).__name__}: {remedy}.")
    if isinstance(model, ConvertedModel):
        raise InputError("This model is converted already: use model.with_ruleset(...) for another ruleset.")
    conversion = Conversion(unwrapped(model), load(ruleset), strict)
    check_weights(conversion.model)
    conversion.check_mode()
    if example_inputs is not None:
        with plainly():
            conversion.prepare(example_inputs)
            _ = conversion.plan
    return ConvertedModel(conversion)
