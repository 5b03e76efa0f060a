# SPDX-License-Identifier: GPL-2.0-or-later
"""The selective scan of Mamba (Gu and Dao, arXiv 2312.00752, algorithm 2), with or without mamba-ssm.

    h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t,    y_t = C_t h_t + D u_t

mamba-ssm's kernel runs where it is installed and the tensors are on CUDA. Elsewhere a scan in plain torch does: long
sequences are cut into chunks that go on side by side (their states at the cuts come first), each chunk is worked off
in short blocks that fit the cache, and the backward pass computes the states again, block by block. Decays are
multiplied step by step and never divided by, so neither a large decay nor a long sequence under- or overflows.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Elements of states that are worked on at once: about the cache. BLOCK / STEP is also the number of steps between
the states that are kept for the backward pass."""
STEP = {"cpu": 1 << 15, "cuda": 1 << 20}
"""Elements of one step's states, about: enough to make up for the call, few enough for the cache."""
LEAST_LANES = 32
"""Chunks and sequences side by side, at least, for the same reason: they are the innermost axis."""
SHORTEST_CHUNK = 32
"""Cutting shorter than this does not pay."""


KERNEL, OWN = "mamba-ssm kernel", "chunked torch scan"
"""Names of the scans."""


def scan_name(device: torch.device | str) -> str:
    """Return which scan runs on a device: `KERNEL` or `OWN`."""
    return KERNEL if _kernel(torch.device(device)) is not None else OWN


@cache
def _kernel(device: torch.device) -> Any:
    """Return mamba-ssm's function where it runs and gives the right number, else None."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        one = torch.ones(1, 1, 1, device=device)
        found = float(selective_scan_fn(one, one, -one[0], one, one))
    except (ImportError, AttributeError, OSError, RuntimeError):
        # Not installed, or built for another torch, driver or GPU: all mean "not here".
        return None
    # The state begins at zero, so the decay does not matter yet.
    return selective_scan_fn if abs(found - 1.0) < 1e-6 else None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Scan; the arguments of mamba_ssm's `selective_scan_fn` with input-dependent B and C.

    Args:
        u, delta: `[batch, d, l]`.
        A: `[d, n]`, not above zero in a stable system.
        B, C: `[batch, n, l]`, or `[batch, groups, n, l]` for d / groups channels in a row that share theirs.
        D: `[d]`, share of the input that passes by.
        z: `[batch, d, l]`; the result is multiplied by SiLU(z).
        delta_bias: `[d]`, added to delta.
        delta_softplus: delta (after its bias) goes through a softplus.
        chunk: length of the pieces that go on side by side; None for the device's best. The result does not
            depend on it; with a number the torch scan runs everywhere.

    Returns:
        `[batch, d, l]` in u's type; inside, states are float32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    grouped_b, grouped_c = _grouped(B), _grouped(C)
    groups = grouped_b.shape[1]
    _check(u, delta, A, grouped_b, grouped_c)
    kernel = _kernel(u.device) if chunk is None and u.dtype != torch.float64 else None
    if kernel is not None:
        # The kernel wants one type for what depends on the input, and float32 for the rest.
        delta, grouped_b, grouped_c = (x.to(u.dtype) for x in (delta, grouped_b, grouped_c))
        single = [None if x is None else x.float() for x in (D, delta_bias)]
        gate = None if z is None else z.to(u.dtype)
        out: Tensor = kernel(
            u, delta, A.float(), grouped_b, grouped_c, single[0], gate, single[1], delta_softplus
        )
        return out
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    step = delta.to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        step = functional.softplus(step)

    def lanes(x: Tensor) -> Tensor:
        """[batch, groups x c, l] or [batch, groups, c, l] -> [l, groups, c, batch]."""
        return x.to(dtype).reshape(len(x), groups, -1, x.shape[-1]).permute(3, 1, 2, 0)

    y = scan_lanes(
        lanes(u),
        lanes(step),
        A.to(dtype).unflatten(0, (groups, -1)),
        lanes(grouped_b),
        lanes(grouped_c),
        chunk,
    )
    out = y.permute(3, 1, 2, 0).flatten(1, 2)
    if D is not None:
        out = out + D.to(dtype)[:, None] * u
    if z is not None:
        out = out * functional.silu(z.to(dtype))
    return out.to(u.dtype)


def _grouped(x: Tensor) -> Tensor:
    """[batch, n, l] -> [batch, 1, n, l]."""
    return x[:, None] if x.dim() == 3 else x


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    """Refuse shapes that do not fit.

    Raises:
        ValueError: they do not.
    """
    batch, d, length = u.shape
    groups, n = B.shape[1], A.shape[1]
    if (
        delta.shape != u.shape
        or len(A) != d
        or B.shape != (batch, groups, n, length)
        or C.shape != B.shape
        or d % groups
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (u, delta, A, B, C))
        raise ValueError(f"u, delta, A, B, C of shapes {shapes} do not fit each other")


def scan_lanes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int | None = None) -> Tensor:
    """Scan many sequences in the layout that the torch scan works in: time first, sequences last.

    Args:
        u, delta: `[l, groups, d, q]`; delta after bias and softplus.
        A: `[groups, d, n]`.
        B, C: `[l, groups, n, q]`.
        chunk: see `selective_scan`.

    Returns:
        `[l, groups, d, q]`, without D and gate.
    """
    with torch.autocast(u.device.type, enabled=False):
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
        kernel = _kernel(u.device) if chunk is None and dtype == torch.float32 else None
        if kernel is not None:
            channels, groups = (
                (x.permute(3, 1, 2, 0).flatten(1, 2).contiguous() for x in (u, delta)),
                u.shape[1],
            )
            y: Tensor = kernel(
                *channels,
                A.flatten(0, 1),
                B.permute(3, 1, 2, 0).contiguous(),
                C.permute(3, 1, 2, 0).contiguous(),
            )
            return y.unflatten(1, (groups, -1)).permute(3, 1, 2, 0)
        return _scan_slabs(u, delta, A, B, C, None, chunk)[0]


def scan_segment(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Scan a stretch of longer sequences; as `scan_lanes`, always by the torch scan.

    Args:
        u, delta, A, B, C, chunk: see `scan_lanes`.
        state: what the stretch before this one came to, `[groups, n, d, q]`; None at the beginning.

    Returns:
        The result and the state at the end.
    """
    with torch.autocast(u.device.type, enabled=False):
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
        return _scan_slabs(u, delta, A, B, C, state, chunk)


