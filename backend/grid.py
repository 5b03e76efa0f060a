# SPDX-License-Identifier: GPL-2.0-or-later
"""The common geometry of a pair: a coarse grid nested in the guide's grid, and the area that both cover.

Everything after this module counts pixels of one *frame*: the guide's grid, cut to whole coarse pixels around
the output area. Frame pixel (0, 0) belongs to coarse pixel (0, 0), which covers `ratio x ratio` frame pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as transform_coordinates

from .errors import ErrorCode, HyperSharpError
from .estimate import MIN_RATIO
from .io.raster import RasterInfo

NESTING_TOLERANCE = 0.02
"""Largest misfit, in guide pixels anywhere in the HS image, at which HS values are used bit for bit."""
CONTEXT = 6
"""Coarse pixels read around a requested extent where there are any, so that filters see no false border."""


@dataclass(frozen=True)
class PairGrid:
    """Where a pair's pixels lie.

    Attributes:
        crs: of the guide and of the output; None when unknown.
        transform: of the frame (fine pixels).
        ratio: fine pixels per coarse pixel.
        true_ratio: HS pixel size over guide pixel size as found.
        coarse_rows, coarse_cols: size of the frame in coarse pixels.
        guide_row, guide_col: guide pixel at the frame's upper left corner (may be negative).
        hs_row, hs_col: HS pixel at the frame's upper left corner; meaningful when `nested`.
        nested: the HS grid nests in the guide's, so HS values are used bit for bit.
        rows, cols: the output area within the frame, half-open ranges of fine pixels.
        warnings: assumptions made.
        hs_moved: guide pixels (rows, cols) that the HS image was moved by against its georeference.
    """

    crs: CRS | None
    transform: Affine
    ratio: int
    true_ratio: float
    coarse_rows: int
    coarse_cols: int
    guide_row: int
    guide_col: int
    hs_row: int
    hs_col: int
    nested: bool
    rows: tuple[int, int]
    cols: tuple[int, int]
    hs_crs: CRS | None = None
    hs_transform: Affine = field(default_factory=Affine.identity)
    warnings: tuple[str, ...] = ()
    hs_moved: tuple[int, int] = (0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Frame size in fine pixels (rows, cols)."""
        return self.coarse_rows * self.ratio, self.coarse_cols * self.ratio

    @property
    def output_shape(self) -> tuple[int, int]:
        """Output size in fine pixels (rows, cols)."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]

    @property
    def output_transform(self) -> Affine:
        """Transform of the output raster."""
        return self.transform * Affine.translation(self.cols[0], self.rows[0])

    @property
    def coarse_transform(self) -> Affine:
        """Transform of the coarse grid of the frame."""
        return self.transform * Affine.scale(self.ratio)

    @property
    def unmoved_coarse_transform(self) -> Affine:
        """Where the HS image's georeference has what belongs on the coarse grid of the frame."""
        rows, cols = self.hs_moved
        return self.transform * Affine.translation(-cols, -rows) * Affine.scale(self.ratio)

    def describe(self) -> dict[str, object]:
        """Return what metrics.json says of the geometry."""
        note = (
            "the HS grid nests in the guide's grid: HS values are used as they are"
            if self.nested
            else f"the HS image was resampled once (cubic): one pixel is {self.ratio} x {self.ratio} guide pixels"
        )
        return {
            "ratio": self.ratio,
            "true_ratio": round(self.true_ratio, 4),
            "resampled": not self.nested,
            "hs_moved_pixels": list(self.hs_moved),
            "note": note,
            "rows": self.output_shape[0],
            "cols": self.output_shape[1],
        }


@dataclass
class _Placed:
    """An input with the CRS and transform that the pair is fused with."""

    crs: CRS | None
    transform: Affine
    height: int
    width: int


