# SPDX-License-Identifier: GPL-2.0-or-later
"""A pair of rasters before the run: ratio, overlap, size of the result, and what stands against fusing it.

Cheap and early: the dialog shows it while the user chooses, Processing refuses by it. The backend's own checks
have the last word.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from qgis.core import (
    QgsCoordinateTransform,
    QgsCsException,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRectangle,
    QgsReferencedRectangle,
)

from ..backend import estimate, registry
from .log import tr
from .rasters import RasterFacts, is_plain_file

MIN_HS_BANDS = 4
_EDGE_POINTS = 9


@dataclass
class PairFacts:
    """What a pair comes to.

    Attributes:
        hs, guide: the two headers.
        true_ratio: HS pixel size over guide pixel size; None when it cannot be told.
        ratio: the integer ratio that will be used.
        overlap: share of the HS image that the guide covers, 0 to 1.
        rows, cols: size of the result in pixels.
        problems: why the pair cannot be fused; empty when it can.
        notes: what is worth knowing and stops nothing.
    """

    hs: RasterFacts
    guide: RasterFacts
    true_ratio: Optional[float] = None
    ratio: int = 0
    overlap: float = 0.0
    rows: int = 0
    cols: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def dtype(self, dtype: str) -> str:
        """Return the result's pixel type for a job's `dtype`."""
        return self.hs.dtype if dtype == "same" else dtype

    def estimate(
        self,
        method: str,
        dtype: str,
        memory_gb: float,
        assess: bool,
        adapt_steps: int = 0,
        parameters: Optional[Mapping[str, Any]] = None,
    ) -> estimate.Estimate:
        """Return memory, disk and time (on a CPU) that the fusion will need."""
        info = registry.method_info(method)
        return estimate.estimate(
            self.hs.bands,
            self.guide.bands,
            self.rows,
            self.cols,
            self.dtype(dtype),
            memory_gb,
            info.relative_cost,
            assess,
            self.ratio,
            info.network_seconds * registry.network_times(info, parameters or {}),
            info.network_reach,
            adapt_steps if info.needs_weights else 0,
            info.adapt_seconds,
        )


def read_pair(
    hs: RasterFacts, guide: RasterFacts, extent: Optional[QgsReferencedRectangle] = None
) -> PairFacts:
    """Work out what fusing the two comes to, inside `extent` where one is given. Raises nothing."""
    pair = PairFacts(hs, guide)
    _check_roles(pair)
    if pair.problems:
        return pair
    if hs.geotransform is None or guide.geotransform is None:
        _without_georeference(pair)
    else:
        _with_georeference(pair, extent)
    return pair


def _check_roles(pair: PairFacts) -> None:
    """Note what is wrong with the choice of layers as such."""
    hs, guide = pair.hs, pair.guide
    if _same_file(hs.path, guide.path):
        pair.problems.append(
            tr(
                "Both layers are the same file. "
                "Choose the hyperspectral raster and a finer PAN or multispectral raster."
            )
        )
        return
    for role, facts in ((tr("hyperspectral layer"), hs), (tr("guide"), guide)):
        if not facts.numeric:
            pair.problems.append(
                tr(
                    "The {role} holds {dtype} values. Convert it to an integer or floating-point raster."
                ).format(role=role, dtype=facts.dtype)
            )
    if hs.bands < MIN_HS_BANDS:
        pair.problems.append(
            tr(
                "The hyperspectral layer has too few bands: {count}, at least {least} are needed. "
                "Are the two layers swapped?"
            ).format(count=hs.bands, least=MIN_HS_BANDS)
        )
    elif guide.bands > hs.bands:
        pair.problems.append(
            tr(
                "The guide has more bands ({guide}) than the hyperspectral layer ({hs}). Are the two layers swapped?"
            ).format(guide=guide.bands, hs=hs.bands)
        )
    if hs.spectral_range_nm is None:
        pair.notes.append(tr("The bands have no wavelengths: colours are spread over the bands."))


def _same_file(a: str, b: str) -> bool:
    if a == b:
        return True
    both = is_plain_file(a) and is_plain_file(b) and os.path.exists(a) and os.path.exists(b)
    return both and os.path.samefile(a, b)


def _set_ratio(pair: PairFacts, ratio: float) -> bool:
    """Take over the ratio; False (and a problem) when the guide is not finer."""
    pair.true_ratio = ratio
    if ratio < estimate.MIN_RATIO:
        pair.problems.append(
            tr(
                "The guide's pixels are not finer than the hyperspectral layer's (ratio {ratio:.2f}). "
                "Choose a guide with smaller pixels."
            ).format(ratio=ratio)
        )
        return False
    pair.ratio = max(2, round(ratio))
    return True


def _without_georeference(pair: PairFacts) -> None:
    """Take both as covering the same ground when their sizes agree."""
    hs, guide = pair.hs, pair.guide
    ratio = guide.rows / hs.rows
    if ratio != guide.cols / hs.cols or ratio != int(ratio):
        pair.problems.append(
            tr(
                "A georeference is missing and the sizes do not agree by an integer ratio. Georeference both rasters."
            )
        )
        return
    if _set_ratio(pair, ratio):
        pair.overlap, pair.rows, pair.cols = 1.0, guide.rows, guide.cols
        pair.notes.append(
            tr("A georeference is missing: both rasters are taken as covering exactly the same area.")
        )


def _with_georeference(pair: PairFacts, extent: Optional[QgsReferencedRectangle]) -> None:
    """Compare the two grids in the guide's pixel coordinates."""
    hs, guide = pair.hs, pair.guide
    to_pixels = _Pixels(guide)
    try:
        centre = [(hs.cols / 2, hs.rows / 2), (hs.cols / 2 + 1, hs.rows / 2), (hs.cols / 2, hs.rows / 2 + 1)]
        (u0, v0), (u1, v1), (u2, v2) = (to_pixels(hs, *hs.to_map(*p)) for p in centre)
        outline = [to_pixels(hs, *hs.to_map(*p)) for p in _outline(hs.cols, hs.rows)]
    except QgsCsException:
        pair.problems.append(
            tr("The hyperspectral layer's CRS cannot be transformed to the guide's. Check both CRSs.")
        )
        return
    if not _set_ratio(pair, math.sqrt(abs((u1 - u0) * (v2 - v0) - (u2 - u0) * (v1 - v0)))):
        return
    polygon = QgsGeometry.fromPolygonXY([[QgsPointXY(*p) for p in outline]])
    area = polygon.intersection(QgsGeometry.fromRect(QgsRectangle(0, 0, guide.cols, guide.rows)))
    pair.overlap = min(1.0, area.area() / polygon.area()) if polygon.area() > 0 else 0.0
    box = area.boundingBox()
    if area.isEmpty() or box.width() < 1 or box.height() < 1:
        pair.overlap = 0.0
        pair.problems.append(
            tr(
                "The two layers do not overlap. Check that both show the same place and that their CRSs are right."
            )
        )
        return
    if extent is not None and not extent.isEmpty():
        box = _cut(pair, box, to_pixels, extent)
        if box is None:
            return
    pair.cols = max(1, math.floor(box.xMaximum() + 0.5) - math.ceil(box.xMinimum() - 0.5))
    pair.rows = max(1, math.floor(box.yMaximum() + 0.5) - math.ceil(box.yMinimum() - 0.5))
    if pair.overlap < 0.995:
        pair.notes.append(
            tr("The guide covers {share:.0f} % of the hyperspectral layer: the result is cut to it.").format(
                share=100 * pair.overlap
            )
        )
    if abs(pair.true_ratio - pair.ratio) > 0.01:
        pair.notes.append(
            tr(
                "The ratio is not a whole number: the hyperspectral layer is resampled once, to a ratio of {ratio}."
            ).format(ratio=pair.ratio)
        )


