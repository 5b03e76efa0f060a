# SPDX-License-Identifier: GPL-2.0-or-later
"""The Processing provider: toolbox, batch, modeler, `qgis_process` and scripts find the algorithms here."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms.assess import AssessAlgorithm
from .algorithms.compare import CompareAlgorithm
from .algorithms.fuse import FuseAlgorithm
from .algorithms.import_product import ImportAlgorithm
from .algorithms.simulate import SimulateAlgorithm
from .algorithms.train import TrainAlgorithm
from .environment import PACKAGE_FOLDER

ICON_PATH = str(PACKAGE_FOLDER / "resources" / "icons" / "hypersharp.svg")


class HyperSharpProvider(QgsProcessingProvider):
    """All of HyperSharp's algorithms."""

    def id(self) -> str:
        """Return the fixed id that scripts use."""
        return "hypersharp"

    def name(self) -> str:
        """Return the name shown in the toolbox."""
        return "HyperSharp"

    def longName(self) -> str:
        """Return the name with an explanation."""
        return "HyperSharp hyperspectral fusion"

    def icon(self) -> QIcon:
        """Return the icon."""
        return QIcon(ICON_PATH)

    def svgIconPath(self) -> str:
        """Return the icon's file."""
        return ICON_PATH

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        """Return what the backend writes: GeoTIFF alone."""
        return ["tif", "tiff"]

    def loadAlgorithms(self) -> None:
        """Enter the algorithms."""
        for algorithm in (
            FuseAlgorithm,
            AssessAlgorithm,
            CompareAlgorithm,
            TrainAlgorithm,
            SimulateAlgorithm,
            ImportAlgorithm,
        ):
            self.addAlgorithm(algorithm())
