# SPDX-License-Identifier: GPL-2.0-or-later
"""The pair one scale down: coarse images beside their own low-pass versions, for gains learned on detail.

What the fine grid will be to the coarse one, the coarse grid is to an image filtered once more with the sensor's
MTF. Methods that learn how detail (not level) relates between HS and guide take their moments from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control import Control
from ..degradation import (
    Range,
    decimation_matrix,
    fine_support,
    masked_separable,
    psf_reach,
    smoothing_matrix,
)
from ..scene import COARSE_TILE, FULL_COVERAGE, Scene

MAX_FINE_PIXELS = 1_000_000
"""Fine pixels of a strip of the guide, without its context."""


@dataclass
class CoarseDetailTile:
    """A tile of the coarse grid.

    Attributes:
        hs, guide: `[bands, rows, cols]`, `[guide bands, rows, cols]`: HS image and degraded guide.
        hs_low, guide_low: the same filtered with the HS sensor's MTF on the coarse grid, not decimated.
        mask: `[rows, cols]`, True where all four are valid (no pixel that is not entered the filtering).
    """

    hs: Tensor
    guide: Tensor
    hs_low: Tensor
    guide_low: Tensor
    mask: Tensor


def coarse_detail_tiles(
    scene: Scene, control: Control | None = None, side: int = COARSE_TILE
) -> Iterator[CoarseDetailTile]:
    """Iterate over the coarse grid without overlap; each tile is filtered with its full context."""
    height, width = scene.coarse_shape
    ratio, gain, device = scene.ratio, scene.mtf_hs, scene.device
    reach = psf_reach(ratio, gain)

    def context(part: Range, size: int) -> Range:
        return max(0, part[0] - reach), min(size, part[1] + reach)

    for r0 in range(0, height, side):
        for c0 in range(0, width, side):
            if control is not None:
                control.check()
            rows, cols = (r0, min(height, r0 + side)), (c0, min(width, c0 + side))
            wide_rows, wide_cols = context(rows, height), context(cols, width)
            hs, hs_mask = (t.to(device) for t in scene.hs.read(wide_rows, wide_cols))
            guide, coverage = degraded_guide(scene, wide_rows, wide_cols)
            # One mask for both images: what relates them linearly then still does after filtering, beside holes too.
            valid = hs_mask & (coverage >= FULL_COVERAGE)
            over = smoothing_matrix(rows, wide_rows, ratio, height, gain)
            across = smoothing_matrix(cols, wide_cols, ratio, width, gain)
            hs_low, _ = masked_separable(over, across, hs, valid)
            guide_low, _ = masked_separable(over, across, guide, valid)
            top, left = r0 - wide_rows[0], c0 - wide_cols[0]
            own = (slice(top, top + rows[1] - r0), slice(left, left + cols[1] - c0))
            yield CoarseDetailTile(
                hs[:, own[0], own[1]], guide[:, own[0], own[1]], hs_low, guide_low, valid[own]
            )


def degraded_guide(scene: Scene, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
    """Return the guide on coarse pixels, `[guide bands, rows, cols]`, and its coverage `[rows, cols]`.

    Read in strips, so that a high ratio does not hold a whole tile's fine pixels at once.
    """
    ratio, gain = scene.ratio, scene.mtf_hs
    height, width = scene.shape
    fine_cols = fine_support(cols, ratio, width, gain)
    across = decimation_matrix(cols, fine_cols, ratio, width, gain)
    count = max(1, MAX_FINE_PIXELS // ((fine_cols[1] - fine_cols[0]) * ratio))
    parts = []
    for first in range(rows[0], rows[1], count):
        strip = (first, min(rows[1], first + count))
        fine_rows = fine_support(strip, ratio, height, gain)
        image, mask = (t.to(scene.device) for t in scene.guide.read(fine_rows, fine_cols))
        over = decimation_matrix(strip, fine_rows, ratio, height, gain)
        parts.append(masked_separable(over, across, image, mask))
    return torch.cat([low for low, _ in parts], dim=1), torch.cat([covered for _, covered in parts])
