# SPDX-License-Identifier: GPL-2.0-or-later
"""D_s_R: spatial distortion by regression (RQNR's spatial part)."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .base import RELATIVE_ZERO, MetricValue
from .joint import BlockPair, HsBands, JointMetric, StackMoments
from .moments import NO_PIXELS, band_result

RANK_CUTOFF = 1e-12
"""Directions of the bands' correlation matrix below this share of the largest are float32 rounding."""


class DSR(JointMetric):
    """`1 - R^2` of the guide regressed on all fused bands with an intercept, on the fine grid.

    With many bands R^2 nears 1 for anything that looks like the guide: it tells good fusions apart poorly.
    """

    key = "D_s_R"
    variant = "1 - R^2 of the guide on all fused bands and an intercept; several guide bands: their mean"
    better = "lower"
    range = "0 to 1"
    source = "Alparone, Garzelli and Vivone, IGARSS 2018"
    needs_pairs = True

    def reset(self) -> None:
        """Forget every tile."""
        self._hs = HsBands()
        self._count = 0
        self._mean: Optional[Tensor] = None
        self._scatter: Optional[Tensor] = None

    def update_block(self, block: BlockPair) -> None:
        """Add one block of a tile."""
        self._hs.add(block.hs_min, block.hs_max)
        m = block.fine
        if m.count == 0 or m.pairs is None:
            return
        mean = torch.cat([m.mean, m.guide_mean])
        scatter = joint_covariance(m) * m.count
        if self._mean is None or self._scatter is None:
            self._count, self._mean, self._scatter = m.count, mean, scatter
            return
        count = self._count + m.count
        delta = mean - self._mean
        self._scatter += scatter + torch.outer(delta, delta) * (self._count * m.count / count)
        self._mean = self._mean + delta * (m.count / count)
        self._count = count

    def compute(self) -> MetricValue:
        """Return one value for all bands."""
        state = self._hs.state()
        if state is None or not state.any_pixel or self._mean is None or self._scatter is None:
            return MetricValue(None, NO_PIXELS)
        bands = len(state.constant)
        cov = self._scatter / self._count
        kept = ~(state.unusable | state.constant)
        if not torch.isfinite(cov[:bands, :bands].diagonal()[kept]).all():
            return band_result(state, cov[:bands, :bands].diagonal() * 0)
        if self._count <= bands + 1:
            return MetricValue(None, f"{self._count} pixels do not determine a regression on {bands} bands")
        kept = kept & (cov.diagonal()[:bands] > (RELATIVE_ZERO * self._mean[:bands]) ** 2)
        variance = cov.diagonal()[bands:]
        varies = variance > (RELATIVE_ZERO * self._mean[bands:]) ** 2
        if not varies.any():
            return MetricValue(None, "the guide is constant or not finite under valid pixels")
        scale = cov.diagonal()[:bands][kept].rsqrt()
        gram = cov[:bands, :bands][kept][:, kept] * scale[:, None] * scale
        right = cov[:bands, bands:][kept][:, varies] * scale[:, None] * variance[varies].rsqrt()
        values, vectors = torch.linalg.eigh(gram)
        good = values > RANK_CUTOFF * values.max() if len(values) else values > 0
        explained = ((vectors[:, good].T @ right).square() / values[good][:, None]).sum(dim=0)
        left = band_result(state, torch.zeros(bands, dtype=torch.float64, device=cov.device)).reason
        return MetricValue(float((1 - explained).clamp(0, 1).mean()), left)


def joint_covariance(moments: StackMoments) -> Tensor:
    """Return the covariances of the bands followed by the guide's, `[layers, layers]`.

    Raises:
        ValueError: the moments were made without pairs.
    """
    if moments.pairs is None:
        raise ValueError("band pairs are needed")
    upper = torch.cat([moments.pairs, moments.guide_cross.T], dim=1)
    return torch.cat([upper, torch.cat([moments.guide_cross, moments.guide_pairs], dim=1)])
