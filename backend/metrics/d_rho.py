# SPDX-License-Identifier: GPL-2.0-or-later
"""D_rho: spatial distortion by local correlation (Scarpa and Ciotola 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .base import RELATIVE_ZERO, Core, MetricValue, NoReferenceMetric, ResolutionTile
from .joint import CULPRIT, HsBands, hs_range
from .moments import band_result
from .windows import band_groups, core_windows, slide

NO_WINDOW = "no window of ratio x ratio pixels lies wholly on valid pixels with a guide that varies"


@dataclass
class GuideWindows:
    """A guide band in windows of `side` pixels: its values about a level, their window means and variances.

    `flat` is where the guide does not vary: a correlation has no meaning there.
    """

    side: int
    centred: Tensor
    mean: Tensor
    variance: Tensor
    flat: Tensor


def guide_windows(guide: Tensor, side: int) -> GuideWindows:
    """Return a guide band, `[rows, cols]`, in windows, `[rows - side + 1, cols - side + 1]`, in float64."""
    box = [1.0 / side] * side
    centred = guide.to(torch.float64)
    # About a central value, so that squares do not swamp the variances of smooth places.
    level = centred.mean()
    centred = centred - level
    mean = slide(centred, box)
    variance = slide(centred.square(), box) - mean.square()
    flat = variance <= (RELATIVE_ZERO * (mean + level)) ** 2
    return GuideWindows(side, centred, mean, variance, flat)


def local_correlation(image: Tensor, guide: GuideWindows) -> Tensor:
    """Return the correlation of each band with the guide in every whole window.

    Args:
        image: `[bands, rows, cols]`.
        guide: the guide of the same pixels.

    Returns:
        `[bands, rows - side + 1, cols - side + 1]` float64, -1 to 1; 0 where the band is constant, meaningless
        where the guide is.
    """
    box = [1.0 / guide.side] * guide.side
    x = image.to(torch.float64)
    level = x.mean(dim=(1, 2), keepdim=True)
    x = x - level
    mean = slide(x, box)
    cov = slide(x * guide.centred, box).sub_(mean * guide.mean)
    variance = slide(x.square_(), box).sub_(mean.square())
    flat = variance <= mean.add_(level).mul_(RELATIVE_ZERO).square_()
    product = variance.masked_fill_(flat, 1).mul_(guide.variance.masked_fill(guide.flat, 1)).sqrt_()
    return cov.div_(product).clamp_(-1, 1).masked_fill_(flat, 0)


@dataclass
class Correlations:
    """Local correlations of a tile's core, summed.

    Attributes:
        sums: `[bands]` float64, sum of rho over the windows that count.
        windows: `[bands]` float64, their number.
        map: `[rows, cols]` float32 of the core, `1 - rho` mean over bands, NaN where no window counts; or None.
    """

    sums: Tensor
    windows: Tensor
    map: Optional[Tensor]


def correlations(
    fused: Tensor,
    guide: Tensor,
    mask: Tensor,
    ratio: int,
    core: Core,
    assignment: Tensor,
    mapped: bool = False,
) -> Correlations:
    """Return the local correlations of a tile: each band with its guide band, in windows of ratio x ratio pixels.

    Args:
        fused: `[bands, rows, cols]`, core and halo.
        guide: `[guide bands, rows, cols]`.
        mask: `[rows, cols]` bool, True where valid.
        ratio: the window's side.
        core: (row, column) slices of the part that counts.
        assignment: `[bands]` index of each band's guide band.
        mapped: also the map; it costs little beside the sums.
    """
    before = ratio // 2
    cover, centres, counts = core_windows(mask, core, before, ratio - 1 - before)
    sums = torch.zeros(fused.shape[0], dtype=torch.float64, device=fused.device)
    windows = torch.zeros_like(sums)
    total = torch.zeros(counts.shape if mapped else 0, dtype=torch.float64, device=fused.device)
    number = torch.zeros_like(total)
    inside = mask[cover]
    zero = torch.zeros((), dtype=fused.dtype, device=fused.device)
    for layer in assignment.unique().tolist() if bool(counts.any()) else ():
        guide_band = guide_windows(torch.where(inside, guide[(layer, *cover)], zero.to(guide.dtype)), ratio)
        used = counts & ~guide_band.flat
        own = (assignment == layer).nonzero().flatten()
        for group in band_groups(len(own), counts.numel(), fused.device):
            image = torch.where(inside, fused[own[group]][:, cover[0], cover[1]], zero)
            rho = local_correlation(image, guide_band).masked_fill_(~used, 0)
            sums[own[group]] = rho.sum(dim=(1, 2))
            if mapped:
                total += rho.sum(dim=0)
        windows[own] = used.sum().to(windows.dtype)
        if mapped:
            number += len(own) * used
    if not mapped:
        return Correlations(sums, windows, None)
    found = torch.full(mask.shape, float("nan"), dtype=torch.float32, device=fused.device)
    found[centres] = torch.where(number > 0, 1 - total / number, float("nan")).to(torch.float32)
    return Correlations(sums, windows, found[core])


class DRho(NoReferenceMetric):
    """`1 - mean of rho`, the correlation of fused band and guide in windows of ratio x ratio pixels.

    The mean runs over all whole windows of valid pixels in which the guide varies, and over bands.
    """

    key = "D_rho"
    variant = (
        "windows of ratio x ratio pixels, mean over windows and bands; several guide bands: each HS band with the "
        "one that it correlates with most"
    )
    better = "lower"
    range = "0 to 2"
    source = "Scarpa and Ciotola, Remote Sens. 14(8), 2022"
    keep_map: bool = False
    """Set it to find the map of the tile added last in `map`, at little cost beside the index."""
    map: Optional[Tensor] = None
    """`1 - rho` of each pixel of that tile's core, mean over bands, `[rows, cols]` float32; NaN without a window."""

    @property
    def halo(self) -> int:  # type: ignore[override]
        """Half the window."""
        return self.ratio // 2

    def reset(self) -> None:
        """Forget every tile."""
        self._hs = HsBands()
        self._sum: Optional[Tensor] = None
        self._windows: Optional[Tensor] = None
        self.map = None

    def update_tile(self, tile: ResolutionTile) -> None:
        """Add a tile."""
        self._hs.add(*hs_range(tile.hs, tile.mask_lr))
        found = correlations(
            tile.fused, tile.guide, tile.mask, self.ratio, tile.core, tile.assignment, self.keep_map
        )
        self.map = found.map
        sums, windows = found.sums, found.windows
        self._sum = sums if self._sum is None else self._sum + sums
        self._windows = windows if self._windows is None else self._windows + windows

    def compute(self) -> MetricValue:
        """Return the mean over bands and each band's value."""
        state = self._hs.state()
        if state is None or not state.any_pixel:
            return band_result(None, None)
        if self._sum is None or self._windows is None or not (self._windows > 0).any():
            return MetricValue(None, NO_WINDOW)
        none = self._windows == 0
        values = 1 - self._sum / self._windows.clamp(min=1)
        return band_result(state, values, skipped=((none, "its guide band is constant"),), culprit=CULPRIT)
