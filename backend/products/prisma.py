# SPDX-License-Identifier: GPL-2.0-or-later
"""PRISMA products of level 2 (ASI), HDF-EOS5 files that end in .he5.

Names of data sets and attributes, and what they mean: PRISMA Products Specification Document, issue 2.3 (ASI, 2020).
Cubes are [rows, bands, cols] of 16-bit numbers, reflectance = least + number / 65535 * (most - least), with limits of
their own for the two spectrometers (VNIR, SWIR) and the panchromatic camera; 0 is "nothing there".
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from affine import Affine
from rasterio.crs import CRS
from torch import Tensor

from ..degradation import Range
from ..errors import HyperSharpError
from ..io.wavelengths import BandTable
from . import hdf
from .product import Product, ProductImage

HS_PIXEL, PAN_PIXEL = 30.0, 5.0
"""Pixel sizes of geocoded products, in metres."""
FULL_SCALE = 65535.0
LEVELS = {"2C": "reflectance in the instrument's geometry", "2D": "geocoded reflectance"}
GEOCODED = "2D"
KEPT = {
    "Product_Name": "PRISMA_PRODUCT",
    "Product_ID": "PRISMA_PRODUCT_ID",
    "Processor_Version": "PRISMA_PROCESSOR_VERSION",
    "Product_StartTime": "ACQUISITION_TIME",
    "Sun_zenith_angle": "SUN_ZENITH_DEG",
    "Sun_azimuth_angle": "SUN_AZIMUTH_DEG",
}
"""Attributes that go on as tags of the rasters."""
_SWATH = re.compile(r"PRS_L(\w+?)_HCO$")
WAY_OUT = "download the product of level 2D (PRS_L2D_..., surface reflectance) and import that"


class _Part:
    """One spectrometer's cube and which of its bands are wanted, in ascending wavelength."""

    def __init__(self, file: Any, swath: Any, name: str) -> None:
        self.name = name
        self.cube = hdf.dataset(swath, f"{name.upper()}_Cube", 3)
        centres, widths = (hdf.numbers(file, f"List_{what}_{name}") for what in ("Cw", "Fwhm"))
        count = self.cube.shape[1]
        if len(centres) != count or len(widths) != count:
            raise HyperSharpError(
                f"the product names {len(centres)} wavelengths for {count} {name.upper()} bands",
                hdf.AGAIN,
            )
        self.least, self.most = _limits(file, name)
        # Bands that a spectrometer has no light for have wavelength 0.
        self.indices = sorted(np.flatnonzero(centres > 0).tolist(), key=lambda i: centres[i])
        self.centres, self.widths = centres, widths

    def keep(self, lower: float, upper: float) -> None:
        """Keep bands in `[lower, upper)` nm."""
        self.indices = [i for i in self.indices if lower <= self.centres[i] < upper]


