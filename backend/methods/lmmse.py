# SPDX-License-Identifier: GPL-2.0-or-later
"""LMMSE: the linear minimum-mean-square estimate of the missing detail, in the HS image's own subspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..control import Control
from ..degradation import (
    INTERPOLATION_REACH,
    separable,
)
from ..scene import FILL_REACH, MomentAccumulator, Scene, Tile
from .base import FusionMethod
from .blocks import Side
from .injection import add_detail, ridge_solve, summary
from .linear_model import (
    ROUNDING,
    check_frame,
    describe_registration,
    describe_subspace,
    find_registration,
    moves_back,
)
from .subspace import (
    CoarsePair,
    apply,
    coarse_pair,
    coarse_windows,
    detail_context,
    fit_subspace,
    grown,
    one_scale_down,
)

WINDOW = (1.0, 4.0, 6.0, 4.0, 1.0)
"""Weights of the local statistics along each axis, in coarse pixels (binomial, standard deviation 1)."""
GUIDE_RIDGE = 1e-4
"""Ridge of local gains, relative to the guide's mean local variance."""
FILTER_RIDGE = 1e-4
BACK_PROJECTION_REACH = 2
"""Coarse pixels to which the back-projection's operator is cut."""
GAIN_REACH = FILL_REACH + 6
"""Coarse pixels that a detail looks at: filling, filters, local window and interpolation."""


