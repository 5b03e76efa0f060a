# SPDX-License-Identifier: GPL-2.0-or-later
"""The HS image's own subspace, noise-aware, from the second moments of the first pass alone.

What the subspace and unmixing methods share: band noise, whitened principal components with optimal shrinkage,
and the pair's coarse images in that subspace, window by window.

Sources: noise by regression, Roger and Arnold, Int. J. Remote Sens. 17(10), 1996, and Bioucas-Dias and
Nascimento, IEEE TGRS 46(8), 2008 (HySime); noise-whitened components, Green et al., IEEE TGRS 26(1), 1988;
shrinkage of components, Gavish and Donoho, IEEE Trans. Inf. Theory 63(4), 2017, eq. 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from ..control import Control
from ..degradation import Range, decimation_matrix, fill_invalid, interpolation_matrix, masked_separable
from ..scene import COARSE_TILE, FILL_REACH, FULL_COVERAGE, Scene, SceneStatistics, Tile
from .registration import Registration

REGRESSORS = 64
"""Most neighbouring bands that a band is regressed on to find its noise."""
SCALE_FLOOR = 3e-3
"""Least noise that whitening assumes, relative to a band's own standard deviation."""
MIN_SHRINKAGE = 0.05
"""Components of which less than this is signal are left out of the subspace."""
MAX_RANK = 16


