# SPDX-License-Identifier: GPL-2.0-or-later
"""`hypersharp:import`: a product of PRISMA or EMIT in, its rasters out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterDestination,
    QgsRasterLayer,
)

from ...backend import protocol
from ...backend.job import ImportJob
from .. import layers
from ..log import tr
from .base import HyperSharpAlgorithm, PostProcessor


class ImportAlgorithm(HyperSharpAlgorithm):
    """Make rasters of a sensor's product."""

    NAME = "import"
    TITLE = "Import a product (PRISMA, EMIT)"
    SUMMARY = (
        "Makes rasters of a product that no GIS shows as it is delivered: of PRISMA (level 2D, or 2C, which has no "
        "coordinates) the hyperspectral image and the panchromatic one, of EMIT (reflectance, level 2A) the "
        "hyperspectral one. Both are ready to be fused. Values are reflectances in 1/10,000."
    )
    HELP = {
        "PRODUCT": "The product's file, PRS_L2D_....he5 (unpacked if it came in a .zip) or EMIT_L2A_RFL_....nc.",
        "HS": (
            "The hyperspectral GeoTIFF, its bands in ascending order of wavelength. Of PRISMA's two spectrometers each "
            "has the bands on its side of the middle of what both see."
        ),
        "PAN": "The panchromatic GeoTIFF (PRISMA). Left out where it is skipped, or where the product has none.",
    }

    def initAlgorithm(self, _configuration: Optional[dict[str, Any]] = None) -> None:
        """Declare parameters and outputs."""
        self.add(
            QgsProcessingParameterFile(
                "PRODUCT", tr("Product"), fileFilter=tr("Products (*.he5 *.HE5 *.nc *.NC)")
            )
        )
        self.add(QgsProcessingParameterRasterDestination("HS", tr("Hyperspectral")))
        self.add(QgsProcessingParameterRasterDestination("PAN", tr("Panchromatic"), optional=True))

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Any:
        """Refuse early what is no file."""
        valid, message = super().checkParameterValues(parameters, context)
        if not valid:
            return valid, message
        path = Path(self.parameterAsFile(parameters, "PRODUCT", context))
        if not path.is_file():
            return False, tr("The product is no file: {path}. Name the .he5 or .nc file itself.").format(
                path=path
            )
        return True, ""

    def build_job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> ImportJob:
        """Return the job."""
        return ImportJob(
            self.parameterAsFile(parameters, "PRODUCT", context),
            self.parameterAsOutputLayer(parameters, "HS", context),
            self.parameterAsOutputLayer(parameters, "PAN", context) or None,
        )

    def results_of(
        self, result: protocol.Result, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        """Return the rasters; have them named and coloured when Processing loads them."""
        job = self._job
        if job.pan and "PAN" not in result.outputs:  # the product has none
            there = {k: v for k, v in context.layersToLoadOnCompletion().items() if k != job.pan}
            context.setLayersToLoadOnCompletion(there)
        for name, path in result.outputs.items():
            if context.willLoadLayerOnCompletion(path):
                details = context.layerToLoadOnCompletionDetails(path)
                wanted = None if self.has_own_name(details, name) else f"{name} {Path(job.product).stem}"
                details.setPostProcessor(ShowProduct(wanted).kept())
        return dict(result.outputs)


class ShowProduct(PostProcessor):
    """Gives an imported image a name, if it needs one, and shows it in true colour (main thread)."""

    def __init__(self, name: Optional[str]) -> None:
        super().__init__()
        self._name = name

    def postProcessLayer(
        self, layer: Any, _context: QgsProcessingContext, _feedback: QgsProcessingFeedback
    ) -> None:
        """Name and style the layer."""
        if not isinstance(layer, QgsRasterLayer):
            return
        if self._name:
            layer.setName(self._name)
        style = layers.colour_style(layer) if layer.bandCount() > 1 else None
        if style is not None:
            layers.apply_style(layer, style)
