"""What a rule is: one function on one operation, with its source, what it conserves, its leak and its slow reference.

A rule's function is its definition: a forward expression with the operation's value and a changed derivative (a
*surrogate*). ``@rule`` registers it; the test-suite then checks every registered rule for value, conservation,
reference and documentation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from torch import Tensor

from fxlrp.errors import ParameterError, RulesetError, nearest, shortened, warn
from fxlrp.graph.operator_classes import ANY, OperatorClass, find_class
from fxlrp.rules.choices import Choice
from fxlrp.rules.primitives import as_gradient, as_relevance
from fxlrp.rules.ranges import Range, Relation, range_of


class Message(Enum):
    """What travels backwards along an edge x: a gradient g, or the relevance R = x g itself."""

    GRADIENT = "gradient"
    RELEVANCE = "relevance"

    @property
    def symbol(self) -> str:
        """g or R."""
        return "g" if self is Message.GRADIENT else "R"


class Conserves(Enum):
    """What the sum over a rule's messages keeps, for every incoming message."""

    EXACTLY = "sum of x g_x (constants among the terms included) = sum of y g_y"
    WITH_LEAK = "the same once the rule's declared leak is added"
    DIFFERENCES = "sum of (x - x_ref) g_x = sum of (y - y_ref) g_y, for the values x_ref, y_ref on a reference input"
    NOTHING = "the operation passes no relevance on: its value is a constant"


@dataclass(frozen=True)
class Cite:
    """Where a rule or a ruleset comes from: paper and equation or section."""

    work: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.work}, {self.place}" if self.place else self.work


def _unknown_scales(parameters: Mapping[str, Any]) -> None:
    """Nothing is known of what a rule does to the messages of factors."""