def _cut(
    pair: PairFacts, box: QgsRectangle, to_pixels: _Pixels, extent: QgsReferencedRectangle
) -> Optional[QgsRectangle]:
    """Return the part of a box of guide pixels that lies in the extent; None (and a problem) without one."""
    crs = extent.crs() if extent.crs().isValid() else pair.guide.crs
    transform = QgsCoordinateTransform(crs, pair.guide.crs, QgsProject.instance())
    try:
        wanted = transform.transformBoundingBox(extent) if crs != pair.guide.crs else QgsRectangle(extent)
        corners = [
            to_pixels(pair.guide, x, y)
            for x in (wanted.xMinimum(), wanted.xMaximum())
            for y in (wanted.yMinimum(), wanted.yMaximum())
        ]
    except QgsCsException:
        corners = [(-1.0, -1.0)]
    us, vs = [c[0] for c in corners], [c[1] for c in corners]
    cut = box.intersect(QgsRectangle(min(us), min(vs), max(us), max(vs)))
    if cut.isNull() or cut.width() <= 0 or cut.height() <= 0:
        pair.problems.append(tr("The extent lies outside the area that both layers cover."))
        return None
    return cut


def _outline(cols: int, rows: int) -> list[tuple[float, float]]:
    """Return pixel positions along a raster's border, closed, dense enough for a curved reprojection."""
    steps = [i / (_EDGE_POINTS - 1) for i in range(_EDGE_POINTS)]
    top = [(cols * t, 0.0) for t in steps]
    right = [(float(cols), rows * t) for t in steps[1:]]
    bottom = [(cols * (1 - t), float(rows)) for t in steps[1:]]
    left = [(0.0, rows * (1 - t)) for t in steps[1:]]
    return top + right + bottom + left


