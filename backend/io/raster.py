# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening input rasters: what a user may hand in, checked early, with errors that say what to do."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from ..errors import HyperSharpError
from .wavelengths import BandTable, read_band_table

MIN_HS_BANDS = 4
_PRODUCT = re.compile(r"\.he5$|(^|[/\\])EMIT_L2A_[^/\\]*\.nc$", re.IGNORECASE)
"""Names of files that `products` makes rasters of."""


@dataclass
class RasterInfo:
    """An input raster as found.

    Attributes:
        path: as rasterio opens it.
        role: "HS image", "guide" or "reference", for messages.
        crs: None when unknown.
        transform: pixel to CRS; identity when there is no georeference.
        georeferenced: the file has a geotransform.
        count, height, width, dtype, nodata: as in the file.
        has_mask: the file has a mask band, an alpha band or a nodata value.
        bands: wavelengths and names.
    """

    path: str
    role: str
    crs: CRS | None
    transform: Affine
    georeferenced: bool
    count: int
    height: int
    width: int
    dtype: str
    nodata: float | None
    has_mask: bool
    bands: BandTable
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    units: tuple[str | None, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without folder and suffix."""
        return Path(self.path).stem

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Column and row spacing in CRS units."""
        t = self.transform
        return float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))

    def describe(self) -> dict[str, object]:
        """Return what metrics.json says of an input."""
        return {
            "name": Path(self.path).name,
            "bands": self.count,
            "rows": self.height,
            "cols": self.width,
            "pixel_size": [round(v, 6) for v in self.pixel_size],
            "crs": self.crs.to_string() if self.crs else None,
            "dtype": self.dtype,
            "nodata": None if self.nodata is None or np.isnan(self.nodata) else self.nodata,
        }


