# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines in a message bar, with a button where there is something to open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qgis.core import Qgis
from qgis.gui import QgsMessageViewer
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtGui import QDesktopServices
from qgis.PyQt.QtWidgets import QPushButton

from ..plugin.log import tr

TITLE = "HyperSharp"


def open_file(path: str) -> None:
    """Open a file in the program that the system has for it."""
    QDesktopServices.openUrl(QUrl.fromLocalFile(path))


def show_warnings(warnings: Sequence[str], parent: Any = None) -> QgsMessageViewer:
    """Show what a run has warned of in a window of its own, which is deleted when it is closed."""
    viewer = QgsMessageViewer(parent)
    viewer.setTitle(tr("HyperSharp: warnings"))
    viewer.setMessageAsPlainText("\n\n".join(f"{text[:1].upper()}{text[1:]}." for text in warnings))
    viewer.setCheckBoxVisible(False)
    viewer.showMessage(False)
    return viewer


def push_success(bar: Any, text: str, report: str = "", warnings: Sequence[str] = ()) -> None:
    """Show a success that stays until it is closed, with buttons to the report and the warnings where there are any."""
    item = bar.createMessage(TITLE, text)
    if warnings:
        said = tr("1 warning") if len(warnings) == 1 else tr("{n} warnings").format(n=len(warnings))
        button = QPushButton(said, item)
        button.setObjectName("hypersharp_show_warnings")
        button.setToolTip("\n".join(warnings))
        button.clicked.connect(lambda _checked=False: show_warnings(warnings, bar.window()))
        item.layout().addWidget(button)
    if report:
        button = QPushButton(tr("Open report"), item)
        button.setObjectName("hypersharp_open_report")
        button.clicked.connect(lambda _checked=False: open_file(report))
        item.layout().addWidget(button)
    bar.pushWidget(item, Qgis.MessageLevel.Success)


def push_error(bar: Any, text: str) -> None:
    """Show an error that stays until it is closed."""
    bar.pushMessage(TITLE, text, Qgis.MessageLevel.Critical, 0)
