# SPDX-License-Identifier: GPL-2.0-or-later
"""The fused layer in the project: its colours, its place in the tree, its metadata. Main thread only."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Optional

from qgis.core import (
    QgsContrastEnhancement,
    QgsLayerTreeGroup,
    QgsMultiBandColorRenderer,
    QgsProject,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRectangle,
)

from ..backend.errors import HyperSharpError
from ..backend.job import FuseJob
from ..backend.registry import METHODS
from ..backend.sensors import colour_bands
from . import log
from .rasters import LayerOrPath, RasterFacts, read_facts

CUMULATIVE_CUT = (0.02, 0.98)
DEVIATIONS = 2.0
"""About the mean, for a stretch where there is no histogram to cut; QGIS's default too."""
_SAMPLE_PIXELS = 250_000
_UNTOUCHED_BANDS = (1, 2, 3)
"""What QGIS shows of a raster that nobody has styled and that names no colours."""


@dataclass(frozen=True)
class ColourStyle:
    """Bands (from 1) and their stretch for red, green and blue, as plain data that can wait for the result.

    Attributes:
        bands: band numbers of red, green and blue.
        ranges: the values shown as darkest and brightest, one pair a colour.
        algorithm: a `QgsContrastEnhancement.ContrastEnhancementAlgorithm`.
        as_shown: the source layer shows these very bands and stretch.
        brightness, contrast, gamma: the source layer's brightness filter.
    """

    bands: tuple[int, int, int]
    ranges: tuple[tuple[float, float], ...]
    algorithm: Any
    as_shown: bool
    brightness: int = 0
    contrast: int = 0
    gamma: float = 1.0


def colour_style(source: LayerOrPath, facts: Optional[RasterFacts] = None) -> Optional[ColourStyle]:
    """Return how a result made from `source` is to be shown, so that both look the same where they are the same.

    A source layer that shows three bands of its user's choice is followed exactly. One that shows nothing but
    QGIS's first guess (bands 1, 2, 3) gets true colour by wavelength, with QGIS's usual stretch of the source's
    own values in those bands. None when the source cannot be read.
    """
    layer = source if isinstance(source, QgsRasterLayer) else QgsRasterLayer(os.fspath(source), "source")
    if not layer.isValid():
        return None
    try:
        facts = facts or read_facts(source)
    except HyperSharpError:
        return None
    filters = _filters(layer)
    wanted = tuple(i + 1 for i in colour_bands(facts.wavelengths_nm, usable=facts.usable))
    shown = _shown(layer)
    if shown is not None and (shown[0] == wanted or shown[0] != _UNTOUCHED_BANDS):
        return ColourStyle(*shown, True, **filters)
    ranges = tuple(_stretch(layer, band) for band in wanted)
    algorithm = QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
    return ColourStyle(wanted, ranges, algorithm, False, **filters)


def _filters(layer: QgsRasterLayer) -> dict[str, Any]:
    brightness = layer.brightnessFilter()
    if brightness is None:
        return {}
    values: dict[str, Any] = {"brightness": brightness.brightness(), "contrast": brightness.contrast()}
    if hasattr(brightness, "gamma"):
        values["gamma"] = brightness.gamma()
    return values


def _shown(layer: QgsRasterLayer) -> Optional[tuple[tuple[int, int, int], tuple, Any]]:
    """Return bands, ranges and algorithm of a layer in three colours with a stretch; None for any other."""
    renderer = layer.renderer()
    if not isinstance(renderer, QgsMultiBandColorRenderer):
        return None
    bands = (renderer.redBand(), renderer.greenBand(), renderer.blueBand())
    stretches = (
        renderer.redContrastEnhancement(),
        renderer.greenContrastEnhancement(),
        renderer.blueContrastEnhancement(),
    )
    if any(band < 1 for band in bands) or any(s is None for s in stretches):
        return None
    none = QgsContrastEnhancement.ContrastEnhancementAlgorithm.NoEnhancement
    algorithm = stretches[0].contrastEnhancementAlgorithm()
    if algorithm == none:
        return None
    return bands, tuple((s.minimumValue(), s.maximumValue()) for s in stretches), algorithm


