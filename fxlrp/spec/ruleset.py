"""Rulesets: which rule for which pattern or operator class, as validated YAML.

In: a packaged name, a path, a dictionary. Out: a frozen :class:`Ruleset`. Errors give file, line, column and
the nearest name.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, TypeAdapter, ValidationError
from torch import Tensor

from fxlrp.errors import ParameterError, RulesetError, closest, nearest, shortened, warn
from fxlrp.graph.operator_classes import ANY, FORK, OperatorClass, class_name
from fxlrp.patterns import PATTERNS
from fxlrp.rules import find_rule
from fxlrp.rules.rule import ALIASES, RULES, Message
from fxlrp.spec.changes import Change
from fxlrp.spec.citation import Citation, RulesetInfo, Switch
from fxlrp.spec.files import folder, is_file, position, read
from fxlrp.spec.lines import RESIDUAL, Line, Scope, labels
from fxlrp.spec.readings import READINGS, InputReading, Reading, reading_of
from fxlrp.spec.seeds import LOGIT, NamedSeed

if TYPE_CHECKING:
    import yaml

#: The most rulesets that may extend one another in a row.
LONGEST_CHAIN = 16
#: What a ruleset takes from the one that it extends unless it says otherwise, besides rules.
INHERITED = ("message", "bias", "seed", "temperature", "fallback", "readout", "fold")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a ruleset file, for editors; ``rulesets/ruleset.schema.json`` holds it."""
    with warnings.catch_warnings():  # a seed says its default itself
        warnings.filterwarnings("ignore", "Default value .* is not JSON serializable")
        schema = Ruleset.model_json_schema(by_alias=True)
    kinds: Any = tuple(dict.fromkeys(READINGS.values()))
    readings = TypeAdapter(Annotated[Union[kinds], Field(discriminator="kind")]).json_schema(by_alias=True)  # noqa: UP007
    schema["$defs"] |= readings.pop("$defs")
    schema["properties"]["readout"] = readings | {"default": schema["properties"]["readout"]["default"]}
    return schema


