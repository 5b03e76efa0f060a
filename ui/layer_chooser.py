# SPDX-License-Identifier: GPL-2.0-or-later
"""A raster from the project or from a file, in one line."""

from __future__ import annotations

import os
from typing import Any, Optional

from qgis.core import QgsMapLayerProxyModel, QgsProviderRegistry, QgsRasterLayer
from qgis.gui import QgsMapLayerComboBox
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QToolButton, QWidget

from ..plugin.log import tr


class LayerChooser(QWidget):
    """A layer combo box with a button that adds a file.

    Signals:
        changed(): another raster is chosen.
    """

    changed = pyqtSignal()

    def __init__(self, tooltip: str, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._files: list[str] = []
        self.combo = QgsMapLayerComboBox(self)
        self.combo.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        services = set(QgsProviderRegistry.instance().providerList()) - {"gdal"}
        self.combo.setExcludedProviders(sorted(services))  # only rasters with a file behind them
        self.combo.setAllowEmptyLayer(True)
        self.combo.setShowCrs(True)
        self.combo.setToolTip(tooltip)
        self.combo.setMinimumContentsLength(24)
        self.combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.combo.currentIndexChanged.connect(lambda _index: self.changed.emit())
        browse = QToolButton(self)
        browse.setText("…")
        browse.setToolTip(tr("Choose a raster file"))
        browse.clicked.connect(lambda _checked: self._browse())
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.combo, 1)
        layout.addWidget(browse)

    def source(self) -> Any:
        """Return the chosen layer, or the path of the chosen file; None when nothing is chosen."""
        layer = self.combo.currentLayer()
        if isinstance(layer, QgsRasterLayer):
            return layer
        text = self.combo.currentText()
        return text if text in self._files else None

    def set_layer(self, layer: Optional[QgsRasterLayer]) -> None:
        """Choose a layer of the project."""
        self.combo.setLayer(layer)

    def set_file(self, path: str) -> None:
        """Choose a file that need not be in the project."""
        if path not in self._files:
            self._files.append(path)
            self.combo.setAdditionalItems(self._files)
        self.combo.setCurrentIndex(self.combo.findText(path))

    def _browse(self) -> None:
        source = self.source()
        folder = os.path.dirname(source if isinstance(source, str) else source.source()) if source else ""
        filters = QgsProviderRegistry.instance().fileRasterFilters()
        path, _ = QFileDialog.getOpenFileName(self, tr("Choose a raster file"), folder, filters)
        if path:
            self.set_file(path)
