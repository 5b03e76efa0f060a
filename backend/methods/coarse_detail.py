# SPDX-License-Identifier: GPL-2.0-or-later
"""The pair one scale down: coarse images beside their own low-pass versions, for gains learned on detail.

What the fine grid will be to the coarse one, the coarse grid is to an image filtered once more with the sensor's
MTF. Methods that learn how detail (not level) relates between HS and guide take their moments from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
            fine_rows = fine_support(wide_rows, ratio, height * ratio, gain)
            fine_cols = fine_support(wide_cols, ratio, width * ratio, gain)
            guide, guide_mask = (t.to(device) for t in scene.guide.read(fine_rows, fine_cols))
            guide, coverage = masked_separable(
                decimation_matrix(wide_rows, fine_rows, ratio, height * ratio, gain),
                decimation_matrix(wide_cols, fine_cols, ratio, width * ratio, gain),
                guide,
                guide_mask,
            )
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
