# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of a run that most people leave alone, in a group that folds."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsReferencedRectangle
from qgis.gui import QgsCollapsibleGroupBox, QgsExtentWidget
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFormLayout, QWidget

from ..plugin import settings
from ..plugin.log import tr

DEVICE_TITLES = {"auto": "Automatic", "cpu": "CPU", "cuda": "GPU (CUDA)"}


class RunOptions(QgsCollapsibleGroupBox):
    """Extent, pixel type, memory, assessment and report; and the device's box, which the dialog shows elsewhere.

    Signals:
        changed(): an option that the estimates depend on has changed.
    """

    changed = pyqtSignal()

    def __init__(self, canvas: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(tr("Options"), parent)
        self.extent_widget = QgsExtentWidget(self, QgsExtentWidget.WidgetStyle.CondensedStyle)
        self.extent_widget.setNullValueAllowed(True, tr("All that both layers cover"))
        self.extent_widget.setToolTip(tr("Only fuse this area, snapped to the guide's pixels"))
        if canvas is not None:
            self.extent_widget.setMapCanvas(canvas)
        self.device_combo = QComboBox(self)
        for value in settings.DEVICES:
            self.device_combo.addItem(tr(DEVICE_TITLES[value]), value)
        self.device_combo.setCurrentIndex(self.device_combo.findData(settings.device()))
        self.device_combo.setToolTip(
            tr("Automatic takes a CUDA device when there is one that works, else the CPU")
        )
        self.dtype_combo = QComboBox(self)
        self.dtype_combo.addItem(tr("As the hyperspectral layer"), "same")
        self.dtype_combo.addItem(tr("Float32"), "float32")
        self.memory_spin = QDoubleSpinBox(self)
        self.memory_spin.setRange(0.5, 1024)
        self.memory_spin.setDecimals(1)
        self.memory_spin.setSingleStep(0.5)
        self.memory_spin.setSuffix(" GB")
        self.memory_spin.setValue(settings.memory_gb())
        self.memory_spin.setToolTip(tr("Upper bound of the working memory, whatever the size of the rasters"))
        self.assess_check = QCheckBox(tr("Assess the quality, with plain interpolation as control"), self)
        self.assess_check.setChecked(True)
        self.report_check = QCheckBox(tr("Write a report (HTML) and metrics (JSON) beside the result"), self)
        self.report_check.setChecked(True)
        self.coregister_check = QCheckBox(tr("Co-register the layers where they lie apart"), self)
        self.coregister_check.setChecked(True)
        self.coregister_check.setToolTip(
            tr(
                "A hyperspectral layer that lies off the guide's ground by more than its own pixel, up to twelve of "
                "them, is fused where it belongs; smaller offsets are left to the methods that find them"
            )
        )
        self.match_check = QCheckBox(tr("Show an unstyled hyperspectral layer in the same colours"), self)
        self.match_check.setChecked(settings.match_source_colours())
        self.match_check.setToolTip(
            tr(
                "A layer that still shows bands 1, 2, 3 gets the result's bands and stretch, so that both compare"
            )
        )
        form = QFormLayout(self)
        form.addRow(tr("Extent"), self.extent_widget)
        form.addRow(tr("Pixel type"), self.dtype_combo)
        form.addRow(tr("Memory bound"), self.memory_spin)
        form.addRow(self.coregister_check)
        form.addRow(self.assess_check)
        form.addRow(self.report_check)
        form.addRow(self.match_check)
        self._connect()

    def _connect(self) -> None:
        self.extent_widget.extentChanged.connect(lambda _box: self.changed.emit())
        self.dtype_combo.currentIndexChanged.connect(lambda _index: self.changed.emit())
        self.memory_spin.valueChanged.connect(lambda _value: self.changed.emit())
        self.device_combo.currentIndexChanged.connect(lambda _index: self.changed.emit())
        self.assess_check.toggled.connect(lambda _checked: self.changed.emit())

    def extent(self) -> Optional[QgsReferencedRectangle]:
        """Return the chosen extent; None for all."""
        box = self.extent_widget.outputExtent()
        if not self.extent_widget.isValid() or box.isNull() or box.isEmpty():
            return None
        return QgsReferencedRectangle(box, self.extent_widget.outputCrs())

    def values(self) -> dict[str, Any]:
        """Return the options as fields of `FuseJob`."""
        return {
            "extent": self.extent(),
            "device": self.device_combo.currentData(),
            "dtype": self.dtype_combo.currentData(),
            "memory_gb": self.memory_spin.value(),
            "coregister": self.coregister_check.isChecked(),
            "assess": self.assess_check.isChecked(),
        }

    def remember(self) -> None:
        """Keep in the settings what the user is likely to want again."""
        settings.set_device(self.device_combo.currentData())
        settings.set_memory_gb(self.memory_spin.value())
        settings.set_match_source_colours(self.match_check.isChecked())
