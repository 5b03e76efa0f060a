# SPDX-License-Identifier: GPL-2.0-or-later
"""What QGIS knows of a raster before anything runs: the file behind it, its grid, its bands.

Reads headers only, through QGIS's own GDAL; the backend looks again, more closely, before it works.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any, Optional, Union

from osgeo import gdal
from qgis.core import QgsCoordinateReferenceSystem, QgsRasterLayer, QgsRectangle

from ..backend.errors import HyperSharpError
from ..backend.product_metadata import product_bands
from ..backend.sensors import to_nanometres

LayerOrPath = Union[QgsRasterLayer, str, "os.PathLike[str]"]

_IN_DESCRIPTION = re.compile(r"(\d+(?:\.\d+)?)\s*(nm|nanometers?|um|µm|micrometers?)\b", re.IGNORECASE)
_GDAL_DTYPES = {
    "Byte": "uint8",
    "Int8": "int8",
    "UInt16": "uint16",
    "Int16": "int16",
    "UInt32": "uint32",
    "Int32": "int32",
    "Float32": "float32",
    "Float64": "float64",
}


@dataclass(frozen=True)
class RasterFacts:
    """A raster's header.

    Attributes:
        path: the file, as GDAL opens it.
        name: the layer's name, or the file's.
        bands, rows, cols: size.
        dtype: numpy's name of the pixel type; GDAL's own for one that cannot be fused.
        crs: may be invalid (unknown).
        geotransform: GDAL's six numbers; None without a georeference.
        wavelengths_nm: centre of each band in nm, None where unknown.
        usable: False for bands that the producer marks as bad.
    """

    path: str
    name: str
    bands: int
    rows: int
    cols: int
    dtype: str
    crs: QgsCoordinateReferenceSystem
    geotransform: Optional[tuple[float, ...]]
    wavelengths_nm: tuple[Optional[float], ...]
    usable: tuple[bool, ...]

    @property
    def numeric(self) -> bool:
        """The pixels are numbers that can be fused."""
        return self.dtype in _GDAL_DTYPES.values()

    @property
    def pixel_size(self) -> Optional[tuple[float, float]]:
        """Column and row spacing in CRS units, of rotated grids too; None without a georeference."""
        if self.geotransform is None:
            return None
        _, a, b, _, d, e = self.geotransform
        return math.hypot(a, d), math.hypot(b, e)

    @property
    def spectral_range_nm(self) -> Optional[tuple[float, float]]:
        """Shortest and longest wavelength; None when none is known."""
        known = [w for w in self.wavelengths_nm if w is not None]
        return (min(known), max(known)) if known else None

    @property
    def extent(self) -> QgsRectangle:
        """The smallest upright box around the raster, in its CRS."""
        corners = [self.to_map(col, row) for col in (0, self.cols) for row in (0, self.rows)]
        xs, ys = [c[0] for c in corners], [c[1] for c in corners]
        return QgsRectangle(min(xs), min(ys), max(xs), max(ys))

    def to_map(self, col: float, row: float) -> tuple[float, float]:
        """Return the map position of a pixel position (corners at whole numbers)."""
        gt = self.geotransform or (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
        return gt[0] + col * gt[1] + row * gt[2], gt[3] + col * gt[4] + row * gt[5]


def source_path(layer_or_path: LayerOrPath) -> str:
    """Return the one file behind a layer or a source, absolute, as GDAL opens it in another process.

    `/vsizip/`, `/vsicurl/` and subdatasets (`NETCDF:...`) pass; what only this QGIS can open does not.

    Raises:
        HyperSharpError: a service, a memory raster, or a source with open options.
    """
    if isinstance(layer_or_path, QgsRasterLayer):
        provider = layer_or_path.providerType()
        if provider != "gdal":
            raise HyperSharpError(
                f"the layer {layer_or_path.name()} is not a raster file (it comes from {provider})",
                "export it to a GeoTIFF first",
            )
        source = layer_or_path.source()
    else:
        source = os.fspath(layer_or_path).strip()
    if not source:
        raise HyperSharpError("no raster is chosen", "choose a raster layer or file")
    if "|" in source and not os.path.exists(source):
        raise HyperSharpError(
            f"the raster is opened with options of QGIS's own: {source.split('|', 1)[1]}",
            "load the file without open options, or export the layer to a GeoTIFF",
        )
    if source.startswith("/vsimem/"):
        raise HyperSharpError("the raster exists in QGIS's memory only", "export the layer to a GeoTIFF file")
    if source.startswith("/vsi") or (":" in source and not os.path.exists(source)):
        return source
    return os.path.abspath(source)


def is_plain_file(path: str) -> bool:
    """Say whether a path names a file of this machine, not one of GDAL's virtual ones."""
    return not path.startswith("/vsi") and (os.path.exists(path) or ":" not in path)


