"""Packed sequences as operators that a graph can hold: what a recurrent module computes on one, padded and masked.

How many steps a sample takes is data, so ``torch.export`` refuses the packed kernels. Inside
:func:`unrolled_packing` the same values come from ordinary operators: packing selects the entries where a token
is, a recurrent module runs over the padded axis and holds its state where the sample has ended, unpacking
scatters the entries back. It is set up for one model, a twin, in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fxlrp.capture import torch_private as private

State = tuple[Tensor, ...]
#: From the input's share of the pre-activation, the state and the weights of a cell to its next state.
Cell = Callable[[Tensor, State, "Weights"], State]


@dataclass(frozen=True)
class Weights:
    """The weights of one layer in one direction, as ``nn.RNNBase`` names them; None where it has none."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None

    @staticmethod
    def of(module: nn.RNNBase, layer: int, reverse: bool) -> Weights:
        """Those of ``module`` now: under export its parameters are the tracer's."""
        suffix = f"_l{layer}" + ("_reverse" if reverse else "")
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        found: list[Any] = [getattr(module, name + suffix, None) for name in names]
        return Weights(*found)

    def recur(self, h: Tensor) -> Tensor:
        """W_hh h + b_hh."""
        return F.linear(h, self.weight_hh, self.bias_hh)


def _lstm(z: Tensor, state: State, weights: Weights) -> State:
    """c' = f c + i g, h' = W_hr (o tanh c') from i, f, g, o = W_hh h + b_hh + z, sigmoid or (g) tanh of each."""
    h, c = state
    i, f, g, o = (weights.recur(h) + z).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights.weight_hr is None else F.linear(h, weights.weight_hr)), c


def _gru(z: Tensor, state: State, weights: Weights) -> State:
    """h' = (h - n) u + n with r, u = sigmoid(W_hh h + b_hh + z), n = tanh(z_n + r (W_hn h + b_hn))."""
    (h,) = state
    reset, update, new = weights.recur(h).chunk(3, -1)
    z_reset, z_update, z_new = z.chunk(3, -1)
    new = (z_new + new * (reset + z_reset).sigmoid()).tanh()
    return ((h - new) * (update + z_update).sigmoid() + new,)


def _elman(activation: Callable[[Tensor], Tensor]) -> Cell:
    """h' = activation(W_hh h + b_hh + z)."""
    return lambda z, state, weights: (activation(weights.recur(state[0]) + z),)


#: Cells by the mode of a recurrent module, in the arithmetic that PyTorch decomposes the padded kernels into.
CELLS: dict[str, Cell] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _elman(torch.tanh),
    "RNN_RELU": _elman(torch.relu),
}


@dataclass(frozen=True)
class PackedLayout:
    """Which entries of a padded [time, batch, ...] tensor a packed sequence holds: ``present`` [time, batch]."""

    present: Tensor
    lengths: Tensor

    @staticmethod
    def of(lengths: Tensor, steps: int) -> PackedLayout:
        """Sample b is present at the first ``lengths[b]`` of ``steps`` steps."""
        present = torch.arange(steps, device=lengths.device)[:, None] < lengths[None, :]
        return PackedLayout(present, lengths)

    def batch_sizes(self) -> Tensor:
        """How many samples are present at each step, up to the longest."""
        steps = self.present.shape[0]
        longest: Any = self.lengths.max().item()
        private.check(longest >= 1)
        private.check(longest <= steps)
        return self.present.sum(1)[:longest]

    def gather(self, padded: Tensor) -> Tensor:
        """The entries that are present, step by step: the data of a packed sequence."""
        return padded[self.present.to(padded.device)]

    def scatter(self, data: Tensor, fill: float = 0.0) -> Tensor:
        """The padded tensor with ``fill`` where no entry is."""
        present = self.present.to(data.device).reshape(*self.present.shape, *([1] * (data.ndim - 1)))
        padded = data.new_full((*self.present.shape, *data.shape[1:]), fill)
        return padded.masked_scatter(present, data)


