# SPDX-License-Identifier: GPL-2.0-or-later
"""Enum values that QGIS has moved and renamed between 3.22 and 4: one name for each here."""

from __future__ import annotations

from qgis.core import Qgis, QgsCoordinateReferenceSystem, QgsProcessingParameterDefinition

if hasattr(Qgis, "CrsWktVariant"):  # 3.36 and newer
    WKT_PREFERRED = Qgis.CrsWktVariant.Preferred
else:
    WKT_PREFERRED = QgsCoordinateReferenceSystem.WktVariant.WKT_PREFERRED

if hasattr(Qgis, "ProcessingParameterFlag"):  # 3.36 and newer
    FLAG_ADVANCED = Qgis.ProcessingParameterFlag.Advanced
else:
    FLAG_ADVANCED = QgsProcessingParameterDefinition.Flag.FlagAdvanced

if hasattr(Qgis, "LayerType"):  # 3.30 and newer
    RASTER_LAYER = Qgis.LayerType.Raster
else:
    from qgis.core import QgsMapLayerType

    RASTER_LAYER = QgsMapLayerType.RasterLayer
