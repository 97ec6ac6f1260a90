"""The graphs that stand for a model: traced on demand, found again by the inputs' names, types, ranks and sizes.

In: a model and inputs. Out: :class:`Captured`. One cache is shared by all conversions of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fxlrp.capture import Program, agree, capture
from fxlrp.capture.attributed import attributed_values
from fxlrp.capture.lengths import joined
from fxlrp.capture.precision import in_float32, is_narrow
from fxlrp.capture.process import at_rest, unmoved
from fxlrp.capture.program import flatten
from fxlrp.capture.state import State, described
from fxlrp.capture.torch_private import LOCK, outside_compiler
from fxlrp.errors import RetraceWarning, warn
from fxlrp.patterns import Pattern, registered
from fxlrp.patterns.fold_activations import fold_activations
from fxlrp.patterns.fold_adapters import fold_adapters
from fxlrp.patterns.fold_linear import fold_affine
from fxlrp.patterns.structure import Structure

#: The shapes of the tensors among some inputs, in order.
Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Captured:
    """A program with its structure, as shared by every ruleset, and the forms that rulesets asked to fold it into.

    ``origin`` is the program before activations were folded, ``patterns`` are those that it was searched for. ``own``
    is the same in the model's own precision, where the program computes in a wider one.
    """

    program: Program
    structure: Structure
    origin: Program
    patterns: tuple[Pattern, ...]
    forms: dict[tuple[str, ...], Captured] = field(default_factory=dict, repr=False)
    #: Sizes of inputs on which the program was compared with its model, and whether it gave the same.
    checked: dict[Sizes, bool] = field(default_factory=dict, repr=False)
    own: Captured | None = field(default=None, repr=False)
    #: What came out of the comparisons since the first.
    compared: list[bool] = field(default_factory=list, repr=False)

    @property
    def narrowest(self) -> Captured:
        """The program in the model's own precision."""
        return self.own or self

    def stands_for(self, model: nn.Module, inputs: Mapping[str, Any], sizes: Sizes) -> bool:
        """Whether the program stands for its model on these inputs, as far as is known."""
        return self.checked.get(sizes, True) and self.program.accepts(model, inputs)

    def is_checked(self, sizes: Sizes) -> bool:
        """Whether the program was compared on inputs of such sizes, and on several of them, or on as many sizes as are
        looked at: a batch of one, which models tell from others most, is among them. Lengths that two recordings leave
        free are all looked at.
        """
        if self.program.free:
            return sizes in self.checked
        enough = len(self.checked) >= CHECKS and (not _of_one(sizes) or any(map(_of_one, self.checked)))
        known = sizes in self.checked and len(self.compared) >= CHECKS - 1
        return known or enough

    def check(self, model: nn.Module, inputs: Mapping[str, Any], sizes: Sizes) -> bool:
        """Compare the program, in the model's own precision, with its model on these inputs; remember what came out."""
        try:
            agrees = agree(model, self.narrowest.program, inputs)
        except (RuntimeError, IndexError, ValueError):  # a number that does not grow with the length as it seemed to
            if not self.program.free:
                raise
            agrees = False
        self.checked[sizes] = agrees
        self.compared.append(agrees)
        return agrees

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
                self.forms[folds] = replace(self, program=program, structure=made, forms={}) if folds else self
            return self.forms[folds]

    @outside_compiler
    def without(self, names: frozenset[str]) -> Captured:
        """The program in which the inputs of these names are not explained: additive constants, made once."""
        left = tuple(each for each in self.structure.attributed if each.name not in names)
        if len(left) == len(self.structure.attributed):
            return self
        key = ("", *sorted(names))  # no fold has this name
        with LOCK:
            if key not in self.forms:
                self.forms[key] = replace(self, structure=Structure.of(self.program, left), forms={})
            return self.forms[key]

    def every_form(self) -> Iterator[Captured]:
        """The program itself, all its forms, and that in the model's own precision."""
        yield self
        if self.own is not None:
            yield from self.own.every_form()
        for form in self.forms.values():
            if form is not self:
                yield from form.every_form()


#: What a ruleset may ask to be folded before its rules are chosen: a program to another and the new nodes of the old.
FOLDS = {"affine": fold_affine}


def _searched(model: nn.Module, origin: Program, checked: dict[Sizes, bool]) -> Captured:
    """A captured program with its activations and adapters folded, and what the patterns of now find in it."""

    def found(program: Program, own: Captured | None = None) -> Captured:
        program = fold_adapters(fold_activations(program))
        structure = Structure.of(program, attributed_values(program, model))
        return Captured(program, structure, origin, registered(), checked=checked, own=own)

    return found(in_float32(origin), found(origin)) if is_narrow(origin) else found(origin)


#: How many graphs of one model are held, over all that it has been.
KEPT = 48
#: How many recordings are held of inputs of one signature, of a model that decides by values.
RECORDINGS = 8
#: How many states of one model, such as adapters that are switched, are held with their graphs.
VERSIONS = 4
#: On how many inputs, and sizes of inputs, a graph is compared with its model.
CHECKS = 3


@dataclass(eq=False)
class Version:
    """A model as it was for a while, and the graphs of it: by input signature, of which each may need several."""

    state: State | None = None
    programs: dict[Any, list[Captured]] = field(default_factory=dict)


