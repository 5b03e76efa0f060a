# SPDX-License-Identifier: GPL-2.0-or-later
"""What `glp-hs` and `sfim-hs` share: a synthetic guide for every HS band, fitted on level or on detail.

Selva, Aiazzi, Butera, Chiarantini and Baronti, IEEE JSTARS 8(6), 2015 (hypersharpening with synthesised bands).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..control import Control
from ..errors import ErrorCode, HyperSharpError
from ..scene import MomentAccumulator, Scene, SceneStatistics, without_rounding
from .coarse_detail import coarse_detail_tiles
from .injection import guide_gains

FITS = ("detail", "level", "assign")


def synthetic_guide_gains(scene: Scene, control: Control, fit: str) -> Tensor:
    """Return the weights `[bands, guide bands]` that make each HS band's synthetic guide from the guide's bands.

    Args:
        fit: "level" regresses the HS bands on the degraded guide, as published. "detail" regresses what each has
            beyond its own low-pass version on the coarse grid: only detail will be injected, while the regression
            of levels is ruled by how the materials' means differ. "assign" gives each HS band the one guide band
            that it correlates with most, at its regression gain (the paper's selected-band form).

    Raises:
        HyperSharpError: another `fit`.
    """
    if fit not in FITS:
        raise HyperSharpError(f"no fit {fit!r}", f"use one of {', '.join(FITS)}", ErrorCode.USAGE)
    level = scene.statistics(scene.mtf_hs, control)
    if fit == "assign":
        return assigned_gains(level)
    return guide_gains(detail_statistics(scene, control) if fit == "detail" else level)


def assigned_gains(statistics: SceneStatistics) -> Tensor:
    """Return `[bands, guide bands]` with one gain a row: of the guide band of the highest absolute correlation."""
    best = statistics.correlation().abs().nan_to_num(0.0).argmax(dim=1, keepdim=True)
    variance = statistics.guide_covariance.diagonal()[best[:, 0]]
    cross = statistics.cross_covariance.gather(1, best)[:, 0]
    gain = torch.where(variance > 0, cross / variance.clamp_min(1e-300), torch.zeros_like(cross))
    return torch.zeros_like(statistics.cross_covariance).scatter_(1, best, gain[:, None])


def detail_statistics(scene: Scene, control: Control) -> SceneStatistics:
    """Return the joint moments of the detail of HS image and degraded guide on the coarse grid.

    Raises:
        ValueError: not a single coarse pixel is valid in both.
    """
    moments = MomentAccumulator()
    for tile in coarse_detail_tiles(scene, control):
        detail = torch.cat([tile.hs - tile.hs_low, tile.guide - tile.guide_low])
        moments.update(detail[:, tile.mask])
    mean, covariance = moments.compute()
    # The detail of a constant band is rounding of its level.
    covariance = without_rounding(covariance, scene.statistics(scene.mtf_hs, control).mean)
    return SceneStatistics(moments.count, mean, covariance, scene.hs.bands)