@dataclass(frozen=True)
class Rule:
    """A propagation rule for the operator classes ``on``.

    ``message`` is what its surrogate takes and gives. A gradient rule also works on relevance: by its twin, the
    same between g = R / y and R = x g, or by the form registered with :meth:`in_relevance`.

    ``surrogate(op, *operands, **parameters)`` takes the operation and its operands, those that carry relevance
    first. ``leak(op, y, g_y, *operands, **parameters)`` is the sum of y g_y less what the operands receive,
    ``leak_kind`` its name in the ledger; ``keeps_value`` is False only for a published quirk that changes the
    model's outputs; ``compares`` that it needs the operands' values on a reference input (``op.reference``);
    ``among_outputs`` that what an operand receives depends on all outputs it reaches, also on those without relevance.
    ``derivative``: its surrogate is the operation itself, so a fused operator may stand for it; ``plain``: it is the
    plain gradient, which needs no surrogate. ``scales(parameters)`` gives the numbers by which it scales the messages
    of two factors, where that is all it does (else None): what a fused kernel needs to know. ``relation`` must hold
    between the parameters, each of which has the :class:`~fxlrp.rules.ranges.Range` of its annotation.
    ``reference(op, R_y, *operands, **parameters)`` is the paper's own
    relevance form, in plain einsum.
    """

    name: str
    on: tuple[OperatorClass, ...]
    surrogate: Callable[..., Tensor]
    conserves: Conserves
    source: Cite
    leak: Callable[..., Tensor] | None = None
    leak_kind: str = ""
    keeps_value: bool = True
    message: Message = Message.GRADIENT
    compares: bool = False
    among_outputs: bool = False
    derivative: bool = False
    plain: bool = False
    scales: Callable[[Mapping[str, Any]], tuple[float, float] | None] = field(default=_unknown_scales, compare=False)
    relation: Relation | None = field(default=None, compare=False, kw_only=True)
    references: list[Callable[..., Any]] = field(default_factory=list, compare=False)
    relevances: list[Callable[..., Tensor]] = field(default_factory=list, compare=False)

    @property
    def doc(self) -> str:
        """The rule's docstring: formula and shapes."""
        return inspect.cleandoc(self.surrogate.__doc__ or "")

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The options of the rule, with their defaults."""
        signature = inspect.signature(self.surrogate)
        return {name: p for name, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def spelled(self, parameters: Mapping[str, Any]) -> str:
        """The rule as ``name(parameter=value)``, with those parameters that are not its defaults."""
        shown = [f"{k}={v}" for k, v in parameters.items() if v != self.parameters[k].default]
        return self.name + (f"({', '.join(shown)})" if shown else "")

    def fits(self, category: OperatorClass) -> bool:
        """Whether the rule can take operations of this class."""
        return not {ANY, *category.lineage}.isdisjoint(self.on)

    def reference(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the slow relevance form of the rule."""
        self.references.append(function)
        return function

    def in_relevance(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Register the surrogate that takes and gives relevance, where the published form is not the plain twin."""
        self.relevances.append(function)
        return function

    @property
    def converts(self) -> bool:
        """Whether on relevance the rule has nothing but its twin, which divides by the value: g = R / y."""
        return self.message is Message.GRADIENT and not self.relevances

    def apply(self, message: Message, op: Any, *operands: Any, **parameters: Any) -> Tensor:
        """The operation's value with the rule's backward pass for this kind of message."""
        if self.message is message:
            return self.surrogate(op, *operands, **parameters)
        if message is Message.GRADIENT:
            return as_relevance(self.surrogate(op, *operands, **parameters))
        if self.relevances:
            return self.relevances[0](op, *operands, **parameters)
        return twin(self.surrogate, op, *operands, **parameters)

    def bind(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """``parameters`` completed by defaults. Unknown names are a :class:`RulesetError`, values of a wrong type, out
        of their range or that do not go together a :class:`fxlrp.errors.ParameterError`.
        """
        for name in parameters:
            if name not in self.parameters:
                valid = nearest(name, self.parameters) if self.parameters else " It takes none."
                raise RulesetError(f"Rule '{self.name}' has no parameter '{name}'.{valid}")
        bound = {
            name: self._value(name, parameters[name]) if name in parameters else p.default
            for name, p in self.parameters.items()
        }
        if self.relation is not None and not self.relation.advised and not self.relation.holds(bound):
            raise ParameterError(
                f"Parameters of rule '{self.name}': {self.relation.told(bound)}. Give them together.",
                next((name for name in self.relation.names if name in parameters), ""),
            )
        return bound

    def doubt(self, bound: Mapping[str, Any]) -> str:
        """A sentence on complete parameters that are badly conditioned together; empty if they are not."""
        if self.relation is None or not self.relation.advised or self.relation.holds(bound):
            return ""
        return f"Parameters of rule '{self.name}': {self.relation.told(bound)}."

    @cached_property
    def ranges(self) -> Mapping[str, Range]:
        """The values that each numeric parameter may take."""
        function = inspect.unwrap(self.surrogate)
        numbers = {n: p for n, p in self.parameters.items() if type(p.default) in (int, float)}
        return {name: range_of(function, name) for name in numbers}

    def _value(self, name: str, given: Any) -> Any:
        """A parameter's value: a form by its name, anything else of the type of the default and in its range."""
        default = self.parameters[name].default
        if isinstance(default, Choice):
            try:
                return type(default)(given)
            except RulesetError as error:
                raise ParameterError(f"Parameter '{name}' of rule '{self.name}': {error}", name) from None
        wanted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(given, wanted) or (isinstance(given, bool) and not isinstance(default, bool)):
            hint = " YAML takes 1e-9 for a text: write 1.0e-9." if isinstance(given, str) and "e" in given else ""
            raise ParameterError(
                f"Parameter '{name}' of rule '{self.name}' must be a {type(default).__name__} like {default!r}, "
                f"not {shortened(repr(given))}.{hint}",
                name,
            )
        if name in self.ranges and given not in self.ranges[name]:
            raise ParameterError(
                f"Parameter '{name}' of rule '{self.name}' must be {self.ranges[name]}, not {shortened(repr(given))}.",
                name,
            )
        return given


def twin(surrogate: Callable[..., Any], op: Any, *operands: Any, **parameters: Any) -> Any:
    """What a gradient surrogate does to relevance: R_x = x g_x, where its g_y is R_y / y (0 where y is 0)."""
    return as_gradient(surrogate(op, *map(as_relevance, operands), **parameters))


RULES: dict[str, Rule] = {}
#: Other names under which a rule is known in the literature and in other toolkits.
ALIASES = {
    "alpha-beta": "alphabeta",
    "alpha_beta": "alphabeta",
    "zplus": "z_plus",
    "z-plus": "z_plus",
    "zbox": "z_box",
    "z-box": "z_box",
    "zB": "z_box",
    "wsquare": "w_square",
    "w-square": "w_square",
    "w2": "w_square",
    "guided_backprop": "guided",
    "pass": "pass_through",
    "identity": "secant",
    "detach": "constant",
    "take_all_expert": "constant",
    "block": "constant",
    "eps": "epsilon",
    "grad": "gradient",
    "uniform": "split",
    "half": "split",
    "softmax_taylor": "taylor",
    "add_norm": "normalised_add",
    "normalized_add": "normalised_add",
    "add_eps": "epsilon",
    "gamma_ali": "gamma",
}


def rule(
    *on: str | OperatorClass,
    conserves: Conserves,
    source: Cite,
    leak: Callable[..., Tensor] | None = None,
    leak_kind: str = "",
    keeps_value: bool = True,
    message: Message = Message.GRADIENT,
    compares: bool = False,
    among_outputs: bool = False,
    derivative: bool = False,
    plain: bool = False,
    scales: Callable[[Mapping[str, Any]], tuple[float, float] | None] = _unknown_scales,
    relation: Relation | None = None,
) -> Callable[[Callable[..., Tensor]], Rule]:
    """Register a function as the rule of its name for the operator classes ``on``, by name or as they are ('any' for
    all). Raises :class:`RulesetError` for a name that is no class's.

    It replaces an earlier one of that name, and a warning says so; conversions made before take it from their next
    call on.
    """
    classes = tuple(map(find_class, on))

    def register(function: Callable[..., Tensor]) -> Rule:
        made = Rule(
            function.__name__,
            classes,
            function,
            conserves,
            source,
            leak,
            leak_kind,
            keeps_value,
            message,
            compares,
            among_outputs,
            derivative,
            plain,
            scales,
            relation=relation,
        )
        enter(made)
        return made

    return register


def enter(made: Rule) -> None:
    """Put a rule into the table. One of the same name is replaced, and a warning says so."""
    if made.name in RULES:
        warn(f"The rule '{made.name}' replaces the one registered before.")
    RULES[made.name] = made


def find_rule(name: str) -> Rule:
    """The rule of this name or alias. Raises :class:`RulesetError` with the nearest valid name."""
    found = RULES.get(ALIASES.get(name, name))
    if found is None:
        raise RulesetError(f"There is no rule '{name}'.{nearest(name, RULES)}")
    return found
