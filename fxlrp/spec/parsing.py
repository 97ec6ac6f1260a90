"""YAML with limits: what a ruleset can need, and no more. It knows duplicate keys, deep nesting, and size."""

from __future__ import annotations

from typing import Any

import yaml

from fxlrp.errors import RulesetError, shortened

#: The deepest nesting that a ruleset is read with; its own is 6.
DEEPEST = 24
#: The most values that a ruleset is read with, those behind aliases counted each time.
MOST = 50_000


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which takes no key twice and nests no deeper than :data:`DEEPEST`."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self.depth > DEEPEST:
            raise _fault(f"nested deeper than {DEEPEST} levels", event.start_mark)
        self.depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise _fault(
                            f"the key '{shortened(key.value)}' stands here for the second time", key.start_mark
                        )
                    seen.add((key.tag, key.value))
        return node


def _fault(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def parse(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """The content of a file, and the node that tells lines. Raises :class:`RulesetError` with file, line and column."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _size(node, {}, ())
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise RulesetError(f"{place}: not valid YAML: {shortened(error.problem)}.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a zero byte, a number of 5,000 digits, 30 February
        raise RulesetError(f"{name}: not valid YAML: {shortened(error)}.") from error


def _size(node: yaml.Node, known: dict[yaml.Node, int], inside: tuple[yaml.Node, ...]) -> int:
    """How many values a node holds, with those of aliases. Refuses one that holds itself, or too many."""
    if node in inside:
        raise _fault("an alias stands for what it is in", node.start_mark)
    if node not in known:
        parts = [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]
        within = (*inside, node)
        known[node] = 1 + sum(_size(part, known, within) for part in parts if not isinstance(node, yaml.ScalarNode))
    if known[node] > MOST:
        raise _fault(f"more than {MOST} values", node.start_mark)
    return known[node]
