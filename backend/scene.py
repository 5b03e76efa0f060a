# SPDX-License-Identifier: GPL-2.0-or-later
"""A pair as the methods see it: usable HS bands on the coarse grid, the guide on the fine one, tile by tile.

A method first looks at the whole scene at coarse resolution (`Scene.statistics`, `Scene.coarse_tiles`), then
fuses tiles (`Scene.tile`). Every filter, fill and interpolation works in scene coordinates with enough context,
so tiled and untiled results agree to float rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .control import Control
from .degradation import (
    INTERPOLATION_REACH,
    Range,
    coarse_support,
    decimation_matrix,
    fill_invalid,
    fine_support,
    interpolation_matrix,
    masked_separable,
    separable,
)
from .io.source import CroppedSource, DegradedSource, Source

FILL_REACH = INTERPOLATION_REACH
"""Pixels by which valid values are extended, so that interpolation at a valid pixel sees no nodata value."""
FULL_COVERAGE = 0.999
"""Coarse pixels whose degraded guide saw less valid ground than this do not enter the statistics."""
COARSE_TILE = 96
"""Side, in coarse pixels, of the tiles of a statistics pass."""
FLOAT32_ROUNDING = 2e-6
"""A band with less spread than this share of its mean is constant: what is left is rounding of the filters."""


@dataclass
class SceneStatistics:
    """Joint first and second moments of the HS image and the degraded guide, over valid coarse pixels.

    Attributes:
        count: number of coarse pixels.
        mean: `[bands + guide bands]` float64.
        covariance: `[bands + guide bands, bands + guide bands]` float64.
        bands: number of HS bands; the guide's come after them.
    """

    count: int
    mean: Tensor
    covariance: Tensor
    bands: int

    @property
    def hs_mean(self) -> Tensor:
        """`[bands]`."""
        return self.mean[: self.bands]

    @property
    def guide_mean(self) -> Tensor:
        """`[guide bands]`."""
        return self.mean[self.bands :]

    @property
    def hs_covariance(self) -> Tensor:
        """`[bands, bands]`."""
        return self.covariance[: self.bands, : self.bands]

    @property
    def guide_covariance(self) -> Tensor:
        """`[guide bands, guide bands]`."""
        return self.covariance[self.bands :, self.bands :]

    @property
    def cross_covariance(self) -> Tensor:
        """`[bands, guide bands]`."""
        return self.covariance[: self.bands, self.bands :]

    def correlation(self) -> Tensor:
        """`[bands, guide bands]`: Pearson correlation of HS bands and degraded guide bands."""
        hs = self.hs_covariance.diagonal().clamp_min(1e-300).sqrt()
        guide = self.guide_covariance.diagonal().clamp_min(1e-300).sqrt()
        return self.cross_covariance / hs[:, None] / guide[None, :]


class MomentAccumulator:
    """Mean and covariance of vectors seen in chunks, in float64 about a pilot mean (no cancellation)."""

    def __init__(self) -> None:
        self.count = 0
        self._pilot: Tensor | None = None
        self._sum: Tensor | None = None
        self._square: Tensor | None = None

    def update(self, vectors: Tensor) -> None:
        """Add `[channels, n]`."""
        if vectors.shape[1] == 0:
            return
        values = vectors.to(torch.float64)
        if self._pilot is None or self._sum is None or self._square is None:
            self._pilot = values.mean(dim=1, keepdim=True)
            self._sum = torch.zeros_like(self._pilot[:, 0])
            self._square = torch.zeros(len(values), len(values), dtype=torch.float64, device=values.device)
        values = values - self._pilot
        self.count += values.shape[1]
        self._sum += values.sum(dim=1)
        self._square.addmm_(values, values.T)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the mean `[channels]` and the covariance `[channels, channels]` (divided by n).

        Raises:
            ValueError: nothing was added.
        """
        if self._pilot is None or self._sum is None or self._square is None:
            raise ValueError("no valid pixel was seen")
        mean = self._sum / self.count
        covariance = self._square / self.count - torch.outer(mean, mean)
        return (self._pilot[:, 0] + mean).cpu(), covariance.cpu()


