# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel regression of the HS image's coefficients on learned features of the fine images, solved on the scene itself.

A Gaussian process whose kernels are learned, and whose data are this scene's own coarse pixels: with D the HS sensor's
degradation and f(s) the features of a fine pixel s, coefficients are modelled as

    x(s) = sum over kernels of GP(variance a_t * <f_t(s), f_t(s')> * exp(-|s - s'|^2 / (2 l_t^2)))
    z    = D x + noise

D is applied to the features, so that what is learned on coarse pixels holds for fine ones (change of support, as in
area-to-point kriging, Kyriakidis, Geographical Analysis 36(3), 2004). Afterwards the guide's own equation, guide =
A x + error, is met as far as it is known to hold, and of the way from the closed form's coefficients to these a share
is gone. Features, what the kernels are worth, and that share are learned from pairs with a known truth
(`training/kernel.py`); the regression itself is fitted to every scene anew, block by block.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ..control import Control
from ..degradation import (
    MIN_COVERAGE,
    Range,
    coarse_support,
    decimation_matrix,
    fill_invalid,
    gaussian_sigma,
    psf_reach,
    separable,
)
from ..device import give_back_memory
from ..estimate import TILE_CACHE_BYTES
from ..models.kernel_features import KernelFeatures
from ..models.pretrained import from_pretrained
from ..scene import MomentAccumulator, Scene, Tile
from ..weights import SHIPPED
from .context import STRIP_BYTES, STRIP_COPIES, Area, Window, coefficients_by_strips, inner
from .injection import ridge_solve
from .kernel_block import KernelBlock, matrix_bytes, regress_area
from .learned_planes import LIMIT, MANY_BANDS, ComponentStatistics, Subspace, expanded
from .linear_model import ROUNDING
from .lmmse import LMMSE
from .subspace import coarse_windows

WEIGHTS = "kernel"
"""Name of the shipped weights."""
KERNEL_COMPONENTS = 12
"""Coefficients that are regressed."""
GUIDE_INPUTS, ESTIMATE_INPUTS = 3, 6
INPUTS = GUIDE_INPUTS + ESTIMATE_INPUTS + 2
"""Planes that the features are made of: axes of the guide's logarithms, the closed form's coefficients, ratio and
noise."""
FACTS = 11
"""Numbers that are known of a component: 1, explained share, roughness, detail over scale, place, ratio, guide bands,
noise, what is left unexplained (logarithm), pixels to learn from (logarithm), and by how much (logarithm) these are
fewer than `FEW_PIXELS`."""
FEW_PIXELS = 144
"""With fewer valid coarse pixels than this in a block, what was learned on larger ones is corrected by the last fact,
which is 0 elsewhere and was learned on small scenes alone."""
BLOCK, MARGIN, OVERLAP = 28, 6, 3
"""Coarse pixels of a block at most, around it that are regressed on as well, and over which blocks blend."""
LEAST_PIXELS = 16
"""Valid coarse pixels that a block's regression needs."""
FEATURE_FILL = 8
"""Pixels by which what features are made of is extended into gaps, so that no feature sees their edges."""
GAP_NOISE = 0.5
"""Noise variance, in the target's own, of a coarse pixel whose ground is not known at all; less so for a part of it."""
WEAK_AXIS = 1e-3
"""Axes of the guide of less than this share of the first one's variance are left out."""
LEAST_NOISE = LEAST_UNEXPLAINED = 1e-4
MANY_PIXELS = 600


@dataclass(frozen=True)
class _Kept:
    """A block's coefficients, in half precision about their means: neighbouring tiles ask for them again.

    Rounding changes a coefficient by a 2048th of what it differs from the mean, at most.

    Attributes:
        values: `[K, rows, cols]` float16, standardised; float32 and as it is where it is the closed form's.
        centre, scale: `[K, 1, 1]`.
    """

    values: Tensor
    centre: Tensor
    scale: Tensor

    @classmethod
    def rounded(cls, image: Tensor) -> _Kept:
        """Return what is kept of `[K, rows, cols]`."""
        scale, centre = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
        scale = scale.clamp_min(1e-30)
        return cls(((image - centre) / scale).half(), centre, scale)

    @classmethod
    def as_it_is(cls, image: Tensor) -> _Kept:
        """Return what is kept of the closed form's coefficients where nothing could be regressed."""
        one = torch.ones((), device=image.device)
        return cls(image.clone(), torch.zeros_like(one), one)

    def part(self, index: Window) -> Tensor:
        """Return some of it, float32."""
        return self.values[index].float() * self.scale + self.centre


