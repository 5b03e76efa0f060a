# SPDX-License-Identifier: GPL-2.0-or-later
"""What the report shows of the rasters: pictures with one stretch, a detail, spectra at chosen pixels.

Only decimated pictures, one small window and single pixels are ever read, so memory is bounded for any raster.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasterio.windows import Window
from scipy import ndimage

from ..errors import HyperSharpError
from ..io.raster import georeference_optional
from ..io.wavelengths import BandTable, read_band_table
from ..sensors import colour_bands, nearest_band
from .stages import PRIOR, StagePicture

Array = np.ndarray

OVERVIEW_PIXELS = 560
"""Longest side of a full-extent picture, in picture pixels."""
SHOWN_PIXELS = 480
"""Small pictures are enlarged by whole factors to at least this."""
STRETCH_PERCENT = (2.0, 98.0)
_RANGE = re.compile(r"\b(\d{3,4})\s*(?:-|–|to)\s*(\d{3,4})\s*nm\b")
RED_NM, NIR_NM = 660.0, 850.0
MIN_NDVI = 0.3
"""Without a pixel above this, nothing is called vegetation."""


@dataclass
class Spot:
    """A pixel whose spectrum is shown.

    Attributes:
        name: "bright", "dark", "vegetation" or "edge".
        row, col: fine pixel of the fused raster.
        at: position in the full-extent picture as fractions (x, y).
        fused: spectrum of the fused raster; NaN where missing.
        hs: spectrum of the HS pixel that covers it; None when it lies outside.
    """

    name: str
    row: int
    col: int
    at: tuple[float, float]
    fused: Array
    hs: Array | None


@dataclass
class Views:
    """Everything the report shows of the rasters.

    Attributes:
        overview: full-extent pictures uint8 `[rows, cols, 3]` of "hs", "guide", "fused", and "prior" where there is.
        detail: the same of the detail.
        detail_box: the detail in the full-extent picture as fractions (left, top, right, bottom).
        detail_pixels: side of the detail in fine pixels (columns, rows).
        colours: which bands are shown.
        stretch: how values became colours.
        spots: chosen pixels.
        wavelength_nm, hs_wavelength_nm: of the two rasters; None where unknown.
        guide_ranges_nm: ranges of the guide's bands, where known.
        shape: rows and columns of the fused raster.
        notes: what could not be shown, and why.
    """

    overview: dict[str, Array] = field(default_factory=dict)
    detail: dict[str, Array] = field(default_factory=dict)
    detail_box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    detail_pixels: tuple[int, int] = (0, 0)
    colours: str = ""
    stretch: str = ""
    spots: list[Spot] = field(default_factory=list)
    wavelength_nm: list[float | None] = field(default_factory=list)
    hs_wavelength_nm: list[float | None] = field(default_factory=list)
    guide_ranges_nm: list[tuple[float, float]] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Frame:
    """A picture's grid: part of the fused raster, decimated."""

    window: Window
    rows: int
    cols: int

    def transform(self, fused: rasterio.DatasetReader) -> Affine:
        """Return the picture's transform in the fused raster's CRS."""
        corner = fused.transform * _shift(self.window.col_off, self.window.row_off)
        return corner * _zoom(self.window.width / self.cols, self.window.height / self.rows)


def _shift(x: float, y: float) -> Affine:
    return Affine(1, 0, x, 0, 1, y)


def _zoom(x: float, y: float) -> Affine:
    return Affine(x, 0, 0, 0, y, 0)


