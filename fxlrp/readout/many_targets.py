"""Many targets of one forward pass: every generated token is explained by the messages that it alone sends back.

In: a task, its explained tokens and how many of them a backward pass takes at a time. Out: for each target a task of
its own, which readers take as any other; what they ask for is computed once for all targets of a chunk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.process import attention_spelled_out
from fxlrp.engine.conversion import Conversion, Prepared
from fxlrp.engine.explained import Explained
from fxlrp.engine.targets import Selection
from fxlrp.errors import InputError
from fxlrp.planning.plan import Plan
from fxlrp.readout.inputs_at import Point
from fxlrp.readout.passes import Propagated, Task
from fxlrp.readout.rows import last_mixed_value

#: Rows [target, sample, position] that go back together unless the caller says how many targets do.
ROWS = 1024


@dataclass(frozen=True)
class Steps:
    """The tokens ``chosen`` [batch, targets], less those of a ``contrast``, each at its place among the logits."""

    places: tuple[int, ...]
    chosen: Tensor
    contrast: Tensor | None = None

    def explained(self, lrp: Conversion, index: int | None = None) -> Explained:
        """One target of every sample or, target by target, all of them."""
        targets = range(len(self.places)) if index is None else (index,)
        terms = [(1.0, self.chosen)] + ([] if self.contrast is None else [(-1.0, self.contrast)])
        samples = tuple(sample for _ in targets for sample in range(len(self.chosen)))
        return Explained(
            lrp,
            [
                (sign, Selection(tuple((self.places[k], int(i)) for k in targets for i in ids[:, k]), samples))
                for sign, ids in terms
            ],
        )


@dataclass(frozen=True)
class Forward:
    """What one forward pass gave, and where backward passes begin: at ``starts``, with seeds by target."""

    plan: Plan
    taps: tuple[fx.Node, ...]
    outputs: Any
    flat: tuple[Any, ...]
    explained: Tensor
    values: tuple[Tensor, ...]
    watched: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]
    seeds: Callable[[range], list[Tensor]]


class Passes:
    """One forward pass for every conversion and set of taps that readers ask for, and the backward passes of all
    targets over it, ``chunk`` at a time.
    """

    def __init__(self, task: Task, steps: Callable[[Any], Steps], length: int, chunk: int | None = None) -> None:
        self.task = task
        self._steps_of = steps
        self.steps: Steps | None = None
        self.length = length
        self.chunk = chunk
        self._forward: dict[Any, Forward] = {}
        self._messages: dict[Any, tuple[range, list[Tensor | None]]] = {}

    def propagate(self, index: int, taps: Sequence[fx.Node], lrp: Conversion) -> Propagated:
        """What one pass for this target alone would have given."""
        key = (lrp.ruleset.hash, tuple(taps))
        if key not in self._forward:
            self._forward[key] = self._run(lrp, tuple(taps))
        run = self._forward[key]
        if key not in self._messages or index not in self._messages[key][0]:
            assert self.steps is not None
            size = self.chunk or max(1, ROWS // (self.steps.chosen.shape[0] * self.length))
            targets = range(index, min(index + size, len(self.steps.places)))
            self._messages[key] = targets, _sent_back(run, targets)
        targets, messages = self._messages[key]
        own = [None if m is None else m[index - targets.start] for m in messages]
        carried = self.task.carried(run.plan, run.taps, run.watched, own)
        count = len(run.values)
        return Propagated(run.outputs, run.explained[index], carried[:count], carried[count:], run.flat)

    def _run(self, lrp: Conversion, taps: tuple[fx.Node, ...]) -> Forward:
        task, lrp = self.task, lrp.running(replace(lrp.passing, lean=False))  # many messages at a time
        plan = lrp.rewritten(task.captured)[0]
        mixed = last_mixed_value(plan, taps)
        cut = () if mixed is None else (mixed.node,)
        _, rewritten = lrp.rewritten(task.captured, (*taps, *cut))
        # Attention spelled out: products of matrices, which are batched over targets, and weights that are kept.
        with torch.enable_grad(), attention_spelled_out():
            flat, values, tapped = lrp.run(rewritten, task.arguments(lrp, rewritten), task.given)
            outputs = task.captured.program.unpack(flat)
            if self.steps is None:
                self.steps = self._steps_of(outputs)
            scalars, seeds = self.steps.explained(task.lrp)(outputs, lrp.ruleset)
        explained = sum(scalars, torch.zeros(())).detach().unflatten(0, (len(self.steps.places), -1))
        starts, seeder = _from_scalars(scalars, seeds, len(explained))
        if cut:
            # A rule may compare sums over all rows: then one target's message is not what its row has of all.
            last, first = tapped[-1], [seed[0] for seed in seeder(range(1))]
            alone = torch.autograd.grad(starts, last, first, retain_graph=True)[0]
            together = torch.autograd.grad(scalars, last, seeds, retain_graph=True)[0]
            by_row = _from_rows(last, together, self.steps.places)
            if torch.allclose(alone, by_row[1](range(1))[0][0], rtol=1e-3, atol=1e-5 * float(alone.abs().max())):
                starts, seeder = by_row
        watched = (*values, *tapped[: len(taps)])
        return Forward(plan, taps, outputs, tuple(flat), explained, tuple(values), watched, starts, seeder)


def _from_scalars(
    scalars: Sequence[Tensor], seeds: Sequence[Tensor], count: int
) -> tuple[tuple[Tensor, ...], Callable[[range], list[Tensor]]]:
    """Backward passes that begin at the scalars [targets x batch], each at those of its own target."""
    pairs = [(scalar, seed) for scalar, seed in zip(scalars, seeds, strict=True) if scalar.requires_grad]

    def seeds_of(targets: range) -> list[Tensor]:
        chosen = torch.zeros(len(targets), count, 1, dtype=pairs[0][0].dtype, device=pairs[0][0].device)
        for row, target in enumerate(targets):
            chosen[row, target] = 1
        return [(chosen * seed.detach().unflatten(0, (count, -1))).flatten(1) for _, seed in pairs]

    return tuple(scalar for scalar, _ in pairs), seeds_of


def _from_rows(
    value: Tensor, message: Tensor, places: Sequence[int]
) -> tuple[tuple[Tensor, ...], Callable[[range], list[Tensor]]]:
    """Backward passes that begin at a value [batch, positions, features], whose message of all targets at once holds
    that of each in the row of its place.
    """

    def seeds_of(targets: range) -> list[Tensor]:
        seeds = message.new_zeros(len(targets), *message.shape)
        for row, target in enumerate(targets):
            seeds[row, :, places[target]] = message[:, places[target]]
        return [seeds]

    return (value,), seeds_of


def _sent_back(run: Forward, targets: range) -> list[Tensor | None]:
    """The messages [targets, ...] at everything watched that can have one."""
    wanted = [value for value in run.watched if value.requires_grad]
    reached: list[int] = []

    def messages(*seeds: Tensor) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(run.starts, wanted, seeds, retain_graph=True, allow_unused=True)
        reached[:] = [place for place, message in enumerate(found) if message is not None]
        return tuple(message for message in found if message is not None)

    seeds = run.seeds(targets)
    found: Any
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            found = torch.vmap(messages)(*seeds)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an operator that torch cannot batch: the targets one by one
            single = [messages(*(seed[i] for seed in seeds)) for i in range(len(targets))]
            found = [torch.stack(each) for each in zip(*single, strict=True)]
    by_place = dict(zip(reached, found, strict=True))
    return [by_place.get(place) for place in range(len(wanted))]


class OneOfMany(Task):
    """One target among many: what readers take. Tokens that it does not see count as padding."""

    def __init__(self, passes: Passes, index: int, given: Mapping[str, Any]) -> None:
        task = passes.task
        super().__init__(task.lrp, Prepared(given, task.captured))
        self.passes, self.index = passes, index

    def propagate(
        self,
        taps: Sequence[fx.Node] = (),
        lrp: Conversion | None = None,
        at: Point | None = None,
        inputs: bool = True,
    ) -> Propagated:
        """Its part of the passes of all targets, which go back to the inputs. Raises :class:`InputError` for passes at
        other inputs.
        """
        if at is not None:
            raise self._refused()
        propagated = self.passes.propagate(self.index, taps, lrp or self.lrp)
        if self.explain is None:
            assert self.passes.steps is not None
            self.explain = self.passes.steps.explained(self.lrp, self.index)
        return propagated

    def observe(self, taps: Sequence[fx.Node]) -> Propagated:
        """The values of ``taps``, with messages that nobody reads."""
        return self.propagate(taps, self.lrp.plain)

    def behind(self, taps: Sequence[fx.Node], node: fx.Node) -> Propagated | None:
        """The values of ``taps`` and their plain gradients, of one pass for all targets."""
        found = self.propagate(taps, self.lrp.plain)
        return found if bool(found.taps[taps.index(node)].message.any()) else None

    def forward(self, at: Point, taps: Sequence[fx.Node] = ()) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Refused: it is a pass at other inputs."""
        raise self._refused()

    def _refused(self) -> InputError:
        rules = self.lrp.ruleset
        return InputError(
            f"'{rules.name}' reads '{rules.readout.kind}', passes at other inputs than those given, of its own for "
            "every generated token: one forward pass cannot serve it. Take a ruleset that reads one pass, such as "
            "'attnlrp', or call attribute once per token."
        )