def without_rounding(covariance: Tensor, mean: Tensor) -> Tensor:
    """Return the covariance with exact zeros for constant channels, so that nothing regresses on their rounding."""
    varies = covariance.diagonal() > (FLOAT32_ROUNDING * mean) ** 2
    return covariance * varies[:, None] * varies[None, :]


@dataclass
class CoarseTile:
    """A tile of the first pass.

    Attributes:
        rows, cols: coarse pixels of the scene that it covers.
        hs: `[bands, rows, cols]`.
        guide: the guide degraded to the coarse grid, `[guide bands, rows, cols]`.
        mask: `[rows, cols]`, True where both are valid and the guide was seen in full.
    """

    rows: Range
    cols: Range
    hs: Tensor
    guide: Tensor
    mask: Tensor


@dataclass
class Tile:
    """A tile of the second pass: what a method may look at to fuse the fine pixels `rows` x `cols`.

    Attributes:
        rows, cols: fine pixels of the scene to fuse.
        ratio: fine pixels per coarse pixel.
        hs: `[bands, coarse rows, coarse cols]`: HS values with context, nodata filled from neighbours.
        hs_mask: validity of these coarse pixels before the filling.
        coarse_rows, coarse_cols: the coarse pixels that `hs` covers.
        guide: `[guide bands, fine rows, fine cols]`: guide values with context, nodata filled.
        guide_mask: validity of these fine pixels before the filling.
        fine_rows, fine_cols: the fine pixels that `guide` covers.
        mask: `[rows, cols]` of the tile's own pixels, True where HS and guide are valid.
        scene_coarse: size of the scene in coarse pixels (rows, cols).
        mtf_hs: gain of the HS sensor's MTF at Nyquist.
    """

    rows: Range
    cols: Range
    ratio: int
    hs: Tensor
    hs_mask: Tensor
    coarse_rows: Range
    coarse_cols: Range
    guide: Tensor
    guide_mask: Tensor
    fine_rows: Range
    fine_cols: Range
    mask: Tensor
    scene_coarse: tuple[int, int]
    mtf_hs: float
    _lowpass: dict[float | None, Tensor] = field(default_factory=dict)

    @property
    def guide_core(self) -> Tensor:
        """The guide on the tile's own pixels, `[guide bands, rows, cols]`."""
        top, left = self.rows[0] - self.fine_rows[0], self.cols[0] - self.fine_cols[0]
        return self.guide[
            :,
            top : top + self.rows[1] - self.rows[0],
            left : left + self.cols[1] - self.cols[0],
        ]

    def upsample(self, coarse: Tensor, rows: Range | None = None, cols: Range | None = None) -> Tensor:
        """Interpolate an image on `coarse_rows x coarse_cols` to the tile's own fine pixels (cubic).

        Args:
            coarse: `[..., coarse rows, coarse cols]`.
            rows, cols: coarse pixels that `coarse` covers; None for those of `hs`.
        """
        rows, cols = rows or self.coarse_rows, cols or self.coarse_cols
        return separable(
            interpolation_matrix(self.rows, rows, self.ratio, self.scene_coarse[0]),
            interpolation_matrix(self.cols, cols, self.ratio, self.scene_coarse[1]),
            coarse,
        )

    def guide_coarse(self, mtf_gain: float | None) -> tuple[Tensor, Range, Range]:
        """Return the guide degraded to the coarse pixels that interpolation needs, and which these are.

        Args:
            mtf_gain: gain at Nyquist of the low-pass filter; None for block means.
        """
        height, width = self.scene_coarse[0] * self.ratio, self.scene_coarse[1] * self.ratio
        reach = INTERPOLATION_REACH + FILL_REACH
        rows = coarse_support(self.rows, self.ratio, self.scene_coarse[0], reach)
        cols = coarse_support(self.cols, self.ratio, self.scene_coarse[1], reach)
        low, coverage = masked_separable(
            decimation_matrix(rows, self.fine_rows, self.ratio, height, mtf_gain),
            decimation_matrix(cols, self.fine_cols, self.ratio, width, mtf_gain),
            self.guide,
            self.guide_mask,
        )
        return fill_invalid(low, coverage > 1e-3, FILL_REACH), rows, cols

    def guide_lowpass(self, mtf_gain: float | None) -> Tensor:
        """Return the guide as the HS sensor would see it, interpolated back: `[guide bands, rows, cols]`."""
        if mtf_gain not in self._lowpass:
            low, rows, cols = self.guide_coarse(mtf_gain)
            self._lowpass[mtf_gain] = self.upsample(low, rows, cols)
        return self._lowpass[mtf_gain]