@contextmanager
def georeference_optional() -> Iterator[None]:
    """Keep rasterio from warning of rasters without a georeference: what that means is said where it matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def source_path(source: str | os.PathLike[str]) -> str:
    """Return the file behind a path or a QGIS source URI.

    QGIS appends options after `|`; a GDAL subdataset or /vsi path is passed on as it is.

    Raises:
        HyperSharpError: the source is a service or a database, with no single file behind it.
    """
    text = os.fspath(source).strip()
    if not text:
        raise HyperSharpError("no raster was named", "give the path of a raster file")
    path = text.split("|", 1)[0]
    if re.match(r"^(https?|wms|wcs|wmts|xyz|postgres|type=|url=|dpiMode=|contextualWMSLegend=)", path, re.I):
        raise HyperSharpError(
            f"{_short(path)} is a service, not a raster file", "export the layer to a GeoTIFF and use that"
        )
    if path.startswith("file://"):
        path = path[7:]
    return path


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def open_input(source: str | os.PathLike[str], role: str) -> tuple[rasterio.DatasetReader, RasterInfo]:
    """Open a raster and describe it. The caller closes the dataset.

    Raises:
        HyperSharpError: missing, unreadable, no raster, without bands, or of a dtype that cannot be fused.
    """
    path = source_path(source)
    plain = ":" not in path and not path.startswith("/vsi")
    if plain and not os.path.exists(path):
        raise HyperSharpError(f"{role} not found: {path}", "check the path")
    if plain and os.path.isdir(path) and not os.listdir(path):
        raise HyperSharpError(f"{role} is an empty folder: {path}", "name a raster file")
    if plain and not os.access(path, os.R_OK):
        raise HyperSharpError(f"{role} cannot be read: {path}", "check the file's permissions")
    if _PRODUCT.search(path):
        raise HyperSharpError(
            f"{role} is a product in HDF5, not a raster: {path}",
            "make rasters of it first: hypersharp import PRODUCT -o FOLDER, in QGIS HyperSharp's 'Import a product'",
        )
    try:
        dataset = rasterio.open(path)
    except (RasterioError, OSError, ValueError) as error:
        raise HyperSharpError(
            f"{role} is not a raster that GDAL can read: {path} ({_first_line(error)})",
            "use a GeoTIFF, ENVI or any other raster file of one image",
        ) from error
    try:
        return dataset, _describe(dataset, path, role)
    except BaseException:
        dataset.close()
        raise


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _describe(dataset: rasterio.DatasetReader, path: str, role: str) -> RasterInfo:
    if dataset.count == 0:
        subs = dataset.subdatasets[:1]
        hint = f"name one of its subdatasets, e.g. {subs[0]}" if subs else "use a raster with bands"
        raise HyperSharpError(f"{role} has no bands of its own: {path}", hint)
    kinds = {np.dtype(d).kind if not d.startswith("complex") else "c" for d in dataset.dtypes}
    if not kinds <= {"i", "u", "f"}:
        raise HyperSharpError(
            f"{role} holds {dataset.dtypes[0]} values, not plain numbers: {path}",
            "convert it to an integer or floating-point raster (real part, magnitude)",
        )
    if np.dtype(dataset.dtypes[0]).itemsize == 8 and np.dtype(dataset.dtypes[0]).kind in "iu":
        raise HyperSharpError(
            f"{role} holds {dataset.dtypes[0]} values: {path}", "convert it to int32 or float32"
        )
    flags = {flag for band in dataset.mask_flag_enums for flag in band}
    transform = dataset.transform
    return RasterInfo(
        path=path,
        role=role,
        crs=dataset.crs if dataset.crs else None,
        transform=transform,
        georeferenced=not transform.is_identity,
        count=dataset.count,
        height=dataset.height,
        width=dataset.width,
        dtype=dataset.dtypes[0],
        nodata=dataset.nodata,
        has_mask=bool(flags - {MaskFlags.all_valid}),
        bands=read_band_table(dataset),
        scales=tuple(dataset.scales),
        offsets=tuple(dataset.offsets),
        units=tuple(dataset.units),
    )


def check_readable(dataset: rasterio.DatasetReader, info: RasterInfo) -> None:
    """Read the last block of the first and last bands, so that a truncated file is found before the work.

    Raises:
        HyperSharpError: the file ends before its data.
    """
    window = rasterio.windows.Window(max(0, info.width - 1), max(0, info.height - 1), 1, 1)
    try:
        for band in {1, info.count}:
            dataset.read(band, window=window)
            dataset.read(band, window=rasterio.windows.Window(0, 0, 1, 1))
    except (RasterioError, OSError) as error:
        raise damaged(info, error) from error


def damaged(info: RasterInfo, error: BaseException) -> HyperSharpError:
    """Return the error for a raster whose pixels cannot be read."""
    return HyperSharpError(
        f"{info.role} is damaged or truncated: {info.path} ({_first_line(error)})",
        "copy or download the file again",
    )


def check_roles(hs: RasterInfo, guide: RasterInfo) -> None:
    """Check that the two rasters can play their parts.

    Raises:
        HyperSharpError: same file twice, too few HS bands, or more guide bands than HS bands.
    """
    same = hs.path == guide.path
    if not same and os.path.exists(hs.path) and os.path.exists(guide.path):
        same = os.path.samefile(hs.path, guide.path)
    if same:
        raise HyperSharpError(
            "the HS image and the guide are the same file",
            "choose the hyperspectral raster and a finer PAN or MSI raster",
        )
    if hs.count < MIN_HS_BANDS:
        raise HyperSharpError(
            f"the HS image has only {hs.count} band{'s' if hs.count > 1 else ''}",
            f"choose a hyperspectral raster with at least {MIN_HS_BANDS} bands (are the two layers swapped?)",
        )
    if guide.count > hs.count:
        raise HyperSharpError(
            f"the guide has more bands ({guide.count}) than the HS image ({hs.count})",
            "the two layers may be swapped: the guide is the finer PAN or MSI raster",
        )