class _HyperspectralImage(ProductImage):
    """Both spectrometers' bands, one after the other."""

    def __init__(self, parts: list[_Part], transform: Affine) -> None:
        self.parts, self.transform = parts, transform
        self.rows, _, self.cols = parts[0].cube.shape
        found = [(part, i) for part in parts for i in part.indices]
        self.floor = torch.tensor([part.least for part, _ in found])
        self.bands = BandTable(
            [float(part.centres[i]) for part, i in found],
            [float(part.widths[i]) if part.widths[i] > 0 else None for part, i in found],
            [True] * len(found),
            [f"{part.name.upper()} {i + 1} ({part.centres[i]:.1f} nm)" for part, i in found],
        )

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `ProductImage.read`."""
        found = torch.empty(len(self.bands.good), rows[1] - rows[0], cols[1] - cols[0])
        valid = torch.zeros(found.shape[1:], dtype=torch.bool)
        done = 0
        for part in self.parts:
            numbers = hdf.read_rows(part.cube, rows, slice(None), slice(*cols))[:, part.indices].transpose(
                1, 0, 2
            )
            valid |= torch.from_numpy((numbers > 0).any(axis=0))
            own = found[done : done + len(numbers)]
            own.copy_(torch.from_numpy(numbers.astype(np.float32)))
            own.mul_((part.most - part.least) / FULL_SCALE).add_(part.least)
            done += len(numbers)
        return found, valid


class _PanchromaticImage(ProductImage):
    """The panchromatic camera's image."""

    def __init__(self, file: Any, swath: Any, transform: Affine) -> None:
        self.cube, self.transform = hdf.dataset(swath, "Cube", 2), transform
        self.rows, self.cols = self.cube.shape
        self.least, self.most = _limits(file, "Pan")
        self.floor = torch.tensor([self.least])
        self.bands = BandTable([None], [None], [True], ["PAN"])

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `ProductImage.read`."""
        numbers = hdf.read_rows(self.cube, rows, slice(*cols))
        found = torch.from_numpy(numbers.astype(np.float32))[None]
        found.mul_((self.most - self.least) / FULL_SCALE).add_(self.least)
        return found, torch.from_numpy(numbers > 0)


def find_prisma(file: Any, path: str) -> Product | None:
    """Return a product of level 2C or 2D; None where the file is of another sensor.

    Where the spectrometers overlap, VNIR's bands are taken up to the middle of what both see and SWIR's from there on:
    the outermost bands of each are its noisiest.

    Args:
        file: opened with h5py.
        path: of the .he5 file.

    Raises:
        HyperSharpError: another level, or something that it should hold is missing.
    """
    swaths = file.get("HDFEOS/SWATHS")
    found = {match.group(1): name for name in swaths or () if (match := _SWATH.match(name))}
    if not found:
        return None
    level, name = next(((lv, n) for lv, n in found.items() if lv in LEVELS), (None, ""))
    if level is None:
        raise HyperSharpError(f"{path} is a product of level {', '.join(found)}", WAY_OUT)
    warnings = []
    if level != GEOCODED:
        warnings.append(
            f"a product of level {level} has no place on the map ({LEVELS[level]}): the rasters have no coordinates"
        )
    data = hdf.group(swaths, f"{name}/Data Fields")
    parts = [_Part(file, data, spectrometer) for spectrometer in ("Vnir", "Swir")]
    if parts[0].cube.shape[::2] != parts[1].cube.shape[::2]:
        raise HyperSharpError(
            f"VNIR and SWIR cubes differ in size: {parts[0].cube.shape} and {parts[1].cube.shape}",
            hdf.AGAIN,
        )
    if not all(part.indices for part in parts):
        raise HyperSharpError(f"{path} names no wavelengths", hdf.AGAIN)
    last, first = (part.centres[part.indices[end]] for part, end in zip(parts, (-1, 0)))
    middle = (last + first) / 2
    parts[0].keep(0.0, middle if first < last else np.inf)
    parts[1].keep(middle if first < last else 0.0, np.inf)
    crs = hdf.crs(f"EPSG:{int(hdf.numbers(file, 'Epsg_Code')[0])}") if level == GEOCODED else None
    hs = _HyperspectralImage(parts, _transform(file, HS_PIXEL, crs))
    if crs is not None:
        warnings += _odd_size(file, hs)
    pan = None
    other = name.replace("_HCO", "_PCO")
    if other in swaths:
        pan = _PanchromaticImage(
            file, hdf.group(swaths, f"{other}/Data Fields"), _transform(file, PAN_PIXEL, crs)
        )
    tags = {**hdf.tags(file, KEPT), "PRISMA_LEVEL": level}
    return Product(hs, pan, crs, tags, warnings, lacks_pan=pan is None)


def _limits(file: Any, name: str) -> tuple[float, float]:
    """Return the reflectances of 0 and of the largest number."""
    least, most = (float(hdf.numbers(file, f"L2Scale{name}{end}")[0]) for end in ("Min", "Max"))
    if least >= most:
        raise hdf.missing(f"scale of its {name.upper()} cube ({least:g} to {most:g})")
    return least, most


def _transform(file: Any, pixel: float, crs: CRS | None) -> Affine:
    """Return pixel to CRS. Both images begin in the same outer corner.

    (Readers of PRISMA do not agree whether that corner is the first pixel's or its centre; half a pixel is far below
    the product's own error, and fusion finds what is left of it between the two images.)
    """
    if crs is None:
        return Affine.identity()
    left, top = (float(hdf.numbers(file, f"Product_ULcorner_{axis}")[0]) for axis in ("easting", "northing"))
    return Affine(pixel, 0.0, left, 0.0, -pixel, top)


def _odd_size(file: Any, image: ProductImage) -> list[str]:
    """Return a warning where the product's corners do not lie as far apart as its pixels say."""
    names = [f"Product_{corner}corner_{axis}" for corner in ("UL", "LR") for axis in ("easting", "northing")]
    if any(name not in file.attrs for name in names):
        return []
    left, top, right, bottom = (float(hdf.numbers(file, name)[0]) for name in names)
    # Corners are those of the outermost pixels or their centres.
    apart = abs((right - left) / HS_PIXEL - image.cols), abs((top - bottom) / HS_PIXEL - image.rows)
    if max(apart) <= 1.0:
        return []
    return [
        f"the product's corners are {right - left:g} m by {top - bottom:g} m apart, its {image.cols} x {image.rows} "
        f"pixels of {HS_PIXEL:g} m are not: its upper left corner is believed"
    ]
