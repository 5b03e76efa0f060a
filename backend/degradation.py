# SPDX-License-Identifier: GPL-2.0-or-later
"""The sensor's point spread function, centred sampling and interpolation: the one place that knows the PSF.

A coarse pixel `i` covers the fine pixels `[i r, (i + 1) r)`: sampling is centred
for even and odd ratios alike.
The PSF is a Gaussian given by the gain of its modulation transfer function (MTF) at the coarse grid's Nyquist
frequency. Filters, decimation and interpolation are separable and linear, so each is a pair of small matrices
(one for rows, one for columns) built in scene coordinates: a tile gets the same numbers as the whole scene.

Source: Aiazzi et al., PE&RS 72(5), 2006 (MTF-matched filters); Wald et al., PE&RS 63(6), 1997 (protocol);
Keys, IEEE TASSP 29(6), 1981 (cubic convolution).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

Range = tuple[int, int]
"""Half-open range [start, stop) of pixel indices, in scene coordinates."""

INTERPOLATION_REACH = 2
"""Coarse pixels on each side that the cubic interpolation looks at."""
PSF_TRUNCATION = 4.0
"""The Gaussian is cut at this many standard deviations (3e-4 of its peak)."""
MIN_COVERAGE = 0.5
"""Least share of a coarse pixel's PSF that must fall on valid pixels for the result to be valid."""


def gaussian_sigma(ratio: int, mtf_gain: float) -> float:
    """Return the standard deviation, in fine pixels, of the PSF with this MTF gain at the coarse Nyquist.

    From exp(-2 pi^2 sigma^2 f^2) = gain at f = 1 / (2 ratio).

    Raises:
        ValueError: the gain is not between 0 and 1.
    """
    if not 0.0 < mtf_gain < 1.0:
        raise ValueError("the MTF gain at Nyquist must lie between 0 and 1")
    return ratio / math.pi * math.sqrt(-2.0 * math.log(mtf_gain))


def psf_reach(ratio: int, mtf_gain: float) -> int:
    """Return how many fine pixels beyond a coarse pixel's own its PSF looks at."""
    return math.ceil(PSF_TRUNCATION * gaussian_sigma(ratio, mtf_gain))


def _place(indices: Tensor, weights: Tensor, source: Range, size: int) -> Tensor:
    """Return the matrix with `weights[i, k]` at column `indices[i, k]`, scene borders replicated.

    Columns are relative to `source.start`; an index outside `source` after clamping to the scene is an error.
    """
    clamped = indices.clamp(0, size - 1) - source[0]
    width = source[1] - source[0]
    used = weights != 0
    if bool((((clamped < 0) | (clamped >= width)) & used).any()):
        raise ValueError("the source range is too small for this operator")
    matrix = torch.zeros(indices.shape[0], width, dtype=torch.float64)
    matrix.scatter_add_(1, clamped.clamp(0, width - 1), weights)
    return matrix.to(torch.float32)


@lru_cache(maxsize=256)
def interpolation_matrix(fine: Range, coarse: Range, ratio: int, coarse_size: int) -> Tensor:
    """Return the cubic-convolution interpolation (Keys, a = -1/2) as `[len(fine), len(coarse)]`.

    Args:
        fine: fine pixels to compute.
        coarse: coarse pixels given; must hold `INTERPOLATION_REACH` pixels around the fine range, or reach
            the scene's border, which is replicated.
        ratio: fine pixels per coarse pixel.
        coarse_size: coarse pixels of the whole scene along this axis.
    """
    position = (torch.arange(*fine, dtype=torch.float64) + 0.5) / ratio - 0.5
    base = torch.floor(position)
    offset = torch.arange(-1, 3, dtype=torch.float64)
    distance = (position - base)[:, None] - offset[None, :]
    x = distance.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    weights = torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    indices = (base[:, None] + offset[None, :]).long()
    return _place(indices, weights, coarse, coarse_size)


@lru_cache(maxsize=256)
def decimation_matrix(
    coarse: Range, fine: Range, ratio: int, fine_size: int, mtf_gain: float | None, shift: float = 0.0
) -> Tensor:
    """Return "filter with the PSF, then sample at coarse centres" as `[len(coarse), len(fine)]`.

    Args:
        coarse: coarse pixels to compute.
        fine: fine pixels given; see `fine_support`.
        ratio: fine pixels per coarse pixel.
        fine_size: fine pixels of the whole scene along this axis (its border is replicated).
        mtf_gain: gain of the MTF at Nyquist; None for the plain mean over each coarse pixel's own block.
        shift: fine pixels by which the ground of the coarse grid lies further along the fine one; with a PSF only.
    """
    start = torch.arange(*coarse)[:, None] * ratio
    if mtf_gain is None:
        indices = start + torch.arange(ratio)[None, :]
        weights = torch.full(indices.shape, 1.0 / ratio, dtype=torch.float64)
        return _place(indices, weights, fine, fine_size)
    reach = psf_reach(ratio, mtf_gain)
    moved = math.floor(shift)
    offset = torch.arange(-reach, ratio + reach + (shift != moved)) + moved
    distance = offset.to(torch.float64) - (ratio - 1) / 2.0 - shift
    kernel = torch.exp(-0.5 * (distance / gaussian_sigma(ratio, mtf_gain)) ** 2)
    kernel = kernel / kernel.sum()
    indices = start + offset[None, :]
    return _place(indices, kernel.expand(indices.shape), fine, fine_size)


