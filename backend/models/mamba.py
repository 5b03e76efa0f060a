# SPDX-License-Identifier: GPL-2.0-or-later
"""Mamba blocks: the published one for sequences, and selective scans over images in four directions.

Sources: Gu and Dao, arXiv 2312.00752 (Mamba; parameter names are mamba-ssm's, so that its checkpoints load). The four
directions, each with its own parameters, and the scan that another image steers (`FSSM`: x and gate from the own
image, delta, B and C from the guiding one) follow the published description of FusionMamba (Peng et al., TGRS 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops.selective_scan import LEAST_LANES, scan_lanes, scan_segment

DIRECTIONS = 4
"""Along the rows, against them, along the columns, against them."""
DELTA_RANGE = (1e-3, 0.1)
"""Steps begin log-uniform in this range."""

AT_ONCE = 1 << 19
"""Values of sequences that are worked on at once on a CPU."""
SHORTEST_STRETCH = 256
"""Long sequences are worked off in stretches of at least so many tokens."""
FEW = 1 << 17
"""Up to so many values, streams and axes are scanned in one call; with more, memory counts and calls do not."""


class ScanHead(nn.Module):
    """What one direction of scan owns: convolution, selection and state matrices, under mamba-ssm's names.

    Args:
        d_inner: channels that are scanned.
        d_state: states of each channel.
        d_conv: taps of the causal convolution.
        dt_rank: rank of the step's projection; "auto" for d_model / 16, rounded up.
        d_model: width that "auto" goes by; None for `d_inner`.
        conv_bias: whether the convolution has a bias.
    """

    def __init__(
        self,
        d_inner: int,
        d_state: int = 16,
        d_conv: int = 4,
        dt_rank: int | str = "auto",
        d_model: int | None = None,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.d_state = d_state
        self.dt_rank = dt_rank if isinstance(dt_rank, int) else math.ceil((d_model or d_inner) / 16)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = (math.log(x) for x in DELTA_RANGE)
        delta = torch.exp(torch.rand(d_inner) * (high - low) + low)
        # The inverse of the softplus that the bias goes through.
        self.dt_proj.bias.data.copy_(delta + torch.log(-torch.expm1(-delta)))


def scan_with(
    heads: Sequence[ScanHead], x: Tensor, steering: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """Convolve, select and scan sequences, each group with its own head.

    Args:
        heads: one for each group, of equal sizes.
        x: `[l, groups, d, q]`, time first and the sequences last.
        steering: what delta, B and C are selected from, of x's shape; None for x itself, convolved.
        keep: `[l, 1, 1, q]`, 0 where a token is filling and must leave the states alone; None for nowhere.

    Returns:
        `[l, groups, d, q]`, before any gate.
    """
    own = _Stacked.of(heads)
    # The CPU's allocator gives large blocks back at once: getting them again would cost more than the arithmetic.
    most = x.numel() if x.is_cuda else AT_ONCE
    lanes = max(LEAST_LANES, most // max(1, x[..., 0].numel()))
    if x.shape[3] <= lanes:
        return _scan_lanes_with(own, x, steering, keep, most)
    # The backward pass of split is one concatenation; that of slicing would fill a whole tensor for each part.
    parts = [[None] * -(-x.shape[3] // lanes) if t is None else t.split(lanes, 3) for t in (steering, keep)]
    return torch.cat([_scan_lanes_with(own, *p, most) for p in zip(x.split(lanes, 3), *parts)], dim=3)


@dataclass(frozen=True)
class _Stacked:
    """The parameters of several heads, `[groups, ...]`."""

    taps: Tensor
    conv_bias: Tensor | None
    select: Tensor
    step: Tensor
    step_bias: Tensor
    A: Tensor
    D: Tensor
    rank: int

    @classmethod
    def of(cls, heads: Sequence[ScanHead]) -> _Stacked:
        biases = [h.conv1d.bias for h in heads if h.conv1d.bias is not None]
        return cls(
            torch.stack([h.conv1d.weight[:, 0] for h in heads]),
            torch.stack(biases)[..., None] if biases else None,
            torch.stack([h.x_proj.weight for h in heads]),
            torch.stack([h.dt_proj.weight for h in heads]),
            torch.stack([h.dt_proj.bias for h in heads])[..., None],
            -torch.exp(torch.stack([h.A_log for h in heads]).float()),
            torch.stack([h.D for h in heads])[..., None],
            heads[0].dt_rank,
        )


def _scan_lanes_with(
    own: _Stacked, x: Tensor, steering: Tensor | None, keep: Tensor | None, most: int
) -> Tensor:
    """Run `scan_with` on sequences side by side, stretch after stretch where they are long."""
    length = len(x)
    count = max(1, min(-(-x.numel() // most), length // SHORTEST_STRETCH))
    stretch = -(-length // count)
    before = own.taps.shape[2] - 1
    padded = functional.pad(x, (0, 0, 0, 0, 0, 0, before, 0))
    state, done = None, []
    for start in range(0, length, stretch):
        stop = min(start + stretch, length)
        # Written as a sum of moved copies: torch's depthwise convolution would want the time last.
        y = padded[start + before : stop + before] * own.taps[..., -1:]
        for i in range(before):
            y = torch.addcmul(y, padded[start + i : stop + i], own.taps[..., i : i + 1])
        y = functional.silu(y if own.conv_bias is None else y + own.conv_bias)
        selected = torch.matmul(own.select, y if steering is None else steering[start:stop])
        n = own.A.shape[2]
        step, B, C = selected.split([own.rank, n, n], dim=2)
        delta = functional.softplus(torch.matmul(own.step, step) + own.step_bias)
        if keep is not None:
            delta = delta * keep[start:stop]
        if stop - start == length:
            scanned = scan_lanes(y, delta, own.A, B, C)
        else:
            scanned, state = scan_segment(y, delta, own.A, B, C, state)
        done.append(scanned + own.D * y)
    return done[0] if len(done) == 1 else torch.cat(done)


class Mamba(ScanHead):
    """The published block; takes the state dict of `mamba_ssm.Mamba`.

    Args:
        d_model: width of the tokens.
        d_state, d_conv, dt_rank, conv_bias: see `ScanHead`.
        expand: channels that are scanned, over d_model.
        bias: whether in_proj and out_proj have one.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        d_inner = expand * d_model
        super().__init__(d_inner, d_state, d_conv, dt_rank, d_model, conv_bias)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, length, d_model]` of the same."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y = scan_with([self], x.permute(1, 2, 0)[:, None])[:, 0].permute(2, 0, 1)
        out: Tensor = self.out_proj(y.to(z.dtype) * functional.silu(z))
        return out


@dataclass(frozen=True)
class Pieces:
    """How lines of tokens are cut: each piece is a sequence of its own, so a result has a finite reach.

    Attributes:
        span: tokens of a piece; None for the whole image as one sequence, line after line.
        offset: scene coordinates (row, column) of the first token; pieces begin at multiples of the span.
    """

    span: int | None = None
    offset: tuple[int, int] = (0, 0)

    def moved(self, by: int) -> Pieces:
        """Return the same with every cut moved by some tokens."""
        return Pieces(self.span, (self.offset[0] + by, self.offset[1] + by))


class Scan2d(nn.Module):
    """A selective scan over an image in four directions, each with its own head, and a gate (SS4D).

    Args:
        width: channels in and out.
        d_state, d_conv: see `ScanHead`.
        expand: channels that are scanned, over `width`.
        guided: delta, B and C come from another image (FSSM).
    """

    def __init__(
        self, width: int, d_state: int = 16, d_conv: int = 4, expand: int = 1, guided: bool = False
    ) -> None:
        super().__init__()
        d = expand * width
        self.in_proj = nn.Linear(width, 2 * d, bias=False)
        if guided:
            self.in_proj_b = nn.Linear(width, d, bias=False)
        self.directions = nn.ModuleList(
            ScanHead(d, d_state, d_conv, d_model=width) for _ in range(DIRECTIONS)
        )
        self.norm = nn.LayerNorm(d)
        self.out_proj = nn.Linear(d, width, bias=False)

    def forward(self, x: Tensor, guide: Tensor | None = None, pieces: Pieces | None = None) -> Tensor:
        """Return `[batch, rows, cols, width]` of images of that shape; see `scan_images`."""
        own = None if guide is None else guide[None]
        return scan_images([self], x[None], own, pieces)[0]


def scan_images(
    blocks: Sequence[Scan2d], x: Tensor, guide: Tensor | None = None, pieces: Pieces | None = None
) -> Tensor:
    """Run several `Scan2d` of equal sizes side by side: on few tokens the number of calls is what costs.

    Args:
        blocks: one for each stream.
        x: `[streams, batch, rows, cols, width]`.
        guide: of the same shape; needed by guided blocks.
        pieces: how lines are cut; None for not at all.

    Returns:
        x's shape, without skip connection.

    Raises:
        ValueError: a guide where the blocks take none, or none where they need one.
    """
    if (guide is not None) != hasattr(blocks[0], "in_proj_b"):
        raise ValueError("guided scans need a guide, and others take none")
    pieces = pieces or Pieces()
    if len(blocks) > 1 and x[0].numel() > FEW:
        guides = [None] * len(blocks) if guide is None else guide[:, None]
        return torch.cat([scan_images([b], x[i : i + 1], guides[i], pieces) for i, b in enumerate(blocks)])
    x, z = each_linear([b.in_proj for b in blocks], x).chunk(2, dim=-1)
    steering = None if guide is None else each_linear([b.in_proj_b for b in blocks], guide)
    rows, columns = _Lines(x, pieces), _Lines(x.transpose(2, 3), pieces, transposed=True)
    heads = [[d for b in blocks for d in list(b.directions)[i : i + 2]] for i in (0, 2)]
    if pieces.span is None and x.numel() <= FEW:
        both = [
            torch.cat([rows.both_ways(s), columns.both_ways(s)], 1) for s in (x, steering) if s is not None
        ]
        along, across = scan_with(heads[0] + heads[1], *both).chunk(2, dim=1)
        y = rows.image(along) + columns.image(across)
    else:
        y = rows.scanned(heads[0], x, steering) + columns.scanned(heads[1], x, steering)
    y = y / DIRECTIONS
    y = each_norm([b.norm for b in blocks], y * functional.silu(z))
    return each_linear([b.out_proj for b in blocks], y)


class _Lines:
    """The sequences of an image along one axis, there and back again."""

    def __init__(self, x: Tensor, pieces: Pieces, transposed: bool = False) -> None:
        self.transposed = transposed
        self.streams, self.batch, self.rows, self.cols, _ = x.shape
        self.span = pieces.span
        self.keep: Tensor | None = None
        if self.span is not None:
            self.left = pieces.offset[0 if transposed else 1] % self.span
            self.right = -(self.left + self.cols) % self.span
            if self.left or self.right:
                keep = functional.pad(x.new_ones(self.cols), (self.left, self.right)).view(-1, self.span)
                # [t, 1, 1, batch x rows x pieces], as `both_ways` orders the sequences; each way its own.
                forward = keep.t()[:, None, :].expand(-1, self.batch * self.rows, -1).flatten(1)
                self.keep = torch.stack([forward, forward.flip(0)], 1).repeat(1, self.streams, 1)[:, :, None]

    def both_ways(self, x: Tensor) -> Tensor:
        """Return `[l, streams x 2, d, q]` of `[streams, batch, rows, cols, d]` (as it stands in the image)."""
        x = x.transpose(2, 3) if self.transposed else x
        if self.span is None:
            lanes = x.flatten(2, 3).permute(2, 0, 3, 1)
        else:
            if self.keep is not None:
                x = functional.pad(x, (0, 0, self.left, self.right))
            lanes = x.unflatten(3, (-1, self.span)).permute(4, 0, 5, 1, 2, 3).flatten(3)
        return torch.stack([lanes, lanes.flip(0)], dim=2).flatten(1, 2)

    def scanned(self, heads: Sequence[ScanHead], x: Tensor, steering: Tensor | None) -> Tensor:
        """Return the scans along this axis, both ways, as `[streams, batch, rows, cols, d]`."""
        steer = None if steering is None else self.both_ways(steering)
        return self.image(scan_with(heads, self.both_ways(x), steer, self.keep))

    def image(self, lanes: Tensor) -> Tensor:
        """Return the sum of both ways as `[streams, batch, rows, cols, d]`."""
        there, back = lanes.unflatten(1, (self.streams, 2)).unbind(2)
        y = there + back.flip(0)
        if self.span is None:
            y = y.permute(1, 3, 0, 2).unflatten(2, (self.rows, self.cols))
        else:
            y = y.unflatten(3, (self.batch, self.rows, -1)).permute(1, 3, 4, 5, 0, 2).flatten(3, 4)
            y = y[:, :, :, self.left : self.left + self.cols]
        return y.transpose(2, 3) if self.transposed else y


def each_linear(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    """Apply to each stream `[streams, ..., width]` its own layer (all without bias)."""
    weight = torch.stack([layer.weight for layer in layers]).transpose(1, 2)
    return torch.bmm(x.flatten(1, -2), weight).unflatten(1, x.shape[1:-1])


def each_norm(layers: Sequence[nn.LayerNorm], x: Tensor) -> Tensor:
    """Apply to each stream `[streams, ..., width]` its own normalisation."""
    shape = (len(layers), *(1,) * (x.dim() - 2), -1)
    weight = torch.stack([layer.weight for layer in layers]).view(shape)
    bias = torch.stack([layer.bias for layer in layers]).view(shape)
    return torch.addcmul(bias, functional.layer_norm(x, x.shape[-1:], eps=layers[0].eps), weight)