class Ruleset(BaseModel):
    """A published method as data: ordered rules (the first that matches wins), seed, bias policy, citation.

    ``conserves`` states in one sentence which conservation law holds, ``switches`` where paper and code differ,
    ``domain`` what kind of model the method was made for.
    ``fold: [affine]``: scales and shifts by one constant a channel behind a linear map, such as a batch norm, are
    merged into its weight and bias before rules are chosen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fxlrp: Literal[1] = 1
    name: str
    version: str = "1"
    title: str = ""
    description: str = ""
    citation: Citation | None = None
    extends: str | None = None
    rules: tuple[Line, ...] = ()
    message: Literal["gradient", "relevance"] = "gradient"
    bias: Literal["source", "distribute"] = "source"
    seed: NamedSeed = LOGIT
    temperature: float = Field(default=1.0, gt=0)
    readout: SerializeAsAny[Reading] = InputReading()
    fold: tuple[Literal["affine"], ...] = ()
    fallback: str = "gradient"
    conserves: str = ""
    switches: tuple[Switch, ...] = ()
    domain: Literal["any", "text", "images"] = "any"
    notes: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Twelve hex digits of the ruleset's content."""
        return hashlib.sha256(
            json.dumps(self.model_dump(by_alias=True, mode="json"), sort_keys=True).encode()
        ).hexdigest()[:12]

    @property
    def info(self) -> RulesetInfo:
        """The identity of the ruleset, as results keep it."""
        cite = self.citation
        return RulesetInfo(self.name, self.version, self.hash, self.title, str(cite or ""), cite.url if cite else None)

    @property
    def takes(self) -> Message:
        """The message that the ruleset asks for throughout."""
        return Message(self.message)

    def explained(self, logits: Tensor) -> Tensor:
        """The scores [..., classes] of which one entry per sample is explained."""
        return self.seed.explained(logits, self.temperature, self.takes)

    def begun(self, logits: Tensor) -> Tensor:
        """What relevance begins as at each entry of the logits, [..., classes]."""
        return self.seed.begun(logits, self.temperature)

    @property
    def begins_as_explained(self) -> bool:
        """Whether relevance begins as the explained scalar itself, with a gradient of one."""
        return self.seed.amount is None and (self.seed.linear or self.takes is Message.GRADIENT)

    @property
    def compares(self) -> bool:
        """Whether it compares inputs with a reference, in a rule or in its read-out."""
        return self.readout.compares or any(entry.bound[0].compares for entry in self.rules)

    @cached_property
    def mentions(self) -> frozenset[str]:
        """Everything that some entry matches."""
        return frozenset(entry.match for entry in self.rules)

    @cached_property
    def positional(self) -> bool:
        """Whether some entry is for the first or the last of its class."""
        return any(entry.where.first or entry.where.last for entry in self.rules)

    def choose(
        self,
        labels: Iterable[str],
        stack: Sequence[tuple[str, str]],
        category: OperatorClass,
        ends: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset()),
    ) -> Line | None:
        """The first entry that matches one of a node's labels in its enclosing modules with a rule for its
        operator class. ``ends`` are the labels of which the node is first, and last.

        A rule for products is thus passed over where a product turned out linear, one factor being constant.
        """
        names = set(labels)
        return next(
            (e for e in self.rules if e.match in names and e.fits(category) and e.where.accepts(e.match, stack, ends)),
            None,
        )

    def override(
        self,
        where: str | Mapping[str, str | bool] | None = None,
        *,
        fields: Mapping[str, Any] | None = None,
        rules: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Ruleset:
        """A copy with some choices changed: fields of the ruleset, rules, and parameters of the rules it has.

        ``fields``: by name (``{"bias": "distribute"}``). ``rules``: by pattern, part of a pattern or operator class
        (``{"linear": {"rule": "gamma", "gamma": 0.05}, "norm.mean": "constant"}``); a mapping without a rule changes
        parameters of the lines that match (``{"linear": {"epsilon": 0.1}}``). ``params``: set on all rules that take
        them (``{"epsilon": 0.1}``). Any of these may be given as a keyword of its own as long as its name is but one
        of the three: ``override(bias="distribute", activation="gradient", epsilon=0.1)``.

        ``where`` limits new rules: ``"*.mlp.*"``, ``{"module": ..., "class": ...}`` or ``{"first": True}``. Raises
        :class:`RulesetError` for unknown names and values, and for a ``where`` without a new rule.
        """
        known = {name for name in type(self).model_fields if name not in ("rules", "name", "extends")}
        given = Change(fields or {}, rules or {}, params or {})
        change = Change.of(self.name, known, self.rules, given, changes)
        place = {"module": where} if isinstance(where, str) else dict(where or {})
        lines = [line.model_dump(by_alias=True) for line in self.rules]
        new = []
        for match, value in change.rules.items():
            if isinstance(value, Mapping) and "rule" not in value:
                _amend(lines, match, value, self.name)
            else:
                new.append(_line(match, value, place))
        if place and not new:
            raise RulesetError(
                f"where={where!r} says where a new rule applies, but no rule was given: name one, as in "
                'override(linear={"rule": "gamma"}, where="*.mlp.*").'
            )
        for line in lines:
            taken = {name: value for name, value in change.params.items() if name in find_rule(line["rule"]).parameters}
            line["params"] = {**line["params"], **taken}
        content = {**self.model_dump(by_alias=True), **change.fields, "rules": new + lines, "extends": None}
        asked = change.fields.get("readout")
        if isinstance(asked, Mapping):  # of the same kind it changes some of the settings, else it replaces them
            same = asked.get("kind", self.readout.kind) == self.readout.kind
            content["readout"] = {**(self.readout.model_dump() if same else {}), **asked}
        return _validated(content, f"override of '{self.name}'", None)

    def switch(self, *names: str) -> Ruleset:
        """A copy that follows the other of paper and code at each of the named ``switches``.

        Raises :class:`RulesetError` for a name that the ruleset does not have.
        """
        known = {switch.name: switch for switch in self.switches}
        changed = self
        for name in names:
            if name not in known:
                raise RulesetError(f"Ruleset '{self.name}' has no switch '{name}'.{nearest(name, known)}")
            changed = changed.override(**known[name].override)
        return changed


def _amend(rules: list[dict[str, Any]], match: str, params: Mapping[str, Any], name: str) -> None:
    """Set parameters of every entry for ``match`` whose rule takes one of them."""
    fitting = [entry for entry in rules if entry["match"] == match]
    takers = [entry for entry in fitting if set(params) & set(find_rule(entry["rule"]).parameters)]
    if not takers:
        known = {taken for entry in fitting for taken in find_rule(entry["rule"]).parameters}
        near = next((f" Did you mean '{near}'?" for each in params if (near := closest(each, known))), "")
        raise RulesetError(
            f"Ruleset '{name}' has no rule for '{match}' that takes {', '.join(params)}.{near} To give another rule: "
            f'{match}={{"rule": ..., ...}}.'
        )
    for entry in takers:
        entry["params"] = {**entry["params"], **params}


def _line(match: str, value: Any, place: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {"rule": value} if isinstance(value, str) else dict(value)
    known = {key: spec.pop(key) for key in ("rule", "params", "where", "post", "scope") if key in spec}
    return {
        "match": class_name(match),
        "rule": known.get("rule", ""),
        "where": known.get("where", place),
        "params": {**known.get("params", {}), **spec},
        **{key: known[key] for key in ("post", "scope") if key in known},
    }


def rulesets() -> list[str]:
    """The names of the packaged rulesets."""
    return sorted(path.stem for path in folder().glob("*.yaml") if not path.stem.startswith("_"))


def ruleset(source: str | Path | Mapping[str, Any] | Ruleset) -> Ruleset:
    """A ruleset by packaged name, path to a YAML file, dictionary, or as it is.

    Raises :class:`RulesetError` with file, line, column and the nearest valid name.
    """
    if isinstance(source, Ruleset):
        return source
    if isinstance(source, Mapping):
        return _complete(dict(source), "the given dictionary", None, Path.cwd())
    if not isinstance(source, (str, Path)):
        raise RulesetError(f"A ruleset is a name, a path, a dictionary or a Ruleset, not {type(source).__name__}.")
    return _load(_located(source))


def _located(source: str | Path) -> Path:
    """The file of a ruleset: a packaged name means the packaged one, whatever the current folder holds."""
    path = Path(source)
    packaged = folder() / f"{source}.yaml"
    if isinstance(source, str) and path.name == source and is_file(packaged):
        if is_file(path):
            warn(
                f"'{source}' is the packaged ruleset, not the file of that name in the current folder. For the file "
                f"give its path: './{source}'."
            )
        return packaged
    if is_file(path):
        return path
    if path.suffix in (".yaml", ".yml"):
        raise RulesetError(f"There is no ruleset file '{shortened(path)}'.")
    if not is_file(packaged):
        name = shortened(source)
        raise RulesetError(f"There is no ruleset '{name}'.{nearest(name, rulesets())}")
    return packaged


def _load(path: Path, above: tuple[Path, ...] = ()) -> Ruleset:
    """The ruleset of a file, which those of ``above`` extend."""
    content, node = read(path, path.stat().st_mtime)
    return _complete(dict(content), path.name, node, path.parent, (*above, path.resolve()))


def _complete(
    content: dict[str, Any], origin: str, node: yaml.Node | None, beside: Path, files: tuple[Path, ...] = ()
) -> Ruleset:
    """Validate, then put the rules of the ruleset it extends behind its own; ``files`` are its own and those above."""
    own = _validated(content, origin, node)
    if own.extends is None:
        return own
    path, place = _extended(own.extends, beside, files[-1:]), position(node, ("extends",))
    if not is_file(path):
        name = shortened(own.extends)
        raise RulesetError(f"{origin}{place}: extends unknown ruleset '{name}'.{nearest(name, rulesets())}")
    if path.resolve() in files or len(files) > LONGEST_CHAIN:
        chain = " extends ".join(shortened(each.stem) for each in (*files[:LONGEST_CHAIN], path))
        raise RulesetError(f"{origin}{place}: rulesets extend each other in a circle, or too many of them: {chain}.")
    base = _load(path, files)
    unset = {f: getattr(base, f) for f in INHERITED if f not in own.model_fields_set}
    return own.model_copy(update={"rules": own.rules + base.rules, "extends": None, **unset})


def _extended(name: str, beside: Path, itself: tuple[Path, ...] = ()) -> Path:
    """The file of a ruleset that another extends: beside that one, or a packaged one, such as that of its own name."""
    near, packaged = beside / f"{name}.yaml", folder() / f"{name}.yaml"
    if not is_file(near) or (near.resolve() in itself and is_file(packaged)):
        return packaged
    if beside.resolve() != folder().resolve() and is_file(packaged):
        warn(f"'{name}' is here the file '{near}', not the packaged ruleset of that name.")
    return near


def origins(source: str | Path | Mapping[str, Any] | Ruleset) -> tuple[str, ...]:
    """For each of a ruleset's rules the name of the ruleset that it is written in: itself, or one that it extends."""
    whole = ruleset(source)
    if isinstance(source, Ruleset):
        return (whole.name,) * len(whole.rules)
    beside, itself = Path.cwd(), tuple[Path, ...]()
    if isinstance(source, Mapping):
        content = dict(source)
    else:
        path = _located(source)
        content, beside, itself = read(path, path.stat().st_mtime)[0], path.parent, (path.resolve(),)
    own = (whole.name,) * len(content.get("rules") or ())
    return own + (origins(_extended(content["extends"], beside, itself)) if content.get("extends") else ())


def _validated(content: dict[str, Any], origin: str, node: yaml.Node | None) -> Ruleset:
    known: Mapping[str, Any] = Ruleset.model_fields
    inside: tuple[str, ...] = ()
    try:
        if isinstance(content.get("readout"), Mapping):  # of a class that its kind names, perhaps a registered one
            inside = ("readout",)
            content = {**content, "readout": reading_of(content["readout"])}
            inside = ()
        made = Ruleset.model_validate(content)
    except RulesetError as error:
        raise RulesetError(f"{origin}{position(node, (*inside, 'kind'))}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        path = (*inside, *first["loc"])
        hint = ""
        if first["type"] == "extra_forbidden":
            fields = READINGS[content["readout"]["kind"]].model_fields if inside else known
            hint = nearest(str(path[-1]), Line.model_fields if len(path) == 3 else fields)
        given = first["input"] if isinstance(first["input"], (str, int, float)) else None
        found = "" if given is None or hint else f", not {shortened(repr(given))}"
        message = f"{origin}{position(node, path)}: {'.'.join(map(str, path))}: {first['msg']}{found}.{hint}"
        raise RulesetError(message) from None
    for index, entry in enumerate(made.rules):
        _check_entry(entry, index, origin, node)
    find_rule(made.fallback)
    return made


def _check_entry(entry: Line, index: int, origin: str, node: yaml.Node | None) -> None:
    if entry.match not in labels():
        place = position(node, ("rules", index, "match"))
        raise RulesetError(
            f"{origin}{place}: no operator class, pattern or part of a pattern is called "
            f"'{entry.match}'.{nearest(entry.match, labels())}"
        )
    try:
        chosen, bound = entry.bound
    except ParameterError as error:
        place = position(node, ("rules", index, "params", error.parameter))
        raise RulesetError(f"{origin}{place}: {error}") from None
    except RulesetError as error:
        key = "params" if ALIASES.get(entry.rule, entry.rule) in RULES else "rule"
        raise RulesetError(f"{origin}{position(node, ('rules', index, key))}: {error}") from None
    if doubt := chosen.doubt(bound):
        warn(f"{origin}{position(node, ('rules', index, 'params'))}: {doubt}")
    if (entry.where.first or entry.where.last) and (entry.match in PATTERNS or entry.category in (ANY, FORK)):
        raise RulesetError(
            f"{origin}{position(node, ('rules', index, 'where'))}: 'first' and 'last' choose among the operations of "
            f"a class or the parts of a pattern; '{entry.match}' is neither."
        )
    fitting = {Scope.SUBLAYER: entry.match == RESIDUAL, Scope.PATTERN: "." in entry.match}
    if not fitting.get(entry.scope, True):
        place = position(node, ("rules", index, "scope"))
        wanted = (
            "'residual'" if entry.scope is Scope.SUBLAYER else "the part in which a pattern ends (attention.output)"
        )
        raise RulesetError(f"{origin}{place}: the scope '{entry.scope.value}' is for {wanted}, not '{entry.match}'.")
    category = entry.category
    if category is not None and category != ANY and not chosen.fits(category):
        place = position(node, ("rules", index, "rule"))
        valid = sorted(r.name for r in RULES.values() if r.fits(category))
        raise RulesetError(
            f"{origin}{place}: rule '{chosen.name}' is for {', '.join(map(str, chosen.on))}, not for '{entry.match}'. "
            f"Rules for it: {', '.join(valid)}."
        )
