"""What an override changes, sorted out: fields of a ruleset, rules, and parameters of the rules that it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxlrp.errors import RulesetError, closest, nearest
from fxlrp.graph.operator_classes import CLASSES, class_name
from fxlrp.rules.rule import RULES, find_rule
from fxlrp.spec.lines import Line, labels


@dataclass(frozen=True)
class Change:
    """Fields by name, rules by what they match, parameters by name."""

    fields: Mapping[str, Any]
    rules: Mapping[str, Any]
    params: Mapping[str, Any]

    @staticmethod
    def of(
        name: str, fields: Collection[str], lines: Sequence[Line], given: Change, others: Mapping[str, Any]
    ) -> Change:
        """``given``, with ``others`` sorted into its three kinds. ``fields`` are those of the ruleset ``name``.

        Raises :class:`RulesetError` for a name of no kind or of several, and for a parameter that no rule takes.
        """
        kinds: dict[str, Collection[str]] = {
            "fields": fields,
            "rules": {*labels(), *(alias for known in CLASSES.values() for alias in known.aliases)},
            "params": {parameter for each in RULES.values() for parameter in each.parameters},
        }
        found = {kind: dict(getattr(given, kind)) for kind in kinds}
        for key, value in others.items():
            fitting = [kind for kind, names in kinds.items() if key in names]
            if len(fitting) > 1:
                meant = " or ".join(f"{kind}={{'{key}': ...}}" for kind in fitting)
                raise RulesetError(f"'{key}' is several things that a ruleset has. Say which is meant: {meant}.")
            if not fitting:
                raise RulesetError(
                    f"Ruleset '{name}' cannot override '{key}', which is no field, nothing that rules match and no "
                    f"parameter of a rule.{nearest(key, {each for names in kinds.values() for each in names})}"
                )
            found[fitting[0]][key] = value
        for kind, names in kinds.items():
            for key in found[kind]:
                if key not in names:
                    raise RulesetError(f"Ruleset '{name}' has no '{key}' among its {kind}.{_meant(key, kind, kinds)}")
        taken = {parameter for line in lines for parameter in find_rule(line.rule).parameters}
        for key, value in found["params"].items():
            if key not in taken:
                takers = sorted(each.name for each in RULES.values() if key in each.parameters)
                raise RulesetError(
                    f"No rule of '{name}' takes the parameter '{key}', so {key}={value!r} would change nothing. "
                    f"Rules that do: {', '.join(takers)}."
                )
        matches = {class_name(str(key)): value for key, value in found["rules"].items()}
        return Change(found["fields"], matches, found["params"])


def _meant(key: str, kind: str, kinds: Mapping[str, Collection[str]]) -> str:
    """The nearest name of any kind, with its kind where that is another one than was said."""
    near = closest(key, {each for names in kinds.values() for each in names})
    others = [other for other, names in kinds.items() if near in names]
    if near is None or kind in others:
        return nearest(key, kinds[kind])
    return f" Did you mean {others[0]}={{'{near}': ...}}? Valid names: {', '.join(sorted(kinds[kind]))}."