def _stretch(layer: QgsRasterLayer, band: int) -> tuple[float, float]:
    """Return QGIS's usual cumulative cut of one band over the whole layer."""
    provider = layer.dataProvider()
    low, high = provider.cumulativeCut(band, *CUMULATIVE_CUT, QgsRectangle(), _SAMPLE_PIXELS)
    if math.isfinite(low) and math.isfinite(high) and low < high:
        return float(low), float(high)
    # Of whole numbers with a scale QGIS 3.44 makes no histogram.
    known = provider.bandStatistics(band)
    reach = DEVIATIONS * known.stdDev
    return max(known.minimumValue, known.mean - reach), min(known.maximumValue, known.mean + reach)


def apply_style(layer: QgsRasterLayer, style: ColourStyle) -> None:
    """Show a layer with these bands and this stretch; nodata stays transparent."""
    provider = layer.dataProvider()
    renderer = QgsMultiBandColorRenderer(provider, *style.bands)
    setters = (
        renderer.setRedContrastEnhancement,
        renderer.setGreenContrastEnhancement,
        renderer.setBlueContrastEnhancement,
    )
    for setter, band, (low, high) in zip(setters, style.bands, style.ranges):
        enhancement = QgsContrastEnhancement(provider.dataType(band))
        enhancement.setMinimumValue(low)
        enhancement.setMaximumValue(high)
        enhancement.setContrastEnhancementAlgorithm(style.algorithm, True)
        setter(enhancement)
    renderer.setMinMaxOrigin(QgsRasterMinMaxOrigin())  # no limits: fixed values, QGIS must not stretch anew
    layer.setRenderer(renderer)
    brightness = layer.brightnessFilter()
    if brightness is not None:
        brightness.setBrightness(style.brightness)
        brightness.setContrast(style.contrast)
        if hasattr(brightness, "setGamma"):
            brightness.setGamma(style.gamma)
    layer.triggerRepaint()


_SOURCE_PROPERTIES = ("hypersharp/hs", "hypersharp/guide")
"""Custom layer properties, saved with the project, that name what a layer was fused from."""


@dataclass
class FusedSource:
    """What of a run has to wait for its result: captured on the main thread before the work begins."""

    job: FuseJob
    hs_name: str
    guide_name: str
    style: Optional[ColourStyle]
    hs_layer_id: str = ""
    started: datetime = field(default_factory=datetime.now)

    @property
    def method_title(self) -> str:
        """The method's short name as people see it."""
        info = METHODS.get(self.job.method)
        return info.title.split(" (")[0] if info else self.job.method

    @property
    def layer_name(self) -> str:
        """The fused layer's name."""
        return f"{self.hs_name} · {self.method_title}"

    @property
    def group_name(self) -> str:
        """The name of its group in the layer tree."""
        return f"{self.hs_name} fused ({self.method_title})"


def describe(layer: QgsRasterLayer, source: FusedSource, metrics: dict[str, Any]) -> None:
    """Write method, parameters, versions and quality into the layer's metadata, and beside the file as .qmd."""
    job = source.job
    info = METHODS.get(job.method)
    versions = ", ".join(
        f"{name} {version}" for name, version in sorted((metrics.get("versions") or {}).items())
    )
    parameters = {
        "seed": job.seed,
        "dtype": job.dtype,
        "mtf_hs": job.mtf_hs,
        "mtf_guide": job.mtf_guide,
        "coregister": job.coregister,
        **(metrics.get("parameters") or job.parameters),
    }
    said = ", ".join(f"{name}={value}" for name, value in parameters.items() if not isinstance(value, dict))
    scores = _scores(metrics)
    lines = [
        f"{source.hs_name} ({os.path.basename(job.hs)}) fused with {source.guide_name} "
        f"({os.path.basename(job.guide)}) by {info.title if info else job.method}.",
        f"Ratio {metrics['ratio']}." if metrics.get("ratio") else "",
        f"Reference: {info.citation}." if info else "",
        f"Quality: {scores}." if scores else "",
        f"Parameters: {said}.",
        f"Versions: {versions}." if versions else "",
        *(f"Warning: {text}." for text in metrics.get("warnings") or ()),
    ]
    metadata = layer.metadata()
    metadata.setIdentifier(layer.source())
    metadata.setTitle(source.layer_name)
    metadata.setAbstract("\n".join(line for line in lines if line))
    metadata.setType("dataset")
    metadata.setParentIdentifier(job.hs)
    metadata.setCrs(layer.crs())
    metadata.setKeywords(
        {"gmd:topicCategory": ["imageryBaseMapsEarthCover"], "HyperSharp": ["fusion", job.method]}
    )
    metadata.addHistoryItem(
        f"{source.started:%Y-%m-%d %H:%M:%S} HyperSharp: method {job.method}, {said}"
        + (f", weights {job.weights}" if job.weights else "")
        + (f"; {versions}" if versions else "")
    )
    layer.setMetadata(metadata)
    message, saved = layer.saveDefaultMetadata()
    if not saved:
        log.write(f"the metadata file was not written: {message}", "warning")


