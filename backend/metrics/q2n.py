# SPDX-License-Identifier: GPL-2.0-or-later
"""Q2n: the universal quality index of hypercomplex numbers, for any number of bands."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor

from .base import MIN_BLOCK_PIXELS, RELATIVE_ZERO, FullReferenceMetric, MetricValue, PairTile
from .hypercomplex import conjugate_product
from .moments import NO_PIXELS, BlockMoments, block_moments

TOO_FEW = f"no 32 x 32 block holds {MIN_BLOCK_PIXELS} valid pixels"
NOT_FINITE = "valid pixels hold NaN or infinity"


def q2n_of_blocks(blocks: BlockMoments) -> tuple[Tensor, Tensor]:
    """Return Q2n of each block, `[blocks]` float64, and where it is defined: some reference band varies.

    Both images are normalised with the reference's mean and standard deviation of the block, plus 1, so the
    means of the hypercomplex numbers are 1 (reference) and 1 + bias (fused), and their covariance is that of
    the raw values over the deviations. Bands that are constant in the reference's block are left out of it.
    """
    freedom = (blocks.count - 1).clamp(min=1)[:, None]
    variance = blocks.ss_r / freedom
    flat = variance <= (RELATIVE_ZERO * blocks.mean_r) ** 2
    scale = torch.where(flat, torch.zeros_like(variance), variance.clamp(min=1e-300).rsqrt())
    one = (~flat).to(torch.float64)
    mean_f = one + (blocks.mean_f - blocks.mean_r) * scale
    size_r, size_f = one.sum(1), mean_f.square().sum(1)
    spread = one.sum(1) + (blocks.ss_f / freedom * scale**2).sum(1)
    covariance = torch.bmm(blocks.centred_r, blocks.centred_f.transpose(1, 2))
    covariance *= scale[:, :, None] / freedom[:, :, None]
    covariance *= scale[:, None, :]
    modulus = conjugate_product(covariance).norm(dim=1)
    bias = 2 * (size_r * size_f).sqrt() / (size_r + size_f)
    return modulus * 2 / spread * bias, size_r > 0


class Q2n(FullReferenceMetric):
    """Hypercomplex quality index over 32 x 32 blocks, without rounding the data.

    A block at the right or lower border, or with masked pixels, counts with the pixels that it has, by their
    number, from 64 pixels on; with whole blocks only this is the plain mean over blocks.
    """

    key = "Q2n"
    variant = (
        "32 x 32 blocks, no rounding, normalised per block by the reference; part blocks by their pixels"
    )
    better = "higher"
    range = "0 to 1 (identical)"
    source = "Garzelli and Nencini, IEEE GRSL 6(4), 2009; Alparone et al., IEEE GRSL 1(4), 2004"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every tile."""
        self._sum: Optional[Tensor] = None
        self._weight: Optional[Tensor] = None
        self._pixels: Optional[Tensor] = None

    def update_tile(self, tile: PairTile) -> None:
        """Add a chunk of a tile."""
        blocks: BlockMoments = tile.shared("blocks", block_moments)
        values, varies = q2n_of_blocks(blocks)
        weight = blocks.count * ((blocks.count >= MIN_BLOCK_PIXELS) & varies)
        used = weight > 0
        total = torch.where(used, values * weight, torch.zeros_like(values)).sum()
        self._sum = total if self._sum is None else self._sum + total
        self._weight = weight.sum() if self._weight is None else self._weight + weight.sum()
        pixels = blocks.count.sum()
        self._pixels = pixels if self._pixels is None else self._pixels + pixels

    def compute(self) -> MetricValue:
        """Return the mean over blocks."""
        if self._sum is None or self._weight is None or self._pixels == 0:
            return MetricValue(None, NO_PIXELS)
        if self._weight == 0:
            return MetricValue(None, f"{TOO_FEW}, or the reference is constant")
        value = float(self._sum / self._weight)
        return MetricValue(value) if math.isfinite(value) else MetricValue(None, NOT_FINITE)