class _Pixels:
    """Turns map positions of any raster into pixel positions of the guide."""

    def __init__(self, guide: RasterFacts) -> None:
        self._guide = guide
        x0, a, b, y0, d, e = guide.geotransform or (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
        self._origin, self._inverse = (x0, y0), (e, -b, -d, a)
        self._det = (a * e - b * d) or 1.0
        self._transforms: dict[str, QgsCoordinateTransform] = {}

    def __call__(self, source: RasterFacts, x: float, y: float) -> tuple[float, float]:
        if source.crs.isValid() and self._guide.crs.isValid() and source.crs != self._guide.crs:
            transform = self._transforms.setdefault(
                source.path, QgsCoordinateTransform(source.crs, self._guide.crs, QgsProject.instance())
            )
            point = transform.transform(QgsPointXY(x, y))
            x, y = point.x(), point.y()
        dx, dy = x - self._origin[0], y - self._origin[1]
        p, q, r, s = self._inverse
        return (p * dx + q * dy) / self._det, (r * dx + s * dy) / self._det


def method_problem(info: registry.MethodInfo, guide: RasterFacts) -> Optional[str]:
    """Return why a method cannot take a guide, or None."""
    kind = "pan" if guide.bands == 1 else "msi"
    if kind in info.guide_kinds:
        return None
    if kind == "pan":
        return tr("{method} needs a multispectral guide, this one has a single band.").format(
            method=info.title
        )
    return tr("{method} needs a panchromatic guide, this one has {count} bands.").format(
        method=info.title, count=guide.bands
    )


def output_problem(output: str, pair: Optional[PairFacts] = None, needed_bytes: int = 0) -> Optional[str]:
    """Return what is wrong with an output file, or None.

    Args:
        output: path of the GeoTIFF to write.
        pair: the inputs, which it must not overwrite.
        needed_bytes: estimated size of the result.
    """
    if not output.lower().endswith((".tif", ".tiff")):
        return tr("The output must be a GeoTIFF: let its name end in .tif.")
    if pair is not None and any(_same_file(os.path.abspath(output), f.path) for f in (pair.hs, pair.guide)):
        return tr("The output is one of the inputs. Choose another file.")
    folder = os.path.dirname(os.path.abspath(output))
    if os.path.isdir(output):
        return tr("The output is a folder. Name a file.")
    if not os.path.isdir(folder):
        return tr("The output folder does not exist: {folder}.").format(folder=folder)
    if not os.access(folder, os.W_OK) or (os.path.exists(output) and not os.access(output, os.W_OK)):
        return tr("The output cannot be written: {output}.").format(output=output)
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        return tr("The disk is too small: about {needed:.1f} GB needed, {free:.1f} GB free.").format(
            needed=needed_bytes / 1e9, free=free / 1e9
        )
    return None