def tile_support(
    area: Range, ratio: int, coarse_size: int, halo: int, mtf_gain: float
) -> tuple[Range, Range]:
    """Return the coarse and the fine pixels along an axis that fusing the fine pixels `area` looks at.

    Args:
        area: fine pixels of the scene.
        ratio: fine pixels per coarse pixel.
        coarse_size: of the scene.
        halo: coarse pixels around the area that the method's values depend on.
        mtf_gain: the HS sensor's, at Nyquist.
    """
    coarse = coarse_support(area, ratio, coarse_size, max(halo, INTERPOLATION_REACH) + FILL_REACH)
    # Decimating the guide onto the outermost of these coarse pixels looks further by the PSF.
    return coarse, fine_support(coarse, ratio, coarse_size * ratio, mtf_gain)


class Scene:
    """A pair ready to be fused.

    Args:
        hs: source of the usable HS bands on the coarse grid.
        guide: source of the guide on the fine grid, `ratio` times as many rows and columns.
        ratio: fine pixels per coarse pixel.
        mtf_hs, mtf_guide: gains of the sensors' MTFs at their Nyquist frequencies.
        wavelength_nm: of the usable bands; None where unknown.
        guide_wavelength_nm: of the guide's bands; None where unknown.
        device: where the arithmetic runs.
        seed: seed of any random number.
    """

    def __init__(
        self,
        hs: Source,
        guide: Source,
        ratio: int,
        mtf_hs: float,
        mtf_guide: float,
        wavelength_nm: list[float | None] | None = None,
        guide_wavelength_nm: list[float | None] | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if guide.rows != hs.rows * ratio or guide.cols != hs.cols * ratio:
            raise ValueError("the guide must have `ratio` times the rows and columns of the HS source")
        self.hs, self.guide, self.ratio = hs, guide, ratio
        self.mtf_hs, self.mtf_guide = mtf_hs, mtf_guide
        self.wavelength_nm = wavelength_nm or [None] * hs.bands
        self.guide_wavelength_nm = guide_wavelength_nm or [None] * guide.bands
        self.device = torch.device(device)
        self.seed = seed
        self._statistics: dict[float | None, SceneStatistics] = {}

    @property
    def coarse_shape(self) -> tuple[int, int]:
        """Rows and columns of the coarse grid."""
        return self.hs.rows, self.hs.cols

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the fine grid."""
        return self.guide.rows, self.guide.cols

    def tile(self, rows: Range, cols: Range, halo: int = INTERPOLATION_REACH) -> Tile:
        """Read what is needed to fuse the fine pixels `rows` x `cols`.

        Args:
            halo: coarse pixels around the tile that the method's values depend on.
        """
        ratio, (height, width) = self.ratio, self.coarse_shape
        coarse_rows, fine_rows = tile_support(rows, ratio, height, halo, self.mtf_hs)
        coarse_cols, fine_cols = tile_support(cols, ratio, width, halo, self.mtf_hs)
        hs, hs_mask = (t.to(self.device) for t in self.hs.read(coarse_rows, coarse_cols))
        guide, guide_mask = (t.to(self.device) for t in self.guide.read(fine_rows, fine_cols))
        return Tile(
            rows,
            cols,
            ratio,
            fill_invalid(hs, hs_mask, FILL_REACH),
            hs_mask,
            coarse_rows,
            coarse_cols,
            fill_invalid(guide, guide_mask, FILL_REACH),
            guide_mask,
            fine_rows,
            fine_cols,
            _tile_mask(
                rows, cols, ratio, (hs_mask, coarse_rows, coarse_cols), (guide_mask, fine_rows, fine_cols)
            ),
            (height, width),
            self.mtf_hs,
        )

    def coarse_tiles(
        self, mtf_gain: float | None, side: int = COARSE_TILE, control: Control | None = None
    ) -> Iterator[CoarseTile]:
        """Iterate over the scene at coarse resolution, without overlap.

        Args:
            mtf_gain: gain at Nyquist of the filter that degrades the guide; None for block means.
            side: coarse pixels along a tile's side.
        """
        height, width = self.coarse_shape
        r = self.ratio
        for r0 in range(0, height, side):
            for c0 in range(0, width, side):
                if control is not None:
                    control.check()
                rows, cols = (r0, min(height, r0 + side)), (c0, min(width, c0 + side))
                hs, hs_mask = (t.to(self.device) for t in self.hs.read(rows, cols))
                fine_rows = fine_support(rows, r, height * r, mtf_gain)
                fine_cols = fine_support(cols, r, width * r, mtf_gain)
                guide, guide_mask = (t.to(self.device) for t in self.guide.read(fine_rows, fine_cols))
                low, coverage = masked_separable(
                    decimation_matrix(rows, fine_rows, r, height * r, mtf_gain),
                    decimation_matrix(cols, fine_cols, r, width * r, mtf_gain),
                    guide,
                    guide_mask,
                )
                yield CoarseTile(rows, cols, hs, low, hs_mask & (coverage >= FULL_COVERAGE))

    def statistics(self, mtf_gain: float | None, control: Control | None = None) -> SceneStatistics:
        """Return the joint moments of HS image and degraded guide (computed once per filter).

        Raises:
            ValueError: not a single coarse pixel is valid in both.
        """
        if mtf_gain not in self._statistics:
            moments = MomentAccumulator()
            for tile in self.coarse_tiles(mtf_gain, control=control):
                joint = torch.cat([tile.hs, tile.guide])
                moments.update(joint[:, tile.mask])
            mean, covariance = moments.compute()
            covariance = without_rounding(covariance, mean)
            self._statistics[mtf_gain] = SceneStatistics(moments.count, mean, covariance, self.hs.bands)
        return self._statistics[mtf_gain]

    @cached_property
    def reduced(self) -> Scene:
        """The pair one ratio coarser by Wald's protocol; its truth is `reference`.

        Each image is degraded with its own sensor's MTF.
        """
        r = self.ratio
        rows, cols = self.hs.rows // r, self.hs.cols // r
        guide = CroppedSource(DegradedSource(self.guide, r, self.mtf_guide), rows * r, cols * r)
        return Scene(
            DegradedSource(self.hs, r, self.mtf_hs),
            guide,
            r,
            self.mtf_hs,
            self.mtf_guide,
            self.wavelength_nm,
            self.guide_wavelength_nm,
            self.device,
            self.seed,
        )

    @property
    def reference(self) -> Source:
        """The truth of the reduced scene: the HS image itself, cut to the reduced scene's size."""
        rows, cols = self.reduced.shape
        return CroppedSource(self.hs, rows, cols)


def _tile_mask(
    rows: Range,
    cols: Range,
    ratio: int,
    coarse: tuple[Tensor, Range, Range],
    fine: tuple[Tensor, Range, Range],
) -> Tensor:
    """Return where both the coarse pixel that covers a fine pixel and the guide's own pixel are valid."""
    hs_mask, coarse_rows, coarse_cols = coarse
    guide_mask, fine_rows, fine_cols = fine
    device = hs_mask.device
    y = torch.arange(*rows, device=device) // ratio - coarse_rows[0]
    x = torch.arange(*cols, device=device) // ratio - coarse_cols[0]
    top, left = rows[0] - fine_rows[0], cols[0] - fine_cols[0]
    own = guide_mask[top : top + len(y), left : left + len(x)]
    return hs_mask[y][:, x] & own


def tile_windows(rows: Range, cols: Range, side: int) -> list[tuple[Range, Range]]:
    """Return the windows of at most `side x side` that cover an area, row by row."""
    return [
        ((r, min(rows[1], r + side)), (c, min(cols[1], c + side)))
        for r in range(rows[0], rows[1], side)
        for c in range(cols[0], cols[1], side)
    ]