def _scan_slabs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """Scan slab after slab, so that one step of a slab is a share of the cache; see `scan_segment`."""
    (_, groups, d, q), n = u.shape, A.shape[2]
    if state is None:
        state = u.new_zeros(groups, n, d, q)
    kind = "cuda" if u.is_cuda else "cpu"
    lanes = max(q, LEAST_LANES)
    most_d = _part(d, STEP[kind] // (n * LEAST_LANES))
    most_groups = _part(groups, STEP[kind] // (most_d * n * lanes))
    most_q = _part(q, max(LEAST_LANES, STEP[kind] // (most_d * n * most_groups)))
    over_groups = []
    # The backward pass of split is one concatenation; that of slicing would fill a whole tensor for each slab.
    of_groups = [x.split(most_groups, 1) for x in (u, delta, B, C)]
    for a_g, s_g, *of_group in zip(A.split(most_groups), state.split(most_groups), *of_groups):
        over_lanes = []
        for u_q, delta_q, b_q, c_q, s_q in zip(*(x.split(most_q, 3) for x in (*of_group, s_g))):
            parts = zip(*(x.split(most_d, 2) for x in (u_q, delta_q, s_q)), a_g.split(most_d, 1))
            found = [
                _scan_slab(own_u, own_delta, a, b_q, c_q, own, chunk) for own_u, own_delta, own, a in parts
            ]
            over_lanes.append(_joined(found, (2, 2)))
        over_groups.append(_joined(over_lanes, (3, 3)))
    return _joined(over_groups, (1, 0))


def _part(size: int, most: int) -> int:
    """Return the length of equal parts of at most about `most`; up to half more is not cut."""
    return size if 2 * size <= 3 * most else math.ceil(size / math.ceil(size / max(1, most)))


def _joined(parts: list[tuple[Tensor, Tensor]], dims: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Join results along one axis and states along another."""
    if len(parts) == 1:
        return parts[0]
    y, state = (torch.cat(x, dim) for x, dim in zip(zip(*parts), dims))
    return y, state


def _scan_slab(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """Cut into chunks that go on side by side, and scan; see `scan_segment`."""
    length, q = u.shape[0], u.shape[3]
    pieces = _pieces(u, A.shape[2]) if chunk is None else max(1, math.ceil(length / chunk))
    steps = math.ceil(length / pieces)
    pieces = math.ceil(length / steps)

    def cut(x: Tensor) -> Tensor:
        """[l, g, c, q] -> [steps, g, c, pieces x q]; what is added at the end has delta 0 and changes nothing."""
        if pieces > 1:
            x = functional.pad(x, (0, 0, 0, 0, 0, 0, 0, pieces * steps - length))
            x = x.view(pieces, steps, *x.shape[1:]).permute(1, 2, 3, 0, 4).flatten(3)
        return x.contiguous()

    y, last = _Scan.apply(cut(delta * u), cut(delta), A, cut(B), cut(C), state, pieces)
    if pieces > 1:
        y = y.unflatten(3, (pieces, q)).permute(3, 0, 1, 2, 4).flatten(0, 1)[:length]
    return y, last


def _pieces(u: Tensor, n: int) -> int:
    """Return into how many chunks to cut: as many as fill a step's share of the cache, none where it is full."""
    length, groups, d, q = u.shape
    kind = "cuda" if u.is_cuda else "cpu"
    wanted = max(math.ceil(STEP[kind] / max(1, groups * d * n * q)), math.ceil(LEAST_LANES / max(1, q)))
    # Two passes instead of one: not for a little.
    return 1 if wanted < 2 else max(1, min(wanted, length // SHORTEST_CHUNK))


class _Blocks:
    """The five inputs and room for a block's states; shared by the forward and the backward pass.

    Args:
        du, delta: `[t, g, d, q]`, du = delta u.
        A: `[g, d, n]`.
        B: `[t, g, n, q]`.
        rooms: how many buffers of a block's states.
    """

    def __init__(self, du: Tensor, delta: Tensor, A: Tensor, B: Tensor, rooms: int) -> None:
        self.length, g, d, q = du.shape
        self.shape = (g, A.shape[2], d, q)
        self.du, self.delta, self.B = du[:, :, None], delta[:, :, None], B[:, :, :, None]
        self.A = A.transpose(1, 2)[:, :, :, None].contiguous()
        kind = "cuda" if du.is_cuda else "cpu"
        self.size = block_length(self.length, math.prod(self.shape), kind)
        self.rooms = [du.new_empty(self.size + 1, *self.shape) for _ in range(rooms)]
        self.rows = [room.unbind(0) for room in self.rooms]

    def starts(self) -> range:
        """Return the blocks' first steps."""
        return range(0, self.length, self.size)

    def decays(self, start: int, stop: int, room: int) -> Tensor:
        """Return exp(delta A) of a block, `[steps, g, n, d, q]`, in a room."""
        out = self.rooms[room][: stop - start]
        return torch.mul(self.delta[start:stop], self.A, out=out).exp_()

    def states(self, start: int, stop: int, decays: int, room: int) -> Tensor:
        """Run the recurrence over a block, from the state in the room's first row.

        Returns:
            The states `[1 + steps, g, n, d, q]`, the first being the one before the block.
        """
        own = self.rooms[room][: stop - start + 1]
        torch.mul(self.du[start:stop], self.B[start:stop], out=own[1:])
        a, h = self.rows[decays], self.rows[room]
        for i in range(stop - start):
            h[i + 1].addcmul_(a[i], h[i])
        return own


def block_length(length: int, step: int, kind: str) -> int:
    """Return the steps of a block, given the elements of a step."""
    return max(1, min(length, BLOCK[kind] // max(1, step)))


def _carried(total: Tensor, last: Tensor, begin: Tensor, pieces: int, reverse: bool = False) -> Tensor:
    """Return the state with which each chunk begins.

    Args:
        total: decay over each whole chunk, `[g, n, d, pieces * q]`.
        last: state at each chunk's end when it begins at zero, the same shape.
        begin: state with which the first chunk begins, `[g, n, d, q]`.
        pieces: number of chunks.
        reverse: time runs backwards.
    """
    total, last = total.unflatten(3, (pieces, -1)), last.unflatten(3, (pieces, -1))
    first = torch.empty_like(last)
    order = list(range(pieces - 1, -1, -1) if reverse else range(pieces))
    first[..., order[0], :] = begin
    for i, following in zip(order, order[1:]):
        first[..., following, :] = torch.addcmul(last[..., i, :], total[..., i, :], first[..., i, :])
    return first.flatten(3)


class _Scan(torch.autograd.Function):
    """The scan of chunks, `[steps, groups, ..., pieces * q]`, with the backward pass written out."""

    @staticmethod
    def forward(
        ctx: Any, du: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, pieces: int
    ) -> tuple[Tensor, Tensor]:
        work = _Blocks(du, delta, A, B, 2)
        if pieces > 1:
            total = (delta.sum(0)[:, None] * work.A).exp_()
            state = _carried(total, _last_state(work), state, pieces)
        h = work.rooms[1]
        h[0].copy_(state)
        y = torch.empty_like(du)
        keep = any(ctx.needs_input_grad)
        # The states between the blocks are all that the backward pass needs to compute the rest again.
        kept = du.new_empty(len(work.starts()), *work.shape) if keep else None
        for number, start in enumerate(work.starts()):
            stop = min(start + work.size, work.length)
            if kept is not None:
                kept[number].copy_(h[0])
            work.decays(start, stop, 0)
            own = work.states(start, stop, 0, 1)
            h[0].copy_(own[-1])
            own[1:].mul_(C[start:stop, :, :, None])
            torch.sum(own[1:], dim=2, out=y[start:stop])
        if keep:
            ctx.save_for_backward(du, delta, A, B, C, kept)
            ctx.pieces = pieces
        return y, h[0].unflatten(3, (pieces, -1))[..., -1, :].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        du, delta, A, B, C, kept = ctx.saved_tensors
        dy = dy.contiguous()
        work = _Blocks(du, delta, A, B, 3)
        wide_c, wide_dy = C[:, :, :, None], dy[:, :, None]
        a, h, g = work.rooms
        # The gradient of a state: g_t = C_t dy_t + exp(delta_(t+1) A) g_(t+1). `carry` is the last product.
        carry = d_last.clone(memory_format=torch.contiguous_format)
        if ctx.pieces > 1:
            total = (delta.sum(0)[:, None] * work.A).exp_()
            carry = _carried(total, _first_gradient(work, wide_c, wide_dy), carry, ctx.pieces, reverse=True)
        d_du, d_delta = torch.empty_like(du), torch.empty_like(delta)
        d_b, d_c = torch.empty_like(B), torch.empty_like(C)
        d_a = torch.zeros_like(work.A)
        for number in reversed(range(len(kept))):
            start = number * work.size
            stop = min(start + work.size, work.length)
            count = stop - start
            h[0].copy_(kept[number])
            work.decays(start, stop, 0)
            states = work.states(start, stop, 0, 1)
            grads = _gradients(work, wide_c, wide_dy, start, stop, carry)
            torch.mul(a[0], g[0], out=carry)
            # h_t is done with once C has its gradient; h_(t-1) and the decay then take its place.
            before = a[:count].mul_(states[:-1]).mul_(grads)
            torch.sum(states[1:].mul_(wide_dy[start:stop]), dim=3, out=d_c[start:stop])
            torch.sum(torch.mul(before, work.A, out=states[1:]), dim=2, out=d_delta[start:stop])
            d_a += before.mul_(work.delta[start:stop]).sum(dim=(0, 4))[..., None]
            torch.sum(torch.mul(grads, work.B[start:stop], out=states[1:]), dim=2, out=d_du[start:stop])
            torch.sum(grads.mul_(work.du[start:stop]), dim=3, out=d_b[start:stop])
        d_state = carry.unflatten(3, (ctx.pieces, -1))[..., 0, :]
        return d_du, d_delta, d_a[..., 0].transpose(1, 2), d_b, d_c, d_state, None


def _last_state(work: _Blocks) -> Tensor:
    """Return each chunk's last state when it begins at zero."""
    h = work.rooms[1]
    h[0].zero_()
    for start in work.starts():
        stop = min(start + work.size, work.length)
        work.decays(start, stop, 0)
        h[0].copy_(work.states(start, stop, 0, 1)[-1])
    return h[0].clone()


def _gradients(work: _Blocks, C: Tensor, dy: Tensor, start: int, stop: int, carry: Tensor) -> Tensor:
    """Return the states' gradients in a block, in room 2, from the decays in room 0."""
    count = stop - start
    own = work.rooms[2][:count]
    torch.mul(C[start:stop], dy[start:stop], out=own)
    own[-1] += carry
    a, g = work.rows[0], work.rows[2]
    for i in range(count - 2, -1, -1):
        g[i].addcmul_(a[i + 1], g[i + 1])
    return own


def _first_gradient(work: _Blocks, C: Tensor, dy: Tensor) -> Tensor:
    """Return, for each chunk, what reaches the state before it when nothing comes from behind."""
    carry = torch.zeros(work.shape, dtype=dy.dtype, device=dy.device)
    for start in reversed(work.starts()):
        stop = min(start + work.size, work.length)
        work.decays(start, stop, 0)
        _gradients(work, C, dy, start, stop, carry)
        torch.mul(work.rows[0][0], work.rows[2][0], out=carry)
    return carry
