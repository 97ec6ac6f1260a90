"""State spaces h_t = decay_t h_{t-1} + input_t u_t, y_t = read_t h_t: one step of them, and scans by chunks.

A scan by chunks holds the same products for many steps at once: within a chunk the decay from step s to step t is
exp of a difference of running sums, and y = ((read input^T) * decay) u; between chunks states are carried on.

A delta rule feeds in what the state does not know yet, h_t = decay_t h_{t-1} + key_t rate_t (v_t - key_t^T decay_t
h_{t-1}), y_t = query_t h_t: with its keys, queries, rates and decays held it is linear in the values v.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxlrp.patterns.language import any_axis, chain, either, part, pattern


@pattern(
    "recurrence",
    rate=(2, 3, 4),
    before=(2, 3, 4),
    step=(2, 3, 4),
    gain=(2, 3, 4),
    signal=(2, 3, 4),
    read=(2, 4, 1),
)
def selective_scan(rate: Tensor, before: Tensor, step: Tensor, gain: Tensor, signal: Tensor, read: Tensor) -> Tensor:
    """y = (exp(rate) * before + (step * gain) * signal) @ read: decay, input and read depend on the data (Mamba)."""
    state = part(torch.exp(rate), "decay") * before + part(step * gain, "input") * signal
    return part(torch.matmul(state, part(read, "read")), "output")


def _decay(rate: Tensor) -> Tensor:
    return part(torch.exp(chain(any_axis(torch.cumsum(rate, -1)))), "decay")


def _contract(a: Tensor, b: Tensor) -> Tensor:
    """A sum of products over an axis, wherever the scan has it, as einsum or spelled out."""
    return either(torch.einsum("...i,...i->...", a, b), any_axis((a * b).sum(-1)))


def _fed(signal: Tensor, delta: Tensor) -> Tensor:
    """The signal, times its step size where that was not made part of the input matrix."""
    return either(chain(signal * part(chain(F.softplus(delta)), "step"), adding=False), signal)


@pattern("recurrence", read=(2, 3), gain=(2, 3), rate=(2,), signal=(2,), delta=(2,))
def chunk_output(read: Tensor, gain: Tensor, rate: Tensor, signal: Tensor, delta: Tensor) -> Tensor:
    """Within a chunk: y = sum over s of (read_t . input_s) decay_ts u_s."""
    kernel = _contract(part(read, "read"), part(gain, "input")) * _decay(rate)
    return part(_contract(chain(kernel, adding=False), _fed(signal, delta)), "output")


@pattern("recurrence", gain=(2, 3), rate=(2, 3), signal=(2, 3), delta=(2, 3))
def chunk_state(gain: Tensor, rate: Tensor, signal: Tensor, delta: Tensor) -> Tensor:
    """What a chunk adds to the state at its end: sum over s of decay_s input_s u_s."""
    return _contract(chain(part(gain, "input") * _decay(rate), adding=False), _fed(signal, delta))


@pattern("recurrence", rate=(2, 3), states=(2, 3))
def chunk_carry(rate: Tensor, states: Tensor) -> Tensor:
    """States carried over chunks: sum over chunks of decay times state."""
    return _contract(_decay(rate), states)


@pattern("recurrence", rate=(2, 3), state=(2, 3))
def carried_state(rate: Tensor, state: Tensor) -> Tensor:
    """One state carried to the next chunk."""
    return _decay(rate) * state


@pattern("recurrence", read=(2, 3), states=(2, 3), rate=(2,))
def chunk_read(read: Tensor, states: Tensor, rate: Tensor) -> Tensor:
    """What earlier chunks contribute: (read_t . state) decay_t."""
    return part(chain(_contract(part(read, "read"), states), adding=False) * _decay(rate), "output")


@pattern("recurrence", dependent=("rate", "before"), rate=(2, 3), before=(2, 3), fed=(2, 3))
def gated_step(rate: Tensor, before: Tensor, fed: Tensor) -> Tensor:
    """h' = exp(rate) h + what is fed in: a linear recurrence whose decay depends on the data."""
    return part(chain(torch.exp(rate), adding=False), "decay") * before + fed


@pattern("recurrence", signal=(2, 3), rate=(2, 3))
def gated_input(signal: Tensor, rate: Tensor) -> Tensor:
    """u sqrt(1 - decay^2): the input of a linear recurrence scaled so that its states keep their size."""
    return signal * part(chain(torch.sqrt(1.0 - torch.exp(rate))), "input")


def _scores(query: Tensor, keys: Tensor, rate: Tensor) -> Tensor:
    return chain(torch.matmul(query, keys), adding=False) * _decay(rate)


@pattern("recurrence", dependent=("rate",), query=(2, 3), keys=(3, 2), rate=(2,))
def decayed_scores(query: Tensor, keys: Tensor, rate: Tensor) -> Tensor:
    """How much of step s is read at step t of a chunk: (query_t . key_s) decay_ts."""
    return part(_scores(query, keys, rate), "read")


@pattern("recurrence", dependent=("rate", "learning"), key=(2, 3), learning=(2, 3), keys=(3, 2), rate=(2,))
def known_before(key: Tensor, learning: Tensor, keys: Tensor, rate: Tensor) -> Tensor:
    """What the keys of a delta rule have in common, by rates of learning: rate_t (key_t . key_s) decay_ts."""
    learned = key * chain(part(torch.sigmoid(learning), "step"))
    return part(_scores(chain(learned, adding=False), keys, rate), "input")


@pattern("recurrence", dependent=("rate", "state"), query=(2, 3), rate=(2, 3), state=(3, 2))
def state_by_matrix(query: Tensor, rate: Tensor, state: Tensor) -> Tensor:
    """A state read by decayed queries, or fed by decayed keys, of all steps of a chunk: (query_t decay_t) state."""
    return torch.matmul(part(chain(query * _decay(rate), adding=False), "read"), state)


@pattern("recurrence", dependent=("rate", "system"), system=(2, 2), key=(2, 3), rate=(2, 3))
def state_known(system: Tensor, key: Tensor, rate: Tensor) -> Tensor:
    """The keys by which a delta rule asks for what the state knows already, after the steps within the chunk."""
    keys = part(chain(key * _decay(rate), adding=False), "input")
    return either(
        torch.linalg.solve_triangular(system, keys, upper=False, unitriangular=True), torch.matmul(system, keys)
    )
