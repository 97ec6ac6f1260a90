"""Files of rulesets: where the packaged ones lie, what a file holds, and where in it something stands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxlrp.errors import RulesetError

if TYPE_CHECKING:
    import yaml


def folder() -> Path:
    """Where the packaged rulesets lie: inside the installed package, or beside it in a source checkout."""
    here = Path(__file__).parent
    packaged = here / "_rulesets"
    return packaged if packaged.is_dir() else here.parents[1] / "rulesets"


#: The most bytes of a ruleset's file.
LONGEST = 1_000_000


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that is too long, or that no file can have, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=64)
def read(path: Path, changed: float) -> tuple[dict[str, Any], yaml.Node | None]:
    """What a file holds, and the node that tells lines; read anew where the file ``changed`` (its time).

    Raises :class:`RulesetError` for what cannot be read, is too long, no YAML, or no mapping.
    """
    from fxlrp.spec.parsing import parse  # whoever loads no ruleset from a file is spared it

    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RulesetError(f"{path.name}: a ruleset is a text in UTF-8, and this cannot be read: {error}.") from error
    if len(data) > LONGEST:
        raise RulesetError(f"{path.name}: a ruleset has at most {LONGEST:,} bytes; this file has more.")
    content, node = parse(text, path.name)
    if not isinstance(content, dict):
        raise RulesetError(
            f"{path.name}:1:1: a ruleset is a mapping with 'name' and 'rules', not {type(content).__name__}."
        )
    return content, node


def position(node: yaml.Node | None, path: Sequence[Any]) -> str:
    """``:line:column`` of the deepest part of ``path`` that the file has."""
    if node is None:
        return ""
    import yaml

    place = node.start_mark
    for key in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if pair is None:
                break
            place, node = pair[0].start_mark, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            place = node.start_mark
    return f":{place.line + 1}:{place.column + 1}"
