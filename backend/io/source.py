# SPDX-License-Identifier: GPL-2.0-or-later
"""Windowed sources of pixels: one raster, part of its bands, or its degraded version, all read alike.

A source counts pixels of the pair's frame (`grid.PairGrid`). What lies outside the raster is invalid.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import rasterio
import torch
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from torch import Tensor

from ..degradation import MIN_COVERAGE, Range, decimation_matrix, fine_support, masked_separable
from ..grid import PairGrid
from .raster import RasterInfo, damaged


class Source(ABC):
    """Pixels by window.

    Attributes:
        bands, rows, cols: its size.
    """

    bands: int
    rows: int
    cols: int

    @abstractmethod
    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Return `[bands, rows, cols]` float32 and the mask `[rows, cols]` (True = valid in every band).

        The window must lie within the source. Values where the mask is False mean nothing but are finite.
        """

    def read_samples(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Return `[bands, rows, cols]` float32 and the validity of each sample, of the same shape."""
        values, valid = self.read(rows, cols)
        return values, valid.expand(values.shape)


class RasterSource(Source):
    """The bands of a raster in a frame.

    Args:
        dataset: an open dataset, or a WarpedVRT on the frame's grid.
        info: what is known of the raster.
        row, col: dataset pixel at the frame's upper left corner (may be negative).
        shape: the frame's size (rows, cols) in pixels of this source.
        band_indices: bands to read, from 0; None for all.
    """

    def __init__(
        self,
        dataset: rasterio.DatasetReader,
        info: RasterInfo,
        row: int,
        col: int,
        shape: tuple[int, int],
        band_indices: list[int] | None = None,
    ) -> None:
        self.dataset, self.info = dataset, info
        self._row, self._col = row, col
        self.rows, self.cols = shape
        self.indices = list(range(dataset.count)) if band_indices is None else list(band_indices)
        self.bands = len(self.indices)
        self._nodata = _representable(dataset.nodata, dataset.dtypes[0])
        flags = {flag for band in dataset.mask_flag_enums for flag in band}
        self._mask_band = bool(flags & {MaskFlags.per_dataset, MaskFlags.alpha})
        whole = np.dtype(dataset.dtypes[0]).kind != "f"
        self.always_valid = whole and self._nodata is None and not self._mask_band
        """No pixel of the raster can be invalid: integers, no nodata value, no mask."""

    def take(self, band_indices: list[int]) -> RasterSource:
        """Return the source of these bands (from 0, of the raster)."""
        return RasterSource(
            self.dataset, self.info, self._row, self._col, (self.rows, self.cols), band_indices
        )

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `Source.read`."""
        values, valid = self.read_samples(rows, cols)
        if valid.stride() == (0, 0, 0):
            return values, torch.ones(values.shape[1:], dtype=torch.bool)
        return values, valid.all(dim=0)

    def read_samples(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Return `[bands, rows, cols]` float32 and the validity of each sample, of the same shape."""
        r0, r1 = max(0, rows[0] + self._row), min(self.dataset.height, rows[1] + self._row)
        c0, c1 = max(0, cols[0] + self._col), min(self.dataset.width, cols[1] + self._col)
        shape = (self.bands, rows[1] - rows[0], cols[1] - cols[0])
        if r0 >= r1 or c0 >= c1 or not self.indices:
            return torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        window = Window(c0, r0, c1 - c0, r1 - r0)
        try:
            raw = self.dataset.read([i + 1 for i in self.indices], window=window)
            mask = self.dataset.dataset_mask(window=window) > 0 if self._mask_band else None
        except (RasterioError, OSError) as error:
            raise damaged(self.info, error) from error
        inner = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32))
        if self.always_valid:
            good = torch.ones((), dtype=torch.bool).expand(inner.shape)
        else:
            good = torch.from_numpy(self._valid(raw, mask))
            inner = torch.where(good, inner, torch.zeros(()))
        top, left = r0 - rows[0] - self._row, c0 - cols[0] - self._col
        if inner.shape == shape:
            return inner, good
        values, validity = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        values[:, top : top + r1 - r0, left : left + c1 - c0] = inner
        validity[:, top : top + r1 - r0, left : left + c1 - c0] = good
        return values, validity

    def _valid(self, raw: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Return which samples are data: no nodata value, finite, and not masked."""
        valid = np.isfinite(raw) if raw.dtype.kind == "f" else np.ones(raw.shape, bool)
        if self._nodata is not None and not math.isnan(self._nodata):
            valid &= raw != raw.dtype.type(self._nodata)
        if mask is not None:
            valid &= mask[None]
        return valid


def _representable(nodata: float | None, dtype: str) -> float | None:
    """Return the nodata value, or None when no pixel of this dtype can hold it (-9999 in uint16)."""
    if nodata is None or np.dtype(dtype).kind == "f":
        return nodata
    if not math.isfinite(nodata) or nodata != int(nodata):
        return None
    limits = np.iinfo(dtype)
    return nodata if limits.min <= nodata <= limits.max else None


class DegradedSource(Source):
    """A source as a sensor `ratio` times coarser would see it (Wald's protocol), computed window by window.

    Args:
        base: the finer source; its size is cut to a multiple of `ratio`.
        ratio: integer ratio.
        mtf_gain: gain of the coarse sensor's MTF at Nyquist.
    """

    def __init__(self, base: Source, ratio: int, mtf_gain: float) -> None:
        self.base, self._ratio, self._gain = base, ratio, mtf_gain
        self.bands = base.bands
        self.rows, self.cols = base.rows // ratio, base.cols // ratio

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read and degrade a window; see `Source.read`."""
        r, gain = self._ratio, self._gain
        height, width = self.rows * r, self.cols * r
        fine_rows, fine_cols = fine_support(rows, r, height, gain), fine_support(cols, r, width, gain)
        image, mask = self.base.read(fine_rows, fine_cols)
        out, coverage = masked_separable(
            decimation_matrix(rows, fine_rows, r, height, gain),
            decimation_matrix(cols, fine_cols, r, width, gain),
            image,
            mask,
        )
        return out, coverage >= MIN_COVERAGE


class CroppedSource(Source):
    """The upper left part of a source."""

    def __init__(self, base: Source, rows: int, cols: int) -> None:
        self.base, self.bands, self.rows, self.cols = base, base.bands, rows, cols

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `Source.read`."""
        return self.base.read(rows, cols)


class TensorSource(Source):
    """An image in memory.

    Args:
        image: `[bands, rows, cols]`.
        mask: `[rows, cols]`, True where valid; None for all.
    """

    def __init__(self, image: Tensor, mask: Tensor | None = None) -> None:
        self.image = image.to(torch.float32)
        self.bands, self.rows, self.cols = image.shape
        self.mask = torch.ones(self.rows, self.cols, dtype=torch.bool) if mask is None else mask

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `Source.read`."""
        return (
            self.image[:, rows[0] : rows[1], cols[0] : cols[1]],
            self.mask[rows[0] : rows[1], cols[0] : cols[1]],
        )


def hs_source(dataset: rasterio.DatasetReader, info: RasterInfo, grid: PairGrid) -> RasterSource:
    """Return the HS raster on the pair's coarse grid: as it is where it nests, else warped once (cubic)."""
    shape = (grid.coarse_rows, grid.coarse_cols)
    if grid.nested:
        return RasterSource(dataset, info, grid.hs_row, grid.hs_col, shape)
    # A raster without CRS is warped within an arbitrary metric one: only the transforms matter then.
    crs = grid.crs or "EPSG:3857"
    nodata = {"src_nodata": dataset.nodata} if dataset.nodata is not None else {}
    warped = WarpedVRT(
        dataset,
        src_crs=grid.hs_crs or crs,
        src_transform=grid.hs_transform,
        crs=crs,
        transform=grid.unmoved_coarse_transform,
        height=shape[0],
        width=shape[1],
        resampling=Resampling.cubic,
        nodata=math.nan,
        dtype="float32",
        **nodata,
    )
    return RasterSource(warped, info, 0, 0, shape)


def guide_source(dataset: rasterio.DatasetReader, info: RasterInfo, grid: PairGrid) -> RasterSource:
    """Return the guide in the pair's frame. An alpha band is a mask, not data."""
    data_bands = [
        i
        for i, interpretation in enumerate(dataset.colorinterp)
        if interpretation != rasterio.enums.ColorInterp.alpha
    ]
    return RasterSource(dataset, info, grid.guide_row, grid.guide_col, grid.shape, data_bands)
