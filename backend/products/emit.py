# SPDX-License-Identifier: GPL-2.0-or-later
"""EMIT's reflectance (NASA, level 2A), netCDF-4 files named EMIT_L2A_RFL_....nc.

Structure: product user guide of EMITL2ARFL, version 1 (LP DAAC). The cube is [downtrack, crosstrack, bands] as the
instrument saw it; a lookup table says which of its pixels, counted from 1, lies at each place of a geographic grid (0
where none does). Pixels are taken as they are, not resampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from affine import Affine
from torch import Tensor

from ..degradation import Range
from ..errors import HyperSharpError
from ..io.wavelengths import BandTable
from . import hdf
from .product import Product, ProductImage

BANDS, PLACES = "sensor_band_parameters", "location"
CUBE = "reflectance"
OTHERS = ("radiance", "reflectance_uncertainty", "mask")
"""Cubes of EMIT's other files."""
WAY_OUT = "name the file with the reflectance, EMIT_L2A_RFL_....nc"
ROWS_AT_ONCE = 64
"""Rows of the instrument's cube that are held at once."""
KEPT = {  # attributes that go on as tags of the raster
    "time_coverage_start": "ACQUISITION_TIME",
    "product_version": "EMIT_PRODUCT_VERSION",
}


class _EmitImage(ProductImage):
    """The cube on its geographic grid."""

    def __init__(self, file: Any, transform: Affine) -> None:
        self.cube = hdf.dataset(file, CUBE, 3)
        places = hdf.group(file, PLACES)
        self.columns, self.lines = (hdf.dataset(places, f"glt_{axis}", 2) for axis in ("x", "y"))
        if self.columns.shape != self.lines.shape:
            raise HyperSharpError(f"the lookup tables differ in size: {self.columns.shape}", hdf.AGAIN)
        self.transform = transform
        self.rows, self.cols = self.columns.shape
        fill = self.cube.attrs.get("_FillValue", [-9999.0])
        self.fill = float(np.atleast_1d(fill)[0])
        self.bands = _bands(file, self.cube.shape[2])
        self.floor = torch.zeros(len(self.bands.good))

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `ProductImage.read`."""
        line, column = (
            hdf.read_rows(table, rows, slice(*cols)).astype(np.int64) - 1
            for table in (self.lines, self.columns)
        )
        there = (line >= 0) & (line < self.cube.shape[0]) & (column >= 0) & (column < self.cube.shape[1])
        found = np.zeros((self.cube.shape[2], *line.shape), np.float32)
        if there.any():
            first, last = int(line[there].min()), int(line[there].max()) + 1
            for start in range(first, last, ROWS_AT_ONCE):
                seen = hdf.read_rows(self.cube, (start, min(start + ROWS_AT_ONCE, last)))
                here = there & (line >= start) & (line < start + len(seen))
                found[:, here] = seen[line[here] - start, column[here]].T
        there &= found[0] != self.fill
        return torch.from_numpy(found).nan_to_num_(), torch.from_numpy(there)


def find_emit(file: Any, path: str) -> Product | None:
    """Return EMIT's reflectance on its geographic grid; None where the file is of another sensor.

    Args:
        file: opened with h5py.
        path: of the .nc file.

    Raises:
        HyperSharpError: another of EMIT's files, or something that it should hold is missing.
    """
    if BANDS not in file or PLACES not in file:
        return None
    if CUBE not in file:
        other = next((name for name in OTHERS if name in file), "something")
        raise HyperSharpError(f"{path} holds {other} of EMIT, not its reflectance", WAY_OUT)
    numbers = hdf.numbers(file, "geotransform")
    if len(numbers) != 6 or numbers[1] <= 0 or numbers[5] >= 0:
        raise hdf.missing("place on the map (attribute geotransform)")
    crs = hdf.crs(hdf.text(file.attrs.get("spatial_ref", "EPSG:4326")))
    image = _EmitImage(file, Affine.from_gdal(*numbers.tolist()))
    return Product(image, None, crs, hdf.tags(file, KEPT))


def _bands(file: Any, count: int) -> BandTable:
    """Return the bands; those that the producer calls bad (water vapour) are marked."""
    group = hdf.group(file, BANDS)
    tables = {name: group.get(name) for name in ("wavelengths", "fwhm", "good_wavelengths")}
    if tables["wavelengths"] is None or tables["wavelengths"].shape != (count,):
        raise hdf.missing(f"wavelengths of its {count} bands")
    centres, widths, good = (
        None if table is None or table.shape != (count,) else table[()].tolist() for table in tables.values()
    )
    return BandTable(
        centres,
        widths or [None] * count,
        [True] * count if good is None else [g != 0 for g in good],
        [f"band {i + 1} ({centre:.1f} nm)" for i, centre in enumerate(centres)],
    )
