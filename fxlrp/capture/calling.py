"""How a model is called: from inputs by name to its own arguments, and from what it returns to a tree of tensors.

In: a model. Out: the module that wrappers (torch.compile, DataParallel) stand around, its :class:`Signature`, and for a
twin a forward pass that takes inputs by name and returns tensors in a form that torch's tracers know.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from fxlrp.capture import torch_private as private
from fxlrp.capture.dense import ROUNDS_INPUTS, distance_from_matrix, dtype_of, is_packed, rounding_of
from fxlrp.capture.elsewhere import elsewhere
from fxlrp.capture.reads import in_slots
from fxlrp.errors import CaptureError, InputError, nearest, warn

_KINDS = inspect.Parameter


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that a wrapper stands around: compiled, or made parallel. They compute what it computes.

    Raises :class:`CaptureError` for TorchScript, whose code is no longer Python's.
    """
    while True:
        if private.is_compiled(model):
            inner: Any = model._orig_mod
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            break
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f" (module '{path}')" if path else ""
            raise CaptureError(
                f"{type(module).__name__}{where} is TorchScript, whose operators can no longer be followed. Load the "
                "model from its Python class and weights (model.load_state_dict(scripted.state_dict())), or as saved "
                "by torch.export (torch.export.load(file).module())."
            )
    return model


def below(path: str, name: Any) -> str:
    """The path of what is called ``name`` in what stands at ``path``, which is '' at the top."""
    return f"{path}.{name}" if path else str(name)


def called_modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules whose forward pass is run, by path. A graph has no mode of its own."""
    if isinstance(model, fx.GraphModule):
        graph: fx.Graph = model.graph
        called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        inner = [(name, model.get_submodule(name)) for name in dict.fromkeys(called)]
    elif type(model).__module__.startswith(("torch.export", "torch.fx")):  # what checks the inputs of a graph
        return
    else:
        if type(model).forward is not nn.Module.forward:  # a list of modules is never run itself
            yield path, model
        inner = list(model.named_children())
    for name, child in inner:
        yield from called_modules(child, below(path, name))


@dataclass(frozen=True)
class Signature:
    """The parameters of a forward pass: those with ``names``, of which the first ``positional`` may be given by place,
    and what takes any number of arguments (``*star``) and any names (``**others``, ``open_ended``).
    """

    owner: str
    names: tuple[str, ...]
    positional: int
    star: str | None
    open_ended: bool
    declared: tuple[str, ...]
    """Names that ``**others`` of a library's model takes; of any other module it takes all."""
    none: tuple[str, ...] = ()
    """Parameters of which None is said by leaving them out."""

    @staticmethod
    def of(model: nn.Module) -> Signature:
        """That of a model's forward pass."""
        parameters = inspect.signature(model.forward).parameters.values()
        return Signature(
            owner=type(model).__name__,
            names=tuple(p.name for p in parameters if p.kind not in (_KINDS.VAR_KEYWORD, _KINDS.VAR_POSITIONAL)),
            positional=sum(p.kind in (_KINDS.POSITIONAL_ONLY, _KINDS.POSITIONAL_OR_KEYWORD) for p in parameters),
            star=next((p.name for p in parameters if p.kind is _KINDS.VAR_POSITIONAL), None),
            open_ended=any(p.kind is _KINDS.VAR_KEYWORD for p in parameters),
            declared=_EXTRAS if private.is_pretrained(model) else (),
            none=tuple(p.name for p in parameters if p.default is None),
        )

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, without those that are None by default too; those of ``*args`` as a tuple under that name.

        Raises :class:`InputError` if they do not fit.
        """
        if len(args) > len(self.names) and self.star is None:
            raise InputError(
                f"{self.owner} takes {len(self.names)} inputs, {len(args)} were given. If they are one input, name it: "
                f"{{'{(self.names or ('x',))[0]}': (...)}}."
            )
        given = dict(zip(self.names, args, strict=False))
        if self.star is not None and len(args) > len(self.names):
            given[self.star] = tuple(args[len(self.names) :])
        for name, value in kwargs.items():
            if not self.takes(str(name)):
                known = (*self.names, *((self.star,) if self.star else ()))
                whole = f" If the dict is itself an input, name it: {{'{known[0]}': {{...}}}}." if known else ""
                raise InputError(f"{self.owner} has no input '{name}'.{nearest(str(name), known)}{whole}")
            given[str(name)] = tuple(value) if name == self.star and isinstance(value, (list, tuple)) else value
        in_order = {name: given[name] for name in self.names if name in given}
        kept = {*self.names}.difference(self.none)
        return {name: value for name, value in (in_order | given).items() if value is not None or name in kept}

    def takes(self, name: str) -> bool:
        """Whether there is an input of this name."""
        extra = self.open_ended and (not self.declared or name in self.declared)
        return name in self.names or name == self.star or extra

    def split(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs by name as positional arguments, as far as none is left out, and the others by keyword.

        So hooks of the model meet them as they do in ``model(x)``. A library's models are called by keyword.
        """
        leading = () if self.declared else tuple(takewhile(given.__contains__, self.names[: self.positional]))
        starred = given.get(self.star, ()) if self.star is not None else ()
        rest = {name: value for name, value in given.items() if name not in (*leading, self.star)}
        return (*(given[name] for name in leading), *starred), rest

    def call(self, forward: Callable[..., Any], given: Mapping[str, Any]) -> Any:
        """``forward`` on inputs by name."""
        args, kwargs = self.split(given)
        return forward(*args, **kwargs)


