# SPDX-License-Identifier: GPL-2.0-or-later
"""BDSD-PC: band-dependent spatial detail with physical constraints."""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import nnls
from torch import Tensor

from ..control import Control
from ..scene import MomentAccumulator, Scene, Tile
from .base import FusionMethod
from .coarse_detail import coarse_detail_tiles
from .injection import add_detail, guide_gains, summary

RIDGE = 1e-3
"""Ridge of the fit, relative to each band's own variance: neighbouring HS bands are nearly collinear."""


class BdsdPc(FusionMethod):
    """Band-dependent spatial detail with physical constraints (Vivone, IEEE TGRS 57(9), 2019).

    BDSD: Garzelli, Nencini and Capobianco, IEEE TGRS 46(1), 2008.
    `fused_b = h_b + a_b p_b - sum_k c_bk h_k`: each band has its own intensity. The coefficients make the HS image
    from its own low-pass version one scale down, in the least-squares sense, all of them non-negative (the
    constraint: an intensity is a mixture of bands, and detail is added).

    p_b is the band's synthetic guide, its regression on the guide's bands (hypersharpening, Selva et al. 2015). For
    PAN that is the guide itself in the band's units, turned over where the two correlate negatively; without it the
    constraint would leave such a band, or an MSI guide's bands with negative weights, without detail. All images
    are taken about their means, so that units with an offset do not matter.
    """

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the coefficients `[bands, bands]` and gains `[bands, guide bands]` one scale down."""
        statistics = scene.statistics(scene.mtf_hs, control)
        moments = MomentAccumulator()
        for tile in coarse_detail_tiles(scene, control):
            moments.update(torch.cat([tile.hs, tile.hs_low, tile.guide])[:, tile.mask])
        _, covariance = moments.compute()
        synthesis = guide_gains(statistics)
        coefficients, amounts = constrained_coefficients(covariance, synthesis, control)
        self.hs_mean, self.guide_mean = statistics.hs_mean, statistics.guide_mean
        self.mixing = torch.eye(len(synthesis), dtype=torch.float64) - coefficients
        self.offset = coefficients @ self.hs_mean
        self.gains = amounts[:, None] * synthesis
        self.amounts = amounts

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: interpolated HS + gain guide - the band's own intensity."""
        bands, height, width = tile.hs.shape
        mixed = torch.addmm(
            self.offset.to(tile.hs)[:, None], self.mixing.to(tile.hs), tile.hs.reshape(bands, -1)
        )
        guide = tile.guide_core - self.guide_mean.to(tile.guide)[:, None, None]
        return add_detail(tile.upsample(mixed.view(bands, height, width)), self.gains, guide)

    def describe(self) -> dict[str, Any]:
        """Return how much of its synthetic guide each band receives."""
        return {"guide_amount": summary(self.amounts, 3)}


def constrained_coefficients(
    covariance: Tensor, synthesis: Tensor, control: Control
) -> tuple[Tensor, Tensor]:
    """Return the non-negative coefficients of every band's intensity and of its synthetic guide.

    For band b: least squares of `h_b - l_b = a_b p_b - sum_k c_bk l_k`, a_b >= 0, c_bk >= 0, with l the low-pass HS
    image and `p_b = synthesis_b guide`.

    Args:
        covariance: joint covariance of h, l and guide, `[2 bands + guide bands]` squared, float64.
        synthesis: `[bands, guide bands]`.

    Returns:
        c `[bands, bands]` and a `[bands]`, float64.
    """
    bands = len(synthesis)
    high, low, guide = slice(0, bands), slice(bands, 2 * bands), slice(2 * bands, None)
    system = covariance[low, low].clone()
    variance = system.diagonal()
    # A band without variance predicts nothing: its scale is arbitrary, its column stays 0.
    scale = torch.where(variance > 1e-12 * variance.max(), variance, 1.0).sqrt()
    system = system / scale[:, None] / scale[None, :]
    # Relative to the variance of what the coefficient will act on: a band of noise hardly survives the low-pass
    # filter, and a coefficient learned on what does would blow up the noise of the band itself.
    system.diagonal().add_(RIDGE * (covariance[high, high].diagonal() / scale**2).clamp_min(1.0))
    root = torch.linalg.cholesky(system)
    # Normal equations of [-l, p_b] and target h_b - l_b, in units of each predictor's standard deviation.
    target = (covariance[low, high] - covariance[low, low]) / scale[:, None]
    with_guide = (covariance[low, guide] @ synthesis.T) / scale[:, None]
    power = ((synthesis @ covariance[guide, guide]) * synthesis).sum(dim=1)
    guide_target = ((covariance[guide, high] - covariance[guide, low]) * synthesis.T).sum(dim=0)
    guide_scale = power.clamp_min(1e-300).sqrt()
    half_target = torch.linalg.solve_triangular(root, target, upper=False)
    half_guide = torch.linalg.solve_triangular(root, with_guide / guide_scale, upper=False)
    coefficients = torch.zeros(bands, bands, dtype=torch.float64)
    amounts = torch.zeros(bands, dtype=torch.float64)
    for b in range(bands):
        control.check()
        if power[b] <= 1e-12 * power.max():
            continue
        # Least squares with matrix R and right side y from the normal equations R'R, R'y.
        rest = float((1.0 + RIDGE - half_guide[:, b].square().sum()).clamp_min(RIDGE)) ** 0.5
        matrix = torch.zeros(bands + 1, bands + 1, dtype=torch.float64)
        matrix[:bands, :bands] = -root.T
        matrix[:bands, bands] = half_guide[:, b]
        matrix[bands, bands] = rest
        last = (guide_target[b] / guide_scale[b] - half_guide[:, b] @ half_target[:, b]) / rest
        right = torch.cat([half_target[:, b], last[None]])
        solution = torch.from_numpy(nnls(matrix.numpy(), right.numpy())[0])
        coefficients[b] = solution[:bands] / scale
        amounts[b] = solution[bands] / guide_scale[b]
    return coefficients, amounts
