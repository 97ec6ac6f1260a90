"""The table of operators: each ATen operator with what it is to relevance, one entry a kind.

Together with :mod:`fxlrp.capture`, which writes them, this is the only place that spells ATen names. What other modules
need of single operators stands here as a constant.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxlrp.graph import activations
from fxlrp.graph.activations import sinc_like
from fxlrp.graph.one_hot import written_out
from fxlrp.graph.operator_classes import (
    ACTIVATION,
    ADD,
    CONSTANT,
    CONVOLUTION,
    GENERAL,
    INDEX,
    LINEAR,
    MATMUL,
    MOVEMENT,
    PRODUCT,
    QUOTIENT,
    RECTIFIER,
    ROUNDING,
    SELECTION,
    SOFTMAX,
    SUM,
    OperatorClass,
)
from fxlrp.graph.operators import LINEAR_LAYER, Dependence, LinearMap, Move, Operator, register
from fxlrp.graph.rounding import rounded

aten = torch.ops.aten

#: A value as it is.
ALIAS = aten.alias.default
#: A value that no gradient passes.
DETACH = aten.detach
#: The bits of a value as those of another type.
BITS = aten.view.dtype
#: A softmax that maps rows of -inf to zero, as fused attention does.
SAFE_SOFTMAX = aten._safe_softmax.default
#: Operators that capture spells out and that rewriting may run whole.
ATTENTION, LAYER_NORM = aten.scaled_dot_product_attention, aten.layer_norm
#: Those among them whose backward in torch is wrong for some layouts of gradients.
BATCH_NORM, INSTANCE_NORM = aten.batch_norm, aten.instance_norm
#: Operators that capture spells out and that shift what they have normalised.
NORMS = frozenset({aten.layer_norm, aten.rms_norm, aten.group_norm, aten.batch_norm, aten.instance_norm})
#: Square roots and their reciprocals, as deviations are made with.
ROOTS = frozenset({aten.rsqrt, aten.sqrt})
#: Choices among entries along an axis: which are the largest, and in which order they stand.
CHOICES = frozenset({aten.topk, aten.sort, aten.argsort, aten.argmax, aten.argmin, aten.max, aten.min, aten.kthvalue})
LAYER_NORM_BACKWARD = aten.native_layer_norm_backward.default


#: Names in this table that the installed PyTorch has no operator for. They occur in none of its graphs, so that nothing
#: is lost; whatever stands in their place has no entry, and its use is refused. Empty with the version tested.
ABSENT: list[str] = []


def _register(names: str, dependence: Dependence, category: OperatorClass, **traits: Any) -> None:
    """One entry for several operators of ``torch.ops.aten``."""
    for name in names.split():
        if hasattr(aten, name):
            register(getattr(aten, name), Operator(dependence, category, **traits))
        else:
            ABSENT.append(name)


# --- movements ------------------------------------------------------------------------------------------------

_register(
    """view reshape _unsafe_view permute roll narrow repeat repeat_interleave tril triu unfold im2col
    pixel_shuffle pixel_unshuffle flatten unflatten view_as reshape_as diagonal diag_embed movedim swapaxes tile
    channel_shuffle masked_select take_along_dim rot90 as_strided constant_pad_nd pad reflection_pad1d
    reflection_pad2d replication_pad1d replication_pad2d atleast_1d atleast_2d squeeze_ upsample_nearest1d
    upsample_nearest2d upsample_nearest3d split_copy hsplit vsplit ravel""",
    Dependence.TERMS,
    MOVEMENT,
    terms=(0,),
    copies=True,
)
for _names, _copies in (("t mT numpy_T", True), ("adjoint matrix_H", False)):
    _register(_names, Dependence.TERMS, MOVEMENT, terms=(0,), copies=_copies, move=Move.EXCHANGES)
for _names, _move in (
    ("expand expand_as expand_copy broadcast_to", Move.SPREADS),
    ("cat concat concatenate stack hstack vstack", Move.JOINS),
    ("alias clone contiguous to _to_copy type_as lift_fresh lift_fresh_copy", Move.STAYS),
    ("unbind unsqueeze squeeze transpose flip", Move.ROWS),
    ("slice split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split", Move.CUTS),
):
    _register(_names, Dependence.TERMS, MOVEMENT, terms=(0,), copies=True, move=_move)
_register("gather", Dependence.TERMS, MOVEMENT, terms=(0,), copies=True, indexed=True)
register(written_out, Operator(Dependence.TERMS, MOVEMENT, terms=(0,), copies=True, indexed=True))
_register("select", Dependence.TERMS, INDEX, terms=(0,), copies=True, move=Move.ROWS)
_register("index_select index", Dependence.TERMS, INDEX, terms=(0,), copies=True, indexed=True)
_register("embedding", Dependence.TERMS, MOVEMENT, terms=(0,), copies=True, indexed=True, looks_up=True)
_register(
    """dropout feature_dropout alpha_dropout native_dropout conj real view_as_real view_as_complex
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa grid_sampler_2d grid_sampler fft_fft fft_fft2 fft_fftn fft_ifft fft_rfft fft_irfft
    _fft_c2c _fft_r2c _fft_c2r""",
    Dependence.TERMS,
    MOVEMENT,
    terms=(0,),
)
_register("complex", Dependence.TERMS, MOVEMENT, terms=(0, 1))
_register("slice_scatter select_scatter diagonal_scatter", Dependence.TERMS, MOVEMENT, terms=(0, 1), copies=True)
_register("index_put", Dependence.TERMS, MOVEMENT, terms=(0, 2))
_register("masked_scatter", Dependence.TERMS, MOVEMENT, terms=(0, 2), copies=True)
_register("scatter index_copy", Dependence.TERMS, MOVEMENT, terms=(0, 3), copies=True)
_register("scatter_add index_add", Dependence.TERMS, MOVEMENT, terms=(0, 3))
_register("copy", Dependence.TERMS, MOVEMENT, terms=(1,), copies=True)
register(operator.getitem, Operator(Dependence.TERMS, MOVEMENT, terms=(0,), copies=True, move=Move.ITEM))

# --- sums -----------------------------------------------------------------------------------------------------

_register("sum mean nansum", Dependence.TERMS, SUM, terms=(0,), reduces=1)
_register(
    """avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d trace col2im""",
    Dependence.TERMS,
    SUM,
    terms=(0,),
)
_register("cumsum", Dependence.TERMS, SUM, terms=(0,), counts=True)
_register("neg", Dependence.TERMS, SUM, terms=(0,), entrywise=True, arithmetic=operator.neg)
_register("add", Dependence.TERMS, ADD, terms=(0, 1), entrywise=True, arithmetic=operator.add, commutative=True)
_register("sub", Dependence.TERMS, ADD, terms=(0, 1), entrywise=True, arithmetic=operator.sub)

# --- products -------------------------------------------------------------------------------------------------


def _flag(node: fx.Node, slot: int) -> Any:
    return node.args[slot] if slot < len(node.args) else None


_CHANNELS = LinearMap(spatial=True)
#: A transposed convolution; with several groups no axis of its weight is that of the output's channels.
_TRANSPOSED = LinearMap(channels=1, spatial=True, fits=lambda node: _flag(node, 6) in (None, 1))
_EITHER = (
    LinearMap(spatial=True, fits=lambda node: not node.args[6]),
    LinearMap(channels=1, spatial=True, fits=lambda node: bool(node.args[6] and node.args[8] == 1)),
)
_MATRIX = LinearMap(bias=None, channels=1)
_ADDED_MATRIX = LinearMap(value=1, weight=2, bias=0, channels=1)

_register("linear", Dependence.FACTORS, LINEAR, factors=(0, 1), terms=(2,), maps=(LINEAR_LAYER,))
for _names, _maps in (
    ("conv1d conv2d conv3d", (_CHANNELS,)),
    ("conv_transpose1d conv_transpose2d conv_transpose3d", (_TRANSPOSED,)),
    ("convolution", _EITHER),
):
    _register(_names, Dependence.FACTORS, CONVOLUTION, factors=(0, 1), terms=(2,), maps=_maps)
_register("mul", Dependence.FACTORS, PRODUCT, factors=(0, 1), entrywise=True, arithmetic=operator.mul, commutative=True)
_register("addcmul", Dependence.FACTORS, PRODUCT, factors=(1, 2), terms=(0,), entrywise=True)
_register("lerp", Dependence.FACTORS, PRODUCT, factors=(2,), terms=(0, 1), entrywise=True)
_register("matmul", Dependence.FACTORS, MATMUL, factors=(0, 1), maps=(_MATRIX,), matrices=True)
_register("outer dot ger vdot kron _grouped_mm _int_mm", Dependence.FACTORS, MATMUL, factors=(0, 1))
_register("addmm", Dependence.FACTORS, MATMUL, factors=(1, 2), terms=(0,), maps=(_ADDED_MATRIX,))
_register("baddbmm addbmm addmv addr", Dependence.FACTORS, MATMUL, factors=(1, 2), terms=(0,))
_register("einsum", Dependence.FACTORS, MATMUL, factors=(1,))
_register("bilinear", Dependence.FACTORS, MATMUL, factors=(0, 1, 2), terms=(3,))
_register(
    "div true_divide divide",
    Dependence.QUOTIENT,
    QUOTIENT,
    factors=(0, 1),
    entrywise=True,
    arithmetic=operator.truediv,
)
_register("linalg_solve_triangular", Dependence.QUOTIENT, QUOTIENT, factors=(1, 0))

# --- selections and rectifiers --------------------------------------------------------------------------------

_register(
    """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d
    adaptive_max_pool2d amin topk sort kthvalue median mode cummax cummin""",
    Dependence.HOMOGENEOUS,
    SELECTION,
    terms=(0,),
    copies=True,
)
_register("amax", Dependence.HOMOGENEOUS, SELECTION, terms=(0,), copies=True, largest=True)
_register("nan_to_num", Dependence.HOMOGENEOUS, SELECTION, terms=(0,), copies=True, entrywise=True)
_register("abs", Dependence.HOMOGENEOUS, SELECTION, terms=(0,), entrywise=True)
_register("norm linalg_vector_norm frobenius_norm std hypot", Dependence.HOMOGENEOUS, SELECTION, terms=(0,))
_register("relu", Dependence.HOMOGENEOUS, RECTIFIER, terms=(0,), copies=True, entrywise=True)
_register("leaky_relu rrelu prelu _prelu_kernel", Dependence.HOMOGENEOUS, RECTIFIER, terms=(0,), entrywise=True)
_register("max", Dependence.HOMOGENEOUS, SELECTION, terms=(0, 1), copies=True, largest=True)
_register("min", Dependence.HOMOGENEOUS, SELECTION, terms=(0, 1), copies=True)
_register("maximum minimum fmax fmin", Dependence.HOMOGENEOUS, SELECTION, terms=(0, 1), copies=True, entrywise=True)
_register("where", Dependence.HOMOGENEOUS, SELECTION, terms=(1, 2), copies=True, entrywise=True, masks=True)
_register("masked_fill", Dependence.HOMOGENEOUS, SELECTION, terms=(0, 2), copies=True, entrywise=True, masks=True)
_register(
    "clamp clamp_min clamp_max clip",
    Dependence.HOMOGENEOUS,
    SELECTION,
    terms=(0, 1, 2),
    copies=True,
    entrywise=True,
    masks=True,
)
_register("scatter_reduce index_reduce", Dependence.HOMOGENEOUS, SELECTION, terms=(0, 3))

# --- functions ------------------------------------------------------------------------------------------------

_register("softmax _softmax _safe_softmax", Dependence.SOFTMAX, SOFTMAX, terms=(0,))
_register(
    "log_softmax _log_softmax logsumexp logcumsumexp glu prod cumprod var",
    Dependence.GENERAL,
    GENERAL,
    terms=(0,),
)
_register("atan2 fmod remainder polar xlogy", Dependence.GENERAL, GENERAL, terms=(0, 1), entrywise=True)
_register("embedding_renorm", Dependence.GENERAL, GENERAL, terms=(0,))
_register("linalg_inv_ex cdist _cdist_forward", Dependence.GENERAL, GENERAL, terms=(0, 1))

#: Slopes ``(f(x) - f(0)) / x`` in closed form.
SLOPES: Mapping[str, Callable[..., Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": activations.gelu,
    "tanh": lambda x: sinc_like(torch.tanh(x), x, 1.0),
    "sigmoid": lambda x: sinc_like(0.5 * torch.tanh(x / 2), x, 0.25),
    "mish": lambda x: torch.tanh(F.softplus(x)),
    "hardswish": lambda x: torch.clamp(x + 3, 0, 6) / 6,
    "softplus": activations.softplus,
    "elu": activations.elu,
    "celu": lambda x, alpha=1.0: activations.elu(x, alpha, 1.0, 1.0 / alpha),
    "erf": lambda x: sinc_like(torch.erf(x), x, 2 / math.sqrt(math.pi)),
    "exp": lambda x: sinc_like(torch.expm1(x), x, 1.0),
    "expm1": lambda x: sinc_like(torch.expm1(x), x, 1.0),
    "log1p": lambda x: sinc_like(torch.log1p(x), x, 1.0),
    "sin": lambda x: sinc_like(torch.sin(x), x, 1.0),
    "asinh": lambda x: sinc_like(torch.asinh(x), x, 1.0),
    "atanh": lambda x: sinc_like(torch.atanh(x), x, 1.0),
    "sinh": lambda x: sinc_like(torch.sinh(x), x, 1.0),
    "atan": lambda x: sinc_like(torch.atan(x), x, 1.0),
}
for _name, _slope in SLOPES.items():
    _register(_name, Dependence.ACTIVATION, ACTIVATION, terms=(0,), slope=_slope)
_register("pow", Dependence.ACTIVATION, ACTIVATION, terms=(0,), parameters=(1,), slope=activations.power)
# Without a closed form the difference quotient is taken; where f(0) is infinite (log, reciprocal) there is no secant.
_register(
    """hardsigmoid log_sigmoid hardshrink softshrink hardtanh relu6 threshold erfc exp2 log log2 log10 sqrt rsqrt
    reciprocal cos tan asin acos acosh frac logit sinc erfinv lgamma digamma special_i0 cosh""",
    Dependence.ACTIVATION,
    ACTIVATION,
    terms=(0,),
)
_register("round floor ceil trunc", Dependence.ROUNDING, ROUNDING, terms=(0,), rounds=True)
register(rounded, Operator(Dependence.ROUNDING, ROUNDING, terms=(0,), rounds=True))
register(activations.SPELLED, Operator(Dependence.ACTIVATION, ACTIVATION, terms=(0,)))

# --- what carries no relevance --------------------------------------------------------------------------------

_register(
    """eq ne lt le gt ge logical_and logical_or logical_not logical_xor argmax argmin argsort isnan isinf isfinite
    isposinf isneginf bitwise_not full_like rand_like randn_like new_full scalar_tensor heaviside signbit any all
    nonzero searchsorted bucketize multinomial bernoulli item _local_scalar_dense histc bincount one_hot
    equal""",
    Dependence.CONSTANT,
    CONSTANT,
)
_register(
    """sign sgn floor_divide detach bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__
    __lshift__ __rshift__ bitwise_left_shift bitwise_right_shift""",
    Dependence.CONSTANT,
    CONSTANT,
    rounds=True,
)
_register(
    """sym_size sym_numel sym_stride zeros ones full eye zeros_like ones_like empty_like new_zeros new_ones
    new_empty""",
    Dependence.CONSTANT,
    CONSTANT,
    sized=True,
)
_register("arange", Dependence.CONSTANT, CONSTANT, sized=True, counts=True)
