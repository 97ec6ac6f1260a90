"""The graphs that stand for a model: traced on demand, found again by the inputs' names, types, ranks and sizes.

In: a model and inputs. Out: :class:`Captured`. One cache is shared by all conversions of a model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fxlrp.capture import Program, capture
from fxlrp.capture.attributed import attributed_values
from fxlrp.capture.process import unmoved
from fxlrp.capture.program import flatten
from fxlrp.capture.torch_private import LOCK, outside_compiler
from fxlrp.errors import RetraceWarning
from fxlrp.patterns import Pattern, registered
from fxlrp.patterns.fold_activations import fold_activations
from fxlrp.patterns.fold_linear import fold_affine
from fxlrp.patterns.structure import Structure


@dataclass(frozen=True, eq=False)
class Captured:
    """A program with its structure, as shared by every ruleset, and the forms that rulesets asked to fold it into.

    ``origin`` is the program before activations were folded, ``patterns`` are those that it was searched for.
    """

    program: Program
    structure: Structure
    origin: Program
    patterns: tuple[Pattern, ...]
    forms: dict[tuple[str, ...], Captured] = field(default_factory=dict, repr=False)

    @outside_compiler
    def folded(self, folds: tuple[str, ...]) -> Captured:
        """The program with these folds applied (see :attr:`fxlrp.spec.ruleset.Ruleset.fold`), made once."""
        if folds in self.forms:
            return self.forms[folds]
        with LOCK:
            if folds not in self.forms:
                program, attributed = self.program, self.structure.attributed
                for name in folds:
                    program, moved = FOLDS[name](program)
                    attributed = tuple(replace(each, node=moved[each.node]) for each in attributed)
                made = Structure.of(program, attributed)
                self.forms[folds] = Captured(program, made, self.origin, self.patterns) if folds else self
            return self.forms[folds]


#: What a ruleset may ask to be folded before its rules are chosen: a program to another and the new nodes of the old.
FOLDS = {"affine": fold_affine}


def _searched(model: nn.Module, origin: Program) -> Captured:
    """A captured program with its activations folded, and what the patterns of now find in it."""
    program = fold_activations(origin)
    return Captured(program, Structure.of(program, attributed_values(program, model)), origin, registered())


@dataclass
class Graphs:
    """Programs by input signature: a signature may need several, for shapes that one graph does not stand for.

    ``traced`` counts all graphs made so far. Of recorded ones, good for one input each, the last is kept.
    """

    programs: dict[Any, list[Captured]] = field(default_factory=dict)
    traced: int = 0
    warned: bool = False

    @outside_compiler
    def serve(self, model: nn.Module, context: tuple[Any, ...], inputs: Mapping[str, Any]) -> Captured:
        """The program that stands for ``model`` on these inputs, captured now if there is none yet.

        ``context`` is what besides the inputs a graph depends on: the weights' type and device.
        """
        leaves = flatten(inputs)
        known = self.programs.setdefault((*context, *((name, _kind(leaf)) for name, leaf in leaves.items())), [])
        found = _standing(known, leaves)
        if found is None:
            with unmoved():  # one capture at a time: another thread may have made the graph meanwhile
                found = _standing(known, leaves) or self._capture(model, known, leaves, inputs)
        return self.current(model, found)

    def _capture(
        self, model: nn.Module, known: list[Captured], leaves: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Captured:
        self._warn(model, known, leaves)
        recorded = [c for c in known if c.program.recorded is not None]
        found = _searched(model, capture(model, inputs, record_only=bool(recorded)))
        self.traced += 1
        known[:] = [c for c in known if c not in recorded] + [found]
        return found

    def current(self, model: nn.Module, captured: Captured) -> Captured:
        """The same capture, searched anew where patterns were registered, or replaced, since."""
        if captured.patterns == registered():
            return captured
        with LOCK:
            others = [c for known in self.programs.values() for c in known if c.origin is captured.origin]
            found = next((c for c in others if c.patterns == registered()), None) or _searched(model, captured.origin)
            for known in self.programs.values():
                known[:] = [found if c.origin is captured.origin else c for c in known]
        return found

    def holds(self, captured: Captured) -> bool:
        """Whether the graph is still one of the cache's."""
        with LOCK:
            forms = (form for known in self.programs.values() for c in known for form in (c, *c.forms.values()))
            return any(form is captured for form in forms)

    def _warn(self, model: nn.Module, known: Sequence[Captured], leaves: Mapping[str, Any]) -> None:
        """Say once what it is that keeps the graphs traced so far from standing for these inputs."""
        fixed = known[-1].program.fixed(leaves) if known else ()
        if fixed and not self.warned:
            self.warned = True
            warnings.warn(
                f"{type(model).__name__} has fixed {', '.join(fixed)} in its graph: inputs of other sizes are "
                "traced anew, once for each. Pad them to a few sizes to save that time.",
                RetraceWarning,
                stacklevel=5,
            )


def _standing(known: Sequence[Captured], leaves: Mapping[str, Any]) -> Captured | None:
    """The program among ``known`` that stands for the model on these inputs."""
    return next((c for c in tuple(known) if c.program.accepts(leaves)), None)


def _kind(value: Any) -> Any:
    return (value.dtype, value.ndim, value.device.type) if isinstance(value, Tensor) else value
