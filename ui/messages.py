# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines in a message bar, with a button where there is something to open."""

from __future__ import annotations

from typing import Any

from qgis.core import Qgis
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtGui import QDesktopServices
from qgis.PyQt.QtWidgets import QPushButton

from ..plugin.log import tr

TITLE = "HyperSharp"


def open_file(path: str) -> None:
    """Open a file in the program that the system has for it."""
    QDesktopServices.openUrl(QUrl.fromLocalFile(path))


def push_success(bar: Any, text: str, report: str = "") -> None:
    """Show a success that stays until it is closed, with a button to the report where there is one."""
    item = bar.createMessage(TITLE, text)
    if report:
        button = QPushButton(tr("Open report"), item)
        button.setObjectName("hypersharp_open_report")
        button.clicked.connect(lambda _checked=False: open_file(report))
        item.layout().addWidget(button)
    bar.pushWidget(item, Qgis.MessageLevel.Success)


def push_error(bar: Any, text: str) -> None:
    """Show an error that stays until it is closed."""
    bar.pushMessage(TITLE, text, Qgis.MessageLevel.Critical, 0)
