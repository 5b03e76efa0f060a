# SPDX-License-Identifier: GPL-2.0-or-later
"""GS: Gram-Schmidt spectral sharpening."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scene import SceneStatistics
from .matched_substitution import MatchedSubstitution

FOLLOWS = 0.95
"""HS bands enter the intensity when they follow the guide at least this well, relative to the best one."""


class GS(MatchedSubstitution):
    """Gram-Schmidt (Laben and Brower, US patent 6 011 875, 2000; Aiazzi et al., IEEE TGRS 45(10), 2007, mode 1).

    The intensity is the plain mean of the bands that the guide overlaps. Response functions are seldom known, so
    overlap is judged from the pair: each HS band belongs to the guide band that it correlates with best, and
    counts where that correlation is at least `FOLLOWS` of the best band's.
    """

    def components(self, statistics: SceneStatistics) -> Tensor:
        """Return the averaging weights `[components, bands]`, one for each guide band that varies."""
        correlation = statistics.correlation()
        best = correlation.amax(dim=0)
        nearest = torch.nn.functional.one_hot(correlation.argmax(dim=1), correlation.shape[1]).bool()
        chosen = nearest & (correlation >= FOLLOWS * best)
        # A guide band that is no HS band's nearest still gets the one that follows it best.
        chosen[correlation.argmax(dim=0), torch.arange(correlation.shape[1])] |= ~chosen.any(dim=0)
        weights = chosen.to(correlation)
        return (weights / weights.sum(dim=0)).T[statistics.guide_covariance.diagonal() > 0]
