"""The one room for what torch and transformers do not promise: every private name that fxlrp rests on.

In: a name of :data:`PLACES`, as an attribute of this module. Out: the object, imported when it is first asked for. A
name that the installed version no longer has is a :class:`~fxlrp.errors.VersionError`, never a check left out.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from fxlrp.errors import VersionError

if TYPE_CHECKING:
    from torch._dispatch.python import enable_python_dispatcher as enable_python_dispatcher
    from torch._ops import HigherOrderOperator as HigherOrderOperator
    from torch._ops import OpOverload as OpOverload
    from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch.fx.experimental.proxy_tensor import get_proxy_mode as get_proxy_mode

P = ParamSpec("P")
R = TypeVar("R")

#: The versions that fxlrp is tested with, those of ``constraints.txt``.
TESTED = {"torch": "2.13.0", "transformers": "5.23.0"}


@dataclass(frozen=True)
class Place:
    """Where a private object lives: ``name`` in ``module``, or the module itself, of which ``parts`` are used."""

    module: str
    name: str = ""
    parts: tuple[str, ...] = ()

    def load(self) -> Any:
        """The object. Raises :class:`VersionError` where it, or a part of it, is gone."""
        try:
            found = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{self.module}.".startswith(f"{error.name}."):
                raise  # the module is there; something that it needs itself is not installed
            raise gone(self.module) from error
        if self.name:
            found = _part(found, self.name, self.module)
        for part in self.parts:
            _part(found, part, ".".join(filter(None, (self.module, self.name))))
        return found


#: Every private object that is used, by the name that this module gives it.
PLACES: Mapping[str, Place] = {
    "check": Place("torch", "_check"),
    "VF": Place("torch", "_VF", ("_pack_padded_sequence", "_pad_packed_sequence")),
    "enable_python_dispatcher": Place("torch._dispatch.python", "enable_python_dispatcher"),
    "HigherOrderOperator": Place("torch._ops", "HigherOrderOperator"),
    "OpOverload": Place("torch._ops", "OpOverload"),
    "FakeTensor": Place("torch._subclasses.fake_tensor", "FakeTensor"),
    "FakeTensorMode": Place("torch._subclasses.fake_tensor", "FakeTensorMode", ("from_tensor",)),
    "get_proxy_mode": Place("torch.fx.experimental.proxy_tensor", "get_proxy_mode"),
    "pytree": Place(
        "torch.utils._pytree",
        parts=(
            "TreeSpec",
            "tree_flatten",
            "tree_flatten_with_path",
            "tree_leaves",
            "tree_map",
            "tree_map_only",
            "tree_unflatten",
        ),
    ),
}
_MAKE_FX = Place("torch.fx.experimental.proxy_tensor", "make_fx")
_VMAP = Place("torch._functorch.predispatch")
_EXPORTER = Place("transformers.exporters.exporter_dynamo", "DynamoExporter", ("export",))
_CACHES = Place("transformers.exporters.exporter_dynamo", "register_cache_pytrees_for_model")
_OPTIONS = Place("transformers.exporters.configs", "DynamoConfig")

#: Held by whoever traces: torch's tracers patch ``nn.Module`` and set flags for the whole process while they run, and
#: transformers' exporter patches classes. One thread traces at a time; the others' models are never touched.
LOCK = threading.RLock()


def __getattr__(name: str) -> Any:
    """A private object by its name in :data:`PLACES`, loaded and checked once."""
    if name not in PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    found = globals()[name] = PLACES[name].load()
    return found


def gone(what: str) -> VersionError:
    """The error for a private name that the installed version does not have."""
    package = what.split(".")[0]
    installed = getattr(sys.modules.get(package), "__version__", "(not installed)")
    return VersionError(
        f"fxlrp needs {what}, which {package} {installed} does not have. Install the version that fxlrp is tested "
        f"with: pip install '{package}=={TESTED[package]}'."
    )


def _part(of: Any, name: str, path: str) -> Any:
    found = getattr(of, name, _MISSING)
    if found is _MISSING:
        raise gone(f"{path}.{name}")
    return found


_MISSING = object()


def make_fx(code: Callable[..., Any], **options: Any) -> Callable[..., fx.GraphModule]:
    """torch's tracer of functions: a function of the same arguments that gives the graph, one thread at a time."""
    traced = _MAKE_FX.load()(code, **options)

    def run(*arguments: Any) -> fx.GraphModule:
        with LOCK:
            graph: fx.GraphModule = traced(*arguments)
            return graph

    return run


def outside_compiler(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` out of torch.compile's sight, as by ``torch.compiler.disable``, which loads the compiler at once."""
    plain: list[Callable[P, R]] = []

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not plain:
            plain.append(torch.compiler.disable(function))
        return plain[0](*args, **kwargs)

    return run


def guards_of(exported: ExportedProgram) -> tuple[str, ...]:
    """The conditions on its inputs' sizes under which an exported program stands for its model, as Python code."""
    return tuple(_part(exported, "_guards_code", "torch.export.ExportedProgram"))


def fake_mode_of(value: Any) -> FakeTensorMode | None:
    """The mode that a fake tensor belongs to, None for any other value."""
    fake = vars(sys.modules[__name__]).get("FakeTensor") or __getattr__("FakeTensor")
    return _part(value, "fake_mode", "torch._subclasses.fake_tensor.FakeTensor") if isinstance(value, fake) else None


def is_vmap_step(target: Any) -> bool:
    """Whether an operator is a step of a ``torch.vmap`` that was traced but not carried out."""
    return getattr(target, "__module__", "") == _VMAP.load().__name__


def _is_of(value: Any, module: str, name: str) -> bool:
    """Whether ``value`` is of a class of a module that need not be loaded: then nothing is."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, _part(loaded, name, module))


def is_pretrained(model: nn.Module) -> bool:
    """Whether ``model`` is one of transformers' own; transformers is not loaded to find out."""
    return _is_of(model, "transformers.modeling_utils", "PreTrainedModel")


def is_compiled(model: nn.Module) -> bool:
    """Whether ``model`` is what torch.compile made of one; the compiler is not loaded to find out."""
    return _is_of(model, "torch._dynamo.eval_frame", "OptimizedModule")


def is_cache(value: Any) -> bool:
    """Whether ``value`` is a cache of keys and values of transformers."""
    return _is_of(value, "transformers.cache_utils", "Cache")


def is_library_output(value: Any) -> bool:
    """Whether ``value`` is an output object of transformers, in which the first value is the answer."""
    return _is_of(value, "transformers.utils.generic", "ModelOutput")


def is_sliding(layer: Any) -> bool:
    """Whether a layer of such a cache keeps the last window of keys alone."""
    return _is_of(layer, "transformers.cache_utils", "DynamicSlidingWindowLayer")


def know_caches(model: nn.Module) -> None:
    """Let torch's trees know the caches that models of transformers inside ``model`` return, as their exporter does."""
    for module in model.modules():
        if is_pretrained(module):
            _CACHES.load()(module)


def export_pretrained(model: nn.Module, inputs: dict[str, Any], dynamic: bool, shapes: Any) -> ExportedProgram:
    """A model of transformers through the exporter that transformers has for it."""
    exporter, options = _EXPORTER.load(), _OPTIONS.load()
    exported = exporter().export(model, inputs, config=options(dynamic=dynamic, dynamic_shapes=shapes))
    program: ExportedProgram = _part(exported, "program", "transformers.exporters.ExportedModel")
    return program