class _Sources:
    """The three open rasters and how they lie on each other."""

    def __init__(
        self, fused: rasterio.DatasetReader, hs: rasterio.DatasetReader, guide: rasterio.DatasetReader
    ) -> None:
        self.fused, self.hs, self.guide = fused, hs, guide
        self.bands: BandTable = read_band_table(fused)
        self.hs_bands: BandTable = read_band_table(hs)
        self.guide_bands: BandTable = read_band_table(guide)
        if not any(w is not None for w in self.bands.wavelength_nm) and fused.count == hs.count:
            self.bands.wavelength_nm = list(self.hs_bands.wavelength_nm)

    def placed(self, dataset: rasterio.DatasetReader) -> tuple[object, Affine]:
        """Return the CRS and transform of a raster; without a georeference it covers the fused raster."""
        crs = dataset.crs or self.fused.crs
        if dataset.transform.is_identity and dataset.shape != self.fused.shape:
            zoom = self.fused.width / dataset.width, self.fused.height / dataset.height
            return self.fused.crs, self.fused.transform * _zoom(*zoom)
        if dataset.transform.is_identity:
            return self.fused.crs, self.fused.transform
        return crs, dataset.transform

    def read_fused(self, bands: list[int], frame: _Frame) -> Array:
        """Return bands (from 0) of the fused raster on a frame: float32, NaN where invalid."""
        shrinks = frame.rows < frame.window.height or frame.cols < frame.window.width
        values = self.fused.read(
            [b + 1 for b in bands],
            window=frame.window,
            out_shape=(len(bands), frame.rows, frame.cols),
            resampling=Resampling.average if shrinks else Resampling.nearest,
            masked=True,
        )
        return values.astype(np.float32).filled(np.nan)

    def read_other(self, dataset: rasterio.DatasetReader, bands: list[int], frame: _Frame) -> Array:
        """Return bands (from 0) of another raster on a frame of the fused grid: float32, NaN where invalid."""
        crs, transform = self.placed(dataset)
        # A raster without CRS is warped within an arbitrary metric one: only the transforms matter then.
        target = frame.transform(self.fused)
        fine, coarse = math.sqrt(abs(target.determinant)), math.sqrt(abs(transform.determinant))
        same_crs = crs == self.fused.crs
        if same_crs and coarse < 0.75 * fine:
            resampling = Resampling.average
        elif same_crs and coarse < 1.25 * fine:
            resampling = Resampling.nearest
        else:
            resampling = Resampling.cubic
        options = {} if dataset.nodata is None else {"src_nodata": dataset.nodata}
        with (
            _only(dataset, bands) as part,
            WarpedVRT(
                part,
                src_crs=crs or "EPSG:3857",
                src_transform=transform,
                crs=self.fused.crs or "EPSG:3857",
                transform=target,
                width=frame.cols,
                height=frame.rows,
                resampling=resampling,
                dtype="float32",
                nodata=math.nan,
                **options,
            ) as warped,
        ):
            wanted = [b + 1 for b in bands] if part is dataset else list(range(1, len(bands) + 1))
            return warped.read(wanted).astype(np.float32)

    def spectrum(self, dataset: rasterio.DatasetReader, row: int, col: int) -> Array | None:
        """Return the spectrum of the pixel that covers a fused pixel's centre; None outside."""
        if dataset is self.fused:
            at = row, col
        else:
            crs, transform = self.placed(dataset)
            x, y = self.fused.transform * (col + 0.5, row + 0.5)
            if crs and self.fused.crs and crs != self.fused.crs:
                (x,), (y,) = transform_points(self.fused.crs, crs, [x], [y])
            c, r = ~transform * (x, y)
            at = math.floor(r + 1e-6), math.floor(c + 1e-6)
        if not (0 <= at[0] < dataset.height and 0 <= at[1] < dataset.width):
            return None
        values = dataset.read(window=Window(at[1], at[0], 1, 1), masked=True)
        return values.astype(np.float64).filled(np.nan)[:, 0, 0]


@contextmanager
def _only(dataset: rasterio.DatasetReader, bands: list[int]) -> Iterator[rasterio.DatasetReader]:
    """Open these bands (from 0) alone: a warped dataset of hundreds of bands computes them all for any one."""
    try:
        if "?" in dataset.name or dataset.count <= len(bands):
            raise RasterioError("nothing to leave out")
        part = rasterio.open(f"vrt://{dataset.name}?bands={','.join(str(b + 1) for b in bands)}")
    except RasterioError:
        yield dataset
        return
    with part:
        yield part


def load_views(
    fused: str | os.PathLike[str],
    hs: str | os.PathLike[str],
    guide: str | os.PathLike[str],
    prior: StagePicture | None = None,
) -> Views:
    """Read what the report shows.

    Args:
        fused, hs, guide: the rasters.
        prior: a method's prior, on the fused raster's grid; None for none.

    Raises:
        HyperSharpError: one of the rasters cannot be opened or read.
    """
    try:
        with ExitStack() as stack:
            stack.enter_context(georeference_optional())
            opened = [stack.enter_context(rasterio.open(os.fspath(p))) for p in (fused, hs, guide)]
            return _views(_Sources(*opened), prior)
    except (RasterioError, OSError, ValueError) as error:
        raise HyperSharpError(
            f"cannot read the rasters for the report's pictures: {(str(error).splitlines() or ['?'])[0]}",
            "check that the three files are still where they were",
        ) from error


