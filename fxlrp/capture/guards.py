"""Guards: the conditions on its inputs under which an exported graph stands for its model, read as data.

torch.export writes them as Python expressions. They are parsed, and each operation that such a condition can have is
carried out here; nothing else is, so that no text becomes code.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import CaptureError, shortened

#: A part of a condition, as a function of the inputs.
Value = Callable[[Mapping[str, Any]], Any]

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
#: Functions that conditions call, by the names that they are written by.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{each.__name__: each for each in (max, min, abs, int, float, bool, len, round)},
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc", "sqrt", "pow", "log2", "isqrt")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")},
}
#: What conditions ask of tensors.
_OF_TENSORS = ("size", "stride", "dim", "storage_offset", "numel")


def hold(guards: Iterable[str], inputs: Mapping[str, Any]) -> bool:
    """Whether all conditions are true of these inputs. Raises :class:`CaptureError` for what is no condition."""
    return all(read(guard)(inputs) for guard in guards)


@lru_cache(maxsize=65536)
def read(guard: str) -> Value:
    """A condition as a function of the inputs."""
    try:
        return _read(ast.parse(guard, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, KeyError) as error:
        raise CaptureError(
            f"torch.export states a condition on the inputs that fxlrp cannot read: {shortened(guard)}. Please report "
            "it; until then, explain the part of the model that lies behind it."
        ) from error


def _read(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=value):
            return lambda inputs: value
        case ast.Name(id="L"):
            return lambda inputs: inputs
        case ast.BoolOp(op=op, values=parts):
            read_parts, joined = [_read(part) for part in parts], all if isinstance(op, ast.And) else any
            return lambda inputs: joined(part(inputs) for part in read_parts)
        case ast.UnaryOp(op=op, operand=part):
            unary, value_of = _UNARY[type(op)], _read(part)
            return lambda inputs: unary(value_of(inputs))
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(_BINARY[type(op)], _read(left), _read(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _binary(_COMPARED[type(op)], _read(left), _read(right))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            ends = [left, *rights]
            pairs = [_binary(_COMPARED[type(op)], _read(ends[i]), _read(ends[i + 1])) for i, op in enumerate(ops)]
            return lambda inputs: all(pair(inputs) for pair in pairs)
        case ast.IfExp(test=test, body=body, orelse=other):
            chosen, yes, no = _read(test), _read(body), _read(other)
            return lambda inputs: yes(inputs) if chosen(inputs) else no(inputs)
        case ast.Subscript(value=holder, slice=index):
            return _binary(operator.getitem, _read(holder), _read(index))
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            items, kind = [_read(part) for part in parts], tuple if isinstance(node, ast.Tuple) else list
            return lambda inputs: kind(item(inputs) for item in items)
        case ast.Attribute(value=holder, attr="shape"):
            return _of_tensor("size", _read(holder), [])
        case ast.Attribute(value=holder, attr=name) if not name.startswith("_"):  # a field of a nested input
            field = operator.attrgetter(name)
            value_of = _read(holder)
            return lambda inputs: field(value_of(inputs))
        case ast.Call(func=ast.Attribute(value=holder, attr=name), args=arguments, keywords=[]) if name in _OF_TENSORS:
            return _of_tensor(name, _read(holder), [_read(each) for each in arguments])
        case ast.Call(func=function, args=arguments, keywords=[]):
            called, given = _FUNCTIONS[ast.unparse(function)], [_read(each) for each in arguments]
            return lambda inputs: called(*(each(inputs) for each in given))
    raise ValueError(f"no part of a condition: {ast.unparse(node)}")


def _binary(function: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    return lambda inputs: function(left(inputs), right(inputs))


def _of_tensor(name: str, holder: Value, arguments: list[Value]) -> Value:
    def asked(inputs: Mapping[str, Any]) -> Any:
        value = holder(inputs)
        if not isinstance(value, Tensor):
            raise CaptureError(f"A condition of torch.export asks for the {name} of what is {type(value).__name__}.")
        return getattr(value, name)(*(each(inputs) for each in arguments))

    return asked
