# SPDX-License-Identifier: GPL-2.0-or-later
"""What only learned methods have: the weights, and training steps on the pair before fusing."""

from __future__ import annotations

from typing import Any, Optional

from qgis.gui import QgsFileWidget
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QFormLayout, QLabel, QSpinBox, QWidget

from ..backend.registry import MethodInfo
from ..backend.weights import shipped_for, weights_problem
from ..plugin.log import tr

FOLDER = ""
"""The combo box's data for weights from a folder."""


class LearnedOptions(QWidget):
    """Rows for a form: weights by name or from a folder, and adaptation steps. Hidden for other methods.

    Signals:
        changed(): an option has changed.
    """

    changed = pyqtSignal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._info: Optional[MethodInfo] = None
        self.weights_label, self.weights_combo = QLabel(tr("Weights"), self), QComboBox(self)
        self.weights_combo.setToolTip(
            tr(
                "Weights that come with the plugin, or a folder, as the algorithm “Train a learned method” makes it"
            )
        )
        self.folder_label, self.folder_widget = QLabel(tr("Weights folder"), self), QgsFileWidget(self)
        self.folder_widget.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.folder_widget.setDialogTitle(tr("Folder with config.json and model.safetensors"))
        self.steps_label, self.steps_spin = QLabel(tr("Adaptation"), self), QSpinBox(self)
        self.steps_spin.setRange(0, 100_000)
        self.steps_spin.setSingleStep(50)
        self.steps_spin.setSuffix(" " + tr("steps"))
        self.steps_spin.setSpecialValueText(tr("None"))
        self.steps_spin.setToolTip(
            tr(
                "Training steps on this pair, one scale down, before fusing. 100 to 500 are usual. "
                "Weights that gain nothing by it are used as they are."
            )
        )
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self.weights_label, self.weights_combo)
        form.addRow(self.folder_label, self.folder_widget)
        form.addRow(self.steps_label, self.steps_spin)
        self.weights_combo.currentIndexChanged.connect(self._on_weights)
        self.folder_widget.fileChanged.connect(lambda _path: self.changed.emit())
        self.steps_spin.valueChanged.connect(lambda _steps: self.changed.emit())
        self._show()

    def set_method(self, info: MethodInfo) -> None:
        """Offer what a method can take; hide everything for one without weights."""
        if self._info is not None and info.id == self._info.id:
            return
        self._info = info
        chosen = self.weights_combo.currentData()
        self.weights_combo.blockSignals(True)
        self.weights_combo.clear()
        for name in shipped_for(info.id) if info.needs_weights else []:
            own = tr("{name} (the method's own)") if name == info.id else tr("{name} (shipped)")
            self.weights_combo.addItem(own.format(name=name), name)
        self.weights_combo.addItem(tr("From a folder…"), FOLDER)
        # A folder that was named stays chosen; names differ from method to method.
        keep = chosen == FOLDER and self.folder_widget.filePath().strip()
        self.weights_combo.setCurrentIndex(self.weights_combo.findData(FOLDER) if keep else 0)
        self.weights_combo.blockSignals(False)
        self._show()

    def _on_weights(self, _index: int) -> None:
        self._show()
        self.changed.emit()

    def _show(self) -> None:
        from_folder = self.weights_combo.currentData() == FOLDER
        self.folder_label.setVisible(from_folder)
        self.folder_widget.setVisible(from_folder)
        self.setVisible(self._info is not None and self._info.needs_weights)

    def problem(self) -> Optional[str]:
        """Return what stands against the weights that are chosen, or None."""
        if self._info is None or not self._info.needs_weights or self.weights_combo.currentData() != FOLDER:
            return None
        folder = self.folder_widget.filePath().strip()
        if not folder:
            return tr("Choose the folder of the weights.")
        problem = weights_problem(folder)
        return f"{problem[:1].upper()}{problem[1:]}." if problem else None

    def values(self) -> dict[str, Any]:
        """Return the options as fields of `FuseJob`; None and 0 for a method without weights."""
        if self._info is None or not self._info.needs_weights:
            return {"weights": None, "adapt_steps": 0}
        name = self.weights_combo.currentData()
        folder = self.folder_widget.filePath().strip()
        chosen = folder if name == FOLDER else name
        return {
            "weights": None if chosen == self._info.id else chosen,
            "adapt_steps": self.steps_spin.value(),
        }