def pair_grid(
    hs: RasterInfo,
    guide: RasterInfo,
    extent: tuple[float, float, float, float] | None = None,
    extent_crs: str | None = None,
    move_hs: tuple[int, int] = (0, 0),
) -> PairGrid:
    """Work out the ratio, the nested coarse grid and the common area of a pair.

    Args:
        hs: the hyperspectral raster.
        guide: the finer raster; the output takes its grid.
        extent: (xmin, ymin, xmax, ymax), snapped outwards to the guide's grid; None for all.
        extent_crs: CRS of the extent; None for the guide's.
        move_hs: guide pixels (rows, cols) by which the HS image lies further down and right than its georeference says.

    Raises:
        HyperSharpError: no overlap, guide as coarse as the HS image, extent outside, unusable georeference.
    """
    warnings: list[str] = []
    hs_placed, guide_placed = _place(hs, guide, warnings)
    corner_map = _PixelMap(hs_placed, guide_placed, move_hs)
    true_ratio = corner_map.scale
    if true_ratio < MIN_RATIO:
        raise HyperSharpError(
            f"the guide's pixels are not finer than the HS image's (ratio {true_ratio:.2f})",
            "choose a guide with smaller pixels; are the two layers swapped?",
        )
    ratio = max(2, round(true_ratio))
    col, row, nested = corner_map.nesting(ratio, hs_placed)
    if not nested:
        warnings.append(
            f"the HS grid does not nest in the guide's (true ratio {true_ratio:.3f}): "
            f"the HS image is resampled once to a ratio of {ratio}"
        )
    area = _common_area(corner_map, hs_placed, guide_placed, nested, (row, col, ratio))
    wanted = _extent_window(extent, extent_crs, guide_placed, area)
    coarse = [
        (
            math.floor((lo - origin) / ratio) - (CONTEXT if extent is not None else 0),
            math.ceil((hi - origin) / ratio) + (CONTEXT if extent is not None else 0),
        )
        for (lo, hi), origin in ((wanted[0], row), (wanted[1], col))
    ]
    limits = [
        (math.floor((lo - origin) / ratio), math.ceil((hi - origin) / ratio))
        for (lo, hi), origin in ((area[0], row), (area[1], col))
    ]
    (r0, r1), (c0, c1) = ((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(coarse, limits))
    top, left = row + r0 * ratio, col + c0 * ratio
    return PairGrid(
        crs=guide_placed.crs,
        transform=guide_placed.transform * Affine.translation(left, top),
        ratio=ratio,
        true_ratio=true_ratio,
        coarse_rows=r1 - r0,
        coarse_cols=c1 - c0,
        guide_row=top,
        guide_col=left,
        hs_row=r0,
        hs_col=c0,
        nested=nested,
        rows=(wanted[0][0] - top, wanted[0][1] - top),
        cols=(wanted[1][0] - left, wanted[1][1] - left),
        hs_crs=hs_placed.crs,
        hs_transform=hs_placed.transform,
        warnings=tuple(warnings),
        hs_moved=move_hs,
    )


def _place(hs: RasterInfo, guide: RasterInfo, warnings: list[str]) -> tuple[_Placed, _Placed]:
    """Give both inputs a transform and comparable CRSs, or say why that is not possible."""
    placed_hs = _Placed(hs.crs, hs.transform, hs.height, hs.width)
    placed_guide = _Placed(guide.crs, guide.transform, guide.height, guide.width)
    if hs.georeferenced and guide.georeferenced:
        if (hs.crs is None) != (guide.crs is None):
            without = "HS image" if hs.crs is None else "guide"
            warnings.append(f"the {without} has no CRS: the other raster's is assumed")
            placed_hs.crs = placed_guide.crs = guide.crs or hs.crs
        elif hs.crs is None:
            warnings.append("neither raster has a CRS: their coordinates are taken as the same")
        return placed_hs, placed_guide
    ratios = guide.height / hs.height, guide.width / hs.width
    if ratios[0] != ratios[1] or ratios[0] != int(ratios[0]) or ratios[0] < 2:
        which = "neither raster has" if not (hs.georeferenced or guide.georeferenced) else "one raster lacks"
        raise HyperSharpError(
            f"{which} a georeference and the sizes ({hs.height}x{hs.width} and "
            f"{guide.height}x{guide.width}) do not agree by an integer ratio of 2 or more",
            "georeference both rasters, or crop them to exactly the same area",
        )
    warnings.append("no georeference: both rasters are taken as covering exactly the same area")
    ratio = int(ratios[0])
    if guide.georeferenced or not hs.georeferenced:
        placed_hs.transform = guide.transform * Affine.scale(ratio)
        placed_hs.crs = guide.crs
    else:
        placed_guide.transform = hs.transform * Affine.scale(1 / ratio)
        placed_guide.crs = hs.crs
    return placed_hs, placed_guide


class _PixelMap:
    """Maps HS pixel coordinates to guide pixel coordinates (col, row of pixel corners)."""

    def __init__(self, hs: _Placed, guide: _Placed, move: tuple[int, int]) -> None:
        self._hs, self._guide = hs, guide
        self._down, self._right = move
        self.same_crs = hs.crs is None or guide.crs is None or hs.crs == guide.crs or self._same_coordinates()
        try:
            self._inverse = ~guide.transform
        except Exception as error:
            raise HyperSharpError(
                "the guide's geotransform cannot be inverted", "georeference the guide again"
            ) from error
        moved = Affine.translation(self._right, self._down)
        self.affine = moved * self._inverse * hs.transform if self.same_crs else None

    def _same_coordinates(self) -> bool:
        """Two spellings of one CRS: the HS image's corners stay where they are to 1e-4 of a guide pixel."""
        w, h = self._hs.width, self._hs.height
        x, y = self._hs.transform * (np.array([0.0, w, 0.0, w]), np.array([0.0, 0.0, h, h]))
        try:
            moved = transform_coordinates(self._hs.crs, self._guide.crs, x.tolist(), y.tolist())
        except (CRSError, ValueError):
            return False
        shift = np.abs(np.array(moved) - np.array([x, y])).max()
        t = self._guide.transform
        return bool(np.isfinite(shift) and shift < 1e-4 * min(math.hypot(t.a, t.d), math.hypot(t.b, t.e)))

    def __call__(self, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.affine is not None:
            x, y = self.affine * (cols, rows)
            return np.asarray(x, float), np.asarray(y, float)
        x, y = self._hs.transform * (cols, rows)
        try:
            xs, ys = transform_coordinates(
                self._hs.crs, self._guide.crs, np.ravel(x).tolist(), np.ravel(y).tolist()
            )
        except CRSError as error:
            raise HyperSharpError(
                "the HS image's CRS cannot be transformed to the guide's", "reproject one of them first"
            ) from error
        u, v = self._inverse * (np.array(xs, float), np.array(ys, float))
        if not (np.isfinite(u).all() and np.isfinite(v).all()):
            raise no_overlap()
        return u + self._right, v + self._down

    @property
    def scale(self) -> float:
        """HS pixel size in guide pixels, from the area of the pixel at the centre of the HS image."""
        col, row = self._hs.width / 2, self._hs.height / 2
        u, v = self(np.array([col, col + 1, col]), np.array([row, row, row + 1]))
        return float(math.sqrt(abs((u[1] - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (v[1] - v[0]))))

    def nesting(self, ratio: int, hs: _Placed) -> tuple[int, int, bool]:
        """Return the coarse grid's origin as guide pixel (col, row), and whether HS values fit it as is."""
        u, v = self.outline()
        if self.affine is not None:
            a = self.affine
            col, row = round(a.c), round(a.f)
            misfit = max(
                abs(a.c - col) + abs(a.a - ratio) * hs.width + abs(a.b) * hs.height,
                abs(a.f - row) + abs(a.e - ratio) * hs.height + abs(a.d) * hs.width,
            )
            if misfit <= NESTING_TOLERANCE:
                return col, row, True
        return round(float(u.min())), round(float(v.min())), False

    def outline(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the HS image's outline in guide pixels, 21 points a side."""
        w, h = self._hs.width, self._hs.height
        along_w, along_h = np.linspace(0, w, 21), np.linspace(0, h, 21)
        cols = np.concatenate([along_w, np.full(21, w), along_w, np.zeros(21)])
        rows = np.concatenate([np.zeros(21), along_h, np.full(21, h), along_h])
        return self(cols, rows)


def _common_area(
    pixel_map: _PixelMap, hs: _Placed, guide: _Placed, nested: bool, origin: tuple[int, int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the rows and cols of the guide whose pixel centres lie in the HS image's bounds."""
    if nested:
        row, col, ratio = origin
        bounds = (row, row + hs.height * ratio), (col, col + hs.width * ratio)
    else:
        u, v = pixel_map.outline()
        bounds = (
            (math.ceil(v.min() - 0.5), math.floor(v.max() - 0.5) + 1),
            (math.ceil(u.min() - 0.5), math.floor(u.max() - 0.5) + 1),
        )
    (r0, r1), (c0, c1) = bounds
    rows, cols = (max(0, r0), min(guide.height, r1)), (max(0, c0), min(guide.width, c1))
    if rows[0] >= rows[1] or cols[0] >= cols[1]:
        raise no_overlap()
    return rows, cols


def no_overlap() -> HyperSharpError:
    """Return the error for two rasters over different ground."""
    return HyperSharpError(
        "the HS image and the guide do not overlap",
        "check that both show the same place and that their CRSs are right",
        ErrorCode.NO_OVERLAP,
    )


def _extent_window(
    extent: tuple[float, float, float, float] | None,
    extent_crs: str | None,
    guide: _Placed,
    area: tuple[tuple[int, int], tuple[int, int]],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the requested extent as guide rows and cols, snapped outwards and cut to the common area."""
    if extent is None:
        return area
    xmin, ymin, xmax, ymax = extent
    if not all(math.isfinite(v) for v in extent) or xmin >= xmax or ymin >= ymax:
        raise HyperSharpError(
            f"the extent {xmin:g} {ymin:g} {xmax:g} {ymax:g} is empty",
            "give XMIN YMIN XMAX YMAX with XMIN < XMAX and YMIN < YMAX",
        )
    steps = np.linspace(0, 1, 11)
    xs = np.concatenate([xmin + (xmax - xmin) * steps] * 2 + [np.full(11, xmin), np.full(11, xmax)])
    ys = np.concatenate([np.full(11, ymin), np.full(11, ymax)] + [ymin + (ymax - ymin) * steps] * 2)
    if extent_crs and guide.crs is not None:
        try:
            source = CRS.from_user_input(extent_crs)
            if source != guide.crs:
                moved = transform_coordinates(source, guide.crs, xs.tolist(), ys.tolist())
                xs, ys = np.array(moved[0], float), np.array(moved[1], float)
        except CRSError as error:
            raise HyperSharpError(
                f"the extent's CRS is not known: {extent_crs}", "use an authority code such as EPSG:32633"
            ) from error
    u, v = (~guide.transform) * (xs, ys)
    tolerance = 1e-6
    rows = max(area[0][0], math.floor(v.min() + tolerance)), min(area[0][1], math.ceil(v.max() - tolerance))
    cols = max(area[1][0], math.floor(u.min() + tolerance)), min(area[1][1], math.ceil(u.max() - tolerance))
    if rows[0] >= rows[1] or cols[0] >= cols[1]:
        raise HyperSharpError(
            "the extent lies outside the area that both rasters cover",
            "choose an extent within both, in the guide's CRS",
            ErrorCode.NO_OVERLAP,
        )
    return rows, cols
