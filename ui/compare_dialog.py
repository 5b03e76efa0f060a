# SPDX-License-Identifier: GPL-2.0-or-later
"""The small dialog behind "Compare methods": a pair, some methods, and whether only what the map shows."""

from __future__ import annotations

import os
from typing import Any, Optional

from qgis.gui import QgsFileWidget, QgsMessageBar
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QHBoxLayout,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from ..backend.errors import ErrorCode, HyperSharpError
from ..backend.registry import METHODS
from ..plugin import log
from ..plugin.compare_group import Compared, CompareTask, compare, visible_extent
from ..plugin.log import tr
from ..plugin.provider import ICON_PATH
from . import messages
from .layer_chooser import LayerChooser


class CompareDialog(QDialog):
    """Starts a comparison as a background task and closes; the message bar tells how it went.

    Args:
        iface: QGIS's interface, for the map canvas and its message bar; None in tests without a canvas.
        parent: the window that it belongs to.
        layers: (hyperspectral, guide) layers to begin with.
    """

    def __init__(
        self, iface: Any = None, parent: Optional[QWidget] = None, layers: tuple[Any, Any] = (None, None)
    ) -> None:
        super().__init__(parent)
        self._iface = iface
        self.setObjectName("hypersharp_compare_dialog")
        self.setWindowTitle(tr("Compare Fusion Methods"))
        self.setWindowIcon(QIcon(ICON_PATH))
        self.message_bar = QgsMessageBar(self)
        self.hs_chooser = LayerChooser(tr("The coarse raster with many bands, at least 4"), self)
        self.guide_chooser = LayerChooser(tr("The finer raster, panchromatic or multispectral"), self)
        self.hs_chooser.set_layer(layers[0])
        self.guide_chooser.set_layer(layers[1])
        self.methods_list = QListWidget(self)
        self.methods_list.setToolTip(tr("Methods that cannot run here are named in the report"))
        for info in METHODS.values():
            item = QListWidgetItem(info.title, self.methods_list)
            item.setData(Qt.ItemDataRole.UserRole, info.id)
            item.setToolTip(f"{info.summary}\n{info.citation}")
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            checked = Qt.CheckState.Unchecked if info.needs_weights else Qt.CheckState.Checked
            item.setCheckState(checked)
        self.visible_check = QCheckBox(tr("Only what the map shows"), self)
        self.visible_check.setChecked(iface is not None)
        self.visible_check.setEnabled(iface is not None)
        self.folder_widget = QgsFileWidget(self)
        self.folder_widget.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.folder_widget.setDialogTitle(tr("Folder for the results"))
        self.folder_widget.lineEdit().setPlaceholderText(tr("[Temporary folder]"))
        form = QFormLayout()
        form.addRow(tr("Hyperspectral"), self.hs_chooser)
        form.addRow(tr("Guide (PAN or MSI)"), self.guide_chooser)
        form.addRow(tr("Methods"), self.methods_list)
        choose = QHBoxLayout()
        for text, state in ((tr("All"), Qt.CheckState.Checked), (tr("None"), Qt.CheckState.Unchecked)):
            button = QPushButton(text, self)
            button.setAutoDefault(False)
            button.clicked.connect(lambda _checked=False, state=state: self._check_all(state))
            choose.addWidget(button)
        choose.addStretch(1)
        form.addRow("", choose)
        form.addRow("", self.visible_check)
        form.addRow(tr("Folder"), self.folder_widget)
        standard = QDialogButtonBox.StandardButton
        box = QDialogButtonBox(standard.Close, self)
        self.run_button = box.addButton(tr("Compare"), QDialogButtonBox.ButtonRole.ActionRole)
        self.run_button.setDefault(True)
        self.run_button.clicked.connect(lambda _checked=False: self.run())
        box.button(standard.Close).clicked.connect(lambda _checked=False: self.close())
        layout = QVBoxLayout(self)
        layout.addWidget(self.message_bar)
        layout.addLayout(form, 1)
        layout.addWidget(box)
        self.resize(90 * self.fontMetrics().averageCharWidth(), 36 * self.fontMetrics().height())

    def _check_all(self, state: Qt.CheckState) -> None:
        for index in range(self.methods_list.count()):
            self.methods_list.item(index).setCheckState(state)

    def methods(self) -> list[str]:
        """Return the ids of the chosen methods."""
        items = [self.methods_list.item(i) for i in range(self.methods_list.count())]
        return [i.data(Qt.ItemDataRole.UserRole) for i in items if i.checkState() == Qt.CheckState.Checked]

    def run(self) -> Optional[CompareTask]:
        """Start the comparison and close; return its task, or None when it was refused."""
        hs, guide, methods = self.hs_chooser.source(), self.guide_chooser.source(), self.methods()
        self.message_bar.clearWidgets()
        if hs is None or guide is None or not methods:
            messages.push_error(
                self.message_bar,
                tr("Choose a hyperspectral layer, a finer guide layer and at least one method."),
            )
            return None
        extent = None
        if self.visible_check.isChecked() and self._iface is not None:
            extent = visible_extent(self._iface.mapCanvas())
        folder = self.folder_widget.filePath().strip()
        try:
            task = compare(
                hs,
                guide,
                os.path.abspath(folder) if folder else None,
                methods,
                extent,
                on_finished=self._tell,
                on_error=self._tell_error,
            )
        except HyperSharpError as error:
            messages.push_error(self.message_bar, log.sentence(error))
            return None
        self.close()
        return task

    def _bar(self) -> Any:
        """Return the message bar in which the outcome is told: QGIS's own, else the dialog's."""
        return self._iface.messageBar() if self._iface is not None else self.message_bar

    def _tell(self, compared: Compared, table: dict[str, Any]) -> None:
        report = os.path.join(compared_folder(compared), "compare.html")
        text = (table.get("recommendation") or {}).get("text") or tr("Methods compared.")
        report = report if os.path.isfile(report) else ""
        messages.push_success(self._bar(), text, report, table.get("warnings") or ())

    def _tell_error(self, error: HyperSharpError) -> None:
        if error.code is not ErrorCode.CANCELLED:
            messages.push_error(self._bar(), log.sentence(error))


def compared_folder(compared: Compared) -> str:
    """Return the folder of a comparison from its layers; empty without any."""
    if not compared.layers:
        return ""
    return os.path.dirname(os.path.dirname(compared.layers[0].source()))
