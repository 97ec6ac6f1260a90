"""What each ATen operator is to relevance: its class, and which arguments take part in it.

One table, :data:`OPERATORS`, is all that fxlrp knows about single operators. The rest of the engine asks an
:class:`Operator` for its :class:`Kind` and its slots and never looks at a name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import transformers.integrations.moe  # noqa: F401  (defines the grouped product of experts as an operator)
from torch import fx

from fxlrp.graph.activations import SLOPES, SPELLED

aten = torch.ops.aten


class Kind(Enum):
    """How an operator depends on its float arguments."""

    TERMS = "jointly linear in all its terms"
    FACTORS = "linear in each of its factors, plus its terms"
    QUOTIENT = "linear in its numerator, of degree -1 in its denominator"
    HOMOGENEOUS = "jointly homogeneous of degree one (piecewise linear selections, norms)"
    ACTIVATION = "a function of one argument, entry by entry"
    SOFTMAX = "normalised exponentials"
    GENERAL = "differentiable, with no structure that rules could use"
    CONSTANT = "piecewise constant: carries no relevance"


@dataclass(frozen=True)
class Operator:
    """An operator's kind, its class as rulesets name it, and its slots (positions of arguments).

    ``factors`` are the multilinear arguments of FACTORS, the numerator and denominator of a QUOTIENT; ``terms``
    enter by addition or concatenation, so a constant among them is a source. A slot may hold a list of tensors
    (``cat``) or a number. ``copies``: every entry of the result is an entry of an argument, so relevance R moves as
    the entries do.
    """

    kind: Kind
    category: str
    factors: tuple[int, ...] = ()
    terms: tuple[int, ...] = ()
    copies: bool = False


OPERATORS: dict[Any, Operator] = {}


def _register(category: str, kind: Kind, names: str, **slots: Any) -> None:
    for name in names.split():
        packet = getattr(aten, name, None)
        if packet is not None:
            OPERATORS[packet] = Operator(kind, category, **slots)


_register(
    "movement",
    Kind.TERMS,
    """view reshape _unsafe_view transpose permute t mT numpy_T expand expand_as slice select index unsqueeze
    squeeze flip roll split split_with_sizes chunk unbind unsafe_split unsafe_chunk tensor_split contiguous
    clone alias to _to_copy type_as narrow repeat repeat_interleave index_select gather tril triu unfold im2col
    pixel_shuffle pixel_unshuffle flatten unflatten view_as reshape_as diagonal diag_embed movedim swapaxes
    lift_fresh_copy lift_fresh broadcast_to tile channel_shuffle masked_select take_along_dim rot90 as_strided
    constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d atleast_1d
    atleast_2d squeeze_ upsample_nearest1d upsample_nearest2d upsample_nearest3d unsafe_split_with_sizes
    split_copy expand_copy hsplit vsplit ravel embedding cat concat concatenate stack hstack vstack""",
    terms=(0,),
    copies=True,
)
_register(
    "movement",
    Kind.TERMS,
    """dropout feature_dropout alpha_dropout native_dropout conj real view_as_real view_as_complex matrix_H adjoint
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa grid_sampler_2d grid_sampler fft_fft fft_fft2 fft_fftn fft_ifft fft_rfft fft_irfft
    _fft_c2c _fft_r2c _fft_c2r""",
    terms=(0,),
)
_register("movement", Kind.TERMS, "complex", terms=(0, 1))
_register("movement", Kind.TERMS, "slice_scatter select_scatter diagonal_scatter", terms=(0, 1), copies=True)
_register("movement", Kind.TERMS, "index_put", terms=(0, 2))
_register("movement", Kind.TERMS, "masked_scatter", terms=(0, 2), copies=True)
_register("movement", Kind.TERMS, "scatter index_copy", terms=(0, 3), copies=True)
_register("movement", Kind.TERMS, "scatter_add index_add", terms=(0, 3))
_register("movement", Kind.TERMS, "copy", terms=(1,), copies=True)
_register(
    "sum",
    Kind.TERMS,
    """sum mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d cumsum nansum trace col2im neg""",
    terms=(0,),
)
_register("add", Kind.TERMS, "add sub", terms=(0, 1))
_register("linear", Kind.FACTORS, "linear", factors=(0, 1), terms=(2,))
_register(
    "convolution",
    Kind.FACTORS,
    "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d",
    factors=(0, 1),
    terms=(2,),
)
_register("product", Kind.FACTORS, "mul", factors=(0, 1))
_register("matmul", Kind.FACTORS, "matmul outer dot ger vdot kron", factors=(0, 1))
_register("matmul", Kind.FACTORS, "addmm baddbmm addbmm addmv addr", factors=(1, 2), terms=(0,))
_register("product", Kind.FACTORS, "addcmul", factors=(1, 2), terms=(0,))
_register("product", Kind.FACTORS, "lerp", factors=(2,), terms=(0, 1))
_register("matmul", Kind.FACTORS, "einsum", factors=(1,))
_register("matmul", Kind.FACTORS, "bilinear", factors=(0, 1, 2), terms=(3,))
_register("quotient", Kind.QUOTIENT, "div true_divide divide", factors=(0, 1))
_register("quotient", Kind.QUOTIENT, "linalg_solve_triangular", factors=(1, 0))
_register(
    "selection",
    Kind.HOMOGENEOUS,
    """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d
    adaptive_max_pool2d amax amin topk sort kthvalue median mode cummax cummin nan_to_num""",
    terms=(0,),
    copies=True,
)
_register(
    "selection",
    Kind.HOMOGENEOUS,
    "abs norm linalg_vector_norm frobenius_norm std hypot",
    terms=(0,),
)
_register("rectifier", Kind.HOMOGENEOUS, "relu", terms=(0,), copies=True)
_register("rectifier", Kind.HOMOGENEOUS, "leaky_relu rrelu prelu _prelu_kernel", terms=(0,))
_register("selection", Kind.HOMOGENEOUS, "max min maximum minimum fmax fmin", terms=(0, 1), copies=True)
_register("selection", Kind.HOMOGENEOUS, "where", terms=(1, 2), copies=True)
_register("selection", Kind.HOMOGENEOUS, "scatter_reduce index_reduce", terms=(0, 3))
_register("selection", Kind.HOMOGENEOUS, "masked_fill", terms=(0, 2), copies=True)
_register("selection", Kind.HOMOGENEOUS, "clamp clamp_min clamp_max clip", terms=(0, 1, 2), copies=True)
_register("softmax", Kind.SOFTMAX, "softmax _softmax _safe_softmax", terms=(0,))
_register(
    "general",
    Kind.GENERAL,
    "log_softmax _log_softmax logsumexp logcumsumexp glu prod cumprod var",
    terms=(0,),
)
_register("general", Kind.GENERAL, "atan2 fmod remainder linalg_inv_ex polar cdist _cdist_forward xlogy", terms=(0, 1))
_register(
    "constant",
    Kind.CONSTANT,
    """eq ne lt le gt ge logical_and logical_or logical_not logical_xor sign sgn round floor ceil trunc argmax
    argmin argsort isnan isinf isfinite isposinf isneginf floor_divide bitwise_and bitwise_or bitwise_not
    bitwise_xor __and__ __or__ __xor__ __lshift__ __rshift__ bitwise_left_shift bitwise_right_shift
    zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full
    new_empty sym_size sym_numel sym_stride arange eye full zeros ones scalar_tensor heaviside signbit any all
    nonzero searchsorted bucketize multinomial bernoulli item detach _local_scalar_dense histc bincount one_hot
    equal""",
)
for _packet in (*SLOPES, SPELLED):
    OPERATORS[_packet] = Operator(Kind.ACTIVATION, "activation", terms=(0,))
OPERATORS[operator.getitem] = Operator(Kind.TERMS, "movement", terms=(0,), copies=True)


def register(target: Any, operator: Operator) -> None:
    """Tell fxlrp what an operator outside ATen is: its overload packet, kind, class and slots."""
    OPERATORS[packet(target)] = operator


def packet(target: Any) -> Any:
    """The overload packet of an ATen target (``aten.add`` for ``aten.add.Tensor``), anything else unchanged."""
    return getattr(target, "overloadpacket", target)


def operator_of(node: fx.Node) -> Operator | None:
    """The operator that ``node`` applies, or None if the table does not know it."""
    return OPERATORS.get(packet(node.target)) if node.op == "call_function" else None


def in_slots(node: fx.Node, slots: tuple[int, ...]) -> Iterator[Any]:
    """The arguments of ``node`` in ``slots``, lists flattened, absent ones and None left out."""
    names = _parameter_names(node.target)
    for slot in slots:
        if slot < len(node.args):
            value = node.args[slot]
        elif slot < len(names):
            value = node.kwargs.get(names[slot])
        else:
            continue
        if isinstance(value, (list, tuple)):
            yield from (item for item in value if item is not None)
        elif value is not None:
            yield value


def _parameter_names(target: Any) -> tuple[str, ...]:
    schema = getattr(target, "_schema", None)
    return tuple(argument.name for argument in schema.arguments) if schema is not None else ()


def nodes_in(node: fx.Node, slots: tuple[int, ...]) -> list[fx.Node]:
    """The nodes among the arguments in ``slots``, in order and possibly repeated."""
    return [value for value in in_slots(node, slots) if isinstance(value, fx.Node)]


def operands_of(node: fx.Node) -> list[fx.Node]:
    """The arguments of a node that relevance may flow to."""
    operator = operator_of(node)
    return node.all_input_nodes if operator is None else nodes_in(node, operator.factors + operator.terms)


def is_movement(node: fx.Node) -> bool:
    """A view, copy, cast or other rearrangement of one tensor."""
    operator = operator_of(node)
    return (
        operator is not None
        and operator.category == "movement"
        and operator.terms == (0,)
        and isinstance(node.args[0], fx.Node)
    )


def is_continuous(value: Any) -> bool:
    """Whether this is a tensor of real or complex numbers: what relevance can be carried by."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def is_float(node: fx.Node) -> bool:
    """Whether the node's value is a tensor of real or complex numbers (or a tuple holding one)."""
    value = node.meta.get("val")
    return any(map(is_continuous, value if isinstance(value, (tuple, list)) else (value,)))


register(aten._grouped_mm, Operator(Kind.FACTORS, "matmul", factors=(0, 1)))
register(torch.ops.transformers.grouped_mm_fallback, Operator(Kind.FACTORS, "matmul", factors=(0, 1)))
