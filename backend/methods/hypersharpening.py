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

FITS = ("detail", "level")


def synthetic_guide_gains(scene: Scene, control: Control, fit: str) -> Tensor:
    """Return the weights `[bands, guide bands]` that make each HS band's synthetic guide from the guide's bands.

    Args:
        fit: "level" regresses the HS bands on the degraded guide, as published. "detail" regresses what each has
            beyond its own low-pass version on the coarse grid: only detail will be injected, while the regression
            of levels is ruled by how the materials' means differ.

    Raises:
        HyperSharpError: another `fit`.
    """
    if fit not in FITS:
        raise HyperSharpError(f"no fit {fit!r}", f"use {' or '.join(FITS)}", ErrorCode.USAGE)
    level = scene.statistics(scene.mtf_hs, control)
    return guide_gains(detail_statistics(scene, control) if fit == "detail" else level)


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
