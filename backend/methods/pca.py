# SPDX-License-Identifier: GPL-2.0-or-later
"""PCA: substitution of principal components."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scene import SceneStatistics
from .matched_substitution import MatchedSubstitution

CANDIDATES = 20
"""Principal components that may be replaced; beyond them an HS image holds noise."""
NOISE_FLOOR = 1e-9
"""Components with less than this share of the first one's variance are rounding."""


class PCA(MatchedSubstitution):
    """Principal component substitution (Chavez, Sides and Anderson, PE&RS 57(3), 1991).

    Published for a few bands that the guide overlaps, where the first component is the brightness that the guide
    sees. Over 400 to 2500 nm it often is not, so the component (for m guide bands: the m components) that explains
    most of the guide's variance is replaced; where that is the first one, this is the published choice.
    """

    def components(self, statistics: SceneStatistics) -> Tensor:
        """Return the eigenvectors, as rows, of the components to replace, by falling variance."""
        values, vectors = torch.linalg.eigh(statistics.hs_covariance)
        values, vectors = values.flip(0)[:CANDIDATES], vectors.flip(1).T[:CANDIDATES]
        alive = values > NOISE_FLOOR * values[0].clamp_min(1e-300)
        cross = vectors @ statistics.cross_covariance
        total = statistics.guide_covariance.diagonal()
        explained = (cross**2 / values.clamp_min(1e-300)[:, None] / total.clamp_min(1e-300)).sum(
            dim=1
        ) * alive
        order = torch.argsort(explained, descending=True, stable=True)
        return vectors[order[: int((total > 0).sum())].sort().values]