def _views(sources: _Sources, prior: StagePicture | None) -> Views:
    fused = sources.fused
    views = Views(
        wavelength_nm=sources.bands.wavelength_nm,
        hs_wavelength_nm=sources.hs_bands.wavelength_nm,
        guide_ranges_nm=guide_ranges(sources.guide_bands, sources.guide.tags()),
        shape=fused.shape,
    )
    shrink = max(1.0, max(fused.shape) / OVERVIEW_PIXELS)
    rows, cols = (max(1, round(side / shrink)) for side in fused.shape)
    whole = _Frame(Window(0, 0, fused.width, fused.height), rows, cols)
    fused_rgb, hs_rgb = _rgb_bands(sources.bands), _rgb_bands(sources.hs_bands)
    if fused.count == sources.hs.count:
        hs_rgb = fused_rgb
    guide_rgb = _guide_rgb(sources)
    hs_picture = sources.read_other(sources.hs, hs_rgb, whole)
    guide_picture = sources.read_other(sources.guide, guide_rgb, whole)
    fused_picture = sources.read_fused(fused_rgb, whole)
    limits = {"hs": stretch_limits(hs_picture), "guide": stretch_limits(guide_picture)}
    limits["fused"] = limits["hs"]
    views.overview = _coloured({"hs": hs_picture, "guide": guide_picture, "fused": fused_picture}, limits)
    views.colours = _colour_text(sources, fused_rgb, guide_rgb)
    views.stretch = (
        "HS and fused have the same stretch: the 2nd to 98th percentile of the HS image, band by band. "
        "The guide, being in its own units, has its own 2nd to 98th percentile."
    )
    detail = _detail_frame(guide_picture, whole, fused)
    views.detail = _coloured(
        {
            "hs": sources.read_other(sources.hs, hs_rgb, detail),
            "guide": sources.read_other(sources.guide, guide_rgb, detail),
            "fused": sources.read_fused(fused_rgb, detail),
        },
        limits,
    )
    if prior is not None and prior.bands == fused_rgb:
        for pictures, frame in ((views.overview, whole), (views.detail, detail)):
            picture = prior.on(*_ranges(frame.window), (frame.rows, frame.cols))
            if picture is not None:
                pictures[PRIOR] = to_rgb(picture, limits["hs"])
        views.stretch = views.stretch.replace("HS and fused have", "HS, prior and fused have")
    w = detail.window
    views.detail_box = (
        w.col_off / fused.width,
        w.row_off / fused.height,
        (w.col_off + w.width) / fused.width,
        (w.row_off + w.height) / fused.height,
    )
    views.detail_pixels = (int(w.width), int(w.height))
    views.spots = _spots(sources, whole, hs_picture, guide_picture, fused_picture, views.notes)
    return views


