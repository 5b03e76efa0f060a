# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the errors are: SAM, RMSE and D_rho of every pixel of a tile, as rasters to look at.

NaN marks pixels without a value (masked, zero spectrum, no whole window): it is the rasters' nodata.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .base import Core, PairTile, ResolutionTile, check_cube, check_mask
from .d_rho import correlations
from .sam import spectral_angle
from .windows import band_groups


def sam_map(fused: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Return each pixel's spectral angle in degrees, `[rows, cols]` float32.

    Args:
        fused: `[bands, rows, cols]`.
        reference: the true image, same shape and unit.
        mask: `[rows, cols]` bool, True where valid.

    Raises:
        HyperSharpError: shapes or dtypes that do not fit.
    """
    found = blank(mask)
    tile = PairTile(fused, reference, mask)
    for rows in row_groups(tile.bands, mask):
        angle = spectral_angle(fused[:, rows], reference[:, rows])
        found[rows] = torch.where(mask[rows], angle.to(torch.float32), found[rows])
    return found


def rmse_map(fused: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Return the root of the mean squared error over the bands of each pixel, `[rows, cols]` float32.

    Args and errors as `sam_map`; the unit is the data's.
    """
    found = blank(mask)
    tile = PairTile(fused, reference, mask)
    for rows in row_groups(tile.bands, mask):
        error = (fused[:, rows] - reference[:, rows]).square_().mean(dim=0, dtype=torch.float64).sqrt_()
        found[rows] = torch.where(mask[rows], error.to(torch.float32), found[rows])
    return found


def d_rho_map(
    fused: Tensor,
    guide: Tensor,
    mask: Tensor,
    ratio: int,
    core: Optional[Core] = None,
    assignment: Optional[Tensor] = None,
) -> Tensor:
    """Return `1 - rho` of each pixel of the core, mean over bands, `[rows, cols]` float32.

    rho is the correlation of band and guide in the window of ratio x ratio pixels around the pixel (for an even
    ratio half a pixel towards the upper left). The tile needs a halo of `ratio // 2`.

    Args:
        fused: `[bands, rows, cols]`, core and halo.
        guide: `[guide bands, rows, cols]`.
        mask: `[rows, cols]` bool, True where valid.
        ratio: integer ratio of the pixel sizes, the window's side.
        core: (row, column) slices of the part that counts; None for all.
        assignment: `[bands]` index of the guide band for each band; None when the guide has one band.

    Raises:
        HyperSharpError: shapes or dtypes that do not fit.
    """
    check_cube("fused", fused)
    check_cube("guide", guide)
    for cube in (fused, guide):
        check_mask(mask, cube)
    if assignment is None:
        assignment = ResolutionTile.single_guide(guide, fused.shape[0])
    core = core if core is not None else (slice(None), slice(None))
    found = correlations(fused, guide, mask, ratio, core, assignment.to(fused.device), mapped=True)
    return found.map if found.map is not None else blank(mask)[core]


def blank(mask: Tensor) -> Tensor:
    """Return a map without any value."""
    return torch.full(mask.shape, float("nan"), dtype=torch.float32, device=mask.device)


def row_groups(bands: int, mask: Tensor) -> list[slice]:
    """Return slices of rows that keep the working copies small."""
    return list(band_groups(mask.shape[0], bands * mask.shape[1], mask.device))