def unroll(module: nn.RNNBase, x: Tensor, state: State, layout: PackedLayout) -> tuple[Tensor, State]:
    """All layers and directions of ``module`` over x [time, batch, features] from ``state`` (each [layers x
    directions, batch, hidden]): the outputs, defined where a sample is present, and the final state.

    A sample's state is held where it is absent, so the reversed direction, too, begins at its last step.
    """
    finals: list[State] = []
    steps = x.shape[0]
    present = [here[:, None] for here in layout.present.to(x.device).unbind(0)]
    for layer in range(module.num_layers):
        directions = []
        for reverse in (False, True)[: 2 if module.bidirectional else 1]:
            weights = Weights.of(module, layer, reverse)
            shares = F.linear(x, weights.weight_ih, weights.bias_ih).unbind(0)
            current = tuple(part[len(finals)] for part in state)
            outputs = {}
            for step in reversed(range(steps)) if reverse else range(steps):
                updated = CELLS[module.mode](shares[step], current, weights)
                current = tuple(torch.where(present[step], a, b) for a, b in zip(updated, current, strict=True))
                outputs[step] = current[0]
            finals.append(current)
            directions.append(torch.stack([outputs[step] for step in range(steps)]))
        x = directions[0] if len(directions) == 1 else torch.cat(directions, -1)
    return x, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


class _Packing(TorchFunctionMode):
    """Answers for the two operators that pack and unpack, and remembers the layout of what it packed."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: Any = WeakIdKeyDictionary()  # by the tensor of batch sizes, which travels with the data

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is private.VF._pack_padded_sequence:
            return self.pack(*args, **(kwargs or {}))
        if func is private.VF._pad_packed_sequence:
            return self.pad(func, *args, **(kwargs or {}))
        if func is torch.as_tensor and _symbolic(args[0]):
            return torch.stack([torch.scalar_tensor(length, dtype=torch.int64) for length in args[0]])
        return func(*args, **(kwargs or {}))

    def pack(self, padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """The data of the packed sequence and its batch sizes."""
        padded = padded.transpose(0, 1) if batch_first else padded
        private.check(padded.shape[1] == lengths.shape[0])
        layout = PackedLayout.of(lengths, int(padded.shape[0]))
        sizes = layout.batch_sizes()
        self.layouts[sizes] = layout
        return layout.gather(padded), sizes

    def pad(
        self, func: Any, data: Tensor, sizes: Tensor, batch_first: bool, fill: float, steps: Any
    ) -> tuple[Tensor, Tensor]:
        """The padded tensor over ``steps`` steps and the lengths."""
        layout = self.layouts.get(sizes)
        if layout is None:
            made: tuple[Tensor, Tensor] = func(data, sizes, batch_first, fill, steps)
            return made
        padded = layout.scatter(data, fill)
        known = padded.shape[0]
        if isinstance(steps, int) and steps > known:
            padded = torch.cat([padded, padded.new_full((steps - known, *padded.shape[1:]), fill)])
        elif steps is not known:
            padded = padded[:steps]
        return padded.transpose(0, 1) if batch_first else padded, layout.lengths

    def stand_in(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``forward`` of a recurrent module for sequences packed here; any other input goes to the ``original``."""

        def forward(module: nn.RNNBase, input: Any, hx: Any = None) -> Any:
            layout = self.layouts.get(input.batch_sizes) if isinstance(input, PackedSequence) else None
            if layout is None:
                return original(input, hx)
            x = layout.scatter(input.data)
            many = module.mode == "LSTM"
            if hx is None:
                first = (module.num_layers * (1 + module.bidirectional), x.shape[1])
                widths = (module.proj_size or module.hidden_size, module.hidden_size)
                state: State = tuple(x.new_zeros(*first, width) for width in widths[: 1 + many])
            else:
                hx = module.permute_hidden(hx, input.sorted_indices)
                state = tuple(hx) if many else (hx,)
            output, final = unroll(module, x, state, layout)
            packed = PackedSequence(
                layout.gather(output), input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            last: Any = final if many else final[0]
            return packed, module.permute_hidden(last, input.unsorted_indices)

        return forward


def _symbolic(data: Any) -> bool:
    """Whether this is a list of lengths of which some are data."""
    return isinstance(data, (list, tuple)) and any(isinstance(item, torch.SymInt) for item in data)


@contextmanager
def unrolled_packing(model: nn.Module) -> Iterator[None]:
    """Packed sequences that ``model`` makes inside are padded ones in disguise.

    Its recurrent modules get a forward of their own for it, so ``model`` is a twin of the user's.
    """
    packing = _Packing()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.forward = MethodType(packing.stand_in(module.forward), module)
    with packing:
        yield
