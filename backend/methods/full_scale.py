# SPDX-License-Identifier: GPL-2.0-or-later
"""Moments of the interpolated HS image on the fine grid, computed on the coarse one.

With U the interpolation, `sum over fine pixels of (U hs) g = sum over coarse pixels of hs (U' g)`: the guide comes
down by the transposed interpolation instead of hundreds of bands going up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..control import Control
from ..degradation import interpolation_matrix
from ..scene import Scene, tile_windows

FINE_TILE = 768
"""Side of the tiles of the pass, in fine pixels."""


@dataclass
class FullScaleMoments:
    """Moments over valid fine pixels, float64, of h = U(hs), g = guide and l = U(D(guide)).

    Attributes:
        hs_mean: mean of h, `[bands]`. guide_mean, low_mean: of g and l, `[guide bands]`.
        hs_guide, hs_low: covariances `[bands, guide bands]` of h with g and with l.
        low_guide: covariance of l (rows) and g (columns), `[guide bands, guide bands]`. low_low: of l.
    """

    hs_mean: Tensor
    guide_mean: Tensor
    low_mean: Tensor
    hs_guide: Tensor
    hs_low: Tensor
    low_guide: Tensor
    low_low: Tensor


def full_scale_moments(scene: Scene, control: Control | None = None) -> FullScaleMoments:
    """Return the fine grid's moments in one pass over the pair.

    Raises:
        ValueError: not a single fine pixel is valid in both images.
    """
    pilot = scene.statistics(scene.mtf_hs, control)
    hs_pilot, guide_pilot = pilot.hs_mean[:, None], pilot.guide_mean
    bands, m = scene.hs.bands, scene.guide.bands
    hs_sum = torch.zeros(bands, 2 * m + 1, dtype=torch.float64)
    square = torch.zeros(2 * m + 1, 2 * m + 1, dtype=torch.float64)
    side = max(1, FINE_TILE // scene.ratio) * scene.ratio
    for rows, cols in tile_windows((0, scene.shape[0]), (0, scene.shape[1]), side):
        if control is not None:
            control.check()
        tile = scene.tile(rows, cols)
        if not bool(tile.mask.any()):
            continue
        offset = guide_pilot.to(tile.guide.device)[:, None, None]
        # g, l and 1 about the pilot means, 0 outside the mask: one product gives every sum.
        fine = torch.cat(
            [
                tile.guide_core.double() - offset,
                tile.guide_lowpass(scene.mtf_hs).double() - offset,
                torch.ones_like(tile.mask, dtype=torch.float64)[None],
            ]
        )
        fine = torch.where(tile.mask, fine, 0.0)
        flat = fine.flatten(1)
        square += (flat @ flat.T).cpu()
        up = interpolation_matrix(tile.rows, tile.coarse_rows, tile.ratio, tile.scene_coarse[0])
        across = interpolation_matrix(tile.cols, tile.coarse_cols, tile.ratio, tile.scene_coarse[1])
        down = up.double().to(fine.device).T @ fine @ across.double().to(fine.device)
        centred = tile.hs.flatten(1).double() - hs_pilot.to(tile.hs.device)
        hs_sum += (centred @ down.flatten(1).T).cpu()
    count = square[-1, -1]
    if count <= 0:
        raise ValueError("no valid pixel was seen")
    mean = square[-1, :-1] / count
    hs_mean = hs_sum[:, -1] / count
    covariance = square[:-1, :-1] / count - torch.outer(mean, mean)
    cross = hs_sum[:, :-1] / count - torch.outer(hs_mean, mean)
    varies = (pilot.guide_covariance.diagonal() > 0).repeat(2).to(covariance)
    covariance = covariance * varies[:, None] * varies[None, :]
    cross = cross * varies
    return FullScaleMoments(
        hs_mean + pilot.hs_mean,
        mean[:m] + guide_pilot,
        mean[m:] + guide_pilot,
        cross[:, :m],
        cross[:, m:],
        covariance[m:, :m],
        covariance[m:, m:],
    )
