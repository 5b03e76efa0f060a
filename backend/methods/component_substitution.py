# SPDX-License-Identifier: GPL-2.0-or-later
"""What component substitution methods share: an intensity that the HS bands explain of the guide."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..scene import Scene, SceneStatistics, Tile
from .base import FusionMethod
from .injection import intensity_gains, summary


class ComponentSubstitution(FusionMethod):
    """Replaces an intensity, one for each guide band, by the guide (Vivone et al., IEEE TGRS 53(5), 2015)."""

    @abstractmethod
    def intensity(self, statistics: SceneStatistics) -> tuple[Tensor, Tensor]:
        """Return the intensity's weights `[guide bands, bands]` and offsets `[guide bands]`."""

    def injection_gains(self, statistics: SceneStatistics, weights: Tensor) -> Tensor:
        """Return the gains `[bands, guide bands]` of the bands' regression on the intensities."""
        return intensity_gains(statistics, weights)

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn intensity weights and injection gains at coarse resolution."""
        statistics = scene.statistics(scene.mtf_hs, control)
        self.weights, self.offset = self.intensity(statistics)
        self.gains = self.injection_gains(statistics, self.weights)
        self.hs_mean = statistics.hs_mean
        self.intensity_mean = self.weights @ statistics.hs_mean + self.offset
        explained = (self.weights @ statistics.hs_covariance @ self.weights.T).diagonal()
        total = statistics.guide_covariance.diagonal()
        cross = (self.weights @ statistics.cross_covariance).diagonal()
        self.r_squared = torch.where(
            (explained > 0) & (total > 0), cross**2 / (explained * total).clamp_min(1e-300), 0.0
        )

    def low_resolution(self, tile: Tile) -> Tensor:
        """Return the interpolated intensity, `[guide bands, rows, cols]`."""
        bands, height, width = tile.hs.shape
        flat = torch.addmm(
            self.offset.to(tile.hs)[:, None], self.weights.to(tile.hs), tile.hs.reshape(bands, -1)
        )
        return tile.upsample(flat.view(-1, height, width))

    def describe(self) -> dict[str, Any]:
        """Return how well the HS bands explain the guide."""
        return {"intensity_r2": summary(self.r_squared), "intensity_offset": summary(self.offset)}