def band_noise(covariance: Tensor, count: int) -> Tensor:
    """Return each band's noise standard deviation: what its neighbours in the spectrum do not explain.

    Args:
        covariance: `[bands, bands]` float64, of `count` pixels.
        count: number of pixels; limits the number of regressors and unbiases the residual variance.

    Returns:
        `[bands]`, in the image's units.
    """
    bands = len(covariance)
    used = min(bands - 1, REGRESSORS, max(4, count // 4))
    if used < 1:
        return torch.zeros(bands, dtype=covariance.dtype)
    free = max(1, count - used - 1)
    band = torch.arange(bands)
    first = (band - used // 2).clamp(0, bands - used - 1)
    near = first[:, None] + torch.arange(used + 1)[None, :]
    near = near[near != band[:, None]].view(bands, used)
    scale = covariance.diagonal().clamp_min(1e-300).rsqrt()[near]
    system = covariance[near[:, :, None], near[:, None, :]] * scale[:, :, None] * scale[:, None, :]
    cross = (covariance[near, band[:, None]] * scale)[:, :, None]
    # The small ridge keeps exactly collinear bands solvable; it adds nothing visible to the residual.
    system = system + 1e-8 * torch.eye(used, dtype=system.dtype)
    explained = (cross * torch.linalg.solve(system, cross)).sum(dim=(1, 2))
    noise = (covariance.diagonal() - explained) * count / free
    return noise.clamp_min(0).sqrt()


def shrinkage(eigenvalues: Tensor, aspect: float) -> Tensor:
    """Return the share of each sample component that is signal, 0 to 1 (Gavish and Donoho 2017, eq. 7).

    Args:
        eigenvalues: `[n]` of the sample covariance, in units of the noise variance.
        aspect: bands over pixels.
    """
    inside = ((eigenvalues - aspect - 1.0) ** 2 - 4.0 * aspect).clamp_min(0.0).sqrt()
    share = inside / eigenvalues.clamp_min(1e-12)
    return torch.where(eigenvalues > (1.0 + aspect**0.5) ** 2, share, torch.zeros_like(share))


@dataclass
class Subspace:
    """Noise-whitened principal components of the HS image.

    Attributes:
        mean: `[bands]` float64.
        noise: `[bands]` float64, standard deviation of each band's noise.
        encode: `[rank, bands]`: coefficients of `hs - mean`.
        decode: `[bands, rank]`: image of coefficients.
        variance: `[rank]`: of the coefficients.
        component_noise: `[rank]`: noise variance of the coefficients (1 where whitening was complete).
        residual: `[bands, bands]`: what `hs - mean` holds outside the subspace, denoised.
    """

    mean: Tensor
    noise: Tensor
    encode: Tensor
    decode: Tensor
    variance: Tensor
    component_noise: Tensor
    residual: Tensor

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.decode.shape[1]

    def centred(self, hs: Tensor) -> Tensor:
        """Return `hs - mean` for `[bands, rows, cols]`."""
        return hs - self.mean.to(hs)[:, None, None]


def fit_subspace(statistics: SceneStatistics, max_rank: int = MAX_RANK) -> Subspace:
    """Return the subspace of the HS image: the components above the noise, at most `max_rank` of them."""
    covariance, count = statistics.hs_covariance, statistics.count
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    noise = band_noise(covariance, count)
    scale = torch.maximum(noise, SCALE_FLOOR * deviation)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    eigenvalues, vectors = torch.linalg.eigh(covariance / scale[:, None] / scale[None, :])
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
    vectors = vectors * torch.where(
        vectors.sum(dim=0) < 0, -1.0, 1.0
    )  # a sign that does not depend on LAPACK
    component_noise = (vectors**2 * ((noise / scale) ** 2)[:, None]).sum(dim=0)
    share = shrinkage(eigenvalues / component_noise.clamp_min(1e-12), len(covariance) / count)
    alive = (share > MIN_SHRINKAGE) & (eigenvalues > 1e-10 * eigenvalues[0])
    rank = max(1, min(max_rank, int(alive.sum())))
    kept, rest = vectors[:, :rank], vectors[:, rank:]
    return Subspace(
        statistics.hs_mean,
        noise,
        kept.T / scale[None, :],
        kept * scale[:, None],
        eigenvalues[:rank],
        component_noise[:rank],
        (rest * scale[:, None] * share[rank:]) @ (rest.T / scale[None, :]),
    )


def apply(matrix: Tensor, image: Tensor) -> Tensor:
    """Return `matrix @ image` over the bands: `[n, bands]` and `[bands, rows, cols]` to `[n, rows, cols]`."""
    flat = image.reshape(len(image), -1)
    return (matrix.to(flat) @ flat).view(len(matrix), *image.shape[1:])


def coarse_guide(tile: Tile, mtf_gain: Optional[float]) -> tuple[Tensor, Tensor]:
    """Return the guide on all coarse pixels of a tile, `[guide bands, rows, cols]`, and its coverage, 0 to 1."""
    height, width = tile.scene_coarse[0] * tile.ratio, tile.scene_coarse[1] * tile.ratio
    return masked_separable(
        decimation_matrix(tile.coarse_rows, tile.fine_rows, tile.ratio, height, mtf_gain),
        decimation_matrix(tile.coarse_cols, tile.fine_cols, tile.ratio, width, mtf_gain),
        tile.guide,
        tile.guide_mask,
    )


@dataclass
class CoarsePair:
    """Both images of a tile on its coarse pixels, centred, invalid pixels filled (0, the mean, far from any).

    Attributes:
        coefficients: `[rank, rows, cols]`.
        guide: `[guide bands, rows, cols]`.
        hs_mask: `[rows, cols]`: validity of the HS pixel.
        mask: `[rows, cols]`: both valid, the guide in full.
    """

    coefficients: Tensor
    guide: Tensor
    hs_mask: Tensor
    mask: Tensor


def grown(mask: Tensor, passes: int) -> Tensor:
    """Return the mask grown by `passes` pixels."""
    if bool(mask.all()):
        return mask
    size = 2 * passes + 1
    return torch.nn.functional.max_pool2d(mask[None, None].float(), size, 1, passes)[0, 0] > 0


def coarse_pair(tile: Tile, subspace: Subspace, guide_mean: Tensor) -> CoarsePair:
    """Return both images of a tile in the subspace and at coarse resolution."""
    coefficients = apply(subspace.encode, subspace.centred(tile.hs)) * grown(tile.hs_mask, FILL_REACH)
    low, coverage = coarse_guide(tile, tile.mtf_hs)
    centred = low - guide_mean.to(low)[:, None, None]
    seen = coverage > 1e-3
    centred = torch.where(seen, fill_invalid(centred, seen, FILL_REACH), centred.new_zeros(()))
    return CoarsePair(coefficients, centred, tile.hs_mask, tile.hs_mask & (coverage >= FULL_COVERAGE))


@dataclass
class CoarseWindow:
    """A window of a pass over the coarse scene: the pair with context, and which part is the window's own.

    Attributes:
        pair: on `rows x cols`.
        rows, cols: coarse pixels of the scene that the pair covers.
        own_rows, own_cols: those that this window stands for.
    """

    pair: CoarsePair
    rows: Range
    cols: Range
    own_rows: Range
    own_cols: Range

    def own(self, image: Tensor) -> Tensor:
        """Return the window's own part of `[..., rows, cols]`."""
        top, left = self.own_rows[0] - self.rows[0], self.own_cols[0] - self.cols[0]
        bottom, right = self.own_rows[1] - self.rows[0], self.own_cols[1] - self.cols[0]
        return image[..., top:bottom, left:right]


def coarse_windows(
    scene: Scene,
    subspace: Subspace,
    guide_mean: Tensor,
    context: int,
    control: Control,
    registration: Registration,
    side: int = COARSE_TILE,
) -> Iterator[CoarseWindow]:
    """Iterate over the scene in the subspace and at coarse resolution, with context around each window."""
    height, width = scene.coarse_shape
    r = scene.ratio
    for r0 in range(0, height, side):
        for c0 in range(0, width, side):
            control.check()
            rows, cols = (r0, min(height, r0 + side)), (c0, min(width, c0 + side))
            tile = scene.tile(
                (rows[0] * r, rows[1] * r), (cols[0] * r, cols[1] * r), context + registration.margin
            )
            tile = registration.apply(tile)
            pair = coarse_pair(tile, subspace, guide_mean)
            yield CoarseWindow(pair, tile.coarse_rows, tile.coarse_cols, rows, cols)


def one_scale_down(window: CoarseWindow, image: Tensor, scene: Scene, mtf_gain: float) -> Tensor:
    """Return the detail of a coarse image that the same sensor `ratio` times coarser still would lose.

    Args:
        window: with a context of at least `detail_context(ratio)`.
        image: `[channels, rows, cols]` on the window's pixels.
        mtf_gain: gain of the degradation at Nyquist.

    Returns:
        `image - interpolated(degraded(image))` on the window's own pixels.
    """
    r = scene.ratio
    sides = []
    for area, own, size in (
        (window.rows, window.own_rows, scene.coarse_shape[0]),
        (window.cols, window.own_cols, scene.coarse_shape[1]),
    ):
        small = -(-size // r)
        reduced = (max(0, own[0] // r - 2), min(small, -(-own[1] // r) + 2))
        up = interpolation_matrix(own, reduced, r, small)
        sides.append(up @ decimation_matrix(reduced, area, r, size, mtf_gain))
    rows, cols = (side.to(image) for side in sides)
    return window.own(image) - rows @ image @ cols.T


def detail_context(ratio: int) -> int:
    """Return the coarse pixels around a window that `one_scale_down` looks at (PSF of any usual gain)."""
    return 7 * ratio