def check_weights(model: nn.Module, needed: bool = False) -> None:
    """Raise :class:`CaptureError` for weights that are packed in a class of their own and stand for no matrix, warn of
    those that round their inputs, and raise :class:`InputError` for absent ones where their values are ``needed``.
    """
    rounding: dict[str, float] = {}
    dtype = dtype_of(model)
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            place = below(path, name)
            if needed and weight.is_meta and elsewhere(model, place) is None:
                raise InputError(
                    f"The weight '{place}' is on 'meta' and holds no values: it was never loaded, or is brought in by "
                    "somebody whom fxlrp does not know (it knows accelerate). Load the model whole."
                )
            if not is_packed(weight):
                continue
            apart, kind = distance_from_matrix(module, name, dtype), type(weight)
            if apart > ROUNDS_INPUTS:
                raise CaptureError(
                    f"The weight '{place}' is a {kind.__module__}.{kind.__qualname__}, packed in a way that fxlrp "
                    "cannot look into. Explain the model with its weights dequantised: "
                    "nn.Parameter(weight.dequantize()) for each where its class has that, or loaded without "
                    "quantisation."
                )
            if apart > rounding_of(dtype):
                rounding[f"'{place}' ({kind.__module__}.{kind.__qualname__})"] = apart
    if rounding:
        warn(
            f"{len(rounding)} packed weights, {next(iter(rounding))} among them, round what they are multiplied with "
            f"as well: their products are up to {max(rounding.values()):.1%} from those of the matrices that they "
            "stand for. The model is explained, and its outputs are computed, with the matrices."
        )


