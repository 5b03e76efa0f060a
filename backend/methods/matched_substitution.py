# SPDX-License-Identifier: GPL-2.0-or-later
"""What `pca` and `gs` share: a component of the HS image, matched to the guide and replaced by it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..scene import SceneStatistics, Tile
from .component_substitution import ComponentSubstitution
from .injection import add_detail, gain_ridge, intensity_gains, ridge_solve


class MatchedSubstitution(ComponentSubstitution):
    """Component substitution with a component that is fixed, not fitted (Vivone et al., IEEE TGRS 53(5), 2015).

    The published form equalises the guide p to the component c (mean and standard deviation) and injects
    `cov(h, c) / var(c) (p_eq - c)`. The same is written here with c equalised to p. Two things go beyond it:

    * The gain is multiplied by the regression of component on guide (for PAN their correlation): a component that
      does not follow the guide is not replaced by it. At correlation 1 this is the published form.
    * A guide of m bands replaces m components, each guide band's intensity being its regression on all of them.
    """

    @abstractmethod
    def components(self, statistics: SceneStatistics) -> Tensor:
        """Return the weights `[components, bands]`, one component for each guide band that varies."""

    def intensity(self, statistics: SceneStatistics) -> tuple[Tensor, Tensor]:
        """Return the components mixed and scaled to the guide bands' standard deviations."""
        components = self.components(statistics)
        if len(components) == 0:
            components = torch.zeros(1, statistics.bands, dtype=torch.float64)
        covariance = components @ statistics.hs_covariance @ components.T
        mixing = ridge_solve(
            covariance, components @ statistics.cross_covariance, gain_ridge(len(components))
        ).T
        spread = (mixing @ covariance @ mixing.T).diagonal().clamp_min(0).sqrt()
        wanted = statistics.guide_covariance.diagonal().sqrt()
        scale = torch.where(spread > 1e-12 * wanted, wanted / spread.clamp_min(1e-300), 0.0)
        weights = scale[:, None] * (mixing @ components)
        return weights, statistics.guide_mean - weights @ statistics.hs_mean

    def injection_gains(self, statistics: SceneStatistics, weights: Tensor) -> Tensor:
        """Return the gains `[bands, guide bands]` on the intensities, damped where these do not follow the guide."""
        follow = ridge_solve(
            statistics.guide_covariance, (weights @ statistics.cross_covariance).T, gain_ridge(len(weights))
        ).T
        return intensity_gains(statistics, weights) @ follow

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: interpolated HS + gain (guide - matched component)."""
        detail = tile.guide_core - self.low_resolution(tile)
        return add_detail(tile.upsample(tile.hs), self.gains, detail)