def _ranges(window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a window's rows and columns, from and to."""
    top, left = int(window.row_off), int(window.col_off)
    return (top, top + int(window.height)), (left, left + int(window.width))


def _rgb_bands(bands: BandTable) -> list[int]:
    return colour_bands(bands.wavelength_nm, usable=bands.good)


def _guide_rgb(sources: _Sources) -> list[int]:
    """Return the guide's bands to show: one for PAN (or two bands), else three."""
    data = [i for i, c in enumerate(sources.guide.colorinterp) if c != ColorInterp.alpha]
    if len(data) < 3:
        return [data[0]]
    known = sources.guide_bands.take(data)
    if known.known:
        return [data[i] for i in colour_bands(known.wavelength_nm)]
    colours = {c: i for i, c in enumerate(sources.guide.colorinterp)}
    if {ColorInterp.red, ColorInterp.green, ColorInterp.blue} <= set(colours):
        return [colours[ColorInterp.red], colours[ColorInterp.green], colours[ColorInterp.blue]]
    return [data[2], data[1], data[0]]


def guide_ranges(bands: BandTable, tags: dict[str, str] | None = None) -> list[tuple[float, float]]:
    """Return (lower, upper) in nm of each guide band for which they are known.

    They come from centre and width, else from a range in the band's name ("PAN (480-690 nm)"), else, for a guide of
    one band, from a range in the dataset's tags.
    """
    found = []
    for wavelength, width, name in zip(bands.wavelength_nm, bands.fwhm_nm, bands.descriptions):
        named = _RANGE.search(name or "")
        if wavelength is not None and width is not None:
            found.append((wavelength - width / 2, wavelength + width / 2))
        elif named:
            found.append((float(named.group(1)), float(named.group(2))))
    if not found and len(bands.wavelength_nm) == 1:
        named = _RANGE.search(" ; ".join((tags or {}).values()))
        found = [(float(named.group(1)), float(named.group(2)))] if named else []
    return [(lower, upper) for lower, upper in found if lower < upper]


def _colour_text(sources: _Sources, rgb: list[int], guide_rgb: list[int]) -> str:
    wavelengths = [sources.bands.wavelength_nm[b] for b in rgb]
    bands = ", ".join(str(b + 1) for b in rgb)
    if all(w is not None for w in wavelengths):
        text = f"Red, green, blue: bands {bands} ({', '.join(f'{w:.0f}' for w in wavelengths)} nm)"
    else:
        text = f"Red, green, blue: bands {bands} (wavelengths unknown, so not true colour)"
    shown = ", ".join(str(b + 1) for b in guide_rgb)
    return f"{text}. Guide: band{'s' if len(guide_rgb) > 1 else ''} {shown}."


def stretch_limits(picture: Array) -> list[tuple[float, float]]:
    """Return the (low, high) of each band `[bands, rows, cols]` by `STRETCH_PERCENT` of the finite values."""
    limits = []
    for band in picture:
        values = band[np.isfinite(band)]
        if values.size == 0:
            limits.append((0.0, 1.0))
            continue
        low, high = (float(v) for v in np.percentile(values, STRETCH_PERCENT))
        limits.append((low, high if high > low else low + 1.0))
    return limits


def to_rgb(picture: Array, limits: list[tuple[float, float]]) -> Array:
    """Return uint8 `[rows, cols, 3]`; one band becomes grey, invalid pixels a neutral light grey."""
    low = np.array([a for a, _ in limits], np.float32)[:, None, None]
    high = np.array([b for _, b in limits], np.float32)[:, None, None]
    with np.errstate(invalid="ignore"):
        scaled = np.clip((picture - low) / (high - low), 0, 1)
    bad = ~np.isfinite(picture).all(axis=0)
    image = np.rint(np.nan_to_num(scaled) * 255).astype(np.uint8)
    image = np.repeat(image, 3, axis=0) if image.shape[0] == 1 else image[:3]
    image[:, bad] = 200
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def enlarge(image: Array) -> Array:
    """Return a small picture enlarged by a whole factor, pixels kept square and sharp."""
    factor = max(1, math.ceil(SHOWN_PIXELS / max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _coloured(pictures: dict[str, Array], limits: dict[str, list[tuple[float, float]]]) -> dict[str, Array]:
    return {name: to_rgb(picture, limits[name]) for name, picture in pictures.items()}


def _grey(picture: Array) -> Array:
    """Return the mean of a picture's bands, each scaled to its own spread; NaN where any is invalid."""
    scaled = [(b - low) / (high - low) for b, (low, high) in zip(picture, stretch_limits(picture))]
    return np.mean(scaled, axis=0)


def _gradient(grey: Array) -> tuple[Array, Array]:
    """Return gradient magnitude with invalid pixels at 0, and where it can be trusted."""
    valid = np.isfinite(grey)
    filled = np.where(valid, grey, np.median(grey[valid]) if valid.any() else 0.0)
    size = np.hypot(ndimage.sobel(filled, 0), ndimage.sobel(filled, 1))
    margin = max(2, max(grey.shape) // 40)
    inner = ndimage.binary_erosion(valid, iterations=margin, border_value=0)
    return np.where(inner, size, 0.0), inner


def _detail_frame(guide: Array, whole: _Frame, fused: rasterio.DatasetReader) -> _Frame:
    """Return the window with the most detail in the guide, at one picture pixel a fine pixel."""
    side = min(max(48, min(fused.shape) // 3), 120, *fused.shape)
    scale = whole.cols / fused.width
    box = max(1, round(side * scale))
    size, _ = _gradient(_grey(guide))
    activity = ndimage.uniform_filter(np.minimum(size, np.percentile(size, 95)), box, mode="constant")
    half = box // 2
    inner = np.zeros_like(activity, bool)
    inner[half : max(half + 1, whole.rows - half), half : max(half + 1, whole.cols - half)] = True
    r, c = np.unravel_index(int(np.argmax(np.where(inner, activity, -1.0))), activity.shape)
    row = min(max(0, round((r + 0.5) / scale - side / 2)), fused.height - side)
    col = min(max(0, round((c + 0.5) / scale - side / 2)), fused.width - side)
    return _Frame(Window(col, row, side, side), side, side)


def _spots(
    sources: _Sources, whole: _Frame, hs: Array, guide: Array, fused: Array, notes: list[str]
) -> list[Spot]:
    """Choose a bright, a dark, a plant-covered and an edge pixel, and read their spectra."""
    grey, guide_grey = _grey(hs), _grey(guide)
    edges, inner = _gradient(guide_grey)
    valid = inner & np.isfinite(grey) & np.isfinite(fused).all(axis=0)
    if not valid.any():
        notes.append("No spectra are shown: no pixel is valid in all three images.")
        return []
    rough = ndimage.uniform_filter(edges, 5)
    taken = np.zeros_like(valid)
    chosen: list[tuple[str, int, int]] = []

    def choose(name: str, score: Array, percentile: float, calm: bool = True) -> None:
        """Take, of the pixels with a high score, the calmest one (or that of the highest score)."""
        free = valid & ~taken & np.isfinite(score)
        if not free.any():
            return
        best = free & (score >= np.percentile(score[free], percentile))
        rank = np.where(best, rough, np.inf) if calm else np.where(best, -score, np.inf)
        r, c = (int(v) for v in np.unravel_index(int(np.argmin(rank)), rank.shape))
        chosen.append((name, r, c))
        reach = max(2, max(whole.rows, whole.cols) // 20)
        taken[max(0, r - reach) : r + reach + 1, max(0, c - reach) : c + reach + 1] = True

    pair = _red_and_infrared(sources, whole)
    # Dark means dark in the infrared as well, where it is seen: water and shadow rather than a wood.
    darkness = grey if pair is None else grey + 2 * _grey(pair[1:])
    choose("bright", grey, 98)
    choose("dark", -darkness, 98)
    ndvi = None if pair is None else _ndvi(*pair)
    if ndvi is None:
        notes.append("No vegetation pixel is shown: the HS image has no red or near-infrared band.")
    elif not (ndvi[valid] >= MIN_NDVI).any():
        notes.append(f"No vegetation pixel is shown: no pixel's NDVI reaches {MIN_NDVI:g}.")
    else:
        choose("vegetation", np.where(ndvi >= MIN_NDVI, ndvi, np.nan), 90)
    choose("edge", edges, 99, calm=False)
    spots = []
    for name, r, c in chosen:
        row = min(sources.fused.height - 1, int((r + 0.5) * sources.fused.height / whole.rows))
        col = min(sources.fused.width - 1, int((c + 0.5) * sources.fused.width / whole.cols))
        spectrum = sources.spectrum(sources.fused, row, col)
        if spectrum is None or not np.isfinite(spectrum).any():
            continue
        at = ((col + 0.5) / sources.fused.width, (row + 0.5) / sources.fused.height)
        spots.append(Spot(name, row, col, at, spectrum, sources.spectrum(sources.hs, row, col)))
    return spots


def _red_and_infrared(sources: _Sources, whole: _Frame) -> Array | None:
    """Return the HS image's red and near-infrared bands on a frame, or None when it has no such bands."""
    found = [nearest_band(sources.hs_bands.wavelength_nm, nm) for nm in (RED_NM, NIR_NM)]
    if any(f is None or f[1] > 30 for f in found):
        return None
    return sources.read_other(sources.hs, [f[0] for f in found if f is not None], whole)


def _ndvi(red: Array, infrared: Array) -> Array:
    """Return the vegetation index, NaN where it means nothing (deep shadow, negative reflectance)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ndvi = (infrared - red) / (infrared + red)
    return np.where((infrared + red > 0) & (np.abs(ndvi) <= 1), ndvi, np.nan)
