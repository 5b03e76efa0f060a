# SPDX-License-Identifier: GPL-2.0-or-later
"""The options that a method lists in the registry: a row each, for the chosen method only."""

from __future__ import annotations

from typing import Any, Optional, Union

from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QFormLayout, QLabel, QSpinBox, QWidget

from ..backend.registry import METHODS, MethodInfo, MethodOption
from ..plugin.log import tr

Field = Union[QComboBox, QSpinBox]


class MethodOptions(QWidget):
    """Rows for a form, of every method; those of the chosen one are shown.

    Signals:
        changed(): an option has changed.
    """

    changed = pyqtSignal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._info: Optional[MethodInfo] = None
        self.fields: dict[tuple[str, str], Field] = {}
        """By method and option."""
        self._labels: dict[tuple[str, str], QLabel] = {}
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for info in METHODS.values():
            for option in info.options:
                label, widget = QLabel(tr(option.title), self), self._field(option)
                widget.setToolTip(tr(option.help))
                self._labels[info.id, option.name], self.fields[info.id, option.name] = label, widget
                form.addRow(label, widget)
        self._show()

    def _field(self, option: MethodOption) -> Field:
        if option.choices:
            combo = QComboBox(self)
            for word in option.choices:
                combo.addItem(tr(word[:1].upper() + word[1:]), word)
            combo.setCurrentIndex(combo.findData(option.default))
            combo.currentIndexChanged.connect(lambda _index: self.changed.emit())
            return combo
        spin = QSpinBox(self)
        spin.setRange(option.least, option.most)
        spin.setValue(option.default)
        spin.valueChanged.connect(lambda _value: self.changed.emit())
        return spin

    def set_method(self, info: MethodInfo) -> None:
        """Show a method's options."""
        self._info = info
        self._show()

    def _show(self) -> None:
        chosen = self._info.id if self._info is not None else ""
        for key, widget in self.fields.items():
            self._labels[key].setVisible(key[0] == chosen)
            widget.setVisible(key[0] == chosen)
        self.setVisible(bool(self._info is not None and self._info.options))

    def values(self) -> dict[str, Any]:
        """Return what differs from the method's defaults, as `FuseJob.parameters`."""
        found: dict[str, Any] = {}
        for option in self._info.options if self._info is not None else ():
            widget = self.fields[self._info.id, option.name]
            value = widget.currentData() if isinstance(widget, QComboBox) else widget.value()
            if value != option.default:
                found[option.name] = value
        return found
