"""The converted model: the original's signature, outputs and weights, with a backward pass that carries relevance.

In: a model and a ruleset. Out: :class:`ConvertedModel`. Capture is lazy and cached by input signature; programs
are shared between conversions of one model with different rulesets.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.attribute import attribute
from fxlrp.attribution import Attribution
from fxlrp.cache import Cache, Captured
from fxlrp.capture import Program
from fxlrp.capture.export import check_runs
from fxlrp.capture.program import device_of, flatten
from fxlrp.errors import InputError, TrainingModeError, nearest
from fxlrp.generated import GenerationAttribution
from fxlrp.generation import Contrast, attribute_generation
from fxlrp.graph.view import module_stack
from fxlrp.places import glob
from fxlrp.plan import Plan, make_plan
from fxlrp.readout.point import point_of
from fxlrp.readout.task import as_inputs
from fxlrp.rewrite import Rewritten, rewrite
from fxlrp.rulesets import Ruleset, ruleset
from fxlrp.targets import Target


class ConvertedModel(nn.Module):
    """The model with a backward pass that computes relevance.

    Call it like the original; ``(x * x.grad).sum(-1)`` after an ordinary backward pass is the relevance of a
    float input x (``x.grad.sum(-1)`` where :attr:`message` is ``"relevance"``). :meth:`attribute` does that and more.
    """

    def __init__(self, model: nn.Module, rules: Ruleset, strict: bool = True, cache: Cache | None = None) -> None:
        super().__init__()
        self.model = model
        self.ruleset = rules
        self.strict = strict
        self._cache = cache or Cache()
        self._rewrites: dict[Any, tuple[Plan, Rewritten]] = {}
        self._owners: dict[str, tuple[nn.Module, str]] = {}
        self._plain: dict[str, ConvertedModel] = {}
        self._last: Captured | None = None
        self.training = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what a file brings back, captures anew: graphs hold values of the tracer that cannot be copied.
        return {**self.__dict__, "_cache": Cache(), "_rewrites": {}, "_owners": {}, "_plain": {}, "_last": None}

    @property
    def config(self) -> Any:
        """The original model's configuration, None if it has none."""
        return getattr(self.model, "config", None)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        return next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return device_of(self.model)

    @property
    def message(self) -> str:
        """What ``x.grad`` holds at the inputs: ``"gradient"`` (relevance is x * x.grad) or ``"relevance"`` itself.

        Before the first call, when it is not known which rules the model needs, it is what the ruleset declares.
        """
        return self.ruleset.message if self._last is None else self.plan.message.value

    @property
    def captures(self) -> int:
        """How many graphs of the model have been traced so far, by this conversion and those that share its cache.

        One graph serves every batch and length where the model allows it; see :class:`fxlrp.errors.RetraceWarning`.
        """
        return self._cache.traced

    @property
    def plan(self) -> Plan:
        """The rules chosen for the graph captured last. Needs a first call, or ``example_inputs`` at conversion."""
        if self._last is None:
            raise InputError(
                "There is no plan before the first call: pass example_inputs to convert, or call the model once."
            )
        return self.rewritten(self._last.folded(self.ruleset.fold))[0]

    def with_ruleset(self, rules: str | Path | Mapping[str, Any] | Ruleset) -> ConvertedModel:
        """The same model under another ruleset, without capturing it again."""
        other = ConvertedModel(self.model, ruleset(rules), self.strict, self._cache)
        other._last = self._last
        return other

    @property
    def plain(self) -> ConvertedModel:
        """The same model with the plain gradient, made once: for readings that need values and gradients alone."""
        if not self._plain:
            self._plain["gradient"] = self.with_ruleset("gradient")
        return self._plain["gradient"]

    def train(self, mode: bool = True) -> ConvertedModel:
        """Relevance is defined in eval mode only: ``train()`` is an error."""
        if mode:
            raise TrainingModeError("A converted model has no training mode; train the original model.")
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConvertedModel:
        # Moving the conversion must not move the user's model, whose weights it shares until then.
        self.model = copy.deepcopy(self.model)
        self._cache, self._rewrites, self._owners, self._last = Cache(), {}, {}, None
        self._plain = {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's output, connected for a backward pass that carries relevance."""
        inputs = self.bind(args, kwargs)
        captured = self.captured(inputs)
        _, rewritten = self.rewritten(captured)
        named = point_of(self, captured, inputs).zeros().arguments(rewritten) if rewritten.references else {}
        values = self.run(rewritten, self.arguments(captured.program, rewritten, inputs, named=named), inputs)
        return captured.program.unpack(values[0])

    def run(self, rewritten: Rewritten, arguments: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
        """Call the rewritten module; where it fails because the model would, say so in the model's own words."""
        try:
            return rewritten.module(*arguments)
        except (RuntimeError, IndexError, ValueError, TypeError):
            check_runs(self.model, inputs)
            raise

    def attribute(
        self,
        inputs: Any,
        *,
        target: Target = None,
        contrast: Target = None,
        at: Sequence[str] = (),
        ledger: bool = False,
        tokenizer: Any = None,
        reference: Any = None,
    ) -> Attribution:
        """The relevance of every input to one output per sample.

        inputs: as the model takes them, a dict, a BatchEncoding, or one tensor. target: see
        :mod:`fxlrp.targets`; ``contrast`` is a second one, and target - contrast is explained. at: globs of
        module paths whose outputs' relevance is wanted as well (``"model.layers.*"``). ledger: account for
        every unit of relevance. tokenizer: names the tokens of integer inputs. reference: inputs to compare with, for
        rulesets that do (``deeplift-rescale``, ``relp``, ``integrated-gradients``): like ``inputs``, what is left out
        being the same; one sample may stand for all. Raises :class:`fxlrp.FxlrpError` for anything that does not fit.
        """
        globs = (at,) if isinstance(at, str) else tuple(at)
        return attribute(self, inputs, target, contrast, globs, ledger, tokenizer, reference)

    def attribute_generation(
        self,
        inputs: Any,
        max_new_tokens: int | None = None,
        *,
        generated: Tensor | None = None,
        contrast: Contrast = None,
        tokenizer: Any = None,
        chunk: int | None = None,
    ) -> GenerationAttribution:
        """The relevance of every token before to each of the tokens that a language model generates.

        One forward pass over prompt and generated tokens serves them all; column k is what :meth:`attribute` gives for
        the k-th generated token after the prompt and the generated tokens before it. inputs: the prompt (of an
        encoder-decoder the encoder's inputs), padded on the left. max_new_tokens: how many tokens the original model
        generates, greedily. generated: token ids [batch, tokens] to explain instead. contrast: another token whose
        logit is subtracted, an id, ids [batch, tokens] or ``"runner-up"``, the best of the other tokens at each step.
        chunk: how many tokens go back in one pass, at most; memory grows with it. Raises :class:`fxlrp.FxlrpError` for
        a model that generates nothing, prompts padded on the right, and rulesets that need passes at other inputs.
        """
        return attribute_generation(self, inputs, max_new_tokens, generated, contrast, tokenizer, chunk)

    # --- from inputs to a program ---------------------------------------------------------------------------

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name. Raises :class:`InputError` for names the model does not take, NaN and mixed devices."""
        self._check_mode()
        parameters = inspect.signature(self.model.forward).parameters
        if len(args) > len(parameters):
            raise InputError(f"{type(self.model).__name__} takes {len(parameters)} inputs, {len(args)} were given.")
        inputs = dict(zip(parameters, args, strict=False)) | dict(kwargs)
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        named = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        for name in inputs:
            if name not in named and not (open_ended and name in _KNOWN_EXTRAS):
                raise InputError(f"{type(self.model).__name__} has no input '{name}'.{nearest(name, named)}")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        self._check_values(inputs)
        return inputs

    def _check_mode(self) -> None:
        training = next((name or type(m).__name__ for name, m in self.model.named_modules() if m.training), None)
        if training is not None:
            raise TrainingModeError(
                f"The model is in training mode (module '{training}'): dropout would make relevance random. "
                "Call model.eval() first."
            )

    def _check_values(self, inputs: Mapping[str, Any]) -> None:
        places = {self.device.type: "the model's weights"}
        for name, value in flatten(inputs).items():
            if not isinstance(value, Tensor):
                continue
            if value.ndim and len(value) == 0:
                raise InputError(f"Input '{name}' of shape {tuple(value.shape)} holds no sample.")
            if value.is_floating_point() and not value.is_meta and bool(torch.isnan(value).any()):
                raise InputError(
                    f"Input '{name}' contains NaN: relevance would be NaN everywhere. Clean the input first."
                )
            if value.ndim and value.device.type not in places:
                other, where = next(iter(places.items()))
                raise InputError(
                    f"Input '{name}' is on '{value.device}' but {where} are on '{other}'. "
                    "Move them together with .to(device)."
                )

    def captured(self, inputs: Mapping[str, Any]) -> Captured:
        """The program that stands for the model on these inputs, captured now if there is none yet."""
        self._last = self._cache.serve(self.model, (self.dtype, self.device), inputs)
        return self._last.folded(self.ruleset.fold)

    def arguments(
        self,
        program: Program,
        rewritten: Rewritten,
        inputs: Mapping[str, Any],
        replaced: Mapping[str, Tensor] | None = None,
        named: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """The values of the rewritten module's arguments: weights (cut off), constants, inputs, weights of look-ups;
        and those that are ``named``.
        """
        leaves = {**flatten(inputs), **(replaced or {})}
        tables = {f"{name}_lookup": name for name in rewritten.lookups}
        values: list[Any] = []
        for name in rewritten.arguments:
            if named and name in named:
                values.append(named[name])
            elif name in tables:
                weight = self._weight(program.weights[tables[name]])
                values.append(weight if replaced is None else weight.detach().requires_grad_())
            elif name in program.weights:
                values.append(self._weight(program.weights[name]).detach())
            elif name in program.constants:
                values.append(program.constants[name].to(self.device))
            else:
                values.append(leaves[program.inputs[name]])
        return values

    def _weight(self, target: str) -> Tensor:
        if target not in self._owners:
            owner, _, name = target.rpartition(".")
            self._owners[target] = (self.model.get_submodule(owner), name)
        weight: Tensor = getattr(*self._owners[target])
        return weight

    def rewritten(
        self, captured: Captured, taps: tuple[fx.Node, ...] = (), ledger: bool = False, entered: bool = False
    ) -> tuple[Plan, Rewritten]:
        """The plan of a captured program under this ruleset, and its rewritten graph that returns ``taps`` as well.

        With ``entered`` the values of look-ups are arguments.
        """
        key = (captured, taps, ledger, entered)
        if key not in self._rewrites:
            self._rewrites = {k: made for k, made in self._rewrites.items() if self._cache.holds(k[0])}
            known = (plan for (of, *_), (plan, _) in self._rewrites.items() if of is captured)
            plan = next(known, None) or make_plan(captured.program, captured.structure, self.ruleset, self.strict)
            self._rewrites[key] = (plan, rewrite(plan, taps, ledger=ledger, entered=entered))
        return self._rewrites[key]

    def taps(self, captured: Captured, globs: Sequence[str]) -> dict[str, fx.Node]:
        """The output node of every module whose path fits a glob, in the order of the graph.

        Raises :class:`InputError` for a glob that fits no module that carries relevance.
        """
        outputs = module_outputs(captured.program)
        plan, _ = self.rewritten(captured)
        carried = {path: node for path, node in outputs.items() if node in plan.carrying}
        chosen: dict[str, fx.Node] = {}
        for pattern in globs:
            fitting = {path: node for path, node in carried.items() if glob(pattern).fullmatch(path)}
            if not fitting:
                known = nearest(pattern, list(carried)[:40])
                raise InputError(f"at='{pattern}' fits no module whose output carries relevance.{known}")
            chosen |= fitting
        return chosen


_KNOWN_EXTRAS = frozenset(
    {
        "position_ids",
        "token_type_ids",
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_cache",
    }
)


def module_outputs(program: Program) -> dict[str, fx.Node]:
    """The last float value computed inside each module, by module path: its output."""
    outputs: dict[str, fx.Node] = {}
    last_use = {node: index for index, node in enumerate(program.graph.nodes)}
    inside: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        for path, _ in module_stack(node):
            if path:
                inside.setdefault(path, []).append(node)
    for path, nodes in inside.items():
        members = set(nodes)
        leaving = [
            n for n in nodes if any(user not in members for user in n.users) and isinstance(n.meta.get("val"), Tensor)
        ]
        floats = [n for n in leaving if n.meta["val"].is_floating_point()]
        if floats:
            outputs[path] = max(floats, key=last_use.__getitem__)
    return outputs


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
        raise InputError(f"convert takes a torch.nn.Module, not {type(model).__name__}; load the model first.")
    converted = ConvertedModel(model, _ruleset(ruleset), strict)
    converted._check_mode()
    if example_inputs is not None:
        converted.captured(converted.bind((), as_inputs(converted, example_inputs)))
        _ = converted.plan
    return converted


def _ruleset(source: Any) -> Ruleset:
    return ruleset(source)
