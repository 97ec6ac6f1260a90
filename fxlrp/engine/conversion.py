"""A model under a ruleset, ready to run: its graphs, the plan for each, and the rewritten modules.

In: a model and a ruleset. Out: :class:`Conversion`, which turns inputs into a captured program, a plan and a module
whose backward pass carries relevance. Readers stand above it; what a user holds is
:class:`fxlrp.explain.model.ConvertedModel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.capture import Program
from fxlrp.capture.calling import Signature, called_modules, check_input, check_weights
from fxlrp.capture.dense import dtype_of
from fxlrp.capture.export import check_runs
from fxlrp.capture.process import unmoved
from fxlrp.capture.program import cut, device_of, flatten, ordinary, weight_of
from fxlrp.capture.torch_private import LOCK, outside_compiler
from fxlrp.engine.conventions import Conventions
from fxlrp.engine.graphs import Captured, Graphs
from fxlrp.engine.passing import Passing
from fxlrp.errors import InputError, TrainingModeError, nearest
from fxlrp.graph.nodes import module_outputs, module_path, source_line
from fxlrp.planning.decide import make_plan
from fxlrp.planning.plan import Plan
from fxlrp.rewrite import Rewritten, rewrite
from fxlrp.rules import RULES, Rule
from fxlrp.spec.lines import glob
from fxlrp.spec.ruleset import Ruleset, ruleset


@dataclass(frozen=True)
class Prepared:
    """Inputs by name, and the captured program that stands for the model on them."""

    given: Mapping[str, Any]
    captured: Captured


@dataclass
class _Made:
    """The graphs rewritten by the rules there are, for conversions that differ in how their passes run alone."""

    rules: tuple[Rule, ...] = ()
    rewrites: dict[Any, tuple[Plan, Rewritten]] = field(default_factory=dict)


class Conversion:
    """The engine of one model under one ruleset.

    Conversions of one model share its ``graphs``. Nothing is captured before the first inputs arrive.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Ruleset,
        strict: bool = True,
        graphs: Graphs | None = None,
        passing: Passing | None = None,
    ) -> None:
        self.model = model
        self.passing = passing or Passing()
        self.ruleset = rules
        self.strict = strict
        self.graphs = graphs or Graphs()
        self.last: Captured | None = None
        self._made = _Made()
        self._owners: dict[str, tuple[nn.Module, str]] = {}
        self._version: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what a file brings back, captures anew: graphs hold values of the tracer that cannot be copied.
        kept = {name: getattr(self, name) for name in ("model", "ruleset", "strict", "passing")}
        return {
            **kept,
            "graphs": Graphs(),
            "last": None,
            "_made": _Made(),
            "_owners": {},
            "_version": None,
        }

    @property
    def config(self) -> Any:
        """The model's configuration, None if it has none."""
        return getattr(self.model, "config", None)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        return dtype_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return device_of(self.model)

    @property
    def conventions(self) -> Conventions:
        """What the model's family agrees on: its main input, masks, whether it generates text."""
        return Conventions.of(self.model)

    @property
    def plan(self) -> Plan:
        """The plan of the graph captured last. Raises :class:`InputError` before the first call."""
        if self.last is None:
            raise InputError(
                "There is no plan before the first call: pass example_inputs to convert, or call the model once."
            )
        self.last = self.graphs.current(self.model, self.last)
        return self.rewritten(self.last.folded(self.ruleset.fold))[0]

    @cached_property
    def plain(self) -> Conversion:
        """The same model with the plain gradient: for readings that need values and gradients alone."""
        return self.with_ruleset("gradient")

    def with_ruleset(self, rules: str | Path | Mapping[str, Any] | Ruleset) -> Conversion:
        """The same model under another ruleset, without capturing it again."""
        other = Conversion(self.model, ruleset(rules), self.strict, self.graphs, self.passing)
        other.last = self.last
        return other

    def running(self, passing: Passing) -> Conversion:
        """This conversion, whose passes run in another way."""
        if passing == self.passing:
            return self
        other = Conversion(self.model, self.ruleset, self.strict, self.graphs, passing)
        other._made = self._made
        return other

    # --- from inputs to a program ---------------------------------------------------------------------------

    def given(self, inputs: Any) -> dict[str, Any]:
        """A user's inputs by name: a mapping as it is, a tuple in the order of the model's own, anything else as its
        main input.

        Raises :class:`InputError` as :meth:`bind` does.
        """
        if isinstance(inputs, Mapping):
            return self.bind((), inputs)
        if type(inputs) is tuple:
            return self.bind(inputs, {})
        if isinstance(inputs, list) and not any(isinstance(leaf, Tensor) for leaf in flatten({"": inputs}).values()):
            raise InputError("A list is no tensor: pass torch.tensor(inputs), with the batch as its first axis.")
        main = self.conventions.first_input
        return self.bind((inputs,), {}) if main is None else self.bind((), {main: inputs})

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name. Raises :class:`InputError` for names the model does not take, NaN and mixed devices."""
        self.check_mode()
        inputs = Signature.of(self.model).bind(args, kwargs)
        self._check_values(inputs)
        return inputs

    def prepare(self, inputs: Any) -> Prepared:
        """A user's inputs by name, with the program that stands for the model on them."""
        given = self.given(inputs)
        captured = self.captured(given)
        self.check_random(captured.program)
        return Prepared(given, captured)

    def check_random(self, program: Program) -> None:
        """Raise :class:`InputError` where each pass would draw numbers of its own, and explain another value."""
        drawn = program.random
        if not drawn:
            return
        where = f"'{drawn[0].target}' in module '{module_path(drawn[0]) or 'the top level'}' ({source_line(drawn[0])})"
        if self.passing.random_seed is None:
            raise InputError(
                f"{type(self.model).__name__} draws random numbers by {where}, in eval mode too: its passes would "
                "explain different values. Switch that off (F.dropout(x, p, training=self.training)), or explain one "
                "draw: attribute(..., random_seed=0)."
            )
        if self.ruleset.compares:
            raise InputError(
                f"'{self.ruleset.name}' compares two runs, which draw different random numbers by {where}. Use a "
                "ruleset that compares none, or switch the drawing off."
            )

    def check_mode(self) -> None:
        """Raise :class:`TrainingModeError` where a module is in training mode."""
        training = next((name or type(m).__name__ for name, m in called_modules(self.model) if m.training), None)
        if training is not None:
            raise TrainingModeError(
                f"The model is in training mode (module '{training}'): dropout would make relevance random. "
                "Call model.eval() first."
            )

    def _check_values(self, inputs: Mapping[str, Any]) -> None:
        places = {self.device.type: "the model's weights"}
        leaves = flatten(inputs)
        check_weights(self.model, needed=not all(v.is_meta for v in leaves.values() if isinstance(v, Tensor)))
        for name, given in inputs.items():
            check_input(name, given)
        for name, value in leaves.items():
            if not isinstance(value, Tensor):
                continue
            if value.layout is not torch.strided or value.is_nested:
                raise InputError(
                    f"Input '{name}' is a {'nested' if value.is_nested else 'sparse'} tensor, whose entries have no "
                    "relevance of their own here: pass it as a dense one (.to_dense(), with a mask where it is padded)."
                )
            if value.is_floating_point() and value.dtype.itemsize == 1:
                raise InputError(
                    f"Input '{name}' is of {value.dtype}, which nothing is computed in: pass it as the model computes "
                    "with it (.to(torch.float16), times its scale)."
                )
            if value.ndim and len(value) == 0:
                raise InputError(f"Input '{name}' of shape {tuple(value.shape)} holds no sample.")
            if value.is_floating_point() and not value.is_meta and value.numel():
                _check_range(name, value)
            if value.ndim and value.device.type not in places:
                other, where = next(iter(places.items()))
                raise InputError(
                    f"Input '{name}' is on '{value.device}' but {where} are on '{other}'. "
                    "Move them together with .to(device)."
                )

    def captured(self, inputs: Mapping[str, Any]) -> Captured:
        """The program that stands for the model on these inputs, captured now if there is none yet."""
        captured = self.graphs.serve(self.model, (self.dtype, self.device), inputs)
        self.last = captured  # read by :attr:`plan` alone: another thread may have served other inputs since
        return captured.folded(self.ruleset.fold)

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
                weight = program.taken(ordinary(self._weight(program.weights[tables[name]])))
                values.append(weight if replaced is None else cut(weight, ends=True))
            elif name in program.weights:
                values.append(program.taken(ordinary(cut(self._weight(program.weights[name])))))
            elif name in program.constants:
                values.append(program.taken(program.constants[name].to(self.device)))
            else:
                values.append(program.taken(ordinary(leaves[program.inputs[name]])))
        return values

    def own_outputs(self, captured: Captured, inputs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The flat outputs in the model's own precision, None where the graph computes in it."""
        if captured.own is None:
            return None
        _, rewritten = self.plain.rewritten(captured.own)
        with torch.no_grad():
            flat: tuple[Any, ...] = self.run(
                rewritten, self.arguments(captured.own.program, rewritten, inputs), inputs
            )[0]
        return flat

    def _weight(self, target: str) -> Any:
        if self._version is not self.graphs.version.state:  # modules may be others now
            self._version, self._owners = self.graphs.version.state, {}
        if target not in self._owners:
            owner, _, name = target.rpartition(".")
            self._owners[target] = (self.model.get_submodule(owner), name)
        return weight_of(*self._owners[target], self.model, target)

    @outside_compiler
    def rewritten(
        self, captured: Captured, taps: tuple[fx.Node, ...] = (), ledger: bool = False, entered: bool = False
    ) -> tuple[Plan, Rewritten]:
        """The plan of a captured program under this ruleset, and its rewritten graph that returns ``taps`` as well.

        With ``entered`` the values of look-ups are arguments.
        """
        key = (captured, taps, ledger, entered)
        if self._made.rules != (rules := tuple(RULES.values())):  # a rule was registered, or replaced, since
            self._made.rules, self._made.rewrites = rules, {}
        made = self._made.rewrites.get(key)
        if made is None:
            with LOCK:
                held = {k: each for k, each in self._made.rewrites.items() if self.graphs.holds(k[0])}
                known = (plan for (of, *_), (plan, _) in held.items() if of is captured)
                plan = next(known, None) or make_plan(captured.program, captured.structure, self.ruleset, self.strict)
                made = held.get(key) or (plan, rewrite(plan, taps, ledger=ledger, entered=entered))
                self._made.rewrites = {**held, key: made}
        return made

    def taps(self, captured: Captured, globs: Sequence[str]) -> dict[str, fx.Node]:
        """The output node of every module whose path fits a glob, in the order of the graph; of a module with several,
        or called several times, each under its number: ``path[0]``, ``path[1]``.

        Raises :class:`InputError` for a glob that fits no module that carries relevance.
        """
        plan, _ = self.rewritten(captured)
        carried = module_outputs(captured.program.graph, plan.carrying)
        chosen: dict[str, fx.Node] = {}
        for pattern in globs:
            fitting = {path: nodes for path, nodes in carried.items() if glob(pattern).fullmatch(path)}
            if not fitting:
                known = nearest(pattern, list(carried)[:40])
                raise InputError(f"at='{pattern}' fits no module whose output carries relevance.{known}")
            for path, nodes in fitting.items():
                names = [path] if len(nodes) == 1 else [f"{path}[{index}]" for index in range(len(nodes))]
                chosen |= dict(zip(names, nodes, strict=True))
        return chosen

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """For the time of one run: what is drawn is drawn from the seed, and the caller's random states do not move."""
        if self.passing.random_seed is None:
            yield
            return
        with unmoved():
            torch.manual_seed(self.passing.random_seed)
            yield

    def run(self, rewritten: Rewritten, arguments: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
        """Call the rewritten module; where it fails because the model would, say so in the model's own words."""
        try:
            with self.drawing():
                return self.passing.module(rewritten, arguments, self.device)(*arguments)
        except (RuntimeError, IndexError, ValueError, TypeError):
            check_runs(self.model, inputs)
            raise


def _check_range(name: str, value: Tensor) -> None:
    """Raise :class:`InputError` for NaN, infinity and numbers whose squares overflow, but for what masks hold."""
    limit = torch.finfo(torch.promote_types(value.dtype, torch.float32)).max ** 0.5
    least, most = map(float, torch.aminmax(value.detach()))
    if most != most:
        raise InputError(f"Input '{name}' contains NaN: relevance would be NaN everywhere. Clean the input first.")
    masks = least == -float("inf") or least == torch.finfo(value.dtype).min
    if most > limit or (least < -limit and not masks):
        raise InputError(
            f"Input '{name}' holds {most if most > limit else least:.3g}, the square of which is no number in "
            f"{value.dtype}: relevance would not be finite. Scale or clean the input first."
        )