def check_input(name: str, value: Any) -> None:
    """Raise :class:`InputError` for an input that is, or holds, what is neither a tensor nor a plain value."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, PackedSequence):
        raise InputError(
            f"Input '{name}' is a packed sequence, in which samples cannot be told apart. Pass the padded tensor and "
            "the lengths, and pack them inside the model."
        )
    if private.is_cache(value):
        raise InputError(
            f"Input '{name}' holds keys and values of tokens that were computed before, where their relevance would "
            "end. Pass all tokens at once, without a cache."
        )
    if kind.split(".")[0] in ("numpy", "pandas", "PIL", "jax", "tensorflow"):
        raise InputError(f"Input '{name}' is a {kind}, not a tensor: pass torch.as_tensor(numpy.asarray(...)).")
    for leaf in private.pytree.tree_leaves(value):
        if leaf is not value:
            check_input(name, leaf)
        elif fields_of(leaf) is not None:
            raise InputError(
                f"Input '{name}' is a {kind}, whose tensors cannot be told by name. Wrap the model in a module that "
                "takes them as inputs of their own."
            )


#: What the library's models take by ``**kwargs``.
_EXTRAS = (
    "position_ids",
    "token_type_ids",
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
)


#: From the tensors that are left, in order, to the object that they belong to.
Maker = Callable[[Iterator[Any]], Any]


class Form:
    """What a model returned, if it was an object that torch's trees do not know: how to make it anew of tensors."""

    def __init__(self) -> None:
        self.made: Maker | None = None

    def apart(self, value: Any) -> Any:
        """``value`` as it is where torch's trees know it, else its tensors, of which :meth:`whole` makes it anew."""
        self.made = None
        if all(fields_of(leaf) is None for leaf in private.pytree.tree_leaves(value)):
            return value
        tensors: list[Tensor] = []
        self.made = _apart(value, tensors)
        return tuple(tensors)

    def whole(self, value: Any) -> Any:
        """What the model itself would return, of what :meth:`apart` gave."""
        return value if self.made is None else self.made(iter(value))


def by_name(twin: nn.Module, given: Mapping[str, Any]) -> Form:
    """Let a twin's forward pass take these inputs by name and nothing else, and return what tracers know.

    The form of what it returns is known once it was called.
    """
    form = Form()
    if private.is_pretrained(twin):  # the library knows its own inputs and outputs
        return form
    signature, original = Signature.of(twin), twin.forward

    def called(*args: Any, **inputs: Any) -> Any:
        return form.apart(signature.call(original, dict(zip(given, args, strict=False)) | inputs))

    names = [_KINDS(name, _KINDS.POSITIONAL_OR_KEYWORD) for name in given]
    vars(called)["__signature__"] = inspect.Signature(names)
    twin.forward = called
    return form


def _apart(value: Any, tensors: list[Tensor]) -> Maker:
    """Append the tensors of ``value`` to others; how to make it of ones in their place."""
    leaves, spec = private.pytree.tree_flatten(value)
    makers = [_leaf_apart(leaf, tensors) for leaf in leaves]
    return lambda values: private.pytree.tree_unflatten([make(values) for make in makers], spec)


def _leaf_apart(leaf: Any, tensors: list[Tensor]) -> Maker:
    if isinstance(leaf, Tensor):
        tensors.append(leaf)
        return next
    fields = fields_of(leaf)
    if fields is None:
        return lambda values: leaf
    makers = {name: _apart(value, tensors) for name, value in fields.items()}
    hollow = _with_fields(leaf, dict.fromkeys(fields))
    return lambda values: _with_fields(hollow, {name: make(values) for name, make in makers.items()})


def fields_of(value: Any) -> dict[Any, Any] | None:
    """What an object that torch's trees do not know holds by name, if there is a tensor among it: items, fields,
    attributes.
    """
    if value is None or isinstance(value, (Tensor, str, bytes, int, float, complex, type, nn.Module)):
        return None
    if isinstance(value, Mapping):
        held = dict(value)
    elif dataclasses.is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        held = in_slots(value) | dict(getattr(value, "__dict__", {}))
    leaves = private.pytree.tree_leaves(list(held.values()))
    return held if any(isinstance(leaf, Tensor) or fields_of(leaf) is not None for leaf in leaves) else None


def _with_fields(value: Any, fields: Mapping[Any, Any]) -> Any:
    made = copy.copy(value)
    for name, each in fields.items():
        if isinstance(made, Mapping):
            made[name] = each  # type: ignore[index]
        else:
            object.__setattr__(made, name, each)
    return made