def _scores(metrics: dict[str, Any]) -> str:
    """Return the headline indices in words."""
    parts = []
    for protocol, names in (("reduced_resolution", ("PSNR", "SAM", "ERGAS")), ("full_resolution", ("HQNR",))):
        values = (metrics.get(protocol) or {}).get("fused") or {}
        parts += [f"{name} {values[name]:.4g}" for name in names if values.get(name) is not None]
    return ", ".join(parts)


def add_fused_layer(source: FusedSource, path: str, metrics: dict[str, Any]) -> QgsRasterLayer:
    """Put the result on the map: styled as its source, described, in a group above the source layer.

    Raises:
        HyperSharpError: QGIS cannot open the result.
    """
    layer = QgsRasterLayer(path, source.layer_name)
    if not layer.isValid():
        raise HyperSharpError(
            f"QGIS cannot open the result: {path}", "look at the log; the file may have been moved"
        )
    dress(layer, source, metrics)
    project = QgsProject.instance()
    project.addMapLayer(layer, False)
    _group(project, source).insertLayer(0, layer)
    return layer


def dress(layer: QgsRasterLayer, source: FusedSource, metrics: dict[str, Any]) -> None:
    """Give a loaded result its colours and its metadata."""
    if source.style is not None:
        apply_style(layer, source.style)
    describe(layer, source, metrics)
    for name, path in zip(_SOURCE_PROPERTIES, (source.job.hs, source.job.guide)):
        layer.setCustomProperty(name, path)


def noted_sources(layer: QgsRasterLayer) -> Optional[tuple[str, str]]:
    """Return the paths of the HS raster and the guide that a layer was fused from; None when nobody noted them."""
    hs, guide = (str(layer.customProperty(name, "") or "") for name in _SOURCE_PROPERTIES)
    return (hs, guide) if hs and guide else None


def _group(project: QgsProject, source: FusedSource) -> QgsLayerTreeGroup:
    """Return the run's group: the one of the same name, else a new one on top of the tree or of the source's group.

    On top and not beside the source layer: a result below the guide would not be seen.
    """
    root = project.layerTreeRoot()
    existing = root.findGroup(source.group_name)
    if existing is not None:
        return existing
    node = root.findLayer(source.hs_layer_id) if source.hs_layer_id else None
    parent = node.parent() if node is not None else root
    return parent.insertGroup(0, source.group_name)


def match_source(source: FusedSource) -> bool:
    """Show the source layer in the result's bands and stretch, if it shows but QGIS's first guess."""
    layer = QgsProject.instance().mapLayer(source.hs_layer_id) if source.hs_layer_id else None
    if not isinstance(layer, QgsRasterLayer) or source.style is None or source.style.as_shown:
        return False
    shown = _shown(layer)
    if shown is not None and shown[0] != _UNTOUCHED_BANDS:
        return False  # styled by the user while the job ran
    apply_style(layer, source.style)
    return True


def capture(job: FuseJob, hs: LayerOrPath, guide: LayerOrPath) -> FusedSource:
    """Remember names and colours of the inputs before the work begins.

    Raises:
        HyperSharpError: an input cannot be read.
    """
    hs_facts, guide_facts = read_facts(hs), read_facts(guide)
    return FusedSource(
        job,
        hs_facts.name,
        guide_facts.name,
        colour_style(hs, hs_facts),
        hs.id() if isinstance(hs, QgsRasterLayer) else "",
    )
