# SPDX-License-Identifier: GPL-2.0-or-later
"""One tab of QGIS's log panel for everything that the plugin has to say (safe to call from any thread)."""

from __future__ import annotations

from qgis.core import Qgis, QgsMessageLog
from qgis.PyQt.QtCore import QCoreApplication

from ..backend.errors import HyperSharpError

TAB = "HyperSharp"
_LEVELS = {
    "debug": Qgis.MessageLevel.Info,
    "info": Qgis.MessageLevel.Info,
    "warning": Qgis.MessageLevel.Warning,
    "error": Qgis.MessageLevel.Critical,
}


def write(text: str, level: str = "info") -> None:
    """Write a line to the plugin's tab; `level` is "debug", "info", "warning" or "error"."""
    QgsMessageLog.logMessage(text, TAB, _LEVELS.get(level, Qgis.MessageLevel.Info), False)


def sentence(error: HyperSharpError) -> str:
    """Return an error as people read it: what is wrong, then what to do."""
    message = error.message[:1].upper() + error.message[1:]
    hint = error.hint[:1].upper() + error.hint[1:]
    return f"{message}. {hint}." if hint else f"{message}."


def tr(text: str) -> str:
    """Return the text in the user's language."""
    return QCoreApplication.translate("hypersharp", text)
