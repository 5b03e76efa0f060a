# SPDX-License-Identifier: GPL-2.0-or-later
"""SSIM: structural similarity."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor

from .base import FullReferenceMetric, MetricValue, PairTile
from .moments import BandState, band_result, is_flat
from .windows import band_groups, core_windows, slide

RADIUS = 5
SIGMA = 1.5
K1, K2 = 0.01, 0.03
NO_WINDOW = "no 11 x 11 window lies wholly on valid pixels"
NEEDS_RANGE = "SSIM of several tiles needs the reference's range before the first tile"


def gaussian_window() -> list[float]:
    """Return the 11 weights of one side, sum 1."""
    weights = [math.exp(-0.5 * (k / SIGMA) ** 2) for k in range(-RADIUS, RADIUS + 1)]
    return [w / sum(weights) for w in weights]


def reference_range(reference: Tensor, mask: Tensor, previous: Optional[Tensor] = None) -> Tensor:
    """Return the least and largest valid value of each band, `[2, bands]` float64, over all tiles so far.

    A first pass over the reference; bands without a valid pixel give (inf, -inf).

    Args:
        reference: `[bands, rows, cols]` (a tile's core).
        mask: `[rows, cols]` bool.
        previous: what the tiles before gave.
    """
    infinity = torch.full((), math.inf, dtype=reference.dtype, device=reference.device)
    whole = bool(mask.all())
    parts = []
    for group in band_groups(reference.shape[0], mask.numel(), reference.device):
        bands = reference[group]
        least = (bands if whole else torch.where(mask, bands, infinity)).amin(dim=(1, 2))
        largest = (bands if whole else torch.where(mask, bands, -infinity)).amax(dim=(1, 2))
        parts.append(torch.stack([least, largest]).to(torch.float64))
    found = torch.cat(parts, dim=1)
    if previous is None:
        return found
    return torch.stack([torch.minimum(previous[0], found[0]), torch.maximum(previous[1], found[1])])


class SSIM(FullReferenceMetric):
    """Wang et al.'s index: 11 x 11 Gaussian window (sigma 1.5), K1 0.01, K2 0.03, mean over windows and bands.

    L is the range of the reference band, since the constants mean nothing beside data of another scale (the
    same image scores 0.84 with L = 1 and 0.996 with L = 65535). Windows that leave the image or touch a masked
    pixel are left out, as Wang's "valid" windows.

    Args:
        data_range: `[2, bands]` least and largest value of each reference band over the whole scene, from
            `reference_range`; None takes them from the first tile, which must then be the only one.
    """

    key = "SSIM"
    variant = (
        "11 x 11 Gaussian (sigma 1.5), L = range of the reference band, mean over whole windows and bands"
    )
    better = "higher"
    range = "-1 to 1 (identical)"
    source = "Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 13(4), 2004"
    halo = RADIUS

    def __init__(self, data_range: Optional[Tensor] = None) -> None:
        self.data_range = data_range
        self.reset()

    def reset(self) -> None:
        """Forget every tile."""
        self._range = self.data_range
        self._sum: Optional[Tensor] = None
        self._windows = 0
        self._any_pixel = False
        self._tiles = 0

    def update_tile(self, tile: PairTile) -> None:
        """Add a tile."""
        self._tiles += 1
        if self._range is None:
            self._range = reference_range(tile.reference_core, tile.mask_core)
        self._any_pixel = self._any_pixel or bool(tile.mask_core.any())
        cover, _, counts = core_windows(tile.mask, tile.core, RADIUS, RADIUS)
        number = int(counts.sum())
        if number == 0:
            return
        scale = self._range.to(device=tile.fused.device, dtype=torch.float64)
        total = torch.zeros(tile.bands, dtype=torch.float64, device=tile.fused.device)
        for group in band_groups(tile.bands, counts.numel(), tile.fused.device):
            bands = (group, *cover)
            total[group] = ssim_sum(
                tile.fused[bands], tile.reference[bands], tile.mask[cover], counts, scale[:, group]
            )
        self._sum = total if self._sum is None else self._sum + total
        self._windows += number

    def compute(self) -> MetricValue:
        """Return the mean over windows and bands, and each band's mean."""
        if self._range is None or not self._any_pixel:
            return band_result(None, None)
        if self.data_range is None and self._tiles > 1:
            return MetricValue(None, NEEDS_RANGE)
        if self._sum is None:
            return MetricValue(None, NO_WINDOW)
        least, largest = self._range.to(self._sum.device)
        state = BandState(True, ~torch.isfinite(largest - least), is_flat(least, largest))
        return band_result(state, self._sum / self._windows)


def ssim_sum(fused: Tensor, reference: Tensor, mask: Tensor, counts: Tensor, scale: Tensor) -> Tensor:
    """Return each band's sum of SSIM over the windows that count, `[bands]` float64.

    The values go to `(value - least) / range` with the level kept apart, so that float32 is enough for data of
    any scale: variances do not depend on the level, and the means get it back.

    Args:
        fused: `[bands, rows, cols]`.
        reference: the same shape.
        mask: `[rows, cols]` bool of the same pixels.
        counts: `[rows - 10, cols - 10]` bool, which windows count.
        scale: `[2, bands]` least and largest reference value.
    """
    least, span = scale[0], (scale[1] - scale[0])
    span = torch.where(span > 0, span, torch.ones_like(span))
    level = (least / span + 0.5)[:, None, None].to(fused.dtype)
    middle, span = (v.to(fused.dtype)[:, None, None] for v in (least + 0.5 * span, span))
    x, y = (fused - middle).div_(span), (reference - middle).div_(span)
    if not bool(mask.all()):
        x, y = x.masked_fill_(~mask, 0), y.masked_fill_(~mask, 0)
    weights = gaussian_window()
    # The formula needs the two variances only as their sum: four maps to filter, not five.
    maps = slide(torch.stack([x, y, x * y, x * x + y * y]), weights)
    mean_x, mean_y, product, squares = maps
    cov = product - mean_x * mean_y
    spread = squares - mean_x.square() - mean_y.square()
    mean_x, mean_y = mean_x + level, mean_y + level
    c1, c2 = K1**2, K2**2
    ssim = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    ssim /= (mean_x.square() + mean_y.square() + c1) * (spread + c2)
    return ssim.masked_fill_(~counts, 0).sum(dim=(1, 2), dtype=torch.float64)
