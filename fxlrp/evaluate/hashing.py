"""A hash of whatever options and batches hold: equal for equal contents, in every process, and for nothing else.

Every value is written as its kind, the length of what follows, and its content: (1, 12) and (11, 2) are different
texts, as are 1, 1.0, True and "1". What has no content of its own (a function) is written as what it does.
"""

from __future__ import annotations

import builtins
import pickle
import types
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture.contents import hashed
from fxlrp.capture.program import weight
from fxlrp.capture.state import State
from fxlrp.errors import FxlrpError
from fxlrp.explain.model import ConvertedModel
from fxlrp.graph.handles import Elsewhere


def fingerprint(value: Any) -> str:
    """The hash, in hexadecimal digits. Raises :class:`FxlrpError` for a value whose content cannot be told."""
    try:
        return _digest(value, ()).hex()
    except RecursionError as error:
        raise FxlrpError(f"resume= cannot tell what {type(value).__name__} holds: it is nested too deeply.") from error


def _digest(value: Any, inside: tuple[int, ...]) -> bytes:
    """The hash of a value; ``inside`` are the objects that it was reached through."""
    if id(value) in inside:
        return _joined("again", [str(len(inside) - inside.index(id(value))).encode()])
    within = (*inside, id(value))
    if isinstance(value, Mapping):  # neither its order nor that of a set is content
        return _joined("mapping", sorted(_digest(k, within) + _digest(v, within) for k, v in value.items()))
    if isinstance(value, AbstractSet):
        return _joined("set", sorted(_digest(item, within) for item in value))
    kind, parts = _content(value)
    return _joined(kind, [part if isinstance(part, bytes) else _digest(part[0], within) for part in parts])


def _joined(kind: str, parts: list[bytes]) -> bytes:
    return hashed((kind.encode(), *parts))


#: The parts of a value: bytes as they stand, or a value to be hashed, in a tuple of one.
_Parts = list[bytes | tuple[Any]]


def _content(value: Any) -> tuple[str, _Parts]:
    """The kind of a value, and its parts in order."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
        return f"tensor {value.dtype} {list(value.shape)}", [plain.view(torch.uint8).numpy().tobytes()]
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return type(value).__name__, [value if isinstance(value, bytes) else repr(value).encode()]
    if isinstance(value, Enum):
        return f"enum {_named(type(value))}", [(value.value,)]
    if isinstance(value, (tuple, list)):
        return "sequence", [(item,) for item in value]
    if isinstance(value, nn.Module):
        ruleset = value.conversion.ruleset.hash if isinstance(value, ConvertedModel) else ""
        model = value.conversion.model if isinstance(value, ConvertedModel) else value
        behaviour = State(model).digest  # two models with the same weights need not compute the same
        held = {name: weight(value, name) if each.is_meta else each for name, each in value.state_dict().items()}
        return f"module {_named(type(value))} {ruleset} {behaviour}", [(held,)]
    if isinstance(value, Elsewhere):
        return _content(value.fetch())
    return _of_code(value) or _of_object(value)


def _of_code(value: Any) -> tuple[str, _Parts] | None:
    """What is called: a function by what it does, so that neither its address nor a name that two share tells it."""
    if isinstance(value, partial):
        return "partial", [(value.func,), (value.args,), (value.keywords,)]
    if isinstance(value, types.MethodType):
        return "method", [(value.__func__,), (value.__self__,)]
    if isinstance(value, types.FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        about = (value.__defaults__, value.__kwdefaults__, held, dict(_data_of(value)))
        return f"function {_named(value)}", [(value.__code__,), *((each,) for each in about)]
    if isinstance(value, types.CodeType):
        return "code", [value.co_code, (value.co_names,), (value.co_varnames,), (value.co_consts,)]
    if isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType, torch.dtype, torch.device)):
        return f"{type(value).__name__} {_named(value)}", []
    return None


def _of_object(value: Any) -> tuple[str, _Parts]:
    """Any other object: its class and its attributes, or what pickle makes of it."""
    kind = f"object {_named(type(value))}"
    if getattr(value, "__dict__", None):
        return kind, [(dict(vars(value)),)]
    try:
        return kind, [pickle.dumps(value, protocol=4)]
    except Exception as error:  # whatever an object's own code raises
        raise FxlrpError(
            f"resume= cannot tell what {type(value).__name__} holds, on which finished batches depend: {error}. Give a "
            "function, a dataclass or plain values, or leave resume= out."
        ) from error


def _named(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or str(value)
    return f"{getattr(value, '__module__', None) or builtins.__name__}.{name}"


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False


def _data_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The plain values and the functions of the same module that a function takes from around it."""
    plain = (bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset, Tensor, type(None))
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        own = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if name in function.__globals__ and (own or isinstance(value, plain)):
            yield name, value