def blur(image: Tensor) -> Tensor:
    """Return `[channels, rows, cols]` averaged over `WINDOW`, borders replicated."""
    out = functional.pad(image[:, None], (len(WINDOW) // 2,) * 4, mode="replicate")[:, 0]
    for axis in (1, 2):
        size = image.shape[axis]
        parts = [out.narrow(axis, k, size) for k in range(len(WINDOW))]
        out = parts[0] * (WINDOW[0] / sum(WINDOW))
        for weight, part in zip(WINDOW[1:], parts[1:]):
            out.add_(part, alpha=weight / sum(WINDOW))
    return out


def neighbourhoods(image: Tensor, reach: int) -> Tensor:
    """Return `[channels * (2 reach + 1)**2, rows * cols]`: each pixel's neighbourhood, borders replicated."""
    padded = functional.pad(image[:, None], (reach,) * 4, mode="replicate")
    columns = functional.unfold(padded, 2 * reach + 1)
    return columns.reshape(-1, columns.shape[-1])


class LMMSE(FusionMethod):
    """Subspace LMMSE detail injection with local statistics and back-projection: no SRF, no endmembers.

    Of the family of Hardie, Eismann and Wilson's MAP estimators (IEEE TIP 13(9), 2004) and of GLP injection
    (Aiazzi et al. 2006), written for this project. With `z` the coefficients of the HS image in its
    noise-whitened subspace, `g` the guide, `D` the HS sensor's degradation and `U` cubic interpolation:

    1. `z` is denoised on the coarse grid by its own Wiener filter: from the neighbourhood of the pixel in `z`
       and in `D g`, with the weights `e - n C^-1 e` (C the neighbourhood's covariance, n the noise variance).
    2. Gains W: local covariance of `z` and `D g` over the local covariance of `D g`, each plus `prior` times
       its mean over the scene, where the prior gain is the regression of `z`'s detail on the guide's detail one
       scale down.
    3. `x = U z + W (g - U D g)`, then back-projection `x += U (D U)^-1 (z - D x)`, iterated on the coarse grid
       and damped where `z` is noise.
    4. What the HS image holds outside the subspace is denoised by component shrinkage and interpolated.

    Options:
        rank: most components to keep.
        prior: weight of the scene-wide gain against the local one.
        iterations: of the back-projection; 0 for none.
        register: estimate the PSF's gain and the shift between the images from the pair, and use them where they
            explain it clearly better than the nominal ones.
        frame: "hs" or "guide": on whose ground the result lies where the two are shifted against each other.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "rank": 16,
        "prior": 0.6,
        "iterations": 4,
        "register": True,
        "frame": "guide",
    }

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        check_frame(self.parameters)
        self.iterations = int(self.parameters["iterations"])

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the subspace, PSF and shift, the Wiener filters and the scene-wide gains."""
        statistics = scene.statistics(scene.mtf_hs, control)
        self.guide_mean = statistics.guide_mean
        self.subspace = fit_subspace(statistics, int(self.parameters["rank"]))
        self.registration, self.estimate = find_registration(
            scene, self.subspace, bool(self.parameters["register"]), control
        )
        # From the outside in: what the gains look at, D, the iterations, interpolation of the correction.
        self.halo = GAIN_REACH - FILL_REACH + self.registration.margin
        if self.iterations:
            iterated = INTERPOLATION_REACH + BACK_PROJECTION_REACH * (self.iterations - 1)
            self.halo += self.registration.psf_pixels + iterated
        self.moves_back = moves_back(self.parameters, self.registration)
        self.halo += self.registration.margin if self.moves_back else 0
        self._fit_filters(scene, control)
        self._fit_gains(scene, control)

    def _fit_filters(self, scene: Scene, control: Control) -> None:
        """Learn each coefficient's Wiener filter on the coarse grid."""
        rank = self.subspace.rank
        # A guide of many bands enters with its central pixel only: the neighbourhood would be all guide.
        self.guide_reach = 1 if scene.guide.bands <= 6 else 0
        sums, count = None, 0
        for window in coarse_windows(scene, self.subspace, self.guide_mean, 2, control, self.registration):
            keep = window.own(window.pair.mask).reshape(-1)
            vectors = self._vectors(window.pair, window.own, keep)
            product = torch.matmul(vectors, vectors.transpose(1, 2)).cpu()
            sums = product if sums is None else sums + product
            count += int(keep.sum())
        covariance = sums / max(1, count)
        scale = covariance.diagonal(dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
        system = covariance * scale[:, :, None] * scale[:, None, :]
        system = system + FILTER_RIDGE * torch.eye(system.shape[-1], dtype=system.dtype)
        unit = torch.zeros(rank, system.shape[-1], 1, dtype=system.dtype)
        centre = 12  # of the 5 x 5 neighbourhood
        unit[:, centre, 0] = scale[:, centre]
        inverse = torch.linalg.solve(system, unit)[..., 0] * scale
        # The noise cannot exceed what the neighbourhood leaves unexplained.
        noise = torch.minimum(self.subspace.component_noise, 1.0 / inverse[:, centre])
        self.filters = -noise[:, None] * inverse
        self.filters[:, centre] += 1.0
        self.reliability = self.filters[:, centre].clone()

    def _vectors(self, pair: CoarsePair, own: Any, keep: Tensor) -> Tensor:
        """Return `[rank, neighbours, kept pixels]` float64: what the Wiener filter of each component sees."""
        shape = pair.coefficients.shape[1:]

        def taken(columns: Tensor) -> Tensor:
            cut = own(columns.view(len(columns), *shape))
            return cut.reshape(len(columns), -1)[:, keep].to(torch.float64)

        guide = taken(neighbourhoods(pair.guide, self.guide_reach))
        return torch.stack([torch.cat([taken(neighbourhoods(z[None], 2)), guide]) for z in pair.coefficients])

    def _denoise(self, pair: CoarsePair) -> Tensor:
        """Return the denoised coefficients `[rank, rows, cols]`."""
        filters = self.filters.to(pair.coefficients)
        shape = pair.coefficients.shape
        guide = apply(filters[:, 25:], neighbourhoods(pair.guide, self.guide_reach).view(-1, *shape[1:]))
        kernels = filters[:, :25].reshape(-1, 1, 5, 5)
        padded = functional.pad(pair.coefficients[None], (2,) * 4, mode="replicate")
        return functional.conv2d(padded, kernels, groups=shape[0])[0] + guide

    def _fit_gains(self, scene: Scene, control: Control) -> None:
        """Learn the scene-wide gains one scale down, and the guide's mean local covariance."""
        moments, local, count = MomentAccumulator(), None, 0
        context = detail_context(scene.ratio) + 2
        for window in coarse_windows(
            scene, self.subspace, self.guide_mean, context, control, self.registration
        ):
            joint = torch.cat([self._denoise(window.pair), window.pair.guide])
            keep = window.own(window.pair.mask)
            moments.update(one_scale_down(window, joint, scene, self.registration.mtf_gain)[:, keep])
            _, variance = self._local_moments(window.pair.coefficients[:1], window.pair)
            total = window.own(variance)[:, keep].to(torch.float64).sum(dim=1).cpu()
            local = total if local is None else local + total
            count += int(keep.sum())
        rank, bands = self.subspace.rank, scene.guide.bands
        _, covariance = moments.compute()
        rounding = (ROUNDING * self.guide_mean) ** 2 + 1e-30
        square = covariance[rank:, rank:] + torch.diag(rounding)
        self.gains = ridge_solve(square, covariance[rank:, :rank], 1e-6).T
        guide_variance = (local / max(1, count)).view(bands, bands)
        floor = GUIDE_RIDGE * guide_variance.diagonal().clamp_min(0) + rounding
        self.guide_variance = guide_variance + torch.diag(floor)
        explained = (self.gains @ covariance[rank:, rank:] @ self.gains.T).diagonal()
        self.detail_r2 = explained / covariance.diagonal()[:rank].clamp_min(1e-300)

    def _local_moments(self, coefficients: Tensor, pair: CoarsePair) -> tuple[Tensor, Tensor]:
        """Return local covariances: `[components * guide bands, ...]` and `[guide bands squared, ...]`."""
        shape = coefficients.shape[1:]
        mask = pair.mask
        whole = bool(mask.all())
        weight = mask.to(coefficients)[None]
        norm = None if whole else blur(weight).clamp_min(1e-3)

        def average(image: Tensor) -> Tensor:
            return blur(image) if norm is None else blur(image * weight) / norm

        guide = pair.guide
        z_mean, g_mean = average(coefficients), average(guide)
        cross = average((coefficients[:, None] * guide[None]).reshape(-1, *shape))
        square = average((guide[:, None] * guide[None]).reshape(-1, *shape))
        cross = cross - (z_mean[:, None] * g_mean[None]).reshape(-1, *shape)
        return cross, square - (g_mean[:, None] * g_mean[None]).reshape(-1, *shape)

    def local_gains(self, coefficients: Tensor, pair: CoarsePair) -> Tensor:
        """Return W `[rank, guide bands, rows, cols]` on the coarse grid."""
        rank, bands = len(coefficients), len(pair.guide)
        shape = coefficients.shape[1:]
        cross, square = self._local_moments(coefficients, pair)
        prior = float(self.parameters["prior"])
        cross_prior = prior * (self.gains @ self.guide_variance)
        square_prior = prior * self.guide_variance
        # Working in units of the guide's own mean local deviation keeps the small systems well scaled.
        scale = self.guide_variance.diagonal().rsqrt()
        cross = (cross.view(rank, bands, *shape) + cross_prior.to(cross)[:, :, None, None]) * scale.to(cross)[
            None, :, None, None
        ]
        square = square.view(bands, bands, *shape) + square_prior.to(cross)[:, :, None, None]
        square = square * (scale[:, None] * scale[None, :]).to(cross)[:, :, None, None]
        solved = torch.linalg.solve(square.permute(2, 3, 0, 1), cross.permute(2, 3, 1, 0))
        return solved.permute(3, 2, 0, 1) * scale.to(cross)[None, :, None, None]

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: the estimate of the tile."""
        tile = self.registration.apply(tile)
        pair = coarse_pair(tile, self.subspace, self.guide_mean)
        clean = self._denoise(pair)
        centred = self.subspace.centred(tile.hs) * grown(tile.hs_mask, FILL_REACH)
        coarse = apply(self.subspace.residual, centred) + self.subspace.mean.to(centred)[:, None, None]
        sides = [Side(tile, axis, GAIN_REACH, self.registration.psf_pixels) for axis in (0, 1)]
        detail = self._detail(tile, clean, pair, sides)
        if self.iterations:
            clean = clean + self._correction(clean, detail, pair, sides)
        coarse = coarse + apply(self.subspace.decode, clean)
        if self.moves_back:
            back = self.registration.back((sides[0].fine, sides[1].fine), (sides[0].own, sides[1].own))
            fused = separable(back[0] @ sides[0].up, back[1] @ sides[1].up, coarse)
            return add_detail(fused, self.subspace.decode, separable(*back, detail))
        own = detail[:, sides[0].own, sides[1].own]
        return add_detail(tile.upsample(coarse), self.subspace.decode, own)

    def _detail(self, tile: Tile, clean: Tensor, pair: CoarsePair, sides: list[Side]) -> Tensor:
        """Return W (g - U D g) on the sides' fine pixels, `[rank, rows, cols]`."""
        gains = self.local_gains(clean, pair)
        up = sides[0].up, sides[1].up
        area = slice(None), sides[0].guide, sides[1].guide
        high = tile.guide[area] - self.guide_mean.to(tile.guide)[:, None, None] - separable(*up, pair.guide)
        high = high * tile.guide_mask[area[1:]]
        # One component at a time: the gains of all of them on the fine grid would be the largest array here.
        return torch.stack([(separable(*up, gain) * high).sum(dim=0) for gain in gains])

    def _correction(self, clean: Tensor, detail: Tensor, pair: CoarsePair, sides: list[Side]) -> Tensor:
        """Return what to add to the coarse coefficients so that the result, degraded, gives them back."""
        rows, cols = sides
        inner = (slice(None), rows.inner, cols.inner)
        target = clean[inner] - separable(rows.round_trip, cols.round_trip, clean)
        target = target - separable(rows.down, cols.down, detail)
        damping = self.reliability.to(clean).clamp(0, 1)[:, None, None]
        target = target * damping * pair.hs_mask[inner[1:]]
        kernels = rows.kernel(BACK_PROJECTION_REACH), cols.kernel(BACK_PROJECTION_REACH)
        correction = target.clone()
        for _ in range(self.iterations - 1):
            correction += target - separable(*kernels, correction)
        out = torch.zeros_like(clean)
        out[inner] = correction
        return out

    def describe(self) -> dict[str, Any]:
        """Return the subspace, the noise found, how well the guide explains the detail, PSF and shift."""
        return {
            **describe_subspace(self.subspace),
            "detail_r2": summary(self.detail_r2, 3),
            **describe_registration(self.registration, self.estimate),
        }