class Graphs:
    """Programs by input signature, for the model as it is now; of recordings the last :data:`RECORDINGS` of each.

    ``traced`` counts all graphs made so far, ``version`` those of the model as it is. At most :data:`KEPT` are held.
    """

    def __init__(self) -> None:
        self.versions = [Version()]
        self.traced = 0
        self.warned: set[str] = set()

    @property
    def version(self) -> Version:
        """The model as it is now, as far as was looked."""
        return self.versions[-1]

    @property
    def programs(self) -> dict[Any, list[Captured]]:
        """The graphs of the model as it is now."""
        return self.version.programs

    @outside_compiler
    def serve(self, model: nn.Module, context: tuple[Any, ...], inputs: Mapping[str, Any]) -> Captured:
        """The program that stands for ``model`` on these inputs, captured now if there is none yet.

        ``context`` is what besides the inputs a graph depends on: the weights' type and device.
        """
        self._follow(model)
        leaves = flatten(inputs)
        sizes = tuple(tuple(leaf.shape) for leaf in leaves.values() if isinstance(leaf, Tensor))
        key = (*context, *((name, _kind(leaf)) for name, leaf in leaves.items()))

        def standing() -> Captured | None:
            known = tuple(self.programs.get(key, ()))
            return next((c for c in known if c.stands_for(model, inputs, sizes)), None)

        found = standing()
        if found is None or not found.is_checked(sizes):
            with at_rest(), unmoved():  # one at a time: another thread may have made the graph meanwhile
                found = standing()
                if found is not None and not found.is_checked(sizes) and not self._checks(found, model, inputs, sizes):
                    found = None
                if found is None:
                    found = self._capture(model, key, leaves, inputs, sizes)
        return self.current(model, found)

    def _checks(self, found: Captured, model: nn.Module, inputs: Mapping[str, Any], sizes: Sizes) -> bool:
        with self.version.state.put_back() if self.version.state is not None else nullcontext():
            return found.check(model, inputs, sizes)

    def _follow(self, model: nn.Module) -> None:
        """Turn to the graphs of the model as it is now: what was replaced in it since may have changed what it does."""
        before = self.version.state
        if before is None or before.stands():
            return
        with at_rest():
            now = State(model)
            others = reversed(self.versions)
            found = next((v for v in others if v.state is not None and v.state.difference(now) is None), None)
            if found is None:
                warn(
                    f"{type(model).__name__} has changed since it was captured, in '{before.difference(now)}': it is "
                    "captured anew.",
                    RetraceWarning,
                )
                found = Version()
            found.state = now
            self.versions = [*(v for v in self.versions if v is not found), found][-VERSIONS:]

    def _capture(
        self, model: nn.Module, key: Any, leaves: Mapping[str, Any], inputs: Mapping[str, Any], sizes: Sizes
    ) -> Captured:
        known = self.programs.setdefault(key, [])
        self._warn(model, known, leaves)
        recorded = [c for c in known if c.program.recorded is not None]
        refuted = any(c.checked.get(sizes) is False for c in known)
        refused = any(not c.program.replayed for c in recorded)
        state = State(model)
        with state.put_back():
            program = capture(model, inputs, record_only=refused or refuted)
        found = _searched(model, program, {sizes: True})
        for before, whole in ((c, joined(c.origin, program)) for c in recorded):
            if whole is not None:
                longer = _searched(model, whole, {**before.checked, sizes: True})
                with state.put_back():
                    if longer.check(model, inputs, sizes):
                        found, recorded = longer, [c for c in recorded if c is not before]
                break
        self.traced += 1
        known[:] = [c for c in known if c.program.recorded is None] + [*recorded, found][-RECORDINGS:]
        self.version.state = state
        self._bound(model, leaves)
        return found

    def _bound(self, model: nn.Module, leaves: Mapping[str, Any]) -> None:
        """Let go of the graph whose signature was met first, once there are more than :data:`KEPT`."""
        held = [c for v in self.versions for known in v.programs.values() for c in known]
        if len(held) <= KEPT:
            return
        for version in self.versions:
            for key, known in tuple(version.programs.items()):
                known[:] = [c for c in known if c is not held[0]]
                if not known:
                    del version.programs[key]
        values = [f"'{name}'" for name, leaf in leaves.items() if not isinstance(leaf, Tensor)]
        why = f"each value of {', '.join(values)} has one of its own" if values else "each size has one of its own"
        self._say(
            "many",
            f"More than {KEPT} graphs of {type(model).__name__} were captured, as {why}: the oldest are let go. Pass "
            "numbers as tensors, and pad inputs to a few sizes.",
        )

    def current(self, model: nn.Module, captured: Captured) -> Captured:
        """The same capture, searched anew where patterns were registered, or replaced, since."""
        if captured.patterns == registered():
            return captured
        with LOCK:
            others = [c for known in self.programs.values() for c in known if c.origin is captured.origin]
            fresh = (c for c in others if c.patterns == registered())
            found = next(fresh, None) or _searched(model, captured.origin, captured.checked)
            for known in self.programs.values():
                known[:] = [found if c.origin is captured.origin else c for c in known]
        return found

    def holds(self, captured: Captured) -> bool:
        """Whether the graph is still one of the cache's."""
        with LOCK:
            held = (c for v in self.versions for known in v.programs.values() for c in known)
            return any(form is captured for c in held for form in c.every_form())

    def _warn(self, model: nn.Module, known: Sequence[Captured], leaves: Mapping[str, Any]) -> None:
        """Say once what it is that keeps the graphs traced so far from standing for these inputs."""
        fixed = known[-1].program.fixed(leaves) if known else ()
        if fixed:
            self._say(
                "fixed",
                f"{type(model).__name__} has fixed {', '.join(fixed)} in its graph: inputs of other sizes are "
                "traced anew, once for each. Pad them to a few sizes to save that time.",
            )

    def _say(self, what: str, text: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            warn(text, RetraceWarning)


def _of_one(sizes: Sizes) -> bool:
    return any(shape[:1] == (1,) for shape in sizes)


def _kind(value: Any) -> Any:
    return (value.dtype, value.ndim, value.device.type) if isinstance(value, Tensor) else described(value)
