"""Captures a model: traces it, brings the graph into canonical form and makes sure that it stands for the model.

In: a model and inputs. Out: a :class:`~fxlrp.capture.program.Program` that was run once beside its model. What
torch.export refuses, or follows along another branch than the model takes, is recorded as it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

import fxlrp.capture.quantised
import fxlrp.capture.spellings  # noqa: F401  (both fill the table of replacements)
from fxlrp.capture import torch_private as private
from fxlrp.capture.agreement import agree
from fxlrp.capture.calling import Form
from fxlrp.capture.canonical import canonicalise, is_branch
from fxlrp.capture.elsewhere import check_here
from fxlrp.capture.export import export, steady
from fxlrp.capture.process import quiet
from fxlrp.capture.program import Program, leaf_name
from fxlrp.capture.record import record, replayed
from fxlrp.capture.traced import Traced
from fxlrp.errors import CaptureError, FxlrpError, RetraceWarning, VersionError, warn

_ANEW = "anew where what it decides by values comes out otherwise, which takes its time."

_RECORDING = "recording what it does, as torch.export cannot follow it,"

_OTHER_BRANCH = (
    "decides by the values of its inputs, and its exported graph decides otherwise than the model does on these. It is "
    f"recorded as it runs, {_ANEW}"
)

_TAKEN = "decides by the values of its inputs ({}). What it decides on these is followed, " + _ANEW

_NOT_FOLLOWED = (
    "gives other values than the graph that was made of it, also where its operators were recorded as they ran. It may "
    "keep state from one call to the next, draw random numbers from Python or numpy, or change tensors in a way that "
    "leaves no trace: make its forward a function of its inputs."
)


def capture(model: nn.Module, inputs: Mapping[str, Any], *, record_only: bool = False) -> Program:
    """The program that stands for ``model`` on ``inputs``. The model is left as it was.

    What torch.export refuses is recorded as it runs on these inputs; the program then stands for those on which the
    model decides the same.
    ``record_only`` does so at once, for a model known to be refused. Raises :class:`CaptureError` for a model that
    gives other values than any graph that was made of it.
    """
    program = _recorded(model, inputs) if record_only else _traced(model, inputs)
    agrees = agree(model, program, inputs)
    if not agrees and program.recorded is None:
        warn(f"{type(model).__name__} {_OTHER_BRANCH}", RetraceWarning)
        program = _recorded(model, inputs)
        agrees = agree(model, program, inputs)
    if not agrees:
        raise CaptureError(f"{type(model).__name__} {_NOT_FOLLOWED}")
    return program


def _program(model: nn.Module, traced: Traced, inputs: Mapping[str, Any], form: Form) -> Program:
    """A traced model in canonical form."""
    with quiet():
        graph, fused = canonicalise(traced.module)
    paths = [path for path, _ in private.pytree.tree_flatten_with_path(dict(inputs))[0]]
    leaves = tuple(leaf_name(path) for path in paths)
    names = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    other = next((v for k, v in traced.constants.items() if k in names and not isinstance(v, Tensor)), None)
    if other is not None:
        raise CaptureError(
            f"{type(model).__name__} uses a {type(other).__name__} on its way, which no graph can hold. Draw from "
            "torch's own generator, for attribute(..., random_seed=0), or pass what is drawn as an input."
        )
    used = {placeholder: leaf for placeholder, leaf in zip(traced.inputs, leaves, strict=True) if placeholder in names}
    return Program(
        graph=graph,
        weights={name: target for name, target in traced.weights.items() if name in names},
        constants={name: value for name, value in traced.constants.items() if name in names},
        inputs=used,
        input_leaves=leaves,
        output_spec=traced.output_spec,
        form=form,
        fused=fused,
        guards=traced.guards,
        shapes={
            leaf: tuple(size if isinstance(size, int) else None for size in names[placeholder].meta["val"].shape)
            for placeholder, leaf in used.items()
            if isinstance(names[placeholder].meta.get("val"), Tensor)
        },
        recorded=None if traced.recorded is None else dict(zip(leaves, traced.recorded, strict=True)),
        replayed=traced.replayed,
        decisions=traced.decisions,
    )


def _traced(model: nn.Module, inputs: Mapping[str, Any]) -> Program:
    """The exported model; where torch.export refuses it but it can be recorded, the recorded one.

    Raises :class:`CaptureError` with torch.export's own reason if it can be neither.
    """
    try:
        with _refusing(model), quiet():
            exported, form = export(model, inputs)
            traced = Traced.of(exported)
            branch = next(filter(is_branch, traced.module.graph.nodes), None)
            if branch is not None:
                check_here(model, f"following its {branch.target}")
                traced = replayed(model, traced, inputs)
        if branch is not None:
            warn(f"{type(model).__name__} {_TAKEN.format(branch.target)}", RetraceWarning)
        with _refusing(model):
            return _program(model, traced, inputs, form)
    except CaptureError as refusal:
        check_here(model, _RECORDING)
        try:
            recorded = _recorded(model, inputs)
        except VersionError:
            raise
        except FxlrpError:
            raise refusal from None
        note = f"{refusal}\nUntil then it is recorded, {_ANEW}"
        warn(note, RetraceWarning)
        return recorded


def _recorded(model: nn.Module, inputs: Mapping[str, Any]) -> Program:
    check_here(model, _RECORDING)
    with _refusing(model):
        with quiet(), steady(model, inputs) as (traced, form):
            recorded = record(traced, inputs)
        return _program(model, recorded, inputs, form)


@contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    """What torch's tracers raise of their own, on the way, is a :class:`CaptureError`: the model was run before."""
    try:
        yield
    except FxlrpError:
        raise
    except Exception as error:  # which have no common base
        first = next(iter(str(error).splitlines()), "")
        raise CaptureError(
            f"{type(model).__name__} cannot be captured: {type(error).__name__}: {first}\nIts forward pass writes to "
            "what is not its own, or uses an operator in a form that torch's tracers do not follow: make it a function "
            "of its inputs, in ordinary operators."
        ) from error