def read_facts(layer_or_path: LayerOrPath) -> RasterFacts:
    """Return what the raster's header says.

    Raises:
        HyperSharpError: there is no file behind it, or GDAL cannot read it.
    """
    path = source_path(layer_or_path)
    if is_plain_file(path) and not os.path.exists(path):
        raise HyperSharpError(f"raster not found: {path}", "check the path")
    gdal.PushErrorHandler("CPLQuietErrorHandler")  # what is wrong is said below
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_READONLY)
    except RuntimeError:  # where another plugin has switched GDAL's exceptions on
        dataset = None
    finally:
        gdal.PopErrorHandler()
    if dataset is None or dataset.RasterCount == 0:
        raise HyperSharpError(
            f"not a raster that GDAL can read: {path}",
            "use a GeoTIFF, ENVI or another raster file of one image",
        )
    layer = layer_or_path if isinstance(layer_or_path, QgsRasterLayer) else None
    crs = layer.crs() if layer is not None and layer.crs().isValid() else _dataset_crs(dataset)
    transform = dataset.GetGeoTransform(can_return_null=True)
    wavelengths, usable = _bands(dataset)
    type_name = gdal.GetDataTypeName(dataset.GetRasterBand(1).DataType)
    return RasterFacts(
        path=path,
        name=layer.name() if layer is not None else os.path.splitext(os.path.basename(path))[0],
        bands=dataset.RasterCount,
        rows=dataset.RasterYSize,
        cols=dataset.RasterXSize,
        dtype=_GDAL_DTYPES.get(type_name, type_name),
        crs=crs,
        geotransform=tuple(transform) if transform else None,
        wavelengths_nm=tuple(wavelengths),
        usable=tuple(usable),
    )


def _dataset_crs(dataset: Any) -> QgsCoordinateReferenceSystem:
    wkt = dataset.GetProjection()
    return QgsCoordinateReferenceSystem.fromWkt(wkt) if wkt else QgsCoordinateReferenceSystem()


def _number(text: Optional[str]) -> Optional[float]:
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _list(text: Optional[str], count: int) -> list[Optional[float]]:
    """Return the numbers of an ENVI-like `{a, b, c}` list; Nones when it is not one a band."""
    values = [_number(part) for part in (text or "").strip().strip("{}").split(",")]
    return values if len(values) == count else [None] * count


def _bands(dataset: Any) -> tuple[list[Optional[float]], list[bool]]:
    """Return wavelengths in nm and usable flags, from where the backend looks for them and in its order."""
    count = dataset.RasterCount
    whole = {k.lower(): v for k, v in {**dataset.GetMetadata("ENVI"), **dataset.GetMetadata()}.items()}
    units = whole.get("wavelength_units") or whole.get("wavelength units")
    raw: list[Optional[float]] = [None] * count
    usable = [flag != 0 for flag in _list(whole.get("bbl"), count)]
    for index in range(count):
        band = dataset.GetRasterBand(index + 1)
        centre = _number(band.GetMetadataItem("CENTRAL_WAVELENGTH_UM", "IMAGERY"))
        if centre is not None:
            raw[index], units = centre, "um"
            continue
        tags = {k.lower(): v for k, v in band.GetMetadata().items()}
        raw[index] = _number(tags.get("wavelength"))
        units = tags.get("wavelength_units") or tags.get("wavelength_unit") or units
        if _number(tags.get("bbl")) == 0 or _number(tags.get("badbandmultiplier")) == 0:
            usable[index] = False
    if all(v is None for v in raw):
        raw = _list(whole.get("wavelength") or whole.get("wavelengths"), count)
    if all(v is None for v in raw):
        for index in range(count):
            found = _IN_DESCRIPTION.search(dataset.GetRasterBand(index + 1).GetDescription() or "")
            if found:
                raw[index], units = float(found.group(1)), found.group(2)
    product = product_bands(dataset.GetDescription(), count) if all(v is None for v in raw) else None
    if product:
        raw, units = [band.wavelength_nm for band in product], "nm"
    known = [v for v in raw if v is not None]
    try:
        factor = to_nanometres(known, units)[0][0] / known[0]
    except (ValueError, IndexError):
        return [None] * count, usable
    return [None if v is None else round(v * factor, 4) for v in raw], usable