@lru_cache(maxsize=64)
def smoothing_matrix(fine: Range, source: Range, ratio: int, fine_size: int, mtf_gain: float) -> Tensor:
    """Return the PSF as a low-pass filter on the fine grid, `[len(fine), len(source)]`."""
    reach = psf_reach(ratio, mtf_gain)
    offset = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offset.to(torch.float64) / gaussian_sigma(ratio, mtf_gain)) ** 2)
    kernel = kernel / kernel.sum()
    indices = torch.arange(*fine)[:, None] + offset[None, :]
    return _place(indices, kernel.expand(indices.shape), source, fine_size)


def fine_support(coarse: Range, ratio: int, fine_size: int, mtf_gain: float | None) -> Range:
    """Return the fine pixels that `decimation_matrix` needs for these coarse pixels."""
    reach = 0 if mtf_gain is None else psf_reach(ratio, mtf_gain)
    return max(0, coarse[0] * ratio - reach), min(fine_size, coarse[1] * ratio + reach)


def coarse_support(fine: Range, ratio: int, coarse_size: int, reach: int = INTERPOLATION_REACH) -> Range:
    """Return the coarse pixels within `reach` of those that cover these fine pixels."""
    return max(0, fine[0] // ratio - reach), min(coarse_size, -(-fine[1] // ratio) + reach)


def separable(rows: Tensor, cols: Tensor, image: Tensor) -> Tensor:
    """Return `rows @ image @ cols.T` for `[..., rows, cols]`, the cheaper side first."""
    rows, cols = rows.to(image.device), cols.to(image.device)
    if rows.shape[0] * image.shape[-1] <= image.shape[-2] * cols.shape[0]:
        return torch.matmul(torch.matmul(rows, image), cols.T)
    return torch.matmul(rows, torch.matmul(image, cols.T))


def masked_separable(rows: Tensor, cols: Tensor, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Filter `image` `[bands, rows, cols]` leaving out where `mask` `[rows, cols]` is False.

    Returns:
        The normalised result (0 where nothing valid was seen) and its coverage, 0 to 1, `[rows, cols]`.
    """
    if bool(mask.all()):
        out = separable(rows, cols, image)
        return out, torch.ones(out.shape[-2:], dtype=torch.float32, device=image.device)
    weight = mask.to(image.dtype)
    values = torch.where(mask, image, torch.zeros((), dtype=image.dtype, device=image.device))
    coverage = separable(rows, cols, weight)
    out = separable(rows, cols, values) / coverage.clamp_min(1e-6)
    return torch.where(coverage > 1e-6, out, torch.zeros_like(out)), coverage


def degrade(
    image: Tensor, ratio: int, mtf_gain: float | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Filter a whole image with the PSF and sample it at the centres of the coarse pixels.

    Args:
        image: `[bands, rows, cols]`, float32; rows and cols beyond a multiple of `ratio` are left out.
        ratio: integer ratio, at least 2.
        mtf_gain: gain of the MTF at the coarse Nyquist, or None for block means.
        mask: `[rows, cols]`, True where valid; None for all.

    Returns:
        `[bands, rows // ratio, cols // ratio]` and its mask (coverage of at least `MIN_COVERAGE`).
    """
    height, width = image.shape[-2] // ratio * ratio, image.shape[-1] // ratio * ratio
    image = image[..., :height, :width]
    valid = (
        torch.ones(height, width, dtype=torch.bool, device=image.device)
        if mask is None
        else mask[:height, :width]
    )
    rows = decimation_matrix((0, height // ratio), (0, height), ratio, height, mtf_gain)
    cols = decimation_matrix((0, width // ratio), (0, width), ratio, width, mtf_gain)
    out, coverage = masked_separable(rows, cols, image, valid)
    return out, coverage >= MIN_COVERAGE


def interpolate(image: Tensor, ratio: int) -> Tensor:
    """Interpolate a whole image `[..., rows, cols]` to `[..., rows * ratio, cols * ratio]` (cubic, Keys)."""
    height, width = image.shape[-2:]
    rows = interpolation_matrix((0, height * ratio), (0, height), ratio, height)
    cols = interpolation_matrix((0, width * ratio), (0, width), ratio, width)
    return separable(rows, cols, image)


def fill_invalid(image: Tensor, mask: Tensor, passes: int) -> Tensor:
    """Extend valid pixels into invalid ones by `passes` pixels, as means of valid neighbours (3 x 3).

    What lies further from any valid pixel becomes 0. A filter that reaches no further than `passes` from a
    valid pixel therefore sees no nodata value.

    Args:
        image: `[bands, rows, cols]`.
        mask: `[rows, cols]`, True where valid.
        passes: reach in pixels.
    """
    if bool(mask.all()):
        return image
    zero = torch.zeros((), dtype=image.dtype, device=image.device)
    values = torch.where(mask, image, zero)
    known = mask.to(image.dtype)
    for _ in range(passes):
        count = torch.nn.functional.avg_pool2d(known[None, None], 3, 1, 1)[0, 0]
        mean = torch.nn.functional.avg_pool2d(values[None], 3, 1, 1)[0] / count.clamp_min(1e-6)
        grown = (known == 0) & (count > 1e-6)
        values = torch.where(grown, mean, values)
        known = torch.where(grown, torch.ones_like(known), known)
    return values