class KernelRegression:
    """The regression of a whole scene, by blocks that blend into each other and do not depend on tiles.

    Args:
        closed: the fitted closed form.
        subspace: its basis.
        statistics: of the components.
        model: the learned part; None for the shipped one.
    """

    def __init__(
        self,
        closed: LMMSE,
        subspace: Subspace,
        statistics: ComponentStatistics,
        model: KernelFeatures | None = None,
    ) -> None:
        self.closed, self.subspace, self.statistics = closed, subspace, statistics
        self._model = model
        self._cache: OrderedDict[tuple[int, int, int], _Kept] = OrderedDict()

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn how the guide depends on the coefficients, both in register; see `FusionMethod.fit`."""
        self.scene, self.control = scene, control
        self.model = (self._model or shipped_model()).to(scene.device)
        registration, own = self.closed.registration, self.closed.subspace
        moments = MomentAccumulator()
        for window in coarse_windows(scene, own, self.closed.guide_mean, 0, control, registration):
            keep = window.own(window.pair.mask)
            joint = torch.cat([window.pair.coefficients, window.pair.guide])
            moments.update(window.own(joint)[:, keep])
        mean, covariance = moments.compute()
        rank = own.rank
        self.guide_mean = mean[rank:] + self.closed.guide_mean
        rounding = (ROUNDING * self.guide_mean) ** 2 + 1e-30  # of a flat band nothing else is left
        self.guide_scale = (covariance.diagonal()[rank:] + rounding).sqrt()
        self.mean = mean[:rank]
        cross = covariance[:rank, rank:] / self.guide_scale
        self.mixing = ridge_solve(covariance[:rank, :rank], cross, 1e-4).T
        left = 1.0 - 2 * (self.mixing * cross.T).sum(dim=1)
        left = left + ((self.mixing @ covariance[:rank, :rank]) * self.mixing).sum(dim=1)
        self.unexplained = left.clamp(0.0, 1.0)
        self.axes, self.axis_mean = guide_axes(self.statistics)

    @property
    def block_bytes(self) -> int:
        """About the working memory of the largest block, in bytes."""
        context = math.ceil(self._reach / self.scene.ratio) + 1
        known, fine = 1, 1
        for size in self.scene.coarse_shape:
            known *= min(size, BLOCK + 2 * MARGIN)
            fine *= min(size, BLOCK + 2 * (MARGIN + context)) * self.scene.ratio
        regressing = matrix_bytes(KERNEL_COMPONENTS, known) + fine * self.model.pixel_bytes
        image = 4 * self.scene.hs.bands * math.prod(self.scene.shape)
        return max(regressing, STRIP_COPIES * min(STRIP_BYTES, image))

    @property
    def _reach(self) -> float:
        """Fine pixels beyond what is regressed on that its features depend on."""
        registration = self.closed.registration
        farthest = max(abs(s) for s in registration.shift)
        return psf_reach(self.scene.ratio, registration.mtf_gain) + farthest + self.model.reach

    def coefficients(self, tile: Tile, count: int) -> Tensor:
        """Return the first coefficients of a tile, `[count, rows, cols]`."""
        rows, cols = (
            _touched(area, size, self.scene.ratio)
            for area, size in zip((tile.rows, tile.cols), self.scene.coarse_shape)
        )
        shape = tile.rows[1] - tile.rows[0], tile.cols[1] - tile.cols[0]
        out = torch.zeros(count, *shape, device=self.scene.device)
        for row, row_block in rows:
            for col, col_block in cols:
                area = tuple(
                    _predicted(block, size, self.scene.ratio)
                    for block, size in zip((row_block, col_block), self.scene.coarse_shape)
                )
                common = tuple(
                    (max(a[0], t[0]), min(a[1], t[1])) for a, t in zip(area, (tile.rows, tile.cols))
                )
                if any(c[0] >= c[1] for c in common):
                    continue
                values = self._solved(row, col, count, (row_block, col_block))
                shares = [
                    _share(block, size, self.scene.ratio)[c[0] - a[0] : c[1] - a[0]].to(out)
                    for block, size, a, c in zip(
                        (row_block, col_block), self.scene.coarse_shape, area, common
                    )
                ]
                source = tuple(slice(c[0] - a[0], c[1] - a[0]) for a, c in zip(area, common))
                place = tuple(slice(c[0] - t[0], c[1] - t[0]) for t, c in zip((tile.rows, tile.cols), common))
                part = values.part((slice(None), *source))
                out[(slice(None), *place)] += part * shares[0][:, None] * shares[1][None, :]
        return out

    def _solved(self, row: int, col: int, count: int, block: Area) -> _Kept:
        """Return a block's coefficients on all the pixels that it predicts; the latest are kept."""
        key = row, col, count
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        self.control.check()
        found = self._solve(count, block)
        give_back_memory()
        self._cache[key] = found
        held = sum(kept.values.nbytes for kept in self._cache.values())
        while held > TILE_CACHE_BYTES and len(self._cache) > 1:
            held -= self._cache.popitem(last=False)[1].values.nbytes
        return found

    @torch.no_grad()
    def _solve(self, count: int, block: Area) -> _Kept:
        made, estimate, window = self.block(count, block)
        area = [_predicted(b, s, self.scene.ratio) for b, s in zip(block, self.scene.coarse_shape)]
        rows, cols = (slice(a[0] - w[0], a[1] - w[0]) for a, w in zip(area, window))
        own = estimate[:, rows, cols]
        if made is None:
            return _Kept.as_it_is(own)
        found = regress_area(self.model, made, rows, cols, self.control.check)
        if found is None or not bool(torch.isfinite(found).all()):
            return _Kept.as_it_is(own)
        found = made.centre[:, None, None] + made.scale[:, None, None] * found
        return _Kept.rounded(torch.where(made.known[rows, cols], found, own))

    def block(self, count: int, block: Area) -> tuple[KernelBlock | None, Tensor, Area]:
        """Return what the regression of a block sees (None where too little is valid).

        Args:
            count: components.
            block: coarse rows and columns.

        Returns:
            It, the closed form's coefficients `[count, rows, cols]`, and the fine rows and columns of both.
        """
        scene, registration = self.scene, self.closed.registration
        ratio, gain = scene.ratio, registration.mtf_gain
        shape = scene.coarse_shape
        data = [(max(0, b[0] - MARGIN), min(s, b[1] + MARGIN)) for b, s in zip(block, shape)]
        context = math.ceil(self._reach / ratio) + 1
        window = [
            tuple(ratio * n for n in coarse_support((d[0] * ratio, d[1] * ratio), ratio, s, context))
            for d, s in zip(data, shape)
        ]
        tile = scene.tile(window[0], window[1], self.closed.halo)
        all_estimates, _ = coefficients_by_strips(self.closed, self.subspace, tile)
        top, left = tile.rows[0] - tile.fine_rows[0], tile.cols[0] - tile.fine_cols[0]
        guide = tile.guide_core
        seen = tile.guide_mask[top : top + guide.shape[1], left : left + guide.shape[2]]
        whole = inner(tile)
        known = seen & tile.hs_mask[whole[1:]].repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)
        hs = [slice(d[0] - c[0], d[1] - c[0]) for d, c in zip(data, (tile.coarse_rows, tile.coarse_cols))]
        coarse = self.subspace.coefficients(tile.hs[:, hs[0], hs[1]])[:count]
        down = tuple(
            decimation_matrix(d, w, ratio, s * ratio, gain, shift).to(guide)
            for d, w, s, shift in zip(data, window, shape, registration.shift)
        )
        coverage = separable(*down, known.to(guide)[None])[0]
        valid = tile.hs_mask[hs[0], hs[1]] & (coverage >= MIN_COVERAGE)
        if int(valid.sum()) < LEAST_PIXELS:
            return None, all_estimates[:count], (window[0], window[1])
        inside = coarse[:, valid]
        centre, scale = inside.mean(dim=1), inside.std(dim=1)
        scale = torch.maximum(scale, 1e-3 * self.statistics.scale[:count].to(scale)).clamp_min(1e-30)
        noise = self.closed.subspace.component_noise[:count].to(scale) / scale.square()
        mixing, mean = self.mixing.to(scale), self.mean.to(scale)
        standard = (guide - self.guide_mean.to(guide)[:, None, None]) / self.guide_scale.to(guide)[
            :, None, None
        ]
        rest = all_estimates[count:] - mean[count:, None, None]
        missing = standard - torch.einsum("mk,kyx->myx", mixing[:, count:], rest)
        missing = missing - (mixing[:, :count] @ (centre - mean[:count]))[:, None, None]
        image, fixed = self._planes(guide, standard, all_estimates, known, noise)
        return (
            KernelBlock(
                image,
                fixed,
                (down[0], down[1]),
                valid,
                (inside - centre[:, None]) / scale[:, None],
                noise.clamp(0.0, 1e3),
                GAP_NOISE * (1.0 - coverage[valid]).clamp_min(0.0),
                known,
                self._facts(count, noise, int(valid.sum())),
                _places(data, 1, (0.0, 0.0), scale.device),
                _places(window, ratio, registration.shift, scale.device),
                (gaussian_sigma(ratio, gain) / ratio) ** 2,
                mixing[:, :count] * scale,
                self.unexplained.to(scale),
                missing,
                (all_estimates[:count] - centre[:, None, None]) / scale[:, None, None],
                centre,
                scale,
            ),
            all_estimates[:count],
            (window[0], window[1]),
        )

    def _facts(self, count: int, noise: Tensor, pixels: int) -> Tensor:
        known, k = self.statistics, torch.arange(count, device=noise.device)

        def of(values: Tensor) -> Tensor:
            return values[:count].to(noise)

        same = torch.ones_like(noise)
        return torch.stack(
            [
                same,
                of(known.explained),
                of(known.roughness),
                of(known.detail) / of(known.scale),
                k / 8,
                same * 2.0 / self.scene.ratio,
                same * min(self.scene.guide.bands, MANY_BANDS) / MANY_BANDS,
                noise.clamp(LEAST_NOISE, 10.0).log() / 5,
                (1.0 - of(known.explained)).clamp(LEAST_UNEXPLAINED, 1.0).log() / 5,
                same * math.log(pixels / MANY_PIXELS) / 2,
                same * max(0.0, math.log(FEW_PIXELS / pixels)) / 2,
            ],
            dim=1,
        )

    def _planes(
        self, guide: Tensor, standard: Tensor, estimates: Tensor, seen: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the network's planes and the features that are not learned, extended into gaps."""
        known = self.statistics
        column = (slice(None), None, None)
        wide = expanded(guide, known.guide_mean)
        deviation = known.expanded_covariance.diagonal().clamp_min(1e-30).sqrt().to(guide)[column]
        relative = (wide - known.expanded_mean.to(guide)[column]) / deviation
        axes = torch.einsum("am,myx->ayx", self.axes.to(guide), wide - self.axis_mean.to(guide)[column])
        k = min(len(estimates), ESTIMATE_INPUTS)
        units = (known.sign[:k] / known.scale[:k].clamp_min(1e-30)).to(guide)[column]
        own = estimates[:k] * units
        own = functional.pad(own, (0, 0, 0, 0, 0, ESTIMATE_INPUTS - k))
        constants = torch.tensor(
            [2.0 / self.scene.ratio, float(noise.clamp(LEAST_NOISE, 10.0).log().mean()) / 5]
        )
        flat = constants.to(guide)[column].expand(-1, *guide.shape[1:])

        def safe(image: Tensor) -> Tensor:
            return fill_invalid(image.clamp(-LIMIT, LIMIT), seen, FEATURE_FILL)

        image = torch.cat([safe(axes), safe(own), flat])
        logs = (
            relative[len(guide) :]
            * (known.expanded_covariance.diagonal()[len(guide) :] > 0).to(guide)[column]
        )
        sizes = own[:3].abs() / 0.6  # the deviation of the size of a normal number
        return image, {
            "linear": safe(standard),
            "expanded": safe(torch.cat([standard, logs])),
            "estimate": safe(torch.cat([own[:k], sizes[: min(k, 3)]])),
        }


@lru_cache(maxsize=1)
def _shipped() -> KernelFeatures:
    return cast(KernelFeatures, from_pretrained(SHIPPED / WEIGHTS, KernelFeatures))


def shipped_model() -> KernelFeatures:
    """Return the learned part that ships.

    Raises:
        HyperSharpError: code `no_weights`; it is missing or damaged.
    """
    return _shipped()


def guide_axes(statistics: ComponentStatistics) -> tuple[Tensor, Tensor]:
    """Return what turns the guide and its logarithms into its first axes, `[GUIDE_INPUTS, 2 bands]`, and their mean.

    Principal axes of the bands' logarithms (of the bands themselves where there is none), each band in units of its
    deviation; axes of little variance are damped, missing ones 0. Signs make them brightnesses.
    """
    covariance, m = statistics.expanded_covariance, len(statistics.guide_mean)
    variance = covariance.diagonal()
    pick = torch.arange(m) + m * (variance[m:] > 1e-12)
    deviation = variance[pick].clamp_min(1e-30).sqrt()
    values, vectors = torch.linalg.eigh(covariance[pick][:, pick] / deviation[:, None] / deviation[None, :])
    axes = torch.zeros(GUIDE_INPUTS, 2 * m, dtype=covariance.dtype)
    first = values[-1].clamp_min(1e-12)
    for i in range(min(m, GUIDE_INPUTS)):
        value, vector = values[-1 - i], vectors[:, -1 - i]
        if value <= WEAK_AXIS * first:
            break
        vector = vector if float(vector.sum()) >= 0 else -vector
        axes[i, pick] = vector / deviation / value.sqrt() * (value / first) ** 0.25
    return axes.float(), statistics.expanded_mean.float()


def _places(
    areas: list[Range], step: int, shift: tuple[float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the centres of the pixels of (rows, cols), in coarse pixels, `step` to a coarse one."""
    rows, cols = (
        (torch.arange(*area, device=device, dtype=torch.float32) + 0.5 - s) / step
        for area, s in zip(areas, shift)
    )
    return rows, cols


def _blocks(size: int) -> list[Range]:
    """Return the blocks of an axis of so many coarse pixels."""
    count = max(1, math.ceil(size / BLOCK))
    edges = [round(size * i / count) for i in range(count + 1)]
    return list(zip(edges, edges[1:]))


def _predicted(block: Range, size: int, ratio: int) -> Range:
    """Return the fine pixels that a block predicts."""
    return max(0, block[0] - OVERLAP) * ratio, min(size, block[1] + OVERLAP) * ratio


def _touched(area: Range, size: int, ratio: int) -> list[tuple[int, Range]]:
    """Return the blocks, by number, that have a part in fine pixels."""
    found = []
    for number, block in enumerate(_blocks(size)):
        start, stop = _predicted(block, size, ratio)
        if start < area[1] and stop > area[0]:
            found.append((number, block))
    return found


def _share(block: Range, size: int, ratio: int) -> Tensor:
    """Return a block's share of each fine pixel that it predicts; neighbours' shares add up to 1."""
    start, stop = _predicted(block, size, ratio)
    place = (torch.arange(start, stop) + 0.5) / ratio
    share = torch.ones(stop - start)
    if block[0] > 0:
        share = share * ((place - (block[0] - OVERLAP)) / (2 * OVERLAP)).clamp(0, 1)
    if block[1] < size:
        share = share * (((block[1] + OVERLAP) - place) / (2 * OVERLAP)).clamp(0, 1)
    return share
